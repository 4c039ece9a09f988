"""The coordinate check: do all sites, and their changes, scale with width (and depth) as the rules predict?

After arXiv 2203.03466, App. D.1, with a numeric verdict: the slope of log2 RMS over log2 width, minus the
predicted exponent, with its 95 % CI over widths × seeds. Seeds are added until every site is decided. Flat
curves are necessary, not sufficient: pair this with the basin check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import Literal

import numpy as np
import torch

from mup_tune.checks.sites import SITE_BY_NAME, SITES, Snapshot, measure, snapshot
from mup_tune.choices import DepthRule
from mup_tune.data.batches import Batches
from mup_tune.data.corpus import Corpus
from mup_tune.errors import UserError
from mup_tune.findings import Verdict
from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.roles import RoleTable, role_table
from mup_tune.settings import Settings, standard
from mup_tune.shape import Shape
from mup_tune.stats import Interval, slope
from mup_tune.train.device import out_of_memory
from mup_tune.train.optimizer import MemberAdamW, rates
from mup_tune.train.population import new_population
from mup_tune.train.validation import to_device
from mup_tune.trial import IGNORED_TARGET

TOLERANCE = 0.25  # τ, in units of the exponent: a wrong rule misses by ½ or more, a factor of √d or d
FIRST_SEEDS = 4  # trained before anything is judged
ROWS, SEQ_LEN = 8, 128
NO_CLIPPING = float("inf")  # the clip norm is not width-invariant, and AdamW forgets a common factor anyway

Reported = Literal["reported"]  # in place of a verdict: nothing was predicted
Parametrisation = Literal["mup", "sp"]
Direction = Literal["width", "depth"]
Prepare = Callable[[Population], None]


@dataclass(frozen=True)
class Trace:
    """One size of the family, its seeds trained side by side: RMS by site, seed and step."""

    shape: Shape
    direction: Direction
    size: int
    steps: list[int]
    values: dict[str, list[list[float]]]  # site -> step -> seed
    changes: dict[str, list[list[float]]]  # the same for the change since step 0; zeros at step 0
    losses: list[list[float]]


@dataclass(frozen=True)
class Judgement:
    """One row of the check's table. ``excess`` is measured − predicted slope."""

    site: str
    of: Literal["value", "change", "value at step 0"]
    predicted: float | None
    excess: Interval | None
    verdict: Verdict | Reported
    why: str = ""


def table_for(shape: Shape, settings: Settings, param: Parametrisation) -> RoleTable:
    """``mup``: ``settings`` at ``shape`` by the rules. ``sp``: :func:`mup_tune.settings.standard` of them."""
    return role_table(shape, settings if param == "mup" else standard(shape, settings))


def trace(
    table: RoleTable,
    direction: Direction,
    corpus: Corpus,
    seeds: Sequence[int],
    steps: int,
    device: str,
    prepare: Prepare | None = None,
) -> Trace:
    """Train at constant η and λ without clipping; measure on a fixed batch before and after each second step.

    Args:
        prepare: changes the population after its init; how sabotage is tested.
    """
    shape = table.shape
    population = new_population(shape, [table] * len(seeds), list(seeds), device)
    if prepare:
        prepare(population)
    parameters = dict(population.named_parameters())
    optimizer = MemberAdamW(
        parameters, rates(parameters, [table] * len(seeds), hf.owning_role), (0.9, 0.95), NO_CLIPPING
    )
    batches = Batches(corpus, "train", SEQ_LEN, ROWS, 0)
    probe = to_device(Batches(corpus, "val", SEQ_LEN, ROWS, 0).batch(0), device)
    alive = torch.ones(len(seeds), dtype=torch.bool, device=device)
    first = snapshot(population, probe[0], probe[1])
    size = shape.d_model if direction == "width" else shape.n_layers
    found = Trace(shape, direction, size, [], {}, {}, [])
    _record(found, 0, first, first)
    for step in range(steps):
        batch = batches.batch(step)
        optimizer.zero_grad()
        nll_P = population.nll(*to_device(batch, device)).sum(1) / int((batch.targets_BT != IGNORED_TARGET).sum())
        nll_P.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0, 1.0, optimizer.gradient_norms(), alive)
        if (step + 1) % 2 == 0 or step + 1 == steps:
            _record(found, step + 1, snapshot(population, probe[0], probe[1]), first)
    return found


