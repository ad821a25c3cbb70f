"""Code prints: what does not change what code does changes nothing, and an edit changes what reaches it and nothing else."""
import ast
import importlib
import importlib.util
import json
import logging
import random
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest

import kdnotes
from kdnotes import prints
from kdnotes.checks import refused
from kdnotes.experiment import Stage
from kdnotes.parallel import parallel_map
from kdnotes.prints import LEFT_OUT, changed_since, code_parts, code_print, counts, differing, notebook_parts, notebook_print


def cell(source: str, **names: object) -> dict:
    """The names that a cell of a notebook defines."""
    space = {"__name__": "__main__"} | names
    exec(compile(textwrap.dedent(source), "<cell>", "exec"), space)
    return space


def print_of(source: str, *names: str) -> str:
    return code_print(*(cell(source)[name] for name in names or ("train",)))


# --- what changes nothing ---

PLAIN = '''
def train(x, steps=3):
    total = 0
    for i in range(steps):
        try:
            total += x if i % 2 else -x
        except ValueError:
            total = None
    return total

class Net:
    rate = 0.1

    def forward(self, x):
        def inner(y):
            return self.rate * y
        return [inner(z) for z in x if z]
'''
SAME = '''
# a comment
"""A module."""


def train(x, steps=3):
    """Doc.

    More.
    """
    total = 0   # here


    for i in range(
        steps
    ):
        # what follows is guarded
        try:

            total += (x if i % 2
                      else -x)
        except ValueError:
            total = None
    return (
        total)

class Net:
    """A net."""

    rate = 0.1   # per step

    def forward(self, x: "a tensor") -> list:
        """Doc."""
        def inner(y):
            """Doc."""
            return self.rate * y
        return [inner(z)
                for z in x
                if z]
'''


def test_comments_docstrings_blank_and_moved_lines_change_nothing():
    assert print_of(PLAIN, "train", "Net") == print_of(SAME, "train", "Net")
    assert print_of(PLAIN) == print_of("\n" * 50 + PLAIN)


@pytest.mark.parametrize("before, after", [
    ("x if", "2 * x if"), ("range(steps)", "range(steps + 1)"), ("steps=3", "steps=4"), ("ValueError", "KeyError"), ("0.1", "0.2"), ("-x", "+x"),
    ("self.rate * y", "self.rate / y"), ("if z", "if not z"), ("rate = 0.1", "rate = 1e-1 + 1e-9"), ("total = None", "total = False"),
    ("        try:\n            total += x if i % 2 else -x\n", "        total += x if i % 2 else -x\n        try:\n            pass\n"),
    ("def train(x, steps=3)", "def train(x, *, steps=3)"), ("def train", "async def train"),
])
def test_whatever_changes_what_code_does_changes_the_print(before, after):
    assert before in PLAIN
    assert print_of(PLAIN, "train", "Net") != print_of(PLAIN.replace(before, after, 1), "train", "Net")


def test_what_is_guarded_by_a_try_counts():
    first = "def train():\n    try:\n        a()\n        b()\n    except ValueError:\n        c()\n"
    second = "def train():\n    a()\n    try:\n        b()\n    except ValueError:\n        c()\n"
    assert print_of(first) != print_of(second)


# --- ways in which an edited loss is reached; `train` reaches it, `other` does not ---

