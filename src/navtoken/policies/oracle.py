"""The oracle: the LLM writes exactly where a continuation verdict, computed live, says that the draft diverges.

It is R2R's labelling (arXiv 2505.21600) turned into a decoder: the LLM runs at every token, and where its token is not the draft,
somebody is asked whether the response would go elsewhere with the draft. The paper's labels ask that on the LLM's own
responses; here it is asked on the prefix that routing has led to, so this is what a router without errors would do. It
saves nothing: an offline rule that says how far routing by divergence can go.

Who answers is given from outside (`with_verdict`): a verdict takes continuations by the LLM and a verifier, which a policy
knows nothing of.

Shapes: B rows in the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from navtoken.policies.base import BasePolicy, Drafts, Verdicts, Writer, Writes, route
from navtoken.policies.rules import PolicyError
from navtoken.reference import Reference

SAME_STEP = "same_step"
"""The verifier that is meant where none is named: the task's own."""


@dataclass(frozen=True)
class Question:
    """A draft that differs from the LLM's token: does the response go elsewhere with it?"""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    """The response before the draft. Shared with the row, which goes on: read it before the answer is given."""
    draft_id: int
    llm_id: int
    """What the LLM writes in its place."""


Verdict = Callable[[list[Question]], list[bool]]
"""Answers questions in their order: True where the draft diverges, and where nobody could tell."""


@dataclass
class Asked:
    """A row's state."""

    prompt_ids: Sequence[int]
    response_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class OraclePolicy(BasePolicy):
    """LLM where a live verdict says that the draft diverges: runs the LLM at every token."""

    verifier: str = SAME_STEP
    """Who compares the continuations, as a reference: `same_step`, `outcome`, `judge:URL,model=NAME`."""
    verdict: Verdict | None = field(default=None, repr=False)
    """None until `with_verdict` gives it."""

    @property
    def reference(self) -> str:
        return "oracle" if self.verifier == SAME_STEP else f"oracle:{self.verifier}"

    def with_verdict(self, verdict: Verdict) -> "OraclePolicy":
        """The oracle with somebody who answers."""
        return replace(self, verdict=verdict)

    def check_ready(self) -> None:
        if self.verdict is None:
            raise PolicyError(
                f"policy '{self.reference}' has nobody to tell which drafts diverge; decode through `navtoken generate` or "
                "`navtoken evaluate`, which ask the task's verifier, or give it one with `with_verdict`"
            )

    def start(self, prompt_ids: Sequence[int]) -> Asked:
        return Asked(tuple(prompt_ids))

    def committed(self, state: Any, token_id: int, writer: Writer, entropy: float) -> None:
        state.response_ids.append(token_id)

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        return Verdicts(torch.ones_like(drafts.token_ids_B))

    def judge_writes(self, writes: Writes) -> Verdicts:
        """Waits for the device and for the verdict: nobody routes by an oracle to save time."""
        assert self.verdict is not None, "check_ready comes before the first draft"
        pairs = zip(writes.draft_ids_B.tolist(), writes.token_ids_B.tolist(), strict=True)
        differing = [(index, draft, llm) for index, (draft, llm) in enumerate(pairs) if draft != llm]
        questions = [
            Question(state.prompt_ids, state.response_ids, draft, llm)
            for state, draft, llm in ((writes.states[index], draft, llm) for index, draft, llm in differing)
        ]
        answers = self.verdict(questions) if questions else []
        diverges = [False] * len(writes.states)
        for (index, _, _), answer in zip(differing, answers, strict=True):
            diverges[index] = bool(answer)
        return route(torch.tensor(diverges, device=writes.token_ids_B.device))


def make(reference: Reference) -> OraclePolicy:
    """`oracle`, or with the verifier's own reference behind the colon: `oracle:judge:http://localhost:8000,model=NAME`."""
    if reference.target is None and reference.options:
        raise PolicyError(f"'{reference}': options belong to a verifier; write oracle:judge:URL,model=NAME")
    if reference.target is None:
        return OraclePolicy()
    return OraclePolicy(str(reference).removeprefix(f"{reference.name}:"))
