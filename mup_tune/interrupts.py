"""Signals that ask a program to stop. Each becomes a KeyboardInterrupt: one way out serves them all."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

# Ctrl-C; SLURM's preemption, time limit and Kubernetes; a closed terminal; `sbatch --signal=USR1@60`.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

AGAIN_S = 0.05  # after which an interrupt that was lost comes again

_received: list[signal.Signals] = []  # libraries raise a KeyboardInterrupt of their own in place of ours
_set_handler = signal.signal  # the real one, also while `handlers_kept` holds others back


def cause() -> signal.Signals:
    """The signal behind an interrupt, told inside :func:`stop_signals`. SIGINT where nobody knows."""
    return _received[0] if _received else signal.SIGINT


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Inside, every signal of ``STOPS`` is a KeyboardInterrupt; what was ignored (nohup) stays ignored."""
    terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    def stop(number: int, frame: FrameType | None) -> None:
        _received.append(signal.Signals(number))
        _drop_closed(terminals)
        raise KeyboardInterrupt

    try:
        with _handled_by(stop), _none_lost():
            yield
    finally:
        _received.clear()


@contextlib.contextmanager
def _none_lost() -> Iterator[None]:
    """Inside, an interrupt that strikes where Python can only print it is not printed, and comes again."""
    before, main = sys.unraisablehook, threading.main_thread().ident
    assert main is not None
    timers: list[threading.Timer] = []

    def repeat(what: sys.UnraisableHookArgs) -> None:
        if _received and isinstance(what.exc_value, KeyboardInterrupt):
            again = threading.Timer(AGAIN_S, signal.pthread_kill, (main, _received[0]))  # also wakes a wait
            again.daemon = True
            again.start()
            timers.append(again)
        else:
            before(what)

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()


def check_stopped() -> None:
    """Raise again what was received: a library may have caught it."""
    if _received:
        raise KeyboardInterrupt


@contextlib.contextmanager
def stops_deferred() -> Iterator[None]:
    """Hold stop signals back for a moment; the interrupt comes afterwards."""
    held: list[signal.Signals] = []
    with _handled_by(lambda number, frame: held.append(signal.Signals(number))):
        yield
    if held:
        _received.extend(held)
        raise KeyboardInterrupt


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Inside, no library takes a stop signal for itself: Ray would exit, Tune call its loop finished."""

    def refuse(number: int, handler: signal._HANDLER) -> signal._HANDLER:
        return signal.getsignal(number) if number in STOPS else _set_handler(number, handler)

    signal.signal = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = _set_handler


@contextlib.contextmanager
def _handled_by(handler: signal._HANDLER) -> Iterator[None]:
    """``handler`` for every stop signal that is not ignored; only the main thread can set handlers."""
    before: dict[int, signal._HANDLER] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: old for number in STOPS if (old := signal.getsignal(number)) not in (signal.SIG_IGN, None)}
    for number in before:
        _set_handler(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            _set_handler(number, old)


def _drop_closed(terminals: list[int]) -> None:
    """What is written to a terminal that was closed would be an error: it goes nowhere instead."""
    for stream in terminals:
        if not os.isatty(stream):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)
