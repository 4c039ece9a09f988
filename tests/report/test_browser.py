"""The page in a real browser: what its scripts do, what they leave alone, and who can use it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from searched_run import SPREAD, searched_run
from synthetic_run import SHAPE, confirmation, write_run

from mup_tune.report.page import write
from mup_tune.run.view import load_run
from mup_tune.settings import untuned

CHROMIUM = Path("/usr/bin/chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}: apt install chromium")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><b>\"'`${7*6}"
READY = '[data-part="parallel"][aria-busy="false"]'


@dataclass
class Seen:
    """A page that is open, and all that it said or asked for."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def part(self, name: str) -> Locator:
        return self.page.locator(f'[data-part="{name}"]')

    def count(self, expected: str) -> None:
        sync_api.expect(self.part("count")).to_have_text(expected)

    def column(self, name: str) -> list[str]:
        """The cells of a column of the table's page that is shown."""
        heads = self.part("head").locator("th").all_inner_texts()
        index = next(at for at, text in enumerate(heads) if text.split()[0] == name)
        rows = self.part("body").locator("tr")
        return rows.evaluate_all("(rows, at) => rows.map((row) => row.cells[at].textContent)", index)

    def saved(self, button: str) -> list[dict[str, str]]:
        with self.page.expect_download() as download:
            self.part(button).click()
        assert download.value.suggested_filename.endswith(".csv")
        return list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))))

    def drag(self, axis: str, low: float, high: float) -> None:
        """Brushes an axis between two shares of its height."""
        zone = self.page.locator(f'.upright[data-axis="{axis}"] .zone')
        zone.scroll_into_view_if_needed()
        plot = self.page.locator(f'.upright[data-axis="{axis}"] .rule').bounding_box()
        assert plot is not None
        places = [plot["y"] + plot["height"] * (1 - share) for share in (low, (low + high) / 2, high)]
        self.page.mouse.move(plot["x"], places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(plot["x"], place)
        self.page.mouse.up()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs and their pages."""
    root = tmp_path_factory.mktemp("runs")
    found = {"plain": searched_run(root / "plain"), "hostile": searched_run(root / "hostile", HOSTILE, 14, HOSTILE)}
    for path in found.values():
        write(load_run(path), path / "report.html")
    return found


def opened(browser: Browser, run: Path, width: int = 1440, scheme: str = "light", scripts: bool = True) -> Seen:
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,  # type: ignore[arg-type]
        java_script_enabled=scripts,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.set_default_timeout(10_000)
    seen = Seen(page)
    page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto((run / "report.html").as_uri())
    if scripts:
        page.wait_for_selector(READY, state="attached")
    return seen


@pytest.fixture
def plain(browser: Browser, runs: dict[str, Path]) -> Iterator[Seen]:
    seen = opened(browser, runs["plain"])
    yield seen
    seen.page.context.close()
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith(("file:", "blob:", "data:"))] == []


def test_the_best_share_keeps_the_lowest_losses(plain: Seen, runs: dict[str, Path]) -> None:
    plain.count("60 of 60 trials selected")
    plain.part("best").fill("10")
    plain.count("6 of 60 trials selected, the best 10 % by loss")  # of 52 that ended
    trials = load_run(runs["plain"]).trials
    lowest = trials[trials["stage"] == "01-elr"].sort_values("loss").head(6)
    assert plain.column("hash") == lowest["hash"].tolist()
    plain.part("best").press("ArrowRight")
    plain.count("6 of 60 trials selected, the best 11 % by loss")


def test_brushes_combine_and_clear(plain: Seen, runs: dict[str, Path]) -> None:
    trials = load_run(runs["plain"]).trials
    trials = trials[trials["stage"] == "01-elr"]

    def upper(axis: str) -> set[str]:
        """Hashes in the upper half of an axis, on its log2 scale."""
        middle = (trials[axis].min() * trials[axis].max()) ** 0.5
        return set(trials[trials[axis] > middle]["hash"])

    plain.drag("elr", 0.5, 1.02)
    plain.count(f"{len(upper('elr'))} of 60 trials selected")
    plain.drag("embedding", 1.02, 0.5)
    both = upper("elr") & upper("embedding")
    plain.count(f"{len(both)} of 60 trials selected")
    assert set(plain.column("hash")) == both
    plain.part("brushes").get_by_role("button", name="Remove the brush on elr").click()
    plain.count(f"{len(upper('embedding'))} of 60 trials selected")
    plain.part("clear").click()
    plain.count("60 of 60 trials selected")
    assert plain.part("brushes").locator("button").count() == 0


def test_a_brush_moves_and_a_click_clears_it(plain: Seen) -> None:
    plain.drag("elr", 0.0, 0.3)
    plain.drag("elr", 0.15, 0.8)  # inside the brush: its middle goes to 0.8
    chip = plain.part("brushes").locator("button")
    sync_api.expect(chip).to_have_count(1)
    moved = chip.inner_text()
    low, high = (float(each) for each in moved.split()[1:4:2])
    elr = plain.page.evaluate(
        "[...document.querySelectorAll('.upright[data-axis=elr] .tick')].map((t) => t.textContent)"
    )
    assert min(float(each) for each in elr if each != "◆") < low < high
    plain.drag("elr", 0.05, 0.05)
    sync_api.expect(chip).to_have_count(0)


def test_the_loss_axis_selects_what_diverged(plain: Seen, runs: dict[str, Path]) -> None:
    plain.drag("loss", 0.999, 1.09)
    status = load_run(runs["plain"]).trials.query("stage == '01-elr'")["status"]
    lost = int((status == "diverged").sum())
    sync_api.expect(plain.part("brushes")).to_contain_text("and diverged")
    assert plain.column("status").count("diverged") == lost == 8


def test_a_brush_by_number_holds_what_reads_the_same(plain: Seen) -> None:
    plain.page.locator(".upright[data-axis=embedding] .name").press("Enter")
    assert plain.part("axis").input_value() == "embedding"
    value = sorted(map(float, plain.column("embedding")))[3]
    plain.part("from").fill(str(value))
    plain.part("to").fill(str(value))
    plain.part("to").press("Enter")
    sync_api.expect(plain.part("count")).to_have_text("1 of 60 trials selected")
    plain.part("from").fill("-1")
    plain.part("from").press("Enter")
    sync_api.expect(plain.part("refused")).to_have_text("-1 is no value of embedding")


def test_the_table_sorts_by_a_column_and_back(plain: Seen, runs: dict[str, Path]) -> None:
    trials = load_run(runs["plain"]).trials.query("stage == '01-elr'").sort_values("embedding")
    button = plain.part("head").get_by_role("button", name="embedding")
    button.press("Enter")
    assert plain.part("head").locator("[aria-sort=ascending]").inner_text().startswith("embedding")
    assert plain.column("hash") == trials["hash"].tolist()[:20]
    button.press("Enter")
    assert plain.column("hash") == trials["hash"].tolist()[::-1][:20]
    plain.part("next").click()
    assert plain.column("hash") == trials["hash"].tolist()[::-1][20:40]
    plain.part("head").get_by_role("button", name="loss", exact=True).click()
    plain.part("page").fill("3")
    plain.part("page").press("Enter")
    assert plain.column("loss")[-8:] == ["–"] * 8  # what diverged comes last


def test_search_reads_hashes_and_reasons(plain: Seen) -> None:
    plain.part("search").fill("NOT finite seed-is-no-word")
    plain.count("0 of 60 trials selected")
    assert plain.part("body").inner_text() == "No trial is selected."
    plain.part("search").fill("NOT finite")
    plain.count("8 of 60 trials selected")
    assert set(plain.column("reason")) == {"loss is not finite at step 7"}


def test_stages_and_lengths_are_not_mixed_silently(plain: Seen) -> None:
    assert plain.part("mixed").is_hidden()
    plain.part("stage").select_option("")
    plain.count("60 of 60 trials selected")  # of the commonest length alone
    plain.part("alike").select_option("")
    plain.count("66 of 66 trials selected")
    assert plain.part("mixed").is_visible()
    assert plain.page.locator(".upright[data-axis=total_tokens]").count() == 1
    plain.part("stage").select_option("02-multipliers")
    plain.count("6 of 6 trials selected")
    assert plain.part("mixed").is_hidden()


def test_losses_above_the_median_of_their_seed(plain: Seen, runs: dict[str, Path]) -> None:
    plain.part("measure").select_option("relative")
    sync_api.expect(plain.page.locator(".upright[data-axis=loss] small")).to_have_text("mnat/token")
    trials = load_run(runs["plain"]).trials.query("stage == '01-elr' and status == 'ok'")
    above = 1e3 * (trials["loss"] - trials.groupby("seed")["loss"].transform("median"))
    order = above.sort_values()
    assert plain.column("hash") == trials.loc[order.index, "hash"].tolist()[:20]
    assert plain.column("above")[0] == f"{order.iloc[0]:.1f}".replace("-", "−")


def test_axes_can_be_chosen(plain: Seen) -> None:
    plain.part("chosen").click()
    plain.part("boxes").get_by_label("qkv.elr").uncheck()
    sync_api.expect(plain.part("chosen")).to_have_text("Axes: 2 of 3 that vary")
    assert plain.page.locator(".upright").count() == 3
    assert plain.part("slices").locator("canvas").count() == 2
    plain.part("all").click()
    sync_api.expect(plain.page.locator(".upright")).to_have_count(4)


def test_a_point_of_a_slice_leads_to_its_row(plain: Seen) -> None:
    canvas = plain.part("slices").locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    tip = plain.page.locator(".tip")
    hovered = (
        (box["x"] + x, box["y"] + y)
        for y in range(int(box["height"]) - 30, 40, -9)
        for x in range(60, int(box["width"]), 9)
    )
    for at in hovered:
        plain.page.mouse.move(*at)
        if tip.is_visible():
            break
    hash_ = tip.inner_text().split()[0]
    plain.page.mouse.click(*at)
    assert plain.part("body").locator(f'tr.moved[data-hash="{hash_}"]').count() == 1
    assert plain.part("body").locator("[aria-pressed=true]").inner_text() == hash_


def test_files_hold_the_runs_numbers(plain: Seen, runs: dict[str, Path]) -> None:
    trials = load_run(runs["plain"]).trials
    rows = plain.saved("save-all")
    assert [row["hash"] for row in rows] == trials["hash"].tolist()
    assert list(rows[0]) == list(trials)
    for name in ("loss", "elr", *SPREAD):
        found = [float(row[name] or "nan") for row in rows]
        assert found == pytest.approx([float(f"{each:.6g}") for each in trials[name]], nan_ok=True, rel=1e-12)
    assert [int(row["total_tokens"]) for row in rows] == trials["total_tokens"].tolist()
    plain.part("best").fill("10")
    plain.count("6 of 60 trials selected, the best 10 % by loss")
    assert [row["hash"] for row in plain.saved("save-selected")] == plain.column("hash")


def test_any_element_can_be_saved_and_copied(plain: Seen) -> None:
    plain.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    plain.page.evaluate(
        """() => {
          const said = "elr: 0.1  # <b>µ</b>\\n";
          const text = Object.assign(document.createElement("pre"), { id: "said", textContent: said });
          const save = Object.assign(document.createElement("button"), { id: "save", textContent: "Save" });
          const copy = Object.assign(document.createElement("button"), { id: "copy", textContent: "Copy" });
          Object.assign(save.dataset, { download: "settings.yaml", of: "said" });
          Object.assign(copy.dataset, { copy: "", of: "said" });
          document.querySelector("main").prepend(text, save, copy);
        }"""
    )
    with plain.page.expect_download() as download:
        plain.page.locator("#save").click()
    assert download.value.suggested_filename == "settings.yaml"
    assert Path(download.value.path()).read_text(encoding="utf-8") == "elr: 0.1  # <b>µ</b>\n"
    plain.page.locator("#copy").click()
    sync_api.expect(plain.page.locator("#copy")).to_have_text("Copied")
    assert plain.page.evaluate("navigator.clipboard.readText()") == "elr: 0.1  # <b>µ</b>\n"


def test_the_theme_goes_round_and_figures_follow(plain: Seen) -> None:
    page, button = plain.page, plain.page.get_by_role("button", name="Theme")
    paper = "getComputedStyle(document.body).backgroundColor"
    drawn = "[...document.querySelectorAll('.parallel canvas')][1].toDataURL()"
    light, first = page.evaluate(paper), page.evaluate(drawn)
    button.click()
    assert (button.inner_text(), page.evaluate(paper)) == ("Theme: light", light)
    button.click()
    assert button.inner_text() == "Theme: dark"
    assert page.evaluate(paper) != light
    page.wait_for_selector(READY)
    assert page.evaluate(drawn) != first
    page.reload()
    page.wait_for_selector(READY)
    assert page.get_by_role("button", name="Theme").inner_text() == "Theme: dark"  # remembered
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(paper)
    page.get_by_role("button", name="Theme").click()
    assert page.evaluate(paper) == dark
    page.emulate_media(color_scheme="light")
    assert page.evaluate(paper) == light


def test_it_prints(plain: Seen) -> None:
    assert plain.page.pdf()[:5] == b"%PDF-"


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_axe_finds_no_serious_fault(browser: Browser, runs: dict[str, Path], width: int, scheme: str) -> None:
    seen = opened(browser, runs["plain"], width, scheme)
    seen.drag("elr", 0.2, 0.9)
    seen.part("chosen").click()
    found = axe.Axe().run(seen.page).response["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    seen.page.context.close()


def test_a_brush_works_on_a_narrow_screen(browser: Browser, runs: dict[str, Path]) -> None:
    seen = opened(browser, runs["plain"], 390)
    seen.drag("elr", 0.5, 1.02)
    sync_api.expect(seen.part("brushes")).to_contain_text("elr from")
    seen.page.context.close()
    assert seen.errors == []


def test_hostile_names_stay_text(browser: Browser, runs: dict[str, Path]) -> None:
    seen = opened(browser, runs["hostile"])
    seen.part("search").fill("onerror")
    seen.count("14 of 14 trials selected")
    assert set(seen.column("settings")) == {HOSTILE}
    assert {row["settings"] for row in seen.saved("save-selected")} == {HOSTILE}
    assert seen.page.locator("img").count() == 0
    assert seen.page.title() != "taken"
    seen.page.context.close()
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith(("file:", "blob:"))] == []


def test_one_trial_and_none_that_ended(browser: Browser, tmp_path: Path) -> None:
    odd = {
        "one trial": write_run(tmp_path / "one", (), {}, seeds=(3,)),
        "none ended": write_run(tmp_path / "none", (), {}, seeds=(3, 4), diverged=True),
    }
    for name, path in odd.items():
        write(load_run(path), path / "report.html")
        seen = opened(browser, path)
        seen.part("best").fill("50")
        trials = {"one trial": 1, "none ended": 0}[name]
        total = len(load_run(path).trials)
        seen.count(f"{trials} of {total} trial{'s' * (total > 1)} selected, the best 50 % by loss")
        assert seen.part("nothing").is_visible()
        assert seen.part("figures").is_hidden()
        seen.page.context.close()
        assert seen.errors == []


def test_trials_that_all_diverged_have_a_strip_and_no_scale(browser: Browser, tmp_path: Path) -> None:
    start, references = untuned(SHAPE), {"faster": untuned(SHAPE).scaled({"elr": 2.0})}
    found = confirmation((), start, "01-confirm")
    path = write_run(tmp_path / "lost", (found,), references, diverged=True)
    write(load_run(path), path / "report.html")
    seen = opened(browser, path)
    seen.count("6 of 6 trials selected")
    assert seen.page.locator(".upright[data-axis=loss] .tick").all_inner_texts() == ["diverged"]
    assert seen.part("low").inner_text() == "none ended"
    assert set(seen.column("loss")) == {"–"}
    seen.page.context.close()
    assert seen.errors == []


def test_the_network_is_closed(browser: Browser, runs: dict[str, Path]) -> None:
    seen = opened(browser, runs["plain"])
    said = seen.page.evaluate("fetch('https://example.org').then(() => 'reached', (error) => error.name)")
    assert said == "TypeError"
    assert any("Content Security Policy" in each for each in seen.errors)
    seen.page.context.close()


def test_without_scripts_figures_and_the_best_trials_remain(browser: Browser, runs: dict[str, Path]) -> None:
    seen = opened(browser, runs["plain"], scripts=False)
    assert seen.page.locator("svg").first.is_visible()
    assert seen.page.locator("#trials noscript tbody tr, #trials table.trials tbody tr").count() == 20
    assert seen.page.get_by_role("table").get_by_text("embedding").first.is_visible()
    assert seen.page.locator("#explorer").is_hidden()
    seen.page.context.close()
