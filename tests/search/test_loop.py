from __future__ import annotations

import zlib
from math import log2, nan
from pathlib import Path
from typing import ClassVar

import pytest

from mup_tune.engine import inline
from mup_tune.engine.work import Calibrate, Calibration, Outcome, OutOfMemoryError, Report, Work
from mup_tune.errors import DivergedError, UserError
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.search.loop import Sweep
from mup_tune.search.plan import Plan, load_plan
from mup_tune.trial import Pack, PackResult, Trial, TrialResult

PLAN = """
proxy: cpu-32
start: falcon-h1-published
seeds: [0, 1]
budget: {seq_len: 32, batch_tokens: 128, total_tokens: 12800, warmup_tokens: 0, decay_tokens: 1280, val_tokens: 320}
stages:
  - {kind: elr_ewd, settings: untuned, reference: tuned untuned, incumbent: false, n_seeds: 1}
  - {kind: elr_ewd, reference: tuned}
  - {kind: micro, group: [key, lm_head, mlp_down]}
  - {kind: confirm, against: [tuned], n_seeds: 3}
"""


class Landscape:
    """A runner whose loss is a smooth bowl with noise fixed by the trial: one trial, one loss."""

    def __init__(
        self, largest: int = 99, crash_after: int | None = None, made_by: str = "", dies: bool = False
    ) -> None:
        self.largest, self.crash_after, self.dies = largest, crash_after, dies
        self.record = {"backend": "none", "tokens_per_s": 1.0} | ({"mup_tune": made_by} if made_by else {})
        self.trained: list[str] = []
        self.packs: list[str] = []

    def run(self, work: Work, report: Report) -> Outcome:
        if isinstance(work, Calibrate):
            return Calibration({1: 100.0, 2: 190.0, 4: 300.0, 8: 310.0}, "cpu")
        if len(work.trials) > self.largest:
            raise OutOfMemoryError("too many members")
        if self.crash_after is not None and len(self.packs) >= self.crash_after:
            raise KeyboardInterrupt
        self.packs.append(work.id)
        self.trained += [trial.hash for trial in work.trials]
        rows = tuple(TrialResult(trial, "ok", loss(trial), 0.01) for trial in work.trials)
        if self.dies:
            rows = tuple(
                TrialResult(trial, "diverged", nan, nan, "the loss became nan at step 3") for trial in work.trials
            )
        count = len(work.trials)
        curves = {key: [0.0] * count for key in ("step", "tokens", "loss", "grad_norm", "clipped", "eta")}
        curves["member"] = [float(member) for member in range(count)]
        return PackResult(work, rows, curves, self.record)


def loss(trial: Trial) -> float:
    settings = trial.settings
    noise = (zlib.crc32(trial.hash.encode()) / 2**32 - 0.5) * 0.004
    bowl = 0.05 * (log2(settings.elr) + 5.4) ** 2 + 0.03 * (log2(settings.multipliers["lm_head"]) + 3) ** 2
    return 2.0 + bowl + 0.1 * (trial.seed % 7) + noise


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return load_plan(str(path))


def sweep(plan: Plan, folder: Path, landscape: Landscape) -> tuple[Sweep, dict[str, float]]:
    with RunFolder.create_or_resume(folder, plan.resolved(), plan.hash, {"name": "none", "hash": "0"}) as run:
        journal = Journal(run, writable=True)
        walk = Sweep(plan, journal)
        try:
            inline.drive(walk, lambda lane: landscape.run, lambda _: None)
        finally:
            losses = {key: row.loss for key, row in journal.rows.items()}
            journal.close()
    return walk, losses


def test_a_sweep_finds_the_bowl_and_trains_no_trial_twice(plan: Plan, tmp_path: Path) -> None:
    landscape = Landscape()
    walk, losses = sweep(plan, tmp_path / "run", landscape)
    assert len(landscape.trained) == len(set(landscape.trained)) == len(losses)
    assert log2(walk.state.incumbent.elr) == pytest.approx(-5.4, abs=0.1)
    assert log2(walk.state.incumbent.multipliers["lm_head"]) == pytest.approx(-3, abs=0.15)
    assert walk.state.incumbent.multipliers["key"] == plan.start.multipliers["key"]
    assert set(walk.state.references) == {"tuned", "tuned untuned"}


@pytest.mark.parametrize("crash_after", [0, 1, 3, 6, 9])
def test_an_interrupted_sweep_resumes_to_the_same_end_without_repeating_a_pack(
    plan: Plan, tmp_path: Path, crash_after: int
) -> None:
    whole, whole_losses = sweep(plan, tmp_path / "whole", Landscape())
    first = Landscape(crash_after=crash_after)
    with pytest.raises(KeyboardInterrupt):
        sweep(plan, tmp_path / "run", first)
    second = Landscape()
    resumed, losses = sweep(plan, tmp_path / "run", second)
    assert not set(first.trained) & set(second.trained)
    assert losses == whole_losses
    assert resumed.state == whole.state
    third = Landscape()
    assert sweep(plan, tmp_path / "run", third)[0].state == whole.state
    assert third.packs == []


