"""Siamese augmentation: ranges, composition, sharing of draws, gradients; CutMix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes.data.siamese import OPERATIONS, boxes, cut_out, cutmix, fires, mirror, parse, rotate, scale, shift, siamese, tint

quick = settings(max_examples=15)
FULL = "color_crop_cutout_flip_scale_rotate"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=4, channels=3, side=16, seed=0):
    return torch.randn(n, channels, side, side, dtype=torch.float64, generator=generator(seed))


def drawn(name, side, count=10_000):
    return OPERATIONS[name].read(torch.rand(count, OPERATIONS[name].numbers, generator=generator()), side)


@pytest.mark.parametrize(("side", "most"), [(8, 1), (16, 2), (28, 4), (32, 4), (64, 8), (128, 16)])
def test_shifts_fill_their_range_and_stay_inside(side, most):
    t = drawn("crop", side)
    assert t.min() == -most and t.max() == most
    assert len(t.unique()) == 2 * most + 1


def test_ranges_of_the_other_draws():
    s, degrees, centre = drawn("scale", 32), drawn("rotate", 32), drawn("cutout", 32)
    assert 1 / 1.2 <= s.min() < 0.84 and 1.19 < s.max() <= 1.2 and abs(torch.corrcoef(s.T)[0, 1]) < 0.05
    assert -15 <= degrees.min() < -14.9 and 14.9 < degrees.max() <= 15
    assert centre.min() == 0 and centre.max() == 32 and drawn("cutout", 30).max() == 29
    assert abs(drawn("flip", 32).float().mean() - 0.5) < 0.03


def test_holes_have_the_published_sizes():
    holes = (cut_out(torch.ones(10_000, 1, 32, 32), drawn("cutout", 32)) == 0).sum((1, 2, 3))
    assert holes.max() == 16 * 16 and holes.min() == 8 * 8
    assert (cut_out(torch.ones(1, 1, 28, 28), torch.tensor([[14, 14]])) == 0).sum() == 14 * 14


def tint_by_loops(x, u):
    out = torch.empty_like(x)
    for n in range(len(x)):
        b, s, c = u[n].tolist()
        y = x[n] + (b - 0.5)
        grey = sum(y[k] for k in range(x.shape[1])) / x.shape[1]
        y = torch.stack([(y[k] - grey) * 2 * s + grey for k in range(x.shape[1])])
        out[n] = (y - y.mean()) * (c + 0.5) + y.mean()
    return out


@quick
@given(seed=st.integers(0, 10**6))
def test_colour_equals_its_formulas(seed):
    x, u = images(seed=seed), torch.rand(4, 3, dtype=torch.float64, generator=generator(seed))
    torch.testing.assert_close(tint(x, u), tint_by_loops(x, u))
    assert ((tint(x, u) - x).mean((1, 2, 3)).abs() <= 0.5 + 1e-9).all()                         # only brightness moves the mean
    grey, only_saturation = x[:, :1].expand(-1, 3, -1, -1), torch.tensor([[0.5, 0.9, 0.5]]).double().expand(4, 3)
    torch.testing.assert_close(tint(grey, only_saturation), grey)


@quick
@given(dy=st.integers(-4, 4), dx=st.integers(-4, 4))
def test_a_shift_moves_whole_pixels_and_brings_zeros(dy, dx):
    x = images() + 5
    padded = torch.zeros(4, 3, 24, 24, dtype=torch.float64)
    padded[:, :, 4 + dy : 20 + dy, 4 + dx : 20 + dx] = x
    assert shift(x, torch.tensor([[dy, dx]] * 4)).equal(padded[:, :, 4:20, 4:20])


def test_scale_and_turn_keep_what_they_should():
    x = images()
    torch.testing.assert_close(scale(x, torch.ones(4, 2)), x)
    torch.testing.assert_close(rotate(x, torch.zeros(4)), x)
    torch.testing.assert_close(rotate(x, torch.full((4,), 180.0)), x.flip(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(scale(x, torch.tensor([[-1.0, 1.0]] * 4)), x.flip(3))                 # the first number is the x axis


@pytest.mark.parametrize("rule", ["idc", "dsa"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_one_group_share_the_draw_and_groups_do_not(rule, channels):
    x = images(2, channels).repeat_interleave(40, 0)                                     # 40 copies of two images
    groups = torch.arange(40).repeat(2)
    out = siamese(torch.cat([x, x]), FULL, generator(), groups.repeat(2), rule)
    assert out[:80].equal(out[80:])
    assert len(out[:40].flatten(1).unique(dim=0)) > 20
    assert out.equal(siamese(torch.cat([x, x]), FULL, generator(), groups.repeat(2), rule))


def test_all_classes_in_one_call_equal_a_class_alone():
    """What a class sees depends on its own numbers only: other classes' images do not enter."""
    x, groups = images(6), torch.tensor([0, 1, 2, 0, 1, 2])
    whole = siamese(x, "color_crop_cutout", generator(5), groups)
    other = x.clone()
    other[groups != 1] = 0
    assert siamese(other, "color_crop_cutout", generator(5), groups)[groups == 1].equal(whole[groups == 1])


