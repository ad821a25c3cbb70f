"""What holds for every paper: no number outlives the code, the data or the settings that made it, and a killed run goes on to the same numbers.

All at the size of `smoke`, on a few of its stages. What needs processes of its own is done by this file as a script: see `processes`.
"""
import contextlib
import functools
import importlib
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import cloudpickle
import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from kdnotes import experiment as room
from kdnotes.config import Settings
from kdnotes.experiment import Experiment, Planner, Row, Stage, Study, generations, place_of
from kdnotes.files import recall
from kdnotes.results import Results
from kdnotes.runs import outdated, read_manifest


@dataclass(frozen=True)
class Case:
    """A few stages of a paper's `smoke`, and what is to be known of them."""

    few: dict                                              # overrides of smoke
    loss: str                                              # the paper's own loss, where it is looked up
    uses: tuple[str, ...]                                  # methods whose networks or sets come from that loss
    teacher: Callable[[Stage], bool]                       # the stages that others build on, or are compared with
    untouched: dict                                        # a change of each of these settings leaves the teachers as they are
    touched: dict                                          # a change of each of these makes other teachers
    own: dict                                              # overrides for a data set of one's own, the data set aside
    put: Callable[[Path, int], str] | None                 # writes it below a root, with content by a number; its name (None: drawn data only)
    chosen: Callable[[ModuleType, Settings], list[Row]] | None = None   # rows that are run (None: all of `run`)
    resumes: bool = True                                   # smoke's trainings leave checkpoints
    named: str = "dataset"                                 # the setting that names the data set

    def run(self, paper: ModuleType, experiment: Experiment) -> Results:
        """The numbers of the few stages."""
        return paper.run(experiment) if self.chosen is None else Study(self.rows(paper, experiment.config)).run(experiment)

    def rows(self, paper: ModuleType, config: Settings) -> list[Row]:
        """The rows on the few stages."""
        return self.chosen(paper, config) if self.chosen else paper.rows(config)


def put_images(root: Path, number: int, classes: int = 10, each: int = 12, size: int = 8) -> str:
    """The image set "mine": its pixels depend on `number`, all else is the same."""
    (root / "mine").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", each), ("test", 6)):
        labels = np.arange(classes * count) % classes
        looks = np.random.default_rng((number, 0)).integers(0, 200, (classes, 1, size, size))      # of each class
        noise = np.random.default_rng((number, len(split))).integers(0, 56, (len(labels), 1, size, size))
        np.savez(root / "mine" / f"{split}.npz", images=(looks[labels] + noise).astype(np.uint8), labels=labels)
    return "mine"


def put_crowd(root: Path, number: int) -> str:
    """The published crowd "music": its features depend on `number`, the answers do not."""
    folder = root / "crowds" / "music"
    folder.mkdir(parents=True, exist_ok=True)
    y = {"train": np.arange(120) % 10, "test": np.arange(40) % 10}
    x = {split: np.random.default_rng((number, len(split))).normal(size=(len(labels), 10)) + np.eye(10)[labels] for split, labels in y.items()}
    draws = np.random.default_rng(0)
    answers = np.where(draws.random((120, 8)) < 0.7, y["train"][:, None], draws.integers(0, 10, (120, 8)))
    answers[draws.random(answers.shape) < 0.3] = -1
    answers[:, 0] = y["train"]
    np.savez(folder / "music.npz", X_train=x["train"], y_train=y["train"], answers=answers.astype(np.int8), X_test=x["test"], y_test=y["test"])
    return "music"


def is_high(stage: Stage) -> bool:
    """Whether it is a teacher of the cross-resolution papers."""
    return type(stage).__name__ == "Unaided" and stage.view == "high"


def is_expert(stage: Stage) -> bool:
    """Whether it is an expert of the condensation papers."""
    return type(stage).__name__ == "Expert"


def is_rival(stage: Stage) -> bool:
    """Whether it is what CCC is compared with."""
    return type(stage).__name__ == "TrainedCommittee"


def verifying(paper: ModuleType, config: Settings) -> list[Row]:
    """AIRD's first table for a few methods."""
    return [row for row in paper.main_table("T1 verification", config.seeds[0], config) if row.method in ("teacher on high", "CE", "KD", "AIRD")]


