"""Plans: YAML in, everything a run needs out, checked before anything trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mup_tune.errors import UserError, unknown
from mup_tune.files import Model, content_hash, find, parse_yaml, read_yaml, validated
from mup_tune.roles import role_table
from mup_tune.search.stage import Context, Stage, State
from mup_tune.search.stages import KINDS
from mup_tune.settings import Settings, load_settings
from mup_tune.shape import NonNegative, Shape, load_shape
from mup_tune.trial import Budget


class Data(Model):
    """``corpus``: a folder that ``mup-tune data prepare`` wrote, or ``python-stdlib``, the real text every machine has.

    A trial that would read the training tokens more than ``max_epochs`` times is refused.
    """

    corpus: str = "python-stdlib"
    max_epochs: Annotated[float, Field(gt=0)] = 1.0


class Header(Model):
    """A plan's keys; the stages are checked by their kinds."""

    name: str
    about: str = ""
    data: Data = Data()
    proxy: str
    start: str = "untuned"
    seeds: Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    budget: Budget
    stages: Annotated[list[dict[str, Any]], Field(min_length=1)]


@dataclass(frozen=True)
class Plan:
    """A plan with its overlay and ``--set`` values applied and every name resolved."""

    header: Header
    shape: Shape
    start: Settings
    stages: tuple[Stage, ...]

    @property
    def context(self) -> Context:
        return Context(self.shape, self.header.budget, self.header.seeds)

    def resolved(self) -> dict[str, Any]:
        """Plain data that says everything the run depends on; its hash is the plan's identity."""
        return {
            **self.header.model_dump(mode="json", exclude={"proxy", "start", "stages"}),
            "proxy": self.shape.model_dump(mode="json"),
            "start": self.start.model_dump(mode="json"),
            "stages": [stage.model_dump(mode="json") for stage in self.stages],
        }

    @property
    def hash(self) -> str:
        return content_hash({key: value for key, value in self.resolved().items() if key != "about"})


def load_plan(name_or_file: str, scale: str | None = None, assignments: tuple[str, ...] = ()) -> Plan:
    """The plan of a shipped name or a file, with the overlay ``scale`` and ``a.b=c`` assignments on top.

    Raises:
        UserError: names the file, field and value that is wrong, and what is allowed.
    """
    path = find("sweeps", name_or_file)
    data = read_yaml(path)
    scales = data.pop("scales", {})
    if not isinstance(scales, dict):
        raise UserError("must map overlay names to keys", file=path, field="scales")
    if scale is not None:
        if scale not in scales:
            raise UserError(unknown("scale", scale, scales) if scales else "this plan has no scales", field="--scale")
        data = _overlaid(data, scales[scale])
    for assignment in assignments:
        _assign(data, assignment)
    data.setdefault("name", path.stem)
    header = validated(Header, data, path)
    stages = tuple(_stage(entry, index, path) for index, entry in enumerate(header.stages))
    try:
        shape = load_shape(header.proxy)
    except UserError as error:
        raise UserError(error.problem, file=path, field="proxy", fix=error.fix) from None
    try:
        start = load_settings(header.start, shape)
        role_table(shape, start)
    except UserError as error:
        raise UserError(error.problem, file=path, field="start", fix=error.fix) from None
    plan = Plan(header, shape, start, stages)
    _check_stages(plan, path)
    return plan


def _overlaid(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``overlay`` on top: mappings merge, everything else is replaced."""
    merged = dict(base)
    for key, value in overlay.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlaid(merged[key], value) if both else value
    return merged


def _assign(data: dict[str, Any], assignment: str) -> None:
    """Carry out ``a.b=c`` or ``stages.1.n_seeds=3`` in place; the value is read as YAML."""
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise UserError(f"{assignment!r} is not of the form key=value, e.g. budget.total_tokens=1e6", field="--set")
    *parents, last = path.split(".")
    where: Any = data
    for part in [*parents, last]:
        container = where
        if isinstance(container, list):
            if not part.isdigit() or int(part) >= len(container):
                raise UserError(f"{path!r}: {part!r} is not an index below {len(container)}", field="--set")
            key: Any = int(part)
        elif isinstance(container, dict):
            key = part
        else:
            raise UserError(f"{path!r}: there is nothing below {part!r}", field="--set")
        if part is last:
            container[key] = parse_yaml(text, f"--set {assignment}")
            return
        where = container[key] if isinstance(container, list) else container.setdefault(key, {})


def _stage(entry: dict[str, Any], index: int, path: Path) -> Stage:
    field = f"stages[{index}]"
    if "kind" not in entry:
        raise UserError(f"has no kind (allowed: {', '.join(KINDS)})", file=path, field=field)
    if entry["kind"] not in KINDS:
        raise UserError(unknown("stage kind", entry["kind"], KINDS), file=path, field=f"{field}.kind")
    return validated(KINDS[entry["kind"]], entry, path, at=field)


def _check_stages(plan: Plan, path: Path) -> None:
    """References a stage compares with must come from an earlier one; grids must suit the Shape."""
    available: dict[str, Settings] = {}
    measured: dict[str, float] = {}
    for index, stage in enumerate(plan.stages):
        for name in stage.requires:
            if name not in available:
                problem = unknown("reference", name, available) if available else f"no earlier stage provides {name!r}"
                fix = "Store one with `reference:` in an earlier stage"
                raise UserError(problem, file=path, field=f"stages[{index}].against", fix=fix)
        try:
            # The first proposal touches every option that depends on the Shape; it trains nothing.
            stage.propose(plan.context, State(plan.start, available, measured), {})
        except UserError as error:
            raise UserError(error.problem, file=path, field=f"stages[{index}]", fix=error.fix) from None
        available |= dict.fromkeys(stage.provides, plan.start)
        measured |= dict.fromkeys(stage.measures, 1.0)
