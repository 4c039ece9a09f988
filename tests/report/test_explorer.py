"""The data behind the explorer: what a page's scripts read is what the run says."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from searched_run import SPREAD, searched_run
from synthetic_run import AXES, SHAPE, finding, full_run, write_run

from mup_tune.findings import Comparison, Finding
from mup_tune.findings.global_axes import GlobalAxes, Place, Plane
from mup_tune.findings.surface import Effect, ResponseSurface, Round
from mup_tune.report.cuts import cuts
from mup_tune.report.embedded import column, script_json
from mup_tune.report.explorer import explained, section
from mup_tune.report.page import render
from mup_tune.run.view import load_run
from mup_tune.settings import untuned
from mup_tune.stats import Bowl, Interval

HOSTILE = '</script><img src=x onerror="document.title=1"><!-- ]]> \u2028'


def unpacked(packed: dict[str, Any], rows: int) -> list[Any]:
    """A column as the page's scripts read it."""
    if "values" in packed:
        return packed["values"]
    if "floats" in packed:
        return [float(f"{each:.6g}") for each in np.frombuffer(b64decode(packed["floats"]), "<f4")]
    codes = np.frombuffer(b64decode(packed["codes"]), "<u2") if "codes" in packed else [0] * rows
    return [packed["distinct"][code] for code in codes]


def embedded(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="trials-data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def six(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def same(ours: list[Any], theirs: list[Any]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(one == other or (isinstance(one, float) and isnan(one) and isnan(other)) for one, other in pairs)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched_run(tmp_path_factory.mktemp("runs") / "searched")


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.5, 1e30, 1e-30, 3.1415926535, 0.1 + 0.2, 12345.678],
        [float("nan"), 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0],
        [1e11] * 9,
        [0.25, 0.5] * 8,
        list(range(20_260_101, 20_260_110)),
        [2**40, 7] * 8,
        ["a"] * 5 + [HOSTILE] * 5,
        [HOSTILE],
    ],
)
def test_a_column_comes_back_with_six_significant_digits(values: list[Any]) -> None:
    packed = json.loads(script_json(column(pd.Series(values))))
    assert same(unpacked(packed, len(values)), [six(each) for each in values])


def test_every_six_digit_number_survives_float32() -> None:
    random = np.random.default_rng(0)
    values = [float(f"{each:.6g}") for each in 10 ** random.uniform(-30, 30, 5000)]
    assert unpacked(column(pd.Series(values)), len(values)) == values


def test_a_column_is_short() -> None:
    assert len(json.dumps(column(pd.Series(np.random.default_rng(0).random(10_000))))) < 54_000
    assert len(json.dumps(column(pd.Series([0.5, 1.0, 2.0, 4.0] * 2500)))) < 27_000
    assert len(json.dumps(column(pd.Series([1.0] * 10_000)))) < 30


def test_the_page_holds_every_column_of_every_trial(searched: Path) -> None:
    run = load_run(searched)
    data = embedded(section(run))
    assert data["trials"] == len(run.trials) == 66
    assert list(data["columns"]) == list(run.trials)
    for name in run.trials:
        theirs = [six(each) for each in run.trials[name].tolist()]
        assert same(unpacked(data["columns"][name], 66), theirs), name


def test_stages_axes_and_incumbent(searched: Path) -> None:
    run = load_run(searched)
    data = embedded(section(run))
    assert data["begin"] == "01-elr"
    assert [(each["key"], each["title"]) for each in data["stages"]] == [
        ("01-elr", "Global ELR"),
        ("02-multipliers", "Multipliers one by one"),
    ]
    # ELR is a global axis and comes first; the others as their parabolas explain.
    assert list(data["stages"][0]["order"]) == ["elr", "embedding", "qkv.elr"]
    assert run.settings is not None
    assert data["incumbent"]["elr"] == six(run.settings.elr)
    assert set(data["together"]) == {*SPREAD, "total_tokens"}
    assert list(data["stages"][0]["cuts"]) == ["elr"]


def test_explained_finds_a_parabola_behind_seeds(searched: Path) -> None:
    trials = load_run(searched).trials
    found = explained(trials[trials["stage"] == "01-elr"])
    assert found["elr"] > 0.5 > found["embedding"] > found["qkv.elr"] >= 0
    lost = trials.assign(status="diverged", loss=float("nan"))
    assert explained(lost) == dict.fromkeys(("elr", "embedding", "qkv.elr", "total_tokens"), 0.0)


def test_a_hostile_name_stays_data(tmp_path: Path) -> None:
    run = load_run(searched_run(tmp_path / "run", HOSTILE.replace("\u2028", ""), 9, HOSTILE))
    text = section(run)
    assert "<img" not in text
    assert "<!--" not in text
    assert HOSTILE in unpacked(embedded(text)["columns"]["reason"], 15)
    assert text.count("</script>") == 2


