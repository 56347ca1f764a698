"""The site builds without a warning, shows what the repository has, and fetches nothing from elsewhere."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from playwright.sync_api import expect, sync_playwright

from navtoken.cli import COMMANDS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from site_pages import on_page_markdown

CHROMIUM = Path("/usr/bin/chromium")


def build(folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    """As `make docs` builds it. Never with `--quiet`: MkDocs drops warnings before strict mode counts them."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder), *more]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(folder)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_dead_link_fails_the_build(tmp_path: Path) -> None:
    hook = tmp_path / "dead.py"
    hook.write_text(
        "def on_page_markdown(markdown, page, **_):\n"
        "    return markdown + ('\\n[x](gone.md)\\n' if page.file.src_uri == 'README.md' else '')\n"
    )
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\n"
        f"docs_dir: {ROOT / 'docs' / 'site'}\n"
        f"hooks: [{ROOT / 'docs' / 'site_pages.py'}, {hook}]\n"
        "watch: []\n"
    )
    built = build(tmp_path / "site", "--config-file", str(config))
    assert built.returncode != 0 and "'README.md' contains a link 'gone.md'" in built.stderr


def test_the_readme_is_the_front_page_with_its_pictures(site: Path) -> None:
    front = (site / "index.html").read_text()
    assert "Limits, said plainly" in front
    pictures = re.findall(r'<img[^>]* src="([^"]+)"', front)
    assert len(pictures) == len(re.findall(r"!\[", (ROOT / "README.md").read_text()))
    assert all((site / picture).is_file() for picture in pictures)


def test_every_command_and_every_experiment_has_its_page_in_the_navigation(site: Path) -> None:
    front = (site / "index.html").read_text()
    for command in COMMANDS:
        assert f'href="docs/commands/{command}/"' in front
    for script in ("definitions", "embedded_pair", "entropy_pattern", "perturbation", "rlvr", "routing"):
        assert f'href="experiments/{script}/' in front


def test_an_experiment_shows_what_it_asks_its_pictures_and_its_table(site: Path) -> None:
    page = (site / "experiments" / "routing" / "table" / "index.html").read_text()
    assert "every rule on all three families" in page
    assert page.count('.svg"') == 3
    assert "<code>router,share=0.18</code>" in page
    assert 'href="../table.json"' in page
    assert json.loads((site / "experiments" / "routing" / "table.json").read_text())


def test_bars_in_the_code_of_tables_carry_no_backslash(site: Path) -> None:
    assert "<code>&lt;|end|&gt;</code>" in (site / "docs" / "claims" / "index.html").read_text()


def test_bars_in_a_fence_are_shown_as_they_stand() -> None:
    table = r"| `a\|b` |"
    for fence, end in (("```text", "```"), ("~~~~", "~~~~"), ("````", "````")):
        block = f"{fence}\n{table}\n```x\n{table}\n{end}"
        assert on_page_markdown(f"{table}\n{block}\n{table}") == f"| `a|b` |\n{block}\n| `a|b` |"


def test_a_search_for_a_flag_finds_the_option_and_nothing_comes_from_elsewhere(address: str) -> None:
    if not CHROMIUM.exists() and "CI" not in os.environ:
        pytest.skip("needs Debian's chromium at /usr/bin/chromium")
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("request", lambda sent: asked.append(sent.url))
        page.goto(address)
        field = page.locator(".md-search__input")
        field.click()
        page.keyboard.type("tokens -chat")
        expect(field).to_have_value("tokens -chat")
        page.keyboard.press("Home")
        page.keyboard.type("--open x")
        expect(field).to_have_value("open xtokens -chat")
        page.keyboard.press("Control+A")
        page.keyboard.type("--fork-threshold")
        expect(field).to_have_value("fork-threshold")
        first = page.locator(".md-search-result__item").first
        expect(first).to_contain_text("--fork-threshold", timeout=30_000)
        first.locator('a[href*="#--fork-threshold"]').click()
        expect(page.locator("tr:has(h4:target)")).to_contain_text("Entropy in nats")
        browser.close()
    assert asked and all(url.startswith(address) for url in asked), asked
