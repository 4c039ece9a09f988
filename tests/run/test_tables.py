from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from made_up import PLAN, STAGE, START, begun, finding, folder, pack, result, trial

from mup_tune.errors import UserError
from mup_tune.findings import Comparison, Finding, State
from mup_tune.findings.confirmation import Confirmation
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.run import curves
from mup_tune.run.columns import CURVES
from mup_tune.run.description import PlanRecord
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.run.tables import slug, write_tables
from mup_tune.run.view import load_run
from mup_tune.settings import load_settings
from mup_tune.stats import Interval
from mup_tune.trial import Pack


def _written(path: Path) -> list[Pack]:
    """A concluded stage of two packs, one with an id that looks like a number."""
    with folder(path) as run:
        journal = begun(run)
        packs = [pack([0.0, 1.0]), Pack("0012345678901234", STAGE, pack([2.0, 3.0]).trials)]
        for each in packs:
            journal.plan_pack(STAGE, each, {"lanes": 2, "sizes": [1, 2]})
            journal.commit(result(each, diverged=[1]))
        references = {"untuned": START, "ELR-tuned / untuned": START.scaled({"elr": 2.0})}
        journal.conclude(STAGE, finding(), State(finding().after, references))
        journal.begin_stage("02-next", "sweep", "Next", finding().after)
        journal.close()
    opened = RunFolder.open(path)
    write_tables(opened, Journal(opened, writable=False))
    return packs


def test_view_says_what_the_journal_says(tmp_path: Path) -> None:
    packs = _written(tmp_path)
    view = load_run(tmp_path)
    assert view.plan == PlanRecord.model_validate(PLAN)
    assert view.record.plan_hash == "plan-hash"
    assert view.stage_keys == (STAGE, "02-next")
    assert view.findings == (finding(),)
    assert view.references == {"untuned": START, "ELR-tuned / untuned": START.scaled({"elr": 2.0})}
    assert not view.live
    assert list(view.packs["pack"]) == [each.id for each in packs]
    assert list(view.packs["members"]) == [2, 2]
    assert list(view.packs["tokens_per_s"]) == [1234.5, 1234.5]
    assert list(view.packs["plan.sizes"]) == ["[1, 2]", "[1, 2]"]
    trials = view.trials
    assert list(trials["hash"]) == [each.hash for one in packs for each in one.trials]
    assert list(trials["member"]) == [0, 1, 0, 1]
    assert list(trials["status"]) == ["ok", "diverged"] * 2
    assert math.isnan(trials["loss"][1])
    assert trials["loss"][0] == 2.0
    assert {"bits_per_byte", "grad_norm", "elr", "ewd", "rope_base", *MULTIPLIER_NAMES} <= set(trials.columns)
    assert list(trials["mlp_down"]) == [1.0, 2.0, 4.0, 8.0]
    csv = pd.read_csv(tmp_path / "tables" / "trials.csv")
    assert list(csv.columns) == list(trials.columns)
    assert len(csv) == 4


def test_curves_are_those_that_were_committed(tmp_path: Path) -> None:
    first, second = _written(tmp_path)
    view = load_run(tmp_path)
    fine, diverged = (view.curve(trial.hash) for trial in second.trials)
    assert list(fine["loss"]) == [3.0] * 3
    assert list(fine["tokens"]) == [64, 320, 640]
    assert diverged["loss"][0] == 4.0
    assert diverged["loss"].isna().sum() == 2
    hashes = [trial.hash for each in (first, second) for trial in each.trials]
    everything = view.curves
    assert list(everything.columns) == [column.name for column in CURVES.columns]
    assert list(everything["hash"]) == [hash_ for pair in (hashes[:2], hashes[2:]) for hash_ in pair * 3]
    assert everything["eta"].isna().all()  # these packs logged none
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tables" / "curves.parquet"), everything)
    with pytest.raises(UserError, match="no finished trial 'nope'"):
        view.curve("nope")
    lost = first.trials[0].hash
    (tmp_path / "curves" / f"{first.id}.parquet").write_bytes(b"else")
    with pytest.raises(UserError, match="SHA-256 differs"):
        view.curve(lost)
    (tmp_path / "curves" / f"{first.id}.parquet").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        view.curve(lost)
    with pytest.raises(UserError, match="cannot be read"):
        load_run(tmp_path).curves  # noqa: B018


