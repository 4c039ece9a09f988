"""A plan's data: one mapping or a list of them, checked before anything trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from mup_tune.data.prepare import prepare
from mup_tune.errors import UserError
from mup_tune.search.execute import execute, open_sweep
from mup_tune.search.plan import load_plan

PLAN = """
proxy: cpu-32
seeds: [0, 1]
data: DATA
budget: {seq_len: 32, batch_tokens: 128, total_tokens: 1280, warmup_tokens: 0, decay_tokens: 128, val_tokens: 640}
stages:
  - {kind: elr_ewd, reference: tuned, incumbent: false, elr_offsets: [-1, 0, 1], ewd_offsets: [], extend: 0}
  - {kind: confirm, against: [tuned], n_seeds: 2}
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpora ``prose`` and ``code``; ``small`` is too short for the budget."""
    folder = tmp_path_factory.mktemp("text")
    for name, word, count in (("prose", "once", 60), ("code", "return", 60), ("small", "tiny", 3)):
        (folder / f"src-{name}").mkdir()
        for index in range(count):
            (folder / f"src-{name}" / f"{index}.txt").write_text(f"{word} {index} " * 20)
        prepare([folder / f"src-{name}"], folder / name, tokenizer="bytes", val_fraction=0.3)
    return folder


@pytest.fixture
def here(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(text)
    return tmp_path


def plan(here: Path, data: str, *assignments: str):
    path = here / "plan.yaml"
    path.write_text(PLAN.replace("DATA", data))
    return load_plan(str(path), assignments=assignments)


def test_one_corpus_stays_one_mapping_and_can_be_set(here: Path) -> None:
    assert plan(here, "{corpus: prose}").header.data[0].weight == 1.0
    assert plan(here, "{corpus: prose}", "data.corpus=code").header.data[0].corpus == "code"
    (here / "bare.yaml").write_text(PLAN.replace("data: DATA\n", ""))
    bare = load_plan(str(here / "bare.yaml"), assignments=("data.corpus=code",))
    assert bare.header.data[0].corpus == "code"
    mixed = plan(here, "[{corpus: prose, weight: 0.5}, {corpus: code, weight: 0.5}]", "data.1.corpus=small")
    assert [each.corpus for each in mixed.header.data] == ["prose", "small"]
    one = plan(here, "{corpus: prose}")
    assert one.hash == plan(here, "[{corpus: prose}]").hash != mixed.hash


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "[{corpus: prose, weight: 0.5}, {corpus: code, weight: 0.4}]",
            r"data: the weights 0\.5 \+ 0\.4 sum to 0\.9, not to 1\. In the same proportion they are 0\.5555556, 0\.4",
        ),
        ("{corpus: prose, weight: 2}", r"data: the weights 2 sum to 2, not to 1"),
        ("[{corpus: prose, weight: 1}, {corpus: code, weight: 0}]", r"data\[1\]\.weight: 0 is not allowed"),
        ("[{corpus: prose, wieght: 1}]", r"data\[0\]\.wieght: unknown key 'wieght'; did you mean 'weight'"),
        ("{corpsu: prose}", r"data\.corpsu: unknown key 'corpsu'; did you mean 'corpus'"),
        ("[]", r"data: .* is not allowed"),
        ("prose", r"data: 'prose' is not allowed"),
        (
            "[{corpus: prose, weight: 0.5}, {corpus: ./prose/, weight: 0.5}]",
            r"data: 'prose' is given twice\. Give it once, with the sum of its weights",
        ),
        (
            "[{corpus: prose, weight: 0.5}, {corpus: other/prose, weight: 0.5}]",
            r"data: 'prose' and 'other/prose' are both called 'prose'\. Rename a folder",
        ),
    ],
)
def test_wrong_mixtures_are_named_when_the_plan_is_read(here: Path, data: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(here, data)


@pytest.mark.parametrize(
    ("data", "assignments", "message"),
    [
        ("[{corpus: prose, weight: 0.5}, {corpus: small, weight: 0.5}]", (), "small: 0.5 of 1,280 training tokens are"),
        ("[{corpus: prose, weight: 0.96}, {corpus: code, weight: 0.04}]", (), r"val_tokens: 640 is too small.*'code'"),
        ("{corpus: prose}", ("budget.val_tokens=640000",), "asks 'prose' for 640,000 and its validation split holds"),
        ("{corpus: nowhere}", (), "nowhere: no such corpus folder"),
    ],
)
def test_what_the_budget_cannot_read_is_refused_before_a_folder_is_made(
    here: Path, data: str, assignments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message), open_sweep(plan(here, data, *assignments), here / "run"):
        pass
    assert not (here / "run").exists()


def test_a_corpus_the_proxy_cannot_read_is_named_by_its_place(here: Path) -> None:
    shape = (Path(__file__).parents[2] / "proxy_models" / "cpu-32.yaml").read_text()
    narrow = "\n".join("vocab_size: 256" if line.startswith("vocab_size") else line for line in shape.splitlines())
    (here / "narrow.yaml").write_text(narrow)
    for data, field in (
        ("[{corpus: prose, weight: 0.5}, {corpus: code, weight: 0.5}]", r"data\[0\]\.corpus"),
        ("{corpus: prose}", r"data\.corpus"),
    ):
        found = plan(here, data, f"proxy={here / 'narrow.yaml'}")
        with (
            pytest.raises(UserError, match=rf"{field}: 'prose' has a vocabulary of 257, the proxy .* one of 256"),
            open_sweep(found, here / "run"),
        ):
            pass


def test_a_run_on_a_mixture_records_its_sources_and_compares_on_each(here: Path) -> None:
    found = plan(here, "[{corpus: prose, weight: 0.75}, {corpus: code, weight: 0.25}]")
    with open_sweep(found, here / "run") as (folder, sweep):
        sources = folder.record.corpus.sources
        assert [(each.name, each.weight) for each in sources] == [("prose", 0.75), ("code", 0.25)]
        comparison = execute(found, folder, sweep, "inline", None, None, lambda _: None)[-1].comparisons[0]
    assert comparison.gain is not None
    parts = comparison.by_source
    assert list(parts) == ["prose", "code"]
    assert comparison.gain.value == pytest.approx(0.75 * parts["prose"].value + 0.25 * parts["code"].value, abs=1e-12)
