"""Which part of a tuned move carries the gain, and which part fades with width?

    python benchmarks/fading.py RUN --reference "ELR-EWD-tuned untuned" --widths 1 2 --out runs/fading

Every branch in turn goes back to the reference's values, at the run's proxy and at multiples of its width.
What that costs, paired over fresh seeds, is the branch's share of the gain there. A branch is taken back
whole, forward multipliers, LR and WD together: one of them alone would move what the others were tuned with.
The shares need not add up to the gain, for branches act on one another. All parts are run folders: the same
command resumes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mup_tune.cli.driving import driven
from mup_tune.cli.options import Executor
from mup_tune.cli.output import console, print_rows
from mup_tune.errors import UserError
from mup_tune.files import write_atomic
from mup_tune.findings import Comparison
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import last_state
from mup_tune.search.plan import Header, Plan
from mup_tune.search.stages.confirm import Confirm
from mup_tune.settings import GLOBAL_AXES, Settings
from mup_tune.shape import scaled

VECTORS = ("input_norm.lr", "pre_ff_norm.lr", "final_norm.lr")
STEMS = {
    "attention": ("key", "attention_out", "qkv"),
    "SSM": ("ssm_", "conv1d", "A_log", "D.", "dt_bias"),
    "MLP": ("mlp_",),
    "embedding": ("embedding",),
    "lm_head": ("lm_head",),
    "norms": VECTORS,
}
WHOLE = "the reference"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--reference", default="ELR-EWD-tuned untuned", help="one that the run has stored")
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0, 2.0], help="in multiples of the proxy's")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--executor", type=Executor, choices=list(Executor), default=Executor.RAY)
    args = parser.parse_args()
    try:
        found = {width: shares(args.run, args.reference, width, args.seeds, args.out, args.executor)
                 for width in args.widths}  # fmt: skip
    except UserError as error:
        raise SystemExit(str(error)) from None
    report = {
        f"{width:g}": {each.reference: vars(each.gain) for each in of if each.gain} for width, of in found.items()
    }
    write_atomic(args.out / "fading.json", json.dumps(report, indent=2) + "\n")
    rows = [row(width, each) for width, of in found.items() for each in of]
    print_rows(rows, f"What it costs to take a branch back to {args.reference}", "mnat/token; 95 % CIs over seeds")
    console.print(f"All numbers: {args.out / 'fading.json'}", soft_wrap=True)


def branch(axis: str) -> str:
    """Of one axis; the global ones are a branch of their own."""
    if axis in GLOBAL_AXES:
        return "ELR, EWD, RoPE"
    return next(name for name, stems in STEMS.items() if axis.startswith(stems))


def taken_back(tuned: Settings, reference: Settings) -> dict[str, Settings]:
    """``tuned`` with one branch as in ``reference``, by branch; branches that did not move are left out."""
    moved: dict[str, dict[str, float]] = {}
    for axis in (*GLOBAL_AXES, *MULTIPLIER_NAMES):
        if tuned.value(axis) != reference.value(axis):
            moved.setdefault(branch(axis), {})[axis] = reference.value(axis)
    return {name: tuned.with_values(values, name=f"without {name}") for name, values in moved.items()}


def shares(
    run: Path, reference: str, width: float, seeds: int, out: Path, executor: Executor
) -> tuple[Comparison, ...]:
    """The tuned Settings over themselves without each branch, and over the whole reference, at one width."""
    folder = RunFolder.open(run)
    state, record = last_state(folder), folder.plan
    if state is None or reference not in state.references:
        raise UserError(f"has no reference {reference!r}", file=run, field="--reference")
    against = {**taken_back(state.incumbent, state.references[reference]), WHOLE: state.references[reference]}
    shape = record.proxy if width == 1 else scaled(record.proxy, round(record.proxy.d_model * width))
    stage = Confirm(against=list(against), n_seeds=seeds)
    header = Header(
        name=f"fading-{width:g}",
        data=record.data,
        proxy=shape.name,
        seeds=record.seeds,
        budget=record.budget,
        stages=[stage.model_dump(mode="json")],
    )
    plan = Plan(header, shape, state.incumbent, (stage,), references=against)
    return driven(plan, out / f"width-{width:g}", executor)[0].comparisons


def row(width: float, comparison: Comparison) -> dict[str, str]:
    gain = comparison.gain
    said = (
        ("–", "–") if gain is None else (f"{1e3 * gain.value:+.1f}", f"{1e3 * gain.low:+.1f} … {1e3 * gain.high:+.1f}")
    )
    return dict(
        zip(("× width", "taken back", "costs", "95 % CI"), (f"{width:g}", comparison.reference, *said), strict=True)
    )


if __name__ == "__main__":
    main()