def test_a_pack_that_does_not_fit_is_split_and_the_decisions_stay(plan: Plan, tmp_path: Path) -> None:
    whole, losses = sweep(plan, tmp_path / "whole", Landscape())
    split, split_losses = sweep(plan, tmp_path / "split", Landscape(largest=2))
    assert split_losses == losses
    assert split.state == whole.state
    with pytest.raises(UserError, match=r"budget\.batch_tokens"):
        sweep(plan, tmp_path / "none", Landscape(largest=0))


class Narrow(Landscape):
    """Two members of width 64 fit, any number of others; ``sizes``: of trained packs by width and stage."""

    def __init__(self, crash_after: int | None = None) -> None:
        super().__init__(crash_after=crash_after)
        self.sizes: dict[tuple[int, str], list[int]] = {}
        self.failures = 0

    def run(self, work: Work, report: Report) -> Outcome:
        if isinstance(work, Pack):
            width = work.trials[0].shape.d_model
            if width == 64 and len(work.trials) > 2:
                self.failures += 1
                raise OutOfMemoryError("too many members")
            outcome = super().run(work, report)
            self.sizes.setdefault((width, work.stage), []).append(len(work.trials))
            return outcome
        return super().run(work, report)


def test_memory_is_a_matter_of_shape_and_budget_and_a_resume_knows_it(tmp_path: Path) -> None:
    path, check = tmp_path / "plan.yaml", "kind: basin, params: [mup], n_seeds: 2, widths: [32, 64], extend: 0"
    path.write_text(PLAN[: PLAN.index("stages:")] + f"stages: [{{{check}}}, {{{check}, hp: ewd, offsets: [-1, 0, 1]}}]")
    plan, whole, stopped, resumed = load_plan(str(path)), Narrow(), Narrow(crash_after=8), Narrow()
    sweep(plan, tmp_path / "whole", whole)
    assert whole.sizes[64, "01-basin"] == [2, 1, 2, 2, 1, 2]
    assert whole.sizes[32, "01-basin"] == [5, 5]
    assert whole.sizes[64, "02-basin"] == [2, 2]
    assert whole.sizes[32, "02-basin"] == [4]
    with pytest.raises(KeyboardInterrupt):
        sweep(plan, tmp_path / "run", stopped)
    sweep(plan, tmp_path / "run", resumed)
    assert stopped.sizes | resumed.sizes == whole.sizes
    assert (stopped.failures, resumed.failures) == (whole.failures, 0)


def test_a_pack_that_keeps_failing_ends_the_run_with_its_reason(plan: Plan, tmp_path: Path) -> None:
    class Broken(Landscape):
        def run(self, work: Work, report: Report) -> Outcome:
            if isinstance(work, Pack):
                raise ValueError("no such kernel")
            return super().run(work, report)

    with pytest.raises(RuntimeError, match="failed 3 times, last with: no such kernel"):
        sweep(plan, tmp_path / "run", Broken())


def test_a_lost_pack_is_trained_again_whole(plan: Plan, tmp_path: Path) -> None:
    class Flaky(Landscape):
        failures = 2

        def run(self, work: Work, report: Report) -> Outcome:
            if isinstance(work, Pack) and self.failures:
                self.failures -= 1
                raise OSError("lane lost")
            return super().run(work, report)

    flaky = Flaky()
    assert sweep(plan, tmp_path / "run", flaky)[1] == sweep(plan, tmp_path / "whole", Landscape())[1]


def test_diverged_trials_are_rows_too_and_are_not_trained_again(plan: Plan, tmp_path: Path) -> None:
    class Cliff(Landscape):
        def run(self, work: Work, report: Report) -> Outcome:
            outcome = super().run(work, report)
            if isinstance(outcome, Calibration):
                return outcome
            rows = tuple(
                TrialResult(row.trial, "diverged", nan, nan, "the loss became nan at step 1 of 100")
                if row.trial.settings.elr > plan.start.elr * 3.9
                else row
                for row in outcome.rows
            )
            return PackResult(outcome.pack, rows, outcome.curves, outcome.record)

    cliff = Cliff()
    walk, _ = sweep(plan, tmp_path / "run", cliff)
    assert len(cliff.trained) == len(set(cliff.trained))
    assert walk.state.incumbent.elr < plan.start.elr * 3.9


def bad(tmp_path: Path, text: str, *assignments: str, scale: str | None = None) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_plan(str(path), scale, assignments)
    return str(caught.value)


