"""What importing text costs: peak memory above that of the program itself, and time.

    python benchmarks/bench_import.py                   # 500 MB of JSON lines, as bytes
    python benchmarks/bench_import.py --kind parquet --tokenizer tokenizer.json --mb 100

The text is the built-in corpus, its documents cut into pages of some kilobytes, over and over.
Each import is a process of its own, with a cache of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from experiments.data.batches import DataConfig, TokenData

PAGE = 4_000  # bytes; the web's are of this order
KINDS = ("jsonl", "parquet")
IMPORT = r"""
import json, re, sys, time
from pathlib import Path
from experiments.data.imports import TextOptions, import_path
if sys.argv[2]:
    from experiments.data.tokenizer import open_tokenizer
    open_tokenizer(sys.argv[2], "")
def peak():  # getrusage would say the peak of whoever started this process
    [found] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found) / 1024
before, start = peak(), time.perf_counter()
import_path(Path(sys.argv[1]), "data.path=...", TextOptions(sys.argv[2]))
print(json.dumps([before, peak(), time.perf_counter() - start]))
"""


def pages(size: int) -> Iterator[str]:
    """Pages of English, `size` bytes of them."""
    data = TokenData(DataConfig())
    while True:
        for start in range(0, len(data.train) - PAGE, PAGE):
            tokens = data.train.read(start, PAGE)
            yield tokens[tokens != 0].astype("u1").tobytes().decode("utf-8", "ignore")
            size -= PAGE
            if size <= 0:
                return


def write(path: Path, size: int) -> None:
    """A file of the kind that its name says."""
    if path.suffix == ".jsonl":
        with open(path, "w", encoding="utf-8") as file:
            for page in pages(size):
                file.write(json.dumps({"text": page}) + "\n")
        return
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    with parquet.ParquetWriter(path, arrow.schema([("text", arrow.string())])) as writer:
        held: list[str] = []
        for page in pages(size):
            held.append(page)
            if len(held) == 20_000:  # one row group, larger than what is read at a time
                writer.write_table(arrow.table({"text": held}))
                held = []
        writer.write_table(arrow.table({"text": held}))


def main() -> None:
    """Print a line for each size, to show that memory does not grow with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=500, help="megabytes of text")
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0])
    parser.add_argument("--tokenizer", default="", help="as data.tokenizer; else bytes")
    options = parser.parse_args()
    for mb in (max(1, options.mb // 10), options.mb):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"text.{options.kind}"
            write(path, mb * 1_000_000)
            environment = os.environ | {"LOWBIT_CACHE": str(Path(folder) / "cache")}
            command = [sys.executable, "-c", IMPORT, str(path), options.tokenizer]
            begun = time.perf_counter()
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            whole = time.perf_counter() - begun
            before, peak, seconds = json.loads(done.stdout)
            print(
                f"{path.stat().st_size / 1e6:6.0f} MB {options.kind}: {seconds:.1f} s "
                f"({mb / seconds:.1f} MB of text/s; the process {whole:.1f} s), peak "
                f"{peak:.0f} MiB, {peak - before:.0f} MiB above the {before:.0f} of the program"
            )


if __name__ == "__main__":
    main()
