"""``optimizer.yaml``: the schedule, and what every parameter gets, by disjoint full-match patterns.

It is written from the role table and is all that a training loop needs besides ``config.json``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mup_tune.errors import UserError
from mup_tune.files import FrozenModel
from mup_tune.multipliers import COMPLETEP, FORWARD
from mup_tune.roles import Distribution, Role, RoleTable
from mup_tune.settings import Settings
from mup_tune.shape import Positive
from mup_tune.transfer.provenance import Provenance, Rule
from mup_tune.trial import Budget

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]  # computed of settings, so without their bounds
NonNegativeFloat = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]

UPDATE = "AdamW: θ ← θ − lr·weight_decay·θ − lr·m̂/(√v̂ + eps); torch.optim.AdamW couples lr and decay the same way"
ETA_FORMULA = (
    "lr(t) = lr · warm · power · decay; warm = min(1, t/W); power = (t/P)^-1/4 where t > P, else 1; "
    "decay = lr_decay_to^((t − T + D)/D) where t > T − D, else 1; t: tokens seen at the update, its batch included; "
    "T: total_tokens in whole batches; W, D, P: warmup_fraction, decay_fraction, power_onset_fraction × total_tokens"
)
LAM_FORMULA = "weight_decay(t) = weight_decay · power; warmup and decay act on lr alone"
DEFAULT_WARMUP, DEFAULT_DECAY = 0.01, 0.2


def parametrisation(settings: Settings) -> str:
    """The abc-parametrisation: multipliers (a), init (b), learning rate (c) and depth rule, in words."""
    hidden = "∝ √fan_in from σ₀ at the base Shape" if settings.init.rule == "fan_in" else "the same at every width"
    *closing, last = (each.name for each in FORWARD.values() if each.closes_branch)
    depth = {
        "none": "none, as in Falcon-H1: nothing was scaled with depth",
        "completep": f"completep ({COMPLETEP.source}): {', '.join(closing)} and {last} multipliers and the eps of "
        f"every parameter inside a block ∝ {COMPLETEP.formula}, L₀ = {settings.base.n_layers}",
    }[settings.depth_rule]
    return (
        "Falcon-H1's. a: width factors sit in the forward multipliers of config.json, 1/(contracted dimension) for "
        f"every contraction; b: init std of hidden matrices {hidden}, embedding and lm_head the same at every width; "
        f"c: AdamW's lr and weight_decay the same at every width and depth, eps at every width; depth rule: {depth}"
    )


class InitSlice(FrozenModel):
    """One slice along a parameter's first dimension. ``multiplier`` is in config.json and acts forward."""

    slice: str
    rows: Positive
    distribution: Distribution
    std: NonNegativeFloat | None
    multiplier: PositiveFloat


# What ``optimizer_file`` writes. It matches in linear time; a regular expression at large could hang.
PATTERN = re.compile(r"(?:\w|\\\.|\\d\+)+", re.ASCII)