def test_settings_files_load_as_settings(tmp_path: Path) -> None:
    _written(tmp_path)
    settings = tmp_path / "settings"
    names = sorted(file.name for file in settings.iterdir())
    assert names == [f"{STAGE}.yaml", "ELR-tuned-untuned.yaml", "incumbent.yaml", "untuned.yaml"]
    for name in (STAGE, "incumbent"):
        assert load_settings(str(settings / f"{name}.yaml"), None) == finding().after
    assert load_settings(str(settings / "untuned.yaml"), None) == START


def test_a_run_without_trials_has_tables_too(tmp_path: Path) -> None:
    with folder(tmp_path) as run:
        with pytest.raises(UserError, match="no stage of this run has begun"):
            load_run(tmp_path)
        write_tables(run, begun(run))
        view = load_run(tmp_path)
        assert view.live
        assert (len(view.trials), len(view.packs), view.findings, view.references) == (0, 0, (), {})
        assert (len(view.stages), len(view.curves), view.settings) == (0, 0, None)
        assert "mlp_down" in view.trials.columns
    for name, whole in (("trials", view.trials), ("stages", view.stages), ("curves", view.curves)):
        stored = pd.read_parquet(tmp_path / "tables" / f"{name}.parquet")
        assert (len(stored), list(stored.columns)) == (0, list(whole.columns))
        assert {"float64", "int64"} <= {str(dtype) for dtype in stored.dtypes}  # and not "object"


def test_what_a_crash_left_out_of_the_tables_is_in_the_view(tmp_path: Path) -> None:
    packs = _written(tmp_path)
    with folder(tmp_path) as run:
        journal, late = Journal(run, writable=True), pack([5.0], stage="02-next")
        journal.plan_pack("02-next", late, {})
        journal.commit(result(late))
        moved = START.with_values({"mlp_down": 9.0}, name="later")
        journal.conclude("02-next", finding("02-next").model_copy(update={"after": moved}), State(moved))
    view = load_run(tmp_path)
    assert list(view.packs["pack"]) == [*(each.id for each in packs), late.id]
    assert len(view.trials) == 5
    assert view.settings == moved


