"""ELR and EWD, one of them or both together."""

from __future__ import annotations

from mup_tune import stats
from mup_tune.findings import AxisFinding, Finding
from mup_tune.findings.global_axes import GlobalAxes, Plane
from mup_tune.report.words import BEST, Gained, change, gain, p, result_of
from mup_tune.settings import Settings


def summary(finding: Finding) -> list[str]:
    return sentences(result_of(finding, GlobalAxes), finding.after)


def why(finding: Finding, axis: AxisFinding) -> str:
    return reason(result_of(finding, GlobalAxes), axis)


def gained(finding: Finding) -> Gained | None:
    """The best trained pair or point over where the stage began, on the seeds that chose it."""
    result = result_of(finding, GlobalAxes)
    if finding.before == finding.after:
        return None
    if result.bowl is None:
        moved = [axis.gain for axis in result.axes if axis.after != axis.before and axis.gain]
        return Gained(moved[0], fresh=False) if len(moved) == 1 else None
    places = result.bowl.places
    centre = next((each for each in places if each.elr == each.ewd == 0), None)
    best = stats.argmin(stats.means([each.losses for each in places]))
    if centre is None or best is None:
        return None
    sigma = stats.sigma_delta([row for each in places if (row := stats.usable(each.losses))])
    gain = stats.paired_gain(places[best].losses, centre.losses, sigma)
    return Gained(gain, fresh=False) if gain else None


def draws_points(finding: Finding) -> bool:
    """The lines that the axes are judged by run through the plane."""
    return result_of(finding, GlobalAxes).bowl is not None


def section(finding: Finding, anchor: str) -> str:
    return plane_section(result_of(finding, GlobalAxes), anchor, "ELR and EWD together")


def plane_section(result: GlobalAxes, anchor: str, title: str) -> str:
    """The plane and its key; empty where the two axes were not swept together."""
    from mup_tune.report.figures import planes
    from mup_tune.report.html import rendered

    chart = planes.Chart.of(result)
    if chart is None:
        return ""
    return rendered("planes.html", title=title, chart=chart, figure=planes.plane_figure(chart, f"{anchor}-plane"))


def sentences(result: GlobalAxes, after: Settings) -> list[str]:
    """What was found of each axis, and what ``after`` comes to."""
    said = [f"{axis.axis.upper()}: {reason(result, axis)}." for axis in result.axes]
    if result.bowl is not None and (result.bowl.fit is None or not result.bowl.fit.yy.above_0):
        said.append("No bowl is shown along EWD: it moves only if a pair is better after Bonferroni over all pairs.")
    if result.eta_lambda_T < 1 and any(axis.axis == "ewd" for axis in result.axes):
        said.append("η·λ·T < 1: the run never leaves its init, so this EWD says little about a longer one.")
    said.append(f"Now η = {after.eta:.4g}, λ = {after.lam:.4g}, η·λ·T = {result.eta_lambda_T:.3g}.")
    if any(axis.axis == "ewd" and axis.points for axis in result.axes):
        said.append("A global EWD sweep also moves η of the vectors (norms, conv, A_log, D, dt_bias).")
    return said


def reason(result: GlobalAxes, axis: AxisFinding) -> str:
    match axis.reason:
        case "all diverged":
            return f"kept: every point from {axis.points[0].value:.4g} up diverged"
        case "best":
            return BEST
        case "noise unknown":
            return "kept: too few seeds and points to tell noise from gain"
        case "not better":
            return f"kept: {gain(axis.gain)}, {p(axis.p_value)} over all points"
    if result.bowl is not None and axis.decision == "kept":
        return f"kept: {_together(result.bowl)}"
    said = f"re-centred, not tested: {change(axis)}" if axis.decision == "re-centred" else change(axis)
    if result.bowl is not None:
        return f"{said} ({_together(result.bowl)})" + (_edge(axis) if axis.decision == "edge" else "")
    how = "best point, no parabola fits"
    if axis.fit is not None:
        how = f"{'local fits, no parabola holds,' if axis.fit.robust else 'parabola'} through "
        how += f"{axis.fit.points_used} points"
    said = f"{said} ({how}); best point: {gain(axis.gain)}"
    return said + _edge(axis) if axis.decision == "edge" else said


def _together(plane: Plane) -> str:
    if plane.fit is None or not plane.fit.yy.above_0:
        return f"from {len(plane.places)} pairs of ELR and EWD"
    return f"bowl through {plane.fit.points_used} pairs of ELR and EWD"


def _edge(axis: AxisFinding) -> str:
    return f"; still at the edge of the grid after {axis.extended} extensions"
