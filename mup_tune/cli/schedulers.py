"""The schedulers that ``launch`` knows: what is written for each, and the program that takes it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mup_tune.cli.output import say
from mup_tune.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"
NAME_LENGTH = 47  # what KubeRay allows, for it makes longer names of it; the others allow more


@dataclass(frozen=True)
class Scheduler:
    """One way to run a plan.

    Attributes:
        template: the shipped template; what is made of it ends alike.
        submit: the program that takes the file, and its arguments before it.
        secret: a variable that the program reads a new token from.
    """

    template: str
    submit: tuple[str, ...]
    secret: str | None = None

    def file(self, run: Path) -> str:
        """The name of the file for ``run``."""
        return f"{_name(run)}.{self.template}"


SLURM = Scheduler("slurm.sh", ("sbatch",))
# Not `apply`, which would say of a job that has failed that nothing changed.
KUBERAY = Scheduler("kuberay.yaml", ("kubectl", "create", "-f"))
SKYPILOT = Scheduler(
    "skypilot.yaml",
    ("sky", "jobs", "launch", "--yes", "--detach-run", "--secret", "RAY_AUTH_TOKEN"),
    secret="RAY_AUTH_TOKEN",
)


def sweep_command(
    plan: str,
    scale: str | None,
    assign: Sequence[str] | None,
    log: Sequence[str] | None = None,
    run: Path | None = None,
) -> str:
    """The sweep as a line for a shell, once the plan is checked.

    Raises:
        UserError: what is wrong with the plan.
    """
    from mup_tune.search.plan import load_plan

    load_plan(plan, scale, tuple(assign or ()))
    command = ["mup-tune", "sweep", f"./{plan}" if plan.startswith("-") else plan]
    command += ["--run", str(run)] if run else []
    command += ["--scale", scale] if scale else []
    for each in assign or ():
        command += ["--set", each]
    for each in log or ():
        command += ["--log", each]
    return shlex.join(command)


def job_name(run: Path) -> str:
    """A job's name after its run: a DNS label, since Kubernetes takes nothing else, and one of its own."""
    given = _name(run)
    plain = re.sub(r"[^a-z0-9]+", "-", given.lower()).strip("-")
    name = f"mup-tune-{plain}"
    if plain == given and len(name) <= NAME_LENGTH:
        return name
    digest = hashlib.sha256(os.fsencode(given)).hexdigest()[:8]
    return f"{name[: NAME_LENGTH - 9].rstrip('-')}-{digest}"


def _name(run: Path) -> str:
    return os.path.basename(os.path.abspath(run))


def below(path: Path, root: Path, flag: str, what: str) -> Path:
    """``path`` as it lies below ``root``, where a relative one starts.

    Raises:
        UserError: it is ``root`` itself or lies elsewhere.
    """
    inside = Path(os.path.normpath(root / path))
    if inside == root or not inside.is_relative_to(root) or ".." in inside.parts:
        raise UserError(f"{str(path)!r} is no folder in {what}", field=flag, fix="Give one such as runs/first")
    return inside.relative_to(root)


def word(text: str, flag: str) -> str:
    """What goes into a field as it is."""
    if not re.fullmatch(r"[\w:,.+/@-]+", text):
        raise UserError(f"{text!r} is not a word", field=flag, fix="Letters, digits, and : , . + - / @ are allowed")
    return text


def write(scheduler: Scheduler, values: dict[str, Any], out: Path, template: Path | None) -> Path:
    """Fill ``template``, or the scheduler's own, into the file ``out``.

    Raises:
        UserError: a value cannot be quoted, the template is wrong, or the file cannot be written.
    """
    from mup_tune.files import parse_yaml, write_out

    for value in values.values():
        for each in value if isinstance(value, str) else "":
            if each not in "\n\t" and unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp"):
                problem = f"{value!r} holds {each!r}, which no file for a scheduler can hold"
                raise UserError(problem, fix="Leave that character out")
    source = template or TEMPLATES / scheduler.template
    text = _rendered(source, values)
    if scheduler.template.endswith(".yaml"):
        parse_yaml(text, source)
    write_out(out, text)
    return out


def _rendered(template: Path, values: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined, TemplateError

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters["quote"] = shlex.quote
    environment.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)  # a flow scalar of YAML too
    try:
        return environment.from_string(template.read_text(encoding="utf-8")).render(values)
    except (TemplateError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be used ({error})", file=template, field="--template") from None


def submit(scheduler: Scheduler, file: Path, dry_run: bool) -> None:
    """Hand the file to the scheduler's program, or say how.

    Raises:
        UserError: the program is not there, or refuses the file.
    """
    command = [*scheduler.submit, str(file)]
    if dry_run:
        drawn = f"{scheduler.secret}=$(openssl rand -hex 32) " if scheduler.secret else ""
        say(f"{file}: `{drawn}{shlex.join(command)}` submits it")
        return
    program = command[0]
    if shutil.which(program) is None:
        fix = f"Submit {file} where it is, or give --dry-run"
        raise UserError(f"{program} is not installed on this machine", fix=fix)
    token = {scheduler.secret: secrets.token_hex(32)} if scheduler.secret else {}
    done = subprocess.run(command, env={**os.environ, **token}, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"{program} refused {file} ({' '.join(done.stderr.split())})")
