"""Leases with a heartbeat: they say who works on a run, so that two never finish the same one.

While attempt n is alive the run's folder holds `lease.<n>.json`, created exclusively, complete from
its first moment, and touched every quarter of its time to live.  The number only grows: to take
over a run whose holder is dead is to create number n + 1, which exactly one of several rivals can.
A holder that was taken for dead and lives (a zombie) finds a higher number, or its own file gone,
at the next `check` and stops: the number is a fencing token, checked before anything is written.

The one who started an attempt may ask it to stop: a file beside the lease, which its holder looks
for all the while, and which reaches any machine and any thread that a signal would not.

A holder is dead if its process is gone (known at once on the same machine) or if its heartbeat is
older than its time to live.  Ages are differences of two times of the store's own clock, never of a
machine's, so a clock an hour off does no harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fitting.entry.errors import Failure
from fitting.files.atomic import create_exclusive, write_atomic
from fitting.files.own_json import DamagedError, read_object

_NAME = re.compile(r"lease\.(\d+)\.json")
ATTEMPTS = "attempts.json"
_BEATS_PER_LIFE = 4
_UNREADABLE_TTL = 60.0
"""Seconds without a heartbeat after which a lease that cannot be read counts as dead."""
_REMEDY = "it counts as dead when its time is up"
_LOOK_SECONDS = 0.25
"""Seconds between two looks at whether the attempt is asked to stop."""


class Held(Failure):
    """A run on which somebody else is at work."""


class Fenced(Failure):
    """A run that somebody else has taken over: write nothing more."""


@dataclass(frozen=True)
class Holder:
    """The holder of a lease, as the lease describes it."""

    number: int
    """Number of the attempt; the fencing token."""
    token: str
    """A secret known only to the process that started the attempt."""
    host: str
    machine: str
    """Boot and process namespace in which `pid` means something; "" where that cannot be known."""
    pid: int
    born: str
    """When the process started, in the kernel's ticks: a process id is used again."""
    ttl: float
    """Seconds without a heartbeat after which it counts as dead."""


def holder(folder: Path) -> Holder | None:
    """The latest lease in a run's folder, alive or not; None if there is no folder yet."""
    if not folder.exists():
        return None
    for number in sorted(_numbers(folder), reverse=True):
        try:
            return _read_holder(_path(folder, number), number)
        except FileNotFoundError:  # released just now
            continue
        except DamagedError:  # whoever it was: dead when its time is up
            return Holder(number, "", "an unknown machine", "", 0, "", _UNREADABLE_TTL)
    return None


def _read_holder(path: Path, number: int) -> Holder:
    data = read_object(path, _REMEDY)
    try:
        who = Holder(**data)
    except TypeError as error:
        raise DamagedError(path, str(error), _REMEDY) from error
    words = (who.token, who.host, who.machine, who.born)
    right = (
        all(isinstance(word, str) for word in words)
        and type(who.pid) is int
        and who.number == number
        and type(who.ttl) in (int, float)
        and 0 <= who.ttl < float("inf")
    )
    if not right:
        raise DamagedError(path, "not a lease", _REMEDY)
    return who


def is_alive(folder: Path, who: Holder, reads_only: bool = False) -> bool:
    """Whether the holder of a lease still works on it.

    Args:
        folder: The run's.
        who: The holder, by its latest lease.
        reads_only: Leave the folder as it is.  Its clock cannot be asked then: this machine's
            stands in for it, which is good enough to show but not to take over by.
    """
    if who.machine and who.machine == _machine() and _born(who.pid) != who.born:
        return False
    path = _path(folder, who.number)
    try:
        age = (time.time() if reads_only else _store_time(folder)) - path.stat().st_mtime
    except FileNotFoundError:
        return False
    if reads_only:
        return abs(age) <= who.ttl
    if age < 0:
        # The store's clock was set back.  From now on its time runs; the living beat again.
        with contextlib.suppress(OSError):
            os.utime(path)
    return age <= who.ttl


def at_work(folder: Path, reads_only: bool = False) -> Holder | None:
    """The holder who works on a run now; arguments as for `is_alive`."""
    who = holder(folder)
    return who if who is not None and is_alive(folder, who, reads_only) else None


def break_lease(folder: Path, token: str) -> None:
    """Remove the lease of an attempt that its starter knows to be dead.

    The attempt counts even if it died before it could say so: its number is its own.
    """
    who = holder(folder)
    if who is not None and who.token == token:
        # A store that cannot keep the count now is no reason to keep a dead attempt's lease.
        with contextlib.suppress(OSError, DamagedError):
            if _attempts(folder) < who.number:
                _write_attempts(folder, who.number)
        _path(folder, who.number).unlink(missing_ok=True)


