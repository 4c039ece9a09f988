"""A response surface over many axes at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mup_tune.findings import AxisFinding, Comparison, Finding
from mup_tune.findings.surface import Effect, ResponseSurface, Round, Stop
from mup_tune.report import formats
from mup_tune.report.words import Gained, Headline, gain, most_sensitive, nats, outcome, p, result_of

FURTHEST = 5  # axes that the summary names
STOPPED: dict[Stop, str] = {
    "rounds": "No round is left",
    "no gain predicted": "No further round: all of the predicted gain's CI lies below what the verification can show",
    "too many diverged": "No round is left, and in the last one too few trials ended for a surface",
}


def summary(finding: Finding) -> list[str]:
    result = result_of(finding, ResponseSurface)
    said = [sentence for each in result.rounds for sentence in _round(each, result.units)]
    said += [f"{STOPPED[result.stop]}.", _verified(result)]
    moves = [(axis, move) for axis, move in result.moves.items() if move]
    if furthest := sorted(moves, key=lambda move: -abs(move[1]))[:FURTHEST]:
        shown = ", ".join(f"{axis} {formats.log2(move)}" for axis, move in furthest)
        said.append(f"The centre went furthest along {shown} (log2).")
    if result.effects:
        said.append(f"{most_sensitive(_shown(result))}, at the last centre.")
    said.append(f"All of it took {formats.plural(result.trials, 'trial')} and {result.flops:.3g} FLOPs.")
    if result.next_gain is not None:
        said.append(
            f"A further round would cost {formats.plural(result.round_trials, 'trial')} and "
            f"{result.round_flops:.3g} FLOPs, and is predicted to gain {nats(result.next_gain)}."
        )
    if result.detectable is not None:
        said.append(f"The verification's seeds show gains from about {result.detectable:.4f} nats/token on.")
    return said


def _round(done: Round, units: Mapping[str, float]) -> Iterable[str]:
    others = ", ".join(f"{axis} ±{unit * done.radius:.3g}" for axis, unit in units.items())
    wide = f" ({others})" if others else ""
    said = f"Round {done.number}: {formats.plural(done.trials, 'trial')}, "
    said += f"all axes at once by ±{done.radius:.3g} log2{wide}"
    said += f"; {done.diverged} diverged" if done.diverged else ""
    if done.noise is None or done.predicted is None:
        yield f"{said}; too few ended for a surface."
        return
    yield f"{said}; noise of a trial {1e3 * done.noise:.1f} mnat/token."
    yield f"The surface predicts {gain(done.predicted)}{_measured(done)}."


def _measured(done: Round) -> str:
    if not done.shares:
        return ""
    line = "; ".join(f"{each.label} {_gain(each.comparison)}" for each in done.shares)
    went = next((f"moves by {each.label}" for each in done.shares if each.share == done.taken), "stays")
    return f"; measured: {line}. The centre {went}"


def _gain(comparison: Comparison) -> str:
    return gain(comparison.gain) if comparison.gain else outcome(comparison)


def _verified(result: ResponseSurface) -> str:
    if result.moved is None:
        return "The centre never moved, so there is nothing to verify: the incumbent stays."
    seeds = formats.plural(len(result.moved.reference_losses), "fresh seed")
    p_value = result.moved.gain.p_value if result.moved.gain else None
    tested = "" if p_value is None else f", {p(p_value)}"
    return f"On {seeds} the last centre: {_gain(result.moved)}{tested}; {_verdict(result)}."


def _verdict(result: ResponseSurface) -> str:
    return "taken" if result.taken else "the incumbent stays"


def _shown(result: ResponseSurface) -> dict[str, float]:
    """Curvatures whose CI lies above 0, in nats/token per (log2)²."""
    return {each.axis: each.curvature.value for each in result.effects if each.curvature.above_0}


def headline(finding: Finding) -> Headline:
    result = result_of(finding, ResponseSurface)
    axes = "1 axis" if len(result.axes) == 1 else f"{len(result.axes)} axes"
    if not result.taken or result.moved is None or result.moved.gain is None:
        return Headline(f"No joint move of {axes} is shown to gain")
    seeds = formats.plural(len(result.moved.reference_losses), "fresh seed")
    return Headline(f"{axes} moved together: {formats.mnat(result.moved.gain.value)} mnat/token on {seeds}")


def gained(finding: Finding) -> Gained | None:
    result = result_of(finding, ResponseSurface)
    return Gained(result.moved.gain, fresh=True) if result.taken and result.moved and result.moved.gain else None


def draws_axes(finding: Finding) -> bool:
    return True


def why(finding: Finding, axis: AxisFinding) -> str:
    result = result_of(finding, ResponseSurface)
    move = result.moves.get(axis.axis, 0.0)
    went = f"the centre moved {formats.log2(move)} log2" if move else "the centre did not move"
    if axis.decision == "dropped":
        went += ", and " + ("was not better" if result.moved and result.moved.gain else "was not measured")
    effect = next((each for each in result.effects if each.axis == axis.axis), None)
    return went if effect is None else f"{went}; {_effect(effect)}"


def _effect(effect: Effect) -> str:
    slope, curvature = effect.slope, effect.curvature
    return (
        f"slope {formats.mnat(slope.value)} ({formats.mnat_ci(slope)}) mnat/token per log2, "
        f"curvature {formats.mnat(curvature.value)} ({formats.mnat_ci(curvature)}) per (log2)²"
    )


def verdict(finding: Finding, comparison: Comparison) -> str:
    result = result_of(finding, ResponseSurface)
    if comparison == result.moved:
        return _verdict(result)
    taken = [each.measured for each in result.rounds if each.taken is not None]
    return "the next centre" if comparison in taken else outcome(comparison)


def draws_comparisons(finding: Finding) -> bool:
    return True


def section(finding: Finding, anchor: str) -> str:
    """Predicted and measured gains of the rounds, then what the surface says of every axis."""
    from mup_tune.report.figures import surfaces
    from mup_tune.report.html import rendered

    result = result_of(finding, ResponseSurface)
    return rendered(
        "surfaces.html",
        rounds=surfaces.rounds_figure(result, f"{anchor}-rounds"),
        axes=surfaces.axes_figure(result, f"{anchor}-effects"),
        units=result.units,
        result_axes=result.effects,
    )
