"""Verification and identification: slow loops, scikit-learn, the fold protocol, bad input."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from kdnotes.metrics.retrieve import NEVER, mean_average_precision
from kdnotes.metrics.verify import (
    best_threshold,
    by_first_picture,
    cuts,
    equal_error_rate,
    fold_numbers,
    histogram_intersection,
    identification_rate,
    identity_ranks,
    judge_folds,
    kfold_accuracy,
    open_set_rate,
    pair_scores,
    recognition,
    roc,
    search,
    similarity_margin,
    tar_at_far,
    templates,
    verification,
)

LFW = torch.tensor(([True] * 300 + [False] * 300) * 10)


def draw(seed, n=80, levels=None, gap=1.0):
    """Scores of `n` pairs, genuine ones higher by `gap` on average; rounded to `levels` steps many are equal."""
    g = torch.Generator().manual_seed(seed)
    same = torch.rand(n, generator=g) < 0.4
    same[:2] = torch.tensor([True, False])
    scores = torch.randn(n, generator=g, dtype=torch.float64) + gap * same
    return (scores if levels is None else (scores * levels).round()), same


def right_decisions(scores, same, t):
    return sum((s >= t) == y for s, y in zip(scores.tolist(), same.tolist()))


# --- thresholds and curves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 1, 3])
def test_cuts_equal_a_count_at_every_threshold(levels):
    for seed in range(5):
        scores, same = draw(seed, levels=levels)
        made = cuts(scores, same)
        assert made.threshold[1:].tolist() == sorted(set(scores.tolist()), reverse=True)
        assert made.threshold[0] == torch.inf
        for t, genuine, impostors in zip(*made):
            accepted = scores >= t
            assert genuine == (accepted & same).sum() and impostors == (accepted & ~same).sum()


@pytest.mark.parametrize("levels", [None, 1, 3])
def test_best_threshold_is_the_best_of_all(levels):
    for seed in range(8):
        scores, same = draw(seed, levels=levels)
        points = sorted(set(scores.tolist()))
        candidates = [-math.inf, *((a + b) / 2 for a, b in zip(points, points[1:])), math.inf]
        rights = [right_decisions(scores, same, t) for t in candidates]
        best = max(t for t, r in zip(candidates, rights) if r == max(rights))       # the strictest of the best
        assert best_threshold(scores, same) == pytest.approx(best)


def test_best_threshold_by_hand():
    assert best_threshold(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 0, 1, 1])) == 2.5
    assert best_threshold(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 1, 0])) == -math.inf       # accept all
    assert best_threshold(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 0, 0])) == math.inf        # accept none
    assert best_threshold(torch.zeros(4), torch.tensor([1, 0, 1, 0])) == math.inf


@pytest.mark.parametrize("levels", [None, 2])
def test_roc_agrees_with_scikit_learn(levels):
    scores, same = draw(1, levels=levels)
    far, tar, threshold = sk.roc_curve(same, scores, drop_intermediate=False)
    ours = roc(scores, same)
    assert np.allclose(ours.far, far) and np.allclose(ours.tar, tar) and np.allclose(ours.threshold, threshold)


def slow_tar(scores, same, far):
    best = 0.0
    for t in [math.inf, *scores.tolist()]:
        accepted = [s >= t for s in scores.tolist()]
        false = sum(a and not y for a, y in zip(accepted, same.tolist())) / int((~same).sum())
        true = sum(a and y for a, y in zip(accepted, same.tolist())) / int(same.sum())
        best = max(best, true) if false <= far else best
    return best


@pytest.mark.parametrize("levels", [None, 2])
def test_tar_at_far_is_the_best_rate_within_the_limit(levels):
    for seed in range(4):
        scores, same = draw(seed, levels=levels)
        fars = (0, 1e-3, 0.01, 0.1, 0.29, 0.5, 1.0)
        rates = tar_at_far(scores, same, fars)
        assert list(rates) == [float(far) for far in fars]
        assert all(rates[far] == pytest.approx(slow_tar(scores, same, far), abs=1e-15) for far in rates)


def test_a_far_that_falls_on_a_step_is_reached():
    """29 of 100 impostors are a rate of 0.29, though 0.29 * 100 < 29 in floating point."""
    scores = torch.arange(200.0)
    # all impostors above all genuine pairs
    same = torch.cat([torch.ones(100), torch.zeros(100)]).bool()
    # genuine pairs behind 29 impostors
    scores[:100] = 170.5
    assert tar_at_far(scores, same, (0.28, 0.29)) == {0.28: 0.0, 0.29: 1.0}
    assert tar_at_far(scores, same, 0.29) == {0.29: 1.0}


def test_equal_error_rate_in_closed_form():
    """Normal scores at distance d: the two errors meet half-way, at Phi(-d / 2)."""
    g = torch.Generator().manual_seed(0)
    same = torch.arange(40_000) % 2 == 0
    scores = torch.randn(40_000, generator=g, dtype=torch.float64) + 2.0 * same
    assert equal_error_rate(scores, same) == pytest.approx(0.5 * math.erfc(1 / math.sqrt(2)), abs=0.005)
    assert best_threshold(scores, same) == pytest.approx(1.0, abs=0.1)


def test_equal_error_rate_by_hand():
    assert equal_error_rate(torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([1, 1, 0, 0])) == 0
    assert equal_error_rate(torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])) == 1
    assert equal_error_rate(torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([1, 0, 1, 0])) == 0.5
    assert equal_error_rate(torch.zeros(5), torch.tensor([1, 1, 1, 0, 0])) == 0.5
    # one tie of a genuine pair and an impostor between two clear ones: the line from (0, 1/2) to (1/2, 1) meets FAR =
    # FRR at 1/4
    assert equal_error_rate(torch.tensor([3.0, 2.0, 2.0, 1.0]), torch.tensor([1, 1, 0, 0])) == 0.25


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([None, 1, 2]))
def test_invariances(seed, levels):
    """Order of pairs and increasing maps change nothing;
    swapping the sign of scores and the kinds of pairs mirrors the curve.
    """
    scores, same = draw(seed, n=30, levels=levels)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    fars = (0.0, 0.1, 0.3)
    rate, rates = equal_error_rate(scores, same), tar_at_far(scores, same, fars)
    assert equal_error_rate(scores[order], same[order]) == rate
    assert tar_at_far(scores[order], same[order], fars) == rates
    assert equal_error_rate(torch.exp(scores), same) == rate and tar_at_far(torch.exp(scores), same, fars) == rates
    assert equal_error_rate(-scores, ~same) == pytest.approx(rate)
    assert equal_error_rate(-scores, same) == pytest.approx(1 - rate)
    curve = roc(scores, same)
    assert (curve.far.diff() >= 0).all() and (curve.tar.diff() >= 0).all() and (curve.threshold.diff() < 0).all()
    assert list(rates.values()) == sorted(rates.values())


@pytest.mark.parametrize("cosines, margin, common", [([0.9, 0.8, -0.5, 0.1], 1.05, 0), ([0.9, 0.1, 0.9, 0.1], 0, 1), ([0.9, 0.1, 0.9, -0.6], 0.35, 0.5)])
def test_how_far_genuine_and_impostor_pairs_lie_apart(cosines, margin, common):
    scores, same = torch.tensor(cosines), torch.tensor([True, True, False, False])
    assert similarity_margin(scores, same) == pytest.approx(margin) and histogram_intersection(scores, same) == common
    assert histogram_intersection(scores.half(), same.int()) == common


def test_the_histograms_are_those_of_numpy_and_lose_no_pair():
    scores, same = draw(0)
    scores = (scores / scores.abs().max()).clamp(-1, 1) * (1 + 1e-9)         # rounding can lift a cosine above 1
    shares = [np.histogram(scores[which].clamp(-1, 1), 40, (-1, 1))[0] / int(which.sum()) for which in (same, ~same)]
    assert histogram_intersection(scores, same) == pytest.approx(np.minimum(*shares).sum()) and np.isclose(np.sum(shares), 2)


# --- the fold protocol -----------------------------------------------------------------------------------------------


def test_the_official_list_gives_the_official_folds():
    assert torch.equal(fold_numbers(LFW), torch.arange(6000) // 600)


def test_any_order_of_pairs_gives_balanced_folds():
    for same in (LFW.sort().values, LFW[torch.randperm(6000, generator=torch.Generator().manual_seed(0))]):
        fold = fold_numbers(same)
        for k in range(10):
            assert (fold == k).sum() == 600 and same[fold == k].sum() == 300
    odd = torch.tensor([True] * 11 + [False] * 7)
    sizes = [[int((odd[fold_numbers(odd, 3) == k] == kind).sum()) for k in range(3)] for kind in (True, False)]
    assert all(max(row) - min(row) <= 1 for row in sizes) and [sum(row) for row in sizes] == [11, 7]


def test_perfect_constant_and_random_scores():
    assert judge_folds(LFW.double(), LFW).accuracy.tolist() == [1.0] * 10
    assert judge_folds(torch.full((6000,), 0.7), LFW).accuracy.tolist() == [0.5] * 10
    noise = torch.randn(6000, generator=torch.Generator().manual_seed(1))
    assert judge_folds(noise, LFW).accuracy.mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("levels", [None, 2])
def test_folds_equal_a_slow_loop(levels):
    scores, same = draw(3, n=90, levels=levels)
    fold, result = fold_numbers(same, 5), judge_folds(scores, same, 5)
    for k in range(5):
        train, test = fold != k, fold == k
        t = best_threshold(scores[train], same[train])
        assert result.threshold[k] == t
        assert result.accuracy[k] == pytest.approx(right_decisions(scores[test], same[test], t) / int(test.sum()))


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), k=st.integers(0, 4))
def test_a_threshold_never_sees_its_test_fold(seed, k):
    """Whatever the scores of fold k are, its threshold stays, bit for bit."""
    scores, same = draw(seed, n=60, levels=4)
    if min(same.sum(), (~same).sum()) < 5:
        return
    fold = fold_numbers(same, 5)
    other = torch.where(fold == k,
                        torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 9, scores)
    assert judge_folds(scores, same, 5).threshold[k] == judge_folds(other, same, 5).threshold[k]


def test_shuffled_pairs_score_the_same_up_to_noise():
    scores = torch.randn(6000, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 2 * LFW
    rates = [judge_folds(scores, LFW).accuracy.mean()]
    for seed in range(3):
        order = torch.randperm(6000, generator=torch.Generator().manual_seed(seed))
        rates.append(judge_folds(scores[order], LFW[order]).accuracy.mean())
    assert max(rates) - min(rates) < 0.01
    assert np.mean(rates) == pytest.approx(0.5 * math.erfc(-1 / math.sqrt(2)), abs=0.01)             # Phi(1)


def test_kfold_accuracy_on_embeddings():
    g = torch.Generator().manual_seed(3)
    identity = torch.nn.functional.normalize(torch.randn(40, 16, generator=g), dim=1)
    first = torch.randint(40, (600,), generator=g)
    same = torch.arange(600) % 2 == 0
    second = torch.where(same, first, (first + 1 + torch.randint(38, (600,), generator=g)) % 40)
    near = [identity[i] + 0.05 * torch.randn(600, 16, generator=g) for i in (first, second)]
    assert kfold_accuracy(*near, same) > 0.98 and kfold_accuracy(*near, same, metric="euclidean") > 0.98
    # the cosine ignores lengths
    assert kfold_accuracy(5 * near[0], near[1], same) == kfold_accuracy(*near, same)
    assert kfold_accuracy(torch.ones(600, 4), torch.ones(600, 4), same) == 0.5
    assert isinstance(kfold_accuracy(near[0].numpy(), near[1].numpy(), same.numpy().astype(int)), float)


def test_pair_scores_equal_the_formulas():
    g = torch.Generator().manual_seed(4)
    a, b = torch.randn(2, 20, 7, generator=g, dtype=torch.float64)
    for i, (c, d) in enumerate(zip(pair_scores(a, b).tolist(), pair_scores(a, b, "euclidean").tolist())):
        x, y = a[i].tolist(), b[i].tolist()
        dot = sum(p * q for p, q in zip(x, y))
        assert c == pytest.approx(dot / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y)))
        assert d == pytest.approx(-math.dist(x, y))
    # no direction, no similarity
    assert pair_scores(torch.zeros(1, 3), torch.ones(1, 3)).tolist() == [0.0]


# --- identification --------------------------------------------------------------------------------------------------


def test_identification_equals_a_slow_sort():
    g = torch.Generator().manual_seed(5)
    gallery, ids = torch.randn(60, 6, generator=g), torch.arange(60) % 20
    probe, truth = torch.randn(30, 6, generator=g), torch.randint(20, (30,), generator=g)
    rates = identification_rate(gallery, ids, probe, truth, ranks=(1, 5, 20, 60))
    places = []
    for x, y in zip(probe.double(), truth):
        similarity = torch.nn.functional.cosine_similarity(x[None], gallery.double())
        places.append(next(i for i, j in enumerate(similarity.argsort(descending=True), start=1) if ids[j] == y))
    assert rates == {k: pytest.approx(sum(p <= k for p in places) / 30) for k in (1, 5, 20, 60)}
    assert list(rates.values()) == sorted(rates.values()) and rates[60] == 1


def test_identity_features_are_found_at_rank_one_and_ties_count_against_the_probe():
    eye = torch.eye(8)
    assert identification_rate(eye, torch.arange(8), 3 * eye, torch.arange(8), 1) == {1: 1.0}
    assert identification_rate(torch.ones(8, 3), torch.arange(8), torch.ones(8, 3), torch.arange(8),
                               (1, 7, 8)) == {1: 0.0, 7: 0.0, 8: 1.0}


def test_distractors_only_hurt():
    g = torch.Generator().manual_seed(6)
    gallery, probe = torch.randn(20, 4, generator=g), torch.randn(20, 4, generator=g)
    more, ids = torch.cat([gallery,
                           torch.randn(200, 4, generator=g)]), torch.cat([torch.arange(20), torch.arange(100, 300)])
    plain = identification_rate(gallery, torch.arange(20), probe, torch.arange(20), (1, 5))
    crowded = identification_rate(more, ids, probe, torch.arange(20), (1, 5))
    assert all(crowded[k] <= plain[k] for k in plain)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call, words", [
    (lambda s, y: roc(s[:, None], y), ["(80, 1)", "expected (N,)"]),
    (lambda s, y: roc(s, y[:-1]), ["(79,)", "80 scores"]),
    (lambda s, y: roc(s, y * 2), ["`same`", "boolean"]),
    (lambda s, y: roc(s / (s != s[0]), y), ["1 of 80 rows of scores", "finite"]),
    (lambda s, y: roc(s, y | True), ["all 80 pairs are genuine", "both kinds"]),
    (lambda s, y: equal_error_rate(s, y & False), ["all 80 pairs are impostors"]),
    (lambda s, y: tar_at_far(s, y, (0.1, 1.5)), ["1.5", "[0, 1]"]),
    (lambda s, y: histogram_intersection(2 * s / s.abs().max(), y), ["in 40 bins", "expected cosines, from -1 to 1"]),
    (lambda s, y: histogram_intersection(s / s.abs().max(), y, bins=0), ["bins is 0", "of at least 1"]),
    (lambda s, y: similarity_margin(s[:0], y[:0]), ["expected"]),
    (lambda s, y: tar_at_far(s, y, ()), ["[]"]),
    (lambda s, y: judge_folds(s, y, 1), ["1 folds"]),
    (lambda s, y: judge_folds(s[:6], y[:6] * 0 + torch.tensor([1, 0, 1, 0, 0, 0]), 3),
     ["3 folds", "2 genuine", "4 impostor"]),
    (lambda s, y: kfold_accuracy(s[:, None], s[:-1, None], y), ["(80, 1)", "(79, 1)"]),
    (lambda s, y: kfold_accuracy(s[:, None], s[:, None], y, metric="dot"), ["'dot'"]),
    (lambda s, y: identification_rate(s[:4, None], [0, 1, 2, 3], s[:3, None], [0, 9, 8]),
     ["2 of 3 probes", "gallery does not hold"]),
    (lambda s, y: identification_rate(s[:4, None], [0, 1, 2], s[:3, None], [0, 1, 2]),
     ["gallery labels", "(3,)", "(4,)"]),
])
def test_bad_input_says_what_is_expected(call, words):
    with pytest.raises(ValueError) as error:
        call(*draw(0))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


# --- templates, identities, strangers
# ----------------------------------------------------------------------------------


def test_labels_of_the_held_out_fold_do_not_move_its_threshold():
    scores, same = draw(11, n=200, levels=6)
    fold = torch.arange(200) // 20
    before = judge_folds(scores, same, fold)
    for k in (0, 4, 9):
        after = judge_folds(scores, same ^ (fold == k), fold)
        assert after.threshold[k] == before.threshold[k]
        assert after.accuracy[k] == pytest.approx(1 - before.accuracy[k].item())
    assert judge_folds(LFW.double(), LFW, torch.arange(6000) // 600).accuracy.tolist() == [1.0] * 10


def test_scores_without_information_and_perfect_ones():
    noise = torch.randn(6000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert judge_folds(noise, LFW).accuracy.mean() == pytest.approx(0.5, abs=0.03)
    assert judge_folds(LFW.double(), LFW).accuracy.mean() == 1


def test_tar_at_far_of_fourteen_scores():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.1] + [0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, -0.1, -0.2, -0.3])
    rates = tar_at_far(scores, torch.arange(14) < 4, (0, 0.1, 0.5, 0.6))
    assert rates == {0.0: 0.75, 0.1: 0.75, 0.5: 0.75, 0.6: 1.0}


def test_templates_are_the_unit_means_of_unit_vectors():
    g = torch.Generator().manual_seed(7)
    x, ids = torch.randn(30, 5, generator=g) * torch.rand(30, 1, generator=g), torch.randint(4, (30,), generator=g) * 10
    rows, known = templates(x, ids)
    assert known.tolist() == sorted(set(ids.tolist()))
    for row, c in zip(rows, known):
        total = sum(v.double() / v.double().norm() for v in x[ids == c])
        assert torch.allclose(row, total / total.norm())


def slow_identity_rank(similarity, ids, truth):
    best = {c: max(s for s, i in zip(similarity, ids) if i == c) for c in set(ids)}
    return (1 + sum(c != truth and s >= best[truth] for c, s in best.items())) if truth in best else None


@pytest.mark.parametrize("chunk", [4096, 7])
def test_ranks_of_identities_equal_a_slow_count(chunk):
    g = torch.Generator().manual_seed(8)
    gallery, ids = torch.randn(50, 4, generator=g), torch.randint(12, (50,), generator=g)
    probe, truth = torch.randn(20, 4, generator=g), torch.randint(14, (20,), generator=g)
    ranks = identity_ranks(gallery, ids, probe, truth, chunk)
    for x, y, rank, own, other in zip(probe.double(), truth.tolist(), *ranks):
        similarity = torch.nn.functional.cosine_similarity(x[None], gallery.double()).tolist()
        expected = slow_identity_rank(similarity, ids.tolist(), y)
        assert rank == (NEVER if expected is None else expected)
        assert other == pytest.approx(max(s for s, i in zip(similarity, ids.tolist()) if i != y))
        assert own == pytest.approx(max((s for s, i in zip(similarity, ids.tolist()) if i == y), default=-math.inf))


def test_identities_rank_no_worse_than_images():
    g = torch.Generator().manual_seed(9)
    gallery, probe, ids = torch.randn(60, 5, generator=g), torch.randn(15, 5, generator=g), torch.arange(60) % 15
    by_identity = identity_ranks(gallery, ids, probe, torch.arange(15)).rank
    by_image = identification_rate(gallery, ids, probe, torch.arange(15), range(1, 61))
    assert all((by_identity <= k).double().mean() >= by_image[k] for k in by_image) and by_identity.max() <= 15


def slow_open_set(ranks, f, k):
    """The best TPIR over every threshold that keeps FPIR within f."""
    mated = [(r, s) for r, s in zip(ranks.rank.tolist(), ranks.own.tolist()) if r != NEVER]
    strangers = [s for r, s in zip(ranks.rank.tolist(), ranks.other.tolist()) if r == NEVER]
    points = sorted([*strangers, *(s for _, s in mated)])
    allowed = [t for t in [-math.inf, *((a + b) / 2 for a, b in zip(points, points[1:])), math.inf]
               if sum(s >= t for s in strangers) / len(strangers) <= f]
    return max(sum(r <= k and s >= t for r, s in mated) / len(mated) for t in allowed)


@pytest.mark.parametrize("k", [1, 3])
def test_open_set_rate_equals_a_search_over_thresholds(k):
    g = torch.Generator().manual_seed(10)
    centres = torch.randn(20, 6, generator=g)
    ids, truth = torch.arange(12).repeat_interleave(2), torch.randint(20, (60,), generator=g)
    gallery, probe = (centres[y] + 0.7 * torch.randn(len(y), 6, generator=g) for y in (ids, truth))
    ranks, fpirs = identity_ranks(gallery, ids, probe, truth), (0, 0.05, 0.1, 0.3, 0.5, 1)
    rates = open_set_rate(gallery, ids, probe, truth, fpirs, rank=k)
    assert list(rates.values()) == [pytest.approx(slow_open_set(ranks, f, k)) for f in fpirs]
    assert list(rates.values()) == sorted(rates.values())
    assert rates[0.0] < rates[1.0] == (ranks.rank[ranks.rank != NEVER] <= k).double().mean().item()


@pytest.mark.parametrize("call, words", [
    (lambda x, y: open_set_rate(x, y, x, y), ["12 of 12 probes", "strangers"]),
    (lambda x, y: open_set_rate(x, y, x, y + 50), ["0 of 12 probes"]),
    (lambda x, y: open_set_rate(x, y, x, y, 1.5), ["1.5", "[0, 1]"]),
    (lambda x, y: identity_ranks(x, y[:-1], x, y), ["gallery labels", "(11,)"]),
    (lambda x, y: identity_ranks(x, y, x[:, :2], y), ["2 features", "same number"]),
    (lambda x, y: templates(x / 0, y), ["NaN or infinity"]),
    (lambda x, y: judge_folds(x[:, 0], y > 5, torch.zeros(12, dtype=torch.int64)), ["at least two folds"]),
    (lambda x, y: judge_folds(x[:, 0], y > 5, torch.arange(11)), ["(11,)", "(12,)"]),
])
def test_bad_input_of_identification(call, words):
    with pytest.raises(ValueError) as error:
        call(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


# ---- what papers print
# ----------------------------------------------------------------------------------------------------------------------

def test_the_first_picture_of_each_person_is_the_gallery():
    labels = torch.tensor([0, 0, 1, 2, 1, 3])
    features = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, 1], [0, 0.2, 0.9], [0, 0, 1.1]])
    # 4 is nearer to 2 and to the distractor 3
    assert by_first_picture(features, labels, (1, 3, 4)) == {"rank1": 50.0, "rank3": 100.0, "rank4": 100.0}


def test_verification_is_what_the_measures_say_one_by_one():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat_interleave(4)
    x = torch.randn(10, 6, generator=g)[labels] + torch.randn(40, 6, generator=g)
    first, second = torch.randint(40, (300,), generator=g), torch.randint(40, (300,), generator=g)
    pairs = SimpleNamespace(first=first, second=second, same=labels[first] == labels[second], folds=3)
    scores, same = pair_scores(x[first], x[second]), pairs.same
    found = verification(x, pairs, (0.1, 0.01))
    assert found["verification_accuracy"] == pytest.approx(100 * float(judge_folds(scores, same, 3).accuracy.mean()))
    assert found["auc"] == pytest.approx(100 * sk.roc_auc_score(same, scores))
    assert found["equal_error_rate"] == pytest.approx(100 * equal_error_rate(scores, same))
    assert [found["tar_at_far_0.1"],
            found["tar_at_far_0.01"]] == [100 * rate for rate in tar_at_far(scores, same, (0.1, 0.01)).values()]
    whole = recognition(x.half(), labels.to(torch.int16), pairs)
    assert list(whole) == ["verification_accuracy", "auc", "equal_error_rate", "tar_at_far_0.1", "rank1", "rank5"]


@pytest.mark.parametrize("strangers", [0, 9])
def test_a_search_is_what_the_measures_say_one_by_one(strangers):
    g = torch.Generator().manual_seed(2)
    centres = torch.randn(30, 6, generator=g)
    ids, truth = torch.cat([torch.arange(12).repeat_interleave(3),
                            torch.arange(12, 25)]), torch.cat([torch.arange(12).repeat(4),
                                                               25 + torch.arange(strangers) % 5])
    gallery, probe = (centres[y] + torch.randn(len(y), 6, generator=g) for y in (ids, truth))
    found = search(gallery, ids, probe, truth, ranks=(1, 3), fpirs=(0.3, 0.1))
    rank, mated = identity_ranks(gallery, ids, probe, truth).rank, truth < 25
    assert [found["rank1"],
            found["rank3"]] == pytest.approx([100 * float((rank[mated] <= k).float().mean()) for k in (1, 3)])
    assert found["rank1"] < found["rank3"]
    precision = mean_average_precision(probe[mated], truth[mated], gallery, ids)
    assert found["mean_average_precision"] == pytest.approx(100 * precision)
    if strangers:
        expected = open_set_rate(gallery, ids, probe, truth, (0.3, 0.1), rank=20)
        assert [found["tpir20_at_fpir_0.3"],
                found["tpir20_at_fpir_0.1"]] == pytest.approx([100 * rate for rate in expected.values()])
    assert len(found) == 3 + 2 * bool(strangers) and all(0 <= value <= 100 for value in found.values())


@pytest.mark.parametrize("call, words", [
    (lambda: verification(torch.eye(3),
                          SimpleNamespace(first=torch.tensor([0, 3]), second=torch.tensor([1, 1]),
                                          same=torch.tensor([True, False]), folds=2)), "0 to 3; expected 0..2"),
    (lambda: by_first_picture(torch.eye(3), torch.arange(3)), "expected somebody with two or more"),
    (lambda: by_first_picture(torch.eye(3), torch.arange(2)), "expected whole numbers of shape"),
    (lambda: search(torch.eye(3), torch.arange(3), torch.eye(3), 5 + torch.arange(3)), "none of the 3 probes"),
])
def test_bad_tables_are_refused_in_one_line(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)
