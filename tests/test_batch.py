"""kdnotes.batch: parameters are checked before anything starts, runs are skipped, resumed, isolated and stopped."""

import concurrent.futures
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

import kdnotes
from kdnotes import runs
from kdnotes.batch import plan, pool, terminal, worker
from kdnotes.checks import PARAMETERS_CELL, refused
from kdnotes.config import Settings, from_text, section, setting
from kdnotes.results import Claim, Results, judge


@dataclasses.dataclass(frozen=True)
class Faces:
    steps: int = setting(170, "ours", at_least=1)
    margin: float = setting(0.5, "paper", at_least=0.0)


@dataclasses.dataclass(frozen=True)
class Recall:
    margin: float = setting(0.1, "paper", at_least=0.0)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    dataset: str = setting("synthetic", "ours")
    epochs: int = setting(3, "ours", at_least=1)
    lr: float = setting(0.1, "ours", above=0.0)
    sizes: tuple[int, ...] = setting((8, 16), "ours", at_least=1)
    network: str = setting("conv", "ours")
    flip: bool = setting(False, "ours")
    seeds: tuple[int, ...] = setting((0,), "ours", at_least=0)
    faces: Faces = section(Faces)
    recall: Recall = section(Recall)
    PROFILES = {"smoke": {"epochs": 1}, "demo": {}}


Config.__module__ = "no.module"  # its cells are nobody's to compare


@pytest.fixture
def configured(monkeypatch):
    """Every notebook has the configuration above, as if it were part of the package."""
    monkeypatch.setattr(plan, "paper_config", lambda slug: Config)
    monkeypatch.setitem(sys.modules, "no.module", type(sys)("no.module"))


def run(planned, at_once=2, **options):
    said = io.StringIO()
    with pool.local_pool(at_once) as executor:
        return pool.run_batch(
            planned, executor, listener=terminal.Board(said, every=0), interval=0.1, **options
        ), said.getvalue()


# ---- finding notebooks


def test_notebooks_are_found_here_or_beside_the_package_or_where_told(write_paper, tmp_path, monkeypatch):
    write_paper(tmp_path / "nbs" / "papers", "near")
    write_paper(tmp_path / "nbs" / "papers", "_draft")
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = kdnotes\n")
    for place in (tmp_path, tmp_path / "nbs"):
        monkeypatch.chdir(place)
        assert list(plan.find_papers()) == ["near"]
    assert plan.title(plan.find_papers()["near"]) == "The near paper"
    write_paper(tmp_path / "other", "far")
    assert list(plan.find_papers(tmp_path / "other")) == ["far"]
    (tmp_path / "empty").mkdir()
    assert "no notebooks in" in refused(plan.find_papers, tmp_path / "empty")
    assert "--notebooks" in refused(plan.find_papers, tmp_path / "absent")
    monkeypatch.setattr(plan, "checkout_folder", lambda name: None)
    monkeypatch.setattr(kdnotes, "__file__", str(tmp_path / "site-packages" / "kdnotes" / "__init__.py"))
    assert "clone of the repository" in refused(plan.find_papers)
    write_paper(tmp_path / "site-packages" / "kdnotes" / "nbs" / "papers", "brought")
    assert list(plan.find_papers()) == ["brought"]


def test_an_unknown_paper_is_answered_with_the_nearest(tmp_path):
    papers = {"horkd": tmp_path, "dance": tmp_path}
    assert list(plan.select(["dance", "horkd", "dance"], papers)) == ["dance", "horkd"]
    assert "did you mean 'horkd'" in refused(plan.select, ["hrokd"], papers)


@pytest.mark.parametrize(
    "parameters, tagged, expected",
    [
        (PARAMETERS_CELL, 2, "2 cells tagged 'parameters'"),
        (PARAMETERS_CELL, 0, "0 cells"),
        (PARAMETERS_CELL + "\nextra = 1", 1, "extra"),
        (PARAMETERS_CELL.replace('out = ""', ""), 1, "look at out"),
        (PARAMETERS_CELL.replace("{}", "dict()"), 1, "literals"),
        ("profile = (", 1, "literals"),
    ],
)
def test_the_parameters_cell_must_be_whole(write_paper, tmp_path, parameters, tagged, expected):
    assert expected in refused(plan.read_parameters, write_paper(tmp_path, "toy", parameters=parameters, tagged=tagged))


