"""kdnotes.runtime: seeds, devices, fingerprints, atomic files, the artifact cache, progress and parallel loops."""

import io
import json
import logging
import os
import pickle
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdnotes.files import atomic_write, cache_folder, cached, make_folder, write_json, write_text
from kdnotes.parallel import parallel_map
from kdnotes.progress import is_quiet, progress
from kdnotes.runtime import derive_seed, fingerprint, generator_states, make_fabric, make_generator, parse_seeds, peak_memory, pick_device, pick_precision, restore_generators, seed_everything, set_deterministic, set_threads


def python(code: str, *arguments: object, **options) -> subprocess.Popen:
    """Start `code` in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def draw() -> tuple:
    return random.random(), float(np.random.rand()), torch.rand(3).tolist()  # noqa: NPY002


# Seeds


@pytest.mark.parametrize("seed", [0, 12, 2**40, 2**63 - 1])
def test_seed_everything_seeds_the_three_libraries(seed):
    seed_everything(seed)
    first = draw()
    seed_everything(seed)
    assert draw() == first
    seed_everything(seed ^ (1 << 41))  # all 63 bits count (PyTorch's CPU engine takes the lower 32)
    assert all(a != b for a, b in zip(first[:2], draw()))


def test_seed_everything_can_demand_determinism():
    try:
        seed_everything(0, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        seed_everything(0)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ValueError, match="seed -1 is negative"):
        seed_everything(-1)


def test_generator_states_are_safe_to_load_and_exact(tmp_path):
    torch.save(generator_states(), tmp_path / "states.pt")
    following = draw()
    restore_generators(torch.load(tmp_path / "states.pt", weights_only=True))
    assert draw() == following


def test_derived_seeds_are_stable_and_distinct():
    assert derive_seed(0, "teacher") == 8_421_748_394_538_963_692, "changed: every published number would change with it"
    names = [(seed, *stage) for seed in range(20) for stage in [(), ("a",), ("b",), ("a", 0), ("a", "0"), ("a", "b"), ("ab",)]]
    seeds = {derive_seed(*name) for name in names}
    assert len(seeds) == len(names) and all(0 <= s < 2**63 for s in seeds)
    a, b = (torch.rand(5, generator=make_generator(1, "x")) for _ in range(2))
    assert a.equal(b)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8, unique=True))
def test_parse_seeds_accepts_what_it_prints(seeds):
    assert parse_seeds(seeds) == parse_seeds(",".join(map(str, seeds))) == parse_seeds(tuple(seeds)) == tuple(seeds)
    assert parse_seeds(seeds[0]) == (seeds[0],)


def test_parse_seeds_ranges():
    assert parse_seeds("0-4") == (0, 1, 2, 3, 4) and parse_seeds(" 8, 1 - 3 ") == (8, 1, 2, 3) and parse_seeds("5-5") == (5,)


@pytest.mark.parametrize("wrong, message", [
    ("", "are empty"), ("  ", "are empty"), ([], "are empty"), ("1,1", "repeat 1"), ("0-3,2", "repeat 2"), ([4, 4], "repeat 4"),
    ("-1", "'-1' is no seed"), (-3, "'-3' is no seed"), ("x", "'x' is no seed"), ("3-1", "'3-1' is no seed"), ("1.5", "'1.5' is no seed"),
    ("1,,2", "'' is no seed"), ("0-99999999", "is no seed"), (2**32, "is no seed"), (None, "None"), (True, "'True' is no seed"), (1.0, "1.0"),
])
def test_parse_seeds_refuses(wrong, message):
    with pytest.raises(ValueError, match="seeds ") as caught:
        parse_seeds(wrong)
    assert message in str(caught.value) and "give" in str(caught.value) and "\n" not in str(caught.value)


# Device and precision


def test_devices_and_precisions(monkeypatch):
    assert pick_device("cpu").type == pick_device(torch.device("cpu")).type == "cpu"
    for name, full in [("fp32", "32-true"), ("bf16", "bf16-mixed"), ("auto", "32-true"), ("bf16-mixed", "bf16-mixed")]:
        assert pick_precision(name, "cpu") == full
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert str(pick_device()) == str(pick_device("cuda")) == "cuda:0" and str(pick_device("cuda:1")) == "cuda:1"
    assert pick_precision("auto", "cuda") == pick_precision() == "bf16-mixed" and pick_precision("fp16", "cuda:1") == "16-mixed"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert pick_precision("auto", "cuda") == "32-true"
    with pytest.raises(ValueError, match=r"'cuda:2' is not available; this machine has cuda:0, cuda:1, cpu"):
        pick_device("cuda:2")


@pytest.mark.parametrize("call, message", [
    (lambda: pick_device("gpu"), "device 'gpu' is not available; this machine has"),
    (lambda: pick_device("cuda:77"), "device 'cuda:77' is not available"),
    (lambda: pick_device(""), "device '' is not available"),
    (lambda: pick_precision("fp8"), "precision 'fp8' is unknown; give auto, fp32, bf16, fp16"),
    (lambda: pick_precision("fp16", "cpu"), "precision 'fp16' needs a CUDA device, not 'cpu'"),
    (lambda: make_fabric("tpu"), "device 'tpu' is not available"),
    (lambda: make_fabric("cpu", "double"), "precision 'double' is unknown"),
    (lambda: make_fabric("cpu", devices=0), "devices=0"),
    (lambda: set_threads(0), "0 threads; give at least 1"),
    (lambda: parallel_map(abs, [1], workers=0), "0 workers; give at least 1"),
])
def test_unknown_choices_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_fabric_for_one_process_is_launched_and_silent(capfd, monkeypatch):
    fabric = make_fabric("cpu", "bf16")
    assert (fabric.world_size, fabric.global_rank, fabric.device.type) == (1, 0, "cpu")
    layer = fabric.setup_module(torch.nn.Linear(2, 2))
    with fabric.autocast():
        assert torch.nn.functional.linear(torch.ones(1, 2), layer.weight).dtype == torch.bfloat16
    assert "".join(capfd.readouterr()) == ""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(ValueError, match="devices=2 .* a notebook cannot do; run it as a script"):
        make_fabric("cpu", devices=2)


def test_threads_and_memory():
    before = torch.get_num_threads()
    set_threads(1)
    assert torch.get_num_threads() == 1
    set_threads(before)
    ballast = torch.ones(64 << 20, dtype=torch.uint8)
    assert peak_memory() > ballast.nbytes and peak_memory("cpu") > ballast.nbytes


# Fingerprints


@dataclass
class Settings:
    rate: float = 0.1
    sizes: tuple = (1, 2)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.builds(Path, st.just("a/b"))
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8)


@given(values)
def test_equal_content_has_equal_fingerprints(value):
    assert fingerprint(value) == fingerprint(pickle.loads(pickle.dumps(value)))
    assert fingerprint([value]) != fingerprint([value, value]) != fingerprint([[value, value]])
    if isinstance(value, dict):
        assert fingerprint(dict(reversed(value.items()))) == fingerprint(OrderedDict(value)) == fingerprint(value)


def test_different_content_has_different_fingerprints():
    x = torch.arange(6.0)
    different = [
        1, 1.0, True, "1", None, b"1", Path("1"), [1], [[1]], {1}, {1: 1}, {"1": 1}, "ab", ["ab"], ["a", "b"], ["", "ab"], 0.0, -0.0, float("nan"),
        x, x.view(2, 3), x.view(3, 2), x.double(), x.bfloat16(), x.numpy(), x.flip(0), torch.tensor(1.0), torch.empty(0), Settings(),
        Settings(0.2), torch.float32, torch.device("cpu"), [], {}, "",
    ]
    assert len({fingerprint(value) for value in different}) == len(different)
    same = torch.arange(12.0).view(6, 2)[:, 0] / 2
    assert fingerprint(same) == fingerprint(x) == fingerprint(torch.nn.Parameter(x)) and fingerprint(np.float64(0.5)) == fingerprint(0.5)
    assert fingerprint({"a", "b", "c"}) == fingerprint(frozenset("cba")) and fingerprint((1, 2)) == fingerprint([1, 2])
    assert fingerprint(1, 2) != fingerprint(12)


@pytest.mark.parametrize("value", [print, lambda: 0, object(), Settings, np.array([object()]), {"deep": [torch.nn.Linear(1, 1)]}])
def test_what_has_no_content_is_refused(value):
    with pytest.raises(TypeError, match="cannot fingerprint a.*; give"):
        fingerprint(value)


# Files


def test_atomic_write_replaces_or_leaves(tmp_path):
    target = tmp_path / "new" / "table.csv"
    write_text(target, "größe")
    assert target.read_text(encoding="utf-8") == "größe"
    with pytest.raises(KeyError), atomic_write(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".csv" and temporary != target
        temporary.write_text("half")
        raise KeyError
    with pytest.raises(ValueError, match="nothing was written for .*table.csv"), atomic_write(target):
        pass
    assert target.read_text(encoding="utf-8") == "größe" and [p.name for p in target.parent.iterdir()] == ["table.csv"]
    write_json(target, {"path": tmp_path, "n": 1})
    assert json.loads(target.read_text()) == {"path": str(tmp_path), "n": 1}
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask, "as readable for others as any other file"


def test_a_folder_that_cannot_be_written_to(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for call in (lambda: make_folder(file / "below"), lambda: make_folder(file), lambda: write_text(file / "x.txt", ""),
                 lambda: cached("key", dict, root=file / "cache")):
        with pytest.raises(ValueError, match=r"cannot write to folder .*file.*: .*; choose a folder that you may write to") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "result.txt", "whole")
    code = """
        import sys, time
        from kdnotes.files import atomic_write
        with atomic_write(sys.argv[1]) as temporary:
            temporary.write_text("ha")
            print("writing", flush=True)
            time.sleep(60)
    """
    process = python(code, tmp_path / "result.txt")
    assert process.stdout.readline() == "writing\n"
    process.kill()
    process.communicate()
    assert (tmp_path / "result.txt").read_text() == "whole"


# The cache

VALUE = {"weights": OrderedDict(a=torch.arange(4.0), b=torch.ones(2, dtype=torch.uint8)), "accuracy": 0.5, "names": ["x", ("y", None)], "on": True}


def test_cached_builds_once_and_returns_equal_values(tmp_path):
    calls = []
    build = lambda: calls.append(1) or VALUE
    for _ in range(3):
        value = cached({"lr": 0.1}, build, tmp_path, name="teacher")
        assert fingerprint(value) == fingerprint(VALUE) and value["weights"]["a"].dtype == torch.float32
        value["weights"]["a"].zero_()  # a reader may do what it likes with its copy
    cached({"lr": 0.2}, build, tmp_path, name="teacher")
    assert len(calls) == 2
    assert {p.name for p in tmp_path.glob("*.pt")} == {f"teacher-{fingerprint({'lr': lr})[:16]}.pt" for lr in (0.1, 0.2)}
    assert cached("none", lambda: None, tmp_path) is None and cached("none", lambda: 1, tmp_path) is None


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNOTES_CACHE", str(tmp_path / "here"))
    assert cached("k", lambda: 1) == 1 and cache_folder() == tmp_path / "here" and len(list(cache_folder().glob("*.pt"))) == 1
    monkeypatch.delenv("KDNOTES_CACHE")
    assert cache_folder().name == "artifacts" and "kdnotes" in str(cache_folder())


class Trap:
    """Unpickling it would run code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[content.find(torch.arange(4.0).numpy().tobytes()) + 5] ^= 1
    elif how == "old":
        torch.save(VALUE, path)
        return
    elif how == "trap":
        torch.save({"value": Trap(path.parent / "sprung"), "fingerprint": ""}, path)
        return
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "noise": random.Random(0).randbytes(500), "flip": content}[how])


