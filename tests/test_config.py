"""Settings: every value that a user can give ends in a good configuration or in one short line."""
import importlib
import math
import pkgutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdnotes.papers
from kdnotes import config
from kdnotes.batch.plan import plan_run
from kdnotes.checks import refused
from kdnotes.config import Leaf, Rule, Settings, by_full_name, conform, from_text, full_name, leaves, listed, read_overrides, section, setting, shorten, table, unknown_name
from kdnotes.experiment import Experiment

PAPERS = [name for _, name, _ in pkgutil.iter_modules(kdnotes.papers.__path__)]


def even(number: int) -> None:
    if number % 2:
        raise ValueError("odd\nnumbers do not do")


def parsed(text: str) -> int:
    return {"a:b": 1}[text]


@dataclass(frozen=True)
class Training:
    steps: int = setting(100, "scale", "optimisation steps", at_least=1, at_most=10**6)
    lr: float = setting(1e-3, "paper", "learning rate", above=0, below=10)
    clip: float | None = setting(None, "ours", "largest norm of a gradient", above=0)
    cosine: bool = setting(True, "code", "whether the rate falls")
    every: int | None = setting(4, "ours", "steps between rows", at_least=1, check=even)
    patience: float = setting(-1.0, "ours", "seconds", at_least=0, unset=(-1.0,))
    limit: float = setting(math.inf, "ours", "no limit", above=0, finite=False)


@dataclass(frozen=True)
class Faces:
    steps: int = setting(40, "scale", "optimisation steps", at_least=1)
    methods: tuple[str, ...] = setting(("CE",), "paper", "rows of the table", choices=("CE", "KD"), length=(1, 3))
    sizes: tuple[int, ...] = setting((8, 16), "paper", "sides", at_least=1, length=2)
    span: tuple[int, float] = setting((1, 0.5), "ours", "a number and a share", at_least=0, at_most=9)
    pairs: tuple[tuple[str, int, float], ...] = setting((("a", 1, 0.5),), "ours", "what is compared", at_least=0)
    network: str = setting("a:b", "paper", "a network's text", check=parsed)
    note: str | None = setting(None, "ours", "a remark")
    fractions: tuple[float, ...] = setting((), "ours", "shares", above=0, below=1)
    way: str = setting("up", "ours", "direction", choices=lambda: ("up", "down"))


@dataclass(frozen=True)
class Config(Settings):
    training: Training = section(Training)
    faces: Faces = section(Faces)

    def check(self) -> None:
        if self.training.steps < self.faces.steps and self.faces.way == "down":
            raise ValueError("training.steps are fewer than faces.steps; give more")


Config.PROFILES = {"demo": {}, "smoke": {"training.steps": 50, "faces": {"steps": 1}}}
Config.DATASETS = {("smoke", "letters"): {"training.steps": 60, "lr": 0.5}}


def chosen(**overrides: object) -> Config:
    return Config.chosen({"profile": "smoke", "overrides": overrides})


def line_of(function, *arguments: object) -> str:
    """The one line with which a call is refused; it is short."""
    line = refused(function, *arguments)
    assert len(line) <= 300, f"{len(line)} letters: {line}"
    return line


# --- wrong values ---

@pytest.mark.parametrize("name", [name for name in leaves(Config) if name not in ("dataset", "seeds")])
def test_a_wrong_value_is_refused_in_one_line(name, wrong_values):
    for value in wrong_values(leaves(Config)[name]):
        assert line_of(lambda value=value: chosen(**{name: value})).startswith((f"{name}=", f"{name}[", f"unknown {name} ", f"unknown {name}["))


@pytest.mark.parametrize("slug", PAPERS)
def test_every_wrong_value_of_every_setting_of_a_paper_is_refused_in_one_line(slug, wrong_values):
    kind = importlib.import_module(f"kdnotes.papers.{slug}").Config
    if not issubclass(kind, Settings):
        pytest.skip("not on config.Settings yet")
    accepted = []
    for name, leaf in leaves(kind).items():
        for value in wrong_values(leaf) if name not in ("dataset", "seeds") else ():
            try:
                kind.chosen({"profile": "smoke", "overrides": {name: value}})
                accepted.append((name, shorten(value)))
            except ValueError as error:
                assert "\n" not in str(error) and len(str(error)) <= 300, (name, str(error))
    assert not accepted


