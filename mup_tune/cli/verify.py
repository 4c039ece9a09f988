"""``verify``: does somebody's model compute what an export says?"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mup_tune.cli.options import JsonOption
from mup_tune.cli.output import console, led, print_json, print_rows, say
from mup_tune.errors import UserError, unknown

if TYPE_CHECKING:
    from mup_tune.transfer.fingerprint import Factory, Fingerprint


def verify(
    export: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `mup-tune transfer` wrote.")],
    model: Annotated[
        str,
        typer.Option(
            metavar="MODULE:FACTORY", help="The model's factory; MODULE is imported, also from the current folder."
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Compare any PyTorch model with the export that it claims to implement, multiplier by multiplier.

    A dropped or doubled multiplier trains without complaint, and no tuned value means anything then. So your
    factory is asked for a narrow model of the target's kind, in which all 14 multipliers of config.json
    differ from 1 and from each other. It gets the same random weights as our own float32 model. Logits are
    compared, and the gradients of every kind of parameter. Where logits differ, our own model is tried with
    multipliers missing or doubled: one at a time, all of a field, all 14, and two. What gives your logits is
    named.

    **The factory** takes one argument, the parsed config.json as a dict, and builds all sizes and multipliers
    from it: `FalconH1Config`'s fields. It returns a `torch.nn.Module`

    - whose parameters are float32 and have the names and shapes of `transformers`,
      such as `model.layers.0.mamba.in_proj.weight`. Prefixes of DDP, FSDP and torch.compile do not matter;

    - that is called on int64 token ids [rows, tokens] and returns logits [rows, tokens, vocabulary], or an
      object with them as `logits`. Each row is one document, and its first token is at position 0.

    For `transformers` itself, in mine.py, with `--model mine:build`:

        def build(config): return FalconH1ForCausalLM(FalconH1Config(**config))

    Exit 0 pass, 1 fail, 2 no such export or a model that does not keep to this.
    """
    from mup_tune.transfer.fingerprint import fingerprint

    found = fingerprint(export, _factory(model))
    if json:
        print_json(_plain(found))
    else:
        _print(found, f"{model} against {export}")
    raise typer.Exit(0 if found.passed else 1)


def _factory(spec: str) -> Factory:
    """The function that ``MODULE:FACTORY`` names. What a user's own module raises is left to be seen."""
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise UserError(f"{spec!r} is not MODULE:FACTORY", field="--model", fix="Write it like mine:build")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        fix = "Give an installed module, or one below the current folder, without .py"
        raise UserError(f"there is no module {module_name!r}", field="--model", fix=fix) from None
    factory: Factory | None = getattr(module, name, None)
    if not callable(factory):
        functions = [each for each in vars(module) if callable(getattr(module, each)) and not each.startswith("_")]
        raise UserError(unknown("factory", name, functions), field="--model")
    return factory


def _plain(found: Fingerprint) -> dict[str, Any]:
    from mup_tune.transfer.fingerprint import TOLERANCE

    def finite(error: float) -> float | None:
        return error if isfinite(error) else None

    return {
        "verdict": "pass" if found.passed else "fail",
        "faults": [{**asdict(fault), "field": fault.field} for fault in found.faults],
        "logits_error": finite(found.logits_error),
        "gradient_errors": {name: finite(error) for name, error in found.gradient_errors.items()},
        "wrong_gradients": found.wrong_gradients,
        "tolerance": TOLERANCE,
    }


def _print(found: Fingerprint, title: str) -> None:
    from mup_tune.transfer.fingerprint import TOLERANCE

    if not found.passed:
        rows = [
            {
                "gradient of": name,
                "relative error": error,
                "verdict": "fail" if name in found.wrong_gradients else "pass",
            }
            for name, error in found.gradient_errors.items()
        ]
        print_rows(rows, title, f"Norm of the difference over the norm of ours; tolerance {TOLERANCE:g}.")
    console.print(led("pass" if found.passed else "fail", ": "), end="")
    worst = max(found.gradient_errors.values())
    if found.passed:
        say(
            f"logits agree within {found.logits_error:.1e}, gradients of all {len(found.gradient_errors)} kinds of "
            f"parameters within {worst:.1e} (tolerance {TOLERANCE:g})"
        )
    elif found.same_logits:
        say(f"logits agree within {found.logits_error:.1e}, gradients of {', '.join(found.wrong_gradients)} do not")
    elif found.faults:
        say(*map(str, found.faults), "With that our own model gives these logits: nothing else is wrong with them.")
    else:
        say(
            f"logits differ by {found.logits_error:.2g}, and no multipliers missing or doubled explain it",
            "Compare the RoPE base and its pairs (i, i + head_dim/2), rms_norm_eps, SiLU, the order of z, x, B, C and "
            "dt, and in every layer the place of each multiplier.",
        )


def register(app: typer.Typer) -> None:
    app.command()(verify)
