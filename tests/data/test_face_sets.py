"""Face sets in their true layouts, in miniature: folders of identities, LFW's development view, TinyFace, QMUL-SurvFace, SCface; and what they say when something is wrong."""
from pathlib import Path

import pytest
import torch
from scipy.io import savemat

from kdnotes.data.faces import faces
from kdnotes.data.catalogue import add_people, load, status
from kdnotes.data.pictures import identity_folders
from kdnotes.data.sets.casia import casia_webface
from kdnotes.data.sets.lfw import lfw, lfw_development, lfw_pairs
from kdnotes.data.sets.scface import scface
from kdnotes.data.sets.survface import survface, survface_pairs, survface_train
from kdnotes.data.sets.tinyface import tinyface, tinyface_train
from kdnotes.data.batches import PictureBatches
from kdnotes.metrics.retrieve import mean_average_precision
from kdnotes.metrics.verify import identification_rate, identity_ranks, judge_folds, open_set_rate, pair_scores

SHARED = Path(__file__).parents[3] / "shared" / "data"


def colours(pictures):
    """A made-up embedding: the mean colour, which the fixtures make a mark of the person."""
    x = pictures.load().images.float().mean((2, 3)) - 100
    return torch.cat([x, torch.ones(len(x), 1)], 1)


# ---- folders of identities --------------------------------------------------------------------------------------------------------------

@pytest.fixture
def webface(tmp_path, face_layouts):
    return face_layouts.casia(tmp_path)


def test_identity_folders(webface):
    everyone = casia_webface(webface, size=8)
    assert everyone.labels.bincount().tolist() == [4, 1, 2, 4] and everyone.load().shape == (3, 8, 8)
    some = casia_webface(webface, size=8, minimum=3)
    assert some.classes == ("0000045", "0000102") and some.labels.tolist() == [0] * 4 + [1] * 4
    assert all(file.parent.name == some.classes[y] for file, y in zip(some.files, some.labels))
    batch = next(iter(PictureBatches(some, 4, per_class=2, workers=0)))
    assert batch["labels"].bincount().tolist() == [2, 2]
    assert len(load("casia_webface", "train", root=webface, size=8)) == 11
    with pytest.raises(ValueError, match="nobody in CASIA-WebFace has 9 pictures, the most is 4"):
        casia_webface(webface, minimum=9)
    with pytest.raises(FileNotFoundError, match="holds no pictures; expected .*<class>"):
        identity_folders(webface / "absent")
    with pytest.raises(ValueError, match="protocol, not a labelled set; .*split='train'"):
        load("casia_webface", "test", root=webface, size=8)
    with pytest.raises(FileNotFoundError, match="CASIA-WebFace is missing; lay the faces out"):
        load("casia_webface", "train", root=webface / "absent", size=8)
    assert {row["name"] for row in status(webface)} >= {"casia_webface", "tinyface", "survface", "lfw", "uccs"}


# ---- LFW, view 1 --------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def view(tmp_path, face_layouts):
    return face_layouts.lfw(tmp_path)


def test_lfw_development(view):
    train, test, pairs = lfw_development(view, size=8)
    assert train.classes == ("Ann_Lee", "Di_Ed") and test.classes == ("Bo_Chi", "Cy_Di", "Ed_Fo") and pairs.folds == 1
    names = [(test.files[a].stem, test.files[b].stem) for a, b in zip(pairs.first, pairs.second)]
    assert names == [("Bo_Chi_0001", "Bo_Chi_0002"), ("Cy_Di_0001", "Cy_Di_0002"), ("Bo_Chi_0001", "Cy_Di_0002"), ("Cy_Di_0001", "Ed_Fo_0001")]
    assert (test.labels[pairs.first] == test.labels[pairs.second]).equal(pairs.same) and pairs.same.tolist() == [True, True, False, False]
    assert lfw_development(view, minimum=2).train.classes == ("Ann_Lee",)
    features = colours(test)
    assert judge_folds(pair_scores(features[pairs.first], features[pairs.second]), pairs.same, 2).accuracy.mean() == 1


@pytest.mark.parametrize("people, message", [("3\nAnn_Lee\t3\n", "promises 3 people, 1 follow"), ("1\nNobody\t3\n", "0 of 9 faces .* put peopleDevTrain.txt"), ("", "cannot be read")])
def test_lfw_development_bad_lists(view, people, message):
    (view / "lfw" / "peopleDevTrain.txt").write_text(people)
    with pytest.raises(ValueError, match=message):
        lfw_development(view)
    (view / "lfw" / "peopleDevTrain.txt").unlink()
    with pytest.raises(FileNotFoundError, match="peopleDevTrain.txt is missing; put peopleDevTrain.txt"):
        lfw_development(view)