def students(paper: ModuleType, config: Settings) -> list[Row]:
    """DGD's main table."""
    return [row for row in paper.rows(config) if row.table == paper.MAIN]


def verifying_masked(paper: ModuleType, config: Settings) -> list[Row]:
    """G2D's main table for a few methods."""
    return [row for row in paper.main_rows(paper.Cast(config), config.seeds[0]) if row.table == paper.MAIN and row.method in ("teacher, direct", *config.methods)]


def condensing(paper: ModuleType, config: Settings) -> list[Row]:
    """Rows of the main table for a few methods that condense."""
    rows = paper.main_table(config, config.seeds[0]) if paper.__name__.endswith("m3d") else paper.accuracy_rows(config)
    main = rows[0].table
    return [row for row in rows if row.table == main and row.method in ("Herding", "DM", "DM, same f", "M3D", "DANCE")]


PEOPLE = functools.partial(put_images, classes=32, each=6, size=16)
CASES = {
    "horkd": Case(
        {"tasks": ("faces",)}, "kdnotes.recipes.triplet_loss", ("HORKD", "assistant on high", "assistant fed low"), is_high,
        {"faces.steps": 5, "faces.student": "smallconv:2-4-8:4", "faces.low": 8, "faces.pairs": 40, "faces.methods": ("CE",), "losses.triplet": 9.0,
         "bridge.targets": "teacher", "weight_sweep": (0.5,), "low_sweep": (2,), "ks": (1,), "training.steps": 9},
        {"faces.teacher_steps": 5, "faces.teacher": "smallconv:2-4-8:4", "faces.each": 7, "lr": 1e-3, "flip": True, "seeds": (1,)},
        {"tasks": ("faces",)}, PEOPLE, resumes=False, named="faces.dataset"),
    "crrcd": Case(
        {"studies": ("faces",)}, "kdnotes.losses.relation_contrast.RelationContrast.forward", ("CRRCD",), is_high,
        {"faces.student": "smallface:4-8:4", "faces.low": 4, "faces.pairs": 80, "faces.methods": ("CRRCD",), "objective.n": 8, "tau": 0.3,
         "negatives": (4,), "taus": (0.5,), "probe_steps": 5, "training.steps": 3},
        {"faces.steps": 3, "faces.teacher": "smallface:4-8:4", "faces.people": (11, 20), "lr": 1e-3, "flip": True, "seeds": (1,)},
        {"studies": ("faces",)}, PEOPLE, resumes=False),
    "aird": Case(
        {}, "kdnotes.papers.aird.relation_loss", ("AIRD",), is_high,
        {"steps": 5, "student": "smallface:4-8:4", "low": 16, "beta": 9.0, "temperature": 0.5, "pairs": 120, "batch_sweep": (4,), "rho_sweep": (0.3,),
         "test_batch": 8, "tent_lr": 1e-2, "low_sweep": (8,), "closed_steps": 5},
        {"teacher_steps": 5, "teacher": "smallface:4-8:4", "lr": 1e-3, "nuisance": 0.1, "flip": True, "seeds": (1,)},
        {"tasks": ("open",), "test_people": 10, "student_people": 12, "teacher_people": 16, "known": 1, "per_identity": 4}, PEOPLE, verifying, resumes=False),
    "dgd": Case(
        {"methods": ("private classifier", "labelled only", "DGD"), "sweeps": (), "audits": 0}, "kdnotes.papers.dgd.smoothness_loss", ("DGD",),
        lambda stage: type(stage).__name__ == "Ensemble",
        {"student.steps": 5, "student.network": "perceptron:8", "alpha_1": 0.5, "epsilon_1": 1.0, "base": "input", "solver": "cg", "gamma": 2.0, "queries": 11,
         "mechanism": "GNMax", "choose": "random", "latent": 4, "vae_steps": 7, "generative.steps": 7, "one_hot": 0.5, "images": 90, "private.steps": 7, "dp_steps": 3,
         "delta": 1e-4, "baseline": "dpsgd", "methods": ("DGD",), "sanitise": True, "interactive": 1.0, "sweeps": ("mechanisms",)},
        {"teachers.count": 5, "teachers.steps": 6, "teachers.lr": 1e-3, "teachers.batch": 8, "teachers.network": "perceptron:8", "teachers.recipe": "pate", "records": 100,
         "seeds": (1,)},
        {"methods": ("private classifier", "labelled only", "DGD"), "sweeps": (), "audits": 0}, put_images, students, resumes=False),
    "g2d": Case(
        {"methods": ("end to end, CE", "G2D"), "kinds": ()}, "kdnotes.papers.g2d.instance", ("G2D",), lambda stage: type(stage).__name__ == "Teacher",
        {"instance": 9.0, "angle": 3.0, "relation": "cosine", "unmasked": 0.5, "hole": 2.0, "steps": 5, "masks_steps": 5, "boxes_steps": 5, "depth": 14, "views": 3,
         "networks.encoder": (4, 4, 4), "kinds": ("band",), "pairs": 60, "methods": ("G2D",), "transformer.prior": True, "seeds": (1,)},
        {"teacher_steps": 5, "networks.teacher": "smallface:4-8:4", "each": 5, "held": 5, "lr": 1e-3, "scale": 20.0, "margin": 0.1, "nuisance": 0.1},
        {}, PEOPLE, verifying_masked, resumes=False),
    "dpsad": Case(
        {"audits": (), "once": (), "sweeps": ()}, "kdnotes.papers.dpsad.student_losses", ("DP-SAD", "DP-SAD, T1", "DP teacher"), lambda stage: type(stage).__name__ == "Teacher",
        {"losses.adversarial": 9.0, "losses.saturating": False, "private.steps": 5, "private.draws": 3, "private.site": "theta", "private.epsilons": (2.0,), "distil_steps": 5,
         "discriminator": (4, 4), "target": "eps", "judging.samples": 50, "conditioning": "student", "methods": ("DP-SAD",), "seeds": (1,), "once": ("pads",), "sweeps": ("guidance",)},
        {"teacher_steps": 5, "teacher_batch": 16, "networks.width": 8, "T": 400, "training.ema": 0.4, "training.lr": 1e-3, "chain.sampling": 3, "chain.prediction": "v",
         "label_drop": 0.1},
        {}, put_images, resumes=False),
    "naco": Case(
        {"methods": ("NACO", "random backbone", "supervised video"), "protocols": ("A leave-one-out",), "folds": ("NT",)}, "kdnotes.losses.consistency.tcm_loss",
        ("NACO", "2 live steps"), lambda stage: type(stage).__name__ == "EndToEnd" and stage.net == "video",
        {"share": 0.3, "losses.weight": 2.0, "training.steps": 3, "pretrain": 14, "test": (5, 3), "heads.steps": 4, "patience": 7, "methods": ("NACO", "supervised video")},
        {"rivals.epochs": 2, "rivals.lr": 1e-2, "gain": 0.2, "videos.train": (10, 4), "networks.d": 4, "hidden": 8, "strength": 0.5, "folds": ("F2F",), "seeds": (1,)},
        {}, None, resumes=False),
    "ccc": Case(
        {"methods": ("MajorVote", "UnionNet", "CrowdLayer ×2", "CCC"), "density_sweep": (), "group_sweep": (), "self_distilled": False},
        "kdnotes.papers.ccc.normalise_correction", ("CCC",), is_rival,
        {"groups": 3, "meta_size": 30, "meta_batch": 8, "gamma": 0.3, "active": "all", "finetune": 1, "group_sweep": (2,), "methods": ("CCC", "MajorVote")},
        {"training.epochs": 3, "training.network": "mlp:16", "crowd.alpha": 0.4, "annotators": 31, "seeds": (1,)},
        {"methods": ("MajorVote", "CrowdLayer ×2", "CCC"), "group_sweep": (), "self_distilled": False}, put_crowd,
        lambda paper, config: paper.main_rows(config.seeds[0], config)),
    "m3d": Case(
        {}, "kdnotes.condense.matching.mmd2", ("M3D",), is_expert,
        {"iterations": 5, "real_batch": 7, "rates_gaussian": (2.0,), "tune_steps": 4, "judging.steps": 9, "looks": 1, "kernels": ("linear",),
         "point_steps": 50, "factors": (2,), "every": 2, "seeds": (1,)},
        {"expert_epochs": 2, "learning.network": "convnet2:8", "per_class": 16}, {"per_class": 0}, put_images, condensing),
    "dance": Case(
        {"rate_dance": 1.0, "judging.steps": 30}, "kdnotes.condense.experts.calibration", ("DANCE",), is_expert,
        {"iterations": 4, "real_batch": 7, "rate_dance": 0.1, "judging.steps": 3, "points": 2, "gap_epochs": 2, "middle_images": 40, "cost_steps": 2,
         "cross": (), "grid": (1.0,), "seeds": (1,)},
        {"expert_epochs": 3, "expert_lr": 0.1, "expert_batch": 32, "learning.network": "convnet2:8", "train_size": 30}, {"train_size": 0, "rate_dance": 1.0, "judging.steps": 30}, put_images,
        condensing),
}


