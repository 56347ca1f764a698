"""A model as judge of whole responses, for fields where nothing can be checked: it scores them against a rubric.

Any OpenAI-compatible chat endpoint serves, through the client of `labeling`: one limit on requests at once, retries, a deadline
each, a count of what they cost. A trainer waits for its judge, so a sick request is given up sooner than there.

What is no score is None and never 0: a response is not bad because a server was busy, and a 0 among scores would be learnt
from. TRL leaves None out. What is asked and how it is read stands in `rubric_prompt`; the same question, response, rubric
and model are asked about once (`rubric_cache`).
"""

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from navtoken.labeling.chat import CHAT, chat_body, chat_text, judge_options
from navtoken.labeling.openai_client import Body, Endpoint, EndpointOptions, RequestError, first_choice
from navtoken.reference import Reference
from navtoken.rlvr.rubric_cache import ScoreCache
from navtoken.rlvr.rubric_prompt import RUBRIC, Messages, Scale, messages, read_score

PATIENT = {"timeout": 120.0, "retries": 3}
"""Options of the endpoint where a reference says nothing: other ranks wait at a barrier, whose limit is minutes."""
WINDOW = 64
"""So many answers in a row are looked at before a judge counts as one that gives no scores. More than one batch of a few
responses, in which half may fail by chance."""
MOST_RUBRIC_CHARS = 50_000


class RubricError(ValueError):
    """A judge that cannot be made, or that gives no scores."""


@dataclass(frozen=True)
class RubricOptions:
    """What a judge scores by, and how much of a response it sees."""

    endpoint: EndpointOptions
    """Where it is."""
    rubric: str | None = None
    """Text file that says what is good; None is a rubric for answers in general."""
    lowest: float = 0.0
    """Lowest score that the judge may give: reward 0."""
    highest: float = 10.0
    """Highest score: reward 1."""
    max_tokens: int = 1024
    """Longest answer: judges that think aloud need some."""
    reasoning_tokens: int = 0
    """For endpoints of reasoning models that refuse `max_tokens` and a temperature: sent as `max_completion_tokens`
    instead of both; 0 is off."""
    response_chars: int = 20_000
    """Most characters of a response that the judge sees, half of them its beginning and half its end."""
    cache: str | None = None
    """Folder that keeps scores for the next run; None keeps them for this run alone."""
    no_score_limit: float = 0.5
    """Ends the run when a larger share of the last 64 answers were no scores; 1 never does."""

    def __post_init__(self) -> None:
        for name, least in (("max_tokens", 1), ("reasoning_tokens", 0), ("response_chars", 2)):
            if not getattr(self, name) >= least:
                raise RubricError(f"{name} is {getattr(self, name)}; give at least {least}")
        if not (math.isfinite(self.lowest) and math.isfinite(self.highest) and self.lowest < self.highest):
            raise RubricError(
                f"the scale goes from {self.lowest:g} to {self.highest:g}; give highest above lowest"
            )
        if not 0 <= self.no_score_limit <= 1:
            raise RubricError(f"no_score_limit is {self.no_score_limit}; give a share from 0 to 1")


@dataclass
class Given:
    """How a judge scored, in responses."""

    scored: int = 0
    cached: int = 0
    """Of all, those that needed no request of their own."""
    no_score: int = 0
    """A request failed, or an answer states no score of the scale."""


