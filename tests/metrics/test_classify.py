"""Classification metrics: slow loops, scikit-learn, invariances, bad input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from kdnotes.metrics.classify import accuracy, class_place, confusion_matrix, per_class_accuracy


def draw(seed, n=60, classes=7, levels=None):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, classes, generator=g)
    scores = scores if levels is None else (scores * levels).round()            # many ties
    return scores, torch.randint(classes, (n,), generator=g)


def slow_topk(scores, labels, k):
    """Sort each row by (score downwards, class upwards) and look for the label among the first k."""
    right = 0
    for row, label in zip(scores.tolist(), labels.tolist()):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))
        right += label in order[:k]
    return right / len(labels)


@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_topk_equals_a_sort_of_each_row(k, levels):
    scores, labels = draw(k, levels=levels)
    assert accuracy(scores, labels, k) == pytest.approx(slow_topk(scores, labels, k), abs=1e-15)


def test_top1_and_topk_agree_with_scikit_learn():
    scores, labels = draw(0)
    assert accuracy(scores, labels) == sk.accuracy_score(labels, scores.argmax(1))
    assert accuracy(scores.argmax(1), labels) == accuracy(scores, labels)
    assert accuracy(scores, labels, 3) == sk.top_k_accuracy_score(labels, scores, k=3)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([None, 1, 2]))
def test_invariances(seed, levels):
    """Increasing maps of the scores and the order of the images change nothing; more places never hurt;
    all places are enough.
    """
    scores, labels = draw(seed, levels=levels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rates = [accuracy(scores, labels, k) for k in range(1, 8)]
    assert rates == sorted(rates) and rates[-1] == 1
    assert accuracy(scores[order], labels[order]) == rates[0]
    assert accuracy(3 * scores + 1, labels) == rates[0] and accuracy(scores.double().exp(), labels) == rates[0]
    counts = confusion_matrix(scores, labels)
    assert counts.sum() == len(labels) and torch.equal(counts.sum(1), torch.bincount(labels, minlength=7))
    if levels is None:
        assert counts.trace() / len(labels) == pytest.approx(rates[0])


def test_a_collapsed_net_is_not_lucky():
    """With every score equal the answer is class 0, whatever the image."""
    labels = torch.arange(10).repeat(3)
    assert accuracy(torch.zeros(30, 10), labels) == 0.1 and accuracy(torch.zeros(30, 10), labels, 4) == 0.4
    assert class_place(torch.zeros(30, 10), labels).tolist() == labels.tolist()


def test_confusion_matrix_and_per_class_accuracy_agree_with_scikit_learn():
    scores, labels = draw(3, n=200)
    predicted = scores.argmax(1)
    assert np.array_equal(confusion_matrix(scores, labels), sk.confusion_matrix(labels, predicted, labels=range(7)))
    assert np.allclose(per_class_accuracy(predicted, labels), sk.recall_score(labels, predicted, average=None))


def test_absent_classes_have_no_rate_but_a_row():
    predicted, labels = torch.tensor([0, 3, 3]), torch.tensor([0, 0, 3])
    assert confusion_matrix(predicted, labels, classes=5).shape == (5, 5)
    rates = per_class_accuracy(predicted, labels, classes=5).tolist()
    assert rates[0] == 0.5 and rates[3] == 1 and all(math.isnan(rates[c]) for c in (1, 2, 4))
    assert confusion_matrix(predicted, labels).shape == (4, 4)


def test_arrays_lists_and_half_precision_are_welcome():
    scores, labels = draw(5)
    assert accuracy(scores.numpy(), labels.numpy()) == accuracy(scores,
                                                                labels.tolist()) == accuracy(scores, labels.int())
    assert accuracy(scores.bfloat16(), labels) == slow_topk(scores.bfloat16(), labels, 1)
    assert isinstance(accuracy(scores, labels), float)


def test_infinite_scores_are_scores():
    """Masked classes carry minus infinity."""
    assert accuracy(torch.tensor([[-torch.inf, 1.0], [torch.inf, 0.0]]), torch.tensor([1, 0])) == 1


@pytest.mark.parametrize("call, words", [
    (lambda: accuracy(torch.zeros(3, 2), torch.zeros(4, dtype=torch.long)),
     ["(3, 2)", "4 labels", "expected scores (4, C)"]),
    (lambda: accuracy(torch.zeros(3, 2, 2), torch.zeros(3, dtype=torch.long)), ["(3, 2, 2)"]),
    (lambda: accuracy(torch.zeros(3, 2), torch.zeros(3)), ["labels are torch.float32", "whole numbers"]),
    (lambda: accuracy(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)), ["N >= 1"]),
    (lambda: accuracy(torch.zeros(1, 2), torch.tensor([-1])), ["labels run from -1", "from 0 on"]),
    (lambda: accuracy(torch.zeros(1, 2), torch.tensor([2])), ["label 2 has no column", "2 columns"]),
    (lambda: accuracy(torch.tensor([[0.0, torch.nan], [0.0, 1.0]]), torch.tensor([0, 1])), ["1 of 2 rows", "NaN"]),
    (lambda: accuracy(torch.tensor([0.2]), torch.tensor([0])), ["torch.float32", "scores of shape (N, C)"]),
    (lambda: accuracy(torch.tensor([0]), torch.tensor([0]), topk=2), ["topk is 2"]),
    (lambda: accuracy(torch.zeros(1, 2), torch.tensor([0]), topk=0), ["topk is 0"]),
    (lambda: class_place(torch.tensor([0]), torch.tensor([0])), ["needs scores (N, C)"]),
    (lambda: confusion_matrix(torch.tensor([0, 5]), torch.tensor([0, 1]), classes=3), ["0 to 5", "expected 0 to 2"]),
    (lambda: confusion_matrix(torch.tensor([-1, 0]), torch.tensor([0, 1])), ["-1"]),
])
def test_bad_input_says_what_is_expected(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_a_table_by_the_largest_label_is_refused_before_it_is_made():
    far = torch.tensor([0, 10**9])
    for measure in (confusion_matrix, per_class_accuracy):
        with pytest.raises(ValueError, match="1000000001 classes .*number them from 0 without gaps"):
            measure(far, far)
    rates = per_class_accuracy(torch.tensor([0, 10**6]), torch.tensor([0, 10**6]))
    assert len(rates) == 10**6 + 1 and rates[[0, -1]].eq(1).all() and rates[1:-1].isnan().all()
