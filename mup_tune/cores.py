"""How many CPU cores this process may use: schedulers and containers lend a part of the machine's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import inf
from pathlib import Path

GROUPS, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that it may run on (taskset, SLURM), at most what its container may spend; at least 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min((bound, *_limits()))))


def _limits() -> Iterator[float]:
    """CPU limits in cores of every control group that this process is in, its parents' included.

    The kernel's cgroup-v2.rst (``cpu.max``: quota and period) and sched-bwc.rst (``cpu.cfs_quota_us``). Seen
    from inside a container, the group's path may name folders of the host: what is not there limits nothing.
    """
    for number, controllers, path in _groups():
        if number == "0" or "cpu" in controllers.split(","):
            top = MOUNT if number == "0" else MOUNT / "cpu"
            inside = top / path.strip("/")
            for folder in (inside, *inside.parents):
                if folder.is_relative_to(top):
                    yield _quota(folder) if number != "0" else _max(folder)


def _groups() -> list[list[str]]:
    try:
        return [line.split(":", 2) for line in GROUPS.read_text().splitlines()]
    except OSError:
        return []


def _max(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return inf


def _quota(folder: Path) -> float:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else inf
    except (OSError, ValueError):
        return inf
