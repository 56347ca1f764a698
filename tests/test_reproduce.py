"""Making experiments again: every declared figure is there, one that moved is found, and steps are resumed, fail and are estimated as they should be."""

import json
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import tyro

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import reproduce
from reproduce_code import code_of, with_imported
from reproduce_compare import Compared, all_is_well, compare, each_of_all, failures, lacking, markdown
from reproduce_declared import declared
from reproduce_figures import Figure, measured
from reproduce_kept import keep, kept_figures
from reproduce_limits import Limits, normal, student_4
from reproduce_run import Outcome, Runner, minutes, pace, whole_time
from reproduce_spread import asked_for, resampled
from reproduce_steps import KEPT, SKIPPED, TIMES, Step, estimates, steps_of

FIGURES = declared()
SIZES = ("full", "quick")
LLM = next(each for each in FIGURES if each.experiment == "embedded_pair" and each.name.startswith("llm:"))


def allowed(row: Compared) -> float:
    assert row.limits is not None
    return row.limits.at(0.05)


def named(start: str) -> Figure:
    return next(each for each in FIGURES if each.name.startswith(start))


# ---- what is declared -----------------------------------------------------------------------------------------


def test_every_declared_figure_is_in_the_committed_files() -> None:
    values = {(each.experiment, each.name): measured(each, EXPERIMENTS).value for each in FIGURES}
    assert len(values) == len(FIGURES) > 100  # No two by one name.
    # Spot checks against docs/claims.md.
    assert values["embedded_pair", "llm: accuracy (%)"] == pytest.approx(0.84)
    assert values["definitions", "forking tokens kept from base to LLM (%)"] == pytest.approx(0.869, abs=5e-4)
    assert values["rlvr", "top20, countdown: accuracy, mean over seeds (%)"] == pytest.approx(0.679, abs=5e-4)


@pytest.mark.parametrize("size", SIZES)
def test_every_step_has_an_estimate_its_figures_and_a_script(size) -> None:
    steps = steps_of(size)
    names = [step.name for step in steps]
    assert set(estimates(size)) == set(names) and len(set(names)) == len(names)
    assert all(each["seconds"] > 0 and each["from"] for each in json.loads(TIMES.read_text())[size].values())
    with_figures = {each.experiment for each in FIGURES if size in each.sizes}
    assert {step.experiment for step in steps} <= with_figures
    assert all((EXPERIMENTS / step.script).exists() for step in steps)
    assert all(set(step.needs) <= set(names[:index]) for index, step in enumerate(steps))
    assert all((0 < step.part < 1) == (size == "quick") for step in steps)


def test_all_committed_results_are_made_again() -> None:
    committed = {each.parent.name for each in EXPERIMENTS.glob("*/*.json")} - {"reproduce"}
    assert committed == {step.experiment for step in steps_of("full")}


def test_nothing_is_written_beside_the_folder(tmp_path: Path) -> None:
    for size in SIZES:
        for step in steps_of(size):
            command = step.command("python", tmp_path)
            assert command[command.index("--out") + 1] == str(tmp_path / step.experiment)
            assert not any("{" in part for part in command)
            assert step.work is None or str(tmp_path / "work") in command[command.index(step.work) + 1]


@pytest.mark.parametrize("size", SIZES)
def test_every_script_takes_what_its_steps_ask_for(size, tmp_path: Path) -> None:
    for step in steps_of(size):
        options = import_module(step.script.removesuffix(".py")).Options
        asked = tyro.cli(options, args=step.command("python", tmp_path)[2:])
        assert asked.out == tmp_path / step.experiment


# ---- the comparison -------------------------------------------------------------------------------------------


def changed(results: Path, by: float) -> Path:
    """The committed results of the embedded pair, the LLM's accuracy moved."""
    shutil.copytree(EXPERIMENTS / "embedded_pair", results / "embedded_pair")
    path = results / "embedded_pair" / "table.json"
    table = json.loads(path.read_text())
    (row,) = (each for each in table["rows"] if each["policy"] == "llm" and each["task"] == "mean")
    row["accuracy"] += by
    path.write_text(json.dumps(table))
    return results