def module_of(slug: str) -> ModuleType:
    """The paper."""
    return importlib.import_module(f"kdnotes.papers.{slug}")


def few_of(slug: str, **changes) -> Settings:
    """Smoke on a few stages, under `changes`."""
    values = CASES[slug].few | changes
    return module_of(slug).Config.profile("smoke", seeds=values.pop("seeds", (0,)), **values)


@dataclass
class Run:
    """One run on a folder of stages: its numbers, and how the stage behind each was come by."""

    experiment: Experiment
    values: dict[tuple, float]
    hows: dict[tuple, str]

    def of(self, slug: str, uses: bool) -> dict[tuple, float]:
        """The numbers of the methods that use the paper's own loss, or of the others."""
        return {key: value for key, value in self.values.items() if (key[1] in CASES[slug].uses) == uses}

    def held(self, slug: str, root: Path) -> dict[tuple, list]:
        """Prints of what the stages behind the numbers of the methods that use the paper's own loss made, by number, with all the stages that they stand on."""
        rows = self.experiment.results.rows
        keys = {i: (row["table"], row["method"], row["setting"], row["metric"], row["seed"]) for i, row in enumerate(rows) if row["method"] in CASES[slug].uses}
        behind = lambda i: [node for level in generations([self.experiment.nodes[self.experiment.made_by[i]]]) for node in level]
        return {key: [room.fingerprint(recall(place_of(node, root))) for node in behind(i)] for i, key in keys.items() if i in self.experiment.made_by}