def test_views_need_neither_torch_nor_ray_nor_optuna(tmp_path: Path) -> None:
    _written(tmp_path)
    code = (
        "import sys, mup_tune; assert not {'numpy', 'pandas', 'pydantic'} & {*sys.modules};"
        "run = mup_tune.load_run(sys.argv[1]); assert 'pyarrow.parquet' not in sys.modules; assert len(run.curves);"
        "print([m for m in ('torch', 'ray', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_folder_with_an_equals_sign(tmp_path: Path) -> None:
    packs = _written(tmp_path / "lr=1")
    assert "lr" not in load_run(tmp_path / "lr=1").curve(packs[0].trials[0].hash).columns


def test_slugs_are_file_names() -> None:
    assert [slug(name) for name in ("a/b", "../x", "…", "02-micro", "a b")] == [
        "a-b",
        "x",
        "unnamed",
        "02-micro",
        "a-b",
    ]


def test_a_file_that_cannot_be_written_stops_no_other(tmp_path: Path) -> None:
    _written(tmp_path)
    for file in (*(tmp_path / "tables").iterdir(), *(tmp_path / "settings").iterdir()):
        file.unlink()
    (tmp_path / "settings" / "untuned.yaml").mkdir()
    (tmp_path / "tables" / "trials.csv").mkdir()
    opened = RunFolder.open(tmp_path)
    said = r"untuned\.yaml: could not be written \(Is a directory\), and 1 more files neither"
    with pytest.raises(UserError, match=said):
        write_tables(opened, Journal(opened, writable=False))
    assert load_settings(str(tmp_path / "settings" / "incumbent.yaml"), None) == finding().after
    written = {path.name for path in (tmp_path / "tables").iterdir() if path.stat().st_size and path.is_file()}
    assert {"trials.parquet", "stages.parquet", "packs.csv", "findings.json", "curves.parquet"} <= written


def test_lost_curves_stop_no_other_table_and_leave_no_half_of_one(tmp_path: Path) -> None:
    first, _ = _written(tmp_path)
    for file in (tmp_path / "tables").iterdir():
        file.unlink()
    (tmp_path / "curves" / f"{first.id}.parquet").unlink()
    opened = RunFolder.open(tmp_path)
    with pytest.raises(
        UserError, match=rf"curves\.parquet: could not be written \(.*{first.id}\.parquet: cannot be read"
    ):
        write_tables(opened, Journal(opened, writable=False))
    written = {path.name for path in (tmp_path / "tables").iterdir()}
    assert written == {"trials.parquet", "stages.parquet", "trials.csv", "stages.csv", "packs.csv", "findings.json"}


def test_groups_of_rows_hold_every_curve_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packs of six points: a group is written once it is full, and the rest at the end."""
    _written(tmp_path)
    opened = RunFolder.open(tmp_path)
    for rows, groups in ((6, [6, 6, 0]), (7, [12, 0]), (13, [12])):
        monkeypatch.setattr(curves, "GROUP", rows)
        write_tables(opened, Journal(opened, writable=False))
        stored = pq.ParquetFile(tmp_path / "tables" / "curves.parquet")
        assert [stored.metadata.row_group(each).num_rows for each in range(stored.num_row_groups)] == groups
        pd.testing.assert_frame_equal(stored.read().to_pandas(), load_run(tmp_path).curves)


def test_a_stage_is_told_by_its_own_trials_and_what_fresh_seeds_say(tmp_path: Path) -> None:
    """Twice two trials of 10 steps of 64 tokens, and a confirmation of three seeds against two references."""
    _written(tmp_path)
    with folder(tmp_path) as run:
        journal, fresh = Journal(run, writable=True), Pack.of("02-next", pack([7.0, 8.0, 9.0]).trials)
        journal.plan_pack("02-next", fresh, {})
        journal.commit(result(fresh, diverged=[2]))
        after = finding().after
        found = Confirmation(comparisons=(_compared("easy", 0.5), _compared("hard", 0.2), _compared("lost", None)))
        last = Finding(stage="02-next", kind="confirm", title="Next", before=after, after=after, result=found)
        journal.conclude("02-next", last, State(after, {}, {"mlp_down": 0.03}))
        journal.close()
    view = load_run(tmp_path)
    first, second = view.stages.to_dict("records")
    assert (first["stage"], first["decision"], first["trials"], first["diverged"]) == (STAGE, "moved", 4, 2)
    assert (first["tokens"], first["seconds"]) == (4 * 640, 4.0)
    assert first["flops"] == 4 * trial(0.0).flops
    assert (first["gain_over"], first["outcome"], math.isnan(first["gain"])) == ("", "", True)
    assert (second["decision"], second["result"]) == ("kept", "confirmation")
    assert (second["trials"], second["diverged"]) == (3, 1)
    assert (second["gain_over"], second["outcome"]) == ("hard", "better")
    assert (second["gain"], second["gain_low"], second["gain_high"]) == pytest.approx((0.2, 0.1, 0.3))
    assert second["settings_hash"] == after.content_hash() == first["settings_hash"]
    assert view.sensitivity == {"mlp_down": 0.03}
    by_settings = view.trials.groupby("settings_hash")["hash"].count()
    assert by_settings[trial(7.0).settings.content_hash()] == 1
    write_tables(RunFolder.open(tmp_path), Journal(RunFolder.open(tmp_path), writable=False))
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tables" / "stages.parquet"), view.stages)
    assert list(pd.read_csv(tmp_path / "tables" / "stages.csv")["gain_over"].dropna()) == ["hard"]


def _compared(reference: str, gain: float | None) -> Comparison:
    interval = None if gain is None else Interval(gain, gain - 0.1, gain + 0.1)
    losses = {0: 2.0, 1: None}
    return Comparison(
        candidate="incumbent", reference=reference, candidate_losses=losses, reference_losses=losses, gain=interval
    )
