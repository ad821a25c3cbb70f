"""kdnotes.runs: ids, folders, manifests, states, interruption."""

import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes import runs
from kdnotes.checks import refused
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


@settings(max_examples=25)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.one_of(st.integers(), st.text(max_size=3), st.none()), max_size=5),
    st.randoms(),
)
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
    assert runs.runs_folder() == Path("runs")  # some folder that happens to be called nbs
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

    run = runs.open_run(
        "toy",
        {**WHAT, "out": str(tmp_path)},
        base=tmp_path,
        config=Config(),
        seeds=(0, 1, 2),
        device="cpu",
        precision="32-true",
    )
    assert run.place == (tmp_path / "toy" / runs.run_id("toy", "smoke", "digits", WHAT)).resolve()
    assert run.path == runs.partial_folder(run.place) and not run.place.exists()
    assert runs.state(run.path) == runs.state(run.place) == "running" and runs.find_runs(tmp_path) == [run.path]
    (run.checkpoints / "teacher.pt").write_bytes(b"x")
    run.log.info("hello %d", 3)
    run.manifest["stages"] = {"3f": {"stage": "Teacher"}}
    run.save_table(book().frame(), "t")
    folder = run.finish(book(), CLAIMS, data={"digits": "abc"}, code="0" * 16)
    logging.getLogger("kdnotes").info("not for this run")
    manifest = runs.read_manifest(folder)
    assert (
        folder == run.path == run.place and run.tables == folder / "tables" and not runs.partial_folder(folder).exists()
    )
    assert runs.state(folder) == "finished" and not runs.is_locked(folder) and runs.find_runs(tmp_path) == [folder]
    assert read_results(folder / "results.csv").equals(book().frame()) and len(read_claims(folder / "claims.csv")) == 1
    assert set(manifest["files"]) == {"results.csv", "claims.csv", "log.txt", "tables/t.csv", "tables/captions.json"}
    assert manifest["seeds"] == [0, 1, 2] and manifest["config"] == {"sizes": [1, 2], "root": "data"}
    assert (manifest["data"], manifest["code"], manifest["resumed"]) == ({"digits": "abc"}, "0" * 16, 0)
    assert manifest["stages"] == {"3f": {"stage": "Teacher"}}
    assert manifest["versions"]["torch"] and manifest["versions"]["python"] and manifest["device"]["type"] == "cpu"
    assert (
        manifest["wall_s"] >= 0
        and manifest["peak_memory"]["host"] > 1e6
        and manifest["started"] <= manifest["finished"]
    )
    assert manifest["precision"] == "32-true" and manifest["threads"] >= 1
    assert "/" not in json.dumps(manifest | {"versions": {}, "files": {}}), "no path of this machine"
    log = (folder / "log.txt").read_text()
    assert "INFO hello 3" in log and "not for this run" not in log


def finished(place: Path, value: float = 80.0, **more) -> Path:
    """A finished run at `place`."""
    run = runs.open_run("toy", WHAT, out=place, **more)
    run.save_table(book(value).frame(), "t")
    (run.checkpoints / f"{value:g}.pt").write_bytes(b"x")
    return run.finish(book(value), CLAIMS)


def test_states(tmp_path):
    assert runs.state(tmp_path / "none") == "absent"
    (tmp_path / "empty").mkdir()
    assert runs.state(tmp_path / "empty") == "absent"
    run = runs.open_run("toy", WHAT, out=tmp_path / "r")
    run.close()
    assert runs.state(run.path) == runs.state(run.place) == "interrupted"
    place = finished(tmp_path / "r")
    assert runs.state(place) == "finished"


def remove(name):
    return lambda place: (place / name).unlink()


def write(name, text):
    return lambda place: (place / name).write_text(text)


def note(**entries):
    return lambda place: (place / "manifest.json").write_text(
        json.dumps(json.loads((place / "manifest.json").read_text()) | entries)
    )


@pytest.mark.parametrize(
    "damage",
    [
        remove("results.csv"),
        write("results.csv", "paper,table"),
        remove("tables/t.csv"),
        write("tables/captions.json", "{}"),
        write("log.txt", "?"),
        write("manifest.json", '{"slug": "toy", "status": "finis'),
        write("manifest.json", '["status"]'),
        write("manifest.json", "[" * 100_000),
        remove("manifest.json"),
        note(files=["results.csv"]),
        note(files={}),
        note(files={"../r": "0"}),
        note(files={"/etc/passwd": "0"}),
        note(dataset="../../up"),
        note(dataset=3),
        note(slug="a/b"),
        note(parameters=None),
        note(wall_s="long"),
        note(data={"digits": {"files": {"a": 3}}}),
        note(status=None),
    ],
)
def test_a_damaged_run_is_broken_and_nothing_worse(tmp_path, damage):
    place = finished(tmp_path / "toy" / "demo-digits-01234567")
    damage(place)
    assert runs.state(place) == "broken" and runs.find_runs(tmp_path) == [place]
    again = finished(place, 81)  # and it is made anew without ado
    assert again == place and runs.state(place) == "finished"


