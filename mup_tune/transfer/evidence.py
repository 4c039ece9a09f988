"""What a run's own confirmation says of what is transferred, and whether that may go out without a word."""

from __future__ import annotations

from collections.abc import Sequence

from mup_tune.errors import UserError
from mup_tune.findings import Finding
from mup_tune.findings.result import hardest
from mup_tune.run.journal import Journal
from mup_tune.run.verdict import OUTCOMES, last_confirmation
from mup_tune.settings import Settings
from mup_tune.stats import argmin, means
from mup_tune.transfer.provenance import Evidence

INCUMBENT, BEST = "incumbent", "best"


def evidence_of(journal: Journal, incumbent: Settings, stages: int) -> Evidence:
    """The evidence in a run's journal; ``stages`` is the number that its plan has."""
    findings = journal.findings()
    done = Evidence(
        verdict="unconfirmed",
        finished=bool(journal.get_note("complete")),
        concluded=len(findings),
        stages=stages,
        said="no confirmation on fresh seeds has concluded, so no gain is known",
    )
    last = last_confirmation(findings)
    if last is None:
        return done
    if last.before.content_hash() != incumbent.content_hash():
        said = f"the confirmation {last.stage} was of other settings than the incumbent is now"
        return done.model_copy(update={"said": said})
    worst = hardest(last.comparisons)
    if worst is None or worst.gain is None:
        names = ", ".join(each.reference for each in last.comparisons)
        said = f"the confirmation {last.stage} could not measure a gain over {names}"
        return done.model_copy(update={"verdict": "unmeasured", "said": said})
    gain, seeds = worst.gain, len(worst.candidate_losses.keys() & worst.reference_losses.keys())
    said = (
        f"{OUTCOMES[worst.outcome]}; gain over {worst.reference} {1e3 * gain.value:+.1f} mnat/token, 95 % CI "
        f"{1e3 * gain.low:+.1f} … {1e3 * gain.high:+.1f}, {seeds} fresh seeds ({last.stage})"
    )
    found = {"verdict": worst.outcome, "reference": worst.reference, "gain": gain, "seeds": seeds, "said": said}
    return done.model_copy(update=found)


def lowest_loss(findings: Sequence[Finding]) -> str:
    """Who had the lowest mean loss on the last confirmation's fresh seeds: the incumbent or a reference.

    Raises:
        UserError: no confirmation has concluded, or every side of it diverged on some seed.
    """
    last = last_confirmation(findings)
    compared = last.comparisons if last else ()
    incumbent = [(INCUMBENT, each.candidate_losses) for each in compared[:1]]
    sides = [*incumbent, *((each.reference, each.reference_losses) for each in compared)]
    lowest = argmin(means([losses for _, losses in sides]))
    if lowest is None:
        raise UserError(
            "'best' compares losses on fresh seeds, and no confirmation of this run has any",
            field="--from",
            fix="Name what to transfer: incumbent, a stage or a reference",
        )
    return sides[lowest][0]


def check(evidence: Evidence, *, chosen: bool, force: bool, allow_unfinished: bool) -> None:
    """Refuse what the run has disproved or not shown, unless the user says so.

    Args:
        chosen: whether ``--from`` names what to transfer, which is a decision of its own.

    Raises:
        UserError: an unfinished run without ``allow_unfinished``; an incumbent that is worse or not confirmed
            without ``force`` or a choice.
    """
    if not evidence.finished and not allow_unfinished:
        raise UserError(
            f"the run is unfinished: {evidence.concluded} of {evidence.stages} stages have concluded",
            field="RUN",
            fix="Let `mup-tune sweep` end, or give --allow-unfinished",
        )
    excused = evidence.verdict == "unconfirmed" and not evidence.finished
    if not (evidence.confirmed or chosen or force or excused):
        raise UserError(
            f"the run does not confirm its incumbent: {evidence.said}",
            field="RUN",
            fix="Give --from best for the lowest loss on fresh seeds, --from NAME for another of its settings, or "
            "--force for the incumbent all the same",
        )


def next_transfer(evidence: Evidence | None, command: str) -> str:
    """The transfer to recommend: ``command``, with what the evidence of a run makes it need, and why."""
    if evidence is None or evidence.confirmed:
        return f"`{command}`"
    if evidence.verdict == "unconfirmed":
        return f"`{command} --force` to transfer it all the same: {evidence.said}"
    return (
        f"`{command} --from best` for the lowest loss on fresh seeds, or `--force` for these settings all the same: "
        f"{evidence.said}"
    )