@pytest.mark.parametrize(("by", "verdict"), [(0.0, "yes"), (0.009, "yes"), (-0.011, "no"), (0.03, "no")])
def test_on_the_same_problems_only_the_tolerance_counts(tmp_path: Path, by: float, verdict: str) -> None:
    row = compare(LLM, EXPERIMENTS, changed(tmp_path, by), "full")
    assert row.verdict == verdict and not row.by_chance
    ended = {"a": Outcome("ended")}
    assert all_is_well([row], ended) is (verdict == "yes")


def test_a_part_of_the_problems_is_compared_with_the_whole(tmp_path: Path) -> None:
    row = compare(LLM, EXPERIMENTS, changed(tmp_path, -0.05), "quick", part=0.15)
    committed = measured(LLM, EXPERIMENTS)
    assert committed.error == pytest.approx(0.0138, abs=1e-4)
    # sd / sqrt(n) of 90 problems less what they share with the 600: 0.0138² * (600 / 90 - 1).
    assert allowed(row) == pytest.approx(
        normal(0.05) * committed.error * (600 / 90 - 1) ** 0.5 + LLM.tolerance
    )
    assert row.by_chance and row.verdict == "yes"
    assert compare(LLM, EXPERIMENTS, tmp_path, "quick", part=0.9).verdict == "no"


def test_answers_by_problem_are_compared_on_the_problems_that_both_have(tmp_path: Path) -> None:
    base = named("base, countdown: accuracy")
    record = json.loads((EXPERIMENTS / "rlvr" / "runs" / "base.json").read_text())
    correct = record["test"]["countdown"]["correct"]["countdown"]
    few = dict(list(correct.items())[:100])
    record["test"]["countdown"]["correct"]["countdown"] = few
    path = tmp_path / "rlvr" / "runs" / "base.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    row = compare(base, EXPERIMENTS, tmp_path, "quick", part=0.2)
    assert row.committed == row.again == pytest.approx(sum(few.values()) / 100) != pytest.approx(0.5755)
    assert row.verdict == "yes" and allowed(row) == base.tolerance and not row.by_chance
    # A run of fewer than it should have had, of which a single one in common would agree half the time.
    short = compare(base, EXPERIMENTS, tmp_path, "quick", part=0.4)
    assert short.verdict == "missing" and "100 problems of base, countdown" in short.why
    assert "are in both files, not 200" in short.why
    few.update(dict.fromkeys(list(few)[:10], 0.0))
    path.write_text(json.dumps(record))
    assert compare(base, EXPERIMENTS, tmp_path, "quick", part=0.2).verdict == "no"


def test_what_was_trained_again_is_another_draw() -> None:
    router, arm = named("area under precision and recall, router"), named("top20, countdown")
    (was, trained) = (measured(each, EXPERIMENTS).error for each in (router, arm))
    assert was is not None and trained is not None
    found = compare(router, EXPERIMENTS, EXPERIMENTS, "full")
    assert allowed(found) == pytest.approx(normal(0.05) * 2**0.5 * was) and found.by_chance
    # Three seeds each: Student's quantile.
    found = compare(arm, EXPERIMENTS, EXPERIMENTS, "full")
    assert allowed(found) == pytest.approx(2.7764 * 2**0.5 * trained, rel=1e-4)
    seeds = json.loads((EXPERIMENTS / "rlvr" / "summary.json").read_text())["arms"]["top20"]["countdown"]
    assert trained == pytest.approx(np.std(seeds, ddof=1) / 3**0.5)


def test_what_a_router_or_a_run_is_trained_to_is_left_to_chance() -> None:
    trained = (
        *("LLM share at the threshold for 0.1, T = 0", "all_limit, countdown, greedy: accuracy"),
        *("top20_longer, knights: accuracy", "halves, router 20%, base on forks: avg@1"),
    )
    for start in trained:
        row = compare(named(start), EXPERIMENTS, EXPERIMENTS, "full")
        assert row.by_chance and allowed(row) > 0 and row.figure.sizes == ("full",), start
    base = compare(named("halves, router 20%, base: avg@1"), EXPERIMENTS, EXPERIMENTS, "full")
    assert not base.by_chance and allowed(base) == 0.02


