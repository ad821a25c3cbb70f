"""Two views, unseen classes, named networks, batches that carry the teacher's answers, and the protocols of native low-resolution faces."""

import pytest
import torch

from kdnotes.crossres import (
    Views, both_views, by_first_picture, fresh_network, fresh_recogniser, linear_probe, paired_batches, parse_network,
    recognition, search, target_in, train_all, trained, verification, weights_of,
)
from kdnotes.data.catalogue import SEARCHES, face_sets, load, search_sets
from kdnotes.data.imageset import first_of_each, join, to_float, unseen_classes
from kdnotes.data.sets.scface import DISTANCES
from kdnotes.data.sets.uccs import subjects_of
from kdnotes.data.augment import channel_statistics
from kdnotes.data.degrade import low_resolution
from kdnotes.losses.margin import CosFace
from kdnotes.metrics.retrieve import mean_average_precision
from kdnotes.metrics.verify import identity_ranks, open_set_rate
from kdnotes.models.embedders import names
from kdnotes.parallel import Place
from kdnotes.runtime import fingerprint


@pytest.fixture(scope="module")
def digits():
    return load("digits", "train"), load("digits", "test")


@pytest.mark.parametrize("restore, side", [(True, 8), (False, 3)])
def test_views_are_normalised_by_the_high_ones_statistics(digits, restore, side):
    images = digits[0].images[:32]
    mean, std = channel_statistics(digits[0].images)
    seen = both_views(images, Views(low=3, restore=restore), mean, std)
    assert seen["low"].shape == (32, 1, side, side)
    expected = low_resolution(to_float(images), size=3, mode="bilinear", restore=restore)
    assert torch.allclose(seen["low"] * std + mean, expected, atol=1e-6) and torch.allclose(seen["high"] * std + mean, to_float(images), atol=1e-6)


def test_a_view_depends_on_its_image_and_its_draw_alone(digits):
    images, views = digits[0].images[:32], Views(low=4, flip=True, padding=1)
    zero, one = torch.zeros(1), torch.ones(1)
    a, b = (both_views(images, views, zero, one, torch.Generator().manual_seed(3)) for _ in range(2))
    assert a["high"].equal(b["high"]) and a["low"].equal(b["low"]) and not a["high"].equal(to_float(images))
    assert both_views(images, views, zero, one)["high"].equal(to_float(images))          # without a generator nothing moves
    assert views.random and not Views(low=4).random


def test_unseen_classes_share_nothing_with_the_seen(digits):
    for searched in ("test", "all"):
        train, found = unseen_classes(*digits, (0, 3, 7), searched)
        assert set(train.labels.tolist()) == {0, 1, 2} and train.classes == ("0", "3", "7")
        assert set(found.labels.tolist()) == {1, 2, 4, 5, 6, 8, 9}
    assert len(found) == sum(int((~torch.isin(part.labels, torch.tensor([0, 3, 7]))).sum()) for part in digits)
    assert len(join(*digits)) == 1797 and first_of_each(digits[0], 5).labels.bincount().tolist() == [5] * 10


def test_networks_by_name_start_alike():
    assert parse_network("smallconv:4-8-16:32") == ("smallconv", {"widths": (4, 8, 16), "embedding": 32})
    assert parse_network("resnet50::512:pretrained") == ("resnet50", {"embedding": 512, "pretrained": True})
    a, b, c = (fresh_network("smallconv:4-8-16:32", 10, 1, 8, seed, "retrieval") for seed in (0, 0, 1))
    weight = lambda network: network.trunk.stage1[0].weight
    assert weight(a).equal(weight(b)) and not weight(a).equal(weight(c))
    faces = [fresh_recogniser("smallface:4-8:16", 5, 3, 16, 0, "faces", head=CosFace, scale=8.0, margin=0.1) for _ in range(2)]
    assert faces[0].head.weight.equal(faces[1].head.weight) and faces[0].head.margin == 0.1 and parse_network("iresnet18", names())[0] == "iresnet18"


@pytest.mark.parametrize("views", [Views(low=3), Views(low=3, flip=True)])
def test_answers_travel_with_their_images(digits, views):
    teacher = fresh_network("smallconv:4-8-16:32", 10, 1, 8, 0).eval()
    calls = []

    def ask(batch):
        calls.append(len(batch["images"]))
        return {"brightness": batch["low"].mean((1, 2, 3))}

    batches = paired_batches(digits[0], views, 64, seed=0, teachers={"teacher": (teacher, "low")}, ask=ask)
    for batch in batches:
        with torch.no_grad():
            torch.testing.assert_close(target_in(batch), teacher(batch["low"]))
        assert torch.allclose(batch["brightness"], batch["low"].mean((1, 2, 3)))
    assert calls == ([64] * len(batches) if views.random else [len(digits[0])])          # once for all where nothing moves


