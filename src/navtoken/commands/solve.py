"""`navtoken solve`: one answer as it is written, each token showing its writer and how uncertain it was.

Colour is never the only sign: the LLM's tokens are bold and underlined, and where there is no colour (NO_COLOR, a pipe)
they stand in ‹ › and uncertain tokens carry up to three primes.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import tyro
from rich.console import Console
from rich.style import Style
from rich.text import Text

from navtoken.checkpoints import ModelPair
from navtoken.commands.surroundings import progress_console
from navtoken.engine import Engine, EngineOptions, SamplingParams
from navtoken.engine.options import OptionError
from navtoken.generation import GenerationOptions, ModelOptions, ready_policy
from navtoken.generation.calibration import in_sampling, needs_calibration
from navtoken.generation.options import FAMILIES
from navtoken.policies import Policy, make_policy
from navtoken.tasks import Problem, Task, load_task
from navtoken.tasks.base import GeneratedTask
from navtoken.tasks.prompts import PromptOptions, render_question

LEVELS = (0.25, 0.67, 1.5)
"""Entropies in nats at which a token is shown one step more intense."""
_MARKS = ("", "′", "″", "‴")
_SHADES = (None, "#5b4a12", "#8f6a00", "#d09a00")
_INKS = (None, "#ffffff", "#ffffff", "#000000")
_LLM_INK = "#5fafff"


@dataclass(frozen=True)
class SolveOptions:
    """Stream one answer: who wrote which token, and how uncertain it was."""

    prompt: tyro.conf.Positional[str]
    """The question, such as "Numbers 3 7 12 target 33 :"; judged where it is one of the generated families'."""
    policy: str = "entropy:0.67"
    """Policy reference; one with share= finds its threshold on training problems of the question's family."""
    calibrate_on: str | None = None
    """Task whose training split calibrates instead; needed where no family states the question."""
    models: ModelOptions = field(default_factory=ModelOptions)
    """The pair."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """How tokens are drawn."""
    prompts: PromptOptions = field(default_factory=PromptOptions)
    """How the question becomes a prompt."""
    max_tokens: int | None = None
    """Longest response in tokens; None takes the LLM's own limit, else the context."""
    seed: int = 0
    """Fixes all noise."""


@dataclass(frozen=True)
class SolvedToken:
    """One token of the answer."""

    token_id: int
    text: str
    """What became readable with it; empty for special tokens and parts of a character."""
    writer: str
    """`slm` or `llm`."""
    entropy_slm: float | None
    """Nats, T = 1; None where the SLM did not draft."""
    entropy_llm: float | None
    """Nats, T = 1; None where the LLM did not run."""
    draft_id: int | None
    """What the SLM had drafted here."""

    @property
    def entropy(self) -> float:
        """The SLM's, which a policy sees first, else the LLM's."""
        value = self.entropy_llm if self.entropy_slm is None else self.entropy_slm
        return 0.0 if value is None else value


def run(options: SolveOptions, console: Console, pair: ModelPair | None = None) -> dict[str, Any]:
    """Stream the answer to `console`, with a legend and a summary; returns both as plain data."""
    quiet = progress_console()
    loaded = pair or options.models.load()
    if not options.prompt.strip():
        raise OptionError("the question is empty; give one, such as 'Numbers 3 7 12 target 33 :'")
    task, problem = find_problem(options.prompt)
    with quiet.status("calibrating" if needs_calibration(options.policy) else "making the policy"):
        policy = _policy(options, loaded, task)
    marked = console.color_system is None or console.no_color
    console.print(legend(marked))
    tokens = []
    for token in stream(options, loaded, policy, task, problem):
        console.print(shown(token, marked), end="", soft_wrap=True)
        tokens.append(token)
    result = _result(options, loaded, policy, task, problem, tokens)
    console.print(Text(f"\n{summary(result)}", style="bold"))
    return result


def find_problem(prompt: str) -> tuple[Task | None, Problem | None]:
    """The family that knows this question, and the problem; None and None where none does."""
    for name in FAMILIES:
        task = load_task(name)
        assert isinstance(task, GeneratedTask)
        if problem := task.parse(prompt):
            return task, problem
    return None, None


