"""What the terminal shows: strings as they are, in any encoding, and for as long as somebody reads."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from program import mup_tune

from mup_tune.cli.output import console, err_console, led, print_json, print_rows, replace_unencodable, say

HOSTILE = r"a [/x] [bold]b[/bold] :smile: \[y] 12"


def test_no_way_of_printing_takes_a_string_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    ways = [
        lambda: say(HOSTILE),
        lambda: say(led("", HOSTILE)),
        lambda: console.print(HOSTILE),
        lambda: err_console.print(led(HOSTILE, "")),
        lambda: print_rows([{"name": HOSTILE}], "title"),
        lambda: print_rows([{HOSTILE: 1}], "title"),
        lambda: print_rows([{"name": 1}], HOSTILE),
        lambda: print_rows([{"name": 1}], "title", HOSTILE),
    ]
    for index, way in enumerate(ways):
        way()
        out, err = capsys.readouterr()
        assert "".join(HOSTILE.split()) in "".join((out + err).split()), index  # a narrow table folds its title


def test_an_error_shows_what_the_user_gave() -> None:
    done = mup_tune("plan", r"x\[/y].yaml")
    assert (done.returncode, done.stderr) == (2, "error: x\\[/y].yaml: no such file\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_replaced_for_people_and_escaped_for_scripts(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    replace_unencodable()
    say("λ = 0.1 → ok")
    assert written.getvalue().decode(encoding) == "? = 0.1 ? ok\n"
    written.seek(0)
    written.truncate()
    print_json({"λ": "ok"})
    assert json.loads(written.getvalue().decode(encoding)) == {"λ": "ok"}


def test_a_reader_that_leaves_changes_nothing_but_the_output() -> None:
    reading, writing = os.pipe()
    os.close(reading)  # whoever read has read enough
    command = [sys.executable, "-m", "mup_tune", "multipliers", "--json"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
