from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mup_tune.errors import UserError
from mup_tune.files import read_yaml, shipped
from mup_tune.run.description import PlanRecord
from mup_tune.search.forecast import forecast, total
from mup_tune.search.plan import Plan, load_plan, plan_of
from mup_tune.search.stages.channels import Channels
from mup_tune.search.stages.confirm import Confirm
from mup_tune.search.stages.elr_ewd import ElrEwd
from mup_tune.search.stages.micro import Micro
from mup_tune.search.stages.surface import SurfaceStage
from mup_tune.search.stages.validate import Validate
from mup_tune.settings import load_settings, untuned
from mup_tune.shape import load_shape

SHIPPED = [
    (path.stem, scale)
    for path in sorted(shipped("sweeps").glob("*.yaml"))
    for scale in read_yaml(path).get("scales", [None])
]
PLAN = """
proxy: cpu-32
seeds: [0, 1]
budget: {seq_len: 32, batch_tokens: 128, total_tokens: 12800, warmup_tokens: 0, decay_tokens: 1280, val_tokens: 1280}
stages:
  - {kind: elr_ewd, name: elr, reference: tuned}
  - {kind: micro, name: first, group: forward}
  - {kind: rope_base, name: rope, lengths: [1, 2]}
  - {kind: joint, axes: [elr, key], trials: 8}
  - {kind: baselines, include: [untuned, random search]}
  - {kind: confirm, against: [tuned, random search]}
scales:
  big: {proxy: cpu-64, stages: {first: {n_seeds: 1, group: most_sensitive}, confirm: {n_seeds: 6}}}
  empty:
"""


def plan(tmp_path: Path, text: str = PLAN, *assignments: str, scale: str | None = None) -> Plan:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return load_plan(str(path), scale, assignments)


@pytest.mark.parametrize(("name", "scale"), SHIPPED)
def test_every_shipped_plan_loads_and_forecasts_at_every_scale(name: str, scale: str | None) -> None:
    loaded = load_plan(name, scale)
    lines = forecast(loaded)
    assert len(lines) == len(loaded.stages)
    for line in lines:
        assert 0 <= line.trials <= line.max_trials
        assert line.max_trials > 0
        assert line.tokens <= line.max_tokens
        assert line.flops <= line.max_flops
    assert total(lines)["trials"] > 20
    assert loaded.header.about
    if scale:
        assert {"cpu", "gpu", "full"} <= set(loaded.scales)
        assert loaded.target is not None
        assert (loaded.shape.vocab_size == loaded.target.vocab_size) == (scale == "full")
        assert (loaded.header.data[0].corpus == "python-stdlib") == (scale == "cpu")
    budget = loaded.header.budget
    for tokens in (budget.total_tokens, budget.warmup_tokens, budget.decay_tokens):
        assert tokens % budget.batch_tokens == 0


def test_the_shipped_plans_cover_the_method() -> None:
    names = {name for name, _ in SHIPPED}
    assert names == {"falcon_h1", "channels", "rope_base", "width_depth", "sensitivity", "elr_basin", "quickstart"}
    whole = load_plan("falcon_h1")
    kinds = [stage.kind for stage in whole.stages]
    assert kinds == ["elr_ewd", "surface", "micro", "rope_base", "baselines", "confirm", "validate"]
    both, surface, *_, confirm, _ = whole.stages
    assert isinstance(both, ElrEwd)
    assert both.elr_offsets
    assert both.ewd_offsets
    assert isinstance(surface, SurfaceStage)
    assert surface.axes == "all"
    assert isinstance(confirm, Confirm)
    # The baseline whose ELR and EWD are tuned together is the one that tokens are told over, at every scale.
    for scale in whole.scales:
        *_, claimed, held = load_plan("falcon_h1", scale).stages
        assert isinstance(claimed, Confirm)
        assert isinstance(held, Validate)
        assert claimed.hardest == held.against[0] == both.reference == "ELR-EWD-tuned untuned"
        assert claimed.horizons
    assert set(confirm.against) >= {"untuned", "ELR-tuned untuned", "falcon-h1-published", "random search"}
    channels = [stage for stage in load_plan("channels").stages if isinstance(stage, Channels)]
    assert "2:1:5" in channels[0].ratios
    assert {order for stage in channels for order in stage.block_orders} == {"SA_M", "SAM", "S_A_M"}


