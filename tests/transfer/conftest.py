from __future__ import annotations

from pathlib import Path

import pytest
from exporting import BETTER, export_hf, make_run

from mup_tune.multipliers import Base
from mup_tune.settings import Settings, falcon_h1_published, untuned
from mup_tune.shape import Shape, load_shape
from mup_tune.transfer.resolve import Tuned
from mup_tune.trial import Budget


@pytest.fixture(scope="session")
def proxy() -> Shape:
    return load_shape("cpu-32")


@pytest.fixture(scope="session")
def target() -> Shape:
    """Twice the proxy's widths, a gated norm and two groups: every kind of parameter there is."""
    return Shape(
        name="tiny",
        d_model=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        d_ssm=64,
        ssm_head_dim=16,
        d_state=32,
        n_groups=2,
        d_ff=128,
        vocab_size=512,
        gated_norm=True,
    )


@pytest.fixture(scope="session")
def tuned(proxy: Shape) -> Settings:
    """Settings in which no two groups agree on anything."""
    start = untuned(proxy)
    values = {name: 1 + 0.03 * index for index, name in enumerate(start.multipliers)}
    return start.with_values({**values, "elr": 0.02, "ewd": 5.0}, name="tuned")


@pytest.fixture(scope="session")
def budget() -> Budget:
    return Budget(
        seq_len=32,
        batch_tokens=128,
        total_tokens=12_800,
        warmup_tokens=1_280,
        decay_tokens=2_560,
        power_onset_tokens=3_840,
        lr_decay_to=0.05,
        val_tokens=128,
        beta2=0.9,
        clip_norm=0.5,
    )


@pytest.fixture(scope="session")
def source(tuned: Settings, budget: Budget, proxy: Shape) -> Tuned:
    return Tuned(tuned, "a test", budget, proxy)


@pytest.fixture(scope="session")
def export(source: Tuned, target: Shape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a run's settings at the tiny target. Read only."""
    out = tmp_path_factory.mktemp("transfer") / "tiny"
    export_hf(source, target, out)
    return out


@pytest.fixture
def run_folder(tmp_path: Path, tuned: Settings, budget: Budget, proxy: Shape) -> Path:
    """A run that confirmed its incumbent."""
    (tmp_path / "runs").mkdir()
    return make_run(tmp_path / "runs" / "first", tuned, budget, proxy, BETTER)


@pytest.fixture(scope="session")
def published() -> Tuned:
    return Tuned(falcon_h1_published(), "the settings 'falcon-h1-published'")


@pytest.fixture(scope="session")
def same_widths(target: Shape) -> Tuned:
    settings = untuned(target)
    return Tuned(settings.model_copy(update={"base": Base.of(target)}), "a test")
