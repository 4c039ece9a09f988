"""A run on a Ray of its own, as a program: ``python local_run.py FOLDER SECONDS_PER_PACK``."""

from __future__ import annotations

import sys
from pathlib import Path

from engine_fakes import Staged, Watch, factory, packs

from mup_tune.engine import ray as driver
from mup_tune.engine.events import Event, Started
from mup_tune.interrupts import cause, stop_signals


def main(folder: Path, seconds: str) -> None:
    watch = Watch()

    def on_event(event: Event) -> None:
        watch(event)
        if isinstance(event, Started):
            import ray

            node = ray._private.worker._global_node
            assert node is not None
            (folder / "temp_dirs").write_text(node.get_temp_dir_path())
            (folder / "started").touch()

    source = Staged([[*packs("die", 1), *packs(f"slow {seconds}", 4, 1, 9000)]])
    driver.drive(source, factory(folder), on_event, run_dir=folder / "run", address=None, lanes=2, gpus=False)
    assert len(source.losses) == 1
    assert len(source.seeds()) == 5
    assert "torch" not in sys.modules
    (folder / "done").touch()


if __name__ == "__main__":
    with stop_signals():
        try:
            main(Path(sys.argv[1]), sys.argv[2])
        except KeyboardInterrupt:
            sys.exit(f"stopped by {cause().name}")
