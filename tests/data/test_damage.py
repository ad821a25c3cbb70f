"""A damaged set harms nobody but those who ask for it, and two sets of one name are refused to those who ask for it."""

import io
import os
import re
import struct
import zipfile
import zlib

import numpy as np
import pytest

from kdnotes.batch.plan import check_data
from kdnotes.checks import refused
from kdnotes.cli import main
from kdnotes.data.catalogue import SOURCES, add, fetch, find_source, known, load, load_crowd, search_sets, status
from kdnotes.data.prepared import count_npz
from kdnotes.data.source import files_read

x, y = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8), np.array([0, 1, 0, 1])


def npz(**arrays):
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def zipped(**members):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return made.getvalue()


def header(text, length=None):
    """An array file of version 2 with this header."""
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text) if length is None else length) + text


def claims(shape, dtype="|u1"):
    return header(repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n")


def encrypted():
    """A good file whose members say that they are encrypted."""
    content = bytearray(WHOLE)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(re.escape(mark), WHOLE):
            content[found.start() + offset] |= 1
    return bytes(content)


def method(code):
    """A good file whose members say that they are packed in another way."""
    content = bytearray(WHOLE)
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        for found in re.finditer(re.escape(mark), WHOLE):
            content[found.start() + offset] = code
    return bytes(content)


WHOLE = npz(images=x, labels=y)
LABELS = WHOLE and npz(labels=y)
DAMAGED = {
    "empty": b"", "text": b"images = 1\n", "half": WHOLE[: len(WHOLE) // 2], "without its table": WHOLE[:-30], "no zip behind PK": b"PK\x03\x04" + bytes(300), "an array": b"",
    "encrypted": encrypted(), "unknown packing": method(99), "packed as bzip2, which it is not": method(12), "packed as lzma, which it is not": method(14),
    "one bit flipped in the pixels": bytes(b ^ (i == 400) for i, b in enumerate(WHOLE)), "a huge header": zipped(images=claims((4, 8, 8)), labels=header(b"{" + b" " * 50_000_000)),
    "a header that promises 4 GB": zipped(images=header(b"{}", 2**32 - 1), labels=header(b"{}", 2**32 - 1)), "a header of nonsense": zipped(images=header(b"((((("), labels=header(b"@")),
    "deep brackets": zipped(images=header(b"(" * 9000), labels=header(b"(" * 9000)), "10^15 images": zipped(images=claims((10**15, 8, 8)), labels=claims((10**15,), "<i8")),
    "negative shapes": zipped(images=claims((-4, 8, 8)), labels=claims((-4,))), "more digits than Python reads": zipped(images=header(b"9" * 5000), labels=header(b"9" * 5000)),
    "objects": npz(images=np.array([x, None], object), labels=np.array([y, None], object)), "other arrays": npz(pictures=x), "no images": npz(labels=y), "version 9": zipped(images=b"\x93NUMPY\x09\x00" + bytes(60), labels=b""),
    "unequal lengths": npz(images=x, labels=y[:3]), "no array inside": zipped(images=b"hello", labels=b"hello"), "a name twice": None, "pixels as floats": npz(images=x / 255, labels=y),
}
UNSEEN = {"one bit flipped in the pixels", "pixels as floats"}                   # told by reading, not by counting


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path))
    add("fine", (x, y), (x, y))
    return tmp_path


