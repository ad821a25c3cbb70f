"""kdnotes.batch: parameters are checked before anything starts, runs are skipped, resumed, isolated and stopped."""
import concurrent.futures
import dataclasses
import io
import json
import os
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

from kdnotes import batch
from kdnotes.profiles import Profiled

CONTRACT = 'profile = "demo"\ndataset = ""\nseeds = ""\ndevice = "auto"\nprecision = "auto"\nout = ""\noverrides = {}'


@dataclasses.dataclass(frozen=True)
class Config(Profiled):
    dataset: str = "synthetic"
    epochs: int = 3
    lr: float = 0.1
    sizes: tuple = (8, 16)
    network: str = "conv"
    flip: bool = False
    seeds: tuple = (0,)
    PROFILES = {"smoke": {"epochs": 1}, "demo": {}}

    def check(self):
        if self.epochs < 1:
            raise ValueError(f"epochs={self.epochs} must be at least 1")


@pytest.fixture
def configured(monkeypatch):
    """Every notebook has the configuration above, as if it were part of the package."""
    monkeypatch.setattr(batch, "paper_config", lambda slug: Config)


def run(jobs, at_once=2, **options):
    said = io.StringIO()
    with batch.local_pool(at_once) as pool:
        return batch.run_batch(jobs, pool, board=batch.Board(said, every=0), interval=0.1, **options), said.getvalue()


def message(error, function, *args, **kwargs):
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# ---- finding notebooks ----

def test_notebooks_are_found_here_or_beside_the_package_or_where_told(write_paper, tmp_path, monkeypatch):
    write_paper(tmp_path / "nbs" / "papers", "near")
    write_paper(tmp_path / "nbs" / "papers", "_draft")
    monkeypatch.chdir(tmp_path)
    assert list(batch.find_papers()) == ["near"]
    assert batch.title(batch.find_papers()["near"]) == "Paper near"
    write_paper(tmp_path / "other", "far")
    assert list(batch.find_papers(tmp_path / "other")) == ["far"]
    (tmp_path / "empty").mkdir()
    assert "no notebooks in" in message(ValueError, batch.find_papers, tmp_path / "empty")
    assert "--notebooks" in message(FileNotFoundError, batch.find_papers, tmp_path / "absent")
    monkeypatch.setattr(batch, "checkout_folder", lambda name: None)
    assert "clone of the repository" in message(FileNotFoundError, batch.find_papers)


def test_an_unknown_paper_is_answered_with_the_nearest(tmp_path):
    papers = {"horkd": tmp_path, "dance": tmp_path}
    assert list(batch.select(["dance", "horkd", "dance"], papers)) == ["dance", "horkd"]
    assert "did you mean 'horkd'" in message(ValueError, batch.select, ["hrokd"], papers)


@pytest.mark.parametrize("parameters, tags, expected", [
    (CONTRACT, 2, "2 cells tagged 'parameters'"), (CONTRACT, 0, "0 cells"), (CONTRACT + "\nextra = 1", 1, "extra"),
    (CONTRACT.replace('out = ""', ""), 1, "look at out"), (CONTRACT.replace("{}", "dict()"), 1, "literals"), ("profile = (", 1, "literals"),
])
def test_the_parameters_cell_must_be_whole(write_paper, tmp_path, parameters, tags, expected):
    path = write_paper(tmp_path, "toy", parameters=parameters, tags=tags)
    assert expected in message(ValueError, batch.read_parameters, path) and "\n" not in message(ValueError, batch.read_parameters, path)


def test_a_damaged_notebook_is_named(tmp_path):
    (tmp_path / "toy.ipynb").write_text('{"cells": [')
    assert "toy.ipynb is not a notebook" in message(ValueError, batch.read_parameters, tmp_path / "toy.ipynb")


# ---- parameters ----

@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.lists(st.integers(), max_size=4)))
def test_what_json_writes_is_read_back(value):
    assert batch.from_text(json.dumps(value), {list: tuple}.get(type(value), type(value))) == value


@given(st.text())
def test_text_stays_text_where_text_is_expected(text):
    assert batch.from_text(text, str) == text
    batch.literal(text)  # and never fails elsewhere


def test_lists_need_no_brackets_and_numbers_no_point():
    assert batch.from_text("2,4", tuple) == [2, 4] and batch.from_text("a, b", tuple) == ["a", "b"] and batch.from_text("7", tuple) == [7]
    assert batch.from_text("1e-3", float) == 1e-3 and batch.from_text("True", bool) is True and batch.from_text("None", int) is None


