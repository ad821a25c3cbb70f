"""The experiment room: what is in a key and what is not, what is made again, and that numbers do not depend on how work was divided."""
import ast
import functools
import json
import os
import pickle
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from kdnotes import experiment as room
from kdnotes.checks import refused
from kdnotes.config import Settings
from kdnotes.data import source
from kdnotes.experiment import Data, Experiment, Planner, Row, Stage, Study, chains, place_of

PAPER = """
from dataclasses import dataclass
import torch
from kdnotes.experiment import Data, Row, Stage, Study

@dataclass(frozen=True)
class Numbers(Data):
    count: int
    def load(self):
        return torch.arange(float(self.count))

def teach(x): return 2 * x.mean()
def distil(teacher, distance): return teacher - distance
RECIPES = {"near": 0.5, "far": 1.0}

@dataclass(frozen=True)
class Teacher(Stage):
    data: Numbers
    seed: int
    def build(self, parents, here, checkpoint):
        return {"weight": teach(here.read(self.data)) + self.seed + torch.rand(())}
    def open(self, kept, here):
        return kept["weight"].item()

@dataclass(frozen=True)
class Student(Stage):
    data: Numbers
    seed: int
    recipe: str
    def needs(self):
        return {"teacher": Teacher(self.data, self.seed)}
    def distance(self):
        return RECIPES[self.recipe]
    def build(self, parents, here, checkpoint):
        return {"weight": distil(parents["teacher"], self.distance()) + torch.rand(())}

def error(stage, made, here):
    return {"error": 10.0 - float(made["weight"]) + torch.rand(()).item()}

def rows():
    return [Row("main", recipe, Student(Numbers(5), seed, recipe), error) for seed in (0, 1) for recipe in RECIPES]
"""


def paper(*edits: tuple[str, str]) -> dict:
    """The names of the toy paper's cells, after `edits`."""
    text = PAPER
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    space = {"__name__": "__main__"}
    exec(compile(text, "<cell>", "exec"), space)
    return space


def run(root: Path, space: dict, rows: list[Row] | None = None, earlier: tuple = ()) -> tuple[list, dict]:
    """Numbers of the toy paper, and for each kind of stage how its stages were come by."""
    made = alone(root, earlier)
    results = Study(space["rows"]() if rows is None else rows).run(made)
    nodes = {node.key: node for generation in room.generations(made.nodes.values()) for node in generation}
    hows = {name: {made.how[key] for key, node in nodes.items() if type(node.stage).__name__ == name} for name in ("Teacher", "Student")}
    return [(row["method"], row["seed"], row["metric"], row["value"]) for row in results.rows], hows


def alone(root: Path, earlier: tuple = ()) -> Experiment:
    made = Experiment.alone("toy", Settings(), root)
    made.here = room.dataclasses.replace(made.here, earlier=tuple(earlier))
    return made


@pytest.fixture(autouse=True)
def in_process(request, monkeypatch):
    """Stages are made in this process, but for tests marked `workers`."""
    if "workers" not in request.fixturenames:
        monkeypatch.setattr(room, "parallel_map", functools.partial(_map_here, room.parallel_map))


def _map_here(parallel_map, function, items, workers=None, desc="", **more):
    return parallel_map(function, items, 1, desc)


@pytest.fixture
def workers():
    """Marks a test that makes its stages in worker processes."""


# --- what is in a key ---

def key(stage: Stage, root: Path) -> str:
    return Planner(alone(root).here).node(stage).key


def test_a_key_holds_fields_parents_data_and_code_and_nothing_else(tmp_path):
    space = paper()
    one = space["Student"](space["Numbers"](5), 0, "near")
    same = [one, paper()["Student"](paper()["Numbers"](5), 0, "near"), paper(("import torch", "import torch  # a comment\n\n"))["Student"](space["Numbers"](5), 0, "near")]
    assert len({key(stage, tmp_path / str(i)) for i, stage in enumerate(same)}) == 1
    torch.manual_seed(3)
    os.environ["KDNOTES_TEST"] = "1"
    assert key(one, tmp_path) == key(one, tmp_path / "elsewhere")


