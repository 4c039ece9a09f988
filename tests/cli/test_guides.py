"""README and tutorial: their commands run as they stand, at a small size, and their links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from program import mup_tune

from mup_tune.search import loop

ROOT = Path(__file__).parents[2]
GUIDES = ("README.md", "docs/tutorial.md")


class As(NamedTuple):
    """How a test runs a command: options that it appends, of which the last counts, and exit codes."""

    more: str = ""
    codes: tuple[int, ...] = (0,)


class Skipped(NamedTuple):
    why: str


UNCERTAIN = (0, 1, 3)  # of so few steps any verdict may come
BRIEF = "--set budget.seq_len=32 --set budget.batch_tokens=64 --set budget.total_tokens=768"
SWEEP = As(
    f"--executor inline {BRIEF} --set budget.val_tokens=640 --set stages.0.elr_offsets=[-1,0,1] "
    "--set stages.0.ewd_offsets=[-1,0,1] --set stages.1.pairs=4 --set stages.1.rounds=1 --set stages.1.line_seeds=2 "
    "--set stages.1.verify_seeds=2 --set stages.2.n_seeds=2 --set stages.2.horizons=[1.25,2] --set stages.3.n_seeds=2"
)
PREPARE = "mup-tune data prepare my-text/ --out corpus --tokenizer bytes"
NEW = "mup-tune new plan.yaml --target falcon-h1-0.5b --corpus corpus --device cpu"
VALIDATE = "mup-tune validate runs/first --widths 2 --depths 2 --horizons 1.25,1.5,2"
FULL = "mup-tune transfer runs/first --target falcon-h1-0.5b --out falcon-h1-0.5b-tuned"
NIGHT = "--target falcon-h1-1.5b-deep --corpus corpus-8k --device gpu --hours 10 --speed 1e6"
SMALLER = As("--executor inline --seeds 2 --widths ''", UNCERTAIN)
ANYWAY = As("--force")  # twelve steps confirm nothing

COMMANDS: dict[str, As | Skipped] = {
    PREPARE: As("--val-fraction 0.02"),
    NEW: As("--speed 1e5"),
    "mup-tune plan plan.yaml": As(),
    "mup-tune sweep plan.yaml --run runs/first": SWEEP,
    "mup-tune status runs/first": As(),
    "mup-tune report runs/first": As(),
    VALIDATE: SMALLER,
    FULL: ANYWAY,
    # README.md alone
    "mup-tune doctor": As(),
    "mup-tune data prepare my-text/ --out corpus-8k --tokenizer tokenizer.json": As("--val-fraction 0.02 --eod <eod>"),
    f"mup-tune new night.yaml {NIGHT}": As(),
    "mup-tune plan night.yaml --speed 1e6 --gpus 8 --price 2.5": As(),
    "mup-tune sweep night.yaml --run runs/night": Skipped("a night on a GPU"),
    "mup-tune launch slurm night.yaml --run runs/night --nodes 2 --gpus 8 --time 12:00:00 --dry-run": As(),
    "mup-tune verify falcon-h1-0.5b-tuned --model my_model:build": As(),
    "mup-tune check coordinate": As("--corpus corpus --widths 32,64,128 --steps 2 --seeds 1", UNCERTAIN),
    "mup-tune check basin": As(
        "--corpus corpus --widths 32,64 --seeds 1 --param mup --tokens 2048 --offsets -1,0,1 --executor inline",
        UNCERTAIN,
    ),
    "mup-tune check basin --shape night-proxy.yaml --corpus corpus-8k": Skipped("a proxy that takes a GPU"),
    # docs/tutorial.md alone
    "mup-tune data verify corpus": As(),
    "mup-tune plan plan.yaml --set seeds=[0,1,2]": As(),
    "mup-tune resume runs/first": As("--executor inline"),
    "mup-tune transfer runs/first --target cpu-64 --out small-tuned --tokens 400000 --batch-tokens 4096": ANYWAY,
    "mup-tune verify small-tuned --model my_model:build": As(),
    "python examples/train_hf.py small-tuned --corpus corpus --tokens 400000 --out trained": As(
        "--tokens 2048 --seq-len 64 --rows 4"
    ),
}


def commands_of(guide: str) -> list[str]:
    """Indented lines that call a program of ours, without the comment behind it."""
    lines = (ROOT / guide).read_text(encoding="utf-8").splitlines()
    shown = [line.strip() for line in lines if re.match(r" {4}(mup-tune|python) ", line)]
    return [re.sub(r"\s+# .*", "", line) for line in shown]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of who follows a guide: text, a tokenizer and a model of their own."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    (tmp_path / "my-text").mkdir()
    words = [f"w{n}" for n in range(3000)]
    for index in range(100):
        text = " ".join(words[(index * 7 + n * n) % len(words)] for n in range(6000))
        (tmp_path / "my-text" / f"{index:02d}.txt").write_text(text)
    tokenizer = Tokenizer(models.WordLevel({"<eod>": 0, "<unk>": 1} | {w: n + 2 for n, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "my_model.py").write_text(
        "from transformers import FalconH1Config, FalconH1ForCausalLM\n"
        "def build(config):\n    return FalconH1ForCausalLM(FalconH1Config(**config))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "SIZES", (1, 4))  # more and larger populations are not worth their calibration here
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    return tmp_path


def ran(command: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line, in this process."""
    program, *arguments = shlex.split(command)
    if program == "mup-tune":
        done = mup_tune(*arguments)
        return done.returncode, done.stdout, done.stderr
    out, argv = io.StringIO(), [str(ROOT / arguments[0]), *arguments[1:]]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out):
        runpy.run_path(argv[0], run_name="__main__")
    return 0, out.getvalue(), ""


def test_every_command_of_the_guides_is_in_the_table_and_none_else() -> None:
    assert {command for guide in GUIDES for command in commands_of(guide)} == set(COMMANDS)


@pytest.mark.parametrize("guide", GUIDES)
def test_who_follows_a_guide_gets_what_it_promises(guide: str, desk: Path) -> None:
    for command in commands_of(guide):
        how = COMMANDS[command]
        if isinstance(how, Skipped):
            continue
        code, out, err = ran(f"{command} {how.more}")
        assert code in how.codes, f"{command} {how.more}\n{out}\n{err}"
        if command == "mup-tune report runs/first":
            assert "<svg" in Path(out.split()[-1]).read_text()
    assert (desk / "falcon-h1-0.5b-tuned" / "config.json").is_file()
    if guide == "docs/tutorial.md":
        assert (desk / "trained" / "model" / "config.json").is_file()


def anchors(page: Path) -> set[str]:
    """Names under which a page's headings are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("reports/**/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"
