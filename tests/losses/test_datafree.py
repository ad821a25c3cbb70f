"""Losses of learning without data: closed values, slow references, and a critic that keeps nothing."""
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from kdnotes.losses.datafree import WEIGHTS, activation_loss, bn_loss, dafl_loss, entropy_loss, fixed, one_hot_loss

G = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(7, 10, generator=G, dtype=torch.float64)
FEATURES = torch.randn(7, 12, generator=G, dtype=torch.float64)


def critic() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6), nn.BatchNorm1d(6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_of_uniform_logits(dtype):
    uniform = torch.zeros(5, 10, dtype=dtype)
    assert float(one_hot_loss(uniform)) == pytest.approx(2.302585, abs=1e-6)
    assert float(entropy_loss(uniform, math.e)) == pytest.approx(-2.302585, abs=1e-6)
    assert float(entropy_loss(uniform)) == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("K", [2, 10, 100])
def test_a_collapsed_batch_has_no_entropy_and_a_balanced_one_all(K):
    assert float(entropy_loss(100 * torch.eye(K)[[1] * 9])) == pytest.approx(0, abs=1e-6)
    assert float(entropy_loss(100 * torch.eye(K), math.e)) == pytest.approx(-math.log(K), rel=1e-6)
    far = (1e4 * torch.eye(K)[[1] * 9]).requires_grad_()
    entropy_loss(far).backward()
    assert far.grad.isfinite().all()


@pytest.mark.parametrize("c", [-0.7, 0.0, 2.5])
def test_constant_features_cost_minus_their_size(c):
    assert float(activation_loss(torch.full((3, 5, 2, 2), c))) == pytest.approx(-abs(c))
    assert float(activation_loss(torch.full((3, 5, 2, 2), c), "sum")) == pytest.approx(-20 * abs(c))


def test_the_sum_of_the_formulas():
    p = LOGITS.softmax(1)
    one_hot = -sum(float(row.max().log()) for row in p) / 7
    mean = p.mean(0)
    entropy = sum(float(q) * math.log10(q) for q in mean)
    activation = -float(FEATURES.abs().mean())
    for weights in WEIGHTS.values():
        expected = weights["one_hot"] * one_hot + weights["activation"] * activation + weights["entropy"] * entropy
        assert float(dafl_loss(LOGITS, FEATURES, **weights)) == pytest.approx(expected, rel=1e-12)
    assert float(dafl_loss(LOGITS, FEATURES, 0, 0, 0)) == 0
    natural = dafl_loss(LOGITS, FEATURES, 0, 0, 5 / math.log(10), math.e)
    assert_close(natural, dafl_loss(LOGITS, FEATURES, 0, 0, 5.0))
    assert WEIGHTS["cifar10"] == {"one_hot": 0.05, "activation": 0.01, "entropy": 5.0}


def test_no_gradient_flows_through_the_label():
    o = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(one_hot_loss(o), o)
    assert_close(gradient, (o.softmax(1) - nn.functional.one_hot(o.argmax(1), 10)).detach() / 7)


@pytest.mark.parametrize("form", ["squared", "norm"])
def test_statistics_against_the_formula(form):
    net = critic().double()
    for _ in range(3):
        net(torch.randn(8, 1, 8, 8, generator=G, dtype=torch.float64))
    x = torch.randn(5, 1, 8, 8, generator=G, dtype=torch.float64)
    with fixed(net) as heard:
        net(x)
        first, last = net[0](x), net[4](net[3](net[2](net[1](net[0](x)))))
    heard = [one for i, one in enumerate(heard) if i < 2]         # the passes of the first call
    expected = 0.0
    for layer, given in ((net[1], first.movedim(1, 0).reshape(4, -1).T), (net[5], last)):
        mean, variance = given.mean(0), given.var(0, unbiased=False)
        for a, b in ((mean, layer.running_mean), (variance, layer.running_var)):
            gap = (a - b).square().sum()
            expected = expected + (gap / len(a) if form == "squared" else gap.sqrt())
    assert_close(bn_loss(heard, form), expected)
    assert [one.layer for one in heard] == ["1", "5"]


def test_a_step_of_the_generator_leaves_nothing_in_the_critic():
    net, generator = critic(), nn.Conv2d(1, 1, 3, padding=1)
    net[0].weight.requires_grad_(False)
    net[2].eval()
    buffers, flags = {k: v.clone() for k, v in net.state_dict().items()}, [m.training for m in net.modules()]
    with fixed(net) as heard:
        assert not any(m.training for m in net.modules())
        logits = net(generator(torch.randn(4, 1, 8, 8)))
    (dafl_loss(logits, logits) + bn_loss(heard)).backward()
    assert all(w.grad is None for w in net.parameters()) and all(w.grad.abs().sum() > 0 for w in generator.parameters())
    assert all(v.equal(buffers[k]) for k, v in net.state_dict().items())
    assert flags == [m.training for m in net.modules()] and not net[0].weight.requires_grad and net[4].weight.requires_grad
    assert not any(m._forward_hooks for m in net.modules())


def test_flags_return_after_an_error():
    net = critic()
    with pytest.raises(RuntimeError), fixed(net):
        raise RuntimeError
    assert net.training and all(w.requires_grad for w in net.parameters())


def nothing_heard(net: nn.Module):
    with fixed(net) as heard:
        net(torch.rand(2, 4))
    return bn_loss(heard)


@pytest.mark.parametrize("call, said", [
    (lambda: nothing_heard(nn.Linear(4, 2)), "no pass through a batch norm"),
    (lambda: nothing_heard(nn.BatchNorm1d(4, track_running_stats=False)), "no pass through a batch norm"),
    (lambda: one_hot_loss(torch.zeros(3, 1)), "two classes"),
    (lambda: one_hot_loss(torch.zeros(0, 4)), "no side empty"),
    (lambda: entropy_loss(torch.zeros(3, 4), 1.0), "log_base"),
    (lambda: activation_loss(torch.zeros(3, 4), "max"), "form"),
    (lambda: dafl_loss(torch.zeros(3, 4), torch.zeros(2, 4)), "same N samples"),
    (lambda: dafl_loss(torch.zeros(3, 4), torch.zeros(3, 4), one_hot=-1.0), "one_hot"),
    (lambda: fixed(lambda x: x).__enter__(), "expected a torch.nn.Module"),
])
def test_bad_input_is_told_in_one_line(call, said):
    with pytest.raises((ValueError, TypeError), match=said) as error:
        call()
    assert "\n" not in str(error.value)
