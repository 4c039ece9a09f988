"""``plan``: what a plan is going to do and to cost, before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from mup_tune.cli.options import PLANS, JsonOption, ScaleOption, SetOption
from mup_tune.cli.output import console, print_json, print_rows
from mup_tune.cli.prices import Prices, advice, as_fields, prices, table
from mup_tune.errors import UserError

if TYPE_CHECKING:
    from mup_tune.data.corpus import Corpus
    from mup_tune.search.plan import Plan

WIDE = 120  # columns from which a stage's title has room
PREFIXES = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}


class _ListsPlans(TyperCommand):
    """``--help`` ends with the shipped plans, read when it is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.epilog = "\n".join(f"* `{name}`: {about}" for name, about in shipped_plans().items())
        super().format_help(ctx, formatter)


def shipped_plans() -> dict[str, str]:
    """What each shipped plan is about, by its name."""
    from mup_tune.files import read_yaml, shipped

    return {path.stem: str(read_yaml(path).get("about", "")) for path in sorted(shipped("sweeps").glob("*.yaml"))}


def plan(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="PLAN",
            help="A shipped plan or a YAML file; left out: the list of shipped ones.",
            autocompletion=PLANS,
        ),
    ] = None,
    scale: ScaleOption = None,
    assign: SetOption = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A run of this proxy and horizon, whose σ_Δ says what the seeds can show."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Devices: GPUs, or CPU cores without one.")] = 1,
    speed: Annotated[
        float | None,
        typer.Option(min=1, help="Tokens/s of the proxy on one device, all members together; else as calibrated."),
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of a device-hour, in any currency.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse what `sweep` would refuse.")] = False,
    json: JsonOption = False,
) -> None:
    """What a plan will train, stage by stage, and every number that follows. Nothing is trained or written.

    `trials` is the count if nothing surprises. `at most` adds all that a stage may ask for once it has seen
    its losses: grids extended where the optimum is at their edge, finer grids, moves verified again. No trial
    is trained twice, so the ones that two stages share are counted here and cost nothing. Ask what a change
    costs before making it: `mup-tune plan falcon_h1 --set seeds=[0,1,2]`.

    Hours need a speed. Every sweep calibrates, and what it measured stays in the user's cache. `--run` takes
    that of a run, `--speed` any other. With `--strict` a plan that `sweep` refuses ends with exit code 2.
    """
    if name is None:
        plans = [{"plan": each, "about": about} for each, about in shipped_plans().items()]
        print_json(plans) if json else print_rows(plans, "Shipped plans", "mup-tune plan PLAN says what one will cost")
        return
    from mup_tune.search.forecast import derived, forecast, total
    from mup_tune.search.plan import load_plan
    from mup_tune.search.power import power

    loaded = load_plan(name, scale, tuple(assign or ()))
    if strict:
        _refuse(loaded)
    lines, facts, cost = forecast(loaded), derived(loaded), prices(loaded, run, speed, gpus)
    stages = [asdict(line) | as_fields(each, price) for line, each in zip(lines, cost.stages, strict=True)]
    sums = total(lines) | as_fields(cost.total, price)
    facts["corpora"] = corpora(loaded)
    facts["sigma_delta"] = _measured(run)
    facts["shows"] = [asdict(each) for each in power(loaded)]
    facts["notes"] = _notes(loaded, facts)
    if json:
        over = [{"gpus": each.gpus, **as_fields(each, price)} for each in cost.over]
        known = {"gpus": gpus, "over": over, "speeds_of": cost.devices, "speeds_unknown": cost.unknown}
        shown = {"plan": loaded.header.name, "scale": scale, "stages": stages, "total": sums}
        print_json({**shown, **known, "derived": facts})
        return
    title = f"{loaded.header.name}{f' at scale {scale}' if scale else ''}: {loaded.header.about}"
    _print_stages(title, stages, sums)
    _print_hours(cost, price)
    print_rows([{"derived": label, "value": value} for label, value in _spoken(facts)], "")
    for note in facts["notes"]:
        console.print(f"note: {note}")


def _measured(run: Path | None) -> float | None:
    """σ_Δ of the last stage of a run that measured it, in nats/token.

    Raises:
        UserError: it is no run, or none of its stages has measured σ_Δ.
    """
    if run is None:
        return None
    from mup_tune.run.view import load_run

    found = [each.sigma_delta for each in load_run(run).findings if each.sigma_delta is not None]
    if not found:
        raise UserError(f"no stage of {str(run)!r} has measured σ_Δ yet", field="--run", fix="Name another run")
    return found[-1]