def test_what_is_missing_is_said_and_is_no_agreement(tmp_path: Path) -> None:
    row = compare(LLM, EXPERIMENTS, tmp_path, "full")
    assert row.verdict == "missing" and "table.json is missing" in row.why
    assert not all_is_well([row], {})
    # Not even committed.
    absent = replace(LLM, file="other.json")
    row = compare(absent, EXPERIMENTS, EXPERIMENTS, "full")
    assert row.verdict == "missing" and "other.json is missing" in row.why
    assert "| – | – | – | – | missing: " in markdown([row], [], {}, {})
    (told,) = lacking([absent, LLM], EXPERIMENTS)
    assert told.startswith("embedded_pair, llm: accuracy (%): ") and told.endswith(
        "embedded_pair/other.json is missing in experiments"
    )
    share = replace(named("random:0.1: LLM share"), spread=None)
    assert compare(share, EXPERIMENTS, EXPERIMENTS, "quick", part=0.1).verdict == "missing"


def test_the_table_says_how_many_were_expected_outside(tmp_path: Path) -> None:
    changed(tmp_path, 0.0)
    accuracies = [each for each in FIGURES if each.experiment == "embedded_pair" and each.error is not None]
    rows = [compare(each, EXPERIMENTS, tmp_path, "quick", part=0.15) for each in accuracies]
    rows += [compare(LLM, EXPERIMENTS, tmp_path, "full")]
    step = Step("embedded_pair", "x.py")
    table = markdown(rows, [step], {step.name: Outcome("ended", 120.0, 61.0)}, {"routers": "too long"})
    assert "| embedded_pair | ended | 2 min | 61 s |" in table and "| routers | skipped: too long |" in table
    assert "| embedded_pair | llm: accuracy (%) | 84.0 | 84.0 | +0 | exact, ± 1 | yes |" in table
    assert f"{len(accuracies) + 1} of {len(accuracies) + 1} figures compared, 0 not within" in table
    assert f"Of the {len(accuracies)} with an interval of 95 %, 0 are outside, and about 0.7" in table


def off(row: Compared, by: float, **changes: object) -> Compared:
    """The row with a difference of so many times the allowed one."""
    assert row.committed is not None
    return replace(row, again=row.committed + by * allowed(row), **changes)


def test_a_few_outside_by_chance_are_well_and_many_are_not() -> None:
    row = compare(LLM, EXPERIMENTS, EXPERIMENTS, "quick", part=0.5)
    out = off(row, 1.01)
    assert all_is_well([out] * 4 + [row] * 36, {})  # 2 expected.
    assert failures([out] * 6 + [row] * 34, {}) == [
        "embedded_pair: 6 of 40 figures outside of their intervals, 5 at most"
    ]
    assert not all_is_well([replace(out, limits=Limits(0.0))] + [row] * 39, {})


def test_many_outside_of_one_experiment_are_not_hidden_by_all_others() -> None:
    row = compare(LLM, EXPERIMENTS, EXPERIMENTS, "quick", part=0.5)
    others = [replace(row, figure=replace(LLM, experiment="others"))] * 200
    # Of 210 figures 10 are expected outside, and these 3 are of 10.
    assert failures([off(row, 1.01)] * 3 + [row] * 7 + others, {}) == [
        "embedded_pair: 3 of 10 figures outside of their intervals, 2 at most"
    ]


