"""Measures of generated samples: closed forms, published formulas in their slow form, invariances, bad input."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from kdnotes.metrics.generate import (
    choose_epoch,
    covered,
    frechet_distance,
    frechet_of_moments,
    inception_score,
    inception_scores,
    neighbour_radii,
    precision_recall,
)

G = torch.Generator().manual_seed(0)


def with_moments(mean: Tensor, covariance: Tensor, n: int = 50) -> Tensor:
    """`(n, D)` rows whose mean and covariance (over n - 1) are exactly these."""
    z = torch.randn(n, len(mean), generator=G, dtype=torch.float64)
    z = z - z.mean(0)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(z.T @ z / (n - 1)), z.T, upper=False).T
    return mean + z @ torch.linalg.cholesky(covariance).T


def numbers(*rows):
    return torch.tensor(rows, dtype=torch.float64)


PAIRS = [(numbers(0), numbers([1]), numbers(3), numbers([4]), 10.0),
         (numbers(0, 1), numbers([2, 0.5], [0.5, 1]), numbers(1, -1), numbers([1, -0.3], [-0.3, 3]), 5.929311855)]


@pytest.mark.parametrize("mx, sx, my, sy, value", PAIRS)
def test_frechet_distance_of_two_normal_distributions(mx, sx, my, sy, value):
    assert frechet_of_moments(mx, sx, my, sy) == pytest.approx(value, abs=2e-9)
    assert frechet_distance(with_moments(mx, sx), with_moments(my, sy, 80)) == pytest.approx(value, abs=2e-9)


@pytest.mark.parametrize("n, m, d", [(200, 150, 6), (8, 200, 20), (5, 7, 30), (2, 2, 3)])
def test_frechet_distance_is_the_formula_at_any_rank(n, m, d):
    x = torch.randn(n, d, generator=G, dtype=torch.float64) @ torch.randn(d, d, generator=G, dtype=torch.float64)
    y = 1 + torch.randn(m, d, generator=G, dtype=torch.float64)
    sx, sy = (np.cov(z.numpy(), rowvar=False) for z in (x, y))
    # the symmetric form of the root: eigenvalues of S^(1/2) T S^(1/2), by scipy
    half = np.real(sqrtm(sx + 0j)) if n > d else (lambda w, v: (v * np.sqrt(w.clip(0))) @ v.T)(*np.linalg.eigh(sx))
    root = np.sqrt(np.linalg.eigvalsh(half @ sy @ half).clip(0)).sum()
    slow = float(((x.mean(0) - y.mean(0)) ** 2).sum()) + np.trace(sx) + np.trace(sy) - 2 * root
    assert frechet_distance(x, y) == pytest.approx(slow, rel=1e-6)
    assert frechet_of_moments(x.mean(0), torch.from_numpy(sx), y.mean(0), torch.from_numpy(sy)) == pytest.approx(slow, rel=1e-6)


def test_frechet_distance_of_low_rank_has_a_closed_form():
    a, b = numbers([0, 0, 0], [2, 0, 0]), numbers([0, 0, 0], [0, 2, 0])           # one direction each, at right angles
    assert frechet_distance(a, b) == pytest.approx(2 + 2 + 2, abs=1e-12)
    assert frechet_distance(a, 3 * a) == pytest.approx(4 + (3 - 1) ** 2 * 2, abs=1e-12)


def test_frechet_distance_is_a_distance_that_a_rotation_leaves():
    x, y = (torch.randn(n, 40, generator=G, dtype=torch.float64) + s for n, s in ((30, 0), (60, 2)))
    Q = torch.linalg.qr(torch.randn(40, 40, generator=G, dtype=torch.float64)).Q
    d = frechet_distance(x, y)
    assert 0 <= frechet_distance(x, x) < 1e-10 and frechet_distance(y, x) == pytest.approx(d, rel=1e-12)
    assert frechet_distance(x @ Q + 5, y @ Q + 5) == pytest.approx(d, rel=1e-10)
    assert frechet_distance(x[torch.randperm(30, generator=G)], y) == pytest.approx(d, rel=1e-12)
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * d, rel=1e-10)
    assert frechet_distance(1e6 + x, 1e6 + x) < 1e-8                              # far from zero: nothing is lost


def test_inception_score_ends():
    assert inception_score(torch.eye(10).repeat(7, 1)) == pytest.approx(10, abs=1e-12)
    assert inception_score(torch.full((30, 10), 0.1)) == pytest.approx(1, abs=1e-12)
    assert inception_score(torch.eye(4)[:1].repeat(9, 1)) == pytest.approx(1, abs=1e-12)


def test_inception_score_is_its_formula_in_each_split():
    p = torch.randn(23, 5, generator=G).double().mul(2).softmax(1)

    def slow(rows):
        mean = rows.mean(0)
        return math.exp(sum(float((row * (row.log() - mean.log())).sum()) for row in rows) / len(rows))

    assert inception_score(p) == pytest.approx(slow(p), rel=1e-12)
    parts = [slow(part) for part in p.tensor_split(10)]
    assert inception_scores(p).tolist() == pytest.approx(parts, rel=1e-12)
    assert inception_score(p, splits=10) == pytest.approx(sum(parts) / 10, rel=1e-12)


def test_precision_and_recall_are_their_definition():
    real, made = torch.randn(40, 3, generator=G).double(), torch.randn(30, 3, generator=G).double() * 0.6 + 0.5

    def region(points, k):
        return [(p, sorted(float((p - q).norm()) for q in points)[k]) for p in points]   # the first is itself

    def share(points, balls):
        return sum(any(float((p - c).norm()) <= r for c, r in balls) for p in points) / len(points)

    for k in (1, 3):
        found = precision_recall(real, made, k)
        assert found == (share(made, region(real, k)), share(real, region(made, k)))
        assert neighbour_radii(real, k, chunk=7).equal(neighbour_radii(real, k))
        assert covered(made, real, neighbour_radii(real, k), chunk=7).double().mean() == found.precision
    assert precision_recall(real, real) == (1, 1) and precision_recall(real, real + 100) == (0, 0)
    assert precision_recall(real, real[:1].expand(9, 3)) == (1, pytest.approx(1 / 40))    # one point, again and again


def test_the_epoch_is_chosen_on_generated_data_and_the_first_of_equals():
    assert choose_epoch([0.1, 0.8, 0.8], [0.2, 0.3, 0.9]) == (1, 0.3, 0.9)
    assert choose_epoch(torch.tensor([0.5]), torch.tensor([0.25])) == (0, 0.25, 0.25)


@pytest.mark.parametrize("call, words", [
    (lambda x: frechet_distance(x[:1], x), "x_features have shape (1, 3); expected at least 2"),
    (lambda x: frechet_distance(x, x / 0), "y_features hold NaN"),
    (lambda x: frechet_distance(x, x[:, :2]), "expected features of one network"),
    (lambda x: frechet_of_moments(x[0], x, x[0], x), "expected a symmetric"),
    (lambda x: frechet_of_moments(x[0], -torch.eye(3), x[0], torch.eye(3)), "covariance_x has an eigenvalue of -1"),
    (lambda x: inception_score(x), "softmax them first"),
    (lambda x: inception_scores(x.softmax(1), 9), "8 rows for 9 splits"),
    (lambda x: precision_recall(x[:3], x), "real features have shape (3, 3); expected at least 4"),
    (lambda x: precision_recall(x, x, 0), "k is 0"),
    (lambda x: choose_epoch([0.1], [0.1, 0.2]), "1 validation and 2 test"),
    (lambda x: choose_epoch([], []), "validation accuracies"),
])
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(ValueError) as error:
        call(torch.randn(8, 3, generator=G))
    assert words in str(error.value) and "\n" not in str(error.value)
