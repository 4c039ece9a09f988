"""Reading and writing small files: YAML into validated models, names into shipped files, atomic writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from mup_tune.errors import UserError, unknown


class FrozenModel(BaseModel):
    """A frozen value from a file. Unknown keys are errors; ``name`` is a label that never enters a hash."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def content_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON, without labels."""
        return content_hash(self.model_dump(mode="json"))


NAME_BYTES = 150  # a file's name may have 255, and suffixes and an atomic write take their part


def _one_line(text: str) -> str:
    for each in text:
        if unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp"):
            raise ValueError(f"a name is one line of text, and {text[:40]!r} holds {each!r}")
    return text


def _short(text: str) -> str:
    if (size := len(text.encode())) > NAME_BYTES:
        raise ValueError(f"a name has at most {NAME_BYTES} bytes in UTF-8, for files are named after it: it has {size}")
    return text


Line = Annotated[str, AfterValidator(_one_line)]  # a label that is only shown
Name = Annotated[Line, AfterValidator(_short)]  # files are named after it

LEFTOVER = re.compile(r"\..+\.([0-9]+)")  # where atomic writes start; the number is the process
ModelT = TypeVar("ModelT", bound=BaseModel)


def content_hash(value: Any) -> str:
    """Hash of a JSON value whose ``name`` keys (labels) are left out; floats by their shortest exact repr."""

    def bare(item: Any) -> Any:
        if isinstance(item, dict):
            # Leaves are most of a trial's values, and a call each would double the time.
            inner = (dict, list, tuple)
            return {key: bare(each) if isinstance(each, inner) else each for key, each in item.items() if key != "name"}
        return [bare(each) for each in item] if isinstance(item, list | tuple) else item

    text = json.dumps(bare(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's numbers, and without a key given twice.

    YAML 1.1 makes 1e-3 a string, 010 an eight, 1:30 a ninety and 2026-13-45 a broken date. Here the first is
    a number, and the others are strings, which a field for a number refuses.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _TAG + "merge":
                continue  # what it brings may be given again
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: a list or mapping cannot be a key")
            if key in seen:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: the key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the strings which the loader would take for numbers."""


_TAG = "tag:yaml.org,2002:"
_INT, _FLOAT = r"(?:0|[1-9][0-9_]*)", r"(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))"
_NUMBERS = {
    "int": re.compile(rf"^[-+]?{_INT}$"),
    "float": re.compile(rf"^[-+]?(?:{_FLOAT}(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) not in ("int", "float", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, list("-+.0123456789"))
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, list("-+.0123456789"))


DEEPEST, MOST_NODES = 100, 100_000


def parse_yaml(text: str, source: str | Path) -> Any:
    """Parse YAML; a syntax error becomes a :class:`UserError` that names the line."""
    try:
        data = yaml.load(text, Loader=_Loader)  # a SafeLoader subclass
        _check_size(data)
        return data
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of explicit tags, digits without end, nesting
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        detail = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{line}not valid YAML ({detail})", file=source) from None


def _check_size(data: Any) -> None:
    """Refuse what refers to itself, or is short only as long as nobody follows its aliases."""
    level, nodes = [data], 0
    for _ in range(DEEPEST):
        inner = [item for item in level if isinstance(item, dict | list)]
        if not inner:
            return
        level = [each for item in inner for each in (item.values() if isinstance(item, dict) else item)]
        nodes += len(level)
        if nodes > MOST_NODES:
            raise yaml.YAMLError(f"it holds more than {MOST_NODES:,} values")
    raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep, or refers to itself")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=path) from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", file=path) from None
    data = parse_yaml(text, path)
    if not isinstance(data, dict):
        raise UserError("must hold a mapping of keys to values", file=path)
    return data


def read_json(path: Path) -> dict[str, Any]:
    """The object a JSON file holds."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", file=path) from None


def dump_yaml(data: Any, compact: bool = False) -> str:
    """Block-style YAML in the order given. ``compact``: what holds no list or mapping stands on one line."""
    style = None if compact else False
    return str(
        yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=style)
    )


def validated(model: type[ModelT], data: Any, source: str | Path, at: str = "") -> ModelT:
    """``model`` from ``data``; a wrong field is named (below ``at``), with its value and what is allowed."""
    try:
        made = model.model_validate(data)
        for loc, value in _no_numbers(data, made.model_dump()):
            field = ".".join(part for part in (at, _dotted(loc)) if part)
            raise UserError(f"{value!r} is not allowed: a number is wanted", file=source, field=field)
        return made
    except ValidationError as error:
        # A misspelt key also makes the right one missing: the misspelling is what helps.
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        field = ".".join(part for part in (at, _dotted(first["loc"])) if part)
        more = f" ({error.error_count() - 1} more after this one)" if error.error_count() > 1 else ""
        raise UserError(_problem(model, first) + more, file=source, field=field or None) from None


