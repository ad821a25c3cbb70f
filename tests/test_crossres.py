"""Two views, unseen classes, named networks and batches that carry the teacher's answers."""

import pytest
import torch

from kdnotes.crossres import (
    Views,
    both_views,
    first_of_each,
    fresh_network,
    fresh_recogniser,
    join,
    paired_batches,
    parse_network,
    target_in,
    unseen_classes,
)
from kdnotes.data.augment import channel_statistics
from kdnotes.data.degrade import low_resolution
from kdnotes.data.images import load, to_float
from kdnotes.losses.margin import CosFace
from kdnotes.models.embedders import names


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
