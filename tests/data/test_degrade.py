"""Degradation against slow references written from the formula and against Pillow; its invariances; pairs in register."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdnotes.data.augment import crop, draw_crop, draw_flip, flip
from kdnotes.data.degrade import MODES, high_low_pair, low_resolution, target_size
from kdnotes.runtime import make_generator

KERNELS = {  # name: (function of the distance in small pixels, its reach)
    "bilinear": (lambda t: max(0.0, 1 - abs(t)), 1.0),
    "bicubic": (lambda t: 1.5 * abs(t) ** 3 - 2.5 * t**2 + 1 if abs(t) < 1 else (-0.5 * abs(t) ** 3 + 2.5 * t**2 - 4 * abs(t) + 2 if abs(t) < 2 else 0.0), 2.0),
}


def slow_matrix(n, small, kernel):
    """The `(small, n)` weights of the antialiased kernel, from the formula: w((k + 1/2) / f - i - 1/2), each row summing to 1."""
    f = n / small
    w = np.array([[KERNELS[kernel][0]((k + 0.5) / f - i - 0.5) for k in range(n)] for i in range(small)])
    return w / w.sum(1, keepdims=True)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape, size", [((12, 12), (4, 4)), ((28, 28), (7, 9)), ((15, 10), (6, 10))])
def test_antialiased_kernels_equal_the_formula(mode, shape, size):
    x = torch.rand(2, 3, *shape, dtype=torch.float64, generator=make_generator(0))
    rows, columns = (torch.from_numpy(slow_matrix(n, s, mode)) for n, s in zip(shape, size))
    expected = (rows @ x @ columns.T).clamp(0, 1)
    assert torch.allclose(low_resolution(x, size=size, mode=mode), expected, atol=1e-6)


def test_area_is_the_block_mean_and_nearest_the_middle_pixel():
    x = torch.rand(2, 1, 12, 9, generator=make_generator(0))
    assert torch.allclose(low_resolution(x, factor=3, mode="area"), x.view(2, 1, 4, 3, 3, 3).mean((3, 5)), atol=1e-6)
    assert low_resolution(x, factor=3, mode="nearest").equal(x[:, :, 1::3, 1::3])


@pytest.mark.parametrize("mode, theirs", [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR), ("area", Image.Resampling.BOX)])
def test_bytes_agree_with_pillow(mode, theirs):
    x = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    got = low_resolution(torch.from_numpy(x)[None, None], factor=4, mode=mode)
    assert got.dtype == torch.uint8
    assert np.abs(got[0, 0].numpy().astype(int) - np.asarray(Image.fromarray(x).resize((8, 8), theirs)).astype(int)).max() <= 1


options = {"mode": st.sampled_from(MODES), "antialias": st.booleans(), "restore": st.booleans(), "size": st.tuples(st.integers(1, 12), st.integers(1, 10))}


@settings(max_examples=60)
@given(value=st.integers(0, 255), **options)
def test_a_constant_image_stays_constant_and_has_the_requested_size(value, mode, antialias, restore, size):
    grey = torch.full((1, 2, 12, 10), value, dtype=torch.uint8)
    expected = (1, 2, 12, 10) if restore else (1, 2, *size)
    got = low_resolution(grey, size=size, mode=mode, antialias=antialias, restore=restore)
    assert got.shape == expected and got.eq(value).all()
    floats = low_resolution(grey.float() / 255, size=size, mode=mode, antialias=antialias, restore=restore)
    assert floats.shape == expected and torch.allclose(floats, torch.tensor(value / 255), atol=1e-5)


@settings(max_examples=40)
@given(seed=st.integers(0, 999), **options)
def test_range_determinism_batch_independence_and_mirror(seed, mode, antialias, restore, size):
    x = torch.rand(3, 2, 12, 10, generator=make_generator(seed)).round()         # black and white: the hardest case for overshoot
    degrade = lambda y: low_resolution(y, size=size, mode=mode, antialias=antialias, restore=restore)
    kept, y = x.clone(), degrade(x)
    assert y.min() >= 0 and y.max() <= 1 and y.equal(degrade(x)) and x.equal(kept)
    assert torch.allclose(torch.cat([degrade(x[i:i + 1]) for i in range(3)]), y, atol=1e-6)
    if mode != "nearest":                                                        # the middle of an even block has no middle pixel
        assert torch.allclose(degrade(x.flip(-1)), y.flip(-1), atol=1e-5)
    as_bytes = degrade((x * 255).to(torch.uint8))
    assert as_bytes.dtype == torch.uint8 and (as_bytes.float() / 255 - y).abs().max() <= (0.51 / 255 if not restore else 2 / 255)


def test_sizes_and_factors():
    x = torch.rand(1, 1, 28, 28)
    assert low_resolution(x, factor=4).shape[2:] == (7, 7) and low_resolution(x, factor=1.75).shape[2:] == (16, 16) and low_resolution(x, size=1).shape[2:] == (1, 1)
    assert low_resolution(x, factor=4).equal(low_resolution(x, size=7)) and low_resolution(x, size=7, restore=True).shape == x.shape
    same = low_resolution(x, size=28)
    assert torch.allclose(same, x, atol=1e-6) and same.data_ptr() != x.data_ptr() and target_size(5, 9, 100, None) == (1, 1)


def test_pairs_share_crop_and_mirror():
    x = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=make_generator(0))
    high, low = high_low_pair(x, make_generator(1), padding=3, flip=True, size=8, mode="area")
    generator = make_generator(1)
    by_hand = crop(x, 3, draw_crop(x, 3, generator))
    by_hand = flip(by_hand, draw_flip(by_hand, generator))
    assert high.equal(by_hand) and low.equal(low_resolution(by_hand, size=8, mode="area")) and low.shape == (8, 3, 8, 8)
    again = high_low_pair(x, make_generator(1), padding=3, flip=True, size=8, mode="area")
    assert again[0].equal(high) and again[1].equal(low) and not high.equal(x)
    plain = high_low_pair(x, factor=2, restore=True)
    assert plain[0].equal(x) and plain[1].shape == x.shape


def test_bad_input():
    x = torch.rand(2, 1, 8, 8)
    for call, message in (
            (lambda: low_resolution(x), "factor is None, size is None; expected exactly one"), (lambda: low_resolution(x, 2, 4), "expected exactly one"),
            (lambda: low_resolution(x, 0.5), "factor is 0.5; expected a number >= 1"), (lambda: low_resolution(x, size=9), "size is 9 for images of 8 x 8"),
            (lambda: low_resolution(x, size=0), "size is 0"), (lambda: low_resolution(x, 2, mode="cubic"), "mode is 'cubic'; expected one of bicubic"),
            (lambda: low_resolution(x[0], 2), r"\(1, 8, 8\); expected \(N, C, H, W\)"), (lambda: low_resolution(x.numpy(), 2), "ndarray"),
            (lambda: low_resolution(2 * x - 1, 2), "before they are standardised"), (lambda: low_resolution(x * float("nan"), 2), "from nan to nan"),
            (lambda: low_resolution(x.long(), 2), "torch.int64"), (lambda: high_low_pair(x), "exactly one")):
        with pytest.raises((ValueError, TypeError), match=message):
            call()


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "area", "nearest"])
@pytest.mark.parametrize("dtype, near", [(torch.float16, 2e-3), (torch.bfloat16, 1e-2), (torch.float64, 1e-6)])
def test_every_type_of_numbers(mode, dtype, near):
    x = torch.rand(2, 3, 8, 8).to(dtype)
    low = low_resolution(x, 2, mode=mode, restore=True)
    assert low.dtype == dtype and (low.double() - low_resolution(x.float(), 2, mode=mode, restore=True).double()).abs().max() < near