CASES = [
    ("seeds: [0, 1]", "sedes: [0, 1]"),
    ("proxy: cpu-32", "proxy: cpu-23"),
    ("start: falcon-h1-published", "start: falcon-h1-publishd"),
    ("kind: micro", "kind: mirco"),
    ("group: [key, lm_head, mlp_down]", "group: [key, lm_haed]"),
    ("against: [tuned]", "against: [tund]"),
    ("total_tokens: 12800", "total_tokens: lots"),
    ("val_tokens: 320", "val_tokens: 321"),
    ("reference: tuned}", "refrence: tuned}"),
]


def test_wrong_plans_name_file_field_value_and_what_is_allowed(tmp_path: Path) -> None:
    expected = [
        ["bad.yaml: sedes", "did you mean 'seeds'"],
        ["bad.yaml: proxy", "did you mean 'cpu-32'"],
        ["bad.yaml: start", "did you mean 'falcon-h1-published'"],
        ["bad.yaml: stages[2].kind", "did you mean 'micro'"],
        ["bad.yaml: stages[2].group", "did you mean 'lm_head'"],
        ["bad.yaml: stages[3].against", "did you mean 'tuned'"],
        ["bad.yaml: budget.total_tokens", "'lots'"],
        ["bad.yaml: budget", "val_tokens = 321", "multiple of seq_len = 32"],
        ["bad.yaml: stages[1].refrence", "did you mean 'reference'"],
    ]
    for (right, wrong), parts in zip(CASES, expected, strict=True):
        assert right in PLAN
        message = bad(tmp_path, PLAN.replace(right, wrong))
        assert all(part in message for part in parts), message


def test_assignments_and_scales_change_values_and_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN + "scales: {large: {proxy: cpu-64, budget: {val_tokens: 640}}}\n")
    plan = load_plan(str(path), "large", ("seeds=[3]", "stages.3.n_seeds=5", "budget.lr_decay_to=5e-2"))
    assert (plan.shape.d_model, plan.header.budget.val_tokens, plan.header.budget.seq_len) == (64, 640, 32)
    assert (plan.header.seeds, plan.header.budget.lr_decay_to) == ((3,), 0.05)
    assert plan.hash != load_plan(str(path)).hash
    assert "did you mean 'large'" in bad(tmp_path, path.read_text(), scale="larg")
    assert "not of the form" in bad(tmp_path, PLAN, "seeds")
    assert "not an index below 4" in bad(tmp_path, PLAN, "stages.7.n_seeds=1")
    assert "unknown key 'seedz'" in bad(tmp_path, PLAN, "seedz=[1]")


def test_horizons_share_one_calibration_and_packs_never_mix_budgets(plan: Plan, tmp_path: Path) -> None:
    class Watched(Landscape):
        calibrated = 0
        mixed = False
        budgets: ClassVar[set[int]] = set()

        def run(self, work: Work, report: Report) -> Outcome:
            if isinstance(work, Calibrate):
                self.calibrated += 1
            else:
                tokens = {trial.budget.total_tokens for trial in work.trials}
                self.budgets |= tokens
                self.mixed |= len(tokens) > 1
            return super().run(work, report)

    path = tmp_path / "longer.yaml"
    path.write_text(PLAN.replace("n_seeds: 3}", "n_seeds: 3, horizons: [1.1, 1.3, 1.9]}"))
    watched = Watched()
    sweep(load_plan(str(path)), tmp_path / "run", watched)
    assert watched.calibrated == 1
    assert watched.budgets == {12800, 14080, 16640, 24320}
    assert not watched.mixed


def test_a_stage_whose_every_trial_diverged_ends_the_run_and_every_resume(plan: Plan, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(DivergedError, match=r"all \d+ trials of stage 01-elr_ewd diverged, .* at step 3") as caught:
            sweep(plan, tmp_path / "run", Landscape(dies=True))
    assert caught.value.exit_code == 3
    assert Journal(RunFolder.open(tmp_path / "run"), writable=False).findings() == []


def test_packs_of_other_code_are_noticed_on_resume(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        sweep(plan, tmp_path / "run", Landscape(crash_after=2, made_by="0.1.0 [aaaa]"))
    monkeypatch.setattr("mup_tune.search.loop.trained_by", lambda: "0.1.0 [bbbb]")
    with RunFolder.create_or_resume(tmp_path / "run", plan.resolved(), plan.hash, {"name": "none", "hash": "0"}) as run:
        walk = Sweep(plan, Journal(run, writable=True))
        assert walk.changed == "mup-tune 0.1.0 [aaaa], now 0.1.0 [bbbb]"  # before anything is spent
    monkeypatch.setattr("mup_tune.search.loop.trained_by", lambda: "0.1.0 [aaaa]")
    walk, _ = sweep(plan, tmp_path / "run", Landscape(made_by="0.1.0 [cccc]"))  # a lane on another host
    assert walk.changed == "mup-tune 0.1.0 [aaaa], now 0.1.0 [cccc]"
    fresh, _ = sweep(plan, tmp_path / "fresh", Landscape(made_by="0.1.0 [aaaa]"))
    assert fresh.changed == ""
