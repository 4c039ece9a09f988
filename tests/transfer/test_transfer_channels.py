from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from exporting import conclude, export_hf
from typer import Typer
from typer.testing import CliRunner

from mup_tune.channels import Ratio, nearest
from mup_tune.cli import transfer as command
from mup_tune.errors import UserError
from mup_tune.findings import Finding
from mup_tune.findings.shapes import Ranking, ShapePoint, ShapeSet
from mup_tune.roles import role_table
from mup_tune.settings import Settings, falcon_h1_published
from mup_tune.shape import Shape, load_shape
from mup_tune.transfer.channels import resplit
from mup_tune.transfer.resolve import Tuned

PROXY = load_shape("cpu-channels")


def point(channels: str, losses: list[float | None], order: str = "SA_M") -> ShapePoint:
    return ShapePoint(
        label=f"{channels or 'depth'} ({order})",
        shape=PROXY.model_copy(update={"block_order": order}),
        channels=channels,
        parameters=1,
        flops_per_token=1.0,
        losses=dict(enumerate(losses)),
        elr_offset=0.0,
        at_edge=False,
        gain=None,
        tokens_per_s=1.0,
        members=1,
        on_front=False,
    )


def write_findings(run_folder: Path, settings: Settings, *stages: list[ShapePoint]) -> None:
    ranking = Ranking(order=(), p_values={})
    texts = {"noun": "channel ratio", "prefix": "", "elr_tuned": True, "total_tokens": 1}
    results = [ShapeSet.model_validate({"points": tuple(points), "ranking": ranking, **texts}) for points in stages]
    findings = [
        Finding(stage=f"{n}-stage", kind="channels", title="", before=settings, after=settings, result=result)
        for n, result in enumerate(results)
    ]
    conclude(run_folder, findings)


POINTS = [
    point("2:1:5", [2.0, 2.2]),
    point("1:1:6", [1.9, 2.1]),  # the lowest that ended, and that transformers can build
    point("3:1:4", [1.0, None]),
    point("4:1:3", [1.5, 1.5], "SAM"),
    point("", [0.5, 0.5]),
]


def test_from_run_takes_the_lowest_mean_loss_in_sa_m_that_ended_on_every_seed(
    run_folder: Path, tuned: Settings
) -> None:
    # Its stages are one comparison: ratios in the first, the others and block orders in the second.
    write_findings(run_folder, tuned, POINTS[1:3], [POINTS[0], *POINTS[3:]], [point("", [0.2])])
    target = load_shape("falcon-h1-3b")
    shape = resplit(target, "from-run", str(run_folder))
    expected, rounded = nearest(target, Ratio(1, 1, 6))
    assert shape.model_dump() == expected.model_dump()
    assert shape.name == "falcon-h1-3b-1:1:6"
    for said in (
        target.note,
        "1:1:6 (the lowest mean loss, 2.0000",
        "of 2 ratios",
        "0-stage, 1-stage",
        "4:1:3 (SAM) had 1.5",
    ):
        assert said in shape.note
    assert rounded
    assert all(note in shape.note for note in rounded)


def test_a_run_without_a_usable_channels_stage_says_so(run_folder: Path, tuned: Settings, target: Shape) -> None:
    with pytest.raises(UserError, match="no concluded channels stage"):
        resplit(target, "from-run", str(run_folder))
    write_findings(run_folder, tuned, [point("", [0.5])])
    with pytest.raises(UserError, match="no concluded channels stage"):
        resplit(target, "from-run", str(run_folder))
    with pytest.raises(UserError, match="needs a run folder, and 'falcon-h1-published' is none"):
        resplit(target, "from-run", "falcon-h1-published")


def test_a_run_whose_sa_m_ratios_all_diverged_says_so(run_folder: Path, tuned: Settings, target: Shape) -> None:
    write_findings(run_folder, tuned, POINTS[2:])
    with pytest.raises(UserError, match="no ratio in block order SA_M trained to its end"):
        resplit(target, "from-run", str(run_folder))


@pytest.mark.parametrize("name", ["falcon-h1-0.5b", "falcon-h1-7b"])
def test_transformers_builds_the_target_at_the_new_channels(name: str, tmp_path: Path, published: Tuned) -> None:
    shape = resplit(load_shape(name), "2:1:5", "falcon-h1-published")
    export = export_hf(published, shape, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["mamba_d_ssm"], config["intermediate_size"]) == (shape.d_ssm, shape.d_ff)
    forward = role_table(shape, falcon_h1_published()).forward
    assert config["ssm_out_multiplier"] == forward["ssm_out"] == pytest.approx(2**8.5 / shape.d_ssm)
    assert export.target == f"{name}-2:1:5"
    assert export.verification["hf"].startswith("verified with transformers")
    assert "SSM:attention:MLP 2:1:5 (as asked)" in export.note
    assert export.note in (tmp_path / "out" / "README.md").read_text()


def test_orders_that_transformers_does_not_build_leave_no_export(source: Tuned, target: Shape, tmp_path: Path) -> None:
    for order in ("SAM", "S_A_M"):
        with pytest.raises(UserError, match=r"block_order.*builds SA_M only"):
            export_hf(source, target.model_copy(update={"block_order": order}), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def invoke(*arguments: str) -> Any:
    app = Typer()
    app.callback()(lambda: None)
    command.register(app)
    return CliRunner().invoke(app, ["transfer", *arguments])


def test_the_command_shares_channels_anew(run_folder: Path, tuned: Settings, tmp_path: Path) -> None:
    write_findings(run_folder, tuned, POINTS)
    into = [str(run_folder), "--target", "cpu-channels", "--out"]
    done = invoke(*into, str(tmp_path / "one"), "--channels", "from-run", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["target"] == "cpu-channels-1:1:6"
    assert load_shape(str(tmp_path / "one" / "shape.yaml")).d_ssm == 32
    refused = invoke(*into, str(tmp_path / "two"), "--channels", "2:1:6")
    assert isinstance(refused.exception, UserError)
    assert "sum to 9" in str(refused.exception)
    assert not (tmp_path / "two").exists()