def test_parameters_are_resolved_as_the_notebook_will(write_paper, tmp_path, configured):
    toy = write_paper(tmp_path, "toy")
    given_text = {"profile": "smoke", "seeds": "0-2", "lr": "1e-3", "sizes": "4", "network": "7", "overrides": "{flip: true}"}
    parameters, everything = batch.resolve("toy", toy, given_text)
    assert parameters["overrides"] == {"lr": 1e-3, "sizes": (4,), "network": "7", "flip": True}
    assert everything == dataclasses.asdict(Config.profile("smoke", seeds="0-2", lr=1e-3, sizes=(4,), network="7", flip=True)) | {
        "profile": "smoke", "device": "auto", "precision": "auto"}
    assert batch.resolve("toy", toy, {"lr": 0.001, "sizes": [4], "profile": "smoke", "network": "7", "flip": True, "seeds": "0,1,2"})[1] == everything


@pytest.mark.parametrize("wrong, expected", [
    ({"epoch": "3"}, "did you mean 'epochs'"), ({"epochs": "three"}, "expected int"), ({"epochs": "1.5"}, "expected int"), ({"flip": "1"}, "expected bool"),
    ({"lr": "fast"}, "expected float"), ({"epochs": "0"}, "at least 1"), ({"overrides": "{epoch: 3}"}, "did you mean 'epochs'"),
    ({"overrides": "3"}, "expected dict"), ({"profile": "dmeo"}, "did you mean 'demo'"), ({"seeds": "1,x"}, "1,x"), ({"seeds": "0,0"}, "0,0"),
    ({"device": "gpu"}, "gpu"), ({"precision": "fp12"}, "fp12"), ({"out": "here"}, "unknown parameter"), ({"porfile": "demo"}, "did you mean 'profile'"),
])
def test_wrong_parameters_are_refused_before_anything_is_written(write_paper, tmp_path, configured, wrong, expected):
    write_paper(tmp_path / "papers", "toy")
    said = message(ValueError, batch.plan, ["toy"], wrong, tmp_path / "papers", tmp_path / "runs")
    assert expected in said and "\n" not in said
    assert not (tmp_path / "runs").exists()


def test_devices_of_other_machines_are_only_checked_by_name():
    parameters = {"device": "cuda:7", "precision": "bf16"}
    batch.check_machine(parameters, here=False)
    assert "cudaa" in message(ValueError, batch.check_machine, parameters | {"device": "cudaa"}, here=False)


def test_a_missing_or_unknown_image_set_is_known_before_the_run(tmp_path):
    images = dataclasses.make_dataclass("Config", [("dataset", str, "digits")])
    batch.check_data(images, "digits", str(tmp_path))
    assert "kdnotes data add" in message(FileNotFoundError, batch.check_data, images, "cifar10", str(tmp_path))
    assert "did you mean" in message(ValueError, batch.check_data, images, "cifar1", str(tmp_path))
    batch.check_data(Config, "clouds", str(tmp_path))  # not a paper on images


def test_a_paper_says_which_kinds_of_data_it_reads(tmp_path):
    """Crowds are known to the paper that reads them, and to no other."""
    class Crowd(Config):
        DATA, dataset = ("images", "crowds"), "digits"

    class Images(Config):
        dataset = "digits"

    assert "crowds/labelme" in message(FileNotFoundError, batch.check_data, Crowd, "labelme", str(tmp_path))
    (tmp_path / "labelme").mkdir()
    batch.check_data(Crowd, "labelme", str(tmp_path))
    assert "did you mean" in message(ValueError, batch.check_data, Crowd, "labelm", str(tmp_path))
    assert "unknown data set 'labelme'" in message(ValueError, batch.check_data, Images, "labelme", str(tmp_path))