def test_best_trials_stand_in_a_plain_table(searched: Path) -> None:
    run = load_run(searched)
    plain = re.search(r"<noscript>(.*?)</noscript>", section(run), re.DOTALL)
    assert plain is not None
    hashes = re.findall(r"<tr><th scope=\"row\"><code>(\w+)</code>", plain[1])
    stage = run.trials[run.trials["stage"] == "01-elr"]
    assert hashes == stage.sort_values("loss")["hash"].head(20).tolist()


def test_the_page_is_the_same_bytes_each_time(searched: Path) -> None:
    assert render(load_run(searched)) == render(load_run(searched))


def test_no_section_before_a_first_trial(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", (), {}, trained=False))
    assert section(run) == ""
    assert 'href="#trials"' not in render(run)


def test_parabolas_are_cut_lines_in_the_axis_own_unit() -> None:
    start = untuned(SHAPE)
    found = finding("02", "micro", "Multipliers", start, AXES, (0, 1, 2))
    drawn = cuts(found)
    assert set(drawn) == {axis.axis for axis in found.axes if axis.fit and axis.points}
    cut, axis = drawn["embedding"], next(axis for axis in found.axes if axis.axis == "embedding")
    assert axis.fit is not None
    assert cut.at[0] == pytest.approx(start.value("embedding") / 4)
    assert cut.at[-1] == pytest.approx(start.value("embedding") * 4)
    assert cut.optimum == pytest.approx(tuple(2 ** getattr(axis.fit.optimum, end) for end in ("value", "low", "high")))
    lowest = int(np.argmin(cut.loss))
    assert np.log2(cut.at[lowest]) == pytest.approx(1.1, abs=0.07)
    assert cut.loss[lowest] == pytest.approx(axis.fit.floor, abs=1e-4)
    assert cut.loss[0] - axis.fit.floor == pytest.approx(0.5 * 0.03 * 3.1**2)


def test_a_bowl_is_cut_through_its_lowest_point() -> None:
    def near(value: float) -> Interval:
        return Interval(value, value - 0.1, value + 0.1)

    bowl = Bowl(near(0.5), near(-1.0), (0.5, -1.0), 2.0, near(0.2), near(0.1), near(0.05), 9)
    places = tuple(Place(elr=x, ewd=y, losses={0: 2.1}) for x in (-1.0, 1.0) for y in (-2.0, 2.0))
    start = untuned(SHAPE)
    result = GlobalAxes(axes=(), eta_lambda_T=1.0, steps=9, bowl=Plane(places=places, fit=bowl))
    drawn = cuts(Finding(stage="1", kind="elr_ewd", title="", before=start, after=start, result=result))
    elr, ewd = drawn["elr"], drawn["ewd"]
    assert elr.optimum is not None
    assert elr.optimum[0] == pytest.approx(start.elr * 2**0.5)
    assert elr.loss[0] == pytest.approx(2.0 + 0.5 * 0.2 * 1.5**2)
    assert (ewd.at[0], ewd.at[-1]) == (pytest.approx(start.ewd / 4), pytest.approx(start.ewd * 4))
    assert ewd.loss[-1] == pytest.approx(2.0 + 0.5 * 0.1 * 3.0**2)


def surface(moved: Comparison | None) -> Finding:
    rounds = (
        Round(number=1, radius=0.5, centre={"elr": 0.0}, trials=8, diverged=0, step={"elr": 1.0}, taken=0.5),
        Round(number=2, radius=0.5, centre={"elr": 0.5}, trials=8, diverged=0),
    )
    effect = Effect(axis="elr", slope=Interval(-0.01, -0.03, 0.01), curvature=Interval(0.2, 0.1, 0.3))
    result = ResponseSurface(rounds=rounds, stop="rounds", units={"elr": 0.5}, effects=(effect,), moved=moved)
    start = untuned(SHAPE)
    return Finding(stage="2", kind="surface", title="", before=start, after=start, result=result)


def test_a_surface_is_cut_through_its_last_centre_with_a_band() -> None:
    losses = {1: 1.9, 2: 2.1}
    moved = Comparison(candidate="a", reference="b", candidate_losses=losses, reference_losses=losses, gain=None)
    cut = cuts(surface(moved))["elr"]
    # The designs reached from −0.5 to +1 units of half an octave; the last centre lies at +0.25 octaves.
    offsets = np.log2(np.array(cut.at) / untuned(SHAPE).elr)
    assert (offsets[0], offsets[-1]) == (pytest.approx(-0.25), pytest.approx(0.5))
    away = offsets - 0.25
    assert cut.loss == pytest.approx(list(2.0 - 0.01 * away + 0.1 * away**2))
    half = np.hypot(0.02 * away, 0.05 * away**2)
    assert np.array(cut.high) - np.array(cut.loss) == pytest.approx(half, abs=1e-12)
    assert np.array(cut.loss) - np.array(cut.low) == pytest.approx(half, abs=1e-12)


def test_a_surface_without_a_measured_centre_has_no_cut() -> None:
    assert cuts(surface(None)) == {}


def test_a_page_without_javascript_says_so_and_forbids_the_network(tmp_path: Path) -> None:
    text = render(load_run(full_run(tmp_path / "run")))
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none';")
    assert "http" not in policy[1]
    assert '<div id="explorer" hidden' in text
