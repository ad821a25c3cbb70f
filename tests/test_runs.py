"""kdnotes.runs: ids, folders, manifests, states, interruption."""
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes import runs
from kdnotes.results import Claim, Results, compare, judge, read_claims, read_results

matplotlib.use("agg")
WHAT = {"profile": "smoke", "dataset": "digits", "seeds": "0-2", "overrides": {"epochs": 1}}


def book(value=80.0):
    rows = Results("toy", "smoke")
    for seed in range(3):
        rows.add("Table 1", "digits", "CE", "accuracy", value + seed, seed)
        rows.add("Table 1", "digits", "KD", "accuracy", value + 2 + seed, seed)
    return rows


CLAIMS = judge([Claim("kd", "KD helps", "KD", "CE")], book())


@pytest.fixture(autouse=True)
def closed():
    yield
    for run in list(runs._open.values()):
        run.close()


# ---- ids

@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.one_of(st.integers(), st.text(max_size=3), st.none()), max_size=5), st.randoms())
def test_the_id_depends_on_what_not_on_order_or_place(parameters, random):
    items = list(parameters.items())
    random.shuffle(items)
    name = runs.run_id("toy", "demo", "digits", parameters)
    assert name == runs.run_id("toy", "demo", "digits", {**dict(items), "out": "anywhere"})
    assert name != runs.run_id("toy", "demo", "digits", {**parameters, "new": 1})
    assert name != runs.run_id("other", "demo", "digits", parameters)


def test_the_id_is_readable_and_a_file_name():
    assert runs.run_id("toy", "real", "my set/CIFAR-10", {})[:-8] == "real-my_set_CIFAR_10-"
    assert "/" not in runs.run_id("toy", "..", "", {}) and not runs.run_id("toy", "..", "", {}).startswith(".")


def test_runs_of_notebooks_lie_at_the_projects_root(tmp_path, monkeypatch):
    (tmp_path / "nbs" / "papers").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "nbs" / "papers")
    assert runs.runs_folder() == Path("runs")                              # some folder that happens to be called nbs
    (tmp_path / "settings.ini").write_text("")
    assert runs.runs_folder() == tmp_path / "runs" and runs.runs_folder("/else/where") == Path("/else/where")
    monkeypatch.chdir(tmp_path)
    assert runs.runs_folder("mine") == Path("mine")


# ---- a run

def test_a_finished_run_is_whole_and_signed(tmp_path):
    @dataclass(frozen=True)
    class Config:
        sizes: tuple = (1, 2)
        root: Path = Path("/secret/place/data")

    run = runs.open_run("toy", {**WHAT, "out": str(tmp_path)}, base=tmp_path, config=Config(), seeds=(0, 1, 2), device="cpu", precision="32-true")
    assert run.path == (tmp_path / "toy" / runs.run_id("toy", "smoke", "digits", WHAT)).resolve() and runs.state(run.path) == "running"
    (run.checkpoints / "teacher.pt").write_bytes(b"x")
    run.log.info("hello %d", 3)
    folder = run.finish(book(), CLAIMS, data={"digits": "abc"})
    logging.getLogger("kdnotes").info("not for this run")
    manifest = runs.read_manifest(folder)
    assert runs.state(folder) == "finished" and not runs.is_locked(folder) and runs.find_runs(tmp_path) == [folder]
    assert read_results(folder / "results.csv").equals(book().frame()) and len(read_claims(folder / "claims.csv")) == 1
    assert manifest["seeds"] == [0, 1, 2] and manifest["config"] == {"sizes": [1, 2], "root": "data"} and manifest["data"] == {"digits": "abc"}
    assert manifest["versions"]["torch"] and manifest["versions"]["python"] and manifest["device"]["type"] == "cpu" and manifest["precision"] == "32-true"
    assert manifest["wall_s"] >= 0 and manifest["peak_memory"]["host"] > 1e6 and manifest["threads"] >= 1 and manifest["started"] <= manifest["finished"]
    assert "/" not in json.dumps({k: v for k, v in manifest.items() if k not in ("versions",)}).replace("//", ""), "no path of this machine"
    log = (folder / "log.txt").read_text()
    assert "INFO hello 3" in log and "not for this run" not in log


def test_states(tmp_path):
    assert runs.state(tmp_path / "none") == "absent"
    (tmp_path / "empty").mkdir()
    assert runs.state(tmp_path / "empty") == "absent"
    run = runs.open_run("toy", WHAT, out=tmp_path / "r")
    run.close()
    assert runs.state(run.path) == "interrupted"
    with runs.open_run("toy", WHAT, out=tmp_path / "r") as run:
        run.finish(book(), CLAIMS)
    assert runs.state(run.path) == "finished"
    good = (run.path / "results.csv").read_bytes()
    for damage in (lambda: (run.path / "results.csv").unlink(), lambda: (run.path / "results.csv").write_bytes(good[:-4]),
                   lambda: (run.path / "manifest.json").write_text('{"slug": "toy", "status": "finis'), lambda: (run.path / "manifest.json").write_text('["status"]'),
                   lambda: (run.path / "manifest.json").unlink()):
        damage()
        assert runs.state(run.path) == "broken"


def test_a_damaged_manifest_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest"):
        runs.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{half")
    with pytest.raises(ValueError, match="damaged.*run it again with --force"):
        runs.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"slug": "toy"}')
    with pytest.raises(ValueError, match="run, profile.* missing"):
        runs.read_manifest(tmp_path)


def test_bad_results_leave_the_run_unfinished_and_the_old_files_in_place(tmp_path):
    run = runs.open_run("toy", WHAT, out=tmp_path)
    rows = book()
    rows.rows.append(rows.rows[0])
    with pytest.raises(ValueError, match="given twice"):
        run.finish(rows, CLAIMS)
    assert not (tmp_path / "results.csv").exists() and runs.read_manifest(tmp_path)["status"] == "running"
    run.finish(book(), CLAIMS)
    assert runs.state(tmp_path) == "finished"


