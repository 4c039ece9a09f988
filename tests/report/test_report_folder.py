"""A report's folder: what lies in it, that it is the same each time, and what it never overwrites."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import threading
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from synthetic_run import AXES, COMPARISONS, full_run, plan, synthetic_findings, token_gain, write_run
from test_report_page import Page

from mup_tune.errors import UserError
from mup_tune.report import folder as folders
from mup_tune.report.folder import files_of, write_folder, write_report
from mup_tune.report.standalone import figures
from mup_tune.report.summary import read_summary
from mup_tune.run.folder import RunFolder
from mup_tune.run.view import load_run
from mup_tune.settings import untuned

HOSTILE = '"><img src=x onerror=1> [a](javascript:b) | `c` ../../$5 <b>'


def rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="module")
def files(run: Path) -> dict[str, bytes]:
    return files_of(load_run(run))


def test_the_same_run_gives_the_same_bytes(run: Path, files: dict[str, bytes], tmp_path: Path) -> None:
    assert files_of(load_run(run)) == files
    page = write_report(load_run(run), tmp_path / "out")
    written = {str(path.relative_to(page.parent)): path.read_bytes() for path in page.parent.rglob("*.*")}
    assert written == files
    assert {path.name for path in page.parent.iterdir()} == {
        "index.html",
        "report.md",
        "summary.json",
        "tables",
        "figures",
    }


def test_every_number_of_a_claim_and_an_axis_is_in_a_row(files: dict[str, bytes]) -> None:
    (claim,) = [row for row in rows(files["tables/claims.csv"]) if row["reference"] == "elr-tuned"]
    assert [float(claim[name]) for name in ("gain", "gain_low", "gain_high")] == [0.0452, 0.0381, 0.0523]
    assert claim["seeds"] == "3"
    (axis,) = [row for row in rows(files["tables/axes.csv"]) if row["axis"] == "embedding"]
    assert (float(axis["before"]), float(axis["optimum_log2"]), axis["decision"]) == (1.0, 1.1, "moved")
    settings = {row["setting"]: row for row in rows(files["tables/settings.csv"])}
    assert len(settings) == 38
    assert float(settings["embedding"]["log2_change"]) == pytest.approx(1.1)
    (curvature,) = [row for row in rows(files["tables/sensitivities.csv"]) if row["axis"] == "lm_head"]
    assert float(curvature["curvature"]) == 0.02
    points = [row for row in rows(files["tables/points.csv"]) if row["axis"] == "lm_head"]
    assert len(points) == 27
    assert [(row["offset_log2"], row["seed"]) for row in points if row["loss"] == ""] == [("2.0", "0")]  # its cliff
    assert len(rows(files["tables/trials.csv"])) == 9


def test_what_the_page_says_was_run_is_a_table(files: dict[str, bytes]) -> None:
    parsed = Page(files["index.html"].decode())
    shown = dict(zip(parsed.text("dt"), parsed.text("dd"), strict=True))
    told = {row["term"]: row["value"] for row in rows(files["tables/facts.csv"])}
    assert len(told) > 20
    assert {term: shown[term] for term in told if term not in ("name", "tokens")} == {
        term: value for term, value in told.items() if term not in ("name", "tokens")
    }


def test_the_findings_table_holds_every_value_of_a_stage(files: dict[str, bytes]) -> None:
    found = {(row["stage"], row["field"]): row["value"] for row in rows(files["tables/findings.csv"])}
    assert found["03-confirm", "result.comparisons[0].gain.low"] == "0.0381"
    assert found["02-multipliers", "result.passes[0].axes[0].axis"] == "embedding"
    assert ("01-elr", "before.multipliers['qkv.elr']") in found


def test_every_figure_of_the_page_is_a_file_that_any_program_reads(files: dict[str, bytes]) -> None:
    page = files["index.html"].decode()
    named = [name for name in files if name.startswith("figures/")]
    assert len(named) == page.count('role="img"') == len(set(named)) > 8
    for name in named:
        root = ET.fromstring(files[name])
        assert float(root.attrib["width"].removesuffix("pt")) > 100
        assert not {"var(", "currentColor"} & {
            word for word in ("var(", "currentColor") if word.encode() in files[name]
        }
        links = [value for each in root.iter() for key, value in each.attrib.items() if key.endswith("href")]
        ids = {each.attrib.get("id") for each in root.iter()}
        assert {link.removeprefix("#") for link in links} <= ids
    assert f"figures/{figures(page)[0].name}.svg" in files["report.md"].decode()


def test_the_markdown_has_the_answer_and_links_to_what_is_there(files: dict[str, bytes]) -> None:
    text = files["report.md"].decode()
    assert text.startswith("# Confirmed: 45.2 mnat/token lower loss than the best that learning rate alone can do\n")
    assert "| the best that learning rate alone can do (elr-tuned) | +45.2 | +38.1 to +52.3 |" in text
    linked = [part.split(")", 1)[0] for part in text.split("](")[1:]]
    assert set(linked) == set(files) - {"report.md", "summary.json"}
    yaml = text.split("```yaml\n", 1)[1].split("\n```", 1)[0]
    assert "embedding: 2.14" in yaml


def test_the_summary_is_what_an_index_needs(tmp_path: Path) -> None:
    findings = synthetic_findings((0, 1, 2), COMPARISONS)
    last = findings[-1].model_copy(
        update={"result": findings[-1].result.model_copy(update={"tokens": token_gain("elr-tuned")})}
    )
    path = write_run(tmp_path / "run", (*findings[:2], last), {"elr-tuned": findings[0].after})
    write_report(load_run(path), path / "report")
    found = read_summary(path / "report")
    assert found is not None
    assert (found.plan, found.proxy, found.corpus, found.state) == ("quickstart", "cpu-64", "python-stdlib", "complete")
    assert found.date == load_run(path).record.created
    assert found.gain is not None
    assert found.tokens is not None
    assert (found.reference, found.gain.value) == ("elr-tuned", 0.0452)
    assert found.tokens.low > 1
    assert (found.trials, found.diverged, found.seconds) == (6, 1, 162.0)


def test_names_that_are_markup_stay_text_in_every_file(tmp_path: Path) -> None:
    run = load_run(full_run(tmp_path / "run", HOSTILE, AXES[:2]))
    made = files_of(run)
    assert all(".." not in name for name in made)
    assert "<img" not in made["index.html"].decode()
    text = made["report.md"].decode()
    assert HOSTILE not in text
    assert "<img" not in text.replace("\\<img", "")
    links = re.findall(r"(?<!\\)\]\(([^)]*)\)", text)
    assert set(links) <= set(made)
    assert json.loads(made["summary.json"])["plan"] == HOSTILE
    assert {row["value"] for row in rows(made["tables/facts.csv"]) if row["term"] == "plan"} == {HOSTILE}


def test_a_run_in_progress_gives_what_there_is(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", (), {}, trained=False)
    corpus = {"name": "python-stdlib", "hash": "fedcba9876543210"}
    with RunFolder.create_or_resume(path, plan("quickstart"), "0123456789abcdef", corpus):
        page = write_report(load_run(path), path / "report")
    found = read_summary(page.parent)
    assert found is not None
    assert (found.state, found.gain, found.trials) == ("live", None, 0)
    assert "This run is in progress" in (page.parent / "report.md").read_text()
    assert rows((page.parent / "tables" / "settings.csv").read_bytes()) == []


def test_an_old_report_gives_way_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder({"index.html": b"1", "summary.json": b"{}", "figures/old.svg": b"1"}, out)
    write_folder({"index.html": b"2", "summary.json": b"{}", "tables/new.csv": b"2"}, out)
    assert {str(path.relative_to(out)) for path in out.rglob("*.*")} == {"index.html", "summary.json", "tables/new.csv"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_whoever_reads_meets_one_report_or_the_other(tmp_path: Path) -> None:
    """Both files of a folder that was opened are of one writing."""
    out, stop, seen = tmp_path / "out", threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            try:
                pair = []
                for name in ("index.html", "summary.json"):
                    file = os.open(name, os.O_RDONLY, dir_fd=descriptor)
                    pair.append(os.read(file, 100))
                    os.close(file)
                seen.append(tuple(pair))
            except FileNotFoundError:
                pass  # the old folder is being deleted
            finally:
                os.close(descriptor)

    write_folder({"index.html": b"0", "summary.json": b"0"}, out)
    reader = threading.Thread(target=read)
    reader.start()
    for index in range(60):
        write_folder({"index.html": str(index).encode(), "summary.json": str(index).encode()}, out)
    stop.set()
    reader.join()
    assert all(one == other for one, other in seen)
    assert len({one for one, _ in seen}) > 1


def test_what_fails_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write_folder({"index.html": b"1", "summary.json": b"{}"}, out)
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if target == out.resolve() and ".old" not in str(source):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(folders.os, "replace", failing)
    with pytest.raises(UserError, match="No space left"):
        write_folder({"index.html": b"2", "summary.json": b"{}"}, out)
    assert (out / "index.html").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("foreign", ["letter.txt", "tables/notes.txt", ".git/config", "figures/.svg/x.svg"])
def test_a_folder_that_is_not_ours_is_refused(run: Path, tmp_path: Path, foreign: str) -> None:
    out = tmp_path / "out"
    write_folder({"index.html": b"1", "summary.json": b"{}"}, out)
    (out / foreign).parent.mkdir(parents=True, exist_ok=True)
    (out / foreign).write_text("dear")
    with pytest.raises(UserError, match="which is not part of a report"):
        write_report(load_run(run), out)
    assert (out / foreign).read_text() == "dear"


def test_a_page_of_somebody_else_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("my home page")
    with pytest.raises(UserError, match=r"'index.html', which is not part of a report"):
        write_report(load_run(run), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_link_to_a_report_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "place")
    write_folder({"index.html": b"1", "summary.json": b"{}"}, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "place" / "index.html").read_bytes() == b"1"


def test_settings_before_the_first_conclusion_are_none(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", (), {"untuned": untuned(load_run(full_run(tmp_path / "x")).plan.proxy)})
    made = files_of(load_run(path))
    assert "## Settings" not in made["report.md"].decode()
