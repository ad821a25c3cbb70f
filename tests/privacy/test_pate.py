"""Aggregation of votes: published vectors of costs, exact coins, soundness in the one direction that is proven, and labels drawn once."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from kdnotes.checks import refused
from kdnotes.privacy.accounting import PATE_ORDERS, Ledger, to_epsilon
from kdnotes.privacy.pate import (
    Answers,
    ConfidentGNMax,
    GNMax,
    InteractiveGNMax,
    LNMax,
    Oracle,
    basic_composition,
    check_votes,
    gnmax_local_sensitivity,
    gnmax_log_q,
    gnmax_log_q0,
    gnmax_rdp,
    lnmax_log_q,
    lnmax_rdp,
    partition,
    release_cost,
    sanitised_epsilon,
    smooth_sensitivity,
    smoothness_conditions,
    strong_composition,
    threshold_local_sensitivity,
    threshold_log_p,
    threshold_rdp,
    vote_counts,
)

quick = settings(max_examples=30)
DELTA = 1e-5
U, A, B, C = VOTES = torch.tensor([[250, 0, 0, 0, 0, 0, 0, 0, 0, 0], [200, 30, 20, 0, 0, 0, 0, 0, 0, 0],
                                   [130, 60, 30, 10, 10, 5, 3, 2, 0, 0], [100, 90, 20, 10, 10, 5, 5, 5, 3, 2]])
UP_TO_8, UP_TO_32 = np.arange(2.0, 10), np.arange(2.0, 34)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def classic(rdp, orders=PATE_ORDERS, delta=DELTA):
    return to_epsilon(orders, rdp, delta, "classic")


def test_lnmax_vectors():
    np.testing.assert_allclose(np.exp(lnmax_log_q(VOTES, 0.05)), [1.215820597e-4, 1.826879955e-3, 8.073460131e-2, 0.5127100187], rtol=1e-9)
    alpha = lnmax_rdp(VOTES, 0.05, [2.0, 5.0, 9.0]) * [1, 4, 8]
    expected = [[2.557363e-5, 1.1094013e-4, 2.5127328e-4], [3.8423245e-4, 1.6660246e-3, 3.7702094e-3], [0.01, 7.182752e-2, 0.15681878], [0.01, 0.1, 0.36]]
    np.testing.assert_allclose(alpha, expected, rtol=2e-7)


def test_gnmax_vectors():
    np.testing.assert_allclose(gnmax_log_q(VOTES, 40.0), [-10.0192282943, -5.6599459785, -1.4282251443, -0.1689894072], rtol=3e-10)
    orders = np.array([2.0, 8, 20, 50])
    expected = [[1.5273573e-5, 2.0589133e-5, 5.3213178e-5, 2.0832738e-3], [8.7965783e-4, 1.0856417e-3, 1.9955508e-3, 1.6448154e-2], orders / 1600, orders / 1600]
    np.testing.assert_allclose(gnmax_rdp(VOTES, 40.0, orders), expected, rtol=5e-8)


@pytest.mark.parametrize(("mechanism", "orders", "expected"), [
    (LNMax(0.05), UP_TO_8, [(1.4422566, 9), (1.4862433, 9), (3.3993504, 9)]), (LNMax(0.05), UP_TO_32, [(0.36998225, 33), (0.50974416, 33), (3.0928147, 15)]),
    (GNMax(40.0), PATE_ORDERS, [(0.35131658, 40), (0.75558586, 25.5), (1.75905929, 14.5)]),
    (ConfidentGNMax(200, 150, 40), PATE_ORDERS, [(0.41922949, 40.5), (0.65851288, 28.5), (1.03444910, 24)])])
def test_a_hundred_queries(mechanism, orders, expected):
    for counts, (value, order) in zip(VOTES, expected):
        found = classic(mechanism.rdp(counts.expand(100, 10), orders).sum(0), orders)
        assert found.epsilon == pytest.approx(value, rel=3e-8) and found.order == pytest.approx(order)


def test_expected_number_of_answers():
    p = np.exp(threshold_log_p(np.array([250, 200, 130]), 200, 150))
    np.testing.assert_allclose(100 * p, [63.056, 50.0, 32.037], atol=5e-4)


@pytest.mark.parametrize(("queries", "delta", "value", "l"), [(100, 1e-5, 5.3025851, 5), (1000, 1e-5, 20.756463, 2), (500, 1e-6, 14.407755, 2), (1000, 1e-6, 21.907755, 2)])
def test_data_independent_lnmax(queries, delta, value, l):
    found = classic(LNMax(0.05).rdp_independent(UP_TO_32, queries), UP_TO_32, delta)
    assert found.epsilon == pytest.approx(value, rel=5e-8) and found.order == l + 1
    assert basic_composition(0.1, queries) == pytest.approx(0.1 * queries)


def test_older_compositions():
    assert strong_composition(0.1, 100, DELTA) == pytest.approx(5.8502351, abs=5e-8)
    assert LNMax.of_budget(0.1) == LNMax(0.05) and LNMax(0.05).epsilon0 == 0.1
    small = LNMax.of_budget(0.4).rdp_independent(PATE_ORDERS, 50)
    assert classic(small, delta=1e-3).epsilon == pytest.approx(14.605, abs=5e-4)
    assert classic(LNMax(0.2).rdp_independent(UP_TO_32, 50), UP_TO_32, 1e-3).epsilon == pytest.approx(14.908, abs=5e-4)


@pytest.mark.parametrize(("mechanism", "asked", "answered", "delta", "value"), [(GNMax(40.0), 100, None, 1e-5, 1.7590351), (GNMax(40.0), 286, None, 1e-5, 3.0478512), (GNMax(40.0), 1000, None, 1e-5, 5.9899151),
                                                                                (ConfidentGNMax(200, 150, 40), 640, 286, 1e-5, 3.1740290), (ConfidentGNMax(300, 200, 40), 8500, 3098, 1e-6, 12.6666574)])
def test_data_independent_gaussian(mechanism, asked, answered, delta, value):
    found = classic(mechanism.rdp_independent(PATE_ORDERS, asked, answered), delta=delta).epsilon
    assert value <= found * (1 + 1e-7) and found <= value * 1.002


def test_crossover():
    expected = {1.5: (2.9500, 2.6757, 427.112), 15: (4.8745, 4.0463, 4.7606, 275.561), 1500: (9.7437, 8.8775, 6.1705, 4.0599), 15000: (12.1558, 11.2984, 8.6163, 6.4327)}
    for sigma, values in expected.items():
        for order, value in zip((1.1, 2.5, 32, 250), values):
            assert -gnmax_log_q0(sigma, order) == pytest.approx(value, abs=1.5e-3)
    assert gnmax_log_q0(40.0, 20.0) == pytest.approx(-3.1568730, abs=1e-7)


def test_published_smooth_sensitivity():
    np.testing.assert_allclose(gnmax_local_sensitivity(torch.tensor([10, 0, 0]), 0.5, 1.5), [3.13503646e-17, 1.60178280e-8, 5.90681786e-3, *[5.99981308] * 7], rtol=1e-8)
    found = gnmax_local_sensitivity(torch.tensor([1000, 500, 300, 200, 0]), 250.0, 10.0)
    np.testing.assert_allclose(found, [0.0] * 298 + [2.77693450548e-7, 2.10853979548e-6] + [2.73113623988e-6] * 1700, rtol=1e-8, atol=1e-30)
    expected = [.160212079, .207021132, .207021132, .193127860, .168302106, .142180452, .116054002, .0901543247, .0645775697, .0394153241, .0147826870, 1.48454129e-4]
    np.testing.assert_allclose(threshold_local_sensitivity(20, 30, 2, 2, 10), expected + [0.0] * 18, rtol=3e-8, atol=1e-15)


def test_smooth_sensitivity_and_its_price():
    local = gnmax_local_sensitivity(A, 40.0, 20.0)
    beta = 0.02
    slow = max(math.exp(-beta * d) * x for d, x in enumerate(local))
    assert smooth_sensitivity(local, beta) == pytest.approx(slow, rel=1e-12)
    assert local[0] <= smooth_sensitivity(local, beta) <= local.max()
    by_hand = 20 * math.exp(0.04) / 9 + (-0.5 * math.log(1 - 0.8) + 0.4) / 19
    assert release_cost(20, 0.02, 3.0) == pytest.approx(by_hand, rel=1e-12)
    assert "expected less than 0.025" in refused(release_cost, 20, 0.025, 3.0)
    assert smoothness_conditions(20.0, 25.0, 10)[1] is False and smoothness_conditions(30.0, 25.0, 10) == (True, True)


def test_local_sensitivity_is_how_far_a_vote_moves_the_cost():
    """At distance 0, against every neighbour of the votes that moves one vote, by the data-dependent bound itself."""
    for counts in (A, U, torch.tensor([240, 6, 4, 0, 0, 0, 0, 0, 0, 0])):
        own = gnmax_rdp(counts[None], 40.0, [20.0])[0, 0]
        for i in range(10):
            for j in range(10):
                other = counts.clone()
                other[i] -= 1
                other[j] += 1
                if other.min() >= 0:
                    assert abs(gnmax_rdp(other[None], 40.0, [20.0])[0, 0] - own) <= gnmax_local_sensitivity(counts, 40.0, 20.0)[0] * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize("mechanism", [GNMax(40.0), ConfidentGNMax(200, 150, 40)])
def test_a_sanitised_epsilon(mechanism):
    votes = VOTES[[0] * 200 + [1] * 100 + [2] * 20]
    given = {"order": 20.0, "beta": 0.02, "sigma_ss": 30.0}
    found = sanitised_epsilon(votes, mechanism, DELTA, generator(), **given)
    again = sanitised_epsilon(votes[torch.randperm(320, generator=generator(3))], mechanism, DELTA, generator(), **given)
    assert found.published == pytest.approx(again.published, rel=1e-9) and found.public_parameters
    bare = float(mechanism.rdp(votes, [20.0]).sum()) + math.log(1 / DELTA) / 19
    assert found.epsilon == pytest.approx(bare + release_cost(20, 0.02, 30.0), rel=1e-12)
    many = [sanitised_epsilon(votes, mechanism, DELTA, generator(s), **given).published for s in range(60)]
    assert np.mean(many) == pytest.approx(found.epsilon, abs=5 * found.std / math.sqrt(60)) and np.std(many) == pytest.approx(found.std, rel=0.35)
    chosen = sanitised_epsilon(votes, mechanism, DELTA, generator())
    assert not chosen.public_parameters and chosen.cost + 2 * chosen.std <= found.cost + 2 * found.std + 1
    assert "C5 and C6" in refused(sanitised_epsilon, votes, GNMax(20.0), DELTA, generator(), order=25.0)


def coin(gap, scale, laplace):
    """Log probabilities of the answers of two classes at `gap`: exactly."""
    if not laplace:
        return special.log_ndtr(np.array([gap, -gap]) / (math.sqrt(2) * scale))
    x = abs(gap) / scale
    wrong = (2 + x) * math.exp(-x) / 4
    return np.log([1 - wrong, wrong] if gap >= 0 else [wrong, 1 - wrong])


def divergence(a, b, order):
    return special.logsumexp(order * a + (1 - order) * b) / (order - 1)


def votes_of(gaps, n):
    return torch.tensor([[(n + g) // 2, (n - g) // 2] for g in gaps])


@pytest.mark.parametrize("laplace", [False, True])
def test_soundness_in_the_direction_that_is_proven(laplace):
    """D(M(gap) || M(gap +- 2)) is never above the bound at the gap; the reverse is not covered by it, and does exceed it."""
    gaps, n = np.arange(0, 200, 4), 250
    orders, reverse_fails = (1.5, 2.0, 4.0, 8.0, 20.0), 0
    for scale in (5.0, 10.0, 40.0, 100.0):
        rdp = (lnmax_rdp(votes_of(gaps, n), 1 / scale, orders) if laplace else gnmax_rdp(votes_of(gaps, n), scale, orders))
        for i, gap in enumerate(gaps):
            for move in (-2, 2):
                here, there = coin(gap, scale, laplace), coin(gap + move, scale, laplace)
                for j, order in enumerate(orders):
                    assert divergence(here, there, order) <= rdp[i, j] * (1 + 1e-9) + 1e-15, (scale, gap, move, order)
                    reverse_fails += divergence(there, here, order) > rdp[i, j] * (1 + 1e-9)
    assert reverse_fails > 0


def test_the_numbers_of_one_pair():
    bound = gnmax_rdp(votes_of([140], 250), 40.0, [8.0])[0, 0]
    assert bound == pytest.approx(1.9153486e-3, rel=1e-7)
    values = [divergence(coin(140, 40, False), coin(140 + d, 40, False), 8) for d in (-2, 2)]
    assert values == pytest.approx([2.170036e-4, 3.289142e-4], rel=1e-6)
    assert divergence(coin(138, 40, False), coin(140, 40, False), 8) == pytest.approx(3.539056e-4, rel=1e-6)
    assert divergence(coin(58, 10, False), coin(60, 10, False), 8) == pytest.approx(2.1385952e-4, rel=1e-6)      # above the bound at 60:
    assert gnmax_rdp(votes_of([60], 250), 10.0, [8.0])[0, 0] == pytest.approx(2.0040995e-4, rel=1e-6)


def test_the_2017_form_would_print_less_than_the_truth():
    """Above 1/(e^(2 gamma) + 1) the formula must not be used, even where q is below one half."""
    votes = torch.tensor([[5, 5]])
    assert lnmax_log_q(votes, 0.5)[0] == pytest.approx(math.log(0.5))
    assert lnmax_rdp(votes, 0.5, [5.0])[0, 0] == pytest.approx(min(2 * 0.25 * 5, 1.0))
    almost = torch.tensor([[51, 49]])
    q = math.exp(lnmax_log_q(almost, 0.5)[0])
    assert 1 / (math.e + 1) < q < 0.5
    assert 4 * lnmax_rdp(almost, 0.5, [5.0])[0, 0] == pytest.approx(4.0)


@quick
@given(st.integers(0, 10_000), st.floats(0.01, 1.0), st.floats(3.0, 200.0))
def test_data_dependent_is_never_dearer(seed, gamma, sigma):
    votes = torch.from_numpy(np.random.default_rng(seed).multinomial(100, np.random.default_rng(seed).dirichlet(np.ones(4) * 0.3), size=6))
    for mechanism in (LNMax(gamma), GNMax(sigma), ConfidentGNMax(60, sigma, sigma)):
        rdp, free = mechanism.rdp(votes, PATE_ORDERS), mechanism.rdp_independent(PATE_ORDERS)
        assert rdp.shape == (6, len(PATE_ORDERS)) and (rdp >= 0).all() and (rdp <= free * (1 + 1e-12)).all()
        perm = votes[:, torch.randperm(4, generator=generator(seed))]
        np.testing.assert_array_equal(mechanism.rdp(perm, PATE_ORDERS), rdp)


@quick
@given(st.integers(0, 10_000))
def test_agreement_is_cheaper(seed):
    """Moving a vote from the runner-up to the favourite never makes a query dearer."""
    votes = torch.from_numpy(np.random.default_rng(seed).multinomial(100, [0.6, 0.3, 0.1])).sort(descending=True).values
    more = votes.clone()
    more[0] += 1
    more[1] -= 1
    for mechanism in (LNMax(0.1), GNMax(20.0)):
        before, after = (mechanism.rdp(v[None], [2.0, 8.0, 20.0]) for v in (votes, more))
        assert (after <= before * (1 + 1e-9) + 1e-15).all()


def test_rows_are_independent_of_each_other():
    votes = VOTES[[0, 1, 2, 3, 1, 0, 2]]
    for mechanism in (LNMax(0.05), GNMax(40.0), ConfidentGNMax(200, 150, 40)):
        whole = mechanism.rdp(votes, PATE_ORDERS)
        for i in range(7):
            np.testing.assert_allclose(mechanism.rdp(votes[i:i + 1], PATE_ORDERS)[0], whole[i], rtol=1e-12)
        assert mechanism.rdp(votes[:0], PATE_ORDERS).shape == (0, len(PATE_ORDERS))


def test_extreme_agreement_and_orders():
    votes = torch.tensor([[10**6, 0, 0], [5 * 10**5, 5 * 10**5, 0]])
    for rdp in (lnmax_rdp(votes, 5.0, [1.01, 2.0, 1e4]), gnmax_rdp(votes, 1.0, [1.01, 2.0, 1e4])):
        assert np.isfinite(rdp).all() and (rdp[0] <= rdp[1]).all() and rdp[0, 0] < 1e-12


@pytest.mark.parametrize(("mechanism", "probability"), [(LNMax(0.05), 0.2759096), (GNMax(40.0), 0.3618368)])
def test_flips_of_two_classes(mechanism, probability):
    votes = torch.tensor([[60, 40]]).expand(400_000, 2)
    wrong = mechanism.draw(votes, generator()).labels.double().mean()
    assert float(wrong) == pytest.approx(probability, abs=4 * math.sqrt(0.25 / 400_000))
    exact = (2 + 20 * 0.05) / 4 * math.exp(-20 * 0.05) if isinstance(mechanism, LNMax) else stats.norm.cdf(-20 / (40 * math.sqrt(2)))
    assert exact == pytest.approx(probability, abs=5e-8)


def test_the_noise_has_the_scale_and_not_its_inverse():
    (laplace,) = LNMax(0.05).noise(20_000, 5, generator())
    assert float(laplace.abs().mean()) == pytest.approx(20, rel=0.02) and float(laplace.mean()) == pytest.approx(0, abs=0.4)
    assert stats.kstest(laplace.flatten().numpy()[:5000], stats.laplace(scale=20).cdf).pvalue > 1e-3
    assert float(GNMax(40.0).noise(20_000, 5, generator())[0].std()) == pytest.approx(40, rel=0.02)
    one, each = ConfidentGNMax(1, 150, 40).noise(20_000, 5, generator())
    assert float(one.std()) == pytest.approx(150, rel=0.03) and float(each.std()) == pytest.approx(40, rel=0.02)


@pytest.mark.parametrize("mechanism", [LNMax(0.05), GNMax(40.0), ConfidentGNMax(0, 1, 40)])
def test_constants_and_permutations(mechanism):
    noise = mechanism.noise(4, 10, generator(2))
    labels = mechanism.decide(VOTES, noise).labels
    assert torch.equal(mechanism.decide(VOTES + 7, noise).labels, labels)
    order = torch.randperm(10, generator=generator(1))
    moved = tuple(x[:, order] if x.ndim == 2 else x for x in noise)
    assert torch.equal(order[mechanism.decide(VOTES[:, order], moved).labels], labels)


def test_limits_of_the_noise():
    many = B.expand(2000, 10)
    for mechanism in (LNMax(math.inf), LNMax(1e6), GNMax(0.0), ConfidentGNMax(0, 0, 0)):
        assert (mechanism.draw(many, generator()).labels == 0).all()
    for mechanism in (LNMax(1e-9), GNMax(1e9)):
        often = torch.bincount(mechanism.draw(many, generator()).labels, minlength=10)
        assert often.min() > 140 and often.max() < 270
    assert np.isinf(LNMax(math.inf).rdp(VOTES, [2.0])).all() and np.isinf(GNMax(0.0).rdp_independent([2.0])).all()
    assert np.isinf(ConfidentGNMax(1, 0, 40).rdp(VOTES, [2.0])).all()


def test_confident_drops_what_is_divided():
    answers = ConfidentGNMax(180, 1e-3, 1e-3).draw(VOTES, generator())
    assert answers.labels.tolist() == [0, 0, -1, -1] and answers.answered.tolist() == [True, True, False, False]
    mechanism = ConfidentGNMax(200, 150, 40)
    both = mechanism.rdp(VOTES, [8.0], torch.tensor([True, False, True, False]))
    first = threshold_rdp(VOTES.amax(1).numpy(), 200, 150, [8.0])
    np.testing.assert_allclose(both, first + np.array([1, 0, 1, 0])[:, None] * gnmax_rdp(VOTES, 40.0, [8.0]), rtol=1e-13)
    assert mechanism.rdp_independent([8.0], 10, 0) == pytest.approx(10 * 8 / (2 * 150**2))


def test_interactive_asks_what_the_student_does_not_know():
    student = torch.full((4, 10), 0.005).double()
    student[0, 0], student[1, 1], student[2, 0], student[3, 5] = (0.955,) * 4
    mechanism = InteractiveGNMax(100, 1e-6, 1e-6, confidence=0.9)
    assert mechanism.top(VOTES, student).tolist() == [math.floor(250 - 238.75 + 0.5), math.floor(200 - 1.25 + 0.5), math.floor(60 - 1.25 + 0.5), math.floor(100 - 1.25 + 0.5)]
    answers = mechanism.draw(VOTES, generator(), student)
    assert answers.answered.tolist() == [False, True, False, False] and answers.labels.tolist() == [0, 0, 0, 5]
    unsure = InteractiveGNMax(100, 1e-6, 1e-6, confidence=0.99).draw(VOTES, generator(), student)
    assert unsure.labels.tolist() == [-1, 0, -1, -1]
    rdp = mechanism.rdp(VOTES, [8.0], answers.answered, student)
    np.testing.assert_allclose(rdp, threshold_rdp(mechanism.top(VOTES, student).numpy(), 100, 1e-6, [8.0])
                               + answers.answered.numpy()[:, None] * gnmax_rdp(VOTES, 1e-6, [8.0]))


@quick
@given(st.integers(0, 10_000))
def test_one_vote_moves_the_interactive_top_by_at_most_one(seed):
    rng = np.random.default_rng(seed)
    votes = torch.from_numpy(rng.multinomial(20, rng.dirichlet(np.ones(3)), size=1)) + torch.tensor([[1, 0, 0]])
    student = torch.from_numpy(rng.choice([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [0.1, 0.2, 0.7]], size=1))
    moved = votes - torch.tensor([[1, 0, 0]]) + torch.eye(3, dtype=torch.int64)[rng.integers(3)]
    top = [InteractiveGNMax(1, 1, 1).top(v, student).item() for v in (votes, moved)]
    assert abs(top[0] - top[1]) <= 1


def test_labels_are_drawn_once():
    votes = VOTES.repeat(30, 1)
    oracle = Oracle(votes, ConfidentGNMax(200, 150, 40), seed=4)
    labels = oracle.ask(torch.arange(60))
    spent = oracle.ledger.epsilon(DELTA)
    assert torch.equal(oracle.ask(torch.arange(60)), labels) and oracle.ledger.epsilon(DELTA) == spent
    again = Oracle(votes, ConfidentGNMax(200, 150, 40), seed=4)              # in another order, in parts, some twice
    for part in (torch.arange(59, 29, -1), torch.arange(40), torch.tensor([3, 3, 59])):
        assert torch.equal(again.ask(part), labels[part])
    assert again.ledger.epsilon(DELTA) == spent == to_epsilon(PATE_ORDERS, ConfidentGNMax(200, 150, 40).rdp_independent(PATE_ORDERS, 60, int(oracle.answered.sum())), DELTA).epsilon
    twice = Oracle(votes, GNMax(40.0))
    twice.ask([5, 5, 5])
    assert [entry.times for entry in twice.ledger.entries] == [1]


def test_a_cap_on_answers():
    oracle = Oracle(VOTES.repeat(30, 1), GNMax(40.0), cap=7)
    labels = oracle.ask(torch.arange(120))
    assert (labels[:7] >= 0).all() and (labels[7:] == -1).all() and int(oracle.asked.sum()) == 7
    assert [entry.times for entry in oracle.ledger.entries] == [7]


def test_the_oracle_survives_a_checkpoint():
    votes, file = VOTES.repeat(10, 1), io.BytesIO()
    oracle = Oracle(votes, LNMax(0.05), seed=1)
    first = oracle.ask(torch.arange(20))
    torch.save(oracle.state_dict(), file)
    file.seek(0)
    again = Oracle(votes, LNMax(0.05), seed=99)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(again.ask(torch.arange(20)), first) and again.ledger == oracle.ledger
    assert torch.equal(again.ask(torch.arange(40)), oracle.ask(torch.arange(40))) and again.ledger == oracle.ledger


def test_the_dependent_cost_is_marked():
    oracle = Oracle(VOTES[[0] * 100], GNMax(40.0))
    oracle.ask(torch.arange(100))
    release = oracle.dependent()
    assert release.data_dependent and classic(np.array(release.rdp)).epsilon == pytest.approx(0.35131658, rel=1e-7)
    ledger = Ledger(PATE_ORDERS)
    ledger.spend(release)
    assert "not sanitised" in ledger.table(DELTA)["computed from"].iloc[0] and "not sanitised" in str(ledger)
    assert oracle.ledger.epsilon(DELTA, "gaussian") == pytest.approx(1.3564674, abs=1e-7)       # whatever the votes, exactly


def test_the_dependent_cost_bounds_one_direction_and_what_holds_is_the_cost_at_any_votes():
    sure = lambda gap: np.array([special.log_ndtr(gap / math.sqrt(2) / 10), special.log_ndtr(-gap / math.sqrt(2) / 10)])
    reverse = special.logsumexp(8 * sure(58) - 7 * sure(60)) / 7                                # one vote moves the gap by two
    oracle = Oracle(torch.tensor([[80, 20]]), GNMax(10.0), ledger=Ledger([8.0]))
    oracle.ask(torch.arange(1))
    release = oracle.dependent()
    assert reverse == pytest.approx(2.1385952e-4, rel=1e-6) and release.rdp == pytest.approx([2.0040995e-4], rel=1e-6)
    assert not release.valid and "the reverse can exceed it" in release.why and release.true_rdp == pytest.approx([0.08]) and reverse <= release.true_rdp[0]
    confident = Oracle(VOTES.repeat(20, 1), ConfidentGNMax(200, 150, 40), cap=30)
    confident.ask(torch.arange(80))
    ledger = Ledger(PATE_ORDERS)
    ledger.spend(confident.dependent())
    assert ledger.nominal(DELTA) < ledger.epsilon(DELTA) == confident.ledger.epsilon(DELTA) and not ledger.valid


def test_ledger_of_an_interactive_oracle():
    student = torch.full((4, 10), 0.1)
    oracle = Oracle(VOTES, InteractiveGNMax(50, 1e-6, 1e-6))
    oracle.ask([0, 2], student[[0, 2]])
    assert [entry.release.mechanism for entry in oracle.ledger.entries] == ["threshold", "GNMax"]
    assert oracle.dependent(student).parameters == {"asked": 2, "answered": 2}


def test_partition_and_votes():
    parts = partition(1003, 10, seed=3)
    assert parts.shape == (10, 100) and len(set(parts.flatten().tolist())) == 1000
    assert torch.equal(parts, partition(1003, 10, seed=3)) and not torch.equal(parts, partition(1003, 10, seed=4))
    predictions = torch.randint(4, (9, 30), generator=generator())
    counts = vote_counts(predictions, 4)
    assert (counts.sum(1) == 9).all() and all(counts[q, k] == (predictions[:, q] == k).sum() for q in range(30) for k in range(4))
    moved = predictions.clone()
    moved[3] = (moved[3] + 1) % 4                                 # one teacher changes: at most one vote a query
    assert ((vote_counts(moved, 4) - counts).abs().sum(1) <= 2).all()
    assert check_votes("", np.array([[1.0, 2.0]])).dtype == torch.int64 and len(check_votes("", torch.zeros(0, 3))) == 0
    assert isinstance(GNMax(1.0).draw(counts.to(torch.int16), generator()), Answers)
    assert GNMax(1.0).draw(counts[:0], generator()).labels.shape == (0,)
    assert ConfidentGNMax(1, 1, 1).draw(counts[:0], generator()).labels.shape == (0,)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: partition(5, 6), "empty parts"),
    (lambda: vote_counts(torch.tensor([[0, 3]]), 3), "run from 0 to 3"),
    (lambda: vote_counts(torch.zeros(3, 0, dtype=torch.int64), 3), "neither of them 0"),
    (lambda: GNMax(1.0).draw(torch.tensor([[3, 1], [2, 1]]), generator()), "sum 3; expected counts from 0 on whose sum is 4"),
    (lambda: check_votes("", torch.tensor([[3, 1]]), 5), "whose sum is 5"),
    (lambda: check_votes("", torch.tensor([[5, -1]])), "row 0 of votes is [5, -1]"),
    (lambda: check_votes("", torch.tensor([[0, 0]])), "the number of teachers"),
    (lambda: check_votes("", torch.tensor([[1.5, 2.5]])), "fractions"),
    (lambda: check_votes("", torch.tensor([[math.nan, 2.0]])), "NaN"),
    (lambda: check_votes("", torch.tensor([3, 1])), "expected counts (Q, K)"),
    (lambda: check_votes("", torch.tensor([[3]])), "K >= 2"),
    (lambda: LNMax(0.0), "gamma is 0.0"),
    (lambda: LNMax(-1.0), "gamma is -1.0"),
    (lambda: GNMax(-1.0), "sigma is -1.0"),
    (lambda: ConfidentGNMax(math.inf, 1, 1), "threshold is inf"),
    (lambda: InteractiveGNMax(1, 1, 1, 1.5), "confidence is 1.5"),
    (lambda: InteractiveGNMax(1, 1, 1).draw(VOTES, generator()), "student is None"),
    (lambda: InteractiveGNMax(1, 1, 1).draw(VOTES, generator(), torch.full((4, 5), 0.2)), "expected the same queries"),
    (lambda: Oracle(VOTES, GNMax(1.0)).ask([4]), "run from 4 to 4"),
    (lambda: Oracle(VOTES, GNMax(1.0), cap=0), "cap is 0"),
    (lambda: lnmax_rdp(VOTES, 0.05, [0.5]), "finite numbers above 1"),
    (lambda: threshold_local_sensitivity(31, 30, 2, 2, 10), "top is 31"),
    (lambda: sanitised_epsilon(VOTES, LNMax(0.05), DELTA, generator()), "expected GNMax"),
    (lambda: strong_composition(0.1, 10, 0.0), "delta is 0.0"),
])
def test_bad_input_is_refused_in_one_line(call, words):
    assert words in refused(call)
