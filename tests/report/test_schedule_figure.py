from __future__ import annotations

from xml.etree import ElementTree

import pytest

from mup_tune.report.figures.schedule import schedule_curves, schedule_figure
from mup_tune.settings import falcon_h1_published
from mup_tune.trial import Budget

BUDGET = Budget(
    seq_len=4,
    batch_tokens=8,
    total_tokens=800,
    warmup_tokens=80,
    decay_tokens=160,
    power_onset_tokens=160,
    val_tokens=8,
)


def test_it_is_one_svg_that_names_the_four() -> None:
    svg = schedule_figure(BUDGET, falcon_h1_published())
    ElementTree.fromstring(svg.replace("xlink:", ""))
    for word in ("η", "λ", "ELR", "EWD", "log2"):
        assert word in svg


def test_lines_are_relative_to_the_tuned_values() -> None:
    seen = schedule_curves(BUDGET, falcon_h1_published())
    eta, lam, elr, ewd = (values for _, values in seen.values())
    assert [eta[9], lam[9], elr[9], ewd[9]] == pytest.approx([0, 0, 0, 0], abs=1e-12)  # warm, before the onset
    assert [eta[79], lam[79], elr[79], ewd[79]] == pytest.approx([-0.5, -0.5, -0.5, 0], abs=1e-12)  # t = 4 onsets
    assert seen["η"][0][79] == 640
