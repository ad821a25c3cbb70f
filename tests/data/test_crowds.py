"""Crowds: the sparse form, its statistics, the synthetic generators, the published layouts and a table of one's own."""

import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes.checks import refused
from kdnotes.data import crowds as C
from kdnotes.data.catalogue import load_crowd
from kdnotes.data.crowd_statistics import empirical_confusions, known_truth, labels_per_annotator, labels_per_item, majority_accuracy, raw_accuracy, statistics, votes
from kdnotes.data.synthetic_crowds import answers, confusion, draw_assignment, draw_rates, max_mig_crowd, synthetic
from kdnotes.data.truth import Truth, sealed
from kdnotes.data.sets.crowds import PUBLISHED, load_cifar10n, load_labelme, load_leaves, load_music, load_sentiment

SHARED = Path(os.environ.get("KDNOTES_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data" / "crowds"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real crowds are not at {SHARED}")
TEN = tuple("0123456789")


def random_crowd(items=30, annotators=8, classes=4, seed=0, **more):
    rng = np.random.default_rng(seed)
    asked = rng.random((items, annotators)) < 0.3
    asked[np.arange(items), rng.integers(0, annotators, items)] = True
    asked[rng.integers(0, items, annotators), np.arange(annotators)] = True
    item, annotator = np.nonzero(asked)
    order = rng.permutation(len(item))
    label = rng.integers(0, classes, len(item))
    return C.Crowd(item[order], annotator[order], label, items, annotators, tuple(map(str, range(classes))),
                   truth=Truth(rng.integers(0, classes, items)), **more)


# ---------------------------------------------------------------- truth

def test_truth_is_sealed_while_training_and_never_converts_by_accident():
    truth = Truth([0, 1, 2])
    assert truth.reveal().tolist() == [0, 1, 2] and "0, 1" not in repr(truth)
    with sealed():
        with pytest.raises(RuntimeError, match="sealed"):
            truth.reveal()
        with sealed():
            pass
        with pytest.raises(RuntimeError, match="sealed"):
            raw_accuracy(random_crowd())
    assert truth.reveal().tolist() == [0, 1, 2]
    for convert in (np.asarray, torch.as_tensor, iter):
        with pytest.raises((TypeError, RuntimeError)):
            convert(truth)


def test_the_seal_is_lifted_after_an_error():
    with pytest.raises(KeyError), sealed():
        raise KeyError
    assert len(Truth([1]).reveal()) == 1


def test_parts_of_a_truth_stay_sealed():
    truth = Truth([2, None, 1])
    with sealed():
        part = truth.take([2, 1, 2])
        with pytest.raises(RuntimeError, match="sealed"):
            part.known()
    assert [each.tolist() for each in part.known()] == [[0, 2], [1, 1]] and truth.take([True, False, False]).reveal().tolist() == [2]
    assert "expected numbers in -3..2" in refused(truth.take, [3])
    assert truth.check(3) is None and refused(truth.check, 2) == "unknown true class 2 in item 0: expected 0..1"


@pytest.mark.parametrize("labels", [[0, None, 1, -1], [0.0, math.nan, 1.0, -1], np.array([0, -1, 1, -1], np.int8), torch.tensor([0.0, math.nan, 1, -1]),
                                    pd.Series([0, None, 1, None]), pd.array([0, None, 1, None], dtype="Int64")], ids=lambda v: type(v).__name__)
def test_an_unknown_class_is_no_class(labels):
    truth = Truth(labels)
    assert len(truth) == 4 and [part.tolist() for part in truth.known()] == [[0, 2], [0, 1]]
    with pytest.raises(ValueError, match="of 2 of 4 items are not known"):
        truth.reveal()
    with sealed(), pytest.raises(RuntimeError, match="sealed"):
        truth.known()


@pytest.mark.parametrize("labels", [[0, -2], [0.5], ["cat"], [[0], [1]], 3, None, {"a": 0}, [math.inf], [2**40]])
def test_what_is_no_number_of_a_class_is_no_truth(labels):
    assert "expected one number of a class" in refused(Truth, labels)


def test_evaluation_uses_what_is_known():
    crowd = C.Crowd([0, 0, 1, 1, 2], [0, 1, 0, 1, 0], [2, 1, 0, 2, 1], 3, 2, "abc", truth=[2, None, 1])
    assert raw_accuracy(crowd) == pytest.approx(2 / 3) and majority_accuracy(crowd) == pytest.approx(0.75)
    assert statistics(crowd)["known"] == 2 and empirical_confusions(crowd).sum() == 3
    part = C.take(crowd, [1])
    for ask in (raw_accuracy, majority_accuracy, empirical_confusions, known_truth):
        assert "none of the 1 items is known" in refused(ask, part)
    assert "raw_accuracy" not in statistics(part) and "none of the" in refused(raw_accuracy, C.Crowd([0], [0], [0], 1, 1, "a"))
    assert "unknown true class 3 in item 0: expected 0..2" in refused(C.Crowd, [0], [0], [0], 1, 1, "abc", truth=[3])


# ---------------------------------------------------------------- the sparse form

@given(st.integers(0, 1000))
@settings(max_examples=25)
def test_sparse_form_agrees_with_the_dense_table(seed):
    crowd = random_crowd(seed=seed)
    table = C.dense(crowd)
    again = C.from_dense(table, crowd.classes)
    for name in ("item", "annotator", "label", "start"):
        assert torch.equal(getattr(crowd, name), getattr(again, name))
    index = torch.from_numpy(np.random.default_rng(seed).integers(0, crowd.items, 7))
    expected = [(row, r, int(table[i, r])) for row, i in enumerate(index.tolist()) for r in range(crowd.annotators) if table[i, r] >= 0]
    assert [tuple(v) for v in torch.stack(crowd.annotations(index), 1).tolist()] == expected
    assert torch.equal(labels_per_item(crowd), (table >= 0).sum(1)) and torch.equal(labels_per_annotator(crowd), (table >= 0).sum(0))
    assert torch.equal(votes(crowd), torch.stack([(table == c).sum(1) for c in range(4)], 1))
    truth = crowd.truth.reveal()
    slow = torch.zeros(crowd.annotators, 4, 4, dtype=torch.int64)
    for i, r in (table >= 0).nonzero().tolist():
        slow[r, truth[i], table[i, r]] += 1
    assert torch.equal(empirical_confusions(crowd), slow)
    assert raw_accuracy(crowd) == pytest.approx(float(slow.diagonal(dim1=1, dim2=2).sum() / slow.sum()))


def test_majority_accuracy_shares_ties():
    crowd = C.Crowd([0, 0, 1, 1, 2], [0, 1, 0, 1, 0], [2, 1, 0, 2, 1], 3, 2, "abc", truth=Truth([2, 1, 1]))
    assert majority_accuracy(crowd) == pytest.approx((0.5 + 0 + 1) / 3)
    assert majority_accuracy(crowd, ties="lowest") == pytest.approx(1 / 3)


def test_parts_keep_annotators_and_truth():
    crowd = random_crowd(features=torch.arange(30.0)[:, None])
    part = C.take(crowd, torch.tensor([4, 0, 4]))
    assert part.annotators == crowd.annotators and part.features[:, 0].tolist() == [4, 0, 4]
    assert part.truth.reveal().tolist() == crowd.truth.reveal()[[4, 0, 4]].tolist()
    assert torch.equal(C.dense(part), C.dense(crowd)[[4, 0, 4]])
    rest, held = C.hold_out(crowd, 0.2, seed=3)
    assert sorted(rest.features[:, 0].tolist() + held.features[:, 0].tolist()) == list(range(30)) and held.items == 6
    assert torch.equal(C.hold_out(crowd, 0.2, seed=3)[1].features, held.features)
    with sealed():  # splitting is no look at the truth
        C.hold_out(crowd, 0.2)
    with pytest.raises(ValueError, match="cannot hold out"):
        C.hold_out(crowd, 1.0)
    moved = C.to(crowd, "cpu")
    assert torch.equal(moved.label, crowd.label) and moved.truth is crowd.truth


def test_take_reads_masks_numbers_and_slices_alike():
    crowd = random_crowd(features=torch.arange(30.0)[:, None], item_names=[f"img{i}" for i in range(30)])
    mask = torch.arange(30) % 7 == 0
    rows = mask.nonzero()[:, 0]
    for choice in (mask, mask.numpy(), mask.tolist(), pd.Series(mask), rows, rows.to(torch.uint8), rows.tolist(), rows - 30, slice(None, None, 7)):
        part = C.take(crowd, choice)
        assert part.item_names == ("img0", "img7", "img14", "img21", "img28") and torch.equal(C.dense(part), C.dense(crowd)[mask])
        assert torch.equal(part.features[:, 0].long(), rows) and part.annotator_names == crowd.annotator_names
        assert torch.equal(part.truth.reveal(), crowd.truth.reveal()[mask])
    twice = C.take(crowd, [4, 0, 4])
    assert twice.item_names == ("img4", "img0", "img4") and C.take(twice, [0, 2]).item_names == ("img4", "img4")
    for wrong in (mask[:5], [30], [-31], [1.0], "img3", 3, [], mask & False):
        assert "items" in refused(C.take, crowd, wrong)
    for wrong in (mask[:5], [30], [-31], [1.0], "img3", 3):
        assert "items" in refused(crowd.annotations, wrong)
    assert [len(v) for v in crowd.annotations([])] == [0, 0, 0] and crowd.annotations(rows.to(torch.uint8)).row.max() == 4


def test_names_are_kept_and_looked_at():
    crowd = C.Crowd([0, 1], [0, 0], [0, 1], 2, 1, ("cat", "dog"), item_names=["b", "a"], annotator_names=["007"])
    assert (crowd.item_names, crowd.annotator_names, crowd.classes) == (("b", "a"), ("007",), ("cat", "dog"))
    assert C.Crowd([0, 1], [0, 0], [0, 1], 2, 1, "ab", features=np.eye(2)).features.dtype == torch.float32
    assert C.Crowd([0, 1], [0, 0], [0, 1], 2, 1, "ab").item_names == ("0", "1") and len(repr(random_crowd())) < 200
    for wrong, words in (({"item_names": ["a"]}, "1 names of items for 2 items"), ({"item_names": ["a", "a"]}, "hold 'a' twice"),
                         ({"annotator_names": "xy"}, "2 names of annotators for 1"), ({"classes": ("cat", "cat")}, "hold 'cat' twice"),
                         ({"allow": ("repeat",)}, "'repeat'; known: copies, repeats"), ({"items": 2.0}, "items=2.0; expected how many"),
                         ({"annotators": 0}, "annotators=0"), ({"classes": 2}, "classes=2; expected their names"), ({"item": ["a", "b"]}, "Crowd.from_table takes names"),
                         ({"item": [True, False]}, "vector of integers"), ({"label": [[0], [1]]}, "of shape (2, 1)"), ({"features": ["a", "b"]}, "expected numbers")):
        assert words in refused(C.Crowd, **{"item": [0, 1], "annotator": [0, 0], "label": [0, 1], "items": 2, "annotators": 1, "classes": "ab"} | wrong)


def test_a_huge_number_is_refused_and_not_allocated():
    """Four annotations, and room for no more: by the largest number it would be terabytes."""
    few = {"item": [0, 1, 1], "annotator": [0, 0, 1], "label": [0, 1, 1], "items": 2, "annotators": 2, "classes": ("a", "b")}
    assert "of 100000000 items have no annotation (first: 2)" in refused(C.Crowd, **few | {"items": 10**8})
    assert "annotators gave no label (first: 2)" in refused(C.Crowd, **few | {"annotators": 10**8})
    assert "a table of 1000000000000 items" in refused(C.Crowd, **few | {"items": 10**12, "allow": ("unlabelled",)})
    assert "a table of 1000000000000 annotators" in refused(C.Crowd, **few | {"annotators": 10**12, "allow": ("silent",)})
    assert "unknown item 1000000000000" in refused(C.Crowd, **few | {"item": [0, 1, 10**12]})


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_triples_of_every_integer_type(kind):
    crowd = random_crowd()
    again = C.Crowd(*(v.to(kind) for v in (crowd.item, crowd.annotator, crowd.label)), 30, 8, crowd.classes)
    assert torch.equal(C.dense(again), C.dense(crowd)) and torch.equal(C.dense(C.from_dense(C.dense(crowd).to(torch.int8), "abcd")), C.dense(crowd))


@pytest.mark.parametrize(("change", "words"), [
    ({"label": [0, 1, 5]}, "unknown label 5 in annotation 2: expected 0..1"),
    ({"label": [0, -1, 1]}, "unknown label -1"),
    ({"item": [0, 1, 9]}, "unknown item 9"),
    ({"annotator": [0, 1, 2]}, "unknown annotator 2"),
    ({"item": [0, 1, 1], "annotator": [0, 1, 1]}, r"repeated .* \(first: item 1, annotator 1\)"),
    ({"items": 3}, "items have no annotation .first: 2."),
    ({"annotators": 4}, "2 of 4 annotators gave no label .first: 2."),
    ({"label": [0.0, 1.0, 1.0]}, "vector of integers"),
    ({"label": [0, 1]}, "one length"),
    ({"features": torch.zeros(5, 2)}, "features has 5 rows for 2 items"),
    ({"truth": Truth([0])}, "truth has 1 rows"),
])
def test_impossible_annotations_are_refused_in_words(change, words):
    fine = {"item": [0, 1, 1], "annotator": [0, 0, 1], "label": [0, 1, 1], "items": 2, "annotators": 2, "classes": ("a", "b")}
    C.Crowd(**fine)
    with pytest.raises(ValueError, match=words):
        C.Crowd(**fine | change)


def test_checks_can_be_lifted_one_by_one():
    C.Crowd([0, 1, 1], [0, 1, 1], [0, 1, 0], 2, 2, "ab", allow=("repeats",))
    C.Crowd([0, 1], [0, 3], [0, 1], 2, 4, "ab", allow=("silent",))
    C.Crowd([0, 3], [0, 1], [0, 1], 4, 2, "ab", allow=("unlabelled",))
    with pytest.raises(ValueError, match="N x R"):
        C.from_dense(np.zeros((2, 2)), "ab")


# ---------------------------------------------------------------- synthetic crowds

def test_beta_rates_have_the_stated_mean_and_skew():
    n, r = 3.0, 250
    m = n / r
    sums, poor = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rates = draw_rates(r, n, 0.5, rng)
        sums.append(rates.sum())
        poor.append((rates < 0.1 * m).mean())
    error = math.sqrt(r * m * (1 - m) / (0.5 / m + 1))
    assert error == pytest.approx(0.264, abs=1e-3)
    assert abs(np.mean(sums) - n) < 3 * error / math.sqrt(40) and max(abs(np.array(sums) - n)) < 4 * error
    assert abs(np.mean(poor) - 0.25) < 3 * 0.027 / math.sqrt(40) + 0.01
    assert np.ptp(draw_rates(r, n, math.inf, np.random.default_rng(0))) == 0
    for bad in ({"alpha": 0}, {"labels_per_item": 0}, {"labels_per_item": r}):
        with pytest.raises(ValueError, match="alpha > 0"):
            draw_rates(**{"annotators": r, "labels_per_item": n, "alpha": 0.5, "rng": np.random.default_rng(0)} | bad)


def test_everybody_gets_a_label_and_the_fix_up_adds_what_it_should():
    rates = draw_rates(250, 1.0, math.inf, np.random.default_rng(0))
    item, annotator = draw_assignment(rates, 20000, np.random.default_rng(1))
    assert len(np.unique(item)) == 20000 and len({*zip(item, annotator)}) == len(item)
    assert len(item) / 20000 == pytest.approx(1 + (1 - 1 / 250) ** 250, abs=0.03)
    assert np.bincount(annotator).std() < 0.15 * np.bincount(annotator).mean()  # alpha = inf: near-equal counts


@pytest.mark.parametrize("kind", ["symmetric", "pair_flip", "asymmetric", "uniform", "constant"])
def test_heavy_annotators_show_their_confusion(kind):
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 4, 20000)
    theta = np.stack([confusion(kind, 4, 0.4 if kind != "constant" else 2, rng)])
    assert np.allclose(theta.sum(-1), 1)
    label = answers(truth, np.arange(20000), np.zeros(20000, int), theta, rng)
    for c in range(4):
        share = np.bincount(label[truth == c], minlength=4) / (truth == c).sum()
        error = np.sqrt(theta[0, c] * (1 - theta[0, c]) / (truth == c).sum())
        assert (np.abs(share - theta[0, c]) <= 4.5 * error + 1e-9).all()


def test_synthetic_is_deterministic_and_leaks_nothing_between_streams():
    truth = torch.arange(2000) % 10
    a, b = (synthetic(None, truth, TEN, "COR-B", annotators=60, seed=4) for _ in range(2))
    assert torch.equal(a.crowd.label, b.crowd.label) and torch.equal(a.crowd.annotator, b.crowd.annotator)
    assert not torch.equal(a.crowd.label, synthetic(None, truth, TEN, "COR-B", annotators=60, seed=5).crowd.label[: len(a.crowd.label)])
    denser = synthetic(None, truth, TEN, "COR-B", annotators=60, labels_per_item=6, seed=4)
    assert torch.equal(a.confusions, denser.confusions) and torch.equal(a.leader, denser.leader)  # same characters, more labels
    with pytest.raises(ValueError, match="unknown case"):
        synthetic(None, truth, TEN, "IND-I")


@pytest.mark.parametrize(("case", "expected"), [("IND-A", 0.50), ("IND-B", 0.42), ("IND-C", 0.56), ("IND-D", 0.73), ("IND-S", 0.36)])
def test_cases_are_as_hard_as_stated(case, expected):
    truth = torch.arange(4000) % 10
    accuracy = [majority_accuracy(synthetic(None, truth, TEN, case, seed=s).crowd) for s in range(4)]
    assert abs(np.mean(accuracy) - expected) < 0.04


def test_copycats_repeat_their_leader_wherever_both_answer():
    truth = torch.arange(3000) % 10
    made = synthetic(None, truth, TEN, "COR-A", annotators=12, labels_per_item=6, alpha=math.inf, seed=0)
    table, leader = C.dense(made.crowd), made.leader
    followers = (leader != torch.arange(12)).nonzero()[:, 0].tolist()
    assert len(followers) == 6 and all(leader[leader[r]] == leader[r] for r in followers)
    for r in followers:
        both = (table[:, r] >= 0) & (table[:, leader[r]] >= 0)
        assert both.sum() > 300 and (table[both, r] == table[both, leader[r]]).all()
    half = synthetic(None, truth, TEN, "COR-A", annotators=12, labels_per_item=6, alpha=math.inf, rho=0.5, seed=0)
    table, r = C.dense(half.crowd), followers[0]
    both = (table[:, r] >= 0) & (table[:, leader[r]] >= 0)
    assert 0.5 < (table[both, r] == table[both, leader[r]]).double().mean() < 0.8


def test_a_common_confusion_makes_items_unanimous():
    truth = torch.arange(2000) % 10
    made = synthetic(None, truth, TEN, "IND-A", annotators=10, labels_per_item=5, alpha=math.inf, common=1.0, seed=0)
    assert ((votes(made.crowd) > 0).sum(1) == 1).all()


def test_max_mig_crowds():
    truth = torch.arange(5000) % 10
    high = C.dense(max_mig_crowd(None, truth, TEN, "high", "correlated").crowd)
    pairs = {3: 5, 4: 7, 0: 2, 1: 9, 6: 8}
    first = {**{k: k for k in pairs}, **{v: k for k, v in pairs.items()}}
    partner = pairs | {v: k for k, v in pairs.items()}
    for c in range(10):
        rows = high[truth == c]
        assert set(rows[:, 0].tolist()) == {first[c]} and set(rows[:, 1].tolist()) == {c, partner[c]}
        easy = c in (3, 5, 4, 7)
        assert set(rows[:, 2].tolist()) == ({c} if easy else {c, partner[c]})
        assert set(rows[:, 3].tolist()) == ({first[c]} if easy else {c})
        assert abs((rows[:, 4] == c).double().mean() - 0.6) < 0.1
    assert high.shape[1] == 10 and (high[:, 5:7] == high[:, :1]).all() and (high[:, 7:] == high[:, 2:3]).all()
    low = C.dense(max_mig_crowd(None, truth, TEN, "low", "correlated").crowd)
    assert low.shape[1] == 12 and (low[:, 10] == low[:, 0]).all() and (low[:, 11] == low[:, 2]).all()
    assert abs((low[:, 0] == truth).double().mean() - 0.2) < 0.03
    naive = C.dense(max_mig_crowd(None, truth, TEN, "low", "naive").crowd)
    assert naive.shape[1] == 15 and (naive[:, 10:] == 0).all()
    assert max_mig_crowd(None, truth, TEN, "high", "independent").crowd.annotators == 5
    with pytest.raises(ValueError, match="independent, naive or correlated"):
        max_mig_crowd(None, truth, TEN, "high", "IND")


# ---------------------------------------------------------------- published layouts, on fixtures

def write_npz(folder, name, **arrays):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **arrays)
    return folder


