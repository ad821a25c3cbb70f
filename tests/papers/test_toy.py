"""A paper number seven: its notebook, its data and its loss are all that it takes. Run by papermill from parameters to verdicts."""
import json
import os
from pathlib import Path

import pandas as pd
import pytest

CELLS = ['''
from dataclasses import dataclass
import torch
from kdnotes.config import Settings, section, setting
from kdnotes.experiment import Data, Experiment, Row, Stage, Study
from kdnotes.results import Claim, compare
from kdnotes.runtime import make_generator
''', '''
def shrink(teacher, weight):
    """The loss of the toy: a student is its teacher, shrunk."""
    return teacher * (1 - weight)
''', '''
@dataclass(frozen=True)
class Training:
    weight: float = setting(0.5, "ours", "how much a student shrinks", at_least=0, below=1)

@dataclass(frozen=True)
class Config(Settings):
    training: Training = section(Training)

Config.PROFILES = {"smoke": {"seeds": (0, 1)}, "demo": {}}
''', '''
@dataclass(frozen=True)
class Points(Data):
    """100 numbers about 1."""
    seed: int

    def load(self):
        return 1 + torch.randn(100, generator=make_generator(self.seed, "points"))

@dataclass(frozen=True)
class Teacher(Stage):
    points: Points
    seed: int

    def build(self, parents, here, checkpoint):
        return {"mean": here.read(self.points).mean()}

@dataclass(frozen=True)
class Student(Stage):
    teacher: Teacher
    seed: int
    weight: float

    def needs(self):
        return {"teacher": self.teacher}

    def build(self, parents, here, checkpoint):
        return {"mean": shrink(parents["teacher"]["mean"], self.weight)}

def distance(stage, made, here):
    return {"distance": abs(1 - float(made["mean"]))}

def rows(config):
    teachers = [Teacher(Points(seed), seed) for seed in config.seeds]
    students = [Student(teacher, teacher.seed, config.training.weight) for teacher in teachers]
    return [Row("toy", type(stage).__name__, stage, distance) for stage in (*teachers, *students)]

def run(experiment):
    return Study(rows(experiment.config)).run(experiment)

def claims(config):
    return [Claim("shrinking-hurts", "a shrunk student is farther off", "Teacher", "Student", "distance")]
''']
PARAMETERS = '''profile: str = "demo"    # smoke or demo
dataset: str = ""
seeds: str = ""
device: str = "cpu"
precision: str = "fp32"
out: str = ""
overrides: dict = {}'''
AFTER = ['''
experiment = Experiment.begin("toy", Config, {"profile": profile, "dataset": dataset, "seeds": seeds, "device": device,
                                              "precision": precision, "out": out, "overrides": overrides})
results = run(experiment)
''', '''
experiment.table(compare(results.frame(), None, "toy"), "toy", "The toy")
experiment.judge(claims(experiment.config))
''', '''
experiment.finish(run, claims)
''']


def write_notebook(folder: Path, cells: list[str] = CELLS) -> Path:
    import nbformat

    v4 = nbformat.v4
    code = [v4.new_code_cell(text.strip()) for text in cells]
    after = [v4.new_code_cell(text.strip()) for text in AFTER]
    book = v4.new_notebook(cells=[*code, v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), *after])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, folder / "toy.ipynb")
    return folder / "toy.ipynb"


def run_notebook(notebook: Path, **parameters: object) -> None:
    import papermill

    papermill.execute_notebook(str(notebook), str(notebook.with_suffix(".out.ipynb")), parameters=parameters, kernel_name="python3", progress_bar=False, log_output=False)


def test_the_toy_is_at_most_sixty_lines():
    assert sum(len([line for line in cell.splitlines() if line.strip()]) for cell in CELLS) <= 60


@pytest.mark.slow
def test_a_paper_number_seven_runs_from_parameters_to_verdicts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path / "data"))
    notebook = write_notebook(tmp_path)
    run_notebook(notebook, profile="smoke", out=str(tmp_path / "first"), overrides={"weight": 0.25})
    results = pd.read_csv(tmp_path / "first" / "results.csv")
    assert results.groupby("method").size().to_dict() == {"Student": 2, "Teacher": 2} and (results.profile == "smoke").all()
    manifest = json.loads((tmp_path / "first" / "manifest.json").read_text())
    assert manifest["status"] == "finished" and manifest["stages"] == {"built": 4, "read": 0} and manifest["code"]
    assert set(manifest["data"]) == {"Points(seed=0)", "Points(seed=1)"}
    claims = pd.read_csv(tmp_path / "first" / "claims.csv")
    assert len(claims) == 1 and "shrinking-hurts" in claims.iloc[0].tolist()
    assert (tmp_path / "first" / "tables" / "toy.csv").is_file()
    stages, rows = json.loads((tmp_path / "first" / "stages.json").read_text()), pd.read_csv(tmp_path / "first" / "rows.csv")
    assert len(rows) == len(results) and set(rows.stage) <= stages.keys() and len(stages) == 4

    run_notebook(notebook, profile="smoke", out=str(tmp_path / "first"), overrides={"weight": 0.25})
    assert json.loads((tmp_path / "first" / "manifest.json").read_text())["stages"] == {"built": 0, "read": 4}
    edited = [text.replace("teacher * (1 - weight)", "teacher * (1 - 2 * weight)") for text in CELLS]
    run_notebook(write_notebook(tmp_path, edited), profile="smoke", out=str(tmp_path / "first"), overrides={"weight": 0.25})
    assert json.loads((tmp_path / "first" / "manifest.json").read_text())["stages"] == {"built": 2, "read": 2}, "an edited loss retrains the students"
    again = pd.read_csv(tmp_path / "first" / "results.csv")
    assert again[again.method == "Teacher"].equals(results[results.method == "Teacher"]) and not again.equals(results)
    assert os.listdir(tmp_path / "first")
