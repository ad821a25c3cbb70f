"""Batches: every image once an epoch, whoever shares the work, and randomness that follows from seed, epoch and step."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes.data.batches import Batches, Order
from kdnotes.data.imageset import ImageSet
from kdnotes.runtime import make_generator


def toy(count=12, classes=3, shape=(1, 4, 4)):
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=make_generator(0))
    return ImageSet(pixels, torch.arange(count) % classes, tuple("abcdefgh"[:classes]), "toy")


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 20), st.booleans(), st.booleans(), st.integers(0, 99), st.integers(0, 3))
def test_an_epoch_visits_each_image_once(count, batch_size, shuffle, drop_last, seed, epoch):
    x = torch.arange(count)
    if drop_last and batch_size > count:
        with pytest.raises(ValueError, match=f"batch_size {batch_size} exceeds the {count} images"):
            Batches({"x": x}, batch_size, drop_last=True)
        return
    batches = Batches({"x": x, "twice": 2 * x}, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)
    batches.set_epoch(epoch)
    got = list(batches)
    seen = torch.cat([b["index"] for b in got]).tolist()
    assert len(got) == len(batches) == (count // batch_size if drop_last else -(-count // batch_size))
    assert len(set(seen)) == len(seen) and (drop_last or sorted(seen) == list(range(count))) and (shuffle or seen == list(range(len(seen))))
    assert all(b["x"].equal(b["index"]) and b["twice"].equal(2 * b["index"]) for b in got)
    assert [b["index"].tolist() for b in batches] == [b["index"].tolist() for b in got]


def noise(batch, generator):
    return batch | {"images": batch["images"] + torch.rand(batch["images"].shape, generator=generator)}


@pytest.mark.parametrize("per_class", [None, 2])
def test_shares_of_two_processes_make_the_batch_of_one(per_class):
    pictures = toy(48, 4)
    alone, *two = (Batches(pictures, 8, seed=5, transform=noise, per_class=per_class, rank=r, world=w) for r, w in ((0, 1), (0, 2), (1, 2)))
    for epoch in (0, 1):
        for batches in (alone, *two):
            batches.set_epoch(epoch)
        for whole, a, b in zip(alone, *two, strict=True):
            assert all(whole[key].equal(torch.cat([a[key], b[key]])) and len(a[key]) == len(b[key]) == 4 for key in whole)


def test_randomness_depends_on_seed_epoch_and_step_only():
    pictures = toy()
    batches = Batches(pictures, 4, transform=noise, seed=1)
    first = list(batches)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert all(a["images"].equal(b["images"]) for a, b in zip(first, batches)) and torch.get_rng_state().equal(state)
    assert not (first[0]["images"] % 1).equal(first[1]["images"] % 1)
    batches.set_epoch(1)
    assert not next(iter(batches))["images"].equal(first[0]["images"])
    assert not next(iter(Batches(pictures, 4, transform=noise, seed=2)))["index"].equal(first[0]["index"])


@settings(max_examples=25)
@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_class_batches_hold_p_classes_of_k_different_images(classes, per_class, p, seed):
    p = min(p, classes)
    labels = torch.randint(0, classes, (40,), generator=make_generator(seed)).sort().values
    labels = torch.cat([labels, torch.arange(classes).repeat(per_class)]) * 3                    # labels need not be consecutive
    order = Order(len(labels), p * per_class, seed=seed, per_class=per_class, labels=labels)
    batches = order.epoch(0)
    assert len(batches) == len(order) == len(labels) // (p * per_class)
    for index in batches:
        counts = Counter(labels[index].tolist())
        assert len(set(index.tolist())) == len(index) and set(counts.values()) == {per_class} and len(counts) == p


def test_class_batches_see_a_class_whole_before_repeating():
    labels = torch.arange(2).repeat_interleave(12)
    seen = torch.cat(Order(24, 6, seed=0, per_class=3, labels=labels).epoch(0))
    assert sorted(seen.tolist()) == list(range(24))


def test_nothing_is_dropped_unless_it_is_said():
    """255 items in batches of 128: all of them in every epoch, of shuffled batches, too."""
    x = torch.arange(255)
    for shuffle in (True, False):
        batches = Batches({"x": x}, 128, shuffle=shuffle)
        assert len(batches) == 2 and [len(b["x"]) for b in batches] == [128, 127]
        assert torch.cat([b["x"] for b in batches]).sort().values.equal(x)
        assert [len(b["x"]) for b in Batches({"x": x}, 128, shuffle=shuffle, drop_last=True)] == [128]
    assert Order(255, 128).rest == 127 and Order(255, 128, drop_last=True).rest == 0 == Order(256, 128).rest
    assert len(Batches({"x": x}, 512)) == 1 and len(Batches({"x": x[:8]}, 4, world=2)) == 2


def test_batches_refuse_what_cannot_be():
    pictures = toy()
    for arguments, message in (
            ({"batch_size": 0}, "batch_size is 0"), ({"batch_size": 4, "per_class": 3}, "per_class=3 needs labels and a batch_size that it divides"),
            ({"batch_size": 12, "per_class": 3}, "needs 4 classes of at least 3 images; there are 3 classes"),
            ({"batch_size": 10, "per_class": 5}, "the smallest with 4"), ({"batch_size": 4, "world": 3}, "cannot share batches of 4"),
            ({"batch_size": 4, "world": 2, "rank": 2}, "rank 2 of 2"), ({"batch_size": 8, "world": 2}, "last, smaller batch of 4 evenly; use drop_last=True")):
        with pytest.raises(ValueError, match=message):
            Batches(pictures, **arguments)
    for tensors in ({}, {"a": torch.zeros(3), "b": torch.zeros(4)}, {"index": torch.zeros(3)}):
        with pytest.raises(ValueError, match="all of one length on one device, none called 'index'"):
            Batches(tensors, 1)
    with pytest.raises(ValueError, match="needs labels"):
        Batches({"x": torch.zeros(8)}, 4, per_class=2)
