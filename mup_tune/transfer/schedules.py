"""The exported schedule in optimizer steps, which trainers with a warmup-stable-decay schedule count in."""

from __future__ import annotations

from typing import NamedTuple

from mup_tune.transfer.groups import ScheduleSpec


class Steps(NamedTuple):
    """Optimizer steps of the whole training, of its warmup, and of the decay at its end."""

    total: int
    warmup: int
    decay: int

    @classmethod
    def of(cls, spec: ScheduleSpec) -> Steps | None:
        """None where the batch or the length is not known."""
        if spec.batch_tokens is None or spec.total_tokens is None:
            return None
        total = spec.total_tokens // spec.batch_tokens
        decay = round(spec.decay_fraction * total)
        return cls(total, min(round(spec.warmup_fraction * total), total - decay), decay)
