"""Picture folders: the layouts as they are distributed, in miniature, and streaming against batches in memory."""
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from kdnotes.data.augment import Augment
from kdnotes.data.batches import Batches, PictureBatches
from kdnotes.data.pictures import ClassFolder
from kdnotes.data.sets.cars import cars196
from kdnotes.data.sets.celeba import celeba, celeba_identities
from kdnotes.data.sets.cub import cub200
from kdnotes.data.sets.lfw import lfw, lfw_pairs
from kdnotes.data.sets.uccs import uccs
from kdnotes.data.catalogue import face_sets, load


def paint(path, colour, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def shade(k):
    return (10 + k % 16 * 15, 10 + k // 16 * 15, 128)


@pytest.fixture
def colours(tmp_path):
    for k in range(4):
        for i in range(6):
            paint(tmp_path / "colours" / f"class{k}" / f"{i}.png", shade(6 * k + i), (20, 16 + i))
    return ClassFolder(tmp_path / "colours", size=8)


def test_class_folder(colours):
    assert len(colours) == 24 and colours.name == "colours" and colours.labels.bincount().tolist() == [6] * 4
    pictures = colours.load()
    assert pictures.shape == (3, 8, 8) and all(pictures.images[i].equal(colours[i]) and tuple(colours[i][:, 0, 0].tolist()) == shade(i) for i in range(24))
    with pytest.raises(FileNotFoundError, match="holds no pictures; expected .*<class>"):
        ClassFolder(colours.files[0].parent)
    with pytest.raises(FileNotFoundError, match="absent holds no pictures"):
        ClassFolder("/absent")


@pytest.mark.parametrize("workers, per_class", [(0, None), (0, 2), (2, None)])
def test_stream_equals_batches_in_memory(colours, workers, per_class):
    transform = Augment((0.5,) * 3, (0.25,) * 3)
    streamed = PictureBatches(colours, 8, seed=3, per_class=per_class, transform=transform, workers=workers)
    resident = Batches(colours.load(), 8, seed=3, per_class=per_class, transform=transform)
    state = torch.get_rng_state()
    for epoch in (0, 1):
        streamed.set_epoch(epoch)
        resident.set_epoch(epoch)
        for a, b in zip(streamed, resident, strict=True):
            assert all(a[key].equal(b[key]) for key in ("images", "labels", "index"))
    assert torch.get_rng_state().equal(state) and len(streamed) == 3


def test_stream_shares_and_reproduces(colours):
    noise = lambda batch, generator: batch | {"noise": torch.rand(len(batch["labels"]), generator=generator)}
    alone, *two = (list(PictureBatches(colours, 8, seed=1, transform=noise, workers=0, rank=r, world=w)) for r, w in ((0, 1), (0, 2), (1, 2)))
    for whole, a, b in zip(alone, *two, strict=True):
        assert whole["index"].equal(torch.cat([a["index"], b["index"]])) and whole["images"].equal(torch.cat([a["images"], b["images"]]))
        assert not a["noise"].equal(b["noise"])
    again = list(PictureBatches(colours, 8, seed=1, transform=noise, workers=0))
    assert all(a["noise"].equal(b["noise"]) for a, b in zip(alone, again))
    last = list(PictureBatches(colours, 10, shuffle=False, workers=0))
    assert [len(b["labels"]) for b in last] == [10, 10, 4] and torch.cat([b["index"] for b in last]).equal(torch.arange(24))


def test_stream_refuses_what_cannot_be(colours):
    with pytest.raises(ValueError, match="no common size; expected size="):
        PictureBatches(ClassFolder(colours.files[0].parents[1]), 4)
    for arguments, message in (({"batch_size": 25, "drop_last": True}, "exceeds the 24 images"), ({"batch_size": 8, "world": 3}, "cannot share"), ({"batch_size": 8, "per_class": 3}, "it divides")):
        with pytest.raises(ValueError, match=message):
            PictureBatches(colours, **arguments)
    colours.files[5].write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"class0.5.png cannot be read"):
        list(PictureBatches(colours, 24, workers=0))


# ---- CUB-200-2011 -------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def cub(tmp_path):
    """200 classes of two pictures; the lines of one table are in another order, as nothing promises that they are not."""
    folder = tmp_path / "CUB_200_2011"
    names = [f"{c + 1:03d}.Bird{c}/Bird{c}_{i}.jpg" for c in range(200) for i in range(2)]
    for k, name in enumerate(names):
        paint(folder / "images" / name, shade(k % 200), (24, 16))
    lines = {"images": names, "image_class_labels": [k // 2 + 1 for k in range(400)], "train_test_split": [1 - k % 2 for k in range(400)],
             "bounding_boxes": ["4.0 2.0 12.0 10.0"] * 400}
    for file, values in lines.items():
        numbered = [f"{i + 1} {value}" for i, value in enumerate(values)]
        (folder / f"{file}.txt").write_text("\n".join(numbered[::-1] if file == "train_test_split" else numbered) + "\n")
    (folder / "classes.txt").write_text("\n".join(f"{c + 1} {c + 1:03d}.Bird{c}" for c in range(200)) + "\n")
    return tmp_path


def test_cub200(cub):
    train, test = (cub200(split, cub, size=8) for split in ("train", "test"))
    assert len(train) == len(test) == 200 and set(train.labels.tolist()) == set(range(100)) and set(test.labels.tolist()) == set(range(100, 200))
    assert train.classes == test.classes and train.classes[3] == "004.Bird3" and len(train.classes) == 200
    assert all(file.parent.name == train.classes[y] for file, y in zip(train.files, train.labels))
    official = cub200("train", cub, size=8, protocol="official")
    assert official.labels.tolist() == list(range(200)) and all(file.stem.endswith("_0") for file in official.files)
    assert cub200("train", cub, boxed=True)[0].shape == (3, 10, 12) and cub200("train", cub)[0].shape == (3, 16, 24)
    loaded = load("cub200", "test", root=cub, size=8)
    assert loaded.shape == (3, 8, 8) and len(loaded.select(range(100, 200), relabel=True).classes) == 100


def test_cub200_bad_input(cub):
    with pytest.raises(ValueError, match="protocol is 'half'; expected 'disjoint' or 'official'"):
        cub200("train", cub, protocol="half")
    table = cub / "CUB_200_2011" / "image_class_labels.txt"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]))
    with pytest.raises(ValueError, match="images.txt cannot be read .*every table must list the same ids"):
        cub200("train", cub)
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"image_class_labels.txt is missing; unpack .*CUB_200_2011.tgz"):
        cub200("train", cub)
    with pytest.raises(FileNotFoundError, match="images.txt is missing; unpack"):
        load("cub200", "train", root=cub / "elsewhere")


