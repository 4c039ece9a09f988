from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mup_tune.errors import UserError
from mup_tune.run.folder import RunFolder
from mup_tune.settings import Settings
from mup_tune.shape import Shape
from mup_tune.transfer.aim import warnings
from mup_tune.transfer.resolve import Tuned, resolve
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


def test_a_run_without_incumbent_says_so(tmp_path: Path) -> None:
    with RunFolder.create_or_resume(tmp_path / "new", {"name": "x"}, "hash", {"hash": "c0ffee"}):
        pass
    with pytest.raises(UserError, match="no incumbent yet"):
        resolve(str(tmp_path / "new"))


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
    assert "NO WIDTH SCALING" in " ".join(warnings(same_widths, target, "none"))
    wider = target.model_copy(update={"d_ff": 256})
    assert "NO WIDTH SCALING" not in " ".join(warnings(same_widths, wider, "none"))
    deeper = target.model_copy(update={"n_layers": 5})
    found = warnings(same_widths, deeper, "none")
    assert len(found) == 2  # depth is no width: still loud, and the depth is named


def test_depth_is_that_of_the_proxy_not_of_the_base(source: Tuned, target: Shape, published: Tuned) -> None:
    deeper = target.model_copy(update={"n_layers": 7})
    assert any("depth 2 → 7: Falcon-H1 has no depth rule" in each for each in warnings(source, deeper, "none"))
    assert any("depth 2 → 7: completep" in each for each in warnings(source, deeper, "completep"))
    # A sweep that starts from the published settings keeps their base of 66 layers, and trains 2.
    on_published = replace(source, settings=published.settings)
    assert not any("depth" in each for each in warnings(on_published, target, "none"))
    assert any("depth 66 → 7" in each for each in warnings(published, deeper, "none"))


def test_what_nobody_measured_is_called_extrapolation(source: Tuned, target: Shape) -> None:
    measured = replace(source, validated=target.d_model)
    assert not any("in width" in each for each in warnings(measured, target, "none"))
    wider = target.model_copy(update={"d_model": 128})
    assert any("extrapolation in width" in each for each in warnings(measured, wider, "none"))
    longer = warnings(source, target, "none", batch_tokens=256, tokens=25_600)
    assert any("extrapolation in batch: 128 → 256" in each for each in longer)
    assert any("extrapolation in horizon: 12,800 → 25,600" in each for each in longer)
    narrow = target.model_copy(update={"d_model": 16})
    assert any("narrower than the proxy, d_model 32 → 16" in each for each in warnings(source, narrow, "none"))


def test_vocabularies_are_compared_where_the_proxy_is_known(source: Tuned, target: Shape, proxy: Shape) -> None:
    assert any("264" in each and "512" in each for each in warnings(source, target, "none"))
    same = target.model_copy(update={"vocab_size": 264})
    assert not any("vocab" in each for each in warnings(source, same, "none"))
    without_run = Tuned(source.settings, "a file")
    assert not any("vocab" in each for each in warnings(without_run, target, "none"))
