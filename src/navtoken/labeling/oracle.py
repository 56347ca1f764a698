"""The oracle's verdict: for a draft that differs, both branches are written and compared while the response is being routed.

What a policy asks (`policies.oracle.Question`) names tokens only; which problem they answer is known from their prompt. Nobody
routes like this to save time, but the prefixes that grow with a response are kept, so that each costs no more than what is new.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from navtoken.checkpoints import ModelPair
from navtoken.engine import EngineOptions
from navtoken.engine.options import DEFAULTS
from navtoken.labeling import verdicts
from navtoken.labeling.continuations import Ask, Continued, EngineContinuer
from navtoken.labeling.sentences import SentenceEnds
from navtoken.labeling.texts import PARTIAL, added_text, text_of
from navtoken.labeling.verdicts import Verifier
from navtoken.policies import PolicyError
from navtoken.policies.oracle import Question
from navtoken.tasks import Problem, Task
from navtoken.tasks.prompts import PromptOptions, render

__all__ = ["LiveVerdict"]

STREAK = 64
"""So many questions in a row without an answer are no accident: what goes on would be the LLM alone under the oracle's name."""


class LiveVerdict:
    """Answers an oracle's questions about one task: does the response go elsewhere with the draft?"""

    def __init__(
        self,
        pair: ModelPair,
        task: Task,
        problems: Iterable[Problem],
        verifier: Verifier,
        prompts: PromptOptions | None = None,
        engine: EngineOptions = DEFAULTS,
        sentence_tokens: int = 64,
        max_tokens: int | None = None,
    ) -> None:
        """`problems` are all that will be asked about; `max_tokens` is the longest response, for a verifier that wants its end.

        Raises what the verifier says about a task that it cannot judge.
        """
        verifier.check(task)
        self.pair = pair
        self.task = task
        self.verifier = verifier
        self._problems = problems
        self._prompts = prompts
        self._sentence_tokens = sentence_tokens
        self._max_tokens = max_tokens or pair.llm.card.context
        self._ends = None if verifier.to_end else SentenceEnds.of(pair.tokenizer, task)
        self._engine_options = engine
        self._counts = {"answered": 0, "failed": 0, "undecided": 0}
        self._errors = Counter[str]()
        self._streak = 0

    def __call__(self, questions: Sequence[Question]) -> list[bool]:
        """For each question: does the draft diverge? Yes too where a branch fails or nobody can tell: the LLM is the safe side.

        Raises `PolicyError` where that is so of one question after the other, and what the verifier raises.
        """
        branches = self._branches(questions)
        asked: dict[int, verdicts.Question] = {}
        for index, question in enumerate(questions):
            llm, slm = branches.get((index, "llm")), branches.get((index, "slm"))
            if llm and slm:
                asked[index] = self._as_text(question, llm, slm)
        answers = dict(zip(asked, self.verifier.same(list(asked.values())), strict=True)) if asked else {}
        for index in range(len(questions)):
            self._count(
                "failed" if index not in asked else "undecided" if answers[index] is None else "answered"
            )
        return [answers.get(index) is not True for index in range(len(questions))]

    def summary(self) -> dict[str, Any]:
        """Questions by what came of them (`failed`: no branch; `undecided`: no verdict), why branches failed, and the verifier's."""
        return {**self._counts, "errors": dict(self._errors), "verdicts": self.verifier.summary()}

    def told(self) -> str:
        """What came of the questions, in words."""
        return ", ".join(f"{num} questions {outcome}" for outcome, num in self._counts.items())

    def close(self) -> None:
        """Let go of the verifier's connections."""
        self.verifier.close()

    def _count(self, outcome: str) -> None:
        self._counts[outcome] += 1
        self._streak = 0 if outcome == "answered" else self._streak + 1
        if self._streak >= STREAK:
            why = f"; branches failed with: {next(iter(self._errors))}" if self._errors else ""
            raise PolicyError(
                f"the oracle for task '{self.task.name}' got no verdict {self._streak} times in a row ({self.told()}){why}; what is written "
                f"is kept, mend this or take another verifier than '{self.verifier.name}'"
            )

    @cached_property
    def continuer(self) -> EngineContinuer:
        """The LLM that writes the branches. Not made before it is needed: its caches take memory."""
        return EngineContinuer(self.pair, self._engine_options, keep=self._engine_options.max_rows)

    def _branches(self, questions: Sequence[Question]) -> dict[object, Continued]:
        """Both branches of each question, by number and model; those that fail are counted and left out."""
        found: dict[object, Continued] = {}
        for each in self.continuer.continue_all(self._asks(questions)):
            if each.error is None:
                found[each.key] = each
            else:
                self._errors[each.error.split("\n")[0][:200]] += 1
        return found

    def _asks(self, questions: Sequence[Question]) -> Iterable[Ask]:
        for index, question in enumerate(questions):
            prefix_ids = [*question.prompt_ids, *question.response_ids]
            left = max(1, self._max_tokens - len(question.response_ids))
            for whose, token_id in (("llm", question.llm_id), ("slm", question.draft_id)):
                yield Ask(
                    key=(index, whose),
                    prefix_ids=prefix_ids,
                    length=len(prefix_ids),
                    draft=token_id,
                    max_tokens=left if self._ends is None else self._sentence_tokens,
                    ends=self._ends,
                )

    def _as_text(self, question: Question, llm: Continued, slm: Continued) -> verdicts.Question:
        before, tokenizer = list(question.response_ids), self.pair.tokenizer
        prefix = text_of(tokenizer, before).rstrip(PARTIAL)
        own, branch = (added_text(tokenizer, before, each.token_ids) for each in (llm, slm))
        return verdicts.Question(self.task, self._problem(question), prefix, own, branch, slm.ended)

    def _problem(self, question: Question) -> Problem:
        found = self._by_prompt.get(tuple(question.prompt_ids))
        if found is None:
            raise PolicyError(
                f"the oracle for task '{self.task.name}' is asked about a prompt that is none of the {len(self._by_prompt)} problems "
                "that it was made for; give it those that are decoded"
            )
        return found

    @cached_property
    def _by_prompt(self) -> dict[tuple[int, ...], Problem]:
        tokenizer = self.pair.tokenizer
        return {
            tuple(render(tokenizer, self.task, problem, self._prompts).ids): problem
            for problem in self._problems
        }
