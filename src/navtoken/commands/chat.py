"""`navtoken chat`: ask, and see who writes what, in the terminal; against a local pair or any OpenAI-compatible server.

Models that were trained on conversations get the whole one with each question. The embedded pair was trained on single questions, so
there each stands alone, unless `--history` says otherwise.
"""

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from navtoken.checkpoints import ModelPair
from navtoken.commands.chat_client import ChatClient, ChatError, Part, Settings, cleaned, local_server
from navtoken.commands.serve import ServeOptions
from navtoken.commands.solve import SolvedToken, legend, shown
from navtoken.commands.surroundings import progress_console
from navtoken.engine.options import OptionError
from navtoken.generation import ModelOptions
from navtoken.report.markup import percent, write_whole
from navtoken.serving.answers import Navigation, TokenDetail
from navtoken.serving.options import KEY_ENV, ServerOptions

NAVIGATION = 0.67
"""Entropy in nats from which `/tokens` lists a token that the SLM wrote: the paper's 80th percentile."""
HELP = """\
/policy REF       who writes which token: router, entropy:0.67, speculative:4, slm, llm, ...
/threshold X      another threshold for it; without X its own
/compare REF      ask a second policy, too; off ends that
/system TEXT      what the model is told first; without TEXT nothing
/temperature X    0 takes the most probable token
/seed N           the same noise again; without N a new one each time
/max-tokens N     longest answer; without N up to the context
/again            the same question under what is set now
/tokens POLICY    navigation tokens of the last answer under a policy; without POLICY of the last of all
/new              forget the conversation
/save FILE        write the conversation as JSON
/quit             leave (so does Ctrl-D); Ctrl-C stops an answer"""


@dataclass(frozen=True)
class ChatOptions:
    """Talk to a pair or to a server; each token shows who wrote it and how uncertain it was."""

    url: str | None = None
    """Address of an OpenAI-compatible server, such as http://127.0.0.1:8000, with its key in NAVTOKEN_API_KEY; None takes a local pair."""
    model: str | None = None
    """The server's model; None takes the first that it names."""
    policy: str | None = None
    """Policy reference; None takes what the server was started with, and of a local pair what `navtoken serve` takes."""
    threshold: float | None = None
    """Another threshold for the policy."""
    compare: str | None = None
    """A second policy, that every question goes to as well."""
    system: str | None = None
    """What the model is told first."""
    temperature: float = 0.0
    """Softmax temperature; 0 takes the most probable token."""
    seed: int | None = None
    """Fixes all noise; None draws it anew for each answer."""
    max_tokens: int | None = None
    """Longest answer in tokens; None goes up to the context."""
    history: bool | None = None
    """Send the conversation so far with each question; None does unless the pair is the embedded one."""
    models: ModelOptions = field(default_factory=ModelOptions)
    """The local pair."""

    def settings(self) -> Settings:
        """How questions are asked at first."""
        names = ("policy", "threshold", "system", "temperature", "seed", "max_tokens")
        return Settings(**{name: getattr(self, name) for name in names})


@dataclass
class Answer:
    """One answer, as far as it came."""

    question: str
    settings: Settings
    text: str = ""
    tokens: list[TokenDetail] = field(default_factory=list)
    summary: Navigation | None = None
    seconds: float = 0.0
    ended: str = "stopped"
    """`stop`, `length`, `stopped` by hand, or the error that ended it."""

    @property
    def policy(self) -> str:
        """As the server tells it, once it has; else as it was asked for."""
        told = None if self.summary is None else self.summary.policy
        return told or self.settings.policy or "the server's policy"

    def was_under(self, policy: str) -> bool:
        """Is that its policy, by its whole reference or its name?"""
        return policy in (self.policy, self.settings.policy, re.split("[:,]", self.policy)[0])

    def as_json(self) -> dict[str, Any]:
        told = None if self.summary is None else self.summary.model_dump(exclude={"tokens"})
        return {
            "question": self.question,
            "settings": asdict(self.settings),
            "text": self.text,
            "ended": self.ended,
            "seconds": self.seconds,
            "navtoken": told,
        }