WAYS = {
    "direct call": "def train(): return loss(1)",
    "dictionary": "TABLE = {'a': loss}\ndef train(name): return TABLE[name](1)",
    "list": "TABLE = [loss]\ndef train(): return TABLE[0](1)",
    "tuple": "TABLE = (1, (loss, 2))\ndef train(): return TABLE[1][0](1)",
    "set": "TABLE = {loss}\ndef train(): return [f(1) for f in TABLE]",
    "closure": "def outer(f):\n    def train(): return f(1)\n    return train\ntrain = outer(loss)",
    "default argument": "def train(f=loss): return f(1)",
    "keyword default": "def train(*, f=loss): return f(1)",
    "partial": "import functools\ntrain = functools.partial(print, loss)",
    "partial of it": "import functools\nPART = functools.partial(loss, 1)\ndef train(): return PART()",
    "lru_cache": "import functools\nkept = functools.lru_cache(maxsize=3)(loss)\ndef train(): return kept(1)",
    "cache": "import functools\n@functools.cache\ndef kept(x): return loss(x)\ndef train(): return kept(1)",
    "singledispatch": "import functools\n@functools.singledispatch\ndef by(x): return 0\n@by.register\ndef _(x: int): return loss(x)\ndef train(): return by(1)",
    "singledispatchmethod": "import functools\nclass A:\n    @functools.singledispatchmethod\n    def by(self, x): return 0\n    @by.register\n"
                            "    def _(self, x: int): return loss(x)\ndef train(): return A().by(1)",
    "property": "class A:\n    @property\n    def value(self): return loss(1)\ndef train(): return A().value",
    "cached_property": "import functools\nclass A:\n    @functools.cached_property\n    def value(self): return loss(1)\ndef train(): return A().value",
    "setter": "class A:\n    @property\n    def v(self): return 1\n    @v.setter\n    def v(self, x): loss(x)\ndef train(): A().v = 1",
    "classmethod": "class A:\n    @classmethod\n    def value(cls): return loss(1)\ndef train(): return A.value()",
    "staticmethod": "class A:\n    @staticmethod\n    def value(): return loss(1)\ndef train(): return A.value()",
    "static attribute": "class A:\n    value = staticmethod(loss)\ndef train(): return A.value()",
    "base class": "class A:\n    def value(self): return loss(1)\nclass B(A): pass\ndef train(): return B().value()",
    "metaclass": "class M(type):\n    def value(cls): return loss(1)\nclass B(metaclass=M): pass\ndef train(): return B.value()",
    "instance": "class A:\n    def value(self): return loss(1)\nONE = A()\ndef train(): return ONE.value()",
    "attribute of an instance": "class A:\n    def __init__(self): self.f = loss\nONE = A()\nA.__init__ = lambda self: None\ndef train(): return ONE.f(1)",
    "slot of an instance": "class A:\n    __slots__ = ('f',)\nONE = A()\nONE.f = loss\ndef train(): return ONE.f(1)",
    "bound method": "class A:\n    def value(self): return loss(1)\nmethod = A().value\ndef train(): return method()",
    "dataclass default": "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass A:\n    f: object = loss\ndef train(): return A().f(1)",
    "default_factory": "from dataclasses import dataclass, field\n@dataclass\nclass A:\n    v: int = field(default_factory=lambda: loss(1))\ndef train(): return A()",
    "method of a dataclass": "from dataclasses import dataclass\n@dataclass(frozen=True, slots=True)\nclass A:\n    def v(self): return loss(1)\ndef train(): return A().v()",
    "own comparison of a dataclass": "from dataclasses import dataclass\n@dataclass\nclass A:\n    def __eq__(self, other): return loss(1)\ndef train(): return A() == 1",
    "method of a named tuple": "from typing import NamedTuple\nclass A(NamedTuple):\n    x: int\n    def v(self): return loss(1)\nONE = A(1)\ndef train(): return ONE.v()",
    "enum": "import enum\nclass A(enum.Enum):\n    ONE = 1\n    def v(self): return loss(1)\ndef train(): return A.ONE.v()",
    "wraps, inside": "import functools\ndef deco(f):\n    @functools.wraps(f)\n    def inner(*a): return f(*a)\n    return inner\n@deco\ndef step(): return loss(1)\n"
                     "def train(): return step()",
    "wraps, outside": "import functools\ndef deco(f):\n    @functools.wraps(f)\n    def inner(*a): return loss(f(*a))\n    return inner\n@deco\ndef step(): return 1\n"
                      "def train(): return step()",
    "wraps of something installed": "import functools, json\n@functools.wraps(json.dumps)\ndef step(): return loss(1)\ndef train(): return step()",
    "installed decorator": "import torch\n@torch.no_grad()\ndef step(): return loss(1)\ndef train(): return step()",
    "contextmanager": "from contextlib import contextmanager\n@contextmanager\ndef step(): yield loss(1)\ndef train():\n    with step() as v: return v",
    "lambda in a table": "TABLE = {'a': lambda: loss(1)}\ndef train(): return TABLE['a']()",
    "autograd.Function": "import torch\nclass F(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x): return x\n    @staticmethod\n"
                         "    def backward(ctx, g): return loss(g)\ndef train(): return F.apply(1)",
    "nn.Module": "import torch\nclass N(torch.nn.Module):\n    def forward(self, x): return loss(x)\ndef train(): return N()(1)",
    "nested function": "def train():\n    def inner():\n        return loss(1)\n    return inner()",
    "class inside": "def train():\n    class A:\n        v = loss(1)\n    return A",
    "comprehension": "def train(): return [loss(i) for i in range(3)]",
    "generator": "def train(): return sum(loss(i) for i in range(3))",
    "recursion": "def train(n=1): return second(n)\ndef second(n): return train(n - 1) if n else loss(n)",
    "vectorize": "import numpy\nV = numpy.vectorize(loss)\ndef train(): return V([1])",
    "function of a function": "def train(): return list(map(loss, [1]))",
    "class held in a table": "class A:\n    def v(self): return loss(1)\nTABLE = {'a': A}\ndef train(): return TABLE['a']().v()",
    "decorator that registers": "TABLE = {}\ndef register(f):\n    TABLE[f.__name__] = f\n    return f\n@register\ndef step(): return loss(1)\ndef train(n): return TABLE[n]()",
}


@pytest.mark.parametrize("way", WAYS)
def test_an_edited_loss_changes_what_reaches_it_and_nothing_else(way):
    def source(body: str) -> str:
        return f"def loss(x=0): return {body}\n{WAYS[way]}\ndef other(): return 5\nclass Other:\n    def step(self): return other()\n"

    before, after = cell(source("x")), cell(source("x * x"))
    assert code_print(before["train"]) != code_print(after["train"])
    assert code_print(before["other"], before["Other"]) == code_print(after["other"], after["Other"])
    assert code_print(before["train"]) == code_print(cell("\n\n" + source("x"))["train"]), "the same code has the same print"
    assert differing(code_parts(before["train"]), code_parts(after["train"])) == ["loss"], "the change is named"


