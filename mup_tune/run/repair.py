"""Repair of a journal file that its writer did not finish."""

from __future__ import annotations

import json
import os
from pathlib import Path


def repair(journal: Path) -> int:
    """Cut a torn tail: everything after the last line that is whole and a JSON object. Its bytes are counted.

    A driver killed in the middle of a write leaves half a line. Optuna would append to it and lose both
    records.
    """
    if not journal.is_file():
        return 0
    with journal.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end = _last_whole(file.fileno(), size)
        if end != size:
            file.truncate(end)
            os.fsync(file.fileno())
        return size - end


def _last_whole(descriptor: int, size: int) -> int:
    """Length of the file up to the end of its last sound line."""
    window = 1 << 16
    while True:
        start = max(0, size - window)
        tail = os.pread(descriptor, size - start, start)
        end = tail.rfind(b"\n") + 1
        while end:
            begin = tail.rfind(b"\n", 0, end - 1) + 1
            if begin == 0 and start > 0:
                break  # the line may begin before the window
            if _sound(tail[begin:end]):
                return start + end
            end = begin
        if start == 0:
            return 0
        window *= 4


def _sound(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
