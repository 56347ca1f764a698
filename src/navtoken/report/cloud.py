"""Word cloud of tokens: laid out by the package `wordcloud`, drawn as text in the page's own font and colours.

Size is all that a cloud says, so it is all that differs: words lie flat, and one colour marks the larger ones.
"""

import importlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from navtoken.report.figure import Figure
from navtoken.report.markup import Html, ReportError, each, element, escape
from navtoken.report.pieces import token_text

_WIDTH, _HEIGHT = 440, 320
_LARGEST = (52, 46, 40, 35, 30, 26, 22, 19)
"""Sizes of the largest word that are tried until all words fit, in SVG units."""
_SMALLEST = 11
_RANGE = 0.3
"""Size of the word with the least weight against that with the most."""
_LONGEST = 24
"""Characters of a word that are shown."""
_ADVANCE = 0.6
"""Width of a character of a monospaced font against its size."""


@dataclass(frozen=True)
class _Placed:
    """A word in the cloud, in SVG units."""

    text: str
    size: int
    left: float
    baseline: float


@dataclass(frozen=True)
class CloudSection:
    """The larger the number, the larger the word."""

    title: str
    """The heading; best when it says the finding."""
    words: Sequence[tuple[str, float]]
    """Token and weight. Any finite numbers will do, negative ones too: the least gets the smallest size and the most the
    largest, so the lowest entropies make a cloud by their negatives."""
    text: str = ""
    """Plain text under the figure; says what size means."""
    forking: bool = True
    """Colour the larger words as forking tokens; otherwise as the rest."""

    def figures(self) -> list[Figure]:
        """The one figure. Raises `ReportError` without the package `wordcloud`."""
        placed = self._placed()
        largest = max(word.size for word in placed)
        words = each(placed, lambda word: _drawn(word, largest))
        body = element("g", words, class_="cloud" if self.forking else "cloud calm")
        ranked = sorted(self.words, key=lambda pair: -pair[1])
        return [
            Figure(self.title, ", ".join(token_text(token) for token, _ in ranked), _WIDTH, _HEIGHT, body)
        ]

    def html(self, anchor: str) -> Html:
        notes = [self.text]
        left_out = len({token for token, _ in self.words}) - len(self._placed())
        if left_out:
            notes.append(f"{left_out} more did not fit.")
        note = " ".join(notes).strip()
        words = element("figcaption", escape(note)) if note else ""
        return element("figure", self.figures()[0].html(), words, class_="chart")

    def _placed(self) -> list[_Placed]:
        if not self.words:
            raise ReportError(f"'{self.title}' has no words; leave the section out or give it some")
        for token, weight in self.words:
            if not math.isfinite(weight):
                raise ReportError(f"'{self.title}': the weight of {token!r} is {weight}; leave it out")
        return _layout(
            tuple(zip(_labels([token for token, _ in self.words]), _ranks(self.words), strict=True))
        )


def _labels(tokens: Sequence[str]) -> list[str]:
    """Tokens as they are shown: the space before a word is dropped unless another word then looks the same."""
    exact = [_cut(token_text(token)) for token in tokens]
    bare = [text.lstrip("␣") or text for text in exact]
    times = Counter(bare)
    return [short if times[short] == 1 else whole for whole, short in zip(exact, bare, strict=True)]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _ranks(words: Sequence[tuple[str, float]]) -> list[float]:
    """Weights between 0, the least, and 1."""
    low, high = min(weight for _, weight in words), max(weight for _, weight in words)
    return [(weight - low) / (high - low) if high > low else 1.0 for _, weight in words]


@lru_cache(maxsize=32)
def _layout(words: tuple[tuple[str, float], ...]) -> list[_Placed]:
    """Places by `wordcloud`: the largest sizes at which all words fit, and the same ones for the same input."""
    tries = [_sizes(words, largest) for largest in _LARGEST]
    clouds = ((_cloud(sizes), sizes) for sizes in tries)
    cloud = next((cloud for cloud, sizes in clouds if _placed_sizes(cloud) == sizes), None) or _cloud(
        tries[-1]
    )
    fonts = _package("PIL.ImageFont")
    placed = []
    for (word, _), size, (top, left), *_ in cloud.layout_:
        ink_left, ink_top, *_ = fonts.truetype(cloud.font_path, size).getbbox(word, anchor="ls")
        placed.append(_Placed(word, int(size), float(left - ink_left), float(top - ink_top)))
    return placed


def _sizes(words: tuple[tuple[str, float], ...], largest: int) -> dict[str, int]:
    """Size by word, largest first; of words that look the same the first counts."""
    least = max(_RANGE * largest, _SMALLEST)
    sizes: dict[str, int] = {}
    for word, rank in sorted(words, key=lambda pair: -pair[1]):
        sizes.setdefault(word, round(least + rank * (largest - least)))
    return sizes


def _placed_sizes(cloud: Any) -> dict[str, int]:
    return {word: int(size) for (word, _), size, *_ in cloud.layout_}


def _cloud(sizes: dict[str, int]) -> Any:
    cloud = _package("wordcloud").WordCloud(
        width=_WIDTH,
        height=_HEIGHT,
        max_words=len(sizes),
        max_font_size=max(sizes.values()),
        min_font_size=_SMALLEST,
        # Whole sizes as frequencies: the package rounds each size from the one before, and would stay at the first.
        relative_scaling=1,
        prefer_horizontal=1,
        margin=12,
        random_state=0,
    )
    return cloud.generate_from_frequencies(sizes)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ReportError(
            f"a word cloud needs the package '{name.split('.')[0]}' ({error}); pip install wordcloud"
        ) from None


def _drawn(word: _Placed, largest: int) -> Html:
    """The word, kept to the width it was laid out with whatever font the reader has."""
    return element(
        "text",
        escape(word.text),
        x=word.left,
        y=word.baseline,
        font_size=word.size,
        class_="large" if word.size > 0.55 * largest else None,
        textLength=round(_ADVANCE * word.size * len(word.text), 1),
        lengthAdjust="spacingAndGlyphs",
    )
