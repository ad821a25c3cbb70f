"""Recall@K: hand cases, brute force, invariances, ties, bad input."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kdnotes.metrics.retrieve import (NEVER, first_right, hit_rates, inner_form, match_rank, mean_average_precision,
                                      recall_at_k)


def draw(seed, n=40, d=5, classes=6, grid=None):
    """Random embeddings; on a coarse `grid` many distances are equal."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    return (x if grid is None else (x * grid).round()), torch.randint(classes, (n,), generator=g)


def brute_recall(embeddings, labels, k, distance):
    """Sort the others by distance, strangers first where equal, and look for the label among the first k."""
    hits = 0
    for i, x in enumerate(embeddings):
        others = [(distance(x, y), labels[j] == labels[i]) for j, y in enumerate(embeddings) if j != i]
        hits += any(right for _, right in sorted(others)[:k])
    return hits / len(embeddings)


def euclidean(x, y):
    return sum((a - b) ** 2 for a, b in zip(x, y))


def cosine(x, y):
    return -sum(a * b for a, b in zip(x, y)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


@pytest.mark.parametrize("metric, distance, grid",
                         [("euclidean", euclidean, None), ("euclidean", euclidean, 1), ("cosine", cosine, None)])
def test_recall_equals_brute_force(metric, distance, grid):
    for seed in range(4):
        x, y = draw(seed, grid=grid, d=2 if grid else 5)
        recall = recall_at_k(x, y, (1, 2, 4, 8), metric=metric)
        for k in (1, 2, 4, 8):
            assert recall[k] == pytest.approx(brute_recall(x.tolist(), y.tolist(), k, distance), abs=1e-15)


def test_four_points_by_hand():
    """0 and 1 find each other; 3 finds 1 (a stranger) before 5.5; 5.5 finds 3."""
    x, y = torch.tensor([[0.0], [1.0], [3.0], [5.5]]), torch.tensor([0, 0, 1, 1])
    assert match_rank(x, y).tolist() == [1, 1, 2, 1]
    assert recall_at_k(x, y, (1, 2, 3)) == {1: 0.75, 2: 1.0, 3: 1.0}
    assert recall_at_k(x, torch.tensor([0, 1, 0, 1]), (1, 2, 3)) == {1: 0.0, 2: 0.5, 3: 1.0}


def test_the_query_does_not_find_itself():
    """Samples of distinct classes have nothing to find; with themselves in the gallery they would score 1."""
    x, y = draw(0, n=10)[0], torch.arange(10)
    assert recall_at_k(x, y, (1, 9)) == {1: 0.0, 9: 0.0}
    assert (match_rank(x, y) == NEVER).all() and (match_rank(x, y, x, y) == 1).all()


def test_perfect_clusters_and_collapse():
    y = torch.arange(5).repeat_interleave(4)
    centres = 10 * torch.eye(5, dtype=torch.float64)[y]
    assert recall_at_k(centres + 0.1 * draw(1, n=20)[0], y, 1) == {1: 1.0}
    assert recall_at_k(centres, y, 1) == {1: 1.0}
    # 16 strangers at the same place
    assert recall_at_k(torch.full((20, 5), 0.1), y, (1, 16, 17)) == {1: 0.0, 16: 0.0, 17: 1.0}


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), grid=st.sampled_from([None, 1.0]), metric=st.sampled_from(["euclidean", "cosine"]))
def test_invariances(seed, grid, metric):
    """Monotone in K;
    the order of the samples, their class numbers, the chunk, isometries and positive scaling change nothing.
    """
    x, y = draw(seed, n=24, d=3, grid=grid)
    x = x + (x == 0).all(1, keepdim=True) * 0.5
    ks = (1, 2, 3, 5, 8, 23)
    recall = recall_at_k(x, y, ks, metric=metric)
    assert list(recall.values()) == sorted(recall.values()) and all(0 <= v <= 1 for v in recall.values())
    # all others seen
    assert recall[23] == pytest.approx(sum((y == label).sum() > 1 for label in y.tolist()) / 24)
    g = torch.Generator().manual_seed(seed)
    order, turn = torch.randperm(24,
                                 generator=g), torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64)).Q
    names = torch.tensor([40, -3, 7, 0, 99, 5])
    assert recall_at_k(x[order], y[order], ks, metric=metric) == recall
    assert recall_at_k(x, names[y], ks, metric=metric) == recall
    for chunk in (1, 7, 24, 1000):
        assert recall_at_k(x, y, ks, metric=metric, chunk=chunk) == recall
    assert recall_at_k(3.7 * x @ turn, y, ks, metric=metric) == recall
    shift = torch.tensor([[11.3, -700.0, 0.7]], dtype=torch.float64) if metric == "euclidean" else 0
    assert recall_at_k(x + shift, y, ks, metric=metric) == recall


