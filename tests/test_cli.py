"""The kdnotes command: light to start, strict about its usage, honest in its exit status."""
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from kdnotes import batch
from kdnotes.cli import build_parser, main


@pytest.fixture
def workplace(tmp_path, monkeypatch, write_paper):
    """A checkout with one paper that works and one that does not; data lie in an empty folder."""
    write_paper(tmp_path / "nbs" / "papers", "good", "open(f'{out}/profile', 'w').write(profile)")
    write_paper(tmp_path / "nbs" / "papers", "odd", "raise RuntimeError('odd paper')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path / "data"))
    return tmp_path


def refused(capsys, *arguments) -> str:
    """The one line with which kdnotes refuses `arguments`."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == "" and err.count("\n") == 1 and err.startswith("kdnotes") and "Traceback" not in err
    return err


def test_help_is_quick_and_loads_nothing_heavy():
    code = ("import sys; from kdnotes.cli import build_parser; build_parser().format_help(); "
            "print(*{'torch', 'numpy', 'pandas', 'matplotlib', 'papermill', 'distributed'} & set(sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
    begun = time.process_time()
    build_parser().format_help()
    assert time.process_time() - begun < 0.5
    help_text = subprocess.run([sys.executable, "-c", "from kdnotes.cli import main; main(['--help'])"], capture_output=True, text=True).stdout
    assert all(name in help_text for name in ("run", "list", "report", "data", "bench", "results"))


@pytest.mark.parametrize("arguments, expected", [
    ([], "required: COMMAND"), (["rnu"], "invalid choice: 'rnu'"), (["run"], "--all"), (["run", "good", "--all"], "--all"),
    (["run", "good", "--profle", "demo"], "did you mean --profile?"), (["run", "good", "--prof", "demo"], "unrecognized arguments: --prof"),
    (["run", "good", "-p", "lr"], "expected 2 arguments"), (["run", "good", "--jobs", "0"], "'0' is not a whole number from 1 up"),
    (["run", "good", "--gpus-per-run", "many"], "'many' is not a whole number"), (["run", "godo"], "did you mean 'good'"),
    (["run", "good", "-p", "profil", "demo"], "did you mean 'profile'"), (["run", "good", "--profile", "demo", "-p", "profile", "demo"], "given twice"),
    (["run", "good", "--seeds", "0,one"], "one"), (["run", "good", "--seeds", "3-1"], "3-1"), (["run", "good", "--device", "gpu"], "gpu"),
    (["run", "good", "--precision", "fp1"], "fp1"), (["run", "good", "--out", "settings"], "--out"), (["run", "good", "--data-root", "gone"], "no folder gone"),
    (["run", "good", "--notebooks", "gone"], "no folder gone"), (["list", "--notebooks", "gone"], "no folder gone"),
    (["run", "good", "--scheduler", "host"], "expected tcp://host:port"), (["run", "good", "--gpus-per-run", "64"], "64 GPUs a run"),
    (["data", "ad"], "invalid choice"), (["data", "add", "mine"], "required"), (["data", "add", "mine", "gone.npz", "gone.npz"], "gone.npz"),
    (["data", "get", "mine"], "'mine' cannot be downloaded"), (["bench"], "benchmarks"),
])
def test_wrong_usage_is_one_line_and_status_2(workplace, capsys, monkeypatch, arguments, expected):
    (workplace / "settings").write_text("a file")
    monkeypatch.setattr(batch, "checkout_folder", lambda name: workplace / name if (workplace / name).is_dir() else None)
    assert expected in refused(capsys, *arguments)
    assert not list(workplace.glob("runs/*/*"))


def test_the_configuration_of_a_paper_is_checked_too(capsys, tmp_path):
    pytest.importorskip("kdnotes.papers.horkd")
    to = ["--out", str(tmp_path / "runs"), "--data-root", str(tmp_path)]
    assert "did you mean 'demo'" in refused(capsys, "run", "horkd", "--profile", "dmeo", *to)
    assert "did you mean 'temperature'" in refused(capsys, "run", "horkd", "-p", "temprature", "3", *to)
    assert "expected int" in refused(capsys, "run", "horkd", "-p", "batch_size", "many", *to)
    assert "batch_size=0" in refused(capsys, "run", "horkd", "-p", "batch_size", "0", *to)
    assert "mnist5k" in refused(capsys, "run", "horkd", "--dataset", "mnist5", *to)
    assert "cifar10" in refused(capsys, "run", "horkd", "--profile", "real", "--dataset", "cifar10", *to)  # known, but not there
    assert not (tmp_path / "runs").exists()


def test_run_says_what_failed_and_skips_what_is_finished(workplace, capsys, light_workers):
    assert main(["run", "--all", "--jobs", "2", "-p", "profile", "smoke"]) == 1
    out, err = capsys.readouterr()
    assert "odd: failed" in out.replace(f"odd {next((workplace / 'runs' / 'odd').glob('smoke-*')).name}", "odd") and "RuntimeError: odd paper" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith(("good  ", "odd  ", "paper  "))}
    assert rows["paper"][:4] == ["paper", "profile", "dataset", "status"]
    assert rows["good"][1:4] == ["smoke", "default", "finished"] and rows["odd"][3] == "failed"
    assert (workplace / rows["good"][-1] / "profile").read_text() == "smoke" and "starts" in err and "\x1b" not in err
    assert main(["run", "good", "--profile", "smoke"]) == 0
    assert "skipped" in capsys.readouterr().out
    assert main(["list"]) == 0
    assert "Paper good" in capsys.readouterr().out


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
    monkeypatch.setattr(batch, "plan", interrupted)
    assert main(["run", "good"]) == 130
    assert capsys.readouterr().err == "kdnotes: interrupted\n"
    assert json.dumps(vars(build_parser().parse_args(["run", "--all"])), default=str)
