"""ImageNet's subsets and Tiny ImageNet, in their true layouts, in miniature."""
import pytest
from PIL import Image

from kdnotes.data.sets.imagenet import SUBSETS, imagenet, phase_of, tiny_imagenet, wnids_of
from kdnotes.data.catalogue import known, load


def paint(path, colour, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, "JPEG", quality=95)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three training and two validation pictures of each class of ImageNette; the shade tells the class, and the folders come in another order."""
    place = tmp_path_factory.mktemp("data")
    for k, wnid in reversed(list(enumerate(SUBSETS["imagenette"]))):
        for split, count in (("train", 3), ("val", 2)):
            for i in range(count):
                paint(place / "imagenet" / split / wnid / f"{wnid}_{i}.JPEG", (20 * k + 10, 0, 0), (20 + k, 16 + 3 * i))
        (place / "imagenet" / "train" / wnid / "readme.txt").write_text("no picture")
    for k, wnid in enumerate(("n00000003", "n00000001")):
        for i in range(4):
            paint(place / "tiny-imagenet-200" / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", (0, 0, 100 * k + 50), (64, 64))
        paint(place / "tiny-imagenet-200" / "val" / "images" / f"val_{k}.JPEG", (0, 0, 100 * k + 50), (64, 64))
    (place / "tiny-imagenet-200" / "wnids.txt").write_text("n00000003\nn00000001\n")
    (place / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text("val_1.JPEG\tn00000001\t0\t0\t63\t63\nval_0.JPEG\tn00000003\t0\t0\t63\t63\n")
    return place


def test_the_lists():
    assert sorted(SUBSETS) == ["imagefruit", "imagemeow", "imagenette", "imagesquawk", "imagewoof", "imageyellow"]
    assert all(len(set(wnids)) == 10 for wnids in SUBSETS.values()) and len({w for ws in SUBSETS.values() for w in ws}) == 57
    assert SUBSETS["imagenette"][:2] == ("n01440764", "n02102040") and SUBSETS["imageyellow"][-1] == "n01531178"


def test_a_subset(root):
    train, test = (imagenet("imagenette", split, root, size=8) for split in ("train", "test"))
    assert train.classes == SUBSETS["imagenette"] and train.labels.bincount().tolist() == [3] * 10 and test.labels.bincount().tolist() == [2] * 10
    loaded = train.load()
    assert loaded.shape == (3, 8, 8) and loaded.name == "imagenette"
    shade = loaded.images[:, 0].float().mean((1, 2))
    assert (shade - 20.0 * loaded.labels - 10).abs().max() < 4                                      # every picture has the label of its folder
    assert load("imagenette", "test", root=root, size=8).images.equal(test.load().images) and load("imagenette", "test", root=root).shape == (3, 128, 128)


def test_own_lists_and_phases(root, tmp_path):
    wnids = list(SUBSETS["imagenette"][4:7])
    (tmp_path / "mine.txt").write_text("\n".join(f"{w} a name" for w in wnids) + "\n\n")
    assert imagenet(tmp_path / "mine.txt", "train", root, 8).classes == tuple(wnids) == imagenet(wnids, "test", root, 8).classes
    phases = [imagenet("imagenette", "train", root, 8, phase=(p, 5)) for p in range(5)]
    assert [p.classes for p in phases] == [SUBSETS["imagenette"][2 * p : 2 * p + 2] for p in range(5)]
    assert all(p.labels.bincount().tolist() == [3, 3] for p in phases)
    hundred = [f"n{i:08d}" for i in range(100)]
    assert [phase_of(hundred, (p, 5))[0] for p in range(5)] == ["n00000000", "n00000020", "n00000040", "n00000060", "n00000080"]


def test_tiny_imagenet(root):
    train, test = (tiny_imagenet(split, root) for split in ("train", "test"))
    assert train.classes == ("n00000001", "n00000003") and train.labels.tolist() == [0] * 4 + [1] * 4 and test.labels.tolist() == [0, 1]
    for pictures in (train, test):
        for x, label in zip(pictures.load().images, pictures.labels.tolist()):
            assert abs(x[2].float().mean().item() - (150, 50)[label]) < 4
    assert load("tinyimagenet", "test", root=root).shape == (3, 64, 64) and "imagewoof" in known(root)


@pytest.mark.parametrize(("call", "kind", "words"), [
    (lambda root: imagenet("imagewolf", "train", root), ValueError, "unknown subset 'imagewolf'; known: imagenette"),
    (lambda root: imagenet(["n1"], "train", root), ValueError, "'n1' is not a WordNet id"),
    (lambda root: wnids_of(["n01440764", "n01440764"]), ValueError, "stands twice"),
    (lambda root: wnids_of([]), ValueError, "no classes"),
    (lambda root: imagenet("imagewoof", "train", root), FileNotFoundError, "n02096294 is missing; lay ImageNet out as"),
    (lambda root: imagenet("imagenette", "val", root), ValueError, "expected 'train' or 'test'"),
    (lambda root: imagenet("imagenette", "train", root, phase=(5, 5)), ValueError, "phase 5 of 5 for 10 classes"),
    (lambda root: imagenet("imagenette", "train", root, phase=(0, 11)), ValueError, "not more phases than classes"),
    (lambda root: tiny_imagenet("train", "/absent"), FileNotFoundError, "wnids.txt is missing; unpack"),
    (lambda root: load("imagenette", "train", root="/absent"), FileNotFoundError, "imagenet/train is missing"),
])
def test_bad_input_is_answered_in_one_line(root, call, kind, words):
    with pytest.raises(kind) as error:
        call(root)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_table_that_names_an_unknown_class(root, tmp_path):
    import shutil
    shutil.copytree(root / "tiny-imagenet-200", tmp_path / "tiny-imagenet-200")
    (tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text("val_1.JPEG\tn00000009\n")
    with pytest.raises(ValueError, match="val_annotations.txt cannot be read .*its lines must begin"):
        tiny_imagenet("test", tmp_path)