def test_duplicates_of_another_class_count_against_the_query():
    """Rounding of the matrix product must not decide between two copies of one image."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 512, generator=g, dtype=torch.float64) + 3
    x, y = torch.cat([x, x, x]), torch.arange(3).repeat_interleave(50)
    # two of one class, one stranger, all at one place
    y = torch.cat([torch.arange(50), torch.arange(50), torch.arange(50) + 50])
    assert (match_rank(x, y)[:100] == 2).all()


def test_a_far_offset_does_not_cost_accuracy():
    """Naive |q|^2 + |g|^2 - 2 q g loses distances of 1e-3 beside a norm of 1e6; centring keeps them."""
    x, y = draw(2, n=60)
    far = x * 1e-3 + 1e6
    exact = torch.cdist(far, far, compute_mode="donot_use_mm_for_euclid_dist")
    exact.fill_diagonal_(torch.inf)
    assert recall_at_k(far, y, 1)[1] == (y[exact.argmin(1)] == y).double().mean()


def test_single_precision_and_half_are_lifted():
    x, y = draw(3)
    for dtype in (torch.float32, torch.bfloat16):
        assert recall_at_k(x.to(dtype), y) == recall_at_k(x.to(dtype).double(), y)
    assert recall_at_k(x.float().numpy(), y.numpy()) == recall_at_k(x.float(), y.tolist())
    assert recall_at_k(x.requires_grad_(), y)[1] <= 1                                    # no graph is built


def test_gallery_and_queries_may_differ():
    x, y = draw(4, n=30)
    g, z = draw(5, n=50)
    rank = match_rank(x, y, g, z)
    for i in range(30):
        order = sorted(range(50), key=lambda j: euclidean(x[i].tolist(), g[j].tolist()))
        assert rank[i] == next(place for place, j in enumerate(order, start=1) if z[j] == y[i])


def test_inner_form_orders_like_the_distance():
    x, g = draw(6)[0], draw(7)[0]
    q, h, b = inner_form(x, g, "euclidean")
    gap = -2 * (q @ h.T + b) + q.square().sum(1, keepdim=True)
    assert torch.allclose(gap, torch.cdist(x, g) ** 2, atol=1e-12)


def test_first_right_for_every_small_pattern():
    """All arrangements of three scores and right answers, against a sort with strangers first."""
    for values, marks in itertools.product(itertools.product((0.0, 1.0, 2.0), repeat=3),
                                           itertools.product((False, True), repeat=3)):
        order = sorted(zip(values, marks), key=lambda pair: (-pair[0], pair[1]))
        expected = next((i for i, (_, mark) in enumerate(order, start=1) if mark), NEVER)
        assert first_right(torch.tensor([values]), torch.tensor([marks])).item() == expected


def test_memory_is_bounded_by_the_chunk():
    """No tensor of more than chunk x N entries is ever made."""
    shapes = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                shapes.append(out.numel())
            return out

    x, y = draw(8, n=500)
    with Spy():
        recall_at_k(x, y, chunk=20)
    assert max(shapes) == 20 * 500


def test_hit_rates():
    ranks = torch.tensor([1, 2, 2, 5, NEVER])
    assert hit_rates(ranks, [4, 1, 2, 2]) == {1: 0.2, 2: 0.6, 4: 0.6} and list(hit_rates(ranks, [4, 1])) == [1, 4]
    assert hit_rates(ranks, 5) == {5: 0.8}


@pytest.mark.parametrize("call, words", [
    (lambda x, y: recall_at_k(x[:1], y[:1]), ["embeddings have shape (1, 5)", "at least 2"]),
    (lambda x, y: recall_at_k(x, y[:-1]), ["labels", "(39,)", "(40,)"]),
    (lambda x, y: recall_at_k(x, y.float()), ["torch.float32", "whole numbers"]),
    (lambda x, y: recall_at_k(x[:, 0], y), ["(40,)", "expected numbers (N, D)"]),
    (lambda x, y: recall_at_k(x[:, :0], y), ["(40, 0)"]),
    (lambda x, y: recall_at_k(x / (x != x[0]), y), ["1 of 40 rows of embeddings", "finite"]),
    (lambda x, y: recall_at_k(x, y, ks=(0, 1)), ["[0, 1]", "at least 1"]),
    (lambda x, y: recall_at_k(x, y, ks=()), ["[]"]),
    (lambda x, y: recall_at_k(x, y, ks=(1.5,)), ["1.5"]),
    (lambda x, y: recall_at_k(x, y, metric="manhattan"), ["'manhattan'", "'euclidean' or 'cosine'"]),
    (lambda x, y: match_rank(x, y, x[:, :3], y), ["5 features", "gallery 3"]),
    (lambda x, y: match_rank(x, y, x, y[:3]), ["gallery labels", "(3,)"]),
])
def test_bad_input_says_what_is_expected(call, words):
    with pytest.raises(ValueError) as error:
        call(*draw(0))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_random_embeddings_score_at_chance():
    """With c classes of equal size and no information, Recall@K is 1 - (1 - 1/c)^K."""
    x, y = draw(9, n=3000, d=8, classes=10)
    for k, rate in recall_at_k(x, y).items():
        assert rate == pytest.approx(1 - 0.9**k, abs=0.03)


def slow_average_precision(distances, labels, y):
    """From the definition: wrong ones first among equals."""
    order = sorted(range(len(labels)), key=lambda j: (round(distances[j], 9), labels[j] == y))
    hits, precisions = 0, []
    for place, j in enumerate(order, start=1):
        if labels[j] == y:
            hits += 1
            precisions.append(hits / place)
    return sum(precisions) / len(precisions)


@pytest.mark.parametrize("grid", [None, 1.0])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_mean_average_precision_equals_the_definition(grid, metric):
    g = torch.Generator().manual_seed(3)
    gallery, probe = torch.randn(40, 3, generator=g,
                                 dtype=torch.float64), torch.randn(15, 3, generator=g, dtype=torch.float64)
    gallery, probe = ((x / grid).round() * grid + 0.5 if grid else x for x in (gallery, probe))
    y, z = torch.arange(40) % 5, torch.arange(15) % 5
    slow = []
    for q, c in zip(probe, z.tolist()):
        cosines = torch.nn.functional.cosine_similarity(gallery, q[None])
        d = (gallery - q).norm(dim=1) if metric == "euclidean" else -cosines
        slow.append(slow_average_precision(d.tolist(), y.tolist(), c))
    got = mean_average_precision(probe, z, gallery, y, metric=metric)
    assert got == pytest.approx(sum(slow) / 15, abs=1e-9)
    assert got == mean_average_precision(probe, z, gallery, y, metric=metric, chunk=4)
    alone = mean_average_precision(gallery, y, metric=metric)
    # a query does not find itself
    assert alone < mean_average_precision(gallery, y, gallery, y, metric=metric)


def test_mean_average_precision_in_the_limits():
    eye, y = torch.eye(4).repeat(3, 1), torch.arange(12) % 4
    assert mean_average_precision(eye, y) == 1.0
    # all equal: the two right ones come last
    assert mean_average_precision(torch.ones(12, 2), y) == pytest.approx((1 / 10 + 2 / 11) / 2)
    with pytest.raises(ValueError, match="1 of 12 queries have no image of their class"):
        mean_average_precision(eye, torch.where(torch.arange(12) == 0, 9, y))
