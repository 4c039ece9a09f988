"""Plans: YAML in, everything a run needs out, checked before anything trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

import mup_tune.search.stages  # noqa: F401  the kinds register themselves
from mup_tune.data.mixture import Data, check_weights
from mup_tune.data.stdlib import DEFAULT_CORPUS
from mup_tune.errors import UserError, located, unknown
from mup_tune.files import FrozenModel, Line, content_hash, find, parse_yaml, read_yaml, validated
from mup_tune.findings import State
from mup_tune.roles import role_table
from mup_tune.run.description import PlanRecord
from mup_tune.search.rehearsal import Rehearsal, rehearse
from mup_tune.search.stage import Context, Stage, each_once
from mup_tune.settings import Settings, load_settings
from mup_tune.shape import NonNegative, Shape, load_shape
from mup_tune.trial import Budget, in_tokens


def _listed(data: Any) -> Any:
    return (data,) if isinstance(data, dict | Data) else data


class Header(FrozenModel):
    """A plan's keys; the stages are checked by their kinds.

    ``target``: the Shape that the tuned settings are meant for. Nothing trains at it. ``data``: one corpus,
    or a list of corpora whose weights sum to 1.
    """

    name: Line
    about: str = ""
    data: Annotated[tuple[Data, ...], BeforeValidator(_listed), Field(min_length=1)] = (Data(),)
    proxy: str
    start: str = "untuned"
    target: str | None = None
    seeds: Annotated[tuple[NonNegative, ...], Field(min_length=1, max_length=100), each_once("seed")]
    budget: Budget
    stages: Annotated[list[dict[str, Any]], Field(min_length=1)]

    @field_validator("data")
    @classmethod
    def _mixture(cls, data: tuple[Data, ...]) -> tuple[Data, ...]:
        check_weights(data)
        return data


@dataclass(frozen=True)
class Plan:
    """A plan with its overlay and ``--set`` values applied and every name resolved.

    ``references``: named Settings that the first stage may compare with already.
    """

    header: Header
    shape: Shape
    start: Settings
    stages: tuple[Stage, ...]
    target: Shape | None = None
    scales: tuple[str, ...] = ()
    references: Mapping[str, Settings] = field(default_factory=dict)

    def key(self, index: int) -> str:
        """A stage's name in the journal and in file names: its place, and its name or kind."""
        return f"{index + 1:02d}-{self.stages[index].label}".replace(" ", "-")

    @cached_property
    def rehearsal(self) -> tuple[Rehearsal, ...]:
        """Every stage played once on a landscape without surprises.

        Raises:
            UserError: what a stage refuses, with the field below ``stages[…]``.
        """
        keyed = [(self.key(index), stage) for index, stage in enumerate(self.stages)]
        return tuple(rehearse(keyed, self.context, self.state))

    @property
    def context(self) -> Context:
        return Context(self.shape, self.header.budget, self.header.seeds)

    @property
    def state(self) -> State:
        """What the first stage starts from."""
        return State(self.start, self.references)

    def resolved(self) -> dict[str, Any]:
        """Plain data that says everything the run depends on, every name replaced by what it stands for."""
        return {
            **self.header.model_dump(mode="json", exclude={"proxy", "start", "target", "stages"}),
            "proxy": self.shape.model_dump(mode="json"),
            "start": self.start.model_dump(mode="json"),
            "target": self.target.model_dump(mode="json") if self.target else None,
            "stages": [stage.model_dump(mode="json") for stage in self.stages],
            "references": {name: each.model_dump(mode="json") for name, each in self.references.items()},
        }

    @property
    def hash(self) -> str:
        """The plan's identity: what decides, and the names that the journal uses as keys.

        Where a corpus lies decides nothing: its content has a hash of its own, which the run compares.
        """
        labels = {"about", "target"}  # they change nothing that trains
        if not self.references:
            labels.add("references")
        decides = {key: value for key, value in self.resolved().items() if key not in labels}
        decides["data"] = [{key: value for key, value in each.items() if key != "corpus"} for each in decides["data"]]
        decides["keys"] = [self.key(index) for index in range(len(self.stages))]
        if len(self.header.data) > 1:
            decides["sources"] = [each.name for each in self.header.data]  # losses of a mixture are kept by them
        return content_hash(decides)


def load_plan(name_or_file: str, scale: str | None = None, assignments: tuple[str, ...] = ()) -> Plan:
    """The plan of a shipped name or a file, with the overlay ``scale`` and ``a.b=c`` assignments on top.

    The other overlays are checked too, field by field, as they stand in the file; they are not rehearsed.

    Raises:
        UserError: names the file, field and value that is wrong, and what is allowed.
    """
    path = find("sweeps", name_or_file)
    data = read_yaml(path)
    data.setdefault("name", path.stem)
    scales = _scales(data.pop("scales", None), path)
    if scale is not None and scale not in scales:
        problem = unknown("scale", scale, scales) if scales else "this plan has no scales"
        raise UserError(problem, file=path, field="--scale", fix="" if scales else "Leave it out")
    chosen = deepcopy(_with_scale(data, scales, scale, path))
    for assignment in assignments:
        _assign(chosen, assignment)
    plan = plan_from(chosen, path, tuple(scales))
    for other in (name for name in scales if name != scale):
        _checked(_with_scale(data, scales, other, path), f"{path}: scales.{other}")
    return plan


