"""The scan in kernels and its gradients equal the chunked PyTorch scan in float64."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from near import DEVICE, Parts, columns, nan_memory, twin  # noqa: F401
from torch import Tensor

pytest.importorskip("triton")
from mup_tune.model.kernels.spans import spans
from mup_tune.model.kernels.ssd import ssd, ssd_backward, ssd_reference

# Tokens past the end of a row have step size 0. The interpreter warns of its logarithm, which nothing reads.
pytestmark = [pytest.mark.usefixtures("nan_memory"), pytest.mark.filterwarnings("ignore:divide by zero")]
# Norm-wise relative distance allowed. bf16: weighted keys, mixing matrices and states are rounded (2^-9; cut
# by 2^-8 in the interpreter) before they are multiplied.
BOUND = {torch.float32: 1e-5, torch.bfloat16: 1.2e-2}
GRADIENTS = ("xBC", "raw", "z", "dt_bias", "A_log", "D")


@dataclass(frozen=True)
class Size:
    P: int = 2
    rows: int = 2
    T: int = 70
    H: int = 2
    G: int = 1
    S: int = 16
    K: int = 16

    @property
    def d_ssm(self) -> int:
        return self.H * self.K

    @property
    def d_conv(self) -> int:
        return self.d_ssm + 2 * self.G * self.S


def documents(rows: int, T: int, lengths: list[int]) -> Tensor:
    """Row 0 is cut into documents of these lengths, over and over; the others are cut later or not at all."""
    cut = torch.repeat_interleave(torch.arange(T), torch.tensor(lengths * T)[:T])[:T]
    return torch.stack([cut // (1 + 7 * row) for row in range(rows)]).to(torch.int32).to(DEVICE)


def inputs(size: Size, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Values that the work dtype holds exactly, in fp64."""
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE).to(dtype).double()

    P, B, T = size.P, size.rows, size.T
    return {
        "xBC": normal(P, B, T, size.d_conv),
        "raw": normal(P, B, T, size.H),
        "z": normal(P, B, T, size.d_ssm),
        "dt_bias": normal(P, size.H).float().double() - 2,
        "A_log": normal(P, size.H).float().double(),
        "D": normal(P, size.H).float().double(),
        "d_out": normal(P, B, T, size.d_ssm),
    }