def run_on(slug: str, root: Path) -> Run:
    """The few stages of a paper, made or read back in `root`."""
    made = Experiment.alone(slug, few_of(slug), root)
    CASES[slug].run(module_of(slug), made)
    keys = [(row["table"], row["method"], row["setting"], row["metric"], row["seed"]) for row in made.results.rows]
    hows = {key: made.how[made.nodes[made.made_by[i]].key] for i, key in enumerate(keys) if i in made.made_by}
    return Run(made, {key: row["value"] for key, row in zip(keys, made.results.rows, strict=True)}, hows)


@pytest.fixture(autouse=True)
def one_worker(monkeypatch):
    """Everything is made in the process itself: what a test replaces is replaced there."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in CASES])
def slug(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def first(slug, tmp_path_factory) -> tuple[Path, Run]:
    """A folder of stages that nobody touches, and the run that made them."""
    root = tmp_path_factory.mktemp(slug) / "stages"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOKY_MAX_CPU_COUNT", "1")
        return root, run_on(slug, root)


@pytest.fixture
def copied(first, tmp_path) -> Path:
    """A copy of the stages."""
    return Path(shutil.copytree(first[0], tmp_path / "stages"))


def test_every_paper_is_looked_at():
    assert {path.stem for path in Path(module_of("horkd").__file__).parent.glob("*.py")} - {"__init__"} == CASES.keys()


def test_what_a_notebook_defines_travels_to_other_processes(slug):
    """A notebook's cells are `__main__`: their classes and functions go to worker processes by value, with all that they name."""
    paper = module_of(slug)
    with cloudpickle_by_value(paper):
        for name, thing in vars(paper).items():
            if getattr(thing, "__module__", None) == paper.__name__:
                assert len(cloudpickle.dumps(thing)) > 100, name


@contextlib.contextmanager
def cloudpickle_by_value(module: ModuleType):
    """What `module` defines is written out, as if it came from a notebook."""
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


# --- fault 1: edited code, old numbers ---

def test_when_nothing_changed_everything_is_read_back(slug, first, copied):
    again = run_on(slug, copied)
    assert again.values == first[1].values and set(first[1].experiment.how.values()) == {"built"}
    assert again.experiment.how == dict.fromkeys(first[1].experiment.how, "read")


