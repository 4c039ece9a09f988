"""A plan's sizes from a few answers: the proxy, the tokens of a trial, its batch and its validation text.

Stages and least sizes are those of shipped plans. What the answers change is how long a trial trains, and on
which proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from mup_tune.data.corpus import Corpus
from mup_tune.engine.calibrations import newest
from mup_tune.errors import UserError
from mup_tune.search.plan import Plan, load_plan
from mup_tune.search.pricing import flat, price
from mup_tune.settings import load_settings
from mup_tune.shape import Shape, load_shape, make_proxy
from mup_tune.trial import Budget

Kind = Literal["cpu", "gpu"]
Bound = Literal["usual", "hours", "corpus", "parameters", "steps"]
LEAST_STEPS = 100  # of a trial: below, no learning rate can be told from another
AIM_STEPS = 4000  # a batch grows only while a trial keeps as many steps as `gpu-short` has
MOST_BATCH, LONG_BATCH, LONG_ROW = 65_536, 16_384, 1024  # as at the scale `gpu`, once a batch holds 16 long rows
LEAST_PER_PARAMETER, MOST_PER_PARAMETER = 1, 20
USUAL_SHARE = 0.01  # of the tokens that `data prepare` holds out
NEAR = 1.01  # a target with so few ids more than the corpus has reads the same vocabulary
ROUNDS = 3  # of fitting hours: they grow as tokens do, but for validation and for larger batches' speed


@dataclass(frozen=True)
class Base:
    """What a plan for such a device starts from: shipped stages, shipped sizes, and widths that suit it.

    ``widths`` are in groups of much the same cost. The first group that the corpus has tokens enough for is
    taken, and in it the width that rounds the target's channels least. ``ready`` is a shipped proxy, for
    corpora whose ids it can read.
    """

    stages: tuple[str, str | None]
    sizes: tuple[str, str]
    widths: tuple[tuple[int, ...], ...]
    depth: int
    ready: str | None = None


BASES: Mapping[Kind, Base] = {
    "cpu": Base(("quickstart", None), ("falcon_h1", "cpu"), ((32,),), 2, "cpu-32"),
    "gpu": Base(
        ("falcon_h1", "gpu-short"),
        ("falcon_h1", "gpu-short"),
        ((256, 320, 384), (128, 160, 192), (64, 80, 96)),
        4,
    ),
}


@dataclass(frozen=True)
class Answers:
    """What a user says. ``speed`` is tokens/s of the proxy on one device, all members of a pack together."""

    target: Shape
    corpus: Corpus
    device: Kind
    gpus: int = 1
    hours: float | None = None
    speed: float | None = None
    width: int | None = None


@dataclass(frozen=True)
class Sized:
    """``plan`` is whole but for its name and its corpus' place.

    ``shipped`` names its proxy where it is a shipped one, and ``rounded`` says what another one had to round.
    ``hours`` is None where no speed is known. ``bound`` says what holds the tokens of a trial where they are.
    """

    plan: Plan
    shipped: str | None
    rounded: tuple[str, ...]
    hours: float | None
    bound: Bound


def sized(answers: Answers) -> Sized:
    """The plan for these answers.

    Raises:
        UserError: the corpus is too small, or no proxy has this width.
    """
    base = BASES[answers.device]
    stages, usual = _shipped(*base.stages), _shipped(*base.sizes).header.budget
    least, held = _limits(answers.corpus, stages, usual)
    shipped, shape, rounded = _proxy(answers, base, held)
    wanted = max(usual.total_tokens, LEAST_PER_PARAMETER * shape.parameters())
    most = min(held, max(wanted, MOST_PER_PARAMETER * shape.parameters()))

    def planned(tokens: int) -> Plan:
        budget = _budget(answers.corpus, stages, usual, min(max(tokens, least), most))
        header = stages.header.model_copy(update={"budget": budget})
        start = load_settings(stages.header.start, shape)
        return replace(stages, header=header, shape=shape, start=start, target=answers.target, scales=())

    def forecast(plan: Plan) -> float | None:
        budget = plan.header.budget
        speed = answers.speed or _measured(shape, budget)
        waves = [wave for each in plan.rehearsal for wave in each.waves]
        return speed and price(waves, flat(speed, shape, budget.seq_len), answers.gpus).hours

    bound: Bound = "corpus" if held < wanted else "usual"
    plan = planned(wanted)
    hours = forecast(plan)
    for _ in range(ROUNDS):
        if answers.hours is None or hours is None:
            break
        asked = int(plan.header.budget.total_tokens * answers.hours / hours)
        bound = "steps" if asked < least else "hours" if asked <= most else "corpus" if most == held else "parameters"
        plan = planned(asked)
        hours = forecast(plan)
    return Sized(plan, shipped, rounded, hours, bound)


@cache
def _shipped(name: str, scale: str | None) -> Plan:
    return load_plan(name, scale)


def _proxy(answers: Answers, base: Base, tokens: int) -> tuple[str | None, Shape, tuple[str, ...]]:
    """The shipped proxy that can read the corpus, else one after the target's proportions.

    A trial of ``tokens`` has a token for every parameter, if any of the widths lets it.
    """
    ids, target = answers.corpus.vocab_size, answers.target
    if base.ready and not answers.width and ids <= (ready := load_shape(base.ready)).vocab_size:
        return base.ready, ready, ()
    vocabulary = target.vocab_size if ids <= target.vocab_size <= NEAR * ids else -(-ids // 8) * 8
    groups = [[width for width in group if width < target.d_model] for group in base.widths]
    if answers.width or not any(groups):
        groups = [[answers.width or max(16, target.d_model // 16 * 8)]]
    for group in filter(None, groups):
        made = [make_proxy(target, width, base.depth, vocabulary, "") for width in group]
        fitting = [each for each in made if each[0].parameters() * LEAST_PER_PARAMETER <= tokens]
        shape, rounded = min(fitting or made[:1], key=lambda each: len(each[1]))  # the first of those that round least
        if fitting:
            break
    return None, shape, tuple(rounded)


def _limits(corpus: Corpus, stages: Plan, usual: Budget) -> tuple[int, int]:
    """Least and most tokens of a trial: some steps, and so few that the longest one reads no text twice.

    Raises:
        UserError: the corpus holds less than the least.
    """
    budgets = [budget for each in stages.rehearsal for budget in each.budgets]
    longest = max(budget.total_tokens for budget in budgets) / stages.header.budget.total_tokens
    least, held = LEAST_STEPS * usual.batch_tokens, int(corpus.tokens("train") / longest)
    if held < least:
        needed = (
            f"{LEAST_STEPS} steps of {usual.batch_tokens:,} tokens, {longest:g} times as many in the longest trials"
        )
        raise UserError(
            f"its {corpus.tokens('train'):,} training tokens are too few: {needed}, are {int(longest * least):,}",
            file=corpus.path,
            fix="Prepare more text",
        )
    return least, held


def _budget(corpus: Corpus, stages: Plan, usual: Budget, tokens: int) -> Budget:
    """``tokens`` in whole batches, a multiple of ten of them, so that 10 % and 30 % are whole too."""
    batch = usual.batch_tokens
    while 2 * batch <= MOST_BATCH and tokens >= 2 * batch * AIM_STEPS:
        batch *= 2
    seq_len = max(usual.seq_len, LONG_ROW if batch >= LONG_BATCH else 0)
    steps = tokens // batch // 10 * 10
    sizes = {"seq_len": seq_len, "batch_tokens": batch, "total_tokens": steps * batch}
    shares = {"warmup_tokens": steps // 10 * batch, "decay_tokens": 3 * steps // 10 * batch}
    return usual.model_copy(update={**sizes, **shares, "val_tokens": _validation(corpus, stages, usual, seq_len)})


def _validation(corpus: Corpus, stages: Plan, usual: Budget, seq_len: int) -> int:
    """As much as is usual or as is held out, in rows of the longest kind that a stage evaluates at.

    Raises:
        UserError: not one such row is held out.
    """
    lengths = [length for each in stages.rehearsal for budget in each.budgets for length in budget.val_lengths]
    row = seq_len * max(lengths, default=1)
    rows = min(max(1, usual.val_tokens // row), (corpus.tokens("val") - 1) // row)
    if not rows:
        share = max(USUAL_SHARE, 2 * row / (corpus.tokens("val") + corpus.tokens("train")))
        raise UserError(
            f"its {corpus.tokens('val'):,} validation tokens are too few for a row of {row:,} and its target",
            file=corpus.path,
            fix=f"Prepare it with --val-fraction {share:.2g}" if share < 0.5 else "Prepare more text",
        )
    return rows * row


def _measured(shape: Shape, budget: Budget) -> float | None:
    """Tokens/s of the fastest population, as a sweep of this proxy calibrated it."""
    found = newest(shape, budget)
    return max(found.tokens_per_s.values()) if found else None
