"""What readers get from ``plan.yaml`` is what the plan wrote there."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up import CORPUS

from mup_tune.errors import UserError
from mup_tune.files import shipped
from mup_tune.run.folder import RunFolder
from mup_tune.search.plan import load_plan


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped("sweeps").glob("*.yaml")))
def test_every_shipped_plan_is_read_back_as_it_was_written(name: str, tmp_path: Path) -> None:
    plan = load_plan(name)
    RunFolder.create_or_resume(tmp_path / "run", plan.resolved(), plan.hash, CORPUS).close()
    read = RunFolder.open(tmp_path / "run").plan  # a Shape without its note, which is no part of a plan
    assert read.model_dump(mode="json") == plan.resolved()


def test_a_plan_or_record_that_this_version_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("{name: old, proxi: cpu-64}")
    (tmp_path / "run.json").write_text("[1]")
    run = RunFolder.open(tmp_path)
    with pytest.raises(UserError, match=r"plan\.yaml: proxi: unknown key 'proxi'; did you mean 'proxy'"):
        _ = run.plan
    with pytest.raises(UserError, match=r"run\.json: cannot be read"):
        _ = run.record
