"""The house as a list: its rooms, floors and imports.

    python -m tests.support.house [FOLDER]

A room is a package, or a module of `experiments/` or `fitting/` that lies in none.  It is a floor
above the highest room of its column that it imports.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

COLUMNS = ("experiments", "fitting")


def modules(root: Path) -> dict[str, Path]:
    """Every module of the product by its dotted name, packages' own files among them."""
    found = {}
    for path in sorted(path for column in COLUMNS for path in (root / column).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def named_imports(path: Path) -> set[tuple[str, str]]:
    """(module, name) of every import of a file, wherever it stands; the name may be empty."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {(node.module, alias.name) for alias in node.names}
    return found


def imported(path: Path, known: Iterable[str]) -> set[str]:
    """Those of the `known` modules that a file imports."""
    among = set(known)
    pairs = named_imports(path)
    whole = {f"{module}.{name}" for module, name in pairs} & among
    # `from package import module` is no import of the package's own file.
    return whole | {m for m, n in pairs if m in among and f"{m}.{n}" not in among}


def room(module: str) -> str:
    """The room that a module is in, within its column."""
    return ".".join(module.split(".")[:2])


def rooms(root: Path) -> dict[str, set[str]]:
    """Room -> those of its own column that it imports."""
    known = modules(root)
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        if name not in COLUMNS:
            others = {room(other) for other in imported(path, known)} - {room(name), *COLUMNS}
            own = {other for other in others if other.split(".")[0] == name.split(".")[0]}
            found.setdefault(room(name), set()).update(own)
    return found


def floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Room -> its floor, from 1.

    Raises:
        graphlib.CycleError: Rooms import each other.
    """
    found: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        found[name] = 1 + max((found[other] for other in graph[name]), default=0)
    return found


def main(root: Path) -> None:
    """Print rooms by floor, and the counts of each column."""
    graph = rooms(root)
    for column in COLUMNS:
        own = {name: others for name, others in graph.items() if name.startswith(f"{column}.")}
        try:
            levels = floors(own)
        except ValueError as error:  # `CycleError` is one
            print(f"{column}: {len(own)} rooms, {sum(map(len, own.values()))} imports, {error}")
            continue
        count = sum(map(len, own.values()))
        print(f"{column}: {len(own)} rooms, {max(levels.values())} floors, {count} imports")
        for floor in range(max(levels.values()), 0, -1):
            here = sorted(n.partition(".")[2] for n, level in levels.items() if level == floor)
            print(f"  {floor:2} {' '.join(here)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2])
