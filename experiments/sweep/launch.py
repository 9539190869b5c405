"""The launch of a plan on Ray: failures isolated, progress shown, exactly one result per run.

The driver decides what starts when; Ray only executes.  A run that raises has failed and is not
retried; one whose worker died is retried from its checkpoint.  Leases, not this driver, ensure that
nobody else works on the same run: another driver may be at work on the same study, or workers of
one that died.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, Self

from experiments.store.curve import last_row
from experiments.store.lease import ask_to_stop, at_work, break_lease, holder, unask
from experiments.sweep.cluster import LOCAL, check_nodes, machines, ray_session, this_machine
from experiments.sweep.plan import Plan, PlannedRun, Resources, write_study
from experiments.sweep.show import Display
from experiments.sweep.work import (
    ELSEWHERE,
    FAILED,
    LOG,
    STOPPED,
    execute,
    execute_together,
)
from fitting.entry.interrupts import interrupt
from fitting.results.record import RESULT, RunRecord, look_at

_MAX_DEATHS = 3
"""Deaths of workers under one run in one launch, after which it is left alone."""
_BACK_OFF_SECONDS = 1.0
"""Seconds before a run whose worker died starts again; doubles with each death."""
_POLL_SECONDS = 0.5
_LOOK_SECONDS = 2.0
"""Seconds between two looks at the cluster's size and at runs that others work on."""
_GRACE_SECONDS = 20.0
"""Seconds that interrupted runs get to write a checkpoint; a second Ctrl-C does not wait."""
_HANG_SECONDS = 120.0
"""Seconds beyond `timeout_seconds` after which a run that does not stop by itself is killed."""
_ROOM_SECONDS = 600.0
"""Seconds that the driver waits for a cluster that lost the nodes its runs need."""


@dataclass
class Outcome:
    """The outcome of a sweep."""

    wanted: int
    """Runs of the plan."""
    records: list[RunRecord] = field(default_factory=list)
    signal: int = 0
    """The signal that ended it, if one did."""

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed or left nothing."""
        done = sum(record.status != "failed" for record in self.records)
        return 0 if done == self.wanted else 1


def launch(
    plan: Plan, address: str = LOCAL, max_parallel: int | None = None, dashboard: bool = False
) -> Outcome:
    """Run everything that is to do and return the records of the whole plan.

    Raises:
        ConfigError: A run asks for more than there is, or a node is unsuitable; nothing started.
    """
    to_do = plan.to_do
    if address == LOCAL:
        for run in to_do:
            run.refuse_unless_held_by([this_machine()])
        if to_do:
            write_study(plan)  # a folder that cannot be written to is known before Ray starts
    outcome = Outcome(wanted=len(plan.runs))
    if to_do:
        with _Terminable() as terminable, ray_session(address, dashboard) as ray:
            terminable.listen()
            if address != LOCAL:
                for run in to_do:
                    run.refuse_unless_held_by(machines(ray))
                check_nodes(ray, plan.study_folder)
            if dashboard and (url := ray._private.worker.global_worker.node.webui_url):
                print(f"Ray's dashboard: http://{url} (it asks for RAY_AUTH_TOKEN, yours to set)")
            if address != LOCAL:
                write_study(plan)
            with Display(plan) as display:
                if _Driver(ray, plan, display, max_parallel).drive():
                    outcome.signal = terminable.received or signal.SIGINT
            write_study(plan)  # again: a driver that began at the same moment may have missed ours
    for run in plan.runs:
        record, damaged = look_at(run.folder)
        if record is not None:
            outcome.records.append(record)
        if damaged:
            print(f"damaged: {damaged}", file=sys.stderr)
    return outcome


class _Terminable:
    """Handler that lets SIGTERM, which batch systems send before they kill, act like Ctrl-C."""

    def __init__(self) -> None:
        self.received = 0
        """The signal.  The exception cannot carry it: Ray raises its own in its place."""
        self._before: Any = None

    def __enter__(self) -> Self:
        """Begin to listen, if possible: in the main thread."""
        self.listen()
        return self

    def listen(self) -> None:
        """Listen again: Ray has put a handler of its own in place, which aborts."""
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, self._stop)
            self._before = self._before or before

    def __exit__(self, *_: object) -> None:
        """Restore the previous handler."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        interrupt(number, frame)


