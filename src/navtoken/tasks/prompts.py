"""What a model is sent: the question in the form that it was trained on.

Models of the hub get the task's instruction (boxed answer) below the question, in their chat template. The embedded
pair was trained on bare questions and says so (`task_instruction: false` in its tokenizer's configuration). A
tokenizer without a chat template gets plain text. What was sent, text and ids, goes into the trace.
"""

from dataclasses import dataclass
from typing import Any

from navtoken.tasks.base import Problem, Task


class PromptError(ValueError):
    """A prompt option that the tokenizer's chat template does not know, or a template that fails."""


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
    if not getattr(tokenizer, "chat_template", None):
        if thinking is not None:
            raise PromptError("enable_thinking is set, but the tokenizer has no chat template; leave it out")
        return Rendered(question, _plain_ids(tokenizer, question))
    text = _templated(tokenizer, question, thinking)
    # The template writes the special tokens itself; letting the tokenizer add them again would double the first.
    return Rendered(text, list(tokenizer(text, add_special_tokens=False)["input_ids"]))


def _templated(tokenizer: Any, question: str, thinking: bool | None) -> str:
    switches: dict[str, bool] = {}
    if thinking is not None:
        if "enable_thinking" not in tokenizer.get_chat_template():
            raise PromptError(
                f"enable_thinking={thinking} is set, but the chat template does not know it; leave it out"
            )
        switches["enable_thinking"] = thinking
    messages = [{"role": "user", "content": question}]
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **switches
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
