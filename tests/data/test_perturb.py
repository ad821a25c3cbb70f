"""The seven perturbations: closed forms, slow loops from the formulas, levels that get worse, bytes within one level of floats."""

import math

import pytest
import torch

from kdnotes.checks import refused
from kdnotes.data.clips import toytalk
from kdnotes.data.perturb import LEVELS, add_noise, blur, compress, compress_h264, cosine_transform, cover_blocks, darken, gaussian_kernel, perturb, pixelate, saturate


def random(*shape, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.fixture(scope="module")
def clips():
    return toytalk({"real": 8}, frames=4, size=32).clips


def test_saturation_keeps_the_luma():
    x = random(4, 3, 9, 8)
    luma = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    torch.testing.assert_close(saturate(x, 1.0), x)
    torch.testing.assert_close(saturate(x, 0.0), luma[:, None].expand_as(x))
    half = saturate(x, 0.4)
    torch.testing.assert_close(0.299 * half[:, 0] + 0.587 * half[:, 1] + 0.114 * half[:, 2], luma)


def test_contrast_is_a_gain():
    x = random(4, 3, 9, 8)
    torch.testing.assert_close(darken(x, 0.35), 0.35 * x)
    assert darken(torch.full((1, 3, 2, 2), 201, dtype=torch.uint8), 0.475).unique().tolist() == [95]      # 95.475, cut off


@pytest.mark.parametrize("v", [0.001, 0.01])
def test_noise_has_the_variance_of_the_limited_range(v):
    grey = torch.full((40, 3, 32, 32), 0.5, dtype=torch.float64)
    n = add_noise(grey, v, torch.Generator().manual_seed(1)) - grey
    if v == 0.001:                                                # nothing is clipped
        r, g, b = n.unbind(1)
        luma = 0.299 * r + 0.587 * g + 0.114 * b
        assert math.isclose(luma.var().item(), (255 / 219) ** 2 * v, rel_tol=0.05)
        for channel, times in zip((r, g, b), (1.976, 1.473, 2.330)):
            assert math.isclose(channel.std().item(), times * v**0.5, rel_tol=0.02)
        assert torch.corrcoef(torch.stack([r.flatten(), g.flatten()]))[0, 1] < 0.5
    assert not torch.equal(n[0], n[1])


@pytest.mark.parametrize("k", LEVELS["blur"])
def test_blur_against_opencvs_formula(k):
    kernel = gaussian_kernel(k / 6, int(k) // 2)
    assert len(kernel) == k and math.isclose(kernel.sum().item(), 1, abs_tol=1e-12)
    x = random(1, 3, 24, 26)
    near = lambda i, n: -i if i < 0 else 2 * n - 2 - i if i >= n else i                # ... 2 1 0 1 2 ...: the edge is not repeated
    r = int(k) // 2
    slow = sum(kernel[a + r] * kernel[b + r] * x[0, :, near(5 + a, 24), near(1 + b, 26)] for a in range(-r, r + 1) for b in range(-r, r + 1))
    torch.testing.assert_close(blur(x, k / 6, r)[0, :, 5, 1], slow)
    flat = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(blur(flat, k / 6, r), flat)


def test_pixelation_with_an_odd_factor_samples_points():
    x = random(1, 3, 9, 9)
    small = x[..., 1::3, 1::3]
    torch.testing.assert_close(pixelate(x, 3, 3)[..., 1::3, 1::3], small)
    flat = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(pixelate(flat, 7, 11), flat)


def test_blocks_cover_the_stated_area_at_most_and_never_the_last_row():
    x = torch.zeros(200, 3, 40, 44, dtype=torch.uint8)
    y = cover_blocks(x, 3, 8, torch.Generator().manual_seed(0))
    hit = y[:, 0] == 128
    assert torch.equal(y, 128 * hit[:, None].expand_as(y)) and hit.sum((1, 2)).max() == 3 * 64 and hit.sum((1, 2)).min() >= 64
    assert not hit[:, -1].any() and not hit[:, :, -1].any() and hit[:, -2].any() and hit[:, 0].any()
    assert not torch.equal(hit[0], hit[1])
    assert torch.equal(cover_blocks(x[:1], 0), x[:1])


def test_as_many_blocks_as_the_benchmark_puts():
    for size, level, count, side in ((256, 1, 16, 8), (512, 2, 64, 8), (300, 5, 80, 8)):
        hit = perturb(torch.zeros(1, 1, 3, size, size, dtype=torch.uint8), "block", level)[0, 0, 0] == 128
        assert 0.8 * count * side**2 < hit.sum() <= count * side**2
    for level in range(1, 6):                                     # 1 to 5 squares of 4 pixels at 32
        hit = perturb(torch.zeros(60, 1, 3, 32, 32, dtype=torch.uint8), "block", level)[:, 0, 0] == 128
        assert hit.sum((1, 2)).max() == 16 * level


def test_small_forms_have_the_sizes_of_their_formula():
    x = random(1, 1, 3, 32, 32)
    for level, side in zip(range(1, 6), (26, 21, 18, 16, 14)):
        assert torch.equal(perturb(x, "pixelation", level), pixelate(x, side, side))
        assert torch.equal(perturb(x, "blur", level), blur(x, LEVELS["blur"][level - 1] / 6 / 4))
    large = random(1, 1, 3, 256, 256)
    assert torch.equal(perturb(large, "pixelation", 2), pixelate(large, 85, 85))
    assert torch.equal(perturb(large, "blur", 1), blur(large, 7 / 6, 3))


def test_the_cosine_transform_against_scipy():
    fft = pytest.importorskip("scipy.fft")
    x = random(8, 8)
    C = cosine_transform()
    torch.testing.assert_close(C @ x @ C.T, torch.from_numpy(fft.dctn(x.numpy(), norm="ortho")))


def test_compression_is_the_coding_of_residuals_frame_after_frame():
    """The definition: what is new since the decoded frame before, rounded; one step for all makes it the rounding of each frame."""
    x, delta = random(2, 6, 3, 16, 16), 2 ** (31 / 6) / 255
    luma = 0.299 * x[:, :, 0] + 0.587 * x[:, :, 1] + 0.114 * x[:, :, 2]
    planes = torch.stack([luma, (x[:, :, 2] - luma) / 1.772, (x[:, :, 0] - luma) / 1.402], 2)
    C, decoded, frames = torch.block_diag(cosine_transform(), cosine_transform()), torch.zeros_like(planes[:, 0]), []
    for now in planes.unbind(1):
        decoded = decoded + C.T @ ((C @ (now - decoded) @ C.T / delta).round() * delta) @ C
        y, b, r = decoded.unbind(1)
        frames.append(torch.stack([y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b], 1))
    torch.testing.assert_close(compress(x, 35), torch.stack(frames, 1).clamp(0, 1))


@pytest.mark.parametrize("size", [40, 200])
def test_small_and_large_frames_are_blurred_alike(size):
    x = random(1, 3, size, size + 3)
    wide = torch.nn.functional.pad(x, (8, 200, 8, 200), mode="replicate")
    inside = slice(8 + 5, 8 + size - 5)                           # away from the borders, which are not mirrored here
    torch.testing.assert_close(blur(wide, 1.5, 5)[..., inside, inside], blur(x, 1.5, 5)[..., 5:size - 5, 5:size - 5])


def test_compression_rounds_what_is_new_and_forgets_nothing():
    x = random(2, 5, 3, 13, 18)
    torch.testing.assert_close(compress(x, 0), x, atol=2e-2, rtol=0)              # a step of .63 grey levels
    still = x[:, :1].expand(-1, 4, -1, -1, -1)
    made = compress(still, 38)
    for t in range(1, 4):
        torch.testing.assert_close(made[:, t], made[:, 1])                         # nothing new: nothing coded
    # one block, by hand: luma of a grey clip
    grey = random(1, 1, 1, 8, 8).expand(-1, -1, 3, -1, -1)
    C, delta = cosine_transform(), 2 ** (31 / 6) / 255
    slow = C.T @ ((C @ grey[0, 0, 0] @ C.T / delta).round() * delta) @ C
    torch.testing.assert_close(compress(grey, 35)[0, 0], slow.clamp(0, 1).expand(3, -1, -1))
    torch.testing.assert_close(compress(x, 30)[1:], compress(x[1:], 30))           # no clip knows another


@pytest.mark.parametrize("name", LEVELS)
def test_levels_get_worse_and_bytes_agree_with_floats(name, clips):
    psnr = []
    # a coefficient that lies half a step between two levels is rounded up or down by the last bit of its sum: floats as wide as those of bytes
    floats = clips.float() if name == "compression" else clips.double()
    for level in range(1, 6):
        y = perturb(clips, name, level)
        psnr.append(-10 * ((y.double() - clips.double()) / 255).square().mean().log10())
        exact = perturb(floats / 255, name, level, torch.Generator().manual_seed(0))
        assert y.dtype == torch.uint8 and y.shape == clips.shape
        assert (255 * exact - y).abs().max() <= 1
        assert torch.equal(perturb(clips[:, :, :, :, :], name, level), y)
    assert sorted(psnr, reverse=True) == psnr


def test_a_chunk_changes_nothing(monkeypatch, clips):
    for name in LEVELS:
        if name not in ("noise", "block"):
            whole = perturb(clips.double() / 255, name, 3)
            monkeypatch.setattr("kdnotes.data.perturb.CHUNK", 1)
            torch.testing.assert_close(perturb(clips.double() / 255, name, 3), whole, atol=1e-12, rtol=0)
            monkeypatch.undo()


def test_h264_where_there_is_an_encoder(clips):
    pytest.importorskip("av", reason="needs PyAV: pip install 'kdnotes[video]'")
    errors = [(compress_h264(clips[:2], crf).double() - clips[:2]).abs().mean() for crf in (0, 30, 40)]
    assert errors[0] < errors[1] < errors[2] and errors[0] < 6       # colour is halved in space even at 0


def test_what_cannot_be_done_is_refused(clips):
    assert "no room for blocks of 8" in refused(cover_blocks, clips[..., :8, :8], 1)
    assert "smaller than the kernel" in refused(blur, clips[..., :6, :6], 3.0)
    assert "smaller than a block" in refused(compress, clips[..., :7, :7], 30)
    assert "small=True" in refused(perturb, clips, "block", 1, small=False)
    assert "'saturation' or" in refused(perturb, clips, "jpeg", 1)
    assert "level is 6" in refused(perturb, clips, "blur", 6)
    assert "(N, T, 3, H, W)" in refused(perturb, clips[0], "blur", 1)
    assert "even H and W" in refused(compress_h264, clips[..., :7, :7], 30)