def test_a_loss_that_raises_is_reached(slug, copied, monkeypatch):
    def fails(*args, **more):
        raise ZeroDivisionError("an edit of the loss")

    monkeypatch.setattr(CASES[slug].loss, fails)
    with pytest.raises(ZeroDivisionError, match="an edit of the loss"):
        run_on(slug, copied)


def test_an_edited_loss_makes_its_own_numbers_again_and_no_others(slug, first, copied, monkeypatch):
    original = pkgutil.resolve_name(CASES[slug].loss)
    monkeypatch.setattr(CASES[slug].loss, lambda *args, **more: 1.7 * original(*args, **more))
    edited = run_on(slug, copied)
    assert {key[1] for key in edited.of(slug, uses=True)} == set(CASES[slug].uses)
    assert all(how == ("built" if key[1] in CASES[slug].uses else "read") for key, how in edited.hows.items())
    nodes = [node for level in generations(edited.experiment.nodes.values()) for node in level]
    assert {edited.experiment.how[node.key] for node in nodes if CASES[slug].teacher(node.stage)} == {"read"}
    assert edited.of(slug, uses=False) == first[1].of(slug, uses=False)
    assert edited.of(slug, uses=True).keys() == first[1].of(slug, uses=True).keys()
    before, after = first[1].held(slug, first[0]), edited.held(slug, copied)    # a few steps need not change what an accuracy is
    assert before and before.keys() == after.keys() and all(before[key] != after[key] for key in before)


# --- fault 3: what is in a key, and what is not ---

def teachers(slug: str, planner: Planner, **changes) -> set[str]:
    """The keys of the teachers under `changes`."""
    rows = CASES[slug].rows(module_of(slug), few_of(slug, **changes))
    nodes = [node for level in generations(planner.node(row.stage) for row in rows) for node in level]
    return {node.key for node in nodes if CASES[slug].teacher(node.stage)}


def test_a_teacher_knows_its_own_settings_and_no_others(slug, tmp_path):
    planner = Planner(Experiment.alone(slug, few_of(slug), tmp_path).here)
    known = teachers(slug, planner)
    assert known
    for name, value in CASES[slug].untouched.items():
        assert teachers(slug, planner, **{name: value}) <= known, f"{name} is no setting of a teacher"
    for name, value in CASES[slug].touched.items():
        assert not teachers(slug, planner, **{name: value}) & known, f"{name} is a setting of the teachers"


def test_faces_of_two_sources_share_no_key(tmp_path, monkeypatch):
    """CRRCD's example: with `studies` ("faces",) the faces are those of the data set, with ("faces", "retrieval") drawn ones."""
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path / "data"))
    paper, name = module_of("crrcd"), PEOPLE(tmp_path / "data", 0)
    planner = Planner(Experiment.alone("crrcd", few_of("crrcd"), tmp_path / "stages").here)
    keys = []
    for studies in (("faces",), ("faces", "retrieval")):
        rows = paper.rows(paper.Config.profile("smoke", name, studies=studies, seen=tuple(range(10))))
        nodes = [node for level in generations(planner.node(row.stage) for row in rows if "faces" in row.table) for node in level]
        keys.append({node.key for node in nodes})
    assert len(keys[0]) == len(keys[1]) >= 4 and not keys[0] & keys[1]


# --- fault 5: a damaged file ---

