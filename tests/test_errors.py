from __future__ import annotations

from pathlib import Path

import pytest

from mup_tune.errors import UserError, as_value_error, located


def said(error: UserError, file: str | None, field: str | None) -> str:
    with pytest.raises(UserError) as caught, located(file=file, field=field):
        raise error
    assert (caught.value.problem, caught.value.fix) == (error.problem, error.fix)
    return str(caught.value)


def test_an_error_from_inside_gets_the_place_where_it_was_met() -> None:
    assert said(UserError("is wrong", fix="Right it"), "plan.yaml", "start") == "plan.yaml: start: is wrong. Right it"
    assert said(UserError("is wrong", field="axes[0]"), "plan.yaml", "stages[1]") == (
        "plan.yaml: stages[1].axes[0]: is wrong"
    )
    assert said(UserError("is wrong"), "plan.yaml", None) == "plan.yaml: is wrong"
    assert said(UserError("is wrong", field="axes"), None, None) == "axes: is wrong"


def test_an_error_that_names_its_own_file_keeps_its_place() -> None:
    inner = UserError("is wrong", file=Path("mine.yaml"), field="d_model")
    assert said(inner, "plan.yaml", "proxy") == "mine.yaml: d_model: is wrong"


def test_places_nest() -> None:
    with (
        pytest.raises(UserError, match=r"^plan\.yaml: stages\[0\]\.axes: is wrong$"),
        located(file="plan.yaml"),
        located(field="stages[0]"),
        located(field="axes"),
    ):
        raise UserError("is wrong")


def test_a_validator_says_problem_and_fix() -> None:
    with pytest.raises(ValueError, match=r"^is wrong\. Right it$"), as_value_error():
        raise UserError("is wrong", field="dropped: pydantic names the field", fix="Right it")
    with pytest.raises(ValueError, match=r"^is wrong$"), as_value_error():
        raise UserError("is wrong")
