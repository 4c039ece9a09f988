"""``mup-tune`` inside the tests' process: what a shell sees, without Python's seconds to start."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import sys
from unittest import mock

from mup_tune import cli


def mup_tune(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Exit code, stdout and stderr of a command; what a shell would see as a traceback is raised."""
    command, out, err, code = ["mup-tune", *map(str, arguments)], io.StringIO(), io.StringIO(), 0
    handler = signal.getsignal(signal.SIGINT)  # the program ends deaf to it
    with mock.patch.object(sys, "argv", command), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            signal.signal(signal.SIGINT, handler)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
