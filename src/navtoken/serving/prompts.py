"""From a request's messages or prompt to token ids, and how many tokens there may be.

Tokenising is slow where prompts are long, so it is not for the event loop; and a fast tokenizer must not be used by two
threads at once, so this one is a copy with one thread of its own.
"""

import asyncio
import copy
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from navtoken.checkpoints import ModelPair
from navtoken.policies import Policy
from navtoken.serving.errors import BadRequest
from navtoken.serving.requests import ChatRequest, CompletionRequest
from navtoken.tasks.prompts import PromptError, Rendered, render_messages

TOO_LONG = "context_length_exceeded"


class PromptMaker:
    """Makes prompts in a thread of its own."""

    def __init__(self, pair: ModelPair) -> None:
        self._tokenizer = copy.deepcopy(pair.tokenizer)
        self._vocab_size = pair.vocab_size
        # A prompt that is too long is refused, with its length: nothing to warn of.
        self._tokenizer.model_max_length = 1 << 62
        self._thread = ThreadPoolExecutor(1, "prompts")

    async def of_chat(self, request: ChatRequest) -> Rendered:
        """The conversation in the model's chat template. Raises `BadRequest`."""
        return await self._run(self._rendered, request)

    async def of_completion(self, request: CompletionRequest) -> list[Rendered]:
        """Each prompt as text and ids; ids stay as they are. Raises `BadRequest`."""
        return await self._run(self._plain, request)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, make: Any, request: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, make, request)

    def _rendered(self, request: ChatRequest) -> Rendered:
        messages = [{"role": _role(message.role), "content": message.text} for message in request.messages]
        try:
            return render_messages(self._tokenizer, messages, request.chat_template_kwargs)
        except PromptError as error:
            param = "chat_template_kwargs" if request.chat_template_kwargs else "messages"
            raise BadRequest(str(error), param) from error

    def _plain(self, request: CompletionRequest) -> list[Rendered]:
        special = request.add_special_tokens is not False
        return [self._one(prompt, special) for prompt in request.prompts]

    def _one(self, prompt: str | list[int], special: bool) -> Rendered:
        ids = (
            self._tokenizer(prompt, add_special_tokens=special)["input_ids"]
            if isinstance(prompt, str)
            else prompt
        )
        if max(ids, default=0) >= self._vocab_size:
            raise BadRequest(
                f"the prompt has token id {max(ids)}, token ids of the pair are 0 to {self._vocab_size - 1}",
                "prompt",
            )
        if isinstance(prompt, str):
            return Rendered(prompt, list(ids))
        text = self._tokenizer.decode(prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Rendered(text, prompt)


def room_for(
    prompt_ids: Seq[int], max_tokens: int | None, policy: Policy, pair: ModelPair, capacity: int, param: str
) -> int:
    """Tokens that the response may have. Raises `BadRequest` where the prompt, or it and `max_tokens`, are too long."""
    if not prompt_ids:
        raise BadRequest("the prompt has no tokens; give at least one", param)
    context = min(capacity, *(pair[model].card.context for model in policy.models))
    room = context - len(prompt_ids)
    # What only scores its prompt needs no room for a response.
    if room < (0 if max_tokens == 0 else 1):
        raise BadRequest(
            f"the prompt has {len(prompt_ids)} tokens, the context holds {context} with the response",
            param,
            TOO_LONG,
        )
    if max_tokens is None:
        return room
    if max_tokens > room:
        raise BadRequest(
            f"the prompt's {len(prompt_ids)} tokens and max_tokens={max_tokens} are more than the context's {context}; "
            f"ask for at most {room}",
            "max_tokens",
            TOO_LONG,
        )
    return max_tokens


def _role(role: str) -> str:
    """Templates know no developers: to them it is the system."""
    return "system" if role == "developer" else role