@dataclass
class _Task:
    """A run handed to Ray."""

    run: PlannedRun
    token: str
    began: float | None = None
    """When its lease was first seen: before that it waits for a worker."""


class _Driver:
    """One launch."""

    def __init__(self, ray: Any, plan: Plan, display: Display, max_parallel: int | None) -> None:
        self.ray, self.plan, self.display = ray, plan, display
        self.max_parallel = max_parallel
        self.waiting = plan.to_do
        self.elsewhere: list[PlannedRun] = []
        self.running: dict[Any, _Task] = {}
        self.deaths: dict[str, int] = {}
        self.not_before: dict[str, float] = {}
        self.spent_hours = 0.0
        self.stopping = False
        self.remote = {
            "none": ray.remote(max_retries=0)(execute),
            "process": ray.remote(max_retries=0, max_calls=1)(execute),
            "together": ray.remote(max_retries=0, num_cpus=0)(execute_together),
        }
        self.capacity = self._capacity()
        self.last_look = self.last_room = time.monotonic()

    def drive(self) -> bool:
        """Work until nothing is left; returns whether it was interrupted."""
        try:
            while self.waiting or self.running or self.elsewhere:
                self._look()
                if self.stopping:
                    self._stop_running()
                    return False
                self._admit()
                if self.running:
                    ready, _ = self.ray.wait(
                        list(self.running), num_returns=1, timeout=_POLL_SECONDS
                    )
                    for reference in ready:
                        self._ended(reference)
                else:
                    time.sleep(_POLL_SECONDS)
                runs = (task.run for task in self.running.values())
                self.display.update({run.run_id: last_row(run.folder) for run in runs})
        except KeyboardInterrupt:
            with contextlib.suppress(KeyboardInterrupt):
                self._stop_running()
            return True
        except OSError:  # of the store: running runs must not die with this driver
            self._stop_running()
            raise
        return False

    def _capacity(self) -> Resources:
        return sum(machines(self.ray), Resources(0.0))

    @property
    def _free(self) -> Resources:
        used = sum((task.run.takes for task in self.running.values()), Resources(0.0))
        return self.capacity - used

    def _look(self) -> None:
        """Look at what changes without us: the cluster, runs of others, runs that hang."""
        now = time.monotonic()
        if now - self.last_look < _LOOK_SECONDS:
            return
        self.last_look = now
        self.capacity = self._capacity()
        for run in list(self.elsewhere):
            if (run.folder / RESULT).exists() or at_work(run.folder) is None:
                self.elsewhere.remove(run)
                self.waiting.insert(0, run)
        for reference, task in self.running.items():
            who = holder(task.run.folder)
            if task.began is None and who is not None and who.token == task.token:
                task.began = now
            given = task.run.config.timeout_seconds
            if given and task.began is not None and now - task.began > given + _HANG_SECONDS:
                self.deaths[task.run.run_id] = _MAX_DEATHS  # it would only hang again
                self.ray.cancel(reference, force=True)

    def _admit(self) -> None:
        """Start what fits, longest first."""
        now = time.monotonic()
        budget = self.plan.sweep.budget.hours
        for run in list(self.waiting):
            if self.max_parallel is not None and len(self.running) >= self.max_parallel:
                break
            if (run.folder / RESULT).exists():  # by another driver, since we planned
                self.waiting.remove(run)
                self.display.ended(run, *look_at(run.folder), run.folder / LOG)
                continue
            if now < self.not_before.get(run.run_id, 0.0) or not self._free.holds(run.takes):
                continue
            if (who := at_work(run.folder)) is not None:
                self.waiting.remove(run)
                self.elsewhere.append(run)
                self.display.elsewhere(run, f"process {who.pid} on {who.host} is at work on it")
                continue
            if budget and self.spent_hours + self._hours(run) > budget:
                self.display.say(
                    f"budget.hours={budget:g}: {self.spent_hours:.3g} are spent; the runs left no "
                    "longer fit"
                )
                self.waiting.clear()
                break
            self.waiting.remove(run)
            self._start(run)
        ready = [run for run in self.waiting if now >= self.not_before.get(run.run_id, 0.0)]
        if self.running or self.elsewhere or not ready:
            self.last_room = now
        elif now - self.last_room > _ROOM_SECONDS:
            self.display.say(
                f"the cluster has {self.capacity} left and for {_ROOM_SECONDS:g} s had no room for "
                f"the {len(ready)} runs that wait; the same command goes on from here"
            )
            self.waiting.clear()

    def _start(self, run: PlannedRun) -> None:
        own, task = run.config.resources, _Task(run, token=uuid.uuid4().hex)
        if run.config.trainer.num_workers > 1:
            remote = self.remote["together"]
        else:
            remote = self.remote[own.isolate].options(
                num_cpus=own.cpus, num_gpus=own.gpus, memory=int(own.memory * 2**30) or None
            )
        self.running[remote.remote(asdict(run.config), task.token)] = task
        self.display.started(run)

    def _hours(self, run: PlannedRun) -> float:
        return self.plan.seconds(run) * run.devices / 3600

    def _ended(self, reference: Any) -> None:
        task = self.running.pop(reference)
        run, log = task.run, task.run.folder / LOG
        if task.began is not None:
            self.spent_hours += (time.monotonic() - task.began) * run.devices / 3600
        try:
            how, why = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:  # the worker is gone, not the run
            break_lease(run.folder, task.token)
            why = _reason(self.ray, error)
            deaths = self.deaths[run.run_id] = self.deaths.get(run.run_id, 0) + 1
            if deaths < _MAX_DEATHS:
                self.not_before[run.run_id] = time.monotonic() + _BACK_OFF_SECONDS * 2 ** (
                    deaths - 1
                )
                self.display.retried(run, why)
                self.waiting.insert(0, run)
                return
            how, why = FAILED, f"{why}, {min(deaths, _MAX_DEATHS)} times"
        self.not_before.pop(run.run_id, None)
        if how == ELSEWHERE:
            self.elsewhere.append(run)
            self.display.elsewhere(run, why)
            return
        if how == STOPPED:  # by somebody other than us
            self.waiting.insert(0, run)
            return
        record, damaged = look_at(run.folder)
        self.display.ended(run, record, why or damaged, log)
        if how == FAILED and self.plan.sweep.on_failure == "stop":
            self.stopping = True

    def _stop_running(self) -> None:
        """Let running runs write a checkpoint; those still running in the end die with our Ray.

        Not by `ray.cancel`: where a task ends at the moment of its cancellation, as it does if the
        signal reached its worker too, Ray 2.60 aborts the driver (task_manager.cc, "Tried to
        complete task that was not pending").
        """
        busy = []
        for reference, task in self.running.items():
            who = None
            with contextlib.suppress(OSError):  # no waiting for one that cannot be asked
                ask_to_stop(task.run.folder, task.token)
                who = holder(task.run.folder)
            if who is not None and who.token == task.token:  # else it has nothing to lose
                busy.append(reference)
        try:
            if busy:
                self.ray.wait(busy, num_returns=len(busy), timeout=_GRACE_SECONDS)
        finally:  # even after a second Ctrl-C
            for task in self.running.values():
                with contextlib.suppress(OSError):
                    break_lease(task.run.folder, task.token)
                    unask(task.run.folder, task.token)


def _reason(ray: Any, error: Exception) -> str:
    """One line for the death of a worker."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return (
            "Ray killed its worker because its machine ran out of memory: set resources.memory so "
            "that fewer runs share it, or lower batch_size"
        )
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        return "its worker died (killed from outside, or by the kernel for lack of memory)"
    return f"its worker is gone ({type(error).__name__})"