class Group(FrozenModel):
    """One parameter group. ``pattern`` matches whole names of parameters, ``tensors`` of them."""

    pattern: str
    tensors: Positive
    shape: Annotated[tuple[Positive, ...], Field(min_length=1)]
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    eps: PositiveFloat
    init: Annotated[tuple[InitSlice, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _checked(self) -> Group:
        if not PATTERN.fullmatch(self.pattern):
            raise ValueError(f"{self.pattern!r} is no pattern of a parameter's name: letters, digits, _, \\. and \\d+")
        if sum(part.rows for part in self.init) != self.shape[0]:
            raise ValueError(f"the slices of {self.pattern!r} must add up to its {self.shape[0]} rows")
        return self

    def roles(self) -> tuple[Role, ...]:
        """The rows that :func:`mup_tune.model.init.draw_` reads."""
        return tuple(
            Role(
                parameter=self.pattern,
                slice=part.slice,
                shape=(part.rows, *self.shape[1:]),
                init=part.distribution,
                init_std=part.std,
                multiplier=part.multiplier,
                lr=self.lr,
                weight_decay=self.weight_decay,
                eps=self.eps,
                rule="",
                source="optimizer.yaml",
            )
            for part in self.init
        )


class ScheduleSpec(FrozenModel):
    """The schedule in fractions of the total tokens. The two token counts are null until a budget is known.

    ``lr_tuned_at_batch_tokens`` is the run's batch where lr was scaled from there to ``batch_tokens``, else
    null.
    """

    eta: str = ETA_FORMULA
    lam: str = LAM_FORMULA
    warmup_fraction: Fraction = DEFAULT_WARMUP
    decay_fraction: Fraction = DEFAULT_DECAY
    lr_decay_to: Annotated[float, Field(gt=0, le=1)] = 0.1
    power_onset_fraction: PositiveFloat | None = None
    batch_tokens: Positive | None = None
    total_tokens: Positive | None = None
    lr_tuned_at_batch_tokens: Positive | None = None
    origin: str

    @model_validator(mode="after")
    def _fits(self) -> ScheduleSpec:
        if self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError("warmup_fraction + decay_fraction must not exceed 1")
        return self

    @classmethod
    def of(cls, budget: Budget | None) -> ScheduleSpec:
        """The run's own schedule, or a plain default that says that nothing tuned it."""
        if budget is None:
            return cls(origin="a default, not tuned: these settings come without a run")
        onset = budget.power_onset_tokens
        return cls(
            warmup_fraction=budget.warmup_tokens / budget.total_tokens,
            decay_fraction=budget.decay_tokens / budget.total_tokens,
            lr_decay_to=budget.lr_decay_to,
            power_onset_fraction=None if onset is None else onset / budget.total_tokens,
            batch_tokens=budget.batch_tokens,
            total_tokens=budget.total_tokens,
            origin="the run's; batch_tokens and total_tokens are the proxy's, give load_transfer the target's own",
        )

    def aimed(self, batch_tokens: int | None, total_tokens: int | None) -> ScheduleSpec:
        """The same at the target's own budget, as far as it is known; lr was scaled to ``batch_tokens``."""
        if batch_tokens is None and total_tokens is None:
            return self
        budget = {"batch_tokens": batch_tokens or self.batch_tokens, "total_tokens": total_tokens}
        missing = " and ".join(name for name, value in budget.items() if value is None)
        said = f"{self.origin.partition(';')[0]}; its budget is the target's"
        update: dict[str, object] = {
            **budget,
            "lr_tuned_at_batch_tokens": self.batch_tokens if batch_tokens else None,
            "origin": f"{said}, give load_transfer its {missing}" if missing else said,
        }
        return self.model_copy(update=update)


class OptimizerFile(FrozenModel):
    """All of ``optimizer.yaml``. ``provenance`` and ``rules`` say what it was made from, and how."""

    format: Literal[1] = 1
    provenance: Provenance | None = None
    rules: tuple[Rule, ...] = ()
    parametrisation: str
    update: str = UPDATE
    betas: tuple[Beta, Beta]
    clip_norm: PositiveFloat
    schedule: ScheduleSpec
    groups: Annotated[tuple[Group, ...], Field(min_length=1)]


def optimizer_file(table: RoleTable, budget: Budget | None) -> OptimizerFile:
    """The file for a target; without a run's budget betas and clipping are :class:`Budget`'s defaults."""
    fields = Budget.model_fields
    beta1, beta2, clip = (
        (budget.beta1, budget.beta2, budget.clip_norm)
        if budget
        else (fields["beta1"].default, fields["beta2"].default, fields["clip_norm"].default)
    )
    return OptimizerFile(
        parametrisation=parametrisation(table.settings),
        betas=(beta1, beta2),
        clip_norm=clip,
        schedule=ScheduleSpec.of(budget),
        groups=tuple(_group(table, parameter, slices) for parameter, slices in table.by_parameter.items()),
    )


def _group(table: RoleTable, parameter: str, slices: tuple[Role, ...]) -> Group:
    first = slices[0]
    return Group(
        pattern=r"\d+".join(re.escape(part) for part in parameter.split("{layer}")),
        tensors=table.shape.n_layers if "{layer}" in parameter else 1,
        shape=(sum(role.shape[0] for role in slices), *first.shape[1:]),
        lr=first.lr,
        weight_decay=first.weight_decay,
        eps=first.eps,
        init=tuple(
            InitSlice(
                slice=role.slice,
                rows=role.shape[0],
                distribution=role.init,
                std=role.init_std,
                multiplier=role.multiplier,
            )
            for role in slices
        ),
    )


def match(groups: Iterable[Group], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Group]:
    """The one group of every parameter, by name.

    Args:
        groups: the patterns, with the shape and the number of the parameters they match.
        shapes: the model's parameters, by ``transformers`` names.

    Raises:
        UserError: a parameter that no pattern or more than one matches, another shape, or a pattern that does
            not match as many parameters as it says.
    """
    groups = tuple(groups)
    owner: dict[str, Group] = {}
    for name, shape in shapes.items():
        found = [group for group in groups if re.fullmatch(group.pattern, name)]
        if len(found) != 1:
            which = " and ".join(repr(group.pattern) for group in found) or "no pattern"
            raise UserError(f"the parameter {name!r} is matched by {which}", field="groups")
        if found[0].shape != shape:
            raise UserError(f"the parameter {name!r} has the shape {shape}, not {found[0].shape}", field="groups")
        owner[name] = found[0]
    for group in groups:
        count = sum(each is group for each in owner.values())
        if count != group.tensors:
            raise UserError(
                f"the pattern {group.pattern!r} matches {count} parameters, not {group.tensors}",
                field="groups",
                fix="Is this a model of the exported config.json, embeddings untied?",
            )
    return owner
