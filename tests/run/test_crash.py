"""What a driver that is killed leaves behind, and that the next one continues from it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up import STAGE, begun, folder, pack, result

from mup_tune.run import curves as curves_module
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.run.optuna_log import Op, OptunaLog


class KilledError(BaseException):
    """Stands for a kill: nothing in between may catch it."""


def _hashes(run: RunFolder) -> list[str]:
    records = [json.loads(line) for line in run.journal.read_text().splitlines()]
    return [record["user_attrs"]["hash"] for record in records if record["op_code"] == 4]


def _torn_at_every_byte(run: RunFolder, offsets: range, content: bytes, check: Callable[[Journal, int], None]) -> None:
    for cut in offsets:
        run.journal.write_bytes(content[:cut])
        journal = Journal(run, writable=True)
        assert journal.torn == cut - (content.rfind(b"\n", 0, cut) + 1)
        check(journal, cut)
        journal.set_note("after", cut)
        journal.close()
        again = Journal(run, writable=True)
        assert again.get_note("after") == cut
        again.set_note("after", "and once more")
        assert Journal(run, writable=False).get_note("after") == "and once more"


def test_torn_at_every_byte_of_the_last_two_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    with folder(tmp_path) as run:
        journal = Journal(run, writable=True)
        journal.set_note("first", 1)
        start = run.journal.stat().st_size
        journal.set_note("second", 2)
        middle = run.journal.stat().st_size
        journal.set_note("third", 3)
        content = run.journal.read_bytes()

        def check(torn: Journal, cut: int) -> None:
            assert torn.get_note("first") == 1
            assert torn.get_note("second") == (2 if cut >= middle else None)
            assert torn.get_note("third") == (3 if cut == len(content) else None)

        _torn_at_every_byte(run, range(start, len(content) + 1), content, check)


def test_torn_within_a_commit_then_committed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    with folder(tmp_path) as run:
        journal = begun(run)
        one = pack([0.0, 1.0])
        journal.plan_pack(STAGE, one, {})
        start = run.journal.stat().st_size
        assert journal.commit(result(one))
        content = run.journal.read_bytes()
        ends = [i + 1 for i in range(start, len(content)) if content[i : i + 1] == b"\n"]
        cuts = {*range(start, len(content), 101), *(end + d for end in ends for d in (-2, -1, 0, 1))}
        for cut in sorted(cut for cut in cuts if cut <= len(content)):
            run.journal.write_bytes(content[:cut])
            journal = Journal(run, writable=True)
            committed = cut == len(content)
            assert len(journal.rows) == (2 if committed else 0)
            assert journal.commit(result(one)) is not committed
            assert sorted(_hashes(run)) == sorted(each.hash for each in one.trials)
            assert len(Journal(run, writable=True).rows) == 2


def test_half_written_files_are_cleared_by_the_next_driver(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with folder(tmp_path) as run:
        begun(run).close()
    places = [
        run.path / ".report",
        run.curves / ".p.parquet",
        run.tables / ".trials.csv",
        run.settings / ".a.yaml",
    ]
    leftovers = [place.with_name(f"{place.name}.{ended.pid}") for place in places]
    for leftover in leftovers:
        leftover.parent.mkdir(exist_ok=True)
        leftover.touch()
    with folder(tmp_path):
        assert not any(leftover.exists() for leftover in leftovers)


def _kill_append(monkeypatch: pytest.MonkeyPatch, at: int, how: str) -> None:
    """Die at the ``at``-th append from now: before it, with half a line written, or with all of it."""
    append, count = OptunaLog._append, [0]

    def dying(self: OptunaLog, op: Op, **fields: Any) -> None:
        count[0] += 1
        if count[0] - 1 != at:
            return append(self, op, **fields)
        if how != "before":
            append(self, op, **fields)
        if how == "half":
            whole = self.file.read_bytes()
            begin = whole.rfind(b"\n", 0, -1) + 1
            self.file.write_bytes(whole[: begin + (len(whole) - begin) // 2])
        raise KilledError

    monkeypatch.setattr(OptunaLog, "_append", dying)


@pytest.mark.parametrize("reopen", [True, False], ids=["next driver", "same process"])
@pytest.mark.parametrize("how", ["before", "half", "whole"])
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_killed_within_a_commit(tmp_path: Path, at: int, how: str, reopen: bool) -> None:
    """Three members and the commit record: four appends after the curves."""
    with folder(tmp_path) as run:
        journal = begun(run)
        one = pack([0.0, 1.0, 2.0])
        journal.plan_pack(STAGE, one, {})
        with pytest.MonkeyPatch.context() as patch:
            _kill_append(patch, at, how)
            with pytest.raises(KilledError):
                journal.commit(result(one, attempt=0.0))
        assert journal.rows == {}
        if reopen:
            journal = Journal(run, writable=True)
        finished = at == 3 and how == "whole"
        # The second attempt's losses differ, as on a GPU: what was journalled first stays, with its curves.
        assert journal.commit(result(one, attempt=0.001)) is not finished
        for view in (journal, Journal(run, writable=True), Journal(run, writable=False)):
            assert list(view.rows) == [each.hash for each in one.trials]
            assert view.planned(STAGE) == []
            first = at + (how == "whole")
            table = pd.read_parquet(run.curves / view.packs()[0]["curves"]["file"])
            assert len(table) == 9
            assert table["step"].is_monotonic_increasing
            for index, row in enumerate(view.rows.values()):
                attempt = 0.0 if index < first or finished else 0.001
                assert row.loss == 2.0 + index / 7 + attempt
                assert set(table.loc[table["member"] == index, "loss"]) == {3.0 + index + attempt}
        assert sorted(_hashes(run)) == sorted(each.hash for each in one.trials)


@pytest.mark.parametrize("where", ["write_atomic", "_sync"])
def test_killed_around_the_curves(tmp_path: Path, where: str) -> None:
    with folder(tmp_path) as run:
        journal = begun(run)
        one = pack([0.0, 1.0])
        journal.plan_pack(STAGE, one, {})
        size = run.journal.stat().st_size

        def dying(*_: object) -> None:
            raise KilledError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(curves_module, where, dying)
            with pytest.raises(KilledError):
                journal.commit(result(one))
        assert run.journal.stat().st_size == size
        journal = Journal(run, writable=True)
        assert journal.planned(STAGE) == [one]
        assert journal.commit(result(one, attempt=0.5))
        assert set(pd.read_parquet(run.curves / f"{one.id}.parquet")["loss"]) == {3.5, 4.5}


@pytest.mark.parametrize("how", ["before", "half", "whole"])
@pytest.mark.parametrize("at", [0, 1])
def test_killed_while_a_stage_begins(tmp_path: Path, at: int, how: str) -> None:
    with folder(tmp_path) as run:
        with pytest.MonkeyPatch.context() as patch:
            _kill_append(patch, at, how)
            with pytest.raises(KilledError):
                begun(run)
        journal = begun(run)
        assert journal.stages() == [STAGE]
        journal.plan_pack(STAGE, pack([0.0]), {})
        assert Journal(run, writable=True).planned(STAGE) == [pack([0.0])]


HERE = Path(__file__).parent
DRIVE = """
import sys
from made_up import STAGE, begun, folder, pack, result
journal = begun(folder(sys.argv[1]))
for first in range(100_000):
    one = pack([first / 64, first / 64 + 1e-3])
    journal.plan_pack(STAGE, one, {})
    if journal.commit(result(one)):
        print("go", flush=True)
"""


def test_a_driver_killed_for_real(tmp_path: Path) -> None:
    for _ in range(2):
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVE, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=HERE
        )
        try:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "go\n"
            time.sleep(0.3)
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
    with folder(tmp_path) as run:
        journal = Journal(run, writable=True)
        assert len(journal.rows) == 2 * len(journal.packs()) > 0
        for one in journal.planned(STAGE):
            assert journal.commit(result(one))
        hashes = _hashes(run)
        assert len(hashes) == len(set(hashes)) == len(Journal(run, writable=True).rows)
