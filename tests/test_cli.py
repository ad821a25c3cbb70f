"""The kdnotes command: light to start, strict about its usage, honest in its exit status."""

import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import kdnotes
from kdnotes import cli, runs
from kdnotes.batch import plan, verify
from kdnotes.cli import build_parser, main
from kdnotes.config import Settings, section, setting
from kdnotes.losses import distill
from kdnotes.prints import code_parts
from kdnotes.results import Claim, judge


@pytest.fixture
def workplace(tmp_path, monkeypatch, write_paper):
    """A checkout with one paper that works and one that does not; data lie in an empty folder."""
    write_paper(tmp_path / "nbs" / "papers", "good", "open(f'{out}/profile', 'w').write(profile)")
    write_paper(tmp_path / "nbs" / "papers", "odd", "raise RuntimeError('odd paper')")
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = kdnotes\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path / "data"))
    return tmp_path


def refused(capsys, *arguments) -> str:
    """The one line with which kdnotes refuses `arguments`."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, err = capsys.readouterr()
    assert (
        end.value.code == 2
        and out == ""
        and err.count("\n") == 1
        and err.startswith("kdnotes")
        and "Traceback" not in err
    )
    return err


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; from kdnotes.cli import build_parser; build_parser().format_help(); "
        "print(*{'torch', 'numpy', 'pandas', 'matplotlib', 'papermill', 'distributed'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
    begun = time.process_time()
    build_parser().format_help()
    assert time.process_time() - begun < 0.5
    help_text = subprocess.run(
        [sys.executable, "-c", "from kdnotes.cli import main; main(['--help'])"], capture_output=True, text=True
    ).stdout
    assert all(
        name in help_text for name in ("run", "list", "show", "why", "verify", "report", "data", "bench", "results")
    )


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], "required: COMMAND"),
        (["rnu"], "invalid choice: 'rnu'"),
        (["run"], "--all"),
        (["run", "good", "--all"], "--all"),
        (["run", "good", "--profle", "demo"], "did you mean --profile?"),
        (["run", "good", "--prof", "demo"], "unrecognized arguments: --prof"),
        (["run", "good", "-p", "lr"], "expected 2 arguments"),
        (["run", "good", "--jobs", "0"], "'0' is not a whole number from 1 up"),
        (["run", "good", "--gpus-per-run", "many"], "'many' is not a whole number"),
        (["run", "godo"], "did you mean 'good'"),
        (["run", "good", "-p", "profil", "demo"], "did you mean 'profile'"),
        (["run", "good", "--profile", "demo", "-p", "profile", "demo"], "given twice"),
        (["run", "good", "--seeds", "0,one"], "one"),
        (["run", "good", "--seeds", "3-1"], "3-1"),
        (["run", "good", "--device", "gpu"], "gpu"),
        (["run", "good", "--precision", "fp1"], "fp1"),
        (["run", "good", "--out", "settings"], "--out"),
        (["run", "good", "--data-root", "gone"], "no folder gone"),
        (["run", "good", "--notebooks", "gone"], "no folder gone"),
        (["list", "--notebooks", "gone"], "no folder gone"),
        (["run", "good", "--scheduler", "host"], "expected tcp://host:port"),
        (["run", "good", "--gpus-per-run", "64"], "64 GPUs a run"),
        (["data", "ad"], "invalid choice"),
        (["data", "add", "mine"], "required"),
        (["data", "add", "mine", "gone.npz", "gone.npz"], "gone.npz"),
        (["data", "get", "mine"], "'mine' cannot be downloaded"),
        (["bench"], "benchmarks"),
        (["show", "good"], "no paper of the package"),
        (["show", "godo"], "did you mean 'good'"),
        (["show"], "required: slug"),
        (["why", "gone"], "no run 'gone'"),
        (["why", "empty"], "has no rows.csv"),
        (["verify", "gone"], "no run 'gone'"),
        (["verify", "empty"], "no manifest"),
        (["run", "good", "-p", "overrides", '{"seeds": "0-9"}'], "'seeds' is a parameter of its own"),
        (["run", "good", "-p", "overrides", '{"a": 1, "a": 2}'], "'a' is given twice"),
        (["run", "good", "-p", "seeds", "1", "-p", "seeds", "2"], "'seeds' is given twice"),
        (["run", "good", "-p", "profile_name", "paper"], "unknown parameter"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(workplace, capsys, monkeypatch, arguments, expected):
    (workplace / "settings").write_text("a file")
    (workplace / "empty").mkdir()
    monkeypatch.setattr(plan, "checkout_folder", lambda name: workplace / name if (workplace / name).is_dir() else None)
    assert expected in refused(capsys, *arguments)
    assert not list(workplace.glob("runs/*/*"))


def test_the_configuration_of_a_paper_is_checked_too(capsys, tmp_path):
    pytest.importorskip("kdnotes.papers.horkd")
    to = ["--out", str(tmp_path / "runs"), "--data-root", str(tmp_path)]
    assert "did you mean 'demo'" in refused(capsys, "run", "horkd", "--profile", "dmeo", *to)
    assert "did you mean 'batch_size'" in refused(capsys, "run", "horkd", "-p", "batch_sise", "3", *to)
    assert "expected int" in refused(capsys, "run", "horkd", "-p", "batch_size", "many", *to)
    assert "batch_size=0" in refused(capsys, "run", "horkd", "-p", "batch_size", "0", *to)
    assert "mnist5k" in refused(capsys, "run", "horkd", "--dataset", "mnist5", *to)
    assert "cifar10" in refused(
        capsys, "run", "horkd", "--profile", "real", "--dataset", "cifar10", *to
    )  # known, but not there
    assert not (tmp_path / "runs").exists()


def test_run_says_what_failed_and_skips_what_is_finished(workplace, capsys, light_workers):
    assert main(["run", "--all", "--jobs", "2", "-p", "profile", "smoke"]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"odd smoke-default-\w+: failed in cell", out) and "RuntimeError: odd paper" in out
    rows = {
        line.split()[0]: line.split() for line in out.splitlines() if line.startswith(("good  ", "odd  ", "paper  "))
    }
    assert rows["paper"][:4] == ["paper", "profile", "dataset", "status"]
    assert rows["good"][1:4] == ["smoke", "default", "finished"] and rows["odd"][3] == "failed"
    assert (workplace / rows["good"][-1] / "profile").read_text() == "smoke" and "starts" in err and "\x1b" not in err
    assert main(["run", "good", "--profile", "smoke"]) == 0
    assert "skipped" in capsys.readouterr().out
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert "The good paper" in listed and "1 finished" not in listed.split("good")[0]


def test_data_are_listed_and_added(workplace, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        np.savez(f"{split}.npz", images=rng.integers(0, 256, (6, 8, 8), dtype=np.uint8), labels=np.arange(6) % 3)
    assert main(["data", "add", "mine", "train.npz", "test.npz", "--data-root", "data"]) == 0
    assert (workplace / "data" / "mine" / "train.npz").exists()
    capsys.readouterr()
    for command in (["data"], ["data", "--data-root", "data"]):
        assert main(command) == 0
        states = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[3:]}
        assert states["digits"] == states["mine"] == "present" and states["cifar10"] == "absent"
    assert "mine" in refused(capsys, "data", "add", "mine", "train.npz", "test.npz")  # it is there already


def test_bench_finds_no_benchmarks_of_another_project(workplace, monkeypatch, capsys):
    """Neither beside an installed package nor in the folder of whoever calls it."""
    for root in (workplace / "site-packages", workplace / "project"):
        (root / "benchmarks").mkdir(parents=True)
        (root / "settings.ini").write_text("[DEFAULT]\nlib_name = another\n")
    (workplace / "settings.ini").unlink()
    monkeypatch.chdir(workplace / "project")
    monkeypatch.setattr(kdnotes, "__file__", str(workplace / "site-packages" / "kdnotes" / "__init__.py"))
    assert "no benchmarks here" in refused(capsys, "bench")


def test_bench_runs_the_benchmarks_of_the_checkout(workplace, monkeypatch, capfd):
    (workplace / "benchmarks").mkdir()
    (workplace / "benchmarks" / "bench_a.py").write_text("def test_ratio():\n    print('ratio', 7)\n")
    assert main(["bench", "-p", "no:cacheprovider"]) == 0
    assert "ratio 7" in capfd.readouterr().out
    (workplace / "benchmarks" / "bench_b.py").write_text("def test_ratio():\n    assert 4 > 5\n")
    assert main(["bench", "-p", "no:cacheprovider"]) == 1


def test_a_ctrl_c_before_anything_runs_is_status_130(workplace, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "plan", interrupted)
    assert main(["run", "good"]) == 130
    assert capsys.readouterr().err == "kdnotes: interrupted\n"
    assert json.dumps(vars(build_parser().parse_args(["run", "--all"])), default=str)


@pytest.mark.slow
def test_a_ctrl_c_in_the_first_seconds_is_status_130(workplace):
    """Whenever it comes: while something is loaded, checked, or the worker is starting."""
    code = (
        "import signal, sys; from kdnotes.cli import main; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "print('ready', flush=True); sys.exit(main(['run', 'good']))"
    )
    for seconds in (0.0, 0.4, 2.5):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        if seconds == 2.5:  # as soon as it says that the run starts
            assert "starts" in process.stderr.readline()
        else:
            time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130 and "Traceback" not in err and "failed" not in out, err


# ---- show, why, verify


@dataclasses.dataclass(frozen=True)
class Faces:
    steps: int = setting(170, "ours", "of the face networks", at_least=1)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    lr: float = setting(0.1, "paper", "learning rate", above=0.0)
    faces: Faces = section(Faces)
    PROFILES = {"smoke": {"faces.steps": 2}, "demo": {}}
    DATASETS = {("demo", "mnist5k"): {"faces.steps": 9}}


NOTEBOOK = """from kdnotes.runs import open_run
from kdnotes.results import Claim, Results, judge
import os
lr = overrides.get("lr", 0.1)
asked = {"profile": profile, "dataset": "digits", "seeds": [0, 1, 2], "device": device, "precision": "auto", "lr": lr}
run = open_run("good", asked, out, seeds=range(3), device="cpu")
book = Results("good", profile)
for seed in range(3):
    book.add("recall", "digits", "CE", "accuracy", 80 + seed, seed)
    book.add("recall", "digits", "KD", "accuracy", 80 + lr + seed + float(os.environ.get("SHIFT", 0)), seed)
    book.add("recall", "digits", "KD", "seconds_per_step", os.getpid() / 7, seed)
