"""Inside the data room imports run one way: no circle, none hidden in a function, nothing from the floors above."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import kdnotes

ROOM = Path(kdnotes.__file__).parent / "data"
MODULES = {".".join(("kdnotes", "data", *path.relative_to(ROOM).with_suffix("").parts)): path for path in sorted(ROOM.rglob("*.py")) if path.name != "__init__.py"}
BELOW = {"kdnotes.runtime", "kdnotes.files", "kdnotes.config", "kdnotes.inputs", "kdnotes.parallel"}


def imported(name, tree):
    """Modules of kdnotes that a module imports, wherever the import stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = name.split(".")[: -node.level] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {module if f"{module}.{alias.name}" not in MODULES else f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {module for module in found if module.split(".")[0] == "kdnotes"}


GRAPH = {name: imported(name, ast.parse(path.read_text())) for name, path in MODULES.items()}


def test_imports_make_no_circle():
    order = [*TopologicalSorter({name: {m for m in needs if m in MODULES} for name, needs in GRAPH.items()}).static_order()]
    assert order.index("kdnotes.data.imageset") < order.index("kdnotes.data.sets.digits") < order.index("kdnotes.data.catalogue") < order.index("kdnotes.data.images")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_of_the_room_imports_from_below_and_at_its_top(name):
    tree = ast.parse(MODULES[name].read_text())
    hidden = [imported(name, inner) for inner in ast.walk(tree) if isinstance(inner, (ast.FunctionDef, ast.Lambda))]
    assert not any(hidden)
    assert {module for module in GRAPH[name] if not module.startswith("kdnotes.data")} <= BELOW


def test_the_catalogue_is_the_top():
    assert not [name for name, needs in GRAPH.items() if "kdnotes.data.catalogue" in needs and name != "kdnotes.data.images"]
