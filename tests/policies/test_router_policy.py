"""Routing by a router: its decision routes, its stored threshold is used, another pair is refused."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from navtoken.checkpoints import ModelPair
from navtoken.engine import (
    CalibrationOptions,
    Engine,
    EngineOptions,
    SamplingParams,
    Sequence,
    calibrate,
)
from navtoken.engine.runner import Extension
from navtoken.policies import (
    Drafts,
    PairView,
    Policy,
    PolicyError,
    ThresholdPolicy,
    UncalibratedError,
    Verdicts,
    Writer,
    make_policy,
)
from navtoken.policies.router import RouterMismatchError, RouterPolicy, embedded_router
from navtoken.router import Router, RouterFileError, StoredThreshold, load_router
from tape_capture import TapeCapture
from tiny_models import VOCAB_SIZE, prompts, tiny_model, tiny_pair
from tiny_routers import random_drafts, tiny_router

HIDDEN = 32
HOT = SamplingParams(temperature=0.9, ignore_eos=True)


def view_of(pair: ModelPair) -> PairView:
    slm = pair.slm
    return PairView(
        0.1, pair.vocab_size, slm.reference, lambda: slm.fingerprint, slm.model.get_input_embeddings
    )


def joined(reference: str, pair: ModelPair | None = None) -> RouterPolicy:
    policy = make_policy(reference).joined(view_of(pair or tiny_pair()))
    assert isinstance(policy, RouterPolicy)
    return policy


def decode(policy: Policy, sampling: SamplingParams = HOT, num: int = 6, tokens: int = 30) -> list[Sequence]:
    engine = Engine(tiny_pair(), policy, EngineOptions(llm_min_rows=2))
    rows = [engine.add(text, sampling, tokens, seed=index) for index, text in enumerate(prompts(num))]
    list(engine.run())
    return rows


def told(rows: list[Sequence]) -> list[tuple[float, bool]]:
    """p(divergent) of each draft, and whether the LLM wrote the token."""
    return [(token.p_divergent, token.writer is Writer.LLM) for row in rows for token in row.record.tokens]


def test_the_routers_decision_is_what_routes(tmp_path: Path) -> None:
    """The official server's was overwritten by a coin."""
    tiny_router(tmp_path, tiny_pair())
    rows = decode(make_policy(f"router:{tmp_path},threshold=0.5"))
    assert all(by_llm == (probability > 0.5) for probability, by_llm in told(rows))
    assert 0.1 < sum(by_llm for _, by_llm in told(rows)) / len(told(rows)) < 0.9


def test_what_is_recorded_is_what_the_network_says_of_the_draft(tmp_path: Path) -> None:
    """Hidden state, embedding and logits of the draft's own position, by a plain forward of the SLM."""
    card = tiny_router(tmp_path, tiny_pair())
    row = decode(make_policy(f"router:{tmp_path}"), num=1)[0]
    slm = tiny_pair().slm.model
    with torch.inference_mode():
        hidden_TD = slm.model(torch.tensor([row.token_ids])).last_hidden_state[0]
        start = row.prompt_len - 1
        hidden_BD = hidden_TD[start:-1]
        logits_BV = slm.lm_head(hidden_BD)[:, :VOCAB_SIZE]
        drafted_B = torch.tensor([token.draft_id for token in row.record.tokens])
        drafts = replace(
            random_drafts(len(drafted_B), VOCAB_SIZE, HIDDEN),
            token_ids_B=drafted_B,
            logits_BV=logits_BV,
            hidden_BD=hidden_BD,
        )
        verdicts = joined(f"router:{tmp_path}").judge_drafts(drafts)
    assert card.shape.inputs == ("logits", "embedding", "hidden", "summary")
    recorded = torch.tensor([token.p_divergent for token in row.record.tokens])
    torch.testing.assert_close(verdicts.p_divergent_B, recorded, atol=1e-5, rtol=0)


def test_the_stored_threshold_is_used(tmp_path: Path) -> None:
    """The official code stores one and never uses it."""
    shares = {}
    for stored in (0.2, 0.8):
        tiny_router(tmp_path, tiny_pair(), default_threshold=stored)
        policy = make_policy(f"router:{tmp_path}")
        assert isinstance(policy, RouterPolicy) and policy.threshold == stored
        rows = decode(policy)
        assert all(by_llm == (probability > stored) for probability, by_llm in told(rows))
        shares[stored] = sum(by_llm for _, by_llm in told(rows))
    assert shares[0.2] > shares[0.8]