def damage(root, content, name="pets"):
    (root / name).mkdir()
    for split in ("train", "test"):
        (root / name / f"{split}.npz").write_bytes(content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_harms_nobody_else_and_is_named(root, kind, capsys):
    content = DAMAGED[kind]
    if kind == "an array":
        content = io.BytesIO()
        np.save(content, x)
        content = content.getvalue()
    if kind == "a name twice":
        with zipfile.ZipFile(made := io.BytesIO(), "w") as archive:
            for _ in range(2):
                archive.writestr("images.npy", b"x")
        content = made.getvalue()
    damage(root, content)
    assert len(load("fine", "train")) == 4 and len(load("digits", "test")) == 355                       # nobody who does not ask for it
    check_data(type("Config", (), {"dataset": "digits"}), "digits+fine", None)
    rows = {row["name"]: row for row in status()}
    assert rows["fine"]["state"] == "present" and rows["fine"]["images"] == "4 + 4"
    assert main(["data"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("pets"))
    if kind not in UNSEEN:
        assert rows["pets"]["state"] == "damaged" and not rows["pets"]["present"] and "damaged" in line and "train.npz cannot be read" in line
        assert "train.npz" in refused(count_npz, root / "pets" / "train.npz")
    said = refused(load, "pets", "train")                                                               # whoever asks is told in one line
    assert "train.npz" in said and "delete it, then install it with `kdnotes data add pets TRAIN TEST`" in said and len(said) < 2000


def test_a_huge_array_is_counted_without_reading_it(root):
    """A header of a few bytes is all that is looked at: 256 MiB of zeros are packed into one here."""
    shape = (2**18, 32, 32)
    packer, crc, block, left = zlib.compressobj(1, wbits=-15), 0, bytes(2**24), 2**28
    head = claims(shape)
    packed = [packer.compress(head)]
    crc = zlib.crc32(head)
    while left:
        packed.append(packer.compress(block))
        crc, left = zlib.crc32(block, crc), left - len(block)
    data, size = b"".join(packed) + packer.flush(), len(head) + 2**28
    local = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, 0, 8, 0, 0, crc, len(data), size, 10, 0) + b"images.npy" + data
    labels = zipped(labels=claims((2**18,)) + bytes(2**18))
    central = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, crc, len(data), size, 10, 0, 0, 0, 0, 0, 0) + b"images.npy"
    end = labels.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", labels[end + 16 : end + 20])[0]
    member, entry = labels[:start], bytearray(labels[start:end])
    entry[42:46] = struct.pack("<I", len(local))
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 2, 2, len(central) + len(entry), len(local) + len(member), 0)
    (root / "large.npz").write_bytes(local + member + central + bytes(entry) + tail)
    assert count_npz(root / "large.npz") == 2**18


def test_things_that_are_no_files(root):
    for name in ("folders", "links", "mixed"):
        (root / name).mkdir()
    for split in ("train", "test"):
        (root / "folders" / f"{split}.npz").mkdir()
        (root / "links" / f"{split}.npz").symlink_to(root / "nowhere")
    (root / "mixed" / "train.npz").mkdir()
    (root / "mixed" / "test.npz").write_bytes(WHOLE)
    (root / "train.npz").mkdir()                                                 # a folder of that name in the root itself
    rows = {row["name"]: row for row in status()}
    assert rows["folders"]["state"] == rows["mixed"]["state"] == "damaged" and rows["links"]["state"] == "absent" and rows["fine"]["present"]
    for name in ("folders", "mixed", "links"):
        assert "train.npz is" in refused(load, name, "train")
    assert len(load("digits", "test")) == 355 and main(["data"]) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read(root):
    damage(root, WHOLE)
    (root / "pets" / "train.npz").chmod(0)
    add("shut", (x, y), (x, y))
    (root / "shut").chmod(0)
    try:
        assert {row["name"]: row["state"] for row in status()}["pets"] == "damaged" and len(load("fine", "train")) == 4
        assert "train.npz" in refused(load, "pets", "train") and refused(load, "shut", "train")
    finally:
        (root / "shut").chmod(0o700)


def test_no_file_is_opened_but_those_asked_for(root):
    damage(root, WHOLE)
    with files_read() as found:
        assert {"pets", "fine"} <= known().keys()
        find_source("fine")
        load("digits", "train")
        check_data(type("Config", (), {"dataset": "digits"}), "fine", None)
    assert found == []
    with files_read() as found:
        load("fine", "train")
    assert found == [root / "fine" / "train.npz"]
    with files_read() as found:
        load("fine", "test")
    assert set(found) == {root / "fine" / "test.npz", root / "fine" / "train.npz"}   # whose names rule


@pytest.mark.parametrize("name", ["../fine", "fine/../fine", "./fine", ".", "..", "", "/", "fine/", "a\0b", "fine\n", ".hidden", "\\fine", "~", "x" * 5000, "caf\udce9"])
def test_what_is_no_name_never_becomes_a_path(root, name):
    for ask in (lambda: find_source(name), lambda: load(name, "train"), lambda: add(name, (x, y), (x, y)) if len(name) < 300 else load(name, "test")):
        said = refused(ask)
        assert "unknown data set" in said or "cannot name a prepared set" in said
    for ask in (load_crowd, lambda name: search_sets(name, 8), fetch):
        assert refused(ask, name)


