"""The flat AdamW against MemberAdamW in float64.

Shape suffixes: P members, R rows, C columns of a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")
from mup_tune.model.kernels.adamw import adamw_, make_tiles, square_sums
from mup_tune.train.optimizer import MemberAdamW, Rates

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BETAS = (0.9, 0.95)
PADDING = -7.0  # what lies in the buffers where no parameter is
# Triton's interpreter truncates to bfloat16
ROUNDING = {torch.float32: 2e-7, torch.bfloat16: 4e-3 if DEVICE == "cuda" else 8e-3}
# rows × columns: several column blocks, rows that do not fill a tile, no multiple of 4, one row or column
SIZES = [(9, 300), (3, 6), (1, 70), (11, 1), (9, 4), (3, 516)]


@dataclass
class Flat:
    """Parameters in flat buffers, padding rows after each, a few elements before all; some in wider rows."""

    sizes: list[tuple[int, int]]
    members: int
    lead: int  # elements before the first parameter: 4 keeps them aligned, 1 does not

    def __post_init__(self) -> None:
        self.layout, self.numel = [], self.lead
        for index, (rows, cols) in enumerate(self.sizes):
            row_stride = cols + 4 * (index % 2)
            stride = (rows + 2) * row_stride
            self.layout.append((self.numel, stride, rows, cols, row_stride))
            self.numel += self.members * stride

    def buffer(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((self.numel,), PADDING, dtype=dtype, device=DEVICE)

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parameters in ``flat``, [P, R, C] each."""
        return [
            flat.as_strided((self.members, rows, cols), (stride, row_stride, 1), offset)
            for offset, stride, rows, cols, row_stride in self.layout
        ]

    def per_row(self, values_P: list[Tensor]) -> Tensor:
        """A table from one value a parameter and member."""
        return torch.cat([v[:, None].expand(-1, rows) for v, (rows, _) in zip(values_P, self.sizes, strict=True)], 1)


class Pair:
    """The kernels and their twin, side by side on the same numbers."""

    def __init__(self, flat: Flat, dtype: torch.dtype, clip_norm: float) -> None:
        self.flat, self.dtype, self.clip_norm = flat, dtype, clip_norm
        self.generator = torch.Generator(DEVICE).manual_seed(len(flat.sizes))
        P, count = flat.members, len(flat.sizes)
        self.master, self.first, self.second = (flat.buffer() for _ in range(3))
        self.work = flat.buffer(dtype)
        for view in flat.views(self.master):
            view.copy_(self.normal(view.shape))
        for view in flat.views(self.first) + flat.views(self.second):
            view.zero_()
        tiles, n_rows = make_tiles(flat.layout)
        self.tiles = tiles.to(DEVICE)
        eta = [(i + 1) * torch.logspace(-3, -1, P, device=DEVICE) for i in range(count)]
        lam = [torch.linspace(0.0, 0.5 + i, P, device=DEVICE) for i in range(count)]
        eps = [torch.tensor([1e-16, 1e-8, 1e-4], device=DEVICE).repeat(P)[:P] for _ in range(count)]
        self.scale = self.normal((P, n_rows)).abs() + 0.1
        self.tables = torch.stack([*(flat.per_row(values) for values in (eta, lam, eps)), self.scale])
        named = {str(i): view.double() for i, view in enumerate(flat.views(self.master))}
        self.rates = {
            str(i): Rates(*(v.view(-1, 1, 1) for v in each)) for i, each in enumerate(zip(eta, lam, eps, strict=True))
        }
        self.twin = MemberAdamW(named, self.rates, BETAS, clip_norm)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=DEVICE)

    def scales(self) -> list[Tensor]:
        return [part[..., None] for part in self.scale.split([rows for rows, _ in self.flat.sizes], 1)]

    def gradient(self, size_P: Tensor) -> Tensor:
        """New gradients of the work copy, also the twin's; NaN where ``size_P`` is and in the padding."""
        grad = torch.full_like(self.work, nan)
        views = self.flat.views(grad)
        for view, scale, parameter in zip(views, self.scales(), self.twin.parameters.values(), strict=True):
            view.copy_(self.normal(view.shape) * size_P.view(-1, 1, 1))
            parameter.grad = view.double() * scale
        return grad

    def step(self, grad: Tensor, alive_P: Tensor, eta_factor: float, lam_factor: float) -> tuple[Tensor, Tensor]:
        """One step of both; returns both norms."""
        expected_P = self.twin.gradient_norms()
        norm_P = square_sums(grad, self.tiles, self.scale, self.flat.members).sum(1).sqrt()
        self.twin.step(eta_factor, lam_factor, expected_P, alive_P)
        corrections = [1 - beta**self.twin.steps for beta in BETAS]
        factors = torch.tensor([eta_factor, lam_factor, *corrections], device=DEVICE)
        buffers = (self.master, self.first, self.second, grad, self.work)
        adamw_(*buffers, self.tiles, self.tables, factors, self.clip_norm, *BETAS, norm_P, alive_P)
        return norm_P, expected_P

    def check(self, members: Tensor) -> None:
        """Masters and moments of ``members`` are the twin's, the work copy is scaled and rounded."""
        twins = [self.twin.parameters, self.twin.first, self.twin.second]
        for flat, twin in zip((self.master, self.first, self.second), twins, strict=True):
            for view, expected in zip(self.flat.views(flat), twin.values(), strict=True):
                difference = (view.double() - expected)[members].flatten(1).norm(dim=1)
                assert (difference <= 2e-6 * expected[members].flatten(1).norm(dim=1)).all()
        for work, master, scale in zip(
            self.flat.views(self.work), self.flat.views(self.master), self.scales(), strict=True
        ):
            product = (master.double() * scale)[members]
            assert ((work[members].double() - product).abs() <= ROUNDING[self.dtype] * product.abs()).all()

    def check_padding(self) -> None:
        for buffer in (self.master, self.first, self.second, self.work):
            outside = buffer.clone()
            for view in self.flat.views(outside):
                view.fill_(PADDING)
            assert (outside == PADDING).all()


