"""The learned set: decoding, mosaics, files."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kdnotes.checks import refused
from kdnotes.condense.synthetic import SyntheticSet, contact_sheet, decode, draw_per_class, from_real, join, load_set, mosaic, save, write_pictures
from kdnotes.data.imageset import ImageSet

quick = settings(max_examples=20)


def bilinear_by_loops(tile, side):
    """Half-pixel centres, one output pixel at a time."""
    t = tile.shape[-1]
    out = torch.zeros(tile.shape[0], side, side, dtype=tile.dtype)
    for i in range(side):
        for j in range(side):
            y, x = max(0.0, (i + 0.5) * t / side - 0.5), max(0.0, (j + 0.5) * t / side - 0.5)
            y0, x0 = min(int(y), t - 1), min(int(x), t - 1)
            y1, x1, a, b = min(y0 + 1, t - 1), min(x0 + 1, t - 1), y - y0, x - x0
            out[:, i, j] = (1 - a) * ((1 - b) * tile[:, y0, x0] + b * tile[:, y0, x1]) + a * ((1 - b) * tile[:, y1, x0] + b * tile[:, y1, x1])
    return out


def toy(per_class=12, classes=3, side=8, channels=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(per_class)
    return ImageSet(torch.randint(256, (len(labels), channels, side, side), generator=g, dtype=torch.uint8), labels, tuple(map(str, range(classes))), "toy")


@quick
@given(factor=st.integers(1, 3), side=st.integers(4, 11), seed=st.integers(0, 999))
def test_decode_equals_its_definition(factor, side, seed):
    n, x = 2, torch.rand(2, 2, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    out, t = decode(x, factor), -(-side // factor)
    padded = torch.full((n, 2, factor * t, factor * t), 0.5, dtype=torch.float64)
    padded[..., :side, :side] = x
    assert len(out) == n * factor**2
    for k in range(factor**2):                                                       # tile-major: tile k of every image before tile k + 1
        i, j = divmod(k, factor)
        for image in range(n):
            tile = padded[image, :, i * t : (i + 1) * t, j * t : (j + 1) * t]
            torch.testing.assert_close(out[k * n + image], bilinear_by_loops(tile, side))


def test_the_worked_example_and_the_gradient():
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, :2, :2] = torch.tensor([[0.0, 1], [2, 3]])
    assert decode(x, 2)[0, 0].tolist() == [[0, 0.25, 0.75, 1], [0.5, 0.75, 1.25, 1.5], [1.5, 1.75, 2.25, 2.5], [2, 2.25, 2.75, 3]]
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(torch.autograd.grad(decode(x, 2).sum(), x)[0], torch.tensor(4.0).double())
    x = torch.rand(1, 1, 28, 28, dtype=torch.float64, requires_grad=True)
    g = torch.autograd.grad(decode(x, 3).sum(), x)[0]
    assert 7.7 < g.min() and g.max() < 8.0
    flat = torch.full((2, 1, 8, 8), 0.3)
    assert torch.allclose(decode(flat, 2), torch.tensor(0.3)) and decode(flat, 1) is flat


@pytest.mark.long
@quick
@given(factor=st.sampled_from([1, 2, 4]), ipc=st.integers(1, 3), seed=st.integers(0, 999))
def test_mosaic_then_decode_gives_back_the_shrunk_images_in_order(factor, ipc, seed):
    images = torch.rand(ipc * factor**2, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    back = decode(mosaic(images, factor), factor)
    shrunk = images[..., ::factor, ::factor]                                          # nearest neighbour
    expected = torch.stack([bilinear_by_loops(tile, 16) for tile in shrunk])
    torch.testing.assert_close(back, expected)


def test_mosaics_have_the_published_tiles_where_the_factor_does_not_divide_the_side():
    """IDC's code: the first `side % factor` tiles are a pixel larger. IDM's shrinks by bilinear interpolation."""
    images = torch.rand(9, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found, edges = mosaic(images, 3)[0], (0, 10, 19, 28)
    for k, image in enumerate(images):
        (top, bottom), (left, right) = (edges[i : i + 2] for i in divmod(k, 3))
        rows, columns = ((torch.arange(end - start) * (28 / (end - start))).long() for start, end in ((top, bottom), (left, right)))
        assert found[:, top:bottom, left:right].equal(image[:, rows][:, :, columns])
    smooth = mosaic(images[:4], 2, "bilinear")[0, 0, :14, :14]
    torch.testing.assert_close(smooth, torch.nn.functional.avg_pool2d(images[:1], 2)[0, 0])
    with pytest.raises(ValueError, match="expected 'nearest' or 'bilinear'"):
        mosaic(images[:4], 2, "bicubic")


def test_a_set_begins_with_real_images_of_its_classes():
    real = toy()
    begun = from_real(real, ipc=2, factor=2, seed=3)
    images, labels = begun.decoded()
    assert begun.pixels.shape == (6, 1, 8, 8) and begun.labels.tolist() == [0, 0, 1, 1, 2, 2] and labels.tolist() == [0, 0, 1, 1, 2, 2] * 4
    tiles = {tuple(x.flatten().tolist()) for x in real.images[..., ::2, ::2].float() / 255}
    for k in range(6):
        for i, j in ((0, 0), (0, 4), (4, 0), (4, 4)):
            tile = tuple(begun.pixels[k, :, i : i + 4, j : j + 4].flatten().tolist())
            assert tile in tiles
            tiles.remove(tile)                                                        # no image twice
    plain = from_real(real, ipc=2, seed=3)
    rows = draw_per_class(real.labels, 3, 2, 3)
    assert plain.pixels.equal(real.images[rows.flatten()] / 255)
    assert not plain.pixels.equal(from_real(real, ipc=2, seed=4).pixels) and plain.pixels.equal(from_real(real, ipc=2, seed=3).pixels)
    assert from_real(toy(side=9), ipc=1, factor=2).pixels.shape == (3, 1, 9, 9)       # a side that the factor does not divide


def test_a_saved_set_comes_back_and_damage_is_noticed(tmp_path):
    begun, path = from_real(toy(channels=3), ipc=2, factor=2), tmp_path / "set.safetensors"
    save(begun, path)
    again = load_set(path)
    assert again.pixels.equal(begun.pixels) and (again.classes, again.factor, again.name, again.ipc) == (("0", "1", "2"), 2, "toy", 2)
    assert (tmp_path / "set.png").read_bytes()[:4] == b"\x89PNG" and sorted(p.name for p in tmp_path.iterdir()) == ["set.png", "set.safetensors"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a condensed set"):
        load_set(path)
    save_file({"pixels": begun.pixels, "labels": torch.tensor([0, 0, 1, 1, 2, 9])}, path, {"classes": '["0", "1", "2"]', "factor": "2", "name": ""})
    with pytest.raises(ValueError, match=r"labels 0\.\.9"):
        load_set(path)
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_set(tmp_path / "none.safetensors")


def test_parts_are_joined_class_after_class():
    real = toy(classes=4)
    parts = [from_real(real.select(own, relabel=True), 2, 2) for own in ([0, 1], [2], [3])]
    whole = join(parts)
    assert whole.classes == ("0", "1", "2", "3") and (whole.ipc, whole.factor) == (2, 2)
    assert all(row.equal(own) for row, own in zip(whole.by_class(), torch.cat([p.by_class() for p in parts])))


def test_decoded_images_are_as_they_were_learned_and_carry_no_gradient():
    found = SyntheticSet(torch.tensor([[[[-1.0, 2.0], [0.5, 0.5]]]]).requires_grad_(), ("a",))
    assert found.decoded()[0].tolist() == [[[[-1, 2], [0.5, 0.5]]]] and not found.decoded()[0].requires_grad
    assert contact_sheet(found, zoom=1).dtype == torch.uint8


@pytest.mark.parametrize(("call", "words"), [
    (lambda: from_real(toy(), 13), "class 0 has 12 images and 13 are asked for"), (lambda: from_real(toy(), 4, 2), "16 are asked for"),
    (lambda: from_real(toy(), 0), "ipc is 0"), (lambda: from_real(toy(), 1, 8), "factor is 8 for images of 8 pixels"), (lambda: decode(torch.rand(1, 1, 8, 8), 0), "factor is 0"),
    (lambda: from_real(toy().select([0, 1]), 1), "class 2 has 0 images"), (lambda: SyntheticSet(torch.full((2, 1, 4, 4), torch.nan), ("a",)), "NaN or infinite"),
    (lambda: SyntheticSet(torch.zeros(3, 1, 4, 4), ("a", "b")), "expected floating point"), (lambda: join([]), "expected at least one"),
    (lambda: join([from_real(toy(), 1), from_real(toy(), 2)]), "all alike"), (lambda: join([from_real(toy(), 1)] * 2), "class '0' is in two of the parts"),
])
def test_bad_input_is_answered_in_one_line(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_ten_stored_images_are_ten_pictures_whatever_is_shown_of_them(tmp_path, factor, channels):
    from torchvision.io import read_image

    names = ("a/b", "..", "two words", "ß", *"0123456")[:10]
    small = SyntheticSet(torch.linspace(-0.2, 1.2, 10 * channels * 81).view(10, channels, 9, 9), names, factor, "mine")
    files = write_pictures(small, tmp_path / "pictures")
    assert len(files) == len(set(files)) == len(list((tmp_path / "pictures").iterdir())) == 10 and {f.parent for f in files} == {tmp_path / "pictures"}
    assert torch.stack([read_image(str(f)) for f in files]).equal((small.pixels.clamp(0, 1) * 255).round().byte())
    shown = len(small.decoded()[0])
    assert "10 stored images" in repr(small) and shown == 10 * factor**2 and (f"{shown} are shown" in repr(small)) is (factor > 1)
    assert [f.name for f in files[:3]] == ["0-a_b.png", "1-...png", "2-two_words.png"]


def test_pictures_of_two_channels_are_refused(tmp_path):
    assert "2 channels" in refused(write_pictures, SyntheticSet(torch.rand(2, 2, 4, 4), ("a", "b")), tmp_path)