def test_labelme_prepared_and_as_released(tmp_path):
    rng = np.random.default_rng(0)
    answers = np.array([[0, -1, 7], [-1, 2, -1], [3, 3, -1]], np.int8)
    parts = {f"X_{p}": rng.random((3, 2, 2, 5)).astype(np.float32) for p in ("train", "valid", "test")} | {f"y_{p}": np.array([0, 2, 3], np.uint8) for p in ("train", "valid", "test")}
    one = load_labelme(write_npz(tmp_path / "a", "labelme", answers=answers, **parts))
    folder = tmp_path / "b"
    folder.mkdir()
    np.savetxt(folder / "answers.txt", np.c_[answers, [-1, -1, -1]], fmt="%d")  # the release lists annotators who labelled nothing here
    for p in ("train", "valid", "test"):
        np.save(folder / f"data_{p}_vgg16.npy", parts[f"X_{p}"])
        np.savetxt(folder / f"labels_{p}.txt", parts[f"y_{p}"], fmt="%d")
    two = load_labelme(folder)
    for data in (one, two):
        assert data.crowd.annotators == 3 and C.dense(data.crowd).tolist() == answers.tolist() and len(data.crowd.classes) == 8
        assert data.crowd.features.shape == (3, 20) and data.valid.labels.tolist() == [0, 2, 3] and data.test.features.dtype == torch.float32
    with pytest.raises(ValueError, match="lacks the arrays answers"):
        load_labelme(write_npz(tmp_path / "c", "labelme", **parts))
    with pytest.raises(ValueError, match="2 of 3 items have no annotation|1 of 3 items have no annotation"):
        load_labelme(write_npz(tmp_path / "d", "labelme", answers=np.where(np.arange(3)[:, None] == 1, -1, answers).astype(np.int8), **parts))
    with pytest.raises(FileNotFoundError, match="labelme.npz"):
        load_labelme(tmp_path)