# ---- native low resolution -----------------------------------------------------------------------------------------------------------------

@pytest.fixture
def native(tmp_path, face_layouts, monkeypatch):
    """Every native set, CASIA-WebFace and LFW below one root, which the package is told of."""
    for write in (face_layouts.casia, face_layouts.lfw, face_layouts.tinyface, face_layouts.survface, face_layouts.scface, face_layouts.uccs):
        write(tmp_path)
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path))
    return tmp_path


def colours(images):
    """The mean colour, by which the fixtures tell people apart."""
    x = images.images.float().mean((2, 3)) - 100
    return torch.cat([x, torch.ones(len(x), 1)], 1)


def test_the_first_view_of_lfw_is_judged_in_folds(native):
    sets = face_sets("lfw", 8, least=1)
    assert sets.pairs.folds == 2 and recognition(colours(sets.test), sets.test.labels, sets.pairs)["verification_accuracy"] >= 50


def test_every_search_is_opened_whole(native):
    made = {test: search_sets(test, 8) for tests in SEARCHES.values() for test in tests}
    assert {test: (len(sets.gallery), len(sets.probe), sets.cameras) for test, sets in made.items()} == {
        "tinyface": (4 + 3, 3, 1), "survface": (3, 2 + 2, 1)} | dict.fromkeys(DISTANCES, (3, 15, 2))
    for sets in made.values():
        assert sets.gallery.classes == sets.probe.classes and sets.gallery.shape == sets.probe.shape == (3, 8, 8) and sets.gallery.images.dtype == torch.uint8
        found = search(colours(sets.gallery), sets.gallery.labels, colours(sets.probe), sets.probe.labels, ranks=(1, 2))
        assert found["rank1"] == found["rank2"] == found["mean_average_precision"] == 100
    assert fingerprint(search_sets("tinyface", 8)) == fingerprint(made["tinyface"]) and search_sets("tinyface", 4).gallery.shape == (3, 4, 4)
    strangers = search(colours(made["survface"].gallery), made["survface"].gallery.labels, colours(made["survface"].probe), made["survface"].probe.labels, fpirs=(0.5, 0.01))
    assert list(strangers)[-2:] == ["tpir20_at_fpir_0.5", "tpir20_at_fpir_0.01"] and strangers["tpir20_at_fpir_0.5"] >= strangers["tpir20_at_fpir_0.01"]
    with pytest.raises(ValueError, match="unknown search 'scface'; did you mean 'scface:"):
        search_sets("scface", 8)
    (native / "SCface" / "mugshot_frontal_cropped_all").rename(native / "elsewhere")
    with pytest.raises(FileNotFoundError, match="lay the distributed folders"):
        search_sets("scface:1", 16)


@pytest.mark.parametrize("strangers", [0, 9])
def test_a_search_is_what_the_measures_say_one_by_one(strangers):
    g = torch.Generator().manual_seed(2)
    centres = torch.randn(30, 6, generator=g)
    ids, truth = torch.cat([torch.arange(12).repeat_interleave(3), torch.arange(12, 25)]), torch.cat([torch.arange(12).repeat(4), 25 + torch.arange(strangers) % 5])
    gallery, probe = (centres[y] + torch.randn(len(y), 6, generator=g) for y in (ids, truth))
    found = search(gallery, ids, probe, truth, ranks=(1, 3), fpirs=(0.3, 0.1))
    rank, mated = identity_ranks(gallery, ids, probe, truth).rank, truth < 25
    assert [found["rank1"], found["rank3"]] == pytest.approx([100 * float((rank[mated] <= k).float().mean()) for k in (1, 3)]) and found["rank1"] < found["rank3"]
    assert found["mean_average_precision"] == pytest.approx(100 * mean_average_precision(probe[mated], truth[mated], gallery, ids))
    if strangers:
        expected = open_set_rate(gallery, ids, probe, truth, (0.3, 0.1), rank=20)
        assert [found["tpir20_at_fpir_0.3"], found["tpir20_at_fpir_0.1"]] == pytest.approx([100 * rate for rate in expected.values()])
    assert len(found) == 3 + 2 * bool(strangers) and all(0 <= value <= 100 for value in found.values())