def test_a_list_of_one_fold_needs_no_number_of_folds(view):
    pairs = lfw_pairs(lfw(view), view / "lfw" / "pairsDevTest.txt")
    assert pairs.folds == 1 and len(pairs.same) == 4


# ---- TinyFace -----------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def tiny(tmp_path, face_layouts):
    return face_layouts.tinyface(tmp_path)


def test_tinyface(tiny):
    test = tinyface(tiny, size=8)
    assert test.gallery.classes == test.probe.classes == test.distractors.classes and test.gallery.classes[:3] == ("12", "7", "9") and test.strangers is None
    assert [test.gallery.classes[y] for y in test.gallery.labels] == ["7", "9", "9", "12"] and [test.probe.classes[y] for y in test.probe.labels] == ["9", "7", "12"]
    assert test.distractors.labels.tolist() == [3, 4, 5] and len(tinyface_train(tiny)) == 2 and len(load("tinyface", "train", root=tiny, size=8)) == 2
    gallery, ids = torch.cat([colours(test.gallery), colours(test.distractors)]), torch.cat([test.gallery.labels, test.distractors.labels])
    assert identification_rate(gallery, ids, colours(test.probe), test.probe.labels, (1, 20)) == {1: 1.0, 20: 1.0}
    assert mean_average_precision(colours(test.probe), test.probe.labels, gallery, ids) == 1.0


def test_tinyface_bad_input(tiny, face_layouts):
    folder = tiny / "tinyface" / "Testing_Set"
    savemat(folder / "probe_img_ID_pairs.mat", {"probe_set": face_layouts.cells("9_3.jpg", "7_2.jpg"), "probe_ids": [[9]]})
    with pytest.raises(ValueError, match="probe_img_ID_pairs.mat cannot be read .it lists 2 files and 1 identities"):
        tinyface(tiny)
    (folder / "probe_img_ID_pairs.mat").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="probe_img_ID_pairs.mat cannot be read .*unpack the distributed tinyface.zip"):
        tinyface(tiny)
    (folder / "gallery_match_img_ID_pairs.mat").unlink()
    with pytest.raises(FileNotFoundError, match="gallery_match_img_ID_pairs.mat is missing; unpack"):
        tinyface(tiny)


# ---- QMUL-SurvFace ------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def surv(tmp_path, face_layouts):
    return face_layouts.survface(tmp_path)


def test_survface(surv):
    test = survface(surv, size=8)
    assert test.gallery.labels.tolist() == [0, 0, 1] and test.probe.labels.tolist() == [1, 0] and test.strangers.labels.tolist() == [2, 3] and test.distractors is None
    probe, truth = torch.cat([colours(test.probe), colours(test.strangers)]), torch.cat([test.probe.labels, test.strangers.labels])
    rates = open_set_rate(colours(test.gallery), test.gallery.labels, probe, truth, (0, 1), rank=20)
    assert rates[1.0] == 1.0 and (identity_ranks(colours(test.gallery), test.gallery.labels, probe, truth).rank[:2] == 1).all()
    faces, pairs = survface_pairs(surv, size=8)
    assert [(faces.files[a].stem, faces.files[b].stem) for a, b in zip(pairs.first, pairs.second)] == [("a", "b"), ("c", "d"), ("a", "c"), ("b", "d")]
    assert pairs.same.tolist() == [True, True, False, False] and len(survface_train(surv)) == 1 and len(load("survface", "train", root=surv, size=8)) == 1


def test_survface_bad_input(surv):
    (surv / "QMUL-SurvFace" / "Face_Verification_Test_Set" / "verification_images" / "d.jpg").unlink()
    with pytest.raises(ValueError, match="positive_pairs_names.mat cannot be read .*d.jpg.*every file that it names must lie in"):
        survface_pairs(surv)
    for path in (surv / "QMUL-SurvFace" / "Face_Identification_Test_Set" / "unmated_probe").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="unmated_probe holds no pictures; unpack"):
        survface(surv)


# ---- SCface -------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def cameras(tmp_path, face_layouts):
    return face_layouts.scface(tmp_path)


