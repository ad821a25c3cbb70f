"""Every public function and class of the rooms that strangers use, given what users bring.

The rooms' modules are walked by their `__all__`, so that what is new is tested too. Each is called with sound arguments, made by recipes for the names
of its parameters, and then with zero rows, one row, one class, equal rows, every type of numbers and of labels, tensors that are not contiguous, that
ask for a gradient, or hold a NaN or an infinity. The answer is the right value (that of the plain call, within the rounding of the type; gradients
finite) or one line of ValueError, TypeError or FileNotFoundError that the package itself raises; and nothing that was given, no global generator and
no flag is changed by it.
"""

import contextlib
import copy
import dataclasses
import functools
import importlib
import inspect
import linecache
import math
import pkgutil
import random
import runpy
import sys
import types
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kdnotes

RECIPES = types.SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("public_recipes.py"))))
World, recipe, KNOWN, KNOWN_WRONG = RECIPES.World, RECIPES.recipe, RECIPES.KNOWN, RECIPES.KNOWN_WRONG
ELSEWHERE, IN_PLACE, REFUSED_AS_IT_IS = RECIPES.ELSEWHERE, RECIPES.IN_PLACE, RECIPES.REFUSED_AS_IT_IS
NAN_IS_NO_MATTER, NAN_WITHOUT_NAN, INFINITY = RECIPES.NAN_IS_NO_MATTER, RECIPES.NAN_WITHOUT_NAN, RECIPES.INFINITY_HAS_AN_ANSWER
WRONG_IS_RIGHT, FREE, INNER = RECIPES.WRONG_IS_RIGHT, RECIPES.FREE, RECIPES.INNER
ROOMS = ("data", "models", "losses", "metrics", "condense", "privacy")
HALF = {torch.float16: 2e-3, torch.bfloat16: 2e-2}
LABELS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)


def public() -> dict[str, object]:
    """Every public function, class and method of the rooms, by its name below the package."""
    found: dict[str, object] = {}
    for room in ROOMS:
        package = importlib.import_module(f"kdnotes.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            content = importlib.import_module(module.name)
            for name in getattr(content, "__all__", ()):
                thing = getattr(content, name)
                if getattr(thing, "__module__", None) != module.name or not (inspect.isfunction(thing) or inspect.isclass(thing)):
                    continue
                found[f"{module.name}.{name}".removeprefix("kdnotes.")] = thing
    return found


def methods(name: str, thing: type) -> dict[str, object]:
    """The public methods that a class defines itself or has from a private base, and the call of an instance."""
    kinds = [kind for kind in reversed(thing.__mro__) if kind is thing or kind.__name__.startswith("_") and kind in thing.__bases__]
    given = {key: value for kind in kinds for key, value in vars(kind).items()}
    own = {key: value for key, value in given.items() if inspect.isfunction(value) and (not key.startswith("_") or key == "__call__")}
    return {f"{name}.{key}": value for key, value in own.items() if not issubclass(thing, tuple) or not key.startswith("_")}


PUBLIC = public()
EVERY = PUBLIC | {key: value for name, thing in PUBLIC.items() if inspect.isclass(thing) for key, value in methods(name, thing).items()}


# ---- what is compared


def leaves(value: object, depth: int = 0) -> list:
    """Whatever numbers and names `value` holds, in order."""
    if isinstance(value, nn.Module):
        return [value.training, *leaves(list(value.state_dict().values()), depth + 1)]
    if isinstance(value, Tensor | np.ndarray | str | bytes | int | float | None):
        return [value]
    if isinstance(value, torch.Generator | np.random.Generator) or depth > 6:
        return []
    if hasattr(value, "to_numpy"):                                # a table of pandas
        return [value.to_numpy()] if value.to_numpy().dtype != object else value.to_numpy().ravel().tolist()
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in [str(key), *leaves(item, depth + 1)]]
    if isinstance(value, list | tuple | set | frozenset):
        return [leaf for item in value for leaf in leaves(item, depth + 1)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [leaf for field in dataclasses.fields(value) for leaf in leaves(getattr(value, field.name), depth + 1)]
    if isinstance(value, types.SimpleNamespace) or type(value).__module__.startswith("kdnotes"):
        return leaves({key: item for key, item in vars(value).items() if not callable(item) or isinstance(item, nn.Module)}, depth + 1)
    return []


def numbers(value: object) -> list[Tensor]:
    """The floating-point numbers among the leaves."""
    found = [torch.as_tensor(leaf) for leaf in leaves(value) if isinstance(leaf, Tensor | np.ndarray | float)]
    return [x for x in found if x.is_floating_point()]


def kept(value: object) -> list:
    """A copy of the leaves, and of what else may not change."""
    return [(leaf.detach().clone(), leaf.requires_grad, leaf.grad) if isinstance(leaf, Tensor) else copy.copy(leaf) for leaf in leaves(value)]


def equal(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return a == b or a != a and b != b


def world_state() -> list:
    """Global generators and flags."""
    drawn = [part.tobytes() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]  # noqa: NPY002  the global one is the point
    return [torch.get_rng_state(), hash(random.getstate()), drawn, torch.get_default_dtype(),
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()]


def close(a: object, b: object, tolerance: float) -> bool:
    """Whether two results agree: numbers within the tolerance of the largest, everything else exactly."""
    one, two = leaves(a), leaves(b)
    if len(one) != len(two):
        return False
    for x, y in zip(one, two):
        if isinstance(x, Tensor | float | np.ndarray) and isinstance(y, Tensor | float | np.ndarray):
            x, y = torch.as_tensor(x).detach(), torch.as_tensor(y).detach()
            if x.shape != y.shape:
                return False
            x, y = x.double(), y.double()
            size = max(1.0, float(y[y.isfinite()].abs().max())) if y.isfinite().any() else 1.0
            if not torch.allclose(x, y, rtol=tolerance, atol=tolerance * size, equal_nan=True):
                return False
        elif not equal(x, y):
            return False
    return True


# ---- a call


class Refused(str):
    """The one line of a refusal."""


def from_here(error: BaseException) -> bool:
    """Whether the package raised the error by a statement of its own."""
    frames = []
    trace = error.__traceback__
    while trace:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno, trace.tb_frame.f_globals))
        trace = trace.tb_next
    file, line, space = frames[-1]
    own = Path(file).is_relative_to(Path(kdnotes.__file__).parent)
    return own and (linecache.getline(file, line, space).strip().startswith("raise") or "def __post_init__" in linecache.getline(file, line, space))