@pytest.mark.parametrize("how", ["empty", "cut", "noise", "flip", "old", "trap"])
def test_a_damaged_entry_is_rebuilt_with_one_warning(how, tmp_path, caplog):
    cached("key", lambda: VALUE, tmp_path)
    entry = next(tmp_path.glob("*.pt"))
    damage(entry, how)
    caplog.set_level(logging.INFO, "kdnotes")
    assert fingerprint(cached("key", lambda: VALUE, tmp_path)) == fingerprint(VALUE)
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "\n" not in caplog.records[0].getMessage()
    assert f"cache entry {entry} is damaged" in caplog.text and not (tmp_path / "sprung").exists()
    cached("key", lambda: pytest.fail("built again"), tmp_path)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("value", [np.ones(2), Settings(), torch.nn.Linear(1, 1), print, {"deep": [object()]}])
def test_what_could_not_be_loaded_is_not_stored(value, tmp_path):
    with pytest.raises(TypeError, match=r"cannot cache thing-.*: build\(\) may return tensors, numbers, text"):
        cached("key", lambda: value, tmp_path, name="thing")
    assert not list(tmp_path.glob("*thing-*.pt"))


def test_a_failed_build_stores_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cached("key", lambda: 1 / 0, tmp_path)
    assert cached("key", lambda: 1, tmp_path) == 1