def test_an_overlay_changes_fields_of_a_stage_by_its_name(tmp_path: Path) -> None:
    base, big, empty = (plan(tmp_path, scale=scale) for scale in (None, "big", "empty"))
    assert [type(stage) for stage in big.stages] == [type(stage) for stage in base.stages]
    changed = big.stages[1]
    assert isinstance(changed, Micro)
    assert (changed.n_seeds, changed.group, changed.name) == (1, "most_sensitive", "first")
    last = big.stages[-1]  # it has no name, so its kind stands for it
    assert isinstance(last, Confirm)
    assert (last.n_seeds, last.against) == (6, ["tuned", "random search"])
    assert big.stages[2] == base.stages[2]
    assert empty.hash == base.hash
    assert base.scales == ("big", "empty")


def test_an_overlay_may_still_replace_the_list(tmp_path: Path) -> None:
    text = PLAN + "  short: {stages: [{kind: elr_ewd}]}\n"
    assert len(plan(tmp_path, text, scale="short").stages) == 1


def test_the_target_is_checked_and_changes_no_hash(tmp_path: Path) -> None:
    base, aimed = plan(tmp_path), plan(tmp_path, PLAN, "target=falcon-h1-7b")
    assert base.resolved()["target"] is None
    assert aimed.resolved()["target"]["d_model"] == 3072
    assert aimed.target is not None
    assert aimed.hash == base.hash
    (tmp_path / "own.yaml").write_text(Path("proxy_models/cpu-64.yaml").read_text().replace("264", "512"))
    own = plan(tmp_path, PLAN, f"target={tmp_path / 'own.yaml'}")
    assert own.target is not None
    assert own.target.vocab_size == 512


WRONG = [
    ("kind: micro", "kind: mirco", "stages[1].kind: unknown stage kind 'mirco'; did you mean 'micro'?"),
    ("kind: micro", "kind: [micro]", "stages[1].kind: unknown stage kind"),
    ("{kind: micro, ", "{", "stages[1]: has no kind (allowed: baselines, basin"),
    ("group: forward", "groop: forward", "stages[1].groop: unknown key 'groop'; did you mean 'group'?"),
    ("group: forward", "group: forwards", "stages[1].group: unknown group 'forwards'; did you mean 'forward'?"),
    ("group: forward", "group: []", "stages[1].group: [] is not allowed: name at least one multiplier"),
    ("group: forward", "group: [kee]", "stages[1].group: unknown multiplier 'kee'; did you mean 'key'?"),
    ("group: forward", "group: forward, offsets: [0]", "stages[1].offsets: [0.0] is not allowed: a grid has"),
    ("group: forward", "group: forward, n_seeds: 3", "stages[1].n_seeds: 3 is more than the plan's 2 seeds"),
    ("lengths: [1, 2]", "lengths: [1, 64]", "Set it to a multiple of 2048"),
    ("lengths: [1, 2]", "lengths: [2, 4]", "stages[2].lengths: [2, 4] is not allowed: 1, the training length"),
    ("axes: [elr, key]", "axes: [elr, kee]", "stages[3].axes: unknown axis 'kee'; did you mean 'key'?"),
    ("axes: [elr, key], ", "top: 99, ", "stages[3].top: top = 99 but earlier stages measure only"),
    ("against: [tuned, random search]", "against: [tund]", "stages[5].against: unknown reference 'tund'; did you mean"),
    ("proxy: cpu-32", "proxy: cpu-33", "proxy: unknown shape 'cpu-33'; did you mean"),
    ("proxy: cpu-32", "proxy: cpu-32\ntarget: falcon-h1-7", "target: unknown shape 'falcon-h1-7'; did you mean"),
    ("proxy: cpu-32", "proxy: cpu-32\nproxi: cpu-64", "proxi: unknown key 'proxi'; did you mean 'proxy'?"),
    ("seeds: [0, 1]", "seeds: []", "seeds: "),
    (
        "{kind: rope_base, name: rope, lengths: [1, 2]}",
        "{kind: channels, ratios: ['2:1:4']}",
        "its parts sum to 7, not 8",
    ),
    (
        "{kind: rope_base, name: rope, lengths: [1, 2]}",
        "{kind: channels, ratios: ['2:1:5', '1:1:6']}",
        "stages[2].ratios: 2:1:5: 'cpu-32' has",
    ),
    (
        "{kind: rope_base, name: rope, lengths: [1, 2]}",
        "{kind: width_depth, depths: [2, 7]}",
        "stages[2].depths: no width of",
    ),
    (
        "seeds: [0, 1]",
        "seeds: [0, 1]\ndata: [{corpus: a, weight: 0.5}, {corpus: b, weight: 0.4}]",
        "sum to 0.9, not to 1",
    ),
]
WRONG_SCALES = [
    ("{first: {n_seeds", "{frist: {n_seeds", "scales.big.stages: unknown stage 'frist'; did you mean 'first'?"),
    ("name: first", "name: elr", "scales.big.stages: unknown stage 'first'"),
    ("{first: {n_seeds", "{elr: 3, first: {n_seeds", "scales.big.stages.elr: 3 must be a mapping of the stage's keys"),
    ("first: {n_seeds: 1", "first: {n_seedz: 1", "stages[1].n_seedz: unknown key 'n_seedz'; did you mean 'n_seeds'?"),
    ("  empty:", "  empty: 3", "scales.empty: 3 must be a mapping of a plan's keys"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "message"), WRONG + WRONG_SCALES)
