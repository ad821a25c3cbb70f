"""Augmentation against loops over single images, its reproducibility, and exact channel statistics."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as TV

from kdnotes.data.augment import Augment, channel_statistics, crop, denormalise, draw_crop, draw_flip, flip, normalise, random_crop, random_flip
from kdnotes.runtime import make_generator


def pixels(n=6, c=3, h=9, w=7, seed=0):
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=make_generator(seed))


def slow_crop(x, padding, offsets, size, mode):
    """One image after the other, one pixel after the other."""
    padded = F.pad(x.float(), (padding,) * 4, mode=mode) if padding else x.float()
    h, w = (size, size) if size else x.shape[2:]
    out = torch.zeros(len(x), x.shape[1], h, w)
    for n, (u, v) in enumerate(offsets.tolist()):
        for i in range(h):
            for j in range(w):
                out[n, :, i, j] = padded[n, :, u + i, v + j]
    return out


@settings(max_examples=20)
@given(st.integers(0, 4), st.sampled_from([None, 3, 7]), st.sampled_from(["constant", "reflect"]), st.integers(0, 99))
def test_crop_equals_the_loop_and_random_crop_is_draw_then_crop(padding, size, mode, seed):
    x = pixels()
    offsets = draw_crop(x, padding, make_generator(seed), size)
    got = crop(x, padding, offsets, size, mode)
    assert got.float().equal(slow_crop(x, padding, offsets, size, mode)) and got.is_contiguous()
    assert random_crop(x, padding, make_generator(seed), size).equal(crop(x, padding, offsets, size))
    assert crop(x.transpose(2, 3), padding, offsets.flip(1), size).equal(crop(x, padding, offsets, size).transpose(2, 3))       # strided input


def test_crop_agrees_with_torchvision_and_covers_all_offsets_evenly():
    x = pixels(4, 3, 8, 8)
    offsets = torch.tensor([[0, 0], [3, 1], [6, 6], [2, 5]])
    theirs = torch.stack([TV.crop(TV.pad(image, [3]), int(u), int(v), 8, 8) for image, (u, v) in zip(x, offsets)])
    assert crop(x, 3, offsets).equal(theirs)
    drawn = draw_crop(torch.zeros(20000, 1, 4, 4), 2, make_generator(0))
    counts = torch.bincount(drawn[:, 0] * 5 + drawn[:, 1], minlength=25)
    assert counts.min() > 680 and counts.max() < 920                             # 800 expected in each of 25 places


def test_flip():
    x = pixels()
    marks = torch.tensor([True, False, True, False, False, True])
    assert flip(x, marks).equal(torch.stack([TV.horizontal_flip(i) if m else i for i, m in zip(x, marks)]))
    assert flip(flip(x, marks), marks).equal(x)
    assert random_flip(x, make_generator(3)).equal(flip(x, draw_flip(x, make_generator(3))))
    assert abs(float(draw_flip(torch.zeros(20000, 1, 1, 1), make_generator(0), 0.3).float().mean()) - 0.3) < 0.015


def test_randomness_comes_from_the_generator_alone():
    x, before = pixels(), torch.get_rng_state()
    recipe = Augment((0.5,) * 3, (0.2,) * 3, padding=2, flip=True)
    a, b, c = (recipe({"images": x}, make_generator(s))["images"] for s in (0, 0, 1))
    assert a.equal(b) and not a.equal(c) and torch.get_rng_state().equal(before)


def test_statistics_are_exact():
    x = pixels(50, 3, 11, 5)
    mean, std = channel_statistics(x)
    reference = x.double() / 255
    assert torch.allclose(mean.double(), reference.mean((0, 2, 3)), atol=1e-7) and torch.allclose(std.double(), reference.std((0, 2, 3), correction=0), atol=1e-7)
    assert channel_statistics(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8))[0].item() == pytest.approx(0.2)
    assert channel_statistics(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8))[1].item() == pytest.approx(0, abs=1e-6)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.05, 2)), min_size=3, max_size=3), st.integers(0, 99))
def test_normalise_is_the_formula_and_denormalise_its_inverse(statistics, seed):
    x = pixels(seed=seed)
    mean, std = (torch.tensor(values) for values in zip(*statistics))
    z = normalise(x, mean, std)
    formula = (x.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
    assert z.dtype == torch.float32 and torch.allclose(z.double(), formula, atol=1e-4)
    assert torch.allclose(z, normalise(x.float() / 255, mean.tolist(), std.tolist()), atol=1e-4)
    assert torch.allclose(denormalise(z, mean, std), x.float() / 255, atol=1e-5)


def test_normalise_leaves_its_input_alone_and_survives_a_constant_channel():
    x = torch.rand(2, 3, 4, 4)
    kept = x.clone()
    assert normalise(x, (0.1, 0.2, 0.3), (1, 0, 2)).isfinite().all() and x.equal(kept)
    assert normalise(x, (0.1, 0.2, 0.3), (1, 0, 2))[:, 1].equal(x[:, 1] - 0.2)


def test_keys_share_one_geometry():
    x = pixels(16, 1, 8, 8)
    recipe = Augment((0.0,), (1.0,), padding=3, flip=True, keys=("images", "masks"))
    out = recipe({"images": x, "masks": x, "labels": torch.arange(16)}, make_generator(0))
    assert out["images"].equal(out["masks"]) and out["labels"].equal(torch.arange(16)) and out["images"].shape == x.shape
    assert Augment((0.0,), (1.0,), size=5)({"images": x}, make_generator(0))["images"].shape == (16, 1, 5, 5)
    assert Augment((0.0,), (1.0,))({"images": x})["images"].equal(x.float() / 255)


def test_bad_input():
    x = pixels()
    for call, message in (
            (lambda: random_crop(x[0], 2), r"\(3, 9, 7\); expected \(N, C, H, W\)"), (lambda: random_crop(x, -1), "padding -1"),
            (lambda: random_crop(x, 0, size=8), r"size 8 do not fit images of \(9, 7\)"), (lambda: crop(x, 1, torch.zeros(5, 2).long()), r"\(5, 2\) for 6 images"),
            (lambda: crop(x, 1, torch.full((6, 2), 3)), r"offsets reach from \[3, 3\] to \[3, 3\]; expected \[0, 0\] to \[2, 2\]"),
            (lambda: random_flip(x, p=1.5), "p is 1.5"), (lambda: normalise(x, (0.5,), (0.5,)), "1 channel statistics for images with 3 channels")):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="expected torch.uint8"):
        channel_statistics(x.float())


def test_what_users_bring():
    x = torch.rand(4, 3, 8, 8, generator=make_generator(0))
    for bad in (255 * x, 2 * x - 1, x * float("nan")):                            # runs to 255, standardised already, broken
        with pytest.raises(ValueError, match=r"expected uint8, or floats in \[0, 1\] before they are standardised"):
            normalise(bad, (0.5,) * 3, (0.2,) * 3)
    learned = (2 * x).requires_grad_()                                            # what is learned may leave the range between two steps
    assert normalise(learned, (0.5,) * 3, (0.2,) * 3).requires_grad
    with pytest.raises(ValueError, match="std is -0.2"):
        normalise(x, (0.5,) * 3, (-0.2,) * 3)
    assert random_crop(x[:0], 2).shape == (0, 3, 8, 8) and random_flip(x[:0]).shape == (0, 3, 8, 8) and random_crop(x[:0], 0, size=4).shape == (0, 3, 4, 4)
    with pytest.raises(ValueError, match="N >= 1"):
        channel_statistics(torch.zeros(0, 3, 4, 4, dtype=torch.uint8))
