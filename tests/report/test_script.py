"""The page's script in a browser: what keys and choices do. Skipped where there is no Chromium."""

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from navtoken.report import Page, TracesSection, render_page

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
LINES = {"entropy_slm": 0.4, "entropy_llm": 0.1}
HELPERS = """
const tokens = () => [...document.querySelector(".tokens").querySelectorAll(":scope > .t")];
const here = () => tokens().findIndex((token) => token.classList.contains("here"));
const press = (key) => {
  const at = Math.max(0, here());
  tokens()[at].dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  return here();
};
const choose = (name, value) => {
  const field = document.querySelector("form").elements[name];
  if (field.type === "checkbox") field.checked = value; else field.value = value;
  field.dispatchEvent(new Event("change", { bubbles: true }));
};
const card = () => document.getElementById("card");
"""


def render(traces: list[Any], decode: Any, shade: str = "entropy_slm") -> str:
    return render_page(Page("T", "", [TracesSection("S", traces, decode, shade=shade, lines=LINES)]))


def played(page: str, steps: str, folder: Path) -> Any:
    """What `steps`, the body of a function, returns in the page."""
    assert BROWSER is not None
    script = f"""<script>{HELPERS}
      const result = document.createElement("pre");
      result.id = "result";
      result.textContent = JSON.stringify((() => {{ {steps} }})());
      document.body.append(result);
    </script></body>"""
    path = folder / "page.html"
    path.write_text(page.replace("</body>", script))
    # A place of its own for what a browser leaves behind; its sockets want a short path.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={scratch}", "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        surroundings = os.environ | {"TMPDIR": scratch}
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=120, env=surroundings
        )
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page's script ended early: {done.stderr[-500:]}"
    return json.loads(html.unescape(found[1]))


def shades(page: str) -> list[list[Any]]:
    """Of each token as it was rendered: how strong its shade is, and whether it stands out."""
    spans = re.findall(r'<span class="(t [^"]*)"(?: style="--e:([\d.]+)")? tabindex', page)
    return [[float(strength or 0), "fork" in names.split()] for names, strength in spans]


def test_keys_go_through_a_response(make_trace: Any, decode: Any, tmp_path: Path) -> None:
    steps = """
      const path = ["ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home", "f", "f", "F", "l", "Escape"]
        .map((key) => [key, press(key), card().hidden]);
      press("f");
      return [path, tokens().map((token) => token.tabIndex), card().textContent, tokens()[1].ctrlKey];
    """
    path, tab_index, words, _ = played(render([make_trace()], decode), steps, tmp_path)
    # Tokens 2 and 4 stand out, and the LLM wrote the last one.
    expected = [1, 2, 1, 4, 4, 0, 2, 4, 2, 4, -1]
    assert [[key, at] for key, at, _ in path] == [
        [key, at] for (key, *_), at in zip(path, expected, strict=True)
    ]
    assert [hidden for *_, hidden in path] == [False] * 10 + [True]
    # One token of a response is in the tab order: the one last visited.
    assert sorted(tab_index) == [-1, -1, -1, -1, 0]
    assert "position3 of 5" in words and "Alternatives" in words


def test_choosing_a_column_shades_as_the_page_would_have_opened(
    make_trace: Any, decode: Any, tmp_path: Path
) -> None:
    traces = [make_trace(), make_trace(policy="slm", correct=False, problem_id="p2")]
    steps = """
      const look = () => [...document.querySelectorAll(".tokens > .t")]
        .map((token) => [Number(token.style.getPropertyValue("--e")), token.classList.contains("fork")]);
      return Object.fromEntries(
        [...document.querySelector("form").elements.shade.options].reverse().map(({ value }) => {
          choose("shade", value);
          return [value, [look(), document.querySelector(".legend .to").textContent]];
        }),
      );
    """
    found = played(render(traces, decode), steps, tmp_path)
    assert found.keys() == {"entropy", "entropy_slm", "entropy_llm"}
    for name, (look, words) in found.items():
        page = render(traces, decode, name)
        expected = shades(page)
        assert [fork for _, fork in look] == [fork for _, fork in expected]
        # Both round to two digits, halves not alike.
        assert [e for e, _ in look] == pytest.approx([e for e, _ in expected], abs=0.011)
        assert words in html.unescape(page)
    assert len({json.dumps(look) for look, _ in found.values()}) == 3


def test_choices_hide_responses_and_say_how_many_are_left(
    make_trace: Any, decode: Any, tmp_path: Path
) -> None:
    traces = [
        make_trace(),
        make_trace(policy="slm", correct=False),
        make_trace(policy="slm", problem_id="p2"),
    ]
    steps = """
      const shown = () => document.querySelector(".shown").textContent;
      const left = () => [shown(), document.querySelectorAll(".problem:not([hidden]) .response:not([hidden])").length];
      const states = [left()];
      choose("outcome", "wrong");
      states.push(left());
      choose("outcome", "split");
      states.push(left());
      choose("outcome", "");
      const box = document.querySelector("[name=policy][value=slm]");
      box.checked = false;
      box.dispatchEvent(new Event("change", { bubbles: true }));
      states.push(left());
      return states;
    """
    expected = [
        ["3 of 3 responses", 3],
        ["1 of 3 responses", 1],
        ["2 of 3 responses", 2],
        ["1 of 3 responses", 1],
    ]
    assert played(render(traces, decode), steps, tmp_path) == expected
