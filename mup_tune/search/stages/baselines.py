"""The ``baselines`` stage: what the incumbent is compared with, left as references for ``confirm``."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mup_tune.findings import State
from mup_tune.findings.baselines import BaselineSet, RandomSearch, TunedBaseline
from mup_tune.findings.global_axes import GlobalAxes
from mup_tune.findings.joint_search import Candidate
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.search.axes import acting, moved
from mup_tune.search.sampling import suggest
from mup_tune.search.stage import Asked, Conclusion, Context, Stage, each_once
from mup_tune.search.stages.elr_ewd import ElrEwd
from mup_tune.search.stages.joint import as_search
from mup_tune.settings import Settings, load_settings, untuned

Baseline = Literal[
    "untuned",
    "ELR-tuned untuned",
    "ELR-EWD-tuned untuned",
    "falcon-h1-published",
    "ELR-tuned falcon-h1-published",
    "ELR-EWD-tuned falcon-h1-published",
    "random search",
]
EWD_OFFSETS = (-2.0, -1.0, 0.0, 1.0, 2.0)
TUNED: dict[str, tuple[float, ...]] = {"ELR-tuned ": (), "ELR-EWD-tuned ": EWD_OFFSETS}  # EWD offsets by prefix
RANDOM = "random search"


class Baselines(Stage):
    """Leaves each of ``include`` as a reference of that name; the incumbent does not change.

    ``random search`` is the best of uniform candidates in a box of ±``radius`` log2 around ``untuned``, over
    ELR and all multipliers, on one seed each: as many as the FLOPs buy that the search for the incumbent has
    spent so far, at least 2, or ``trials``. A single seed chose it, as cheap as can be; ``confirm`` measures
    it on fresh ones.
    """

    kind: Literal["baselines"] = "baselines"
    include: Annotated[tuple[Baseline, ...], Field(min_length=1), each_once("baseline")] = (
        "untuned",
        "ELR-tuned untuned",
        "ELR-EWD-tuned untuned",
        "falcon-h1-published",
        "random search",
    )
    radius: Annotated[float, Field(ge=0.125, le=8)] = 2.0
    trials: Annotated[int, Field(ge=2)] | None = None

    @property
    def title(self) -> str:
        return f"Baselines: {', '.join(self.include)}"

    @property
    def on_path(self) -> bool:
        return False

    def most(self, expected: int, context: Context, state: State) -> int:
        """The ELR sweeps to their end, and the random search, which buys what ``state.flops`` pays for."""
        tuned = [stage.most(0, context, state) for name in self.include if (stage := _tuning(name))]
        return sum(tuned) + (self._size(context, state) if RANDOM in self.include else 0)

    def walk(self, asked: Asked, state: State) -> Conclusion:
        references, tuned, random = dict(state.references), list[TunedBaseline](), None
        for name in self.include:
            if name == RANDOM:
                references[name], random = self._random(asked, state)
            elif (stage := _tuning(name)) is not None:
                swept = stage.walk(asked, state)
                references[name], result = swept.state.references[name], swept.finding.result
                assert isinstance(result, GlobalAxes)
                tuned.append(TunedBaseline(name=name, settings=references[name], result=result))
            else:
                references[name] = load_settings(name, asked.context.shape)
        result = BaselineSet(tuned=tuple(tuned), random=random)
        finding = self.finding(state.incumbent, state.incumbent, result)
        return Conclusion(replace(state, references=references), finding)

    def _size(self, context: Context, state: State) -> int:
        """Candidates of the random search."""
        (trial,) = context.trials(state.incumbent, context.seeds[:1])
        return self.trials or max(2, int(state.flops / trial.flops))

    def _random(self, asked: Asked, state: State) -> tuple[Settings, RandomSearch]:
        context, seeds = asked.context, asked.context.seeds[:1]
        centre, axes = untuned(context.shape), acting(("elr", *MULTIPLIER_NAMES), context.shape)
        draws = int(np.random.SeedSequence(context.seeds).generate_state(1)[0])
        offsets = suggest("random", axes, self.radius, (), self._size(context, state), draws)
        found = asked.losses([moved(centre, each) for each in offsets], seeds)
        rows = zip(offsets, found, strict=True)
        search = as_search("random", axes, self.radius, {}, [Candidate(round=1, offsets=o, losses=f) for o, f in rows])
        best = centre if search.best is None else moved(centre, search.candidates[search.best].offsets)
        flops = None if self.trials is not None else state.flops
        return best.with_values({}, name=RANDOM), RandomSearch(search=search, flops=flops)


def _tuning(name: str) -> ElrEwd | None:
    """The stage that tunes the baseline of that name; None where nothing is tuned."""
    for prefix, offsets in TUNED.items():
        if name.startswith(prefix):
            return ElrEwd(settings=name.removeprefix(prefix), reference=name, incumbent=False, ewd_offsets=offsets)
    return None
