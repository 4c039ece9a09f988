"""The report of several runs: its page, its Markdown and its tables, as the files of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from mup_tune.markdown import bullets, plain, table
from mup_tune.report import formats
from mup_tune.report.comparison import Cell, Compared, GainRow, largest
from mup_tune.report.comparison_words import headline
from mup_tune.report.figures.side_by_side import side_by_side
from mup_tune.report.gains import PROXY
from mup_tune.report.html import rendered
from mup_tune.report.markdown import tables_list
from mup_tune.report.standalone import figures
from mup_tune.report.summary import FILE, Summary
from mup_tune.report.tables import csv, factor, frame, interval
from mup_tune.stats import Interval

SHOWN = 16  # axes that a figure holds; the tables hold all
ABOUT = {
    "runs": "a row a run: plan, proxy, corpus, cost, and what heads its page",
    "gains": "a row a run and reference: gain in nats and in tokens, and its difference to the first run's",
    "settings": "a row a setting: its value after each run, and its log2 difference to the first run's",
    "sensitivities": "a row an axis and run: curvature, nats/token per (log2)², and its difference to the first run's",
    "facts": "what was run, a column a run",
}
LOSSES = (
    "Losses are left out: these runs did not validate on one text cut in one way, and then a lower loss may only "
    "say that a text is easier. A gain is a difference of two losses on one text, and compares."
)
INDEPENDENT = (
    "Runs are taken for independent of one another: a difference has the root of the summed squares of the two "
    "95 % CIs' distances. Each gain is over the reference as its own run tuned it."
)


def comparison_files(of: Compared) -> dict[str, bytes]:
    """Every file of the report by its place. The same runs give the same bytes."""
    made = {name: frame(rows) for name, rows in _tables(of).items()}
    page = _page(of)
    drawn = figures(page)
    return {
        "index.html": page.encode(),
        "report.md": _markdown(of, made, [(each.name, each.description) for each in drawn]).encode(),
        FILE: _summary(of).text().encode(),
        **{f"tables/{name}.csv": csv(each) for name, each in made.items()},
        **{f"figures/{each.name}.svg": each.svg.encode() for each in drawn},
    }


def _page(of: Compared) -> str:
    title, below = headline(of)
    terms = [(term, group, values) for group, term, values in of.what_was_run]
    return rendered(
        "comparison.html",
        of=of,
        title=title,
        below=below,
        proxy=PROXY,
        gains_figure=_gains_figure(of),
        settings_figure=_settings_figure(of),
        sensitivities_figure=_sensitivities_figure(of),
        apart=[row for row in of.settings if row.differs],
        alike=[row for row in of.settings if not row.differs],
        bases=len({run.settings.base for run in of.runs if run.settings}) > 1,
        facts_apart=[each for each in terms if len(set(each[2])) > 1],
        facts_alike=[each for each in terms if len(set(each[2])) == 1],
        losses=None if of.losses_compare else LOSSES,
        independent=INDEPENDENT,
        about=ABOUT,
        date=formats.instant,
        duration=formats.duration,
        zip=zip,
    )


def _milli(value: Interval | None) -> Interval | None:
    return value and Interval(1e3 * value.value, 1e3 * value.low, 1e3 * value.high)


def _gains_figure(of: Compared) -> Markup | None:
    rows = [(_over(row), [_milli(cell.value) for cell in row.cells]) for row in of.gains]
    if not any(value for _, values in rows for value in values):
        return None
    return side_by_side(rows, of.names, "gains", "Gains of each run with 95 % CIs", "gain (mnat/token)")


def _over(row: GainRow) -> str:
    return row.reference if row.place == PROXY else f"{row.reference}, {row.place}"


def _settings_figure(of: Compared) -> Markup | None:
    """The settings that differ most, from the first run's value."""
    apart = [row for row in of.settings if row.differs][:SHOWN]
    rows = [(row.name, [_point(each) for each in row.log2[1:]]) for row in apart]
    if not rows:
        return None
    label = f"log2 of the value over that of {of.names[0]}"
    return side_by_side(rows, of.names[1:], "settings", "Settings that differ most, log2", label)


def _point(value: float | None) -> Interval | None:
    return None if value is None else Interval(value, value, value)


def _sensitivities_figure(of: Compared) -> Markup | None:
    shown = [(axis, cells) for axis, cells in of.sensitivities if largest(cells)][:SHOWN]
    rows = [(axis, [_milli(cell.value) for cell in cells]) for axis, cells in shown]
    if not rows:
        return None
    label = "curvature (mnat/token per (log2)²)"
    return side_by_side(rows, of.names, "sensitivities", "Curvature of the loss along each axis, by run", label)


