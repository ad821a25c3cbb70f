"""Maximum mean discrepancy, against loops over pairs in float64 and against values computed by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes.losses.mmd import KERNELS, mean_distance, mmd2, squared_distances

quick = settings(max_examples=20)
X, Y = torch.tensor([[0.0, 0], [1, 0]]).double(), torch.tensor([[0.0, 1], [2, 2]]).double()


def cloud(seed, *shape, shift=0.0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift


def by_loops(x, y, kernel, biased=True):
    """The double sums of the definition, one pair at a time;
    the bandwidth likewise, over ordered pairs of the pooled sample.
    """
    x, y = x.tolist(), y.tolist()

    def squared(u, v):
        return sum((a - b) ** 2 for a, b in zip(u, v))

    z = x + y
    b = sum(squared(u, v) for i, u in enumerate(z) for j, v in enumerate(z) if i != j) / (len(z) * (len(z) - 1))
    functions = {
        "gaussian": lambda u, v: sum(math.exp(-squared(u, v) / (q * b)) for q in (0.25, 0.5, 1, 2, 4)),
        "laplace": lambda u, v: sum(math.exp(-gamma * squared(u, v)) for gamma in (0.1, 1, 5)),
        "linear": lambda u, v: sum(a * c for a, c in zip(u, v)),
        "polynomial": lambda u, v: (sum(a * c for a, c in zip(u, v)) + 1) ** 2,
    }
    k = functions[kernel]

    def block(p, q, same):
        pairs = [(i, j) for i in range(len(p)) for j in range(len(q)) if biased or not same or i != j]
        return sum(k(p[i], q[j]) for i, j in pairs) / len(pairs)

    return block(x, x, True) - 2 * block(x, y, False) + block(y, y, True)


@pytest.mark.parametrize(("kernel", "value"),
                         [("gaussian", 3.1483146583), ("linear", 2.5), ("polynomial", 21.5), ("laplace", 2.2981120685)])
def test_two_points_against_two(kernel, value):
    assert mmd2(X, Y, kernel).item() == pytest.approx(value, abs=1e-9)
    assert mmd2(Y, X, kernel).item() == pytest.approx(value, abs=1e-9)


def test_other_values_by_hand():
    assert mean_distance(X, Y).item() == pytest.approx(11 / 3, abs=1e-12)
    one = mmd2(torch.zeros(1, 1).double(), torch.ones(1, 1).double())
    assert one.item() == pytest.approx(10 - 2 * sum(math.exp(-1 / q) for q in (0.25, 0.5, 1, 2, 4)),
                                       abs=1e-12) == pytest.approx(6.1862763878, abs=1e-9)
    near, far = torch.tensor([[-1.0], [1]]).double(), torch.tensor([[-2.0], [2]]).double()
    assert [mmd2(near, far, k).item()
            for k in ("linear", "polynomial", "gaussian")] == pytest.approx([0, 9, 1.1506891508], abs=1e-9)


@quick
@given(seed=st.integers(0, 10**6), n=st.integers(1, 6), m=st.integers(1, 6), kernel=st.sampled_from(KERNELS),
       biased=st.booleans())
def test_equals_the_loops_in_float64_and_float32(seed, n, m, kernel, biased):
    n, m = (n, m) if biased else (n + 1, m + 1)
    x, y = cloud(seed, n, 3), cloud(seed + 1, m, 3, shift=1)
    expected = by_loops(x, y, kernel, biased)
    assert mmd2(x, y, kernel, biased=biased).item() == pytest.approx(expected, abs=1e-12, rel=1e-12)
    assert mmd2(x.float(), y.float(), kernel, biased=biased).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@quick
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10), shift=st.floats(-100, 100))
def test_invariances_and_bounds_of_the_gaussian_form(seed, scale, shift):
    x, y = cloud(seed, 7, 4), cloud(seed + 1, 5, 4, shift=0.5)
    value = mmd2(x, y)
    turn = torch.linalg.qr(cloud(seed + 2, 4, 4))[0]
    for a, b in ((x.flip(0), y), (x + shift, y + shift), (x @ turn, y @ turn), (scale * x, scale * y), (y, x)):
        assert mmd2(a, b).item() == pytest.approx(value.item(), abs=1e-9)
    assert 0 <= value <= 10
    assert mmd2(scale * x, scale * y,
                "linear").item() == pytest.approx(scale**2 * mmd2(x, y, "linear").item(), rel=1e-9)
    assert -1e-14 <= mmd2(x, x.flip(0)) < 1e-13 and mmd2(x, x.flip(0), biased=False) < 0


@quick
@given(seed=st.integers(0, 10**6))
def test_linear_is_the_distance_of_means_and_polynomial_that_of_two_moments(seed):
    x, y = cloud(seed, 4, 5), cloud(seed + 1, 9, 5, shift=0.3)
    first = (x.mean(0) - y.mean(0)).square().sum()
    second = (x.mT @ x / len(x) - y.mT @ y / len(y)).square().sum()
    assert mmd2(x, y, "linear").item() == pytest.approx(first.item(), abs=1e-10)
    assert mmd2(x, y, "polynomial").item() == pytest.approx((second + 2 * first).item(), rel=1e-10)
    assert mmd2(x, y, unit=1e8).item() * 1e8 / 15.5 == pytest.approx(first.item(), rel=1e-4)


def test_a_huge_width_gives_the_distance_of_means_in_many_dimensions():
    x, y = cloud(0, 20, 2048), cloud(1, 30, 2048)
    assert mmd2(x, y, unit=1e8).item() * 1e8 / 15.5 == pytest.approx((x.mean(0) - y.mean(0)).square().sum().item(),
                                                                     rel=1e-3)


def test_the_bandwidth_gets_no_gradient():
    x, y, h = cloud(0, 3, 2).requires_grad_(), cloud(1, 4, 2, shift=1), 1e-6
    gradient, b = torch.autograd.grad(mmd2(x, y), x)[0], mean_distance(x, y)
    for i in range(3):
        step = torch.zeros_like(x)
        step[i, 0] = h
        frozen = (mmd2(x + step, y, unit=b) - mmd2(x - step, y, unit=b)) / (2 * h)
        moving = (mmd2(x + step, y) - mmd2(x - step, y)) / (2 * h)
        assert gradient[i, 0].item() == pytest.approx(frozen.item(), rel=1e-6, abs=1e-9)
        assert abs(gradient[i, 0] - moving) > 1e-5


def test_gradients_stay_finite_and_zero_where_nothing_can_move():
    x = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)                  # all points coincide: b = 0
    value = mmd2(x, torch.ones(2, 2).double())
    assert value == 0 and torch.autograd.grad(value, x)[0].abs().sum() == 0
    # a single point does not repel itself
    x = cloud(0, 1, 4).requires_grad_()
    assert torch.autograd.grad(squared_distances(x, x).sum(), x)[0].abs().sum() == 0
    near, far = torch.tensor([[-1.0], [1]]).double().requires_grad_(), torch.tensor([[-2.0], [2]]).double()
    assert torch.autograd.grad(mmd2(near, far, "linear"), near)[0].abs().max() == 0
    assert torch.autograd.grad(mmd2(near, far), near)[0].abs().max() > 0.01


def test_classes_go_in_one_call_and_do_not_mix():
    x, y = cloud(0, 4, 3, 5).requires_grad_(), cloud(1, 4, 6, 5)
    values = mmd2(x, y)
    torch.testing.assert_close(values, torch.stack([mmd2(a, b) for a, b in zip(x, y)]))
    gradient = torch.autograd.grad(values[1], x)[0]
    assert gradient[1].abs().sum() > 0 and gradient[[0, 2, 3]].abs().sum() == 0


def test_half_precision_and_autocast_are_computed_in_float32():
    x, y = cloud(0, 8, 64).float(), cloud(1, 9, 64).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mmd2(x, y).dtype == torch.float32 and mmd2(x, y) == mmd2(x, y)
        torch.testing.assert_close(mmd2(x, y).double(), mmd2(x.double(), y.double()), rtol=1e-5, atol=1e-6)
    assert mmd2(x.bfloat16(), y.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("change", "words"), [
    ({"kernel": "rbf"}, "kernel is 'rbf'; expected 'gaussian' or 'linear' or 'polynomial' or 'laplace'"),
    ({"y": torch.ones(3, 5)}, "same d"), ({"y": torch.ones(2)}, "(..., n, d)"),
    ({"y": torch.ones(0, 2)}, "nothing empty"),
    ({"y": torch.ones(1, 2), "biased": False}, "at least 2 points"), ({"x": X.long()}, "floating point"),
    ({"x": X / 0}, "x holds NaN"), ({"bandwidths": (1.0, 0.0)}, "bandwidths[1] is 0.0"), ({"bandwidths": ()}, "no bandwidths"),
    ({"unit": 0.0}, "unit is 0.0"), ({"unit": torch.tensor(-1.0)}, "unit is -1"),
])
def test_bad_input_is_answered_in_one_line(change, words):
    with pytest.raises(ValueError) as error:
        mmd2(**({"x": X, "y": Y} | change))
    assert words in str(error.value) and "\n" not in str(error.value)


def variance_and_hits(kernel, rate):
    """50 points from the centre, 500 steps towards two modes at (-2, 0) and (2, 0):
    variance ratio along x, share of points within 1 of a mode.
    """
    g = torch.Generator().manual_seed(0)
    goal = 0.3 * torch.randn(400, 2, generator=g) + torch.tensor([2.0, 0]) * (2 * (torch.arange(400) % 2)[:, None] - 1)
    points = (0.1**0.5 * torch.randn(50, 2, generator=g)).requires_grad_()
    optimizer = torch.optim.SGD([points], lr=rate, momentum=0.5)
    for _ in range(500):
        optimizer.zero_grad()
        mmd2(points, goal, kernel).backward()
        optimizer.step()
    p = points.detach()
    hit = torch.cdist(p, torch.tensor([[-2.0, 0], [2, 0]])).amin(1) < 1
    return (p[:, 0].var()
            / goal[:, 0].var()).item(), hit.float().mean().item(), (p.mean(0) - goal.mean(0)).abs().max().item()


def test_matching_means_leaves_the_heap_and_the_gaussian_kernel_finds_both_modes():
    ratio, hits, gap = variance_and_hits("linear", 1.0)
    assert ratio < 0.1 and hits < 0.1 and gap < 1e-4
    ratio, hits, _ = variance_and_hits("gaussian", 20.0)
    assert abs(ratio - 1) < 0.1 and hits > 0.95