def trace_in_parts(
    table: RoleTable, direction: Direction, corpus: Corpus, seeds: Sequence[int], steps: int, device: str
) -> Trace:
    """:func:`trace` with as many seeds at once as the device's memory holds.

    Raises:
        UserError: not even one fits.
    """
    try:
        return trace(table, direction, corpus, seeds, steps, device)
    except Exception as error:
        if not out_of_memory(error):
            raise
    # Outside the handler: the error's frames hold the tensors that did not fit.
    if len(seeds) == 1:
        raise UserError(
            f"d_model = {table.shape.d_model}, n_layers = {table.shape.n_layers}: one seed does not fit on {device!r}",
            field=f"--{direction}s",
            fix="Leave this size out",
        )
    half = len(seeds) // 2
    parts = [trace_in_parts(table, direction, corpus, each, steps, device) for each in (seeds[:half], seeds[half:])]
    return joined(*parts)


def joined(first: Trace, second: Trace) -> Trace:
    """Two groups of seeds of one size, side by side."""

    def both(name: Literal["values", "changes"]) -> dict[str, list[list[float]]]:
        one, other = getattr(first, name), getattr(second, name)
        return {site: [[*a, *b] for a, b in zip(steps, other[site], strict=True)] for site, steps in one.items()}

    losses = [[*a, *b] for a, b in zip(first.losses, second.losses, strict=True)]
    return replace(first, values=both("values"), changes=both("changes"), losses=losses)


def groups(seeds: int) -> list[range]:
    """The seeds that are added at each look: the first few, then as many as there are, ``seeds`` in all."""
    ends = [min(FIRST_SEEDS, seeds)]
    while ends[-1] < seeds:
        ends.append(min(2 * ends[-1], seeds))
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def decide(
    train: Callable[[range], list[Trace]], seeds: int, depth_rule: DepthRule = "none", tolerance: float = TOLERANCE
) -> tuple[list[Trace], list[Judgement]]:
    """Add seeds until the verdict is no longer inconclusive, up to ``seeds`` of every size.

    Args:
        train: the traces of all sizes for some seeds.
    """
    traces: list[Trace] = []
    looks = groups(seeds)
    for added in looks:
        found = train(added)
        traces = [joined(*pair) for pair in zip(traces, found, strict=True)] if traces else found
        rows = judge(traces, depth_rule, tolerance, len(looks))
        if overall(rows) != "inconclusive":
            break
    return traces, rows


def _record(found: Trace, step: int, seen: Snapshot, first: Snapshot) -> None:
    """Reduce a snapshot to RMS per seed at once: the values themselves would fill the memory."""
    found.steps.append(step)
    found.losses.append([float(x) for x in seen.loss])
    for table, since in ((found.values, None), (found.changes, first)):
        for site, per_seed in measure(seen, since, found.shape.n_layers, found.direction == "depth").items():
            table.setdefault(site, []).append(per_seed)


def judge(
    traces: Sequence[Trace], depth_rule: DepthRule = "none", tolerance: float = TOLERANCE, looks: int = 1
) -> list[Judgement]:
    """The verdict on every site, on its value and on its change, over the sizes of one family.

    Args:
        looks: how often at most this is asked while seeds are added; CIs are widened for it.
    """
    sites = [site for site in SITES if site.name in traces[0].values]
    if traces[0].direction == "depth":
        return [row for site in sites for row in _judge_depth(traces, site.name, depth_rule, tolerance, looks)]
    rows = []
    for site in sites:
        start = _slope(traces, site.name, "value at step 0", looks)
        rows.append(_row(site.name, "value at step 0", site.start, start, "reported", "step 0"))
        for of in ("value", "change"):
            measured = _slope(traces, site.name, of, looks)
            verdict = verdict_of(measured, site.width, site.only_growth, tolerance)
            rows.append(_row(site.name, of, site.width, measured, verdict, _why(traces, site.name, of)))
    return rows