def _tables(of: Compared) -> dict[str, list[dict[str, Any]]]:
    first = of.names[0]
    return {
        "runs": [_run(name, each) for name, each in zip(of.names, of.summaries, strict=True)],
        "gains": [row for each in of.gains for row in _gain_rows(of, each)],
        "settings": [
            {"setting": row.name, "kind": row.kind, "start": row.start}
            | {f"value {name}": each for name, each in zip(of.names, row.values, strict=True)}
            | {f"log2 {name}/{first}": each for name, each in zip(of.names[1:], row.log2[1:], strict=True)}
            for row in of.settings
        ],
        "sensitivities": [
            {"axis": axis, "run": name, **_cell("curvature", cell)}
            for axis, cells in of.sensitivities
            for name, cell in zip(of.names, cells, strict=True)
        ],
        "facts": [
            {"group": group, "term": term}
            | {f"value {name}": each for name, each in zip(of.names, values, strict=True)}
            for group, term, values in of.what_was_run
        ],
    }


def _run(name: str, summary: Summary) -> dict[str, Any]:
    kept = summary.model_dump(mode="json", exclude={"made_by", "kind", "gain", "tokens", "beyond", "reference", "runs"})
    return {"run": name, **kept}


def _gain_rows(of: Compared, row: GainRow) -> list[dict[str, Any]]:
    told = zip(of.names, row.cells, row.seeds, row.saved, row.ratios, strict=True)
    return [
        {
            "place": row.place,
            "reference": row.reference,
            "run": name,
            "seeds": seeds,
            **_cell("gain", cell),
            **factor(saved),
            **interval("tokens_ratio", ratio),
        }
        for name, cell, seeds, saved, ratio in told
        if cell.value is not None or saved is not None
    ]


def _cell(name: str, cell: Cell) -> dict[str, float | None]:
    return interval(name, cell.value) | interval("difference", cell.difference)


def _summary(of: Compared) -> Summary:
    each = of.summaries
    title, below = headline(of)

    def listed(values: Sequence[str]) -> str:
        return ", ".join(dict.fromkeys(values))

    live, complete = any(run.state == "live" for run in each), all(run.state == "complete" for run in each)
    return Summary(
        kind="comparison",
        title=title,
        below=below,
        date=max(run.date for run in each),
        state="live" if live else "complete" if complete else "stopped",
        plan=listed([run.plan for run in each]),
        proxy=listed([run.proxy for run in each]),
        corpus=listed([run.corpus for run in each]),
        trials=sum(run.trials for run in each),
        diverged=sum(run.diverged for run in each),
        tokens_trained=sum(run.tokens_trained for run in each),
        flops=sum(run.flops for run in each),
        seconds=sum(run.seconds for run in each),
        runs=of.names,
        version=each[0].version,
    )


def _markdown(of: Compared, made: dict[str, pd.DataFrame], drawn: Sequence[tuple[str, str]]) -> str:
    title, below = headline(of)
    names = [plain(name) for name in of.names]
    gains = [
        [plain(_over(row)), name, formats.mnat(cell.value.value), formats.mnat_ci(cell.value)]
        + ([formats.times(saved.factor.value), formats.times_ci(saved)] if saved else [formats.NONE] * 2)
        + ([f"{formats.mnat(apart.value)} ({formats.mnat_ci(apart)})"] if (apart := cell.difference) else [""])
        for row in of.gains
        for name, cell, saved in zip(names, row.cells, row.saved, strict=True)
        if cell.value is not None
    ]
    settings = [
        [plain(row.name), *map(formats.value, row.values), *(formats.log2(each) for each in row.log2[1:])]
        for row in of.settings
        if row.differs
    ]
    over = [f"log2 {name} / {names[0]}" for name in names[1:]]
    head = ["over", "run", "gain (mnat/token)", "95 % CI", "tokens", "95 % CI", f"difference to {names[0]}"]
    parts = [
        f"# {plain(title)}",
        plain(below),
        "[The whole page](index.html) has every figure.",
        bullets(f"{name}: {plain(each.title)}" for name, each in zip(names, of.summaries, strict=True)),
        "## Gains",
        table(head, gains) if gains else "No gain was measured.",
        *([] if of.losses_compare else [LOSSES]),
        INDEPENDENT,
        "## Settings that differ",
        table(["setting", *names, *over], settings) if settings else "None.",
        "## Tables",
        tables_list({name: (len(each), ABOUT[name]) for name, each in made.items()}),
        "## Figures",
        *(f"![{plain(description)}](figures/{name}.svg)" for name, description in drawn),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
