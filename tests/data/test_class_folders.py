"""Class folders and prepared sets: the names of the training split rule, and what systems leave behind is neither class nor picture."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdnotes.checks import refused
from kdnotes.data.batches import PictureBatches
from kdnotes.data.catalogue import add, face_sets, load, status
from kdnotes.data.imageset import ImageSet, as_image_set, first_of_each, join, rank_in_class, rows_of
from kdnotes.data.pictures import ClassFolder, identity_folders, listed, pictures_in
from kdnotes.data.source import below, composed, is_litter, text_lines

LITTER = [".DS_Store", "._cat.png", "Thumbs.db", "THUMBS.DB", "desktop.ini", "ehthumbs.db", "__MACOSX", ".ipynb_checkpoints", "@eaDir", "$RECYCLE.BIN",
          "System Volume Information", ".Trash-1000", ".Trashes", ".fseventsd", ".Spotlight-V100", ".AppleDouble", ".git", "lost+found", "cat~", "cat.png~", "~$cat.png",
          "#cat.png#", "FOUND.000", "Icon\r", ".nfs0001", ".thumbnails", ".hidden.png", "#recycle", "@Recycle", "__pycache__", ".~lock.cat.png#", "._.DS_Store"]


def paint(path, shade=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 90, 200)).save(path, format="PNG")
    return path


def lay(root, **splits):
    """Class folders: `train="cat dog", test="dog"`, two pictures each, of one shade a class."""
    for split, classes in splits.items():
        for name in classes.split():
            for i in range(2):
                paint(root / split / name / f"{i}.png", 10 * (sum(name.encode()) % 20))
    return root


def litter(folder):
    """Everything that systems leave: as files that are pictures inside, and as folders with a picture in them."""
    for name in LITTER:
        if "." in name[1:]:
            paint(folder / name)
        else:
            paint(folder / name / "0.png")


@pytest.mark.parametrize("name", LITTER)
def test_litter_is_known_by_its_name(name):
    assert is_litter(name) and is_litter(Path("pets") / name)


def test_what_is_data_is_no_litter():
    assert not any(map(is_litter, ["cat", "cat.png", "a.b", "1", "~cat", "#1", "@home", "$5", "recycled", "Thumbs", "found.png", "desktop", "ini"]))


@pytest.mark.parametrize("held_out", ["test", "val", "Test"])
def test_the_names_of_the_training_folders_rule(tmp_path, held_out):
    lay(tmp_path, **{"train": "cat dog fox", held_out: "fox dog"})
    train, test = ClassFolder(tmp_path / "train", 8), ClassFolder(tmp_path / held_out, 8)
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and test.labels.tolist() == [1, 1, 2, 2] and train.classes == test.classes == ("cat", "dog", "fox")
    assert ClassFolder(tmp_path / held_out, classes=["fox", "dog", "cat"]).labels.tolist() == [0, 0, 1, 1]     # or any that are given
    assert [batch["labels"].tolist() for batch in PictureBatches(test, 4, shuffle=False, workers=0)] == [[1, 1, 2, 2]]


def test_the_same_by_name(tmp_path):
    lay(tmp_path / "pets", train="cat dog fox", test="dog fox")
    assert load("pets", "test", root=tmp_path).labels.tolist() == [1, 1, 2, 2]
    folder = add("own", tmp_path / "pets", root=tmp_path)
    assert load("own", "test", root=tmp_path).labels.tolist() == [1, 1, 2, 2] and load("own", "test", root=tmp_path).classes == ("cat", "dog", "fox")
    add("two", tmp_path / "pets" / "train", tmp_path / "pets" / "test", root=tmp_path)
    assert (tmp_path / "two" / "test.npz").read_bytes() == (folder / "test.npz").read_bytes()


def test_unknown_and_empty_classes_are_refused_by_name(tmp_path):
    lay(tmp_path / "pets", train="cat dog", test="dog wolf")
    said = refused(load, "pets", "test", root=tmp_path)
    assert "unknown class 'wolf'" in said and "known: cat, dog, those of the training split" in said and str(tmp_path / "pets" / "test" / "wolf") in said
    (tmp_path / "pets" / "train" / "eel").mkdir()
    for split in ("train", "test"):
        assert f"{tmp_path / 'pets' / 'train' / 'eel'} holds no pictures; put some there, or remove it" in refused(load, "pets", split, root=tmp_path)
    paint(tmp_path / "pets" / "train" / "eel" / ".hidden.png")
    assert "eel holds no pictures" in refused(load, "pets", "train", root=tmp_path)


def test_litter_is_no_class_and_no_picture_in_any_reader(tmp_path, face_layouts):
    face_layouts.casia(face_layouts.uccs(face_layouts.scface(face_layouts.survface(face_layouts.tinyface(face_layouts.lfw(tmp_path))))))
    lay(tmp_path / "pets", train="cat dog", test="dog")
    lay(tmp_path / "imagenet", train="n00000001", val="n00000001")
    from kdnotes.data.sets.imagenet import imagenet
    from kdnotes.data.sets.lfw import lfw, lfw_development
    from kdnotes.data.sets.scface import scface
    from kdnotes.data.sets.survface import survface, survface_pairs
    from kdnotes.data.sets.tinyface import tinyface
    from kdnotes.data.sets.uccs import uccs

    def everything():
        parts = [lfw(tmp_path), *lfw_development(tmp_path)[:2], uccs("train", tmp_path, subjects=3), uccs("test", tmp_path, subjects=3), survface_pairs(tmp_path)[0]]
        parts += [part for test in (tinyface(tmp_path), survface(tmp_path), scface(tmp_path)) for part in test if part is not None]
        parts += [imagenet(["n00000001"], split, tmp_path) for split in ("train", "test")] + [ClassFolder(tmp_path / "pets" / split) for split in ("train", "test")]
        parts += [face_sets("casia_webface", 8, root=tmp_path).learnt, face_sets("tinyface", 8, root=tmp_path, least=1).learnt]
        return [(len(part), part.classes, part.labels.tolist()) for part in parts], [row["name"] for row in status(tmp_path) if row["kind"] == "folder"]

    clean = everything()
    for folder in [path for path in tmp_path.rglob("*") if path.is_dir()]:
        litter(folder)
    lay(tmp_path / ".trash", train="a b", test="a")
    lay(tmp_path / "__MACOSX", train="a b", test="a")
    assert everything() == clean
    assert {path.name for path in listed(tmp_path / "pets")} == {"train", "test"} and len(pictures_in(tmp_path / "pets" / "train" / "cat", "")) == 2


def test_one_name_in_two_spellings(tmp_path):
    one, two = (unicodedata.normalize(form, "Ren\u00e9 \u00c5") for form in ("NFC", "NFD"))
    assert one != two and composed(one) == composed(two)
    for i in range(2):
        paint(tmp_path / "train" / "Ann" / f"{i}.png"), paint(tmp_path / "train" / two / f"{i}.png"), paint(tmp_path / "test" / one / f"{i}.png")
    train, test = (ClassFolder(tmp_path / split, 8) for split in ("train", "test"))
    assert train.classes == test.classes == ("Ann", one) and test.labels.tolist() == [1, 1]
    assert below(tmp_path, f"train/{one}/0.png") == tmp_path / "train" / two / "0.png" and below(tmp_path, f"test/{one}/0.png").exists()
    paint(tmp_path / "train" / one / "0.png")
    assert "one name in two spellings" in refused(ClassFolder, tmp_path / "train")


def test_people_without_pictures_are_left_out(tmp_path):
    lay(tmp_path, people="ann bo")
    (tmp_path / "people" / "nobody").mkdir()
    assert identity_folders(tmp_path / "people").classes == ("ann", "bo")


# ---- hand-laid npz ------------------------------------------------------------------------------------------------------------------

x = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4)


def hand_lay(root, train, test, name="pets"):
    """`(labels, classes or None)` of both splits."""
    (root / name).mkdir(exist_ok=True)
    for split, (labels, classes) in (("train", train), ("test", test)):
        np.savez(root / name / f"{split}.npz", images=x[: len(labels)], labels=np.array(labels), **({} if classes is None else {"classes": np.array(classes)}))
    return [load(name, split, root=root) for split in ("train", "test")]


@pytest.mark.parametrize("train, test, classes, labels", [
    (([0, 1, 2], ["cat", "dog", "fox"]), ([0, 1], ["dog", "fox"]), ("cat", "dog", "fox"), [1, 2]),
    (([0, 1], ["cat", "dog"]), ([0, 1, 1], ["dog", "cat"]), ("cat", "dog"), [1, 0, 0]),
    (([0, 1, 2], ["cat", "dog", "fox"]), ([2, 1], None), ("cat", "dog", "fox"), [2, 1]),
    (([0, 1, 2], None), ([2, 0], ["cat", "dog", "fox"]), ("cat", "dog", "fox"), [2, 0]),
    (([0, 1, 2], None), ([1], None), ("0", "1", "2"), [1]),
    (([0, 1], ["cafe\u0301", "b"]), ([0], ["caf\u00e9"]), ("caf\u00e9", "b"), [0]),
    (([0, 0], ["ann", "bo"]), ([1], ["ann", "bo"]), ("ann", "bo"), [1])])
def test_the_names_of_the_training_file_rule(tmp_path, train, test, classes, labels):
    sets = hand_lay(tmp_path, train, test)
    assert sets[0].classes == sets[1].classes == classes and sets[1].labels.tolist() == labels and sets[0].labels.tolist() == train[0]
    add("again", tmp_path / "pets" / "train.npz", tmp_path / "pets" / "test.npz", root=tmp_path)
    assert [load("again", split, root=tmp_path).fingerprint() for split in ("train", "test")] == [part.fingerprint() for part in sets]


@pytest.mark.parametrize("train, test, message", [
    (([0, 1], ["cat", "dog"]), ([0], ["wolf"]), "unknown class 'wolf'"), (([0, 1], ["cat", "cat"]), ([0], None), "hold 'cat' twice"),
    (([0, 2], None), ([0], None), "no training image has label 1"), (([1, 2], None), ([1], None), "no training image has label 0"),
    (([0, 1], None), ([2], None), "labels run from 2 to 2; expected 0..1"), (([0, 1], ["cat", "dog"]), ([0, 5], ["dog", "cat"]), "labels run from 0 to 5")])
def test_files_whose_names_or_labels_do_not_fit(tmp_path, train, test, message):
    assert message in refused(hand_lay, tmp_path, train, test)
    assert message in refused(add, "again", tmp_path / "pets" / "train.npz", tmp_path / "pets" / "test.npz", root=tmp_path)


def test_a_damaged_test_file_does_not_harm_training(tmp_path):
    hand_lay(tmp_path, ([0, 1], None), ([1], None))
    (tmp_path / "pets" / "test.npz").write_bytes(b"PK\x03\x04")
    assert load("pets", "train", root=tmp_path).classes == ("0", "1")


# ---- one set without splits ---------------------------------------------------------------------------------------------------------

def test_a_flat_folder_is_split_and_installed(tmp_path):
    for k, name in enumerate(("cat", "dog", "fox")):
        for i in range(10 * k + 1):
            paint(tmp_path / "flat" / name / f"{i}.png", 80 * k + i, (8 + i % 3, 8))
    litter(tmp_path / "flat")
    assert "pass size= (--size of `kdnotes data add`)" in refused(add, "pets", tmp_path / "flat", root=tmp_path)
    add("pets", tmp_path / "flat", root=tmp_path, size=8)
    train, test = (load("pets", split, root=tmp_path) for split in ("train", "test"))
    assert train.labels.bincount().tolist() == [1, 9, 17] and test.labels.bincount(minlength=3).tolist() == [0, 2, 4] and train.classes == test.classes == ("cat", "dog", "fox")
    whole = ClassFolder(tmp_path / "flat", 8).load()
    assert join(train, test).take(join(train, test).images.flatten(1).double().mean(1).argsort()).images.equal(whole.take(whole.images.flatten(1).double().mean(1).argsort()).images)
    for name, seed, same in (("same", 0, True), ("other", 1, False)):
        add(name, str(tmp_path / "flat"), root=tmp_path, size=8, seed=seed)
        assert (load(name, "test", root=tmp_path).fingerprint() == test.fingerprint()) is same
    held, kept = ClassFolder(tmp_path / "flat", 8).split(0.2, 0)                   # the same as files, for sets that do not fit in memory
    assert held.load().fingerprint() == test.fingerprint() and not set(held.files) & set(kept.files)
    assert "fraction is 1.5" in refused(add, "no", tmp_path / "flat", root=tmp_path, size=8, test_share=1.5)
    assert "the class 'cat' of no has no image left to train on" in refused(add, "no", tmp_path / "flat", root=tmp_path, size=8, test_share=0.9)
    said = refused(load, "flat", "train", root=tmp_path)                          # where it lies as it is
    assert f"{tmp_path / 'flat'} has no train and test; split and install it with `kdnotes data add NAME {tmp_path / 'flat'}`" in said
    add("arrays", (x, np.arange(6) // 3), root=tmp_path, test_share=0.34)
    assert len(load("arrays", "test", root=tmp_path)) == 2


# ---- choosing, counting -------------------------------------------------------------------------------------------------------------

four = ImageSet(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.tensor([0, 1, 0, 1]), ("a", "b"))


def test_what_is_left_aside_is_said(tmp_path, caplog):
    """A folder may hold a third split, which a set of two does not take."""
    add("pets", lay(tmp_path / "given", train="cat dog", val="cat dog", test="cat dog"), root=tmp_path / "data")
    assert len(caplog.records) == 1 and "train and test are the two splits; left aside: val" in caplog.text
    add("others", lay(tmp_path / "two", train="cat dog", val="cat dog"), root=tmp_path / "data")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("chosen, rows", [
    ([2, 0], [2, 0]), ((3, -4), [3, 0]), (range(1, 3), [1, 2]), (slice(None, None, -2), [3, 1]), ([True, False, False, True], [0, 3]), (np.array([False, True, True, False]), [1, 2]),
    (torch.tensor([1, 3], dtype=torch.uint8), [1, 3]), (torch.tensor([0, 1, 0, 0], dtype=torch.bool), [1]), (torch.tensor([3], dtype=torch.uint16), [3]), (np.array([1], np.uint64), [1])])
def test_images_are_chosen_by_numbers_masks_and_slices(chosen, rows, tmp_path):
    assert four.take(chosen).images.flatten().tolist() == rows_of(chosen, 4).tolist() == rows
    pictures = ClassFolder(lay(tmp_path, pets="a b") / "pets")
    assert pictures.take(chosen).files == [pictures.files[i] for i in rows] and pictures.take(chosen).labels.tolist() == [pictures.labels[i] for i in rows]


@pytest.mark.parametrize("chosen, message", [
    ([0, 0], "0 is chosen twice"), ([1, -3], "1 is chosen twice"), ([4], "chosen by 4; expected numbers in -4..3"), ([-5], "chosen by -5"), ([True, False], "a mask of 2 entries for 4"),
    ([0.5], "float64"), (["a"], "expected integers"), (2, "expected integers"), ([[0]], "shape (1, 1)"), ([True, 2], "a mixture"), (np.array([2**64 - 1], np.uint64), "expected numbers in")])
def test_no_image_is_chosen_twice_or_from_outside(chosen, message):
    assert message in refused(four.take, chosen)
    assert rows_of([0, 0], 4, twice=True).tolist() == [0, 0]


def test_memory_goes_with_how_many_there_are():
    ids = torch.tensor([10**15, 7, 10**15, -5])
    assert rank_in_class(ids).tolist() == [0, 0, 1, 0] and rank_in_class(ids.int() * 0).tolist() == [0, 1, 2, 3]
    assert rank_in_class(torch.tensor([1] * 300, dtype=torch.uint8)).max() == 299
    assert "labels run to 1000000000000" in refused(as_image_set, x, np.array([0, 1, 2, 3, 4, 10**12]), None, "ids")
    assert "count is 0" in refused(first_of_each, four, 0) and "are no one set" in refused(join, four, ImageSet(four.images, four.labels, ("a", "c")))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.bool])
def test_labels_of_every_integer_type(dtype):
    labels = torch.tensor([0, 1, 0, 1]).to(dtype)
    assert ImageSet(four.images, labels, ("a", "b")).labels.equal(four.labels) and ImageSet(four.images, labels, ("a", "b")).fingerprint() == four.fingerprint()


# ---- lists --------------------------------------------------------------------------------------------------------------------------

def test_lists_of_names_are_read_as_any_program_writes_them(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "list.txt").write_bytes("Ann B. Lee\r\n\r\n Rene\u0301 \rx\n".encode(encoding))
        assert text_lines(tmp_path / "list.txt", "write it") == ["Ann B. Lee", " Ren\u00e9 ", "x"]
    (tmp_path / "list.txt").write_bytes(b"\xff\x00\xfa")
    assert "list.txt cannot be read" in refused(text_lines, tmp_path / "list.txt", "write it")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("gap", ["\t", " "])
def test_pairs_of_people_with_any_names(tmp_path, gap, end, mark):
    from kdnotes.data.sets.lfw import lfw, lfw_pairs, listed_people
    two = unicodedata.normalize("NFD", "Jos\u00e9 \u00c1.")
    for person in ("J. R. Dean", "Ann", two, "Louis 14"):
        for i in (1, 2):
            paint(tmp_path / "lfw" / person / f"{person}_{i:04d}.png")
    faces = lfw(tmp_path)
    one = unicodedata.normalize("NFC", two)
    rows = [["2", "1"], ["J. R. Dean", "1", "2"], ["J. R. Dean", "2", one, "1"], [one, "1", "2"], ["Louis 14", "1", "Ann", "2"]]
    (tmp_path / "lfw" / "pairs.txt").write_bytes((mark + end.join(gap.join(row) for row in rows) + end).encode())
    pairs = lfw_pairs(faces)
    names = [tuple(composed(faces.files[i].stem) for i in pair) for pair in zip(pairs.first, pairs.second)]
    assert names == [("J. R. Dean_0001", "J. R. Dean_0002"), ("J. R. Dean_0002", f"{one}_0001"), (f"{one}_0001", f"{one}_0002"), ("Louis 14_0001", "Ann_0002")]
    assert pairs.same.tolist() == [True, False, True, False]
    (tmp_path / "people.txt").write_bytes((mark + end.join(["2", f"J. R. Dean{gap}2", f"{two}{gap}2"])).encode())
    assert listed_people(tmp_path / "people.txt") == {"J. R. Dean", one}
