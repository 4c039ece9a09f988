"""How numbers read on the page. Losses are nats/token with four decimals, gains signed millinats/token."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from mup_tune.stats import Interval
from mup_tune.stats.tokens import TokensSaved

NONE = "–"
MINUS = "−"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST = 1.0  # nats/token: an interval that reaches further tells nothing more


def loss(value: float | None) -> str:
    """Nats/token."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.4f}"


def signed(value: float, decimals: int) -> str:
    """A number with its sign, a true minus, and no sign on what rounds to zero."""
    text = f"{abs(value):,.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        return text
    return ("+" if value > 0 else MINUS) + text


def minus(text: str) -> str:
    """A formatted number with a true minus, in front and in its exponent."""
    return text.replace("-", MINUS)


def mnat(value: float | None) -> str:
    """A difference given in nats/token, printed in millinats/token."""
    return NONE if value is None or not math.isfinite(value) else signed(1e3 * value, 1)


def mnat_ci(interval: Interval | None) -> str:
    """``+38.1 to +52.3``: the 95 % CI of a difference, in millinats/token.

    An end beyond :data:`MOST`, far from the value, is as good as unbounded: ``more than +1,000``.
    """
    if interval is None:
        return NONE
    far = max(MOST, 3 * abs(interval.value))
    low = f"less than {signed(-1e3 * MOST, 0)}" if interval.low < -far else mnat(interval.low)
    high = f"more than {signed(1e3 * MOST, 0)}" if interval.high > far else mnat(interval.high)
    return f"{low} to {high}"


def log2(value: float | None, decimals: int = 2) -> str:
    """A log2 offset or change."""
    return NONE if value is None or not math.isfinite(value) else signed(value, decimals)


def log2_ci(interval: Interval | None) -> str:
    return NONE if interval is None else f"{log2(interval.low)} to {log2(interval.high)}"


def times(factor: float) -> str:
    """A factor on tokens: ``1.32 ×``."""
    return f"{factor:.2f} ×"


def times_ci(saved: TokensSaved) -> str:
    """``1.20 to 1.45 ×``; without an end where the factor lies beyond what was trained."""
    found = saved.factor
    return f"from {times(found.low)}" if saved.beyond else f"{found.low:.2f} to {times(found.high)}"


def value(number: float | None) -> str:
    """A setting: four significant digits, ``1e11`` rather than ``1e+11``."""
    if number is None or not math.isfinite(number):
        return NONE
    mantissa, _, exponent = f"{number:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def p_value(p: float | None) -> str:
    if p is None or not math.isfinite(p):
        return NONE
    return "< 0.001" if p < 1e-3 else f"{p:.3f}"


def si(number: float | None) -> str:
    """A large count with three significant digits: ``262 k``, ``1.31 M``."""
    if number is None or not math.isfinite(number):
        return NONE
    for power, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(number) >= 0.9995 * 10**power:
            scaled = number / 10**power
            return f"{scaled:.0f} {unit}" if scaled >= 999.5 else f"{scaled:.3g} {unit}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def instant(iso: str | None) -> str:
    """An ISO time to the minute, in UTC."""
    return f"{datetime.fromisoformat(iso).astimezone(UTC):%Y-%m-%d %H:%M} UTC" if iso else ""


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def scientific(number: float) -> str:
    """A huge count: ``7.8 × 10¹¹``."""
    mantissa, _, exponent = f"{number:.1e}".partition("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPT)}"


def hours(seconds: float) -> str:
    """Hours to three significant digits: ``0.0364 h``, ``11.2 h``, ``1,240 h``."""
    found = seconds / 3600
    return f"{found:,.0f} h" if found >= 100 else f"{found:.3g} h"
