from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from mup_tune.errors import InterruptedRunError
from mup_tune.interrupts import STOPS, cause, check_stopped, handlers_kept, stop_signals, stops_deferred


@pytest.fixture(autouse=True)
def _handlers_restored() -> Iterator[None]:
    before = [signal.getsignal(number) for number in STOPS]
    yield
    assert [signal.getsignal(number) for number in STOPS] == before


@pytest.mark.usefixtures("hangups_heard")
@pytest.mark.parametrize("number", STOPS)
def test_every_stop_signal_is_an_interrupt_whose_exit_code_tells_it(number: signal.Signals) -> None:
    with stop_signals():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert cause() == number
        with pytest.raises(KeyboardInterrupt):  # lost in a destructor, say
            check_stopped()
        error = InterruptedRunError("Go on.")
    assert error.exit_code == 128 + number
    assert str(error) == ("Interrupted" if number == signal.SIGINT else f"Interrupted by {number.name}") + ". Go on."
    check_stopped()  # forgotten with the command


def test_an_interrupt_in_a_destructor_comes_again_and_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def die_and_wait() -> None:
        Dying()
        time.sleep(60)

    started = time.monotonic()
    with stop_signals():
        with pytest.raises(KeyboardInterrupt):
            die_and_wait()
        assert time.monotonic() - started < 30
        assert cause() == signal.SIGTERM
    assert capsys.readouterr().err == ""


def test_other_errors_in_a_destructor_are_printed_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = []
    monkeypatch.setattr("sys.unraisablehook", lambda what: printed.append(what.exc_type))

    class Dying:
        def __del__(self) -> None:
            raise ZeroDivisionError

    with stop_signals():
        Dying()
    assert printed == [ZeroDivisionError]


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_deferred_signal_interrupts_afterwards() -> None:
    with stop_signals():
        came = []

        def twice() -> None:
            with stops_deferred():
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGINT)
                came.append("the end")

        with pytest.raises(KeyboardInterrupt):
            twice()
        assert came == ["the end"]
        assert cause() == signal.SIGTERM


def test_a_library_cannot_take_a_stop_signal_for_itself() -> None:
    with stop_signals(), handlers_kept():
        ours = signal.getsignal(signal.SIGTERM)
        assert signal.signal(signal.SIGTERM, signal.SIG_IGN) == ours
        assert signal.getsignal(signal.SIGTERM) == ours
        others = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        assert signal.signal(signal.SIGUSR2, others) == signal.SIG_IGN
        with pytest.raises(KeyboardInterrupt), stops_deferred():
            signal.raise_signal(signal.SIGTERM)
