"""Settings: every number that may differ between two models of one Shape and Budget, stored as base values.

Global axes (arXiv 2507.22448): ELR = √(η·λ), EWD = √(λ/η), so η = ELR/EWD and λ = ELR·EWD, with AdamW's
coupled decay θ ← θ − η·λ·θ.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from mup_tune.choices import DepthRule
from mup_tune.errors import UserError, unknown
from mup_tune.files import FrozenModel, Line, dump_yaml, read_yaml, validated
from mup_tune.multipliers import FALCON_H1_BASE, MULTIPLIER_NAMES, MULTIPLIERS, Base
from mup_tune.shape import Shape

LEAST, MOST = 1e-30, 1e30  # of a setting: all that is computed of settings stays finite and above 0


def _within(value: float) -> float:
    if not LEAST <= value <= MOST:
        raise ValueError(f"{value:g} is not allowed: a setting lies between {LEAST:g} and {MOST:g}")
    return value


# Strict: `true` and "0.35" are no numbers.
PositiveFloat = Annotated[float, Field(gt=0, strict=True), AfterValidator(_within)]
ETA, LAMBDA = 1.28e-3, 0.1  # arXiv 2507.22448: WD 0.1; the LR stands in a launch script of the Falcon-H1 team
ELR_0, EWD_0 = sqrt(ETA * LAMBDA), sqrt(LAMBDA / ETA)
GLOBAL_AXES = ("elr", "ewd", "rope_base")
AXES = (*GLOBAL_AXES, *MULTIPLIER_NAMES)


class Init(FrozenModel):
    """Std of the training init at the base Shape, and the rule that carries hidden matrices' to any Shape.

    ``rule: fan_in`` multiplies a hidden matrix' base std by √(fan_in/fan_in₀), the abc-equivalent of µP's
    1/√fan_in with a learning rate ∝ 1/fan_in (arXiv 2203.03466, Table 8); ``constant`` is what released
    configs say. Embedding and lm_head keep their base std at every Shape. ``rsqrt_fan_in`` means fan_in₀^-½.
    """

    rule: Literal["fan_in", "constant"] = "fan_in"
    hidden: PositiveFloat | Literal["rsqrt_fan_in"] = 0.02
    embedding: PositiveFloat = 0.02
    lm_head: PositiveFloat | Literal["rsqrt_fan_in", "zero"] = 0.02


class Settings(FrozenModel):
    """One point of the search: global ELR and EWD, the 35 multipliers, RoPE base, init; relative to ``base``.

    A multiplier left out of a file is 1. ``depth_rule: completep`` scales the residual branches by L₀/L
    (arXiv 2505.01618, α = 1), L₀ being the base's; ``none`` is Falcon-H1's.
    """

    name: Line = ""
    base: Base
    elr: PositiveFloat = ELR_0
    ewd: PositiveFloat = EWD_0
    rope_base: PositiveFloat = 1e11
    init: Init = Init()
    depth_rule: DepthRule = "none"
    multipliers: dict[str, PositiveFloat]

    @field_validator("multipliers")
    @classmethod
    def _all_35(cls, given: dict[str, float]) -> dict[str, float]:
        for name in given:
            if name not in MULTIPLIERS:
                raise ValueError(unknown("multiplier", name, MULTIPLIER_NAMES))
        return {name: float(given.get(name, 1.0)) for name in MULTIPLIERS}

    @property
    def eta(self) -> float:
        """Global AdamW learning rate η = ELR/EWD."""
        return self.elr / self.ewd

    @property
    def lam(self) -> float:
        """Global AdamW weight decay λ = ELR·EWD."""
        return self.elr * self.ewd

    def value(self, axis: str) -> float:
        """The value of an axis: ``elr``, ``ewd``, ``rope_base`` or a multiplier's name."""
        return float(getattr(self, axis)) if axis in GLOBAL_AXES else self.multipliers[check_axis(axis)]

    def with_values(self, values: Mapping[str, float], name: str | None = None) -> Settings:
        """A copy with some axes set; the new values are checked like any other input."""
        data: dict[str, Any] = {**dict(self), "multipliers": dict(self.multipliers)}  # base and init are shared
        for axis, value in values.items():
            where = data if axis in GLOBAL_AXES else data["multipliers"]
            where[check_axis(axis)] = float(value)
        if name is not None:
            data["name"] = name
        return Settings.model_validate(data)

    def scaled(self, factors: Mapping[str, float]) -> Settings:
        """A copy with some axes multiplied by a factor."""
        return self.with_values({axis: self.value(axis) * factor for axis, factor in factors.items()})

    def to_yaml(self) -> str:
        return dump_yaml(self.model_dump(mode="json"))


def check_axis(axis: str) -> str:
    """``axis`` itself, or a :class:`UserError` with the nearest name that exists."""
    if axis not in GLOBAL_AXES and axis not in MULTIPLIERS:
        raise UserError(unknown("axis", axis, AXES))
    return axis


def untuned(proxy: Shape) -> Settings:
    """What a careful engineer starts from: all 35 at 1, the proxy as base, σ = fan_in^-½, embedding 1."""
    init = Init(hidden="rsqrt_fan_in", embedding=1.0, lm_head="rsqrt_fan_in")
    return Settings(name="untuned", base=Base.of(proxy), init=init, multipliers={})


def standard(shape: Shape, settings: Settings) -> Settings:
    """The standard parametrisation at ``shape``, named ``sp``: nothing but ELR, EWD and RoPE base is tuned.

    All multipliers are 1 and σ = fan_in^-½ at every Shape, and so η and λ are the same at all of them.
    """
    return untuned(shape).with_values({axis: settings.value(axis) for axis in GLOBAL_AXES}, name="sp")


def falcon_h1_published() -> Settings:
    """The released models: their 12 forward multipliers, the unpublished 23 at 1, σ₀ = 0.02 at their base."""
    published = {multiplier.name: multiplier.published for multiplier in MULTIPLIERS.values()}
    return Settings(name="falcon-h1-published", base=FALCON_H1_BASE, multipliers=published)


NAMED = ("untuned", "falcon-h1-published")


def load_settings(name_or_file: str, proxy: Shape | None) -> Settings:
    """Named Settings, or those of a YAML file.

    Args:
        name_or_file: ``untuned``, ``falcon-h1-published``, or a YAML file that ``to_yaml`` or a user wrote.
        proxy: the base Shape of ``untuned``; not needed for the others.
    """
    if name_or_file == "falcon-h1-published":
        return falcon_h1_published()
    if name_or_file == "untuned":
        if proxy is None:
            raise UserError("'untuned' is relative to a proxy and none is given", fix="Name one with --shape")
        return untuned(proxy)
    path = Path(name_or_file)
    if not path.suffix and not path.exists():
        raise UserError(unknown("settings", name_or_file, NAMED), fix="A settings YAML's path may be given as well")
    if not path.is_file():
        raise UserError("no such file", file=name_or_file)
    data = read_yaml(path)
    data.setdefault("name", path.stem)
    return validated(Settings, data, path)