def test_a_flipped_bit_in_a_finished_stage_is_noticed_and_the_stage_built_again(slug, first, copied):
    nodes = {node.key: node for level in generations(first[1].experiment.nodes.values()) for node in level}
    node = next(node for node in nodes.values() if CASES[slug].teacher(node.stage))
    path, whole = place_of(node, copied), place_of(node, copied).read_bytes()
    kept = room.fingerprint(recall(path))
    noticed = []
    for place in np.linspace(0, len(whole) - 1, 24, dtype=int):
        path.write_bytes(flipped(whole, int(place)))
        found = recall(path)
        assert found is None or room.fingerprint(found) == kept, f"byte {place} of {len(whole)} is another, and nobody says so"
        noticed += [int(place)] if found is None else []
    assert len(noticed) >= 6
    path.write_bytes(flipped(whole, noticed[len(noticed) // 2]))
    again = run_on(slug, copied)
    assert again.values == first[1].values and [key for key, how in again.experiment.how.items() if how == "built"] == [node.key]
    assert room.fingerprint(recall(path)) == kept


def flipped(content: bytes, place: int) -> bytes:
    """`content` with one bit of the byte at `place` flipped."""
    return content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1:]


# --- what needs processes of its own: killed runs, and data that change (fault 2) ---

@pytest.fixture(scope="module")
def told(slug, tmp_path_factory) -> tuple[Path, dict]:
    """The folders of runs that `processes` left, and what it tells of them."""
    folder = tmp_path_factory.mktemp(f"{slug}-processes")
    script = [sys.executable, __file__, slug, str(folder)]
    done = subprocess.run(script, env=os.environ | {"LOKY_MAX_CPU_COUNT": "1"}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "told.json").read_text())


@pytest.mark.slow
def test_a_run_that_is_killed_at_every_boundary_between_stages_ends_as_if_it_never_was(told):
    folder, story = told
    whole, killed = (read_manifest(folder / name / "run") for name in ("whole", "boundaries"))
    assert killed["status"] == "finished" and killed["resumed"] == story["kills"] == whole["stages"]["built"] >= 3
    assert killed["stages"] == {"built": 0, "read": story["kills"]} and whole["resumed"] == whole["stages"]["read"] == 0
    assert killed["stages_s"] > 0 and whole["stages_s"] > 0, "what its stages took, read or built"
    assert results(folder, "boundaries") == results(folder, "whole")


@pytest.mark.slow
def test_a_run_that_is_killed_inside_a_stage_ends_as_if_it_never_was(slug, told):
    folder, story = told
    inside = read_manifest(folder / "inside" / "run")
    assert inside["resumed"] == 1 and inside["stages"]["read"] > 0 and inside["stages"]["built"] > 0
    assert results(folder, "inside") == results(folder, "whole")
    assert story["inside steps"] >= story["steps"]


@pytest.mark.slow
def test_a_run_that_is_killed_after_a_checkpoint_goes_on_from_it(slug, told):
    folder, story = told
    if not CASES[slug].resumes:
        pytest.skip(f"{slug}: trainings of up to a thousand steps leave no checkpoint, so smoke has none; see test_train.py")
    assert read_manifest(folder / "checkpoint" / "run")["resumed"] == 1
    assert results(folder, "checkpoint") == results(folder, "whole")
    assert story["checkpoint steps"] == story["steps"], "no step is done twice"


@pytest.mark.slow
def test_data_that_change_under_their_name_give_other_numbers(slug, told):
    folder, story = told
    if CASES[slug].put is None:
        pytest.skip(f"{slug}: its data are drawn, so no file can change under their name")
    assert story["outdated"][0] == story["outdated"][2] == "" and "have changed" in story["outdated"][1]
    before, after = story["manifests"]
    assert before["data"].keys() == after["data"].keys() and before["data"] != after["data"]
    assert after["stages"]["read"] == 0 and after["stages"]["built"] == before["stages"]["built"] > 0
    assert story["numbers"][0] != story["numbers"][1], "the same numbers from other pixels"
    assert story["same process"] == story["numbers"]


def results(folder: Path, name: str) -> bytes:
    return (folder / name / "run" / "results.csv").read_bytes()


# --- the script ---

def processes(slug: str, folder: Path) -> None:
    """Everything about a paper that takes more than one process; each run is a child that is forked from this one, which itself trains nothing.

    Leaves runs in `folder`, and `told.json`: "kills" at boundaries, optimiser "steps" of the whole run and of the two parts of the killed ones,
    and for the data that change: why the run is "outdated" before the change, after it, and run again; "manifests" and "numbers" of both.
    """
    torch.set_num_threads(1)
    case, told = CASES[slug], {}
    warm(slug, folder / "warm")
    told["steps"] = attempt(slug, folder / "whole")[1]
    told["kills"] = 0
    while attempt(slug, folder / "boundaries", after_stages=1)[0]:
        told["kills"] += 1
    for name, how in {"inside": {"after_steps": told["steps"] * 3 // 4}, "checkpoint": {"after_checkpoints": 1}}.items():
        if name == "inside" or case.resumes:
            killed, steps = attempt(slug, folder / name, **how)
            if not killed:
                raise RuntimeError(f"{name}: not killed")
            told[f"{name} steps"] = steps + attempt(slug, folder / name)[1]
    told |= changing(slug, folder) if case.put else {}
    (folder / "told.json").write_text(json.dumps(told))


def changing(slug: str, folder: Path) -> dict:
    """The part of `told.json` on data that change."""
    put, root, place = CASES[slug].put, folder / "data", folder / "changing" / "run"
    os.environ["KDNOTES_DATA"] = str(root)
    why, manifests, numbers = [], [], []
    for number in (0, 1):
        name = put(root, number)
        why += [outdated(place, data_root=root)] if number else []
        attempt(slug, place.parent, dataset=name)
        why.append(outdated(place, data_root=root))
        manifests.append(read_manifest(place))
        numbers.append((place / "results.csv").read_text())

    def both() -> None:
        for number in (0, 1):
            execute(slug, folder / "same", put(root, number))
            shutil.copy(folder / "same" / "run" / "results.csv", folder / f"same-{number}.csv")

    in_child(both)
    same = [(folder / f"same-{number}.csv").read_text() for number in (0, 1)]
    return {"outdated": why, "manifests": manifests, "numbers": numbers, "same process": same}


def execute(slug: str, folder: Path, dataset: str = "") -> None:
    """What the notebook does: begin, run, finish."""
    paper, case = module_of(slug), CASES[slug]
    overrides = case.few if not dataset else case.own if case.named == "dataset" else case.own | {case.named: dataset}
    parameters = {"profile": "smoke", "dataset": dataset if case.named == "dataset" else "", "seeds": "0", "device": "cpu", "precision": "fp32",
                  "out": str(folder / "run"), "overrides": overrides}
    experiment = Experiment.begin(slug, paper.Config, parameters)
    case.run(paper, experiment)
    experiment.finish(paper.run)


def warm(slug: str, root: Path) -> None:
    """Let all children find what every run needs: modules and prints of the code."""
    experiment = Experiment.alone(slug, few_of(slug), root)
    planner = Planner(experiment.here)
    for row in CASES[slug].rows(module_of(slug), experiment.config):
        planner.node(row.stage)
        room.code_print(*room._functions(row.measure))
    room.code_print(module_of(slug).run)


def attempt(slug: str, folder: Path, dataset: str = "", after_stages: int = 0, after_steps: int = 0, after_checkpoints: int = 0) -> tuple[bool, int]:
    """Run, or go on with a run, in a child that kills itself after so many stages, optimiser steps or checkpoints; whether it did, and its steps."""
    folder.mkdir(parents=True, exist_ok=True)
    count = folder / "steps"

    def work() -> None:
        with open(count, "wb", buffering=0) as steps:
            die_in_time(steps, after_stages, after_steps, after_checkpoints)
            execute(slug, folder, dataset)

    killed = in_child(work)
    return killed, count.stat().st_size


def die_in_time(steps: object, after_stages: int, after_steps: int, after_checkpoints: int) -> None:
    """Write a byte to `steps` for each optimiser step, and send SIGKILL to this process when it is time. No code that a key knows is replaced."""
    store, replace, done = room.store, os.replace, {"stages": 0, "steps": 0, "checkpoints": 0}
    last = {"stages": after_stages, "steps": after_steps, "checkpoints": after_checkpoints}

    def count(what: str) -> None:
        done[what] += 1
        if done[what] == last[what]:
            os.kill(os.getpid(), signal.SIGKILL)

    def stored(path: Path, value: object) -> object:
        found = store(path, value)
        count("stages")
        return found

    def stepped(*_: object) -> None:
        steps.write(b".")
        count("steps")

    def replaced(source: object, target: object) -> None:
        replace(source, target)
        if str(target).endswith(".resume"):
            count("checkpoints")

    room.store, os.replace = stored, replaced
    register_optimizer_step_post_hook(stepped)


def in_child(work: Callable[[], None]) -> bool:
    """Do `work` in a forked child; whether it was killed. RuntimeError if it failed."""
    sys.stdout.flush(), sys.stderr.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a run ended with status {ended}")
    return ended == -signal.SIGKILL


if __name__ == "__main__":
    processes(sys.argv[1], Path(sys.argv[2]))