def _no_numbers(given: Any, taken: Any) -> Iterator[tuple[tuple[int | str, ...], Any]]:
    """Where pydantic made a number of a truth value or a text."""
    if isinstance(given, dict) and isinstance(taken, dict):
        both: Iterable[tuple[int | str, Any, Any]] = (
            (key, each, taken[key]) for key, each in given.items() if key in taken
        )
    elif isinstance(given, list | tuple) and isinstance(taken, list | tuple) and len(given) == len(taken):
        both = ((index, *pair) for index, pair in enumerate(zip(given, taken, strict=True)))
    else:
        if isinstance(given, bool | str) and isinstance(taken, int | float) and not isinstance(taken, bool):
            yield (), given
        return
    for part, one, other in both:
        for loc, value in _no_numbers(one, other):
            yield (part, *loc), value


def _dotted(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else ("." if text else "") + part
    return text


def _problem(model: type[BaseModel], error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return unknown("key", error["loc"][-1], _keys_at(model, error["loc"][:-1]))
    if error["type"] == "missing":
        return "is required and missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message if error["type"] == "value_error" else f"{error['input']!r} is not allowed: {message}"


def _keys_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the model that sits at ``loc`` below ``model``, as far as plain annotations tell."""
    current: type[BaseModel] | None = model
    for part in loc:
        annotation = current.model_fields[part].annotation if current and part in current.model_fields else None
        current = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return list(current.model_fields) if current else []


def shipped(kind: str) -> Path:
    """Folder of the shipped ``proxy_models`` or ``sweeps``: in an installed package, else the checkout."""
    package = Path(__file__).resolve().parent
    inside = package / kind
    return inside if inside.is_dir() else package.parent / kind


def find(kind: str, name: str) -> Path:
    """The YAML file for ``name``: a path if it looks like one, else a shipped file of that ``kind``."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise UserError("no such file", file=name)
        return Path(name)
    path = shipped(kind) / f"{name}.yaml"
    if not path.is_file():
        names = sorted(entry.stem for entry in shipped(kind).glob("*.yaml"))
        what = {"proxy_models": "shape", "sweeps": "plan"}[kind]
        raise UserError(unknown(what, name, names), fix="A YAML file's path may be given as well")
    return path


def cache_dir() -> Path:
    """mup-tune's folder in the user's caches.

    The XDG base directory specification ignores a relative $XDG_CACHE_HOME.

    Raises:
        UserError: there is no home folder.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "mup-tune"
    except RuntimeError:
        problem = "this user has no home folder to keep mup-tune's cache in"
        raise UserError(problem, field="XDG_CACHE_HOME", fix="Set it to a folder that you can write to") from None


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write. It then takes its place, so that nobody ever sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with naming(path):
        try:
            yield beside
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside and rename: :func:`atomic`."""
    with atomic(path) as beside:
        beside.write_bytes(_encoded(content))


def _encoded(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def out_file(path: Path, field: str = "--out") -> Path:
    """Where a file that a user asked for is written: ``path``, or what it points at.

    To be called before any long work.

    Raises:
        UserError: names ``field``; it is a folder, or its folder does not exist or cannot be written to.
    """
    with _refusal(path, field):
        if path.is_dir():
            fix = f"Name a file in it, such as {path / 'NAME'}"
            raise UserError(f"{str(path)!r} is a folder, and a file is wanted", field=field, fix=fix)
        if path.exists() and not path.is_file():
            return path
        return _beside_others(path, field)


def out_folder(path: Path, field: str = "--out") -> Path:
    """Where a folder that a user asked for is, or is to be made: ``path``, or what it points at.

    To be called before any long work.

    Raises:
        UserError: names ``field``; it is no folder, or its parent does not exist or cannot be written to.
    """
    with _refusal(path, field):
        if path.exists() and not path.is_dir():
            raise UserError(f"{str(path)!r} is a file, and a folder is wanted", field=field, fix="Name a new folder")
        return path.resolve() if path.exists() else _beside_others(path, field)


def write_out(path: Path, content: str | bytes, field: str = "--out") -> None:
    """Write a file that a user asked for: whole or not at all, and through symlinks.

    What is no plain file, such as ``/dev/null`` or a FIFO, is written to and never replaced.

    Raises:
        UserError: as :func:`out_file`, or the system refuses.
    """
    place = out_file(path, field)
    with _refusal(path, field):
        if place.exists() and not place.is_file():
            place.write_bytes(_encoded(content))
        else:
            write_atomic(place, content)


def _beside_others(path: Path, field: str) -> Path:
    """``path`` with its symlinks followed, which may be new in a folder that is there."""
    place = Path(os.path.realpath(path))
    if not place.parent.is_dir():
        raise UserError(f"the folder {str(place.parent)!r} does not exist", field=field, fix="Create it first")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise UserError(f"the folder {str(place.parent)!r} cannot be written to", field=field)
    return place


@contextlib.contextmanager
def _refusal(path: Path, field: str) -> Iterator[None]:
    """Say what the system refuses as a :class:`UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written ({error.strerror})", field=field) from None


def remove_leftovers(folder: Path) -> None:
    """Delete what processes that were killed left in ``folder`` beside what they wrote.

    What a process of this user still may finish stays; so does what cannot be deleted.
    """
    for entry in folder.glob(".*"):
        named = LEFTOVER.fullmatch(entry.name)
        if named and not _at_work(int(named[1])):
            with contextlib.suppress(OSError):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _at_work(pid: int) -> bool:
    """Whether this user has such a process."""
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return False
    return True


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError from inside names ``path``: a failed write names nothing, a failed rename a hidden file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
