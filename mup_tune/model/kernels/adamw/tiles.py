"""The tiles of a flat buffer that AdamW's programs take.

Every parameter is [P, rows, cols] somewhere in the buffer. A tile is up to ``ROWS`` of its rows; a program
takes one tile of one member. Rows that no tile names (padding) are never touched.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = tl.constexpr(8)
LANES = tl.constexpr(64)  # of a block: its columns over the vector width


def make_tiles(parameters: Iterable[tuple[int, int, int, int, int]]) -> tuple[Tensor, int]:
    """The tiles of all parameters, int64 [n_tiles, 6] on the CPU, and the number of table rows.

    A tile is (element offset of its first row for member 0, elements between members, rows, cols, elements
    between rows, index of its first row in the tables). Table rows number the parameters' rows in the order
    given.

    Args:
        parameters: of each its element offset for member 0, elements between members, rows, cols, elements
            between rows.
    """
    tiles, n_rows = [], 0
    for offset, member_stride, rows, cols, row_stride in parameters:
        row = torch.arange(0, rows, ROWS.value)
        columns = (
            offset + row * row_stride,
            torch.full_like(row, member_stride),
            (rows - row).clamp(max=ROWS.value),
            torch.full_like(row, cols),
            torch.full_like(row, row_stride),
            n_rows + row,
        )
        tiles.append(torch.stack(columns, dim=1))
        n_rows += rows
    return torch.cat(tiles), n_rows


@triton.jit
def load_tile(tiles_ptr):
    """This program's tile: its start for the member, rows, columns, row stride, first row in the tables."""
    tiles_ptr += tl.program_id(0) * 6
    start = tl.load(tiles_ptr) + tl.program_id(1) * tl.load(tiles_ptr + 1)
    rows, cols = tl.load(tiles_ptr + 2).to(tl.int32), tl.load(tiles_ptr + 3).to(tl.int32)
    return start, rows, cols, tl.load(tiles_ptr + 4).to(tl.int32), tl.load(tiles_ptr + 5)
