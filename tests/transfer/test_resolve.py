from __future__ import annotations

from pathlib import Path

import pytest

from mup_tune.errors import UserError
from mup_tune.settings import Settings
from mup_tune.shape import Shape
from mup_tune.transfer.resolve import Tuned, at_batch, resolve, warnings
from mup_tune.trial import Budget


def test_a_run_gives_its_incumbent_budget_and_proxy(
    run_folder: Path, tuned: Settings, budget: Budget, proxy: Shape
) -> None:
    source = resolve(str(run_folder))
    assert (source.settings, source.budget) == (tuned, budget)
    assert source.proxy is not None
    assert source.proxy.content_hash() == proxy.content_hash()
    assert "first" in source.origin
    assert "quickstart" in source.origin


def test_a_run_without_incumbent_says_so(run_folder: Path) -> None:
    (run_folder / "settings" / "incumbent.yaml").unlink()
    with pytest.raises(UserError, match="no incumbent yet"):
        resolve(str(run_folder))


def test_what_is_neither_run_nor_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        resolve(str(tmp_path))
    with pytest.raises(UserError, match="no such run folder or settings file"):
        resolve("runs/nowhere")
    with pytest.raises(UserError, match="falcon-h1-published"):
        resolve("falcon-h1-publishd")
    with pytest.raises(UserError, match="no such file"):
        resolve(str(tmp_path / "absent.yaml"))
    with pytest.raises(UserError, match="relative to a proxy"):
        resolve("untuned")


def test_a_settings_file_has_no_budget(tmp_path: Path, tuned: Settings) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(tuned.to_yaml())
    source = resolve(str(path))
    assert source.settings == tuned
    assert source.budget is None
    assert resolve("falcon-h1-published").settings.name == "falcon-h1-published"


def test_base_equal_to_target_is_loud(same_widths: Tuned, target: Shape) -> None:
    assert "NO WIDTH SCALING" in " ".join(warnings(same_widths, target))
    wider = target.model_copy(update={"d_ff": 256})
    assert "NO WIDTH SCALING" not in " ".join(warnings(same_widths, wider))
    deeper = target.model_copy(update={"n_layers": 5})
    assert len(warnings(same_widths, deeper)) == 2  # depth is no width: still loud, and the depth is named


def test_a_depth_rule_silences_the_depth_warning(source: Tuned, target: Shape) -> None:
    deeper = target.model_copy(update={"n_layers": 7})
    assert any("depth 2 → 7" in each for each in warnings(source, deeper))
    deep = Tuned(source.settings.model_copy(update={"depth_rule": "completep"}), "a test")
    assert not any("depth" in each for each in warnings(deep, deeper))


def test_another_batch_moves_eta_by_the_square_root_and_nothing_else(source: Tuned) -> None:
    scaled = at_batch(source, 128 * 9)
    before, after = source.settings, scaled.settings
    assert after.eta == pytest.approx(3 * before.eta, rel=1e-12)
    assert after.lam == pytest.approx(before.lam, rel=1e-12)
    assert after.multipliers == before.multipliers
    assert (scaled.batch_tokens, scaled.budget) == (1152, source.budget)
    with pytest.raises(UserError, match="--batch-tokens"):
        at_batch(source, 0)
    with pytest.raises(UserError, match=r"--batch-tokens.*without a run"):
        at_batch(Tuned(before, "the settings 'mine.yaml'"), 128)


def test_vocabularies_are_compared_where_the_proxy_is_known(source: Tuned, target: Shape, proxy: Shape) -> None:
    assert any("264" in each and "512" in each for each in warnings(source, target))
    assert not any("vocab" in each for each in warnings(source, target.model_copy(update={"vocab_size": 264})))
    without_run = Tuned(source.settings, "a file")
    assert not any("vocab" in each for each in warnings(without_run, target))
