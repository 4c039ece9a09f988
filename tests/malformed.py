"""Files, folders and arguments as nobody means them, made by a seeded generator from ones that are sound.

    python tests/malformed.py 10000 [FIRST]

runs so many cases and prints every one that ended other than it should: in anything but success or one line
for the user, after more than a few seconds, or in success where a number was replaced by what is none.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mup_tune.errors import UserError, refused
from mup_tune.files import read_yaml, shipped
from mup_tune.run.view import load_run
from mup_tune.search.plan import load_plan
from mup_tune.settings import load_settings, untuned
from mup_tune.shape import load_shape

LONGEST_S = 10
LONGEST_MESSAGE = 2000
CORPUS_FILES = ("corpus.json",)

PLAN = """
proxy: cpu-32
seeds: [0, 1]
data: {corpus: somewhere, weight: 1.0, max_epochs: 2.0}
budget: {seq_len: 32, batch_tokens: 128, total_tokens: 12800, warmup_tokens: 0, decay_tokens: 1280, val_tokens: 1280}
stages:
  - {kind: elr_ewd, reference: tuned, elr_offsets: [-1, 0, 1], ewd_offsets: [-1, 0, 1], n_seeds: 1}
  - {kind: surface, pairs: 20}
  - {kind: micro, group: [lm_head, embedding_weight.elr]}
  - {kind: joint, axes: [key, lm_head], trials: 8, sampler: random}
  - {kind: rope_base}
  - {kind: confirm, against: [tuned], n_seeds: 2, horizons: [1.5, 2]}
  - {kind: validate, against: [tuned], widths: [2], depths: [2]}
scales:
  small: {proxy: cpu-64, stages: {surface: {pairs: 24}}}