@pytest.mark.long
def test_two_processes_build_one_entry(tmp_path):
    """Both start at a signal; one builds, slowly, the other waits for it; a third was killed while it built."""
    code = """
        import sys, time, torch
        from pathlib import Path
        from kdnotes.files import cached
        from kdnotes.runtime import fingerprint
        root = Path(sys.argv[1])
        def build():
            with open(root / "built", "a") as file:
                file.write("x")
            print("building", flush=True)
            time.sleep(60 if sys.argv[2] == "killed" else 1)
            return {"weights": torch.arange(100_000.0)}
        print("ready", flush=True)
        sys.stdin.readline()
        print(fingerprint(cached("key", build, root)))
    """
    processes = [python(code, tmp_path, mode, stdin=subprocess.PIPE) for mode in ("killed", "a", "b")]
    assert [p.stdout.readline() for p in processes] == ["ready\n"] * 3
    killed, *others = processes
    killed.stdin.write("\n")
    killed.stdin.flush()
    assert killed.stdout.readline() == "building\n"
    for process in others:
        process.stdin.write("\n")
        process.stdin.flush()
    time.sleep(0.2)
    killed.kill()
    killed.communicate()
    answers = [p.communicate(timeout=60)[0].split() for p in others]
    assert (tmp_path / "built").read_text() == "xx", "the killed process, then one of the two"
    assert sorted(map(len, answers)) == [1, 2] and {a[-1] for a in answers} == {fingerprint({"weights": torch.arange(100_000.0)})}


