from __future__ import annotations

from pathlib import Path

import pytest
from contract import DriverContract
from engine_fakes import Staged, Watch, factory, packs

from mup_tune.engine import inline
from mup_tune.engine.events import Lanes
from mup_tune.errors import UserError


class TestInline(DriverContract):
    drive = staticmethod(inline.drive)

    def test_an_interrupt_inside_a_pack(self, tmp_path: Path) -> None:
        source = Staged([[*packs("ok", 1), *packs("interrupt", 1, 1, 500)]])
        with pytest.raises(KeyboardInterrupt):
            inline.drive(source, factory(tmp_path), Watch())
        assert list(source.seeds()) == [0]
        assert not source.losses

    def test_what_the_source_raises_ends_the_run(self, tmp_path: Path) -> None:
        source = Staged([[*packs("ok", 1), *packs("wrong", 1, 1, 500), *packs("ok", 1, 1, 900)]])
        with pytest.raises(UserError, match="the corpus is empty"):
            inline.drive(source, factory(tmp_path), Watch())
        assert len(source.handed) == 2

    def test_waiting_for_nothing_is_an_error(self, tmp_path: Path) -> None:
        source = Staged([[]], out=[*packs("ghost", 1)])
        with pytest.raises(RuntimeError, match="nothing is running"):
            inline.drive(source, factory(tmp_path), Watch())

    def test_no_work_builds_no_runner(self) -> None:
        def never(lane: str) -> None:
            raise AssertionError("built")

        watch = Watch()
        inline.drive(Staged([]), never, watch)  # type: ignore[arg-type]
        assert watch.events == [Lanes(1)]

    def test_one_lane(self, tmp_path: Path) -> None:
        source = Staged([[*packs("ok", 3)]])
        inline.drive(source, factory(tmp_path), Watch())
        assert source.asked_with == {1}
