"""Prompts and responses in the log, for those who ask for them (`log_prompts`): nothing else writes them down."""

import json
import logging
from collections.abc import Sequence as Seq
from contextvars import ContextVar
from typing import Any

from navtoken.serving.choices import Choice, Piece
from navtoken.serving.jobs import Job

logger = logging.getLogger(__name__)

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""Of the request that is being answered: what its lines in the log have in common."""


class Transcript:
    """Follows one job; what its client left unheard is not in it."""

    def __init__(self, job: Job, num_choices: int) -> None:
        self._job = job
        self._responses = [""] * num_choices

    def add(self, choice: Choice, piece: Piece) -> None:
        """What an event added to a response, thoughts included."""
        self._responses[choice.index] += piece.thoughts + piece.text

    def write(self, tokenizer: Any) -> None:
        """One line for all of the job, so that no prompt can forge another."""
        told = {"prompts": [_text(tokenizer, ids) for ids in self._prompts()], "responses": self._responses}
        logger.info("%s %s", request_id.get(), json.dumps(told))

    def _prompts(self) -> Seq[Seq[int]]:
        asked = {ask.prompt: ask.prompt_ids for ask in self._job.asks}
        return list(asked.values()) or self._job.score_prompts


def _text(tokenizer: Any, token_ids: Seq[int]) -> str:
    text: str = tokenizer.decode(
        list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text