def test_a_reference_makes_the_same_rule_again(tmp_path: Path) -> None:
    card = tiny_router(tmp_path, tiny_pair(), default_threshold=0.123456789)
    start = card.weights[:8]
    for asked, reference in {
        f"router:{tmp_path}": f"router:{tmp_path},threshold=0.123457,weights={start}",
        f"router:{tmp_path},threshold=0.4": f"router:{tmp_path},threshold=0.4,weights={start}",
        f"router:{tmp_path},share=0.13": f"router:{tmp_path},share=0.13,weights={start}",
    }.items():
        policy = make_policy(asked)
        assert policy.reference == reference
        assert make_policy(reference) == policy and make_policy(reference).reference == reference
        assert hash(make_policy(reference)) == hash(policy)
    calibrated = make_policy(f"router:{tmp_path},share=0.13")
    assert isinstance(calibrated, RouterPolicy)
    found = calibrated.with_threshold(0.777777777)
    assert found.reference == f"router:{tmp_path},threshold=0.777778,share=0.13,weights={start}"
    assert make_policy(found.reference) == found


def test_a_router_trained_again_is_not_the_one_that_was_named(tmp_path: Path) -> None:
    tiny_router(tmp_path, tiny_pair())
    reference = make_policy(f"router:{tmp_path}").reference
    tiny_router(tmp_path, tiny_pair(), seed=1)
    with pytest.raises(PolicyError, match="trained again"):
        make_policy(reference)


def test_another_pairs_router_is_refused(tmp_path: Path) -> None:
    tiny_router(tmp_path, tiny_pair())
    other = tiny_model("qwen3", seed=7, num_hidden_layers=1)
    stranger = ModelPair(other, tiny_pair().llm)
    with pytest.raises(RouterMismatchError, match=r"'tiny:qwen3-1' \(\w{8}\).*'tiny:qwen3-7' \(\w{8}\)"):
        Engine(stranger, make_policy(f"router:{tmp_path}"))
    # Another LLM may take over.
    Engine(ModelPair(tiny_pair().slm, other), make_policy(f"router:{tmp_path}"))


def test_weights_that_are_not_whole_are_found_before_the_first_draft(tmp_path: Path) -> None:
    tiny_router(tmp_path, tiny_pair())
    policy = make_policy(f"router:{tmp_path}")
    (tmp_path / "router.safetensors").write_bytes(b"half")
    with pytest.raises(RouterFileError, match="sha256"):
        Engine(tiny_pair(), policy)


def test_a_router_of_all_logits_wants_the_same_vocabulary(tmp_path: Path) -> None:
    tiny_router(tmp_path, tiny_pair(), top_k=VOCAB_SIZE)
    view = replace(view_of(tiny_pair()), vocab_size=VOCAB_SIZE - 1)
    with pytest.raises(RouterMismatchError, match=f"{VOCAB_SIZE} tokens.*{VOCAB_SIZE - 1}"):
        make_policy(f"router:{tmp_path}").joined(view)


def test_an_slm_without_an_embedding_is_refused_where_one_is_read(tmp_path: Path) -> None:
    view = replace(view_of(tiny_pair()), slm_embedding=lambda: None)
    tiny_router(tmp_path, tiny_pair())
    with pytest.raises(RouterMismatchError, match="other inputs"):
        make_policy(f"router:{tmp_path}").joined(view)
    tiny_router(tmp_path, tiny_pair(), inputs=("hidden",))
    make_policy(f"router:{tmp_path}").joined(view)


@pytest.mark.parametrize("inputs", [("entropy",), ("hidden",), ("logits", "embedding")])
def test_any_inputs_route(tmp_path: Path, inputs: tuple[str, ...]) -> None:
    tiny_router(tmp_path, tiny_pair(), inputs=inputs)
    rows = decode(make_policy(f"router:{tmp_path}"), num=2, tokens=10)
    assert all(by_llm == (probability > 0.5) for probability, by_llm in told(rows))


def test_the_ledger_counts_every_call_and_the_routers_parameters(tmp_path: Path) -> None:
    card = tiny_router(tmp_path, tiny_pair())
    policy = make_policy(f"router:{tmp_path}")
    assert policy.router_parameters == card.shape.parameters
    assert policy.router_parameters == load_router(tmp_path).on("cpu").num_parameters
    rows = decode(policy)
    assert [row.ledger.router_calls for row in rows] == [30] * 6


def test_a_share_is_reached_on_routed_runs(tmp_path: Path) -> None:
    tiny_router(tmp_path, tiny_pair())
    asked = make_policy(f"router:{tmp_path},share=0.3")
    with pytest.raises(UncalibratedError, match="threshold=0.4"):
        asked.check_ready()
    options = CalibrationOptions(max_tokens=40, max_iterations=8)
    found = calibrate(asked, tiny_pair(), prompts(24), HOT, options)
    assert isinstance(found, ThresholdPolicy)
    rows = decode(found, num=24, tokens=40)
    assert abs(sum(by_llm for _, by_llm in told(rows)) / len(told(rows)) - 0.3) < 0.05