class Chat:
    """A conversation with one client."""

    def __init__(self, options: ChatOptions, client: ChatClient, console: Console) -> None:
        self.client = client
        self.console = console
        self.settings = options.settings()
        self.compared = options.compare
        self.with_history = not _is_embedded(client) if options.history is None else options.history
        self.messages: list[dict[str, str]] = []
        self.answers: list[Answer] = []
        self._marked = console.color_system is None or console.no_color
        for name in ("policy", "threshold", "compare"):
            if getattr(options, name) is not None and client.pair is None:
                raise OptionError(f"{name} is set, but the server is none of navtoken's; leave it out")

    def greet(self) -> None:
        """Who answers, and how to read it."""
        pair = self.client.pair
        if pair is None:
            self.console.print(
                Text(f"{cleaned(self.client.model)}, written by one model. /help lists commands.")
            )
            return
        names = f"{cleaned(pair.slm.reference)} and {cleaned(pair.llm.reference)}"
        self.console.print(Text(f"{names} under {cleaned(pair.policy)}. /help lists commands."))
        self.console.print(legend(self._marked))

    def take(self, line: str) -> bool:
        """Answer a line, or do what it commands; False where that is to leave."""
        # Bytes that are no text in this encoding come as half characters, which nothing can write.
        line = line.encode("utf-8", "replace").decode().strip()
        if line in ("/quit", "/exit"):
            return False
        try:
            if line.startswith("/"):
                self._command(*line[1:].split(None, 1))
            elif line:
                self.ask(line)
        except (ChatError, OptionError, OSError) as error:
            self.console.print(Text(f"navtoken: {cleaned(str(error))}", style="bold red"))
        return True

    def ask(self, question: str) -> Answer:
        """Ask under the policy that is set, and under the one that is compared."""
        first = self._answer(question, self.settings)
        if self.compared is not None and first.ended != "stopped":
            self._answer(question, replace(self.settings, policy=self.compared, threshold=None))
        if self.with_history and first.ended in ("stop", "length"):
            self.messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": first.text.strip()},
            ]
        return first

    def _answer(self, question: str, settings: Settings) -> Answer:
        answer = Answer(question, settings)
        self.answers.append(answer)
        history = self.messages if self.with_history else []
        started = monotonic()
        if self.compared is not None:
            self.console.print(Text(settings.policy or "the server's policy", style="bold"))
        try:
            for part in self.client.ask([*history, {"role": "user", "content": question}], settings):
                self._show(answer, part)
        except KeyboardInterrupt:
            self.console.print(" (stopped)")
        except ChatError as error:
            answer.ended = cleaned(str(error))
            if answer.text or answer.tokens:
                self.console.print()
            raise self._advised(error) from error
        finally:
            answer.seconds = monotonic() - started
        self.console.print(Text(f"\n{cleaned(_summary(answer))}", style="bold"))
        return answer

    def _advised(self, error: ChatError) -> ChatError:
        too_long = "context" in str(error) and self.messages
        return ChatError(f"{error}; /new forgets the conversation so far") if too_long else error

    def _show(self, answer: Answer, part: Part) -> None:
        answer.text += part.text
        answer.tokens += part.tokens
        answer.summary = part.summary or answer.summary
        answer.ended = part.finish_reason or answer.ended
        if self.client.pair is None:
            self.console.print(Text(cleaned(part.text)), end="", soft_wrap=True)
        for token in part.tokens:
            self.console.print(shown(_solved(token), self._marked), end="", soft_wrap=True)

    # ---- commands -----------------------------------------------------------------------------------------------

    def _command(self, name: str = "", value: str | None = None) -> None:
        numbers = {"threshold": float, "temperature": float, "seed": int, "max-tokens": int}
        if name in numbers:
            self._set(name.replace("-", "_"), None if value is None else _number(name, value, numbers[name]))
        elif name in ("policy", "system"):
            self._set(name, value)
        elif name in ("compare", "again", "tokens", "new", "save", "help"):
            getattr(self, f"_{name}")(value)
        else:
            raise OptionError(f"there is no /{name}; /help lists what there is")

    def _set(self, name: str, value: Any) -> None:
        if name in ("policy", "threshold") and self.client.pair is None:
            raise OptionError(f"/{name} needs a server of navtoken's")
        if name == "temperature" and value is None:
            value = 0.0
        changes = {name: value} | ({"threshold": None} if name == "policy" else {})
        self.settings = replace(self.settings, **changes)
        self.console.print(Text(f"{name.replace('_', ' ')}: {'none' if value is None else value}"))

    def _compare(self, value: str | None) -> None:
        if self.client.pair is None:
            raise OptionError("/compare needs a server of navtoken's")
        self.compared = None if value in (None, "off") else value
        self.console.print(Text(f"compared with: {self.compared or 'nothing'}"))

    def _again(self, value: str | None) -> None:
        if not self.answers:
            raise OptionError("there is no question yet")
        question, before = self.answers[-1].question, list(self.messages)
        if before and before[-2]["content"] == question:
            del self.messages[-2:]
        num_kept = len(self.messages)
        try:
            self.ask(question)
        finally:
            if len(self.messages) == num_kept:
                self.messages = before

    def _tokens(self, value: str | None) -> None:
        answer = self._with_tokens(value)
        found = [
            (place, token)
            for place, token in enumerate(answer.tokens)
            if token.writer == "llm" or (token.entropy or 0.0) >= NAVIGATION
        ]
        title = f"Navigation tokens of the last answer under {cleaned(answer.policy)}"
        self.console.print(Text(title, style="bold"), soft_wrap=True)
        table = Table(box=SIMPLE_HEAD, padding=0)
        for heading in ("", "token", "by", "SLM's draft", "entropy", "p(div.)", "alternatives"):
            table.add_column(heading, justify="right" if heading in ("", "entropy", "p(div.)") else "left")
        for place, token in found:
            others = ", ".join(
                f"{_spelled(other.text)} {other.logprob:.1f}" for other in token.alternatives[:3]
            )
            table.add_row(
                str(place),
                escape(_spelled(token.text)),
                token.writer.upper(),
                "" if token.draft is None else escape(_spelled(token.draft.text)),
                "–" if token.entropy is None else f"{token.entropy:.2f}",
                "–" if token.p_divergent is None else f"{token.p_divergent:.2f}",
                escape(others),
            )
        self.console.print(table)

    def _with_tokens(self, policy: str | None) -> Answer:
        """The last answer, under that policy where one is named."""
        answers = [answer for answer in reversed(self.answers) if answer.tokens]
        if not answers:
            raise OptionError("there is no answer with tokens yet")
        found = next((answer for answer in answers if policy is None or answer.was_under(policy)), None)
        if found is None:
            there = ", ".join(dict.fromkeys(answer.policy for answer in answers))
            raise OptionError(f"no answer was under '{policy}'; there are answers under {there}")
        return found

    def _new(self, value: str | None) -> None:
        self.messages.clear()
        self.console.print("the conversation is forgotten")

    def _save(self, value: str | None) -> None:
        if value is None:
            raise OptionError("/save needs a file's name")
        write_whole(Path(value).expanduser(), json.dumps(self.as_json(), indent=1) + "\n")
        self.console.print(Text(f"saved: {value}"))

    def _help(self, value: str | None) -> None:
        self.console.print(Text(HELP))

    def as_json(self) -> dict[str, Any]:
        """All answers."""
        return {"model": self.client.model, "answers": [answer.as_json() for answer in self.answers]}


