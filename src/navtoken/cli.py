"""`navtoken`: one command per stage, derived from the stage's dataclass of options.

Modules of a command are imported when it runs, so that help and version come at once.
"""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple

from navtoken.reference import BadReference


class Command(NamedTuple):
    """Where a command lives."""

    module: str
    """Has the options and `run(options, console) -> result` for JSON."""
    options: str
    summary: str


COMMANDS = {
    "demo": Command("navtoken.commands.demo", "DemoOptions", "see it work: table and page in two minutes"),
    "solve": Command("navtoken.commands.solve", "SolveOptions", "stream one answer, coloured by writer"),
    "chat": Command(
        "navtoken.commands.chat", "ChatOptions", "talk to a pair or a server, coloured by writer"
    ),
    "evaluate": Command("navtoken.commands.evaluate", "EvaluateOptions", "compare policies on tasks"),
    "scale": Command("navtoken.commands.scale", "ScaleOptions", "accuracy against samples, tokens and cost"),
    "generate": Command("navtoken.commands.generate", "GenerateOptions", "write responses as traces"),
    "analyze": Command("navtoken.commands.analyze", "AnalyzeOptions", "entropy patterns: which tokens fork"),
    "score": Command(
        "navtoken.commands.score", "ScoreOptions", "entropies of given responses under a checkpoint"
    ),
    "perturb": Command(
        "navtoken.commands.perturb", "PerturbOptions", "heat forking tokens, or all the others"
    ),
    "drift": Command(
        "navtoken.commands.drift", "DriftOptions", "which tokens fork before and after training"
    ),
    "compare": Command(
        "navtoken.commands.compare", "CompareOptions", "forking and divergent tokens side by side"
    ),
    "label": Command(
        "navtoken.commands.label", "LabelOptions", "which of the SLM's drafts would lead elsewhere"
    ),
    "train-router": Command(
        "navtoken.commands.train_router", "TrainRouterOptions", "train a router on labels, and calibrate it"
    ),
    "calibrate": Command(
        "navtoken.commands.calibrate", "CalibrateOptions", "find the thresholds of a router again"
    ),
    "train-rl": Command(
        "navtoken.commands.train_rl", "TrainRLOptions", "train on forking tokens: DAPO with token selection"
    ),
    "serve": Command("navtoken.commands.serve", "ServeOptions", "OpenAI-compatible server and page"),
    "plan": Command("navtoken.commands.plan", "PlanOptions", "predict the speed of a pair from step times"),
}
INTERRUPTED = 130
CHATTY = ("torchao", "torch.utils._pytree")
"""Loggers that warn whenever torchao is installed, about kernels that this machine has no use for."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 for what the person who runs it can mend."""
    args = list(sys.argv[1:] if args is None else args)
    if args and args[0] in COMMANDS:
        return _guarded(args[0], args[1:])
    if args in (["--version"], ["-V"]):
        print(f"navtoken {version('navtoken')}")
        return 0
    asked = args in ([], ["--help"], ["-h"])
    print(
        usage() if asked else f"navtoken: no command is called '{args[0]}'",
        file=sys.stdout if asked else sys.stderr,
    )
    if not asked:
        print(f"there are {', '.join(COMMANDS)}; see navtoken --help", file=sys.stderr)
    return 0 if args and asked else 2


def usage() -> str:
    """What `navtoken --help` says."""
    lines = [f"  navtoken {name:<12} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "Find the few tokens that decide where a reasoning trace goes, and decode with them.",
            "",
            *lines,
            "",
            "  navtoken COMMAND --help   options of a command",
            "  navtoken --version",
        ]
    )


def _guarded(name: str, args: Sequence[str]) -> int:
    """Run a command; the project's own errors end as one line."""
    try:
        return _run(COMMANDS[name], name, args)
    except KeyboardInterrupt:
        print(
            "navtoken: interrupted; what was finished is kept, run the same again to go on", file=sys.stderr
        )
        return INTERRUPTED
    except (ValueError, ArithmeticError, OSError, ImportError) as error:
        if not _is_ours(error):
            raise
        print(f"navtoken: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _run(command: Command, name: str, args: Sequence[str]) -> int:
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.ERROR)
    module = import_module(command.module)
    parse: Callable[..., Any] = import_module("navtoken.commands.config").parse_invocation
    ranks = import_module("navtoken.commands.ranks")
    invocation = parse(getattr(module, command.options), name, args)
    console = ranks.console_for(stderr=invocation.json)
    result = module.run(ranks.own_output(invocation.options), console)
    if invocation.json and ranks.is_main_rank():
        print(json.dumps(result, allow_nan=False, default=str), flush=True)
    return 0


def _is_ours(error: Exception) -> bool:
    """Is this the project's word on input or surroundings, and not a slip of the code's that needs its traceback?"""
    return isinstance(error, OSError | BadReference) or type(error).__module__.startswith("navtoken.")


if __name__ == "__main__":
    sys.exit(main())