def test_one_figure_far_off_fails_however_few_are_outside() -> None:
    row = compare(LLM, EXPERIMENTS, EXPERIMENTS, "quick", part=0.5)
    assert row.limits is not None
    within, far = off(row, 1.3), off(row, 3)
    assert all_is_well([within] + [row] * 39, {})
    rows = [far] + [row] * 39
    assert failures(rows, {}) == ["embedded_pair, llm: accuracy (%): beyond the limit for all"]
    limit = 100 * (LLM.tolerance + normal(0.05 / 40) * (row.limits.error or 0))
    table = markdown(rows, [], {}, {})
    assert f"| no, beyond the limit for all, ± {limit:.2g} |" in table
    assert "* embedded_pair, llm: accuracy (%): beyond the limit for all" in table
    assert "| no, outside of 95 % |" in markdown([within] + [row] * 39, [], {}, {})
    assert "Nothing fails." in markdown([within] + [row] * 39, [], {}, {})


def test_limits_for_all_are_those_of_each_at_a_small_chance() -> None:
    row = compare(LLM, EXPERIMENTS, EXPERIMENTS, "quick", part=0.5)
    exact = compare(LLM, EXPERIMENTS, EXPERIMENTS, "full")
    assert each_of_all([row] * 50 + [exact] * 50) == pytest.approx(0.001)
    assert each_of_all([exact]) == 0.05
    stats = pytest.importorskip("scipy.stats")
    for chance in (0.05, 0.001):
        assert normal(chance) == pytest.approx(stats.norm.ppf(1 - chance / 2))
        assert student_4(chance) == pytest.approx(stats.t.ppf(1 - chance / 2, df=4))


# ---- the small run's own figures ------------------------------------------------------------------------------


def test_a_small_run_is_what_the_committed_small_run_was(tmp_path: Path) -> None:
    made = changed(tmp_path, -0.05)
    again = measured(LLM, made).value
    same = compare(LLM, EXPERIMENTS, made, "quick", 0.15, kept=again + 0.009)
    other = compare(LLM, EXPERIMENTS, made, "quick", 0.15, kept=again + 0.011)
    # The interval around the full figure alone would have let both pass.
    assert same.verdict == other.verdict == "yes" and same.as_kept and other.as_kept is False
    assert all_is_well([same], {})
    assert failures([other], {}) == ["embedded_pair, llm: accuracy (%): not the small run's"]
    table = markdown([same, other], [], {}, {})
    assert "| small run | tolerance | same |" in table
    assert "| yes | 79.9 | ± 1 | yes |" in table and "| yes | 80.1 | ± 1 | no |" in table
    assert "1 of 2 are the small run's own figures again." in table
    assert "small run" not in markdown([compare(LLM, EXPERIMENTS, made, "full")], [], {}, {})


def test_figures_are_kept_experiment_by_experiment(tmp_path: Path) -> None:
    path = tmp_path / "quick.json"
    pair = [compare(each, EXPERIMENTS, EXPERIMENTS, "quick", 0.5) for each in FIGURES if each is LLM]
    base = replace(pair[0], figure=named("base, countdown: accuracy"))
    assert keep(path, [*pair, base]) == []
    lacks = replace(pair[0], figure=named("base, knights: accuracy"), again=None)
    assert keep(path, [off(pair[0], 0.5), base, lacks]) == ["rlvr"]
    # Nor what other code made, or what was interrupted.
    assert keep(path, [off(pair[0], 0.1)], {"embedded_pair"}) == ["embedded_pair"]
    kept = kept_figures(path)
    assert kept["rlvr", base.figure.name] == base.again and ("rlvr", lacks.figure.name) not in kept
    assert kept["embedded_pair", LLM.name] == off(pair[0], 0.5).again
    source = json.loads(path.read_text())["embedded_pair"]
    assert source["revision"] and "torch" in source["machine"]
    assert kept_figures(tmp_path / "none.json") == {}


def test_every_small_figure_is_committed() -> None:
    assert set(kept_figures(KEPT)) == {
        (each.experiment, each.name) for each in FIGURES if "quick" in each.sizes
    }


def test_a_full_run_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--keep-figures is for --size quick"):
        reproduce.main(reproduce.Options(keep_figures=True, out=tmp_path))


