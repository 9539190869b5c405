"""What a sweep costs beyond its training: `lowbit-train -m` beside Hydra's other launchers.

The same short runs on two slots, each launcher as a user starts it: a fresh process, everything
from the first import to the last exit on the clock.  The yardstick is what the runs themselves
recorded as training seconds while that launcher was at work, so that a machine that is slow, or
slow for a while, is slow for both sides of the ratio.  Runs are scored on 16 windows only: scoring
is work that was asked for, yet not training, and would pass for overhead.

    make bench-sweep
    python benchmarks/bench_sweep.py --runs 6 --only lowbit-train
    python benchmarks/bench_sweep.py --plan
    python benchmarks/bench_sweep.py --many 1000
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fitting.results.record import RESULT, RunRecord, read_record

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
APP = ROOT / "benchmarks" / "sweep" / "app.py"
OTHER_PYTHON = ROOT / ".venv-launchers" / "bin" / "python"
"""Of the environment that has hydra-ray-launcher, made by `make bench-sweep`."""
SLOTS = 2
START_UP_SECONDS, RATIO = 10.0, 1.10
"""The target: wall <= RATIO * training / SLOTS + START_UP_SECONDS."""
RUN = ["data.validation_windows=16"]
"""Beside the defaults of lowbit-train."""
CALIBRATION_TOKENS = 65_536
PLANNED = {
    "precision": ["e1m1", "e2m1", "e2m3", "e3m2", "e4m3"],
    "recipe": ["nearest", "sun"],
    "model": [f"ladder/{rung}" for rung in "abcd"],
    "seed": [str(seed) for seed in range(5)],
    "tokens": [str(1_000_000 * 2**doubling) for doubling in range(5)],
}
"""A grid of 1,000 runs."""


class BenchmarkError(RuntimeError):
    """A command that the benchmark started did not do what it was to do."""


@dataclass(frozen=True)
class Launcher:
    """A way to start a sweep."""

    command: tuple[str, ...]
    slots: int
    """Runs at a time."""


LAUNCHERS = {
    "lowbit-train": Launcher(
        (str(BIN / "lowbit-train"), "-m", f"hydra.launcher.max_parallel={SLOTS}"), SLOTS
    ),
    "hydra-ray-launcher": Launcher(
        (
            *(str(OTHER_PYTHON), str(APP), "-m", "hydra/launcher=ray", "hydra/sweeper=basic"),
            "hydra.launcher.ray.init.address=local",  # its default joins any Ray it finds
            f"+hydra.launcher.ray.init.num_cpus={SLOTS}",
            "+hydra.launcher.ray.remote.num_cpus=1",
        ),
        SLOTS,
    ),
    "hydra basic": Launcher(
        (sys.executable, str(APP), "-m", "hydra/launcher=basic", "hydra/sweeper=basic"), 1
    ),
}


@dataclass(frozen=True)
class Timing:
    """One sweep, all in seconds."""

    wall: float
    """From the command to its exit."""
    training: float
    """Sum over the runs of what their records say."""
    first: float
    """From the command to the first run at work, its process started and everything imported."""
    last: float
    """From the last result to the exit."""

    @property
    def ratio(self) -> float:
        """Wall over what `SLOTS` slots that do nothing but train would take."""
        return self.wall / (self.training / SLOTS)

    def a_run(self, launcher: Launcher, runs: int) -> float:
        """Time a run holds a slot without training: between the first run and the last result."""
        return (launcher.slots * (self.wall - self.first - self.last) - self.training) / runs


def execute(command: Sequence[str], log: Path) -> tuple[float, float]:
    """Run a command to its end.

    Returns:
        Wall seconds, and the peak resident memory of its process in MiB.

    Raises:
        BenchmarkError: It failed; with the end of what it wrote.
    """
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    with open(log, "wb") as output:
        start = time.monotonic()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent, env=environment
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
        seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise BenchmarkError(f"{' '.join(command)}: exit code {process.returncode}\n{end}")
    return seconds, usage.ru_maxrss / 1024


def records(runs: Path) -> dict[Path, RunRecord]:
    """Every result below a folder of studies, by its run's folder."""
    found = {path.parent: read_record(path.parent) for path in runs.glob(f"*/*/{RESULT}")}
    return {folder: record for folder, record in found.items() if record is not None}


