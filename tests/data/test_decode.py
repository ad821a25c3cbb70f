"""Pictures arrive as a viewer shows them, or are refused by their name: the pixels are told by hand here, never by the decoder itself."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from kdnotes.checks import refused
from kdnotes.data.batches import PictureBatches
from kdnotes.data.catalogue import add, load
from kdnotes.data.decode import decoded, facts_of
from kdnotes.data.pictures import ClassFolder, Pictures, read_picture

rng = np.random.default_rng(0)
GRID = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)                            # higher than wide, no symmetry
UPRIGHT = {1: GRID, 2: GRID[:, ::-1], 3: GRID[::-1, ::-1], 4: GRID[::-1], 5: GRID.transpose(1, 0, 2), 6: np.rot90(GRID, -1), 7: np.rot90(GRID, 2).transpose(1, 0, 2), 8: np.rot90(GRID)}


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, depth, colour, rows, *chunks):
    """A PNG file by hand: `rows` are the bytes of each line."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(width, height, pixels, end="<", **more):
    """A TIFF file by hand, one strip; `bits`, `photometric`, `format` (1 unsigned, 2 signed, 3 float)."""
    tags = {256: (4, width), 257: (4, height), 258: (3, more.get("bits", 16)), 259: (3, 1), 262: (3, more.get("photometric", 1)), 273: (4, 8), 277: (3, 1), 278: (4, height),
            279: (4, len(pixels)), 339: (3, more.get("format", 1))}
    entries = b"".join(struct.pack(f"{end}HHI", tag, kind, 1) + struct.pack(f"{end}I" if kind == 4 else f"{end}HH", *((value,) if kind == 4 else (value, 0)))
                       for tag, (kind, value) in sorted(tags.items()))
    padded = pixels + bytes(len(pixels) % 2)
    return {"<": b"II*\0", ">": b"MM\0*"}[end] + struct.pack(f"{end}I", 8 + len(padded)) + padded + struct.pack(f"{end}H", len(tags)) + entries + bytes(4)


def put(path, content):
    path.write_bytes(content)
    return path


