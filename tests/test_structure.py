"""How the house is built: imports run one way, down the floors, and stand at the top of a module; every paper stands on the experiment room."""
import ast
import os
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import kdnotes

PACKAGE = Path(kdnotes.__file__).parent
FLOORS = (
    {"runtime", "files", "progress", "parallel", "checks", "prints", "inputs"},
    {"config", "results", "runs", "plots", "data", "models", "losses", "metrics", "privacy"},
    {"experiment", "train", "recipes", "faces", "crossres", "condense", "crowdlearn"},
    {"papers"},
    {"report", "batch", "measure", "lab", "cli"},
)
LATE = {    # imports of the package inside functions: of a whole module, or of one function
    "kdnotes.cli": "a word of the command line loads only what it needs: torch alone takes seconds",
    "kdnotes.batch.plan": "the same: most of what is wrong is told before torch is loaded",
    "kdnotes.batch.why": "the same",
    "kdnotes.lab.keep_executed": "JupyterLab's server starts without torch",
    "kdnotes.batch.worker": "the same: a worker starts a kernel, which loads torch by itself",
    "kdnotes.prints._register_all": "the table of networks is whole only when every module of the room is loaded",
    "kdnotes.runs.save_figure": "matplotlib is loaded where there is a figure",
    "kdnotes.experiment.figure": "the same",
}
GONE = r"NOT_IN_KEY|\bTrial\b|\btrain_all\b|\.setting\.str\b|\bremembered\(|from \S*profiles import"
PAPERS = sorted(path.stem for path in (PACKAGE / "papers").glob("*.py") if path.stem != "__init__")


def name_of(path: Path) -> str:
    """The module in the file `path`."""
    return ".".join(("kdnotes", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "_modidx.py"}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imported(module: str, tree: ast.AST) -> set[str]:
    """Modules of the package that code of `module` imports, wherever the import stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + (FILES[module].name == "__init__.py")] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in FILES}


def late(module: str) -> dict[str, set[str]]:
    """What functions of a module import, by the function's name."""
    functions = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {f"{module}.{node.name}": names for node in functions if (names := imported(module, node))}


def is_listed(function: str) -> bool:
    return function in LATE or function.rpartition(".")[0] in LATE


IMPORTS = {module: imported(module, tree) for module, tree in TREES.items()}
LISTED = {(module, name) for module in FILES for function, names in late(module).items() if is_listed(function) for name in names}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor_of(module: str) -> int:
    """Raises StopIteration for a room that stands on no floor."""
    return next(level for level, rooms in enumerate(FLOORS) if room_of(module) in rooms)


def test_modules_import_in_no_circle():
    list(TopologicalSorter(IMPORTS).static_order())


def test_rooms_import_in_no_circle():
    rooms: dict[str, set[str]] = {}
    for module, names in IMPORTS.items():
        rooms.setdefault(room_of(module), set()).update(room_of(name) for name in names if (module, name) not in LISTED)
    list(TopologicalSorter({room: others - {room, ""} for room, others in rooms.items()}).static_order())


def test_every_room_stands_on_a_floor():
    rooms = {room_of(module) for module in FILES} - {""}
    assert rooms - {"reported"} == set().union(*FLOORS), "write a new room into its floor"


@pytest.mark.parametrize("module", [module for module in FILES if room_of(module)])
def test_a_module_imports_nothing_from_a_floor_above(module):
    above = {name for name in IMPORTS[module] if room_of(name) and (module, name) not in LISTED and floor_of(name) > floor_of(module)}
    assert not above


def test_imports_inside_functions_are_listed_with_a_reason():
    found = {function for module in FILES for function in late(module)}
    assert not {function for function in found if not is_listed(function)}
    assert not {name for name in LATE if not any(function == name or function.rpartition(".")[0] == name for function in found)}, "no longer there"


@pytest.mark.parametrize("slug", PAPERS)
def test_a_paper_stands_on_the_experiment_room_and_on_no_other_paper(slug):
    module = f"kdnotes.papers.{slug}"
    assert "kdnotes.experiment" in IMPORTS[module]
    assert not {name for name in IMPORTS[module] if name.startswith("kdnotes.papers.")}
    assert not re.findall(GONE, FILES[module].read_text(encoding="utf-8"))
    notebook = PACKAGE.parent / "nbs" / "papers" / f"{slug}.ipynb"
    assert not re.findall(GONE, notebook.read_text(encoding="utf-8"))


def test_the_small_frameworks_are_gone():
    found = {module: names for module, path in FILES.items() if (names := set(re.findall(GONE, path.read_text(encoding="utf-8"))))}
    assert not found


TABLES = {"Config.PROFILES", "Config.DATASETS", "Config.DATA"}    # data, declared in Settings, which a paper tells below its fields
CLASSES = {node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def given_from_outside(tree: ast.AST, classes: set[str]) -> list[str]:
    """What code gives to one of the `classes`, by assignment, `setattr`, `del` or a decorator that patches it in."""
    inside = {id(node) for outer in ast.walk(tree) if isinstance(outer, ast.ClassDef) for node in ast.walk(outer)}
    of_class = lambda node: isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2] in classes
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Delete) and id(node) not in inside:
            targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [node.target]
            found += [ast.unparse(part) for target in targets for part in ast.walk(target) if of_class(part)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "type.__setattr__") and node.args:
            found += [ast.unparse(node)] if ast.unparse(node.args[0]).rpartition(".")[2] in classes else []
        elif isinstance(node, ast.FunctionDef):
            found += [f"{ast.unparse(name)} {node.name}" for name in node.decorator_list if ast.unparse(name).startswith("patch")]
    return found


@pytest.mark.parametrize("module", FILES)
def test_methods_stand_inside_their_classes(module):
    assert not set(given_from_outside(TREES[module], CLASSES)) - (TABLES if room_of(module) == "papers" else set())


@pytest.mark.parametrize("text", ["Net.forward = forward", "models.Net.forward: object = f", "a, Net.rate = 1, 2", "setattr(Net, 'forward', f)",
                                  "def add():\n    Net.forward = f", "del Net.forward", "@patch\ndef forward(self: Net): ...", "Net.count += 1"])
def test_what_is_given_to_a_class_from_outside_is_seen(text):
    assert given_from_outside(ast.parse(text), {"Net"})
    assert not given_from_outside(ast.parse("net.forward = f\nNet().rate = 1\nclass Net:\n    def add(self):\n        Net.count = 1"), {"Net"})


def test_the_tests_of_a_file_are_one_unit_of_work(request):
    """Where tests are distributed: what a file makes for its tests is made once, in the worker that has them all."""
    if request.config.getoption("dist", "no") == "no" and "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("one process runs all tests")
    assert request.node.nodeid.endswith(f"@{request.node.location[0]}"), "pytest and pytest-xdist do not fit together"


def test_each_test_process_has_its_share_of_the_cores():
    """Two processes with two threads each on two cores wait for each other: twice the time for all of it."""
    share = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))
    assert int(os.environ["OMP_NUM_THREADS"]) <= share


def test_arrows_say_their_colour():
    """The figures' style draws edges white: an arrow without a colour of its own cannot be seen."""
    unseen = [f"{path}: {line.strip()}" for path in (PACKAGE.parent / "nbs").rglob("*.ipynb") for line in path.read_text().splitlines()
              if "arrowstyle" in line and "color" not in line]
    assert not unseen