run.finish(book, judge([Claim("kd", "KD helps", "KD", "CE")], book), code=os.environ.get("CODE", "c0de"))"""


def finished(place: Path) -> Path:
    """The run of the notebook above, made without it, with its chain."""
    environment = {"SHIFT": "0", "CODE": "c0de"}
    space = {"profile": "smoke", "overrides": {"lr": 0.25}, "device": "cpu", "out": str(place)}
    os.environ.update(environment)
    exec(NOTEBOOK.rpartition("run.finish")[0], space)
    lines = ["table,dataset,setting,method,metric,seed,stage"]
    lines += [
        f"recall,digits,,{method},accuracy,{seed},{method.lower()}{seed}"
        for seed in range(3)
        for method in ("CE", "KD")
    ]
    (space["run"].path / "rows.csv").write_text("\n".join(lines) + "\n")
    teacher = {
        "stage": "Teacher",
        "fields": {"seed": 0},
        "parents": {},
        "data": {"Images(name='digits')": "1a2b"},
        "code": "7ea0",
        "seconds": 9.5,
        "built": "2026-01-31T12:00:00+00:00",
        "device": "cpu",
    }
    students = {
        f"{m}{s}": teacher
        | {"stage": "Student", "fields": {"seed": s, "recipe": {"loss": m}}, "parents": {"teacher": "t"}}
        for m in ("ce", "kd")
        for s in range(3)
    }
    (space["run"].path / "stages.json").write_text(json.dumps(students | {"t": teacher}))
    pieces = code_parts(distill.hint_loss) | {"kdnotes.losses.distill.kd_loss": "0123456789abcdef"}
    (space["run"].path / runs.CODE).write_text(json.dumps({"7ea0": pieces}))
    return space["run"].finish(space["book"], judge([Claim("kd", "KD helps", "KD", "CE")], space["book"]), code="c0de")


def test_show_prints_every_setting_and_the_expected_time(workplace, capsys, monkeypatch):
    monkeypatch.setattr(plan, "paper_config", lambda slug: Config)
    finished(workplace / "runs" / "good" / "smoke-digits-01234567")
    assert main(["show", "good"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["setting"] == ["setting", "smoke", "demo", "range", "source", "meaning"]
    assert (
        rows["faces.steps"][:3] == ["faces.steps", "2", "170"]
        and "at least 1" in out
        and rows["lr"][3:] == ["above", "0", "paper", "learning", "rate"]
    )
    assert rows["smoke"][:3] == ["smoke", "digits", "-"] and rows["smoke"][4:6] == ["on", "cpu"]
    assert rows["demo"] == ["demo", "digits", "mnist5k", "not", "measured"]


def test_expected_times_are_those_of_published_runs_where_there_is_none_of_ones_own(tmp_path):
    published = tmp_path / "results"
    for place, profile, seconds, read in (("good", "demo", 112.4, 0), ("cpu/good/orl", "real", 27.0, 2), ("cpu/good/lfw", "real", 3.0, 8), ("good2", "demo", 5.0, "x")):
        (published / place).mkdir(parents=True)
        manifest = {"slug": "good", "profile": profile, "dataset": place.rpartition("/")[2], "wall_s": seconds, "run": "a", "status": "finished", "parameters": {},
                    "device": {"type": "cpu", "name": "Two cores"}, "finished": "2026-01-31T12:00:00+00:00", "stages": {"built": 3, "read": read}} | ({"threads": 2} if profile == "real" else {})
        (published / place / "manifest.json").write_text(json.dumps(manifest))
    times = cli.expected_times(str(tmp_path / "runs"), "good", published)
    assert times == {"demo": "1:52 on cpu Two cores with good", "real": "0:27 on cpu Two cores, 2 threads, with orl"}
    assert cli.expected_times(str(tmp_path / "runs"), "good") == {}


def test_why_tells_the_chain_behind_a_number(workplace, capsys):
    place = finished(workplace / "runs" / "good" / "smoke-digits-01234567")
    for name in (str(place), "good/smoke-digits-01234567", "smoke-digits-01234567"):
        assert main(["why", name, "--table", "recall", "--method", "KD", "--seed", "1"]) == 0
        out = capsys.readouterr().out
        assert "81.25" in out and "Student kd1: 9.5 s on cpu, built 2026-01-31T12:00:00+00:00, code 7ea0" in out
        assert out.count("code 7ea0 (changed since: kdnotes.losses.distill.kd_loss)\n") == 2
        assert (
            "recipe = (loss=kd)" in out
            and "teacher: Teacher t: 9.5 s" in out
            and "data Images(name='digits'): 1a2b" in out
        )
        assert "kd0" not in out and "ce1" not in out
    assert main(["why", str(place)]) == 0
    out = capsys.readouterr().out
    assert out.count("Teacher t (above)") == 5 and out.count("Student") == 6
    assert "did you mean 'KD'" in refused(capsys, "why", str(place), "--method", "KDD")
    (place / "stages.json").write_text("{half")
    assert "is damaged" in refused(capsys, "why", str(place))


def test_verify_compares_number_by_number(workplace, capsys, monkeypatch, write_paper, light_workers):
    monkeypatch.setattr(plan, "paper_config", lambda slug: Config)
    monkeypatch.setattr(verify, "paper_config", lambda slug: Config)
    monkeypatch.setattr(plan, "check_exported", lambda *args: None)
    write_paper(workplace / "nbs" / "papers", "good", NOTEBOOK)
    place = finished(workplace / "evidence")
    assert main(["verify", str(place)]) == 0
    out = capsys.readouterr().out
    assert "9 numbers: 6 equal, 3 of the machine, not compared" in out and not list((workplace / "runs").iterdir())
    monkeypatch.setenv("SHIFT", "0.5")
    monkeypatch.setenv("CODE", "0the")
    assert main(["verify", str(place)]) == 1
    out = capsys.readouterr().out
    assert "3 equal, 3 different, 3 of the machine" in out and "80.75" in out and "code: print c0de" in out
    assert runs.state(place) == "finished" and list((workplace / "runs").glob(".verify-*/good/*/notebook.ipynb"))
    assert runs.find_runs(workplace / "runs") == []


def test_nobody_reads_the_list(workplace):
    code = "import sys; from kdnotes.cli import main; sys.exit(main(['list']))"
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "{code}" | true; exit ${{PIPESTATUS[0]}}'], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_printed_when_nobody_reads(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        fileno = lambda self: os.dup(1)

    with contextlib.redirect_stdout(Closed()):
        cli.say("lost")
