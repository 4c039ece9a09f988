"""Files for KubeRay and SkyPilot: read back as YAML, their shell parts played with stand-ins of programs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from program import mup_tune

PLAN = """
proxy: cpu-32
seeds: [0]
budget: {seq_len: 32, batch_tokens: 64, total_tokens: 640, warmup_tokens: 0, decay_tokens: 0, val_tokens: 64}
stages: [{kind: elr_ewd}]
"""
SWEEP = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
here, arguments = pathlib.Path(os.environ["PLACE"]), sys.argv[1:]
(here / "sweep.json").write_text(json.dumps(arguments))
run = pathlib.Path(arguments[arguments.index("--run") + 1])
(here / "found.json").write_text(json.dumps(sorted(str(each.relative_to(run)) for each in run.rglob("*"))))
def stop(*_):
    (run / "journal.log").write_text("stopped")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
if "runs" in run.parts and run.is_dir():
    for name in ("journal.log", "lock", "curves/a b.parquet", "ray/lanes/state", ".half.1"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
(here / "sweeping").touch()
while (here / "idle").exists():
    time.sleep(0.02)
sys.exit(3)
"""
RAY = """#!/usr/bin/env bash
echo "$@" >> "$PLACE/ray.args"
while [ "$1" = start ] && [ ! -e "$PLACE/over" ]; do sleep 0.05; done
"""
# The plan's own words, which a shell, YAML or a template could take for theirs.
HOSTILE = [
    """it's "$(touch hacked)" `touch hacked`; touch hacked""",
    "key: value # no comment\n- item\n\n  {{ 7 * 7 }}\n",
    "\\",
    "a\ttab, ü, 漢, 😀 & %s $HOME ${RAY_AUTH_TOKEN} '' \"\"",
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plan, and programs in front of the real ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "plan.yaml").write_text(PLAN)
    program(tmp_path, "mup-tune", SWEEP)
    program(tmp_path, "ray", RAY)
    return tmp_path


def program(place: Path, name: str, text: str) -> None:
    path = place / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def kuberay(place: Path, *options: object, plan: str = "plan.yaml") -> dict[str, Any]:
    given = ("--image", "reg.io:5000/mup@sha256:1", "--claim", "shared", "--mount", place)
    done = mup_tune("launch", "kuberay", plan, "--run", "runs/first", *given, "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load((place / "first.kuberay.yaml").read_text())


def skypilot(place: Path, *options: object, plan: str = "plan.yaml") -> dict[str, Any]:
    given = ("--store", "s3://bucket", "--gpus", 0, "--workdir", ".")
    done = mup_tune("launch", "skypilot", plan, "--run", "runs/first", *given, "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load((place / "first.skypilot.yaml").read_text())


def play_kuberay(place: Path, *options: object, plan: str = "plan.yaml") -> int:
    """The entrypoint as Ray starts it; there is one GPU from Ray's third answer on."""
    (place / "ray.py").write_text(
        "answers = iter([{}, {'CPU': 2}, {'CPU': 2, 'GPU': 1}])\n"
        "def init(address, **_): assert address == 'auto'\n"
        "def cluster_resources():\n"
        "    open('asked', 'a').write('.')\n"
        "    return next(answers)\n"
    )
    program(place, "python", f'#!/bin/sh\nPYTHONPATH="$PLACE" exec {sys.executable} "$@"\n')
    return subprocess.run(kuberay(place, *options, plan=plan)["spec"]["entrypoint"], shell=True, check=False).returncode


def play_skypilot(place: Path, *options: object, plan: str = "plan.yaml") -> int:
    """The task as SkyPilot runs it on its only node."""
    (place / "sky_workdir").mkdir(exist_ok=True)
    return subprocess.run(["bash", "-c", skypilot(place, *options, plan=plan)["run"]], check=False).returncode


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("play", [play_kuberay, play_skypilot])
def test_what_users_write_reaches_the_sweep_unchanged(place: Path, hostile: str, play: Callable[..., int]) -> None:
    plan = " ".join(hostile.split()) + ".yaml"  # a plan's name is one line
    (place / plan).write_text(PLAN)
    about = "about='{}'".format(hostile.replace("'", "''"))
    assert play(place, "--set", about, "--set", "seeds=[0, 1]", plan=plan) == 3
    sweep = json.loads((place / "sweep.json").read_text())
    assert sweep[:2] == ["sweep", plan]
    assert [value for flag, value in pairwise(sweep) if flag == "--set"] == [about, "seeds=[0, 1]"]
    assert not list(place.rglob("hacked"))


def test_a_path_of_a_corpus_and_of_a_folder_is_one_scalar(place: Path) -> None:
    odd = 'a: "b" # c\'s {d}'
    (place / odd).mkdir()
    task = skypilot(place, "--corpus", odd, "--workdir", odd)
    assert task["file_mounts"]["~/sky_workdir/corpus"] == task["workdir"] == odd
    mount = place / odd
    pod = kuberay(place, "--mount", mount)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "shared", "mountPath": str(mount)}]


