"""Responses by the engine for training: what they say of each token is what a forward says, and the weights are those of now."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from navtoken.engine import EngineOptions, SamplingParams
from navtoken.engine.memory import Prefix
from navtoken.rlvr.groups import Rollout
from navtoken.rlvr.rollouts import EngineRollouts, RolloutError, follow, shadow_of
from rlvr_runs import plain_scores
from tiny_models import EOS, VOCAB_SIZE, prompts, tiny_model, tiny_tokenizer

MAX_TOKENS = 12
SAMPLED = SamplingParams(temperature=1.0)


def model_of(kind: str = "qwen3", dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """One in training, whose head has no rows that no token belongs to."""
    made = tiny_model(kind, seed, dtype, vocab_size=VOCAB_SIZE, initializer_range=0.3)
    return made.model.requires_grad_(True).train()


def rollouts_of(model: nn.Module, sampling: SamplingParams = SAMPLED) -> EngineRollouts:
    shadow = shadow_of(model, tiny_tokenizer(), "tiny")
    return EngineRollouts(shadow, sampling, MAX_TOKENS, EngineOptions(max_rows=5, cache_gib=0.01))


def never() -> Any:
    raise AssertionError("nothing is to be gathered where weights lie whole")


def draw(rollouts: EngineRollouts, model: nn.Module, gathered: Any = never) -> list[list[Rollout]]:
    rollouts.sync(model, gathered)
    return rollouts.draw(prompts(3), [5, 6, 7], num=4)


def ids(drawn: Sequence[Sequence[Rollout]]) -> list[list[list[int]]]:
    return [[rollout.token_ids for rollout in group] for group in drawn]


def update(model: nn.Module) -> None:
    """An optimiser's step in place."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.3)
    logits = model(torch.tensor(prompts(1, seed=9))).logits
    (-torch.log_softmax(logits, -1)[..., 50].mean()).backward()
    optimiser.step()
    optimiser.zero_grad()


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_scores_are_those_of_a_plain_forward(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    model = model_of(kind, dtype)
    for prompt, group in zip(prompts(3), draw(rollouts_of(model), model), strict=True):
        assert len(group) == 4
        for rollout in group:
            scores = plain_scores(model, prompt, rollout.token_ids)
            assert rollout.logprobs == pytest.approx(scores.logprobs, abs=tolerance)
            assert rollout.entropies == pytest.approx(scores.entropies, abs=tolerance)


def test_responses_end_with_the_end_or_at_the_limit() -> None:
    """TRL takes a response without its end for one that was cut off."""
    model = model_of()
    with torch.no_grad():
        model.lm_head.weight[EOS] += model.lm_head.weight[EOS] * 3
    drawn = [response for group in ids(draw(rollouts_of(model), model)) for response in group]
    ended = [response for response in drawn if response[-1] == EOS]
    assert 0 < len(ended) < len(drawn)
    for response in drawn:
        assert EOS not in response[:-1]
        assert response[-1] == EOS or len(response) == MAX_TOKENS


def test_noise_belongs_to_a_prompts_seed() -> None:
    model = model_of()
    rollouts = rollouts_of(model)
    first = ids(draw(rollouts, model))
    assert ids(draw(rollouts, model)) == first
    assert len({tuple(response) for response in first[0]}) > 1, "samples of a prompt differ"
    assert ids(rollouts.draw(prompts(3), [5, 6, 8], num=4))[:2] == first[:2]
    assert ids(rollouts.draw(prompts(3), [5, 6, 8], num=4))[2] != first[2]


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_weights_are_shared_and_a_step_changes_what_is_drawn(kind: str) -> None:
    model = model_of(kind)
    rollouts = rollouts_of(model)
    shadow = rollouts.pair.llm.model
    before = draw(rollouts, model)
    theirs = dict(model.named_parameters())
    for name, mine in shadow.named_parameters():
        assert mine.data_ptr() == theirs[name].data_ptr() and not mine.requires_grad
    assert shadow.get_output_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert all(weight.requires_grad for weight in model.parameters()) and model.training
    update(model)
    after = draw(rollouts, model)
    assert before != after
    assert after == draw(rollouts_of(model), model), "as if it had never seen other weights"


def test_weights_that_were_put_elsewhere_are_followed() -> None:
    """A trainer may move or replace what parameters hold; the shadow would keep the old memory."""
    model = model_of()
    rollouts = rollouts_of(model)
    draw(rollouts, model)
    for weight in model.parameters():
        weight.data = weight.data.clone()
    update(model)
    assert draw(rollouts, model) == draw(rollouts_of(model), model)
    theirs = dict(model.named_parameters())
    for name, mine in rollouts.pair.llm.model.named_parameters():
        assert mine.data_ptr() == theirs[name].data_ptr(), "shared, not held twice"


def test_what_was_computed_with_other_weights_is_forgotten() -> None:
    model = model_of()
    rollouts = rollouts_of(model)
    prompt = prompts(1, seed=2, shortest=15)[0]
    rollouts.sync(model, never)
    prefix = rollouts.engine.hold(Prefix(len(prompt)))

    def answer() -> list[float]:
        row = rollouts.engine.add(prompt, SAMPLED, MAX_TOKENS, seed=3, prefix=prefix)
        list(rollouts.engine.run())
        return [row.record.logprob_llm[0], float(row.response_ids[0])]

    first = answer()
    assert answer() == first
    update(model)
    rollouts.sync(model, never)
    logprob, token = answer()
    assert logprob == pytest.approx(plain_scores(model, prompt, [int(token)]).logprobs[0], abs=1e-9)
    assert [logprob, token] != first


def test_sharded_weights_are_copied_at_every_sync() -> None:
    """As ZeRO-3 leaves them: parameters without elements, which somebody gathers."""
    whole = model_of()
    model = model_of()
    rollouts = rollouts_of(model)
    shadow = rollouts.pair.llm.model
    for weight in model.parameters():
        weight.data = torch.empty(0, dtype=weight.dtype)
    calls = []

    def gathered() -> Iterator[tuple[str, Tensor]]:
        calls.append(1)
        for name, weight in whole.named_parameters():
            yield name, weight.detach().clone()

    assert draw(rollouts, model, gathered) == draw(rollouts_of(whole), whole)
    places = [weight.data_ptr() for weight in shadow.parameters()]
    update(whole)
    assert draw(rollouts, model, gathered) == draw(rollouts_of(whole), whole)
    assert [weight.data_ptr() for weight in shadow.parameters()] == places, "graphs hold on to addresses"
    assert len(calls) == 2


def test_one_sharded_weight_is_enough_for_copies() -> None:
    model = model_of()
    shadow = shadow_of(model, tiny_tokenizer(), "tiny").model
    whole = {name: weight.detach() + 1 for name, weight in model.named_parameters()}
    model.lm_head.weight.data = torch.empty(0)
    follow(shadow, model, whole.items)
    for name, mine in shadow.named_parameters():
        torch.testing.assert_close(mine.data, whole[name])


def test_weights_that_are_nowhere_are_missed() -> None:
    """An adapter's model has its weights under other names; the engine would go on with the first ones."""
    model = model_of()
    shadow = shadow_of(model, tiny_tokenizer(), "tiny").model
    with pytest.raises(RolloutError, match="no weight 'model.embed_tokens.weight'.*rollouts transformers"):
        follow(shadow, nn.ModuleDict({"base": model}), nn.ModuleDict({"base": model}).named_parameters)


def test_a_shadow_of_another_dtype_has_copies_of_weights_and_the_same_frequencies() -> None:
    model = model_of(dtype=torch.float32)
    shadow = shadow_of(model, tiny_tokenizer(), "tiny", torch.bfloat16).model
    for _ in range(2):
        update(model)
        follow(shadow, model, never)
        for (name, mine), theirs in zip(shadow.named_parameters(), model.parameters(), strict=True):
            assert mine.dtype == torch.bfloat16, name
            assert torch.equal(mine, theirs.to(torch.bfloat16))
    for (name, mine), theirs in zip(shadow.named_buffers(), model.buffers(), strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, theirs), name


@pytest.mark.parametrize(("temperature", "tells"), [(1.0, True), (0.7, False)])
def test_scores_are_told_where_they_are_those_of_the_distribution_drawn_from(
    temperature: float, tells: bool
) -> None:
    """The engine's are at T = 1; TRL's loss is at the run's temperature."""
    model = model_of()
    rollouts = rollouts_of(model, SamplingParams(temperature=temperature))
    assert rollouts.tells_scores is tells
    first = draw(rollouts, model)[0][0]
    assert (first.logprobs is not None) is (first.entropies is not None) is tells
