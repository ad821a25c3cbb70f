"""Image sets: what they refuse, how they are cut, and that their print is their content."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes.data.imageset import ImageSet, to_float
from kdnotes.runtime import make_generator


def toy(count=12, classes=3, shape=(1, 4, 4)):
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=make_generator(0))
    return ImageSet(pixels, torch.arange(count) % classes, tuple("abcdefgh"[:classes]), "toy")


def test_image_set_refuses_bad_tensors():
    x, y = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    for images, labels, classes, error, message in (
            (x.float(), y, "ab", ValueError, "torch.float32; expected torch.uint8"), (x[0], y, "ab", ValueError, r"\(1, 2, 2\); expected \(N, C, H, W\)"),
            (x[:0], y[:0], "ab", ValueError, "at least one image"), (x.numpy(), y, "ab", TypeError, "ndarray"), (x, y.float(), "ab", TypeError, "torch.float32; expected a tensor of integers"),
            (x, y[:3], "ab", ValueError, r"\(3,\) for 4 images"), (x, y, "a", ValueError, "from 0 to 1; expected 0..0 for 1 classes")):
        with pytest.raises(error, match=message):
            ImageSet(images, labels, tuple(classes))
    with pytest.raises(AttributeError):
        ImageSet(x, y, ("a", "b")).labels = y                                    # frozen
    with pytest.raises(TypeError, match="expected torch.uint8"):
        to_float(x.float())


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=10, max_size=80), st.floats(0.1, 0.9), st.integers(0, 1000))
def test_split_is_a_stratified_partition(labels, fraction, seed):
    y = torch.tensor(labels + [0, 1, 2, 3, 4] * 10)
    whole = ImageSet(torch.arange(len(y), dtype=torch.uint8).view(-1, 1, 1, 1), y, tuple("abcde"))
    a, b = whole.split(fraction, seed)
    assert sorted(a.images.flatten().tolist() + b.images.flatten().tolist()) == list(range(len(y)))
    assert a.images.flatten().tolist() == sorted(a.images.flatten().tolist())
    quota = (fraction * y.bincount()).round().long()
    assert a.labels.bincount(minlength=5).equal(quota) and whole.split(fraction, seed)[0].fingerprint() == a.fingerprint()


def test_select_take_split_errors_and_devices():
    pictures = toy()
    chosen = pictures.select([2, 0], relabel=True)
    assert chosen.classes == ("c", "a") and chosen.labels.tolist() == [1, 0] * 4 and pictures.select([2, 0]).labels.tolist() == [0, 2] * 4
    assert isinstance(chosen, ImageSet) and isinstance(pictures.take(torch.arange(12) > 3), ImageSet) and len(pictures.take(slice(0, 5))) == 5
    for bad in ([], [3], [0, 0], [-1]):
        with pytest.raises(ValueError, match=r"expected distinct numbers in 0..2"):
            pictures.select(bad)
    with pytest.raises(ValueError, match="no image of toy has a class in"):
        pictures.take([0, 3]).select([1])
    for bad in (0, 1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="fraction is .* between 0 and 1"):
            pictures.split(bad, 0)
    assert pictures.to("cpu").fingerprint() == pictures.fingerprint() and repr(pictures) == "ImageSet(toy: 12 images 1x4x4, 3 classes, cpu)"