def test_a_damaged_manifest_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest"):
        runs.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{half")
    with pytest.raises(ValueError, match="damaged.*run it again with --force"):
        runs.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"slug": "toy"}')
    with pytest.raises(ValueError, match="run, profile.* missing"):
        runs.read_manifest(tmp_path)


def test_bad_results_leave_the_run_unfinished_and_the_old_one_in_place(tmp_path):
    place = finished(tmp_path / "r")
    before = (place / "results.csv").read_bytes()
    run = runs.open_run("toy", WHAT, out=place)
    rows = book(90)
    rows.rows.append(rows.rows[0])
    with pytest.raises(ValueError, match="given twice"):
        run.finish(rows, CLAIMS)
    assert runs.state(place) == "finished" and (place / "results.csv").read_bytes() == before
    run.finish(book(90), CLAIMS)
    assert runs.state(place) == "finished" and (place / "results.csv").read_bytes() != before
    with pytest.raises(ValueError, match="finished and signed"):
        run.save_table(book().frame(), "late")


# ---- beside the finished run


def test_opening_a_finished_run_and_stopping_loses_nothing(tmp_path):
    place = finished(tmp_path / "r")
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    for fresh in (False, True):
        run = runs.open_run("toy", WHAT, out=place, fresh=fresh)
        run.save_table(book(1).frame(), "t")
        run.close()
        assert (
            runs.state(place) == "finished"
            and runs.state(run.path) == "interrupted"
            and runs.find_runs(tmp_path.parent)
        )
        assert {p: p.read_bytes() for p in place.rglob("*") if p.is_file()} == before


def test_what_a_run_did_not_write_moves_over(tmp_path):
    place = finished(tmp_path / "r")
    (place / "remarks.txt").write_text("mine")
    (place / "notebook.ipynb").write_text("of the old run")
    run = runs.open_run("toy", WHAT, out=place)
    assert run.earlier == [run.checkpoints, place / "checkpoints"]
    run.finish(book(81), CLAIMS)
    assert (place / "remarks.txt").read_text() == "mine" and (place / "checkpoints" / "80.pt").exists()
    assert not (place / "tables" / "t.csv").exists() and not (place / "notebook.ipynb").exists()
    fresh = runs.open_run("toy", WHAT, out=place, fresh=True)
    assert fresh.earlier == [fresh.checkpoints]
    fresh.close()
    again = runs.open_run("toy", WHAT, out=place)  # interrupted, it is still a fresh one
    assert again.earlier == [again.checkpoints]
    again.finish(book(82), CLAIMS)
    assert not (place / "checkpoints" / "80.pt").exists() and runs.state(place) == "finished"


def test_a_folder_that_holds_other_things_keeps_them(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "out.ipynb").write_text("papermill's")
    place = finished(tmp_path / "mine")
    assert runs.state(place) == "finished" and (place / "out.ipynb").read_text() == "papermill's"
    finished(place, 81)
    assert runs.state(place) == "finished" and (place / "out.ipynb").read_text() == "papermill's"


def test_earlier_checkpoints_the_nearest_first(tmp_path):
    for value, name in enumerate(("a", "b", "c")):
        place = finished(tmp_path / name, 80 + value)
        os.utime(place / "checkpoints", (value, value))
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)  # no run
    note(slug="another")(finished(tmp_path / "d"))
    run = runs.open_run("toy", WHAT, out=tmp_path / "a")
    assert run.earlier == [run.checkpoints, *(tmp_path / n / "checkpoints" for n in "acb")]


def finish_and_be_killed(place: Path, after: int) -> None:
    """Make the run anew; SIGKILL before the change of the disk with the number `after`."""
    changes = itertools.count()

    def counted(change):
        def do(*args, **kwargs):
            if next(changes) == after:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return do

    for owner, name in ((Path, "rename"), (Path, "replace"), (os, "replace"), (shutil, "rmtree"), (os, "unlink")):
        setattr(owner, name, counted(getattr(owner, name)))
    run = runs.open_run("toy", WHAT, out=place)
    (run.checkpoints / "new.pt").write_bytes(b"x")
    run.finish(book(90), CLAIMS)


