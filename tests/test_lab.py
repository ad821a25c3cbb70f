"""What `make lab` does: it opens at the root with the index, and saving leaves the clone clean and the run with its notebook."""
import json
import subprocess
from pathlib import Path

import nbformat
import pytest
from traitlets.config import PyFileConfigLoader

from kdnotes import runs
from kdnotes.results import Claim, Results, judge

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.fixture
def lab(tmp_path):
    """The contents manager of a JupyterLab that `make lab` starts in a clone at `tmp_path`."""
    from jupyter_server.services.contents.largefilemanager import LargeFileManager

    (tmp_path / "nbs" / "papers").mkdir(parents=True)
    for name in ("settings.ini", "jupyter_config.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return LargeFileManager(config=PyFileConfigLoader("jupyter_config.py", path=str(tmp_path)).load_config(), root_dir=str(tmp_path))


def as_run(path: Path, note: str = "") -> dict:
    """The model that JupyterLab sends when the notebook `path` was run and is saved; it made the run `note`."""
    book = nbformat.read(path, 4)
    book.metadata |= {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
                      "language_info": {"name": "python", "version": "3.11.7"}, "toc-autonumbering": True}
    for i, cell in enumerate(book.cells):
        cell.metadata |= {"collapsed": False, "scrolled": True, "jupyter": {"outputs_hidden": True}}
        if cell.cell_type == "code":
            cell.execution_count = i + 1
            cell.outputs = [nbformat.v4.new_output("stream", text="71.25 %")]
            if note:
                cell.outputs.append(nbformat.v4.new_output("display_data", {"text/plain": "The run"}, metadata={"kdnotes": {"run": note}}))
    return {"type": "notebook", "content": book, "format": "json"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_saving_a_notebook_that_was_run_changes_no_byte(lab, path):
    place = f"nbs/{path.name}"
    Path(lab.root_dir, place).write_bytes(path.read_bytes())
    lab.save(as_run(path), place)
    assert Path(lab.root_dir, place).read_bytes() == path.read_bytes()


def test_elsewhere_outputs_stay(lab):
    for place in ("results/horkd/notebook.ipynb", "mine.ipynb", "other/nbs/mine.ipynb"):
        Path(lab.root_dir, place).parent.mkdir(parents=True, exist_ok=True)
        lab.save(as_run(ROOT / "nbs" / "config.ipynb"), place)
        assert "71.25 %" in Path(lab.root_dir, place).read_text()


def test_the_executed_notebook_goes_into_the_run_that_it_made(lab, tmp_path):
    run = runs.open_run("horkd", {"profile": "smoke", "dataset": "digits"}, tmp_path / "runs" / "horkd" / "smoke-digits-01234567")
    book = Results("horkd", "smoke")
    for seed in range(3):
        for method in ("CE", "KD"):
            book.add("t", "digits", method, "accuracy", 80 + seed, seed)
    folder = run.finish(book, judge([Claim("kd", "KD helps", "KD", "CE")], book))
    (tmp_path / "nbs" / "train.ipynb").write_bytes((ROOT / "nbs" / "train.ipynb").read_bytes())
    cells = [nbformat.v4.new_markdown_cell("# A\n\nSee [the loop](../train.ipynb)."), nbformat.v4.new_code_cell("experiment.finish()")]
    written = tmp_path / "nbs" / "papers" / "horkd.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), written)
    before = written.read_bytes()
    lab.save(as_run(written, "runs/horkd/smoke-digits-01234567"), "nbs/papers/horkd.ipynb")
    assert "71.25" not in written.read_text() and json.loads(before)["cells"] == json.loads(written.read_bytes())["cells"]
    executed = (folder / "notebook.ipynb").read_text()
    assert "71.25 %" in executed and "(../../../nbs/train.ipynb)" in executed
    assert runs.state(folder) == "finished" and runs.read_manifest(folder)["files"]["notebook.ipynb"] == runs.digest(folder / "notebook.ipynb")
    assert not list(folder.parent.glob(".*notebook*"))
    for note in ("runs/gone", "../../outside", "runs/horkd"):                  # no run: saved all the same
        lab.save(as_run(written, note), "nbs/papers/horkd.ipynb")
        assert "71.25" not in written.read_text()


def test_a_notebook_that_is_being_run_once_more_does_not_touch_its_last_run():
    from kdnotes.lab import run_of

    def book(*cells):
        note = {"output_type": "display_data", "data": {}, "metadata": {"kdnotes": {"run": "runs/a"}}}
        return {"cells": [{"cell_type": "markdown", "source": ""}, *({"execution_count": count, "outputs": [note] * noted} for count, noted in cells)]}

    assert run_of(book((1, 0), (2, 0), (3, 1))) == run_of(book((1, 0), (3, 1), (2, 0), (9, 0))) == "runs/a"
    assert run_of(book((4, 0), (2, 0), (3, 1))) == run_of(book((4, 0), (None, 0), (None, 1))) == run_of(book((1, 0))) == run_of(book()) == ""


def test_make_lab_opens_at_the_root_with_the_index():
    said = subprocess.run(["make", "-n", "-o", "install", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "jupyter lab --config jupyter_config.py" in said
    config = PyFileConfigLoader("jupyter_config.py", path=str(ROOT)).load_config()
    assert config.ServerApp.root_dir == str(ROOT) and config.LabApp.default_url == "/lab/tree/nbs/index.ipynb"
    assert (ROOT / "nbs" / "index.ipynb").is_file()


def test_a_finished_experiment_says_in_a_notebook_where_its_run_stands(monkeypatch, tmp_path):
    import IPython
    from IPython import display

    from kdnotes.experiment import say_where
    from kdnotes.lab import run_of

    shown = []
    monkeypatch.setattr(display, "display", lambda data, raw, metadata: shown.append({"data": data, "metadata": metadata}))
    monkeypatch.chdir(tmp_path)
    say_where(tmp_path / "runs" / "horkd" / "demo")
    assert not shown                                                           # in a script
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    (tmp_path / "nbs" / "papers").mkdir(parents=True)
    (tmp_path / "settings.ini").touch()
    for here in (tmp_path, tmp_path / "nbs" / "papers"):
        monkeypatch.chdir(here)
        say_where(tmp_path.resolve() / "runs" / "horkd" / "demo")
    assert [run_of({"cells": [{"outputs": [output]}]}) for output in shown] == ["runs/horkd/demo"] * 2
    assert shown[0]["data"] == {"text/plain": "The run stands in runs/horkd/demo"}