def plan_from(data: dict[str, Any], source: str | Path, scales: tuple[str, ...] = ()) -> Plan:
    """The plan that ``data`` describes: every field checked, every name resolved, every stage rehearsed.

    Raises:
        UserError: names ``source``, the field and the value that is wrong, and what is allowed.
    """
    plan = _checked(data, source, scales)
    with located(file=source):
        plan.rehearsal  # noqa: B018  a stage may refuse what it is given
    return plan


def plan_of(record: PlanRecord, corpora: Sequence[str], source: str | Path) -> Plan:
    """The plan that a run was created with, from the run alone: no file that it named is read again.

    Args:
        corpora: where the run found its data, in the plan's order.
        source: stands where a plan's file stands in messages.
    """
    labels = {"proxy": record.proxy.name, "start": record.start.name, "target": record.target and record.target.name}
    plain = record.model_dump(mode="json", include={"name", "about", "seeds", "budget", "stages"})
    data = [
        each if each.get("corpus") == DEFAULT_CORPUS else {**each, "corpus": corpus}
        for each, corpus in zip(record.data, corpora, strict=True)
    ]
    header = validated(Header, {**plain, **labels, "data": _sources(data, source)}, source)
    stages = tuple(_stage(entry, index, source) for index, entry in enumerate(header.stages))
    return Plan(header, record.proxy, record.start, stages, record.target, references=record.references)


def _checked(data: dict[str, Any], source: str | Path, scales: tuple[str, ...] = ()) -> Plan:
    """The plan, its fields checked and its names resolved, before its rehearsal."""
    if "data" in data:
        data = {**data, "data": _sources(data["data"], source)}
    header = validated(Header, {**data, "budget": in_tokens(data["budget"])} if "budget" in data else data, source)
    stages = tuple(_stage(entry, index, source) for index, entry in enumerate(header.stages))
    with located(file=source, field="proxy"):
        shape = load_shape(header.proxy)
    with located(file=source, field="target"):
        target = load_shape(header.target) if header.target is not None else None
    with located(file=source, field="start"):
        start = load_settings(header.start, shape)
        role_table(shape, start)
    stages = tuple(_resolved(stage, index, shape, source) for index, stage in enumerate(stages))
    return Plan(header, shape, start, stages, target, scales)


def _resolved(stage: Stage, index: int, shape: Shape, source: str | Path) -> Stage:
    with located(file=source, field=f"stages[{index}]"):
        return stage.resolved(shape)


def _scales(given: Any, path: Path) -> dict[str, dict[str, Any]]:
    """The overlays by name; an empty one changes nothing."""
    scales = {} if given is None else given
    if not isinstance(scales, dict):
        raise UserError("must map overlay names to keys", file=path, field="scales")
    for name, overlay in scales.items():
        if overlay is not None and not isinstance(overlay, dict):
            raise UserError(f"{overlay!r} must be a mapping of a plan's keys", file=path, field=f"scales.{name}")
    return {str(name): overlay or {} for name, overlay in scales.items()}


def _with_scale(
    data: dict[str, Any], scales: dict[str, dict[str, Any]], name: str | None, path: Path
) -> dict[str, Any]:
    return data if name is None else _scaled(data, scales[name], path, f"scales.{name}.stages")


def _scaled(data: dict[str, Any], overlay: dict[str, Any], path: Path, field: str) -> dict[str, Any]:
    """``data`` with an overlay on top; its ``stages`` may be a list or fields by a stage's name."""
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
    for part in parents:
        key: Any = _key(where, part, path)
        where = where[key] if isinstance(where, list) else where.setdefault(key, {})
    where[_key(where, last, path)] = parse_yaml(text, f"--set {assignment}")


def _key(container: Any, part: str, path: str) -> str | int:
    """``part`` of ``path`` as a key of ``container``: a name, or the index of a list's entry."""
    if isinstance(container, dict):
        return part
    if not isinstance(container, list):
        raise UserError(f"{path!r}: there is nothing below {part!r}", field="--set")
    if not (part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(container)):
        raise UserError(f"{path!r}: {part!r} is not an index below {len(container)}", field="--set")
    return int(part)


def _sources(given: Any, path: str | Path) -> Any:
    """A plan's ``data``, each corpus checked where it stands: a mapping, or a list of them."""
    if not isinstance(given, list):
        return (validated(Data, given, path, at="data"),)
    return tuple(validated(Data, entry, path, at=f"data[{index}]") for index, entry in enumerate(given))


def _stage(entry: dict[str, Any], index: int, source: str | Path) -> Stage:
    field, kinds = f"stages[{index}]", dict(sorted(Stage.kinds.items()))
    if "kind" not in entry:
        raise UserError(f"has no kind (allowed: {', '.join(kinds)})", file=source, field=field)
    if not isinstance(entry["kind"], str) or entry["kind"] not in kinds:
        raise UserError(unknown("stage kind", entry["kind"], kinds), file=source, field=f"{field}.kind")
    return validated(kinds[entry["kind"]], entry, source, at=field)
