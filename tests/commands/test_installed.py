"""The package as others get it: an sdist, and a wheel made of it, run from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.places import REPORTS, ROOT

pytestmark = pytest.mark.slow
NOT_SOURCES = (".*", "__pycache__", "reports", "runs", "build", "dist", "*.so", "*.egg-info")
KNOWS = """
from importlib.resources import files
from pathlib import Path
import experiments.paths, fitting
from experiments.quant.kernels import cpu
print(Path(experiments.paths.__file__).parent.parent, cpu.NAME)
for package in ("experiments", "fitting"):
    assert files(package).joinpath("py.typed").is_file(), package
"""


def run(folder: Path, *words: str | Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both; `build` makes the wheel out of the sdist."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    run(source, sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
    return folder


@pytest.mark.parametrize("pattern", ["*.whl", pytest.param("*.tar.gz", marks=pytest.mark.long)])
def test_commands_of_an_installed_package_run_anywhere(
    pattern: str, built: Path, tmp_path: Path
) -> None:
    [package] = built.glob(pattern)
    venv = tmp_path / "venv"
    run(tmp_path, sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    # It sees this environment's libraries, but not the editable install: a .pth there is not read.
    [own] = venv.glob("lib/python*/site-packages")
    (own / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    install = (sys.executable, "-m", "pip", "--python", python, "install", "--ignore-installed")
    run(tmp_path, *install, *options, package)
    empty = tmp_path / "empty"
    empty.mkdir()

    def command(name: str, *words: str) -> str:
        return run(empty, python.with_name(name), *words)

    where, backend = run(empty, python, "-c", KNOWS).split()
    assert Path(where).is_relative_to(tmp_path), "this is the checkout"
    assert (backend == "None") == (shutil.which("cc") is None)
    assert "mxfp4" in command("lowbit-error", "precision=mxfp4").lower()
    assert "36" in command("lowbit-train", "-m", "study=demo", "plan_only=true")
    results = f"results={REPORTS / 'demo' / 'results.csv'}"
    command("lowbit-fit", results, "law=chinchilla", "bootstrap=20", "out=fit")
    command("lowbit-report", results, "fit=fit", "out=page", "figures=svg")
    page = (empty / "page" / "index.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "</html>" in page
