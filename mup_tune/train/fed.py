"""How many steps a :class:`~mup_tune.train.step.TrainingStep` is fed at once."""

from __future__ import annotations

FED_STEPS = 20  # and so from one look at the device to the next
FED_BYTES = 2**26  # of batches on the device


def fed_steps(rows: int, seq_len: int) -> int:
    """How many steps with batches of [rows, seq_len] are fed at once, at most."""
    return min(FED_STEPS, max(1, FED_BYTES // (12 * rows * seq_len)))