# ---- Cars196 ------------------------------------------------------------------------------------------------------------------------

CLASSES = np.array([f"Car {c}" for c in range(196)], dtype=object)


def annotations(rows, fields):
    return np.array([rows], dtype=[(field, object) for field in fields])


@pytest.fixture
def cars_table(tmp_path):
    rows = [(f"car_ims/{k + 1:06d}.jpg", 4, 2, 16, 12, k // 2 + 1, k % 2) for k in range(392)]
    for name, *_ in rows:
        paint(tmp_path / "stanford_cars" / name, shade(7))
    savemat(tmp_path / "stanford_cars" / "cars_annos.mat",
            {"annotations": annotations(rows, ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]), "class_names": CLASSES[None]})
    return tmp_path


@pytest.fixture
def cars_devkit(tmp_path):
    folder = tmp_path / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": CLASSES[None]})
    for split, table in (("train", folder / "devkit" / "cars_train_annos.mat"), ("test", folder / "cars_test_annos_withlabels.mat")):
        rows = [(4, 2, 16, 12, c + 1, f"{c + 1:05d}.jpg") for c in range(196)]
        for *_, name in rows:
            paint(folder / f"cars_{split}" / name, shade(7))
        savemat(table, {"annotations": annotations(rows, ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"])})
    return tmp_path


@pytest.mark.parametrize("layout", ["cars_table", "cars_devkit"])
def test_cars196(layout, request):
    root = request.getfixturevalue(layout)
    train, test = (cars196(split, root, size=8) for split in ("train", "test"))
    assert len(train) == len(test) == 196 and set(train.labels.tolist()) == set(range(98)) and set(test.labels.tolist()) == set(range(98, 196))
    assert train.classes[5] == "Car 5" and train.load().shape == (3, 8, 8)
    assert cars196("train", root, protocol="official").labels.tolist() == cars196("test", root, protocol="official").labels.tolist() == list(range(196))
    assert cars196("test", root, boxed=True)[0].shape == (3, 10, 12)


def test_cars196_bad_input(cars_devkit):
    (cars_devkit / "stanford_cars" / "cars_test_annos_withlabels.mat").write_bytes(b"MATLAB 5.0 MAT-file, cut short")
    with pytest.raises(ValueError, match="cars_test_annos_withlabels.mat cannot be read .*put cars_annos.mat"):
        cars196("test", cars_devkit)
    with pytest.raises(FileNotFoundError, match="stanford_cars is missing; put cars_annos.mat"):
        load("cars196", "test", root=cars_devkit / "nowhere")


# ---- faces --------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def faces(tmp_path):
    for k, (person, n) in enumerate({"Ann_Lee": 3, "Bo_Chi": 2, "Cy_Di": 1}.items()):
        for i in range(n):
            paint(tmp_path / "lfw" / person / f"{person}_{i + 1:04d}.jpg", shade(k))
    (tmp_path / "lfw" / "pairs.txt").write_text("2\t1\nAnn_Lee\t1\t3\nAnn_Lee\t2\tCy_Di\t1\nBo_Chi\t1\t2\nBo_Chi\t2\tAnn_Lee\t1\n")
    return tmp_path


def test_lfw(faces):
    pictures = lfw(faces, size=8)
    assert len(pictures) == 6 and pictures.classes == ("Ann_Lee", "Bo_Chi", "Cy_Di")
    pairs = lfw_pairs(pictures)
    names = [(pictures.files[a].stem, pictures.files[b].stem) for a, b in zip(pairs.first, pairs.second)]
    assert names == [("Ann_Lee_0001", "Ann_Lee_0003"), ("Ann_Lee_0002", "Cy_Di_0001"), ("Bo_Chi_0001", "Bo_Chi_0002"), ("Bo_Chi_0002", "Ann_Lee_0001")]
    assert pairs.same.tolist() == [True, False, True, False] and pairs.folds == 2
    assert (pictures.labels[pairs.first] == pictures.labels[pairs.second]).equal(pairs.same)
    assert len(load("lfw", "test", root=faces, size=8)) == 6
    with pytest.raises(ValueError, match="lfw has no training split"):
        load("lfw", "train", root=faces, size=8)


@pytest.mark.parametrize("text, message", [
    ("2 1\nAnn_Lee 1 2\n", "its first line promises 4 pairs, 1 follow"), ("1 1\nAnn_Lee 1 2\nAnn_Lee 1 Nobody 1\n", "Nobody_0001"),
    ("", "cannot be read"), ("1 1\nAnn_Lee one 2\nAnn_Lee 1 Cy_Di 1\n", "'Ann_Lee one 2' names no pair of pictures")])
def test_lfw_pairs_bad_input(faces, text, message):
    (faces / "lfw" / "pairs.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        lfw_pairs(lfw(faces, size=8))


def test_uccs(tmp_path):
    for k in range(6):
        for i in range(10 if k else 4):                                          # subject 0 has too few pictures to be chosen
            paint(tmp_path / "uccs" / f"subject{k}" / f"{i:02d}.jpg", shade(k))
    train, test = (uccs(split, tmp_path, size=8, subjects=3) for split in ("train", "test"))
    assert train.labels.bincount().tolist() == [8] * 3 and test.labels.bincount().tolist() == [2] * 3 and train.classes == test.classes
    assert "subject0" not in train.classes and not set(train.files) & set(test.files)
    assert all(file.parent.name == test.classes[y] for file, y in zip(test.files, test.labels))
    assert uccs("train", tmp_path, subjects=3, seed=0).classes == train.classes
    assert len({uccs("train", tmp_path, subjects=3, seed=s).classes for s in range(8)}) > 1
    with pytest.raises(ValueError, match="5 subjects in .* have at least 5 pictures; 180 were asked for"):
        uccs("train", tmp_path)


def test_celeba(tmp_path, face_layouts):
    root = face_layouts.celeba(tmp_path)
    train, test = (celeba(split, root, 64) for split in ("train", "test"))
    assert train.classes == ("female", "male") and train.labels.tolist() == [1, 0, 1, 1, 0] and test.labels.tolist() == [0, 1, 0]
    assert train[0].shape == (3, 64, 64) and [file.name for file in test.files] == ["000007.jpg", "000008.jpg", "000009.jpg"]
    hair = celeba("train", root, 16, "hair")
    assert hair.classes == ("black", "blond", "brown") and hair.labels.tolist() == [0, 1, 2], "none or two colours are no colour"
    people = [celeba_identities(split, root) for split in ("train", "test")]
    assert people[0].labels.tolist() == [0, 1, 0, 1, 0] and people[0].classes == ("2880", "2937") and not {*people[0].classes} & {*people[1].classes}
    assert load("celeba_gender", "test", root, 8).images.shape == (3, 3, 8, 8) and load("celeba_hair", "test", root, 8).labels.tolist() == [1, 2, 0]
    found = face_sets("celeba", 8, least=3, root=root)
    assert found.learnt.classes == ("2880",) and len(found.learnt) == 3 and found.pairs is None


@pytest.mark.parametrize("name, text, message", [
    ("list_attr_celeba", "3\nMale\n000001.jpg 1\n", "promises 3 pictures, 1 follow"),
    ("list_attr_celeba", "1\nMale\n000001.jpg 0\n", "000001.jpg is not 1 times 1 or -1"),
    ("list_attr_celeba", "1\nYoung\n000001.jpg 1\n", "no attribute 'Male' among 1"),
    ("list_attr_celeba", "1\nMale\n000001.jpg 1\n", "does not know 000002.jpg"),
    ("list_eval_partition", "000001.jpg zero\n", "lines `picture number`"),
    ("list_eval_partition", "000001.jpg 1\n", "name no picture of this part"),
    ("list_eval_partition", "../../x.jpg 0\n", "does not know ../../x.jpg"),
])
def test_celeba_bad_input(tmp_path, face_layouts, name, text, message):
    root = face_layouts.celeba(tmp_path)
    (root / "celeba" / f"{name}.txt").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as told:
        celeba("train", root)
    assert message in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(FileNotFoundError, match="img_align_celeba"):
        load("celeba_hair", "train", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="task is 'smile'"):
        celeba("train", root, task="smile")