def test_a_damaged_notebook_is_named(tmp_path):
    (tmp_path / "toy.ipynb").write_text('{"cells": [')
    assert "toy.ipynb is not a notebook" in refused(plan.read_parameters, tmp_path / "toy.ipynb")


# ---- parameters


@given(st.text())
def test_text_stays_text_where_text_is_expected(text):
    assert from_text(text, str) == text


def test_parameters_are_resolved_as_the_notebook_will(write_paper, tmp_path, configured):
    toy = write_paper(tmp_path, "toy")
    texts = {
        "profile": "smoke",
        "seeds": "0-2",
        "lr": "1e-3",
        "sizes": "4",
        "network": "7",
        "steps": "600",
        "overrides": '{"flip": true, "recall": {"margin": 0.2}}',
    }
    parameters, everything = plan.resolve("toy", toy, texts)
    assert parameters["overrides"] == {
        "lr": 1e-3,
        "sizes": [4],
        "network": "7",
        "flip": True,
        "faces.steps": 600,
        "recall.margin": 0.2,
    }
    made = Config.chosen(parameters)  # what the notebook does with them
    assert made.faces.steps == 600 and made.recall.margin == 0.2 and made.faces.margin == 0.5 and made.sizes == (4,)
    assert everything == made.flat() | {"profile": "smoke", "device": "auto", "precision": "auto"}
    values = {
        "lr": 0.001,
        "sizes": [4],
        "profile": "smoke",
        "network": "7",
        "flip": True,
        "seeds": "0,1,2",
        "faces.steps": 600,
    }
    assert plan.resolve("toy", toy, values | {"recall.margin": 0.2})[1] == everything