@pytest.mark.parametrize("gpus", [0, 4])
def test_the_head_trains_nothing_and_workers_have_what_was_asked_for(place: Path, gpus: int) -> None:
    options = ("--nodes", 3, "--gpus", gpus, "--cpus", 16, "--memory", "64Gi")
    job = kuberay(place, *options)
    assert (job["apiVersion"], job["kind"], job["spec"]["submissionMode"]) == ("ray.io/v1", "RayJob", "HTTPMode")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == importlib.metadata.version("ray")
    head, (lanes,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert {lanes[key] for key in ("replicas", "minReplicas", "maxReplicas")} == {3}
    pods = [group["template"]["spec"] for group in (head, lanes)]
    resources = [pod["containers"][0]["resources"]["limits"] for pod in pods]
    wanted = {"cpu": 16, "memory": "64Gi"} | ({"nvidia.com/gpu": gpus} if gpus else {})
    assert "nvidia.com/gpu" not in resources[0]
    assert resources[1] == wanted
    for pod in pods:
        assert pod["containers"][0]["image"] == "reg.io:5000/mup@sha256:1"
        assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}]


@pytest.mark.parametrize(("gpus", "answers"), [(1, 3), (0, 2)])
def test_the_sweep_waits_for_the_devices_of_a_worker(place: Path, gpus: int, answers: int) -> None:
    assert play_kuberay(place, "--gpus", gpus) == 3
    assert len((place / "asked").read_text()) == answers
    sweep = json.loads((place / "sweep.json").read_text())
    assert sweep == ["sweep", "plan.yaml", "--run", f"{place}/runs/first", "--address", "auto"]


def test_a_run_is_kept_in_the_store_and_comes_back_from_there(place: Path) -> None:
    assert play_skypilot(place) == 3  # the sweep's own
    assert json.loads((place / "found.json").read_text()) == []
    kept = place / "mup-tune" / "store" / "runs" / "first"
    files = {str(each.relative_to(kept)) for each in kept.rglob("*") if each.is_file()}
    assert files == {"journal.log", "curves/a b.parquet"}
    (place / "mup-tune" / "run" / "runs" / "first" / "of-another-time").touch()  # the store is what counts
    assert play_skypilot(place) == 3
    assert json.loads((place / "found.json").read_text()) == ["curves", "curves/a b.parquet", "journal.log"]


def test_a_node_that_is_stopped_keeps_what_its_sweep_left(place: Path) -> None:
    (place / "idle").touch()
    process = subprocess.Popen(["bash", "-c", skypilot(place)["run"]])
    wait_for(place / "sweeping", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert (place / "mup-tune" / "store" / "runs" / "first" / "journal.log").read_text() == "stopped"
    assert skypilot(place)["resources"]["job_recovery"] == {"recover_on_exit_codes": [143]}


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)


def test_a_worker_waits_for_the_head_and_ends_well_after_it(place: Path) -> None:
    head = socket.socket()
    head.bind(("127.0.0.1", 0))
    port = head.getsockname()[1]
    text = skypilot(place, "--nodes", 2)["run"].replace(":6379", f":{port}")
    nodes = {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "0"}
    process = subprocess.Popen(["bash", "-c", text], env={**os.environ, **nodes})
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    assert not (place / "ray.args").exists()
    head.listen()
    wait_for(place / "ray.args", process)
    head.close()
    (place / "over").touch()
    assert process.wait(60) == 0
    (start,) = (place / "ray.args").read_text().splitlines()
    assert "--node-ip-address=127.0.0.2 --num-gpus=0 --dashboard-agent-listen-port=52366" in start
    assert start.endswith(f"--address=127.0.0.1:{port}")
    assert not (place / "sweep.json").exists()