def test_scface(cameras, face_layouts):
    for d in (1, 2, 3):
        test = scface(cameras, size=8, distance=d)
        assert test.gallery.classes == ("001", "002", "003") and len(test.probe) == 15 and test.probe.labels.bincount().tolist() == [5] * 3
        assert all(file.stem.endswith(f"_{d}") for file in test.probe.files)
        assert identification_rate(colours(test.gallery), test.gallery.labels, colours(test.probe), test.probe.labels, 1) == {1: 1.0}
    assert len(scface(cameras, cameras=(2,)).probe) == 3
    with pytest.raises(ValueError, match="distance is 4, cameras are .*4.2 m"):
        scface(cameras, distance=4)
    face_layouts.put(cameras / "SCface" / "surveillance_cameras_distance_1" / "cam_1" / "004_cam1_2.jpg")
    with pytest.raises(ValueError, match="004_cam1_2.jpg is not named like SCface's files"):
        scface(cameras)
    with pytest.raises(FileNotFoundError, match="mugshot_frontal_cropped_all is missing; lay the distributed folders"):
        scface(cameras / "absent")
    with pytest.raises(ValueError, match="the test of scface is a protocol.*; it has no training people"):
        load("scface", "train", root=cameras)


def test_what_a_run_needs_is_known_before_it_starts(tmp_path, face_layouts):
    from kdnotes.batch.plan import check_data
    from kdnotes.data.catalogue import known
    from kdnotes.data.sets.casia import NEEDS

    class Config:
        dataset, DATA = "faces", ("images", "facesets")

    check_data(Config, "faces", tmp_path)
    for name in NEEDS:
        with pytest.raises(FileNotFoundError, match=rf"the data of {name} are not there .*CASIA-WebFace.*lay the faces out as CASIA-WebFace"):
            check_data(Config, name, tmp_path)
    face_layouts.casia(tmp_path)
    for name in NEEDS:
        with pytest.raises(FileNotFoundError, match=rf"the data of {name} are not there"):
            check_data(Config, f"faces+{name}", tmp_path)
        {"casia": face_layouts.lfw}.get(name, getattr(face_layouts, name))(tmp_path)
        check_data(Config, f"faces+{name}", tmp_path)
    runs = known(tmp_path, "facesets")
    assert len(runs["casia"].read(tmp_path, "train", 8)) == 11 and len(runs["faces"].read(tmp_path, "train", 8)) == 1000
    with pytest.raises(ValueError, match="unknown data set 'scfac'; did you mean scface"):
        check_data(Config, "scfac", tmp_path)


def test_any_set_is_installed_with_disjoint_people(tmp_path):
    people = faces(6, 3, size=16)
    add_people("drawn", people, (0.5, 0.5), seed=1, root=tmp_path)
    train, test = (load("drawn", split, root=tmp_path) for split in ("train", "test"))
    assert train.classes == test.classes == people.classes and len(train) == len(test) == 9 and not set(train.labels.tolist()) & set(test.labels.tolist())
    assert torch.cat([train.images, test.images]).float().mean() == people.images.float().mean()
    with pytest.raises(ValueError, match="holds a prepared set already"):
        add_people("drawn", people, root=tmp_path)


# ---- real faces ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.long
@pytest.mark.skipif(not (SHARED / "lfw" / "index.csv").exists(), reason=f"no real faces in {SHARED}")
def test_official_pairs_cover_their_pictures():
    """The official development list, on empty files named like the pictures that are there."""
    import csv
    import tempfile
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "lfw")
        train = {}
        for row in csv.DictReader(open(SHARED / "lfw" / "index.csv")):
            file = folder / row["person"] / f"{row['person']}_{int(row['image_number']):04d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            train |= {row["person"]: train.get(row["person"], 0) + 1} if row["split"] == "train" else {}
        (folder / "peopleDevTrain.txt").write_text(f"{len(train)}\n" + "".join(f"{name}\t{n}\n" for name, n in train.items()))
        (folder / "pairsDevTest.txt").write_text((SHARED / "lfw" / "pairsDevTest.txt").read_text())
        made = lfw_development(place)
    assert (len(made.train), len(made.train.classes), len(made.test), len(made.test.classes)) == (3303, 298, 1549, 963)
    assert len(made.pairs.same) == 1000 and int(made.pairs.same.sum()) == 500 and not set(made.train.classes) & set(made.test.classes)
    assert (made.test.labels[made.pairs.first] == made.test.labels[made.pairs.second]).equal(made.pairs.same)
