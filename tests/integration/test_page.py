"""The report's page in a browser: what it does, and what the texts on it cannot do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.reporting.build import build
from dpo_dist.tools.compare.runs import compare_runs
from dpo_dist.tools.compare.show import to_page
from tests.report_run import HOSTILE, run_at, write_run_directory

pytestmark = pytest.mark.slow

PROMPTS = 24
CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium; a machine without one has no page tests, but CI must have them."""
    if CHROMIUM is None:
        missing = "there is no chromium: apt-get install chromium"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    write_run_directory(root / "run", PROMPTS, long=1_000_000)
    build(run_at(root / "run"), root / "report")
    return root / "report" / "report.html"


class Watched:
    """A page with all that it asked for, said or tried to open."""

    def __init__(self, page: Any, report: Path) -> None:
        self.page, self.events = page, []
        page.on("console", lambda message: self.events.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.events.append(f"error: {error}"))
        page.on("dialog", self._dismiss)
        page.on("request", lambda request: self.events.append(request.url))
        page.goto(report.as_uri())
        assert self.events.pop(0) == report.as_uri()

    def _dismiss(self, dialog: Any) -> None:
        self.events.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def shown(self) -> list[str]:
        return self.page.locator(".sample:visible h3").all_text_contents()


@pytest.fixture
def watched(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """The page, which must have asked for nothing and said nothing by the end of the test.
    The fixture's parameters are the browser context's options."""
    context = browser.new_context(**getattr(request, "param", {}))
    page = Watched(context.new_page(), report)
    yield page
    context.close()
    assert page.events == []


def names(shown: list[str]) -> list[int]:
    return [int(text.split()[0].removeprefix("p")) for text in shown]


def test_hostile_texts_are_shown_and_do_nothing(watched: Watched) -> None:
    page = watched.page
    page.wait_for_timeout(200)
    for text in HOSTILE[:4]:
        assert page.get_by_text(text).count() > 0
    assert "␛[31m" in page.content() and "⟨U+202E⟩" in page.content()
    assert page.locator("img, iframe, textarea, object, main script").count() == 0
    assert page.locator("style").count() == 1 + page.locator("svg style").count()
    assert page.locator("script").count() == 1


def test_a_long_answer_is_bounded_and_says_so(watched: Watched, report: Path) -> None:
    assert report.stat().st_size < 1_000_000
    note = watched.page.locator("#sample-1 .note").filter(has_text="left out")
    assert (note.text_content() or "").startswith("996,0")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("all", lambda i: True),
        ("SFT+DPO lost", lambda i: i % 4 == 0),
        ("won", lambda i: i % 4 == 1),
        ("tie", lambda i: i % 4 == 2),
        ("no verdict", lambda i: i % 4 == 3),
        ("SFT+DPO cut off", lambda i: i % 5 == 0),
        ("a metric fell", lambda i: i % 3 == 0),
    ],
)
def test_a_filter_shows_what_it_names(watched: Watched, label: str, expected: Any) -> None:
    wanted = [i for i in range(PROMPTS) if expected(i)]
    watched.page.get_by_label(f"{label} {len(wanted)}", exact=True).check()
    assert names(watched.shown()) == wanted
    assert watched.page.locator("#shown").inner_text() == f"{len(wanted)} of {PROMPTS} shown"


def test_search_and_filter_go_together(watched: Watched) -> None:
    watched.page.get_by_label("Search in texts").fill("ANSWER 12 OF dpo")
    assert names(watched.shown()) == [12]
    watched.page.get_by_label("won 6", exact=True).check()
    assert watched.shown() == [] and "0 of 24" in watched.page.locator("#shown").inner_text()
    watched.page.get_by_label("Search in texts").fill("")
    assert len(watched.shown()) == 6


