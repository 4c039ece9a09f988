"""µP tuning and scaling of Falcon-H1 models. The Python API for users is :func:`load_transfer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mup_tune.version import VERSION

__version__ = VERSION
__all__ = ["__version__", "load_transfer"]

if TYPE_CHECKING:
    from mup_tune.transfer import load_transfer


def __getattr__(name: str) -> Any:
    # Lazy: `mup-tune --help` and readers of run folders must not pay for torch.
    if name == "load_transfer":
        from mup_tune.transfer import load_transfer

        return load_transfer
    raise AttributeError(f"module 'mup_tune' has no attribute {name!r}")
