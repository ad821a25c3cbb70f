"""Sources: one sentence for every damage, no path out of a set's folder, and the files that a reading opened."""

import errno
import gzip
import os
import struct
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from kdnotes.checks import refused
from kdnotes.data.batches import PictureBatches
from kdnotes.data.catalogue import add, load, search_sets
from kdnotes.data.pictures import ClassFolder
from kdnotes.data.source import Source, below, files_of, files_read, note_read, reading


@pytest.mark.parametrize("error", [
    RuntimeError("File is encrypted"), NotImplementedError("compression"), MemoryError(), RecursionError("deep"), struct.error("unpack"), OverflowError("large"),
    SyntaxError("header"), AttributeError("no such"), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), PermissionError(errno.EACCES, "denied"), KeyError("a\nb"),
    AssertionError("odd"), zipfile.BadZipFile("no zip"), EOFError()], ids=lambda error: type(error).__name__)
def test_whatever_a_reader_raises_is_one_line_with_the_file(error):
    def read():
        with reading(Path("pets/train.npz"), "replace it"):
            raise error

    said = refused(read)
    assert said.startswith("pets/train.npz cannot be read (") and said.endswith("); replace it")


def test_an_interrupt_is_no_damage():
    with pytest.raises(KeyboardInterrupt), reading(Path("x"), "y"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", "a\0b"])
def test_nothing_leads_out_of_a_folder(name):
    assert "is no file below" in refused(below, Path("lfw"), name)
    assert below(Path("lfw"), "a/b.jpg") == Path("lfw/a/b.jpg")


def test_a_source_knows_what_is_missing_and_what_has_begun(tmp_path):
    source = Source("toy", "layout", "", "", None, files_of("a.gz", "b.gz"))
    assert [path.name for path in source.missing(tmp_path)] == ["a.gz", "b.gz"] and not source.begun(tmp_path)
    (tmp_path / "a").touch()                                                     # unpacked beside its archive
    assert [path.name for path in source.missing(tmp_path)] == ["b.gz"] and source.begun(tmp_path)
    assert Source("drawn", "drawn", "", "", None).begun(tmp_path)


# ---- files_read -------------------------------------------------------------------------------------------------------------------------

def names(found):
    return [path.name for path in found]


def test_every_reader_is_heard(tmp_path):
    """Python's open, pathlib, os.open, gzip, NumPy's four readers, SciPy, pandas, Pillow and torch.load."""
    import pandas as pd
    x = np.arange(6, dtype=np.uint8)
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "b.npz", x=x)
    np.savetxt(tmp_path / "c.txt", x)
    x.tofile(tmp_path / "d.bin")
    savemat(tmp_path / "e.mat", {"x": x})
    pd.DataFrame({"x": x}).to_csv(tmp_path / "f.csv")
    Image.new("RGB", (4, 4)).save(tmp_path / "g.png")
    torch.save({"x": 1}, tmp_path / "h.pt")
    (tmp_path / "i.gz").write_bytes(gzip.compress(b"x"))
    (tmp_path / "j.raw").write_bytes(b"x")
    with files_read(tmp_path) as found:
        np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npz")["x"], np.loadtxt(tmp_path / "c.txt"), np.fromfile(tmp_path / "d.bin", np.uint8)
        loadmat(tmp_path / "e.mat"), pd.read_csv(tmp_path / "f.csv"), Image.open(tmp_path / "g.png").load(), torch.load(tmp_path / "h.pt", weights_only=True)
        gzip.open(tmp_path / "i.gz").read()
        os.close(os.open(tmp_path / "j.raw", os.O_RDONLY))
        open(tmp_path / "j.raw", "rb").close()
    assert names(found) == ["a.npy", "b.npz", "c.txt", "d.bin", "e.mat", "f.csv", "g.png", "h.pt", "i.gz", "j.raw"]      # each once, in order


def test_only_what_was_read_inside_and_below(tmp_path, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    for name in ("before", "inside", "after", "nested"):
        (root / name).write_text(name)
    (tmp_path / "beside").write_text("x")
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "beside").write_text("x")
    (root / "before").read_text()
    monkeypatch.chdir(tmp_path)
    with files_read("root") as found:                                            # a relative root, and a relative path below it
        Path("root/inside").read_text()
        (tmp_path / "beside").read_text(), (tmp_path / "root2" / "beside").read_text()
        (root / "written").write_text("x")
        open(root / "inside", "a").close()
        assert not (root / "absent").exists()
        with pytest.raises(FileNotFoundError):
            (root / "absent").read_text()
        with files_read(root) as inner:
            (root / "nested").read_bytes()
        assert found == []                                                       # it is complete when the block ends
    (root / "after").read_text()
    assert names(found) == ["inside", "nested"] and names(inner) == ["nested"] and all(path.is_absolute() for path in found)


def test_threads_are_heard_and_an_error_ends_the_listening(tmp_path):
    paths = [tmp_path / f"{i}.txt" for i in range(40)]
    for path in paths:
        path.write_text("x")
    started, go = threading.Event(), threading.Event()

    def early():
        started.set()
        go.wait()
        paths[0].read_text()

    thread = threading.Thread(target=early)                                      # started before the block, reads inside it
    thread.start()
    started.wait()
    with pytest.raises(KeyError), files_read(tmp_path) as found:
        go.set()
        thread.join()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(Path.read_bytes, paths[1:]))
        raise KeyError
    assert sorted(found) == sorted(paths)
    paths[0].read_text()
    note_read(paths)
    assert len(found) == 40


def test_sets_name_their_files(tmp_path, face_layouts):
    face_layouts.tinyface(tmp_path)
    x = np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2
    add("pets", x, x, root=tmp_path)
    with files_read(tmp_path) as found:
        load("pets", "train", root=tmp_path), load("digits", "test", root=tmp_path)
    assert found == [tmp_path / "pets" / "train.npz"]
    with files_read(tmp_path) as found:
        search_sets("tinyface", 8, root=tmp_path)
    assert len(found) == 2 + 4 + 3 + 3 and {path.suffix for path in found} == {".mat", ".jpg"}
    faces = ClassFolder(tmp_path / "tinyface" / "Training_Set", size=8)
    for workers in (0, 1):                                                       # worker processes read where this one cannot hear them
        with files_read(tmp_path) as found:
            list(PictureBatches(faces, 1, workers=workers))
        assert sorted(found) == sorted(faces.files)