def test_wrong_plans_are_named_with_file_field_value_and_fix(
    tmp_path: Path, right: str, wrong: str, message: str
) -> None:
    assert right in PLAN
    with pytest.raises(UserError) as caught:
        plan(tmp_path, PLAN.replace(right, wrong, 1), scale="big" if (right, wrong, message) in WRONG_SCALES else None)
    assert "plan.yaml: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("{first: {n_seedz: 1", "plan.yaml: scales.big: stages[1].n_seedz: unknown key 'n_seedz'"),
        ("{frist: {n_seeds: 1", "plan.yaml: scales.big.stages: unknown stage 'frist'"),
    ],
)
def test_an_overlay_that_is_not_asked_for_is_checked_too(tmp_path: Path, overlay: str, message: str) -> None:
    text = PLAN.replace("{first: {n_seeds: 1", overlay)
    for scale in (None, "empty"):
        with pytest.raises(UserError) as caught:
            plan(tmp_path, text, scale=scale)
        assert message in str(caught.value)
    # What is wrong in the plan itself is told as such.
    with pytest.raises(UserError, match=r"plan\.yaml: seedz: unknown key"):
        plan(tmp_path, text.replace("seeds: [0, 1]", "seedz: [0, 1]"))
    with pytest.raises(UserError, match=r"scales\.big: budget\.total_tokens"):
        plan(tmp_path, PLAN.replace("big: {proxy", "big: {budget: {total_tokens: none}, proxy"))


def test_numbers_and_names_that_tables_and_files_cannot_hold_are_refused(tmp_path: Path) -> None:
    assert plan(tmp_path, PLAN, f"seeds=[{2**63 - 1}]").header.seeds == (2**63 - 1,)
    with pytest.raises(UserError, match=r"seeds\[0\]: 9223372036854775808 is not allowed"):
        plan(tmp_path, PLAN, f"seeds=[{2**63}]")
    with pytest.raises(UserError, match=r"stages\[0\]\.reference: a name has at most 150 bytes.*: it has 250"):
        plan(tmp_path, PLAN, f"stages.0.reference={'x' * 250}")
    with pytest.raises(UserError, match=r"stages\[0\]\.name: a name has at most 150 bytes.*: it has 160"):
        plan(tmp_path, PLAN, f"stages.0.name={'é' * 80}")
    with pytest.raises(UserError, match=r"name: a name is one line of text"):
        plan(tmp_path, PLAN, 'name="a\\nb"')


def test_a_stage_named_twice_cannot_be_changed_by_name(tmp_path: Path) -> None:
    text = PLAN.replace("{kind: micro, name: first", "{kind: micro, name: elr").replace("first:", "elr:")
    with pytest.raises(UserError, match=r"scales\.big\.stages: 2 stages are called 'elr'\. Give each a `name`"):
        plan(tmp_path, text, scale="big")


def test_an_unknown_scale_names_the_ones_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plan\.yaml: --scale: unknown scale 'bgi'; did you mean 'big'\?"):
        plan(tmp_path, scale="bgi")
    with pytest.raises(UserError, match=r"this plan has no scales\. Leave it out"):
        plan(tmp_path, PLAN.split("scales:")[0], scale="big")


