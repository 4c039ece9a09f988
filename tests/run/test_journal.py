from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from made_up import SHAPE, STAGE, START, begun, finding, folder, pack, result, trial
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation

from mup_tune.errors import UserError
from mup_tune.findings import State
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.run.optuna_log import COMPLETE, FAIL, MINIMIZE, Op
from mup_tune.run.repair import repair
from mup_tune.settings import untuned
from mup_tune.trial import Pack, PackResult, TrialResult


def _comparable(journal: Journal) -> Any:
    """Everything a journal says, with NaN made comparable."""
    rows = {hash_: str(dataclasses.astuple(row)) for hash_, row in journal.rows.items()}
    conclusions = {key: journal.conclusion(key) for key in journal.stages()}
    planned = {key: journal.planned(key) for key in journal.stages()}
    members = [(member.stage, member.pack, member.index) for member in journal.members()]
    return rows, members, planned, journal.packs(), conclusions, journal.findings(), journal.get_note("n")


def _reopened(run: RunFolder, journal: Journal) -> Journal:
    journal.close()
    again = Journal(run, writable=True)
    assert _comparable(again) == _comparable(journal)
    return again


def _journalled_hashes(run: RunFolder) -> list[str]:
    """Hashes of all trial records in the raw file."""
    records = [json.loads(line) for line in run.journal.read_text().splitlines()]
    return [record["user_attrs"]["hash"] for record in records if record["op_code"] == 4]


def test_round_trip(tmp_path: Path) -> None:
    with folder(tmp_path) as run:
        journal = begun(run)
        one, two = pack([0.0, 0.5, 1.0]), pack([2.0], seed=1)
        journal.plan_pack(STAGE, one, {"members": np.int64(3), "why": ("fastest", math.nan)})
        journal.plan_pack(STAGE, two, {})
        assert journal.planned(STAGE) == [one, two]
        given = result(one)
        assert journal.commit(given)
        assert not journal.commit(given)
        assert journal.planned(STAGE) == [two]
        journal.set_note("n", {"tokens_per_s": {"1": np.float32(0.5)}, "bad": math.inf})
        journal.conclude(STAGE, finding(), State(START, {"untuned": START}))
        journal.begin_stage("02-confirm", "confirm", "Confirm", finding().after)
        journal = _reopened(run, journal)

        assert list(journal.rows) == [each.hash for each in one.trials]
        for row in given.rows:
            stored = journal.rows[row.trial.hash]
            assert stored.trial == row.trial
            assert (stored.status, stored.loss, stored.loss_se, stored.metrics) == ("ok", row.loss, 0.01, row.metrics)
        assert journal.stages() == [STAGE, "02-confirm"]
        assert journal.trial_count(STAGE) == 3
        assert journal.trial_count("02-confirm") == 0
        assert journal.conclusion(STAGE) == (finding(), State(START, {"untuned": START}))
        assert journal.conclusion("02-confirm") is None
        assert journal.get_note("n") == {"tokens_per_s": {"1": 0.5}, "bad": None}
        assert journal.get_note("absent") is None
        (committed,) = journal.packs()
        assert committed["info"] == {"members": 3, "why": ["fastest", None]}
        assert committed["record"] == {**given.record, "mfu": None}
        assert committed["hashes"] == [each.hash for each in one.trials]


def test_diverged_members_round_trip(tmp_path: Path) -> None:
    with folder(tmp_path) as run:
        journal = begun(run)
        one = pack([0.0, 3.0])
        journal.plan_pack(STAGE, one, {})
        journal.commit(result(one, diverged=[1]))
        journal = _reopened(run, journal)
        fine, lost = (journal.rows[each.hash] for each in one.trials)
        assert fine.ok
        assert lost.status == "diverged"
        assert math.isnan(lost.loss)
        assert math.isnan(lost.loss_se)
        assert math.isnan(lost.metrics["grad_norm"])
        assert lost.reason == "loss is NaN at step 3"
        for line in run.journal.read_text().splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the journal"))


def test_dashboards_see_values_states_and_moved_axes(tmp_path: Path) -> None:
    with folder(tmp_path) as run:
        journal = begun(run)
        one = pack([0.5, 3.0])
        journal.plan_pack(STAGE, one, {})
        journal.commit(result(one, diverged=[1]))
        copy = shutil.copy(run.journal, tmp_path / "copy.log")
        study = optuna.load_study(study_name=STAGE, storage=JournalStorage(JournalFileBackend(str(copy))))
        fine, lost = study.trials
        assert (fine.state.name, fine.value, lost.state.name, lost.value) == ("COMPLETE", 2.0, "FAIL", None)
        assert fine.params == {"elr": pytest.approx(1.1 * START.elr), "mlp_down": pytest.approx(2**0.5)}
        assert study.best_trial.number == 0
        assert {str(each) for t in study.trials for each in t.distributions.values()} == {
            "FloatDistribution(high=1e+30, log=True, low=1e-30, step=None)"
        }