def test_whole_responses_are_drawn_again() -> None:
    rng = np.random.default_rng(1)
    same = [np.array([0.0, 1.0])] * 50
    mean = lambda chunks: float(np.concatenate(chunks).mean())
    assert resampled(same, mean, rng).std() == 0.0
    # Tokens of a response agree, so the error is that of 100 responses, not of 1,000 tokens.
    alike = [np.full(10, index % 2) for index in range(100)]
    assert resampled(alike, mean, rng).std() == pytest.approx(0.05, rel=0.2)


def test_a_policy_is_known_without_its_threshold() -> None:
    assert asked_for("entropy:0.849358,share=0.1") == "entropy,share=0.1" == asked_for("entropy,share=0.1")
    assert asked_for("hindsight:0.1,router=pair") == "hindsight:0.1,router=pair"
    drawn = "hindsight:0.1,router=pair,threshold=0.0076579,weights=8b1110f8"
    assert asked_for(drawn) == "hindsight:0.1,router=pair"
    assert asked_for("hindsight:0.1,every=16") == "hindsight:0.1"
    assert asked_for("router,threshold=0.02,share=0.15,weights=8b1110f8") == "router,share=0.15"


# ---- the steps ------------------------------------------------------------------------------------------------

ENDS = "import sys; from pathlib import Path; p = Path(sys.argv[-1]); p.mkdir(parents=True, exist_ok=True); (p / 'ran').open('a').write('x')"


@pytest.fixture
def step(tmp_path: Path):
    def made(name: str, code: str = ENDS, **options) -> Step:
        (tmp_path / f"{name}.py").write_text(code)
        return Step(name, str(tmp_path / f"{name}.py"), work=None, **options)

    return made


class Heard(list):
    """Lines said, and a minute for every step."""

    estimated = dict.fromkeys("abcd", 60.0)


def run(folder: Path, *steps: Step) -> tuple[dict[str, Outcome], list[str]]:
    heard = Heard()
    return Runner(folder, sys.executable).run(steps, Heard.estimated, heard.append), heard


def test_a_step_that_ended_is_not_run_again(tmp_path: Path, step) -> None:
    folder = tmp_path / "made"
    first, said = run(folder, step("a"))
    again, said_again = run(folder, step("a"))
    assert first["a"].state == "ended" and again["a"].state == "ended before"
    assert (folder / "a" / "ran").read_text() == "x"
    assert again["a"].cpu_seconds == first["a"].cpu_seconds > 0
    assert any("a: begins; estimated 60 s" in line for line in said)
    assert said[-1] == "running: nothing; 0 waiting, about 0 s left" and not said_again
    # With another size it is another step.
    other, _ = run(folder, step("a", arguments=("--num", "2")))
    assert other["a"].state == "ended" and (folder / "a" / "ran").read_text() == "xx"


def test_what_other_code_made_is_run_again_and_not_gone_on_with(tmp_path: Path, step) -> None:
    folder, beside = tmp_path / "made", tmp_path / "beside.py"
    beside.write_text("")
    steps = (step("a", "import beside\n" + ENDS), step("b", needs=("a",)))
    run(folder, *steps)
    assert run(folder, *steps)[0]["b"].state == "ended before"
    (folder / "work" / "a").mkdir(parents=True)
    (folder / "work" / "a" / "responses").touch()
    # Of what a script imports, too.
    beside.write_text("changed = True")
    runner = Runner(folder, sys.executable)
    assert runner.is_stale(steps[0]) and not runner.is_stale(steps[1]) and not runner.ended_before(steps)
    assert reproduce.not_run(steps[0], runner).why == "made by other code"
    found, said = run(folder, *steps)
    assert [found[name].state for name in "ab"] == ["ended", "ended"]
    assert said[0].startswith("a: made by other code, begins afresh")
    assert (folder / "a" / "ran").read_text() == "x" and not (folder / "work" / "a").exists()
    assert (folder / "other_code" / "work" / "a" / "responses").exists()
    assert run(folder, *steps)[0]["a"].state == "ended before"