@pytest.mark.parametrize(
    "wrong, expected",
    [
        ({"epoch": "3"}, "did you mean 'epochs'"),
        ({"epochs": "three"}, "expected int"),
        ({"epochs": "1.5"}, "expected int"),
        ({"flip": "1"}, "expected true or false"),
        ({"lr": "fast"}, "expected float"),
        ({"epochs": "0"}, "at least 1"),
        ({"lr": "NaN"}, "lr=nan"),
        ({"lr": "Infinity"}, "lr=inf"),
        ({"epochs": "010"}, "epochs='010' is text; expected int"),
        ({"epochs": "1:30"}, "expected int"),
        ({"sizes": "[010]"}, "sizes"),
        ({"sizes": "2,x"}, "sizes"),
        ({"margin": "1"}, "faces.margin, recall.margin"),
        ({"overrides": '{"epoch": 3}'}, "did you mean 'epochs'"),
        ({"overrides": "3"}, "overrides=3 is no mapping"),
        ({"overrides": "{lr: 0.1}"}, "no mapping"),
        ({"overrides": '{"lr": 1, "lr": 2}'}, "'lr' is given twice"),
        ({"overrides": '{"lr": 1}', "lr": "1"}, "'lr' is given twice"),
        ({"steps": "1", "faces.steps": "2"}, "'faces.steps' is given twice"),
        ({"overrides": '{"seeds": "0-9"}'}, "'seeds' is a parameter of its own"),
        ({"overrides": '{"dataset": "a"}'}, "of its own"),
        ({"overrides": '{"device": "cpu"}'}, "of its own"),
        ({"overrides": '{"profile": "demo"}'}, "of its own"),
        ({"overrides": '{"precision": "fp32"}'}, "of its own"),
        ({"overrides": '{"out": "x"}'}, "of its own"),
        ({"profile_name": "paper"}, "unknown parameter of toy"),
        ({"profile": "dmeo"}, "did you mean 'demo'"),
        ({"seeds": "1,x"}, "1,x"),
        ({"seeds": "0,0"}, "0,0"),
        ({"device": "gpu"}, "gpu"),
        ({"precision": "fp12"}, "fp12"),
        ({"out": "here"}, "unknown parameter"),
        ({"porfile": "demo"}, "did you mean 'profile'"),
        ({"dataset": "../up"}, "is no name"),
        ([("lr", "1"), ("lr", "1")], "'lr' is given twice"),
        ([("seeds", "1"), ("seeds", "1")], "'seeds' is given twice"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_written(write_paper, tmp_path, configured, wrong, expected):
    write_paper(tmp_path / "papers", "toy")
    assert expected in refused(plan.plan, ["toy"], wrong, tmp_path / "papers", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "cell, names, expected",
    [
        ("class Config:\n    a: int = 1", [], ""),
        ("from x import y\nclass Config:\n    # one\n    a: int = 1", ["a", "zzz"], ""),
        ("class Config:\n    a: int = 1\ndef loss():\n    return 2", [], ""),
        ("class Config:\n    a: int = 2", ["a"], "is not the one of the module"),
        (
            "class Config:\n    a: int = 1\n    b: int = 2",
            ["b"],
            "unknown parameter 'b': the notebook's cells define it but the module does not",
        ),
        ("class Config:\n    a: int = 1\nclass Faces:\n    b: int = setting(1)", ["faces.b"], "unknown parameter 'b'"),
        ("%matplotlib inline\nclass Config:\n    a: int = 1", [], ""),
        ("class Config:\n    a: int =", [], ""),
    ],
)
def test_settings_that_were_edited_must_be_exported(write_paper, tmp_path, cell, names, expected):
    (tmp_path / "toy.py").write_text("from ..config import y\n\nclass Config:\n    a: int = 1\n")
    call = plan.check_exported, write_paper(tmp_path, "toy", cell), tmp_path / "toy.py", names
    if expected:
        assert expected in refused(*call) and "make export" in refused(*call)
    else:
        call[0](*call[1:])


def test_devices_of_other_machines_are_only_checked_by_name():
    parameters = {"device": "cuda:7", "precision": "bf16"}
    plan.check_machine(parameters, here=False)
    assert "cudaa" in refused(plan.check_machine, parameters | {"device": "cudaa"}, here=False)


def test_a_missing_or_unknown_image_set_is_known_before_the_run(tmp_path):
    images = dataclasses.make_dataclass("Config", [("dataset", str, "digits")])
    plan.check_data(images, "digits", str(tmp_path))
    assert "kdnotes data add" in refused(plan.check_data, images, "cifar10", str(tmp_path))
    assert "did you mean" in refused(plan.check_data, images, "cifar1", str(tmp_path))
    plan.check_data(Config, "clouds", str(tmp_path))  # not a paper on images


def test_a_paper_says_which_kinds_of_data_it_reads(tmp_path):
    """Crowds are known to the paper that reads them, and to no other."""

    class Crowd(Config):
        DATA, dataset = ("images", "crowds"), "digits"

    class Images(Config):
        dataset = "digits"

    assert "crowds/labelme" in refused(plan.check_data, Crowd, "labelme", str(tmp_path))
    (tmp_path / "labelme").mkdir()
    plan.check_data(Crowd, "labelme", str(tmp_path))
    assert "did you mean" in refused(plan.check_data, Crowd, "labelm", str(tmp_path))
    assert "unknown data set 'labelme'" in refused(plan.check_data, Images, "labelme", str(tmp_path))


def test_the_run_id_stands_for_everything_that_the_parameters_amount_to(write_paper, tmp_path, configured, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_paper(tmp_path / "papers", "toy")
    folder = lambda **given: plan.plan(["toy"], given, "papers", "runs")[0].folder
    assert folder() == folder(epochs=3) == folder(profile="demo") and folder().startswith("runs/toy/demo-synthetic-")
    assert (
        len({folder(), folder(epochs=4), folder(profile="smoke"), folder(seeds="0,1"), folder(precision="fp32")}) == 5
    )
    before = folder()
    monkeypatch.setattr(Config, "PROFILES", {"demo": {"lr": 0.2}})
    assert folder() != before
    (planned,) = plan.plan([], {}, "papers", "runs")
    assert planned.parameters["out"] == planned.folder  # and nothing of this machine:
    assert str(tmp_path) not in json.dumps([planned.parameters, planned.notebook])


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_unwritable_output_folder_is_refused(write_paper, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    write_paper(tmp_path / "papers", "toy")
    assert "--out" in refused(plan.plan, ["toy"], {}, tmp_path / "papers", tmp_path / place)


# ---- runs

WRITE = "from pathlib import Path; import os, sys, json; here = Path(out)"
FACTS = """names = {"threads": "OMP_NUM_THREADS", "data": "KDNOTES_DATA"}
facts = {"executable": sys.executable, "cwd": os.getcwd()} | {name: os.environ[key] for name, key in names.items()}
(here / "facts.json").write_text(json.dumps(facts | {"profile": profile, "overrides": overrides}))"""
RUN = """from kdnotes.runs import open_run
from kdnotes.results import Claim, Results, judge
asked = {"profile": profile, "dataset": "synthetic"}
run = open_run("toy", asked, out)"""
TRAIN = """run.log.info("epoch 1")
first = not (run.checkpoints / "half").exists()
(run.checkpoints / "half").touch()
assert not first, 'stopped in the middle'"""
FINISH = """book = Results("toy", profile)
for seed in range(3):
    book.add("t", "synthetic", "CE", "accuracy", 80 + seed, seed)
    book.add("t", "synthetic", "KD", "accuracy", 82 + seed, seed)
run.finish(book, judge([Claim("kd", "KD helps", "KD", "CE")], book))"""


@pytest.fixture
def workplace(tmp_path, monkeypatch, light_workers):
    """A folder with an awkward name, and a `python3` kernel that is not ours."""
    place = tmp_path / "a {strange} place"
    place.mkdir()
    fake = tmp_path / "jupyter" / "kernels" / "python3"
    fake.mkdir(parents=True)
    kernel = {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
    (fake / "kernel.json").write_text(json.dumps(kernel))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(place)
    return place


def test_a_batch_isolates_failures_and_the_next_one_resumes_them(write_paper, workplace, configured, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_paper(
        workplace / "papers",
        "dies",
        "import os",
        "import signal; os.kill(os.getpid(), signal.SIGKILL)",
        "print('never')",
    )
    write_paper(workplace / "papers", "good", WRITE, FACTS)
    write_paper(workplace / "papers", "later", RUN, TRAIN, FINISH)
    planned = plan.plan(
        [], {"profile": "smoke", "lr": "1e-5"}, "papers", "runs", share=2, environment={"KDNOTES_DATA": "/data"}
    )
    (dies, good, later), said = run(planned)
    assert dies.status == "failed" and "os.kill" in terminal.failure(dies)
    assert dies.reason == "the kernel was killed by signal 9 (SIGKILL); often the memory has run out"
    assert (good.status, later.status) == ("finished", "failed") and terminal.exit_status([good, later]) == 1
    facts = json.loads((Path(good.planned.folder) / "facts.json").read_text())
    assert facts == {
        "executable": sys.executable,
        "threads": "1",
        "data": "/data",
        "cwd": str(workplace),
        "profile": "smoke",
        "overrides": {"lr": 1e-5},
    }
    assert {"notebook.ipynb", "notebook.html", "facts.json"} == {p.name for p in Path(good.planned.folder).iterdir()}

    told, place = terminal.summary([good, later]), plan.folder_of(later.planned)
    assert (
        f"{later.planned}: failed in cell [4]; the partial notebook is {later.notebook}" in told and "\x1b" not in told
    )
    assert "(run.checkpoints" in told and "AssertionError: stopped in the middle" in told
    assert later.reason == "AssertionError: stopped in the middle" in said
    rows = [line.split()[:4] for line in told.splitlines()[-2:]]
    assert rows == [["good", "smoke", "synthetic", "finished"], ["later", "smoke", "synthetic", "failed"]]
    executed = nbformat.read(later.notebook, 4)  # kept, with its error and nothing of this machine
    assert [output.ename for cell in executed.cells for output in cell.get("outputs", [])] == ["AssertionError"]
    assert runs.state(place) == "interrupted" and runs.partial_folder(place) == (workplace / later.notebook).parent

    (good, later), said = run(planned[1:])
    assert (good.status, later.status) == ("skipped", "finished") and runs.read_manifest(place)["resumed"] == 1
    assert "good" in said and "--force" in said and "resumes" in said and terminal.exit_status([good, later]) == 0
    assert {"notebook.ipynb", "notebook.html", "results.csv", "log.txt"} <= set(runs.read_manifest(place)["files"])
    assert runs.state(place) == "finished" and "<html" in (place / "notebook.html").read_text()
    assert not list(workplace.glob("runs/.stop-*")) and not list((workplace.parent / "tmp").iterdir())
    assert not list(place.parent.glob(".*"))

    book = json.loads((workplace / "papers" / "later.ipynb").read_text())  # an edit outdates it, a comment does not

    def edited(text):
        book["cells"][-1]["source"] = "# two more\n" + FINISH.replace("82 + seed", text)
        (workplace / "papers" / "later.ipynb").write_text(json.dumps(book))
        return plan.plan(
            ["later"], {"profile": "smoke", "lr": "1e-5"}, "papers", "runs", environment={"KDNOTES_DATA": "/data"}
        )

    assert run(edited("82 + seed"))[0][0].status == "skipped"
    before = (place / "results.csv").read_bytes()
    (later,), said = run(edited("'eighty'"))  # it fails: what was finished is still there
    assert later.status == "failed" and "outdated, the code has changed: cell " in said and "; runs again" in said
    assert runs.state(place) == "finished" and (place / "results.csv").read_bytes() == before
    (later,), said = run([dataclasses.replace(edited("83 + seed")[0], force=True)])
    assert later.status == "failed" and "stopped in the middle" in later.reason  # forced: it found no checkpoint
    (later,), said = run(edited("83 + seed"))
    assert later.status == "finished" and (place / "results.csv").read_bytes() != before


def test_a_run_belongs_to_one_supervisor(write_paper, workplace, configured):
    write_paper(workplace / "papers", "toy")
    (planned,) = plan.plan(["toy"], {}, "papers", "runs")
    folder = plan.folder_of(planned)
    with worker.claim(planned):
        assert folder.is_dir() and "another process works on this run" in worker.supervise(planned).reason
    assert not folder.exists()
    (runs.partial_folder(folder) / "checkpoints").mkdir(parents=True)
    forced = dataclasses.replace(planned, force=True)
    with FileLock(runs.beside(folder, "lock")):  # a notebook in JupyterLab works on it
        for one in (planned, forced):
            assert "another process works on this run" in worker.supervise(one).reason
    with worker.claim(planned):
        assert (runs.partial_folder(folder) / "checkpoints").exists()
    with worker.claim(forced):
        assert [p.name for p in runs.partial_folder(folder).iterdir()] == [".fresh"]
    missing = dataclasses.replace(planned, cwd=str(workplace / "absent"))
    assert worker.supervise(missing).status == "failed"


def test_a_worker_that_ends_without_a_word(write_paper, workplace, configured, monkeypatch):
    """It says by which signal, not what a library warned of before; stopped in its first second, it is interrupted."""
    write_paper(workplace / "papers", "toy")
    (planned,) = plan.plan(["toy"], {}, "papers", "runs")
    start = subprocess.Popen
    bodies = {
        "import os; print('Warning: frozen', flush=True); os.kill(os.getpid(), 9)": "was killed by signal 9 (SIGKILL)",
        "raise SystemExit(3)": "ended with exit code 3",
        "import time; time.sleep(60)": "",
    }
    for body, expected in bodies.items():
        monkeypatch.setattr(
            worker.subprocess, "Popen", lambda command, body=body, **more: start([*command[:2], body], **more)
        )
        if not expected:
            threading.Timer(0.3, Path(planned.stop).touch).start()
            monkeypatch.setattr(worker.attend, "__defaults__", (0.2,))
        ended = worker.supervise(planned)
        if expected:
            assert ended.status == "failed" and expected in ended.reason.splitlines()[0]
            assert expected in terminal.sentence(ended)
        else:
            assert ended.status == "interrupted" and terminal.exit_status([ended]) == 130


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("[enforce fail at inline_container.cc:664] . unexpected")],
)
def test_a_full_disk_is_one_clear_line(error, tmp_path):
    said = worker.reason_of(error, tmp_path)
    assert said == f"no space is left on the disk of {tmp_path}; free some, and the same command resumes the run"
    assert worker.reason_of(ValueError("a\nb"), tmp_path) == "ValueError: a"


def test_only_what_is_whole_counts_as_finished(tmp_path):
    toy = Results("toy", "smoke")
    for seed in range(3):
        toy.add("t", "digits", "CE", "accuracy", 80 + seed, seed)
        toy.add("t", "digits", "KD", "accuracy", 82 + seed, seed)
    book = json.dumps({"cells": [], "metadata": {"kdnotes": {"status": "finished"}}})
    opened = runs.open_run("toy", {"profile": "smoke", "dataset": "digits"}, out=tmp_path / "run")
    (tmp_path / "mine.npz").write_bytes(b"pixels")
    data = {"mine": {"print": "p", "files": {"mine.npz": [6, runs.digest(tmp_path / "mine.npz")]}}}
    folder = opened.finish(toy, judge([Claim("kd", "KD helps", "KD", "CE")], toy), data=data)
    assert not plan.is_finished(folder)  # it has no executed notebook
    (tmp_path / "draft").write_text(book)
    runs.add_files(folder, {"notebook.ipynb": tmp_path / "draft"}, notebook="c0de")
    assert plan.is_finished(folder) and terminal.count_claims(folder) == "1/0/0"
    planned = plan.PlannedRun("toy", "toy.ipynb", "run", {}, "d", str(tmp_path), "stop", code="c0de")
    assert plan.outdated(planned) == ""
    assert plan.outdated(dataclasses.replace(planned, code="other")) == "the code has changed"
    with_data = dataclasses.replace(planned, data=str(tmp_path))
    assert plan.outdated(with_data) == ""
    (tmp_path / "mine.npz").write_bytes(b"PIXELS")
    assert "the data of mine have changed" in plan.outdated(with_data) and plan.outdated(planned) == ""
    for half in (book[:-5], book.replace("finished", "interrupted"), "{}", '{"cells": [], "metadata": {"kdnotes": 3}}'):
        (folder / "notebook.ipynb").write_text(half)
        assert not plan.is_finished(folder)
    (folder / "notebook.ipynb").write_text(book)
    assert plan.is_finished(folder)
    (folder / "manifest.json").write_text('{"status": "finis')
    assert not plan.is_finished(folder)


SLEEP = """(here / "kernel").write_text(str(os.getpid()))
if not (here / "go").exists():
    import time; time.sleep(600)"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")


# a test run in the background of a shell inherits an ignored SIGINT, which a person at a terminal does not
CLI = """import signal, sys; from kdnotes.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main())"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_batch_that_is_stopped_or_killed_leaves_no_kernel_and_is_resumed(write_paper, workplace):
    write_paper(workplace / "papers", "sleeper", WRITE, SLEEP)
    write_paper(workplace / "papers", "waiter", WRITE)
    command = [sys.executable, "-c", CLI, "run", "--all", "--notebooks", "papers"]
    for end, status in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        note = wait_for(lambda: next(workplace.glob("runs/sleeper/*/kernel"), None))
        kernel = int(wait_for(note.read_text))
        process.send_signal(end)
        out, err = process.communicate(timeout=60)
        assert process.returncode == status, err
        wait_for(lambda pid=kernel: not alive(pid), 20)
        wait_for(lambda: not list(workplace.glob("runs/sleeper/.*.kernel")), 20)
        note.unlink()
        if end == signal.SIGINT:
            assert out.count("interrupted") == 2 and "Traceback" not in err
            (kept,) = workplace.glob("runs/sleeper/.*.partial/notebook.ipynb")
            assert plan.verdict(kept)["status"] == "interrupted"
            assert not list(workplace.glob("runs/.stop-*")) and not list(workplace.glob("runs/waiter/*"))
    assert not list((workplace.parent / "tmp").iterdir())  # and no file in the temporary folder
    (note.parent / "go").touch()
    (sleeper,), _ = run(plan.plan(["sleeper"], {}, "papers", "runs"))
    assert sleeper.status == "finished"


@pytest.mark.slow
def test_a_batch_whose_output_nobody_reads_goes_on(write_paper, workplace):
    for slug in ("one", "two"):
        write_paper(workplace / "papers", slug, "1 + 1")
    command = f"{sys.executable} -c '{CLI}' run --all --notebooks papers 2>&1"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and done.stderr == ""
    assert len(list(workplace.glob("runs/*/*/notebook.ipynb"))) == 2


def test_the_next_run_starts_before_the_listener_has_time_for_more(tmp_path):
    planned = [plan.PlannedRun(name, "", f"runs/{name}/smoke-1", {}, "", str(tmp_path), str(tmp_path / "stop")) for name in "abc"]
    heard = []

    class Told(pool.Listener):
        def begins(self, planned, why):
            heard.append(f"{planned.slug} begins")

        def ended(self, outcome):
            heard.append(f"{outcome.planned.slug} ended")

        def show(self, running):
            heard.append("time")

    class Done(concurrent.futures.Executor):
        def submit(self, function, planned):
            future = concurrent.futures.Future()
            future.set_result(worker.Outcome(planned, "finished"))
            return future

    pool.run_batch(planned, Done(), 1, Told())
    assert heard == [f"{name} begins" if each == 0 else "time" if each == 1 else f"{name} ended"
                     for name in "abc" for each in range(3)]


# ---- resources, progress, summary


def test_gpus_are_leased_all_at_once_and_to_one_run_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{tmp_path.name}-a,{tmp_path.name}-b")
    stop, held, most, order = tmp_path / "stop", set(), [], []

    def use(count):
        with worker.lease_gpus(count, stop) as gpus:
            assert len(gpus) == count and not held & set(gpus)
            held.update(gpus)
            most.append(len(held))
            time.sleep(0.1)
            held.difference_update(gpus)
            order.append(count)

    threads = [threading.Thread(target=use, args=(count,)) for count in (1, 1, 2, 1)]
    [thread.start() for thread in threads]
    [thread.join(30) for thread in threads]
    assert sorted(order) == [1, 1, 1, 2] and max(most) == 2
    stop.touch()
    with worker.lease_gpus(2, stop) as both, worker.lease_gpus(1, stop) as none:  # a stopped batch waits for nothing
        assert len(both) == 2 and none == []
    assert "leave --gpus-per-run out" in refused(pool.local_pool(1, 3).__enter__)


def test_cores_are_shared_out(monkeypatch):
    for name in worker.THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    assert set(worker.thread_limits(3).values()) == {"2"} and set(worker.thread_limits(16).values()) == {"1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert worker.thread_limits(3)["OMP_NUM_THREADS"] == "5"


def test_a_terminal_gets_living_lines_and_a_log_gets_few():
    class Terminal(io.StringIO):
        isatty = lambda self: True

    log, screen = io.StringIO(), Terminal()
    for stream, every in ((log, 0.0), (screen, 0.0)):
        board = terminal.Board(stream, every)
        for cells, clock in ((1, 1), (1, 2), (2, 3), (2, 4)):
            board.draw({"toy": f"{cells}/3 cells  0:0{clock}", "idle": ""})
        board.say("toy: finished")
    assert log.getvalue() == "toy  1/3 cells  0:01\ntoy  2/3 cells  0:03\ntoy: finished\n"
    assert screen.getvalue().count("\x1b[2F\x1b[J") == 4 and screen.getvalue().endswith("\x1b[Jtoy: finished\n")
    assert "idle  waits" in screen.getvalue()
    quiet = terminal.Board(io.StringIO(), every=60)
    quiet.draw({"toy": "1/3 cells"})
    assert quiet.stream.getvalue() == ""


def test_progress_is_read_from_the_files_of_a_run(write_paper, tmp_path):
    planned = plan.PlannedRun("toy", "toy.ipynb", "runs/toy/x", {"profile": "demo"}, "d", str(tmp_path), "stop")
    assert terminal.progress(planned, 0) == ""
    worker.draft_of(planned).parent.mkdir(parents=True)
    draft = write_paper(tmp_path, "toy", "1", "2").rename(worker.draft_of(planned))
    log = runs.partial_folder(plan.folder_of(planned)) / "log.txt"
    log.parent.mkdir()
    log.write_text("epoch 1\n2026-01-31 12:00:00 INFO epoch 2\n")
    assert re.fullmatch(r"0/3 cells  [\d:]+  epoch 2", terminal.progress(planned, time.time())) and draft.exists()


def test_the_last_line_of_a_log(tmp_path):
    (tmp_path / "log.txt").write_text("x" * 5000 + "\nloss 0.5\n\n")
    assert terminal.last_line(tmp_path / "log.txt") == "loss 0.5" and terminal.last_line(tmp_path / "none") == ""


def test_a_supervisor_that_is_lost_is_a_failed_run():
    future = concurrent.futures.Future()
    future.set_exception(RuntimeError("worker gone"))
    planned = plan.PlannedRun("toy", "toy.ipynb", "runs/toy/x", {"profile": "demo"}, "d", os.getcwd(), "stop")
    assert pool.outcome_of(future, planned).reason == "lost: RuntimeError: worker gone"
    assert terminal.exit_status([worker.Outcome(planned, "failed"), worker.Outcome(planned, "interrupted")]) == 130