def test_the_head_has_a_port_that_skypilot_does_not_use_and_ends_its_ray(place: Path) -> None:
    nodes = {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    text = skypilot(place, "--nodes", 2)["run"]
    assert subprocess.run(["bash", "-c", text], env={**os.environ, **nodes}, check=False).returncode == 3
    start, *_ = [line for line in (place / "ray.args").read_text().splitlines() if line.startswith("start")]
    assert "--head --port=6379 --include-dashboard=false" in start
    assert json.loads((place / "sweep.json").read_text())[-2:] == ["--address", "127.0.0.1:6379"]


def test_spot_gpus_image_and_package(place: Path) -> None:
    task = skypilot(place, "--gpus", 8, "--accelerator", "H100-SXM", "--nodes", 2, "--cpus", 64, "--no-spot")
    assert task["num_nodes"] == 2
    assert task["resources"]["accelerators"] == "H100-SXM:8"
    assert (task["resources"]["cpus"], task["resources"]["use_spot"]) == ("64+", False)
    assert task["file_mounts"] == {"~/mup-tune/store": {"source": "s3://bucket", "mode": "MOUNT"}}
    assert "mup-tune[gpu]==" in task["setup"]
    assert "'git+https://x/y; touch hacked'" in skypilot(place, "--package", "git+https://x/y; touch hacked")["setup"]
    task = skypilot(place, "--image", "reg.io/mup:1")
    assert task["resources"]["image_id"] == "docker:reg.io/mup:1"
    assert "setup" not in task


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("nodes", [1, 2])
def test_shellcheck_finds_nothing(place: Path, nodes: int) -> None:
    task, job = skypilot(place, "--nodes", nodes), kuberay(place, "--nodes", nodes)
    for shell, text in (("bash", task["setup"]), ("bash", task["run"]), ("sh", job["spec"]["entrypoint"])):
        done = subprocess.run(["shellcheck", "-s", shell, "-"], input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("kind", "name", "given"),
    [
        ("slurm", "sbatch", []),
        ("kuberay", "kubectl", ["--image", "i", "--claim", "c"]),
        ("skypilot", "sky", ["--store", "s3://b", "--gpus", "0", "--workdir", "."]),
    ],
)
def test_the_file_goes_to_the_program_and_a_refusal_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, given: list[str]
) -> None:
    program(place, name, '#!/bin/sh\necho "$@" > submitted; printenv RAY_AUTH_TOKEN > token; exit 0\n')
    arguments = ("launch", kind, "plan.yaml", "--run", "first", *given)
    (dry,) = mup_tune(*arguments, "--dry-run").stdout.splitlines()
    assert not (place / "submitted").exists()
    assert mup_tune(*arguments).returncode == 0
    submitted, token = (place / "submitted").read_text().strip(), (place / "token").read_text().strip()
    assert f"{name} {submitted}`" in dry
    file = Path(submitted.split()[-1])
    assert file.is_file()
    if kind == "skypilot":
        assert len(token) == 64
        assert token not in submitted + file.read_text()
        mup_tune(*arguments)
        assert (place / "token").read_text().strip() != token
    program(place, name, "#!/bin/sh\necho no quota >&2; exit 1\n")
    done = mup_tune(*arguments)
    assert (done.returncode, done.stderr) == (2, f"error: {name} refused {file} (no quota)\n")
    (place / "bin" / name).unlink()
    monkeypatch.setenv("PATH", str(place / "bin"))
    assert f"{name} is not installed on this machine" in mup_tune(*arguments).stderr


def test_names_of_jobs_are_labels_that_tell_runs_apart(place: Path) -> None:
    names = {}
    for run in ("first", "First", "fi rst", "fi-rst", "x" * 60, "x" * 61, "7"):
        done = mup_tune("launch", "kuberay", "plan.yaml", "--run", run, "--image", "i", "--claim", "c", "--dry-run")
        assert done.returncode == 0, done.stderr
        names[run] = yaml.safe_load((place / f"{run}.kuberay.yaml").read_text())["metadata"]["name"]
    assert names["first"] == "mup-tune-first"
    assert len(set(names.values())) == len(names)
    for name in names.values():
        assert len(name) <= 47  # KubeRay's bound
        assert name.replace("-", "").isalnum()
        assert name == name.lower()


KUBE = ["kuberay", "plan.yaml", "--image", "i", "--claim", "c"]
SKY = ["skypilot", "plan.yaml", "--store", "s3://b"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*KUBE, "--run", "/elsewhere/first"], "--run: '/elsewhere/first' is no folder in the claim"),
        ([*KUBE, "--run", "../first"], "--run"),
        ([*KUBE, "--run", "."], "--run"),
        ([*KUBE, "--run", "r", "--mount", "shared"], "--mount: 'shared' is no absolute path"),
        ([*KUBE, "--run", "r", "--memory", "1 Gi"], "--memory: '1 Gi' is not a word"),
        ([*KUBE, "--run", "r", "--claim", "a\nb"], "--claim"),
        ([*KUBE, "--run", "r", "--set", "about='a\rb'"], "holds '\\r'"),
        ([*KUBE, "--run", "/\x1b/r", "--mount", "/\x1b"], "holds '\\x1b'"),
        ([*SKY, "--run", "r", "--gpus", "0", "--workdir", ".", "--set", "about=a\u2028b"], "holds '\\u2028'"),
        ([*KUBE, "--run", "r", "--set", "sedes=[1]"], "did you mean 'seeds'"),
        ([*KUBE, "--run", "r", "--template", "mine"], "mine: line 1: not valid YAML"),
        ([*SKY, "--run", "r", "--workdir", "."], "--accelerator"),
        ([*SKY, "--run", "r", "--gpus", "0"], "--workdir: nodes do not have 'plan.yaml'"),
        ([*SKY, "--run", "/r", "--gpus", "0", "--workdir", "."], "--run: '/r' is no folder in the store"),
        ([*SKY, "--run", "../r", "--gpus", "0", "--workdir", "."], "--run"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(place: Path, arguments: list[str], said: str) -> None:
    (place / "mine").write_text("name: {{ job }}: {{ image }}\n")
    done = mup_tune("launch", *arguments, "--dry-run")
    assert done.returncode == 2
    assert said in done.stderr
    assert not list(place.glob("*.kuberay.yaml")) + list(place.glob("*.skypilot.yaml"))
