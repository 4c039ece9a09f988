"""A dashboard opens a copy: of whole lines, and never the run's own journal."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from program import mup_tune

from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal

SYNTHETIC = Path(__file__).parents[1] / "report"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(SYNTHETIC))
    from synthetic_run import full_run

    return full_run(tmp_path / "run")


def best(storage: JournalStorage) -> dict[str, float]:
    found = optuna.get_all_study_summaries(storage)
    return {each.study_name: each.best_trial.value for each in found if each.best_trial}


def lowest(run: Path) -> dict[str, float]:
    """By stage, from what the run itself says."""
    found: dict[str, float] = {}
    for member in Journal(RunFolder.open(run), writable=False).members():
        if member.row.ok:
            found[member.stage] = min(member.row.loss, found.get(member.stage, member.row.loss))
    return found


def test_a_copy_has_whole_lines_and_optuna_reads_the_same_losses(run: Path, tmp_path: Path) -> None:
    journal = run / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "study_')  # a sweep is writing
    done = mup_tune("dashboard", run, "--copy", tmp_path / "copy.log")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy.log").read_bytes() == whole
    assert best(JournalStorage(JournalFileBackend(str(tmp_path / "copy.log")))) == lowest(run)


def test_it_serves_a_copy_on_this_machine_alone(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[dict[str, Any]] = []

    def run_server(storage: JournalStorage, **where: Any) -> None:
        served.append({**where, "best": best(storage)})
        for each in optuna.get_all_study_summaries(storage):
            optuna.delete_study(study_name=each.study_name, storage=storage)

    before = (run / "journal.log").read_bytes()
    monkeypatch.setitem(sys.modules, "optuna_dashboard", SimpleNamespace(run_server=run_server))
    assert mup_tune("dashboard", run, "--port", 8123).returncode == 0
    assert served == [{"host": "127.0.0.1", "port": 8123, "best": lowest(run)}]
    assert (run / "journal.log").read_bytes() == before


def test_without_the_package_and_with_a_damaged_journal_it_says_what_to_do(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    missing = mup_tune("dashboard", run)
    assert missing.returncode == 2
    assert "pip install optuna-dashboard" in missing.stderr
    (run / "journal.log").write_text("[]\n" * 3)
    damaged = mup_tune("dashboard", run)
    assert damaged.returncode == 2
    assert "line 1" in damaged.stderr
