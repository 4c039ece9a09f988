"""Look at a run in Python: its best trials, what its stages decided, a learning curve, the sensitive axes.

    python examples/look_at_a_run.py runs/first --plot curve.png

docs/tables.md describes every column.
"""

from __future__ import annotations

import argparse

import mup_tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--plot", metavar="FILE", help="draw the best trial's learning curve")
    args = parser.parse_args()
    run = mup_tune.load_run(args.run)

    # Losses compare at one size and one length alone, so the plan's own proxy and Budget are kept.
    alike = (run.trials["shape"] == run.plan.proxy.name) & (run.trials["total_tokens"] == run.plan.budget.total_tokens)
    trials = run.trials[alike]
    # A single seed can be lucky, so Settings are ranked by their mean over several.
    by_settings = trials.groupby("settings_hash")["loss"].agg(["mean", "count"]).query("count > 1")
    print("The best Settings, in nats/token over seeds:", by_settings.nsmallest(5, "mean"), sep="\n")

    print("\nWhat the stages decided:", run.stages[["stage", "decision", "trials", "gain", "gain_over"]], sep="\n")

    best = trials.loc[trials["loss"].idxmin()]
    curve = run.curve(best["hash"])
    print(f"\nThe best trial, {best['hash']}, ends at {best['loss']:.4f}. Its training loss by tokens:")
    print(curve.set_index("tokens")["loss"].iloc[:: max(1, len(curve) // 5)].to_string())

    print("\nThe most sensitive axes, in nats/token per (log2)²:")
    for axis, curvature in sorted(run.sensitivity.items(), key=lambda item: -item[1])[:5]:
        value = run.settings.value(axis)  # what the incumbent has now
        print(f"  {axis}: {curvature:.4f}, now {value:.4g}")
    if args.plot:
        curve.plot(x="tokens", y="loss", ylabel="training loss, nats/token").figure.savefig(args.plot)


if __name__ == "__main__":
    main()