class Call:
    """A function, or a class, or a method, with arguments for a `World`."""

    def __init__(self, name: str):
        self.name, self.thing = name, EVERY[name]

    def arguments(self, name: str, thing: object, world: World) -> dict[str, object]:
        """Arguments of `thing` by name; those without a recipe keep their default. KeyError for a required one."""
        made = {}
        for key, parameter in inspect.signature(thing).parameters.items():
            if key == "self":
                continue
            if parameter.kind is parameter.VAR_KEYWORD:
                try:
                    made |= recipe(name, key, world)
                except KeyError:
                    pass
                continue
            try:
                made[key] = recipe(name, key, world)
            except KeyError:
                if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
                    raise
        return made

    def prepare(self, world: World) -> tuple[Callable, dict[str, object], object]:
        """What is called, with what, and on which instance."""
        owner = self.name.rpartition(".")[0]
        if owner not in PUBLIC:
            return self.thing, self.arguments(self.name, self.thing, world), None
        try:
            instance = recipe(self.name, "self", world)
        except KeyError:
            instance = PUBLIC[owner](**self.arguments(owner, PUBLIC[owner], world))
        return functools.partial(self.thing, instance), self.arguments(self.name, self.thing, world), instance

    def invoke(self, call: Callable, given: dict[str, object]) -> object:
        spread = [key for key, parameter in inspect.signature(self.thing).parameters.items() if parameter.kind is parameter.VAR_POSITIONAL]
        rest = {key: value for key, value in given.items() if key not in spread}
        positional = [value for key in spread for value in given.get(key, ())]
        if positional:
            before = [rest.pop(key) for key in list(inspect.signature(self.thing).parameters) if key in rest
                      and inspect.signature(self.thing).parameters[key].kind is not inspect.Parameter.KEYWORD_ONLY]
            value = call(*before, *positional, **rest)
        else:
            value = call(**rest)
        if isinstance(value, Iterator):
            value = list(islice(value, 100))
        if isinstance(value, contextlib._GeneratorContextManager):
            with value as inside:
                return inside
        return value