@pytest.mark.slow
def test_killed_at_any_moment_there_is_a_finished_run(tmp_path):
    """SIGKILL before every single change of the disk: the old run or the new one is there, whole."""
    seen = []
    for after in range(40):
        place = finished(tmp_path / f"r{after}")
        if (child := os.fork()) == 0:  # everything is loaded: a kill costs nothing
            status = 1
            try:
                finish_and_be_killed(place, after)
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL)
        assert runs.state(place) == "finished" and place in runs.find_runs(tmp_path.parent)
        new = read_results(place / "results.csv")["value"].astype(float).min() == 90
        seen.append("new" if new else "old")
        assert not runs.beside(place, "old").exists() and (place / "checkpoints" / "80.pt").exists()
        assert (place / "checkpoints" / "new.pt").exists() == new != (place / "tables" / "t.csv").exists()
        if status == 0:
            break
    assert len(seen) > 8 and seen == sorted(seen, reverse=True) and {"old", "new"} == set(seen)


def test_looking_disturbs_nobody(tmp_path):
    """While others look all the time, a run can be opened, and nobody sees it running when it is not."""
    place = finished(tmp_path / "r")
    stop, seen = threading.Event(), set()

    def look():
        while not stop.is_set():
            seen.add(runs.is_locked(place))

    lookers = [threading.Thread(target=look, daemon=True) for _ in range(2)]
    try:
        [looker.start() for looker in lookers]
        time.sleep(0.2)
        assert seen == {False}
        for _ in range(10):
            with runs.open_run("toy", WHAT, out=place):
                assert runs.is_locked(place)
    finally:
        stop.set()
        [looker.join() for looker in lookers]


# ---- continuing


def test_what_is_continued_and_what_starts_anew(tmp_path):
    def reopen(**more):
        run = runs.open_run("toy", WHAT, out=tmp_path / "r", **more)
        kept = (run.checkpoints / "a.pt").exists()
        (run.checkpoints / "a.pt").write_bytes(b"x")
        run.save_table(book().frame(), f"t{run.manifest['resumed']}")
        return run, kept

    run, kept = reopen()
    assert not kept
    run.close()
    run, kept = reopen()
    assert kept and run.manifest["resumed"] == 1  # interrupted: continued
    assert [p.name for p in run.tables.glob("*.csv")] == ["t1.csv"]  # tables are made anew
    run, kept = reopen()
    assert kept and run.manifest["resumed"] == 2  # the cell was run again
    run.close()
    run, kept = reopen(fresh=True)
    assert not kept and run.manifest["resumed"] == 0
    run.finish(book(), CLAIMS)
    run, kept = reopen()
    assert not kept and run.manifest["resumed"] == 0  # finished: beside it
    assert (run.place / "results.csv").exists()


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


@pytest.mark.long
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
    assert runs.read_manifest(run.path)["wall_s"] > 0.2 and runs.state(run.path) == "finished"


def test_one_process_holds_one_run(tmp_path):
    first = runs.open_run("toy", WHAT, out=tmp_path / "a")
    second = runs.open_run("toy", {**WHAT, "seeds": "5"}, out=tmp_path / "b")
    second.log.info("only here")
    assert runs.state(first.path) == "interrupted" and runs.state(second.path) == "running"
    assert (
        "only here" not in (first.path / "log.txt").read_text() and "only here" in (second.path / "log.txt").read_text()
    )


def test_an_unusable_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for out, why in (("file/r", "cannot write to folder .*file"), ("file", "not a directory")):
        assert re.search(why, refused(runs.open_run, "toy", WHAT, out=tmp_path / out))
    assert "parameters lack dataset" in refused(runs.open_run, "toy", {"profile": "smoke"}, out=tmp_path / "r")
    assert "is no name" in refused(runs.open_run, "toy", {"profile": "smoke", "dataset": "../up"}, out=tmp_path / "r")
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for out in (".", "..", tmp_path):  # nobody's working folder is exchanged
        assert "give it a folder of its own" in refused(runs.open_run, "toy", WHAT, out=out)