def test_music_leaves_and_sentiment_layouts(tmp_path):
    x = np.random.default_rng(0).random((3, 4))
    music = load_music(write_npz(tmp_path, "music", X_train=x, y_train=[0, 1, 9], answers=np.array([[0, -1], [1, 1], [-1, 9]], np.int8), X_test=x, y_test=[1, 1, 1]))
    assert music.crowd.classes[9] == "rock" and music.valid is None and raw_accuracy(music.crowd) == 1
    scaled = C.standardise(music)
    assert scaled.crowd.features.mean(0).abs().max() < 1e-6 and torch.allclose(scaled.test.features, scaled.crowd.features)
    long = {"item": np.array([0, 1, 2, 2], np.int16), "worker": np.array([0, 1, 0, 1], np.int16), "label": np.array([0, 1, 1, 0], np.uint8)}
    leaves = load_leaves(write_npz(tmp_path, "leaves", X=x, y=np.array([0, 1, 1], np.uint8), **long))
    assert leaves.test is None and leaves.crowd.annotators == 2
    for part in ("train", "test"):
        (tmp_path / f"text_{part}.txt").write_text("good film\nbad film\nbad bad\n", encoding="utf8")
    sentiment = load_sentiment(write_npz(tmp_path, "sentiment", y_train=[1, 0, 0], y_test=[1, 0, 0], **long), words=4)
    assert sentiment.crowd.features.shape[0] == 3 and sentiment.crowd.classes == ("negative", "positive") and len(sentiment.test.labels) == 3


