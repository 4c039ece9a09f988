from __future__ import annotations

from math import nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near import DEVICE, DTYPES, columns, nan_memory, normal, random_documents, twin  # noqa: F401
from torch import Tensor

pytest.importorskip("triton")
from mup_tune.model.attention import rope_inverse_frequencies, rope_table
from mup_tune.model.kernels.attention import (
    attention_,
    attention_backward,
    attention_reference,
    backward,
    forward,
)
from mup_tune.model.kernels.spans import spans

# Rows past the end of a sequence have no keys; the interpreter warns, and their results are not stored.
pytestmark = [pytest.mark.usefixtures("nan_memory"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]
# Norm-wise relative distance allowed. bf16: rotated queries and keys, weights and their gradients are rounded
# before they are multiplied, by 2^-9 at most; the interpreter cuts bits off, by 2^-8, always towards zero.
BOUND = {torch.float32: 1e-5, torch.bfloat16: 1e-2 if DEVICE == "cuda" else 2e-2}


def rope(P: int, T: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Every member has a base of its own."""
    frequencies = torch.stack([rope_inverse_frequencies(10.0 ** (2 + p), head_dim) for p in range(P)]).to(DEVICE)
    cos, sin = rope_table(frequencies, T, torch.float32)
    return cos[:, 0, :, 0].contiguous(), sin[:, 0, :, 0].contiguous()


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, bound: float) -> None:
    assert actual.dtype == dtype
    distance = torch.linalg.vector_norm(actual.double() - expected)
    assert distance <= bound * torch.linalg.vector_norm(expected), f"{distance:g}"


def check(P: int, documents: Tensor, Q: int, J: int, head_dim: int, dtype: torch.dtype, spread: float = 1.0) -> None:
    B, T = documents.shape
    bound = BOUND[dtype] * spread**2
    qkv, _ = columns(spread * normal(P, B, T, (Q + 2 * J) * head_dim, dtype=dtype), 16, 8)
    d_out, _ = columns(normal(P, B, T, Q * head_dim, dtype=dtype, seed=1), 0, 24)
    out, out_buffer = columns(torch.full_like(d_out, nan), 8, 16)
    d_qkv, d_qkv_buffer = columns(torch.full_like(qkv, nan), 24, 8)
    spans_2BT, (cos, sin) = spans(documents), rope(P, T, head_dim)

    qkv_twin = twin(qkv)
    out_twin, lse_twin = attention_reference(qkv_twin, Q, J, cos.double(), sin.double(), documents)
    (out_twin * d_out.double()).sum().backward()
    assert qkv_twin.grad is not None

    lse = attention_(qkv, Q, J, cos, sin, spans_2BT, out)
    assert_near(out, out_twin, dtype, bound)
    assert_near(lse, lse_twin, torch.float32, bound)
    attention_backward(d_out, out, lse, qkv, Q, J, cos, sin, spans_2BT, d_qkv)
    sizes = [Q * head_dim, J * head_dim, J * head_dim]
    assert_near(d_qkv, qkv_twin.grad, dtype, bound)
    if documents.unique().numel() < documents.numel():  # else no weight depends on a score: q and k get rounding noise
        for actual, expected in zip(d_qkv.split(sizes, -1), qkv_twin.grad.split(sizes, -1), strict=True):
            assert_near(actual, expected, dtype, bound)
    assert out_buffer[..., :8].isnan().all()
    assert out_buffer[..., 8 + Q * head_dim :].isnan().all()
    assert d_qkv_buffer[..., :24].isnan().all()
    assert d_qkv_buffer[..., 24 + qkv.shape[-1] :].isnan().all()


def use_tiles(patch: pytest.MonkeyPatch, m: int, n: int) -> None:
    """Tiles so small that short rows have several blocks."""
    for module, name in ((forward, "forward_launch"), (backward, "queries_launch"), (backward, "keys_launch")):
        patch.setattr(module, name, lambda K, dtype: forward.launch(m, n, 4, 1))


@DTYPES
@pytest.mark.parametrize(
    ("Q", "J", "head_dim"),
    [(1, 1, 2), (2, 2, 8), (4, 2, 10), (6, 2, 24), (2, 1, 64), (2, 1, 96), (1, 1, 128), (1, 1, 160)],
)
def test_heads_and_their_sizes(Q: int, J: int, head_dim: int, dtype: torch.dtype) -> None:
    check(2, random_documents(1, 35, 15), Q, J, head_dim, dtype)


@pytest.mark.parametrize("tile", [(16, 32), (32, 16)])
@pytest.mark.parametrize("mean_length", [1.0, 8.0, 1e9])
@pytest.mark.parametrize("T", [1, 16, 35])
def test_blocks_and_documents_meet_anywhere(
    T: int, mean_length: float, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiles(monkeypatch, *tile)
    check(1, random_documents(1, T, mean_length, seed=T), 2, 1, 4, torch.float32)


@settings(max_examples=8)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.sampled_from([(16, 16), (16, 32), (32, 16)]))
def test_any_packing(lengths: list[int], tile: tuple[int, int]) -> None:
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None].to(DEVICE, torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        use_tiles(patch, *tile)
        check(1, documents, 1, 1, 2, torch.float32)


def test_sharp_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of some hundreds: the peak moves from block to block, and no weight overflows."""
    use_tiles(monkeypatch, 16, 16)
    check(1, random_documents(1, 50, 40), 2, 1, 8, torch.float32, spread=8.0)


def test_documents_numbered_with_gaps_have_their_own_spans() -> None:
    documents = torch.tensor([[0, 0, 0, 4, 4, 9], [0, 1, 2, 2, 2, 2]], dtype=torch.int32, device=DEVICE)
    assert spans(documents).tolist() == [
        [[0, 0, 0, 3, 3, 5], [0, 1, 2, 2, 2, 2]],
        [[3, 3, 3, 5, 5, 6], [1, 2, 6, 6, 6, 6]],
    ]


def test_a_dead_member_and_a_dead_row_stay_alone() -> None:
    documents = random_documents(2, 20, 1e9)
    qkv, d_out = normal(2, 2, 20, 16), normal(2, 2, 20, 8, seed=1)
    qkv[1, 0, 3] = nan
    out, d_qkv = torch.full_like(d_out, nan), torch.full_like(qkv, nan)
    read = (2, 1, *rope(2, 20, 4), spans(documents))
    lse = attention_(qkv, *read, out)
    attention_backward(d_out, out, lse, qkv, *read, d_qkv)
    for value in (out[0], out[1, 1], lse[0], lse[1, 1], d_qkv[0], d_qkv[1, 1]):
        assert value.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="compiled kernels only")
@DTYPES
@pytest.mark.parametrize("mean_length", [60.0, 400.0, 1e9])
@pytest.mark.parametrize(
    ("P", "B", "T", "Q", "J", "head_dim"),
    [
        (4, 4, 1024, 2, 1, 64),
        (2, 2, 1024, 4, 2, 64),
        (1, 2, 1024, 8, 4, 64),
        (2, 1, 1000, 8, 2, 128),
        (1, 2, 777, 6, 3, 96),
        (1, 1, 3001, 2, 1, 64),
    ],
)
def test_true_sizes(
    P: int, B: int, T: int, Q: int, J: int, head_dim: int, mean_length: float, dtype: torch.dtype
) -> None:
    check(P, random_documents(B, T, mean_length), Q, J, head_dim, dtype)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="compiled kernels only")
def test_gradients_do_not_depend_on_the_run() -> None:
    read = (2, 1, *rope(4, 1024, 64), spans(random_documents(16, 1024, 300)))
    qkv, d_out = normal(4, 16, 1024, 256, dtype=torch.bfloat16), normal(4, 16, 1024, 128, dtype=torch.bfloat16, seed=1)
    out, first, second = torch.empty_like(d_out), torch.empty_like(qkv), torch.empty_like(qkv)
    lse = attention_(qkv, *read, out)
    for d_qkv in (first, second):
        attention_backward(d_out, out, lse, qkv, *read, d_qkv)
    assert torch.equal(first, second)