def calibrate(seconds: float, settings: list[str], folder: Path) -> int:
    """Training tokens for a run of about so many seconds; fills the disk cache for everybody."""
    runs = folder / "calibration"
    command = [str(BIN / "lowbit-train"), *RUN, *settings, f"runs={runs}", "seed=1000"]
    execute([*command, f"tokens={CALIBRATION_TOKENS}"], folder / "calibration.log")
    [record] = records(runs).values()
    return int(seconds * record.tokens_per_second)


def sweep(launcher: Launcher, tokens: int, number: int, settings: list[str], runs: Path) -> Timing:
    """One sweep over seeds, from nothing."""
    seeds = ",".join(str(seed) for seed in range(number))
    wanted = [*RUN, *settings, f"runs={runs}", f"tokens={tokens}", f"seed={seeds}"]
    began = time.time()
    wall, _ = execute([*launcher.command, *wanted], runs.with_suffix(".log"))
    found = records(runs)
    if len(found) != number or any(record.status != "finished" for record in found.values()):
        raise BenchmarkError(f"{launcher.command[0]}: {len(found)} results of {number} runs")
    # A run leaves config.json when it sets to work, once its worker has imported everything.
    first = min((folder / "config.json").stat().st_mtime for folder in found) - began
    last = began + wall - max((folder / RESULT).stat().st_mtime for folder in found)
    return Timing(wall, sum(record.wall_seconds for record in found.values()), first, last)


def busy_cores(seconds: float = 1.0) -> float:
    """How many cores others keep busy, over a moment in which we do nothing (Linux)."""

    def idle_ticks() -> int:
        _, *ticks = Path("/proc/stat").read_text().splitlines()[0].split()
        return int(ticks[3]) + int(ticks[4])  # idle, and waiting for the disk

    before, start = idle_ticks(), time.monotonic()
    time.sleep(seconds)
    idle = (idle_ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - start)
    return max(0.0, (os.cpu_count() or 1) - idle)


def compare(names: list[str], number: int, rounds: int, tokens: int, settings: list[str]) -> None:
    """Print a line a sweep; the launchers take turns at being first."""
    print(
        f"{'launcher':<20} {'slots':>5} {'wall s':>7} {'training s':>10} {'ratio':>6} "
        f"{'first s':>7} {'a run s':>7} {'last s':>7}   busy before"
    )
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as scratch:
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                launcher, busy = LAUNCHERS[name], busy_cores()
                runs = Path(scratch) / f"{name.replace(' ', '-')}-{turn}"
                timing = sweep(launcher, tokens, number, settings, runs)
                print(
                    f"{name:<20} {launcher.slots:>5} {timing.wall:>7.1f} {timing.training:>10.1f} "
                    f"{timing.ratio:>6.2f} {timing.first:>7.1f} "
                    f"{timing.a_run(launcher, number):>7.2f} {timing.last:>7.1f}   "
                    f"{busy:.1f} of {os.cpu_count()} cores",
                    flush=True,
                )
                if name == "lowbit-train":
                    verdicts.append(verdict(timing))
    print(
        f"\nratio: wall / (training / {SLOTS}).  first: until the first run is at work.  last: from"
        "\nthe last result to the exit.  a run: the time each run holds its slot without training."
    )
    print("\n".join(verdicts))


