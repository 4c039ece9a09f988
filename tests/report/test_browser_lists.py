"""The index and a comparison in a real browser: search, sort, print, and who can use them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic_run import full_run, synthetic_findings, write_run
from test_browser import CHROMIUM, axe, browser, sync_api  # noqa: F401
from typer.testing import CliRunner

from mup_tune.cli import app

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}: apt install chromium")
HOSTILE = '"><img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs' reports and their comparison, with an index beside them."""
    root = tmp_path_factory.mktemp("lists")
    full_run(root / "one")
    write_run(root / "two", synthetic_findings((0, 1, 2), ()), {}, HOSTILE)
    for runs, name in ((("one",), "one"), (("two",), "two"), (("one", "two"), "both")):
        paths = [str(root / run) for run in runs]
        done = CliRunner().invoke(app, ["report", *paths, "--out", str(root / "reports" / name)])
        assert done.exit_code == 0, done.output
    return root / "reports"


@pytest.fixture
def opened(browser, reports: Path) -> Iterator:  # noqa: F811
    """Opens a page of the folder; at the end none has said an error or asked for a foreign address."""
    contexts, said = [], []

    def go(name: str, width: int = 1440, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
        page.goto((reports / name).as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert said == []


def shown(page) -> list[str]:
    return [text.strip() for text in page.locator("#reports tbody tr:visible th a").all_inner_texts()]


def test_the_index_is_searched_and_sorted(opened) -> None:
    page = opened("index.html")
    assert sorted(shown(page)) == ["both", "one", "two"]
    page.locator(".find").fill("QUICKSTART")
    assert "one" in shown(page)
    assert "two" not in shown(page)
    page.locator(".find").fill("")
    by_name = page.locator("#reports thead button").first
    by_name.click()
    once = shown(page)
    by_name.click()
    assert once == sorted(once, reverse=once[0] == "two")
    assert shown(page) == once[::-1]
    assert page.title() != "1"


def test_a_link_of_the_index_opens_the_report(opened) -> None:
    page = opened("index.html")
    page.get_by_role("link", name="one", exact=True).click()
    page.wait_for_load_state()
    assert page.locator("h1").inner_text().startswith("Confirmed: 45.2 mnat/token")


def test_a_comparison_sets_runs_side_by_side_and_prints(opened, tmp_path: Path) -> None:
    page = opened("both/index.html")
    assert page.locator("svg[role=img]").count() > 1
    assert page.locator("table").count() > 2
    page.pdf(path=str(tmp_path / "both.pdf"))
    assert (tmp_path / "both.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
@pytest.mark.parametrize("name", ["index.html", "both/index.html"])
def test_axe_finds_no_serious_fault(opened, name: str, width: int, scheme: str) -> None:
    page = opened(name, width, scheme)
    found = axe.Axe().run(page).response["violations"]
    assert [(each["id"], each["help"]) for each in found if each["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
