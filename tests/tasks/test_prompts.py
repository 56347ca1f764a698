"""What is sent: template, instruction, thinking switch, and one beginning-of-sequence token at most."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from navtoken.tasks.base import Problem
from navtoken.tasks.prompts import (
    PromptError,
    PromptOptions,
    Rendered,
    render,
    render_messages,
    render_question,
)

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


def said(role, content):
    return {"role": role, "content": content}


TALK = [said("system", "Be brief."), said("user", "1?"), said("assistant", "1."), said("user", "2?")]


def test_a_conversation_goes_through_the_template():
    sent = render_messages(tokenizer(TEMPLATE), TALK)
    assert sent.text == "<s><|system|>Be brief.<|user|>1?<|assistant|>1.<|user|>2?<|assistant|>"
    assert sent.ids == tokenizer(TEMPLATE)(sent.text, add_special_tokens=False)["input_ids"]


def test_a_question_is_a_conversation_of_one_message():
    for tok in (tokenizer(TEMPLATE), tokenizer()):
        assert render_messages(tok, [said("user", "1?")]) == render_question(tok, "1?")


def test_the_last_message_can_be_left_open():
    template = TEMPLATE.replace("{% endfor %}", "</s>{% endfor %}")
    talk = [*TALK, said("assistant", "It is")]
    assert render_messages(tokenizer(template), talk).text.endswith("<|assistant|>It is</s><|assistant|>")
    assert render_messages(tokenizer(template), talk, continue_final=True).text.endswith("<|assistant|>It is")


@pytest.mark.parametrize(
    ("messages", "continue_final", "words"),
    [
        ([], False, "no messages"),
        ([{"content": "1?"}], False, "message 1 names no role"),
        ([said("user", "1?"), said("user", None)], False, "content of message 2 is no text but NoneType"),
        ([said("user", [{"type": "text"}])], False, "no text but list"),
        (TALK, True, "go on with is of 'user'"),
    ],
)
def test_messages_that_cannot_be_sent_are_named(messages, continue_final, words):
    with pytest.raises(PromptError, match=words):
        render_messages(tokenizer(TEMPLATE), messages, continue_final=continue_final)


@pytest.mark.parametrize("messages", [TALK, [said("system", "Be brief.")], [said("assistant", "1.")]])
def test_a_conversation_needs_a_template(messages):
    with pytest.raises(PromptError, match="no chat template"):
        render_messages(tokenizer(), messages)


def test_a_template_that_fails_has_its_words_repeated():
    refuses = "{{ raise_exception('Roles must\n alternate') }}"
    with pytest.raises(PromptError, match="the chat template fails: Roles must alternate"):
        render_messages(tokenizer(refuses), TALK)
    for broken in ("{{ messages[0].content + 1 }}", "{{ nothing.here }}", "{% for %}", "{{ 1 // 0 }}"):
        with pytest.raises(PromptError, match="the chat template fails"):
            render_messages(tokenizer(broken), TALK)


def test_a_message_that_the_template_drops_is_an_error():
    users_only = "{% for m in messages if m.role == 'user' %}{{ m.content | upper }}{% endfor %}"
    assert render_messages(tokenizer(users_only), [said("user", "one?")]).text == "ONE?"
    with pytest.raises(PromptError, match="no place for message 1, of 'system'"):
        render_messages(tokenizer(users_only), TALK)


def test_templates_may_forget_what_the_assistant_thought():
    forgets = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    talk = [said("user", "1?"), said("assistant", "hm</think>1"), said("user", "2?")]
    assert render_messages(tokenizer(forgets), talk).text == "1?12?"


def test_switches_reach_templates_that_know_them():
    assert render_messages(tokenizer(THINKING), TALK, {"enable_thinking": False}).text.endswith("</think>")
    with pytest.raises(PromptError, match="depth=3 is set, but the chat template does not know it"):
        render_messages(tokenizer(THINKING), TALK, {"depth": 3})
    with pytest.raises(PromptError, match="depth is set, but the tokenizer has no chat template"):
        render_messages(tokenizer(), [said("user", "1?")], {"depth": 3})


@pytest.mark.parametrize(
    "name",
    ["chat_template", "tokenize", "tools", "add_generation_prompt", "continue_final_message", "messages"]
    + ["bos_token", "self", "kwargs", "raise_exception"],
)
def test_what_the_library_sets_is_no_switch(name):
    mentions = TEMPLATE + "{# chat_template tokenize tools self kwargs raise_exception #}"
    with pytest.raises(PromptError, match=f"{name} is no switch"):
        render_messages(tokenizer(mentions), TALK, {name: "x"})
