"""What several test files need: small paper notebooks, worker processes that start quickly, and face sets in their true layouts."""
import json
import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)          # how long an example takes depends on the machine
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Each of several test processes has its share of the cores, told before any of them imports torch: where every one uses all, they wait for each other.

    Also for the processes that they start. What starts the test processes computes nothing, and tells them nothing.
    """
    if not config.getoption("numprocesses", None):
        share = (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Units of work for `--dist loadgroup`, the long ones first, so that nobody waits long for the last.

    The tests of a file are a unit, for they share what is made for them; each slow one is a unit of its own, and so is
    what a file groups itself by `xdist_group`.
    """
    short = [item for item in items if not any(item.get_closest_marker(name) for name in ("slow", "xdist_group"))]
    for item in short:
        item.add_marker(pytest.mark.xdist_group(item.location[0]))
    items.sort(key=set(short).__contains__)


@pytest.fixture(scope="session")
def write_paper() -> Callable[..., Path]:
    """`write_paper(folder, slug, *cells, ...)` writes a small paper notebook (see `checks.toy_paper`) and returns its path."""
    from kdnotes.checks import toy_paper

    return lambda folder, slug, *cells, **more: toy_paper(folder / f"{slug}.ipynb", *cells, **more)


@pytest.fixture(scope="session")
def run_from_parameters() -> Callable[..., dict]:
    """`run_from_parameters(module, imports, **parameters)`: the names of the paper `module` after the cells of its notebook that come behind the parameters and
    are not exported; the cell that begins with `imports` runs before them."""
    def run(module: object, imports: str, **parameters: object) -> dict:
        slug = module.__name__.rpartition(".")[2]
        book = json.loads((Path(__file__).parents[1] / "nbs" / "papers" / f"{slug}.ipynb").read_text())
        cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]) for cell in cells]
        start = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", ()))
        space = vars(module) | {"profile": "paper", "seeds": "0", "device": "cpu", "precision": "fp32"} | parameters
        for source in [next(s for s in sources if s.startswith(imports)), *(s for s in sources[start + 1:] if not s.startswith("#| export"))]:
            exec(source, space)
        return space
    return run


