"""``new``: a commented plan from a few answers."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mup_tune.cli.options import SHAPES, one_of
from mup_tune.cli.output import say
from mup_tune.cores import usable_cores
from mup_tune.errors import UserError, located, unknown

if TYPE_CHECKING:
    from mup_tune.search.sizing import Answers, Kind, Sized

TEMPLATE = Path(__file__).parent / "templates" / "plan.yaml"
DEVICES = ("cpu", "gpu")
FIELD = "PLAN.yaml"
MANY_IDS = 1024  # from here on a CPU proxy is embeddings for the most part
WHY = {
    "elr_ewd": "Learning rate and weight decay come first, together. What they reach alone is kept as the reference "
    "that every claim is over: a gain over less would be none.",
    "surface": "All 35 multipliers move in every trial, beside learning rate and weight decay. Many small moves gain "
    "together what none of them shows alone. What comes out is kept only if fresh seeds show its gain.",
    "micro": "The loss along the multipliers that matter most, one at a time, and the joint move that the curves ask "
    "for.",
    "rope_base": "The base of the rotary embedding, judged on longer rows than it trained on as well.",
    "baselines": "Other settings to compare with: what learning rate alone can do, and the published values.",
    "confirm": "What may be claimed, on seeds that tuned nothing. The reference trains longer as well, in multiples of "
    "total_tokens (horizons), and so the gain is told in tokens.",
    "validate": "Does it hold where nothing was tuned? The settings are carried to multiples of the proxy's width and "
    "depth. The reference has its learning rate tuned anew there.",
}


def new(
    out: Annotated[Path, typer.Argument(metavar=FIELD, help="The plan to write.")],
    target: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="The Shape that you want to train.", autocompletion=SHAPES),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(metavar="DIR", help="A prepared corpus; python-stdlib to try it without text.")
    ] = None,
    device: Annotated[
        str | None, one_of("--device", "device", DEVICES, "What trains; what this machine has if left out.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Devices: GPUs (one if left out), or CPU cores (those of this machine).")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0.01, help="How long the sweep may take. It needs a speed, known or stated.")
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(min=1, help="Tokens/s of the proxy on one device, all members together; else as calibrated."),
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=16, help="d_model of the proxy; what suits the device if left out.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a plan that is there.")] = False,
) -> None:
    """Write a plan for your target, text and device, with a comment on every choice.

    On a terminal, target, corpus and device are asked for where they are left out. The plan stands on its
    own: `mup-tune plan --strict` accepts it, `mup-tune sweep` runs it, and you may change every line. A proxy
    that is no shipped one is written beside it. The stages are those of `quickstart` on CPUs, and of
    `falcon_h1 --scale gpu-short` on GPUs.

    A trial trains as long as in the shipped plan, and on one token per parameter at least. With `--hours` it
    trains as long as these hours allow, up to 20 tokens per parameter. Hours need a speed: `--speed`, or what
    an earlier sweep of the same proxy calibrated.
    """
    proxy = out.with_name(f"{out.stem}-proxy.yaml")
    _check_free(out, proxy, force)
    target = target or _asked("What do you want to train? (`mup-tune targets` lists)", "falcon-h1-0.5b", "--target")
    corpus = corpus or _asked("Which corpus? (`mup-tune data prepare` makes one)", "python-stdlib", "--corpus")
    device = device or _asked("On cpu or gpu?", "gpu" if shutil.which("nvidia-smi") else "cpu", "--device")
    if device not in DEVICES:
        raise UserError(unknown("device", device, DEVICES), field="--device")
    from mup_tune.data.mixture import Data, open_mixture
    from mup_tune.files import dump_yaml, write_out
    from mup_tune.search.execute import check_data
    from mup_tune.search.sizing import Answers, sized
    from mup_tune.shape import load_shape

    with located(field="--target"):
        shape = load_shape(target)
    data = open_mixture([Data(corpus=corpus)])
    kind: Kind = "gpu" if device == "gpu" else "cpu"
    count = gpus or (1 if kind == "gpu" else usable_cores())
    answers = Answers(shape, data.sources[0].corpus, kind, count, hours, speed, width)
    found = sized(answers)
    check_data(found.plan, data)
    name = found.shipped or str(proxy)
    text, notes = _text(answers, found, target, corpus, name), _notes(answers, found)
    if not found.shipped:
        write_out(proxy, dump_yaml({**found.plan.shape.model_dump(), "name": proxy.stem}), FIELD)
    write_out(out, text, FIELD)
    budget, parameters = found.plan.header.budget, found.plan.shape.parameters()
    trial = f"{budget.total_tokens:,} tokens a trial, {budget.total_tokens / parameters:.3g} per parameter"
    say(f"{out}: the proxy {name} with {parameters:,} parameters, {trial}")
    say(*(f"note: {note}" for note in notes))
    say(f"Next: `mup-tune plan {out}` says what it takes, `mup-tune sweep {out} --run runs/{out.stem}` runs it.")


def _check_free(out: Path, proxy: Path, force: bool) -> None:
    """Refuse names that no plan can have, and files that are there."""
    if out.suffix not in (".yaml", ".yml") or not str(out).isprintable():
        raise UserError(f"{str(out)!r} must be a name that ends in .yaml", field=FIELD)
    for path in (out, proxy):
        if path.exists() and not force:
            raise UserError("is there already", file=path, fix="Name another plan, or overwrite it with --force")


def _asked(question: str, usual: str, flag: str) -> str:
    """The answer of who sits at a terminal. Without one the target alone does not go without saying."""
    if sys.stdin.isatty():
        return str(typer.prompt(question, usual, err=True)).strip()
    if flag == "--target":
        raise UserError("is missing, and there is no terminal to ask at", field=flag, fix=f"Give it, such as {usual}")
    return usual


def _text(answers: Answers, found: Sized, target: str, corpus: str, proxy: str) -> str:
    """The YAML file. What users named stands in values alone, never in comments."""
    from jinja2 import Environment, StrictUndefined

    from mup_tune.files import dump_yaml

    plan = found.plan
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    environment.filters |= {"scalar": _scalar, "comment": _comment}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        about=f"What tuning the 35 multipliers brings {plan.target and plan.target.name} on this text.",
        target=target,
        corpus=corpus,
        proxy=proxy,
        train_tokens=f"{answers.corpus.tokens('train'):,}",
        ids=f"{answers.corpus.vocab_size:,}",
        seeds=list(plan.header.seeds),
        budget=plan.header.budget,
        per_parameter=f"{plan.header.budget.total_tokens / plan.shape.parameters():.3g}",
        proxy_why=_proxy_why(found),
        tokens_why=_tokens_why(answers, found),
        stages=[(WHY.get(each["kind"], ""), dump_yaml([each], compact=True)) for each in plan.header.stages],
    )


def _proxy_why(found: Sized) -> str:
    shape = found.plan.shape
    said = f"The small model that all trials train, {shape.size} with {shape.parameters():,} parameters."
    if found.shipped:
        return f"{said} It is a shipped one that reads bytes. `mup-tune new --width` makes one after the target."
    said += f" It has the target's channel ratios and {shape.vocab_size:,} ids."
    return f"{said} Rounded were {'; '.join(found.rounded)}." if found.rounded else said


def _tokens_why(answers: Answers, found: Sized) -> str:
    why = {
        "usual": "This is as long as in the shipped plan, and one token per parameter at least.",
        "hours": "This is what the hours asked for allow.",
        "corpus": "More text would allow more. The longest trials read twice as much, and no text is read twice.",
        "parameters": "The hours asked for allow more, and a wider proxy is the better use of them (--width).",
        "steps": "This is the least that tells anything, whatever the hours asked for.",
    }[found.bound]
    if found.hours is None:
        return why
    one = "GPU" if answers.device == "gpu" else "core"
    devices = f"{answers.gpus} {one}s" if answers.gpus > 1 else f"one {one}"
    return f"{why} The forecast is {found.hours:.2g} hours on {devices}."


def _notes(answers: Answers, found: Sized) -> list[str]:
    """What the user should know before a sweep."""
    shape, budget = found.plan.shape, found.plan.header.budget
    ids, notes = answers.corpus.vocab_size, []
    if answers.hours and found.hours is None:
        notes.append(
            "No speed of this proxy is known, so --hours decided nothing. A sweep measures it in its first minutes. "
            "Then stop it and give this command again with --force, or give --speed now."
        )
    elif answers.hours and found.hours and found.hours > 1.1 * answers.hours:
        notes.append(f"The sweep takes about {found.hours:.2g} hours: fewer steps would tell nothing.")
    if answers.device == "cpu" and ids > MANY_IDS:
        notes.append(
            f"With {ids:,} ids the proxy is embeddings for the most part. For a first look on a CPU prepare the text "
            "with --tokenizer bytes."
        )
    if ids > answers.target.vocab_size:
        notes.append(
            f"The corpus has {ids:,} ids and the target {answers.target.vocab_size:,}: it cannot read them all."
        )
    if budget.total_tokens < shape.parameters():
        notes.append("That is less than one token per parameter. More text or a smaller vocabulary mends it.")
    return notes


def _scalar(value: str) -> str:
    """A text inside a flow mapping: bare where YAML takes it for nothing else."""
    from mup_tune.files import parse_yaml

    bare = re.fullmatch(r"[A-Za-z0-9_./-]+", value) and parse_yaml(value, FIELD) == value
    return value if bare else json.dumps(value)


def _comment(text: str, indent: int = 0) -> str:
    lead = f"{' ' * indent}# "
    return textwrap.fill(text, 110, initial_indent=lead, subsequent_indent=lead, break_long_words=False)


def register(app: typer.Typer) -> None:
    app.command()(new)