@pytest.mark.parametrize("before, after", [
    ("RATE = 1", "RATE = 2"), ("RATE = 1", "RATE = 1.0"), ("RATE = 1", "RATE = True"), ("RATE = 'a'", "RATE = 'b'"), ("RATE = (1, 2)", "RATE = (2, 1)"),
    ("RATE = {'a': 1}", "RATE = {'a': 2}"), ("RATE = {'a': 1, 'b': 2}", "RATE = {'b': 2, 'a': 1}"), ("RATE = {1, 2}", "RATE = {1, 3}"),
    ("RATE = torch.zeros(3)", "RATE = torch.tensor([0., 0., 1e-9])"), ("RATE = numpy.zeros(3)", "RATE = numpy.ones(3)"), ("RATE = 1j", "RATE = 2j"),
    ("RATE = numpy.float32(1)", "RATE = numpy.float64(1)"), ("RATE = range(3)", "RATE = range(4)"), ("RATE = slice(3)", "RATE = slice(4)"),
    ("RATE = re.compile('a')", "RATE = re.compile('a', re.I)"), ("RATE = P(1)", "RATE = P(2)"), ("RATE = N(1)", "RATE = N(2)"), ("RATE = E.A", "RATE = E.B"),
    ("RATE = S(1)", "RATE = S(2)"), ("RATE = operator.itemgetter(1)", "RATE = operator.itemgetter(2)"), ("RATE = torch.float32", "RATE = torch.float64"),
    ("RATE = torch.nn.Linear(2, 2); torch.nn.init.zeros_(RATE.weight)", "RATE = torch.nn.Linear(2, 2); torch.nn.init.ones_(RATE.weight)"),
    ("RATE = torch.nn.Sequential(torch.nn.ReLU())", "RATE = torch.nn.Sequential(torch.nn.GELU())"), ("RATE = torch.relu", "RATE = torch.sigmoid"),
    ("RATE = {'a': 1}.get", "RATE = {'a': 2}.get"), ("RATE = Metres(1)", "RATE = Metres(2)"), ("RATE = Path('a')", "RATE = Path('b')"),
    ("RATE = functools.partial(print, 1)", "RATE = functools.partial(print, 2)"), ("RATE = decimal.Decimal(1)", "RATE = decimal.Decimal(2)"),
])
def test_a_constant_of_the_module_counts(before, after):
    source = """
    import decimal, enum, functools, operator, re, numpy, torch
    from dataclasses import dataclass
    from pathlib import Path
    from typing import NamedTuple
    torch.manual_seed(0)
    class N(NamedTuple):
        x: int
    @dataclass(frozen=True)
    class P:
        x: int
    @dataclass(frozen=True, slots=True)
    class S:
        x: int
    class E(enum.Enum):
        A, B = 1, 2
    class Metres(float):
        pass
    {}
    def train(x): return RATE
    def other(x): return x
    """
    first, again, second = (cell(textwrap.dedent(source).format(text)) for text in (before, before, after))
    assert code_print(first["train"]) == code_print(again["train"]) != code_print(second["train"])
    assert code_print(first["other"]) == code_print(second["other"])


def test_the_default_of_a_named_tuple_counts():
    source = "from typing import NamedTuple\nclass A(NamedTuple):\n    x: int = {}\ndef train(): return A()"
    assert print_of(source.format(1)) != print_of(source.format(2))


def test_a_lambda_is_its_own_code_not_its_line():
    source = "TABLE = {{'a': (lambda x: {}), 'b': (lambda x: {})}}\nfirst, second = TABLE.values()\ndef train(n): return TABLE[n](1)"
    before, after, swapped = (cell(source.format(*bodies)) for bodies in (("x", "-x"), ("x", "x * x"), ("-x", "x")))
    assert code_print(before["first"]) == code_print(after["first"]) and code_print(before["second"]) != code_print(after["second"])
    assert len({code_print(space["train"]) for space in (before, after, swapped)}) == 3, "and it counts which stands where"


def test_it_counts_which_of_two_things_of_one_name_stands_where():
    source = "def make(k):\n    def inner(x): return k * x\n    return inner\ndef deep(): return TABLE\ndef train(): return deep()\nTABLE = {{'a': make({}), 'b': make({})}}"
    assert print_of(source.format(1, 2)) != print_of(source.format(2, 1))
    source = "def loss(x): return x\nold = loss\ndef loss(x): return -x\nTABLE = {{'a': {}, 'b': {}}}\ndef train(): return TABLE"
    assert print_of(source.format("old", "loss")) != print_of(source.format("loss", "old"))


def test_the_order_in_which_functions_were_registered_does_not_count():
    source = "def f(): return 1\ndef g(): return 2\nTABLE = {}\ndef train(n): return TABLE[n]()\n"
    assert print_of(source + "TABLE['f'] = f\nTABLE['g'] = g") == print_of(source + "TABLE['g'] = g\nTABLE['f'] = f")


# --- modules, packages and imports ---

