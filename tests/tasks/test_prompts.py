"""What is sent: template, instruction, thinking switch, and one beginning-of-sequence token at most."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from navtoken.tasks.base import Problem
from navtoken.tasks.prompts import PromptError, PromptOptions, Rendered, render, render_question

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKING = TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


def tokenizer(template=None, closes=False, **init):
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<think>", "</think>"]
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: k for k, token in enumerate(special + bytes_)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if closes else "<s> $A", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special[2:],
        **init,
    )
    made.chat_template = template
    return made


class Boxed:
    name = "boxed"
    instruction = r"Put it within \boxed{}."


PROBLEM = Problem("boxed", "0", "1 + 1?", "2")


def test_the_instruction_goes_into_the_user_message():
    tok = tokenizer(TEMPLATE)
    sent = render(tok, Boxed(), PROBLEM)
    assert isinstance(sent, Rendered)
    assert sent.text == "<s><|user|>1 + 1?\n\nPut it within \\boxed{}.<|assistant|>"
    assert sent.ids.count(tok.bos_token_id) == 1 and sent.ids[0] == tok.bos_token_id
    encoded = tok.apply_chat_template(
        [{"role": "user", "content": "1 + 1?\n\nPut it within \\boxed{}."}],
        add_generation_prompt=True,
        return_dict=True,
    )
    assert sent.ids == encoded["input_ids"]


def test_the_embedded_pair_gets_the_bare_question(tmp_path):
    tok = tokenizer(TEMPLATE, task_instruction=False)
    assert render(tok, Boxed(), PROBLEM).text == "<s><|user|>1 + 1?<|assistant|>"
    tok.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert render(loaded, Boxed(), PROBLEM).text == "<s><|user|>1 + 1?<|assistant|>"


def test_without_a_template_the_text_is_plain():
    tok = tokenizer()
    sent = render(tok, Boxed(), PROBLEM)
    assert sent.text == "1 + 1?\n\nPut it within \\boxed{}."
    assert sent.ids[0] == tok.bos_token_id and sent.ids.count(tok.bos_token_id) == 1


def test_a_prompt_is_never_closed():
    tok = tokenizer(closes=True)
    assert tok("a")["input_ids"][-1] == tok.eos_token_id
    assert render_question(tok, "a").ids[-1] != tok.eos_token_id
    assert tok.eos_token_id not in render_question(tokenizer(TEMPLATE, closes=True), "a").ids


@pytest.mark.parametrize(
    ("thinking", "end"), [(None, "<|assistant|>"), (True, "<|assistant|>"), (False, "<think></think>")]
)
def test_thinking_is_switched(thinking, end):
    assert render(tokenizer(THINKING), Boxed(), PROBLEM, PromptOptions(thinking)).text.endswith(end)


def test_a_switch_that_nothing_reads_is_an_error():
    with pytest.raises(PromptError, match="does not know it"):
        render(tokenizer(TEMPLATE), Boxed(), PROBLEM, PromptOptions(enable_thinking=False))
    with pytest.raises(PromptError, match="no chat template"):
        render(tokenizer(), Boxed(), PROBLEM, PromptOptions(enable_thinking=True))