def test_cifar10n_prepared_and_as_released(tmp_path):
    rng = np.random.default_rng(0)
    clean, labels, worker = rng.integers(0, 10, 20), rng.integers(0, 10, (20, 3)), np.array([[0, 1, 2], [2, 3, 0]])
    one = load_cifar10n(write_npz(tmp_path / "a", "cifar10n", clean=clean.astype(np.uint8), labels=labels.astype(np.uint8), batch_worker=worker.astype(np.int16)), images=False)
    folder = tmp_path / "b"
    folder.mkdir()
    torch.save({"clean_label": clean, "aggre_label": clean, "worse_label": clean} | {f"random_label{k + 1}": labels[:, k] for k in range(3)}, folder / "CIFAR-10_human.pt")
    rows = [f"{10 * b}--{10 * b + 9},{w[0]},5,{w[1]},6,{w[2]},7" for b, w in enumerate(worker)]
    (folder / "side_info_cifar10N.csv").write_text("Image-batch,Worker1-id,Work-time-in-seconds-1,Worker2-id,Work-time-in-seconds-2,Worker3-id,Work-time-in-seconds-3\n" + "\n".join(rows))
    two = load_cifar10n(folder, images=False)
    for data in (one, two):
        assert data.crowd.annotators == 4 and len(data.crowd.item) == 60
        table = C.dense(data.crowd)
        assert all(table[i, worker[i // 10, k]] == labels[i, k] for i in range(20) for k in range(3))
        assert data.crowd.truth.reveal().tolist() == clean.tolist()


def test_load_names_the_place_and_the_choices(tmp_path):
    with pytest.raises(ValueError, match="unknown crowd 'nope': choose from labelme"):
        load_crowd("nope", tmp_path)
    with pytest.raises(FileNotFoundError, match="crowds"):
        load_crowd("music", tmp_path)
    write_npz(tmp_path / "crowds" / "music", "music", X_train=np.eye(2), y_train=[0, 1], answers=[[0], [1]], X_test=np.eye(2), y_test=[0, 1])
    assert load_crowd("music", tmp_path).crowd.items == 2


# ---------------------------------------------------------------- a table of one's own

@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_own_table_round_trip(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pandas reads Parquet with pyarrow, which is not installed")
    crowd = random_crowd(seed=2)
    path = C.write_annotations(crowd, tmp_path / f"mine{suffix}")
    read = C.read_annotations(path)
    assert torch.equal(C.dense(read.crowd), C.dense(crowd)) and read.items == tuple(map(str, range(30))) and read.crowd.name == "mine"


def test_own_table_with_names_and_features(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("pic,who,says,minutes\nb,zoe,dog,1\na,ann,cat,2\nb,ann,cat,1\n")
    read = C.read_annotations(path, classes=("dog", "cat"), items=("b", "a"), columns=("pic", "who", "says"), features=torch.eye(2), truth=[0, 1])
    assert read.annotators == ("ann", "zoe") and C.dense(read.crowd).tolist() == [[1, 0], [1, -1]]
    assert raw_accuracy(read.crowd) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("text", "options", "words"), [
    ("item,annotator,label\n1,a,x\n1,a,y\n", {}, "repeated"),
    ("item,annotator,label\n1,a,x\n", {"classes": ("y", "z")}, "unknown label 'x'"),
    ("item,annotator,label\n1,a,x\n", {"items": ("1", "2")}, "no annotation"),
    ("item,annotator,label\n1,a,x\n", {"annotators": ("a", "b")}, "no label"),
    ("item,annotator,label\n1,a,\n", {}, "row 1 has an empty cell"),
    ("item,who,label\n1,a,x\n", {}, "needed are item, annotator, label"),
    ("item,annotator,label\n", {}, "has no rows"),
])
def test_own_table_errors(tmp_path, text, options, words):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        C.read_annotations(path, **options)
    with pytest.raises(FileNotFoundError, match="no annotations at"):
        C.read_annotations(tmp_path / "absent.csv")


LABELS = {"item": ["img10", "img2", "img2", "img1"], "annotator": ["007", "7", "007", "7"], "label": ["dog", "cat", "dog", "cat"]}
TRUTH = {"img10": "dog", "img2": "cat", "img1": "dog"}


def test_names_come_in_natural_order_and_stay_as_written(tmp_path):
    crowd = C.Crowd.from_table(pd.DataFrame(LABELS))
    assert crowd.item_names == ("img1", "img2", "img10") and crowd.annotator_names == ("7", "007") or crowd.annotator_names == ("007", "7")
    assert crowd.annotators == 2 and C.Crowd.from_table(C.write_annotations(crowd, tmp_path / "t.csv")).item_names == crowd.item_names
    numbers = C.Crowd.from_table({"item": [10, 9, 2], "annotator": [1, 1, 1], "label": [-1, 0, 10]})
    assert numbers.item_names == ("2", "9", "10") and numbers.classes == ("-1", "0", "10")
    odd = {"item": ["NA", " x ", "é", "1e5"], "annotator": ["nan", "None", "a,b", 'q"q'], "label": ["true", "null", "true", "null"]}
    again = C.Crowd.from_table(C.write_annotations(C.Crowd.from_table(odd), tmp_path / "odd.csv"))
    assert set(again.item_names) == set(odd["item"]) and set(again.annotator_names) == set(odd["annotator"]) and again.classes == ("null", "true")
    assert "written in two ways" in refused(C.Crowd.from_table, {"item": ["é", "e\u0301"], "annotator": ["a", "a"], "label": ["x", "y"]})


def truths(tmp_path):
    """The same truth in every form that there is, in orders of their own."""
    frame = pd.DataFrame({"item": TRUTH.keys(), "truth": TRUTH.values()})
    frame.sample(frac=1, random_state=1).to_csv(tmp_path / "truth.csv", index=False)
    return {"mapping": TRUTH, "series": pd.Series(TRUTH), "file": tmp_path / "truth.csv", "path": str(tmp_path / "truth.csv"), "frame": frame,
            "indexed": frame.set_index("item"), "label": frame.rename(columns={"truth": "label"}), "columns": frame.to_dict("list"),
            "one column": frame.rename(columns={"truth": "gold"}), "named task": frame.rename(columns={"item": "task"}), "more items": TRUTH | {"img99": "cat"}, "array": ["dog", "cat", "dog"],
            "numbers": torch.tensor([1, 0, 1], dtype=torch.uint8), "codes": pd.Series({"img10": 1, "img2": 0, "img1": 1}), "hidden": Truth([1, 0, 1])}


def test_truth_goes_to_items_by_name(tmp_path):
    for form, truth in truths(tmp_path).items():
        assert C.Crowd.from_table(LABELS, truth=truth).truth.reveal().tolist() == [1, 0, 1], form


def test_truth_may_be_partly_unknown(tmp_path):
    (tmp_path / "t.csv").write_text("item;truth\nimg2;cat\nimg1;\n")
    for truth in (tmp_path / "t.csv", {"img2": "cat", "img1": None}, pd.Series({"img2": "cat", "img10": math.nan}), [None, "cat", ""],
                  np.array([-1, 0, -1]), np.array([math.nan, 0, math.nan]), {"img2": 0, "img1": -1}):
        crowd = C.Crowd.from_table(LABELS, truth=truth)
        assert [v.tolist() for v in crowd.truth.known()] == [[1], [0]] and raw_accuracy(crowd) == 0.5
    binary = C.Crowd.from_table({"item": [1, 2], "annotator": [1, 1], "label": [-1, 1]}, truth={1: -1, 2: 1})  # here -1 is a class
    assert binary.truth.reveal().tolist() == [0, 1]
    floats = C.Crowd.from_table({"item": [1, 2], "annotator": [1, 1], "label": [0, 1]}, truth=pd.DataFrame({"item": [1, 2], "truth": [1, None]}))
    assert [v.tolist() for v in floats.truth.known()] == [[0], [1]]


@pytest.mark.parametrize(("truth", "words"), [
    ({"img01": "cat"}, "names 'img01'"), ({"Img1": "cat", "img2": "cat"}, "where the crowd has 'img1'"), ({"img1 ": "cat"}, "write names alike"),
    ({"a": "cat"}, "the crowd's items are 'img1'"), (pd.Series(["dog", "cat", "dog"]), "the crowd's items are"), ({"img1": "fox"}, "of item 'img1' is 'fox'"),
    (["dog"], "1 classes for 3 items"), ([0, 1, 2], "is '2'; known classes: cat, dog"), (pd.DataFrame({"item": ["img1"], "a": [1], "b": [2]}), "expected 'truth'"),
    (pd.DataFrame({"item": ["img1", "img1"], "truth": ["cat", "dog"]}), "'img1' is there twice"), (pd.DataFrame({"item": ["img1", None], "truth": ["cat", "dog"]}), "names no item"),
])
def test_truth_that_fits_no_item_is_refused(truth, words):
    assert words in refused(C.Crowd.from_table, LABELS, truth=truth)


def test_features_go_to_items_by_name(tmp_path):
    rows = {"img10": [10.0, 1.0], "img2": [2.0, 1.0], "img1": [1.0, 1.0], "img99": [0.0, 0.0]}
    frame = pd.DataFrame.from_dict(rows, "index", columns=["x", "y"])
    frame.rename_axis("item").reset_index().to_csv(tmp_path / "x.csv", index=False)
    expected = torch.tensor([[1.0, 1], [2, 1], [10, 1]])
    for features in (rows, frame, tmp_path / "x.csv", {k: torch.tensor(v) for k, v in rows.items()}, pd.Series(rows), expected.numpy().astype(np.float64),
                     expected, [[1, 1], [2, 1], [10, 1]]):
        found = C.Crowd.from_table(LABELS, features=features).features
        assert torch.equal(found, expected) and found.dtype == torch.float32
    pictures = {name: np.full((4, 4, 3), i, np.uint8) for i, name in enumerate(("img1", "img2", "img10"))}
    assert C.Crowd.from_table(LABELS, features=pictures).features[:, 0, 0, 0].tolist() == [0, 1, 2]
    for wrong, words in (({"img1": [1.0], "img2": [1.0]}, "'img10' has no features, nor have 0 others"), ({k: [0.0] * i for i, k in enumerate(TRUTH)}, "differ in shape"),
                         (expected[:2], "features have shape (2, 2) for 3 items"), (expected / 0 * 0, "'img1' has NaN"), (frame.assign(y="a"), "expected a number"),
                         ({"img01": [1.0]}, "features names 'img01'"), (["a", "b", "c"], "expected numbers")):
        assert words in refused(C.Crowd.from_table, LABELS, features=wrong)


def test_from_table_says_what_is_wrong(tmp_path):
    plain = {"item": ["a", "b"], "annotator": ["w", "w"], "label": ["x", "y"]}
    assert "expected numbers, one row an item" in refused(C.Crowd.from_table, plain, features=[[1], [2, 3]])
    assert "(columns= names others)" in refused(C.Crowd.from_table, {"task": ["a"], "worker": ["w"], "label": ["x"]})
    assert "expected the names of three" in refused(C.Crowd.from_table, LABELS, columns=("item", "label"))
    assert "no annotations at" in refused(C.Crowd.from_table, tmp_path / "none.csv") and "unknown label 'dog'" in refused(C.Crowd.from_table, LABELS, classes=["cat"])
    assert "1 of 4 items have no annotation" in refused(C.Crowd.from_table, LABELS, items=["img1", "img2", "img3", "img10"])
    assert C.Crowd.from_table(LABELS, items=["img2", "img1", "img10"]).item_names == ("img2", "img1", "img10")
    assert "repeated" in refused(C.Crowd.from_table, pd.concat([pd.DataFrame(LABELS)] * 2))


# ---------------------------------------------------------------- the real crowds

@needs_shared
@pytest.mark.parametrize(("name", "items", "annotators", "annotations", "raw", "majority", "lowest", "spread"), [
    ("labelme", 1000, 59, 2547, 74.05, 76.60, 76.90, (3, 27, 182)),
    ("music", 700, 44, 2945, 56.03, 70.42, 71.14, (2, 16, 368)),
    ("leaves", 384, 83, 3840, 60.83, 71.70, 71.88, (1, 12, 381)),
    ("cifar10n", 50000, 747, 150000, 82.33, 91.18, 91.18, (10, 80, 3070)),
    ("sentiment", 4999, 203, 27746, 78.95, 88.59, 88.96, (5, 40, 3993)),
])
def test_statistics_of_the_real_crowds(name, items, annotators, annotations, raw, majority, lowest, spread):
    options = {"cifar10n": {"images": False}, "sentiment": {"words": 50}}.get(name, {})
    crowd = PUBLISHED[name](SHARED / name, **options).crowd
    row = statistics(crowd)
    assert (row["items"], row["annotators"], row["annotations"]) == (items, annotators, annotations)
    assert (row["annotator_min"], round(row["annotator_median"]), row["annotator_max"]) == spread
    assert 100 * row["raw_accuracy"] == pytest.approx(raw, abs=0.005) and 100 * row["majority_accuracy"] == pytest.approx(majority, abs=0.005)
    assert 100 * majority_accuracy(crowd, ties="lowest") == pytest.approx(lowest, abs=0.005)
    if name == "cifar10n":
        count = labels_per_annotator(crowd)
        assert (count <= 30).sum() == 229 and (count == 10).sum() == 109


@needs_shared
def test_classic_sets_read_as_tables():
    crowd = C.read_annotations(SHARED / "classic" / "bluebird" / "label.csv", columns=("item", "worker", "label")).crowd
    assert (crowd.items, crowd.annotators, len(crowd.item)) == (108, 39, 4212)
    with pytest.raises(ValueError, match="5 repeated"):
        C.read_annotations(SHARED / "classic" / "cf_amt" / "label.csv", columns=("item", "worker", "label"))


@pytest.mark.long
@needs_shared
def test_the_real_truth_by_name():
    """dog: laid by position against names in the order of text, truth said 24 %."""
    folder, columns = SHARED / "classic" / "dog", ("item", "worker", "label")
    table = pd.read_csv(folder / "truth.csv")
    for truth in (folder / "truth.csv", table, table.set_index("item")["truth"], dict(zip(table["item"], table["truth"])), table.sort_values("item")["truth"].to_numpy()):
        assert 100 * raw_accuracy(C.Crowd.from_table(folder / "label.csv", truth, columns=columns)) == pytest.approx(69.64, abs=0.005)
    trec = C.Crowd.from_table(SHARED / "classic" / "trec" / "label.csv", SHARED / "classic" / "trec" / "truth.csv", columns=columns)
    row = statistics(trec)
    assert row["known"] == 2275 and 100 * row["raw_accuracy"] == pytest.approx(61.21, abs=0.005) and 100 * row["majority_accuracy"] == pytest.approx(65.14, abs=0.005)
    assert 100 * majority_accuracy(trec, "lowest") == pytest.approx(66.11, abs=0.005)
