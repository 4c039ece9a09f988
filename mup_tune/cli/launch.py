"""``launch``: one file that runs a plan by a cluster's own scheduler."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from mup_tune.cli.options import PLANS, LogOption, ScaleOption, SetOption
from mup_tune.cli.schedulers import KUBERAY, SKYPILOT, SLURM, below, job_name, submit, sweep_command, word, write
from mup_tune.errors import UserError

GRACE_S = 120  # before the time limit: a sweep ends within seconds, its lanes' packs are lost

launch = typer.Typer(no_args_is_help=True, help="Run a plan by a cluster's scheduler.")

PlanArgument = Annotated[
    str, typer.Argument(metavar="PLAN", help="A shipped plan or a YAML file.", autocompletion=PLANS)
]
GpusOption = Annotated[int, typer.Option(min=0, help="GPUs of a node; 0 trains on CPU cores.")]
CpusOption = Annotated[int, typer.Option(min=1, help="CPU cores of a node.")]
OutOption = Annotated[Path | None, typer.Option(metavar="FILE", help="The file; it is named after DIR if left out.")]
TemplateOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A template of your own, made from the shipped one.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Write the file and do not submit it.")]


@launch.callback()
def _launch() -> None:
    """Run a plan by a cluster's scheduler: docs/cluster.md tells the rest."""


