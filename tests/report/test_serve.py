"""A real server on a random port: what it shows, and what nobody gets from it."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from synthetic_run import CORPUS, full_run, plan, synthetic_findings, write_run

from mup_tune.errors import UserError
from mup_tune.report.folder import files_of, write_report
from mup_tune.report.server import Server
from mup_tune.report.site import Site
from mup_tune.run.folder import RunFolder
from mup_tune.run.journal import Journal
from mup_tune.run.view import load_run

SECRET = "the secret"
Answer = tuple[int, dict[str, str], bytes]


class Client:
    """Asks as raw a path as it is given."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, path: str, method: str = "GET", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in ({"Host": f"127.0.0.1:{self.port}"} | headers).items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()


@contextmanager
def serving(folder: Path) -> Iterator[Client]:
    with Server(Site(folder), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Client(server.server_port)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, a report, secrets beside and inside, and links that lead to them."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.html").write_text(SECRET)
    root = tmp_path_factory.mktemp("root") / "shown"
    root.mkdir()
    (root.parent / "secret.html").write_text(SECRET)
    run = full_run(root / "run")
    (run / "summary.md").write_text(SECRET)
    write_report(load_run(run), root / "report")
    write_report(load_run(run), outside / "report")
    (root / "report" / "tables" / "leak.csv").symlink_to(outside / "secret.html")
    (root / "report" / "tables" / ".hidden.csv").write_text(SECRET)
    (root / "report" / "notes.html").write_text(SECRET)
    (root / "linked").symlink_to(outside / "report")
    (root / "plain").mkdir()
    (root / "plain" / "index.html").write_text(SECRET)
    (root / "secret.html").write_text(SECRET)
    return root


@pytest.fixture(scope="module")
def ask(folder: Path) -> Iterator[Client]:
    with serving(folder) as client:
        yield client


def test_the_index_lists_reports_and_runs(ask: Client) -> None:
    status, headers, content = ask("/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    text = content.decode()
    assert 'href="run/index.html"' in text
    assert 'href="report/index.html"' in text
    assert "linked" not in text
    assert "plain" not in text
    assert SECRET not in text
    assert ask("/index.html")[2] == content


def test_a_runs_page_and_tables_are_those_of_its_report(ask: Client, folder: Path) -> None:
    files = files_of(load_run(folder / "run"))
    for name, content in files.items():
        assert ask(f"/run/{name}")[::2] == (200, content), name
        assert ask(f"/report/{name}")[::2] == (200, content), name
    assert ask("/run/")[2] == files["index.html"]
    assert ask("/run/tables/claims.csv")[1]["Content-Type"] == "text/csv; charset=utf-8"
    assert ask("/run/?x=/../#y")[2] == files["index.html"]


def test_a_folder_without_its_slash_is_sent_on(ask: Client) -> None:
    status, headers, _ = ask("/run")
    assert (status, headers["Location"]) == (301, "run/")
    assert ask("//run")[1]["Location"] == "run/"  # never a place on another host
    assert ask("//evil.example/..")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.html",
        "/%2e%2e/secret.html",
        "/%2e%2e%2fsecret.html",
        "/..%2fsecret.html",
        "/..%5csecret.html",
        "/run/../../secret.html",
        "/run/..%2f..%2fsecret.html",
        "/run/%2e%2e/%2e%2e/secret.html",
        "/run/tables/../../../secret.html",
        "/run/tables/..%2f..%2f..%2fsecret.html",
        "/report/../secret.html",
        "/report/tables/../../secret.html",
        "/report/tables/%2e%2e/notes.html",
        "/report//etc/passwd",
        "//etc/passwd",
        "/report/tables//etc/passwd.csv",
        "/%2fetc%2fpasswd",
        "/run%00/index.html",
        "/report/tables/x%00.csv",
        "/" + "a" * 5000,
        "/" + "%2e%2e/" * 40 + "etc/passwd",
        "/secret.html",
        "/plain/index.html",
        "/plain/",
        "/report/notes.html",
        "/report/tables/",
        "/report/tables",
        "/report/tables/leak.csv",
        "/report/tables/.hidden.csv",
        "/linked/",
        "/linked/index.html",
        "/run/journal.log",
        "/run/plan.yaml",
        "/run/run.json",
        "/run/summary.md",
        "/run/curves/",
        "/run/settings/incumbent.yaml",
        "/.",
        "/./run/",
        "/run/./index.html",
        "secret.html",
        "http://127.0.0.1/secret.html",
    ],
)
def test_nothing_else_of_the_disk_is_served(ask: Client, path: str) -> None:
    status, _, content = ask(path)
    assert status == 404
    assert SECRET not in content.decode()
    assert b"root:" not in content