"""

NO_NUMBERS: list[Any] = [True, False, "0.35", "", "x", [], {}, [1], {"a": 1}, float("nan"), float("inf"), "²"]
HOSTILE: list[Any] = [
    None,
    0,
    -1,
    -0.0,
    1e308,
    -1e308,
    5e-324,
    2**31,
    2**63,
    2**64,
    10**400,
    0.5,
    "[/x]",
    r"\[/y]",
    "$5% or $10",
    "<b>&amp;",
    "a\x00b",
    "a\x1b[31mb",
    "\ud7ff\u202e",
    "../../../etc/passwd",
    "x" * 5000,
    "é" * 200,
    " ",
    "\n",
    [[[]]],
    [None],
    {"": None},
    {"kind": "elr_ewd"},
    list(range(1000)),
]
TEXTS = [
    "? [a, b]\n: 1",
    "a: 2026-13-45",
    "a: 0x_",
    "a: " + "9" * 5000,
    "a: !!int abc",
    "a: !!python/object:os.system x",
    "[" * 600,
    "{a: " * 600,
    "a: &x [*x]",
    "a: *nowhere",
    "- 1\na: 2",
    "\x00",
    "\x1b[31m",
    "\ufeffa: 1",
    "a: 010",
    "a: 1:30",
    "<<: 3",
    "%YAML 9.9\n---\na: 1",
    "a: 1\n---\nb: 2",
    "\t- a",
]


@dataclass(frozen=True)
class Case:
    """What was done to a sound input, how to read it, and whether success would be wrong."""

    what: str
    read: Callable[[], object]
    refused: bool = False


def cases(scratch: Path, seeds: range) -> Iterator[Case]:
    """One case a seed, in a folder of its own below ``scratch``."""
    sound = _Sound(scratch / "sound")
    kinds = [_plan, _plan, _plan_text, _shape, _settings, _assignment, _name, _corpus, _journal, _record, _export]
    for seed in seeds:
        random_ = random.Random(seed)
        folder = scratch / str(seed)
        folder.mkdir()
        yield random_.choice(kinds)(sound, folder, random_)
        shutil.rmtree(folder)


class _Sound:
    """One of each that is as it should be."""

    def __init__(self, folder: Path) -> None:
        from mup_tune.data.prepare import prepare
        from mup_tune.run.folder import RunFolder
        from mup_tune.run.journal import Journal
        from mup_tune.transfer.aim import aim
        from mup_tune.transfer.export import export
        from mup_tune.transfer.formats import formats
        from mup_tune.transfer.resolve import resolve
        from mup_tune.trial import Pack, PackResult, TrialResult

        folder.mkdir()
        self.shape, self.plan = load_shape("cpu-32"), yaml.safe_load(PLAN)
        text = folder / "text.jsonl"
        text.write_text("".join(json.dumps({"text": f"{n} comes after {n - 1}. " * 9}) + "\n" for n in range(99)))
        self.corpus = folder / "corpus"
        prepare([text], self.corpus, tokenizer="bytes", val_fraction=0.2)
        (folder / "plan.yaml").write_text(PLAN)
        plan = load_plan(str(folder / "plan.yaml"))
        self.run = folder / "run"
        with RunFolder.create_or_resume(self.run, plan.resolved(), plan.hash, {"name": "c", "hash": "0"}) as run:
            journal, stage = Journal(run, writable=True), plan.stages[0]
            journal.begin_stage("01-elr_ewd", stage.kind, stage.title, plan.start)
            pack = Pack.of("01-elr_ewd", tuple(plan.context.trials(plan.start, (0, 1))))
            journal.plan_pack("01-elr_ewd", pack, {"lanes": 1})
            rows = tuple(TrialResult(trial, "ok", 2.0, 0.01, "", {"grad_norm": 1.0}) for trial in pack.trials)
            curves = {"member": [0.0, 1.0], "step": [1.0, 1.0], "tokens": [128.0, 128.0], "loss": [2.0, 2.0]}
            journal.commit(PackResult(pack, rows, curves, {"backend": "torch", "seconds": 1.0}))
            journal.close()
        load_run(self.run)
        self.export = folder / "export"
        export(aim(resolve("falcon-h1-published"), load_shape("cpu-64")), self.export, formats(["hf"]))


def _plan(sound: _Sound, folder: Path, random_: random.Random) -> Case:
    data, what, refused = _mutated(sound.plan, random_)
    return _plan_case(folder, yaml.safe_dump(data), what, refused, random_)


def _plan_text(sound: _Sound, folder: Path, random_: random.Random) -> Case:
    text, what = _torn(PLAN, random_)
    return _plan_case(folder, text, what, False, random_)


def _plan_case(folder: Path, text: str, what: str, refused: bool, random_: random.Random) -> Case:
    file = folder / "plan.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    scale = random_.choice([None, None, "small", "x[/]"])
    return Case(f"plan, scale {scale}: {what}", lambda: load_plan(str(file), scale).resolved(), refused)


def _shape(sound: _Sound, folder: Path, random_: random.Random) -> Case:
    file = folder / "shape.yaml"
    data, what, refused = _mutated(read_yaml(shipped("proxy_models") / "cpu-32.yaml"), random_)
    text = yaml.safe_dump(data)
    if random_.random() < 0.2:
        text, refused = _torn(text, random_)[0], False
    file.write_text(text)
    return Case(f"shape: {what}", lambda: load_shape(str(file)).parameters, refused)


def _settings(sound: _Sound, folder: Path, random_: random.Random) -> Case:
    file = folder / "settings.yaml"
    data, what, refused = _mutated(yaml.safe_load(untuned(sound.shape).to_yaml()), random_)
    file.write_text(yaml.safe_dump(data))
    return Case(f"settings: {what}", lambda: load_settings(str(file), None), refused)


def _assignment(sound: _Sound, folder: Path, random_: random.Random) -> Case:
    keys = [
        "seeds",
        "budget.total_tokens",
        "stages.0.kind",
        "stages.9.kind",
        "stages.².kind",
        "a.b.c",
        "",
        ".",
        "..",
        "=",
    ]
    key, value = random_.choice(keys), random_.choice([*HOSTILE, *NO_NUMBERS, *TEXTS])
    text = f"{key}={value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).strip()}"
    if random_.random() < 0.2:
        text = text.replace("=", "", 1)
    file = folder / "plan.yaml"
    file.write_text(PLAN)
    return Case(f"--set {text[:200]!r}", lambda: load_plan(str(file), None, (text,)))


def _name(sound: _Sound, folder: Path, random_: random.Random) -> Case:
    from mup_tune.transfer.resolve import resolve

    name = random_.choice([each for each in HOSTILE if isinstance(each, str)])
    name = random_.choice(["{}", "{}.yaml", "a/{}", "./{}/x.yml"]).format(name)
    readers: list[Callable[[str], object]] = [
        load_plan,
        load_shape,
        lambda given: load_settings(given, sound.shape),
        load_run,
        resolve,
    ]
    reader = random_.choice(readers)
    return Case(f"name {name[:80]!r} for {reader}", lambda: reader(name), True)


def _corpus(sound: _Sound, folder: Path, random_: random.Random) -> Case:
    from mup_tune.data.corpus import Corpus

    copied = folder / "corpus"
    shutil.copytree(sound.corpus, copied)
    file = random_.choice(sorted(each for each in copied.iterdir() if each.is_file()))
    what = (_damage_json if file.suffix == ".json" else _damage_bytes)(file, random_)

    def read() -> object:
        corpus = Corpus.open(copied)
        return corpus.tokens("train"), corpus.tokens("val")

    return Case(f"corpus: {what}", read)


def _journal(sound: _Sound, folder: Path, random_: random.Random) -> Case:
    copied = folder / "run"
    shutil.copytree(sound.run, copied)
    file = copied / "journal.log"
    lines = file.read_text().splitlines()
    index = random_.randrange(len(lines))
    if random_.random() < 0.6:
        data, what, _ = _mutated(json.loads(lines[index]), random_)
        lines[index] = json.dumps(data)
    else:
        what = "a line replaced"
        lines[index : index + 1] = random_.choice(
            [[], ["[]"], ["null"], ["{}"], ['{"op_code":9}'], ["[" * 5000], ["x"]]
        )
    file.write_text("\n".join(lines) + "\n")
    return Case(f"journal line {index + 1}: {what}", lambda: load_run(copied))


def _record(sound: _Sound, folder: Path, random_: random.Random) -> Case:
    copied = folder / "run"
    shutil.copytree(sound.run, copied)
    file = copied / random_.choice(["run.json", "plan.yaml"])
    what = _damage_json(file, random_) if file.suffix == ".json" else _damage_yaml(file, random_)
    return Case(f"run: {what}", lambda: load_run(copied))


def _export(sound: _Sound, folder: Path, random_: random.Random) -> Case:
    from mup_tune.transfer.load import load_transfer

    copied = folder / "export"
    shutil.copytree(sound.export, copied)
    file = copied / random_.choice(["optimizer.yaml", "config.json"])
    what = _damage_json(file, random_) if file.suffix == ".json" else _damage_yaml(file, random_)
    return Case(f"export: {what}", lambda: load_transfer(copied, batch_tokens=64, total_tokens=6400).optimizer)


def _damage_json(file: Path, random_: random.Random) -> str:
    data, what, _ = _mutated(json.loads(file.read_text()), random_)
    text = json.dumps(data)
    if random_.random() < 0.3:
        text, what = random_.choice(
            [("null", "null"), ("[]", "a list"), ("[" * 5000, "deep"), ("", "empty"), ("3", "3")]
        )
    file.write_text(text)
    return f"{file.name}: {what}"


def _damage_yaml(file: Path, random_: random.Random) -> str:
    if random_.random() < 0.3:
        text, what = _torn(file.read_text(), random_)
    else:
        data, what, _ = _mutated(yaml.safe_load(file.read_text()), random_)
        text = yaml.safe_dump(data)
    file.write_text(text)
    return f"{file.name}: {what}"


def _damage_bytes(file: Path, random_: random.Random) -> str:
    content = bytearray(file.read_bytes())
    how = random_.choice(["cut", "empty", "more", "flip"])
    if how == "cut":
        del content[random_.randrange(len(content)) :]
    elif how == "empty":
        content.clear()
    elif how == "more":
        content += bytes(random_.randrange(1, 50))
    else:
        content[random_.randrange(len(content))] ^= 0xFF
    file.write_bytes(content)
    return f"{file.name}: {how}"


def _mutated(data: Any, random_: random.Random) -> tuple[Any, str, bool]:
    """A copy with one place changed, what was done, and whether a number became what is none."""
    data = copy.deepcopy(data)
    places = list(_places(data))
    container, key, path = random_.choice(places)
    old, how = container[key], random_.random()
    number = isinstance(old, int | float) and not isinstance(old, bool)
    if how < 0.1:
        del container[key]
        return data, f"without {path}", False
    if how < 0.2 and isinstance(container, dict):
        container[random_.choice(["x", "", "kinds", "[/x]", 7, None, "x" * 5000])] = old
        return data, f"another key beside {path}", False
    if how < 0.6:
        value = random_.choice(NO_NUMBERS)
        container[key] = value
        return data, f"{path} = {value!r}", number and not isinstance(container, list)
    value = random_.choice(HOSTILE)
    container[key] = copy.deepcopy(value)
    return data, f"{path} = {str(value)[:80]!r}", False


def _places(data: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(items):
        where = f"{path}.{key}"
        yield data, key, where
        yield from _places(value, where)


def _torn(text: str, random_: random.Random) -> tuple[str, str]:
    lines = text.splitlines()
    index = random_.randrange(len(lines))
    extra = random_.choice(TEXTS)
    how = random_.choice(["cut", "insert", "replace", "whole", "twice"])
    if how == "cut":
        return text[: random_.randrange(len(text))], "torn: cut"
    if how == "whole":
        return extra, f"torn: {extra[:40]!r} alone"
    if how == "twice":
        return "\n".join([*lines[: index + 1], *lines[index:]]), f"torn: line {index + 1} twice"
    lines[index : index + (how == "replace")] = [extra]
    return "\n".join(lines), f"torn: {how} {extra[:40]!r} at line {index + 1}"


class _TooLongError(Exception):
    pass


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _TooLongError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fault(case: Case) -> str:
    """What is wrong with how a case ends; nothing if it ends as it should."""
    try:
        with _limited(LONGEST_S):
            case.read()
    except (UserError, OSError) as error:
        told = refused(error) if isinstance(error, OSError) else error  # as the command line does
        if told is None:
            return f"{error!r}"
        said = str(told)
        if any(ord(char) < 32 for char in said):
            return f"a message with control characters: {said[:300]!r}"
        return f"a message of {len(said)} characters: {said[:300]!r}" if len(said) > LONGEST_MESSAGE else ""
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:200]!r} at {where.filename}:{where.lineno}"
    return "accepted" if case.refused else ""


def main() -> None:
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    faults: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed, case in zip(
            range(first, first + count), cases(Path(scratch), range(first, first + count)), strict=True
        ):
            wrong = fault(case)
            if wrong:
                faults.setdefault(wrong.split(" at ")[-1] if " at " in wrong else wrong[:60], []).append(
                    f"{seed}: {case.what[:300]}\n      {wrong}"
                )
    for found in faults.values():
        print(f"{len(found)} x {found[0]}")
    print(f"{count} cases, {sum(map(len, faults.values()))} ended wrong, in {len(faults)} ways")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
