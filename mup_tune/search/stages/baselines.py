"""The ``baselines`` stage: what the incumbent is compared with, left as references for ``confirm``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mup_tune.findings import Candidate, Search
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.search.sampling import suggest
from mup_tune.search.stage import Asked, Conclusion, Context, Stage, State, each_once
from mup_tune.search.stages.elr_ewd import ElrEwd
from mup_tune.search.stages.joint import acting, as_search, moved
from mup_tune.settings import Settings, load_settings, untuned

Baseline = Literal[
    "untuned", "ELR-tuned untuned", "falcon-h1-published", "ELR-tuned falcon-h1-published", "random search"
]
TUNED, RANDOM = "ELR-tuned ", "random search"


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
        "falcon-h1-published",
        "random search",
    )
    radius: Annotated[float, Field(ge=0.125, le=8)] = 2.0
    trials: Annotated[int, Field(ge=2)] | None = None

    @property
    def title(self) -> str:
        return f"Baselines: {', '.join(self.include)}"

    @property
    def provides(self) -> Sequence[str]:
        """The names of the baselines themselves."""
        return self.include

    @property
    def on_path(self) -> bool:
        return False

    def counts(self, context: Context, state: State) -> tuple[int, int]:
        """The ELR sweeps' and the random search's, which buys what ``state.flops`` pays for."""
        each = [self._elr(name).counts(context, state) for name in self.include if name.startswith(TUNED)]
        drawn = self._size(context, state) if RANDOM in self.include else 0
        return sum(few for few, _ in each) + drawn, sum(most for _, most in each) + drawn

    def walk(self, asked: Asked, state: State) -> Conclusion:
        references, searches, summary = dict(state.references), list[Search](), list[str]()
        for name in self.include:
            if name == RANDOM:
                references[name], search, said = self._random(asked, state)
                searches.append(search)
                summary.append(said)
            elif name.startswith(TUNED):
                tuned = self._elr(name).walk(asked, state)
                references[name] = tuned.state.references[name]
                summary.append(f"{name}: {' '.join(tuned.finding.summary)}")
            else:
                references[name] = load_settings(name, asked.context.shape)
        finding = self.finding(state.incumbent, state.incumbent, searches=tuple(searches), summary=tuple(summary))
        return Conclusion(replace(state, references=references), finding)

    def _elr(self, name: str) -> ElrEwd:
        return ElrEwd(settings=name.removeprefix(TUNED), reference=name, incumbent=False)

    def _size(self, context: Context, state: State) -> int:
        """Candidates of the random search."""
        (trial,) = context.trials(state.incumbent, context.seeds[:1])
        return self.trials or max(2, int(state.flops / trial.flops))

    def _random(self, asked: Asked, state: State) -> tuple[Settings, Search, str]:
        context, seeds = asked.context, asked.context.seeds[:1]
        centre, axes = untuned(context.shape), acting(("elr", *MULTIPLIER_NAMES), context.shape)
        n = self._size(context, state)
        draws = int(np.random.SeedSequence(context.seeds).generate_state(1)[0])
        offsets = suggest("random", axes, self.radius, (), n, draws)
        found = asked.losses([moved(centre, each) for each in offsets], seeds)
        rows = zip(offsets, found, strict=True)
        search = as_search("random", axes, self.radius, {}, [Candidate(round=1, offsets=o, losses=f) for o, f in rows])
        said = f"{RANDOM}: {n} candidates around untuned on one seed each, "
        if self.trials is not None:
            said += "as the plan says"
        elif state.flops:
            said += f"what the {state.flops:.3g} FLOPs of the search for the incumbent buy"
        else:
            said += "the least there can be, for no earlier stage has searched for the incumbent"
        if search.best is None:
            return centre.with_values({}, name=RANDOM), search, f"{said}; all diverged and untuned stands in."
        best = search.candidates[search.best]
        said += f"; candidate {search.best + 1} is best at {best.losses[seeds[0]]:.4f} nats/token."
        return moved(centre, best.offsets).with_values({}, name=RANDOM), search, said
