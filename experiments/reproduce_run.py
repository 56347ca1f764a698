"""Runs the steps of `reproduce.py`, a few at a time: what has ended is not run again, what fails stops only those that need it."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from reproduce_code import code_of
from reproduce_steps import HERE, Step

from navtoken.report.markup import write_whole

State = Literal["ended", "ended before", "failed", "not run"]
OTHER_CODE = "made by other code"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    state: State
    seconds: float = 0.0
    """By the clock."""
    cpu_seconds: float = 0.0
    """Of processors: what a busy machine lengthens least."""
    why: str = ""

    @property
    def has_results(self) -> bool:
        return self.state in ("ended", "ended before")


@dataclass(frozen=True)
class Runner:
    """Where steps leave their results, and how they are started."""

    folder: Path
    python: str
    jobs: int = 2
    beat: float = 60.0
    """Seconds at most between two lines about what is running."""

    def run(self, steps: Sequence[Step], estimated: Mapping[str, float], say: Say) -> dict[str, Outcome]:
        """The outcome of every step, by name."""
        for experiment in sorted({step.experiment for step in steps if self.is_stale(step)}):
            say(f"{experiment}: {OTHER_CODE}, begins afresh; what was there is in {self.set_aside}")
            self._set_aside(experiment, steps)
        outcomes = self.ended_before(steps)
        waiting = [step for step in steps if step.name not in outcomes]
        running: dict[Future[Outcome], tuple[Step, float]] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            while True:
                for step in [each for each in waiting if _lacks(each, outcomes)]:
                    waiting.remove(step)
                    outcomes[step.name] = Outcome("not run", why=f"needs {', '.join(step.needs)}")
                for step in _ready(waiting, outcomes)[: self.jobs - len(running)]:
                    waiting.remove(step)
                    say(f"{step.name}: begins; estimated {minutes(estimated[step.name])}")
                    running[pool.submit(self.launch, step)] = step, time.monotonic()
                if not running:
                    break
                for future in wait(running, self.beat, FIRST_COMPLETED).done:
                    step, _ = running.pop(future)
                    outcomes[step.name] = future.result()
                    say(self.told(step, outcomes[step.name]))
                say(_progress(waiting, running.values(), outcomes, estimated, self.jobs))
        return {step.name: outcomes[step.name] for step in steps}

    def ended_before(self, steps: Iterable[Step]) -> dict[str, Outcome]:
        """The steps that need not be run again; one whose needs are run again is, too."""
        outcomes: dict[str, Outcome] = {}
        for step in steps:
            if all(need in outcomes for need in step.needs) and (done := self.before(step)):
                outcomes[step.name] = done
        return outcomes

    def before(self, step: Step) -> Outcome | None:
        """What became of the same command with the same code in an earlier run, if it ended and its results are there."""
        record = self._recorded(step)
        if record is None or record["state"] != "ended" or not step.results(self.folder).is_dir():
            return None
        if record["command"] != list(step.command(self.python, self.folder)) or self.is_stale(step):
            return None
        return Outcome("ended before", record["seconds"], record["cpu_seconds"])

    def is_stale(self, step: Step) -> bool:
        """Whether other code than today's began it, so that nothing of it may be gone on with."""
        record = self._recorded(step)
        return record is not None and record.get("code") != code_of(HERE / step.script)

    def _recorded(self, step: Step) -> dict[str, Any] | None:
        path = self._record(step)
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def set_aside(self) -> Path:
        return self.folder / "other_code"

    def _set_aside(self, experiment: str, steps: Iterable[Step]) -> None:
        """Scripts go on with the responses that they find, so these may not stay where they are."""
        for part in (Path(experiment), Path("work") / experiment):
            old = self.set_aside / part
            if (self.folder / part).exists():
                shutil.rmtree(old, ignore_errors=True)
                old.parent.mkdir(parents=True, exist_ok=True)
                (self.folder / part).rename(old)
        for step in steps:
            if step.experiment == experiment:
                self._record(step).unlink(missing_ok=True)

    def launch(self, step: Step) -> Outcome:
        """Run a step to its end, its output in a log of its own, and remember it if it succeeded."""
        command = step.command(self.python, self.folder)
        log = self.log(step)
        log.parent.mkdir(parents=True, exist_ok=True)
        # Models of the experiments are tiny: a second thread of one process would only wait.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        record = {"command": command, "code": code_of(HERE / step.script)}
        write_whole(self._record(step), json.dumps(record | {"state": "begun"}, indent=1) + "\n")
        started = time.monotonic()
        with log.open("w") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment
            )
            # What this one child used: `getrusage` would add up all of them.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds, cpu_seconds = time.monotonic() - started, usage.ru_utime + usage.ru_stime
        if process.returncode:
            return Outcome("failed", seconds, cpu_seconds, f"exit status {process.returncode}, see {log}")
        outcome = Outcome("ended", seconds, cpu_seconds)
        write_whole(self._record(step), json.dumps(record | asdict(outcome), indent=1) + "\n")
        return outcome

    def told(self, step: Step, outcome: Outcome) -> str:
        took = f"after {minutes(outcome.seconds)}, {minutes(outcome.cpu_seconds)} of processor time"
        return f"{step.name}: {outcome.state} {took}" + (f" ({outcome.why})" if outcome.why else "")

    def log(self, step: Step) -> Path:
        return self.folder / "steps" / f"{_file(step)}.log"

    def _record(self, step: Step) -> Path:
        return self.folder / "steps" / f"{_file(step)}.json"


def minutes(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def whole_time(
    steps: Iterable[Step], estimated: Mapping[str, float], done: Iterable[str], jobs: int
) -> float:
    """Of the steps that are not done, spread over the jobs."""
    return sum(estimated[step.name] for step in steps if step.name not in set(done)) / jobs


def pace(outcomes: Mapping[str, Outcome], estimated: Mapping[str, float]) -> float:
    """Times as long as estimated that steps took which ended in this run: a busy machine, or another one."""
    ended = {name: each.seconds for name, each in outcomes.items() if each.state == "ended"}
    return sum(ended.values()) / sum(estimated[name] for name in ended) if ended else 1.0


def _progress(
    waiting: Sequence[Step],
    running: Iterable[tuple[Step, float]],
    outcomes: Mapping[str, Outcome],
    estimated: Mapping[str, float],
    jobs: int,
) -> str:
    """What runs and for how long, against its estimate, and what is left of all."""
    now = time.monotonic()
    spent = {step.name: now - since for step, since in running}
    left = sum(estimated[step.name] for step in waiting)
    left += sum(max(estimated[name] - seconds, 0.0) for name, seconds in spent.items())
    told = [
        f"{name} ({minutes(seconds)} of about {minutes(estimated[name])})" for name, seconds in spent.items()
    ]
    about = minutes(pace(outcomes, estimated) * left / jobs)
    return f"running: {', '.join(told) or 'nothing'}; {len(waiting)} waiting, about {about} left"


def _ready(waiting: Sequence[Step], outcomes: Mapping[str, Outcome]) -> list[Step]:
    return [step for step in waiting if all(need in outcomes for need in step.needs)]


def _lacks(step: Step, outcomes: Mapping[str, Outcome]) -> bool:
    """Whether something that it needs has ended without results."""
    return any(need in outcomes and not outcomes[need].has_results for need in step.needs)


def _file(step: Step) -> str:
    return step.name.replace(" ", "_").replace("/", "_of_")