def test_a_report_that_becomes_a_link_is_gone(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "shown").mkdir()
    write_report(load_run(folder / "run"), tmp_path / "shown" / "report")
    with serving(tmp_path / "shown") as ask:
        assert ask("/report/")[0] == 200
        (tmp_path / "shown" / "report").rename(tmp_path / "elsewhere")
        (tmp_path / "shown" / "report").symlink_to(tmp_path / "elsewhere")
        assert ask("/report/")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_it_is_for_reading_alone(ask: Client, method: str) -> None:
    status, headers, _ = ask("/run/", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:9999", 200),  # the end of a tunnel
        ("LOCALHOST", 200),
        ("evil.example", 421),
        ("evil.example:8765", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.", 421),
        ("127.0.0.1@evil.example", 421),
        ("192.168.0.1:8765", 421),
        ("", 421),
    ],
)
def test_a_name_that_was_bound_to_this_machine_is_refused(ask: Client, host: str, status: int) -> None:
    assert ask("/", Host=host)[0] == status


def test_every_answer_forbids_other_origins_and_foreign_sources(ask: Client) -> None:
    for path in ("/", "/run/", "/run/figures/schedule.svg", "/run/tables/claims.csv", "/nothing"):
        _, headers, _ = ask(path)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "http" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers
    assert "script-src" not in ask("/run/figures/schedule.svg")[1]["Content-Security-Policy"]


def test_head_and_the_version_tell_of_a_change_without_a_page(folder: Path, ask: Client) -> None:
    whole, head = ask("/run/"), ask("/run/", "HEAD")
    assert head[0] == 200
    assert head[2] == b""
    assert head[1]["ETag"] == whole[1]["ETag"]
    assert ask("/run/", If_None_Match=whole[1]["ETag"])[::2] == (304, b"")


def test_a_page_is_drawn_once_until_the_journal_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, drawn = write_run(tmp_path / "runs" / "run", synthetic_findings((0, 1), ()), {}), []
    monkeypatch.setattr("mup_tune.report.site.files_of", lambda run: drawn.append(run) or files_of(run))
    with serving(path.parent) as ask:
        first = ask("/run/")
        assert ask("/run/")[2] == first[2]
        assert ask("/run/tables/trials.csv")[0] == 200
        assert len(drawn) == 1
        with RunFolder.create_or_resume(path, plan("quickstart"), "0123456789abcdef", CORPUS) as held:
            journal = Journal(held, writable=True)
            journal.set_note("later", 1)
            journal.close()
        assert ask("/run/", "HEAD")[1]["ETag"] != first[1]["ETag"]
        assert len(drawn) == 1  # who asks for the version waits for no page
        assert ask("/run/")[0] == 200
        assert len(drawn) == 2


def test_a_run_in_progress_follows_itself_and_a_finished_one_does_not(tmp_path: Path) -> None:
    path = write_run(tmp_path / "runs" / "run", synthetic_findings((0, 1), ()), {})
    with serving(path.parent) as ask:
        still = ask("/run/")
        assert b"location.reload" not in still[2]
        with RunFolder.create_or_resume(path, plan("quickstart"), "0123456789abcdef", CORPUS):
            live = ask("/run/")
            assert b"Still in progress" in live[2]
            assert live[2].count(b"location.reload") == 1
            assert b"location.reload" in ask("/")[2]
            assert live[1]["ETag"] != still[1]["ETag"]
            assert b"location.reload" not in ask("/run/report.md")[2]
        assert ask("/run/", "HEAD")[1]["ETag"] != live[1]["ETag"]
        assert b"location.reload" not in ask("/run/")[2]


def test_a_run_that_cannot_be_read_is_a_line_and_not_an_end(tmp_path: Path) -> None:
    path = write_run(tmp_path / "runs" / "<b>run", synthetic_findings((0, 1), ()), {})
    (path / "journal.log").write_text("[]\n" * 3)
    with serving(path.parent) as ask:
        status, _, content = ask("/")
        assert status == 200
        assert b"line 1" in content
        assert b"<b>run" not in content
        assert b"line 1" in ask("/%3Cb%3Erun/")[2]
        assert ask("/%3Cb%3Erun/tables/trials.csv")[0] == 404


def test_one_run_alone_is_shown_alone(folder: Path) -> None:
    with serving(folder / "run") as ask:
        assert ask("/run/")[0] == 200
        assert ask("/report/")[0] == 404
        assert b"report/index.html" not in ask("/")[2]


def test_many_readers_get_whole_pages(folder: Path, ask: Client) -> None:
    whole, found = ask("/run/")[2], []
    readers = [threading.Thread(target=lambda: found.append(ask("/run/")[2])) for _ in range(12)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert found == [whole] * 12


def test_a_taken_port_is_one_line(folder: Path) -> None:
    with (
        Server(Site(folder), 0) as server,
        pytest.raises(UserError, match=f"--port: port {server.server_port} is taken"),
    ):
        Server(Site(folder), server.server_port)


def test_it_listens_on_this_machine_alone(folder: Path) -> None:
    with Server(Site(folder), 0) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_the_command_serves_writes_the_index_and_ends_with_ctrl_c(folder: Path, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    write_report(load_run(folder / "run"), reports / "one")
    command = [sys.executable, "-m", "mup_tune", "serve", str(reports), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.endswith(f"shows {reports}; Ctrl-C ends it\n"), process.stderr
    port = int(line.split("/")[2].split(":")[1])
    assert "1 report" in Client(port)("/")[2].decode()
    assert (reports / "index.html").is_file()
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=30)
    assert (process.returncode, message) == (130, "Interrupted. Nothing is served any more.\n")
