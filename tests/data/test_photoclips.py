"""Animated photographs: portraits, plates, modes of motion, composites, and clips of which a null forgery is real to the bit; on drawn portraits and on LFW."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from kdnotes.checks import refused
from kdnotes.data.clips import HELD_OUT, KINDS, TRAINED, WITHOUT_FINGERPRINT, temporal_energy
from kdnotes.data.photoclips import (
    JITTER, MARKS, MIRROR, MODES, SLIPS, Portraits, depth_of, drawn_portraits, fields_of, framed_portraits, head_of, inner_weight, matched, photoclips, suitable,
    thin_plate, unit_moves,
)
from kdnotes.metrics.verify import roc

SHARED = Path(os.environ.get("KDNOTES_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data" / "lfw"
needs_lfw = pytest.mark.skipif(not (SHARED / "dlib.npz").is_file(), reason=f"LFW with its landmarks is not at {SHARED}")


@pytest.fixture(scope="module")
def portraits():
    return drawn_portraits(16)


@pytest.fixture(scope="module")
def lfw():
    """The test people of LFW, 128 pictures in a column each."""
    from PIL import Image
    images = np.concatenate([np.asarray(Image.open(p)).reshape(-1, 112, 112, 3) for p in sorted(SHARED.glob("test_*.webp"))])
    rows = [row for row in csv.DictReader(open(SHARED / "index.csv", encoding="utf-8")) if row["split"] == "test"]
    points = np.load(SHARED / "dlib.npz")["test_landmarks"].astype(np.float32)
    return Portraits(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(points), torch.tensor([int(row["label"]) for row in rows]))


def area(scores, forged):
    curve = roc(scores, forged)
    return 100 * float(torch.trapezoid(curve.tar.double(), curve.far.double()))


# ---- geometry


def test_a_plate_goes_through_its_controls_and_is_flat_where_they_are():
    g = torch.Generator().manual_seed(0)
    c, v = torch.rand(3, 20, 2, generator=g, dtype=torch.float64), torch.randn(3, 20, 2, generator=g, dtype=torch.float64)
    torch.testing.assert_close(thin_plate(c, v, c, 0.0), v, atol=1e-8, rtol=1e-8)
    A, b = torch.randn(3, 2, 2, generator=g, dtype=torch.float64), torch.randn(3, 1, 2, generator=g, dtype=torch.float64)
    at = torch.rand(3, 7, 2, generator=g, dtype=torch.float64)
    torch.testing.assert_close(thin_plate(c, c @ A + b, at, 0.5), at @ A + b, atol=1e-8, rtol=1e-8)


def test_a_plate_is_scipys():
    from scipy.interpolate import RBFInterpolator
    g = np.random.default_rng(0)
    c, v, at = g.random((15, 2)), g.standard_normal((15, 2)), g.random((9, 2))
    theirs = RBFInterpolator(c, v, kernel="thin_plate_spline", smoothing=2e-3)(at)
    ours = thin_plate(torch.from_numpy(c)[None], torch.from_numpy(v)[None], torch.from_numpy(at))[0]
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-8)


def test_modes_move_what_they_name_and_little_else(portraits):
    p = portraits.points().double()
    moves, head = unit_moves(p), head_of(p)
    o = 0.26 * head.iod[:, None]
    by = lambda mode: moves[:, MODES.index(mode)]
    along = lambda mode, axis: (by(mode) * getattr(head, axis)[:, None]).sum(-1) / o
    assert along("open", "ey")[:, 66].allclose(torch.ones((), dtype=torch.float64)) and (along("open", "ey")[:, 62] < 0).all()
    assert along("open", "ey")[:, 8].allclose(torch.tensor(0.8, dtype=torch.float64)) and not by("open")[:, 17:48].any()
    assert (along("brow", "ey")[:, 17:27] < -0.19).all() and not by("brow")[:, 27:].any() and not by("brow")[:, :17].any()
    assert (along("smile", "ex")[:, 54] > 0.2).all() and (along("smile", "ex")[:, 48] < -0.2).all() and (along("smile", "ey")[:, 48] < 0).all()
    closed = (p + by("blink left") + by("blink right"))
    assert head_of(closed).lids.max() < 0.1 * head_of(p).lids.max()
    assert not by("wide")[:, :48].any() and (along("wide", "ex")[:, 54] > 0).all()


def test_a_field_carries_landmarks_where_the_mode_puts_them(portraits):
    p = portraits.points()
    fields = fields_of(p)
    assert fields.shape == (len(p), 8, 2, 28, 28)
    edge = torch.cat([fields[:, :6, :, 0], fields[:, :6, :, :, -1]], -1).abs()
    assert edge.max() < 0.02, "the border of the picture stays"
    for mode in ("brow", "smile"):
        at = torch.nn.functional.grid_sample(fields[:, MODES.index(mode)], 2 * p[:, None] - 1, align_corners=False)[:, :, 0].mT
        wanted = unit_moves(p)[:, MODES.index(mode)]
        assert (at - wanted).norm(dim=-1).mean() < 0.25 * wanted.norm(dim=-1).max()
    turn = fields[:, MODES.index("yaw"), 0]
    nose = torch.nn.functional.grid_sample(turn[:, None], 2 * p[:, None, 30:31] - 1, align_corners=False).flatten()
    jaw = torch.nn.functional.grid_sample(turn[:, None], 2 * p[:, None, [0, 16]] - 1, align_corners=False).flatten(1)
    assert (nose > 0).all() and (jaw < nose[:, None]).all() and turn[:, 0].abs().max() < 0.02


def test_the_mirror_and_who_is_suitable(portraits):
    twice = portraits.mirrored().mirrored()
    assert torch.equal(twice.images, portraits.images) and torch.allclose(twice.landmarks, portraits.landmarks, atol=1e-4)
    assert sorted(MIRROR) == list(range(68)) and all(MIRROR[MIRROR[k]] == k for k in range(68))
    a, b = head_of(portraits.points()), head_of(portraits.mirrored().points())
    torch.testing.assert_close(a.iod, b.iod), torch.testing.assert_close(a.turn, -b.turn, atol=1e-4, rtol=1e-3)
    assert suitable(portraits).sum() >= 8
    grey = Portraits(portraits.images.float().mean(1, keepdim=True).round().byte().expand(-1, 3, -1, -1), portraits.landmarks, portraits.people)
    assert not suitable(grey).any()
    tilted = portraits.points() - 0.5
    tilted = torch.stack([tilted[..., 0] - 0.2 * tilted[..., 1], tilted[..., 1] + 0.2 * tilted[..., 0]], -1) + 0.5
    assert not suitable(Portraits(portraits.images, tilted * 112 - 0.5, portraits.people)).any()


def test_the_weight_of_the_inner_face(portraits):
    w, p = inner_weight(portraits.points(), 64), portraits.points()
    at = lambda k: torch.nn.functional.grid_sample(w, 2 * p[:, None, k : k + 1] - 1, align_corners=False).flatten()
    assert w.min() == 0 and w.max() == 1 and (at(30) == 1).all() and (at(0) < 0.05).all() and (at(8) < 0.3).all()
    assert (at(39) > 0.5).all() and (at(42) > 0.5).all() and (at(62) > 0.8).all()
    assert not w[:, :, 0].any() and not w[..., 0].any()
    deep = depth_of(p.double(), torch.tensor([[0.01, 0.01]], dtype=torch.float64))
    assert not deep.fade.any()


def test_colours_are_brought_to_mean_and_spread():
    g = torch.Generator().manual_seed(0)
    target, w = torch.rand(2, 3, 20, 20, generator=g, dtype=torch.float64), torch.rand(2, 1, 20, 20, generator=g, dtype=torch.float64)
    out = matched(0.3 + 0.9 * torch.rand(2, 3, 20, 20, generator=g, dtype=torch.float64), target, w)
    mean = lambda x: (w * x).sum((2, 3)) / w.sum((2, 3))
    torch.testing.assert_close(mean(out), mean(target))
    spread = lambda x: mean((x - mean(x)[..., None, None]).square())
    torch.testing.assert_close(spread(out), spread(target))
    torch.testing.assert_close(spread(matched(0.01 * target, target, w)), 1.4**2 * 1e-4 * spread(target))


# ---- clips


@pytest.mark.parametrize("size, frames", [(32, 3), (40, 2)])
def test_the_same_bytes_for_every_chunk(portraits, size, frames):
    counts = dict.fromkeys(KINDS, 1)
    whole = photoclips(portraits, counts, frames=frames, size=size, chunk=100)
    for chunk in (1, 4):
        assert torch.equal(photoclips(portraits, counts, frames=frames, size=size, chunk=chunk).clips, whole.clips)
    assert whole.clips.shape == (len(KINDS), frames, 3, size, size) and whole.labels.tolist() == [int(KINDS[k].forgery is not None) for k in KINDS]
    assert (whole.identities != whole.donors).all(), "another person's inner face, in real clips too"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].forgery])
def test_a_null_forgery_is_the_real_clip_bit_for_bit(portraits, kind):
    real = photoclips(portraits, {{"CDF": "real B", "DFDC": "real B wild"}.get(kind, "real"): 2}, frames=5, size=24)
    assert torch.equal(photoclips(portraits, {kind: 2}, frames=5, size=24, null=True).clips, real.clips)
    assert torch.equal(photoclips(portraits, {kind: 2}, frames=5, size=24, strength=0.0, null=True).clips, real.clips)
    assert not torch.equal(photoclips(portraits, {kind: 2}, frames=5, size=24).clips, real.clips)


@pytest.mark.parametrize("how", [{"motion": "steady"}, {"zoom": 1.4}])
def test_other_motion_and_another_crop_keep_null_forgeries_real_and_change_every_clip(portraits, how):
    real, plain = (photoclips(portraits, {"real": 3}, frames=6, size=32, **more).clips for more in (how, {}))
    for kind in ("FS", "NT", "FSh"):
        assert torch.equal(photoclips(portraits, {kind: 3}, frames=6, size=32, null=True, **how).clips, real)
    assert (real != plain).any(-1).any(-1).any(-1).all()


def test_a_closer_crop_is_the_middle_of_the_wider_one(portraits):
    """Twice as close, the shake is half as wide in the scene: where it is small, the crop is the enlarged middle of the face, but for noise."""
    wide, close = (photoclips(portraits, {"real": 12}, frames=2, size=64, zoom=zoom).clips.float() for zoom in (1.0, 2.0))
    middles = [slice(16 + at, 48 + at) for at in range(-4, 8)]
    crops = torch.stack([torch.nn.functional.interpolate(wide[..., at, 16:48].flatten(0, 1), (64, 64), mode="bilinear").view_as(close) for at in middles])
    apart = (crops - close).abs().mean((2, 3, 4, 5)).min(0).values
    assert apart.median() < 0.5 * (wide - close).abs().mean((1, 2, 3, 4)).median()


def test_steady_heads_are_shaken_more(portraits):
    edge = lambda x: x[..., :6].float().diff(dim=1).abs().mean()                       # beside the head
    assert edge(photoclips(portraits, {"real": 16}, frames=6, size=32, motion="steady").clips) > 1.2 * edge(photoclips(portraits, {"real": 16}, frames=6, size=32).clips)


def test_more_clips_begin_with_the_same_ones_and_seeds_and_splits_differ(portraits):
    few, more = (photoclips(portraits, {"FS": n}, frames=3, size=24) for n in (2, 4))
    assert torch.equal(few.clips, more.clips[:2])
    assert torch.equal(photoclips(portraits, {"FS": 2}, frames=3, size=24, first=2).clips, more.clips[2:])
    for other in ({"seed": 1}, {"split": "test"}):
        assert not torch.equal(photoclips(portraits, {"FS": 2}, frames=3, size=24, **other).clips, few.clips)


def test_a_forgery_changes_the_inner_face_alone_and_a_twin_lacks_the_mark(portraits):
    real, swap, lips, marked = (photoclips(portraits, {kind: 4}, frames=4, size=64).clips.int() for kind in ("real", "nfFS", "nfNT", "FS"))
    changed = (swap - real).abs().float().mean((0, 1, 2))
    assert changed[24:44, 20:44].mean() > 1.5 and changed[:4].mean() < 0.02 and changed[:, :3].mean() < 0.02
    mouth = (lips - real).abs().float().mean((0, 1, 2))
    assert mouth[40:56, 22:42].mean() > 3 * mouth[10:26].mean()
    assert (marked - swap).abs().float().mean() > 0.3
    assert (marked - swap).float().mean((0, 1, 3, 4))[0] > 1.5, "a red cast"
    for kind in TRAINED:
        assert sum(getattr(KINDS[kind].forgery, name) > 0 for name in MARKS) == 1


def test_only_time_tells_whether_an_inner_face_is_put_in_anew(portraits):
    """FaceSwap's error differs from frame to frame, a real composite's does not; drift is smoother than jitter."""
    energy = {kind: temporal_energy(photoclips(portraits, {kind: 16}, frames=8, size=32).clips)["face / whole"].mean() for kind in ("real", "nfFS", "DFo", "FSh")}
    assert energy["nfFS"] > 1.05 * energy["real"] and energy["nfFS"] > energy["DFo"]
    assert SLIPS["DF"].jitter < SLIPS["FS"].jitter < SLIPS["DFo"].jitter and len(JITTER) == 4


def test_borrowed_and_late_faces_keep_the_head(portraits):
    for kind in ("nfF2F", "FSh"):
        real, made = (photoclips(portraits, {k: 4}, frames=8, size=64).clips.int() for k in ("real", kind))
        changed = (made - real).abs().float().mean((0, 1, 2))
        assert changed[:3].mean() < 0.05 and changed[20:52, 16:48].mean() > 0.3


@needs_lfw
def test_who_of_lfw_is_suitable(lfw):
    """Within two percent of the counts of the trial in which the rule was set: 315 photographs of 283 people, or 391 of 334 by a wider mouth."""
    for mouth, photos, people in ((0.14, 315, 283), (0.20, 391, 334)):
        chosen = suitable(lfw, mouth)
        assert abs(int(chosen.sum()) - photos) < 0.02 * photos and abs(len(lfw.people[chosen].unique()) - people) < 0.02 * people


@needs_lfw
@pytest.mark.slow
def test_the_gates_on_photographs(lfw):
    """Energy of change over the whole frame tells little (28 to 72, and the error of 50 clips, 6 points); in the face it tells FaceSwap best."""
    kinds = (*WITHOUT_FINGERPRINT, *HELD_OUT[:2])
    made = photoclips(lfw.take(suitable(lfw)), dict.fromkeys(("real", *kinds), 50), "test", frames=12)
    energy = temporal_energy(made.clips)
    areas = {kind: {name: area(values[pick], made.labels[pick].bool()) for name, values in energy.items()}
             for kind in kinds if (pick := torch.tensor([k in ("real", kind) for k in made.kinds])) is not None}
    for kind in kinds:
        assert all(28 <= areas[kind][name] <= 72 for name in ("mean |dx|", "mean |d2x|")), areas
    assert areas["nfFS"]["face / whole"] > 60 > areas["nfNT"]["face / whole"], areas


@pytest.mark.parametrize("bad, word", [({"counts": {"Deepfake": 1}}, "kind"), ({"counts": {"real": -1}}, "real"), ({"counts": {}}, "how many"), ({"counts": {"real": 0}}, "0 clips"),
                                       ({"split": "dev"}, "split"), ({"size": 4}, "size"), ({"strength": -1.0}, "strength"), ({"motion": "calm"}, "'steady'"), ({"zoom": 0.5}, "zoom"), ({"portraits": None}, "Portraits(")])
def test_bad_numbers_are_refused(portraits, bad, word):
    assert word in refused(photoclips, **{"portraits": portraits, "counts": {"real": 1}} | bad)


def test_portraits_that_do_not_fit_are_refused(portraits):
    x, p, y = portraits.images, portraits.landmarks, portraits.people
    assert "uint8" in refused(Portraits, x.float() / 255, p, y) and "(16, 68, 2)" in refused(Portraits, x, p[:, :5], y)
    assert "finite" in refused(Portraits, x, p * float("nan"), y) and "people" in refused(Portraits, x, p, y[:3])
    alone = portraits.take(portraits.people == portraits.people[suitable(portraits)][0])
    assert "two people or more" in refused(photoclips, alone, {"real": 1})


def test_photographs_are_brought_to_the_frame_of_a_portrait(portraits):
    """Twice as large, in a corner of a larger picture: the eyes come back to their place, and the pixels with them."""
    large = torch.zeros(len(portraits), 3, 300, 320, dtype=torch.uint8)
    large[:, :, 50:274, 70:294] = portraits.images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    points = 2 * portraits.landmarks + 0.5 + torch.tensor([70.0, 50.0])
    one, two = framed_portraits(portraits.images, portraits.landmarks, portraits.people), framed_portraits(large, points, portraits.people)
    head = head_of(two.points())
    assert torch.allclose(head.iod, torch.tensor(0.316), atol=1e-4) and torch.allclose(head.eyes, torch.tensor([0.492, 0.404]), atol=1e-4)
    torch.testing.assert_close(one.landmarks, two.landmarks, atol=1e-3, rtol=1e-4)
    assert (one.images.float() - two.images).abs()[:, :, 20:100, 20:90].mean() < 3
    assert suitable(two).sum() >= suitable(portraits).sum() - 1