def test_what_other_code_began_is_not_gone_on_with(tmp_path: Path, step) -> None:
    folder = tmp_path / "made"
    run(folder, step("a", ENDS + "; raise SystemExit(1)"))
    run(folder, step("a", ENDS + "; raise SystemExit(1)"))
    assert (folder / "a" / "ran").read_text() == "xx"
    found, _ = run(folder, step("a"))
    assert found["a"].state == "ended" and (folder / "a" / "ran").read_text() == "x"


def test_a_step_without_its_results_is_run_again(tmp_path: Path, step) -> None:
    folder = tmp_path / "made"
    run(folder, step("a"))
    shutil.rmtree(folder / "a")
    assert run(folder, step("a"))[0]["a"].state == "ended"
    leaves = step("a", leaves="traces")
    assert Runner(folder, sys.executable).before(leaves) is None
    (folder / "work" / "a").mkdir(parents=True)
    assert Runner(folder, sys.executable).before(leaves) is not None


def test_code_is_the_package_its_weights_and_the_script(tmp_path: Path) -> None:
    script, package = tmp_path / "script.py", tmp_path / "package"
    (package / "deep").mkdir(parents=True)
    script.write_text("import json")
    found = {code_of(script, package)}
    for path in (script, package / "a.py", package / "deep" / "model.safetensors", package / "deep" / "a.py"):
        path.write_bytes(b"x = 1")
        found.add(code_of(script, package))
    assert len(found) == 5
    (package / "page.css").touch()
    (tmp_path / "other.py").touch()
    assert code_of(script, package) in found
    repository = EXPERIMENTS / "test_time_scaling.py"
    assert {"rlvr.py", "test_time_scaling_report.py"} <= {each.name for each in with_imported(repository)}


def test_a_step_that_fails_stops_only_those_that_need_it(tmp_path: Path, step) -> None:
    folder = tmp_path / "made"
    steps = (
        step("a", "raise SystemExit('no memory')"),
        step("b"),
        step("c", needs=("a",)),
        step("d", needs=("b",)),
    )
    found, said = run(folder, *steps)
    assert [found[name].state for name in "abcd"] == ["failed", "ended", "not run", "ended"]
    assert "no memory" in Runner(folder, "").log(steps[0]).read_text()
    assert any("a: failed" in line and "exit status 1" in line for line in said)
    assert not (folder / "c").exists()
    assert not all_is_well([], found)
    # What failed is tried again.
    step("a")
    found, _ = run(folder, *steps)
    assert [found[name].state for name in "abcd"] == ["ended", "ended before", "ended", "ended before"]


def test_what_is_needed_ends_first(tmp_path: Path, step) -> None:
    slow = "import time; time.sleep(0.3)\n" + ENDS
    after = "from pathlib import Path; import sys; assert (Path(sys.argv[-1]).parent / 'a' / 'ran').exists()"
    found, _ = run(tmp_path / "made", step("a", slow), step("b", after, needs=("a",)))
    assert found["b"].state == "ended"


def test_estimates_are_of_what_is_left_over_all_jobs(step) -> None:
    steps = [step(name) for name in "abc"]
    assert whole_time(steps, Heard.estimated, done=[], jobs=2) == 90.0
    assert whole_time(steps, Heard.estimated, done=["a"], jobs=2) == 60.0
    # What ended before says nothing of this machine.
    ended = {"a": Outcome("ended", 180.0), "b": Outcome("ended before", 6000.0)}
    assert pace(ended, Heard.estimated) == 3.0 and pace({}, Heard.estimated) == 1.0
    assert [minutes(each) for each in (45, 600, 7200)] == ["45 s", "10 min", "2.0 h"]


