"""What the page says, read back from its HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_run import (
    AXES,
    COMPARISONS,
    SHAPE,
    axis_finding,
    comparison,
    confirmation,
    finding,
    full_run,
    passes,
    plan,
    synthetic_findings,
    write_run,
)
from typer import Typer
from typer.testing import CliRunner

from mup_tune.cli.report import register
from mup_tune.errors import UserError
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.report.page import render, write
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.run.view import load_run
from mup_tune.settings import Settings, untuned
from mup_tune.stats import Interval

LOST = "no gain shown: the incumbent diverged on 0, falcon-h1-published on 2 of 3 seeds"
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Text by tag, tables as rows of cells, every start tag with its attributes, and the balance of tags."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag in VOID:
            return
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def text(self, tag: str) -> list[str]:
        return [" ".join(each.split()) for each in self.texts.get(tag, [])]

    def row(self, first: str) -> list[list[str]]:
        """Every table row whose first cell is ``first``."""
        rows = [[" ".join(cell.split()) for cell in row] for table in self.tables for row in table]
        return [row for row in rows if row and row[0] == first]


def page(path: Path) -> Page:
    return Page(render(load_run(path)))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = full_run(tmp_path_factory.mktemp("runs") / "full")
    return path, render(load_run(path))


def test_headline_is_the_gain_over_the_hardest_reference(full: tuple[Path, str]) -> None:
    parsed = Page(full[1])
    assert parsed.text("h1") == ["Confirmed: 45.2 mnat/token lower loss than the best that learning rate alone can do"]
    assert "Gain +45.2, 95 % CI +38.1 to +52.3 mnat/token, over 3 seeds." in " ".join(parsed.text("p"))
    assert (
        "Confirmed by more over all multipliers at 1 and nothing tuned. Not measured against falcon-h1-published."
        in (" ".join(parsed.text("p")))
    )


def test_comparison_rows_hold_losses_gain_and_verdict(full: tuple[Path, str]) -> None:
    parsed = Page(full[1])
    rows = {row[1]: row for row in parsed.row("incumbent")}
    assert rows["untuned"][2:7] == ["+112.3", "+101.2 to +123.4", "1.8427", "1.9550", "3"]
    # Only one seed of the published Settings ended: its losses stand there, a gain does not.
    assert rows["falcon-h1-published"][2:] == ["–", "–", "1.8417", "1.8417", "1", LOST]


def test_axis_rows_hold_optimum_gain_and_decision(full: tuple[Path, str]) -> None:
    parsed = Page(full[1])
    found = {name: parsed.row(name)[-1] for name in ("embedding", "ssm_dt", "attention_out", "mlp_down")}
    assert found["embedding"][1:] == [
        "▲ moved",
        "1",
        "2.144",
        "+1.10 +0.98 to +1.22",
        "+18.2 +16.8 to +19.6",
        "< 0.001",
        "",
    ]
    said = " ".join(full[1].split())  # the row's reason stands once, among the stage's sentences
    assert "best point gain 0.0182 nats/token (95 % CI 0.0168 … 0.0196), p = 0.0004 after Holm" in said
    assert "shrunken optimum +1.10 log2" in said
    assert found["ssm_dt"][1] == "? not identifiable"
    assert found["ssm_dt"][4:7] == ["–", "–", "–"]
    assert "never leaves its init" in found["ssm_dt"][7]
    assert found["attention_out"][1] == "⇥ edge"
    assert found["mlp_down"][1:7] == [
        "✕ dropped",
        "1",
        "1",
        "+0.90 +0.87 to +0.93",
        "+243.0 +241.6 to +244.4",
        "0.210",
    ]


def test_all_35_multipliers_and_the_global_axes_before_and_after(full: tuple[Path, str]) -> None:
    parsed = Page(full[1])
    last = {name: parsed.row(name)[0] for name in (*MULTIPLIER_NAMES, "elr", "ewd", "rope_base")}
    assert len(last) == 38
    assert last["embedding"] == ["embedding", "forward", "1", "2.144", "+1.100", "▲ moved"]
    assert last["elr"] == ["elr", "global", "0.01131", "0.01838", "+0.700", "▲ moved"]
    assert last["ssm_z"] == ["ssm_z", "forward", "1", "1", "0", "not swept"]
    assert last["D.lr"][1:] == ["LR", "1", "1", "0", "≈ flat"]
    assert sum(row[1] == "forward" for row in last.values()) == 12
    assert sum(row[1] == "WD" for row in last.values()) == 7
    assert "3 of the 38 settings moved" in " ".join(parsed.text("p"))


def test_what_was_run(full: tuple[Path, str]) -> None:
    parsed = Page(full[1])
    facts = dict(zip(parsed.text("dt"), parsed.text("dd"), strict=True))
    assert facts["parameters"] == f"{SHAPE.parameters():,}"
    assert (facts["tokens"], facts["steps"], facts["batch"]) == ("409,600", "200", "2,048 tokens = 16 × 128")
    assert (facts["ok"], facts["diverged"], facts["packs"]) == ("7", "2", "3")
    assert facts["backend"] == "torch-chunked"
    assert facts["η·λ·T"].startswith("0.0256 in the median trial: below 1")
    assert {"CPUs", "Python", "mup-tune", "created", "git commit", "corpus hash"} <= set(facts)
    assert facts["stages concluded"] == "3 of 3"


def test_page_fetches_nothing_and_ids_are_unique(full: tuple[Path, str]) -> None:
    text = full[1]
    parsed = Page(text)
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in parsed.tags:
        assert tag not in ("link", "img", "iframe", "object")
        assert not {"src", "srcset", "data", "poster"} & set(attrs)
        for key in ("href", "xlink:href"):
            target = attrs.get(key, "#")
            if tag == "a" and target[0] != "#":  # a source, or a file that the page holds
                assert target.startswith("https://arxiv.org/abs/") or (
                    "download" in attrs and target.startswith("data:")
                )
            else:
                assert target[1:] in {"", *ids}
    assert all(target in ids for target in re.findall(r"url\(#([^)\"]+)\)", text))
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {
        f"https://arxiv.org/abs/{paper}" for paper in ("2507.22448", "2601.04890", "2203.03466", "2405.21060")
    }


def test_every_swept_axis_has_a_panel_that_says_what_it_shows(full: tuple[Path, str]) -> None:
    labels = [attrs["aria-label"] for tag, attrs in Page(full[1]).tags if tag == "svg" and "aria-label" in attrs]
    for land in AXES:
        assert any(label.startswith(f"{land.axis}: loss") for label in labels) == bool(land.grid)
    assert any(label.startswith("lm_head") and "1 trials diverged; moved" in label for label in labels)


def test_learning_curves_use_the_seeds_that_all_ended(full: tuple[Path, str]) -> None:
    text = " ".join(Page(full[1]).text("p"))
    assert "median over 2 seeds that all of these Settings trained on" in text  # seed 12 diverged for the references


def test_names_are_escaped(tmp_path: Path) -> None:
    parsed_text = render(load_run(full_run(tmp_path / "run", '<script>alert("x")</script>', ())))
    parsed = Page(parsed_text)
    assert "<script>alert" not in parsed_text
    assert any('<script>alert("x")</script>' in each for each in parsed.text("p"))


def test_hostile_stage_and_reference_names_stay_text(tmp_path: Path) -> None:
    name = '"><img src=x onerror=1>'
    found = finding("01-elr", "elr_ewd", name, untuned(SHAPE), AXES[:2], (0, 1, 2))
    gain = Interval(0.02, 0.01, 0.03)
    last = confirmation((comparison(name, gain, (10, 11)),), found.after, "02-x\" onload='1")
    other = untuned(SHAPE).with_values({"embedding": 3.0})  # nothing that plain words are known for
    parsed = page(write_run(tmp_path / "run", (found, last), {name: other}))
    assert [tag for tag, _ in parsed.tags if tag in ("img", "script")] == ["script"] * 4  # the page's own
    assert not any(key.startswith("on") for _, attrs in parsed.tags for key in attrs)
    assert parsed.text("h1") == [f"Confirmed: 20.0 mnat/token lower loss than {name}"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.004, 0.010, "No confirmed gain over the best that learning rate alone can do"),
        (-0.020, -0.001, "Worse: 10.5 mnat/token higher loss than the best that learning rate alone can do"),
    ],
)
def test_no_gain_is_said(tmp_path: Path, low: float, high: float, expected: str) -> None:
    weak = comparison("elr-tuned", Interval((low + high) / 2, low, high), (10, 11, 12))
    findings = synthetic_findings((0, 1, 2), (weak, COMPARISONS[1]))
    parsed = page(write_run(tmp_path / "run", findings, {"elr-tuned": findings[0].after}))
    assert parsed.text("h1") == [expected]
    assert "Confirmed over untuned." in " ".join(parsed.text("p"))


def test_nothing_measured(tmp_path: Path) -> None:
    findings = synthetic_findings((0, 1, 2), COMPARISONS[2:])
    parsed = page(write_run(tmp_path / "run", findings, {}, diverged=True))
    assert parsed.text("h1") == ["No gain could be measured"]
    assert f"over falcon-h1-published: {LOST}" in parsed.text("p")


def test_no_confirmation_claims_nothing(tmp_path: Path) -> None:
    """The joint move of a group is tested against the incumbent before it alone, so it makes no headline."""
    parsed = page(write_run(tmp_path / "run", synthetic_findings((0, 1, 2), ()), {}))
    assert parsed.text("h1") == ["Interrupted after 2 of 3 stages: no gain is claimed"]
    assert parsed.row("all together")[0][2] == "+19.0"


@pytest.mark.parametrize("trained", [True, False])
def test_zero_findings(tmp_path: Path, trained: bool) -> None:
    parsed = page(write_run(tmp_path / "run", (), {}, trained=trained))
    assert parsed.text("h1") == ["No findings: no stage of this run has concluded"]
    # What was trained and what it cost, and nothing found.
    assert [table[0][0] for table in parsed.tables if table] == (["stage", "hash"] if trained else [])
    assert any("d_model: 64" in each for each in parsed.text("pre"))  # what it started from is still shown


def test_live_run_says_so(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", synthetic_findings((0, 1), ()), {})
    with RunFolder.create_or_resume(
        path, plan("quickstart"), "0123456789abcdef", {"name": "python-stdlib", "hash": "fedcba9876543210"}
    ):
        parsed = page(path)
    assert parsed.text("h1") == ["Still in progress: no gain is claimed"]
    assert "in progress" in parsed.text("span")


def test_one_seed_has_no_error_bars_and_still_a_page(tmp_path: Path) -> None:
    lonely = comparison("elr-tuned", None, (10,))
    parsed = page(write_run(tmp_path / "run", synthetic_findings((0,), (lonely,)), {}, seeds=(10,)))
    assert parsed.row("embedding")[-1][4] == "+1.10 +0.98 to +1.22"
    assert parsed.row("incumbent")[0][6] == "1"


def test_all_diverged(tmp_path: Path) -> None:
    start = untuned(SHAPE)
    axis = axis_finding(AXES[0], 1.0, (0, 1, 2))
    points = tuple(point.model_copy(update={"losses": dict.fromkeys((0, 1, 2))}) for point in axis.points)
    lost = {"points": points, "fit": None, "gain": None, "decision": "kept", "reason": "all diverged", "after": 1.0}
    result = passes((axis.model_copy(update=lost),))
    found = finding("01-elr", "micro", "All lost", start, (), (0, 1, 2)).model_copy(update={"result": result})
    parsed = page(write_run(tmp_path / "run", (found,), {}, diverged=True))
    facts = dict(zip(parsed.text("dt"), parsed.text("dd"), strict=True))
    assert (facts["ok"], facts["diverged"]) == ("0", "3")
    labels = [attrs.get("aria-label", "") for tag, attrs in parsed.tags if tag == "svg"]
    assert any("27 trials diverged; kept" in label for label in labels)


def test_a_stage_that_tunes_a_reference_leaves_the_incumbent_alone(tmp_path: Path) -> None:
    findings = synthetic_findings((0, 1, 2), ())
    reference = findings[0].model_copy(update={"on_path": False})
    tuned = findings[1].model_copy(update={"before": untuned(SHAPE)})
    after = untuned(SHAPE).with_values({"embedding": 2.0})
    path = write_run(tmp_path / "run", (reference, tuned.model_copy(update={"after": after})), {})
    run = load_run(path)
    parsed = Page(render(run))
    assert parsed.row("elr")[0][2:] == ["0.01131", "0.01131", "0", "not swept"]
    assert parsed.row("embedding")[0][2:5] == ["1", "2", "+1.000"]


def test_settings_yaml_is_the_incumbents(full: tuple[Path, str], tmp_path: Path) -> None:
    from mup_tune.settings import load_settings

    file = tmp_path / "settings.yaml"
    file.write_text(Page(full[1]).texts["pre"][0], encoding="utf-8")
    found: Settings = load_settings(str(file), None)
    assert found == load_run(full[0]).findings[-1].after


def test_command_writes_the_same_page_beside_the_run_or_where_told(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run", axes=AXES[:1])
    app = Typer()
    app.callback()(lambda: None)
    register(app)
    runner = CliRunner()
    result = runner.invoke(app, ["report", str(run)])
    assert result.exit_code == 0, result.output
    out = tmp_path / "page.html"
    assert runner.invoke(app, ["report", str(run), "--out", str(out)]).exit_code == 0
    assert out.read_bytes() == (run / "report" / "index.html").read_bytes()
    assert isinstance(runner.invoke(app, ["report", str(tmp_path / "nothing")]).exception, UserError)


def test_command_on_a_run_that_has_no_tables_yet(tmp_path: Path) -> None:
    corpus = {"name": "python-stdlib", "hash": "fedcba9876543210"}
    with RunFolder.create_or_resume(tmp_path / "run", plan("quickstart"), "0123456789abcdef", corpus) as folder:
        Journal(folder, writable=True).begin_stage("01-elr", "elr_ewd", "Global ELR", untuned(SHAPE))
        app = Typer()
        app.callback()(lambda: None)
        register(app)
        assert CliRunner().invoke(app, ["report", str(tmp_path / "run")]).exit_code == 0
    text = (tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8")
    assert Page(text).text("h1") == ["Still in progress: no stage has concluded yet"]


def test_wrong_out_is_a_user_error(full: tuple[Path, str], tmp_path: Path) -> None:
    run = load_run(full[0])
    with pytest.raises(UserError, match="does not exist"):
        write(run, tmp_path / "missing" / "page.html")
    with pytest.raises(UserError, match="is a folder"):
        write(run, tmp_path)
