"""Cross-entropy over one row of logits a program: the loss, and its gradient in the logits' own memory.

Each lane keeps a running maximum and a running sum (online softmax, arXiv 1805.02867), so the row is read
without waiting for other lanes. The gradient reads the row again, backwards: what came last is still in the
caches (64 KB a row of 32768 in bf16), so device memory sees one read and one write.

Legend: :mod:`mup_tune.model.kernels`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import cross_entropy

from mup_tune.model.kernels import LOG2E, strides
from mup_tune.trial import IGNORED_TARGET

_IGNORED = tl.constexpr(IGNORED_TARGET)
_WIDTH = tl.constexpr(8)  # 16 bytes of bf16
_LOWEST = tl.constexpr(-3.0e38)  # finite: -inf − -inf would be NaN in lanes that saw nothing


@triton.jit
def _load(row_ptr, v_IJ, V: tl.constexpr, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(row_ptr + v_IJ).to(tl.float32)
    return tl.load(row_ptr + v_IJ, mask=v_IJ < V, other=float("-inf")).to(tl.float32)


@triton.jit
def _nll_kernel(
    logits_ptr, targets_ptr, scale_ptr, nll_ptr, logits_stride_p, logits_stride_n,
    V: tl.constexpr, LANES: tl.constexpr, EVEN: tl.constexpr, WITH_GRAD: tl.constexpr,
):  # fmt: skip
    """One program: one row.

    Instructions count here almost as much as bytes, so nothing is compared or masked by element where blocks
    fill the row (``EVEN``), and factors go into exponents.
    """
    n, p = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    BLOCK: tl.constexpr = LANES * _WIDTH
    index_IJ = tl.arange(0, LANES)[:, None] * _WIDTH + tl.arange(0, _WIDTH)[None, :]
    row_ptr = logits_ptr + p * logits_stride_p + n * logits_stride_n
    nll_ptr += p * tl.num_programs(0) + n
    target = tl.load(targets_ptr + n)
    blocks: tl.constexpr = (V + BLOCK - 1) // BLOCK
    if target == _IGNORED:
        tl.store(nll_ptr, 0.0)
        if WITH_GRAD:
            zero_IJ = tl.zeros([LANES, _WIDTH], dtype=logits_ptr.dtype.element_ty)
            for block in range(blocks):
                v_IJ = block * BLOCK + index_IJ
                tl.store(row_ptr + v_IJ, zero_IJ, mask=v_IJ < V)
    else:
        largest_I = tl.full([LANES], _LOWEST, dtype=tl.float32)
        total_I = tl.zeros([LANES], dtype=tl.float32)
        for block in range(blocks):
            x_IJ = _load(row_ptr, block * BLOCK + index_IJ, V, EVEN)
            before_I = largest_I
            largest_I = tl.maximum(before_I, tl.max(x_IJ, axis=1))
            total_I = total_I * tl.exp2((before_I - largest_I) * LOG2E)
            total_I += tl.sum(tl.exp2((x_IJ - largest_I[:, None]) * LOG2E), axis=1)
        largest = tl.max(largest_I, axis=0)
        total = tl.sum(total_I * tl.exp2((largest_I - largest) * LOG2E), axis=0)
        at_target = tl.load(row_ptr + target).to(tl.float32)
        tl.store(nll_ptr, tl.log(total) + (largest - at_target))
        if WITH_GRAD:
            tl.debug_barrier()  # every warp has read the target's logit before one overwrites it
            scale = tl.load(scale_ptr)
            share = tl.log2(scale / total)
            for block in range(blocks):
                v_IJ = (blocks - 1 - block) * BLOCK + index_IJ
                x_IJ = _load(row_ptr, v_IJ, V, EVEN)
                grad_IJ = tl.exp2((x_IJ - largest) * LOG2E + share).to(logits_ptr.dtype.element_ty)
                if EVEN:
                    tl.store(row_ptr + v_IJ, grad_IJ)
                else:
                    tl.store(row_ptr + v_IJ, grad_IJ, mask=v_IJ < V)
            tl.debug_barrier()  # the target's own gradient is put right last
            grad = tl.exp2((at_target - largest) * LOG2E + share) - scale
            tl.store(row_ptr + target, grad.to(logits_ptr.dtype.element_ty))


def _launch(logits_PNV: Tensor, targets_N: Tensor, scale: Tensor | None) -> Tensor:
    P, N, V = logits_PNV.shape
    assert logits_PNV.stride(2) == 1
    assert targets_N.shape == (N,)
    assert targets_N.is_contiguous()
    nll_PN = torch.empty(P, N, dtype=torch.float32, device=logits_PNV.device)
    # what keeps two programs of 16 warps on an SM; without 16-byte accesses addresses take the registers
    wide = logits_PNV.element_size() == 2 and all(size % 16 == 0 for size in (V, *logits_PNV.stride()[:2]))
    block = min(max(triton.next_power_of_2(V), 256), 16384 if wide else 4096)
    _nll_kernel[(N, P)](
        logits_ptr=logits_PNV, targets_ptr=targets_N, scale_ptr=scale, nll_ptr=nll_PN,
        **strides("pn", logits=logits_PNV), V=V, LANES=block // _WIDTH.value, EVEN=V % block == 0,
        WITH_GRAD=scale is not None, num_warps=max(1, min(16, block // 512)),
    )  # fmt: skip
    return nll_PN


def nll(logits_PNV: Tensor, targets_N: Tensor) -> Tensor:
    """Each token's negative log likelihood in nats, fp32 [P, N]; NaN where a logit of the row is.

    Args:
        logits_PNV: bfloat16 or float32, last stride 1.
        targets_N: int64; ``IGNORED_TARGET`` gives 0 whatever its logits hold.
    """
    return _launch(logits_PNV, targets_N, None)


def nll_and_grad_(logits_PNV: Tensor, targets_N: Tensor, scale: Tensor) -> Tensor:
    """:func:`nll`, and the logits become their gradient: forward and backward in one launch.

    That is ``scale · (softmax − onehot)``, and 0 where the target is ignored.

    Args:
        scale: what each token's loss weighs, fp32, 0-dim, on the device.
    """
    return _launch(logits_PNV, targets_N, scale)


def nll_reference(logits_PNV: Tensor, targets_N: Tensor) -> Tensor:
    """:func:`nll` in PyTorch."""
    targets_PN = targets_N.expand(len(logits_PNV), -1)
    return cross_entropy(logits_PNV.transpose(1, 2), targets_PN, ignore_index=IGNORED_TARGET, reduction="none")
