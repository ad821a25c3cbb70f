"""Losses of completing pictures, by value; the guarded angle and the cosines of relations; the two errors of verification."""
import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from kdnotes.losses.inpaint import discriminator_loss, generator_loss, hole_loss, reconstruction_loss
from kdnotes.losses.relational import cosine_loss, pair_loss, triplet_loss
from kdnotes.metrics.verify import fmr_fnmr

X = torch.rand(2, 3, 8, 8)
M = torch.zeros(2, 1, 8, 8)
M[:, :, :4, :4] = 1


def test_a_constant_error_is_itself_in_both_terms():
    assert float(reconstruction_loss(X + 0.5, X)) == pytest.approx(0.5) and float(hole_loss(X + 0.5, X, M)) == pytest.approx(0.5)
    assert float(hole_loss(X + 0.5 * (1 - M), X, M)) == 0 and float(hole_loss(X + 0.5, X, 0 * M)) == 0


def test_a_discriminator_that_knows_nothing_costs_log_two():
    assert float(discriminator_loss(torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 3, 3))) == pytest.approx(math.log(2))
    assert float(generator_loss(torch.zeros(2, 1, 3, 3))) == pytest.approx(0.6931472)
    logits = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    p = logits.sigmoid()
    assert_close(discriminator_loss(logits, -2 * logits), -(p.log().mean() + (1 - (-2 * logits).sigmoid()).log().mean()) / 2)
    assert_close(generator_loss(logits), -p.log().mean())
    assert generator_loss(torch.full((1, 1, 2, 2), -500.0)).isfinite()


def test_published_values_of_relations():
    t = torch.tensor([[0.0, 0], [3, 0], [0, 4]], dtype=torch.float64)
    s = torch.tensor([[0.0, 0], [1, 0], [0.5, 0.75**0.5]], dtype=torch.float64)
    assert float(pair_loss(s, t)) == pytest.approx(0.0138889, abs=1e-7) and float(triplet_loss(s, t)) == pytest.approx(0.0129630, abs=1e-7)
    assert float(cosine_loss(torch.eye(4), torch.ones(4, 7))) == pytest.approx(0.75)


@pytest.mark.parametrize("loss", [pair_loss, triplet_loss, cosine_loss])
def test_a_rotated_copy_costs_nothing(loss):
    t = torch.nn.functional.normalize(torch.randn(6, 5, dtype=torch.float64), dim=1)
    s = (t @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q).requires_grad_()
    value = loss(s, t)
    (gradient,) = torch.autograd.grad(value, s)
    assert value < 1e-12 and gradient.abs().max() < 1e-9


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-8, 1e-5, 1e-4])
def test_near_duplicates_do_not_pull_the_angles(gap):
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(16, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    s[1] = s[0] + gap * torch.randn(8, generator=generator, dtype=torch.float64)
    s.requires_grad_()
    (gradient,) = torch.autograd.grad(triplet_loss(s, t, least_side=1e-3), s)
    assert gradient.isfinite().all() and gradient.norm() < 5


def test_the_guard_drops_short_sides_and_keeps_the_mean_over_all_triplets():
    generator = torch.Generator().manual_seed(1)
    s, t = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    assert triplet_loss(s, t, least_side=1e-3).equal(triplet_loss(s, t)), "nothing is short here"
    s[3] = s[2] + 1e-6

    def slow(least: float) -> float:
        d = torch.cdist(s, s)
        least, total = least * float(d.sum() / (d > 0).sum()), 0.0
        angle = lambda x, i, j, k: torch.cosine_similarity(x[i] - x[j], x[k] - x[j], dim=0)
        for i, j, k in itertools.product(range(6), repeat=3):
            if min(d[j, i], d[j, k]) > least:
                total += float(torch.nn.functional.huber_loss(angle(s, i, j, k), angle(t, i, j, k)))
        return total / 6**3

    assert float(triplet_loss(s, t, least_side=1e-3)) == pytest.approx(slow(1e-3), rel=1e-9)


def test_false_matches_and_false_non_matches():
    scores, same = torch.tensor([0.9, 0.8, 0.4, 0.7, 0.3, 0.2, 0.1]), torch.arange(7) < 3
    assert fmr_fnmr(scores, same, 0.5) == (0.25, pytest.approx(1 / 3))
    assert ((scores >= 0.5) == same).float().mean() == pytest.approx(5 / 7)
    assert fmr_fnmr(scores, same, math.inf) == (0, 1) and fmr_fnmr(scores, same, -math.inf) == (1, 0)
    assert fmr_fnmr(scores, same, 0.4).fnmr == 0, "a score at the threshold is accepted"
    for wrong in (math.nan, None, True, "0.5"):
        with pytest.raises(ValueError, match="threshold"):
            fmr_fnmr(scores, same, wrong)


@pytest.mark.parametrize("call", [lambda: hole_loss(X, X, M[:, :, :4]), lambda: hole_loss(X, X[:1], M), lambda: reconstruction_loss(X, X[:, :1]),
                                  lambda: triplet_loss(X[0, 0], X[0, 0], least_side=2.0)])
def test_bad_input_is_told_in_one_line(call):
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert "\n" not in str(error.value)
