"""`kdnotes data`: a folder is looked at before anything is trained, a flat one is split and installed, and every hint names what the command has."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kdnotes
from kdnotes.checks import refused
from kdnotes.cli import build_parser, main
from kdnotes.data.catalogue import load
from kdnotes.data.survey import survey

PACKAGE = Path(kdnotes.__file__).parent


def paint(path, shade, size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size[::-1], 3), shade, np.uint8)).convert(mode).save(path, **options)
    return path


@pytest.fixture
def pets(tmp_path):
    """A sound set: three classes to train, two to test, every picture another shade."""
    shade = iter(range(0, 250, 5))
    for split, names in (("train", ("cat", "dog", "fox")), ("test", ("cat", "dog"))):
        for name in names:
            for i in range(3 if split == "train" else 2):
                paint(tmp_path / "pets" / split / name / f"{i}.png", next(shade))
    return tmp_path / "pets"


def page(folder, capsys, status):
    assert main(["data", "check", str(folder)]) == status
    return capsys.readouterr().out


def test_a_sound_folder(pets, capsys):
    said = page(pets, capsys, 0)
    for line in (r"class +train +test", r"cat +3 +2", r"fox +3 +0", r"all 3 classes +9 +4", r"size +8 x 8", r"mode +RGB 13", r"bits +8 13", r"orientation +as stored 13",
                 r"transparency +0 pictures", r"duplicates +none", r"unreadable +0", r"strays +none", r"not tested +fox", r"to mend +none"):
        assert re.search(rf"(?m)^{line}$|^{line},", said), line


def test_a_page_tells_all_that_may_be_wrong(pets, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    paint(pets / "train" / "cat" / "side.jpg", 251, (16, 12), exif=exif)
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(pets / "train" / "cat" / "deep.png")
    Image.fromarray(np.full((4, 4, 4), 100, np.uint8)).save(pets / "train" / "cat" / "clear.png")
    (pets / "test" / "cat" / "copy.png").write_bytes((pets / "train" / "cat" / "0.png").read_bytes())
    with Image.open(pets / "train" / "dog" / "0.png") as other:
        other.save(pets / "train" / "fox" / "other.bmp")                          # the same pixels in another form and as another class
    (pets / "train" / "dog" / "half.png").write_bytes((pets / "train" / "dog" / "0.png").read_bytes()[:50])
    (pets / "train" / "eel").mkdir()
    paint(pets / "test" / "wolf" / "0.png", 252)
    for name in ("train/cat/notes.txt", "train/loose.png", "readme.md", "train/cat/deeper/0.png", "other/0.png"):
        (pets / name).parent.mkdir(exist_ok=True)
        (pets / name).write_bytes(b"x")
    for name in (".DS_Store", "train/._cat", "train/cat/Thumbs.db", "train/.ipynb_checkpoints/0.png", "__MACOSX/train/cat/0.png"):
        (pets / name).parent.mkdir(parents=True, exist_ok=True)
        (pets / name).write_bytes(b"x")
    said = page(pets, capsys, 1)
    for text in ("turned (6) 1", "16 1", "1 pictures, shown on white", "5 files and folders, passed over", "loose.png lies in no folder of a class", "notes.txt is not called like a picture",
                 "readme.md lies in no folder", "deeper/0.png lies in no folder", "other/0.png lies in no folder", "3 sizes: --size of `kdnotes data add`", "across test and train", "as two classes"):
        assert text in said, text
    wrong = said[said.index("to mend") :]
    assert wrong.splitlines()[0].split() == ["to", "mend", "5"]
    for text in ("half.png cannot be read", f"{pets / 'train' / 'eel'} holds no pictures", f"{pets / 'test' / 'wolf'} is a class that train has not", "one picture in two splits: ", "one picture in two classes: "):
        assert text in wrong, text
    assert "holds 3 frames" not in said and "RGBA 1" in said and "I;16 1" in said


def test_flat_folders_arrays_and_what_is_no_folder(pets, capsys):
    flat = survey(pets / "train")
    assert list(flat.classes) == [""] and flat.counts() == {name: {"": 3} for name in ("cat", "dog", "fox")} and flat.to_mend() == []
    many = pets / "many"
    for k in range(30):
        paint(many / f"c{k:02d}" / "0.png", k)
    assert "… 10 larger ones" in page(many, capsys, 0)
    images = np.arange(4 * 16, dtype=np.uint8).reshape(4, 4, 4)
    for split, rows in (("train", [0, 1, 2]), ("test", [3, 0])):
        np.savez(many / f"{split}.npz", images=images[rows], labels=np.array([0, 1, 1])[: len(rows)], classes=["a", "b"])
    found = survey(many)
    assert found.counts() == {"a": {"train": 1, "test": 1}, "b": {"train": 2, "test": 1}} and any("train.npz[0], test.npz[1]" in line for line in found.to_mend())
    assert "is no folder; expected one with a folder for each class" in refused(survey, pets / "none")
    (pets / "empty").mkdir()
    assert "holds no pictures of classes" in page(pets / "empty", capsys, 1)


def test_a_flat_folder_is_split_and_installed_by_the_command(pets, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path / "data"))
    flat = str(pets / "train")
    assert main(["data", "add", "mine", flat, "--size", "4", "--test-share", "0.34", "--seed", "3"]) == 0
    train, test = (load("mine", split) for split in ("train", "test"))
    assert train.labels.bincount().tolist() == [2, 2, 2] and test.labels.bincount().tolist() == [1, 1, 1] and train.shape == (3, 4, 4)
    for arguments, message in ((["mine", flat], "pass overwrite=True (--overwrite of `kdnotes data add`)"), (["x", flat, "--size", "0"], "'0' is not a whole number from 1 up"),
                               (["x", flat, "--test-share", "1"], "'1' is not a number between 0 and 1"), (["x", str(pets / "none")], "none is missing; expected an .npz file")):
        with pytest.raises(SystemExit):
            main(["data", "add", *arguments])
        assert message in capsys.readouterr().err
    assert main(["data", "add", "mine", flat, "--size", "4", "--test-share", "0.34", "--seed", "3", "--overwrite"]) == 0
    assert load("mine", "test").fingerprint() == test.fingerprint()
    assert main(["data", "add", "both", str(pets)]) == 0 and load("both", "test").classes == ("cat", "dog", "fox")


# ---- hints --------------------------------------------------------------------------------------------------------------------------

def texts(tree):
    """Every text of a module, with X for what is filled in."""
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


def parser_of(words):
    """The parser that the words of a command line lead to, and the words that are left; ValueError for a word that none knows."""
    parser, words = build_parser(), list(words)
    while words:
        below = [action for action in parser._actions if action.__class__.__name__ == "_SubParsersAction"]
        if not below or words[0].startswith("-"):
            return parser, words
        if words[0] not in below[0].choices:
            raise ValueError(f"no command {words[0]}")
        parser = below[0].choices[words.pop(0)]
    return parser, words


HINTS = sorted({hint for path in PACKAGE.rglob("*.py") for text in texts(ast.parse(path.read_text(encoding="utf-8"))) for hint in re.findall(r"`kdnotes (\w[^`|]*)", text)})
OPTIONS = sorted({found for path in PACKAGE.rglob("*.py") for text in texts(ast.parse(path.read_text(encoding="utf-8")))
                  for found in [(b, a) for a, b in re.findall(r"(--[\w-]+) of `kdnotes ([\w ]+)`", text)] + re.findall(r"`kdnotes ([\w ]+)` has (--[\w-]+)", text)})


@pytest.mark.parametrize("hint", HINTS)
def test_a_hint_is_a_command_that_there_is(hint):
    parser, rest = parser_of(hint.replace("…", "").split())
    known = parser._option_string_actions
    assert all(word in known for word in rest if word.startswith("-")), rest
    places = [action for action in parser._actions if not action.option_strings and action.__class__.__name__ != "_SubParsersAction"]
    if not any(action.nargs in ("*", "+") for action in places) and not any(word.startswith("-") for word in rest):
        assert len(rest) <= len(places), rest


@pytest.mark.parametrize("command, option", OPTIONS)
def test_an_option_in_a_hint_is_one_that_the_command_has(command, option):
    assert option in parser_of(command.split())[0]._option_string_actions


def test_the_hints_are_found():
    assert "data add NAME TRAIN TEST" in HINTS and ("data add", "--size") in OPTIONS and ("data add", "--overwrite") in OPTIONS
