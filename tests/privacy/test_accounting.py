"""Accounting against published values, opacus, quadrature and closed forms; the ledger against a count by hand."""

import io
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from kdnotes.checks import refused
from kdnotes.privacy.accounting import (
    OPACUS_ORDERS,
    PATE_ORDERS,
    Ledger,
    Release,
    calibrate,
    check_delta,
    epsilon,
    epsilon_by_step,
    gaussian,
    gaussian_delta,
    gaussian_epsilon,
    prv_epsilon,
    pure,
    sampled_gaussian,
    sampled_gaussian_rdp,
    sharded_gaussian,
    sharded_rdp,
    to_epsilon,
    unprotected,
)

quick = settings(max_examples=25)
DELTA = 1e-5
TRIPLES = [    # rate, noise multiplier, steps; epsilon by RDP and its order, by PRV, by an independent PLD accountant
    (1, 1.0, 1, 4.728507, 5.4, 4.3874, 4.3772), (1, 5.0, 10, 2.813653, 7.9, 2.6045, 2.5944),
    (0.01, 1.0, 1000, 2.101365, 7.8, 1.8384, 1.8282), (0.01, 1.0, 10000, 6.712738, 4.1, 6.1980, 6.1877),
    (0.01, 4.0, 10000, 1.035490, 17, 0.9569, 0.9470), (0.001, 1.0, 10000, 0.787660, 13, 0.4858, 0.4760),
    (256 / 60000, 1.1, 14062, 2.596556, 8.1, 2.3917, 2.3817), (256 / 60000, 0.7, 2344, 3.589987, 4.5, 2.9200, 2.9097),
    (1 / 15, 10.0, 4500, 1.925198, 10.5, 1.7795, 1.7695), (64 / 1797, 1.0, 560, 6.075785, 4.0, 5.4923, 5.4820),
    (64 / 1797, 2.0, 560, 2.021642, 9.7, 1.8552, 1.8451), (0.02, 0.8, 500, 5.370138, 3.8, 4.6784, 4.6680),
    (0.25, 4.0, 40, 1.808792, 10.4, 1.6565, 1.6464), (1 / 1000, 1.07, 640000, 4.450242, 5.6, 4.1250, 4.1175)]


@pytest.mark.parametrize(("q", "sigma", "steps", "rdp", "order", "prv", "pld"), TRIPLES)
def test_reference_triples(q, sigma, steps, rdp, order, prv, pld):
    assert epsilon(q, sigma, steps, DELTA) == pytest.approx(rdp, abs=1e-6)
    assert to_epsilon(OPACUS_ORDERS, steps * sampled_gaussian_rdp(q, sigma), DELTA).order == pytest.approx(order)
    assert rdp > prv > pld
    if steps <= 14062:                                            # the last row takes opacus four seconds
        found = epsilon(q, sigma, steps, DELTA, "prv")
        assert found == pytest.approx(prv, abs=1e-3)
        assert found - 0.02 <= pld <= found


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 1.0), (0.5, 0.6), (1 / 15, 10.0), (1e-4, 2.0), (0.9, 3.0), (0.02, 40.0)])
def test_the_sum_and_the_integral_agree_with_opacus(q, sigma):
    from opacus.accountants.analysis.rdp import compute_rdp

    theirs = compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=OPACUS_ORDERS)
    np.testing.assert_allclose(sampled_gaussian_rdp(q, sigma), theirs, rtol=1e-5, atol=1e-13)


@pytest.mark.parametrize(("q", "sigma", "order"), [(0.1, 1.0, 2.5), (0.01, 0.5, 7.3), (0.5, 3.0, 1.1), (0.3, 0.25, 4.5), (0.001, 1.0, 30.7)])
def test_the_integral_by_adaptive_quadrature(q, sigma, order):
    """E[(1 - q + q e^((2z - 1) / 2 sigma^2))^order] for z ~ N(0, sigma^2), as it stands."""
    def integrand(z):
        log_ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * z - 1) / (2 * sigma**2))
        return math.exp(order * log_ratio - z * z / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))

    moment = sum(integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-12, limit=500)[0]
                 for a, b in ((-12 * sigma, 0), (0, order), (order, order + 12 * sigma)))
    assert sampled_gaussian_rdp(q, sigma, [order])[0] == pytest.approx(math.log(moment) / (order - 1), rel=1e-7)