@pytest.mark.parametrize("slug", PAPERS)
def test_a_wrong_data_set_is_refused_by_the_notebook_as_by_the_batch(slug, tmp_path, monkeypatch):
    """From the parameters cell of a notebook that is run by hand, and by `kdnotes run`: unknown, misspelt, absent, one of several; the run leaves no folder."""
    kind, notebook = importlib.import_module(f"kdnotes.papers.{slug}").Config, Path(kdnotes.__file__).parents[1] / "nbs" / "papers" / f"{slug}.ipynb"
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path / "data"))
    videos = "images" not in kind.DATA and "videos" in kind.DATA
    good, absent, typo, far = ("toytalk", "celeb_df", "celeb_fd", "did you mean celeb_df") if videos else ("digits", "cifar10", "mnsit5k", "did you mean mnist5k")
    asked = [({"dataset": name}, said) for name, said in ((typo, far), ("?" * 99, "unknown data set"), (absent, f"the data of {absent} are not there"), (f"{good}+{typo}", typo))]
    asked += [({"overrides": {name: "mnsit"}}, "did you mean mnist") for name, leaf in leaves(kind).items() if leaf.rule.data]
    for parameters, said in asked:
        by_batch = refused(plan_run, slug, notebook, {"profile": "smoke"} | parameters, tmp_path / "runs")
        by_hand = refused(Experiment.begin, slug, kind, {"profile": "smoke", "device": "cpu", "out": str(tmp_path / "run")} | parameters)
        assert by_hand == by_batch and said in by_hand, (by_hand, by_batch)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("slug", PAPERS)
def test_the_settings_of_a_paper_are_declared_whole(slug):
    kind = importlib.import_module(f"kdnotes.papers.{slug}").Config
    if not issubclass(kind, Settings):
        pytest.skip("not on config.Settings yet")
    frame = table(kind)
    assert set(frame.setting) == set(leaves(kind)) and not frame.setting.duplicated().any()
    assert not [name for name, leaf in leaves(kind).items() if not leaf.rule.source]
    for profile in kind.PROFILES:
        made = kind.profile(profile)
        assert kind.made_of(made.flat()) == made


@pytest.mark.parametrize("value", ["", "abc", "0-", "3-1", "-1", "1.5", 1.5, -1, True, [], [0, 0], [True], [None], {"a": 1}, "0-100000", "x" * 9000, [10**400], [[0]], "0,,1", math.nan,
                                   "\n", "٣-", [1.0], object()], ids=lambda value: ascii(value)[:20])
def test_wrong_seeds_are_refused_in_one_line(value):
    if value == "":
        assert Config.chosen({"profile": "smoke", "seeds": value}).seeds == (0, 1, 2)
    else:
        line_of(Config.chosen, {"profile": "smoke", "seeds": value})


