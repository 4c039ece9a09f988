"""``launch``: scripts that run a plan on a cluster's own scheduler."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mup_tune.cli.options import PLANS, LogOption, ScaleOption, SetOption
from mup_tune.cli.output import say
from mup_tune.errors import UserError

GRACE_S = 120  # before the time limit: a sweep ends within seconds, its lanes' packs are lost
TEMPLATE = Path(__file__).parent / "templates" / "slurm.sh"

launch = typer.Typer(no_args_is_help=True, help="Run a plan by a cluster's scheduler.")


@launch.callback()
def _launch() -> None:
    """Run a plan by a cluster's scheduler: docs/cluster.md tells the rest."""


@launch.command()
def slurm(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A shipped plan or a YAML file.", autocompletion=PLANS)],
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="Folder of the run, on a shared file system.")],
    nodes: Annotated[int, typer.Option(min=1, help="Nodes; from two on they become one Ray cluster.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of a node; 0 trains on CPU cores.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="CPU cores of a node.")] = 8,
    time: Annotated[str | None, typer.Option(metavar="TIME", help="Time limit as SLURM writes it: 12:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="SLURM partition.")] = None,
    assign: SetOption = None,
    scale: ScaleOption = None,
    log: LogOption = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The script; DIR.slurm.sh if left out.")] = None,
    template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A template of your own, made from the shipped one.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the script and do not submit it.")] = False,
) -> None:
    """Write one SLURM script for a plan on one or more nodes, and submit it.

    The plan is checked first. Before the time limit the job stops its sweep, which leaves a resumable run,
    and requeues itself. A preempted job resumes too. Its log is DIR.slurm-JOB.log. Run folder, corpus and
    Python environment must be visible on all nodes under the same paths.
    """
    from mup_tune.files import write_out
    from mup_tune.loggers import loggers
    from mup_tune.search.plan import load_plan

    loggers(log or ())
    load_plan(plan, scale, tuple(assign or ()))
    command = ["mup-tune", "sweep", plan, "--run", str(run.absolute()), *(["--scale", scale] if scale else [])]
    for each in assign or ():
        command += ["--set", each]
    for each in log or ():
        command += ["--log", each]
    beside = _quotable(run.absolute()).replace("%", "%%")
    values = {
        "job": re.sub(r"[^\w.-]+", "-", f"mup-tune-{run.name}"),
        "nodes": nodes,
        "gpus": gpus,
        "cpus": cpus,
        "time": _word(time, "--time"),
        "partition": _word(partition, "--partition"),
        "folder": _quotable(Path.cwd()),
        "run": str(run.absolute()),
        "log": f"{beside}.slurm-%j.log",
        "ray_log": f"{beside}.ray-%j.log",
        "bin": str(Path(sys.executable).parent),
        "grace": GRACE_S,
        "sweep": shlex.join(command),
    }
    script = out or run.with_name(f"{run.name}.slurm.sh")
    write_out(script, _rendered(template or TEMPLATE, values))
    if dry_run:
        say(f"{script}: `sbatch {shlex.quote(str(script))}` submits it")
        return
    _submit(script)


def _rendered(template: Path, values: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined, TemplateError

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters["quote"] = shlex.quote
    try:
        return environment.from_string(template.read_text(encoding="utf-8")).render(values)
    except (TemplateError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be used ({error})", file=template, field="--template") from None


def _word(text: str | None, flag: str) -> str | None:
    """What goes into a line of #SBATCH as it is."""
    if text is not None and not re.fullmatch(r"[\w:,.+-]+", text):
        raise UserError(f"{text!r} is not a word", field=flag, fix="Letters, digits, and : , . + - are allowed")
    return text


def _quotable(path: Path) -> str:
    """A path between the double quotes of a line of #SBATCH."""
    if re.search(r'["\\\x00-\x1f]', str(path)):
        raise UserError(f"{str(path)!r}: SLURM cannot quote this path", fix="Use one without quotes and backslashes")
    return str(path)


def _submit(script: Path) -> None:
    if shutil.which("sbatch") is None:
        fix = f"Submit {script} where it is, or give --dry-run"
        raise UserError("sbatch is not installed on this machine", fix=fix)
    done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"sbatch refused {script} ({' '.join(done.stderr.split())})")
    say(done.stdout.strip())


def register(app: typer.Typer) -> None:
    app.add_typer(launch, name="launch")
