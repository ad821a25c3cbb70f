"""`kdnotes bench --device`: one sheet of numbers, written as they come, also where the time is over or something fails."""
import time

import pandas as pd
import pytest
import torch

from kdnotes import measure as room
from kdnotes.cli import main

COLUMNS = ["part", "name", "quantity", "value", "unit", "device", "torch"]


@pytest.fixture
def sheet(tmp_path):
    return room.Sheet(tmp_path / "out" / "bench.csv", torch.device("cpu"))


def test_a_number_is_on_disk_as_soon_as_it_is_measured(sheet):
    for k in (1, 2):
        sheet.add("loss", "kd", "seconds", k / 3, "s")
        found = pd.read_csv(sheet.path)
        assert list(found.columns) == COLUMNS and len(found) == k and found.value.iloc[-1] == pytest.approx(k / 3)


def test_what_is_timed_is_the_median_of_calls_after_the_first_two():
    naps = iter([0.2, 0.2, 0.01, 0.01, 0.1, *[0.01] * 500])
    assert 0.005 < room.seconds_of(lambda: time.sleep(next(naps)), torch.device("cpu"), least=0.05) < 0.05


def test_every_loss_of_the_relational_and_contrastive_rooms_is_measured():
    names = set(room.losses_of(8, 4, 2, torch.device("cpu")))
    assert {"kd", "vid", "triplet", "pair", "group", "CRD", "relation contrast", "MMD", "ArcFace", "InfoNCE"} <= names


@pytest.mark.long
def test_the_ratios_of_benchmarks_and_what_failed_or_was_not_reached(sheet, tmp_path):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "bench_a.py").write_text("def test_a(benchmark):\n    benchmark.extra_info['ratio'] = 4.5\n    benchmark.pedantic(int, rounds=1)\n")
    (folder / "bench_b.py").write_text("def test_b():\n    assert 4 > 5\n")
    room.measure_benchmarks(sheet, time.monotonic() + 120, folder)
    room.measure_benchmarks(sheet, time.monotonic() - 1, folder)
    rows = {(row["name"], row["quantity"], i > 2): row["value"] for i, row in enumerate(sheet.rows)}
    assert rows["a", "all targets met", False] == 1 and rows["a: test_a", "ratio", False] == 4.5 and rows["b", "all targets met", False] == 0
    assert rows["a", "all targets met", True] != rows["a", "all targets met", True], "not reached is no failure"


@pytest.mark.slow
def test_smoke_is_timed_from_start_to_end(sheet, tmp_path, write_paper, light_workers):
    (tmp_path / "notebooks").mkdir()
    write_paper(tmp_path / "notebooks", "good")
    room.measure_smoke(sheet, time.monotonic() + 200, tmp_path / "notebooks")
    room.measure_smoke(sheet, time.monotonic() - 1, tmp_path / "notebooks")
    done, late = (row["value"] for row in sheet.rows)
    assert 0 < done < 200 and late != late


def test_the_command_measures_all_of_it_into_the_file_that_is_asked_for(tmp_path, monkeypatch, capsys):
    parts = {name: [] for name in ("losses", "matching", "smoke", "benchmarks")}
    for name, calls in parts.items():
        monkeypatch.setattr(room, f"measure_{name}", lambda sheet, *a, calls=calls, name=name, **k: (calls.append(a), sheet.add(name, "x", "y", 1.0, "s")))
    assert main(["bench", "--device", "cpu", "--minutes", "0.5", "--out", str(tmp_path / "b.csv")]) == 0
    assert pd.read_csv(tmp_path / "b.csv").part.tolist() == list(parts) and all(len(calls) == 1 for calls in parts.values())
    assert "b.csv" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "said"), [(["--device", "tpu"], "tpu"), (["--device", "cpu", "--minutes", "0"], "above 0"),
                                                 (["--device", "cpu", "-k", "relational"], "no option goes to pytest"),
                                                 (["--device", "cpu", "--minutes", "nan"], "above 0"), (["--minutes", "soon"], "soon")])
def test_what_cannot_be_measured_is_refused_in_one_line(arguments, said, capsys):
    try:
        assert main(["bench", *arguments]) == 2
    except SystemExit as left:
        assert left.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
