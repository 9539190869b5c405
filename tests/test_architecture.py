"""Design rules that matter: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "experiments.paths": 0,
    "experiments.quant.formats": 0,
    "experiments.shards": 0,
    "experiments.corpus": 1,
    "experiments.verified": 1,
    "experiments.quant.rounding": 1,
    "experiments.quant.hadamard": 4,
    "experiments.quant.scale": 2,
    "experiments.quant.eden": 4.6,
    "experiments.quant.gradient": 5,
    "experiments.quant.product": 0,
    "experiments.quant.lmul": 1,
    "experiments.quant.operand": 4.7,
    "experiments.quant.theory": 1,
    "experiments.quant.kernels.noise": 0,
    "experiments.quant.kernels.dense": 0,
    "experiments.quant.straight_through": 4.5,
    "experiments.quant.kernels.cpu": 3,
    "experiments.quant.kernels.triton_quantize": 0,
    "experiments.quant.kernels.gpu": 3,
    "experiments.quant.block": 5,
    "experiments.quant.recipe": 2,
    "experiments.quant.linear": 6,
    "experiments.quant.error": 6,
    "experiments.quant.word_length": 7,
    "experiments.quant.recipe_error": 7,
    "experiments.diagnostics": 7,
    "experiments.ptq": 7,
    "experiments.model": 7,
    "experiments.optim": 7,
    "experiments.loss_scale": 0,
    "experiments.data": 4,
    "experiments.accounting": 8,
    "experiments.demands": 0,
    "experiments.lease": 0,
    "experiments.progress": 0,
    "experiments.process": 0,
    "experiments.checkpoint": 0,
    "experiments.status": 1,
    "experiments.precision_config": 1,
    "experiments.running_config": 0,
    "experiments.config": 8,
    "experiments.own_files": 8.5,
    "experiments.command_line": 9,
    "experiments.configure": 10,
    "experiments.identity": 9,
    "experiments.module": 9,
    "experiments.out_of_memory": 9,
    "experiments.wandb_files": 0,
    "experiments.tracking": 9,
    "experiments.sync": 10,
    "experiments.panels": 1,
    "experiments.dashboard": 11,
    "experiments.record": 10,
    "experiments.recorder": 10,
    "experiments.train": 11,
    "experiments.capture": 12,
    "experiments.recipe_table": 13,
    "experiments.quant.command": 14,
    "experiments.sweep.compose": 9,
    "experiments.sweep.estimate": 12,
    "experiments.sweep.plan": 13,
    "experiments.sweep.show": 14,
    "experiments.sweep.work": 12,
    "experiments.sweep.cluster": 14,
    "experiments.sweep.own_ray": 13,
    "experiments.sweep.reach": 13,
    "experiments.sweep.launch": 15,
    "experiments.plugins.hydra_plugins.lowbit": 16,
    "experiments.train_command": 17,
    "experiments.commands": 18,
    "fitting.swept": -2,
    "fitting.expressions": -2,
    "fitting.interrupts": -4,
    "fitting.entry": -3,
    "fitting.atomic": -2,
    "fitting.own_json": -2,
    "fitting.record_values": -1,
    "fitting.study_file": -1,
    "fitting.table_files": -1,
    "fitting.results": 0,
    "fitting.naming": 0,
    "fitting.verdicts": 0,
    "fitting.svg": 0,
    "fitting.style": 1,
    "fitting.curves": 0,
    "fitting.minimise": 1,
    "fitting.law": 1,
    "fitting.laws": 2,
    "fitting.fit_file": 3,
    "fitting.centred": 2,
    "fitting.designs": 2,
    "fitting.synthetic": 3,
    "fitting.fit": 3,
    "fitting.cells": 1,
    "fitting.seeds": 4,
    "fitting.uncertainty": 4,
    "fitting.validation": 4,
    "fitting.profile": 5,
    "fitting.evidence": 6,
    "fitting.precision": 5,
    "fitting.roots": 1,
    "fitting.efficiency": 5,
    "fitting.capacity": 6,
    "fitting.granularity": 6,
    "fitting.analysis": 7,
    "fitting.tables": 6,
    "fitting.conclusions": 7,
    "fitting.findings": 5,
    "fitting.study": 5,
    "fitting.latex": 7,
    "fitting.page": 8,
    "fitting.figures": 6,
    "fitting.layout_figures": 7,
    "fitting.fit_figures": 7,
    "fitting.efficiency_figures": 8,
    "fitting.law_figures": 9,
    "fitting.coverage": 7,
    "fitting.qsnr": 7,
    "fitting.publish": 8,
    "fitting.report": 10,
    "fitting.compare_figures": 7,
    "fitting.compare": 11,
    "fitting.options": 1,
    "fitting.describe": 8,
    "fitting.expected": 9,
    "fitting.show": 10,
    "fitting.commands": 12,
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