# Progress


def test_progress_in_a_log_is_a_line_now_and_then(capfd, monkeypatch):
    assert list(progress(range(1000), desc="work")) == list(range(1000))
    assert capfd.readouterr().err.splitlines() == ["work: 1000/1000 [00:00<00:00]"]
    with progress(total=4, desc="hand", leave=False, initial=1) as bar:
        bar.set_postfix(loss="0.5", refresh=False)
        bar.update(3)
    assert capfd.readouterr().err.splitlines() == ["hand: 4/4 [00:00<00:00], loss=0.5"]
    monkeypatch.setattr("kdnotes.progress._quiet", True)
    assert list(progress([1, 2])) == [1, 2] and capfd.readouterr().err == ""


def test_progress_in_a_terminal_moves(monkeypatch):
    class Terminal(io.StringIO):
        isatty = lambda self: True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in progress(range(3), desc="work", leave=False):
        time.sleep(0.11)
    shown = terminal.getvalue().split("\r")
    assert len(shown) >= 4 and "work:  67%" in terminal.getvalue() and not shown[-1].strip()


def test_fifty_bars_leave_no_thread_behind(monkeypatch):
    class Terminal(io.StringIO):
        isatty = lambda self: True

    before = threading.active_count()
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        for _ in range(50):
            with progress(total=3) as bar:
                bar.update(3)
    assert threading.active_count() == before