@pytest.mark.parametrize("parameters, said", [
    ({"profile": "smok"}, "did you mean 'smoke'?"), ({"profile": None}, "profile=None is nothing; expected text"), ({"profile": ["demo"]}, "a list"), ({"dataset": 3}, "dataset=3 is int"),
    ({"dataset": None}, "dataset=None is nothing"), ({"overrides": "abc"}, "is text; expected a mapping"), ({"overrides": [1]}, "is a list"), ({"profile": "x" * 5000}, "unknown profile"),
    ({"overrides": {"seeds": "0-9"}}, "'seeds' is a parameter of its own"), ({"overrides": {"dataset": "a"}}, "'dataset' is a parameter of its own"),
    ({"overrides": {"profile": "paper"}}, "'profile' is a parameter of its own"), ({"overrides": {"device": "cpu"}}, "'device' is a parameter of its own"),
    ({"overrides": {"out": "a"}}, "own"), ({"overrides": {"overrides": {}}}, "own"), ({"overrides": {"profile_name": "paper"}}, "unknown parameter 'profile_name'"),
    ({"overrides": {"steps": 3}}, "parameter 'steps' is ambiguous: give one of training.steps, faces.steps"), ({"overrides": {"rate": 3}}, "unknown parameter 'rate'"),
    ({"overrides": {"": 3}}, "unknown parameter ''"), ({"overrides": {"x" * 9000: 3}}, "unknown parameter"), ({"overrides": {"a\nb": 3}}, "unknown parameter"),
    ({"overrides": {1: 3}}, "unknown parameter '1'"), ({"overrides": {None: 3}}, "unknown parameter 'None'"), ({"overrides": {"faces": 3}}, "'faces' is a section: give its settings by name"),
    ({"overrides": {"lr": 1, "training.lr": 1}}, "parameter 'training.lr' is given twice"), ({"overrides": {"training": {"lr": 1}, "lr": 1}}, "given twice"),
    ({"overrides": {"training": {"learning": 1}}}, "unknown parameter 'training.learning'"), ({"overrides": {"faces.": 1}}, "unknown parameter"), ({"overrides": {".lr": 1}}, "unknown"),
    ({"overrides": {"training.lr.x": 1}}, "unknown parameter"), ({"overrides": {"way": "down", "faces.steps": 51}}, "training.steps are fewer"),
])
def test_wrong_parameters_are_refused_in_one_line(parameters, said):
    assert said in line_of(Config.chosen, {"profile": "smoke"} | parameters)


@pytest.mark.parametrize("values, said", [
    ({"every": 3}, "training.every=3: odd numbers do not do"), ({"network": "abc"}, "faces.network='abc': 'abc'"), ({"cosine": 1}, "training.cosine=1 is int; expected true or false"),
    ({"lr": 0}, "training.lr=0.0 is out of range; expected float above 0 and below 10"), ({"patience": -2}, "expected float at least 0, or -1.0"),
    ({"sizes": [1]}, "faces.sizes=[1] has 1 items; expected 2"), ({"methods": ["CE"] * 4}, "expected 1 to 3"), ({"pairs": [["a", 1]]}, "faces.pairs[0]=['a', 1] has 2 items; expected 3"),
    ({"way": "upp"}, "unknown faces.way 'upp'; did you mean 'up'?"),
])
def test_a_refusal_says_what_was_given_and_what_is_expected(values, said):
    assert said in line_of(lambda: chosen(**values))


@pytest.mark.parametrize("values", [{"lr": 1}, {"steps": None}, {"clip": None}, {"clip": 2}, {"patience": -1}, {"patience": 3}, {"limit": math.inf}, {"span": [9, 0]}, {"note": None},
                                    {"note": "ü\n"}, {"fractions": []}, {"fractions": [0.5]}, {"methods": ["KD", "CE"]}, {"pairs": []}, {"pairs": [["b", 2, 3]]}, {"training.steps": 10**6}])
def test_right_values_are_taken(values):
    if "steps" not in values:
        flat = chosen(**values).flat()
        for name, value in values.items():
            found = flat[full_name(Config, name)]
            assert found == (tuple(tuple(v) if isinstance(v, list) else v for v in value) if isinstance(value, list) else value)


def test_a_type_that_no_setting_can_have_is_the_author_s_error():
    for kind in (tuple, list, dict, list[int], complex):
        assert "a setting is a bool, int, float, str" in refused(conform, "x", (1,), kind)


# --- names and order ---

def test_the_merge_goes_from_defaults_over_profile_and_data_set_to_overrides():
    assert Config().training.steps == 100 and Config.profile("smoke").training.steps == 50
    letters = Config.chosen({"profile": "smoke", "dataset": "letters", "seeds": "4,5", "device": "cuda", "out": "x"})
    assert (letters.training.steps, letters.training.lr, letters.faces.steps, letters.dataset, letters.seeds) == (60, 0.5, 1, "letters", (4, 5))
    assert Config.profile("smoke", "letters", lr=0.1).training.lr == 0.1 and Config.profile("demo", "letters").training.steps == 100
    assert Config.chosen({}) == Config() == Config.profile("demo")


