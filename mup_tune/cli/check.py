"""``check``: numeric verdicts on the parametrisation, on the user's own shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from mup_tune.choices import DepthRule
from mup_tune.cli.options import CorpusOption, FamilyOption, JsonOption, SettingsOption, again, one_of
from mup_tune.cli.output import console, err_console, led, print_json, print_rows, say
from mup_tune.errors import UserError, located

if TYPE_CHECKING:
    from mup_tune.checks.coordinate import Direction, Judgement, Parametrisation, Trace
    from mup_tune.settings import Settings
    from mup_tune.shape import Shape

EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}

check = typer.Typer(
    no_args_is_help=True, help="Verdicts on the parametrisation: do sites and optima stay where they should?"
)


def sizes(text: str, flag: str) -> tuple[int, ...]:
    """The whole numbers of ``32,64,128``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"{text!r} is not a list of sizes", field=flag, fix="Write it like 32,64,128")
    return tuple(int(part) for part in parts)


def widths_of(family: Shape, text: str, count: int) -> tuple[int, ...]:
    """The widths asked for, else the family's ``count`` smallest that are a factor of 2 apart."""
    from mup_tune.shape import width_step

    return sizes(text, "--widths") if text else tuple(width_step(family) << power for power in range(count))


@check.command()
def coordinate(
    context: typer.Context,
    shape: FamilyOption = "cpu-64",
    widths: Annotated[
        str, typer.Option(help="d_model values, three or more; the family's smallest four, doubling, if left out.")
    ] = "",
    depths: Annotated[str, typer.Option(help="Layer counts; checks depth at the shape's own width instead.")] = "",
    settings: SettingsOption = "untuned",
    param: Annotated[
        str, one_of("--param", "parametrisation", ("mup", "sp"), "mup: the rules. sp: the standard, must fail.")
    ] = "mup",
    depth_rule: Annotated[
        str | None, one_of("--depth-rule", "depth rule", get_args(DepthRule), "The Settings' own if left out.")
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Training steps, at constant η and λ, without clipping.")] = 10,
    seeds: Annotated[int, typer.Option(min=1, help="Most seeds a size: 4 at first, doubled until decided.")] = 16,
    tolerance: Annotated[
        float, typer.Option(min=0.01, max=1, help="How far an exponent may be from the predicted one.")
    ] = 0.25,
    corpus: CorpusOption = "python-stdlib",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for figures and tables.")] = None,
    json: JsonOption = False,
) -> None:
    """RMS of every site and of its change against width: measured minus predicted exponent, with its 95 % CI.

    Pass: the whole CI lies inside ±0.25, a quarter of an exponent. Fail: all of it outside. A wrong rule
    misses by a half or more. Seeds are added until every site is decided, and the CIs allow for that. What
    the last seed leaves open is inconclusive, and the next command is named. Step 0 is reported, steps ≥ 2
    are judged. Exit 0 pass, 1 fail, 3 inconclusive. q, v, up and the attention output grow as d on purpose, k
    and the residual gradient shrink as 1/d: Falcon-H1 parks its width factors there. Logits may shrink.
    """
    from mup_tune.files import out_folder
    from mup_tune.settings import load_settings
    from mup_tune.shape import load_shape, scaled

    family = load_shape(shape)
    direction: Direction = "depth" if depths else "width"
    wanted = sizes(depths, "--depths") if depths else widths_of(family, widths, 4)
    with located(field=f"--{direction}s"):
        shapes = [scaled(family, family.d_model, size) if depths else scaled(family, size) for size in wanted]
    tuned = load_settings(settings, family)
    if depth_rule is not None:
        tuned = tuned.model_copy(update={"depth_rule": depth_rule})
    if out:
        out_folder(out)
    from mup_tune.checks.coordinate import check_sizes, decide, overall

    check_sizes(wanted, f"--{direction}s")
    _loud_about_base(tuned, shapes)
    train = _trainer(shapes, direction, tuned, "mup" if param == "mup" else "sp", steps, corpus)
    traces, rows = decide(train, seeds, tuned.depth_rule, tolerance)
    verdict, trained = overall(rows), len(traces[0].losses[0])
    if out:
        _write(out, traces, rows)
    if json:
        facts = {"direction": direction, "sizes": wanted, "seeds": trained, "tolerance": tolerance}
        print_json({"verdict": verdict, **facts, "rows": [asdict(row) for row in rows]})
    else:
        over = f"{param} over {direction}s {', '.join(map(str, wanted))}"
        _print(rows, verdict, f"{over}, {trained} seeds, ±{tolerance:g}")
        if verdict == "inconclusive":
            say(f"More seeds may decide it: `{again(context, seeds=2 * max(seeds, trained))}`")
    raise typer.Exit(EXIT[verdict])


def _loud_about_base(settings: Settings, shapes: list[Shape]) -> None:
    if all(settings.base.d_model != shape.d_model for shape in shapes):
        err_console.print(f"note: the Settings' base width is {settings.base.d_model}; no checked size equals it")


def _trainer(
    shapes: list[Shape], direction: Direction, settings: Settings, param: Parametrisation, steps: int, corpus: str
) -> Callable[[range], list[Trace]]:
    """What trains every shape with some seeds, and shows how far it is."""
    import torch
    from rich.progress import track

    from mup_tune.checks.coordinate import table_for, trace_in_parts
    from mup_tune.data.stdlib import open_corpus

    opened, device = open_corpus(corpus), "cuda" if torch.cuda.is_available() else "cpu"
    if opened.vocab_size > shapes[0].vocab_size:
        raise UserError(
            f"its vocabulary is {opened.vocab_size}, the shape's {shapes[0].vocab_size}",
            file=corpus,
            field="--corpus",
            fix="Give a shape with at least that vocab_size",
        )
    tables = [table_for(shape, settings, param) for shape in shapes]

    def train(seeds: range) -> list[Trace]:
        what = f"seeds {seeds.start} … {seeds.stop - 1}"
        return [
            trace_in_parts(table, direction, opened, seeds, steps, device)
            for table in track(tables, what, console=err_console, transient=True)
        ]

    return train


def _print(rows: list[Judgement], verdict: str, title: str) -> None:
    shown: list[dict[str, Any]] = []
    said = any(row.why and row.of != "value at step 0" for row in rows)
    for row in rows:
        excess = row.excess
        line = {
            "site": row.site,
            "of": row.of.removeprefix("value "),
            "predicted": row.predicted,
            "excess": excess and f"{excess.value:+.3f}",
            "95 % CI": excess and f"{excess.low:+.3f} … {excess.high:+.3f}",
            "verdict": row.verdict,
        }
        shown.append(line | {"why": row.why} if said else line)
    print_rows(
        shown,
        title,
        "Slope of log2 RMS over log2 size; excess: measured − predicted. Logits and attention logits may shrink.",
    )
    open_ones = ", ".join(f"{row.site} ({row.of})" for row in rows if row.verdict == verdict)
    console.print(led(verdict, f": {open_ones}" if verdict != "pass" else ""))


def _write(out: Path, traces: list[Trace], rows: list[Judgement]) -> None:
    from mup_tune.checks.figures import coordinate_figure
    from mup_tune.files import dump_yaml, out_folder, write_out

    out = out_folder(out)
    out.mkdir(exist_ok=True)
    direction = traces[0].direction
    for of in ("value", "change"):
        figure = coordinate_figure(traces, rows, of)
        for suffix in ("svg", "png"):
            image = BytesIO()
            figure.savefig(image, format=suffix, dpi=130)
            write_out(out / f"coordinate-{direction}-{of}.{suffix}", image.getvalue())
    write_out(out / f"coordinate-{direction}.yaml", dump_yaml([_plain(row) for row in rows]))


def _plain(row: Judgement) -> dict[str, Any]:
    excess = row.excess and [row.excess.value, row.excess.low, row.excess.high]
    return {"site": row.site, "of": row.of, "predicted": row.predicted, "excess": excess, "verdict": row.verdict}


def register(app: typer.Typer) -> None:
    app.add_typer(check, name="check")