def test_an_assignment_may_name_one_index_twice() -> None:
    whole = load_plan("falcon_h1", "cpu")
    assert load_plan("falcon_h1", "cpu", ("stages.2.offsets.2=0",)).hash == whole.hash
    wider = load_plan("falcon_h1", "cpu", ("stages.2.offsets.4=6",)).stages[2]
    assert isinstance(wider, Micro)
    assert wider.offsets == (-4, -2, 0, 2, 6)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("seeds=[0, 0]", "names a seed twice"),
        ("stages.².kind=micro", "'²' is not an index below 7"),
        ("stages.99.kind=micro", "'99' is not an index below 7"),
        ("start.x=1", "there is nothing below 'x'"),
        ("seeds=[010]", "'010' is not allowed"),
        ("budget.total_tokens=1:30", "'1:30' is not allowed"),
        ("budget.total_tokens=!!int abc", "not valid YAML"),
    ],
)
def test_nonsense_in_an_assignment_is_named(assignment: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        load_plan("falcon_h1", "cpu", (assignment,))


@pytest.mark.parametrize("value", ["true", "'0.35'", "5e-324", "1e308", ".inf", "0", "-1"])
def test_multipliers_are_numbers_within_bounds(tmp_path: Path, value: str) -> None:
    path = tmp_path / "settings.yaml"
    text = load_plan("quickstart").start.to_yaml()
    path.write_text(text.replace("  key: 1.0\n", f"  key: {value}\n"))
    assert path.read_text() != text
    with pytest.raises(UserError, match=r"multipliers\.key"):
        load_settings(str(path), None)


NAMED = """
proxy: cpu-32
seeds: [0, 1]
budget: {seq_len: 32, batch_tokens: 128, total_tokens: 12800, warmup_tokens: 0, decay_tokens: 1280, val_tokens: 320}
data: {corpus: CORPUS}
stages:
  - {kind: elr_ewd, name: first, settings: FILE, reference: tuned, incumbent: false}
  - {kind: confirm, against: [tuned]}
"""


def test_a_plan_is_what_decides_and_not_where_it_lies(tmp_path: Path) -> None:
    """The content of a file that a stage names decides, and so does a stage's name, a key of the journal."""
    named = tmp_path / "mine.yaml"

    def hash_of(text: str, elr: float = 0.01) -> str:
        named.write_text(untuned(load_shape("cpu-32")).with_values({"elr": elr}).to_yaml())
        (tmp_path / "plan.yaml").write_text(text.replace("FILE", str(named)))
        return load_plan(str(tmp_path / "plan.yaml")).hash

    before = hash_of(NAMED)
    assert hash_of(NAMED) == before
    assert hash_of(NAMED.replace("CORPUS", "/moved/corpus")) == before  # its content has a hash of its own
    assert hash_of(NAMED, elr=0.02) != before
    assert hash_of(NAMED.replace("name: first", "name: other")) != before
    assert hash_of(NAMED.replace("CORPUS", "CORPUS, max_epochs: 3")) != before


def test_settings_that_a_stage_names_are_read_once(tmp_path: Path) -> None:
    named = tmp_path / "mine.yaml"
    named.write_text(untuned(load_shape("cpu-32")).with_values({"elr": 0.01}).to_yaml())
    (tmp_path / "plan.yaml").write_text(NAMED.replace("FILE", str(named)))
    plan = load_plan(str(tmp_path / "plan.yaml"))
    asked = [trial.settings.elr for trial in plan.stages[0].propose(plan.context, plan.state, {})]
    named.unlink()
    assert [trial.settings.elr for trial in plan.stages[0].propose(plan.context, plan.state, {})] == asked
    with pytest.raises(UserError, match=r"mine\.yaml: no such file"):
        load_plan(str(tmp_path / "plan.yaml"))


@pytest.mark.parametrize(
    ("share", "expected"), [("10%", 1280), ("12.5 %", 1536), ("0%", 0), ("1%", 128), ("0.4%", 0), ("100%", 12800)]
)
def test_warmup_and_decay_may_be_shares_in_whole_batches(tmp_path: Path, share: str, expected: int) -> None:
    budget = plan(tmp_path, PLAN.replace("decay_tokens: 1280", f"decay_tokens: {share}")).header.budget
    assert budget.decay_tokens == expected


def test_a_share_follows_the_total_and_is_the_same_plan_as_its_tokens(tmp_path: Path) -> None:
    shared = PLAN.replace("decay_tokens: 1280", "decay_tokens: 10%")
    assert plan(tmp_path, shared).hash == plan(tmp_path, PLAN).hash
    doubled = shared.replace("total_tokens: 12800", "total_tokens: 25600")
    assert plan(tmp_path, doubled).header.budget.decay_tokens == 2560


@pytest.mark.parametrize("share", ["ten%", "-1%", "%", "1e2%"])
def test_what_is_no_share_is_refused(tmp_path: Path, share: str) -> None:
    with pytest.raises(UserError, match=r"budget\.decay_tokens: '.*%' is not allowed"):
        plan(tmp_path, PLAN.replace("decay_tokens: 1280", f"decay_tokens: '{share}'"))


@pytest.mark.parametrize(("name", "scale"), SHIPPED)
def test_a_run_alone_holds_its_whole_plan(name: str, scale: str | None) -> None:
    given = load_plan(name, scale)
    record = PlanRecord.model_validate(json.loads(json.dumps(given.resolved())))
    found = plan_of(record, ["/moved/corpus"] * len(given.header.data), "run")
    assert found.hash == given.hash
    assert found.resolved()["stages"] == given.resolved()["stages"]
