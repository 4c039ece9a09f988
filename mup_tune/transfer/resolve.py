"""What is transferred: Settings, the budget and proxy they come from, and what to warn of at a target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mup_tune.errors import UserError
from mup_tune.run.folder import RunFolder
from mup_tune.schedule import batch_lr_factor
from mup_tune.settings import Settings, load_settings
from mup_tune.shape import Shape
from mup_tune.trial import Budget

INCUMBENT = "incumbent.yaml"
WIDTHS = ("d_model", "d_attn", "head_dim", "d_ssm", "d_state", "d_ff")


@dataclass(frozen=True)
class Tuned:
    """Settings and where they come from. ``budget`` and ``proxy`` are None where they come without a run.

    ``origin`` names the place in words. ``batch_tokens`` is the target's batch where η was scaled to it, see
    :func:`at_batch`.
    """

    settings: Settings
    origin: str
    budget: Budget | None = None
    proxy: Shape | None = None
    batch_tokens: int | None = None


def resolve(source: str) -> Tuned:
    """A run folder's incumbent, named Settings, or those of a YAML file.

    Raises:
        UserError: nothing of that name, a folder that is no run, or a run that has no incumbent yet.
    """
    folder = Path(source)
    if folder.is_dir():
        return _from_run(folder)
    if source == "untuned":
        raise UserError(
            "'untuned' is relative to a proxy, so there is nothing to transfer",
            field="RUN|SETTINGS",
            fix="Give a run folder, falcon-h1-published, or a settings YAML that names its base",
        )
    if folder.suffix not in (".yaml", ".yml") and len(folder.parts) > 1:
        raise UserError("no such run folder or settings file", file=source)
    settings = load_settings(source, None)
    return Tuned(settings, f"the settings {source!r}")


def at_batch(tuned: Tuned, batch_tokens: int) -> Tuned:
    """``tuned`` with η·√(b/b_ref) for a target with batches of ``batch_tokens``; λ stays (arXiv 2507.22448).

    Raises:
        UserError: settings without a run, so that b_ref is not known.
    """
    if tuned.budget is None:
        raise UserError(
            f"{tuned.origin} come without a run, so the batch their learning rate belongs to is not known",
            field="--batch-tokens",
            fix="Leave it out and set `lr` for your batch yourself",
        )
    if batch_tokens < 1:
        raise UserError(f"{batch_tokens} is not allowed: a batch has at least one token", field="--batch-tokens")
    # η = ELR/EWD and λ = ELR·EWD: opposite factors move η alone.
    factor = batch_lr_factor(batch_tokens, tuned.budget.batch_tokens) ** 0.5
    settings = tuned.settings.scaled({"elr": factor, "ewd": 1 / factor})
    return replace(tuned, settings=settings, batch_tokens=batch_tokens)


def warnings(tuned: Tuned, target: Shape) -> list[str]:
    """Sentences on what a user must not overlook at this target."""
    found: list[str] = []
    base = tuned.settings.base
    if all(getattr(base, size) == getattr(target, size) for size in WIDTHS):
        found.append(
            "base equal to target: the target has the widths these settings are relative to, so every width factor "
            "is 1 and NO WIDTH SCALING TOOK PLACE"
        )
    if base.n_layers != target.n_layers and tuned.settings.depth_rule == "none":
        found.append(
            f"depth {base.n_layers} → {target.n_layers}: Falcon-H1 has no depth rule, nothing was scaled with depth"
        )
    if tuned.proxy and tuned.proxy.vocab_size != target.vocab_size:
        found.append(
            f"vocabulary {tuned.proxy.vocab_size} at the proxy, {target.vocab_size} at the target: the learning "
            "rates of embedding and lm_head and their multipliers were tuned at the proxy's; re-check them first"
        )
    return found


def _from_run(folder: Path) -> Tuned:
    run = RunFolder.open(folder)
    incumbent = run.settings / INCUMBENT
    if not incumbent.is_file():
        raise UserError(
            "this run has no incumbent yet: its first stage has not ended",
            file=folder,
            fix="Let the sweep go on, or transfer named settings",
        )
    return Tuned(
        settings=load_settings(str(incumbent), None),
        origin=f"the incumbent of the run {folder.resolve().name!r} (plan {run.plan.name!r})",
        budget=run.plan.budget,
        proxy=run.plan.proxy,
    )