def run(options: ChatOptions, console: Console, pair: ModelPair | None = None) -> dict[str, Any]:
    """Talk until the input ends; returns all answers as plain data."""
    with _client(options, pair) as client:
        chat = Chat(options, client, console)
        chat.greet()
        for line in _lines(console):
            if not chat.take(line):
                break
        return chat.as_json()


@contextmanager
def _client(options: ChatOptions, pair: ModelPair | None) -> Iterator[ChatClient]:
    if options.url is not None:
        with ChatClient(options.url, os.environ.get(KEY_ENV), options.model) as client:
            yield client
        return
    if options.model is not None:
        raise OptionError("model names a server's; give --url too, or --slm and --llm for a local pair")
    with progress_console().status("loading the pair"):
        loaded = pair or options.models.load()
    wanted = ServeOptions(policy=options.policy, models=options.models, server=ServerOptions())
    with local_server(wanted, loaded) as client:
        yield client


def _lines(console: Console) -> Iterator[str]:
    """What is typed; of a pipe its lines."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` a history, where there is one
    while True:
        try:
            # Standard output is for JSON alone where that is asked for.
            if console.stderr:
                print("\n> ", end="", file=sys.stderr, flush=True)
            yield input("" if console.stderr else "\n> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit leaves)")


def _is_embedded(client: ChatClient) -> bool:
    pair = client.pair
    return pair is not None and all(each.reference.startswith("embedded:") for each in (pair.slm, pair.llm))


def _solved(token: TokenDetail) -> SolvedToken:
    draft = None if token.draft is None else token.draft.id
    text = "" if token.special else token.text
    return SolvedToken(token.id, text, token.writer, token.entropy_slm, token.entropy_llm, draft)


def _summary(answer: Answer) -> str:
    told = answer.summary
    if told is None or told.llm_share is None or told.cost is None:
        num = len(answer.tokens)
        share = sum(token.writer == "llm" for token in answer.tokens) / max(1, num)
        heard = f"{num} tokens, {percent(share, 1)} by the LLM, " if num else ""
        return f"{heard}{answer.seconds:.1f} s, {answer.ended}"
    num = (told.slm_tokens or 0) + (told.llm_tokens or 0)
    speed = num / answer.seconds if answer.seconds > 0 else 0.0
    cut = ", cut off" if answer.ended == "length" else ""
    return (
        f"{told.policy}: {num} tokens{cut}, {percent(told.llm_share, 1)} by the LLM, {speed:.0f} tokens/s, "
        f"{told.cost.llm_passes} LLM passes"
    )


def _spelled(text: str) -> str:
    return cleaned(text.replace("\n", "↵")).replace(" ", "␣")


def _number(name: str, value: str, kind: type[float]) -> float:
    try:
        number = kind(value)
        if not math.isfinite(number):
            raise ValueError
        return number
    except ValueError:
        raise OptionError(f"/{name} {value[:40]} is no {'whole ' if kind is int else ''}number") from None
