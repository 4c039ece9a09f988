from __future__ import annotations

import errno
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from mup_tune.errors import UserError, refused
from mup_tune.files import (
    FrozenModel,
    dump_yaml,
    find,
    out_file,
    out_folder,
    parse_yaml,
    read_yaml,
    remove_leftovers,
    validated,
    write_atomic,
    write_out,
)
from mup_tune.shape import Shape, load_shape


class _Inner(FrozenModel):
    rate: float


class _Outer(FrozenModel):
    inner: _Inner
    steps: int


def test_exponents_without_a_dot_are_numbers() -> None:
    assert parse_yaml("[1e-3, 1E6, -2e+4, 1.5e-3]", "x") == [1e-3, 1e6, -2e4, 1.5e-3]
    assert parse_yaml("[1e, e3, 12e3x, '1e-3']", "x") == ["1e", "e3", "12e3x", "1e-3"]


def test_numbers_are_those_of_yaml_1_2() -> None:
    assert parse_yaml("[0, -5, +3, 1_000, .5, 1., -.inf]", "x") == [0, -5, 3, 1000, 0.5, 1.0, float("-inf")]
    strings = ["010", "1:30", "0x_", "0x10", "2026-13-45", "2026-11-26", "1.5.2"]
    assert parse_yaml(f"[{', '.join(strings)}]", "x") == strings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("? [a]\n: 1", "a list or mapping cannot be a key"),
        ("? {a: 1}\n: 2", "a list or mapping cannot be a key"),
        ("!!int abc", "invalid literal"),
        ("9" * 5000, "4300 digits"),
        ("[" * 2000, "recursion"),
        ("a: \x07", "special characters are not allowed"),
        ("!!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_yaml_that_is_none_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        parse_yaml(text, "plan.yaml")
    assert str(error.value).startswith("plan.yaml: ")
    assert "\n" not in str(error.value)


def test_what_is_written_reads_back_as_it_was() -> None:
    data = {
        "a": "1e3",
        "b": "010",
        "c": "1:30",
        "d": 1e-3,
        "e": "5",
        "f": 1e11,
        "g": ".5",
        "h": "2026-11-26",
        "i": "no",
    }
    assert parse_yaml(dump_yaml(data), "x") == data


def test_a_key_given_twice_is_an_error() -> None:
    with pytest.raises(UserError, match="given twice"):
        parse_yaml("a: 1\nb: 2\na: 3\n", "x")


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("a: 1\nb: [1,\n")
    with pytest.raises(UserError, match=r"plan\.yaml: line \d"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"inner": {"rate": 1.0, "raet": 2}, "steps": 1},
            r"f\.yaml: inner\.raet: unknown key 'raet'; did you mean 'rate'",
        ),
        ({"inner": {"rate": "fast"}, "steps": 1}, r"inner\.rate: 'fast' is not allowed"),
        ({"inner": {"rate": 1.0}}, "steps: is required and missing"),
        ({"inner": {"rat": 1.0}, "steps": 1}, "did you mean 'rate'"),
    ],
)
def test_validation_names_field_value_and_fix(data: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        validated(_Outer, data, "f.yaml")


def test_shipped_names_and_paths_are_found(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(find("proxy_models", "cpu-64").read_text())
    assert isinstance(load_shape(str(mine)), Shape)
    with pytest.raises(UserError, match="no such file"):
        load_shape(str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [*x]",
        "a: &x {b: *x}",
        "a: &a [1, 1]\n" + "".join(f"k{n}: &k{n} [{'*a, ' * 9}*a]\n" for n in range(20_000)),
    ],
    ids=["list", "mapping", "aliases without end"],
)
def test_yaml_that_refers_to_itself_or_grows_without_end_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"not valid YAML .it (is nested|holds) more than"):
        parse_yaml(text, "plan.yaml")
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}", "plan.yaml")["c"] == {"b": 1, "d": 2}


def test_write_atomic_leaves_nothing_beside(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", "one")
    write_atomic(tmp_path / "a.txt", b"two")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "two")]


def test_a_file_that_a_user_names_is_written_through_its_links(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("new")
    write_out(tmp_path / "link", "one")
    write_out(tmp_path / "dangling", "two")
    assert {path.name: path.is_symlink() for path in tmp_path.iterdir()} == {
        "real": False,
        "new": False,
        "link": True,
        "dangling": True,
    }
    assert ((tmp_path / "real").read_text(), (tmp_path / "new").read_text()) == ("one", "two")
    (tmp_path / "folder").mkdir()
    (tmp_path / "there").symlink_to("folder")
    (tmp_path / "not yet").symlink_to("made")
    assert out_folder(tmp_path / "there") == (tmp_path / "folder").resolve()
    assert out_folder(tmp_path / "not yet") == (tmp_path / "made").resolve()


def test_what_is_no_plain_file_is_written_to_and_stays(tmp_path: Path) -> None:
    fifo, read = tmp_path / "fifo", list[str]()
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()), daemon=True)
    reader.start()
    write_out(fifo, "through")
    reader.join(10)
    assert read == ["through"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    write_out(Path("/dev/null"), "away")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_place_that_cannot_be_written_is_refused_with_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--out: .* is a folder, and a file is wanted"):
        out_file(tmp_path)
    with pytest.raises(UserError, match=r"^--run: .*file' is a file, and a folder is wanted"):
        out_folder(tmp_path / "file", "--run")
    for place in (out_file, out_folder):
        with pytest.raises(UserError, match=r"the folder .*absent' does not exist"):
            place(tmp_path / "absent" / "x")
        with pytest.raises(UserError, match=r"cannot be written \(File name too long\)"):
            place(tmp_path / ("x" * 300))
        with pytest.raises(UserError, match=r"file' does not exist|cannot be written"):
            place(tmp_path / "file" / "x")


def test_a_write_that_fails_names_the_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("old")

    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(tmp_path / "a.csv", "new")
    told = refused(caught.value)
    assert str(told).startswith(f"{tmp_path / 'a.csv'}: no space left on device. Free space")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "old"


def test_leftovers_of_dead_processes_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    stale, live, others = f".a.csv.{ended.pid}", f".b.csv.{os.getpid()}", [".hidden", "c.1", ".nfs0001"]
    (tmp_path / f".out.{ended.pid}" / "inside").mkdir(parents=True)
    for name in (stale, live, *others):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {live, *others}
    remove_leftovers(tmp_path / "nowhere")