# ---- continuing

def test_what_is_continued_and_what_starts_anew(tmp_path, monkeypatch):
    def reopen(**more):
        run = runs.open_run("toy", WHAT, out=tmp_path, **more)
        kept = (run.checkpoints / "a.pt").exists()
        (run.checkpoints / "a.pt").write_bytes(b"x")
        return run, kept

    run, kept = reopen()
    assert not kept
    run.close()
    run, kept = reopen()
    assert kept and run.manifest["resumed"] == 1                           # interrupted: continued
    run, kept = reopen()
    assert not kept and run.manifest["resumed"] == 0                       # the cell was run again
    run.close()
    run, kept = reopen(fresh=True)
    assert not kept
    run.close()
    monkeypatch.setattr(runs, "code_fingerprint", lambda: "other")
    run, kept = reopen()
    assert not kept                                                        # other code
    run.finish(book(), CLAIMS)
    run, kept = reopen()
    assert not kept and read_results(tmp_path / "results.csv") is not None  # finished: anew, the old results stay until replaced


CHILD = """
import sys, time
from kdnotes import runs
run = runs.open_run("toy", {"profile": "smoke", "dataset": "digits"}, out=sys.argv[1])
run.log.info("started")
time.sleep(1.2)
(run.checkpoints / "step.pt").write_bytes(b"x")
print("ready", flush=True)
time.sleep(60)
"""


def test_killed_and_continued(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    assert runs.state(tmp_path / "r") == "running"
    with pytest.raises(ValueError, match="being written by another process"):
        runs.open_run("toy", {"profile": "smoke", "dataset": "digits"}, out=tmp_path / "r")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert runs.state(tmp_path / "r") == "interrupted"
    run = runs.open_run("toy", {"profile": "smoke", "dataset": "digits"}, out=tmp_path / "r")
    assert (run.checkpoints / "step.pt").exists() and run.manifest["resumed"] == 1
    assert 0.1 < run.manifest["wall_s"] < 20
    time.sleep(0.1)
    run.finish(book(), CLAIMS)
    assert runs.read_manifest(run.path)["wall_s"] > run.manifest["wall_s"] - 1 and runs.state(run.path) == "finished"


def test_one_process_holds_one_run(tmp_path):
    first = runs.open_run("toy", WHAT, out=tmp_path / "a")
    second = runs.open_run("toy", {**WHAT, "seeds": "5"}, out=tmp_path / "b")
    second.log.info("only here")
    assert runs.state(first.path) == "interrupted" and runs.state(second.path) == "running"
    assert "only here" not in (first.path / "log.txt").read_text() and "only here" in (second.path / "log.txt").read_text()


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to folder .*file"):
        runs.open_run("toy", WHAT, out=tmp_path / "file" / "r")
    with pytest.raises(ValueError, match="parameters lack dataset"):
        runs.open_run("toy", {"profile": "smoke"}, out=tmp_path / "r")


# ---- figures and tables

def test_figures_and_tables_keep_their_captions_in_order(tmp_path):
    import matplotlib.pyplot as plt
    run = runs.open_run("toy", WHAT, out=tmp_path)
    fig, _ = plt.subplots(figsize=(1, 1))
    for name, caption in (("b", "second"), ("a", "first"), ("b", "again")):
        png = run.save_figure(fig, name, caption)
    plt.close(fig)
    assert png == run.figures / "b.png" and {p.name for p in run.figures.iterdir()} == {"a.png", "a.svg", "b.png", "b.svg", "captions.json"}
    assert list(runs.read_captions(run.figures).items()) == [("a", {"caption": "first"}), ("b", {"caption": "again"})]
    table = compare(book().frame(), None, "Table 1")
    path = run.save_table(table, "table_1", "Table 1")
    assert pd.read_csv(path, dtype=str).to_dict() == table.to_dict()
    assert runs.read_captions(run.tables)["table_1"] == {"caption": "Table 1", "notes": table.attrs["notes"]}
    for bad in ("../x", "", ".hidden", "a/b"):
        with pytest.raises(ValueError, match="name"):
            run.save_table(table, bad)
        with pytest.raises(ValueError, match="name"):
            run.save_figure(fig, bad)
    (run.tables / "captions.json").write_text("{half")
    assert runs.read_captions(run.tables) == {} and runs.read_captions(tmp_path / "none") == {}


# ---- where it came from

def test_versions_and_commit(monkeypatch, tmp_path):
    versions = runs.package_versions()
    assert versions["pandas"] == pd.__version__ and "pytest" not in versions
    commit = runs.git_commit()
    assert commit == "" or len(commit.removesuffix("+dirty")) == 40
    monkeypatch.setattr(runs, "package_folder", lambda: tmp_path)
    assert runs.git_commit() == ""                                         # outside git
    monkeypatch.setenv("PATH", "")
    assert runs.git_commit() == ""                                         # without git


def test_commit_says_dirty(monkeypatch, tmp_path):
    git = lambda *a: subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x.invalid", *a], check=True, capture_output=True)
    (tmp_path / "__init__.py").write_text("")
    git("init", "-q")
    monkeypatch.setattr(runs, "package_folder", lambda: tmp_path)
    assert runs.git_commit() == ""                                         # in a repository, but not of it
    git("add", "-A")
    git("commit", "-qm", "one")
    clean = runs.git_commit()
    assert len(clean) == 40
    (tmp_path / "__init__.py").write_text("x = 1\n")
    assert runs.git_commit() == clean + "+dirty"