@pytest.fixture
def package(tmp_path, monkeypatch):
    """`package(**files)` writes the user's package `mine` and gives a function that imports one of its modules afresh."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(**files: str):
        for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
            del sys.modules[name]
        for name, text in ({"__init__": "", "losses/__init__": ""} | {k.replace("__in__", "/"): v for k, v in files.items()}).items():
            path = tmp_path / "mine" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
            for cached in path.parent.glob(f"__pycache__/{path.stem}.*"):
                cached.unlink()
        importlib.invalidate_caches()
        return importlib.import_module
    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.mark.parametrize("text", [
    "from mine.losses.x import f\ndef train(): return f()",
    "from mine.losses import x\ndef train(): return x.f()",
    "from mine import losses\nimport mine.losses.x\ndef train(): return losses.x.f()",
    "import mine.losses.x\ndef train(): return mine.losses.x.f()",
    "import mine.losses.x as way\ndef train(): return way.f()",
    "from .losses import x\ndef train(): return x.f()",
    "def train():\n    from mine.losses.x import f\n    return f()",
    "def train():\n    from mine.losses import x\n    return x.f()",
    "def train():\n    from mine import losses\n    return losses.x.f()",
    "def train():\n    import mine.losses.x\n    return mine.losses.x.f()",
    "def train():\n    import mine.losses.x as way\n    return way.f()",
    "def train():\n    from .losses.x import f\n    return f()",
    "def train():\n    from .losses import x\n    return x.f()",
    "def train():\n    from . import losses\n    return losses.x.f()",
    "from mine.losses import x\nTABLE = {'x': x}\ndef train(): return TABLE['x'].f()",
    "from mine.losses import x\ndef train(name): return getattr(x, name)()",
])
def test_code_in_other_modules_is_reached_however_it_is_imported(package, text):
    prints = []
    for body in ("1", "2", "1"):
        load = package(paper=text, losses__in__x=f"def f(): return {body}\ndef g(): return 1")
        prints.append(code_print(load("mine.paper").train))
    assert prints[0] == prints[2] != prints[1]


def test_what_a_module_holds_beside_what_is_used_does_not_count(package):
    prints = []
    for body in ("1", "2"):
        load = package(paper="from .losses import x\ndef train(): return x.f()", losses__in__x=f"def f(): return 1\ndef g(): return {body}\nG = {body}")
        prints.append(code_print(load("mine.paper").train))
    assert prints[0] == prints[1]


def test_a_notebook_and_the_module_made_of_it_have_one_print():
    source = """
    from dataclasses import dataclass
    {0}
    @dataclass(frozen=True)
    class Recipe:
        weight: float = 0.5
        def __call__(self, a, b): return self.weight * kd_loss(a, b, 4.0)
    RECIPES = {{"kd": Recipe()}}
    def train(name):
        {1}
        return RECIPES[name], point_loss, [lambda x: Recipe(x)]
    """
    source = textwrap.dedent(source)
    paper = types.ModuleType("kdnotes.papers.toy")
    paper.__package__ = "kdnotes.papers"
    code = source.format("from ..losses.distill import kd_loss", "from ..losses.relational import point_loss")
    sys.modules["kdnotes.papers.toy"] = paper
    try:
        exec(compile(code, "toy.py", "exec"), vars(paper))
        module = code_parts(paper.train)
    finally:
        del sys.modules["kdnotes.papers.toy"]
    page = cell(source.format("from kdnotes.losses.distill import kd_loss", "from kdnotes.losses.relational import point_loss"))
    assert code_parts(page["train"]) == module
    assert {"Recipe", "train", "kdnotes.losses.distill.kd_loss", "kdnotes.losses.relational.point_loss"} <= module.keys()


# --- state ---

@pytest.mark.parametrize("text", [
    "MEMORY = {}\ndef train(x):\n    if x not in MEMORY:\n        MEMORY[x] = x * x\n    return MEMORY[x]",
    "MEMORY = []\ndef train(x):\n    MEMORY.append(x)\n    return MEMORY",
    "MEMORY = None\ndef train(x):\n    global MEMORY\n    MEMORY = x\n    return MEMORY",
    "MEMORY = {}\ndef note(x): MEMORY.setdefault(x, x)\ndef train(x):\n    note(x)\n    return MEMORY",
    "class Box: pass\nMEMORY = Box()\ndef train(x):\n    MEMORY.x = x",
    "MEMORY = [1]\ndef train(x):\n    MEMORY[:] = [x]",
    "import functools\n@functools.cache\ndef train(x): return x",
    "import functools\n@functools.singledispatch\ndef train(x): return x\n@train.register\ndef _(x: str): return 1",
    "from dataclasses import dataclass\nimport functools\n@dataclass(frozen=True)\nclass A:\n    @functools.cached_property\n    def v(self): return 3\nA1 = A()\n"
    "def train(x): return A1.v",
    "import torch\nG = torch.Generator()\ndef train(x): return torch.rand(1, generator=G)",
    "import random\nG = random.Random(1)\ndef train(x): return G.gauss(0, 1)",
    "import logging\nlog = logging.getLogger('a')\ndef train(x):\n    log.setLevel(10)\n    log.addHandler(logging.NullHandler())",
])
def test_what_code_changes_while_it_runs_does_not_count(text):
    train = cell(text)["train"]
    before = code_print(train)
    train(4)
    train(5)
    assert code_print(train) == before


def test_a_log_that_is_made_louder_makes_nobody_look_at_the_code_again(monkeypatch):
    train = cell("import logging\nlog = logging.getLogger('of a test')\ndef train(x): log.info(x)")["train"]
    before = code_print(train)
    monkeypatch.setattr(logging.getLogger("of a test"), "level", 10)
    monkeypatch.setattr("kdnotes.prints.Walk", None)
    assert code_print(train) == before


def test_methods_of_a_state_count_though_what_it_holds_does_not():
    source = "class Box:\n    def get(self): return {}\nMEMORY = Box()\ndef train(x):\n    MEMORY.x = x\n    return MEMORY.get()"
    assert print_of(source.format(1)) != print_of(source.format(2))


def test_packages_of_another_environment_are_installed_too(tmp_path, monkeypatch):
    """A path file, a module system or a distribution may lead to packages that are not below our own prefix."""
    for i, (place, installed) in enumerate({"env/lib/python3.11/site-packages": True, "usr/lib/python3/dist-packages": True, "home/ann/code": False}.items()):
        name = f"borrowed_{i}_{tmp_path.name}"
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / f"{name}.py").write_text("def f(): return 1")
        monkeypatch.syspath_prepend(str(tmp_path / place))
        importlib.import_module(name)
        assert counts(name) is not installed


def test_the_environment_and_what_is_installed_do_not_count(monkeypatch):
    train = cell("from os import environ\nimport os, torch\ndef train(): return environ, os.environ, torch.nn.Linear, torch.optim.SGD")["train"]
    before = code_print(train)
    monkeypatch.setenv("KDNOTES_TEST_OF_PRINTS", "1")
    assert code_print(train) == before
    assert counts("__main__") and counts("kdnotes.losses.mmd") and counts("kdnotes.configuration") and not counts("kdnotes.batch.plan")
    assert not any(map(counts, ("torch", "torch.nn.functional", "json", "numpy", "pytest", "no.such.module", "")))


def test_what_others_register_counts_only_for_their_own_classes():
    """So a print does not depend on who was imported; `kdnotes.data.truth` registers a class of its own for fingerprints."""
    import functools

    from kdnotes import runtime
    from kdnotes.data.truth import Truth

    assert not [name for name in code_parts(runtime.fingerprint) if name.startswith("kdnotes.data.")]
    assert [name for name in code_parts(runtime.fingerprint, Truth) if name.startswith("kdnotes.data.truth.")]
    by = functools.singledispatch(cell("def by(x): return 0")["by"])
    space = cell("class Own: pass\ndef loss(x): return 1\ndef train(x): return by(x)\ndef mine(x): return by(Own())", by=by)
    before = code_print(space["train"]), code_print(space["mine"])
    by.register(space["Own"])(space["loss"])
    assert code_print(space["train"]) == before[0] and code_print(space["mine"]) != before[1]


# --- everywhere the same ---

def test_a_call_in_a_module_has_one_print_wherever_the_module_is_imported():
    body = "def f(x):\n    y = torch.exp(x) if x else torch.nn.functional.relu(x, inplace=False)\n    return [torch.sum(z) for z in y]\n"
    whole, apart = {}, {}
    exec(compile("import torch\n" + body, "module.py", "exec"), whole)
    exec("import torch", apart)
    exec(compile(body, "cell.py", "exec"), apart)
    for space in (whole, apart):
        space["f"].__module__ = "__main__"
    assert code_print(whole["f"]) == code_print(apart["f"])


def test_what_torch_puts_around_a_method_for_its_compiler_does_not_count():
    import torch

    from kdnotes.condense.study import Operations

    before = code_parts(Operations)
    assert Operations.__torch_dispatch__.__module__ == Operations.__module__
    assert " " not in before["kdnotes.condense.study.Operations.__torch_dispatch__"]     # the method, no wrapper
    with Operations() as counted:
        torch.zeros(3) + 1
    assert counted.count and code_parts(Operations) == before


def test_pickling_does_not_change_a_print():
    import cloudpickle

    space = cell("from dataclasses import dataclass\n@dataclass(frozen=True)\nclass A:\n    x: int = 1\n    def f(self): return self.x")
    before = code_print(space["A"])
    cloudpickle.dumps(space["A"]())
    assert code_print(space["A"]) == before


SCRIPT = """
import sys
for name in sys.argv[1:]:
    __import__(name)
