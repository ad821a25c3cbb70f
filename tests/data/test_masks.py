"""Masks on faces: composition, the six points, homographies, colours, drawn shapes, and the photographs on real faces."""
import colorsys
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from kdnotes.data import catalogue
from kdnotes.data.faces import LANDMARKS, faces
from kdnotes.data.imageset import to_float
from kdnotes.data.masks import (
    SEEN_SHAPES, SHAPES, UNSEEN_SHAPE, VIEWS, Templates, blanked, composed, crossings, draw_masks, framed, homography, mask_points,
    masked_faces, median_points, projected, put_on, recoloured, turn_of, view_of, with_drawn_masks,
)
from kdnotes.data.sets.masks import mask_templates
from kdnotes.runtime import make_generator

SHARED = Path(os.environ.get("KDNOTES_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
needs_templates = pytest.mark.skipif(not (SHARED / "mask_templates").is_dir(), reason=f"the mask templates are not at {SHARED}")
needs_lfw = pytest.mark.skipif(not (SHARED / "lfw" / "dlib.npz").is_file(), reason=f"LFW with its landmarks is not at {SHARED}")
IBUG_MIRROR = [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31, 45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
               54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
NAMED_MIRROR = [LANDMARKS.index(n.replace("left", "?").replace("right", "left").replace("?", "right")) for n in LANDMARKS]


@pytest.fixture(scope="module")
def people():
    return faces(6, 1, size=48, seed=3, nuisance=0.5)


@pytest.fixture(scope="module")
def own() -> Templates:
    """A template of our own, frontal only, and one that leans."""
    picture = torch.rand(4, 60, 80, generator=make_generator(0))
    picture[3] = 0.0
    picture[3, 5:55, 5:75] = 1.0
    anchors = torch.tensor([[3.0, 14], [40, 2], [77, 14], [8, 46], [40, 58], [72, 46]])
    return Templates(("plain", "plain_left", "other"), (picture, picture, picture.flip(0)), anchors.expand(3, 6, 2).clone())


def face68() -> torch.Tensor:
    """Sixty-eight points of one upright face: a round jaw, eyes, nose and mouth where they belong."""
    t = torch.linspace(torch.pi, 0, 17, dtype=torch.float64)
    p = torch.zeros(68, 2, dtype=torch.float64)
    p[:17] = torch.stack([56 + 42 * t.cos(), 45 + 66 * t.sin()], 1)
    p[27:31] = torch.stack([torch.full((4,), 56.0), torch.linspace(46, 66, 4)], 1)
    p[36:42], p[42:48] = torch.tensor([37.0, 45.0]), torch.tensor([75.0, 45.0])
    lip = lambda n, wide: torch.stack([56 + wide * torch.linspace(0, torch.pi, n).cos(), 84 + 6 * torch.linspace(0, torch.pi, n).sin()], 1)
    p[48:54], p[61:64] = torch.tensor([56.0, 78.0]), torch.tensor([56.0, 82.0])
    p[54:60], p[64:68] = lip(7, 14)[:6], lip(5, 10)[:4]
    p[48], p[60] = torch.tensor([42.0, 84.0]), torch.tensor([46.0, 84.0])
    return p[None]


def test_a_mask_that_is_not_there_changes_no_bit_and_a_full_one_leaves_nothing():
    x, o = torch.rand(2, 3, 6, 6), torch.rand(2, 3, 6, 6)
    assert composed(x, torch.zeros(2, 1, 6, 6), o).equal(x)
    assert composed(x, torch.ones(2, 1, 6, 6), o).equal(o)


def test_the_gradient_by_the_face_is_one_minus_alpha(people, own):
    x = to_float(people.images).double().requires_grad_()
    masked = put_on(x, mask_points(people.landmarks), framed(own, 48), torch.zeros(6, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(masked.images.sum(), x)
    assert gradient.equal((1 - masked.alpha).expand_as(x)) and 0 < masked.alpha.mean() < 1
    x = torch.rand(4, 3, 32, 32, requires_grad=True)
    masked = with_drawn_masks(x, generator=make_generator(0))
    (gradient,) = torch.autograd.grad(masked.images.sum(), x)
    assert gradient.equal((1 - masked.alpha).expand_as(x))


def test_outside_of_the_map_no_bit_changes_and_the_blanked_picture_hides_what_is_under_it(people, own):
    x = to_float(people.images)
    masked = put_on(x, mask_points(people.landmarks), framed(own, 48), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert torch.where(masked.map > 0, x, masked.images).equal(x) and masked.map.unique().tolist() == [0, 1]
    assert blanked(x, masked.map).equal(blanked(torch.where(masked.map > 0, torch.rand_like(x), x), masked.map))
    assert blanked(x, masked.map).equal(blanked(masked.images, masked.map)), "colour and texture of the mask are gone"
    assert blanked(x, masked.map).equal((x * (1 - masked.map) + masked.map).clamp_max(1))


def test_bytes_and_floats_give_the_same(people, own):
    frame, points, which = framed(own, 48), mask_points(people.landmarks), torch.zeros(6, dtype=torch.int8)
    assert_close(put_on(people.images, points, frame, which).images, put_on(to_float(people.images), points, frame, which).images)


def test_batched_equals_one_by_one(people, own):
    x, points, frame, which = to_float(people.images), mask_points(people.landmarks), framed(own, 48), torch.tensor([0, 1, 2, 2, 1, 0])
    whole = put_on(x, points, frame, which)
    for k in range(6):
        assert_close(put_on(x[k:k + 1], points[k:k + 1], frame, which[k:k + 1]).images[0], whole.images[k], atol=5e-6, rtol=0)


@pytest.mark.parametrize("mirror, landmarks", [(IBUG_MIRROR, "68"), (NAMED_MIRROR, "20")])
def test_a_mirrored_face_has_mirrored_points_and_the_opposite_turn(people, mirror, landmarks):
    L = face68() + 2 * torch.randn(5, 68, 2, generator=make_generator(1), dtype=torch.float64) if landmarks == "68" else people.landmarks
    flip = lambda p: p * torch.tensor([-1.0, 1.0]).to(p) + torch.tensor([111.0, 0.0]).to(p)
    points = mask_points(L)
    assert_close(mask_points(flip(L[:, mirror])), flip(points[:, [2, 1, 0, 5, 4, 3]]), atol=2e-4, rtol=0)
    assert_close(turn_of(flip(L[:, mirror])), -turn_of(L), atol=2e-3, rtol=0)
    assert_close(mask_points(3 * L + 7), 3 * points + 7, atol=1e-3, rtol=0)
    assert_close(turn_of(3 * L + 7), turn_of(L), atol=2e-3, rtol=0)


def test_the_six_points_of_a_round_face():
    a, b, c, d, e, f = mask_points(face68())[0]
    jaw = lambda y: 42 * (1 - ((y - 45) / 66) ** 2) ** 0.5
    assert_close(b, torch.tensor([56.0, 56.0], dtype=torch.float64))
    for left, right, y in ((a, c, 65.0), (d, f, 90.0)):
        assert_close(torch.stack([left[1], right[1]]), torch.tensor([y, y], dtype=torch.float64), atol=1e-9, rtol=0)
        assert abs(float(right[0] - 56) - jaw(y)) < 1 and abs(float(left[0] + right[0]) - 112) < 1e-6
    assert_close(e, torch.tensor([56.0, 111.0], dtype=torch.float64))


def test_crossings_of_a_line_with_a_polyline():
    v = torch.tensor([[[0.0, 0], [1, 2], [2, 0], [3, 2]]])
    found = crossings(v, torch.tensor([[0.0, 1]]), torch.tensor([[1.0, 0]]))
    assert found.count.tolist() == [3] and found.first.tolist() == [[0.5, 1]] and found.last.tolist() == [[2.5, 1]]
    assert crossings(v, torch.tensor([[0.0, 5]]), torch.tensor([[1.0, 0]])).count.tolist() == [0]


def test_landmarks_outside_the_picture_are_common_and_fine(people, own):
    L = people.landmarks.clone()
    L[:, LANDMARKS.index("chin"), 1] += 12
    assert put_on(people.images, mask_points(L), framed(own, 48), torch.zeros(6, dtype=torch.int64)).map.any((1, 2, 3)).all()


def test_the_view_follows_the_turn():
    L = face68().repeat(3, 1, 1)
    L[1, 30, 0] -= 10                    # the tip of the nose to the left of the picture
    L[2, 30, 0] += 10
    assert [VIEWS[v] for v in view_of(L)] == ["", "_left", "_right"]
    L[1, 30] = L[1, 27] + torch.tensor([-20.0, 0.5])
    with pytest.raises(ValueError, match="row 1 is turned by"):
        view_of(L)


def test_a_homography_is_exact_where_one_exists():
    g = make_generator(3)
    p = torch.rand(40, 6, 2, generator=g, dtype=torch.float64) * 100
    H = torch.eye(3, dtype=torch.float64) + torch.randn(40, 3, 3, generator=g, dtype=torch.float64) * torch.tensor([[0.1], [0.1], [3e-4]])
    q = projected(H, p)
    found = homography(p, q)
    assert ((projected(found, p) - q).norm(dim=2) / q.norm(dim=2).clamp_min(1)).max() < 1e-11
    assert_close(found[:, 2] @ torch.zeros(3, dtype=torch.float64), torch.zeros(40, dtype=torch.float64))


def test_a_homography_has_the_least_squared_distances():
    from scipy.optimize import least_squares
    g = make_generator(5)
    p = torch.tensor([[[0.0, 10], [50, 0], [100, 10], [5, 60], [50, 80], [95, 60]]], dtype=torch.float64)
    q = p * 0.6 + 4 * torch.randn(1, 6, 2, generator=g, dtype=torch.float64) + 12
    r = lambda H: (projected(torch.as_tensor(np.append(H, 1.0)).reshape(1, 3, 3), p) - q).flatten().numpy()
    H = homography(p, q)
    H = (H / H[:, 2:, 2:])[0]
    best = least_squares(r, H.flatten()[:8].numpy(), x_scale=np.abs(H.flatten()[:8].numpy()) + 1e-6, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert float((r(H.flatten()[:8].numpy()) ** 2).sum()) < 2 * best.cost * (1 + 1e-4)


def test_colours_are_those_of_colorsys():
    g = make_generator(0)
    rgb = torch.rand(200, 3, 1, 1, generator=g, dtype=torch.float64)
    rgb[:3] = torch.tensor([0.0, 1.0, 0.4], dtype=torch.float64)[:, None, None, None]
    beta = 0.4 + 1.4 * torch.rand(200, generator=g, dtype=torch.float64)
    for colour, b, new in zip(rgb[..., 0, 0].tolist(), beta.tolist(), recoloured(rgb, beta)[..., 0, 0].tolist()):
        h, s, v = colorsys.rgb_to_hsv(*colour)
        assert new == pytest.approx(colorsys.hsv_to_rgb(h, min(1.0, (2 - b) * s), min(1.0, b * v)), abs=1e-14)
    assert_close(recoloured(rgb, torch.ones(200)), rgb, atol=1e-15, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_drawn_mask_covers_the_lower_face_and_leaves_the_eyes(shape):
    drawn = draw_masks(300, 32, [shape], make_generator(0))
    covered = (drawn.alpha > 0).float()
    assert not covered[:, :, :14].any() and 0.1 < covered.mean() < 0.45 and covered.mean((1, 2, 3)).min() > 0.05
    assert drawn.texture.min() >= 0 and drawn.texture.max() <= 1 and drawn.texture.flatten(2).std(2).mean() > 0.02


def test_drawn_masks_follow_their_generator_and_the_unseen_shape_is_another():
    x = torch.rand(64, 3, 32, 32)
    one, two = (with_drawn_masks(x, generator=make_generator(7)) for _ in range(2))
    assert one.images.equal(two.images) and UNSEEN_SHAPE not in SEEN_SHAPES
    state = torch.get_rng_state()
    draw_masks(3, 32, generator=make_generator(1))
    assert torch.get_rng_state().equal(state)
    seen, unseen = draw_masks(200, 32, SEEN_SHAPES, make_generator(2)).alpha, draw_masks(200, 32, [UNSEEN_SHAPE], make_generator(2)).alpha
    bottom = lambda a: (a[:, 0, 27] > 0).float().mean()
    assert bottom(seen) > bottom(unseen) + 0.1


def test_grey_pictures_and_empty_batches():
    assert with_drawn_masks(torch.rand(5, 1, 16, 16), generator=make_generator(0)).images.shape == (5, 1, 16, 16)
    assert with_drawn_masks(torch.rand(0, 3, 16, 16)).images.shape == (0, 3, 16, 16)


@pytest.mark.parametrize("given, said", [
    (lambda x, L, F: put_on(x, mask_points(L) * float("nan"), F, torch.zeros(6, dtype=torch.int64)), "NaN"),
    (lambda x, L, F: put_on(x, mask_points(L)[:, [2, 1, 0, 5, 4, 3]], F, torch.zeros(6, dtype=torch.int64)), "fold"),
    (lambda x, L, F: put_on(x, mask_points(L)[:, :1].expand(-1, 6, -1), F, torch.zeros(6, dtype=torch.int64)), "on a line"),
    (lambda x, L, F: put_on(x, mask_points(L) * 40, F, torch.zeros(6, dtype=torch.int64)), "less than 1 %"),
    (lambda x, L, F: put_on(x, 24 + (mask_points(L) - mask_points(L).mean(1, keepdim=True)) * 30, F, torch.zeros(6, dtype=torch.int64)), "more than 95 %"),
    (lambda x, L, F: put_on(x, mask_points(L), F, torch.full((6,), 9)), "0..2"),
    (lambda x, L, F: put_on(x, mask_points(L)[:3], F, torch.zeros(6, dtype=torch.int64)), "points"),
    (lambda x, L, F: put_on(x.float(), mask_points(L), F, torch.zeros(6, dtype=torch.int64)), "in \\[0, 1\\]"),
    (lambda x, L, F: mask_points(L[:, :5]), "landmarks are"),
    (lambda x, L, F: draw_masks(2, 32, []), "shape is ''"),
    (lambda x, L, F: Templates(("a",), (torch.rand(3, 8, 8),), torch.rand(1, 6, 2)), "template 'a'"),
    (lambda x, L, F: Templates(("a",), (torch.rand(4, 8, 8),), torch.rand(1, 5, 2)), "anchors"),
    (lambda x, L, F: Templates(("a",), (torch.zeros(4, 8, 8),), torch.rand(1, 6, 2)), "opaque somewhere"),
])
def test_bad_input_is_told_in_one_line(people, own, given, said):
    with pytest.raises((ValueError, TypeError), match=said) as error:
        given(people.images, people.landmarks, framed(own, 48))
    assert "\n" not in str(error.value)


def test_templates_without_side_views_are_worn_from_the_front(own):
    assert own.kinds == ("plain", "other") and own.rows().tolist() == [[0, 1, 0], [2, 2, 2]]
    assert own.of_kinds("other").names == ("other",)


def test_both_layouts_of_the_photographs_are_read_and_the_catalogue_knows_them(tmp_path):
    from PIL import Image
    points = {"a": [0, 4], "b": [20, 0], "c": [40, 4], "d": [3, 16], "e": [20, 20], "f": [36, 16]}
    folder = tmp_path / "MaskTheFace" / "masks"
    (folder / "templates").mkdir(parents=True)
    Image.new("RGBA", (40, 20), (10, 20, 200, 255)).save(folder / "templates" / "blue.png")
    lines = ["[blue]", "template:   masks/templates/blue.png", *(f"mask_{k}:     {x}, {y}" for k, (x, y) in points.items()), "", "[empty]", ""]
    (folder / "masks.cfg").write_text("\n".join(lines))
    theirs = mask_templates(tmp_path)
    (tmp_path / "mask_templates").mkdir()
    (tmp_path / "mask_templates" / "blue.png").write_bytes((folder / "templates" / "blue.png").read_bytes())
    (tmp_path / "mask_templates" / "anchors.json").write_text(json.dumps({"blue": {"size": [40, 20], "points": points}}))
    ours = mask_templates(tmp_path)
    assert ours.names == theirs.names == ("blue",) and ours.anchors.equal(theirs.anchors) and ours.pictures[0].equal(theirs.pictures[0])
    (row,) = catalogue.status(tmp_path, catalogue.known(tmp_path, "masks"))
    assert row["name"] == "mask_templates" and row["state"] == "present" and row["images"] == "1 templates of 1 kinds"
    (row,) = catalogue.status(tmp_path / "nowhere", catalogue.known(tmp_path, "masks"))
    assert row["state"] == "absent" and "MaskTheFace" in row["how"]


@needs_templates
def test_the_photographs_are_all_there():
    templates = mask_templates(SHARED)
    assert len(templates) == 21 and len(templates.kinds) == 7 and (templates.rows().flatten().sort().values == torch.arange(21)).all()


@needs_templates
@needs_lfw
def test_real_masks_sit_on_real_faces():
    from PIL import Image
    L = torch.from_numpy(np.load(SHARED / "lfw" / "dlib.npz")["test_landmarks"].astype(np.float32))
    median = mask_points(L).median(0).values
    assert_close(median, median_points(1, 112)[0], atol=0.8, rtol=0)
    shares = [(view_of(L) == k).float().mean().item() for k in range(3)]
    assert shares == pytest.approx([0.82, 0.09, 0.09], abs=0.02)
    x = torch.from_numpy(np.asarray(Image.open(SHARED / "lfw" / "test_00.webp")).reshape(-1, 112, 112, 3).copy()).permute(0, 3, 1, 2)
    templates = mask_templates(SHARED)
    masked = masked_faces(x, L[:len(x)], framed(templates, 112), templates.rows(), make_generator(0))
    assert masked.alpha.mean().item() == pytest.approx(0.25, abs=0.015) and masked.map.mean().item() == pytest.approx(0.27, abs=0.015)
