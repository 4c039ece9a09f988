"""The exported schedule in the steps that trainers with a warmup-stable-decay schedule count in."""

from __future__ import annotations

from typing import NamedTuple

from mup_tune.transfer.groups import ScheduleSpec


class Steps(NamedTuple):
    """Optimizer steps of the whole training, of warmup, and of the decay at its end."""

    total: int
    warmup: int
    decay: int


def wsd(spec: ScheduleSpec) -> Steps | None:
    """The schedule in steps; None where the target's budget is not known."""
    if spec.batch_tokens is None or spec.total_tokens is None:
        return None
    total = spec.total_tokens // spec.batch_tokens
    decay = round(spec.decay_fraction * total)
    return Steps(total, min(round(spec.warmup_fraction * total), total - decay), decay)


def lost_in_schedule(spec: ScheduleSpec) -> tuple[str, ...]:
    """What a trainer with a warmup-stable-decay schedule of its own cannot follow."""
    found = [
        f"the decay to {spec.lr_decay_to:g} of the peak has the trainer's curve, not the exponential one tuned with"
    ]
    if spec.power_onset_fraction is not None:
        found.append("the power schedule: η and λ ∝ t^-1/4 from its onset on are not applied; write a scheduler for it")
    if wsd(spec) is None:
        found.append("the steps of warmup and decay, for which --tokens and the batch have to be known")
    return tuple(found)