@pytest.mark.parametrize("change", ["seed", "recipe", "data"])
def test_each_field_counts(tmp_path, change):
    space = paper()
    values = {"data": space["Numbers"](5), "seed": 0, "recipe": "near"}
    other = values | {"data": space["Numbers"](6), "seed": 1, "recipe": "far"}
    assert key(space["Student"](**values), tmp_path) != key(space["Student"](**(values | {change: other[change]})), tmp_path)


@pytest.mark.parametrize("values", [(1, 1.0, True), (0.0, -0.0), ("1", 1), ((), ("",)), (None, "None")])
def test_values_that_are_equal_to_python_are_told_apart(tmp_path, values):
    @dataclass(frozen=True)
    class Any(Stage):
        value: object

    planner = Planner(alone(tmp_path).here)
    assert len({planner.node(Any(value)).key for value in values}) == len(values)


EDITS = {
    "a loss": (("return teacher - distance", "return teacher - 2 * distance"), "Student"),
    "a table": (('"near": 0.5', '"near": 0.25'), "Student"),
    "a method of the stage": (("return RECIPES[self.recipe]", "return 3 * RECIPES[self.recipe]"), "Student"),
    "build itself": (("torch.rand(())}\n\ndef error", "2 * torch.rand(())}\n\ndef error"), "Student"),
    "the teacher": (("return 2 * x.mean()", "return 3 * x.mean()"), "both"),
    "how the teacher is opened": (('return kept["weight"].item()', 'return kept["weight"].item() + 1'), "both"),
    "the measure": (("10.0 - float", "11.0 - float"), "none"),
    "a comment": (("def teach", "# teaches\ndef teach"), "none"),
    "the way in which data are loaded, to the same": (("torch.arange(float(self.count))", "1.0 * torch.arange(float(self.count))"), "none"),
    "the content of the data": (("torch.arange(float(self.count))", "1 + torch.arange(float(self.count))"), "both"),
    "the default of a field": (("    recipe: str\n", "    recipe: str = 'near'\n"), "none"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_exactly_what_an_edit_reaches_is_made_again(tmp_path, edit):
    change, who = EDITS[edit]
    first, how = run(tmp_path, paper())
    assert how == {"Teacher": {"built"}, "Student": {"built"}}
    again, how = run(tmp_path, paper())
    assert again == first and how == {"Teacher": {"read"}, "Student": {"read"}}
    edited, how = run(tmp_path, paper(change))
    assert how == {"Teacher": {"built" if who == "both" else "read"}, "Student": {"read" if who == "none" else "built"}}
    assert (edited == first) is (who == "none" and edit != "the measure")
    fresh, _ = run(tmp_path / "fresh", paper(change))
    assert edited == fresh
    back, how = run(tmp_path, paper())
    assert back == first and how == {"Teacher": {"read"}, "Student": {"read"}}, "what was made before is still there"


def test_a_cell_run_again_counts_in_the_same_experiment(tmp_path):
    """The notebook's class stays, a function that it uses is defined anew, and the cell of the run is run again."""
    space, made = paper(), alone(tmp_path)
    made.measure(space["rows"]())
    first = [row["value"] for row in made.results.rows]
    exec(compile("def distil(teacher, distance): return teacher + distance", "<cell>", "exec"), space)
    made.results.rows.clear()
    made.measure(space["rows"]())
    assert [row["value"] for row in made.results.rows] != first


def test_a_recipe_s_own_methods_are_code_of_the_stage(tmp_path):
    def stage(factor: float) -> Stage:
        space: dict = {"__name__": "__main__", "factor": factor}
        exec(textwrap.dedent("""
        from dataclasses import dataclass
        from kdnotes.experiment import Stage
        @dataclass(frozen=True)
        class Recipe:
            weight: float = 1.0
            def __call__(self, x): return factor * x
        @dataclass(frozen=True)
        class Student(Stage):
            recipes: tuple = (("a", Recipe()),)
            def build(self, parents, here, checkpoint): return self.recipes[0][1](1.0)
        """), space)
        return space["Student"]()
    assert key(stage(1.0), tmp_path) == key(stage(1.0), tmp_path) != key(stage(2.0), tmp_path)


# --- fields that cannot be a key ---

@pytest.mark.parametrize("value, said", [([1], "is a list"), (torch.nn.Linear(1, 1), "is a Linear"), ({}, "is a dict"), (lambda: 0, "is a function"),
                                         ((1, [2]), "is a tuple"), (object(), "is a object")])
def test_a_field_that_cannot_be_in_a_key_is_named_in_one_line(tmp_path, value, said):
    @dataclass(frozen=True)
    class Odd(Stage):
        fine: int
        odd: object

    line = refused(alone(tmp_path).make, [Odd(1, value)])
    assert line.startswith("Odd.odd=") and said in line and len(line) < 300


def test_a_stage_that_is_no_dataclass_of_its_own_is_refused(tmp_path):
    class Bare(Stage):
        steps: int = 3

    assert "write @dataclass(frozen=True)" in refused(alone(tmp_path).make, [Bare()])


def test_data_that_cannot_be_told_apart_are_refused(tmp_path):
    @dataclass(frozen=True)
    class Odd(Data):
        def load(self):
            return object()

    assert "Odd() loads what cannot be told apart" in refused(alone(tmp_path).read, Odd())


# --- data ---

@dataclass(frozen=True)
class Threads(Data):
    """With how many threads it is loaded: what is computed in it depends on them."""

    def load(self):
        return torch.tensor(torch.get_num_threads())


def test_what_is_found_of_data_is_found_once_for_the_same_content(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path))
    np.save(tmp_path / "a.npy", np.arange(4.0)), np.save(tmp_path / "b.npy", np.arange(4.0))
    calls = []

    def total(value):
        calls.append(torch.get_num_threads())
        return value.sum()

    here = alone(tmp_path / "root").here
    assert [here.of(File(name), total).item() for name in ("a.npy", "a.npy", "b.npy")] == [6, 6, 6] and calls == [1]
    inside = replace(here, may_read=(File("a.npy"),))
    assert inside.of(File("a.npy"), total) == 6 and "make it a field" in refused(inside.of, File("b.npy"), total)


def test_data_are_loaded_with_one_thread_in_every_process(tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert alone(tmp_path).read(Threads()) == 1 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class File(Data):
    """The content of a file below the data root."""

    name: str

    def load(self):
        return torch.from_numpy(np.load(source.data_root() / self.name))


@dataclass(frozen=True)
class Sum(Stage):
    first: File
    second: File
    seed: int = 0

    def build(self, parents, here, checkpoint):
        return {"sum": (here.read(self.first).sum() - 2 * here.read(self.second).sum()).item()}


def value(stage, made, here):
    return {"value": made["sum"]}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """`files(a=..., b=...)` writes arrays below the data root, and may keep the times of the files that it writes over."""
    root = tmp_path / "data"
    root.mkdir()
    monkeypatch.setenv("KDNOTES_DATA", str(root))

    def write(keep_times: bool = False, in_place: bool = False, **arrays) -> Path:
        for name, numbers in arrays.items():
            path = root / f"{name}.npy"
            before = path.stat() if path.exists() else None
            temporary = path if in_place else root / "new.npy"
            with open(temporary, "r+b" if in_place and path.exists() else "wb") as file:
                np.save(file, np.asarray(numbers, dtype=np.float64))
            os.replace(temporary, path)
            if keep_times and before:
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return root
    return write


def total(root: Path) -> tuple[float, str]:
    made = alone(root)
    return Study([Row("t", "m", Sum(File("a.npy"), File("b.npy")), value)]).run(made).rows[0]["value"], list(made.how.values())[0]


@pytest.mark.parametrize("keep_times", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_data_that_change_under_their_name_give_a_new_number(tmp_path, files, keep_times, in_place):
    files(a=[1, 2], b=[1, 1])
    assert total(tmp_path / "runs") == (-1, "built") and total(tmp_path / "runs") == (-1, "read")
    files(a=[5, 2], keep_times=keep_times, in_place=in_place)
    assert total(tmp_path / "runs") == (3, "built")
    files(a=[1, 2], keep_times=keep_times, in_place=in_place)
    assert total(tmp_path / "runs") == (-1, "read"), "the old content, the old result"


def test_contents_that_change_places_are_seen(tmp_path, files):
    files(a=[1, 2], b=[1, 1])
    first = total(tmp_path / "runs")
    files(a=[1, 1], b=[1, 2])
    assert total(tmp_path / "runs") == (-4, "built") and first == (-1, "built")


@pytest.mark.parametrize("keep_times", [False, True])
def test_data_that_change_while_an_experiment_lasts_are_refused(tmp_path, files, keep_times):
    files(a=[1, 2], b=[1, 1])
    made = alone(tmp_path / "runs")
    stage = Sum(File("a.npy"), File("b.npy"))
    assert made.made(stage) == {"sum": -1} and made.read(File("a.npy")).tolist() == [1, 2]
    time.sleep(0.06)
    assert made.read(File("a.npy")) is made.read(File("a.npy")), "kept in memory while the file is the same"
    files(a=[5, 2], keep_times=keep_times, in_place=True)
    assert refused(made.read, File("a.npy")) == "File(name='a.npy') has changed since the run began; run it again"
    assert "has changed since the run began" in refused(made.made, stage)


def test_the_note_on_data_names_each_file_with_its_sum(tmp_path, files):
    import hashlib

    root = files(a=[1, 2], b=[1, 1])
    made = alone(tmp_path / "runs")
    made.made(Sum(File("a.npy"), File("b.npy")))
    content = (root / "a.npy").read_bytes()
    note = made.here.library.note()
    assert note["File(name='a.npy')"]["files"] == {"a.npy": [len(content), hashlib.sha256(content).hexdigest()]} and len(note) == 2


def measured_on(stage, made, here):
    return {"value": here.read(File("test.npy")).sum().item()}


def test_data_that_only_a_measure_reads_are_noted_too(tmp_path, files, workers):
    files(a=[1, 2], b=[1, 1], test=[7])
    made = alone(tmp_path / "runs")
    rows = [Row("t", "m", Sum(File("a.npy"), File("b.npy"), seed), measured_on) for seed in (0, 1)]
    assert [row["value"] for row in Study(rows).run(made).rows] == [7, 7]
    assert set(made.here.library.note()) == {f"File(name='{name}.npy')" for name in ("a", "b", "test")}


def test_the_note_outlasts_what_is_kept_in_memory(tmp_path):
    space = paper()
    made = alone(tmp_path)
    for count in range(1, 30):
        made.read(space["Numbers"](count))
    assert len(made.here.library.note()) == 29 and len(made.here.library.kept) <= 16


@dataclass(frozen=True)
class Sneaky(Stage):
    seed: int = 0
    way: str = "read"

    def build(self, parents, here, checkpoint):
        if self.way == "read":
            return here.read(File("a.npy"))
        if self.way == "open":
            return float(np.load(source.data_root() / "a.npy").sum())
        return 0


@dataclass(frozen=True)
class Writer(Stage):
    data: File
    seed: int = 0

    def build(self, parents, here, checkpoint):
        return here.read(self.data).mul_(2).sum().item()


def opens_a_file(stage, made, here):
    return {"value": float(np.load(source.data_root() / "a.npy").sum())}


def test_data_that_a_stage_does_not_declare_are_refused(tmp_path, files):
    files(a=[1, 2], b=[1, 1])
    assert "make it a field, so that the key knows it" in refused(alone(tmp_path).made, Sneaky(0, "read"))
    assert "a.npy by itself" in refused(alone(tmp_path).made, Sneaky(0, "open"))
    assert "a.npy by itself" in refused(Study([Row("t", "m", Sneaky(0, "none"), opens_a_file)]).run, alone(tmp_path))
    assert not [path for path in Path(tmp_path).glob("Sneaky*.pt") if b"open" in path.read_bytes()]


def test_a_stage_that_writes_into_data_is_refused(tmp_path, files):
    files(a=[1, 2], b=[1, 1])
    made = alone(tmp_path)
    assert "writes into data that others read" in refused(made.made, Writer(File("a.npy")))
    assert made.read(File("a.npy")).tolist() == [1, 2], "and the next reader gets what is in the file"


def test_two_experiments_in_one_process_have_their_own_data(tmp_path, files):
    files(a=[1, 2], b=[1, 1])
    first, second = alone(tmp_path / "1"), alone(tmp_path / "2")
    assert first.read(File("a.npy")).sum() == 3
    files(a=[5, 2])
    assert second.read(File("a.npy")).sum() == 7
    assert "has changed" in refused(first.read, File("a.npy"))
    assert second.made(Sum(File("a.npy"), File("b.npy"))) == {"sum": 3}
    assert pickle.loads(pickle.dumps(second.here.library)) is second.here.library


# --- what is kept ---

def test_a_damaged_result_is_made_again_with_a_warning(tmp_path, caplog):
    first, _ = run(tmp_path, paper())
    for path in tmp_path.glob("Teacher*.pt"):
        path.write_bytes(path.read_bytes()[:-40] + b"0" * 40)
    again, how = run(tmp_path, paper())
    assert again == first and how == {"Teacher": {"built"}, "Student": {"read"}} and "damaged" in caplog.text


def test_a_damaged_result_is_taken_from_an_earlier_run(tmp_path):
    first, _ = run(tmp_path / "old", paper())
    run(tmp_path / "new", paper())
    for path in (tmp_path / "new").glob("*.pt"):
        path.write_bytes(b"")
    again, how = run(tmp_path / "new", paper(), earlier=(tmp_path / "old",))
    assert again == first and how == {"Teacher": {"read"}, "Student": {"read"}}


def test_results_of_earlier_runs_are_taken_over_with_their_notes(tmp_path):
    first, _ = run(tmp_path / "old", paper())
    notes = {path.name: path.read_text() for path in (tmp_path / "old").glob("*.json")}
    again, how = run(tmp_path / "new", paper(), earlier=(tmp_path / "none", tmp_path / "old"))
    assert again == first and how == {"Teacher": {"read"}, "Student": {"read"}}
    assert {path.name: path.read_text() for path in (tmp_path / "new").glob("*.json")} == notes and len(notes) == 6
    for path in (tmp_path / "old").iterdir():
        path.unlink()
    assert run(tmp_path / "new", paper())[0] == first


@dataclass(frozen=True)
class Stopped(Stage):
    seed: int = 0

    def build(self, parents, here, checkpoint):
        if not checkpoint.exists():
            checkpoint.write_text("half")
            raise KeyboardInterrupt
        return {"sum": len(checkpoint.read_text())}


def test_an_interrupted_stage_leaves_nothing_half_and_goes_on_from_its_checkpoint(tmp_path):
    made = alone(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        made.made(Stopped())
    assert [path.suffix for path in tmp_path.iterdir()] == [".resume"]
    assert made.made(Stopped()) == {"sum": 4} and sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".pt"]
    again = alone(tmp_path)
    again.made(Stopped())
    assert list(again.how.values()) == ["read"]


def test_every_number_has_its_chain(tmp_path):
    made = alone(tmp_path)
    Study(paper()["rows"]()).run(made)
    made.results.add("main", "digits", "by hand", "error", 1.0, 0)
    notes, rows = chains(made)
    assert len(rows) == len(made.results.rows) == 5 and rows.stage.tolist()[-1] == "" and set(rows.stage[:-1]) <= notes.keys()
    for note in notes.values():
        assert note["code"] and note["built"] and note["seconds"] is not None and note["device"] == "cpu" and note["data"]
        assert set(note["parents"].values()) <= notes.keys()
        assert set(note["fields"]) >= {"data", "seed"}
    assert sorted(note["stage"] for note in notes.values()) == ["Student"] * 4 + ["Teacher"] * 2
    json.dumps(notes)


# --- the same numbers whatever is done when and where ---

@pytest.mark.slow
def test_numbers_do_not_depend_on_workers_or_on_the_order_of_rows(tmp_path, workers, monkeypatch):
    space = paper()
    parallel, how = run(tmp_path / "workers", space)
    assert how == {"Teacher": {"built"}, "Student": {"built"}}
    monkeypatch.setattr(room, "parallel_map", functools.partial(_map_here, room.parallel_map))
    random.seed(5), torch.manual_seed(5)
    here, _ = run(tmp_path / "here", space)
    turned, _ = run(tmp_path / "turned", space, space["rows"]()[::-1])
    alone, _ = run(tmp_path / "alone", space, space["rows"]()[2:3])
    assert here == parallel and turned == here[::-1] and alone == here[2:3]


def test_global_generators_stay_as_they_were(tmp_path):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    space = paper(("return kept", "torch.rand(3)\n        return kept"), ("def error(stage, made, here):", "def error(stage, made, here):\n    torch.rand(3)"))
    run(tmp_path, space)
    alone(tmp_path).made(space["Student"](space["Numbers"](5), 0, "near"))
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist()) and torch.equal(before[2], torch.get_rng_state())  # noqa: NPY002


# --- stale worker processes ---

STALE_PAPER = """
from dataclasses import dataclass
from kdnotes.experiment import Stage

def teach(): return 1.0
def score(x): return x

@dataclass(frozen=True)
class Teacher(Stage):
    seed: int
    def build(self, parents, here, checkpoint): return {"sum": 10 * teach() + self.seed}
    def open(self, kept, here): return {"sum": opening(kept["sum"])}

def opening(x): return x

@dataclass(frozen=True)
class Student(Stage):
    seed: int
    def needs(self): return {"teacher": Teacher(self.seed)}
    def build(self, parents, here, checkpoint): return {"sum": parents["teacher"]["sum"]}

def value(stage, made, here): return {"value": score(made["sum"])}
"""


@pytest.mark.slow
@pytest.mark.parametrize("name, new", [("teach", lambda: 2.0), ("opening", lambda x: x + 1), ("score", lambda x: -x)])
def test_worker_processes_with_stale_code_leave_the_work(tmp_path, monkeypatch, workers, name, new):
    """A module is imported in a worker, then changed in this process: the number is that of the code as it is here."""
    module = f"stale_{name}"
    (tmp_path / f"{module}.py").write_text(STALE_PAPER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)                       # workers that know the path
    toy = __import__(module)
    rows = lambda: [Row("t", "m", toy.Student(seed), toy.value) for seed in (0, 1)]
    values = lambda root: [row["value"] for row in Study(rows()).run(alone(root)).rows]
    assert values(tmp_path / "runs") == [10, 11]
    new.__module__, new.__qualname__ = module, name
    monkeypatch.setattr(toy, name, new)
    assert values(tmp_path / "runs") == {"teach": [20, 21], "opening": [11, 12], "score": [-10, -11]}[name]
    get_reusable_executor().shutdown(wait=True)


# --- errors ---

@dataclass(frozen=True)
class Failing(Stage):
    seed: int = 0

    def build(self, parents, here, checkpoint):
        if self.seed:
            raise ZeroDivisionError("no loss")
        return {"sum": 1}


def failing_measure(stage, made, here):
    raise ZeroDivisionError("no number")


@pytest.mark.parametrize("parallel", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_error_says_in_which_stage(tmp_path, parallel, request):
    stages = [Failing(0), Failing(7)]
    function: Callable = alone(tmp_path).make
    if parallel:
        request.getfixturevalue("monkeypatch").undo()
    with pytest.raises(ZeroDivisionError, match="no loss") as caught:
        function([Failing(3), *stages])
    assert any("in stage Failing {'seed': 3}" in note for note in caught.value.__notes__)
    with pytest.raises(ZeroDivisionError, match="no number") as caught:
        Study([Row("t", "m", Failing(0), failing_measure)]).run(alone(tmp_path))
    assert any("in measure of stage Failing {'seed': 0}" in note for note in caught.value.__notes__)


def test_a_row_without_a_seed_is_refused(tmp_path):
    @dataclass(frozen=True)
    class Seedless(Stage):
        def build(self, parents, here, checkpoint):
            return {"sum": 1}

    assert "has no seed" in refused(Study([Row("t", "m", Seedless(), value)]).run, alone(tmp_path))
    assert Study([Row("t", "m", Seedless(), value, seed=3)]).run(alone(tmp_path)).rows[0]["seed"] == 3


def test_make_gives_what_stages_open_to(tmp_path):
    space, made = paper(), alone(tmp_path)
    stages = [space["Teacher"](space["Numbers"](5), seed) for seed in (1, 0, 1)]
    opened = made.make(stages)
    assert opened[0] == opened[2] == made.made(stages[0]) != opened[1]


def test_a_stage_is_kept_once_however_often_it_is_named(tmp_path):
    run(tmp_path, paper())
    assert len(list(tmp_path.glob("*.pt"))) == 6 and not [path for path in tmp_path.iterdir() if path.suffix not in (".pt", ".json")]
    planner = Planner(alone(tmp_path).here)
    assert all(place_of(planner.node(row.stage), tmp_path).is_file() for row in paper()["rows"]())


@pytest.mark.slow
def test_keys_are_the_same_in_another_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PAPER + textwrap.dedent("""
    import sys, tempfile
    from kdnotes.config import Settings
    from kdnotes.experiment import Experiment, Planner
    print(*sorted({Planner(Experiment.alone("toy", Settings(), tempfile.mkdtemp()).here).node(row.stage).key for row in rows()}))
    """))
    runs = [subprocess.run([sys.executable, script], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, timeout=300) for seed in "01"]
    planner = Planner(alone(tmp_path).here)
    keys = " ".join(sorted({planner.node(row.stage).key for row in paper()["rows"]()}))
    assert [run.stdout.strip() for run in runs] == [keys, keys], runs[0].stderr


@pytest.mark.parametrize("asked, expected", [("auto", "bf16-mixed"), ("", "bf16-mixed"), ("fp32", "32-true")])
def test_the_precision_auto_is_the_one_that_the_paper_names(tmp_path, asked, expected):
    class Half(Settings):
        PRECISION = "bf16"
        PROFILES = {"smoke": {}}

    made = Experiment.begin("toy", Half, {"profile": "smoke", "device": "cpu", "precision": asked, "out": str(tmp_path / "run")})
    made.folder.close()
    assert made.here.precision == expected


def test_a_run_may_lie_below_the_data_root(tmp_path, files):
    root = files(a=[1, 2], b=[1, 1])
    made = alone(root / "runs")
    assert made.made(Sum(File("a.npy"), File("b.npy"))) == {"sum": -1}
    assert alone(root / "runs").made(Sum(File("a.npy"), File("b.npy"))) == {"sum": -1}
    assert "a.npy by itself" in refused(made.made, Sneaky(0, "open"))


@pytest.mark.parametrize("part, said", [(True, ""), ({"a"}, ""), (False, "Not part of this run.\n"), ([], "Not part of this run.\n")])
def test_a_cell_says_when_the_run_has_nothing_of_it(tmp_path, capsys, part, said):
    assert alone(tmp_path).covers(part) is part and capsys.readouterr().out == said


def test_no_cell_of_a_result_is_empty_in_silence():
    """A cell below words that shows nothing but one branch without an `else` asks `covers`, which speaks where it is not taken."""
    silent = []
    for path in sorted(Path(__file__).parents[1].glob("nbs/papers/*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        first = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", ()))
        for above, cell in pairwise(cells[first:]):
            source = "".join(cell["source"])
            if (above["cell_type"], cell["cell_type"]) != ("markdown", "code") or "#| export" in source:
                continue
            body = [part for part in ast.parse(source).body if not isinstance(part, (ast.FunctionDef, ast.Assign, ast.Assert))]
            if [type(part) for part in body] == [ast.If] and not body[0].orelse and "experiment.covers(" not in ast.unparse(body[0].test):
                silent.append(f"{path.name}: {ast.unparse(body[0].test)}")
    assert silent == []


def _warn_of(item):
    room.log.warning("eleven people are too few")
    room.log.warning("item %d is odd", item)
    return item


def test_what_everybody_warns_of_is_told_once_in_a_run(tmp_path, caplog):
    made = alone(tmp_path)
    assert made.map(_warn_of, range(3)) == [0, 1, 2] == made.map(_warn_of, range(3))
    texts = [record.getMessage() for record in caplog.records]
    assert sorted(texts) == ["eleven people are too few", *(f"item {i} is odd" for i in range(3))], texts
    assert alone(tmp_path / "other").map(_warn_of, [1]) == [1] and caplog.text.count("eleven people") == 2


def test_a_warning_before_an_error_is_not_lost(caplog):
    with pytest.raises(ZeroDivisionError), room.warnings_kept():
        room.log.warning("almost nothing is left")
        raise ZeroDivisionError
    assert "almost nothing is left" in caplog.text and not room.log.filters