def test_the_worst_regressions_come_first_on_request(watched: Watched) -> None:
    worst = watched.page.get_by_label("worst regressions first")
    worst.check()
    order = names(watched.shown())
    assert order[:2] == [0, 12], "lost the verdict and the metric fell"
    assert sorted(order[2:12]) == sorted(i for i in range(PROMPTS) if (i % 4 == 0) != (i % 3 == 0))
    worst.uncheck()
    assert names(watched.shown()) == list(range(PROMPTS))


def test_everything_is_reached_by_keyboard(watched: Watched) -> None:
    page = watched.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = set()
    for _ in range(50):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.name || document.activeElement.id"))
        ring = "[document.activeElement, document.activeElement.closest('label')]"
        seen = page.evaluate(
            f"{ring}.some((e) => e && getComputedStyle(e).outlineStyle == 'solid')"
        )
        assert seen, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
    assert {"tag", "search", "worst", "sample-1", "sample-2"} <= reached


def test_j_and_k_and_arrows_go_from_sample_to_sample(watched: Watched) -> None:
    page = watched.page
    at = "document.activeElement.id"
    for key, place in (("j", 1), ("j", 2), ("ArrowRight", 3), ("k", 2), ("ArrowLeft", 1), ("k", 1)):
        page.keyboard.press(key)
        assert page.evaluate(at) == f"sample-{place}"
    page.get_by_label("won 6", exact=True).check()
    page.locator("#sample-2").focus()
    page.keyboard.press("j")
    assert page.evaluate(at) == "sample-6", "samples that are not shown are passed over"
    page.get_by_label("Search in texts").fill("")
    page.keyboard.type("jk")
    assert page.get_by_label("Search in texts").input_value() == "jk"


@pytest.mark.parametrize("watched", [{"color_scheme": "dark"}, {}], indirect=True)
def test_the_theme_follows_the_system_until_it_is_toggled(watched: Watched) -> None:
    page = watched.page
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(247, 248, 250)", "rgb(15, 20, 27)"
    first = page.evaluate(background)
    assert first in (light, dark)
    assert (first == dark) is page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    page.locator("#theme").click()
    assert page.evaluate(background) == ({light, dark} - {first}).pop()
    page.locator("#theme").click()
    assert page.evaluate(background) == first


@pytest.mark.parametrize(
    "watched",
    [
        {"viewport": {"width": 1200, "height": 900}},
        {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
        {"viewport": {"width": 320, "height": 700}},
    ],
    indirect=True,
)
def test_the_page_is_accessible_and_does_not_scroll_sideways(watched: Watched) -> None:
    from axe_playwright_python.sync_playwright import Axe

    wide = watched.page.evaluate("document.documentElement.scrollWidth")
    assert wide == watched.page.viewport_size["width"]
    # What is out of sight is not laid out, and would not be checked.
    watched.page.add_style_tag(content=".sample { content-visibility: visible }")
    found = Axe().run(watched.page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("width", [1200, 320])
def test_a_comparison_of_runs_is_accessible_too(
    browser: Any, report: Path, tmp_path: Path, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    write_run_directory(tmp_path / "b", PROMPTS)
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_content(to_page(compare_runs([report.parent.parent / "run", tmp_path / "b"])))
    assert page.locator("h2").count() >= 5
    assert page.evaluate("document.documentElement.scrollWidth") == width
    found = Axe().run(page)
    page.close()
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("watched", [{"java_script_enabled": False}], indirect=True)
def test_without_scripts_all_of_it_can_be_read(watched: Watched) -> None:
    page = watched.page
    assert page.locator(".sample:visible").count() == PROMPTS
    assert not page.locator("#filters").is_visible() and not page.locator("#theme").is_visible()
    assert page.locator(".outcome .word").inner_text() == "Regressed"
    assert page.locator("#reflection dt").count() >= 5
    assert page.locator("ins").count() > PROMPTS


def test_printed_it_has_no_controls(watched: Watched) -> None:
    watched.page.emulate_media(media="print", color_scheme="dark")
    assert not watched.page.locator("#filters").is_visible()
    background = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(255, 255, 255)"