def test_each_part_of_a_merge_goes_over_those_before_it():
    parts = {"lr": 0.1, "faces.steps": 3}, {"training": {"lr": 0.2}}, {"training.lr": 0.3, "faces": {"steps": 4}}
    assert Config.merged() == {} and Config.merged(*parts[:2]) == {"training.lr": 0.2, "faces.steps": 3}
    assert Config.merged(*parts) == {"training.lr": 0.3, "faces.steps": 4} and parts[0] == {"lr": 0.1, "faces.steps": 3}
    assert Config.merged(Config.merged(*parts[:2]), parts[2]) == Config.merged(parts[0], Config.merged(*parts[1:])) == Config.merged(*parts)
    for wrong, said in (({"steps": 3}, "ambiguous"), ({"rate": 1}, "unknown parameter 'rate'"), ({"lr": 1, "training.lr": 1}, "given twice")):
        assert said in line_of(Config.merged, parts[0], wrong)


def test_short_full_and_nested_names_mean_the_same():
    assert chosen(lr=0.1) == chosen(**{"training.lr": 0.1}) == chosen(training={"lr": 0.1}) == Config.profile("smoke", lr=0.1)
    assert by_full_name(Config, {"faces": {"steps": 3}, "lr": 1}) == {"faces.steps": 3, "training.lr": 1}


def test_change_flat_and_made_of_are_inverse():
    made = chosen(lr=0.1, methods=["KD"])
    assert Config.made_of(made.flat()) == made and made.change() == made
    changed = made.change(**{"lr": 0.2, "faces.steps": 7})
    assert changed.flat() == made.flat() | {"training.lr": 0.2, "faces.steps": 7} and made.training.lr == 0.1
    assert changed.change(**{"lr": 0.1, "faces.steps": 1}) == made and hash(changed) != hash(made)
    for wrong in ({"steps": 3}, {"lr": -1}, {"rate": 1}):
        line_of(lambda wrong=wrong: made.change(**wrong))


def test_a_configuration_made_directly_is_checked_too():
    assert "training.lr" in line_of(lambda: Config(training=Training(lr=-1.0)))
    assert "expected a Training" in line_of(lambda: Config(training={"lr": 1}))
    assert Config(seeds="0-2").seeds == (0, 1, 2)


# --- values as text ---

@pytest.mark.parametrize("name, text, value", [
    ("faces.steps", "7", 7), ("lr", "1e-3", 1e-3), ("lr", "1", 1.0), ("cosine", "true", True), ("clip", "null", None), ("every", "null", None), ("note", "null", None), ("note", "7", "7"),
    ("note", "true", "true"), ("way", "down", "down"), ("methods", "CE,KD", ("CE", "KD")), ("methods", "CE", ("CE",)), ("methods", '["CE"]', ("CE",)), ("methods", '"CE","KD"', ("CE", "KD")),
    ("methods", " CE , KD ", ("CE", "KD")), ("sizes", "1,2", (1, 2)), ("sizes", "[1,2]", (1, 2)), ("span", "3,0.5", (3, 0.5)), ("pairs", '[["a",1,2]]', (("a", 1, 2.0),)),
    ("fractions", "0.5", (0.5,)), ("fractions", "[]", ()), ("limit", "Infinity", math.inf), ("note", "ü 漢", "ü 漢"),
])
def test_text_is_read_as_the_type_of_the_setting(name, text, value):
    assert chosen(**read_overrides(Config, [(name, text)])).flat()[full_name(Config, name)] == value


