"""Weights & Biases: a mirror of a run, offline by default, never a reason to fail or to wait.

Whatever W&B does, a run goes on: a server that is down, slow or refuses the key turns
`tracking.mode=online` into offline (nothing is lost: `lowbit-sync` pushes it later), a mirror that
breaks is dropped, and both ends of a run take a bounded time.

W&B's own process is kept between runs, since starting it takes longer than sending a run's rows; it
ends with this process, or as soon as it fails to do what it was asked.

A resumed run continues its curve.  Every attempt has its own file under the same id.  Online, rows
of earlier attempts that the server lacks are sent first, and rows that it has are not sent again;
so the number of its rows tells which rows they are.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from experiments.mirror.files import WandbRun, mark_synced, read_run, row_key, run_files
from fitting.entry.errors import Failure, first_line

if TYPE_CHECKING:  # it imports torch, for which lowbit-sync has no use
    from experiments.config.schema import TrainConfig

_LOG = logging.getLogger(__name__)
_INIT_SECONDS = 20.0
"""Seconds that a run waits for the server before it starts."""
_FINISH_SECONDS = 30.0
"""Seconds that it waits at its end for the last rows to arrive."""
_CLOSE_SECONDS = 5.0
"""Seconds that W&B's own process may take for anything else before it is killed."""
_FLUSH_SECONDS = 2.0
"""Seconds of the mirror that are lost with a machine."""
_AVOID_SECONDS = 600.0
"""Seconds after the server failed a run during which the next ones here do not ask it: in a sweep
the waiting would add up."""
_avoid_until = 0.0


class TrackingError(Failure):
    """A failure of W&B to do what it was asked; one line that says why."""


@dataclass
class Mirror:
    """One run being logged to W&B by this process."""

    run: Any
    """W&B's."""
    online: bool
    finish_seconds: float
    seen: set[Any] = field(default_factory=set)
    """Keys of rows that W&B has from earlier attempts."""
    broken: bool = False


_current: Mirror | None = None
"""W&B allows one run per process."""


def tags(config: TrainConfig) -> list[str]:
    """Tags to filter runs by: recipe, format, model."""
    found = [config.recipe.name, config.model.name]
    if config.recipe.uses_run_precision:
        found += [f"E{config.precision.exponent}M{config.precision.mantissa}"]
        found += [config.precision.granularity]
    return found


def start(
    config: TrainConfig,
    run_id: str,
    folder: Path,
    attempt: int,
    columns: Mapping[str, int | str] = MappingProxyType({}),
) -> Mirror | None:
    """Begin to mirror an attempt at a run; group is the study, job type "train".

    Args:
        config: The run's configuration.
        run_id: The run's address.
        folder: Its folder, for W&B's files.
        attempt: 1, 2, ...
        columns: For W&B's table of runs, beside the configuration.

    Returns:
        The argument of `log`; None if tracking is off, or W&B cannot even write a file.  W&B's own
        switch may ask for less than the configuration does: WANDB_MODE=disabled, or offline.
    """
    global _avoid_until
    switch = os.environ.get("WANDB_MODE")
    if config.tracking.mode == "none" or switch == "disabled":
        return None
    described = WandbRun(
        run_id=run_id,
        group=config.study.name,
        job_type="train",
        project=config.tracking.project,
        tags=tags(config),
        config=asdict(config) | dict(columns) | {"attempts": attempt},
    )
    online = config.tracking.mode == "online" and switch != "offline"
    if online and time.monotonic() >= _avoid_until:
        try:
            earlier = read_run(folder, run_id).history if run_files(folder) else []
            return connect(described, folder, earlier, _INIT_SECONDS, _FINISH_SECONDS)
        except (TrackingError, ValueError, OSError) as error:
            _avoid_until = time.monotonic() + _AVOID_SECONDS
            _LOG.warning(
                "tracking.mode=online: %s; the run goes on offline, push it with lowbit-sync", error
            )
    try:
        return _init(described, folder, "offline", _INIT_SECONDS, _CLOSE_SECONDS)
    except TrackingError as error:
        _LOG.warning("tracking: %s; the run goes on without W&B", error)
        return None


def connect(
    described: WandbRun,
    folder: Path,
    rows: list[dict[str, Any]],
    init_seconds: float,
    finish_seconds: float,
) -> Mirror:
    """Create the run on the server, or resume it, and bring it up to date.

    Args:
        described: Its identity and configuration.
        folder: Where W&B keeps its own files.
        rows: The curve so far, from its beginning.
        init_seconds: Time for the server to answer.
        finish_seconds: Time for the rows to arrive, once `finish` is called.

    Raises:
        TrackingError: No answer, no key, a wrong key.
    """
    mirror = _init(described, folder, "online", init_seconds, finish_seconds)
    for row in rows[mirror.run.starting_step :]:
        # W&B counts and times rows itself, but takes the time of day from us.
        log(mirror, {k: v for k, v in row.items() if not k.startswith("_") or k == "_timestamp"})
    mirror.seen = {row_key(row) for row in rows if "step" in row}
    return mirror


