"""Lanes as Ray Tune trials: what runs in a lane, and what Tune calls in the driver.

Import this only where :mod:`mup_tune.engine.ray` has set the environment: Ray reads it at import.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import ray
from ray import cloudpickle, tune
from ray.tune.search import Searcher

from mup_tune.engine.code import code, refuse_other
from mup_tune.engine.dispatch import Dispatcher, LaneLostError
from mup_tune.engine.events import PROGRESS_EVERY_S, OnEvent, throttled
from mup_tune.engine.mailbox import Parcel
from mup_tune.engine.work import Outcome, OutOfMemoryError, Runner, RunnerFactory, Work
from mup_tune.errors import UserError
from mup_tune.interrupts import check_stopped

STARTS_ALLOWED = 5  # lanes that die one after another before any comes up


class Lane(tune.Trainable):
    """One device for the whole run: a Tune trial whose every step is one pack."""

    def setup(self, config: dict[str, Any]) -> None:
        self.lane: str = config["lane"]
        self.code: dict[str, str] = config["code"]
        self.mailbox = ray.get_actor(config["mailbox"])
        self.report = throttled(lambda progress: self.mailbox.post.remote(progress))
        self.runner: Runner | None = None
        with contextlib.suppress(Exception):  # raised again, and reported, with the first work
            self._build()

    def step(self) -> dict[str, Any]:
        parcel = cast("Parcel | None", ray.get(self.mailbox.take.remote(self.lane)))
        if parcel is None:
            return {"done": True}
        attempt, work = parcel
        return {"attempt": attempt, "outcome": self._run(work)}

    def _build(self) -> Runner:
        if self.runner is None:
            refuse_other(self.code)  # first: what other code has pickled may not even load
            make_runner: RunnerFactory = cloudpickle.loads(cast("bytes", ray.get(self.mailbox.factory.remote())))
            self.runner = make_runner(self.lane)
        return self.runner

    def _run(self, work: Work) -> Outcome | Exception:
        try:
            return self._build()(work, self.report)
        except (UserError, OutOfMemoryError) as error:
            return error
        except Exception as error:
            # As text: unpickling a foreign exception would make the driver import torch, and can fail.
            flat = RuntimeError(f"{type(error).__name__}: {error}")
            flat.add_note(traceback.format_exc())
            return flat


class ForwardedError(BaseException):
    """Carries an exception through Tune's loop, which would turn it into a TuneError with a text in it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@contextlib.contextmanager
def _forwarding() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ForwardedError(error) from error


class Host(tune.Callback, tune.Stopper):
    """Tune's view of the run: lanes start, answer and fail; the experiment is over when the source is."""

    def __init__(self, mailbox: Any, dispatcher: Dispatcher, on_event: OnEvent) -> None:
        self._mailbox, self._dispatcher, self._on_event = mailbox, dispatcher, on_event
        self._failed_starts = 0
        self._up: dict[str, Any] = {}  # actor handles by lane
        self._drained, self._asked = mailbox.drain.remote(), time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        lane = trial.config["lane"]
        self._failed_starts = 0
        self._up[lane] = trial.temporary_state.ray_actor
        with _forwarding():
            self._dispatcher.joined(lane)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "outcome" not in result:
            return
        with _forwarding():  # popped: Tune keeps a lane's last result for its own snapshots
            self._dispatcher.finished(trial.config["lane"], result.pop("attempt"), result.pop("outcome"))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        lane, error = trial.config["lane"], _reason(trial)
        actor = self._up.pop(lane, None)
        if actor is not None:
            ray.kill(actor)  # an unreachable actor may still live and hold the device
        self._mailbox.forget.remote(lane)
        with _forwarding():
            self._failed_starts += actor is None
            if self._failed_starts > STARTS_ALLOWED:
                raise RuntimeError(f"lanes die while they start: {error}")
            self._dispatcher.left(lane, error)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune calls this about ten times a second: report progress where there is any, without waiting."""
        check_stopped()
        now = time.monotonic()
        if now - self._asked < PROGRESS_EVERY_S or not ray.wait([self._drained], timeout=0)[0]:
            return
        with _forwarding():
            for progress in ray.get(self._drained):
                self._on_event(progress)
        self._drained, self._asked = self._mailbox.drain.remote(), now

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its stopper into snapshots that nobody reads; the source must stay out of them

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._dispatcher.done:
            self._mailbox.close.remote()  # ends lanes that wait for work
        return self._dispatcher.done


def _reason(trial: Any) -> Exception:
    """Why Tune lost a lane; death by Ray's memory monitor is an OutOfMemoryError like any other."""
    error: Any = None
    with contextlib.suppress(Exception):
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return OutOfMemoryError(str(error).splitlines()[0])
    text = " ".join(str(error or "no reason given").split())
    detail = re.search(r"Worker exit detail: (.+?)(?: Some common causes|$)", text)
    return LaneLostError(
        f"its process died (killed, out of memory or crashed): {detail.group(1)}" if detail else text[:300]
    )


class LaneSearcher(Searcher):
    """Tune's source of trials: one lane per device, and another whenever the cluster has grown."""

    def __init__(self, capacity: Callable[[], int], mailbox: str) -> None:
        super().__init__()
        self._capacity, self._mailbox, self._lanes, self._code = capacity, mailbox, 0, code()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if self._lanes >= self._capacity():
            return None
        self._lanes += 1
        return {"lane": f"lane-{self._lanes - 1}", "mailbox": self._mailbox, "code": self._code}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass  # the journal is the run's truth; Tune restores nothing

    def restore(self, checkpoint_path: str) -> None:
        pass
