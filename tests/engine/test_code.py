from __future__ import annotations

import platform

import pytest

from mup_tune.engine import code as module
from mup_tune.engine.code import code, refuse_other
from mup_tune.errors import UserError


def test_the_same_code_is_taken_whatever_torch_was_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "version", lambda name: "2.9.1+cpu")
    driver = code()
    monkeypatch.setattr(module, "version", lambda name: "2.9.1+cu128")
    refuse_other(driver)
    assert code() == driver


@pytest.mark.parametrize(("field", "name"), [("mup_tune", "mup-tune"), ("torch", "torch")])
def test_other_code_is_named_with_its_host(field: str, name: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse_other({**code(), field: "0.0.9 [0123abcd]"})
    assert str(caught.value) == (
        f"{field}: {platform.node()} has {code()[field]}, the driver 0.0.9 [0123abcd]: their losses would not "
        f"compare. Install the same {name} on every node"
    )