def test_ok_without_a_finite_loss_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with folder(tmp_path) as run:
        journal = begun(run)
        one = pack([0.0, 1.0])
        journal.plan_pack(STAGE, one, {})
        good = result(one)
        size = run.journal.stat().st_size
        with pytest.raises(ValueError, match="called ok and has the loss nan"):
            journal.commit(
                PackResult(one, (good.rows[0], TrialResult(one.trials[1], "ok", math.nan, 0.0)), good.curves, {})
            )
        with pytest.raises(ValueError, match="not its members in order"):
            journal.commit(PackResult(one, good.rows[::-1], good.curves, {}))
        with pytest.raises(ValueError, match="was not planned"):
            journal.commit(result(pack([7.0])))
        with pytest.raises(ValueError, match="belongs to stage"):
            journal.plan_pack(STAGE, pack([7.0], stage="other"), {})
        with pytest.raises(ValueError, match="was not begun"):
            journal.plan_pack("other", pack([7.0], stage="other"), {})
        assert run.journal.stat().st_size == size
        assert not run.curves.exists()


def test_planned_and_replaced_packs(tmp_path: Path) -> None:
    with folder(tmp_path) as run:
        journal = begun(run)
        big, small = pack([0.0, 1.0, 2.0, 3.0]), pack([4.0])
        journal.plan_pack(STAGE, big, {})
        journal.plan_pack(STAGE, small, {})
        size = run.journal.stat().st_size
        journal.plan_pack(STAGE, big, {})
        assert run.journal.stat().st_size == size  # planning twice is free
        halves = [Pack.of(STAGE, big.trials[:2]), Pack.of(STAGE, big.trials[2:])]
        journal.replace_pack(STAGE, big.id, "out of memory", halves)
        assert run.journal.stat().st_size - size < 1500  # trials are stored once
        journal.replace_pack(STAGE, big.id, "again", [])
        journal = _reopened(run, journal)
        assert journal.planned(STAGE) == [small, *halves]
        assert not journal.commit(result(big))  # an older attempt's late result
        for each in (*halves, small):
            assert journal.commit(result(each))
        journal = _reopened(run, journal)
        assert journal.planned(STAGE) == []
        assert set(journal.rows) == {each.hash for each in (*big.trials, *small.trials)}
        assert journal.packs()[0]["info"] == {"replaces": big.id, "why": "out of memory"}


def test_begin_stage_is_idempotent_and_guards_the_incumbent(tmp_path: Path) -> None:
    with folder(tmp_path) as run:
        journal = begun(run)
        size = run.journal.stat().st_size
        journal.begin_stage(STAGE, "sweep", "A sweep", START.model_copy(update={"name": "a label"}))
        assert run.journal.stat().st_size == size
        with pytest.raises(UserError, match="was begun with other settings"):
            journal.begin_stage(STAGE, "sweep", "A sweep", START.scaled({"elr": 2.0}))


def test_the_first_conclusion_stands(tmp_path: Path) -> None:
    with folder(tmp_path) as run:
        journal = begun(run)
        journal.conclude(STAGE, finding(), State(START))
        journal.conclude(STAGE, finding().model_copy(update={"summary": ("later",)}), State(START, {"x": START}))
        assert _reopened(run, journal).conclusion(STAGE) == (finding(), State(START))


def test_a_trial_whose_hash_changed_is_noticed(tmp_path: Path) -> None:
    with folder(tmp_path) as run:
        journal = begun(run)
        one = pack([0.0])
        journal.plan_pack(STAGE, one, {})
        journal.close()
        run.journal.write_text(run.journal.read_text().replace('"total_tokens":640', '"total_tokens":704'))
        with pytest.raises(UserError, match="Another version of mup-tune wrote this run"):
            Journal(run, writable=True)


@pytest.mark.parametrize(
    ("now", "then"),
    [('"hashes":', '"composition":'), ('"title":"A sweep"', '"name":"A sweep"'), ('"commit ', '"ended ')],
    ids=["a plan", "a finding", "a kind of record"],
)
def test_records_of_another_version_are_refused(tmp_path: Path, now: str, then: str) -> None:
    with folder(tmp_path) as run:
        journal = begun(run)
        one = pack([0.0])
        journal.plan_pack(STAGE, one, {})
        journal.commit(result(one))
        journal.conclude(STAGE, finding(), State(START))
        journal.close()
        text = run.journal.read_text()
        assert now in text
        run.journal.write_text(text.replace(now, then))
        with pytest.raises(
            UserError, match=r"journal\.log: holds a record .* Another version of mup-tune wrote this run"
        ):
            Journal(run, writable=True)


def test_writing_needs_the_lock_and_an_open_journal(tmp_path: Path) -> None:
    with folder(tmp_path) as run:
        journal = begun(run)
        journal.close()
        with pytest.raises(RuntimeError, match="read-only or closed"):
            journal.set_note("n", 1)
    with pytest.raises(ValueError, match="holds the run's lock"):
        Journal(RunFolder.open(tmp_path), writable=True)


