"""The check passes for the rules and fails, at the right site, for each way to break them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isclose, log2, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mup_tune.checks import coordinate
from mup_tune.checks.coordinate import (
    Direction,
    Judgement,
    Trace,
    decide,
    groups,
    judge,
    overall,
    table_for,
    trace,
    trace_in_parts,
    verdict_of,
)
from mup_tune.checks.sites import SITES
from mup_tune.data.corpus import Corpus
from mup_tune.errors import UserError
from mup_tune.model.falcon_h1 import Population
from mup_tune.roles import RoleTable, role_table
from mup_tune.settings import untuned
from mup_tune.shape import Shape, load_shape, scaled
from mup_tune.stats import Interval, slope

FAMILY = load_shape("cpu-64")
WIDTHS, SEEDS, STEPS = (32, 64, 128), range(4), 3
Break = Callable[[RoleTable], RoleTable]
Prepare = Callable[[Population], None]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    from mup_tune.data.prepare import prepare

    folder = tmp_path_factory.mktemp("text")
    source = Path(torch.__file__).parent / "nn" / "modules"
    prepare(sorted(source.glob("*.py")), folder / "corpus", tokenizer="bytes", val_fraction=0.2)
    return Corpus.open(folder / "corpus")


def tables(change: Break = lambda table: table, widths: Sequence[int] = WIDTHS) -> list[RoleTable]:
    return [change(table_for(scaled(FAMILY, width), untuned(FAMILY), "mup")) for width in widths]


def run(
    corpus: Corpus, resolved: Sequence[RoleTable], prepare: Prepare | None = None, seeds: Sequence[int] = SEEDS
) -> list[Judgement]:
    torch.set_num_threads(1)
    traces = [trace(each, "width", corpus, seeds, STEPS, "cpu", prepare) for each in resolved]
    return judge(traces)


def failed(rows: Sequence[Judgement]) -> set[str]:
    return {row.site for row in rows if row.verdict == "fail"}


def forward(name: str, power: float) -> Break:
    """Multiply a forward multiplier by (d/64)^power."""

    def change(table: RoleTable) -> RoleTable:
        return replace(table, forward=table.forward | {name: table.forward[name] * (table.shape.d_model / 64) ** power})

    return change


def init_std(parameter: str, power: float) -> Break:
    def change(table: RoleTable) -> RoleTable:
        factor = (table.shape.d_model / 64) ** power
        rows = [
            replace(row, init_std=row.init_std * factor) if row.parameter == parameter and row.init_std else row
            for row in table.rows
        ]
        return replace(table, rows=tuple(rows))

    return change


def test_the_rules_pass_everywhere(corpus: Corpus) -> None:
    rows = run(corpus, tables(widths=(64, 128, 256)), seeds=range(6))
    assert failed(rows) == set()
    judged = [row for row in rows if row.verdict != "reported"]
    assert sum(row.verdict == "pass" for row in judged) > 0.6 * len(judged)
    starts = {row.site: row.excess for row in rows if row.of == "value at step 0"}
    assert all(abs(excess.value) < 0.1 for excess in starts.values() if excess)


def test_standard_parametrisation_fails_at_the_features_changes(corpus: Corpus) -> None:
    resolved = [table_for(scaled(FAMILY, width), untuned(FAMILY), "sp") for width in WIDTHS]
    rows = run(corpus, resolved)
    assert {"z", "x", "gate", "residual"} <= {row.site for row in rows if row.of == "change" and row.verdict == "fail"}
    assert overall(rows) == "fail"


def test_lm_head_without_its_factor_fails_at_the_logits(corpus: Corpus) -> None:
    assert "logits" in failed(run(corpus, tables(forward("lm_head", 1))))


def test_key_with_one_factor_fails_at_k_and_the_attention_logits(corpus: Corpus) -> None:
    found = failed(run(corpus, tables(forward("key", 1))))
    assert {"k", "attention logits"} <= found
    assert not found & {"z", "x", "q", "gate", "up"}


def test_lm_head_init_that_grows_fails_at_the_residual_gradient(corpus: Corpus) -> None:
    found = failed(run(corpus, tables(init_std("lm_head.weight", 0.5))))
    assert "residual gradient" in found
    assert not found & {"z", "x", "B", "C", "q", "k", "gate", "up"}


def test_transformers_own_ssm_init_fails_at_the_decay(corpus: Corpus) -> None:
    @torch.no_grad()
    def prepare(population: Population) -> None:
        for block in population.layers:
            heads = block.A_log.shape[1]
            block.A_log.copy_(torch.log(torch.arange(1.0, heads + 1)).expand_as(block.A_log))
            block.dt_bias.fill_(1.0)

    found = failed(run(corpus, tables(), prepare))
    assert "SSM decay" in found
    assert not found & {"z", "x", "B", "C", "q", "k", "gate", "up"}


@pytest.mark.parametrize(("name", "site"), [("conv1d_weight", "SSM output"), ("D", "SSM output")])
def test_conv_or_skip_scaled_with_width_fails_at_the_ssm(corpus: Corpus, name: str, site: str) -> None:
    @torch.no_grad()
    def prepare(population: Population) -> None:
        for block in population.layers:
            getattr(block, name).mul_(population.shape.d_model / 64)

    found = failed(run(corpus, tables(), prepare))
    assert site in found
    assert not found & {"q", "k", "attention logits", "gate", "up", "z", "x", "B", "C"}


def test_predicted_exponents_follow_from_the_role_table() -> None:
    """What a linear site's RMS is at init: std · √fan_in · multiplier, over two widths."""
    one, four = (role_table(scaled(FAMILY, width), untuned(FAMILY)) for width in (64, 256))
    where = {"z": ("in_proj", "z"), "x": ("in_proj", "x"), "B": ("in_proj", "B"), "C": ("in_proj", "C")}
    where |= {"q": ("q_proj", ""), "k": ("k_proj", ""), "gate": ("gate_proj", ""), "up": ("up_proj", "")}
    where |= {"logits": ("lm_head", "")}
    for site in SITES:
        if site.name not in where:
            continue
        parameter, part = where[site.name]
        size = []
        for table in (one, four):
            (row,) = [row for row in table.rows if parameter in row.parameter and row.slice == part]
            size.append((row.init_std or 0) * sqrt(row.shape[1]) * row.multiplier)
        assert isclose(log2(size[1] / size[0]) / 2, site.start, abs_tol=1e-9), site.name


