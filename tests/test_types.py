"""What a user's type checker sees of the package: whole signatures, also behind decorators, and wrong calls refused before they run."""
import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import kdnotes

PACKAGE = Path(kdnotes.__file__).parent
SCRIPT = '''
from typing import assert_type

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdnotes.condense.learn import condense
from kdnotes.condense.synthetic import SyntheticSet
from kdnotes.data.images import ImageSet, load
from kdnotes.losses.contrastive import CRDLoss, info_nce
from kdnotes.losses.distill import hint_loss, kd_loss
from kdnotes.losses.relational import group_loss, pair_loss, point_loss, triplet_loss
from kdnotes.metrics.verify import kfold_accuracy
from kdnotes.models import Prediction, as_predictor
from kdnotes.models.adapt import FaceBN
from kdnotes.models.classifiers import build

student, teacher = torch.randn(8, 4, requires_grad=True), torch.randn(8, 16)
loss = 25 * pair_loss(student, teacher) + 50 * triplet_loss(student=student, teacher=teacher, delta=0.5)
assert_type(triplet_loss(student, teacher), Tensor)
assert_type(pair_loss(student, teacher), Tensor)
assert_type(group_loss(student, teacher), Tensor)
assert_type(kd_loss(student, student), Tensor)
digits = load("digits", "train")
assert_type(digits, ImageSet)
assert_type(condense(digits, ipc=1, method="dm"), SyntheticSet)
net = as_predictor(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
loader = DataLoader(TensorDataset(digits.images, digits.labels), batch_size=8)
with FaceBN(build("resnet8", classes=10, channels=1, size=8)) as face:
    face.adapt(loader)

triplet_loss(student)                                    # wrong: no teacher
triplet_loss(student, teacher, 1.0, 2.0, 3.0, 4.0, 5.0)  # wrong: too many
triplet_loss(student, "teacher")                         # wrong: a text
triplet_loss(student, teacher, detla=0.5)                # wrong: misspelt
pair_loss(student, pupil=teacher)                        # wrong: misspelt
kd_loss(student, student, temperature="hot")             # wrong: a text
load("digits")                                           # wrong: no split
condense(digits, ipc="one")                              # wrong: a text
CRDLoss(4, 16)                                           # wrong: no keys
nothing: int = load("digits", "test")                    # wrong: an image set
'''


def mypy(*arguments: str, cwd: Path) -> list[str]:
    """The errors that mypy finds; what it knows of PyTorch is kept between calls, in the checkout's `.mypy_cache`."""
    pytest.importorskip("mypy", reason="mypy is not installed: pip install -e '.[dev]'")
    command = [sys.executable, "-m", "mypy", "--config-file", str(PACKAGE.parent / "pyproject.toml"), "--cache-dir", str(PACKAGE.parent / ".mypy_cache")]
    environment = os.environ | {"MYPYPATH": str(PACKAGE.parent)}
    done = subprocess.run([*command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
    return [line for line in done.stdout.splitlines() if ": error: " in line]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[str]:
    """What mypy says of a user's script and of the whole package, in one call."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "script.py").write_text(SCRIPT)
    return mypy("--disallow-untyped-defs", str(folder / "script.py"), str(PACKAGE), cwd=folder)


@pytest.mark.slow
def test_a_users_script_is_understood_and_wrong_calls_are_refused(found):
    wrong = {number for number, line in enumerate(SCRIPT.splitlines(), 1) if "# wrong" in line}
    refused = {int(m[1]) for line in found if (m := re.match(r"(?:.*/)?script\.py:(\d+): error", line))}
    assert refused == wrong, [line for line in found if "script.py" in line]


def public_functions(tree: ast.Module) -> dict[int, str]:
    """The names of the public functions and methods of a module, by every line of their heads."""
    heads = {}
    for outer in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))]:
        for node in outer.body:
            own = isinstance(node, ast.FunctionDef) and not (node.name.startswith("_") and node.name not in ("__init__", "__call__"))
            if own and (node.name != "__init__" or len(node.args.args) > 1):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                heads |= dict.fromkeys(range(first, node.body[0].lineno), f"{getattr(outer, 'name', '')}.{node.name}".strip("."))
    return heads


@pytest.mark.slow
def test_every_public_function_of_the_package_has_types(found):
    """The signatures, not what stands in the bodies: that is what a user's checker reads."""
    heads = {path: public_functions(ast.parse(path.read_text(encoding="utf-8"))) for path in PACKAGE.rglob("*.py")}
    wrong = []
    for line in found:
        if m := re.match(r"(.*?\.py):(\d+): error: (.*\[(?:no-untyped-def|valid-type|name-defined|type-var|override)\])", line):
            path = Path(m[1]) if Path(m[1]).is_absolute() else next((p for p in heads if str(p).endswith(m[1].lstrip("./"))), Path(m[1]))
            if name := heads.get(path, {}).get(int(m[2])):
                wrong.append(f"{path.relative_to(PACKAGE)}: {name}: {m[3]}")
    assert not wrong


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_signatures_survive_decorators():
    """At run time too: what `help` shows are the function's own arguments and types."""
    for room in ("losses", "metrics", "models", "data"):
        for path in sorted((PACKAGE / room).glob("[!_]*.py")):
            module = importlib.import_module(f"kdnotes.{room}.{path.stem}")
            for name in getattr(module, "__all__", ()):
                thing = inspect.unwrap(getattr(module, name)) if inspect.isfunction(getattr(module, name)) else None
                if thing is not None and getattr(module, name) is not thing:
                    assert inspect.signature(getattr(module, name)) == inspect.signature(thing), name
                    assert typing.get_type_hints(getattr(module, name), vars(module)) == typing.get_type_hints(thing, vars(module)), name
