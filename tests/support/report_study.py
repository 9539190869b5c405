"""A study with a fit, made from a known law, and its report: what tests of pages look at."""

import functools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fitting.analysis.critical import CriticalTokens
from fitting.files.atomic import write_atomic
from fitting.law.conclusion import entries_of
from fitting.laws.catalogue import LAWS
from fitting.page.report import write_report as write_everything
from fitting.results.record import FAILURE, RunRecord, write_exclusive
from tests.support.fits import a_layout

write_report = functools.partial(write_everything, figure_files=("svg",))
"""PDFs take most of the time; one test looks at them."""
TRUTH = {
    "n": 9.0, "alpha": 0.16, "d": 900.0, "beta": 0.5, "epsilon": 0.35, "gamma": 2500.0,
    "delta": 1.9, "nu": 1.8,
}  # fmt: skip
"""A floating-point law (2501.02423, Eq. 1) that gives a small model's losses, 2.2 to 3.2 nats."""
LAYOUTS = ((8, 7), (1, 1), (2, 1), (4, 3))
UNQUANTIZED = (8, 7)


def a_run(params: int, tokens: int, layout: tuple[int, int], seed: int, loss: float) -> RunRecord:
    exponent, mantissa = layout
    quantized = layout != UNQUANTIZED
    return RunRecord(
        run_id=f"n{params}-t{tokens}-e{exponent}m{mantissa}-s{seed}",
        study="tiny", status="finished", model=f"n{params}",
        recipe="nearest" if quantized else "none", exponent=exponent, mantissa=mantissa,
        bits=1 + exponent + mantissa, bits_with_scales=1.25 + exponent + mantissa,
        block_size=32.0 if quantized else 1.0, granularity="block" if quantized else "none",
        scale="e8m0" if quantized else "none", operands="P2 P4 P6" if quantized else "",
        params=params, params_head=0, params_embedding=0, params_total=params,
        params_quantized=params if quantized else 0, tokens=tokens, unique_tokens=tokens,
        flops=6.0 * params * tokens, seed=seed, loss=loss, train_loss=loss, bits_per_byte=None,
        wall_seconds=6.0, tokens_per_second=1.5e5, attempts=1, corpus="test 0123456789ab",
        quantize_backend="eager", numerics_version=1,
        provenance={"git_sha": "1f2e3d4c5b6a", "device": "cpu", "threads": 1},
    )  # fmt: skip


def the_runs(noise: float = 0.008) -> list[RunRecord]:
    """2 sizes x 2 token counts x 4 layouts x 3 seeds, the noise mostly shared by a seed's runs."""
    rng = np.random.default_rng(1)
    runs = []
    for params in (24_576, 98_304):
        for tokens in (1_000_000, 4_000_000):
            for seed in range(3):
                shared = rng.standard_normal()
                for layout in LAYOUTS:
                    row = pd.DataFrame(
                        {
                            "params": [params], "tokens": [tokens], "exponent": [layout[0]],
                            "mantissa": [layout[1]],
                            "block_size": [1.0 if layout == UNQUANTIZED else 32.0],
                        }
                    )  # fmt: skip
                    exact = LAWS["floating_point"].predict(TRUTH, row)[0]
                    loss = exact * np.exp(noise * (shared + 0.3 * rng.standard_normal()))
                    runs.append(a_run(params, tokens, layout, seed, float(loss)))
    return runs


def all_diverged() -> list[RunRecord]:
    return [replace(run, status="diverged", loss=None, train_loss=None) for run in the_runs()[:5]]


def write_runs(folder: Path, runs: list[RunRecord], **about: Any) -> Path:
    for run in runs:
        (folder / run.run_id).mkdir(parents=True)
        if run.status == "failed":
            write_atomic(run.to_json(), folder / run.run_id / FAILURE)
        else:
            write_exclusive(run, folder / run.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    if about:
        (folder / "study.json").write_text(json.dumps(about))
    return folder


def a_fit(**changes: Any) -> dict[str, Any]:
    """fit.json of `TRUTH`, as lowbit-fit writes it."""
    fit: dict[str, Any] = {
        "law": "floating_point",
        "objective": {"name": "huber", "delta": 1e-3, "value": 1.25e-4},
        "parameters": TRUTH,
        "intervals": {name: [0.9 * value, 1.2 * value] for name, value in TRUTH.items()},
        "standard_errors": {name: 0.07 * value for name, value in TRUTH.items()},
        "status": "converged",
        "starts": {"tried": 32, "agreeing": 31},
        "rows": {"used": 48, "excluded": {"diverged": 2}},
        "derived": {
            "layouts": [
                a_layout(4, shares={"E2M1": 0.93, "E0M3": 0.07}),
                a_layout(16, layout="E8M7", shares={"E8M7": 0.71, "E0M3": 0.29}, extrapolated=True),
            ],
            "critical_tokens": [CriticalTokens(24_576, "E1M1", 7.5e6, (5e6, None), True, 32.0)],
            "identified": {name: name not in ("gamma", "delta") for name in TRUTH},
        },
        "warnings": ["gamma and delta move together: not identified"],
        "inputs_sha256": "ab" * 32,
    }
    return entries_of({**fit, **changes})


def write_fit(folder: Path, fit: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fit.json").write_text(json.dumps(fit))
    return folder


class Page(HTMLParser):
    """Collects what a browser would load or follow, the table rows, and the visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self._style = False
        self._cell = False
        source = path.read_text(encoding="utf-8")
        self.loads += re.findall(r"url\(([^)]*)\)", source) + re.findall(r"@import[^;]*", source)
        self.feed(source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._style = tag in ("style", "script")
        for name, value in attrs:
            if name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
                (self.links if tag == "a" else self.loads).append(value or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._style = False
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words.append(data)
        if self._cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of runs with two diverged and one missing, and a folder with its fit."""
    root = tmp_path_factory.mktemp("study")
    runs = the_runs()
    lost = [i for i, run in enumerate(runs) if (run.exponent, run.seed) == (1, 2)][:2]
    for i in lost:
        runs[i] = replace(runs[i], status="diverged", loss=None, reason="loss is NaN at step 9")
    write_runs(
        root / "tiny", runs, name="tiny", title="A tiny study", description="Two sizes.",
        planned=[run.run_id for run in runs] + ["never-started"], notes=["Tuned once."],
    )  # fmt: skip
    return root / "tiny", write_fit(root / "fit", a_fit())


@pytest.fixture(scope="module")
def out(study: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its report, with every kind of file."""
    return write_everything(*study, tmp_path_factory.mktemp("report")).parent


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page(out / "index.html")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


SHIFT = 0.2
"""Nats by which the second study's E1M1 runs end higher."""


def again(runs: list[RunRecord], **changes: Any) -> list[RunRecord]:
    """The same design once more: other runs, E1M1 of higher loss."""
    return [
        replace(
            run, run_id=f"{run.run_id}-again",
            loss=(run.loss or 0.0) + (SHIFT if run.exponent == 1 else 0.0), **changes,
        )
        for run in runs
    ]  # fmt: skip
