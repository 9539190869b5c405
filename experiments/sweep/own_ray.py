"""A sweep's own Ray on this machine: nobody else can reach it, and nothing of it is left behind.

Anyone who reaches a Ray cluster can run code on it as its user.  So ours listens on the loopback
device, asks for a random token that is in the environment of its processes and in no file, and
keeps its files in a folder that only its user can enter and that is removed when the sweep ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.config.precision import ConfigError
from fitting.entry.errors import Failure, first_line, one_line

_PREFIX = "lowbit-"
_OWNER = "owner"
"""A file that the sweep keeps locked as long as it lives; the kernel releases it, not we."""
_MODE, _TOKEN, _PLACE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR"
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""The longest name of a socket that the system accepts."""
_BELOW_PLACE = len(
    f"/{_PREFIX}12345678/1/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store"
)
"""Characters that Ray's longest socket adds to the path of our folder."""
_STARTS = 3
"""Attempts: Ray gives its own processes 15 s to start, which a busy machine may not do at first."""
_END_SECONDS = 10.0
"""Seconds that Ray's processes get to end by themselves."""


@contextlib.contextmanager
def own_ray(ray: Any, options: dict[str, Any]) -> Iterator[None]:
    """A Ray of our own for as long as the block lasts, however it ends.

    Args:
        ray: The package.
        options: For `ray.init`, beyond what is private.

    Raises:
        ConfigError: There is no place for its files.
        Failure: It does not start.
    """
    with _private_folder() as folder, _private_token(ray), _on_loopback(ray):
        try:
            _start(ray, folder, options)
            yield
        finally:
            _end(ray, folder)


def _start(ray: Any, folder: Path, options: dict[str, Any]) -> None:
    for attempt in range(1, _STARTS + 1):
        try:
            # Ray lets everybody into the folder that it is given: one inside ours.
            ray.init(_temp_dir=str(folder / str(attempt)), **options)
            return
        except Exception as error:  # Ray raises whatever comes up, Exception itself included
            why = one_line(first_line(error))
            _end(ray, folder)
            if "timed out" not in why.lower() or attempt == _STARTS:
                raise Failure(
                    f"Ray did not start on this machine ({why}); see that it has processes, open "
                    "files (ulimit -u, ulimit -n), memory and disk to spare, and try again"
                ) from error
            sys.stderr.write(f"Ray did not start in time; trying again ({attempt} of {_STARTS})\n")


def _end(ray: Any, folder: Path) -> None:
    """End every process of our Ray, even if it has started only in part."""
    import psutil  # Ray brings its own

    ours: dict[int, Any] = {}
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in word for word in child.cmdline()):
                ours |= {one.pid: one for one in [child, *child.children(recursive=True)]}
    patience = _END_SECONDS if ray.is_initialized() else 0.0
    ray.shutdown()
    _, alive = psutil.wait_procs(list(ours.values()), timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=_END_SECONDS)


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder that nobody else can enter and that is gone afterwards.

    In `RAY_TMPDIR`, else in `TMPDIR` if the names of sockets in it are short enough, else in /tmp.
    Folders of sweeps that were killed are removed on this occasion.
    """
    place = _place()
    try:
        _remove_dead(place)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    except OSError as error:
        raise ConfigError(
            f"{_PLACE}={place}: Ray's files cannot be put there ({error.strerror}); set it to a "
            "short path of a folder that you can write to"
        ) from error
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place() -> str:
    longest = _SOCKET_BYTES - _BELOW_PLACE
    given = os.environ.get(_PLACE)
    if given and len(os.fsencode(given)) > longest:
        raise ConfigError(
            f"{_PLACE}={given}: too long, as Ray's sockets are named after it; at most {longest} "
            "characters"
        )
    usual = os.environ.get("TMPDIR", "")
    return given or (usual if 0 < len(os.fsencode(usual)) <= longest else "/tmp")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Mark a folder as that of a living sweep."""
    made = folder / f".{_OWNER}"
    with open(made, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        made.rename(folder / _OWNER)  # locked from the first moment that others can find it
        yield


def _remove_dead(place: str) -> None:
    """Remove what killed sweeps of this user left."""
    for folder in Path(place).glob(f"{_PREFIX}????????"):
        with contextlib.suppress(OSError):  # another user's, alive, or just ending
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            with open(folder / _OWNER, "r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _private_token(ray: Any) -> Iterator[None]:
    """A token that nobody else knows, in the environment of Ray's processes while the block lasts.

    One that the user has put into the environment is kept.
    """
    before = {name: os.environ.get(name) for name in (_MODE, _TOKEN)}
    os.environ[_MODE] = "token"
    if not before[_TOKEN]:
        os.environ[_TOKEN] = secrets.token_hex(32)
    _read_again(ray)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _read_again(ray)


def _read_again(ray: Any) -> None:
    """Let Ray, which keeps what it read at import, see the environment."""
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _on_loopback(ray: Any) -> Iterator[None]:
    """Let Ray listen on the loopback device only, by the means it uses on macOS and Windows."""
    constants = ray._private.ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