@pytest.mark.long
def test_progress_in_a_notebook_is_one_line_in_place():
    import nbclient
    import nbformat

    cells = ["from kdnotes.progress import progress", "for _ in progress(range(3), desc='work'): pass"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    outputs = notebook.cells[1].outputs
    assert [o.output_type for o in outputs] == ["display_data"] and outputs[0].data == {"text/plain": "work: 3/3 [00:00<00:00]"}


# Parallel

SCRIPT = """
import json, random, sys, traceback
import numpy as np, torch
from kdnotes.parallel import parallel_map
from kdnotes.runtime import fingerprint, generator_states

def sums(n):
    x = torch.randn(n)
    product = x[:90].outer(x[:90]) @ x[:90]
    return (x.exp() / 3).sum().item(), product.sum().item(), random.random(), np.random.rand(), torch.get_num_threads()

def nested(n):
    return parallel_map(sums, [n, n + 1], workers=2)

def fail(n):
    return 1 / (n - 2)

sizes, before = [100_000, 200_000, 300_001], fingerprint(generator_states())
results = {"serial": parallel_map(sums, sizes, workers=1), "pair": parallel_map(sums, iter(sizes), workers=2, desc="pair"),
           "nested": [parallel_map(nested, [100, 200], workers=workers) for workers in (1, 2)], "empty": parallel_map(sums, [])}
results["untouched"] = fingerprint(generator_states()) == before
results["elsewhere"] = fingerprint({"b", "a"}, {"y": torch.ones(2), "x": 0.1})
try:
    parallel_map(fail, [1, 2, 3], workers=2)
except ZeroDivisionError as error:
    results["error"] = "".join(traceback.format_exception(error))
print(json.dumps(results))
"""


@pytest.mark.slow
def test_parallel_map_is_the_serial_loop_bit_for_bit(tmp_path):
    """From a script, so that its functions belong to `__main__`, as those of a notebook do."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    results = json.loads(run.stdout)
    assert results["pair"] == results["serial"] and results["nested"][0] == results["nested"][1] and results["empty"] == []
    assert [row[-1] for row in results["serial"]] == [1, 1, 1] and len({row[2] for row in results["serial"]}) == 3
    assert results["untouched"], "the caller's generators go on as if nothing had happened"
    assert "in fail" in results["error"], "the traceback where it failed is told, also that of another process"
    assert "pair: 3/3" in run.stderr
    assert results["elsewhere"] == fingerprint({"a", "b"}, {"x": 0.1, "y": torch.ones(2)}), "fingerprints do not depend on the process"


@pytest.mark.slow
@pytest.mark.parametrize("patience", [0.0, 0.3])
def test_nothing_starts_before_what_it_waits_for(tmp_path, patience):
    random.seed(3)
    after = [sorted(random.sample(range(place), min(place, random.randint(0, 3)))) for place in range(40)]

    def work(place: int) -> tuple[int, bool]:
        import time

        there = all((tmp_path / str(before)).exists() for before in after[place])
        time.sleep(0.05 if place % 7 == 0 else 0.01)
        (tmp_path / str(place)).touch()
        return place, there

    assert parallel_map(work, range(40), workers=2, patience=patience, after=after) == [(place, True) for place in range(40)]


def test_the_longest_chain_is_begun_first():
    begun = []
    parallel_map(begun.append, range(6), workers=1, after=[(), (), (), (2,), (3,), (0,)])
    assert begun == [2, 0, 3, 1, 4, 5]
    for wrong in ([(), (), (0,)], [(1,), ()], [(), (1,)], [(-1,), ()]):
        with pytest.raises(ValueError, match="expected for each of 2 items places before its own"):
            parallel_map(begun.append, range(2), workers=1, after=wrong)


def test_parallel_map_in_this_process():
    assert parallel_map(lambda n: n + random.random(), [1, 2], workers=1) == parallel_map(lambda n: n + random.random(), [1, 2], workers=1)
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda n: 1 / n, [1, 0], workers=1)
    assert not is_quiet()