@pytest.mark.parametrize(("q", "sigma"), [(1e-6, 1.0), (0.01, 4.0), (0.3, 0.7), (0.999, 2.0)])
def test_fractional_orders_join_the_whole_ones(q, sigma):
    whole = np.array([2.0, 3, 10, 63])
    beside = sampled_gaussian_rdp(q, sigma, whole + 1e-7)
    np.testing.assert_allclose(beside, sampled_gaussian_rdp(q, sigma, whole), rtol=1e-5)


def test_next_to_no_noise_stays_a_bound_and_finite():
    orders = [1.5, 2.5, 3.0, 7.7]
    small, smaller = sampled_gaussian_rdp(0.1, 0.21, orders), sampled_gaussian_rdp(0.1, 0.19, orders)
    assert (smaller > small).all() and np.isfinite(smaller).all()
    assert np.isinf(sampled_gaussian_rdp(0.1, 0.0)).all() and np.isfinite(sampled_gaussian_rdp(0.1, 0.01, PATE_ORDERS)).all()
    assert (sampled_gaussian_rdp(0.1, 0.01, [2.5]) <= 2.5 / (2 * 0.01**2)).all()


@quick
@given(st.floats(1e-4, 1), st.floats(0.3, 20), st.integers(1, 5000))
def test_epsilon_is_monotone(q, sigma, steps):
    value = epsilon(q, sigma, steps, DELTA)
    slack = 1e-9 * max(value, 1)
    assert epsilon(q, sigma * 1.1, steps, DELTA) <= value + slack and epsilon(q * 0.9, sigma, steps, DELTA) <= value + slack
    assert epsilon(q, sigma, steps + 1, DELTA) >= value - slack and epsilon(q, sigma, steps, 2 * DELTA) <= value + slack
    assert epsilon(q, sigma, steps, DELTA, conversion="classic") >= value


@quick
@given(st.floats(0.05, 30), st.floats(1e-9, 0.3))
def test_the_exact_gaussian(mu, delta):
    exact = gaussian_epsilon(mu, delta)
    assert gaussian_delta(exact, mu) == pytest.approx(delta, rel=1e-6) or exact == 0
    assert exact <= epsilon(1, 1 / mu, 1, delta) + 1e-9


@pytest.mark.parametrize(("mu", "value"), [(0.25, 0.9263), (0.5, 1.9931), (1, 4.3772), (2, 9.9973), (5, 33.1037), (10, 91.8173)])
def test_published_exact_gaussians(mu, value):
    assert gaussian_epsilon(mu, DELTA) == pytest.approx(value, abs=5e-5)


def test_the_size_of_the_divisor():
    """Noise divided by T and sensitivity not: one participation is a Gaussian of distance T / sigma."""
    for distance, value in ((500, 127131), (500 / 0.7, 258147), (500 / 1.1, 105243), (50, 1462), (10, 91.8)):
        assert gaussian_epsilon(distance, DELTA) == pytest.approx(value, abs=0.5 if value > 1000 else 0.05)
    assert gaussian_epsilon(2 * math.sqrt(64_000), DELTA) == pytest.approx(130157, abs=0.5)


def test_closed_forms_at_rate_one():
    assert gaussian_epsilon(1, DELTA) == pytest.approx(4.3772, abs=5e-5) and epsilon(1, 5.0, 10, DELTA, "gaussian") == pytest.approx(2.5944, abs=5e-5)
    for queries, classic, tight, exact in ((100, 1.7590351, 1.4781220, 1.3564674), (286, 3.0478512, 2.6424589, 2.4353597), (1000, 5.9899151, 5.3777283, 4.9833064)):
        rdp = queries * np.array(PATE_ORDERS) / 40**2
        closed = queries / 1600 + 2 * math.sqrt(queries * math.log(1 / DELTA)) / 40
        assert closed == pytest.approx(classic, abs=5e-8)
        assert closed <= to_epsilon(PATE_ORDERS, rdp, DELTA, "classic").epsilon <= closed * 1.002
        assert epsilon(1, 40 / math.sqrt(2), queries, DELTA) == pytest.approx(tight, abs=1e-6)
        assert gaussian_epsilon(math.sqrt(2 * queries) / 40, DELTA) == pytest.approx(exact, abs=1e-7)
    for (asked, sigma1, answered, delta), value in {(640, 150, 286, 1e-5): 2.5426021, (8500, 200, 3098, 1e-6): 11.1378690}.items():
        assert gaussian_epsilon(math.sqrt(asked / sigma1**2 + 2 * answered / 40**2), delta) == pytest.approx(value, abs=2e-7)


