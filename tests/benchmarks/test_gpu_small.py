"""The benchmark of small proxies on the CPU: which baseline is the strongest, that it trains, one run."""

from __future__ import annotations

import importlib
import inspect
import json
import math
from types import SimpleNamespace

import pytest
import torch

from mup_tune.shape import load_shape


class Simulated:
    """A GPU and its clock: a step takes ``seconds(recipe)`` or fails with it, and building takes a second."""

    is_cuda = True

    def __init__(self, scripts, monkeypatch, seconds):
        self.seconds, self.now, self.built = seconds, 0.0, []
        monkeypatch.setattr(scripts.replayed, "seconds_a_step", lambda step, device: step())
        monkeypatch.setattr(scripts.replayed, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def build(self, recipe):
        self.now += 1.0
        self.built.append(recipe)
        found = self.seconds(recipe)
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(recipe=recipe, step=lambda: found)

    def empty(self) -> None: ...

    def held(self) -> tuple[int, int]:
        return 10, 20

    def peaks(self) -> tuple[int, int]:
        return 110, 220


@pytest.fixture
def fastest(scripts, monkeypatch):
    def made(seconds, until=math.inf, kernels=True, seq_len=128):
        world = Simulated(scripts, monkeypatch, seconds)
        return world, scripts.replayed.Fastest(world.build, world, seq_len, kernels=kernels, until=until)

    return made


def test_the_fastest_recipe_counts_and_slow_chunks_are_not_compiled(scripts, fastest):
    eager = {16: 5.0, 32: 3.0, 64: 4.0, 128: 9.0}

    def seconds(recipe):
        own = 2.5 if recipe.kernels else eager[recipe.chunk] + (not recipe.autocast)
        return own - 1 if recipe.way == scripts.replayed.COMPILED else own

    world, found = fastest(seconds)
    best = found()
    assert (best.recipe.way, best.recipe.kernels, best.recipe.chunk) == (scripts.replayed.COMPILED, True, 128)
    compiled = [each for each in world.built if each.way != scripts.replayed.EAGER and not each.kernels]
    assert {each.chunk for each in compiled} == {32, 64}
    assert {each.autocast for each in compiled} == {True, False}
    assert found.fastest.peaks == (100, 200)
    count = len(world.built)
    assert found() is best
    assert len(world.built) == count


def test_a_recipe_that_fails_leaves_the_others(scripts, fastest, capsys):
    def seconds(recipe):
        return 1.0 if recipe.way == scripts.replayed.EAGER else RuntimeError("no compiler\nat all")

    _, found = fastest(seconds, kernels=False)
    assert found().recipe.way == scripts.replayed.EAGER
    assert {each.error for each in found.tried} == {"", "RuntimeError: no compiler"}
    _, found = fastest(lambda recipe: ValueError("no GPU"), kernels=False)
    with pytest.raises(RuntimeError, match=r"^ValueError: no GPU$"):
        found()


def test_the_budget_ends_the_search(fastest):
    world, found = fastest(lambda recipe: 1.0, until=2.5)
    found()
    assert len(world.built) == 3
    world, found = fastest(lambda recipe: 1.0 if recipe.chunk == 64 else ValueError(), until=0.0)
    assert found().recipe.chunk == 64
    assert len(world.built) == 3


@pytest.mark.parametrize("autocast", [True, False])
def test_the_replayed_model_trains_as_the_plain_one(scripts, on_the_cpu, tiny, monkeypatch, autocast):
    """Same init and batches: the losses of its steps are the plain baseline's, whatever the scan's chunk."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    shape = load_shape(str(tiny))
    batches = [scripts.sides.Batches(40, 4, 32, seed).draw() for seed in range(2)]
    torch.manual_seed(0)
    plain = scripts.sides.Baseline(shape, batches[:1], "cpu")
    for _ in range(scripts.replayed.WARM_UP):
        plain.step()
    plain._batches = iter([batches[1], batches[0]])
    torch.manual_seed(0)
    recipe = scripts.replayed.Recipe(scripts.replayed.COMPILED, False, 16, autocast)
    replayed = scripts.replayed.Replayed(shape, batches, "cpu", recipe)
    assert replayed.loss() == pytest.approx(plain.loss(), rel=2e-3)
    replayed._batches = iter([batches[1], batches[0]])
    for _ in range(2):
        plain.step()
        replayed.step()
        assert replayed.loss() == pytest.approx(plain.loss(), rel=2e-3)
    assert torch.get_float32_matmul_precision() == "highest"


def test_code_of_transformers_comes_back(scripts, on_the_cpu, monkeypatch):
    """A baseline that runs in turn with others finds the kernels that it was built with."""
    falcon = importlib.import_module(scripts.sides.FALCON)
    plain = falcon.mamba2_chunk_scan
    kernel = inspect.unwrap(plain)

    def wrapped() -> None: ...

    wrapped.__wrapped__ = kernel
    monkeypatch.setattr(falcon, "mamba2_chunk_scan", wrapped)
    with scripts.sides.in_pytorch():
        assert falcon.mamba2_chunk_scan is kernel
    assert falcon.mamba2_chunk_scan is wrapped


def test_one_run_of_it_all(scripts, on_the_cpu, tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(scripts.rounds, "VISIT_S", 0.01)
    report = tmp_path / "small.json"
    size = ["--sizes", str(tiny), "--rows", "2", "--seq-len", "32", "--members", "1", "3"]
    scripts.small.main(["--device", "cpu", "--rounds", "2", "--json", str(report), *size])
    printed, written = capsys.readouterr().out, json.loads(report.read_text())
    (cell,) = written["cells"]
    names = [(side["side"], side["members"]) for side in cell["sides"]]
    assert names == [
        ("transformers", 1),
        ("ours, graph", 1),
        ("ours, graph", 3),
        ("ours, graph, fp32", 1),
        ("ours, graph, fp32", 3),
        ("transformers, replayed", 1),
    ]
    base, _, three, *_, replayed = cell["sides"]
    assert all(len(side["seconds"]) == 2 and 2 < side["loss"] < 5 for side in cell["sides"])  # ln 40 = 3.7
    assert three["tokens_per_s"] == pytest.approx(3 * 64 / three["step_s"])
    assert three["over_baseline"] == pytest.approx(three["tokens_per_s"] / base["tokens_per_s"])
    assert three["over_replayed"] == pytest.approx(three["tokens_per_s"] / replayed["tokens_per_s"])
    assert "PyTorch scan in chunks of" in replayed["note"]
    assert all(each["seconds"] for each in cell["tried"])
    assert len(printed.splitlines()) == 4 + len(names)
