"""Plans: YAML in, everything a run needs out, checked before anything trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from mup_tune.data.mixture import Data, check_weights
from mup_tune.errors import UserError, unknown
from mup_tune.files import FrozenModel, content_hash, find, parse_yaml, read_yaml, validated
from mup_tune.roles import role_table
from mup_tune.search.forecast import foresee
from mup_tune.search.stage import Context, Stage, State
from mup_tune.search.stages import KINDS
from mup_tune.settings import Settings, load_settings
from mup_tune.shape import NonNegative, Shape, load_shape
from mup_tune.trial import Budget


def _listed(data: Any) -> Any:
    return (data,) if isinstance(data, dict | Data) else data


class Header(FrozenModel):
    """A plan's keys; the stages are checked by their kinds.

    ``target``: the Shape that the tuned settings are meant for. Nothing trains at it. ``data``: one corpus,
    or a list of corpora whose weights sum to 1.
    """

    name: str
    about: str = ""
    data: Annotated[tuple[Data, ...], BeforeValidator(_listed), Field(min_length=1)] = (Data(),)
    proxy: str
    start: str = "untuned"
    target: str | None = None
    seeds: Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    budget: Budget
    stages: Annotated[list[dict[str, Any]], Field(min_length=1)]

    @field_validator("data")
    @classmethod
    def _mixture(cls, data: tuple[Data, ...]) -> tuple[Data, ...]:
        check_weights(data)
        return data


@dataclass(frozen=True)
class Plan:
    """A plan with its overlay and ``--set`` values applied and every name resolved."""

    header: Header
    shape: Shape
    start: Settings
    stages: tuple[Stage, ...]
    target: Shape | None = None
    scales: tuple[str, ...] = ()

    def key(self, index: int) -> str:
        """A stage's name in the journal and in file names: its place, and its name or kind."""
        return f"{index + 1:02d}-{self.stages[index].label}".replace(" ", "-")

    @property
    def context(self) -> Context:
        return Context(self.shape, self.header.budget, self.header.seeds)

    def resolved(self) -> dict[str, Any]:
        """Plain data that says everything the run depends on; its hash is the plan's identity."""
        return {
            **self.header.model_dump(mode="json", exclude={"proxy", "start", "target", "stages"}),
            "proxy": self.shape.model_dump(mode="json"),
            "start": self.start.model_dump(mode="json"),
            "target": self.target.model_dump(mode="json") if self.target else None,
            "stages": [stage.model_dump(mode="json") for stage in self.stages],
        }

    @property
    def hash(self) -> str:
        labels = ("about", "target")  # they change nothing that trains
        return content_hash({key: value for key, value in self.resolved().items() if key not in labels})


def load_plan(name_or_file: str, scale: str | None = None, assignments: tuple[str, ...] = ()) -> Plan:
    """The plan of a shipped name or a file, with the overlay ``scale`` and ``a.b=c`` assignments on top.

    Raises:
        UserError: names the file, field and value that is wrong, and what is allowed.
    """
    path = find("sweeps", name_or_file)
    data = read_yaml(path)
    scales = _scales(data.pop("scales", None), path)
    if scale is not None:
        if scale not in scales:
            problem = unknown("scale", scale, scales) if scales else "this plan has no scales"
            raise UserError(problem, file=path, field="--scale", fix="" if scales else "Leave it out")
        data = _scaled(data, scales[scale], path, f"scales.{scale}.stages")
    for assignment in assignments:
        _assign(data, assignment)
    data.setdefault("name", path.stem)
    if "data" in data:
        data["data"] = _sources(data["data"], path)
    header = validated(Header, data, path)
    stages = tuple(_stage(entry, index, path) for index, entry in enumerate(header.stages))
    shape = _shape(header.proxy, path, "proxy")
    target = _shape(header.target, path, "target") if header.target is not None else None
    try:
        start = load_settings(header.start, shape)
        role_table(shape, start)
    except UserError as error:
        raise UserError(error.problem, file=path, field="start", fix=error.fix) from None
    plan = Plan(header, shape, start, stages, target, tuple(scales))
    _check_stages(plan, path)
    return plan


def _shape(name: str, path: Path, field: str) -> Shape:
    try:
        return load_shape(name)
    except UserError as error:
        raise UserError(error.problem, file=path, field=field, fix=error.fix) from None


def _scales(given: Any, path: Path) -> dict[str, dict[str, Any]]:
    """The overlays by name; an empty one changes nothing."""
    scales = {} if given is None else given
    if not isinstance(scales, dict):
        raise UserError("must map overlay names to keys", file=path, field="scales")
    for name, overlay in scales.items():
        if overlay is not None and not isinstance(overlay, dict):
            raise UserError(f"{overlay!r} must be a mapping of a plan's keys", file=path, field=f"scales.{name}")
    return {str(name): overlay or {} for name, overlay in scales.items()}


def _scaled(data: dict[str, Any], overlay: dict[str, Any], path: Path, field: str) -> dict[str, Any]:
    """``data`` with an overlay on top, whose ``stages`` may be a list of its own or fields by a stage's name."""
    changes, entries = overlay.get("stages"), data.get("stages")
    if not isinstance(changes, dict) or not isinstance(entries, list):
        return _overlaid(data, overlay)
    names = [entry.get("name") or entry.get("kind") if isinstance(entry, dict) else None for entry in entries]
    merged = list(entries)
    for name, fields in changes.items():
        places = [index for index, each in enumerate(names) if each == name]
        if not places:
            raise UserError(unknown("stage", name, names), file=path, field=field)
        if len(places) > 1:
            fix = "Give each a `name` of its own"
            raise UserError(f"{len(places)} stages are called {name!r}", file=path, field=field, fix=fix)
        if not isinstance(fields, dict):
            raise UserError(f"{fields!r} must be a mapping of the stage's keys", file=path, field=f"{field}.{name}")
        merged[places[0]] = _overlaid(entries[places[0]], fields)
    return _overlaid(data, {**overlay, "stages": merged})


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


def _sources(given: Any, path: Path) -> Any:
    """A plan's ``data``, each corpus checked where it stands: a mapping, or a list of them."""
    if not isinstance(given, list):
        return (validated(Data, given, path, at="data"),)
    return tuple(validated(Data, entry, path, at=f"data[{index}]") for index, entry in enumerate(given))


def _stage(entry: dict[str, Any], index: int, path: Path) -> Stage:
    field = f"stages[{index}]"
    if "kind" not in entry:
        raise UserError(f"has no kind (allowed: {', '.join(KINDS)})", file=path, field=field)
    if not isinstance(entry["kind"], str) or entry["kind"] not in KINDS:
        raise UserError(unknown("stage kind", entry["kind"], KINDS), file=path, field=f"{field}.kind")
    return validated(KINDS[entry["kind"]], entry, path, at=field)


def _check_stages(plan: Plan, path: Path) -> None:
    """References a stage compares with must come from an earlier one; grids must suit the Shape."""
    state = State(plan.start)
    for index, stage in enumerate(plan.stages):
        for name in stage.requires:
            if name not in state.references:
                known = state.references
                problem = unknown("reference", name, known) if known else f"no earlier stage provides {name!r}"
                fix = "Store one with `reference:` in an earlier stage"
                raise UserError(problem, file=path, field=f"stages[{index}].against", fix=fix)
        try:
            # The forecast looks at a first proposal, which touches every option that depends on the Shape.
            state = foresee(plan.key(index), stage, plan.context, state)[1]
        except UserError as error:
            field = ".".join(part for part in (f"stages[{index}]", error.field) if part)
            raise UserError(error.problem, file=path, field=field, fix=error.fix) from None
