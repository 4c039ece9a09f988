from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from made_up import PLAN, STAGE, START, begun, finding, folder, pack, result

from mup_tune.errors import UserError
from mup_tune.findings import State
from mup_tune.multipliers import MULTIPLIER_NAMES
from mup_tune.run.description import PlanRecord
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.run.tables import slug, write_tables
from mup_tune.run.view import load_run
from mup_tune.settings import load_settings
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
    table = view.curves(second.id)
    assert list(table["member"]) == [0, 1] * 3
    assert table["loss"].isna().sum() == 2  # of the diverged member
    with pytest.raises(UserError, match="no committed pack 'nope'"):
        view.curves("nope")
    (tmp_path / "curves" / f"{first.id}.parquet").write_bytes(b"else")
    with pytest.raises(UserError, match="SHA-256 differs"):
        view.curves(first.id)
    (tmp_path / "curves" / f"{first.id}.parquet").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        view.curves(first.id)


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
        assert "mlp_down" in view.trials.columns


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
    assert view.incumbent == moved


def test_views_need_neither_torch_nor_ray_nor_optuna(tmp_path: Path) -> None:
    _written(tmp_path)
    code = (
        "import sys; from mup_tune.run.view import load_run; load_run(sys.argv[1]);"
        "print([m for m in ('torch', 'ray', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_folder_with_an_equals_sign(tmp_path: Path) -> None:
    packs = _written(tmp_path / "lr=1")
    assert "lr" not in load_run(tmp_path / "lr=1").curves(packs[0].id).columns


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
    assert {"trials.parquet", "packs.csv", "findings.json"} <= written
