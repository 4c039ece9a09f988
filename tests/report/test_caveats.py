"""What a page warns of: each caveat appears where the run's data say so, and there alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import COMPARISONS, SHAPE, comparison, full_run, synthetic_findings, write_run

from mup_tune.report import costs
from mup_tune.report.caveats import Caveat, caveats, verdicts
from mup_tune.report.gains import names
from mup_tune.report.page import render
from mup_tune.run.view import RunView, load_run
from mup_tune.settings import untuned
from mup_tune.stats import Interval


def found(run: RunView) -> dict[str, Caveat]:
    return {each.title: each for each in caveats(run, names(run))}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> RunView:
    return load_run(full_run(tmp_path_factory.mktemp("caveats") / "run"))


def test_the_heaviest_comes_first_and_all_are_counted(full: RunView) -> None:
    items = caveats(full, names(full))
    assert [each.weight for each in items] == sorted((each.weight for each in items), reverse=True)
    ((_, _, told),) = (each for each in verdicts(full, items) if each[1] == "Caveats")
    assert sum(map(int, re.findall(r"\d+", told))) == len(items)


def test_what_the_run_lacks_is_said_with_its_numbers(full: RunView) -> None:
    told = found(full)
    assert told["No larger shape measured"].level == "serious"
    assert "3 fresh seeds" in told["Few seeds"].text
    assert "200 steps on 3.2 tokens per parameter" in told["Short training"].text
    # Nine of them were swept, and of two so short a run could tell nothing.
    assert "28 of the 35 multipliers were not swept" in told["28 of the 35 not swept"].text
    assert "0.026 < 1" in told["Weight decay not in equilibrium"].text
    assert "2 of 9 trials diverged (22.2 %)" in told["Diverged trials"].text
    assert "falcon-h1-published" in told["Not measured"].text
    assert {"Not finished", "No confirmation on fresh seeds", "Corpus repeated"} & set(told) == set()


def test_a_run_without_a_confirmation_says_that_first(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", synthetic_findings((0, 1, 2), ()), {}))
    first, *rest = caveats(run, names(run))
    assert first.title == "No confirmation on fresh seeds"
    assert "Not finished" in {each.title for each in rest}
    assert "Few seeds" not in {each.title for each in rest}


@pytest.mark.parametrize(("seeds", "level"), [(2, "serious"), (5, "caution"), (8, None)])
def test_few_seeds_weigh_by_their_number(tmp_path: Path, seeds: int, level: str | None) -> None:
    claim = comparison("untuned", Interval(0.02, 0.01, 0.03), tuple(range(10, 10 + seeds)))
    findings = synthetic_findings((0, 1, 2), (claim,))
    run = load_run(write_run(tmp_path / "run", findings, {"untuned": untuned(SHAPE)}))
    item = found(run).get("Few seeds")
    assert (item.level if item else None) == level


def test_text_read_twice_is_named(tmp_path: Path) -> None:
    source = {"name": "small", "hash": "fedcba9876543210", "train_tokens": 100_000, "val_tokens": 10_000}
    corpus = {"name": "small", "hash": "fedcba9876543210", "sources": [{**source, "corpus": "small", "weight": 1.0}]}
    run = load_run(write_run(tmp_path / "run", synthetic_findings((0, 1, 2), COMPARISONS), {}, corpus=corpus))
    assert "reads small 4.1 times" in found(run)["Corpus repeated"].text


def test_costs_are_those_of_the_tables(full: RunView) -> None:
    tiles = {tile.unit: tile for tile in costs.tiles(full)}
    assert tiles["trials"].value == str(len(full.trials))
    assert tiles["trials"].below == "2 diverged, in 3 packs"
    assert float(tiles["CPU-lane-hours"].value) == pytest.approx(full.packs["seconds"].sum() / 3600, rel=0.01)
    stages = costs.of_stages(full)
    assert sum(each.trials for each in stages) == len(full.trials)


def test_the_first_screen_has_its_order(full: RunView) -> None:
    text = render(full)
    parts = ["Tuned: ", "What it is worth", "The Settings to use", "What it cost", "What is not shown"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert places[-1] < text.index("<section")


def test_a_clock_that_was_set_back_gives_no_time_by_the_clock(full: RunView) -> None:
    units = [tile.unit for tile in costs.tiles(full)]
    late = replace(full, record=full.record.model_copy(update={"created": "2999-01-01T00:00:00+00:00"}))
    assert [tile.unit for tile in costs.tiles(late)] == [unit for unit in units if unit != "by the clock"]


def test_a_name_without_plain_words_speaks_for_itself(full: RunView) -> None:
    known = names(full)
    assert known.long("<b>mine") == known.short("<b>mine") == known.term("<b>mine") == "<b>mine"
    assert known.term("elr-tuned") == "the best that learning rate alone can do (elr-tuned)"
