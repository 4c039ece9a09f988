"""How fast populations train and in how much memory, kept per device kind, versions, Shape and Budget.

The files lie in the user's cache, one a measurement. Deleting them measures anew.
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import exp, log
from pathlib import Path
from typing import Any

from mup_tune.engine.code import code
from mup_tune.engine.work import Calibrate, Calibration
from mup_tune.errors import UserError
from mup_tune.files import cache_dir, content_hash, write_atomic
from mup_tune.shape import Shape
from mup_tune.trial import Budget

KEPT_S = 30 * 24 * 3600.0  # drivers and clocks change unseen
FOLDER = "calibrations"
CPUINFO = Path("/proc/cpuinfo")


def speed_key(shape: Shape, budget: Budget) -> str:
    """What decides a population's speed and memory; how long it trains is no part of it."""
    part = budget.model_dump(mode="json", include={"seq_len", "batch_tokens", "val_lengths", "dtype"})
    return content_hash([shape.model_dump(mode="json"), part])


def note_name(shape: Shape, budget: Budget) -> str:
    """Of the note in a run's journal that holds the calibration."""
    return f"calibration {speed_key(shape, budget)}"


def remembered(work: Calibrate, device: str, measure: Callable[[], Calibration]) -> Calibration:
    """What is kept of such work, ``device`` kind and code, else a new measurement, kept from now on."""
    path = _path(work, device)
    found = _read(path) if path else None
    if found is not None:
        return found
    made = replace(measure(), device=device)
    if path and not made.full:  # what fits depends on who else is on the device
        shape = {"name": work.trial.shape.name, "d_model": work.trial.shape.d_model}
        kept = {**to_note(made), "made_by": code(), "shape": shape}
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(kept, indent=1) + "\n")
    return made


def newest(shape: Shape, budget: Budget) -> Calibration | None:
    """The last that was measured of this Shape and Budget, on whatever device."""
    try:
        paths = list((cache_dir() / FOLDER).glob(f"{speed_key(shape, budget)}-*.json"))
        path = max(paths, key=lambda each: each.stat().st_mtime, default=None)
    except (OSError, UserError):
        return None
    return _read(path) if path else None


def speed_at(calibration: Calibration, members: int) -> float:
    """Tokens/s of a population, between measured sizes along the straight line in log-log."""
    speeds = sorted(calibration.tokens_per_s.items())
    if members <= speeds[0][0]:
        return speeds[0][1]
    for (small, slow), (large, fast) in pairwise(speeds):
        if members <= large:
            share = log(members / small) / log(large / small)
            return exp((1 - share) * log(slow) + share * log(fast))
    return speeds[-1][1]


def device_kind(name: str) -> str:
    """What the device is, for people and for telling kinds apart: the GPU's name, or the processor's."""
    import torch

    if name != "cpu":
        return str(torch.cuda.get_device_name(name))
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return f"a core of {line.partition(':')[2].strip()}"
    return f"a core of {platform.processor() or platform.machine()}"


def from_note(note: Any) -> Calibration:
    """A calibration as :func:`to_note` made it for a journal or a file.

    Raises:
        ValueError: it is none.
    """
    try:
        speeds = {int(size): float(speed) for size, speed in note["tokens_per_s"].items()}
        device, full = str(note["device"]), bool(note.get("full", False))
        gib = {int(size): float(peak) for size, peak in note.get("gib", {}).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no calibration: {error}") from None
    if not all(size > 0 and 0 < speed < float("inf") for size, speed in speeds.items()):
        raise ValueError("no calibration: sizes and speeds are above 0")
    return Calibration(speeds, device, gib, full)


def to_note(calibration: Calibration) -> dict[str, Any]:
    """As plain data."""
    speeds, gib = ({str(size): each for size, each in by.items()} for by in (calibration.tokens_per_s, calibration.gib))
    return {"tokens_per_s": speeds, "gib": gib, "full": calibration.full, "device": calibration.device}


def _path(work: Calibrate, device: str) -> Path | None:
    """None without a cache."""
    told = content_hash([device, code(), list(work.sizes)])
    with contextlib.suppress(UserError):
        return cache_dir() / FOLDER / f"{speed_key(work.trial.shape, work.trial.budget)}-{told}.json"
    return None


def _read(path: Path) -> Calibration | None:
    """None where there is none, where it is old or of a clock that was far ahead, or where it is damaged."""
    try:
        if abs(time.time() - path.stat().st_mtime) > KEPT_S:
            return None
        return from_note(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