@pytest.mark.parametrize(("queries", "value"), [(100, 1.36656), (286, 2.44550), (1000, 4.99357)])
def test_prv_of_noisy_answers(queries, value):
    assert epsilon(1, 40 / math.sqrt(2), queries, DELTA, "prv") == pytest.approx(value, abs=1e-5)


CALIBRATED = [(256 / 1437, 561, 17.1533, 2.38066), (128 / 1437, 400, 7.3315, 1.20450), (64 / 1437, 1123, 6.1353, 1.06027), (1024 / 60000, 600, 1.90598, 0.62206),
              (4096 / 60000, 600, 6.8768, 1.14882), (4096 / 60000, 1000, 8.8202, 1.36330), (256 / 60000, 2344, 1.15700, 0.51508)]


@pytest.mark.parametrize(("q", "steps", "one", "ten"), CALIBRATED)
def test_calibrated_noise(q, steps, one, ten):
    for budget, value in ((1.0, one), (10.0, ten)):
        sigma = calibrate(budget, DELTA, q, steps)
        assert budget - 1e-3 <= epsilon(q, sigma, steps, DELTA) <= budget
        assert sigma == pytest.approx(value, rel=2e-3)


def test_calibration_by_the_other_accountants():
    assert calibrate(1, DELTA, 1, 1, "gaussian") == pytest.approx(3.7306323, rel=2e-4)
    sigma = calibrate(1.0, DELTA, 0.05, 50, "prv", tolerance=0.01)
    assert 0.98 <= epsilon(0.05, sigma, 50, DELTA, "prv") <= 1.0
    assert sigma < calibrate(1.0, DELTA, 0.05, 50)


def test_shards():
    whole = np.arange(2, 65.0)
    spent = to_epsilon(whole, 640_000 * sharded_rdp(1e-3, 1.07, whole), DELTA, "classic")
    assert spent.epsilon == pytest.approx(9.9926, abs=5e-5) and spent.order == 4
    assert spent.epsilon > 2 * epsilon(1e-3, 1.07, 640_000, DELTA)           # the trap: 4.45, another adjacency
    by_hand = math.log(1 + 1e-6 * min(4 * math.expm1(2 / (2 * 1.07**2)), 2 * math.exp(2 / (2 * 1.07**2))))
    assert sharded_rdp(1e-3, 1.07, [2.0])[0] == pytest.approx(by_hand, rel=1e-10)
    assert (sharded_rdp(1.0, 2.0, whole) <= whole / 8 + 1e-12).all() and not sharded_rdp(0.0, 2.0, whole).any()
    per_step = sharded_gaussian(1000, 1.07, 32, "step", whole)
    assert not per_step.valid and "32 rows" in per_step.why
    assert to_epsilon(whole, 20_000 * np.array(per_step.true_rdp), DELTA).epsilon > 325
    ledger = Ledger(whole)
    ledger.spend(sharded_gaussian(1000, 1.07, 32, orders=whole), 20_000)
    assert ledger.epsilon(DELTA, conversion="classic") == pytest.approx(9.9926, abs=5e-5) and ledger.valid
    for accountant in ("prv", "gaussian"):
        assert "holds 'sharded Gaussian'" in refused(ledger.epsilon, DELTA, accountant)


def test_pure_releases():
    """Randomised response with epsilon 0.5, its divergences by the sum over two outcomes."""
    p = math.exp(0.5) / (1 + math.exp(0.5))
    for order in (1.5, 4.0, 60.0):
        direct = math.log(p**order * (1 - p) ** (1 - order) + (1 - p) ** order * p ** (1 - order)) / (order - 1)
        assert pure(0.5, orders=[order]).rdp[0] == pytest.approx(direct, rel=1e-10)
    assert not any(pure(0.0).rdp) and max(pure(30.0).rdp) <= 30