def seen(path):
    return np.array(decoded(path))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_every_orientation_is_upright(tmp_path, turn, ending):
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"{turn}.{ending}"
    big = GRID.repeat(16, 0).repeat(16, 1)
    Image.fromarray(big).save(path, exif=exif, **{"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {}))
    expected = UPRIGHT[turn].repeat(16, 0).repeat(16, 1).astype(int)
    assert seen(path).shape == expected.shape and abs(seen(path) - expected).max() <= (6 if ending == "jpg" else 0)
    assert facts_of(path).orientation == turn and facts_of(path).size == seen(path).shape[1::-1]
    assert read_picture(path, 32).shape == (3, 32, 32)
    if ending != "tif":                                                           # a box counts the pixels of the file
        assert read_picture(path, box=(0, 0, 16, 32)).shape == ((3, 16, 32) if turn > 4 else (3, 32, 16))


def test_an_orientation_in_every_reader(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            Image.fromarray(GRID).save(tmp_path / "pets" / split / name / "0.png", exif=exif)
    folder = ClassFolder(tmp_path / "pets" / "train", 4)
    expected = read_picture(folder.files[0], 4)
    add("own", tmp_path / "pets", root=tmp_path, size=4)
    for images in (folder[0], folder.load().images[0], load("pets", "train", tmp_path, 4).images[0], load("own", "train", tmp_path).images[0],
                   next(iter(PictureBatches(folder, 2, shuffle=False, workers=0)))["images"][0]):
        assert images.equal(expected)
    assert np.array_equal(Pictures(folder.files, folder.labels, folder.classes)[0].permute(1, 2, 0).numpy(), UPRIGHT[6])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_is_passed_over(tmp_path):
    for block in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0"):
        Image.fromarray(GRID.repeat(8, 0).repeat(8, 1)).save(tmp_path / "a.jpg", exif=block)
        assert seen(tmp_path / "a.jpg").shape == (32, 48, 3)


# ---- bit depths ---------------------------------------------------------------------------------------------------------------------

DEEP = np.array([0, 1, 128, 257, 4095, 32768, 65534, 65535], np.uint16)


def test_sixteen_bits_are_scaled(tmp_path):
    expected = np.rint(DEEP / 257).astype(int)
    files = {"png": png(8, 1, 16, 0, [DEEP.astype(">u2").tobytes()]), "tif": tiff(8, 1, DEEP.astype("<u2").tobytes()), "tiff": tiff(8, 1, DEEP.astype(">u2").tobytes(), ">"),
             "pgm": b"P5 8 1 65535\n" + DEEP.astype(">u2").tobytes()}
    for ending, content in files.items():
        path = put(tmp_path / f"deep.{ending}", content)
        assert seen(path)[0].tolist() == [[v] * 3 for v in expected], ending
    assert facts_of(tmp_path / "deep.png").bits == facts_of(tmp_path / "deep.tif").bits == 16
    white_first = put(tmp_path / "inverted.tif", tiff(8, 1, DEEP.astype("<u2").tobytes(), photometric=0))
    assert seen(white_first)[0, :, 0].tolist() == (255 - expected).tolist()
    ten = put(tmp_path / "ten.pgm", b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes())
    assert abs(seen(ten)[0, :, 0].astype(int) - [0, 128, 255]).max() <= 1
    colour = put(tmp_path / "colour.png", png(2, 1, 16, 2, [np.array([0, 32768, 65535, 257, 514, 65280], ">u2").tobytes()]))
    assert abs(seen(colour)[0].astype(int) - [[0, 128, 255], [1, 2, 254]]).max() <= 1 and facts_of(colour).bits == 16


def test_twelve_bits_are_scaled_by_their_own_range(tmp_path):
    v = np.array([0, 2048, 4095, 1], np.uint16)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in v.reshape(2, 2).tolist())
    assert seen(put(tmp_path / "a.tif", tiff(4, 1, packed, bits=12)))[0, :, 0].tolist() == [0, 128, 255, 0]


@pytest.mark.parametrize("depth, values", [(1, [0, 255]), (2, [0, 85, 170, 255]), (4, [17 * k for k in range(16)])])
def test_few_bits(tmp_path, depth, values):
    count = len(values)
    bits = "".join(f"{k:0{depth}b}" for k in range(count)).ljust(-(-count * depth // 8) * 8, "0")
    row = int(bits, 2).to_bytes(len(bits) // 8, "big")
    assert seen(put(tmp_path / "a.png", png(count, 1, depth, 0, [row])))[0, :, 0].tolist() == values
    hole = struct.pack(">H", count - 1)                                           # the brightest is transparent: white paper instead
    assert seen(put(tmp_path / "b.png", png(count, 1, depth, 0, [row], chunk(b"tRNS", hole))))[0, :, 0].tolist() == values
    dark = struct.pack(">H", 1 if depth > 1 else 0)                                # transparent is counted in these bits
    expected = [255 if k == (1 if depth > 1 else 0) else v for k, v in enumerate(values)]
    assert seen(put(tmp_path / "c.png", png(count, 1, depth, 0, [row], chunk(b"tRNS", dark))))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("content, name, why", [
    (lambda: tiff(2, 1, np.array([0, 2**31], "<u4").tobytes(), bits=32), "a.tif", "holds 32-bit numbers"),
    (lambda: tiff(2, 1, np.array([0.5, 1], "<f4").tobytes(), bits=32, format=3), "a.tif", "holds 32-bit numbers"),
    (lambda: tiff(2, 1, np.array([-5, 5], "<i2").tobytes(), format=2), "a.tif", "holds signed numbers"),
    (lambda: tiff(2, 1, np.array([-5, 5], "i1").tobytes(), bits=8, format=2), "a.tif", "holds signed numbers"),
    (lambda: b"Pf 2 1 -1.0\n" + np.array([0.5, 1], "<f4").tobytes(), "a.pfm", "holds 32-bit numbers")])
def test_numbers_without_a_range_are_refused(tmp_path, content, name, why):
    path = put(tmp_path / name, content())
    said = refused(decoded, path)
    assert said.startswith(f"{path} {why}") and "8 or 16 bits" in said and refused(facts_of, path) == said


# ---- modes and transparency ---------------------------------------------------------------------------------------------------------

def over_white(rgb, alpha):
    a = np.asarray(alpha, float)[..., None] / 255
    return np.rint(a * np.asarray(rgb, float) + (1 - a) * 255).astype(int)


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
def test_what_is_transparent_is_white_paper(tmp_path, ending):
    alpha = np.array([[0, 1, 100, 200, 254, 255]] * 4, np.uint8)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.dstack([GRID, alpha])).save(path, **({"lossless": True, "exact": True} if ending == "webp" else {}))
    assert abs(seen(path) - over_white(GRID, alpha)).max() <= 1 and facts_of(path).transparent
    Image.fromarray(np.dstack([GRID, np.full_like(alpha, 255)])).save(path, **({"lossless": True} if ending == "webp" else {}))
    assert np.array_equal(seen(path), GRID) and not facts_of(path).transparent


def test_grey_palette_and_single_colours_with_transparency(tmp_path):
    grey, alpha = GRID[..., 0], GRID[..., 1]
    Image.fromarray(np.dstack([grey, alpha]), "LA").save(tmp_path / "la.png")
    assert abs(seen(tmp_path / "la.png") - over_white(np.dstack([grey] * 3), alpha)).max() <= 1
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png")
    assert seen(tmp_path / "p.png")[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    palette.save(tmp_path / "holes.png", transparency=bytes([0, 128, 255]))
    assert abs(seen(tmp_path / "holes.png")[0].astype(int) - [[255, 255, 255], [127, 255, 127], [0, 0, 255]]).max() <= 1
    for name in ("one.gif", "one.png"):
        palette.save(tmp_path / name, transparency=2)
        assert seen(tmp_path / name)[0].tolist() == [[255, 0, 0], [0, 255, 0], [255, 255, 255]] and facts_of(tmp_path / name).transparent
    colours = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    colours.save(tmp_path / "rgb.png", transparency=(4, 5, 6))
    assert seen(tmp_path / "rgb.png")[0].tolist() == [[1, 2, 3], [255, 255, 255]]
    Image.fromarray(np.array([[9, 7]], np.uint8)).save(tmp_path / "l.png", transparency=9)
    assert seen(tmp_path / "l.png")[0, :, 0].tolist() == [255, 7]
    deep = put(tmp_path / "i.png", png(3, 1, 16, 0, [np.array([256, 257, 258], ">u2").tobytes()], chunk(b"tRNS", struct.pack(">H", 257))))
    assert seen(deep)[0, :, 0].tolist() == [1, 255, 1]                            # neighbours with the same upper byte stay
    colour = put(tmp_path / "d.png", png(1, 1, 16, 2, [bytes(6)], chunk(b"tRNS", bytes(6))))
    assert "one of its 16-bit colours is transparent" in refused(decoded, colour)


def test_inks_with_adobes_mark_and_without(tmp_path):
    rgb = GRID.repeat(8, 0).repeat(8, 1)
    inks = Image.fromarray(rgb).convert("CMYK")
    inks.save(tmp_path / "adobe.jpg", quality=100)
    content = (tmp_path / "adobe.jpg").read_bytes()
    mark = content.index(b"\xff\xee")
    length = struct.unpack(">H", content[mark + 2 : mark + 4])[0]
    plain = content[:mark] + content[mark + 2 + length :]
    assert b"Adobe" in content and b"Adobe" not in plain
    assert abs(seen(tmp_path / "adobe.jpg").astype(int) - rgb).max() <= 6
    inverted = seen(put(tmp_path / "plain.jpg", plain)).astype(int)               # the same bytes, taken as inks that are not inverted
    c, m, y, k = (255 - np.asarray(inks.convert("CMYK"), int)).transpose(2, 0, 1)
    assert abs(inverted - np.dstack([(255 - ink) * (255 - k) / 255 for ink in (c, m, y)])).max() <= 6
    inks.save(tmp_path / "inks.tif")
    assert abs(seen(tmp_path / "inks.tif").astype(int) - rgb).max() <= 1


def test_ycbcr_lab_and_black_and_white(tmp_path):
    flat = Image.new("RGB", (16, 16), (200, 60, 30))
    flat.convert("YCbCr").save(tmp_path / "y.tif")
    assert abs(seen(tmp_path / "y.tif")[8, 8].astype(int) - [200, 60, 30]).max() <= 2
    for lab, rgb in (((255, 0, 0), [255, 255, 255]), ((0, 0, 0), [0, 0, 0]), ((137, 81, 70), [255, 0, 0])):      # L* 53.7, a* 81, b* 70: the red of sRGB under D50
        Image.new("LAB", (2, 2), (lab[0], lab[1] + 128, lab[2] + 128)).save(tmp_path / "lab.tif")
        assert bytes(lab) * 4 in (tmp_path / "lab.tif").read_bytes()              # a* and b* with a sign, as CIELAB of TIFF has them
        assert abs(seen(tmp_path / "lab.tif")[0, 0].astype(int) - rgb).max() <= 12
    for name in ("a.png", "a.pbm", "a.tif", "a.bmp"):
        Image.fromarray(np.array([[True, False, True]])).save(tmp_path / name)
        assert seen(tmp_path / name)[0].tolist() == [[255] * 3, [0] * 3, [255] * 3] and facts_of(tmp_path / name).bits == 1


def swapped_profile():
    """The profile of a screen whose red is our blue."""
    own = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = (own.index(tag, 128) for tag in (b"rXYZ", b"bXYZ"))               # in the table of tags, each with its place and length
    own[red + 4 : red + 12], own[blue + 4 : blue + 12] = own[blue + 4 : blue + 12], own[red + 4 : red + 12]
    return bytes(own).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".webp"])
def test_colours_of_another_screen_are_those_of_ours(tmp_path, ending):
    options = {"icc_profile": swapped_profile()} | ({"lossless": True} if ending == ".webp" else {"quality": 100, "subsampling": 0} if ending == ".jpg" else {})
    rgb = GRID.repeat(16, 0).repeat(16, 1)
    Image.fromarray(rgb).save(tmp_path / f"a{ending}", **options)
    assert abs(seen(tmp_path / f"a{ending}").astype(int) - rgb[..., ::-1]).max() <= (8 if ending == ".jpg" else 3)


def test_profiles_with_transparency_of_srgb_and_unreadable_ones(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile", swapped_profile()[:200]):
        Image.fromarray(GRID).save(tmp_path / "a.png", icc_profile=profile)
        assert np.array_equal(seen(tmp_path / "a.png"), GRID)
    grey = Image.fromarray(GRID[..., 0])
    grey.save(tmp_path / "grey.png", icc_profile=swapped_profile())               # of another kind than the pixels
    assert np.array_equal(seen(tmp_path / "grey.png"), GRID[..., :1].repeat(3, 2))
    Image.fromarray(np.dstack([GRID, np.full(GRID.shape[:2], 255, np.uint8)])).save(tmp_path / "clear.png", icc_profile=swapped_profile())
    assert abs(seen(tmp_path / "clear.png").astype(int) - GRID[..., ::-1]).max() <= 3
    Image.fromarray(GRID).quantize(24).save(tmp_path / "few.png", icc_profile=swapped_profile())
    assert abs(seen(tmp_path / "few.png").astype(int) - GRID[..., ::-1]).mean() <= 12


# ---- refused by name ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_what_moves_or_has_pages_is_refused(tmp_path, ending):
    frames = [Image.fromarray(np.roll(GRID, i, 0)) for i in range(3)]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    assert refused(decoded, tmp_path / f"a.{ending}") == f"{tmp_path / f'a.{ending}'} holds 3 frames or pages; save the one that is meant as a picture of its own"
    frames[0].save(tmp_path / f"one.{ending}")
    assert seen(tmp_path / f"one.{ending}").shape == (4, 6, 3)


def test_the_first_view_of_a_phones_file_is_shown(tmp_path):
    big = [Image.fromarray(g.repeat(16, 0).repeat(16, 1)) for g in (GRID, 255 - GRID)]
    big[0].save(tmp_path / "a.mpo", save_all=True, append_images=big[1:], quality=100, subsampling=0)
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert Image.open(tmp_path / "a.jpg").n_frames == 2 and abs(seen(tmp_path / "a.jpg").astype(int) - np.asarray(big[0])).max() <= 6


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("side", [9500, 20_000, 2_000_000])
def test_an_enormous_header_is_refused_before_memory_is_asked_for(tmp_path, side):
    for name, content in (("a.png", png(side, side, 8, 2, [b""])), ("a.pgm", b"P5 %d %d 255\n" % (side, side)), ("a.bmp", None)):
        if content is None:
            small = io.BytesIO()
            Image.fromarray(GRID).save(small, "BMP")
            content = small.getvalue()[:18] + struct.pack("<ii", side, side) + small.getvalue()[26:]
        said = refused(decoded, put(tmp_path / name, content))
        assert name in said and ("pixels" in said)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "gif", "tif", "ppm"])
def test_a_file_that_was_cut_short_is_refused(tmp_path, ending):
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"a.{ending}")
    whole = (tmp_path / f"a.{ending}").read_bytes()
    for part in (whole[: len(whole) // 2], whole[:20], b""):
        said = refused(decoded, put(tmp_path / f"a.{ending}", part))
        assert f"a.{ending} cannot be read (" in said and "get it again" in said
    assert "b.heic cannot be read (it is no picture that Pillow knows); get it again, or save it anew as PNG or JPEG" in refused(decoded, put(tmp_path / "b.heic", b"\0\0\0\x18ftypheic" + bytes(40)))
    assert "is missing" in refused(decoded, tmp_path / "none.png")
