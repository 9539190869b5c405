"""Design rules that matter: who may import whom."""

import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.house import imported, modules, named_imports, room
from tests.support.places import ROOT

ROWS = {
    "experiments": (
        ("command", "plugins"),
        ("errors", "sweep"),
        ("export", "quantize", "train"),
        ("run",),
        ("configure", "mirror"),
        ("config",),
        ("tasks",),
        ("accounting",),
        ("finetune",),
        ("measure", "models", "optim"),
        ("engine",),
        ("data", "loss_scale", "paths", "quant", "store"),
    ),
    "fitting": (
        ("command",),
        ("page",),
        ("figures",),
        ("fit", "seeds"),
        ("laws",),
        ("analysis",),
        ("law",),
        ("results",),
        ("files", "naming"),
        ("entry", "words"),
    ),
}
"""The packages of each column, the highest first: a module imports its own and lower rows."""
QUANT = (
    *("kernels.dense", "kernels.noise", "kernels.triton_quantize", "product"),
    *("formats", "modes", "slots", "recipe", "overrides", "scale_rules", "normal_error"),
    *("layout", "rounding", "scale", "lmul"),
    *("kernels.facts", "kernels.cpu", "kernels.gpu", "hadamard", "straight_through"),
    *("eden", "operand", "block", "gradient", "gemms", "passes", "compiled", "linear"),
    *("attention", "word_length"),
)
"""Within `experiments.quant` the order is the design: each imports only what stands before it."""
SHARED = {"fitting.entry", "fitting.files", "fitting.results"}
"""What training and fitting have in common: how commands end, files, and the run record."""
FORMATS = tuple(
    f"experiments.quant.{n}"
    for n in ("formats", "modes", "slots", "recipe", "scale_rules", "normal_error")
)
"""What a format is, and its error: data without torch, which a law about formats must know."""
NO_TORCH = {*FORMATS, "experiments.accounting"}
NO_PICTURES = {f"fitting.{name}" for name in ("law", "laws", "fit", "seeds", "analysis")}
MODULES = modules(ROOT)
HEIGHT = {
    f"{column}.{name}": -row
    for column, rows in ROWS.items()
    for row, names in enumerate(rows)
    for name in names
}
PACKAGES = sorted({name.rpartition(".")[0] for name in MODULES} - {""})


def libraries(path: Path) -> set[str]:
    return {module.split(".")[0] for module, _ in named_imports(path)}


def test_every_room_has_a_row() -> None:
    assert {room(name) for name in MODULES} - {"experiments", "fitting"} == set(HEIGHT)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"experiments", "fitting"}))
def test_imports_go_downward(module: str) -> None:
    here, column = room(module), module.split(".")[0]
    names = imported(MODULES[module], MODULES) - ({*FORMATS} if column == "fitting" else set())
    for other in {room(name) for name in names} - {here}:
        if other.split(".")[0] == column:
            assert HEIGHT[other] < HEIGHT[here], f"{module} imports {other}"
        else:
            assert column == "experiments", f"{module} imports {other}"
            assert other in SHARED, f"{module} imports {other}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_cycle_inside_a_package(package: str) -> None:
    inside = [name for name in MODULES if name.rpartition(".")[0] == package]
    TopologicalSorter({name: imported(MODULES[name], inside) for name in inside}).prepare()


def test_quant_is_in_order() -> None:
    order = [f"experiments.quant.{name}" for name in QUANT]
    inside = {n for n in MODULES if n.startswith("experiments.quant.")}
    assert inside - {"experiments.quant.kernels"} == set(order)
    for place, name in enumerate(order):
        assert imported(MODULES[name], order) <= set(order[:place]), name


@pytest.mark.parametrize("module", sorted(MODULES))
def test_what_needs_no_torch_and_no_pictures_imports_none(module: str) -> None:
    found = libraries(MODULES[module])
    if module.startswith("fitting.") or module in NO_TORCH:
        assert "torch" not in found
    if room(module) in NO_PICTURES:
        assert not found & {"matplotlib", "jinja2", "rich"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_what_begins_with_an_underscore_stays_at_home(module: str) -> None:
    ours = {(m, n) for m, n in named_imports(MODULES[module]) if m.split(".")[0] in ROWS}
    assert not [f"{m}.{n}" for m, n in ours if n.startswith("_")]


def test_only_those_who_must_know_where_they_lie() -> None:
    """`paths.py` knows where files lie, and the kernels where their library is."""
    here = {name for name, path in MODULES.items() if "__file__" in path.read_text("utf-8")}
    assert here == {"experiments.paths", "experiments.quant.kernels.cpu"}


def test_no_file_hides_two_ideas() -> None:
    """Past 480 lines a file has a second one."""
    long = {m: n for m, p in MODULES.items() if (n := len(p.read_text("utf-8").splitlines())) > 480}
    assert not long


def test_no_test_imports_another() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        ours = {m for m, _ in named_imports(path) if m.split(".")[0] == "tests"}
        assert all(m.startswith("tests.support") for m in ours), path


def test_every_package_is_shipped() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    there = {name.rpartition(".")[0] for name in MODULES} - {"", "experiments.plugins"}
    assert listed - {"experiments.conf", "lowbit"} == there


def test_importing_a_promised_package_is_enough() -> None:
    for name in ("results", "law", "laws", "fit", "analysis"):
        __import__(name := f"fitting.{name}")
        assert set(sys.modules[name].__all__) <= set(dir(sys.modules[name]))
