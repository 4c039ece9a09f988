"""What can train a population on a device, why the rest cannot, and which is taken."""

from __future__ import annotations

import importlib.util

from mup_tune.errors import UserError, unknown

# The first that can run is taken. triton: our own kernels, float32 and bfloat16. mamba-ssm: PyTorch with
# mamba-ssm's scan. torch: PyTorch alone, anywhere.
BACKENDS = ("triton", "mamba-ssm", "torch")
NEEDS = {"triton": ("triton",), "mamba-ssm": ("triton", "einops", "packaging", "mamba_ssm"), "torch": ()}
MIN_CAPABILITY = (8, 0)  # of NVIDIA GPUs: what Triton compiles bfloat16 products for

INSTALL_GPU = 'pip install "mup-tune[gpu]"'
# Its own build wants a CUDA compiler and torch at hand; the scan needs its Python sources alone.
INSTALL_MAMBA_SSM = (
    "pip install setuptools wheel ninja packaging && MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE "
    "pip install --no-build-isolation --no-deps mamba-ssm"
)


def missing(name: str, device: str) -> str | None:
    """Why a backend cannot train on ``device`` (``cpu``, ``cuda:1``), and what to do; None if it can.

    Triton's interpreter does not count: on a CPU it is for tests.
    """
    if name not in BACKENDS:
        raise ValueError(unknown("backend", name, BACKENDS))
    if not NEEDS[name]:
        return None
    if not device.startswith("cuda"):
        return "it needs an NVIDIA GPU"
    for package in NEEDS[name]:
        if importlib.util.find_spec(package) is None:
            command = INSTALL_MAMBA_SSM if package == "mamba_ssm" else INSTALL_GPU
            return f"{package.replace('_', '-')} is not installed: {command}"
    return _unfit_gpu(device) or (_unfit_scan() if name == "mamba-ssm" else None)


def _unfit_gpu(device: str) -> str | None:
    import torch

    if not torch.cuda.is_available():
        return "torch sees no GPU: a driver and a CUDA build of torch are needed"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        have, need = (".".join(map(str, each)) for each in (capability, MIN_CAPABILITY))
        return f"the GPU's compute capability is {have}, its kernels need {need}"
    return None


def _unfit_scan() -> str | None:
    from mup_tune.model.ssd_mamba import chunk_scan

    try:
        chunk_scan()
    except UserError as error:
        return str(error)
    return None


def choose(device: str) -> str:
    """The first backend that can train on ``device``."""
    return next(name for name in BACKENDS if missing(name, device) is None)
