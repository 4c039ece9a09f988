from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from contract import DriverContract
from engine_fakes import Staged, Watch, factory, packs

from mup_tune.engine import ray as driver
from mup_tune.engine.code import code
from mup_tune.engine.dispatch import LaneLostError
from mup_tune.engine.events import Event, Finished, Lost, Started
from mup_tune.engine.work import RunnerFactory
from mup_tune.errors import UserError
from mup_tune.trial import PackResult

pytestmark = pytest.mark.ray
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two CPU cores and a make-believe GPU for every test; its token stays out of the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("PYTHONPATH", str(HERE))  # lanes import the fakes
        for name, value in driver.DRIVER_ENV.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 2**27, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        yield cluster
        cluster.shutdown()


class TestRay(DriverContract):
    @pytest.fixture(autouse=True)
    def _drive(self, cluster: Any, tmp_path: Path) -> None:
        def drive(
            source: Staged,
            make_runner: RunnerFactory,
            on_event: Callable[[Event], None],
            *,
            lanes: int | None = None,
            gpus: bool = False,
        ) -> None:
            driver.drive(
                source, make_runner, on_event, run_dir=tmp_path, address=cluster.address, lanes=lanes, gpus=gpus
            )

        self.drive = drive

    def test_two_lanes_work_and_barriers_cost_little(self, tmp_path: Path) -> None:
        """A barrier after every two packs takes little longer than the same packs without one."""
        stages = [[*packs("slow 0.05", 2, 1, 100_000 * stage)] for stage in range(20)]
        source, watch = Staged([*stages, [*packs("slow 0.05", 40, 1, 50)]]), Watch()
        self.drive(source, factory(tmp_path), watch)
        records = [outcome.record for _, outcome in source.committed if isinstance(outcome, PackResult)]
        assert len(records) == 80
        assert len({record["pid"] for record in records}) == 2
        assert {record["OMP_NUM_THREADS"] for record in records} == {"1"}
        assert {record["MALLOC_TOP_PAD_"] for record in records} == {"67108864"}
        assert source.asked_with == {2}
        pairs = [later - earlier for earlier, later in pairwise(watch.at(Finished)[1::2])]
        assert median(pairs[:19]) < 4 * median(pairs[20:])

    def test_killed_lanes_come_back_and_their_packs_run_again(self, tmp_path: Path) -> None:
        """First one lane of two, then both at once, then a pack that kills whoever takes it."""
        (once,) = packs("die", 1, 3, 500)
        (always,) = packs("always-die", 1, 1, 90_000)
        source = Staged(
            [[once, *packs("ok", 4, 1, 9000)], [*packs("die", 2, 2, 20_000)], [*packs("ok", 1, 1, 40_000)], [always]],
            retries=4,
        )
        watch = Watch()
        with pytest.raises(LaneLostError, match="process died"):
            self.drive(source, factory(tmp_path), watch)
        assert [work for work, _ in source.losses].count(always) == 2
        assert source.handed.count(once) == 2
        assert set(source.seeds().values()) == {1}
        assert len(source.seeds()) == 3 + 4 + 2 * 2 + 1
        lost = next(place for place, event in enumerate(watch.events) if isinstance(event, Lost))
        taken = next(event for event in watch.events[lost:] if isinstance(event, Started))
        assert taken == Started("lane-1" if watch.events[lost].lane == "lane-0" else "lane-0", once)

    def test_a_lane_of_other_code_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before its runner is made: what other code has pickled may not even load."""
        monkeypatch.setattr("mup_tune.engine.lanes.code", lambda: {**code(), "torch": "1.0"})

        def unreadable(lane: str) -> None:
            raise AssertionError("loaded")

        here = re.escape(f"torch: {platform.node()} has {code()['torch']}, the driver 1.0: ")
        with pytest.raises(UserError, match=f"^{here}.*Install the same torch on every node$"):
            self.drive(Staged([[*packs("ok", 2)]]), unreadable, Watch())  # type: ignore[arg-type]

    @pytest.mark.slow
    def test_lanes_that_never_come_up_end_the_run(self) -> None:
        def crash(lane: str) -> None:
            os._exit(3)

        with pytest.raises(RuntimeError, match=r"lanes die while they start: .*process died"):
            self.drive(Staged([[*packs("ok", 2)]]), crash, Watch())  # type: ignore[arg-type]

    def test_one_lane_on_the_gpu(self, tmp_path: Path) -> None:
        source = Staged([[*packs("ok", 4)]])
        self.drive(source, factory(tmp_path), Watch(), gpus=True, lanes=5)
        assert source.asked_with == {1}
        assert len({outcome.record["pid"] for _, outcome in source.committed if isinstance(outcome, PackResult)}) == 1

    def test_a_loop_that_ends_early_is_an_interrupt(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ray.tune.run", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            self.drive(Staged([[*packs("ok", 1)]]), factory(tmp_path), Watch())

    def test_a_node_joins_and_dies(self, cluster: Any, tmp_path: Path) -> None:
        """A lane starts on the new node; when the node is killed, the pack it held runs elsewhere."""
        source = Staged([[*packs("hold", 7)]])
        lanes: set[str] = set()
        node: list[Any] = []

        def meddle(event: Event) -> None:
            if isinstance(event, Started):
                lanes.add(event.lane)
                if not node:
                    node.append(cluster.add_node(num_cpus=1, object_store_memory=2**27))
                elif event.lane == "lane-2":
                    cluster.remove_node(node[0], allow_graceful=False)
            elif isinstance(event, Lost):
                (tmp_path / "go").touch()

        self.drive(source, factory(tmp_path), meddle)
        assert lanes == {"lane-0", "lane-1", "lane-2"}
        assert len(source.losses) == 1
        assert isinstance(source.losses[0][1], LaneLostError)
        assert set(source.seeds().values()) == {1}
        assert len(source.seeds()) == 7


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1:9", r"no Ray cluster answers at '127.0.0.1:9' .*refused.*auth_token"),
        ("no-such-host.invalid:6379", "no Ray cluster answers"),
        ("ray://127.0.0.1:10001", "no Ray cluster answers|is no address"),
        ("somewhere", "'somewhere' is no address of a Ray cluster. Give HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster(
    address: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was asked, which knocks for minutes"))
    with pytest.raises(UserError, match=problem):
        driver.drive(Staged([]), factory(tmp_path), Watch(), run_dir=tmp_path, address=address, lanes=1, gpus=False)


class Program:
    """``local_run.py`` in its own process group and home; a mark in the environment finds its descendants."""

    def __init__(self, folder: Path, seconds: str) -> None:
        self.folder, self.mark, self.home = folder, f"mark-{os.getpid()}-{folder.name}", folder / "home"
        self.home.mkdir()
        path = f"{HERE}:{HERE.parents[1]}"
        environment = {**os.environ, "HOME": str(self.home), "MUP_TEST_MARK": self.mark, "PYTHONPATH": path}
        with (folder / "output").open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "local_run.py"), str(folder), seconds],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def output(self) -> str:
        return (self.folder / "output").read_text()

    def wait_for(self, name: str) -> None:
        end = time.monotonic() + 60
        while not (self.folder / name).exists():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < end, self.output()
            time.sleep(0.02)

    def processes(self) -> dict[int, str]:
        """The program and its descendants that live, with their command lines."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        return found

    def left_behind(self) -> list[str]:
        """Descendants that still live and Ray's temporary folders."""
        left = list(self.processes().values())
        return left + [name for name in (self.folder / "temp_dirs").read_text().split() if Path(name).exists()]


def test_a_ray_of_its_own_is_silent_and_leaves_nothing(tmp_path: Path) -> None:
    program = Program(tmp_path, "0.01")
    program.wait_for("done")
    assert program.process.wait(60) == 0
    assert program.output() == ""
    assert program.left_behind() == []
    assert list(program.home.rglob("*")) == []
    assert Path((tmp_path / "temp_dirs").read_text()).parent.stat().st_mode & 0o077 == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["ray"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_every_process_ends_it_at_once(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the group; SLURM signals lanes and Ray's servers as well."""
    program = Program(tmp_path, "600")
    program.wait_for("started")
    for process in [program.process.pid] if number == signal.SIGINT else program.processes():
        (os.killpg if number == signal.SIGINT else os.kill)(process, number)
    assert program.process.wait(120) == 1  # some seconds on an idle machine, and packs last ten minutes
    assert program.output() == f"stopped by {number.name}\n"
    assert program.left_behind() == []
