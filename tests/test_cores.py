from __future__ import annotations

import os
from pathlib import Path

import pytest

from mup_tune import cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process bound to 8 cores, in the control groups that a test writes below the returned folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(cores, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "MOUNT", tmp_path / "fs")
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_cores_it_is_bound_to_where_nothing_limits(machine: Path) -> None:
    assert cores.usable_cores() == 8
    write(machine / "cgroup", "0::/job\n")
    write(machine / "fs/job/cpu.max", "max 100000\n")
    assert cores.usable_cores() == 8


@pytest.mark.parametrize(("quota", "expected"), [(350_000, 3), (1_600_000, 8), (50_000, 1)])
def test_a_limit_counts_whole_cores(machine: Path, quota: int, expected: int) -> None:
    write(machine / "cgroup", "0::/pod/job\n")
    write(machine / "fs/pod/job/cpu.max", f"{quota} 100000\n")
    assert cores.usable_cores() == expected


def test_a_parents_limit_counts_and_a_group_of_the_host_that_is_not_seen_does_not(machine: Path) -> None:
    write(machine / "cgroup", "0::/pod/job\n")
    write(machine / "fs/pod/cpu.max", "200000 100000\n")
    assert cores.usable_cores() == 2
    write(machine / "cgroup", "0::/elsewhere\n")
    assert cores.usable_cores() == 8
    write(machine / "fs/cpu.max", "400000 100000\n")  # the container's own root
    assert cores.usable_cores() == 4


def test_the_first_version_of_control_groups(machine: Path) -> None:
    write(machine / "cgroup", "5:cpuset:/job\n4:cpu,cpuacct:/job\n0::/\n")
    write(machine / "fs/cpu/job/cpu.cfs_period_us", "100000\n")
    write(machine / "fs/cpu/job/cpu.cfs_quota_us", "-1\n")
    assert cores.usable_cores() == 8
    write(machine / "fs/cpu/job/cpu.cfs_quota_us", "250000\n")
    assert cores.usable_cores() == 2
