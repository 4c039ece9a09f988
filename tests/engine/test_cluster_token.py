"""Joining a cluster by HOST:PORT: whose token is sent, and what is said where it is not taken."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mup_tune.engine import ray as driver

pytestmark = pytest.mark.ray
ROOT = str(Path(__file__).parents[2])
JOIN = """
import sys
from mup_tune.engine.ray import check_reachable
from mup_tune.errors import UserError
try:
    check_reachable(sys.argv[1])
except UserError as error:
    sys.exit(str(error))
"""


def home(folder: Path, token: str | None) -> dict[str, str]:
    """The environment of a user whose home holds ``token``, and who set nothing else."""
    (folder / ".ray").mkdir(parents=True)
    if token:
        (folder / ".ray" / "auth_token").write_text(token)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "HOME": str(folder), "PYTHONPATH": ROOT}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head that `ray start --head` runs for a user who has a token."""
    environment = home(tmp_path_factory.mktemp("head"), "a" * 64)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir="/tmp") as temp_dir:  # short, for its sockets
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
        command += ["--num-cpus=1", "--include-dashboard=false", "--object-store-memory=100000000"]
        head = subprocess.Popen(
            [*command, f"--temp-dir={temp_dir}", "--disable-usage-stats"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert head.stdout is not None
        said = ""
        while "Ray runtime started" not in said:
            line = head.stdout.readline()
            assert line, said
            said += line
        yield f"127.0.0.1:{port}"
        import ray  # noqa: F401  (brings psutil)

        driver._end(driver._processes(temp_dir))
        head.communicate()


@pytest.mark.parametrize(
    ("token", "said"),
    [
        pytest.param("a" * 64, "", id="right"),
        pytest.param("b" * 64, "refuses that of HOME/.ray/auth_token. Put the head's token there", id="wrong"),
        pytest.param(None, "there is none here. Copy the head's ~/.ray/auth_token, or set RAY_AUTH_TOKEN", id="none"),
    ],
)
def test_a_token_in_the_home_is_sent(address: str, token: str | None, said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", JOIN, address]
    done = subprocess.run(command, env=home(tmp_path, token), capture_output=True, text=True, check=False, timeout=120)
    line = (
        f"--address: the Ray cluster at {address!r} asks for a token and {said.replace('HOME', str(tmp_path))}\n"
        if said
        else ""
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", line, 1 if said else 0)