import kdnotes.train, kdnotes.losses.relational, kdnotes.losses.distill, kdnotes.models.classifiers, kdnotes.runtime, kdnotes.models.embedders
from kdnotes.prints import code_print
print(code_print(kdnotes.train.fit, kdnotes.losses.relational.triplet_loss, kdnotes.models.classifiers.create_classifier
      if hasattr(kdnotes.models.classifiers, "create_classifier") else kdnotes.models.classifiers.ARCHITECTURES, kdnotes.runtime.fingerprint))
"""


@pytest.mark.slow
def test_the_print_is_the_same_in_every_process_whatever_was_imported_before(tmp_path):
    import os

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    orders = [("0", ()), ("1", ("kdnotes.models.convnets", "kdnotes.report")), ("random", ("kdnotes.models.embedders", "kdnotes.papers.horkd"))]
    runs = [subprocess.run([sys.executable, script, *names], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, timeout=300)
            for seed, names in orders]
    assert len({run.stdout for run in runs}) == 1 and runs[0].stdout, runs[-1].stderr


def _print_in_worker(things: list) -> list[dict]:
    return [code_parts(thing) for thing in things]


def test_a_worker_process_has_the_same_print_of_what_a_notebook_defines():
    import kdnotes.data.truth  # noqa: F401  it registers a class, and a worker has not imported it

    space = cell("""
    from dataclasses import dataclass, field
    from typing import NamedTuple
    import functools, torch
    from kdnotes.losses.distill import kd_loss
    from kdnotes.parallel import parallel_map
    import kdnotes.losses.relational as relational

    class Pair(NamedTuple):
        a: int = 1

    @dataclass(frozen=True)
    class Recipe:
        weight: float = 0.5
        parts: tuple = field(default_factory=lambda: (1, 2))

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x): return x
        @staticmethod
        def backward(ctx, g): return helper(g)

    class Base:
        def helper(self): return helper(1)

    class Student(Base):
        rate = 0.1
        def build(self):
            super().helper()
            return [kd_loss, relational.point_loss, RECIPES, Square, parallel_map, Pair()]

    def helper(x): return x * SCALE
    SCALE = torch.ones(3)
    RECIPES = {"a": Recipe(), "b": lambda x: helper(x)}
    """)
    things = [space["Student"], space["Student"].build, space["Recipe"]]
    here = _print_in_worker(things)
    there = parallel_map(_print_in_worker, [things, things], workers=2)
    assert [[differing(a, b) for a, b in zip(here, other, strict=True)] for other in there] == [[[]] * 3] * 2
    assert there == [here, here]


@pytest.mark.long
def test_a_worker_process_has_the_same_print_of_the_stages_of_a_notebook():
    """The attributes of a class arrive there in another order than they were written in."""
    space = cell("""
    import functools
    from collections.abc import Mapping
    from dataclasses import dataclass
    from typing import ClassVar
    from kdnotes.experiment import Stage

    @dataclass(frozen=True)
    class Recipe:
        weight: float = 0.5
        ORDER: ClassVar[tuple] = ("z", "a")
        @property
        def twice(self): return 2 * self.weight
        @functools.cached_property
        def half(self): return self.weight / 2
        @staticmethod
        def named(): return 3
        def between(self): return self.half

    class Common(Stage):
        zeal: ClassVar[float] = 0.1
        def open(self, kept, here): return kept
        @property
        def keys(self): return ("a",)

    @dataclass(frozen=True)
    class Below(Common):
        recipe: Recipe
        def build(self, parents, here, checkpoint): return self.recipe.twice
        def after(self): return 3

    @dataclass(frozen=True)
    class Above(Common):
        below: Below
        @property
        def seed(self): return 0
        def build(self, parents, here, checkpoint): return self.keys
        def needs(self): return {"below": self.below}
        before: ClassVar[dict] = {"z": 1, "a": 2}
    """)
    below = space["Below"](space["Recipe"]())
    stages = [below, space["Above"](below)]
    assert parallel_map(_codes_of_stages, [stages, stages], workers=2) == [_codes_of_stages(stages)] * 2


def _codes_of_stages(stages: list) -> list[dict[str, str]]:
    from kdnotes.experiment import code_of

    return [code_parts(*code_of(stage)) for stage in stages]


def test_a_print_is_quick_and_does_not_change_by_running(tmp_path):
    import torch

    from kdnotes import train
    from kdnotes.papers import horkd

    before = code_print(horkd.run)
    started = time.process_time()
    code_print(horkd.run)
    assert time.process_time() - started < 2
    train.fit  # noqa: B018  what follows runs some of what was printed
    parallel_map(torch.sqrt, [torch.ones(1)] * 2, workers=1)
    assert code_print(horkd.run) == before


# --- what is left out ---

ALLOWED = {"torch": {"device", "load", "save", "Tensor", "dtype", "cuda", "get_num_threads", "nn", "layout", "strided", "ops", "classes", "manual_seed", "set_num_threads"},
           "np": {"generic", "ndarray", "ufunc", "asarray", "isscalar"}}
STATISTICS = {"kdnotes.results", "kdnotes.report", "kdnotes.plots", "kdnotes.batch"}     # they describe numbers that are made already


def source_of(module: str) -> list[Path]:
    spec = importlib.util.find_spec(module)
    return sorted(Path(spec.origin).parent.glob("*.py")) if spec.submodule_search_locations else [Path(spec.origin)]


@pytest.mark.parametrize("room", LEFT_OUT)
def test_no_room_that_is_left_out_can_change_a_number(room):
    """It computes nothing with tensors and draws nothing; and nothing that counts takes more from it than files, checks, bars and descriptions."""
    for path in source_of(room):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {(node.value.id, node.attr) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
        taken = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} | {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not {"random", "torch.nn.functional"} & taken, path
        assert not any(name.split(".")[0] in ("losses", "metrics", "models", "condense", "privacy") for name in taken), path
        if room not in STATISTICS:
            assert not {(name, attr) for name, attr in used if attr not in ALLOWED.get(name, {attr})}, path


# --- notebooks ---

@pytest.fixture
def page(tmp_path):
    """`page(*cells)` writes a notebook and gives its print; a cell may be a pair of text and tag."""
    def write(*cells) -> str:
        made = [{"cell_type": "code", "metadata": {"tags": [c[1]]} if isinstance(c, tuple) else {}, "source": [c[0] if isinstance(c, tuple) else c]} for c in cells]
        (tmp_path / "page.ipynb").write_text(json.dumps({"cells": made + [{"cell_type": "markdown", "metadata": {}, "source": ["text"]}]}))
        return notebook_print(tmp_path / "page.ipynb")
    return write


@pytest.mark.parametrize("cells, same", [
    (("x = 1  # one",), True), (('"""Doc."""\nx = 1',), True), (("x = 2",), False), (("x = 1", "y = 1"), False),
    (("x = 1", ("profile = 'a'", "parameters"), ("profile = 'b'", "injected-parameters")), True),
    (("%%time\nx = 1",), True), (("%%time\nx = 2",), False), (("%%capture out\nx = 1",), True),
])
def test_a_notebook_is_printed_by_what_its_cells_do(page, cells, same):
    assert (page(*cells) == page("x = 1")) is same


def test_magics_are_read(page):
    assert page("%matplotlib inline\nx = 1") != page("%matplotlib inline\nx = 2")
    assert page("x = (7\n% 4)") != page("x = (7\n% 5)"), "a line that begins with % may go on with a sum"
    assert page("!ls\nfiles = !ls\nx?") == page("!ls\n\nfiles = !ls\nx?")


@pytest.mark.parametrize("text", ["from kdnotes.losses.distill import kd_loss", "from kdnotes.losses.distill import kd_loss as loss",
                                  "from kdnotes.losses import distill\ndistill.kd_loss", "from kdnotes import losses as L\nL.distill.kd_loss",
                                  "import kdnotes.losses.distill\nkdnotes.losses.distill.kd_loss", "import kdnotes.losses.distill as d\nd.kd_loss",
                                  "from kdnotes.losses.distill import *"])
def test_a_notebook_is_printed_with_what_it_imports(page, monkeypatch, text):
    from kdnotes.losses import distill

    before = page(text), page("from kdnotes.losses.mmd import mmd2"), page("from kdnotes.losses.distill import hint_loss")
    changed = cell("def kd_loss(student, teacher): return 0", __name__="kdnotes.losses.distill")["kd_loss"]
    monkeypatch.setattr(distill, "kd_loss", changed)
    after = page(text), page("from kdnotes.losses.mmd import mmd2"), page("from kdnotes.losses.distill import hint_loss")
    assert after[0] != before[0] and after[1:] == before[1:]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"cells": 3}', b'{"cells": [{"cell_type": "code"}]}', b"\xff\xfe", b'{"cells": [null]}',
                                     json.dumps({"cells": [{"cell_type": "code", "metadata": {}, "source": ["def f(:\n  x"]}]}).encode()])
def test_a_damaged_notebook_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "page.ipynb"
    path.write_bytes(content)
    assert "cannot be read as a notebook" in refused(notebook_print, path)


def test_imports_that_are_not_there_are_no_error(page):
    assert page("from kdnotes.no_such_module import a\nfrom kdnotes.losses.distill import no_such_loss\nimport no_such_package")


def test_exported_names():
    assert {"code_print", "code_parts", "notebook_print", "differing", "changed_since", "LEFT_OUT"} <= set(prints.__all__)


# --- what has changed, by name ---

def test_a_change_in_a_notebook_is_named(page, tmp_path):
    def parts(*cells) -> dict:
        page(*cells)
        return notebook_parts(tmp_path / "page.ipynb")

    loss, train = "def loss(x):\n    return x", "from kdnotes.losses.distill import kd_loss\nrate = 1\ntrain(loss, rate)"
    before = parts(loss, train)
    assert "kdnotes.losses.distill.kd_loss" in before
    assert differing(before, parts(loss + "  # the same", train)) == []
    assert differing(before, parts(loss + " + 1", train)) == ["loss"]
    assert differing(before, parts(loss, train.replace("1", "2"))) == ["cell 'from kdnotes.losses.distill import kd_lo...'"]
    moved = parts(train, loss)
    assert differing(before, moved) == [] and moved["given"] != before["given"], "the order of cells counts, but has no name"


@pytest.mark.parametrize("slug", sorted(p.stem for p in Path(kdnotes.__file__).parent.glob("papers/[!_]*.py")))
def test_code_that_did_not_change_is_not_named(slug):
    """Whatever the walk began with: each class of a paper and of its rooms is compared with all that it reaches."""
    module = importlib.import_module(f"kdnotes.papers.{slug}")
    stages = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Stage) and kind is not Stage]
    for things in ([module.run, module.claims], *([kind] for kind in stages)):
        noted = code_parts(*things)
        assert changed_since(noted, module.__name__) == []


def test_code_that_changed_or_is_gone_is_named(monkeypatch):
    from kdnotes.losses import distill
    from kdnotes.papers import horkd

    noted, old = code_parts(horkd.run), distill.kd_loss
    edited = cell("def kd_loss(student, teacher): return 0", __name__="kdnotes.losses.distill")["kd_loss"]
    for module in [m for name, m in sys.modules.items() if name.startswith("kdnotes.") and getattr(m, "kd_loss", None) is old]:
        monkeypatch.setattr(module, "kd_loss", edited)
    monkeypatch.setattr(horkd, "hybrid", cell("def hybrid(losses, orders, labels, targets='teacher'): return 1", __name__=horkd.__name__)["hybrid"])
    monkeypatch.delattr(horkd, "titled")
    assert {"hybrid", "titled", "kdnotes.losses.distill.kd_loss"} <= set(changed_since(noted, horkd.__name__)) <= set(noted)
    assert changed_since(noted | {"no_such.module.f": "1", "of_a_cell": "2"}) == ["kdnotes.losses.distill.kd_loss"], "unknown homes are left out"


# --- prints that are asked for again ---

CHANGES = {
    "a function of the module": "def loss(x): return 2 * x",
    "the code of a function": "loss.__code__ = (lambda x: 3 * x).__code__",
    "a default": "loss.__defaults__ = (5,)",
    "a method": "A.f = lambda self: 7",
    "a method of the base": "B.g = lambda self: 7",
    "an entry of a table": "TABLE['b'] = loss",
    "an entry of a list": "LIST.append(loss)",
    "a number": "RATE = 2",
    "a tensor, in place": "WEIGHTS.add_(1)",
    "an attribute of an object": "ONE.rate = 4",
    "what a closure holds": "set_it(9)",
    "a function of another module": "import types; mine.f = lambda: 8",
    "a name that was not there": "def absent(): return 1",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_print_that_is_asked_for_again_is_that_of_the_code_as_it_is(change):
    module = types.ModuleType("mine_in_memory")
    module.__file__ = "/mine/in_memory.py"
    module.f = cell("def f(): return 1", __name__="mine_in_memory")["f"]
    sys.modules["mine_in_memory"] = module
    try:
        space = cell("""
        import torch
        def loss(x=1): return x
        class B:
            def g(self): return 1
        class A(B):
            def f(self): return 1
        TABLE, LIST, RATE, WEIGHTS, ONE = {"a": loss}, [loss], 1, torch.ones(2), A()
        def closure():
            held = 1
            def get(): return held
            def set_it(x):
                nonlocal held
                held = x
            return get, set_it
        get, set_it = closure()
        def train():
            absent
            return loss(), A(), TABLE, LIST, RATE, WEIGHTS, ONE.f(), get(), mine.f()
        """, mine=module)
        first = code_print(space["train"])
        assert code_print(space["train"]) == first
        exec(CHANGES[change], space)
        assert code_print(space["train"]) != first
    finally:
        del sys.modules["mine_in_memory"]


HANGING_TOGETHER = """
import functools

