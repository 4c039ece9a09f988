"""What heads the page of several runs: tokens first, as on the page of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mup_tune.report import formats
from mup_tune.report.comparison import Compared, GainRow
from mup_tune.report.gains import PROXY
from mup_tune.report.words import Headline
from mup_tune.stats import Interval

Value = tuple[float, str]  # of a run, and the run's name


def headline(of: Compared) -> Headline:
    """Of the reference that most runs share, at the proxy where there is one."""
    row = next((row for row in of.gains if sum(cell.value is not None for cell in row.cells) > 1), None)
    if row is None:
        return Headline(f"{len(of.runs)} runs: no two of them measured a gain over one reference")
    where = f"over {row.reference}" + ("" if row.place == PROXY else f" at {row.place}")
    below = " ".join(part for part in (_in_tokens(of, row), _in_nats(of, row)) if part)
    factors = [(each.factor.value, name) for each, name in zip(row.saved, of.names, strict=True) if each]
    if len(factors) > 1:
        ratios = [each for each in row.ratios if each is not None]
        return Headline(_title("tokens saved", where, factors, formats.times, ratios, 1.0), below)
    gains = [(cell.value.value, name) for cell, name in zip(row.cells, of.names, strict=True) if cell.value]
    apart = [cell.difference for cell in row.cells if cell.difference is not None]
    return Headline(_title("gain", where, gains, _nats, apart, 0.0), below)


def _title(
    what: str,
    where: str,
    values: Sequence[Value],
    said: Callable[[float], str],
    apart: Sequence[Interval],
    nothing: float,
) -> str:
    """``apart``: differences to the first run, as far as they are known; ``nothing``: that of equal runs."""
    (low, least), (high, most) = min(values), max(values)
    if len(values) == 2 and len(apart) == 1:
        if apart[0].low <= nothing <= apart[0].high:
            return f"No difference shown in {what} {where}: {said(high)} ({most}), {said(low)} ({least})"
        return f"{most} is ahead in {what} {where}: {said(high)} against {said(low)} ({least})"
    return f"{what[0].upper()}{what[1:]} {where}: {said(low)} ({least}) to {said(high)} ({most})"


def _nats(value: float) -> str:
    return f"{formats.mnat(value)} mnat/token"


def _in_tokens(of: Compared, row: GainRow) -> str:
    told = [
        f"{name} {formats.times(ratio.value)} (95 % CI {ratio.low:.2f} to {ratio.high:.2f})"
        for name, ratio in zip(of.names, row.ratios, strict=True)
        if ratio is not None
    ]
    return f"Factor in tokens over that of {of.names[0]}: {'; '.join(told)}." if told else ""


def _in_nats(of: Compared, row: GainRow) -> str:
    told = [
        f"{name} {formats.mnat(cell.difference.value)} (95 % CI {formats.mnat_ci(cell.difference)})"
        for name, cell in zip(of.names, row.cells, strict=True)
        if cell.difference is not None
    ]
    return f"Gain in mnat/token less that of {of.names[0]}: {'; '.join(told)}." if told else ""
