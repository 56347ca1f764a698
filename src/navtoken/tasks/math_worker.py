"""math-verify in a process of its own, which can be killed.

A signal cannot interrupt a big-integer power, and math-verify's own timeouts work in the main thread only. So a
child process compares, one pair of answers per line, and its parent kills it when a pair takes too long; the next
pair gets a fresh child. The protocol is JSON lines over pipes, not `multiprocessing`: nothing of the parent (models,
threads, an unguarded main script) is copied or imported again.
"""

import atexit
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO

PAIR_SECONDS = 20.0
"""The parent kills the child when one pair takes longer."""

SOFT_SECONDS = 5
"""math-verify's own limit on each of its steps, where a signal can interrupt it; a busy machine needs some room."""

START_SECONDS = 120.0
"""Limit on the child's start, which imports math-verify."""

MEMORY_BYTES = 4 * 2**30
"""Address space of the child, where the platform can limit it."""


COMMAND = (sys.executable, "-P", "-m", "navtoken.tasks.math_worker")
"""Starts the child; `-P` keeps a user's folder from shadowing its imports."""


class MathWorkerError(RuntimeError):
    """The comparing process does not start."""


class MathWorker:
    """Compares answers in a child process; safe to call from any thread, and after a fork."""

    def __init__(self, pair_seconds: float = PAIR_SECONDS, command: Sequence[str] = COMMAND) -> None:
        self.pair_seconds = pair_seconds
        self._command = command
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        atexit.register(self.close)

    def same(self, expected: str, given: str) -> bool:
        """Does math-verify hold the answers for equal? False when it fails or takes longer than `pair_seconds`."""
        with self._lock:
            process = self._running()
            reply = self._exchange(process, json.dumps([expected, given]), self.pair_seconds)
            if not reply:
                self._stop()
            return reply == "true"

    def close(self) -> None:
        """End the child process."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self._stop()
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=_child_environment(),
        )
        if self._exchange(self._process, None, START_SECONDS) != "ready":
            self._stop()
            raise MathWorkerError(
                "the comparing process does not start; try: python -m navtoken.tasks.math_worker"
            )
        return self._process

    def _exchange(self, process: subprocess.Popen[str], line: str | None, seconds: float) -> str:
        assert process.stdin is not None and process.stdout is not None
        deadline = threading.Timer(seconds, process.kill)
        deadline.daemon = True
        deadline.start()
        try:
            if line is not None:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            return process.stdout.readline().strip()
        except OSError:
            return ""
        finally:
            deadline.cancel()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        if self._owner == os.getpid():
            process.kill()
            process.wait()


def _child_environment() -> dict[str, str]:
    import navtoken

    roots = [os.path.dirname(path) for path in navtoken.__path__]
    paths = [*roots, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def compare(expected: str, given: str) -> bool:
    """One comparison by math-verify's LaTeX grammar, which takes its own errors for 'not the same'.

    An error that it lets through ends the process, and the parent takes that for 'not the same' as well.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    target = [LatexExtractionConfig(boxed_match_priority=0)]
    parsed = [
        parse(rf"\boxed{{{answer}}}", extraction_config=target, parsing_timeout=SOFT_SECONDS)
        for answer in (expected, given)
    ]
    return bool(verify(*parsed, timeout_seconds=SOFT_SECONDS))


def serve(requests: IO[str], replies: IO[str]) -> None:
    """Answer each line `[expected, given]` with `true` or `false`."""
    for line in requests:
        expected, given = json.loads(line)
        replies.write(json.dumps(compare(expected, given)) + "\n")
        replies.flush()


def main() -> None:
    """Limit the memory, say that math-verify is there, then serve."""
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    replies = sys.stdout
    sys.stdout = sys.stderr
    compare("1", "1")
    replies.write("ready\n")
    replies.flush()
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