def made_up(exponent: float, noise: float, generator: torch.Generator | None = None, seeds: int = 4) -> list[Trace]:
    generator = generator or torch.Generator().manual_seed(0)
    found = []
    for width in (32, 64, 128, 256):
        deviations = noise * torch.randn(seeds, generator=generator)
        values = [[width**exponent * 2**deviation for deviation in deviations.tolist()]]
        site = {"z": values * 3}
        found.append(Trace(scaled(FAMILY, width), "width", width, [0, 2, 4], site, site, [[1.0] * seeds] * 3))
    return found


@pytest.mark.parametrize(
    ("exponent", "noise", "verdict"),
    [
        (0.0, 0.02, "pass"),
        (0.5, 0.02, "fail"),
        (-0.5, 0.02, "fail"),
        (0.0, 3.0, "inconclusive"),
        (0.25, 0.05, "inconclusive"),
    ],
)
def test_verdicts_on_made_up_traces(exponent: float, noise: float, verdict: str) -> None:
    rows = [row for row in judge(made_up(exponent, noise)) if row.of == "value"]
    assert [row.verdict for row in rows] == [verdict]


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (3, [range(3)]),
        (4, [range(4)]),
        (16, [range(4), range(4, 8), range(8, 16)]),
        (20, [range(4), range(4, 8), range(8, 16), range(16, 20)]),
    ],
)
def test_seeds_are_doubled_up_to_the_most(seeds: int, expected: list[range]) -> None:
    assert groups(seeds) == expected


@pytest.mark.parametrize(
    ("exponent", "noise", "verdict", "trained"),
    [(0.0, 0.02, "pass", 4), (0.5, 0.02, "fail", 4), (0.25, 0.02, "inconclusive", 16)],
)
def test_seeds_are_added_until_it_is_decided(exponent: float, noise: float, verdict: str, trained: int) -> None:
    generator = torch.Generator().manual_seed(0)
    asked = []

    def train(seeds: range) -> list[Trace]:
        asked.append(seeds)
        return made_up(exponent, noise, generator, len(seeds))

    traces, rows = decide(train, 16)
    assert overall(rows) == verdict
    assert sum(map(len, asked)) == len(traces[0].losses[0]) == trained


def test_looking_again_and_again_does_not_make_a_verdict() -> None:
    """An exponent on the bound itself is neither right nor wrong: few of many draws may say that it is."""
    generator = torch.Generator().manual_seed(0)
    decided = sum(
        row.verdict != "inconclusive"
        for _ in range(150)
        for row in decide(lambda seeds: made_up(0.25, 0.3, generator, len(seeds)), 16)[1]
        if row.of == "value"
    )
    assert decided <= 0.09 * 150  # 5 % and two SDs of 150 draws


def test_logits_may_shrink_but_not_grow() -> None:
    assert verdict_of(Interval(-0.5, -0.52, -0.48), 0.0, only_growth=True) == "pass"
    assert verdict_of(Interval(0.5, 0.48, 0.52), 0.0, only_growth=True) == "fail"
    assert verdict_of(Interval(-0.5, -0.9, 0.3), 0.0, only_growth=True) == "inconclusive"
    assert verdict_of(None, 0.0) == "inconclusive"


def test_slopes_cover_the_truth() -> None:
    generator = torch.Generator().manual_seed(1)
    x = [0.0, 1.0, 2.0, 3.0] * 3
    hits = 0
    for _ in range(400):
        found = slope(x, [2 * each + float(torch.randn((), generator=generator)) for each in x])
        hits += found is not None and found.low <= 2 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_seeds_that_do_not_fit_together_are_trained_in_parts(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    (table,) = tables(widths=[32])
    whole = trace(table, "width", corpus, range(5), 2, "cpu")
    sizes = []

    def tight(table: RoleTable, direction: Direction, corpus: Corpus, seeds: Sequence[int], *rest: Any) -> Trace:
        sizes.append(len(seeds))
        if len(seeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return trace(table, direction, corpus, seeds, *rest)

    monkeypatch.setattr(coordinate, "trace", tight)
    parts = trace_in_parts(table, "width", corpus, range(5), 2, "cpu")
    assert sizes == [5, 2, 3, 1, 2]
    assert parts.steps == whole.steps
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-5)
    for site in whole.values:
        np.testing.assert_allclose(parts.values[site], whole.values[site], rtol=1e-4, err_msg=site)
        np.testing.assert_allclose(parts.changes[site], whole.changes[site], rtol=1e-2, atol=1e-6, err_msg=site)


def test_a_size_of_which_no_seed_fits_is_named(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Trace:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(coordinate, "trace", full)
    with pytest.raises(UserError, match=r"d_model = 32.*one seed does not fit"):
        trace_in_parts(tables(widths=[32])[0], "width", corpus, range(3), 2, "cpu")


def test_a_width_that_rounds_a_head_is_refused() -> None:
    with pytest.raises(UserError, match="n_heads"):
        scaled(FAMILY, 40)
    assert isinstance(scaled(FAMILY, 96), Shape)