def corpora(plan: Plan) -> list[dict[str, Any]]:
    """Each corpus with its share of the rows, and its tokens and epochs if it is prepared; prepares none."""
    found, whole = [], sum(each.weight for each in plan.header.data)
    for data in plan.header.data:
        corpus, share = _prepared(data.corpus), data.weight / whole
        read = plan.header.budget.total_tokens * share
        found.append(
            {
                "corpus": data.corpus,
                "share": share,
                "prepared": corpus is not None,
                "train_tokens": corpus.tokens("train") if corpus else None,
                "vocab_size": corpus.vocab_size if corpus else None,
                "epochs": read / corpus.tokens("train") if corpus else None,
                "max_epochs": data.max_epochs,
            }
        )
    return found


def _prepared(name: str) -> Corpus | None:
    from mup_tune.data.corpus import CORPUS_FILE, Corpus
    from mup_tune.data.stdlib import DEFAULT_CORPUS, default_folder

    folder = default_folder()[0] if name == DEFAULT_CORPUS else Path(name)
    return Corpus.open(folder) if (folder / CORPUS_FILE).is_file() else None


def _notes(plan: Plan, facts: dict[str, Any]) -> list[str]:
    """What a user should know before paying for it, a sentence or two each."""
    from mup_tune.data.stdlib import DEFAULT_CORPUS

    notes = []
    if facts["eta_lambda_T"] < 1:
        notes.append(
            f"η·λ·T = {facts['eta_lambda_T']:.2g} < 1 at the start: so short a run never leaves its init, and an EWD "
            "found there says little about a longer one. `micro` sweeps EWD multipliers once the tuned ELR is at "
            f"least T^-½ = {facts['elr_for_ewd']:.3g}."
        )
    if facts["same_vocabulary"] is False:
        notes.append(
            f"The proxy's vocabulary has {plan.shape.vocab_size:,} ids, the target's {facts['target_vocabulary']:,}: "
            "embedding and lm_head are tuned on other tokens than the target reads. A proxy with the target's "
            "vocabulary avoids it" + (", as at scale full." if "full" in plan.scales else ".")
        )
    if facts["tokens_per_parameter"] < 1:
        notes.append(
            f"{facts['tokens_per_parameter']:.2g} tokens per parameter: what is tuned on so short a run holds for so "
            "short a run. Take a smaller proxy or a larger total_tokens."
        )
    for each in facts["corpora"]:
        if not each["prepared"]:
            make = (
                "`sweep` makes it from this machine's Python"
                if each["corpus"] == DEFAULT_CORPUS
                else (f"make it with `mup-tune data prepare INPUT… --tokenizer tokenizer.json --out {each['corpus']}`")
            )
            notes.append(f"The corpus {each['corpus']!r} is not prepared yet: {make}.")
        elif each["epochs"] > each["max_epochs"]:
            notes.append(
                f"{each['corpus']!r} would be read {each['epochs']:.3g} times: `sweep` refuses more than "
                f"{each['max_epochs']:g} (data.max_epochs)."
            )
        elif each["vocab_size"] > plan.shape.vocab_size:
            notes.append(
                f"{each['corpus']!r} has {each['vocab_size']:,} ids, the proxy {plan.shape.vocab_size:,}: `sweep` "
                "refuses it."
            )
    return notes


def _print_stages(title: str, stages: Sequence[dict[str, Any]], sums: dict[str, float]) -> None:
    tokens, flops = _prefix(sums["max_tokens"]), _prefix(sums["max_flops"])
    rows = []
    for each in (*stages, {"stage": "total", "title": "", **sums}):
        row = {"stage": each["stage"]}
        for mark, field in (("", ""), ("≤ ", "max_")):
            row[f"{mark}trials"] = each[f"{field}trials"]
            row[f"{mark}{tokens}tokens"] = _rounded(each[f"{field}tokens"], tokens)
            row[f"{mark}{flops}FLOP"] = _rounded(each[f"{field}flops"], flops)
        rows.append(row | ({"what": each["title"]} if console.width >= WIDE else {}))
    caption = "≤: with all that the stage may still ask for. tokens and FLOP of training; validation is not counted"
    print_rows(rows, title, caption)


