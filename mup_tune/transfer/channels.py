"""A target with its inner channels shared anew: as the user says, or at the best ratio of a run."""

from __future__ import annotations

from pathlib import Path

from mup_tune import stats
from mup_tune.channels import Ratio, nearest
from mup_tune.errors import UserError
from mup_tune.findings.shapes import ShapePoint, ShapeSet
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.shape import Shape

FROM_RUN = "from-run"


def resplit(target: Shape, asked: str, source: str) -> Shape:
    """``target`` at the ratio ``asked`` (``"2:1:5"`` or ``"from-run"``), at equal parameters.

    The returned Shape's note says what was done.

    Args:
        source: the run folder that ``from-run`` reads.

    Raises:
        UserError: no ratio of eighths, a source without a finished channels stage, or a target that cannot
        take it.
    """
    ratio, why = _best_of_run(source) if asked == FROM_RUN else (Ratio.parse(asked), "as asked")
    shape, rounded = nearest(target, ratio)
    notes = [
        *([target.note] if target.note else []),
        f"its channels were shared anew, SSM:attention:MLP {ratio} ({why}): d_ssm {target.d_ssm} became {shape.d_ssm}, "
        f"d_attn {target.d_attn} became {shape.d_attn}, d_ff {target.d_ff} became {shape.d_ff}; all values here follow "
        f"from the rules at this Shape, {target.name or 'the target'}'s own differ",
        *rounded,
    ]
    return shape.model_copy(update={"note": "; ".join(notes)})


def _best_of_run(source: str) -> tuple[Ratio, str]:
    """The ratio with the lowest mean loss in SA_M, the order ``transformers`` builds, and why this one."""
    by_stage = _compared_ratios(source)
    stages, points = ", ".join(by_stage), [point for points in by_stage.values() for point in points]
    ended = [(loss, point) for point in points if (loss := stats.mean(point.losses)) is not None]
    falcon = [(loss, point) for loss, point in ended if point.shape.block_order == "SA_M"]
    if not falcon:
        raise UserError(
            f"no ratio in block order SA_M trained to its end on every seed in {stages}",
            field="--channels",
            fix="transformers builds SA_M only: run the stage with it, or give a ratio such as 2:1:5",
        )
    loss, best = min(falcon, key=lambda each: each[0])
    lowest, first = min(ended, key=lambda each: each[0])
    other = "" if lowest >= loss else f"; {first.label} had {lowest:.4f}, and transformers cannot build it"
    ratios = len({point.channels for _, point in falcon})
    why = (
        f"the lowest mean loss, {loss:.4f} nats/token, of {ratios} ratios in SA_M in the run's {stages}{other}; "
        "its report says what was within noise"
    )
    return Ratio.parse(best.channels), why


def _compared_ratios(source: str) -> dict[str, list[ShapePoint]]:
    """What the run's channels stages compared, by stage. One budget and one text: losses compare."""
    if not Path(source).is_dir():
        raise UserError(
            f"{FROM_RUN} needs a run folder, and {source!r} is none",
            field="--channels",
            fix="Transfer from a run with a channels stage, or give a ratio such as 2:1:5",
        )
    results = {each.stage: each.result for each in Journal(RunFolder.open(source), writable=False).findings()}
    shapes = {stage: result.points for stage, result in results.items() if isinstance(result, ShapeSet)}
    found = {stage: ratios for stage, each in shapes.items() if (ratios := [p for p in each if p.channels])}
    if not found:
        raise UserError(
            "this run has no concluded channels stage, so it has no ratio to offer",
            file=source,
            field="--channels",
            fix="Sweep the plan `channels` first, or give a ratio such as 2:1:5",
        )
    return found