def ask_to_stop(folder: Path, token: str) -> None:
    """Ask an attempt, begun or about to begin, to write a checkpoint and end."""
    with contextlib.suppress(FileNotFoundError):  # not begun, and no folder yet
        _stop(folder, token).touch()


def unask(folder: Path, token: str) -> None:
    """Withdraw or remove the request."""
    _stop(folder, token).unlink(missing_ok=True)


class Lease:
    """The right to work on the run in `folder`, for as long as the `with` block lasts.

    Args:
        folder: The run's; must exist.
        ttl: Seconds without a heartbeat after which others may take over.
        token: A secret of the process that starts this attempt, for `break_lease`; "" makes one.

    Raises:
        Held: By somebody alive.
    """

    def __init__(self, folder: Path, ttl: float, token: str = "") -> None:
        self.folder = folder
        # The number follows from what is seen before it is known that nobody is alive: whoever
        # comes in between takes that very number, and creating it again fails.
        self.number = 1 + max(_attempts(folder), *_numbers(folder), 0)
        earlier = at_work(folder)
        if earlier is not None:
            raise Held(
                f"{folder.name} is being trained by process {earlier.pid} on {earlier.host} "
                f"(attempt {earlier.number})"
            )
        self.token = token or uuid.uuid4().hex
        pid = os.getpid()
        mine = Holder(
            self.number, self.token, platform.node(), _machine(), pid, _born(pid) or "", ttl
        )
        self._path = _path(folder, self.number)
        try:
            won = create_exclusive(json.dumps(asdict(mine)) + "\n", self._path)
        except FileNotFoundError:  # a rival has won and tidied up, our half-made lease included
            won = False
        if won and _attempts(folder) >= self.number:  # somebody came, and went again
            self._path.unlink()
            won = False
        if not won:
            raise Held(f"{folder.name} was taken by somebody else at the same moment")
        _write_attempts(folder, self.number)
        for number in _numbers(folder):
            if number < self.number:
                _path(folder, number).unlink(missing_ok=True)
        for path in set(folder.glob("stop.*")) - {_stop(folder, self.token)}:
            path.unlink(missing_ok=True)  # of attempts that have ended
        self.stop = threading.Event()
        """Set when this attempt is to stop: by the process that started it, or by its own."""
        self._ended = threading.Event()
        self._heart = threading.Thread(
            target=self._live, args=(ttl / _BEATS_PER_LIFE,), name="lease", daemon=True
        )

    def __enter__(self) -> Self:
        """Start the heartbeat."""
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the run back, however the block ended."""
        self._ended.set()
        self._heart.join()
        self._path.unlink(missing_ok=True)
        unask(self.folder, self.token)

    def check(self) -> None:
        """Make sure that this is still the latest attempt.

        Raises:
            Fenced: It is not.
        """
        if max(_numbers(self.folder), default=0) != self.number:
            raise Fenced(f"attempt {self.number} of {self.folder.name} was taken over")

    def _live(self, beat_seconds: float) -> None:
        last = time.monotonic()
        while not self._ended.wait(min(_LOOK_SECONDS, beat_seconds)):
            # A store that does not answer for a moment is no reason to stop the run.
            with contextlib.suppress(OSError):
                if _stop(self.folder, self.token).exists():
                    self.stop.set()
                if time.monotonic() - last >= beat_seconds:
                    os.utime(self._path)
                    last = time.monotonic()


def _path(folder: Path, number: int) -> Path:
    return folder / f"lease.{number}.json"


def _stop(folder: Path, token: str) -> Path:
    return folder / f"stop.{token}"


def _numbers(folder: Path) -> list[int]:
    return [int(match[1]) for name in os.listdir(folder) if (match := _NAME.fullmatch(name))]


def _attempts(folder: Path) -> int:
    """The number of starts of the run so far, as the last one wrote it."""
    path = folder / ATTEMPTS
    remedy = "delete it if nobody works on this run, and run the command again"
    try:
        attempts = read_object(path, remedy).get("attempts")
    except FileNotFoundError:
        return 0
    if type(attempts) is not int or attempts < 0:
        raise DamagedError(path, "attempts is not a count", remedy)
    return attempts


def _write_attempts(folder: Path, number: int) -> None:
    write_atomic(json.dumps({"attempts": number}) + "\n", folder / ATTEMPTS)


def _store_time(folder: Path) -> float:
    """Now, by the clock that stamps the files in `folder`."""
    probe = folder / f".now.{uuid.uuid4().hex}"
    try:
        with open(probe, "x") as file:
            return os.fstat(file.fileno()).st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    """Start time of a process on this machine; None if there is none, or only its remains."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *others = text.rpartition(")")[2].split()
    return None if state in "ZX" else others[18]
