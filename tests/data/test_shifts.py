"""Shifts of light, lens and sensor."""

import pytest
import torch

from kdnotes.checks import refused
from kdnotes.data.shifts import SHIFTS, Shift, shifted


def test_shifts_are_what_they_say():
    x = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    found = {name: shifted(x, name, torch.Generator().manual_seed(1)) for name in SHIFTS}
    assert torch.equal(found["clean"], x) and torch.allclose(found["dark"], 0.35 * x + 0.02) and torch.allclose(found["bright"], 0.5 * x + 0.5)
    assert torch.allclose(found["blur"][:, :, 2, 2], x[:, :, 1:4, 1:4].mean((2, 3))) and torch.allclose(shifted(torch.full((1, 1, 4, 4), 0.3), "blur"), torch.tensor(0.3))
    assert all(0 <= float(y.min()) and float(y.max()) <= 1 for y in found.values())
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found["noise"], (x + 0.1 * noise).clamp(0, 1)) and torch.equal(found["haze"], (0.4 * x + 0.3 + 0.05 * noise).clamp(0, 1))


@pytest.mark.parametrize("name", SHIFTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64])
def test_a_shift_keeps_dtype_shape_and_what_it_was_given(name, dtype):
    x = torch.randint(0, 256, (3, 5, 6, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).permute(0, 3, 1, 2)     # not contiguous
    x = x if dtype == torch.uint8 else (x.float() / 255).to(dtype)
    before, state = x.clone(), torch.get_rng_state()
    y = shifted(x, name, torch.Generator().manual_seed(1))
    assert y.dtype == dtype and y.shape == x.shape and x.equal(before) and torch.get_rng_state().equal(state)
    exact = shifted(x.double() / (255 if dtype == torch.uint8 else 1), name, torch.Generator().manual_seed(1))
    assert torch.allclose(y.double() / (255 if dtype == torch.uint8 else 1), exact, atol=0.02)


@pytest.mark.parametrize(("x", "shift", "words"), [
    (torch.rand(1, 1, 4, 4), "drak", "unknown shift 'drak'; did you mean 'dark'"),
    (torch.rand(1, 1, 4, 4), "haze", "draws noise, but there is no generator; pass kdnotes.runtime.make_generator(seed)"),
    (torch.randn(1, 1, 4, 4) * 3, "dark", "expected uint8, or floats in [0, 1]"),
    (torch.full((1, 1, 4, 4), torch.nan), "dark", "expected uint8, or floats in [0, 1]"),
    (torch.rand(4, 4), "dark", "expected"),
])
def test_what_cannot_be_shifted_is_refused(x, shift, words):
    assert words in refused(shifted, x, shift)


@pytest.mark.parametrize("numbers", [{"gain": -0.1}, {"offset": -0.1}, {"gain": 0.8, "offset": 0.3}, {"noise": -1.0}, {"noise": float("nan")}, {"gain": float("nan")}])
def test_a_shift_that_leaves_the_range_is_refused(numbers):
    assert "leaves [0, 1]" in refused(Shift, **numbers)
