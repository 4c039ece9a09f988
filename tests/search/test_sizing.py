"""Sizes from answers: nothing that a sweep would refuse, and hours that are kept."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mup_tune.data.corpus import Corpus, Manifest, SplitInfo
from mup_tune.data.tokenizer import TokenizerInfo
from mup_tune.errors import UserError
from mup_tune.search.sizing import LEAST_STEPS, MOST_PER_PARAMETER, Answers, Kind, sized
from mup_tune.shape import RELEASED, load_shape


def corpus(ids: int, train: int, val: int) -> Corpus:
    def split(tokens: int) -> SplitInfo:
        return SplitInfo(parts=(), documents=1, tokens=tokens, bytes=None, sha256=str(tokens))

    tokenizer = TokenizerInfo(kind="ids", vocab_size=ids, eod=0)
    return Corpus(Path("text"), Manifest.of(tokenizer, split(train), split(val), skipped={}))


answers = st.builds(
    Answers,
    st.sampled_from(RELEASED).map(load_shape),
    st.builds(corpus, st.integers(2, 130_000), st.integers(1, 10**11), st.integers(1, 10**8)),
    st.sampled_from(get_args(Kind)),
    st.sampled_from([1, 2, 8]),
    st.none() | st.floats(0.01, 1000),
    st.none() | st.floats(1e3, 1e8),
    st.none() | st.sampled_from([64, 200, 512]),
)


@settings(max_examples=15)
@given(answers)
def test_a_plan_fits_its_corpus_and_its_hours(given: Answers) -> None:
    text = given.corpus
    if text.tokens("train") < 2 * LEAST_STEPS * 2048 or text.tokens("val") <= 8 * 1024:
        with contextlib.suppress(UserError):  # what a GPU needs, and more than a CPU does
            sized(given)
        return
    found = sized(given)
    plan, budget = found.plan, found.plan.header.budget
    longest = max(budget.total_tokens for each in plan.rehearsal for budget in each.budgets)
    assert longest <= text.tokens("train")
    row = budget.seq_len * max(max(each.val_lengths, default=1) for stage in plan.rehearsal for each in stage.budgets)
    assert budget.val_tokens % row == 0
    assert 0 < budget.val_tokens < text.tokens("val")
    assert plan.shape.vocab_size >= text.vocab_size
    assert budget.steps >= LEAST_STEPS
    assert budget.total_tokens % (10 * budget.batch_tokens) == 0
    assert (found.hours is None) == (given.speed is None)
    if given.hours is None or given.speed is None:
        assert found.bound in ("usual", "corpus")
        return
    assert found.hours is not None
    share = found.hours / given.hours
    if found.bound == "hours":
        assert 0.7 < share < 1.1
    elif found.bound == "steps":
        assert share > 0.9
        assert budget.steps == LEAST_STEPS
    else:
        assert share < 1.1
        per_parameter = budget.total_tokens / plan.shape.parameters()
        assert per_parameter > 0.9 * MOST_PER_PARAMETER or longest > 0.9 * text.tokens("train")


def test_a_vocabulary_near_the_targets_is_the_targets_and_another_is_rounded_up() -> None:
    target = load_shape("falcon-h1-1.5b-deep")
    sizes = {65_536: 65_537, 65_537: 65_537, 65_538: 65_544, 50_257: 50_264, 257: 264}
    for ids, wanted in sizes.items():
        found = sized(Answers(target, corpus(ids, 10**9, 10**7), "gpu"))
        assert found.plan.shape.vocab_size == wanted
        assert found.shipped is None


def test_bytes_on_a_cpu_take_the_shipped_proxy_unless_a_width_is_asked_for() -> None:
    target = load_shape("falcon-h1-0.5b")
    text = corpus(257, 10**7, 10**6)
    assert sized(Answers(target, text, "cpu")).shipped == "cpu-32"
    wide = sized(Answers(target, text, "cpu", width=64))
    assert wide.shipped is None
    assert wide.plan.shape.d_model == 64


def test_less_text_takes_a_smaller_proxy_with_a_token_for_every_parameter() -> None:
    target = load_shape("falcon-h1-1.5b-deep")
    found = {tokens: sized(Answers(target, corpus(8192, tokens, 10**6), "gpu")) for tokens in (10**8, 7 * 10**6, 10**6)}
    assert [each.plan.shape.d_model for each in found.values()] == [320, 128, 64]
    for each in list(found.values())[:2]:
        assert each.plan.header.budget.total_tokens >= 0.99 * each.plan.shape.parameters()


def test_a_small_target_is_not_smaller_than_its_proxy() -> None:
    target = load_shape("cpu-256")
    found = sized(Answers(target, corpus(257, 10**9, 10**7), "gpu"))
    assert found.plan.shape.d_model < target.d_model


@pytest.mark.parametrize(("train", "val", "said"), [(400_000, 10**6, "100 steps"), (10**8, 900, "--val-fraction 0.01")])
def test_too_little_text_is_refused_with_what_is_needed(train: int, val: int, said: str) -> None:
    with pytest.raises(UserError, match="text: its") as refused:
        sized(Answers(load_shape("falcon-h1-0.5b"), corpus(8192, train, val), "gpu"))
    assert said in str(refused.value)
