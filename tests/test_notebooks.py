"""The form of the notebooks, and their cells run: rooms as they stand, paper notebooks with the `smoke` profile."""

import ast
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
PAPERS = [p for p in NOTEBOOKS if p.parent.name == "papers"]
ROOMS = [p for p in NOTEBOOKS if p not in PAPERS and p.name != "index.ipynb" and p.parent.name != "examples"]
IN_A_FORK = "the cells of a room"                        # the name of this module where it runs them
SECTIONS = ["The problem", "Method", "Configuration", "The experiment", "Parameters", "Run", "Tables", "Figures",
            "Claims"]
PARAMETERS = {"profile": "demo", "dataset": "", "seeds": "", "device": "auto", "precision": "auto", "out": "",
              "overrides": {}}


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code(book) -> list[str]:
    return [cell.source for cell in book.cells if cell.cell_type == "code"]


def name(path: Path) -> str:
    return path.relative_to(ROOT / "nbs").with_suffix("").as_posix()


def apart(path: Path):
    """A notebook whose cells run: where tests are distributed, a unit of work of its own."""
    return pytest.param(path, id=name(path), marks=pytest.mark.xdist_group(name(path)))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_every_notebook_opens_with_its_title(path):
    book = read(path)
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_classes_are_whole(path):
    """No method is given to a class from outside of it."""
    trees = [ast.parse(source) for source in code(read(path)) if not source.startswith("%")]
    nodes = [node for tree in trees for node in tree.body]
    classes = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    parts = lambda node: node.elts if isinstance(node, ast.Tuple) else [node]
    pairs = [pair for node in nodes if isinstance(node, ast.Assign)
             for pair in zip(parts(node.targets[-1]), parts(node.value))]
    given = [ast.unparse(target) for target, value in pairs
             if isinstance(target, ast.Attribute) and ast.unparse(target.value) in classes
             and (isinstance(value, ast.Lambda) or ast.unparse(value) in functions)]
    assert not given, f"given to a class from outside in {path.name}: {', '.join(given)}; write it inside the class"


@pytest.mark.parametrize("path", PAPERS, ids=name)
def test_paper_sections_are_complete_and_in_order(path):
    headings = [line[3:] for cell in read(path).cells if cell.cell_type == "markdown"
                for line in cell.source.splitlines() if line.startswith("## ")]
    assert headings == SECTIONS


@pytest.mark.parametrize("path", PAPERS, ids=name)
def test_one_complete_parameters_cell(path):
    tagged = [cell for cell in read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    lines = ast.parse(tagged[0].source).body
    targets = [node.target if isinstance(node, ast.AnnAssign) else node.targets[0] for node in lines]
    assigned = {target.id: ast.literal_eval(node.value) for target, node in zip(targets, lines)}
    assert assigned == PARAMETERS


@pytest.mark.parametrize("path", PAPERS, ids=name)
def test_papermill_explains_the_parameters(path):
    """`papermill --help-notebook`: every parameter has a type and a comment that says what it takes."""
    found = papermill.inspect_notebook(path)
    assert {n: p["inferred_type_name"] for n, p in found.items()} == {n: type(v).__name__ for n, v in PARAMETERS.items()}
    assert all(len(p["help"]) >= 10 and ast.literal_eval(p["default"]) == PARAMETERS[n] for n, p in found.items())


@pytest.mark.parametrize("path", PAPERS, ids=name)
def test_papers_do_not_import_each_other(path):
    others = {p.stem for p in PAPERS} - {path.stem}
    imports = re.findall(r"kdnotes\.papers\.(\w+)|from kdnotes\.papers import (\w+)", "\n".join(code(read(path))))
    assert not {found for pair in imports for found in pair} & others


@pytest.mark.parametrize("path", PAPERS, ids=name)
def test_reported_numbers_come_from_the_csv_alone(path):
    """Numbers as the paper reports them are read from the table of reported numbers; none is typed into the notebook.
    """
    table = pd.read_csv(ROOT / "kdnotes" / "reported" / f"{path.stem}.csv", dtype=str)
    assert list(table.columns) == ["table", "dataset", "setting", "method", "metric", "value", "std", "provenance"]
    assert table.provenance.notna().all()
    values = {value for value in table.value if re.fullmatch(r"\d{2,}\.\d{2,}", value)}
    typed = {number for source in code(read(path)) for number in re.findall(r"\d{2,}\.\d{2,}", source)}
    assert not typed & values
    assert f'reported("{path.stem}")' in "\n".join(code(read(path)))


LOADED = ["IPython", "joblib", "lightning.fabric", "matplotlib.pyplot", "nbdev.test", "nbformat", "pandas", "pytest",
          "scipy.stats", "sklearn", "torch", "torch._dynamo", "torchvision", "torch.utils.flop_counter"]


@pytest.fixture(scope="session")
def forks():
    """Starts processes that have installed packages loaded, and nothing of kdnotes: what takes longest of a start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context


@pytest.mark.parametrize("path", [apart(path) for path in ROOMS])
def test_the_cells_of_a_room_run(path, tmp_path, forks):
    said = tmp_path / "said"
    said.touch()
    given = {"run_name": IN_A_FORK, "init_globals": {"notebook": str(path), "said": str(said)}}
    process = forks.Process(target=runpy.run_path, args=(__file__,), kwargs=given)
    process.start()
    process.join(300)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0, said.read_text()[-3000:]


@pytest.mark.parametrize("path", [apart(path) for path in PAPERS])
def test_a_paper_notebook_runs_under_plain_papermill(path, tmp_path):
    command = [sys.executable, "-m", "papermill", str(path), "out.ipynb", "-p", "profile", "smoke", "-p", "out",
               str(tmp_path / "run"), "--no-progress-bar"]
    share = {"LOKY_MAX_CPU_COUNT": os.environ["OMP_NUM_THREADS"]}    # of the cores, as for threads: see conftest
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | share, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for made in ("results.csv", "claims.csv", "manifest.json", "log.txt", "figures"):
        assert (tmp_path / "run" / made).exists(), made
    assert (tmp_path / "out.ipynb").stat().st_size < 4_000_000


def run_cells(notebook: str, said: str) -> None:
    """`nbdev_test` on one notebook in this process; what it prints goes to the file `said`."""
    from joblib.externals.loky import reusable_executor
    from nbdev.test import nbdev_test

    with open(said, "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    try:
        nbdev_test(path=notebook, n_workers=0, do_print=True)
    finally:                                             # the end of a fork waits for them, and they for more work
        if workers := reusable_executor._executor:
            workers.shutdown(kill_workers=True)


if __name__ == IN_A_FORK:
    run_cells(notebook, said)  # noqa: F821  given by whoever starts the process
