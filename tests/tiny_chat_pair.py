"""A random pair on disk that stands in for two chat models of the hub: Qwen2 checkpoints with one tokenizer and a chat template.

The SLM's weights are the LLM's and some noise, so that they agree often and not always. A few tokens of the vocabulary are whole boxed
answers and several end a response: random models hardly ever spell either, and without them nothing could be judged.
"""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

CONTEXT = 1024
ANSWERS = tuple(rf"\boxed{{{number}}}" for number in range(8))
ENDS = ("<|im_end|>", "<|endoftext|>", *(f"<|end_{number}|>" for number in range(6)))
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NOISE = 0.06
"""Of the SLM's weights, in standard deviations of each."""


def save_chat_pair(folder: Path) -> tuple[Path, Path]:
    """Write the pair as `save_pretrained` does; returns the folders of SLM and LLM."""
    tokenizer = _tokenizer()
    generator = torch.Generator().manual_seed(5)
    for name, noise in (("slm", NOISE), ("llm", 0.0)):
        model = _model(tokenizer)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "slm", folder / "llm"


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the tokens that random models are to find."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", *ENDS)])
    made.add_tokens([AddedToken(answer, special=False) for answer in ANSWERS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=ENDS[0], pad_token=ENDS[1], model_max_length=CONTEXT
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """The LLM; large weights, so that greedy responses vary."""
    ends = tokenizer.convert_tokens_to_ids(list(ENDS))
    shape = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.6,
        tie_word_embeddings=True,
        eos_token_id=ends[0],
        pad_token_id=ends[1],
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = Qwen2ForCausalLM(shape)
    config = model.generation_config
    config.eos_token_id = ends
    # As Qwen2.5's instruction-tuned checkpoints have it: clients that say nothing of sampling get this.
    config.do_sample, config.temperature, config.top_p, config.top_k = True, 0.7, 0.8, 20
    config.repetition_penalty = 1.05
    return model