def stream(
    options: SolveOptions, pair: ModelPair, policy: Policy, task: Task | None, problem: Problem | None
) -> Iterator[SolvedToken]:
    """Decode one answer; yields each token once it is final."""
    question = problem.prompt if problem else options.prompt.strip()
    prompt = render_question(pair.tokenizer, question, task.instruction if task else "", options.prompts)
    engine = Engine(pair, policy, EngineOptions(max_rows=1, llm_min_rows=1))
    limit = GenerationOptions(max_tokens=options.max_tokens).limit(pair)
    engine.add(prompt.ids, options.sampling, limit, options.seed, text=True)
    for event in engine.run():
        if event.token is None:
            continue
        token = event.token
        yield SolvedToken(
            token_id=token.token_id,
            text=event.text,
            writer=token.writer.name.lower(),
            entropy_slm=_known(token.entropy_slm),
            entropy_llm=_known(token.entropy_llm),
            draft_id=None if token.draft_id < 0 else token.draft_id,
        )


def shown(token: SolvedToken, marked: bool) -> Text:
    """The token for a terminal; `marked` adds signs that need no colour."""
    level = sum(token.entropy >= bound for bound in LEVELS)
    by_llm = token.writer == "llm"
    text = "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in token.text)
    ink = _INKS[level] or (_LLM_INK if by_llm else None)
    style = Style(color=ink, bgcolor=_SHADES[level], bold=by_llm, underline=by_llm)
    if not marked or not text:
        return Text(text, style=style)
    body = text.lstrip(" ")
    lead = text[: len(text) - len(body)]
    return Text(lead + (f"‹{body}›" if by_llm else body) + _MARKS[level], style=style)


def legend(marked: bool) -> Text:
    """How to read the answer."""
    line = Text("written by the ")
    for writer, name in (("slm", "SLM"), ("llm", "LLM")):
        line.append_text(shown(SolvedToken(0, name, writer, 0.0, None, None), marked)).append(" ")
    line.append("· uncertain (nats): ")
    for bound in LEVELS:
        line.append_text(shown(SolvedToken(0, f"{bound:g}+", "slm", bound, None, None), marked)).append(" ")
    return line


def summary(result: dict[str, Any]) -> str:
    """The last line: LLM share, length, verdict."""
    verdict = {True: "right", False: "wrong", None: "not judged (no generated family states this question)"}
    return (
        f"{result['policy']}: {result['num_tokens']} tokens, {100 * result['llm_share']:.1f} % by the LLM, "
        f"{verdict[result['correct']]}"
    )


def _policy(options: SolveOptions, pair: ModelPair, task: Task | None) -> Policy:
    if not needs_calibration(options.policy):
        return in_sampling(make_policy(options.policy), pair, options.sampling)
    source = load_task(options.calibrate_on) if options.calibrate_on else task
    if source is None:
        raise OptionError(
            f"policy '{options.policy}' finds its threshold on training problems, and no family states this question; "
            "name a task with calibrate_on, or give a threshold"
        )
    wanted = GenerationOptions(
        sampling=options.sampling, prompts=options.prompts, max_tokens=options.max_tokens, calibration_num=24
    )
    return ready_policy(options.policy, pair, source, wanted)


def answer_text(tokens: list[SolvedToken]) -> str:
    """The answer as it was streamed: without special tokens and without the stop string that ended it."""
    return "".join(token.text for token in tokens)


def _result(
    options: SolveOptions,
    pair: ModelPair,
    policy: Policy,
    task: Task | None,
    problem: Problem | None,
    tokens: list[SolvedToken],
) -> dict[str, Any]:
    text = answer_text(tokens)
    return {
        "prompt": problem.prompt if problem else options.prompt.strip(),
        "policy": policy.reference,
        "task": task.name if task else None,
        "text": text,
        "correct": task.verify(problem, text) if task and problem else None,
        "num_tokens": len(tokens),
        "llm_share": sum(token.writer == "llm" for token in tokens) / max(1, len(tokens)),
        "tokens": [asdict(token) for token in tokens],
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