@pytest.mark.parametrize("rule", ["idc", "dsa"])
def test_some_classes_alone_see_the_draws_of_all(rule):
    x, groups = images(6), torch.tensor([0, 1, 2, 0, 1, 2])
    whole = siamese(x, FULL, generator(5), groups, rule, draws=3)
    assert siamese(x[groups < 2], FULL, generator(5), groups[groups < 2], rule, draws=3).equal(whole[groups < 2])


def test_composition_rules():
    always = fires(parse("color_crop_cutout"), "idc", 50, generator())
    assert list(always) == ["color", "crop", "cutout"] and all(mask is None for mask in always.values())
    train = fires(parse("color_crop_flip_scale_rotate"), "idc", 3000, generator())
    assert list(train)[:2] == ["flip", "color"] and train["flip"] is None and train["color"] is None
    one = torch.stack([train[name] for name in ("crop", "scale", "rotate")]).int()
    assert (one.sum(0) == 1).all() and (one.sum(1) > 900).all()
    dsa = torch.stack(list(fires(parse(FULL), "dsa", 6000, generator()).values())).int()
    assert dsa.shape == (6, 6000) and (dsa.sum(0) == 1).all() and (dsa.sum(1) > 850).all()
    assert fires((), "idc", 1, None) == {} and parse("none") == ()


def test_the_choice_is_common_to_a_call_while_numbers_are_not():
    """Under the one-of-all rule a call that flips may not crop; images of the call still differ."""
    x = torch.ones(64, 1, 16, 16)
    calls = torch.arange(8).repeat_interleave(8)
    out = siamese(x, "crop_cutout", generator(1), rule="dsa", calls=calls)
    zeros = (out == 0).sum((1, 2, 3)).view(8, 8)
    assert ((zeros >= 16).all(1) | (zeros < 64).all(1)).all() and len(zeros.unique()) > 4
    tied = siamese(torch.arange(256.0).view(1, 1, 16, 16).expand(50, 1, 16, 16), "crop", generator(), torch.arange(50), "dsa")
    same = sum(int(t[0].count_nonzero(0).eq(0).sum() == t[0].count_nonzero(1).eq(0).sum()) for t in tied)     # |t_x| = |t_y|: 9 of 25 by chance
    assert 5 < same < 35


def test_gradients_reach_the_pixels_and_match_finite_differences():
    x = images(2, 3, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: siamese(z, FULL, generator(4), torch.tensor([0, 1])), x, atol=1e-4)
    assert torch.autograd.gradcheck(lambda z: siamese(z, FULL, generator(4), torch.tensor([0, 1]), "dsa"), x, atol=1e-4)


