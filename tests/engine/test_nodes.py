"""A sweep on several nodes that loses a node and a worker: nothing is lost, and nothing else runs again."""

from __future__ import annotations

import contextlib
import csv
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mup_tune.data.prepare import prepare
from mup_tune.engine import ray as driver
from mup_tune.engine.events import Event, Finished, Lost, Started
from mup_tune.run.journal import Journal
from mup_tune.search import loop
from mup_tune.search.execute import execute, open_sweep
from mup_tune.search.plan import load_plan
from mup_tune.trial import Pack

pytestmark = pytest.mark.ray
PLAN = """
proxy: cpu-32
seeds: [0]
data: {corpus: CORPUS}
budget: {seq_len: 32, batch_tokens: 128, total_tokens: 6400, warmup_tokens: 0, decay_tokens: 1280, val_tokens: 640}
stages:
  - {kind: elr_ewd, elr_offsets: [-2, -1, 0, 1], ewd_offsets: [], extend: 0}
"""


@contextlib.contextmanager
def nodes(count: int, home: Path) -> Iterator[tuple[Any, Any]]:
    """A cluster of ``count`` nodes with a core each, and the one of them that may die."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        for name, value in driver.DRIVER_ENV.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 2**27}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            doomed = [cluster.add_node(**node, wait=False) for _ in range(count - 1)][-1]
            cluster.wait_for_nodes()
            yield cluster, doomed
        finally:
            cluster.shutdown()


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packs of one member: composition follows timings, and decides the last bit of a loss."""
    monkeypatch.setattr(loop, "SIZES", (1,))
    (tmp_path / "text").mkdir()
    for index in range(60):
        (tmp_path / "text" / f"{index}.txt").write_text(f"{index} is followed by {index + 1}. " * 40)
    prepare([tmp_path / "text"], tmp_path / "corpus", tokenizer="bytes", val_fraction=0.2)
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.replace("CORPUS", str(tmp_path / "corpus")))
    return path


def swept(plan: Path, seeds: list[int], run: Path, address: str | None, on_event: Callable[[Event], None]) -> Journal:
    loaded = load_plan(str(plan), assignments=(f"seeds={seeds}",))
    with open_sweep(loaded, run) as (folder, sweep):
        execute(loaded, folder, sweep, "ray" if address else "inline", address, None, on_event)
    return Journal(folder, writable=False)


def rows(run: Path) -> dict[str, dict[str, str]]:
    """The table of trials by hash, without what tells of time."""
    with (run / "tables" / "trials.csv").open() as file:
        found = {row["hash"]: row for row in csv.DictReader(file)}
    return {key: {name: row[name] for name in ("stage", "status", "loss", "loss_se")} for key, row in found.items()}


def kill_a_lane() -> None:
    psutil = pytest.importorskip("psutil")
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Lane"):
                process.kill()
                return
    raise AssertionError("no lane is there")


@pytest.mark.parametrize(
    ("kills", "seeds"),
    [
        pytest.param(["node"], [0, 1], id="node"),
        pytest.param(["lane", "node"], list(range(20)), id="lane-and-node", marks=pytest.mark.slow),
    ],
)
def test_what_was_lost_runs_once_more_and_alone(kills: list[str], seeds: list[int], plan: Path, tmp_path: Path) -> None:
    """Each kill strikes when every lane is in the middle of a stage."""
    events: list[Event] = []
    to_kill, at_work = list(kills), set[str]()
    count = 1 + len(kills)

    with nodes(count, tmp_path) as (cluster, doomed):

        def meddle(event: Event) -> None:
            events.append(event)
            if isinstance(event, Finished) and isinstance(event.work, Pack):
                at_work.add(event.lane)
            if isinstance(event, Started) and len(at_work) == count and to_kill:
                at_work.clear()
                if to_kill.pop(0) == "lane":
                    kill_a_lane()
                else:
                    cluster.remove_node(doomed, allow_graceful=False)

        journal = swept(plan, seeds, tmp_path / "ray", cluster.address, meddle)
    assert to_kill == []
    lost = [event.work.id for event in events if isinstance(event, Lost) and isinstance(event.work, Pack)]
    started = Counter(event.work.id for event in events if isinstance(event, Started) and isinstance(event.work, Pack))
    assert len(lost) == len(kills)
    assert [pack for pack, times in started.items() if times > 1] == [pack for pack in started if pack in lost]
    assert sorted(pack["pack"] for pack in journal.packs()) == sorted(started)
    journal.close()
    swept(plan, seeds, tmp_path / "inline", None, lambda _: None).close()
    assert len(rows(tmp_path / "ray")) == sum(started.values()) - len(lost)
    assert rows(tmp_path / "ray") == rows(tmp_path / "inline")
