"""Carry tuned Settings to a full-size Shape, in the formats that trainers read."""

from __future__ import annotations

from mup_tune.transfer.load import Transfer, load_transfer

__all__ = ["Transfer", "load_transfer"]