def test_files_that_come_after_the_run_are_signed_too(tmp_path):
    place = finished(tmp_path / "r")
    (tmp_path / ".x.ipynb").write_text("{}")
    runs.add_files(place, {"notebook.ipynb": tmp_path / ".x.ipynb"}, code="0123")
    assert (
        runs.state(place) == "finished"
        and runs.read_manifest(place)["code"] == "0123"
        and not (tmp_path / ".x.ipynb").exists()
    )
    (place / "notebook.ipynb").write_text("")
    assert runs.state(place) == "broken"


# ---- outdated


def test_a_run_is_outdated_when_its_code_or_its_data_are_others(tmp_path, monkeypatch):
    data = tmp_path / "data"
    (data / "mine").mkdir(parents=True)
    (data / "mine" / "train.npz").write_bytes(b"pixels")
    noted = {
        "mine": {"print": "p", "files": {"mine/train.npz": [6, runs.digest(data / "mine" / "train.npz")]}},
        "digits": {"print": "q"},
    }
    place = runs.open_run("toy", WHAT, out=tmp_path / "r").finish(book(), CLAIMS, data=noted, code="c0de")
    assert runs.outdated(place, "c0de", data) == "" and runs.outdated(place) == ""
    assert runs.outdated(place, "other", data) == "the code has changed" == runs.outdated(place, "other")
    (data / "mine" / "train.npz").write_bytes(b"pixels")  # written again, the same
    assert runs.outdated(place, "c0de", data) == ""
    (data / "mine" / "train.npz").write_bytes(b"PIXELS")
    os.utime(data / "mine" / "train.npz", (1, 1))  # the same size, and an old date
    assert runs.outdated(place, "c0de", data) == "the data of mine have changed: mine/train.npz is another"
    (data / "mine" / "train.npz").write_bytes(b"more")
    assert "is another" in runs.outdated(place, "c0de", data)
    assert "is gone" in runs.outdated(place, "c0de", tmp_path / "elsewhere") and runs.outdated(place, "c0de") == ""
    (tmp_path / ".draft").write_text("{}")
    runs.add_files(place, {"notebook.ipynb": tmp_path / ".draft"}, notebook="b00c")
    assert runs.outdated(place, "c0de") == runs.outdated(place, "b00c") == "" != runs.outdated(place, "other")
    place = runs.open_run("toy", WHAT, out=tmp_path / "r").finish(book(), CLAIMS)
    assert runs.outdated(place, "any") == ""  # no print of its own: the package's sources
    monkeypatch.setattr(runs, "code_fingerprint", lambda: "other")
    assert runs.outdated(place, "any") == "the code has changed"


# ---- figures and tables


def test_figures_and_tables_keep_their_captions_in_order(tmp_path):
    import matplotlib.pyplot as plt

    run = runs.open_run("toy", WHAT, out=tmp_path)
    fig, _ = plt.subplots(figsize=(1, 1))
    for name, caption in (("b", "second"), ("a", "first"), ("b", "again")):
        png = run.save_figure(fig, name, caption)
    plt.close(fig)
    assert png == run.figures / "b.png" and {p.name for p in run.figures.iterdir()} == {
        "a.png",
        "a.svg",
        "b.png",
        "b.svg",
        "captions.json",
    }
    assert list(runs.read_captions(run.figures).items()) == [("a", {"caption": "first"}), ("b", {"caption": "again"})]
    table = compare(book().frame(), None, "Table 1")
    path = run.save_table(table, "table_1", "Table 1")
    assert pd.read_csv(path, dtype=str).to_dict() == table.to_dict()
    kept = {"caption": "Table 1", "notes": table.attrs["notes"], "layout": table.attrs["layout"]}
    assert runs.read_captions(run.tables)["table_1"] == kept
    run.save_table(pd.DataFrame({"a": [1]}), "plain")
    assert runs.read_captions(run.tables)["plain"] == {"caption": "", "notes": []}
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
    assert runs.git_commit() == ""  # outside git
    monkeypatch.setenv("PATH", "")
    assert runs.git_commit() == ""  # without git


def test_commit_says_dirty(monkeypatch, tmp_path):
    git = lambda *a: subprocess.run(
        ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x.invalid", *a],
        check=True,
        capture_output=True,
    )
    (tmp_path / "__init__.py").write_text("")
    git("init", "-q")
    monkeypatch.setattr(runs, "package_folder", lambda: tmp_path)
    assert runs.git_commit() == ""  # in a repository, but not of it
    git("add", "-A")
    git("commit", "-qm", "one")
    clean = runs.git_commit()
    assert len(clean) == 40
    (tmp_path / "__init__.py").write_text("x = 1\n")
    assert runs.git_commit() == clean + "+dirty"