@launch.command()
def slurm(
    plan: PlanArgument,
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="Folder of the run, on a shared file system.")],
    nodes: Annotated[int, typer.Option(min=1, help="Nodes; from two on they become one Ray cluster.")] = 1,
    gpus: GpusOption = 1,
    cpus: CpusOption = 8,
    time: Annotated[str | None, typer.Option(metavar="TIME", help="Time limit as SLURM writes it: 12:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="SLURM partition.")] = None,
    assign: SetOption = None,
    scale: ScaleOption = None,
    log: LogOption = None,
    out: OutOption = None,
    template: TemplateOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write one SLURM script for a plan on one or more nodes, and submit it.

    The plan is checked first. Before the time limit the job stops its sweep, which leaves a resumable run,
    and requeues itself. A preempted job resumes too. Its log is DIR.slurm-JOB.log. Run folder, corpus and
    Python environment must be visible on all nodes under the same paths.
    """
    from mup_tune.loggers import loggers

    loggers(log or ())  # the job will run with what is installed here
    command = sweep_command(plan, scale, assign, log, run.absolute())
    beside = _quotable(run.absolute()).replace("%", "%%")
    values = {
        "job": job_name(run),
        "nodes": nodes,
        "gpus": gpus,
        "cpus": cpus,
        "time": time and word(time, "--time"),
        "partition": partition and word(partition, "--partition"),
        "folder": _quotable(Path.cwd()),
        "run": str(run.absolute()),
        "log": f"{beside}.slurm-%j.log",
        "ray_log": f"{beside}.ray-%j.log",
        "bin": str(Path(sys.executable).parent),
        "grace": GRACE_S,
        "sweep": command,
    }
    submit(SLURM, write(SLURM, values, out or run.parent / SLURM.file(run), template), dry_run)


@launch.command()
def kuberay(
    plan: PlanArgument,
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="Folder of the run, on the claim.")],
    image: Annotated[str, typer.Option(help="Image with mup-tune, its torch and ray[default].")],
    claim: Annotated[str, typer.Option(help="PersistentVolumeClaim that all pods share: corpus and runs.")],
    mount: Annotated[Path, typer.Option(metavar="DIR", help="Where pods mount the claim.")] = Path("/shared"),
    nodes: Annotated[int, typer.Option(min=1, help="Worker pods. The head pod comes on top, without GPUs.")] = 1,
    gpus: GpusOption = 1,
    cpus: CpusOption = 8,
    memory: Annotated[str, typer.Option(help="Memory of a worker pod.")] = "32Gi",
    assign: SetOption = None,
    scale: ScaleOption = None,
    log: LogOption = None,
    out: OutOption = None,
    template: TemplateOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write a RayJob of KubeRay for a plan on one or more worker pods, and create it.

    The plan is checked first. A lost worker repeats its own packs, and a lost head resumes the run. Pods find
    the run, the plan's files and corpora on the claim. Relative paths start where it is mounted.
    """
    if not mount.is_absolute():
        raise UserError(f"{str(mount)!r} is no absolute path", field="--mount", fix="Give one such as /shared")
    where = mount / below(run, mount, "--run", f"the claim, which is mounted at {mount}")
    values = {
        "job": job_name(run),
        "image": word(image, "--image"),
        "claim": word(claim, "--claim"),
        "mount": str(mount),
        "nodes": nodes,
        "gpus": gpus,
        "cpus": cpus,
        "memory": word(memory, "--memory"),
        "ray": _ray(),
        "sweep": sweep_command(plan, scale, assign, log, where),
    }
    submit(KUBERAY, write(KUBERAY, values, out or Path(KUBERAY.file(run)), template), dry_run)


@launch.command()
def skypilot(
    plan: PlanArgument,
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="Folder of the run, in the store.")],
    store: Annotated[str, typer.Option(metavar="URL", help="Bucket that keeps the run: s3://NAME, gs://NAME, …")],
    nodes: Annotated[int, typer.Option(min=1, help="Nodes; from two on they become one Ray cluster.")] = 1,
    accelerator: Annotated[str | None, typer.Option(help="GPU as SkyPilot calls it, e.g. H100.")] = None,
    gpus: GpusOption = 1,
    cpus: CpusOption = 8,
    spot: Annotated[bool, typer.Option(help="Spot nodes: cheaper, and taken away at times.")] = True,
    workdir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to take along: a plan of your own and its files.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(metavar="DIR|URL", help="A prepared corpus, which nodes have as ./corpus.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Docker image with mup-tune; pip installs it if left out.")] = None,
    package: Annotated[str | None, typer.Option(help="What pip installs; this version if left out.")] = None,
    assign: SetOption = None,
    scale: ScaleOption = None,
    log: LogOption = None,
    out: OutOption = None,
    template: TemplateOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write a task of SkyPilot for a plan on one or more nodes, and submit it as a managed job.

    The plan is checked first. The run is copied to the store as it grows, and a job that lost a node goes on
    from there. Nodes work in a copy of --workdir.
    """
    from mup_tune.version import VERSION

    if gpus and not accelerator:
        fix = "Give one that `sky gpus list` names, such as H100, or --gpus 0"
        raise UserError("--gpus is not 0, so the kind of GPU is wanted", field="--accelerator", fix=fix)
    if workdir is None and plan.endswith((".yaml", ".yml")):
        raise UserError(f"nodes do not have {plan!r}", field="--workdir", fix="--workdir . takes this folder along")
    values = {
        "job": job_name(run),
        "nodes": nodes,
        "accelerator": accelerator and word(accelerator, "--accelerator"),
        "gpus": gpus,
        "cpus": cpus,
        "spot": spot,
        "image": image and word(image, "--image"),
        "package": package or f"mup-tune[gpu]=={VERSION}",
        "workdir": workdir and str(workdir),
        "store": word(store, "--store"),
        "corpus": corpus,
        "run": str(below(run, Path("."), "--run", "the store")),
        "sweep": sweep_command(plan, scale, assign, log),
    }
    submit(SKYPILOT, write(SKYPILOT, values, out or Path(SKYPILOT.file(run)), template), dry_run)


def _ray() -> str:
    """The version of Ray here, which the image is to have too."""
    from importlib.metadata import version

    return version("ray")


def _quotable(path: Path) -> str:
    """A path between the double quotes of a line of #SBATCH."""
    if re.search(r'["\\\x00-\x1f]', str(path)):
        raise UserError(f"{str(path)!r}: SLURM cannot quote this path", fix="Use one without quotes and backslashes")
    return str(path)


def register(app: typer.Typer) -> None:
    app.add_typer(launch, name="launch")
