"""The set-up from nothing: seconds on the clock, and seconds of a processor's time.

    python benchmarks/bench_setup.py [COMMIT ...] [--target install] [--rounds 1]

Each commit, the present one if none is named, is cloned into an empty folder whose home and caches
are empty too, and made there.  Several commits take turns, so that whatever else the machine does
falls on all alike; on a busy machine only the processor's time says something.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOREIGN = ("VIRTUAL_ENV", "PYTHONPATH", "PIP_CACHE_DIR", "UV_CACHE_DIR", "XDG_CACHE_HOME")


def seconds(commit: str, target: str) -> tuple[float, float]:
    """Time of `make TARGET`: on the clock, and of all processes together."""
    with tempfile.TemporaryDirectory() as folder:
        clone, home = Path(folder, "clone"), Path(folder, "home")
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        subprocess.run(["git", "checkout", "--quiet", commit], cwd=clone, check=True)
        environment = {k: v for k, v in os.environ.items() if k not in FOREIGN}
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            ["make", target], cwd=clone, check=True, env={**environment, "HOME": str(home)}
        )
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("commits", nargs="*", metavar="COMMIT")
    parser.add_argument("--target", default="install")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    head = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    present = subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
    for _ in range(options.rounds):
        for commit in options.commits or [present]:
            wall, processor = seconds(commit, options.target)
            print(f"{commit[:12]} make {options.target}: {wall:.1f} s, {processor:.1f} CPU s")


if __name__ == "__main__":
    main()
