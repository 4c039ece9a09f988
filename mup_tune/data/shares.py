"""What a Budget reads of every source, counted and refused before anything trains."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from mup_tune.data.batches import Batches
from mup_tune.data.mixture import Mixture
from mup_tune.errors import UserError
from mup_tune.trial import Budget

VALIDATION_SEED = 0  # every trial of a run reads the same validation rows, whatever its data order


def check_epochs(mixture: Mixture, total_tokens: int) -> None:
    """Refuse to read any source's training split more often than its ``max_epochs``.

    Raises:
        UserError: with the numbers.
    """
    for source, share in zip(mixture.sources, mixture.shares, strict=True):
        tokens, read = source.corpus.tokens("train"), round(total_tokens * share)
        if read <= source.max_epochs * tokens:
            continue
        part, less = f"{read:,} training tokens", ""
        if share < 1:
            part, less = f"{share:.4g} of {total_tokens:,} training tokens", ", or give it less weight"
        raise UserError(
            f"{part} are {read / tokens:.3g} epochs of {tokens:,} tokens; at most {source.max_epochs:g} are allowed",
            file=source.corpus.path,
            fix=f"Use more text, a smaller total_tokens or a larger max_epochs{less}",
        )


@dataclass(frozen=True)
class RowCounts:
    """Validation rows of each source: at ``seq_len``, and at the largest of ``val_lengths`` or empty."""

    each: list[int]
    longest: list[int]


def row_counts(data: Mixture, budget: Budget) -> RowCounts:
    """``val_tokens`` shared out by weight.

    Raises:
        UserError: too few for some source to have one row, or more than a validation split holds in whole
        rows.
    """
    factor = max(budget.val_lengths, default=0)
    counts = [_rows_of(data, budget, length) for length in (1, factor) if length]
    return RowCounts(counts[0], counts[1] if factor else [])


def _rows_of(data: Mixture, budget: Budget, factor: int) -> list[int]:
    length = factor * budget.seq_len
    rows = budget.val_tokens // length
    size = f"{length} tokens" + (f" ({factor} × seq_len)" if factor > 1 else "")
    try:
        shares = apportioned(data, rows)
    except ValueError as error:
        needed = length * -(-sum(data.parts) // min(data.parts))
        raise UserError(
            f"{budget.val_tokens:,} is too small: its {error}; a row is {size}",
            field="budget.val_tokens",
            fix=f"Use at least {needed:,}",
        ) from None
    held_by = [Batches(source.corpus, "val", length, 1, VALIDATION_SEED).epoch_rows for source in data.sources]
    most = min(held * sum(data.parts) // part for held, part in zip(held_by, data.parts, strict=True)) * length
    for source, share, held in zip(data.sources, shares, held_by, strict=True):
        if share > held:
            raise UserError(
                f"val_tokens = {budget.val_tokens:,} asks {source.name!r} for {share * length:,} "
                f"and its validation split holds {held * length:,} in whole rows of {size}",
                field="budget.val_tokens",
                fix=f"Use at most {most} (--set budget.val_tokens={most}), or prepare it with a larger --val-fraction",
            )
    return shares


def apportioned(mixture: Mixture, rows: int) -> list[int]:
    """``rows`` shared out by weight (largest remainders first), one entry a source, at least one row each.

    Raises:
        ValueError: some source's share is less than one row; its message names the source.
    """
    exact = [Fraction(part * rows, sum(mixture.parts)) for part in mixture.parts]
    for source, share in zip(mixture.sources, exact, strict=True):
        if share < 1:
            raise ValueError(
                f"{rows} rows are {float(share):.2g} of one for {source.name!r} (weight {source.weight:g})"
            )
    shares = [int(share) for share in exact]
    for index in sorted(range(len(shares)), key=lambda i: shares[i] - exact[i])[: rows - sum(shares)]:
        shares[index] += 1
    return shares
