"""``new`` writes the plan that it sized, and that plan passes ``plan --strict``."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from program import mup_tune

from mup_tune.cli import new
from mup_tune.data.corpus import Corpus
from mup_tune.data.prepare import prepare
from mup_tune.search.plan import load_plan
from mup_tune.search.sizing import Answers, Kind, sized
from mup_tune.shape import load_shape

WORDS = 3000  # of a vocabulary of whole words


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Half a million tokens as bytes, and as the ids of a small vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("my, 'text': ü {} # \\")  # YAML has to quote it
    texts = folder / "texts"
    texts.mkdir()
    for index in range(100):
        (texts / f"{index:02d}.txt").write_text(" ".join(f"w{(index * 7 + n * n) % WORDS}" for n in range(6000)))
    vocabulary = {"<eod>": 0, "<unk>": 1} | {f"w{n}": n + 2 for n in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    prepare([texts], folder / "bytes", tokenizer="bytes", val_fraction=0.05)
    prepare([texts], folder / "words", tokenizer=str(folder / "tokenizer.json"), val_fraction=0.05, eod="<eod>")
    return {name: folder / name for name in ("bytes", "words")}


GRID = list(itertools.product(("falcon-h1-0.5b", "falcon-h1-34b"), ("bytes", "words"), ("cpu", "gpu"), (None, 0.5)))


@pytest.mark.parametrize(("target", "name", "device", "hours"), GRID)
def test_the_plan_that_is_written_is_the_one_that_was_sized(
    corpora: dict[str, Path],
    target: str,
    name: str,
    device: Kind,
    hours: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--target", target, "--corpus", corpora[name], "--device", device, "--gpus", 2, "--speed", 1e5)
    done = mup_tune("new", "mine.yaml", *flags, *(("--hours", hours) if hours else ()))
    assert done.returncode == 0, done.stderr
    found = sized(Answers(load_shape(target), Corpus.open(corpora[name]), device, 2, hours, 1e5))
    loaded = load_plan("mine.yaml")
    assert loaded.hash == found.plan.hash
    assert loaded.target == load_shape(target)
    assert Path("mine-proxy.yaml").exists() == (found.shipped is None) == (name == "words" or device == "gpu")
    strict = mup_tune("plan", "mine.yaml", "--strict", "--json")
    assert strict.returncode == 0, strict.stderr
    lines = Path("mine.yaml").read_text().splitlines()
    assert max(map(len, lines)) <= 110 or max(lines, key=len).startswith("data: ")
    assert not any("  #" in line.strip() for line in lines)


@pytest.mark.parametrize(("device", "name", "scale"), [("cpu", "quickstart", None), ("gpu", "falcon_h1", "gpu-short")])
def test_its_stages_are_those_of_a_shipped_plan_and_each_is_explained(
    corpora: dict[str, Path], device: str, name: str, scale: str | None, tmp_path: Path
) -> None:
    out = tmp_path / "mine.yaml"
    assert (
        mup_tune("new", out, "--target", "falcon-h1-0.5b", "--corpus", corpora["bytes"], "--device", device).returncode
        == 0
    )
    base = load_plan(name, scale)
    assert load_plan(str(out)).header.stages == base.header.stages
    comments = " ".join(out.read_text().replace("#", " ").split())
    assert all(new.WHY[stage.kind] in comments for stage in base.stages)


def test_hours_without_a_speed_are_told_and_decide_nothing(corpora: dict[str, Path], tmp_path: Path) -> None:
    given = ("--target", "falcon-h1-0.5b", "--corpus", corpora["bytes"], "--device", "cpu")
    plain, timed = tmp_path / "plain.yaml", tmp_path / "timed.yaml"
    mup_tune("new", plain, *given)
    done = mup_tune("new", timed, *given, "--hours", 8)
    assert "--hours decided nothing" in done.stdout
    assert plain.read_text() == timed.read_text()


def test_what_a_user_should_know_before_is_said(corpora: dict[str, Path], tmp_path: Path) -> None:
    given = ("--target", "cpu-128", "--corpus", corpora["words"], "--device", "cpu", "--hours", 0.01, "--speed", 100)
    said = mup_tune("new", tmp_path / "mine.yaml", *given).stdout
    assert "fewer steps would tell nothing" in said
    assert "--tokenizer bytes" in said
    assert "the target 264: it cannot read them all" in said
    assert "less than one token per parameter" in said


def test_a_terminal_is_asked_and_a_pipe_is_told_what_is_missing(
    corpora: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine.yaml"
    piped = mup_tune("new", out)
    assert piped.returncode == 2
    assert "--target: is missing" in piped.stderr
    asked = iter(["falcon-h1-0.5b", str(corpora["bytes"]), "cpu"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(new.typer, "prompt", lambda question, usual, err: next(asked))
    assert mup_tune("new", out).returncode == 0
    assert load_plan(str(out)).header.data[0].corpus == str(corpora["bytes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine.txt"], "must be a name that ends in .yaml"),
        (["a\nb.yaml"], "must be a name that ends in .yaml"),
        (["taken.yaml"], "taken.yaml: is there already. Name another plan, or overwrite it with --force"),
        (["mine.yaml", "--target", "falcon"], "--target: unknown shape 'falcon'"),
        (["mine.yaml", "--target", "cpu-64", "--corpus", "/nowhere"], "/nowhere: no such corpus folder"),
        (["mine.yaml", "--target", "cpu-64", "--device", "gpus"], "--device: unknown device 'gpus'"),
        (["none/mine.yaml", "--target", "cpu-64"], "does not exist"),
    ],
)
def test_bad_input_exits_2_and_leaves_nothing(
    corpora: dict[str, Path], arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.yaml").touch()
    usual = () if "--corpus" in arguments else ("--corpus", corpora["bytes"])
    done = mup_tune("new", *arguments, *usual)
    assert done.returncode == 2
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken.yaml"]
