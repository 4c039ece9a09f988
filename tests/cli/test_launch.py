"""Scripts for SLURM: quoted, checked by bash and shellcheck, and played with stand-ins of its programs."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from program import mup_tune

PLAN = """
proxy: cpu-32
seeds: [0]
budget: {seq_len: 32, batch_tokens: 64, total_tokens: 640, warmup_tokens: 0, decay_tokens: 0, val_tokens: 64}
stages: [{kind: elr_ewd}]
"""
SWEEP = """#!/usr/bin/env bash
echo "$@" > sweep.args
trap 'echo stopped >> sweep.args; exit 143' TERM
mkdir -p "runs here/curves"
[ -e idle ] || touch "runs here/curves/pack.parquet"
touch sweeping
while [ ! -e finish ]; do sleep 0.05; done
exit 3
"""
RAY = """#!/usr/bin/env bash
echo "$@" >> ray.args
printenv RAY_AUTH_TOKEN >> ray.token
if [ "$1" = health-check ]; then [ -e head ]; exit; fi
case "$*" in
  *--head*) sleep 0.3; touch head ;;
  *) [ -e head ] || touch too-early ;;
esac
exec sleep 60
"""
SRUN = """#!/usr/bin/env bash
while [ "${1#--}" != "$1" ]; do shift; done
trap 'kill $(jobs -p); exit 143' TERM
for task in 1 0; do SLURM_PROCID=$task "$@" & done
wait
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plan, and programs in front of the real ones."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(PLAN)
    (tmp_path / "bin").mkdir()
    for name, text in {
        "mup-tune": SWEEP,
        "ray": RAY,
        "srun": SRUN,
        "scontrol": "#!/bin/sh\necho $* > scontrol.args\n",
    }.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def script(place: Path, *options: object) -> Path:
    done = mup_tune("launch", "slurm", "plan.yaml", "--run", "runs here", "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    return place / "runs here.slurm.sh"


def test_loggers_go_along_with_the_sweep(place: Path) -> None:
    pytest.importorskip("tensorboard")
    text = script(place, "--log", "tensorboard").read_text()
    assert f"--run {shlex.quote(str(place / 'runs here'))} --log tensorboard" in text


def started(place: Path, *options: object) -> subprocess.Popen[str]:
    """The script as SLURM would start it, once its sweep is at work."""
    path = script(place, "--cpus", 1, *options)
    text = path.read_text()
    own = next(line for line in text.splitlines() if line.startswith("export PATH="))
    path.write_text(text.replace(own, f'{own}\nexport PATH="{place}/bin:$PATH"'))
    environment = {**os.environ, "SLURM_JOB_ID": f"{os.getpid()}", "SLURM_CPUS_PER_TASK": "1"}
    process = subprocess.Popen(["bash", str(path)], cwd=place, env=environment, text=True)
    deadline = time.monotonic() + 60
    while not (place / "sweeping").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("nodes", [1, 2])
def test_bash_and_shellcheck_find_nothing(place: Path, nodes: int) -> None:
    path = script(
        place, "--nodes", nodes, "--set", "seeds=[0, 1]", "--partition", "gpu-a,gpu-b", "--time", "1-12:00:00"
    )
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    assert subprocess.run(["shellcheck", str(path)], check=False).returncode == 0


def test_every_option_is_in_it_and_what_users_write_is_quoted(place: Path) -> None:
    hostile = "data.corpus='$(touch hacked) \"; touch hacked'"
    text = script(place, "--nodes", 3, "--gpus", 4, "--cpus", 32, "--time", "01:00:00", "--set", hostile).read_text()
    for line in ("--nodes=3", "--gpus-per-node=4", "--cpus-per-task=32", "--time=01:00:00", "--requeue"):
        assert f"#SBATCH {line}\n" in text
    assert f'#SBATCH --output="{place}/runs here.slurm-%j.log"\n' in text
    (place / "finish").touch()
    process = started(place, "--set", hostile)
    assert process.wait(60) == 3
    arguments = (place / "sweep.args").read_text()
    assert arguments == f"sweep plan.yaml --run {place}/runs here --set {hostile}\n"
    assert not (place / "hacked").exists()


def test_nodes_wait_for_the_head_and_the_token_is_on_no_command_line(place: Path) -> None:
    process = started(place, "--nodes", 2)
    (place / "finish").touch()
    assert process.wait(60) == 3  # the sweep's own
    assert not (place / "too-early").exists()
    arguments = (place / "ray.args").read_text()
    heads = [line for line in arguments.splitlines() if "--head" in line]
    workers = [line for line in arguments.splitlines() if line.startswith("start") and "--head" not in line]
    assert (len(heads), len(workers)) == (1, 1)
    (token,) = set((place / "ray.token").read_text().split())
    assert len(token) == 64
    assert token not in arguments + (place / "sweep.args").read_text()
    assert "--address" in (place / "sweep.args").read_text()
    assert not Path(f"/tmp/ray-{os.getpid()}").exists()


@pytest.mark.parametrize(
    ("number", "idle", "requeued"),
    [(signal.SIGTERM, False, False), (signal.SIGUSR1, False, True), (signal.SIGUSR1, True, False)],
)
def test_signals_reach_the_sweep_and_only_a_time_limit_after_some_work_requeues(
    place: Path, number: signal.Signals, idle: bool, requeued: bool
) -> None:
    if idle:
        (place / "idle").touch()
    process = started(place)
    process.send_signal(number)
    assert process.wait(60) == 143
    assert (place / "sweep.args").read_text().endswith("stopped\n")
    assert (place / "scontrol.args").exists() == requeued


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--time", "1:00; rm"), "--time: '1:00; rm' is not a word"),
        (("--partition", "a\nb"), "--partition"),
        (("--set", "sedes=[1]"), "did you mean 'seeds'"),
        (("--log", "wand"), "did you mean 'wandb'"),
        (("--template", "plan.yaml/x"), "--template"),
        (("--run", 'a"b'), "SLURM cannot quote this path"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(place: Path, options: tuple[str, ...], said: str) -> None:
    done = mup_tune("launch", "slurm", "plan.yaml", "--run", "run", "--dry-run", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert not list(place.glob("*.sh"))


def test_a_template_of_ones_own_and_a_machine_without_slurm(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "mine").write_text("{{ sweep }} on {{ nodes }}\n")
    text = script(place, "--template", "mine", "--nodes", 5).read_text()
    assert text == f"mup-tune sweep plan.yaml --run '{place}/runs here' on 5\n"
    (place / "mine").write_text("{{ unknown }}\n")
    assert "--template" in mup_tune("launch", "slurm", "plan.yaml", "--run", "r", "--template", "mine").stderr
    monkeypatch.setenv("PATH", str(place))
    done = mup_tune("launch", "slurm", "plan.yaml", "--run", "run")
    assert done.returncode == 2
    assert "sbatch is not installed" in done.stderr
    assert (place / "run.slurm.sh").is_file()
