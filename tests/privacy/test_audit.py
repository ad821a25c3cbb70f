"""Audits: worked values, coverage over many seeds, and that a lie is caught while a sound mechanism is not accused."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from kdnotes.checks import refused
from kdnotes.privacy.accounting import calibrate, gaussian_epsilon
from kdnotes.privacy.audit import (
    Audit,
    Pad,
    audit_one_run,
    audit_runs,
    classic_bound,
    clopper_pearson,
    draw_audits,
    guess,
    one_run_bound,
    one_run_probability,
    pad_scores,
)
from kdnotes.privacy.pate import GNMax, LNMax
from kdnotes.privacy.sanitize import Budget, Sanitizer

quick = settings(max_examples=25)
DELTA = 1e-5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("counts", "delta", "t", "f", "bound"), [
    ((750, 1000, 250, 1000), 0.0, 0.7219500, 0.2780500, 0.9541549), ((990, 1000, 10, 1000), 1e-5, 0.9816868, 0.0183132, 3.9816376),
    ((1000, 1000, 0, 1000), 1e-5, 0.9963179, 0.0036821, 5.6005775), ((500, 500, 0, 500), 1e-5, 0.9926494, 0.0073506, 4.9055841)])
def test_classic_values(counts, delta, t, f, bound):
    assert clopper_pearson(*counts[:2], 0.025)[0] == pytest.approx(t, abs=6e-8)
    assert clopper_pearson(*counts[2:], 0.025)[1] == pytest.approx(f, abs=6e-8)
    assert classic_bound(*counts, delta) == pytest.approx(bound, abs=1e-7)


def test_classic_ends():
    assert clopper_pearson(0, 10, 0.05)[0] == 0 and clopper_pearson(10, 10, 0.05)[1] == 1
    assert classic_bound(0, 10, 10, 10, 0.0) == 0.0 and classic_bound(5, 10, 5, 10, DELTA) == 0.0
    u = 1 - 0.025 ** (1 / 500)
    assert classic_bound(500, 500, 0, 500, DELTA) == pytest.approx(math.log((1 - u - DELTA) / u), rel=1e-10)
    assert classic_bound(10, 1000, 0, 1000, 0.0) < classic_bound(990, 1000, 0, 1000, 0.0)
    assert classic_bound(1000, 1000, 900, 1000, 0.0) > 2                       # by the second form alone


@pytest.mark.parametrize(("arguments", "value"), [((100, 100, 70, 1, 0), 0.79363182), ((1000, 200, 180, 1.5, 0), 9.1701033e-4), ((1000, 200, 180, 1.5, 1e-5), 1.7015536e-3), ((100, 100, 75, math.log(3), 0), 0.5535)])
def test_one_run_probabilities(arguments, value):
    assert one_run_probability(*arguments) == pytest.approx(value, rel=1e-4 if value == 0.5535 else 1e-7)


@pytest.mark.parametrize(("arguments", "value"), [
    ((100, 100, 100, 0), 3.4929654), ((100, 100, 80, 0), 0.9583920), ((1000, 1000, 650, 0), 0.5082023), ((1000, 1000, 650, 1e-5), 0.5079503), ((1000, 200, 180, 0), 1.7988653),
    ((1000, 200, 180, 1e-5), 1.7962851), ((1000, 200, 180, 1e-4), 1.7716147), ((1000, 100, 100, 1e-5), 3.4653763)])
def test_one_run_bounds(arguments, value):
    assert one_run_bound(*arguments) == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize(("arguments", "value"), [((1000, 100, 75, 1e-4), 0.67298), ((100_000, 1510, 1439, 1e-5), 2.67585),
                                                  *(((m, m, m, 1e-5), c) for m, c in ((10, 1.052), (20, 1.822), (50, 2.783), (100, 3.490), (200, 4.188), (400, 4.880), (1000, 5.782)))])
def test_published_bounds_and_ceilings(arguments, value):
    assert one_run_bound(*arguments) == pytest.approx(value, abs=1e-5 if value in (0.67298, 2.67585) else 6e-4)


@quick
@given(st.integers(1, 60), st.floats(0, 4), st.sampled_from([0.0, 1e-5, 1e-2]), st.data())
def test_the_probability_by_a_loop(guesses, epsilon, delta, data):
    right, canaries = data.draw(st.integers(0, guesses)), guesses + data.draw(st.integers(0, 50))
    theta = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(guesses, k) * theta**k * (1 - theta) ** (guesses - k) for k in range(guesses + 1)]
    slack = max((sum(mass[max(right - i, 0):right]) / i for i in range(1, right + 1)), default=0)
    by_hand = min(1, sum(mass[right:]) + 2 * canaries * delta * slack)
    assert one_run_probability(canaries, guesses, right, epsilon, delta) == pytest.approx(by_hand, rel=1e-9, abs=1e-14)


@quick
@given(st.integers(1, 200), st.data())
def test_the_bound_is_where_luck_ends(guesses, data):
    right, delta = data.draw(st.integers(0, guesses)), data.draw(st.sampled_from([0.0, 1e-5]))
    bound = one_run_bound(guesses, guesses, right, delta)
    if bound:
        assert one_run_probability(guesses, guesses, right, bound - 1e-6, delta) < 0.05 <= one_run_probability(guesses, guesses, right, bound + 1e-6, delta)
    else:
        assert one_run_probability(guesses, guesses, right, 1e-9, delta) >= 0.05 - 1e-6
    assert right == guesses or bound <= one_run_bound(guesses, guesses, right + 1, delta)


cached_bound = cache(one_run_bound)


def test_coverage_on_randomised_response():
    """The bound of one run is tight there: over 2000 runs it exceeds the truth in about 4.6 %, and in at most 5 % by law."""
    theta, rng = math.e / (1 + math.e), np.random.default_rng(0)
    lowers = np.array([cached_bound(1000, 1000, int(v), 0.0) for v in rng.binomial(1000, theta, size=2000)])
    assert np.median(lowers) == pytest.approx(0.8806, abs=0.01)
    assert 0.03 <= (lowers > 1).mean() <= 0.0625
    exact = stats.binom(1000, theta).sf(next(v for v in range(1000) if cached_bound(1000, 1000, v, 0.0) > 1) - 1)
    assert exact == pytest.approx(0.0463, abs=2e-4)


def response(seed, epsilon, m=400, highest=80):
    g = generator(seed)
    bits = torch.rand(m, generator=g) < 0.5
    kept = torch.rand(m, generator=g, dtype=torch.float64) < 1 / (1 + math.exp(-epsilon))
    return audit_one_run(torch.where(kept, bits, ~bits).double(), bits, 1.0, 0.0, highest)


def test_randomised_response_through_the_audit():
    audits = [response(seed, 1.0) for seed in range(200)]
    assert sum(audit.refuted for audit in audits) <= 20
    assert all(response(seed, 10.0).refuted for seed in range(20))


def test_coverage_of_the_classic_bound():
    """A test with a true log ratio of 1: exceedances over 400 pairs of 300 runs."""
    rng, f = np.random.default_rng(1), 0.2
    t = f * math.e
    counts = zip(rng.binomial(300, t, size=400), rng.binomial(300, f, size=400))
    assert sum(classic_bound(int(a), 300, int(b), 300, 0.0) > 1 for a, b in counts) <= 20


SIGMA = calibrate(1.0, DELTA, 1.0, 1, "gaussian")


def noisy_bits(seed, sigma, m=1000):
    g = generator(seed)
    bits = torch.rand(m, generator=g) < 0.5
    return audit_one_run(bits + sigma * torch.randn(m, generator=g).double(), bits, 1.0, DELTA, highest=100)


def test_the_gaussian_mechanism():
    assert SIGMA == pytest.approx(3.7306323, rel=2e-4) and gaussian_epsilon(1 / 3.7306323, DELTA) == pytest.approx(1, abs=1e-6)
    sound, broken = ([noisy_bits(seed, sigma).lower for seed in range(20)] for sigma in (SIGMA, SIGMA / 10))
    assert np.mean(sound) < 0.4 and max(sound) < 1
    assert np.mean(broken) == pytest.approx(4.05, abs=0.3) and min(broken) > 3.4


def one_vote(mechanism, claimed, delta, p=1e-3):
    """Gap 2 against gap 0 of two classes, 100 000 draws a side, the event "class 0"."""
    g = generator(5)
    labels = [mechanism.draw(torch.tensor([v]).expand(100_000, 2), g).labels for v in ([126, 124], [125, 125])]
    return audit_runs(1 - labels[0], 1 - labels[1], claimed, delta, 1.0, p), float((labels[0] == 0).double().mean())


@pytest.mark.parametrize(("sound", "broken", "claimed", "delta", "shares", "caught"), [
    (LNMax(0.05), LNMax(0.5), 0.1, 0.0, (0.5249604, 0.7240904), 0.30), (GNMax(40.0), GNMax(4.0), 0.1095815, DELTA, (0.5141018, 0.6381632), 0.2)])
def test_one_vote_of_noisy_votes(sound, broken, claimed, delta, shares, caught):
    for mechanism, share, refuted in ((sound, shares[0], False), (broken, shares[1], True)):
        audit, seen = one_vote(mechanism, claimed, delta)
        assert seen == pytest.approx(share, abs=0.006) and audit.refuted == refuted
    assert audit.lower > caught
    if delta:
        assert gaussian_epsilon(math.sqrt(2) / 40, DELTA) == pytest.approx(claimed, abs=1e-7)


def test_one_run_on_many_histograms():
    """m independent queries with a canary each: parallel composition keeps the budget of one."""
    m, g = 4000, generator(2)
    bits = torch.rand(m, generator=g) < 0.5
    votes = torch.stack([125 + bits.long(), 125 - bits.long()], 1)
    for gamma, refuted in ((0.05, False), (5.0, True)):
        scores = 1 - LNMax(gamma).draw(votes, g).labels
        order = torch.rand(m, generator=g, dtype=torch.float64) * 0.5          # ties by lot
        assert audit_one_run(scores + order, bits, 0.1, 0.0, highest=m // 4).refuted == refuted


def dpsgd(seed, divisor, m=1000, steps=40, draws=1):
    budget = Budget(1437, 64, steps, DELTA, epsilon=1.0)
    bits = torch.rand(m, generator=generator(1000 + seed)) < 0.5
    sanitizer = Sanitizer(budget, 0.3, seed=seed, divisor=divisor, draws=draws)
    scores = pad_scores(sanitizer, bits)
    assert sanitizer.ledger.entries[0].times == steps
    return audit_one_run(scores, bits, sanitizer.ledger.nominal(DELTA), DELTA, highest=m // 4), scores, bits


def test_dpsgd_and_a_noise_that_was_divided():
    for seed in range(5):
        sound, _, _ = dpsgd(seed, 1.0)
        lie, _, _ = dpsgd(seed, 500.0)
        assert sound.claimed == pytest.approx(lie.claimed) and 0.99 < sound.claimed <= 1
        assert not sound.refuted and lie.refuted and lie.lower > 2


def test_the_pad_is_hit_as_often_as_it_is_sampled():
    """Noise divided to nothing: what a canary scores is the number of batches that it was in."""
    _, scores, bits = dpsgd(0, 1e6)
    assert torch.allclose(scores, scores.round(), atol=1e-3) and not scores[~bits].round().any()
    assert float(scores[bits].mean()) == pytest.approx(40 * 64 / 1437, rel=0.1)
    _, again, _ = dpsgd(0, 1e6, draws=3)
    assert torch.allclose(scores, again, atol=1e-3)               # draws of one record are one record


def test_the_pad_by_clopper_pearson():
    """Its coordinates are independent trials, so one run gives many for the classic bound, with a threshold from a tenth of them."""
    for divisor, refuted in ((1.0, False), (500.0, True)):
        _, scores, bits = dpsgd(3, divisor, m=1437)
        assert audit_runs(scores[bits], scores[~bits], 1.0, DELTA, p=1e-3).refuted == refuted


def trained(included, divisor, seed):
    """What ten private steps of a logistic regression say along a feature that only record 0 has, which is there by its weight."""
    x, y, weights = torch.randn(30, 5, generator=generator()), torch.randint(2, (30,), generator=generator(1)), torch.ones(30)
    x[:, 4], x[0], y[0], weights[0] = 0.0, torch.tensor([0.0, 0, 0, 0, 9]), 1, included
    net = nn.Linear(5, 2)
    for p in net.parameters():
        nn.init.zeros_(p)
    sanitizer, optimizer, seen = Sanitizer(BUDGET, 1.0, seed=seed, divisor=divisor), torch.optim.SGD(net.parameters(), lr=0.5), 0.0
    loss = lambda network, x, y, w: w * nn.functional.cross_entropy(network(x), y, reduction="none")
    for _ in range(10):
        chosen = sanitizer.sample()
        sanitizer.at_parameters(net, loss, (x[chosen], y[chosen], weights[chosen]))
        seen += float(net.weight.grad[0, 4] - net.weight.grad[1, 4])
        optimizer.step()
    return seen


@pytest.mark.parametrize(("divisor", "refuted"), [(1.0, False), (200.0, True)])
def test_many_trainings_of_a_logistic_regression(divisor, refuted):
    scores = [torch.tensor([trained(included, divisor, 2 * seed + included) for seed in range(60)]) for included in (0, 1)]
    assert audit_runs(scores[1], scores[0], BUDGET.spent(), 1e-3).refuted == refuted


BUDGET = Budget(30, 15, 10, 1e-3, epsilon=1.0)


def test_guessing():
    scores, inside = torch.tensor([0.1, 3.0, 2.0, -1.0, 0.5]), torch.tensor([0, 1, 0, 0, 1])
    assert guess(scores, inside, 2, 1) == (3, 2) and guess(scores, inside, 0, 2) == (2, 2) and guess(scores, inside, 1, 0) == (1, 1)
    assert guess(scores.numpy(), inside.bool().numpy(), 2, 3) == guess(scores, inside, 2, 3)
    assert guess(torch.full((5,), math.inf), inside, 1, 1).made == 2


def test_thresholds_share_the_error():
    one, none = torch.arange(40.0), torch.arange(40.0) - 25
    single = [audit_runs(one, none, 1.0, 0.0, t, p=0.05 / 3).lower for t in (5.0, 15.0, 25.0)]
    assert audit_runs(one, none, 1.0, 0.0, [5.0, 15.0, 25.0]).lower == pytest.approx(max(single))


def test_what_an_audit_says():
    lie, fine = Audit(2.0, 1.0, DELTA, 0.05, "one run"), Audit(0.5, 1.0, DELTA, 0.05, "one run")
    assert lie.refuted and "refutes the claimed 1.000" in str(lie)
    assert not fine.refuted and "does not refute" in str(fine) and "95 % confidence" in str(fine)
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots()
    draw_audits(ax, {"a": lie, "b": fine})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2"]
    plt.close(fig)


def test_a_pad_beside_a_model():
    """The pad's coordinates and the model's gradient are clipped together, as one record's gradient."""
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.pad = nn.Linear(3, 2), Pad(5)

        def forward(self, x, i):
            return self.model(x).square().sum(1) + 2 * self.pad(i)

    net, x, i = Both(), torch.randn(4, 3), torch.tensor([4, 0, 2, 1])
    sanitizer = Sanitizer(Budget(10, 4, 3, DELTA), 0.5)
    norms = sanitizer.at_parameters(net, lambda network, x, i: network(x, i), (x, i))
    expected = torch.zeros(5)
    expected[i] = 2 * (0.5 / norms).clamp(max=1) / 4
    torch.testing.assert_close(net.pad.table.weight.grad[:, 0], expected)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: classic_bound(11, 10, 0, 10, 0.0), "successes is 11"),
    (lambda: classic_bound(1, 0, 0, 10, 0.0), "trials is 0"),
    (lambda: classic_bound(1, 10, 0, 10, -0.1), "delta is -0.1"),
    (lambda: classic_bound(1, 10, 0, 10, 0.0, 1.0), "p is 1.0"),
    (lambda: one_run_bound(10, 11, 5, 0.0), "guesses is 11"),
    (lambda: one_run_bound(10, 10, 11, 0.0), "right is 11"),
    (lambda: one_run_bound(10, 10, 5, 1.0), "delta is 1.0"),
    (lambda: one_run_probability(10, 10, 5, -1.0, 0.0), "epsilon is -1.0"),
    (lambda: guess(torch.ones(3), torch.tensor([0, 1]), 1, 1), "expected whole numbers of shape (3,)"),
    (lambda: guess(torch.tensor([1.0, math.nan]), torch.tensor([0, 1]), 1, 1), "1 NaN"),
    (lambda: guess(torch.ones(3), torch.tensor([0, 1, 1]), 0, 0), "at least one guess"),
    (lambda: guess(torch.ones(3), torch.tensor([0, 1, 1]), 2, 2), "at most 3"),
    (lambda: guess(torch.ones(3), torch.tensor([0, 1, 2]), 1, 1), "expected 0..1"),
    (lambda: audit_runs(torch.ones(3), torch.ones(3), 1.0, 0.0), "expected 20 of each"),
    (lambda: audit_runs(torch.ones(0), torch.ones(3), 1.0, 0.0, 0.5), "N >= 1"),
    (lambda: audit_runs(torch.ones(3), torch.ones(3), 1.0, 0.0, []), "thresholds are empty"),
    (lambda: audit_one_run(torch.ones(3), torch.tensor([0, 1, 1]), -1.0, 0.0, 1), "claimed is -1.0"),
    (lambda: pad_scores(Sanitizer(Budget(10, 4, 3, DELTA), 0.5), torch.ones(11).bool()), "11 canaries for 10 records"),
])
def test_bad_input_is_refused_in_one_line(call, words):
    assert words in refused(call)