def test_the_run_id_stands_for_everything_that_the_parameters_amount_to(write_paper, tmp_path, configured, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_paper(tmp_path / "papers", "toy")
    folder = lambda **given: batch.plan(["toy"], given, "papers", "runs")[0].folder
    assert folder() == folder(epochs=3) == folder(profile="demo") and folder().startswith("runs/toy/demo-synthetic-")
    assert len({folder(), folder(epochs=4), folder(profile="smoke"), folder(seeds="0,1"), folder(precision="fp32")}) == 5
    before = folder()
    monkeypatch.setattr(Config, "PROFILES", {"demo": {"lr": 0.2}})
    assert folder() != before
    job = batch.plan([], {}, "papers", "runs")[0]
    assert job.parameters["out"] == job.folder and str(tmp_path) not in json.dumps([job.parameters, job.notebook])  # nothing of this machine


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_unwritable_output_folder_is_refused(write_paper, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    write_paper(tmp_path / "papers", "toy")
    assert "--out" in message(ValueError, batch.plan, ["toy"], {}, tmp_path / "papers", tmp_path / place)


# ---- runs ----

WRITE = "from pathlib import Path; import os, sys, json; here = Path(out)"
FACTS = """facts = {"executable": sys.executable, "threads": os.environ["OMP_NUM_THREADS"], "data": os.environ["KDNOTES_DATA"], "cwd": os.getcwd()}
(here / "facts.json").write_text(json.dumps(facts | {"profile": profile, "overrides": overrides}))
(here / "log.txt").write_text("epoch 1\\n2026-01-31 12:00:00 INFO epoch 2\\n")"""
TWICE = """checkpoint = here / "checkpoints"
first = not checkpoint.exists()
checkpoint.mkdir(exist_ok=True)
assert not first, "stopped in the middle"
(here / "resumed").touch()"""


@pytest.fixture
def workplace(tmp_path, monkeypatch, light_workers):
    """A folder with an awkward name, and a `python3` kernel that is not ours."""
    place = tmp_path / "a {strange} place"
    place.mkdir()
    fake = tmp_path / "jupyter" / "kernels" / "python3"
    fake.mkdir(parents=True)
    (fake / "kernel.json").write_text(json.dumps({"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.chdir(place)
    return place


def test_a_batch_isolates_failures_and_the_next_one_resumes_them(write_paper, workplace, configured, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_paper(workplace / "papers", "dies", "import os", "os._exit(9)", "print('never')")
    write_paper(workplace / "papers", "good", WRITE, FACTS)
    write_paper(workplace / "papers", "later", WRITE, TWICE)
    jobs = batch.plan([], {"profile": "smoke", "lr": "1e-5"}, "papers", "runs", share=2, environment={"KDNOTES_DATA": "/data"})
    (dies, good, later), said = run(jobs)
    assert dies.status == "failed" and "died" in dies.reason and "os._exit(9)" in batch.failure(dies)
    assert (good.status, later.status) == ("finished", "failed") and batch.exit_status([good, later]) == 1
    facts = json.loads((Path(good.job.folder) / "facts.json").read_text())
    assert facts == {"executable": sys.executable, "threads": "1", "data": "/data", "cwd": str(workplace), "profile": "smoke", "overrides": {"lr": 1e-5}}
    assert "4/4 cells" in batch.progress(good.job, 0) and batch.progress(good.job, 0).endswith("  epoch 2")

    told = batch.summary([good, later])
    assert f"{later.job}: failed in cell [4]" in told and "checkpoint = here" in told and "AssertionError: stopped in the middle" in told and "\x1b" not in told
    assert later.reason == "AssertionError: stopped in the middle" in said
    assert [line.split()[:4] for line in told.splitlines()[-2:]] == [[slug, "smoke", "synthetic", status] for slug, status in
                                                                    (("good", "finished"), ("later", "failed"))]
    executed = nbformat.read(batch.notebook_of(later.job), 4)  # the partial notebook is kept, with its error and nothing of this machine
    assert [output.ename for cell in executed.cells for output in cell.get("outputs", [])] == ["AssertionError"]

    (good, later), said = run(jobs[1:])
    assert (good.status, later.status) == ("skipped", "finished") and (Path(later.job.folder) / "resumed").exists()
    assert "good" in said and "--force" in said and "resumes" in said and batch.exit_status([good, later]) == 0
    assert not list(workplace.glob("runs/.stop-*"))


def test_a_run_belongs_to_one_supervisor_and_is_discarded_whole(write_paper, workplace, configured):
    write_paper(workplace / "papers", "toy")
    job, = batch.plan(["toy"], {}, "papers", "runs")
    with batch.claim_folder(job):
        (batch.folder_of(job) / "checkpoints").mkdir()
        assert "another process works on this run" in batch.supervise(job).reason
    with batch.claim_folder(job):
        assert (batch.folder_of(job) / "checkpoints").exists()
    forced = dataclasses.replace(job, force=True)
    with FileLock(batch.folder_of(job) / ".lock"):  # a notebook in JupyterLab works on it
        assert "another process works on this run" in batch.supervise(forced).reason and (batch.folder_of(job) / "checkpoints").exists()
    with batch.claim_folder(forced):
        assert not list(batch.folder_of(job).iterdir()) and not list(workplace.glob("runs/.discarded-*"))
    missing = dataclasses.replace(job, cwd=str(workplace / "absent"))
    assert batch.supervise(missing).status == "failed"


def test_only_what_is_whole_counts_as_finished(tmp_path, monkeypatch):
    from kdnotes.runs import open_run
    from kdnotes.results import Claim, Results, judge
    toy = Results("toy", "smoke")
    for seed in range(3):
        toy.add("t", "digits", "CE", "accuracy", 80 + seed, seed)
        toy.add("t", "digits", "KD", "accuracy", 82 + seed, seed)
    book = json.dumps({"cells": [], "metadata": {"kdnotes": {"status": "finished"}}})
    folder = open_run("toy", {"profile": "smoke", "dataset": "digits"}, out=tmp_path / "run").path
    (folder / "notebook.ipynb").write_text(book)
    assert not batch.is_finished(folder)  # the manifest says that it is running
    open_run("toy", {"profile": "smoke", "dataset": "digits"}, out=folder).finish(toy, judge([Claim("kd", "KD helps", "KD", "CE")], toy))
    assert batch.is_finished(folder) and batch.count_claims(folder) == "1/0/0" and not batch.is_outdated(folder)
    with monkeypatch.context() as patched:
        patched.setattr("kdnotes.runs.code_fingerprint", lambda: "other")
        assert batch.is_outdated(folder)
    for half in (book[:-5], book.replace("finished", "interrupted"), "{}"):
        (folder / "notebook.ipynb").write_text(half)
        assert not batch.is_finished(folder)
    (folder / "notebook.ipynb").write_text(book)
    (folder / "manifest.json").write_text('{"status": "finis')
    assert not batch.is_finished(folder)


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
        note.unlink()
        if end == signal.SIGINT:
            assert out.count("interrupted") == 2 and "Traceback" not in err and batch.verdict(note.parent)["status"] == "interrupted"
            assert not list(workplace.glob("runs/.stop-*")) and not list(workplace.glob("runs/waiter/*/notebook.ipynb"))
    (note.parent / "go").touch()
    (sleeper,), _ = run(batch.plan(["sleeper"], {}, "papers", "runs"))
    assert sleeper.status == "finished"


# ---- resources, progress, summary ----

def test_gpus_are_leased_all_at_once_and_to_one_run_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{tmp_path.name}-a,{tmp_path.name}-b")
    stop, held, most, order = tmp_path / "stop", set(), [], []

    def use(count):
        with batch.lease_gpus(count, stop) as gpus:
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
    with batch.lease_gpus(2, stop) as both, batch.lease_gpus(1, stop) as none:  # a stopped batch waits for nothing
        assert len(both) == 2 and none == []
    assert "leave --gpus-per-run out" in message(ValueError, batch.local_pool(1, 3).__enter__)


def test_cores_are_shared_out(monkeypatch):
    for name in batch.THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    assert set(batch.thread_limits(3).values()) == {"2"} and set(batch.thread_limits(16).values()) == {"1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert batch.thread_limits(3)["OMP_NUM_THREADS"] == "5"


def test_a_terminal_gets_living_lines_and_a_log_gets_few():
    class Terminal(io.StringIO):
        isatty = lambda self: True
    log, terminal = io.StringIO(), Terminal()
    for stream, every in ((log, 0.0), (terminal, 0.0)):
        board = batch.Board(stream, every)
        for cells, clock in ((1, 1), (1, 2), (2, 3), (2, 4)):
            board.show({"toy": f"{cells}/3 cells  0:0{clock}", "idle": ""})
        board.say("toy: finished")
    assert log.getvalue() == "toy  1/3 cells  0:01\ntoy  2/3 cells  0:03\ntoy: finished\n"
    assert terminal.getvalue().count("\x1b[2F\x1b[J") == 4 and terminal.getvalue().endswith("\x1b[Jtoy: finished\n") and "idle  waits" in terminal.getvalue()
    quiet = batch.Board(io.StringIO(), every=60)
    quiet.show({"toy": "1/3 cells"})
    assert quiet.stream.getvalue() == ""


def test_the_last_line_of_a_log(tmp_path):
    (tmp_path / "log.txt").write_text("x" * 5000 + "\nloss 0.5\n\n")
    assert batch.last_line(tmp_path / "log.txt") == "loss 0.5" and batch.last_line(tmp_path / "none") == ""


def test_a_supervisor_that_is_lost_is_a_failed_run():
    future = concurrent.futures.Future()
    future.set_exception(RuntimeError("worker gone"))
    job = batch.Job("toy", "toy.ipynb", "runs/toy/x", {"profile": "demo"}, "d", os.getcwd(), "stop")
    assert batch.outcome_of(future, job).reason == "lost: RuntimeError: worker gone"
    assert batch.exit_status([batch.Outcome(job, "failed"), batch.Outcome(job, "interrupted")]) == 130
