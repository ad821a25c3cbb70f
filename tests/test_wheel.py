"""A wheel is the whole product: installed in an environment of its own, outside of any checkout, everything that the README promises works."""
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "nbs" / "examples").glob("*.ipynb"))
SOURCES = ("kdnotes", "nbs", "setup.py", "settings.ini", "pyproject.toml", "README.md", "MANIFEST.in")
BUILD = "import sys; from setuptools.build_meta import build_{0}; print(build_{0}(sys.argv[1]))"
JUNK = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", ".mypy_cache")


def run(command: list, folder: Path, environment: dict[str, str] | None = None, limit: int = 300) -> str:
    """What `command` prints in `folder`; a failure is shown with all that it said."""
    done = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of the sources: nothing is written into the checkout, and nothing of an earlier build gets in."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=JUNK) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return folder / run([sys.executable, "-c", BUILD.format("wheel"), folder], sources, clean()).split()[-1]


def clean(**more: str) -> dict[str, str]:
    """The environment without what could lead to a checkout."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "JUPYTER_PATH")} | more


def borrowed(folder: Path) -> Path:
    """A folder of links to all that is installed here, but for kdnotes and the hooks of its editable installation."""
    folder.mkdir()
    places = [p for p in dict.fromkeys([*sys.path, *site.getsitepackages(), site.getusersitepackages()]) if Path(p).name in ("site-packages", "dist-packages")]
    for entry in (entry for place in places if Path(place).is_dir() for entry in sorted(Path(place).iterdir())):
        ours = "kdnotes" in entry.name or entry.suffix == ".egg-link" or entry.name == "__pycache__"
        if not ours and not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The `bin` folder of a fresh environment with the wheel in it, and the variables to run its programs with."""
    home = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], home, clean())
    inside = next((home / "venv").glob("lib/python*/site-packages"))
    (inside / "borrowed.pth").write_text(f"{borrowed(home / 'borrowed')}\n")
    pip = [sys.executable, "-m", "pip", "--python", home / "venv" / "bin" / "python", "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", "--no-index", "--no-deps", "--no-compile", wheel], home, clean())
    data, cache = home / "data", home / "cache"
    data.mkdir()
    variables = {"KDNOTES_DATA": str(data), "KDNOTES_CACHE": str(cache), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": "1", "HOME": str(home),
                 "JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter")}                    # the templates of the HTML page
    return home / "venv" / "bin", clean(**variables)


def test_a_wheel_holds_modules_numbers_notebooks_and_types(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        requires = re.findall(r"^Requires-Dist: (\S+?)[\s;>]", archive.read(next(n for n in names if n.endswith("METADATA"))).decode(), re.MULTILINE)
    tracked = [p for pattern in ("kdnotes/**/*.py", "kdnotes/reported/*.csv", "kdnotes/models/kept/*", "nbs/**/*.ipynb") for p in ROOT.glob(pattern)]
    wanted = {p.relative_to(ROOT).as_posix() for p in tracked if not {".ipynb_checkpoints", "__pycache__"} & set(p.parts)}
    wanted = {f"kdnotes/{name}" if name.startswith("nbs/") else name for name in wanted} | {"kdnotes/py.typed"}
    assert wanted <= names and not {n.split("/")[0] for n in names} - {"kdnotes", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    assert not [n for n in names if "checkpoint" in n or "__pycache__" in n]
    assert "torch" in requires


def test_a_source_distribution_and_an_editable_installation_are_whole_too(sources, tmp_path):
    name = run([sys.executable, "-c", BUILD.format("sdist"), tmp_path], sources, clean()).split()[-1]
    with tarfile.open(tmp_path / name) as archive:
        names = {member.name.partition("/")[2] for member in archive}
    assert {"settings.ini", "setup.py", "README.md", "nbs/index.ipynb", "nbs/papers/horkd.ipynb", "kdnotes/py.typed"} <= names
    name = run([sys.executable, "-c", BUILD.format("editable"), tmp_path], sources, clean()).split()[-1]
    with zipfile.ZipFile(tmp_path / name) as archive:
        assert not [n for n in archive.namelist() if n.endswith(".ipynb")]               # the checkout has them


@pytest.mark.slow
def test_the_command_line_works_outside_of_a_checkout(installed, tmp_path):
    programs, environment = installed
    kdnotes = programs / "kdnotes"
    origin = run([programs / "python", "-c", "import kdnotes; print(kdnotes.__file__)"], tmp_path, environment)
    assert str(programs.parent) in origin and str(ROOT) not in origin
    listed = run([kdnotes, "list"], tmp_path, environment)
    assert all(p.stem in listed for p in (ROOT / "nbs" / "papers").glob("*.ipynb"))
    out = run([kdnotes, "run", "horkd", "--profile", "smoke"], tmp_path, environment)
    assert "finished" in out
    (folder,) = (tmp_path / "runs" / "horkd").glob("smoke-*")
    made = {p.name for p in folder.iterdir()}
    assert {"notebook.ipynb", "notebook.html", "results.csv", "claims.csv", "manifest.json", "figures", "tables", "code.json"} <= made
    text = "".join("".join(cell["source"]) for cell in json.loads((folder / "notebook.ipynb").read_text())["cells"] if cell["cell_type"] == "markdown")
    targets = re.findall(r"\]\(((?:\.\./)+[^)#\s]+\.ipynb)", text)
    assert targets and all((folder / target).exists() for target in targets)
    assert "runs/report/index.html" in run([kdnotes, "report"], tmp_path, environment)
    assert "HORKD" in (tmp_path / "runs" / "report" / "index.html").read_text()
    assert "skipped" in run([kdnotes, "run", "horkd", "--profile", "smoke"], tmp_path, environment)
    done = subprocess.run([kdnotes, "bench"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "clone of the repository" in done.stderr and done.stderr.count("\n") == 1


# --- the examples ---

def code_of(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_there_are_five_examples():
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_has_at_most_fifteen_lines_and_exports_nothing(path):
    lines = [line for source in code_of(path) for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 15 and not any(len(line) > 120 or ";" in line for line in lines)
    assert "#| " not in "".join(code_of(path))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_runs_as_a_script_against_the_wheel(path, installed, tmp_path):
    programs, environment = installed
    script = tmp_path / f"{path.stem}.py"
    script.write_text("\n\n".join(code_of(path)) + "\n", encoding="utf-8")
    before = {p.name for p in tmp_path.iterdir()}
    said = run([programs / "python", script], tmp_path, environment)
    assert said.strip(), "it says what it found"
    assert {p.name for p in tmp_path.iterdir()} == before, "its inputs and outputs lie in a temporary folder"