def test_reading_never_touches_the_live_file(tmp_path: Path) -> None:
    with folder(tmp_path) as run:
        assert Journal(run, writable=False).rows == {}
        assert not run.journal.exists()
        journal = begun(run)
        one = pack([0.0, 1.0])
        journal.plan_pack(STAGE, one, {})
        journal.commit(result(one))
        with run.journal.open("ab") as file:
            file.write(b'{"op_code":2,"half a rec')  # the driver is in the middle of a write
        (tmp_path / "journal.log.lock").touch()
        before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()}
        reader = Journal(RunFolder.open(tmp_path), writable=False)
        assert _comparable(reader) == _comparable(journal)
        with pytest.raises(RuntimeError, match="read-only"):
            reader.set_note("n", 1)
        reader.close()
        assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()} == before


def test_five_hundred_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    with folder(tmp_path) as run:
        journal = begun(run)
        for start in range(0, 500, 20):
            one = pack([(start + i) / 100 for i in range(20)])
            journal.plan_pack(STAGE, one, {})
            journal.commit(result(one))
        assert len(_reopened(run, journal).rows) == 500
        assert run.journal.read_text().count('"budget":') == 500  # a trial is stored once, members name it by hash


def test_codes_and_states_are_optunas() -> None:
    for op in Op:
        assert JournalOperation[op.name] == op
    assert (optuna.study.StudyDirection.MINIMIZE, optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL) == (
        MINIMIZE,
        COMPLETE,
        FAIL,
    )


def _damaged(content: bytes, number: int, line: bytes | None) -> bytes:
    """``content`` with its line ``number`` (from 1) replaced, or left out."""
    lines = content.splitlines(keepends=True)
    lines[number - 1 : number] = [] if line is None else [line + b"\n"]
    return b"".join(lines)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"[]", "line 2 is damaged"),
        (b"\x00\xff", "line 2 is damaged"),
        (b'{"op_code":2', "line 2 is damaged"),
        (b"[" * 100_000, "line 2 is damaged"),
        (b"{}", "line 2 is no record of a run"),
        (b'{"op_code":77}', "line 2 is no record of a run"),
        (b'{"op_code":2,"study_id":9,"user_attr":{"stage":{}}}', "no line before creates study 9"),
        (b'{"op_code":2,"study_id":0,"user_attr":{"stage":null}}', "holds a record that cannot be read"),
        (b'{"op_code":4,"study_id":0,"value":1.0,"user_attrs":{"hash":"x","loss":2.0}}', "was not written by mup-tune"),
        (None, "holds a record that cannot be read"),
    ],
    ids=["list", "bytes", "torn", "deep", "empty", "code", "study", "null", "value", "missing"],
)
def test_a_damaged_line_is_named_and_the_file_left_as_it_is(tmp_path: Path, line: bytes | None, said: str) -> None:
    with folder(tmp_path) as run:
        journal = begun(run)
        journal.plan_pack(STAGE, pack([0.0]), {})
        content = _damaged(run.journal.read_bytes(), 2, line)
        run.journal.write_bytes(content)
        for writable in (False, True):
            with pytest.raises(UserError, match=said) as caught:
                Journal(run, writable)
            assert str(run.journal) in str(caught.value)
        assert run.journal.read_bytes() == content


def test_a_journal_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    with folder(tmp_path) as run:
        journal, one = begun(run), pack([0.0])
        journal.plan_pack(STAGE, one, {})
        journal.commit(result(one))
        kept = run.journal.read_bytes()
        run.journal.unlink()
        with pytest.raises(FileNotFoundError):
            journal.set_note("n", 1)
        for writable in (False, True):
            with pytest.raises(UserError, match=r"the journal is gone, and the run's curves are still here"):
                Journal(run, writable)
        run.journal.touch()
        with pytest.raises(UserError, match="the journal is empty"):
            Journal(run, writable=True)
        run.journal.write_bytes(kept)
        assert len(Journal(run, writable=True).rows) == 1


def test_untuned_is_what_the_tests_start_from() -> None:
    assert untuned(SHAPE) == START
    assert trial(0.0).settings.value("elr") != START.elr


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"{}",
        b"\x00" * 5000,
        b"garbage\n",
        b"[1]\n" * 3,
        b'{"a":1',
        b"\n\n",
        b'{"a"\n{"b"\n',
        b"x" * 200_000 + b"\n",
    ],
)
def test_repair_keeps_what_is_whole(tmp_path: Path, tail: bytes) -> None:
    whole = b'{"a":1}\n' + json.dumps({"long": "y" * 100_000}).encode() + b"\n"
    for good in (b"", whole):
        path = tmp_path / "log"
        path.write_bytes(good + tail)
        assert repair(path) == len(tail)
        assert path.read_bytes() == good
