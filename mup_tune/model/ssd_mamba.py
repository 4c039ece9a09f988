"""The state-space scan of ``ssd`` by mamba-ssm's Triton kernels (arXiv 2405.21060, §6), for NVIDIA GPUs.

Their gradients of dt, B and C are sums in no fixed order, unless MAMBA_DETERMINISTIC=1 is set.

Shape suffixes: P members, B rows, T tokens, H heads, K channels of a head, G groups, N d_state. Members are
folded into heads and groups, member-major: head p·H + h then belongs to group p·G + h // (H/G), as it should.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from mup_tune.errors import UserError
from mup_tune.model.layers import at_least_fp32

CHUNK = 256  # tokens handled as one matrix; the kernels are tuned for 128 to 256
LARGEST = 2**31 - 1  # the kernels' offsets are 32-bit


def ssd(
    x_PBTHK: Tensor,
    dt_PBTH: Tensor,
    A_PH: Tensor,
    B_PBTGN: Tensor,
    C_PBTGN: Tensor,
    D_PH: Tensor,
    documents_BT: Tensor | None,
    chunk: int,
) -> Tensor:
    """What :func:`mup_tune.model.ssd.ssd` computes, from float32 or bfloat16; y is rounded to x's dtype.

    Args:
        dt_PBTH: step sizes after bias and softplus, float32.
        A_PH: decay rates, negative.
        documents_BT: non-decreasing document numbers, or None where a row is one document.
        chunk: tokens handled as one matrix, a power of two from 16 on; T need not be a multiple of it.

    Returns:
        y [P, B, T, H, K], float32.

    Raises:
        UserError: mamba-ssm cannot be imported, or the pack is too large for its 32-bit offsets.
        ValueError: inputs of another dtype.
    """
    P, B, T, H, K = x_PBTHK.shape
    if x_PBTHK.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"mamba-ssm's scan takes float32 and bfloat16, not {x_PBTHK.dtype}")
    if max(x_PBTHK.numel(), B_PBTGN.numel()) > LARGEST:
        raise UserError(f"{P} members of {B} × {T} tokens are more than mamba-ssm's scan can address", fix="Fuse fewer")
    documents = None if documents_BT is None else documents_BT.to(torch.int32).contiguous()
    y_BTXK = chunk_scan()(
        _folded(x_PBTHK),
        _folded(at_least_fp32(dt_PBTH)),
        at_least_fp32(A_PH).flatten(),
        _folded(B_PBTGN),
        _folded(C_PBTGN),
        chunk,
        D=at_least_fp32(D_PH).flatten(),
        seq_idx=documents,
    )
    return at_least_fp32(y_BTXK.view(B, T, P, H, K).permute(2, 0, 1, 3, 4))


def _folded(t: Tensor) -> Tensor:
    """[P, B, T, H, …] as [B, T, P·H, …]: a view of one member, a copy of several."""
    return t.permute(1, 2, 0, *range(3, t.ndim)).flatten(2, 3)


@functools.cache
def chunk_scan() -> Callable[..., Tensor]:
    """``mamba_chunk_scan_combined``, imported without running ``mamba_ssm/__init__.py``.

    That one wants the CUDA extension, which the scan does not need, and transformers. Triton's default for
    float32 products is TF32, an error of 1e-3; it is set to three TF32 products here unless
    TRITON_F32_DEFAULT says otherwise.

    Raises:
        UserError: mamba-ssm is not installed, or does not go with the Triton or torch that is.
    """
    spec = importlib.util.find_spec("mamba_ssm")
    if spec is None:
        raise UserError("mamba-ssm is not installed", fix="`mup-tune doctor` says how to install it")
    os.environ.setdefault("TRITON_F32_DEFAULT", "tf32x3")
    hollow = "mamba_ssm" not in sys.modules
    if hollow:
        sys.modules["mamba_ssm"] = importlib.util.module_from_spec(spec)
    try:
        module = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    except Exception as error:  # an unfit version of triton or torch fails in any way
        if hollow:
            del sys.modules["mamba_ssm"]
        raise UserError(f"mamba-ssm's scan cannot be imported: {type(error).__name__}: {error}") from error
    scan: Callable[..., Tensor] = module.mamba_chunk_scan_combined
    return scan