def test_a_folder_with_an_odd_name_does_not_disturb_the_list(root, capsys):
    for name in (b"caf\xe9", b"two\nlines", b".hidden"):
        os.mkdir(os.path.join(os.fsencode(root), name))
        with open(os.path.join(os.fsencode(root), name, b"train.npz"), "wb") as file:
            file.write(WHOLE)
    assert main(["data"]) == 0 and "fine" in capsys.readouterr().out


# ---- two sets of one name ---------------------------------------------------------------------------------------------------------------

def class_folders(root, name):
    from PIL import Image
    for split in ("train", "test"):
        for k in range(2):
            (root / name / split / f"class{k}").mkdir(parents=True)
            Image.new("RGB", (8, 8), (90 * k, 0, 0)).save(root / name / split / f"class{k}" / "0.png")


def check_refused(root, name, others=("fine",)):
    for ask in (lambda: load(name, "train"), lambda: find_source(name), lambda: check_data(type("Config", (), {"dataset": "digits"}), f"fine+{name}", None) or find_source(name)):
        said = refused(ask)
        assert said.startswith(f"two sets are called {name!r}: ") and "move one away or rename its folder" in said and str(root / name) in said
    row = next(row for row in status() if row["name"] == name)
    assert row["state"] == "ambiguous" and not row["present"] and str(root / name) in row["where"]
    for other in others:
        assert len(load(other, "train")) == 4                                    # other names go on


@pytest.mark.parametrize("name", ["digits", "faces"])
@pytest.mark.parametrize("make", [class_folders, lambda root, name: damage(root, WHOLE, name)])
def test_a_folder_named_like_a_set_that_needs_no_file(root, name, make):
    make(root, name)
    check_refused(root, name)
    assert len(load("mnist5k", "test")) == 1000


def test_an_npz_set_and_a_class_folder_of_one_name(root):
    class_folders(root, "pets")
    assert len(load("pets", "train")) == 2
    damage_folder = root / "pets"
    for split in ("train", "test"):
        (damage_folder / f"{split}.npz").write_bytes(WHOLE)
    check_refused(root, "pets")


def test_an_own_copy_beside_the_set_that_is_known(root, face_layouts):
    add("cifar10", (x, y), (x, y))
    assert find_source("cifar10").kind == "prepared" and len(load("cifar10", "train", download=True)) == 4      # the only one there
    assert "holds a set of your own that is called 'cifar10'" in refused(fetch, "cifar10")
    (root / "cifar-10-batches-py").mkdir()
    (root / "cifar-10-batches-py" / "data_batch_1").touch()
    check_refused(root, "cifar10")
    face_layouts.uccs(root)
    assert find_source("uccs").kind == "layout"
    damage_folder = root / "uccs"
    (damage_folder / "train.npz").write_bytes(WHOLE)
    check_refused(root, "uccs")


def test_nothing_is_installed_under_a_name_that_is_taken(root, face_layouts):
    face_layouts.uccs(root)
    class_folders(root, "flags")
    for name in ("uccs", "flags"):
        assert f"holds a set that is called {name!r}; choose another name" in refused(add, name, (x, y), (x, y))
        assert not (root / name / "train.npz").exists()
    for name in ("digits", "faces", "mnist5k"):
        assert "cannot name a prepared set" in refused(add, name, (x, y), (x, y))


def test_a_crowd_that_lies_twice(root):
    for folder in (root / "music", root / "crowds" / "music"):
        folder.mkdir(parents=True)
    said = refused(load_crowd, "music")
    assert said.startswith("two sets are called 'music'") and str(root / "crowds" / "music") in said


def test_every_family_has_names_of_its_own():
    assert len(SOURCES) == len({source.name for source in SOURCES.values()}) and all(name == source.name for name, source in SOURCES.items())
    assert {"digits", "mnist", "imagenette", "cub200", "cars196", "lfw", "uccs", "casia_webface", "tinyface", "survface", "scface", "faces"} <= SOURCES.keys()