@pytest.mark.parametrize(("code", "status"), [(ENDS, 1), ("raise SystemExit(3)", 1)])
def test_the_exit_status_and_the_table_tell(monkeypatch, tmp_path: Path, step, capsys, code, status) -> None:
    made = step("a", code, out="embedded_pair")
    monkeypatch.setattr(reproduce, "steps_of", lambda size: (made,))
    monkeypatch.setattr(reproduce, "estimates", lambda size: {"a": 60.0})
    options = reproduce.Options(out=tmp_path / "made")
    assert reproduce.main(options) == status
    table = (tmp_path / "made" / "table.md").read_text()
    assert "missing" in table
    assert ("failed: exit status 3" in table) is (code != ENDS)
    said = capsys.readouterr().out
    assert said.index("about 30 s on 2 free cores") < said.index("a: begins")
    # The same results, put where they belong.
    shutil.copytree(EXPERIMENTS / "embedded_pair", tmp_path / "made" / "embedded_pair", dirs_exist_ok=True)
    assert reproduce.main(options) == (0 if code == ENDS else 1)


def test_what_is_kept_is_what_the_next_small_run_must_come_to(monkeypatch, tmp_path: Path, step) -> None:
    made = step("a", out="embedded_pair")
    monkeypatch.setattr(reproduce, "steps_of", lambda size: (made,))
    monkeypatch.setattr(reproduce, "estimates", lambda size: {"a": 60.0})
    monkeypatch.setattr(reproduce, "declared", lambda: [LLM])
    monkeypatch.setattr(reproduce, "KEPT", tmp_path / "quick.json")
    options = reproduce.Options(size="quick", out=tmp_path / "made")
    assert reproduce.main(replace(options, keep_figures=True)) == 1 and not kept_figures(reproduce.KEPT)
    shutil.copytree(EXPERIMENTS / "embedded_pair", tmp_path / "made" / "embedded_pair", dirs_exist_ok=True)
    assert reproduce.main(replace(options, keep_figures=True)) == 0
    assert kept_figures(reproduce.KEPT) == {("embedded_pair", LLM.name): pytest.approx(0.84)}
    assert "| 84.0 | ± 1 | yes |" in (tmp_path / "quick.md").read_text()
    # Nothing is kept unasked.
    shutil.rmtree(tmp_path / "made" / "embedded_pair")
    changed(tmp_path / "made", -0.02)
    assert reproduce.main(replace(options, run=False)) == 1
    table = (tmp_path / "made" / "table.md").read_text()
    assert "llm: accuracy (%): beyond the limit for all, not the small run's" in table


def test_nothing_is_begun_that_cannot_be_compared(monkeypatch, tmp_path: Path, step) -> None:
    made = step("a", out="embedded_pair")
    monkeypatch.setattr(reproduce, "steps_of", lambda size: (made,))
    monkeypatch.setattr(reproduce, "declared", lambda: [LLM, replace(LLM, file="other.json")])
    with pytest.raises(SystemExit, match="lack figures that are declared.*--only:\n.*other.json is missing"):
        reproduce.main(reproduce.Options(out=tmp_path / "made"))
    assert not (tmp_path / "made").exists()


def test_the_table_of_what_is_there_runs_nothing(monkeypatch, tmp_path: Path, step) -> None:
    made = step("a", out="embedded_pair")
    monkeypatch.setattr(reproduce, "steps_of", lambda size: (made,))
    monkeypatch.setattr(reproduce, "estimates", lambda size: {"a": 60.0})
    assert reproduce.main(reproduce.Options(run=False, out=tmp_path / "made")) == 1
    assert "| a | not run |" in (tmp_path / "made" / "table.md").read_text()
    assert not (tmp_path / "made" / "embedded_pair").exists()


def test_an_unknown_experiment_is_refused() -> None:
    # What an experiment needs comes with it.
    names = {step.name for step in reproduce.chosen(reproduce.Options(only=("test_time_scaling",)))}
    assert {"rlvr tune 1/2", "rlvr arms 2/2", "test_time_scaling report"} <= names
    assert not names & {"routing", "rlvr fractions 1/2"}
    with pytest.raises(SystemExit, match="no experiment nothing at this size; there are definitions, "):
        reproduce.chosen(reproduce.Options(only=("nothing",)))


def test_what_is_skipped_says_why() -> None:
    assert all(why for size in SIZES for why in SKIPPED[size].values())
    assert "routers" in SKIPPED["quick"] and "routers" not in {step.name for step in steps_of("quick")}