def verdict(timing: Timing) -> str:
    """The target, as one line."""
    ideal = timing.training / SLOTS
    target = RATIO * ideal + START_UP_SECONDS
    beyond = (timing.wall - START_UP_SECONDS) / ideal - 1
    return (
        f"target: lowbit-train <= {RATIO:.2f} x {ideal:.1f} s + {START_UP_SECONDS:.0f} s = "
        f"{target:.1f} s: {'met' if timing.wall <= target else 'MISSED'} with {timing.wall:.1f} s "
        f"({beyond:+.1%} beside {START_UP_SECONDS:.0f} s of start-up)"
    )


def plan(choices: dict[str, list[str]]) -> None:
    """Print how long the product of these choices takes to plan, and what the driver needs."""
    number = math.prod(len(values) for values in choices.values())
    command = [str(BIN / "lowbit-train"), "-m", "plan_only=true"]
    command += [f"{key}={','.join(values)}" for key, values in choices.items()]
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as scratch:
        log, busy = Path(scratch) / "plan.log", busy_cores()
        seconds, mebibytes = execute([*command, f"runs={scratch}/runs"], log)
        if f" {number} runs, 0 done" not in log.read_text():
            raise BenchmarkError(f"{log.read_text()}\nthis was to be a plan of {number} runs")
    print(
        f"plan of {number:>5,}: {seconds:.1f} s, the probe of their speed included; peak "
        f"memory {mebibytes:.0f} MiB; {busy:.1f} of {os.cpu_count()} cores busy before",
        flush=True,
    )


def many(number: int, settings: list[str]) -> None:
    """Print what the driver of so many runs needs while they execute, each a single step."""
    step = ["model=ladder/a", "data.seq_len=64", "batch_size=4", "tokens=256", "tracking=none"]
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as scratch:
        command = [*LAUNCHERS["lowbit-train"].command, "data.validation_windows=1", *step]
        command += [*settings, f"seed={','.join(str(seed) for seed in range(number))}"]
        log, busy = Path(scratch) / "many.log", busy_cores()
        seconds, mebibytes = execute([*command, f"runs={scratch}/runs"], log)
        found = len(records(Path(scratch) / "runs"))
    if found != number:
        raise BenchmarkError(f"{found} results of {number} runs")
    print(
        f"{number:,} runs of one step on {SLOTS} slots: {seconds:.0f} s, "
        f"{SLOTS * seconds / number:.2f} s a run and slot; peak memory of the driver "
        f"{mebibytes:.0f} MiB; {busy:.1f} of {os.cpu_count()} cores busy before"
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=24, help="of one sweep (default: 24)")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="of training a run, about (default: 5)"
    )
    parser.add_argument("--tokens", type=int, help="a run, in place of calibrating for --seconds")
    parser.add_argument(
        "--rounds", type=int, default=1, help="sweeps with each launcher, in turns (default: 1)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=LAUNCHERS, metavar="NAME", help=", ".join(LAUNCHERS)
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every run"
    )
    parser.add_argument(
        "--plan", action="store_true", help="time the planning of 1 run and of 1,000 instead"
    )
    parser.add_argument(
        "--many", type=int, metavar="N", help="execute N runs of one step each instead"
    )
    return parser.parse_args()


def main() -> None:
    """Print one table, or one line about planning."""
    given = arguments()
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load average {load}")
    try:
        if given.plan:
            plan({key: values[:1] for key, values in PLANNED.items()})
            plan(PLANNED)
            return
        if given.many:
            many(given.many, given.set)
            return
        names = given.only or list(LAUNCHERS)
        if "hydra-ray-launcher" in names and not OTHER_PYTHON.exists():
            raise BenchmarkError(f"no {OTHER_PYTHON}: make bench-sweep makes it")
        with tempfile.TemporaryDirectory(prefix="bench-sweep-") as scratch:
            tokens = given.tokens or calibrate(given.seconds, given.set, Path(scratch))
        print(f"{given.runs} runs of {tokens:,} tokens on {SLOTS} slots\n", flush=True)
        compare(names, given.runs, given.rounds, tokens, given.set)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BenchmarkError as error:
        raise SystemExit(f"bench_sweep: {error}") from None


if __name__ == "__main__":
    main()
