"""What a model is sent: the question in the form that it was trained on.

Models of the hub get the task's instruction (boxed answer) below the question, in their chat template. The embedded
pair was trained on bare questions and says so (`task_instruction: false` in its tokenizer's configuration). A
tokenizer without a chat template gets plain text. What was sent, text and ids, goes into the trace.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from navtoken.tasks.base import Problem, Task

QUOTED = 300
"""Characters of a template's words that a message repeats."""


class PromptError(ValueError):
    """Messages or options that the tokenizer's chat template does not take, or a template that fails."""


@dataclass(frozen=True)
class PromptOptions:
    """How questions become prompts."""

    enable_thinking: bool | None = None
    """Passed to chat templates that know it (Qwen3); None leaves the template's default."""


@dataclass(frozen=True)
class Rendered:
    """What is sent to a model."""

    text: str
    """The prompt as text, with the chat template's markers."""
    ids: list[int]
    """The prompt's token ids, with at most one token that begins a sequence."""


def render(tokenizer: Any, task: Task, problem: Problem, options: PromptOptions | None = None) -> Rendered:
    """Render a task's problem. Raises `PromptError`."""
    return render_question(tokenizer, problem.prompt, task.instruction, options)


def render_question(
    tokenizer: Any, question: str, instruction: str = "", options: PromptOptions | None = None
) -> Rendered:
    """Render a question that needs no task (`navtoken solve`). Raises `PromptError`."""
    thinking = (options or PromptOptions()).enable_thinking
    if instruction and getattr(tokenizer, "init_kwargs", {}).get("task_instruction", True):
        question = f"{question}\n\n{instruction}"
    switches = {} if thinking is None else {"enable_thinking": thinking}
    return render_messages(tokenizer, [{"role": "user", "content": question}], switches)


def render_messages(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    template_kwargs: Mapping[str, Any] | None = None,
    continue_final: bool = False,
) -> Rendered:
    """Render a conversation, each message with its `role` and `content`. Raises `PromptError`.

    `template_kwargs` are the switches that chat templates know besides (`enable_thinking`); `continue_final` leaves the
    last message open, for the model to go on with it.
    """
    switches = dict(template_kwargs or {})
    _check_messages(messages, continue_final)
    if not getattr(tokenizer, "chat_template", None):
        return _untemplated(tokenizer, messages, switches, continue_final)
    text = _templated(tokenizer, messages, switches, continue_final)
    # The template writes the special tokens itself; letting the tokenizer add them again would double the first.
    return Rendered(text, list(tokenizer(text, add_special_tokens=False)["input_ids"]))


def _check_messages(messages: Sequence[Mapping[str, str]], continue_final: bool) -> None:
    if not messages:
        raise PromptError("there are no messages; give at least one of the user's")
    for number, message in enumerate(messages, 1):
        if not (isinstance(message.get("role"), str) and message["role"]):
            raise PromptError(f"message {number} names no role; give system, user or assistant")
        if not isinstance(message.get("content"), str):
            kind = type(message.get("content")).__name__
            raise PromptError(f"the content of message {number} is no text but {kind}; give a string")
    if continue_final and messages[-1]["role"] != "assistant":
        raise PromptError(
            f"the message to go on with is of '{messages[-1]['role']}'; only one of the assistant can be"
        )


def _untemplated(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], switches: Mapping[str, Any], continue_final: bool
) -> Rendered:
    if switches:
        raise PromptError(
            f"{next(iter(switches))} is set, but the tokenizer has no chat template; leave it out"
        )
    if continue_final or [message["role"] for message in messages] != ["user"]:
        raise PromptError(
            "the tokenizer has no chat template, and a conversation needs one; give a single message of the user"
        )
    text = messages[0]["content"]
    return Rendered(text, _plain_ids(tokenizer, text))


def _templated(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], switches: Mapping[str, Any], continue_final: bool
) -> str:
    try:
        _check_switches(tokenizer, switches)
        text = _applied(tokenizer, messages, switches, continue_final)
        for number, message in enumerate(messages):
            # Templates drop what they have no place for without a word. Earlier thoughts are dropped on purpose.
            if message["role"] != "assistant" and message["content"].strip() not in text:
                other = [*messages[:number], {**message, "content": "\ue000"}, *messages[number + 1 :]]
                if _applied(tokenizer, other, switches, continue_final) == text:
                    raise PromptError(
                        f"the chat template has no place for message {number + 1}, of '{message['role']}'; leave it out"
                    )
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        # Templates are programs of strangers: what they trip over is whatever Python raises.
        if isinstance(error, PromptError):
            raise
        raise PromptError(
            f"the chat template fails: {' '.join(str(error).split())[:QUOTED] or type(error).__name__}"
        ) from error
    return text


def _check_switches(tokenizer: Any, switches: Mapping[str, Any]) -> None:
    template = tokenizer.get_chat_template()
    # A template's variables that are the tokenizer's own, or the library's, to set.
    taken = {
        *signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
        *tokenizer.special_tokens_map,
    }
    taken |= {"messages", "conversations", "continue_final_message", "raise_exception", "strftime_now"}
    for name, value in switches.items():
        if name in taken:
            raise PromptError(f"{name} is no switch of a chat template's; leave it out")
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise PromptError(f"{name}={value} is set, but the chat template does not know it; leave it out")


def _applied(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], switches: Mapping[str, Any], continue_final: bool
) -> str:
    text: str = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tokenize=False,
        add_generation_prompt=not continue_final,
        continue_final_message=continue_final,
        **switches,
    )
    return text


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    # Some tokenizers close every sequence; a prompt that is closed already would end the response before it begins.
    end = getattr(tokenizer, "eos_token_id", None)
    return (
        ids[:-1]
        if end is not None and len(ids) > 1 and ids[-1] == end and not text.endswith(tokenizer.eos_token)
        else ids
    )
