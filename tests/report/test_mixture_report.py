"""What the page says of a mixture: its sources, the gain on each, and vocabularies that differ."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import COMPARISONS, confirmation, full_run

from mup_tune.report.facts import what_was_run
from mup_tune.report.page import write
from mup_tune.run.description import CorpusRecord
from mup_tune.run.view import RunView, load_run
from mup_tune.shape import load_shape
from mup_tune.stats import Interval

SOURCES = [
    {
        "name": "wiki",
        "corpus": "/d/wiki",
        "weight": 0.7,
        "hash": "aaaa",
        "train_tokens": 1_200_000,
        "val_tokens": 40_000,
    },
    {"name": "code", "corpus": "/d/code", "weight": 0.3, "hash": "bbbb", "train_tokens": 90_000, "val_tokens": 5_000},
]
MIXTURE = {"name": "wiki + code", "hash": "feed", "sources": SOURCES}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunView:
    return load_run(full_run(tmp_path_factory.mktemp("report") / "run"))


def data_of(run: RunView) -> dict[str, str]:
    return dict(next(rows for title, rows in what_was_run(run) if title == "Data"))


def mixed(run: RunView, **plan: object) -> RunView:
    record = run.record.model_copy(update={"corpus": CorpusRecord.model_validate(MIXTURE)})
    return replace(run, record=record, plan=run.plan.model_copy(update=plan))


def test_every_source_is_listed_with_weight_hash_and_tokens(run: RunView) -> None:
    facts = data_of(mixed(run))
    assert facts["wiki"] == "weight 0.7, hash aaaa, 1,200,000 training and 40,000 validation tokens"
    assert facts["code"].startswith("weight 0.3, hash bbbb, 90,000 training")
    assert facts["mixture hash"] == "feed"
    assert "shared out by weight" in facts["validation"]
    assert set(data_of(run)) == {"corpus", "corpus hash", "validation"}  # a run of one corpus, by an older version


def test_vocabularies_are_told_where_they_differ(run: RunView) -> None:
    target = load_shape("falcon-h1-1.5b-deep")
    assert target.vocab_size != run.plan.proxy.vocab_size
    told = data_of(mixed(run, target=target))["vocabulary"]
    assert told.startswith(f"{run.plan.proxy.vocab_size:,} at the proxy, 65,537 at falcon-h1-1.5b-deep: ")
    same = target.model_copy(update={"vocab_size": run.plan.proxy.vocab_size})
    for other in (same, None):
        assert "vocabulary" not in data_of(mixed(run, target=other))


def test_the_table_shows_the_gain_on_each_source(run: RunView, tmp_path: Path) -> None:
    gains = {
        "wiki": Interval(0.06, 0.05, 0.07),
        "code": Interval(-0.01, -0.015, -0.005),
        "maths": Interval(0.001, -0.002, 0.004),
    }
    *others, last = run.findings
    split = confirmation((COMPARISONS[0].model_copy(update={"by_source": gains}), *COMPARISONS[1:]), last.before)
    write(replace(mixed(run), findings=(*others, split)), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    rows = [re.sub(r"<[^>]+>|\s+", " ", row) for row in re.findall(r"<tr>.*?</tr>", page, re.S) if "alone" in row]
    told = [" ".join(row.split()) for row in rows]
    assert told == [
        "on wiki alone +60.0 +50.0 to +70.0 lower loss",
        "on code alone −10.0 −15.0 to −5.0 higher loss",
        "on maths alone +1.0 −2.0 to +4.0 the 95 % CI includes 0",
    ]
    widths = [
        sum(int(span or 1) for span in re.findall(r"<t[dh](?:[^>]*colspan=\"(\d+)\")?[^>]*>", row))
        for row in re.findall(
            r"<tr>.*?</tr>", re.findall(r'<table class="comparisons">.*?</table>', page, re.S)[-1], re.S
        )
    ]
    assert set(widths) == {8}