def expected(size: Size, values: dict[str, Tensor], documents_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {name: twin(values[name]) for name in GRADIENTS}
    out = ssd_reference(*leaves.values(), size.H, size.G, size.S, documents_BT)
    out.backward(values["d_out"])
    return out.detach(), {name: leaf.grad for name, leaf in leaves.items()}


def fused(
    size: Size, values: dict[str, Tensor], documents_BT: Tensor, dtype: torch.dtype, finite: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """The kernels on views of buffers that are NaN beside them; every element of a result is written."""

    def wide(name: str, before: int, fill: float | None = None) -> tuple[Tensor, Tensor]:
        value = values[name].to(dtype)
        return columns(value if fill is None else torch.full_like(value, fill), before, 3)

    arguments = (
        values["xBC"].to(dtype),
        wide("raw", 5)[0],
        wide("z", 8)[0],
        *(values[name].float() for name in ("dt_bias", "A_log", "D")),
        size.H,
        size.G,
        size.S,
        spans(documents_BT),
    )
    (out, *_), (d_z, *_), (d_raw, *_) = written = wide("z", 16, nan), wide("z", 0, nan), wide("raw", 1, nan)
    saved, parts = ssd(*arguments, out), [Parts(size.P, size.H) for _ in range(3)]
    d_xBC = ssd_backward(wide("d_out", 2)[0], *saved, *arguments, d_raw, d_z, *parts)
    for view, buffer in written if finite else ():
        assert view.isfinite().all()
        assert buffer.isfinite().sum() == view.numel(), "written beside the view"
    return out, dict(zip(GRADIENTS, (d_xBC, d_raw, d_z, *(each.sum() for each in parts)), strict=True))


def check(size: Size, documents_BT: Tensor, dtype: torch.dtype, seed: int = 0, faster: float = 0.0) -> None:
    """``faster`` is added to A_log and dt_bias: states decay sooner."""
    values = inputs(size, dtype, seed)
    values["A_log"] += faster
    values["dt_bias"] += faster
    wanted, wanted_gradients = expected(size, values, documents_BT)
    out, gradients = fused(size, values, documents_BT, dtype)
    pairs = {"out": (out, wanted), **{name: (gradients[name], wanted_gradients[name]) for name in GRADIENTS}}
    slices = [size.d_ssm, size.G * size.S, size.G * size.S]
    parts = zip("xBC", *(torch.split(t, slices, -1) for t in pairs.pop("xBC")), strict=True)
    pairs |= {name: (ours, other) for name, ours, other in parts}
    # Gradients of parameters are sums of signed terms over tokens, which may all but cancel: raw's norm says
    # how large.
    per_token = wanted_gradients["raw"].norm()
    found = {
        name: float((ours.double() - other).norm() / (other.norm() + per_token * (name in ("dt_bias", "A_log", "D"))))
        for name, (ours, other) in pairs.items()
    }
    assert all(value < BOUND[dtype] for value in found.values()), str(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("lengths", [[70], [13, 1, 40], [32, 32, 6]], ids=["whole", "cut", "at_chunks"])
def test_outputs_and_gradients_equal_the_twin(dtype: torch.dtype, lengths: list[int]) -> None:
    size = Size(P=2, rows=1, H=2)
    check(size, documents(size.rows, size.T, lengths), dtype)


@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(
    T=st.integers(1, 70),
    heads_of_a_group=st.integers(1, 3),
    G=st.sampled_from([1, 2]),
    S=st.sampled_from([16, 20, 40]),
    K=st.sampled_from([3, 8, 24]),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    seed=st.integers(0, 100),
)
def test_odd_sizes(T: int, heads_of_a_group: int, G: int, S: int, K: int, lengths: list[int], seed: int) -> None:
    size = Size(P=1, rows=1, T=T, H=heads_of_a_group * G, G=G, S=S, K=K)
    check(size, documents(size.rows, T, lengths), torch.float32, seed)


@pytest.mark.filterwarnings("ignore:overflow")
def test_strong_decay_neither_overflows_nor_poisons_gradients() -> None:
    size = Size(P=1, rows=1, H=1)
    check(size, documents(1, size.T, [50]), torch.float32, faster=2.0)


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_a_dead_member_and_a_dead_row_stay_alone() -> None:
    size = Size(P=2, rows=2, T=40, H=1)
    values, documents_BT = inputs(size, torch.float32, 0), documents(2, size.T, [15])
    out, gradients = fused(size, values, documents_BT, torch.float32)
    values["xBC"][0, 1] = values["d_out"][0, 1] = values["A_log"][1] = nan
    hurt_out, hurt_gradients = fused(size, values, documents_BT, torch.float32, finite=False)
    assert torch.equal(hurt_out[0, 0], out[0, 0])
    for name in ("xBC", "raw", "z"):
        assert torch.equal(hurt_gradients[name][0, 0], gradients[name][0, 0])


def test_tokens_that_are_not_evenly_spaced_are_refused() -> None:
    size = Size(P=2, rows=2, T=8, H=1)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device=DEVICE)

    head, z = zeros(2, 1), zeros(2, 2, 16, size.d_ssm)[:, :, :8]
    tokens = (zeros(2, 2, 8, size.d_conv), zeros(2, 2, 8, 1), z)
    with pytest.raises(ValueError, match="columns of a buffer"):
        ssd(*tokens, head, head, head, 1, 1, size.S, spans(documents(2, 8, [8])), torch.zeros_like(z))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="the compiled kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "size",
    [
        Size(P=3, rows=4, T=1024, H=4, S=64, K=64),
        Size(P=1, rows=2, T=1000, H=16, S=64, K=64),
        Size(P=2, rows=2, T=301, H=4, G=2, S=128, K=64),
        Size(P=1, rows=2, T=300, H=4, G=4, S=256, K=128),
        Size(P=1, rows=1, T=130, H=3, S=20, K=8),
        Size(P=1, rows=1, T=1, H=1, S=16, K=16),
    ],
    ids=str,
)
def test_true_sizes(size: Size, dtype: torch.dtype) -> None:
    check(size, documents(size.rows, size.T, [size.T, 37, 64, 201, 1]), dtype)
    check(size, documents(size.rows, size.T, [128, 91, 300, 13]), dtype, seed=1)
