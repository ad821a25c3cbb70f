"""Notebooks and package are one thing: exporting, cleaning and rendering the README must change nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREES = ("nbs", "kdnotes")
FILES = ("settings.ini", "setup.py", "pyproject.toml", "README.md")


def tree(root: Path) -> dict[str, bytes]:
    """Contents of every notebook, module and the README below `root`."""
    paths = [p for name in TREES for p in (root / name).rglob("*") if p.suffix in {".py", ".ipynb"}
             and ".ipynb_checkpoints" not in p.parts]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in [*paths, root / "README.md"]}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the sources, with everything that is generated made again."""
    root = tmp_path_factory.mktemp("sync")
    for name in TREES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    scripts = Path(sys.executable).parent
    readme = [sys.executable, "-c", "from kdnotes.report.publish import write_readme; write_readme()"]
    for command in ([str(scripts / "nbdev_export")], [str(scripts / "nbdev_clean")], readme):
        subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, timeout=300)
    return root


@pytest.mark.long
def test_export_clean_and_readme_leave_no_difference(copy):
    before, after = tree(ROOT), tree(copy)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert not changed, f"out of step with the notebooks (run `make export`): {', '.join(changed)}"


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").rglob("*.ipynb")),
                         ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_notebooks_are_committed_without_outputs(path):
    if ".ipynb_checkpoints" in path.parts:
        pytest.skip("an editor's checkpoint")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    dirty = [i for i, cell in enumerate(cells) if cell.get("outputs") or cell.get("execution_count")]
    assert not dirty, f"cells {dirty} of {path.name} carry outputs; run `make export`"


def test_every_module_has_its_notebook():
    modules = {p.relative_to(ROOT / "kdnotes").with_suffix("").as_posix() for p in (ROOT / "kdnotes").rglob("*.py")}
    notebooks = {p.relative_to(ROOT / "nbs").with_suffix("").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb")
                 if ".ipynb_checkpoints" not in p.parts}
    notebooks = {name for name in notebooks if not name.startswith("examples/")}                    # they export nothing
    modules = {name for name in modules if not name.rpartition("/")[2].startswith("_")}
    assert modules == notebooks - {"index"}
