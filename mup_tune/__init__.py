"""µP tuning and scaling of Falcon-H1 models.

The Python API for users is :func:`load_run` for a run's tables, and :func:`load_transfer` for training from
what was exported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mup_tune.version import VERSION

__version__ = VERSION
__all__ = ["__version__", "load_run", "load_transfer"]

if TYPE_CHECKING:
    from mup_tune.run.view import load_run
    from mup_tune.transfer import load_transfer


def __getattr__(name: str) -> Any:
    # Lazy: `mup-tune --help` must not pay for pandas, nor readers of run folders for torch.
    if name == "load_run":
        from mup_tune.run.view import load_run

        return load_run
    if name == "load_transfer":
        from mup_tune.transfer import load_transfer

        return load_transfer
    raise AttributeError(f"module 'mup_tune' has no attribute {name!r}")