TABLE = {}
LISTS = [TABLE, [0]]

def first(x): return TABLE["second"](x) + LISTS[1][0]
def second(x): return first(x - 1) if x else third(TABLE)
def third(x): return len(x) and Kind.named["first"](0)
def memory(x):
    SEEN.append(x)
    return second(x)
def of_kind(x): return choose(Kind())

class Kind:
    named = TABLE
    def __call__(self): return third(self.named)

SEEN = []
TABLE |= {"first": first, "second": second, "kind": Kind, "kept": functools.cache(third), "part": functools.partial(second, 3)}

@functools.singledispatch
def choose(x): return first(x)

@choose.register
def _(x: Kind): return memory(x)
"""


def alone(thing: object) -> str:
    """The print of a thing by a walk that knows of no other."""
    prints._walks.clear()
    prints._visits.clear()
    return code_print(thing)


@pytest.mark.parametrize("seed", range(20))
def test_a_print_does_not_depend_on_what_was_printed_before(seed):
    """Tables hold functions that name the tables: what a walk leaves for the next must not know from where it came."""
    space = cell(HANGING_TOGETHER)
    things = [space[name] for name in ("first", "second", "third", "memory", "of_kind", "Kind", "choose", "TABLE", "LISTS")]
    expected = [alone(thing) for thing in things]
    random.Random(seed).shuffle(order := list(range(len(things))))
    prints._walks.clear()
    prints._visits.clear()
    assert [code_print(things[i]) for i in order] == [expected[i] for i in order]
    space["LISTS"][1][0] = 1                                   # what is deep in a constant
    assert code_print(space["first"]) != expected[0] == alone(cell(HANGING_TOGETHER)["first"])
    assert [code_print(things[i]) for i in order] == [alone(things[i]) for i in order]


@pytest.mark.long
def test_the_stages_of_a_paper_have_the_prints_that_each_has_alone():
    paper = importlib.import_module("kdnotes.papers.horkd")
    things = [getattr(paper, name) for name in paper.__all__ if callable(getattr(paper, name))]
    together = [code_print(thing) for thing in things]
    assert together == [code_print(thing) for thing in reversed(things)][::-1] == [alone(thing) for thing in things]


def test_the_walk_of_a_checkpoint_and_that_of_the_keys_leave_each_other_nothing():
    """A checkpoint's walk passes over the numbers in a list, which a key counts: neither may find the other's reading."""
    from kdnotes.data.truth import Truth                            # its code reads a list of its module
    from kdnotes.train import Reached

    def plan():
        walk = Reached()
        walk.reach(Truth.known)
        return walk.prints()

    key, noted = alone(Truth.known), plan()
    prints._walks.clear(), prints._visits.clear()
    assert plan() == noted and code_print(Truth.known) == key == alone(Truth.known) and plan() == noted


def test_a_print_that_is_asked_for_again_is_quick():
    from kdnotes.papers import horkd

    code_print(horkd.run)
    started = time.process_time()
    for _ in range(10):
        code_print(horkd.run)
    assert time.process_time() - started < 1
