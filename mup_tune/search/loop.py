"""The loop that walks a plan's stages: proposals become packs, outcomes rows, and rows decisions.

It is the :class:`~mup_tune.engine.work.PackSource` of a sweep. Stages are pure functions of what is known, so
that resuming is replaying: the journal's rows and packs go in, and the same decisions come out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mup_tune.engine.calibrations import from_note, note_name, to_note
from mup_tune.engine.packing import halves, population_size, split
from mup_tune.engine.work import Calibrate, Calibration, Outcome, OutOfMemoryError, Signal, Work
from mup_tune.errors import DivergedError, UserError
from mup_tune.files import content_hash
from mup_tune.findings import Finding
from mup_tune.run.journal import Journal
from mup_tune.run.records import made_differently
from mup_tune.search.plan import Plan
from mup_tune.search.stage import Conclusion
from mup_tune.trial import Pack, PackResult, Trial, TrialResult
from mup_tune.version import trained_by

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
ATTEMPTS = 3  # of one pack, before its failure is taken for a bug


@dataclass(frozen=True)
class Position:
    """Where a sweep stands, for displays."""

    stage: int
    stages: int
    title: str
    done: int
    wanted: int
    flops_left: float
    best_loss: float | None


class Sweep:
    """One execution of a plan against a journal.

    ``changed`` says how the code or the arithmetic differs from that of the run's first pack; mostly nothing.
    """

    def __init__(self, plan: Plan, journal: Journal) -> None:
        self.plan, self.journal, self.context = plan, journal, plan.context
        self.state = plan.state
        self.index = 0
        self.queue: deque[Work] = deque()
        self.outstanding: set[str] = set()
        self.attempts: dict[str, int] = {}
        self.wanted: list[Trial] = []
        self.lanes = 1
        packs = journal.packs()
        self.first_record: dict[str, Any] = packs[0]["record"] if packs else {}
        self.changed = made_differently(self.first_record, {"mup_tune": trained_by()})

    def key(self, index: int) -> str:
        """A stage's name in the journal and in file names: its place, and its name or kind."""
        return self.plan.key(index)

    @property
    def complete(self) -> bool:
        """Whether every stage of the plan has concluded: no driver's end says so by itself."""
        return self.index == len(self.plan.stages)

    def next(self, lanes: int) -> Work | Signal:
        self.lanes = lanes
        if not self.queue and not self.outstanding:
            self._advance()
        if self.queue:
            work = self.queue.popleft()
            self.outstanding.add(_id(work))
            return work
        return Signal.WAIT if self.outstanding else Signal.DONE

    def commit(self, work: Work, outcome: Outcome) -> None:
        if _id(work) not in self.outstanding:
            return
        if isinstance(outcome, Calibration):
            self.journal.set_note(_id(work), to_note(outcome))
        elif isinstance(outcome, PackResult):
            self.journal.commit(outcome)
            self.first_record = self.first_record or outcome.record
            self.changed = made_differently(self.first_record, outcome.record)
        self.outstanding.discard(_id(work))

    def lost(self, work: Work, error: Exception) -> None:
        """Hand lost work out again; split what does not fit; end the run on what keeps failing."""
        if _id(work) not in self.outstanding:
            return
        if isinstance(error, UserError):
            raise error
        self.outstanding.discard(_id(work))
        if isinstance(error, OutOfMemoryError):
            self._shrink(work, error)
            return
        self.attempts[_id(work)] = self.attempts.get(_id(work), 0) + 1
        if self.attempts[_id(work)] >= ATTEMPTS:
            raise RuntimeError(f"{_label(work)} failed {ATTEMPTS} times, last with: {error}") from error
        self.queue.appendleft(work)

    def position(self) -> Position:
        known = self.journal.rows
        rows = [known[trial.hash] for trial in self.wanted if trial.hash in known]
        losses = [row.loss for row in rows if row.ok]
        index = min(self.index, len(self.plan.stages) - 1)
        best = min(losses) if losses else None
        title = self.plan.stages[index].title
        left = sum(trial.flops for trial in self.wanted if trial.hash not in known)
        return Position(index, len(self.plan.stages), title, len(rows), len(self.wanted), left, best)

    def _advance(self) -> None:
        """Conclude stages until one wants training, and queue its packs."""
        while self.index < len(self.plan.stages):
            stage, key = self.plan.stages[self.index], self.key(self.index)
            stored = self.journal.conclusion(key)
            if stored:
                self.state = stored[1]
                self.index += 1
                continue
            self.journal.begin_stage(key, stage.kind, stage.title, self.state.incumbent)
            known = self.journal.rows
            self.wanted = list({t.hash: t for t in stage.propose(self.context, self.state, known)}.values())
            missing = [trial for trial in self.wanted if trial.hash not in known]
            if missing:
                self._queue(key, missing)
                return
            _refuse_all_diverged(key, [known[trial.hash] for trial in self.wanted])
            conclusion: Conclusion = stage.conclude(self.context, self.state, known)
            finding = conclusion.finding.model_copy(update={"stage": key})
            state = replace(conclusion.state, flops=self.state.flops + self._spent(key, finding))
            self.journal.conclude(key, finding, state)
            self.state = state
            self.index += 1

    def _spent(self, key: str, finding: Finding) -> float:
        """FLOPs of the stage's own trials; what is tuned to be compared with is no part of the search."""
        members = self.journal.members() if finding.on_path else []
        return sum(member.row.trial.flops for member in members if member.stage == key)

    def _queue(self, key: str, missing: list[Trial]) -> None:
        """Packs that were journalled before a crash first, in their composition; new packs for the rest."""
        planned = self.journal.planned(key)
        self.queue.extend(planned)
        covered = {trial.hash for pack in planned for trial in pack.trials}
        kinds: dict[str, list[Trial]] = {}
        for trial in missing:
            if trial.hash not in covered:
                kinds.setdefault(_kind(trial), []).append(trial)
        # Calibrations first, and alone: what they say decides how the rest is packed.
        first = {_speed(trials[0]): trials[0] for trials in kinds.values()}
        unmeasured = [trial for speed, trial in first.items() if self.journal.get_note(speed) is None]
        if unmeasured:
            self.queue.clear()
            self.queue.extend(Calibrate(trial, SIZES) for trial in unmeasured)  # later stages may have more trials
            return
        # The dearest Shape first: what is left at the barrier is cheap.
        largest = {kind: self._size(trials) for kind, trials in kinds.items()}
        if kinds and self.plan.stages[self.index].equal_packs:
            largest = dict.fromkeys(kinds, min(largest.values()))
        for kind, trials in sorted(kinds.items(), key=lambda item: -item[1][0].flops):
            for members in split(tuple(trials), largest[kind]):
                self.queue.append(self._planned(key, members))

    def _size(self, trials: list[Trial]) -> int:
        fastest = population_size(self._calibration(trials[0]), len(trials), self.lanes)
        return min(fastest, self._fits(trials[0]))

    def _fits(self, trial: Trial) -> int:
        """The largest population of such trials that may still fit: packs that ran out of memory tell."""
        halved = (parts[0].trials for parts in self.journal.replacements())
        return min((len(part) for part in halved if _speed(part[0]) == _speed(trial)), default=SIZES[-1])

    def _planned(self, key: str, trials: tuple[Trial, ...]) -> Pack:
        pack = Pack.of(key, trials)
        self.journal.plan_pack(key, pack, {"members": len(trials), "lanes": self.lanes})
        return pack

    def _calibration(self, trial: Trial) -> Calibration:
        return from_note(self.journal.get_note(_speed(trial)))

    def _shrink(self, work: Work, error: OutOfMemoryError) -> None:
        if isinstance(work, Calibrate) or len(work.trials) == 1:
            raise UserError(
                f"one member of this Shape and Budget does not fit on the device ({error})",
                field="budget.batch_tokens",
                fix="Use a smaller proxy or fewer tokens a batch",
            )
        parts = halves(work)
        self.journal.replace_pack(work.stage, work.id, str(error), parts)
        self.queue.extendleft(reversed(parts))


def _refuse_all_diverged(key: str, rows: Sequence[TrialResult]) -> None:
    """A stage whose every trial diverged knows nothing, and a run that went on would look tuned."""
    if rows and not any(row.ok for row in rows):
        raise DivergedError(
            f"all {len(rows)} trials of stage {key} diverged, the first because {rows[0].reason}",
            fix="Start a new run from a lower ELR (`start` and `elr_offsets` in the plan) or with more warmup_tokens",
        )


def _id(work: Work) -> str:
    return work.id if isinstance(work, Pack) else _speed(work.trial)


def _kind(trial: Trial) -> str:
    """What members of one pack share: Shape and Budget."""
    return content_hash([trial.shape.model_dump(mode="json"), trial.budget.model_dump(mode="json")])


def _speed(trial: Trial) -> str:
    """What the calibration of such trials is called in the journal."""
    return note_name(trial.shape, trial.budget)


def _label(work: Work) -> str:
    return f"pack {work.id} ({len(work.trials)} members)" if isinstance(work, Pack) else "the calibration"