def mixed():
    ledger = Ledger(covers="a test")
    for _ in range(7):
        ledger.spend(sampled_gaussian(0.01, 1.1))
    ledger.spend(gaussian(5.0), 3)
    for _ in range(4):
        ledger.spend(sampled_gaussian(0.01, 1.1))
    ledger.spend(pure(0.1, "LNMax"))
    return ledger


def test_every_step_counts_once():
    ledger = mixed()
    assert [entry.times for entry in ledger.entries] == [11, 3, 1]
    assert [int(n) for n in ledger.table(DELTA).times] == [11, 3, 1, 15]
    by_hand = 11 * sampled_gaussian_rdp(0.01, 1.1) + 3 * np.array(OPACUS_ORDERS) / 50 + np.array(pure(0.1).rdp)
    np.testing.assert_allclose(ledger.rdp(), by_hand, rtol=1e-13)
    assert ledger.valid and ledger.epsilon(DELTA) == ledger.nominal(DELTA)


def test_a_checkpoint_keeps_every_bit():
    ledger, file = mixed(), io.BytesIO()
    ledger.spend(unprotected("teacher", "trained without noise").but(data_dependent=True))
    ledger.spend(Release("own", {"share": np.float64(0.1), "count": np.int64(3)}, OPACUS_ORDERS, np.ones(len(OPACUS_ORDERS))))
    torch.save(ledger.state_dict(), file)
    file.seek(0)
    again = Ledger(covers="something else")
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again == ledger and again.rdp(True).tobytes() == ledger.rdp(True).tobytes() and again.data_dependent
    again.spend(sampled_gaussian(0.01, 1.1))
    assert again != ledger and again.entries[0].times == 12                 # the entry read back is the same one


def test_an_interrupted_count_ends_with_the_same_bits():
    whole, first = Ledger(), Ledger()
    whole.spend(sampled_gaussian(0.02, 0.8), 500)
    for _ in range(123):
        first.spend(sampled_gaussian(0.02, 0.8))
    second = Ledger()
    second.load_state_dict(first.state_dict())
    for _ in range(377):
        second.spend(sampled_gaussian(0.02, 0.8))
    assert second == whole and second.epsilon(DELTA) == whole.epsilon(DELTA) == epsilon(0.02, 0.8, 500, DELTA)


def test_what_does_not_hold_is_infinite_and_said():
    ledger = mixed()
    sound = ledger.epsilon(DELTA)
    ledger.spend(sampled_gaussian(0.01, 1.1).but(valid=False, why="noise divided by T"))
    assert not ledger.valid and ledger.epsilon(DELTA) == math.inf and sound < ledger.nominal(DELTA) < math.inf
    table = ledger.table(DELTA)
    assert list(table["valid"]) == ["yes", "yes", "yes", "no", "no"] and table["epsilon that holds"].iloc[-1] == "none"
    assert "noise divided by T" in table.why.iloc[3] and "NOT valid" in str(ledger)


def test_what_holds_instead_is_composed():
    ledger = Ledger()
    ledger.spend(gaussian(1.0).but(valid=False, why="divisor", holds=gaussian(0.5).rdp))
    assert ledger.nominal(DELTA) == epsilon(1, 1.0, 1, DELTA) and ledger.epsilon(DELTA) == epsilon(1, 0.5, 1, DELTA)


def test_the_ledger_through_prv_and_the_exact_gaussian():
    ledger = Ledger()
    ledger.spend(sampled_gaussian(0.01, 1.0), 1000)
    assert ledger.epsilon(DELTA, "prv") == epsilon(0.01, 1.0, 1000, DELTA, "prv")
    ledger.spend(gaussian(5.0), 10)
    assert ledger.epsilon(DELTA) > ledger.epsilon(DELTA, "prv") > epsilon(0.01, 1.0, 1000, DELTA, "prv")
    exact = Ledger()
    exact.spend(gaussian(5.0), 10)
    exact.spend(gaussian(2.0))
    assert exact.epsilon(DELTA, "gaussian") == pytest.approx(gaussian_epsilon(math.sqrt(10 / 25 + 1 / 4), DELTA))
    assert prv_epsilon([], DELTA) == 0.0 and prv_epsilon([(0.0, 0.1, 3)], DELTA) == math.inf


