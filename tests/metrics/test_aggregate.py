"""Majority vote and Dawid-Skene against slow formulas and published values."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes.metrics.aggregate import dawid_skene, majority_vote
from kdnotes.data.sets.crowds import PUBLISHED

SHARED = Path(os.environ.get("KDNOTES_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data" / "crowds"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real crowds are not at {SHARED}")


def slow_dawid_skene(item, annotator, label, n, r, c, steps, smoothing):
    """The two steps as written, on the dense n x r x c counts."""
    counts = np.zeros((n, r, c))
    np.add.at(counts, (item, annotator, label), 1)
    mu = counts.sum(1) / counts.sum((1, 2))[:, None]
    for _ in range(steps):
        prior, theta = mu.mean(0), np.zeros((r, c, c))
        for k in range(r):
            for a in range(c):
                row = (mu[:, a, None] * counts[:, k]).sum(0) + smoothing
                theta[k, a] = row / row.sum() if row.sum() > 0 else 1 / c
        joint = np.log(prior) + np.einsum("irl,rcl->ic", counts, np.log(np.maximum(theta, 1e-300)))
        likelihood = np.log(np.exp(joint - joint.max(1, keepdims=True)).sum(1)) + joint.max(1)
        mu = np.exp(joint - likelihood[:, None])
    return mu, theta, prior, likelihood.sum()


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.01]))
@settings(max_examples=25, deadline=None)
def test_em_agrees_with_the_dense_formula_and_never_loses_likelihood(seed, smoothing):
    rng = np.random.default_rng(seed)
    n, r, c, many = 25, 6, 3, 90
    # repeated pairs included
    item, annotator = np.r_[np.arange(n), rng.integers(0, n, many)], rng.integers(0, r, n + many)
    truth = rng.integers(0, c, n)
    label = np.where(rng.random(len(item)) < 0.7, truth[item], rng.integers(0, c, len(item)))
    found = dawid_skene(item, annotator, label, n, r, c, iterations=5, tolerance=0, smoothing=smoothing)
    mu, theta, prior, likelihood = slow_dawid_skene(item, annotator, label, n, r, c, 5, smoothing)
    assert np.allclose(found.posterior, mu, atol=1e-10) and np.allclose(found.confusions, theta)
    assert np.allclose(found.prior, prior)
    assert found.log_likelihood[-1] == pytest.approx(likelihood, rel=1e-12)
    if not smoothing:
        assert (np.diff(found.log_likelihood) > -1e-9 * abs(likelihood)).all()


def test_majority_vote_ties():
    votes = torch.tensor([[1, 1, 0]] * 2000 + [[0, 3, 2]])
    drawn = majority_vote(votes, generator=torch.Generator().manual_seed(0))
    assert abs((drawn[:-1] == 0).double().mean() - 0.5) < 0.05 and (drawn[:-1] < 2).all() and drawn[-1] == 1
    assert torch.equal(drawn, majority_vote(votes, generator=torch.Generator().manual_seed(0)))
    assert majority_vote(votes, "lowest")[0] == 0
    with pytest.raises(ValueError, match="votes"):
        majority_vote(votes[0])


def test_bad_annotations():
    with pytest.raises(ValueError, match="one length"):
        dawid_skene([0, 1], [0], [1, 1])
    with pytest.raises(ValueError, match="outside 1 items"):
        dawid_skene([0, 1], [0, 0], [1, 1], items=1)


def classic(name):
    table = np.loadtxt(SHARED / "classic" / name / "label.csv", delimiter=",", skiprows=1, dtype=np.int64)
    truth = SHARED / "classic" / name / "truth.csv"
    return table.T, (np.loadtxt(truth, delimiter=",", skiprows=1, dtype=np.int64).T if truth.exists() else None)


@needs_shared
def test_the_anaesthetists_of_1979():
    (item, annotator, label), _ = classic("anesthesia")
    found = dawid_skene(item, annotator, label, tolerance=1e-12, iterations=2000)
    assert np.allclose(found.prior, [0.3996, 0.4220, 0.1118, 0.0667], atol=1e-4)
    assert found.log_likelihood[-1] == pytest.approx(-192.8909, abs=1e-3)
    first = [[0.8895, 0.1105, 0, 0], [0.0706, 0.8764, 0.0530, 0], [0, 0.3388, 0.6612, 0], [0, 0, 0.5556, 0.4444]]
    assert np.allclose(found.confusions[0], first, atol=1e-4)
    assert torch.bincount(found.posterior.argmax(1)).tolist() == [18, 19, 5, 3]


@needs_shared
@pytest.mark.parametrize(("name", "em", "vote"), [("bluebird", 89.81, 75.93), ("rte", 92.75, None),
                                                  ("product", 93.97, 89.66), ("trec", 70.24, 65.14)])
def test_classic_sets(name, em, vote):
    (item, annotator, label), (which, truth) = classic(name)
    found = dawid_skene(item, annotator, label, tolerance=1e-10)
    assert 100 * (found.posterior.argmax(1).numpy()[which] == truth).mean() == pytest.approx(em, abs=0.005)
    if vote:
        counts = np.zeros((item.max() + 1, label.max() + 1))
        np.add.at(counts, (item, label), 1)
        top = counts == counts.max(1, keepdims=True)
        assert 100 * (top[which, truth] / top[which].sum(1)).mean() == pytest.approx(vote, abs=0.005)


@needs_shared
@pytest.mark.parametrize(("name", "expected", "slack"),
                         [("labelme", 79, 1), ("music", 77.43, 0.1), ("cifar10n", 90.94, 0.02)])
def test_real_crowds(name, expected, slack):
    crowd = PUBLISHED[name](SHARED / name, **({"images": False} if name == "cifar10n" else {})).crowd
    found = dawid_skene(crowd.item, crowd.annotator, crowd.label, tolerance=1e-10)
    right = 100 * (found.posterior.argmax(1) == crowd.truth.reveal()).double().mean()
    assert right == pytest.approx(expected, abs=slack)
    assert (np.diff(found.log_likelihood) > -1e-9 * abs(found.log_likelihood[-1])).all()