class RubricJudge:
    """A reward that asks a chat model. Not for several threads at once."""

    __name__ = "judge"

    def __init__(self, options: RubricOptions) -> None:
        """Raises `RubricError`, `ScoreCacheError`, and `EndpointOptionError` for a key that is missing. Nothing is asked yet."""
        self.options = options
        self.scale = Scale(options.lowest, options.highest)
        self.rubric = RUBRIC if options.rubric is None else read_rubric(Path(options.rubric))
        self.given = Given()
        self._cache = ScoreCache(None if options.cache is None else Path(options.cache))
        self._recent = deque[bool](maxlen=WINDOW)
        self._last_trouble = ""
        self.endpoint = Endpoint(options.endpoint)

    def check(self) -> None:
        """Ask one easy question, so that a wrong address, key or model shows before the work.

        Raises `EndpointError`, or `RubricError` for an endpoint that fails or does not answer with a score.
        """
        try:
            reply = self.endpoint.ask(
                CHAT, self._body(self._messages("What is 2 + 2?", "It is 4.")), _finished
            )
        except RequestError as error:
            raise RubricError(f"the judge does not answer: {error}") from error
        if read_score(reply, self.scale) is None:
            raise RubricError(
                f"the judge '{self.options.endpoint.model}' was asked for a last line SCORE: n, n from {self.options.lowest:g} to "
                f"{self.options.highest:g}, and said {_quoted(reply)}; take a model that follows instructions, or give it more "
                "max_tokens"
            )

    def __call__(
        self,
        completions: Sequence[str],
        question: Sequence[str],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Scores from 0 to 1 as TRL asks for them; None where there is none.

        Raises `EndpointError`, and `RubricError` where more than `no_score_limit` of the last answers were no scores.
        """
        asked = [self._messages(*pair) for pair in zip(question, completions, strict=True)]
        keys = [self._key(messages) for messages in asked]
        fresh = {key: messages for key, messages in zip(keys, asked, strict=True) if key not in self._cache}
        before = self._spent()
        self._ask(fresh)
        scores = [self._cache.get(key) for key in keys]
        self._count(scores, len(fresh))
        if log_metric is not None and scores:
            log_metric("judge/no_score", scores.count(None) / len(scores))
            log_metric("judge/cached", 1 - len(fresh) / len(scores))
            for name, spent in self._spent().items():
                log_metric(f"judge/{name}", spent - before[name])
        self._check_scores()
        return scores

    def summary(self) -> dict[str, Any]:
        """Counts and costs so far, JSON-serialisable."""
        return {"reward": self.__name__, **vars(self.given), "endpoint": self.endpoint.summary()}

    def close(self) -> None:
        self.endpoint.close()

    def _messages(self, question: str, response: str) -> Messages:
        return messages(question, response, self.rubric, self.scale, self.options.response_chars)

    def _key(self, messages: Messages) -> str:
        """Of all that may change a score, the address left out: a judge that moved is the same judge."""
        said = json.dumps([self.options.endpoint.model, self.options.lowest, self.options.highest, messages])
        return hashlib.sha256(said.encode()).hexdigest()[:32]

    def _body(self, messages: Messages) -> Body:
        options = self.options
        return chat_body(options.endpoint.model, messages, options.max_tokens, options.reasoning_tokens)

    def _ask(self, fresh: Mapping[str, Messages]) -> None:
        """Fill the cache. A failed request leaves nothing there, and is asked again when it comes again."""
        bodies = ((key, self._body(messages)) for key, messages in fresh.items())
        for key, reply in self.endpoint.answers(CHAT, bodies, _finished):
            if isinstance(reply, RequestError):
                score, trouble = None, str(reply)
            else:
                score, trouble = read_score(reply, self.scale), f"the answer {_quoted(reply)}"
                self._cache.put(key, score)
            self._recent.append(score is not None)
            self._last_trouble = trouble if score is None else self._last_trouble

    def _count(self, scores: Sequence[float | None], fresh: int) -> None:
        self.given.no_score += scores.count(None)
        self.given.scored += len(scores) - scores.count(None)
        self.given.cached += len(scores) - fresh

    def _check_scores(self) -> None:
        """Groups without scores train nothing, and dynamic sampling would draw new ones for ever."""
        missing = self._recent.count(False)
        if len(self._recent) == WINDOW and missing > self.options.no_score_limit * WINDOW:
            raise RubricError(
                f"the judge '{self.options.endpoint.model}' gave no score to {missing} of the last {WINDOW} responses, above "
                f"no_score_limit={self.options.no_score_limit:g}; the last for {self._last_trouble}; take a model that follows "
                "instructions, give it more max_tokens, or raise no_score_limit"
            )

    def _spent(self) -> dict[str, float]:
        """Tokens so far, and their price where prices are given."""
        summary = self.endpoint.summary()
        spent = {"tokens": summary["prompt_tokens"] + summary["completion_tokens"]}
        return spent | {"price": summary["price"]} if "price" in summary else spent


def rubric_judge_from(reference: Reference, folder: Path | None = None) -> RubricJudge:
    """Make a judge of `judge:URL,model=NAME[,option=value...]`: options of `RubricOptions` and of `EndpointOptions`.

    `folder` is `cache` where the reference names none. Raises `RubricError`, `ScoreCacheError` or `EndpointOptionError` naming the
    part that does not fit.
    """
    if reference.target is None or "model" not in reference.options:
        raise RubricError(f"'{reference}': write judge:http://HOST:PORT/v1,model=NAME,rubric=FILE")
    own, of_endpoint = judge_options(reference, RubricOptions, RubricError)
    kept = {} if folder is None else {"cache": str(folder)}
    endpoint = EndpointOptions(reference.target, **(PATIENT | of_endpoint))
    return RubricJudge(RubricOptions(endpoint, **(kept | own)))


def read_rubric(path: Path) -> str:
    """The text of a rubric. Raises `RubricError`."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RubricError(
            f"the rubric '{path}' cannot be read ({error.strerror}); check the path after rubric="
        ) from error
    except UnicodeDecodeError as error:
        raise RubricError(f"the rubric '{path}' is no text in UTF-8 ({error}); save it as such") from error
    if not text or len(text) > MOST_RUBRIC_CHARS:
        raise RubricError(
            f"the rubric '{path}' has {len(text)} characters; write down what a good response is, in at most {MOST_RUBRIC_CHARS}"
        )
    return text


def _finished(answer: Body) -> str:
    """The text of a chat answer that came to its end; one that was cut off may stop at a number that it quotes."""
    return "" if first_choice(answer).get("finish_reason") == "length" else chat_text(answer)


def _quoted(reply: str) -> str:
    return f"'{reply[-200:]}'" if reply else "'' (without text, or cut off at max_tokens)"