def test_epsilon_by_step():
    counts = [0, 1, 500, 1000]
    values = epsilon_by_step(0.01, 1.0, counts, DELTA)
    assert values[0] == 0 and values[-1] == pytest.approx(2.101365, abs=1e-6)
    assert values.tolist() == [epsilon(0.01, 1.0, n, DELTA) for n in counts]


def test_ends_of_the_ranges():
    assert epsilon(0.1, 0, 1, DELTA) == epsilon(0.1, 0.0, 1, DELTA, "prv") == epsilon(1, 0, 1, DELTA, "gaussian") == math.inf
    assert epsilon(0.0, 1.0, 10, DELTA) == epsilon(0.1, 1.0, 0, DELTA) == 0.0
    assert gaussian_epsilon(0.0, DELTA) == 0.0 and gaussian_epsilon(math.inf, DELTA) == math.inf
    assert gaussian_delta(0.0, 0.0) == 0.0 and Ledger().epsilon(DELTA) == 0.0


@pytest.mark.parametrize(("call", "words"), [
    (lambda: epsilon(1.2, 1.0, 1, DELTA), "sample_rate is 1.2"),
    (lambda: epsilon(0.1, -1.0, 1, DELTA), "noise_multiplier is -1.0"),
    (lambda: epsilon(0.1, math.nan, 1, DELTA), "noise_multiplier is nan"),
    (lambda: epsilon(0.1, 1.0, 1.5, DELTA), "steps is 1.5"),
    (lambda: epsilon(0.1, 1.0, -1, DELTA), "steps is -1"),
    (lambda: epsilon(0.1, 1.0, 1, 0.0), "delta is 0.0"),
    (lambda: epsilon(0.1, 1.0, 1, 1.0), "delta is 1.0"),
    (lambda: epsilon(0.1, 1.0, 1, DELTA, "gdp"), "expected 'rdp' or 'prv' or 'gaussian'"),
    (lambda: epsilon(0.1, 1.0, 1, DELTA, "gaussian"), "expected 1 for accountant='gaussian'"),
    (lambda: epsilon(0.1, 1.0, 1, DELTA, conversion="old"), "'tight' or 'classic'"),
    (lambda: epsilon(0.1, 1.0, 1, DELTA, orders=[1.0, 2.0]), "finite numbers above 1"),
    (lambda: to_epsilon([2.0, 3.0], [1.0], DELTA), "one for each order"),
    (lambda: to_epsilon([2.0], [-1.0], DELTA), "from 0 on"),
    (lambda: calibrate(0.0, DELTA, 0.1, 10), "epsilon is 0.0"),
    (lambda: calibrate(0.01, DELTA, 1, 10), "higher orders"),
    (lambda: sampled_gaussian(0.1, 1.0).but(valid=False), "expected why"),
    (lambda: sampled_gaussian(0.1, 1.0).but(rdp=(1.0,)), "151 orders"),
    (lambda: Ledger().spend("noise"), "expected a Release"),
    (lambda: Ledger().spend(gaussian(1.0), 0), "times is 0"),
    (lambda: Ledger().spend(gaussian(1.0, [2.0])), "orders=ledger.orders"),
    (lambda: Ledger([2.0]).load_state_dict(Ledger().state_dict()), "expected Ledger(orders)"),
    (lambda: sharded_gaussian(10, 1.0, 4, "batch"), "'row' or 'step'"),
    (lambda: sharded_gaussian(0, 1.0, 4), "shards is 0"),
])
def test_bad_input_is_refused_in_one_line(call, words):
    assert words in refused(call)


def test_a_delta_of_one_in_n_is_warned_of():
    ledger = Ledger()
    with pytest.warns(UserWarning, match="less than 1/1000"):
        ledger.epsilon(1e-3, records=1000)
    assert "delta is 0.01 for 100 records" in refused(check_delta, "here", 0.01, 100, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ledger.epsilon(1e-5, records=1000)