@pytest.fixture
def light_workers(tmp_path_factory, monkeypatch) -> None:
    """Spare each worker process 1.7 s: jsonschema would load a grammar of IRIs, which no notebook asks for."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError('too slow for tests')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))


class FaceLayouts:
    """Face sets in miniature, written below a root as their authors give them out; one flat colour a person, so that the mean colour is a perfect embedding."""

    @staticmethod
    def put(path: Path, shade: int = 0, size: tuple[int, int] = (20, 24)) -> None:
        """A picture of one colour."""
        from PIL import Image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (shade % 256, 90, 200 - shade % 200)).save(path)

    @staticmethod
    def cells(*rows):
        """Text as MATLAB keeps it: an array of cells; a row is one text, or a tuple of texts."""
        import numpy as np
        return np.array([[row] if isinstance(row, str) else list(row) for row in rows], dtype=object)

    def numbered(self, folder: Path, names: tuple[str, ...], shades: dict[str, int]) -> list[list[int]]:
        """Pictures `<person>_*.jpg` in `folder`; returns the column of the people's numbers."""
        for name in names:
            self.put(folder / name, shades[name.split("_")[0]])
        return [[int(name.split("_")[0])] for name in names]

    def casia(self, root: Path, people: dict[str, int] | None = None) -> Path:
        """CASIA-WebFace: `people` are names and numbers of pictures."""
        for k, (person, n) in enumerate((people or {"0000045": 4, "0000099": 1, "0000100": 2, "0000102": 4}).items()):
            for i in range(n):
                self.put(root / "CASIA-WebFace" / person / f"{i + 1:03d}.jpg", 60 * k)
        return root

    def lfw(self, root: Path) -> Path:
        """LFW with both views: three people to test in view 1, and two folds of 2 + 2 pairs in view 2."""
        for k, (person, n) in enumerate({"Ann_Lee": 3, "Bo_Chi": 2, "Cy_Di": 2, "Di_Ed": 1, "Ed_Fo": 1}.items()):
            for i in range(n):
                self.put(root / "lfw" / person / f"{person}_{i + 1:04d}.jpg", 50 * k)
        (root / "lfw" / "peopleDevTrain.txt").write_text("2\nAnn_Lee\t3\nDi_Ed\t1\n")
        (root / "lfw" / "pairsDevTest.txt").write_text("2\nBo_Chi\t1\t2\nCy_Di\t1\t2\nBo_Chi\t1\tCy_Di\t2\nCy_Di\t1\tEd_Fo\t1\n")
        fold = "Bo_Chi\t1\t2\nCy_Di\t1\t2\nBo_Chi\t1\tCy_Di\t2\nCy_Di\t1\tEd_Fo\t1\n"
        (root / "lfw" / "pairs.txt").write_text(f"2\t2\n{fold}{fold.replace('Bo_Chi', 'Ann_Lee')}")
        return root

    def tinyface(self, root: Path) -> Path:
        """TinyFace: three people, three distractors."""
        from scipy.io import savemat
        for k in (3, 11):
            self.put(root / "tinyface" / "Training_Set" / str(k) / f"{k}_1.jpg", k)
        test, shades = root / "tinyface" / "Testing_Set", {"7": 10, "9": 120, "12": 220}
        gallery, probe = ("7_1.jpg", "9_1.jpg", "9_2.jpg", "12_1.jpg"), ("9_3.jpg", "7_2.jpg", "12_2.jpg")
        ids = [self.numbered(test / folder, names, shades) for folder, names in (("Gallery_Match", gallery), ("Probe", probe))]
        for i in range(3):
            self.put(test / "Gallery_Distractor" / f"{i}.jpg", 60 + 5 * i)
        savemat(test / "gallery_match_img_ID_pairs.mat", {"gallery_set": self.cells(*gallery), "gallery_ids": ids[0]})
        savemat(test / "probe_img_ID_pairs.mat", {"probe_set": self.cells(*probe), "probe_ids": ids[1]})
        return root

    def survface(self, root: Path, repeat: int = 1) -> Path:
        """QMUL-SurvFace: two people, two strangers of whom one looks much like number 6, and 2 + 2 pairs, each listed `repeat` times."""
        from scipy.io import savemat
        folder = root / "QMUL-SurvFace"
        self.put(folder / "training_set" / "1" / "1_cam1_1.jpg")
        test, check, shades = folder / "Face_Identification_Test_Set", folder / "Face_Verification_Test_Set", {"5": 10, "6": 120}
        gallery, mated = ("5_cam1_1.jpg", "5_cam2_4.jpg", "6_cam1_2.jpg"), ("6_cam3_1.jpg", "5_cam3_9.jpg")
        ids = [self.numbered(test / place, names, shades) for place, names in (("gallery", gallery), ("mated_probe", mated))]
        for i, s in enumerate((118, 220)):
            self.put(test / "unmated_probe" / f"{i}.jpg", s)
        savemat(test / "gallery_img_ID_pairs.mat", {"gallery_set": self.cells(*gallery), "gallery_ids": ids[0]})
        savemat(test / "mated_probe_img_ID_pairs.mat", {"mated_probe_set": self.cells(*mated), "mated_probe_ids": ids[1]})
        for i, name in enumerate("abcd"):
            self.put(check / "verification_images" / f"{name}.jpg", 10 if i < 2 else 200)
        savemat(check / "positive_pairs_names.mat", {"positive_pairs_names": self.cells(*repeat * (("a.jpg", "b.jpg"), ("c.jpg", "d.jpg")))})
        savemat(check / "negative_pairs_names.mat", {"negative_pairs_names": self.cells(*repeat * (("a.jpg", "c.jpg"), ("b.jpg", "d.jpg")))})
        return root

    def scface(self, root: Path) -> Path:
        """SCface: three people, five cameras, three distances."""
        for k in (1, 2, 3):
            self.put(root / "SCface" / "mugshot_frontal_cropped_all" / f"{k:03d}_frontal.JPG", 70 * k)
            for d in (1, 2, 3):
                for c in range(1, 6):
                    self.put(root / "SCface" / f"surveillance_cameras_distance_{d}" / f"cam_{c}" / f"{k:03d}_cam{c}_{d}.jpg", 70 * k, (10 * d, 12 * d))
        return root

    def uccs(self, root: Path, subjects: int = 3) -> Path:
        """UCCS: `subjects` with six pictures each, and one with too few."""
        for k in range(subjects + 1):
            for i in range(6 if k < subjects else 2):
                self.put(root / "uccs" / f"{k:04d}" / f"{i}.jpg", 70 * k)
        return root

    def celeba(self, root: Path) -> Path:
        """CelebA: nine pictures of three people in three parts; two without one clear colour of hair."""
        has = ["1 -1 -1 1", "-1 1 -1 -1", "-1 -1 1 1", "-1 -1 -1 1", "1 -1 1 -1", "1 -1 -1 1", "-1 1 -1 -1", "-1 -1 1 1", "1 -1 -1 -1"]
        names = [f"{i + 1:06d}.jpg" for i in range(len(has))]
        for i, name in enumerate(names):
            self.put(root / "celeba" / "img_align_celeba" / name, 25 * i, (178, 218))
        lists = {"list_attr_celeba": ["9", "Black_Hair Blond_Hair Brown_Hair Male ", *map(" ".join, zip(names, has))],
                 "list_eval_partition": [f"{name} {part}" for name, part in zip(names, (0, 0, 0, 0, 0, 1, 2, 2, 2))],
                 "identity_CelebA": [f"{name} {who}" for name, who in zip(names, (2880, 2937, 2880, 2937, 2880, 8692, 5805, 5805, 9295))]}
        for name, lines in lists.items():
            (root / "celeba" / f"{name}.txt").write_text("\n".join(lines) + "\n")
        return root


