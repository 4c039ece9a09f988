"""The driver on Ray: one lane per device of this machine or of a cluster, hosted by Ray Tune.

A lane is one long-lived Tune trial; its packs reach it through a mailbox and come back as the trial's
results, so that compiled steps and contexts stay warm across stage barriers. Placement, node loss and
restarts of lanes are Tune's; which work runs again is the source's.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import secrets
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mup_tune.cores import usable_cores
from mup_tune.engine.dispatch import Dispatcher
from mup_tune.engine.events import OnEvent
from mup_tune.engine.sessions import session
from mup_tune.engine.work import PackSource, RunnerFactory
from mup_tune.errors import UserError
from mup_tune.interrupts import handlers_kept, stops_deferred

# Ray reads these at import.
DRIVER_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # it makes a crash of SIGTERM
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # Ray prints a lane's death on our stdout, log_to_driver or not
    "RAY_SCHEDULER_EVENTS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is a KeyboardInterrupt here, not the end of a Tune run
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "10000",  # all lanes start at once
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "1000000",  # a commit may take its time
}
# One thread a lane: a CPU lane is one core. The malloc settings keep glibc from returning pages between
# steps.
LANE_ENV = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}
# A node that freezes is given up after some 10 s instead of a minute.
HEALTH = {"health_check_period_ms": 1000, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 8}
OBJECT_STORE_BYTES = 512 * 2**20  # outcomes are a few MB; the default of 30 % of the memory belongs to the models
CAPACITY_EVERY_S = 1.0
CONNECT_TIMEOUT_S = 5.0
REFUSED = "InvalidAuthToken"  # in what Ray's C++ part prints
CONNECT_TRIES = 5  # of one second each, where something listens; Ray's default is 20
COMMON: dict[str, Any] = {
    "log_to_driver": False,
    "logging_level": logging.ERROR,
    "runtime_env": {"env_vars": LANE_ENV},
}


def drive(
    source: PackSource,
    make_runner: RunnerFactory,
    on_event: OnEvent,
    *,
    run_dir: Path,
    address: str | None,
    lanes: int | None,
    gpus: bool | None = None,
) -> None:
    """Run all that ``source`` hands out on lanes, until it says DONE; its methods are called in this thread.

    Args:
        run_dir: Tune's files go to its folder ``ray``.
        address: a running cluster; None starts Ray on this machine and ends it afterwards.
        lanes: at most this many lanes; None takes every device, also those of nodes that join later.
        gpus: a lane is one GPU, else one CPU core; None takes GPUs where the cluster has any.

    Raises:
        UserError: the cluster cannot be reached or has no such device.
        RuntimeError: the source waits although nothing is out, or lanes die while they start.
        KeyboardInterrupt: at once, also where Tune ends before the source does; what was committed stays.
    """
    with handlers_kept(), _cluster(address, lanes) as ray:
        if gpus is None:
            gpus = bool(ray.cluster_resources().get("GPU"))
        capacity = _capacity(ray, "GPU" if gpus else "CPU", lanes)
        if capacity() == 0:
            raise UserError(
                f"Ray sees no {'GPU' if gpus else 'CPU'}",
                field="--address" if address else None,
                fix="Look at `ray status`" if address else "Is a GPU or CPU visible to this process?",
            )
        _host(ray, source, make_runner, on_event, capacity, run_dir, gpus)


def check_reachable(address: str) -> None:
    """Refuse a cluster that cannot be joined, before a run's folder is made for it."""
    with handlers_kept(), _cluster(address, None):
        pass


def _host(
    ray: Any,
    source: PackSource,
    make_runner: RunnerFactory,
    on_event: OnEvent,
    capacity: Callable[[], int],
    run_dir: Path,
    gpus: bool,
) -> None:
    from ray import cloudpickle, tune
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from mup_tune.engine.lanes import ForwardedError, Host, Lane, LaneSearcher
    from mup_tune.engine.mailbox import Mailbox

    name = f"mup-tune-{uuid.uuid4().hex[:12]}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    factory = cloudpickle.dumps(make_runner)  # type: ignore[no-untyped-call]
    mailbox = ray.remote(Mailbox).options(name=name, num_cpus=0, scheduling_strategy=here).remote(factory)

    def send(lane: str, attempt: int, work: Any) -> None:
        mailbox.put.remote(lane, (attempt, work))

    dispatcher = Dispatcher(source, capacity, send, on_event)
    host = Host(mailbox, dispatcher, on_event)
    try:
        tune.run(
            Lane,
            name="lanes",
            storage_path=str(run_dir.absolute() / "ray"),
            search_alg=LaneSearcher(capacity, name),
            num_samples=-1,
            resources_per_trial={"cpu": 1, "gpu": 1} if gpus else {"cpu": 1},
            max_failures=-1,
            callbacks=[host],
            stop=host,
            verbose=0,
            raise_on_failed_trial=False,
            trial_name_creator=lambda trial: str(trial.config["lane"]),
            trial_dirname_creator=lambda trial: str(trial.config["lane"]),
        )
    except ForwardedError as forwarded:
        raise forwarded.error from None
    if not dispatcher.done:
        raise KeyboardInterrupt  # Tune's loop ended, and the run did not


