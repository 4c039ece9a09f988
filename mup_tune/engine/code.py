"""Which code trains: lanes of another mup-tune or torch than the driver's are refused."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from mup_tune.errors import UserError
from mup_tune.version import trained_by


def code() -> dict[str, str]:
    """What decides losses on every host alike, told without importing torch."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "unknown"
    # Without its build: a driver on a login node may have the one for CPUs.
    return {"mup_tune": trained_by(), "torch": torch.partition("+")[0]}


def refuse_other(driver: dict[str, str]) -> None:
    """Refuse this lane if its code is not the ``driver``'s: their losses would not compare.

    Raises:
        UserError: names the host and what differs.
    """
    here = code()
    for field, theirs in driver.items():
        if here[field] != theirs:
            raise UserError(
                f"{platform.node()} has {here[field]}, the driver {theirs}: their losses would not compare",
                field=field,
                fix=f"Install the same {field.replace('_', '-')} on every node",
            )
