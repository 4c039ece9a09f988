"""Kernels are compiled side by side before the first is launched: one after another they take 20 seconds."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import signal
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, TypeVar

import triton
from triton.runtime.jit import JITFunction

from mup_tune.cores import usable_cores

T = TypeVar("T")
PATIENCE_S = 120.0  # with a forked process; a kernel takes 3 s at most


def compile_ahead(launches: Callable[[], object]) -> None:
    """Compile every kernel that ``launches`` would launch, on all cores, and launch none.

    What kernels would have written then holds anything, so ``launches`` must not look at it. Kernels that
    Triton's cache holds are only loaded. A Triton without asynchronous compilation compiles at the launch.
    """
    asynchronous: Any = getattr(triton, "AsyncCompileMode", None)
    if asynchronous is None:
        return
    forks, launch = Forks(), JITFunction.run

    class Mode(asynchronous):  # type: ignore[misc]
        def submit(self, key: str, compile_one: Callable[[], Any], finish: Callable[[Any], None]) -> Any:
            forks.worth = not _kept(key)
            return super().submit(key, lambda: _with_launcher(compile_one()), finish)

    def compile_only(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        return launch(kernel, *args, **{**kwargs, "warmup": True})

    with warnings.catch_warnings(), Mode(forks):
        # Autograd's thread meets a product before any kernel of ours has made its context.
        warnings.filterwarnings("ignore", message="Attempting to run cuBLAS")
        JITFunction.run = compile_only
        try:
            launches()
        finally:
            JITFunction.run = launch
            forks.join()


def _with_launcher(kernel: Any) -> Any:
    """The kernel, with the C stub that launches it built too: gcc takes as long as the compiler."""
    with contextlib.suppress(Exception):  # made again at the launch, where an error would matter
        triton.runtime.driver.active.launcher_cls(kernel.src, kernel.metadata)
    return kernel


def _kept(key: str) -> bool:
    """Whether Triton's cache on disk seems to hold a kernel; being wrong costs time alone."""
    try:
        name = base64.b32encode(hashlib.sha256(key.encode()).digest()).decode().rstrip("=")
        return (Path(triton.knobs.cache.dir) / name).is_dir()
    except (AttributeError, OSError):
        return False


class Forks(Executor):
    """Runs calls whose only fruit lies on disk: in a forked process each, and once more here to load it.

    Threads would not do, since Triton holds Python's lock for most of a compilation. ``worth``: whether the
    next call is long enough to be forked.
    """

    def __init__(self, most: int | None = None) -> None:
        self.worth = True
        self._most = most or usable_cores()
        self._running: list[int] = []
        self._calls: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        self._calls.append((future, lambda: call(*args, **kwargs)))
        if self.worth and self._most > 1:
            if len(self._running) >= self._most:
                _end(self._running.pop(0))
            self._running.append(_forked(self._calls[-1][1]))
        return future

    def join(self) -> None:
        """Wait for all processes, then make every call here; one that failed there is repeated here."""
        while self._running:
            _end(self._running.pop(0))
        for future, call in self._calls:
            try:
                future.set_result(call())
            except Exception as error:
                future.set_exception(error)
        self._calls.clear()


def _forked(call: Callable[[], Any]) -> int:
    """A child that makes the call and nothing else, by its process number."""
    with warnings.catch_warnings():
        # Python warns where there are threads. The child waits for none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process == 0:
        try:
            call()
        finally:
            os._exit(0)
    return process


def _end(process: int) -> None:
    """Wait for a child, and kill one that hangs."""
    until = time.monotonic() + PATIENCE_S
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return
        time.sleep(0.005)