def log(mirror: Mirror | None, row: dict[str, float]) -> None:
    """Send one row of metrics; if W&B breaks down, the rest of the mirror is lost, not the run."""
    if mirror is None or mirror.broken or (mirror.seen and row_key(row) in mirror.seen):
        return
    try:
        mirror.run.log(row)
    except Exception as error:
        mirror.broken = True
        _LOG.warning("W&B broke down (%s); the run goes on without it", first_line(error))


def finish(exit_code: int) -> bool:
    """End the W&B run of this process, if there is one.

    Returns:
        Whether all rows are known to be on the server.
    """
    global _current, _avoid_until
    mirror, _current = _current, None
    if mirror is None:
        return False
    import wandb

    seconds = mirror.finish_seconds + _CLOSE_SECONDS
    closed = _within(seconds, lambda: wandb.finish(exit_code=exit_code))
    if not closed or mirror.broken:
        shut_down()
    if not mirror.online:
        return False
    arrived = closed and not mirror.broken and _uploaded(mirror.run.settings)
    if not arrived:
        _avoid_until = time.monotonic() + _AVOID_SECONDS
        _LOG.warning("W&B did not take all of the run; push it again with lowbit-sync")
    return arrived


def _uploaded(settings: Any) -> bool:
    """Whether a run that was closed without an error arrived; if so, its files are marked."""
    try:
        # W&B reports nowhere else that an upload failed for good.
        if "filestream: fatal error" in Path(settings.log_internal).read_text():
            return False
        # W&B's process closes the file in its own time, after the run has ended here.
        until = time.monotonic() + _CLOSE_SECONDS
        while read_run(Path(settings.sync_file)).exit_code is None and time.monotonic() < until:
            time.sleep(0.01)
        for file in run_files(Path(settings.root_dir)):
            mark_synced(file, file.stat().st_size)
    except (OSError, ValueError) as error:
        _LOG.debug("not known whether W&B has the run: %s", error)
        return False
    return True


def _init(
    described: WandbRun,
    folder: Path,
    mode: Literal["online", "offline"],
    init_seconds: float,
    finish_seconds: float,
) -> Mirror:
    global _current
    import wandb

    online = mode == "online"
    kept = _process()
    if kept is not None and kept.poll() is not None:
        shut_down()
    try:
        # Before anything else, or W&B prints whose key it found, and asks for one on a terminal.
        wandb.setup(wandb.Settings(silent=True, console="off"))
        run = wandb.init(
            project=described.project,
            name=described.run_id,
            id=described.run_id,
            resume="allow" if online else None,
            dir=folder,
            mode=mode,
            group=described.group,
            job_type=described.job_type,
            tags=described.tags,
            config=described.config,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=init_seconds,
                finish_timeout=finish_seconds,
                host=described.host or None,
                x_start_time=time.time() - described.seconds if described.seconds else None,
                x_transaction_log_flush_interval=_FLUSH_SECONDS,
                x_disable_stats=True,
                x_disable_meta=True,
                x_save_requirements=False,
                disable_git=True,
            ),
        )
        # W&B's process belongs to this one: a child would find it in the environment and share it.
        os.environ.pop(wandb.env.SERVICE, None)
        run.define_metric("tokens")
        run.define_metric("*", step_metric="tokens")
    except Exception as error:
        shut_down()
        raise TrackingError(f"W&B did not start ({first_line(error)})") from error
    _current = Mirror(run, online, finish_seconds)
    return _current


def shut_down() -> None:
    """End W&B's own process, by force if need be; the next run starts another."""
    import wandb

    process = _process()
    _within(_CLOSE_SECONDS, lambda: wandb.teardown(exit_code=1))
    if process is not None:
        process.kill()
        process.wait()


def _process() -> Any:
    """W&B's own process, if it runs; there is no public API for it."""
    from wandb.sdk import wandb_setup

    process: Any = wandb_setup.singleton()
    for name in ("_connection", "_proc", "_process"):
        process = getattr(process, name, None)
    return process


def _within(seconds: float, do: Callable[[], object]) -> bool:
    """Whether W&B did something in time, and without an error."""
    done = threading.Event()

    def attempt() -> None:
        try:
            do()
            done.set()
        except (Exception, SystemExit) as error:  # it exits where its process was killed
            _LOG.debug("W&B: %s", error)

    attempting = threading.Thread(target=attempt, name="wandb-close", daemon=True)
    attempting.start()
    attempting.join(seconds)
    return done.is_set()
