"""Majority vote and Dawid-Skene against slow formulas and published values."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes.checks import refused
from kdnotes.data.crowd_statistics import known_truth, labels_per_annotator, labels_per_item, statistics, votes
from kdnotes.data.crowds import Crowd, dense, hold_out, take, to, write_annotations
from kdnotes.data.sets.crowds import PUBLISHED
from kdnotes.metrics.aggregate import WAYS, aggregate, dawid_skene, majority_vote

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
@settings(max_examples=25)
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


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_every_integer_type(kind):
    triple = [torch.tensor(v).to(kind) for v in ([0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 1])]
    assert torch.equal(dawid_skene(*triple).posterior, dawid_skene(*(v.long() for v in triple)).posterior)
    assert majority_vote(torch.tensor([[0, 2], [1, 1]]).to(kind), "lowest").tolist() == [1, 0]


@pytest.mark.parametrize(("given", "words"), [
    (([0, 1], [0, 0], [0.0, 1.0]), "label is float64"), (([[0]], [[0]], [[0]]), "shape (1, 1)"), (([], [], []), "one length > 0"),
    (([0, -1], [0, 0], [0, 1]), "annotations outside"), (([0, 10**12], [0, 0], [0, 1]), "largest number of 1000000000000 among the items"),
    (([0, 1], [0, 10**9], [0, 1]), "among the annotators"), (([0, 1], [0, 0], [0, 10**9]), "among the classes"), (([True], [0], [0]), "item is bool"),
])
def test_what_are_no_annotations(given, words):
    assert words in refused(dawid_skene, *given)


def test_settings_of_em_are_checked():
    assert "1000000000000 items" in refused(dawid_skene, [0, 1], [0, 0], [0, 1], items=10**12)
    assert "1000000000000 annotators" in refused(dawid_skene, [0, 1], [0, 0], [0, 1], annotators=10**12)
    for name, values in {"iterations": (0, 2.5, "many"), "tolerance": (-1, "a"), "smoothing": (-0.1, float("nan"), float("inf"))}.items():
        for wrong in values:
            assert f"dawid_skene: {name} is" in refused(dawid_skene, [0, 1], [0, 0], [0, 1], **{name: wrong})
    for wrong in ([[1.0, float("nan")]], [[1.0, float("inf")]], [[-1, 2]]):
        assert "how often each class was chosen" in refused(majority_vote, torch.tensor(wrong))
    assert majority_vote(torch.zeros(0, 3), "lowest").shape == (0,) and "(N, C)" in refused(majority_vote, torch.zeros(3, 0))


def test_what_is_no_crowd_is_refused_by_everything_that_takes_one(tmp_path):
    table = {"item": ["a"], "annotator": ["w"], "label": ["x"]}
    calls = (aggregate, statistics, votes, labels_per_item, labels_per_annotator, known_truth, dense, lambda given: take(given, [0]),
             lambda given: hold_out(given, 0.5), lambda given: to(given, "cpu"), lambda given: write_annotations(given, tmp_path / "t.csv"))
    for call in calls:
        for wrong in (table, [("a", "w", "x")], None, "labels.csv"):
            assert "Crowd.from_table(table) makes one" in refused(call, wrong)


def test_memory_grows_with_the_annotations():
    """3,000 items, 2,000 workers, 200 classes: all their matrices would be 640 MB, and several of them were made."""
    rng = np.random.default_rng(0)
    item = np.repeat(np.arange(3000), 5)
    annotator, label = rng.integers(0, 2000, len(item)), rng.integers(0, 200, len(item))
    tracemalloc.start()
    found = dawid_skene(item, annotator, label, 3000, 2000, 200, iterations=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 250e6 and found.posterior.shape == (3000, 200)
    assert torch.allclose(found.confusion(7).sum(1), torch.ones(200).double())


NAMED = {"item": ["b", "b", "b", "a", "a", "c"], "annotator": ["x", "y", "z", "x", "y", "z"], "label": ["dog", "dog", "cat", "cat", "dog", "cat"]}


@pytest.mark.parametrize("method", WAYS)
def test_tables_with_names(method):
    crowd = Crowd.from_table(NAMED)
    found = aggregate(crowd, method, truth={"a": "cat", "b": "dog", "z": "cat"})
    assert list(found.labels.index) == ["a", "b", "c"] and list(found.beliefs.columns) == ["cat", "dog"]
    assert np.allclose(found.beliefs.sum(axis=1), 1) and (method != "majority" or found.labels["label"]["b"] == "dog")
    assert list(found.labels["truth"][:2]) == ["cat", "dog"] and found.labels[["truth", "right"]].loc["c"].isna().all()
    assert found.accuracy == np.mean([found.labels["label"][i] == t for i, t in (("a", "cat"), ("b", "dog"))])
    assert list(found.annotators.index) == ["x", "y", "z"] and found.annotators["labels"].sum() == 6
    assert found.annotators["right"]["x"] == 1 and found.annotators["right"]["z"] == 0
    matrix = found.confusions["y"]
    assert matrix.index.name == "true class" and np.allclose(matrix.sum(axis=1), 1) and len(found.confusions) == 3
    with pytest.raises(KeyError, match="unknown annotator 'yy'.*mean 'y'"):
        found.confusions["yy"]
    assert aggregate(crowd, method).accuracy is None and "truth" not in aggregate(crowd, method).labels


def test_an_item_without_labels_gets_none_and_is_not_judged():
    crowd = Crowd([0, 0], [0, 1], [1, 1], 2, 2, ("cat", "dog"), truth=[1, 0], allow=("unlabelled",))
    for method in WAYS:
        found = aggregate(crowd, method)
        assert found.labels["label"]["0"] == "dog" and pd.isna(found.labels["label"]["1"]) and found.accuracy == 1


def test_unknown_methods_and_options():
    crowd = Crowd.from_table(NAMED)
    assert "did you mean 'dawid-skene'" in refused(aggregate, crowd, "dawid_skene")
    assert "unknown option of 'majority' 'smoothing'" in refused(aggregate, crowd, "majority", smoothing=1.0)
    assert "names 'A'" in refused(aggregate, crowd, truth={"A": "cat"})


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


@needs_shared
def test_named_tables_of_classic_sets():
    """cf: 461 workers with a median of two labels, whom the maximum of the likelihood trusts blindly."""
    read = lambda name: Crowd.from_table(SHARED / "classic" / name / "label.csv", columns=("item", "worker", "label"))
    cf, truth = read("cf"), SHARED / "classic" / "cf" / "truth.csv"
    found = {method: 100 * aggregate(cf, method, truth=truth).accuracy for method in WAYS}
    assert found["dawid-skene"] == pytest.approx(80.33, abs=0.4) and found["smoothed dawid-skene"] == pytest.approx(83, abs=0.4)
    assert found["majority"] == pytest.approx(90.0, abs=0.01)
    dog = pd.read_csv(SHARED / "classic" / "dog" / "truth.csv").set_index("item")["truth"]
    assert 100 * aggregate(read("dog"), truth=dog.sample(frac=1, random_state=0)).accuracy == pytest.approx(84.26, abs=0.05)
    trec = aggregate(read("trec"), "majority", truth=SHARED / "classic" / "trec" / "truth.csv")
    assert 100 * trec.accuracy == pytest.approx(66.11, abs=0.005) and trec.labels["right"].notna().sum() == 2275