def test_faces_to_learn_from_and_the_pairs_of_other_faces(native):
    casia = face_sets("casia", 8, least=2)
    assert len(casia.learnt) == 10 and len(casia.learnt.classes) == 3 and len(casia.test) == 9 and casia.pairs.folds == 2
    assert len(face_sets("casia", 8, people=0).learnt) == 10 and face_sets("casia", 8, people=2).learnt.classes == ("0000045", "0000100")
    tiny, surv = face_sets("tinyface", 8, least=1), face_sets("survface", 8, least=1)
    assert tiny.learnt.classes == ("11", "3") and tiny.test is None and surv.learnt.classes == ("1",) and len(surv.test) == len(surv.pairs.same) == 4
    judged = verification(colours(surv.test), surv.pairs._replace(folds=2), fars=(0.3, 0.001))
    assert judged == {"verification_accuracy": 100, "auc": 100, "equal_error_rate": 0, "tar_at_far_0.3": 100, "tar_at_far_0.001": 100}
    whole = recognition(colours(casia.test), casia.test.labels, casia.pairs)
    assert whole.items() >= verification(colours(casia.test), casia.pairs).items() and whole["rank1"] == 100


def test_subjects_are_classes_whose_last_layer_is_fitted(native):
    train, test = subjects_of(8, subjects=3)
    assert train.classes == test.classes == ("0000", "0001", "0002") and train.labels.bincount().tolist() == [5] * 3 and test.labels.bincount().tolist() == [1] * 3
    assert fingerprint(subjects_of(8, subjects=3)) == fingerprint((train, test))
    logits = linear_probe(colours(train), train.labels, colours(test))
    assert logits.argmax(1).equal(test.labels) and logits.equal(linear_probe(colours(train), train.labels, colours(test)))
    with pytest.raises(ValueError, match="3 subjects in .* have at least 5 pictures; 180 were asked for"):
        subjects_of(8)


def trained_on(value, place, count=None):
    """A network whose first weights are all `value`, as if it had been trained to that; every training is one more line in the file `count`."""
    def train(checkpoint):
        assert checkpoint.parent == place.root and not checkpoint.exists()
        network = fresh_network("smallconv:2-4-8:8", 5, 1, 8, seed=0)
        torch.nn.init.constant_(network.trunk.stage1[0].weight, value)
        if count:
            count.write_text((count.read_text() if count.exists() else "") + f"{value}\n")
        return weights_of(network)

    return trained({"value": value}, lambda: fresh_network("smallconv:2-4-8:8", 5, 1, 8, seed=0), train, place, "constant")


def test_a_network_is_trained_once_and_comes_back_frozen(tmp_path):
    place, count = Place("cpu", "32-true", tmp_path / "stages"), tmp_path / "count"
    (tmp_path / "stages").mkdir()
    for value in (1, 2, 2):                                                               # one stream at a time needs no other process
        assert train_all(lambda value: trained_on(value, place, count), [value], place) is None
    assert count.read_text().split() == ["1", "2"]
    network = trained_on(2, place, count)
    assert len(count.read_text().split()) == 2 and (network.trunk.stage1[0].weight == 2).all()
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert fingerprint(weights_of(network)) == fingerprint(network.state_dict()) == fingerprint(weights_of(trained_on(2, place)))
    assert sorted(path.name.split("-")[0] for path in place.root.glob("*.pt")) == ["constant"] * 2


def test_the_first_picture_of_each_person_is_the_gallery():
    labels = torch.tensor([0, 0, 1, 2, 1, 3])
    features = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, 1], [0, 0.2, 0.9], [0, 0, 1.1]])
    assert by_first_picture(features, labels, (1, 3, 4)) == {"rank1": 50.0, "rank3": 100.0, "rank4": 100.0}      # 4 is nearer to 2 and to the distractor 3


@pytest.mark.parametrize("call, words", [
    (lambda: Views(low=0), ("low=0",)), (lambda: Views(low=3, mode="cubic"), ("mode", "bicubic")), (lambda: parse_network("smalconv"), ("smalconv", "smallconv")),
    (lambda: parse_network("smallconv:4-x:32"), ("name:widths:embedding",)),
    (lambda: unseen_classes(load("digits", "train"), load("digits", "test"), tuple(range(9))), ("leaves 1 of the 10", "two unseen")),
    (lambda: unseen_classes(load("digits", "train"), load("digits", "test"), (0, 1), "train"), ("'train'", "test")),
])
def test_bad_requests_say_what_is_expected(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), str(error.value)