def _capacity(ray: Any, device: str, lanes: int | None) -> Callable[[], int]:
    """How many lanes there could be now: devices of the cluster's live nodes, at most ``lanes``."""
    known, at = 0, -CAPACITY_EVERY_S

    def capacity() -> int:
        nonlocal known, at
        if time.monotonic() - at >= CAPACITY_EVERY_S:
            known, at = int(ray.cluster_resources().get(device, 0)), time.monotonic()
        return known if lanes is None else min(known, lanes)

    return capacity


@contextlib.contextmanager
def _cluster(address: str | None, num_cpus: int | None) -> Iterator[Any]:
    """Ray, connected, and disconnected at the end; a Ray of our own leaves no process and no file behind."""
    os.environ.update(DRIVER_ENV)
    if address is None:
        _give_token()
    else:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", str(CONNECT_TRIES))
    import ray

    for noisy in ("ray.tune", "ray.air"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        temp_dir = str(stack.enter_context(session())) if address is None else None
        if temp_dir and "HOME" not in os.environ:  # Ray and its agents want one, and keep nothing there
            os.environ["HOME"] = temp_dir
            stack.callback(os.environ.pop, "HOME", None)
        try:
            if temp_dir:
                _start(ray, temp_dir, num_cpus)
            else:
                _join(ray, str(address))
            yield ray
        finally:
            with stops_deferred():
                ours = _processes(temp_dir) if temp_dir else []
                ray.shutdown()
                _end(ours)
                _end(_processes(temp_dir) if temp_dir else [])  # started since


@functools.cache
def _give_token() -> None:
    """The token that guards the ports of a Ray of our own; Ray would keep one in the user's home."""
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _start(ray: Any, temp_dir: str, num_cpus: int | None) -> None:
    umask = os.umask(0o077)
    try:
        ray.init(
            address="local",  # never whatever RAY_ADDRESS or a stale file names
            num_cpus=usable_cores() if num_cpus is None else num_cpus,  # Ray counts the machine's
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            _temp_dir=temp_dir,
            _system_config=HEALTH,
            **COMMON,
        )
    finally:
        os.umask(umask)


def _join(ray: Any, address: str) -> None:
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdigit()):
        raise UserError(
            f"{address!r} is no address of a Ray cluster",
            field="--address",
            fix="Give HOST:PORT as `ray start --head` prints it, or `auto` on a node of the cluster",
        )
    said: list[str] = []
    try:
        if host:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
            _agree_on_token(address)
        with _stderr_into(said):
            ray.init(address=address, **COMMON)
    except (OSError, OverflowError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        if isinstance(error, ray.exceptions.AuthenticationError) or REFUSED in "".join(said):
            raise _unauthenticated(address) from None
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(
            f"no Ray cluster answers at {address!r} ({reason})",
            field="--address",
            fix="Compare with `ray status`; all nodes need the same ~/.ray/auth_token",
        ) from None


def _agree_on_token(address: str) -> None:
    """Let Ray send our token to a cluster that asks for one: by itself it does so for ``auto`` alone.

    Where the cluster asks for none, a driver with a token would turn the cluster's workers away.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None and not _token_place():
        return  # ray.init finds what is wrong
    refused = _refused(address)
    if refused and mode is None and _token_place():
        os.environ["RAY_AUTH_MODE"] = "token"
        importlib.import_module("ray._raylet").Config.initialize("")  # read again, as ray.init("auto") does
        refused = _refused(address)
    if refused:
        raise _unauthenticated(address)


def _refused(address: str) -> bool:
    """Whether the cluster refuses our token, or that we send none. Not by ``ray.init``: it tries for long."""
    said: list[str] = []
    with contextlib.suppress(Exception), _stderr_into(said):
        importlib.import_module("ray._raylet").GcsClient(address=address)
    return REFUSED in "".join(said)


def _unauthenticated(address: str) -> UserError:
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        problem, fix = f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']} gives it none", "Unset RAY_AUTH_MODE"
    elif place := _token_place():
        problem, fix = f"refuses that of {place}", "Put the head's token there"
    else:
        problem, fix = "there is none here", "Copy the head's ~/.ray/auth_token, or set RAY_AUTH_TOKEN"
    return UserError(f"the Ray cluster at {address!r} asks for a token and {problem}", field="--address", fix=fix)


def _token_place() -> str | None:
    """Where Ray finds a token, in its order."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    return file if os.path.isfile(file) else None


@contextlib.contextmanager
def _stderr_into(said: list[str]) -> Iterator[None]:
    """What Ray's C++ part prints goes to ``said``: it names a refused token, and Ray's exception does not."""
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            said.append(file.read())


def _processes(temp_dir: str) -> list[Any]:
    """The processes of the Ray that lives in ``temp_dir``: all that name it, and their children.

    A worker that starts while its raylet ends is nobody's child, and names the folder. One that works calls
    itself otherwise, and is a raylet's child.
    """
    psutil = importlib.import_module("psutil")  # comes with Ray
    ours: list[Any] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and temp_dir in " ".join(process.cmdline()):
                ours += [process, *process.children(recursive=True)]
    return ours


def _end(processes: list[Any]) -> None:
    """Kill what an interrupted start leaves, and agents that would linger for a minute and write files."""
    psutil = importlib.import_module("psutil")
    for process in processes:
        with contextlib.suppress(psutil.Error):  # mostly: it is gone
            process.kill()
    psutil.wait_procs(processes, timeout=10)