def test_a_stored_threshold_stands_in_for_calibration(tmp_path: Path) -> None:
    stored = (
        StoredThreshold("countdown", 0.44, share=0.13),
        StoredThreshold("countdown", 0.55, temperature=0.9, share=0.13),
    )
    tiny_router(tmp_path, tiny_pair(), thresholds=stored)
    asked = make_policy(f"router:{tmp_path},share=0.13")
    assert isinstance(asked, RouterPolicy)
    llm = tiny_pair().llm.fingerprint
    found = asked.stored("countdown", asdict(HOT), llm)
    assert found is not None and (found.threshold, found.share) == (0.55, 0.13)
    assert asked.stored("countdown", asdict(SamplingParams()), llm).threshold == 0.44  # type: ignore[union-attr]
    assert asked.stored("knights", asdict(HOT), llm) is None
    assert asked.stored("countdown", asdict(HOT), "another LLM") is None
    given = make_policy(f"router:{tmp_path},threshold=0.4")
    assert isinstance(given, RouterPolicy) and given.stored("countdown", asdict(HOT)) is None


def test_plain_router_is_the_one_that_belongs_to_the_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert embedded_router().parts[-2:] == ("embedded", "router")
    monkeypatch.setattr("navtoken.policies.router.embedded_router", lambda kind: tmp_path / kind)
    with pytest.raises(PolicyError, match="holds no router"):
        make_policy("router")
    card = tiny_router(tmp_path / "token", tiny_pair())
    # Wherever the package lies: no path in a trace.
    assert make_policy("router").reference == f"router,threshold=0.5,weights={card.weights[:8]}"
    assert make_policy("router,share=0.13").reference == f"router,share=0.13,weights={card.weights[:8]}"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (",threshold=high", "'high'"),
        (",treshold=0.4", "'treshold'"),
        (",share=1.3", "1.3"),
        (",weights=zz", "asks for weights zz"),
        ("/nowhere", "holds no router"),
    ],
)
def test_references_that_do_not_fit_are_refused(tmp_path: Path, options: str, named: str) -> None:
    tiny_router(tmp_path, tiny_pair())
    with pytest.raises(PolicyError, match=named):
        make_policy(f"router:{tmp_path}{options}")


def test_a_router_without_a_default_wants_a_threshold(tmp_path: Path) -> None:
    tiny_router(tmp_path, tiny_pair(), default_threshold=None)
    with pytest.raises(PolicyError, match="no default threshold"):
        make_policy(f"router:{tmp_path}")
    make_policy(f"router:{tmp_path},threshold=0.4")


def test_a_router_of_whole_queries_is_no_router_of_tokens(tmp_path: Path) -> None:
    tiny_router(tmp_path, tiny_pair(), kind="query", inputs=("hidden",))
    with pytest.raises(PolicyError, match="query:"):
        make_policy(f"router:{tmp_path}")


def test_a_router_in_memory_routes_too(tmp_path: Path) -> None:
    """Training looks for thresholds before it saves."""
    card = tiny_router(tmp_path / "saved", tiny_pair())
    network = load_router(tmp_path / "saved").on("cpu")
    rows = decode(RouterPolicy(0.5, router=Router(card, network=network)))
    expected = decode(make_policy(f"router:{tmp_path / 'saved'}"))
    shutil.rmtree(tmp_path / "saved")
    assert [row.token_ids for row in rows] == [row.token_ids for row in expected]


def static(drafts: Drafts) -> list[torch.Tensor]:
    return [drafts.token_ids_B, drafts.logits_BV, drafts.hidden_BD]


@pytest.mark.parametrize("top_k", [20, VOCAB_SIZE])
def test_it_can_be_captured(tmp_path: Path, top_k: int) -> None:
    """Replays with other inputs say what eager runs say: nothing was read on the host."""
    tiny_router(tmp_path, tiny_pair(), top_k=top_k)
    policy = joined(f"router:{tmp_path}")
    assert policy.capturable and not policy.with_threshold(0.5, lambda signal_B: None).capturable
    here, there = random_drafts(8, VOCAB_SIZE, HIDDEN), random_drafts(8, VOCAB_SIZE, HIDDEN, seed=1)
    said: list[Verdicts] = []

    def work() -> Extension:
        said.append(policy.judge_drafts(here))
        return Extension(here.logits_BV, here.hidden_BD)

    with torch.inference_mode():
        replay, _ = TapeCapture()(work)
        before = said[-1].p_divergent_B.clone()  # type: ignore[union-attr]
        expected = policy.judge_drafts(there)
        for mine, theirs in zip(static(here), static(there), strict=True):
            mine.copy_(theirs)
        replay()
    assert torch.equal(said[-1].p_divergent_B, expected.p_divergent_B)  # type: ignore[arg-type]
    assert torch.equal(said[-1].actions_B, expected.actions_B)
    assert not torch.equal(before, expected.p_divergent_B)  # type: ignore[arg-type]
