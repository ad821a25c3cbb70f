"""kdnotes.batch on Dask: in a LocalCluster, and with a scheduler and workers that are processes of their own."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdnotes.batch import plan, pool, terminal
from kdnotes.cli import main

distributed = pytest.importorskip("distributed", reason="dask.distributed is an optional extra")

NOTE = """import json, os, time
begun = time.time()
time.sleep(0.5)
keys = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "WHO")
note = {"begun": begun, "ended": time.time(), **{key: os.environ.get(key) for key in keys}}
json.dump(note, open(f"{out}/note.json", "w"))"""

ENDLESS = """import time
time.sleep(600)"""


class CtrlC(terminal.Board):
    """A user who interrupts the batch as soon as a cell of the notebook itself runs."""

    def draw(self, lines):
        if not self.told and any(text.startswith("2/") for text in lines.values()):
            self.told = {"interrupted": True}
            raise KeyboardInterrupt


@pytest.fixture
def papers(tmp_path, monkeypatch, write_paper, light_workers) -> Path:
    """A place with two papers that note their circumstances."""
    monkeypatch.chdir(tmp_path)
    for slug in ("one", "two"):
        write_paper(tmp_path / "papers", slug, NOTE)
    return tmp_path / "papers"


def notes(base: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(base.glob("runs/*/*/note.json"))]


def test_in_a_local_cluster_each_run_has_a_gpu_of_its_own(papers, tmp_path, monkeypatch, write_paper):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{tmp_path.name}-a,{tmp_path.name}-b")
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    options = {
        "n_workers": 1,
        "threads_per_worker": 2,
        "processes": False,
        "dashboard_address": None,
        "resources": {"GPU": 2},
    }
    with distributed.LocalCluster(**options, protocol="tcp", host="127.0.0.1") as cluster:
        planned = plan.plan([], {}, papers, "runs", here=False, share=0, gpus=1)
        with pool.cluster_pool(cluster.scheduler_address, gpus=1) as executor:
            outcomes = pool.run_batch(planned, executor, listener=terminal.Board(io.StringIO()))
            endless = plan.plan(
                ["endless"], {}, write_paper(tmp_path / "more", "endless", ENDLESS).parent, "runs", here=False, share=0
            )
            (stopped,) = pool.run_batch(endless, executor, listener=CtrlC(io.StringIO()))
        with (
            pytest.raises(ValueError, match="no worker at .* offers GPU=3; start one"),
            pool.cluster_pool(cluster.scheduler_address, gpus=3),
        ):
            pass
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"]
    assert stopped.status == "interrupted" == plan.verdict(Path(stopped.notebook))["status"]
    assert {note["CUDA_VISIBLE_DEVICES"] for note in notes(tmp_path)} == set(
        os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    )
    assert {note["OMP_NUM_THREADS"] for note in notes(tmp_path)} == {"4"}  # 8 cores, 2 threads of the worker


@pytest.fixture
def scheduler(tmp_path):
    """Address of a scheduler that runs as a process of its own, and a function that starts such a worker for it."""
    file = tmp_path / "scheduler.json"
    with contextlib.ExitStack() as processes:

        def start(*command, **environment):
            options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | environment}
            process = subprocess.Popen([sys.executable, "-m", "dask", *command], **options)
            processes.callback(process.wait)
            processes.callback(process.kill)

        start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        until = time.monotonic() + 60
        while not (file.exists() and file.read_text().endswith("}")) and time.monotonic() < until:
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        yield (
            address,
            lambda *more, **environment: start(
                "worker",
                address,
                "--host",
                "127.0.0.1",
                "--nthreads",
                "2",
                "--no-dashboard",
                "--no-nanny",
                "--local-directory",
                str(tmp_path / "dask"),
                *more,
                **environment,
            ),
        )


@pytest.mark.slow
def test_on_separate_processes_one_run_a_gpu(papers, tmp_path, scheduler, capsys):
    address, start_worker = scheduler
    start_worker("--resources", "GPU=1", WHO="the worker", CUDA_VISIBLE_DEVICES=f"{tmp_path.name}-5")
    command = ["run", "--all", "--notebooks", str(papers), "--scheduler", address]
    with distributed.Client(address, timeout=30, set_as_default=False) as client:
        client.wait_for_workers(1, 60)
    assert main([*command, "--gpus-per-run", "1"]) == 0
    first, second = sorted(notes(tmp_path), key=lambda note: note["begun"])
    assert {note["WHO"] for note in (first, second)} == {"the worker"}  # it ran there, not here
    assert first["CUDA_VISIBLE_DEVICES"] == second["CUDA_VISIBLE_DEVICES"] == f"{tmp_path.name}-5"
    assert first["ended"] <= second["begun"]  # the worker has two threads, but one GPU
    assert capsys.readouterr().out.count("finished") == 2
    with pytest.raises(SystemExit) as refused:
        main([*command, "--gpus-per-run", "2"])
    assert refused.value.code == 2 and "offers GPU=2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "address, expected",
    [
        ("tcp://127.0.0.1:9", "no Dask scheduler answers"),
        ("localhost", "expected tcp://host:port"),
        ("tls://127.0.0.1:9", "no connection to tls://127.0.0.1:9 ("),
        ("tls://", "expected tcp://host:port"),
    ],
)
def test_a_scheduler_that_does_not_answer_is_one_line_in_seconds(papers, capfd, address, expected):
    begun = time.monotonic()
    with pytest.raises(SystemExit) as refused:
        main(["run", "one", "--notebooks", str(papers), "--scheduler", address])
    said = capfd.readouterr().err
    assert refused.value.code == 2 and expected in said and said.count("\n") == 1
    assert time.monotonic() - begun < 20


def test_a_scheduler_without_workers_is_refused(scheduler):
    with (
        pytest.raises(ValueError, match="has no workers; start one with `dask worker tcp://"),
        pool.cluster_pool(scheduler[0], timeout=1.0),
    ):
        pass
