"""Design rules that matter: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "experiments.paths": 0,
    "experiments.quant.formats": 0,
    "experiments.data.shards": 0,
    "experiments.data.techdocs": 1,
    "experiments.data.verified": 1,
    "experiments.quant.rounding": 1,
    "experiments.quant.hadamard": 4,
    "experiments.quant.scale": 2,
    "experiments.quant.eden": 4.6,
    "experiments.quant.gradient": 5,
    "experiments.quant.product": 0,
    "experiments.quant.lmul": 1,
    "experiments.quant.operand": 4.7,
    "experiments.measure.theory": 1,
    "experiments.quant.kernels.noise": 0,
    "experiments.quant.kernels.dense": 0,
    "experiments.quant.straight_through": 4.5,
    "experiments.quant.kernels.cpu": 3,
    "experiments.quant.kernels.triton_quantize": 0,
    "experiments.quant.kernels.gpu": 3,
    "experiments.quant.block": 5,
    "experiments.quant.recipe": 2,
    "experiments.quant.linear": 6,
    "experiments.measure.error": 6,
    "experiments.quant.word_length": 7,
    "experiments.measure.recipe_error": 7,
    "experiments.measure.diagnostics": 7,
    "experiments.measure.ptq": 7,
    "experiments.model": 7,
    "experiments.optim": 7,
    "experiments.loss_scale": 0,
    "experiments.data.batches": 4,
    "experiments.accounting": 8,
    "experiments.config.demands": 0,
    "experiments.store.lease": 0,
    "experiments.store.curve": 0,
    "experiments.run.process": 0,
    "experiments.store.checkpoint": 0,
    "experiments.store.status": 1,
    "experiments.config.precision": 1,
    "experiments.config.running": 0,
    "experiments.config.schema": 8,
    "experiments.config.own_files": 8.5,
    "experiments.config.command_line": 9,
    "experiments.configure": 10,
    "experiments.run.identity": 9,
    "experiments.run.module": 9,
    "experiments.run.out_of_memory": 9,
    "experiments.mirror.files": 0,
    "experiments.mirror.tracking": 9,
    "experiments.mirror.sync": 10,
    "experiments.mirror.panels": 1,
    "experiments.mirror.dashboard": 11,
    "experiments.run.record": 10,
    "experiments.run.recorder": 10,
    "experiments.train": 11,
    "experiments.errors.capture": 12,
    "experiments.errors.recipes": 13,
    "experiments.errors.command": 14,
    "experiments.config.compose": 9,
    "experiments.sweep.estimate": 12,
    "experiments.sweep.plan": 13,
    "experiments.sweep.show": 14,
    "experiments.sweep.work": 12,
    "experiments.sweep.cluster": 14,
    "experiments.sweep.own_ray": 13,
    "experiments.sweep.reach": 13,
    "experiments.sweep.launch": 15,
    "experiments.plugins.hydra_plugins.lowbit": 16,
    "experiments.command.train": 17,
    "experiments.command.main": 18,
    "fitting.results.swept": -2,
    "fitting.results.where": -2,
    "fitting.entry.interrupts": -4,
    "fitting.entry.answer": -3,
    "fitting.files.atomic": -2,
    "fitting.files.own_json": -2,
    "fitting.results.values": -1,
    "fitting.results.study_file": -1,
    "fitting.files.tables": -1,
    "fitting.results.record": 0,
    "fitting.naming": 0,
    "fitting.seeds.verdicts": 0,
    "fitting.figures.svg": 0,
    "fitting.figures.style": 1,
    "fitting.laws.curves": 0,
    "fitting.fit.minimise": 1,
    "fitting.laws.law": 1,
    "fitting.laws.catalogue": 2,
    "fitting.fit.fit_file": 3,
    "fitting.fit.centred": 2,
    "fitting.fit.designs": 2,
    "fitting.laws.synthetic": 3,
    "fitting.fit.search": 3,
    "fitting.seeds.cells": 1,
    "fitting.seeds.noise": 4,
    "fitting.fit.bootstrap": 4,
    "fitting.fit.validation": 4,
    "fitting.fit.profile": 5,
    "fitting.fit.evidence": 6,
    "fitting.analysis.trades": 5,
    "fitting.analysis.roots": 1,
    "fitting.analysis.efficiency": 5,
    "fitting.analysis.capacity": 6,
    "fitting.analysis.granularity": 6,
    "fitting.analysis.layouts": 7,
    "fitting.page.tables": 6,
    "fitting.page.conclusions": 7,
    "fitting.page.sentences": 5,
    "fitting.page.study": 5,
    "fitting.page.latex": 7,
    "fitting.page.files": 8,
    "fitting.figures.losses": 6,
    "fitting.figures.layouts": 7,
    "fitting.figures.fits": 7,
    "fitting.figures.efficiency": 8,
    "fitting.figures.conclusions": 9,
    "fitting.page.outcomes": 7,
    "fitting.page.diagnostics": 7,
    "fitting.page.publish": 8,
    "fitting.page.report": 10,
    "fitting.figures.compare": 7,
    "fitting.page.compare": 11,
    "fitting.command.options": 1,
    "fitting.command.describe": 8,
    "fitting.command.expected": 9,
    "fitting.command.show": 10,
    "fitting.command.main": 12,
}
SHARED = {
    ("experiments", f"fitting.{name}")
    for name in ("results", "study_file", "own_json", "atomic", "entry", "interrupts")
}
"""What training and fitting have in common: the files of a study, and how a command ends."""
NO_TORCH = {"experiments.quant.formats", "experiments.quant.recipe", "experiments.accounting"}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in ("experiments", "fitting")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "__init__.py"
}


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_a_floor() -> None:
    assert set(MODULES) == set(FLOORS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_import_only_lower_floors_of_their_own_column(module: str) -> None:
    column = module.partition(".")[0]
    for name in imports(MODULES[module]) & set(FLOORS):
        if name.partition(".")[0] == column:
            assert FLOORS[name] < FLOORS[module], f"{module} imports {name}"
        else:
            assert (column, name) in SHARED, f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_fitting_needs_no_torch_and_facts_need_none_themselves(module: str) -> None:
    if module.startswith("fitting.") or module in NO_TORCH:
        assert not {name for name in imports(MODULES[module]) if name.split(".")[0] == "torch"}


def test_no_file_hides_two_ideas() -> None:
    """Past 480 lines a file has a second one."""
    long = {m: n for m, p in MODULES.items() if (n := len(p.read_text().splitlines())) > 480}
    assert not long