def verdict_of(
    measured: Interval | None, predicted: float, only_growth: bool = False, tolerance: float = TOLERANCE
) -> Verdict:
    """Pass: the CI of measured − predicted lies inside ±τ. Fail: it lies outside. Else inconclusive."""
    if measured is None:
        return "inconclusive"
    low, high = measured.low - predicted, measured.high - predicted
    if high <= tolerance and (only_growth or low >= -tolerance):
        return "pass"
    if low > tolerance or (high < -tolerance and not only_growth):
        return "fail"
    return "inconclusive"


def overall(rows: Sequence[Judgement]) -> Verdict:
    """Fail if any judged site fails, else inconclusive if any is, else pass."""
    verdicts = [row.verdict for row in rows]
    return "fail" if "fail" in verdicts else "inconclusive" if "inconclusive" in verdicts else "pass"


def _judge_depth(
    traces: Sequence[Trace], name: str, depth_rule: DepthRule, tolerance: float, looks: int
) -> list[Judgement]:
    """Without a depth rule the stream grows and is only reported.

    What reads it through a norm must stay flat with any rule.
    """
    site, rows = SITE_BY_NAME[name], []
    for of in ("value", "change"):
        measured = _slope(traces, name, of, looks)
        free = depth_rule == "none" and not (site.reads_norm and of == "value")
        expected = " (0.5 … 1 expected)" if name == "residual" else ""
        why = f"no depth rule: reported{expected}" if free else ""
        # CompleteP's stream falls towards the embedding: L random branches of size 1/L add up to L^-½.
        may_shrink = site.only_growth or (name == "residual" and of == "value")
        predicted = 0.0 if depth_rule == "none" else site.depth
        verdict: Verdict | Reported = "reported" if free else verdict_of(measured, predicted, may_shrink, tolerance)
        rows.append(_row(name, of, None if free else predicted, measured, verdict, why or _why(traces, name, of)))
    return rows


def _row(
    site: str,
    of: Literal["value", "change", "value at step 0"],
    predicted: float | None,
    measured: Interval | None,
    verdict: Verdict | Reported,
    why: str,
) -> Judgement:
    shift = predicted or 0.0
    excess = measured and Interval(measured.value - shift, measured.low - shift, measured.high - shift)
    return Judgement(site, of, predicted, excess, verdict, why)


def _slope(traces: Sequence[Trace], site: str, of: str, looks: int) -> Interval | None:
    """Slope of log2 RMS over log2 size; a seed's steps are averaged first, for they are not independent."""
    x, y = [], []
    for each in traces:
        table = each.changes[site] if of == "change" else each.values[site]
        rows = [row for step, row in zip(each.steps, table, strict=True) if (step == 0) == (of == "value at step 0")]
        rows = [row for row in rows if row] if of == "value at step 0" else rows
        with np.errstate(divide="ignore"):
            logs = np.log2(np.asarray(rows)).mean(axis=0)
        x += [log2(each.size)] * len(logs)
        y += [float(value) for value in logs]
    return slope(x, y, looks)


def _why(traces: Sequence[Trace], site: str, of: str) -> str:
    table = [(each.changes if of == "change" else each.values)[site] for each in traces]
    if not np.isfinite(np.asarray([rows[1:] for rows in table])).all():
        return "not finite at some size"
    return "" if (np.asarray([rows[1:] for rows in table]) > 0).all() else "exactly 0 at some size"


def check_sizes(sizes: Sequence[int], flag: str) -> None:
    """A slope needs three different sizes."""
    if len(set(sizes)) != len(sizes) or len(sizes) < 3:
        raise UserError(
            f"{', '.join(map(str, sizes))}: at least three different sizes are needed", field=flag, fix="e.g. 32,64,128"
        )