# ---- the changes


def each(value: object, change: Callable[[Tensor], Tensor]) -> object:
    """`value` with every tensor in it changed, through tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(each(item, change) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(each(item, change) for item in value)
    if isinstance(value, dict):
        return {key: each(item, change) for key, item in value.items()}
    return value


def tensors(value: object) -> list[Tensor]:
    found: list[Tensor] = []
    each(value, lambda x: found.append(x) or x)
    return found


def floating(x: Tensor) -> bool:
    return x.is_floating_point()


def to(x: Tensor, dtype: torch.dtype, back: bool = False) -> Tensor:
    """`x` in another type, or rounded to it."""
    return x.to(dtype).to(x.dtype) if back else x.to(dtype)


def strided(x: Tensor) -> Tensor:
    """The same numbers, not contiguous."""
    return x if x.numel() < 2 else torch.stack([x, torch.zeros_like(x)], dim=-1)[..., 0]


def spoilt(x: Tensor, value: float) -> Tensor:
    if not x.numel():
        return x
    x = x.clone()
    x.view(-1)[0] = value
    return x


def on(kind: Callable[[Tensor], bool], change: Callable[[Tensor], Tensor]) -> Callable[[object], object]:
    return lambda value: each(value, lambda x: change(x) if kind(x) else x)


class Trial:
    """The trials of one public thing; what went wrong is kept in `wrong`, by the kind of input."""

    def __init__(self, name: str):
        self.call, self.name, self.wrong = Call(name), name, {}
        self.builds = False

    def note(self, kind: str, text: str) -> None:
        self.wrong.setdefault(kind, text)

    def run(self, kind: str, world: World | None = None, change: Callable | None = None, only: str | None = None, options: dict | None = None) -> object:
        """The value, a `Refused`, or None where something else came out, which is noted."""
        world = world or World()
        torch.default_generator.manual_seed(0)                    # torch.manual_seed notes for a GPU where it was called: 2 ms
        try:
            call, given, instance = self.call.prepare(world)
        except (ValueError, TypeError, FileNotFoundError) as error:
            if kind == "plain":
                raise
            return Refused(error)
        if change:
            given = {key: change(value) if only in (None, key) else value for key, value in given.items()}
        given |= options or {}
        torch.default_generator.manual_seed(1)
        before, state, own = kept(given), world_state(), kept(instance)
        try:
            value = self.call.invoke(call, given)
        except (ValueError, TypeError, FileNotFoundError) as error:
            if "\n" in str(error) or not from_here(error) and not isinstance(error, FileNotFoundError):
                self.note(kind, f"{type(error).__name__} that is not ours: {str(error)[:200]!r}")
            value = Refused(error)
        except ImportError as error:                              # an extra that is not installed
            pytest.skip(str(error))
        except Exception as error:
            self.note(kind, f"{type(error).__name__}: {str(error)[:200]!r}")
            value = None
        self.unchanged(kind, given, before, state, instance, own, value)
        return value

    def unchanged(self, kind, given, before, state, instance, own, value) -> None:
        free = IN_PLACE.get(self.name, ())
        if "arguments" not in free and not all(map(equal, before, kept(given))):
            self.note(kind, "changed what it was given")
        if "self" not in free and instance is not None and not all(map(equal, own, kept(instance))):
            self.note(kind, "changed the object that it belongs to")
        after = world_state()
        drawn = not equal(state[0], after[0])
        made = value if isinstance(value, list | tuple) else [value]
        builds = inspect.isclass(self.call.thing) and issubclass(self.call.thing, nn.Module) or any(isinstance(item, nn.Module) for item in [*made, instance])
        if drawn and "generator" not in free and not builds:
            self.note(kind, "drew from the global generator of torch")
        if not all(map(equal, state[1:], after[1:])):
            self.note(kind, "changed a global generator or flag")

    def gradient(self, kind: str, value: object) -> None:
        """Note a gradient that is not finite."""
        out = [x for x in tensors(value) if x.is_floating_point() and x.requires_grad]
        if not out or isinstance(value, Refused):
            return
        leaves_in = [x for x in self.asked if x.requires_grad]
        total = sum(x.double()[x.isfinite()].sum() for x in out)
        try:
            found = torch.autograd.grad(total, leaves_in, allow_unused=True)
        except RuntimeError as error:
            self.note(kind, f"no gradient: {str(error)[:150]!r}")
            return
        if any(g is not None and not g.isfinite().all() for g in found):
            self.note(kind, "a gradient is not finite")

    def asking(self, world: World, kind: str, extra: Callable | None = None) -> object:
        """Run with every floating-point argument asking for a gradient, and look at it."""
        self.asked: list[Tensor] = []

        def ask(x: Tensor) -> Tensor:
            x = (extra(x) if extra else x).detach().clone().requires_grad_()
            self.asked.append(x)
            return x

        value = self.run(kind, world, on(floating, ask))
        self.gradient(kind, value)
        return value

    def finite(self, kind: str, value: object) -> None:
        if isinstance(value, Refused) or value is None or self.name in NAN_WITHOUT_NAN:
            return
        if any(x.isnan().any() for x in numbers(value)):
            self.note(kind, "NaN from finite input")

    def same(self, kind: str, value: object, expected: object, tolerance: float) -> None:
        if value is None or isinstance(value, Refused):
            return
        if isinstance(expected, Refused):
            self.note(kind, "a value where the plain call is refused")
        elif not close(value, expected, tolerance):
            self.note(kind, "another value than that of the plain call")

    def all(self) -> None:
        plain = self.run("plain")
        read = {"root", "folder", "path", "files"} & set(inspect.signature(self.call.thing).parameters)
        if isinstance(plain, Refused) and not read and self.name not in REFUSED_AS_IT_IS:
            self.note("plain", f"refused: {plain}")
        if plain is None or isinstance(plain, Refused):
            return
        self.finite("plain", plain)
        _, given, _ = self.call.prepare(World())
        for kind, world in (("zero rows", World(rows=0)), ("one row", World(rows=1)), ("one class", World(one_class=True)), ("equal rows", World(equal=True))):
            self.finite(kind, self.run(kind, world))
            if kind == "equal rows" and any(floating(x) for x in tensors(given)):
                self.asking(world, "gradient of equal rows")
        floats = {key for key, value in given.items() if any(floating(x) for x in tensors(value))}
        whole = {key for key, value in given.items() if any(x.dtype in (torch.int64, torch.bool) for x in tensors(value))}
        if floats or whole:
            self.same("not contiguous", self.run("not contiguous", change=lambda value: each(value, strided)), plain, 1e-5)
        if floats:
            self.types(floats, plain)
            self.same("requires_grad", self.asking(World(), "requires_grad"), plain, 1e-6)
            self.broken(floats)
        for key in whole:
            self.labels(key, plain, given[key])
        self.shapes(floats | whole, given)
        self.options(given)

    def types(self, floats: set[str], plain: object) -> None:
        for dtype, tolerance in HALF.items():
            lower = on(floating, functools.partial(to, dtype=dtype))
            rough = on(floating, functools.partial(to, dtype=dtype, back=True))
            for only in (None, *(floats if len(floats) > 1 else ())):
                kind = f"{dtype}" + (f" {only}" if only else "")
                self.same(kind, self.run(kind, change=lower, only=only), self.run("rounded", change=rough, only=only), tolerance)
            self.asking(World(), f"gradient in {dtype}", functools.partial(to, dtype=dtype))
        for only in (None, *(floats if len(floats) > 1 else ())):
            kind = "torch.float64" + (f" {only}" if only else "")
            self.same(kind, self.run(kind, change=on(floating, lambda x: x.double()), only=only), plain, 1e-4)

    def broken(self, floats: set[str]) -> None:
        for key in floats:
            if (self.name, key) in NAN_IS_NO_MATTER or self.name in NAN_IS_NO_MATTER:
                continue
            for text, bad in (("NaN", math.nan), ("inf", math.inf)):
                kind = f"{text} in {key}"
                value = self.run(kind, change=on(floating, functools.partial(spoilt, value=bad)), only=key)
                if value is None or isinstance(value, Refused) or text == "inf" and (self.name in INFINITY or not numbers(value)):
                    continue
                if all(x.isfinite().all() for x in numbers(value)):
                    self.note(kind, "neither refused nor seen in the value")

    def settled(self, kind: str, value: object) -> None:
        """Note a value that is no number."""
        if self.name not in WRONG_IS_RIGHT:
            self.finite(kind, value)

    def shapes(self, keys: set[str], given: dict[str, object]) -> None:
        """One argument with a row too few, a column too few, or, of whole numbers, far too large or below zero."""
        for key in keys:
            for text, change in (("a row fewer in", lambda x: x[:-1] if x.ndim else x), ("a column fewer in", lambda x: x[..., :-1] if x.ndim > 1 else x)):
                self.settled(f"{text} {key}", self.run(f"{text} {key}", change=lambda value, change=change: each(value, change), only=key))
            if any(x.dtype == torch.int64 for x in tensors(given[key])):
                for text, far in (("too large", 10**6), ("negative", -10**6)):
                    kind = f"{key} {text}"
                    self.settled(kind, self.run(kind, change=on(lambda x: x.dtype == torch.int64, lambda x, far=far: x + far), only=key))

    def options(self, given: dict[str, object]) -> None:
        """One number that is zero, negative, none, or a text; or one name that is not known, or a number."""
        for key, parameter in inspect.signature(self.call.thing).parameters.items():
            usual = given.get(key, parameter.default)
            if isinstance(usual, bool) or not isinstance(usual, int | float | str) or key in FREE:
                continue
            wrong = ("no such name",) if isinstance(usual, str) else (0, -1) if isinstance(usual, int) else (0.0, -1.0, math.nan, math.inf)
            for option in wrong:
                kind = f"{key}={option!r}"
                self.settled(kind, self.run(kind, change=None, options={key: option}))
        for key, parameter in inspect.signature(self.call.thing).parameters.items():
            usual = given.get(key, parameter.default)
            if isinstance(usual, bool) or not isinstance(usual, int | float | str) or (self.name, key) in INNER or key in FREE - {"seed"}:
                continue
            another = 7 if isinstance(usual, str) else "many"
            self.run(f"{key}={another!r}", options={key: another})

    def labels(self, key: str, plain: object, given: object) -> None:
        for dtype in LABELS:
            if dtype == torch.bool and any(x.numel() and (x.min() < 0 or x.max() > 1) for x in tensors(given)):
                continue
            was_bool = any(x.dtype == torch.bool for x in tensors(given))
            value = self.run(f"{key} {dtype}", change=on(lambda x: x.dtype in (torch.int64, torch.bool), functools.partial(to, dtype=dtype)), only=key)
            if not was_bool or not isinstance(value, Refused):
                self.same(f"{key} {dtype}", value, plain, 1e-6)


def elsewhere(name: str) -> bool:
    """Whether the thing, its class or its module is told elsewhere."""
    parts = name.split(".")
    return any(".".join(parts[:k]) in ELSEWHERE for k in range(2, len(parts) + 1))


@pytest.mark.parametrize("name", [name for name in EVERY if not elsewhere(name)])
def test_what_users_bring_gives_the_right_value_or_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path))
    trial = Trial(name)
    try:
        trial.all()
    except KeyError as error:
        pytest.fail(f"{name}: write a recipe for {error} into tests/public_recipes.py")
    wrong = "\n".join([name, *(f"    {kind}: {text}" for kind, text in trial.wrong.items())])
    if name in KNOWN | KNOWN_WRONG and trial.wrong:
        pytest.xfail(wrong)
    assert not trial.wrong, wrong
    assert name not in KNOWN | KNOWN_WRONG, f"{name} is mended: take it out of KNOWN or KNOWN_WRONG"


def test_nothing_is_listed_that_is_not_there():
    modules = {name.rpartition(".")[0] for name in PUBLIC}
    listed = {*(ELSEWHERE.keys() - modules), *IN_PLACE, *KNOWN, *KNOWN_WRONG, *REFUSED_AS_IT_IS, *NAN_WITHOUT_NAN, *INFINITY, *(name if isinstance(name, str) else name[0] for name in NAN_IS_NO_MATTER), *(name for name, _ in INNER)}
    assert listed <= EVERY.keys(), listed - EVERY.keys()
    assert "kdnotes" in sys.modules
