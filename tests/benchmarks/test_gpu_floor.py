"""The GPU benchmark on the CPU: floors, batches, who is timed when, what a profile saw, one run."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import DeviceType

from mup_tune.shape import Shape, load_shape


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    def count(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    n_kv, n_groups, ssm_head_dim = count(1, 4), count(1, 2), 8 * count(1, 8)
    return Shape(
        d_model=8 * count(1, 100),
        n_layers=count(1, 40),
        n_kv_heads=n_kv,
        n_heads=n_kv * count(1, 4),
        head_dim=8 * count(1, 16),
        d_ssm=ssm_head_dim * n_groups * count(0, 10),
        ssm_head_dim=ssm_head_dim,
        n_groups=n_groups,
        d_state=count(1, 256),
        d_ff=count(1, 4000),
        vocab_size=count(2, 200_000),
        gated_norm=draw(st.booleans()),
    )


@given(shapes(), st.integers(1, 64), st.integers(1, 2048))
def test_operations_add_up_to_the_models_flops(scripts, shape, rows, seq_len):
    operations = scripts.floor.operations(shape, rows * seq_len, seq_len)
    assert sum(each.flops for each in operations) == pytest.approx(shape.flops_per_token(seq_len) * rows * seq_len)
    assert all(each.bytes > 0 for each in operations)


@given(shapes(), st.floats(1e9, 1e16), st.floats(1e9, 1e14), st.integers(1, 64))
def test_a_floor_is_below_perfect_kernels_and_above_either_bound(scripts, shape, flops, bandwidth, members):
    operations = scripts.floor.operations(shape, 4096, 1024)
    machine = scripts.floor.Machine(flops, bandwidth)
    found = scripts.floor.floor(operations, machine, members)
    slack = 1 + 1e-9
    assert found.total <= found.kernels * slack
    assert members * sum(each.flops for each in operations) / flops <= found.total * slack
    assert members * sum(each.bytes for each in operations) / bandwidth <= found.total * slack
    assert found.total == pytest.approx(members * scripts.floor.floor(operations, machine).total)


def test_bytes_of_a_step_by_hand(scripts):
    """gpu-256, 16,384 tokens: logits go through memory five times, optimizer state once each way."""
    shape, N = load_shape("gpu-256"), 16_384
    by_name = {each.name: each for each in scripts.floor.operations(shape, N, 1024)}
    logits, hidden, weight = 2 * N * 32_768, 2 * N * 256, 2 * 256 * 32_768
    head = [each for each in by_name.values() if each.part == "head" and "norm" not in each.name]
    assert sum(each.bytes for each in head) == 5 * logits + 3 * hidden + 3 * weight
    assert by_name["norm + AdamW"].bytes == 30 * shape.matmul_parameters() + 32 * (
        shape.parameters() - shape.matmul_parameters()
    )
    # q 128, k and v 64 each; read and written once forward; out, its gradient and qkv read, the latter's
    # written
    assert by_name["attention"].bytes == 8 * 2 * N * (256 + 128)
    assert by_name["attention backward"].bytes == 8 * 2 * N * (128 + 128 + 256 + 256)
    # z 256, x B C 256 + 128, dt 4
    assert by_name["ssd"].bytes == 8 * 2 * N * (256 + 384 + 4 + 256)
    assert by_name["ssd backward"].bytes == 8 * 2 * N * (2 * (256 + 384 + 4) + 256)
    # 15 of 16 norms have a branch: residual 4, branch 2 → sum 4, normed 2
    assert by_name["add + norm"].bytes == N * 256 * (15 * 12 + 6)


def test_batches_are_like_text(scripts):
    batch = scripts.sides.Batches(1000, 64, 512).draw()
    tokens, targets, documents = (each.long() for each in batch)
    assert 0.5 < (tokens == 0).sum() / (tokens == 1).sum() / (3.7 / 2.7) < 1.5
    assert int(tokens.max()) < 1000
    assert torch.equal(targets[:, :-1], tokens[:, 1:])
    assert (targets[:, -1] == -100).all()
    assert (documents[:, 0] == 0).all()
    assert set(documents.diff(dim=1).unique().tolist()) == {0, 1}
    assert 3 < documents[:, -1].float().mean() + 1 < 5
    assert not torch.equal(scripts.sides.Batches(1000, 64, 512, seed=1).draw().tokens_BT, batch.tokens_BT)


class World:
    """A device whose memory and clock the test keeps, and sides that live on it."""

    name, is_cuda = "simulated", False

    def __init__(self, scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
        self.memory, self.rounds = memory, scripts.rounds
        self.alive, self.peak, self.log = 0, 0, list[str]()
        monkeypatch.setattr(scripts.rounds, "seconds_a_step", self.timed)

    def empty(self) -> None:
        self.peak = self.alive

    def wait(self) -> None: ...

    def peaks(self) -> tuple[int, int]:
        return self.peak, self.peak

    def timed(self, step, _device) -> float:
        return step()

    def side(self, name: str, members: int, needs: int, times: Iterator[float] | None = None):
        world = self

        class Training:
            remarks = ("as simulated",)

            def __init__(self) -> None:
                if world.alive + needs > world.memory:
                    raise torch.OutOfMemoryError
                world.alive += needs
                world.peak = max(world.peak, world.alive)
                world.log.append(f"build {members}")

            def __del__(self) -> None:
                world.alive -= needs if f"build {members}" in world.log else 0

            def step(self) -> float:
                world.log.append(f"time {members}")
                return next(times) if times else 1.0

            def loss(self) -> float:
                return 2.5

        return self.rounds.Side(name, members, Training)


def test_sides_take_turns_and_small_ones_stay(scripts, monkeypatch):
    world = World(scripts, monkeypatch, memory=100)
    times = iter([1.0, 9.0, 2.0])
    sides = [world.side(scripts.rounds.GRAPHED, P, 10 * P, times if P == 2 else None) for P in (1, 2, 8)]
    cell = scripts.rounds.Cell("S", load_shape("cpu-32"), 1000, 100, sides)
    scripts.rounds.run_cell(cell, world, rounds=3, until=float("inf"))
    timed = [entry for entry in world.log if entry.startswith("time")]
    assert timed == ["time 1", "time 2", "time 8"] * 3
    # 10 and 80 fit beside each other, 20 more do not: the small one is built once more and kept, the others
    # each time
    assert [world.log.count(f"build {P}") for P in (1, 2, 8)] == [2, 3, 3]
    assert [side.peak_bytes for side in sides] == [10, 20, 80]
    assert sides[1].step_s == 2.0
    assert cell.speed(sides[1]) == 1000
    assert cell.best() is sides[2]
    assert world.alive == 0


def test_what_does_not_fit_or_fails_leaves_the_others(scripts, monkeypatch):
    world = World(scripts, monkeypatch, memory=100)
    graphed = scripts.rounds.GRAPHED
    sides = [world.side(graphed, P, 20 * P) for P in (1, 2, 4, 8, 16)]
    broken = scripts.rounds.Side("transformers", 1, lambda: 1 / 0)
    cell = scripts.rounds.Cell("S", load_shape("cpu-32"), 1000, 100, [broken, *sides])
    scripts.rounds.run_cell(cell, world, rounds=2, until=float("inf"))
    assert broken.note.startswith("failed: ZeroDivisionError")
    assert [len(side.seconds) for side in sides] == [2, 2, 2, 0, 0]
    assert [side.note for side in sides[3:]] == ["too large"] * 2
    greedy = [world.side(graphed, 1, 10), world.side(graphed, 2, 101)]
    cell = scripts.rounds.Cell("S", load_shape("cpu-32"), 1000, 100, greedy)
    scripts.rounds.run_cell(cell, world, rounds=1, until=float("inf"))
    assert [side.note for side in greedy] == ["", "out of memory"]


def test_the_budget_ends_rounds_and_skips_sides(scripts, monkeypatch):
    world = World(scripts, monkeypatch, memory=100)
    sides = [world.side(scripts.rounds.GRAPHED, P, P) for P in (1, 2)]
    cell = scripts.rounds.Cell("S", load_shape("cpu-32"), 1000, 100, sides)
    scripts.rounds.run_cell(cell, world, rounds=3, until=0.0)
    assert [len(side.seconds) for side in sides] == [1, 0]
    assert sides[1].note == "no time left"


def test_numbers_and_the_table(scripts):
    shape = load_shape("gpu-256")
    machine = scripts.floor.Machine(8e14, 4e12)

    def side(name: str, members: int, *seconds: float):
        return scripts.rounds.Side(name, members, None, list(seconds), peak_bytes=2**31, loss=10.0)

    graphed = scripts.rounds.GRAPHED
    sides = [
        side("transformers", 1, 0.1),
        side(graphed, 1, 0.02),
        side(graphed, 16, 0.18, 0.16, 0.14),
        side(graphed, 32),
    ]
    cell = scripts.rounds.Cell("S", shape, 16_384, 1024, sides)
    found = scripts.gpu.numbers(cell, machine)
    assert found["best_members"] == 16
    assert found["best_over_single_graph"] == pytest.approx(2.0)
    assert found["best_over_baseline"] == pytest.approx(10.0)
    assert found["hours"] == pytest.approx(400 * 200e6 / (16 * 16_384 / 0.16) / 3600)
    row = found["sides"][2]
    assert row["mfu"] == pytest.approx(16 * 16_384 * shape.flops_per_token(1024) / 0.16 / 8e14)
    assert row["spread"] == pytest.approx(0.04 / 0.16)
    assert row["gap"] == pytest.approx(0.16 / row["floor_s"])
    assert row["floor_s"] == pytest.approx(16 * found["sides"][1]["floor_s"])
    lines = scripts.gpu.table([found]).splitlines()
    assert len(lines) == 6
    assert "1,638,400" in lines[3]
    assert "2.00× graphed P = 1, 10.00× transformers" in lines[5]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (
            {"MambaSplitConv1dScanCombinedFnBackward", "ScaledDotProductFlashAttentionBackward0"},
            "mamba-ssm's fused function, causal-conv1d inside it, flash attention",
        ),
        (
            {"MambaChunkScanCombinedFnBackward", "ConvolutionBackward0", "ScaledDotProductCudnnAttentionBackward0"},
            "mamba-ssm's Triton scan, PyTorch convolution, cuDNN attention",
        ),
        ({"ConvolutionBackward0", "BmmBackward0"}, "PyTorch scan, PyTorch convolution, eager attention"),
    ],
)
def test_the_path_is_named_by_what_ran(scripts, nodes, words):
    assert scripts.sides.path_taken(nodes) == words


def test_a_profile_names_products_by_their_sizes(scripts):
    def kernel(name: str, us: float) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, device_type=DeviceType.CUDA, time_range=SimpleNamespace(elapsed_us=lambda: us)
        )

    def product(sizes: list[list[int]], name: str, us: float) -> SimpleNamespace:
        launched = [SimpleNamespace(name=name, duration=us)]
        return SimpleNamespace(name="aten::bmm", device_type=DeviceType.CPU, input_shapes=sizes, kernels=launched)

    small, large = [[4, 64, 8], [4, 8, 16]], [[4, 64, 8], [4, 8, 512]]
    events = [
        *(product(small, "sm90_gemm", 5.0) for _ in range(3)),
        product(large, "sm90_gemm", 50.0),
        *(kernel("sm90_gemm", 5.0) for _ in range(3)),
        kernel("sm90_gemm", 50.0),
        kernel("_norm_kernel", 7.0),
        kernel("_norm_kernel", 9.0),
    ]
    found = scripts.profile.lines(events)
    assert list(found) == ["bmm [4, 64, 8] × [4, 8, 512]", "_norm_kernel", "bmm [4, 64, 8] × [4, 8, 16]"]
    assert [(line.calls, line.us) for line in found.values()] == [(1, 50.0), (2, 16.0), (3, 15.0)]
    text = scripts.profile.profile_table(found, 1e-4)
    assert "kernels 0.081 ms; a graphed step takes 0.100 ms" in text
    operations = scripts.floor.operations(load_shape("gpu-256"), 16_384, 1024)
    text = scripts.profile.floor_table(operations, scripts.floor.Machine(8e14, 4e12), 16)
    assert len(text.splitlines()) == len(operations) + 2


def test_batches_of_whole_rows(scripts, capsys):
    with pytest.raises(SystemExit):
        scripts.gpu.parsed(["--tokens", "1000"])
    assert "--tokens 1000 is no whole number of rows of 1024" in capsys.readouterr().err


def test_one_run_of_it_all(scripts, on_the_cpu, tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scripts.rounds, "VISIT_S", 0.01)
    clock = itertools.count(time.perf_counter(), 0.01)  # the slice has as many steps on every machine
    monkeypatch.setattr(scripts.gpu, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    report = tmp_path / "gpu.json"
    size = ["--sizes", str(tiny), "--tokens", "64", "--seq-len", "32"]
    scripts.gpu.main(["--device", "cpu", "--rounds", "2", "--slice", "2", "--json", str(report), *size])
    printed, written = capsys.readouterr().out, json.loads(report.read_text())
    ((base, ours),) = [cell["sides"] for cell in written["cells"]]
    assert (base["side"], ours["side"]) == ("transformers", "ours, eager")
    assert base["note"].startswith("PyTorch scan, PyTorch convolution")
    assert ours["note"] == ""
    for side in (base, ours):
        assert len(side["seconds"]) == 2
        assert 2 < side["loss"] < 5  # ln 40 = 3.7
    assert ours["over_baseline"] == pytest.approx(ours["tokens_per_s"] / base["tokens_per_s"])
    assert written["slice"]["steps"] == pytest.approx(200, abs=1)
    assert written["slice"]["last_loss"] < written["slice"]["first_loss"]
    assert "tokens/s" in printed
    assert "without a break" in printed


def test_pieces_of_a_step_give_the_same_update(scripts, on_the_cpu, tiny):
    """The baseline's way out of too little memory: gradients of the pieces add up to the whole batch's."""
    shape = load_shape(str(tiny))
    batches = [scripts.sides.Batches(40, 4, 16).draw()]
    found = []
    for pieces in (1, 2):
        torch.manual_seed(0)
        side = scripts.sides.Baseline(shape, batches, "cpu", pieces)
        side.step()
        found.append((side.loss(), next(iter(side.model.parameters())).grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-2)
    assert (found[0][1] - found[1][1]).norm() < 0.03 * found[0][1].norm()  # bf16


def test_a_baseline_too_large_goes_through_in_pieces(scripts, monkeypatch):
    class Small(scripts.sides.Baseline):
        def __init__(self, shape: object, batches: object, device: str, pieces: int) -> None:
            self._path, self._pieces = "a path", pieces

        def step(self) -> None:
            if self._pieces < 4:
                raise torch.OutOfMemoryError

    monkeypatch.setattr(scripts.sides, "Baseline", Small)
    batches = [SimpleNamespace(tokens_BT=torch.zeros(rows, 8)) for rows in (4, 2)]
    assert scripts.sides.baseline(None, batches[:1], "cpu").remarks == ["a path", "steps in 4 pieces"]
    with pytest.raises(torch.OutOfMemoryError):
        scripts.sides.baseline(None, batches[1:], "cpu")