@pytest.mark.parametrize("name, text", [
    ("faces.steps", "010"), ("faces.steps", "1:30"), ("faces.steps", "1e3"), ("faces.steps", "Infinity"), ("faces.steps", "NaN"), ("faces.steps", "yes"), ("faces.steps", "true"),
    ("faces.steps", "9" * 9000), ("training.steps", "9" * 4000), ("faces.steps", "٣"), ("faces.steps", "1_000"), ("faces.steps", "+1"), ("faces.steps", "0x10"), ("faces.steps", ""),
    ("faces.steps", "'3'"), ("faces.steps", "[3]"), ("faces.steps", "null"), ("lr", "NaN"), ("lr", "Infinity"), ("lr", "1e999"), ("lr", ".5"), ("lr", "9" * 400), ("lr", "1,5"),
    ("cosine", "yes"), ("cosine", "True"), ("cosine", "1"), ("cosine", "on"), ("sizes", "1"), ("sizes", "1;2"), ("sizes", "[" * 100000), ("sizes", "1,x"), ("methods", "CE;KD"),
    ("methods", "[CE]"), ("methods", ",".join(["CE"] * 2000)), ("pairs", "a,1,2"), ("pairs", '{"a": 1, "a": 2}'), ("fractions", "0,1"), ("way", "x" * 10000), ("way", ""), ("lr", "a\nb"),
])
def test_text_that_is_no_such_value_is_refused_in_one_line(name, text):
    line_of(lambda: chosen(**read_overrides(Config, [(name, text)])))


def test_doubled_names_are_refused_wherever_they_stand():
    assert line_of(read_overrides, Config, [("lr", "1"), ("training.lr", "2")]) == "parameter 'training.lr' is given twice"
    assert line_of(read_overrides, Config, [("lr", "1"), ("lr", "1")]) == "parameter 'training.lr' is given twice"
    for text in ('{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', '[{"c": 1, "c": 1}]'):
        assert "is given twice" in line_of(from_text, text)
    assert "ambiguous" in line_of(read_overrides, Config, [("steps", "1")])
    assert read_overrides(Config, [("lr", 0.5), ("faces.steps", 3)]) == {"training.lr": 0.5, "faces.steps": 3}


ANY = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8)


@settings(max_examples=200)
@given(name=st.sampled_from([*leaves(Config), "lr", "steps", "faces", "x"]) | st.text(max_size=8), value=ANY)
def test_whatever_is_given_ends_well_or_in_one_line(name, value):
    try:
        made = chosen(**{name: value})
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) <= 300
    else:
        assert Config.made_of(made.flat()) == made or any(v != v for v in made.flat().values())


@settings(max_examples=200)
@given(name=st.sampled_from(list(leaves(Config))), text=st.text(max_size=30))
def test_whatever_text_is_given_ends_well_or_in_one_line(name, text):
    try:
        Config.chosen({"profile": "smoke", "overrides": read_overrides(Config, [(name, text)])})
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) <= 300


# --- words ---

def test_errors_stay_short_whatever_is_in_them():
    many = [f"name{i}" for i in range(1000)]
    assert len(str(unknown_name("kind", "y" * 10**6, many))) < 300 and "(1000 in all)" in str(unknown_name("kind", "name", many))
    assert shorten(10**9000) == "int of very many digits" and len(shorten("a" * 500)) == 60 and "\n" not in shorten("a\nb")
    assert listed([]) == "" and listed(["a"]) == "a"
    leaf = Leaf(str, Rule(choices=tuple(many)), "name1")
    assert len(line_of(conform, "x", "zzz", leaf.kind, leaf.rule)) < 300 and len(line_of(conform, "x", 3, leaf.kind, leaf.rule)) < 300


def test_the_table_says_what_is_known_of_each_setting():
    frame = table(Config).set_index("setting")
    assert list(frame.columns) == ["demo", "smoke", "range", "source", "meaning"]
    assert frame.loc["training.lr"].tolist() == ["0.001", "0.001", "above 0 and below 10", "paper", "learning rate"]
    assert frame.loc["faces.methods", "range"] == "CE, KD" and frame.loc["faces.sizes", "smoke"] == "8, 16" and frame.loc["training.patience", "range"] == "at least 0, or -1.0"


def test_every_exported_name_is_documented():
    assert [name for name in config.__all__ if callable(getattr(config, name)) and not getattr(config, name).__doc__] == []
