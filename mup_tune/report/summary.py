"""``summary.json`` of a report: what an index says of it, and the mark by which a report is known as ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, ValidationError

from mup_tune.files import FrozenModel
from mup_tune.report.gains import claims_of, headline_of
from mup_tune.run.view import RunView
from mup_tune.stats import Interval

FILE = "summary.json"


class Summary(FrozenModel):
    """A report in an index' words.

    ``date`` is that of the run, ISO, in UTC. ``gain``: over ``reference``, the hardest one, in nats/token;
    ``tokens``: times the tokens that it needs for the same loss. ``seconds``: of training, summed over lanes.
    A comparison has several ``runs``, and no gain of its own.
    """

    model_config = ConfigDict(extra="ignore")  # a later version may tell more

    made_by: Literal["mup-tune report"] = "mup-tune report"
    kind: Literal["run", "comparison"]
    title: str
    below: str = ""
    date: str
    state: Literal["live", "complete", "stopped"]
    plan: str
    proxy: str
    parameters: int | None = None
    corpus: str
    corpus_hash: str = ""
    reference: str | None = None
    gain: Interval | None = None
    tokens: Interval | None = None
    beyond: bool = False
    trials: int
    diverged: int
    tokens_trained: int
    flops: float
    seconds: float
    runs: tuple[str, ...] = ()
    version: str

    def text(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def summary_of(run: RunView) -> Summary:
    title, below = headline_of(run)
    claims = claims_of(run)
    known = [(gain.value, each) for each in claims if (gain := each.comparison.gain) is not None]
    claim = min(known, key=lambda pair: pair[0])[1] if known else None
    saved = claim.saved if claim else None
    complete = len(run.findings) == len(run.plan.stages)
    trials, packs = run.trials, run.packs
    return Summary(
        kind="run",
        title=title,
        below=below,
        date=run.record.created,
        state="live" if run.live else "complete" if complete else "stopped",
        plan=run.plan.name,
        proxy=run.plan.proxy.name,
        parameters=run.plan.proxy.parameters(),
        corpus=run.record.corpus.name,
        corpus_hash=run.record.corpus.hash,
        reference=claim.comparison.reference if claim else None,
        gain=claim.comparison.gain if claim else None,
        tokens=saved.factor if saved else None,
        beyond=saved.beyond if saved else False,
        trials=len(trials),
        diverged=int((trials["status"] != "ok").sum()),
        tokens_trained=int(trials["total_tokens"].sum()),
        flops=float(trials["flops"].sum()) if "flops" in trials else 0.0,
        seconds=float(packs["seconds"].sum()) if "seconds" in packs else 0.0,
        version=run.record.version,
    )


def read_summary(folder: Path) -> Summary | None:
    """Of a report's folder; None where it is none of ours, or not to be read."""
    try:
        return Summary.model_validate(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, ValidationError):
        return None