@pytest.fixture(scope="session")
def face_layouts() -> FaceLayouts:
    """Writers of face sets on disk, such as `face_layouts.tinyface(root)`; each returns the root."""
    return FaceLayouts()


def _wrong_items(kind: object, rule: object) -> list:
    """Values that are wrong for one item of a setting of the type `kind` under `rule`."""
    import math
    import types
    import typing

    args = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [value for value in _wrong_items(next(k for k in args if k is not type(None)), rule) if value is not None]
    if typing.get_origin(kind) is tuple:
        every = len(args) == 2 and args[1] is Ellipsis
        inner = [[value] if every else [value] * len(args) for value in _wrong_items(args[0], rule)]
        return ["abc", 1, None, {}, *inner, *([] if every else [[], [None] * (len(args) + 1)])]
    odd = {bool: [0, 1, "true", None, []], str: [1, True, None, [], 0.5, {}], int: ["abc", "3", 1.5, 2.0, True, None, [1], {}, math.nan, math.inf],
           float: ["abc", "0.5", True, None, [0.5], {}, 10 ** 400, *(value for value in (math.nan, math.inf, -math.inf) if not rule.allows(value))]}[kind]
    if kind is str and rule.names():
        odd = [*odd, "no such name", "", "x" * 5000, "a\nb"]
    if kind in (int, float):
        step = (lambda x, to: int(x) + (1 if to > 0 else -1)) if kind is int else math.nextafter
        bounds = ((rule.at_least, -math.inf, True), (rule.above, -math.inf, False), (rule.at_most, math.inf, True), (rule.below, math.inf, False))
        outside = [kind(step(value, to) if beyond else value) for value, to, beyond in bounds if value is not None]
        odd = [*odd, *(value for value in outside if not rule.allows(value)), *([-10 ** 400] if rule.at_least is not None or rule.above is not None else [])]
    return odd


@pytest.fixture(scope="session")
def wrong_values() -> Callable[[object], list]:
    """`wrong_values(leaf)`: values of other types, wrong items, NaN, infinity and what is just outside, for a `config.Leaf`."""
    def of(leaf: object) -> list:
        import typing

        found, args = _wrong_items(leaf.kind, leaf.rule), typing.get_args(leaf.kind)
        length = leaf.rule.length
        if typing.get_origin(leaf.kind) is tuple and length and args[-1] is Ellipsis:
            least, most = (length, length) if isinstance(length, int) else length
            item = leaf.default[0] if leaf.default else None
            found += [[item] * (least - 1)] * (least > 0) + ([] if most is None else [[item] * (most + 1)])
        return found
    return of