def _print_hours(cost: Prices, per_hour: float | None) -> None:
    if cost.total is None:
        shapes = ", ".join(cost.unknown)
        console.print(f"hours: no speed is known of {shapes}. Give --speed, or --run DIR of a run that calibrated it.")
        return
    caption = f"speed: {', '.join(cost.devices)}; start-up and calibration are not counted"
    print_rows(table(cost.over, per_hour), "Time", caption)
    if said := advice(cost):
        console.print(said)


def _refuse(plan: Plan) -> None:
    """What `sweep` would refuse before it trains.

    Raises:
        UserError: a corpus is not prepared, or not one for this plan.
    """
    from mup_tune.data.mixture import open_mixture
    from mup_tune.data.stdlib import DEFAULT_CORPUS
    from mup_tune.search.execute import check_data

    unmade = DEFAULT_CORPUS in (data.corpus for data in plan.header.data) and _prepared(DEFAULT_CORPUS) is None
    if not unmade:  # `sweep` makes that one, which is no small thing to do here
        check_data(plan, open_mixture(plan.header.data))


def _rounded(value: float, prefix: str) -> float:
    """Three significant digits."""
    return float(f"{value / PREFIXES.get(prefix, 1.0):.3g}")


def _prefix(value: float) -> str:
    return next((prefix for prefix, size in PREFIXES.items() if value >= 10 * size), "")


def _spoken(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The derived numbers for people."""
    base = ", ".join(f"{key} {value}" for key, value in facts["base"].items())
    lines = [
        ("proxy", f"{facts['proxy']}, {facts['parameters']:,} parameters"),
        ("a trial", f"{facts['tokens_per_parameter']:.3g} tokens per parameter, {facts['flops_per_trial']:.3g} FLOP"),
        (
            "steps",
            f"{facts['steps']:,} of {facts['rows']} × {facts['seq_len']} = {facts['batch_tokens']:,} tokens: "
            f"{facts['warmup_steps']:g} of warmup ({facts['warmup_share']:.3g}), "
            f"{facts['decay_steps']:g} of decay ({facts['decay_share']:.3g})",
        ),
        ("start", f"{facts['start']}: η {facts['eta']:.4g}, λ {facts['lambda']:.4g}, ELR {facts['elr']:.4g}"),
        ("η·λ·T", f"{facts['eta_lambda_T']:.3g} at the start; 1 at ELR {facts['elr_for_ewd']:.3g}"),
        ("base Shape", base),
        *([("smallest gain shown", _shows(facts))] if facts["shows"] else []),
        ("tuning seeds", ", ".join(map(str, facts["seeds"]))),
        *((f"corpus {each['corpus']}", _corpus(each)) for each in facts["corpora"]),
        ("target", _target(facts)),
        ("scales", ", ".join(facts["scales"]) or "none"),
    ]
    return lines


def _shows(facts: dict[str, Any]) -> str:
    """In nats where σ_Δ is known; else in units of it, with what an even σ_Δ would make of that."""
    sigma = facts["sigma_delta"]
    said = []
    for each in facts["shows"]:
        gain = f"{1e3 * sigma * each['sigmas']:.3g} mnat" if sigma else f"{each['sigmas']:.2g} σ_Δ"
        said.append(f"{each['stage']} {gain} on {each['seeds']} seeds")
    return ", ".join(said) + (f" (σ_Δ = {1e3 * sigma:.3g} mnat)" if sigma else "; --run DIR says it in nats")


def _corpus(each: dict[str, Any]) -> str:
    share = f"{each['share']:.3g} of the rows, " if each["share"] < 1 else ""
    if not each["prepared"]:
        return share + "not prepared yet"
    return share + f"{each['epochs']:.3g} epochs of {each['train_tokens']:,} tokens, {each['vocab_size']:,} ids"


def _target(facts: dict[str, Any]) -> str:
    if not facts["target"]:
        return "none named; `transfer --target` names one"
    same = "the proxy's vocabulary is the target's" if facts["same_vocabulary"] else "the proxy has another vocabulary"
    return f"{facts['target']}, {facts['target_parameters']:,} parameters; {same}"


def register(app: typer.Typer) -> None:
    app.command(cls=_ListsPlans)(plan)
