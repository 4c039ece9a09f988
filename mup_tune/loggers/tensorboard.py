"""TensorBoard: event files under ``RUN/log/tensorboard``.

They are a picture of the journal. Each driver draws it anew, so that nothing is missing or told twice. A line
is a folder, for TensorBoard draws equal tags of several folders into one chart.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from mup_tune.loggers.logger import Committed, Concluded, Logger

if TYPE_CHECKING:
    from mup_tune.run.folder import RunFolder

SWEEP = "sweep"  # the folder of all that is no curve
EVENTS = "events.out.tfevents.*"


class TensorBoard(Logger):
    """The x of ``run/…``, ``best_loss/…`` and ``gain/…`` is trials finished, that of ``curve/…`` tokens."""

    name = "tensorboard"
    needs = (
        "tensorboard.summary.writer.event_file_writer",
        "tensorboard.plugins.scalar.summary_v2",
        "tensorboard.plugins.text.summary_v2",
    )

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder.log / "tensorboard"
        for old in self.folder.rglob(EVENTS):
            old.unlink()
        self._writers: dict[str, Any] = {}

    @property
    def where(self) -> str:
        return f"`tensorboard --logdir {self.folder}` shows it"

    def committed(self, pack: Committed) -> None:
        self._scalars(SWEEP, pack.values, pack.trials, pack.time)
        self._flush()

    def concluded(self, stage: Concluded) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        told = "\n\n".join([f"**{stage.title}**", *stage.sentences])
        self._write(SWEEP, text_pb(f"stage/{stage.stage}", told), stage.trials, stage.time)
        self._scalars(SWEEP, stage.gains, stage.trials, stage.time)
        for line, curve in stage.curves.items():
            for tokens, loss in curve.items():
                self._scalars(line, {f"curve/{stage.stage}": loss}, int(str(tokens)), stage.time)
        self._flush()

    def close(self, complete: bool) -> None:
        for writer in self._writers.values():
            writer.close()

    def _scalars(self, line: str, values: dict[str, float], step: int, time: float) -> None:
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        for tag, value in values.items():
            if isfinite(value):
                self._write(line, scalar_pb(tag, value), step, time)

    def _write(self, line: str, summary: Any, step: int, time: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if line not in self._writers:
            self._writers[line] = EventFileWriter(str(self.folder / line))
        self._writers[line].add_event(Event(wall_time=time, step=step, summary=summary))

    def _flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()