def run(pair: Pair, steps: int) -> None:
    """Members of very different gradients; the second one dies half-way."""
    members = pair.flat.members
    alive_P = torch.ones(members, dtype=torch.bool, device=DEVICE)
    size_P = torch.logspace(-3, 0, members, device=DEVICE)
    for step in range(steps):
        if step == steps // 2:
            alive_P[1], size_P[1] = False, nan
            before = [
                v[1].clone() for b in (pair.master, pair.first, pair.second, pair.work) for v in pair.flat.views(b)
            ]
        grad = pair.gradient(size_P)
        norm_P, expected_P = pair.step(grad, alive_P, eta_factor=1 / (1 + step), lam_factor=1 + 0.3 * step)
        torch.testing.assert_close(norm_P.double(), expected_P, rtol=2e-6, atol=0, equal_nan=True)
        assert norm_P.isfinite().equal(alive_P)
        pair.check(alive_P)
    after = [v[1] for b in (pair.master, pair.first, pair.second, pair.work) for v in pair.flat.views(b)]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    dead = [twin[1] for twin in pair.twin.parameters.values()]
    for view, expected in zip(pair.flat.views(pair.master), dead, strict=True):
        torch.testing.assert_close(view[1].double(), expected, rtol=1e-5, atol=1e-6)
    pair.check_padding()


@pytest.mark.parametrize("lead", [4, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_members_follow_member_adamw_and_the_dead_stay(dtype: torch.dtype, lead: int) -> None:
    """Gradient norms span three decades, so that some members are clipped and some are not."""
    run(Pair(Flat(SIZES, 3, lead), dtype, clip_norm=2.0), steps=3)


def test_clipping_acts_on_some_members_only() -> None:
    """The norms of the test above lie on both sides of its clip norm."""
    pair = Pair(Flat(SIZES, 3, 4), torch.float32, clip_norm=2.0)
    grad = pair.gradient(torch.logspace(-3, 0, 3, device=DEVICE))
    norm_P, _ = pair.step(grad, torch.ones(3, dtype=torch.bool, device=DEVICE), 1.0, 1.0)
    assert (norm_P > pair.clip_norm).tolist() in ([False, False, True], [False, True, True])
    first_P = torch.stack([view.flatten(1).norm(dim=1) for view in pair.flat.views(pair.first)]).norm(dim=0)
    torch.testing.assert_close(first_P, norm_P.clamp(max=pair.clip_norm) * (1 - BETAS[0]), rtol=1e-5, atol=0)


def test_without_a_work_copy_the_masters_move_alike() -> None:
    ours, theirs = (Pair(Flat(SIZES, 2, 4), torch.float32, clip_norm=1.0) for _ in range(2))
    alive_P, size_P = torch.ones(2, dtype=torch.bool, device=DEVICE), torch.ones(2, device=DEVICE)
    for pair in (ours, theirs):
        grad = pair.gradient(size_P)
        if pair is ours:
            pair.work = None  # type: ignore[assignment]
        pair.step(grad, alive_P, 1.0, 1.0)
    assert torch.equal(ours.master, theirs.master)


def test_zero_gradients_move_nothing_at_the_smallest_eps() -> None:
    pair = Pair(Flat(SIZES, 1, 4), torch.float32, clip_norm=1.0)
    before = pair.master.clone()
    pair.step(pair.gradient(torch.zeros(1, device=DEVICE)), torch.ones(1, dtype=torch.bool, device=DEVICE), 1.0, 0.0)
    assert torch.equal(pair.master, before)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=5), members=st.integers(1, 3)
)
def test_tiles_name_every_element_and_table_row_once(sizes: list[tuple[int, int]], members: int) -> None:
    flat = Flat(sizes, members, lead=3)
    tiles, n_rows = make_tiles(flat.layout)
    assert tiles.dtype == torch.int64
    assert tiles.shape[1] == 6
    named, table_rows = torch.zeros(flat.numel, dtype=torch.int64), torch.zeros(n_rows, dtype=torch.int64)
    for offset, member_stride, rows, cols, row_stride, first_row in tiles.tolist():
        assert rows >= 1
        table_rows[first_row : first_row + rows] += 1
        for member in range(members):
            start = offset + member * member_stride
            named.as_strided((rows, cols), (row_stride, 1), start).add_(1)
    inside = torch.zeros_like(named)
    for view in flat.views(inside):
        view.fill_(1)
    assert torch.equal(named, inside)
    assert (table_rows == 1).all()


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d_model", [256, 1024])
def test_true_sizes(d_model: int, dtype: torch.dtype) -> None:
    sizes = [(8192, d_model), (3 * d_model, d_model), (1, d_model), (d_model + 128, 4), (1, d_model // 64)]
    run(Pair(Flat(sizes, 3, 64), dtype, clip_norm=100.0), steps=4)