@quick
@given(seed=st.integers(0, 10**6), p=st.sampled_from([0.0, 0.5, 1.0]))
def test_cutmix_pastes_a_box_and_tells_its_area(seed, p):
    E, B, side = 6, 5, 12
    x = torch.arange(E * B, dtype=torch.float32).view(E, B, 1, 1, 1).expand(E, B, 2, side, side)
    labels = torch.arange(B).expand(E, B)
    mixed, partners, lam = cutmix(x, labels, generator(seed), p)
    foreign = mixed != x
    assert mixed.shape == x.shape and (0 <= lam).all() and (lam <= 1).all()
    for e in range(E):
        assert sorted(partners[e].tolist()) == list(range(B))
        for b in range(B):
            expected = 0 if partners[e, b] == b else 1 - lam[e].item()
            assert foreign[e, b, 0].float().mean().item() == pytest.approx(expected, abs=1e-6)
            assert set(mixed[e, b].unique().tolist()) <= {e * B + b, e * B + partners[e, b].item()}
    if p == 0:
        assert mixed.equal(x) and (lam == 1).all()


def test_cutmix_areas_are_uniform_before_clipping_and_half_of_the_batches_are_mixed():
    lam = cutmix(torch.zeros(4000, 1, 1, 16, 16), torch.zeros(4000, 1, dtype=torch.int64), generator(), 0.5)[2]
    assert 0.45 < (lam < 1).float().mean() < 0.55
    assert lam[lam < 1].min() < 0.3 and 0.5 < lam[lam < 1].mean() < 0.75


@pytest.mark.parametrize(("call", "words"), [
    (lambda: siamese(images(), "color_blur"), "unknown augmentation 'blur'"), (lambda: siamese(images(), "crop_crop"), "repeated augmentation 'crop'"),
    (lambda: siamese(images(), "crop", rule="x"), "unknown rule 'x'"), (lambda: siamese(images()[:, :, :8], "crop"), "square"),
    (lambda: siamese((images() * 9).byte(), "crop"), "floating point"), (lambda: siamese(images(), "crop", groups=torch.zeros(3, dtype=torch.int64)), "expected whole numbers of shape (4,)"),
])
def test_bad_input_is_answered_in_one_line(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_users_bring():
    """Labels of every integer type, halves, ids of any size, and a batch of none: the same picture, or one line."""
    x = images().float()
    one = torch.Generator().manual_seed(0)
    seen = siamese(x, "crop_rotate_cutout", one, torch.tensor([0, 1, 0, 1]))
    for groups in (torch.tensor([0, 1, 0, 1], dtype=torch.uint8), torch.tensor([7, 10**12, 7, 10**12])):
        assert siamese(x, "crop_rotate_cutout", torch.Generator().manual_seed(0), groups).equal(seen)
    turned = rotate(x, torch.full((4,), 20.0))
    for dtype, near in ((torch.float16, 0.01), (torch.bfloat16, 0.05)):
        assert rotate(x.to(dtype), torch.full((4,), 20.0)).dtype == dtype
        assert (rotate(x.to(dtype), torch.full((4,), 20.0)).float() - turned).abs().max() < near * x.abs().max()
    back = torch.tensor([[-1, 2]] * 4)
    assert shift(x, back.to(torch.int8)).equal(shift(x, back)) and cut_out(x, back.abs().to(torch.uint8)).equal(cut_out(x, back.abs()))
    assert mirror(x, torch.tensor([0, 1, 0, 1])).equal(mirror(x, torch.tensor([False, True, False, True])))
    for strategy in ("color_crop_cutout_flip_scale_rotate", "scale", ""):
        assert siamese(x[:0], strategy, torch.Generator().manual_seed(0)).shape == x[:0].shape
    for call, words in ((lambda: siamese(x, "crop", groups=torch.tensor([0, -1, 0, 0])), "run from -1"), (lambda: siamese(x, "crop", groups=torch.tensor([0, 5, 0, 0]), draws=3), "expected 0..2"),
                        (lambda: boxes(torch.tensor([float("nan")]), 8), "lam is nan"), (lambda: boxes(torch.tensor([1.5]), 8), "in [0, 1]")):
        with pytest.raises(ValueError) as error:
            call()
        assert words in str(error.value)
