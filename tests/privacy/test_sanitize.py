"""Clipping, per-example gradients in three ways, noise, sampling and private steps."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdnotes.checks import refused
from kdnotes.privacy.accounting import OPACUS_ORDERS, Ledger, epsilon, sampled_gaussian_rdp
from kdnotes.privacy.sanitize import (
    Budget,
    Sanitizer,
    clip_rows,
    clipped_sum,
    micro_gradients,
    noise_like,
    noisy_rows,
    passages,
    poisson_batch,
    require_private_model,
    vmap_gradients,
)
from kdnotes.train import Loop

quick = settings(max_examples=25)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Pictures(nn.Module):
    """Convolutions of many kinds, normalisations, a layer used twice, and a table of classes."""

    def __init__(self, **convolution):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, **({"padding": 1} | convolution))
        self.second = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), groups=2, bias=False)
        self.norm, self.layer_norm = nn.GroupNorm(3, 6), nn.LayerNorm((6, 5))
        self.label, self.line = nn.Embedding(5, 6, padding_idx=2), nn.Conv1d(6, 6, 3, padding="same", dilation=2)
        self.twice, self.last, self.unused = nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(2, 2)

    def forward(self, x, y):
        x = F.relu(self.norm(self.second(F.relu_(self.first(x)))), inplace=True)
        x = F.adaptive_avg_pool2d(x, (1, 5))[:, :, 0]
        x = torch.tanh(self.line(self.layer_norm(x))).mT
        x = self.twice(torch.tanh(self.twice(x))).mean(1) + self.label(y)
        return self.last(torch.tanh(x))


class Tokens(nn.Module):
    """Words, an attention of their own, and output weights tied to the table."""

    def __init__(self):
        super().__init__()
        self.table, self.query, self.value = nn.Embedding(11, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        self.out.weight = self.table.weight

    def forward(self, words, y):
        x = self.norm(self.table(words))
        x = torch.softmax(self.query(x) @ x.mT, -1) @ self.value(x)
        return self.out(x).mean(1)


def each_loss(network, x, y):
    return F.cross_entropy(network(x, y), (y + 1) % 5, reduction="none")


def plain_loss(network, x, y):
    return F.cross_entropy(network(x), y, reduction="none")


def pictures(rows=6, **convolution):
    torch.manual_seed(0)
    net = Pictures(**convolution).double()
    return net, (torch.randn(rows, 2, 9, 8, generator=generator(1)).double(), torch.tensor([0, 1, 2, 3, 4, 2] * (rows // 6)))


def agree(a, b, rtol=1e-9):
    torch.testing.assert_close(a.norms, b.norms, rtol=rtol, atol=1e-12)
    for name in a.sums.keys() | b.sums.keys():
        torch.testing.assert_close(a.sums[name], b.sums[name], rtol=rtol, atol=1e-11)


@pytest.mark.parametrize("convolution", [{}, {"padding": "same", "dilation": 2}, {"padding": "valid"}, {"padding_mode": "circular"},
                                         {"padding_mode": "reflect", "padding": (1, 2)}, {"stride": 2}])
def test_three_ways_one_answer(convolution):
    net, batch = pictures(**convolution)
    slow = clipped_sum(net, each_loss, batch, 0.3, "micro")
    assert (slow.norms > 0.3).any()
    for method in ("vmap", "ghost"):
        agree(clipped_sum(net, each_loss, batch, 0.3, method), slow)
        agree(clipped_sum(net, each_loss, batch, 0.3, method, chunk=4), slow)


@pytest.mark.parametrize("draws", [2, 3, 6])
def test_draws_are_averaged_inside_one_clip(draws):
    net, (x, y) = pictures(12)
    slow, clip = {}, 0.2
    for i in range(12 // draws):                                  # by hand: the mean of a record's losses, its gradient, one clip
        rows = slice(i * draws, (i + 1) * draws)
        gradients = torch.autograd.grad(each_loss(net, x[rows], y[rows]).mean(), list(net.parameters()), allow_unused=True)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None))
        for (name, p), g in zip(net.named_parameters(), gradients):
            slow[name] = slow.get(name, 0) + (torch.zeros_like(p) if g is None else g) / max(1, norm / clip)
    for method in ("micro", "vmap", "ghost"):
        found = clipped_sum(net, each_loss, (x, y), clip, method, draws=draws)
        assert found.norms.shape == (12 // draws,)
        for name, value in slow.items():
            torch.testing.assert_close(found.sums[name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("draws", [1, 3])
def test_tied_weights_and_words(draws):
    torch.manual_seed(0)
    net = Tokens().double()
    words, y = torch.randint(11, (6, 4), generator=generator()), torch.randint(5, (6,), generator=generator(1))
    words[0] = 3                                                  # one word four times
    slow = clipped_sum(net, each_loss, (words, y), 0.1, "micro", draws=draws)
    for method in ("vmap", "ghost"):
        agree(clipped_sum(net, each_loss, (words, y), 0.1, method, draws=draws), slow)


def test_both_rules_of_a_layer():
    """Few positions and many weights (Gram), many positions and few weights (direct): against the gradient itself."""
    for shape, (n_in, n_out) in (((4, 3), (40, 50)), ((4, 30), (3, 2))):
        torch.manual_seed(0)
        net = nn.Linear(n_in, n_out).double()
        x = torch.randn(*shape, n_in, generator=generator()).double()
        loss = lambda network, x: network(x).square().flatten(1).sum(1)
        agree(clipped_sum(net, loss, (x,), 1.0, "ghost"), clipped_sum(net, loss, (x,), 1.0, "micro"))


def test_like_opacus():
    from opacus.grad_sample import GradSampleModule

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    x, y = torch.randn(5, 1, 6, 6, generator=generator()), torch.tensor([0, 3, 2, 9, 1])
    found = clipped_sum(net, plain_loss, (x, y), 0.5, "ghost")
    theirs = GradSampleModule(copy.deepcopy(net), loss_reduction="sum")
    plain_loss(theirs, x, y).sum().backward()
    samples = {name.removeprefix("_module."): p.grad_sample for name, p in theirs.named_parameters()}
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in samples.values()]).norm(dim=0)
    factors = (0.5 / (norms + 1e-6)).clamp(max=1.0)               # its clip is a millionth away from ours
    torch.testing.assert_close(found.norms, norms, rtol=1e-5, atol=0)
    for name, g in samples.items():
        torch.testing.assert_close(found.sums[name], torch.einsum("b,b...->...", factors, g), rtol=1e-4, atol=1e-6)


def test_no_clip_and_no_noise_is_plain_training():
    net, batch = pictures()
    plain = torch.autograd.grad(each_loss(net, *batch).sum(), list(net.parameters()), allow_unused=True)
    for method in ("micro", "vmap", "ghost"):
        for total, g in zip(clipped_sum(net, each_loss, batch, math.inf, method).sums.values(), plain):
            torch.testing.assert_close(total, torch.zeros_like(total) if g is None else g, rtol=1e-10, atol=1e-12)
    sanitizer = Sanitizer(Budget(100, 6, 5, 1e-5), math.inf)
    sanitizer.at_parameters(net, each_loss, batch)
    for p, g in zip(net.parameters(), plain):
        torch.testing.assert_close(p.grad, torch.zeros_like(p) if g is None else g / 6, rtol=1e-10, atol=1e-12)


@quick
@given(st.integers(0, 10_000), st.floats(1e-3, 10), st.integers(0, 5))
def test_one_record_moves_the_sum_by_at_most_the_clip(seed, clip, gone):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = 3 * torch.randn(6, 3).double(), torch.randint(3, (6,))
    kept = torch.arange(6) != gone
    a, b = (clipped_sum(net, plain_loss, batch, clip).sums for batch in ((x, y), (x[kept], y[kept])))
    assert math.sqrt(sum(float((a[name] - b[name]).square().sum()) for name in a)) <= clip * (1 + 1e-10)


@quick
@given(st.integers(0, 10_000), st.floats(1e-3, 100))
def test_clip(seed, clip):
    rows = 10 * torch.randn(7, 2, 3, generator=generator(seed)).double()
    rows[0] = 0
    cut, norms = clip_rows(rows, clip).flatten(1), rows.flatten(1).norm(dim=1)
    inside = norms <= clip
    assert torch.equal(cut[inside], rows.flatten(1)[inside])
    assert ((cut.norm(dim=1) - clip).abs()[~inside] < 1e-12 * clip).all()
    torch.testing.assert_close(cut * norms[:, None].clamp_min(1e-30), rows.flatten(1) * cut.norm(dim=1)[:, None], rtol=1e-9, atol=1e-12)
    assert torch.equal(clip_rows(rows, math.inf), rows)


def test_dividing_the_noise_is_not_dividing_the_sensitivity():
    """T gradients of norm C and more: their clipped mean still has norm C, so the noise that counts is sigma / T."""
    gradient = torch.randn(12, generator=generator()).double()
    T, C = 50, 0.1
    mean = clip_rows(gradient.expand(T, 12), C).mean(0)
    assert float(mean.norm()) == pytest.approx(C, rel=1e-12)
    sanitizer = Sanitizer(Budget(1437, 64, 10, 1e-5, noise_multiplier=6.135), 1.0, divisor=500.0)
    assert not sanitizer.release.valid and "divided by 500" in sanitizer.release.why
    assert sanitizer.release.rdp == tuple(sampled_gaussian_rdp(64 / 1437, 6.135, OPACUS_ORDERS))
    assert sanitizer.release.holds == tuple(sampled_gaussian_rdp(64 / 1437, 6.135 / 500, OPACUS_ORDERS))


@pytest.mark.parametrize(("divisor", "rows"), [(1.0, 7), (20.0, 7), (1.0, 0)])
def test_scale_of_the_noise(divisor, rows):
    """A loss of zero: what is left is noise of sigma C / B, B the expected size, also for a batch of none."""
    net = nn.Linear(400, 300)
    sanitizer = Sanitizer(Budget(1000, 32, 9, 1e-5, noise_multiplier=1.5), 0.7, divisor=divisor)
    sanitizer.at_parameters(net, lambda network, x: 0 * network(x).sum(1), (torch.randn(rows, 400),))
    expected = 1.5 * 0.7 / (32 * divisor)
    for p in (net.weight, net.bias):
        assert float(p.grad.std()) == pytest.approx(expected, rel=0.02 if p is net.weight else 0.2)
    assert abs(float(net.weight.grad.mean())) < 5 * expected / math.sqrt(net.weight.numel())
    assert sanitizer.steps == 1 and sanitizer.ledger.entries[0].times == 1


def test_noise_at_the_output():
    rows = torch.randn(50, 2000, generator=generator())
    noisy = noisy_rows(rows, 0.5, 3.0, generator(1), divisor=10.0)
    assert float((noisy - clip_rows(rows, 0.5)).std()) == pytest.approx(0.15, rel=0.02)
    assert torch.equal(noisy_rows(rows, 0.5, 0.0, generator(1)), clip_rows(rows, 0.5))
    net = nn.Linear(4, 3).double()
    x = torch.randn(5, 4, generator=generator(2)).double()
    sanitizer = Sanitizer(Budget(50, 10, 9, 1e-5, noise_multiplier=0.0), 0.2)
    made = net(x)
    sanitizer.at_output(made, made.square().sum(1))
    by_hand = clip_rows(2 * made.detach(), 0.2).mT @ x / 10
    torch.testing.assert_close(net.weight.grad, by_hand, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 100.0])
def test_the_input_is_read_off_the_first_layer(sigma):
    net, secret = nn.Linear(16, 4).double(), torch.randn(1, 16, generator=generator(3)).double()
    sanitizer = Sanitizer(Budget(10, 1, 9, 1e-5, noise_multiplier=sigma), 1.0)
    made = net(secret)
    sanitizer.at_output(made, made.square().sum(1))
    torch.testing.assert_close(net.weight.grad[0] / net.bias.grad[0], secret[0], rtol=1e-10, atol=1e-10)


def test_sites_agree_without_clip_and_noise_and_only_there():
    net, x = nn.Linear(4, 3).double(), torch.randn(6, 4, generator=generator()).double()
    loss = lambda network, x: network(x).square().sum(1)
    found = {}
    for clip in (math.inf, 0.1):
        for site in ("parameters", "output"):
            net.zero_grad()
            sanitizer = Sanitizer(Budget(60, 6, 9, 1e-5), clip)
            if site == "parameters":
                sanitizer.at_parameters(net, loss, (x,))
            else:
                made = net(x)
                sanitizer.at_output(made, made.square().sum(1))
            found[clip, site] = net.weight.grad.clone()
    torch.testing.assert_close(found[math.inf, "parameters"], found[math.inf, "output"], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(found[0.1, "parameters"], found[0.1, "output"], rtol=1e-3)


def test_poisson_batches():
    g = generator(5)
    drawn = [poisson_batch(300, 0.01, g) for _ in range(3000)]
    sizes = torch.tensor([len(b) for b in drawn]).double()
    assert float(sizes.mean()) == pytest.approx(3, abs=0.12) and float(sizes.var()) == pytest.approx(2.97, rel=0.1)
    assert float((sizes == 0).double().mean()) == pytest.approx(0.99**300, abs=0.015)
    often = torch.bincount(torch.cat(drawn), minlength=300)
    assert often.min() > 10 and often.max() < 55                  # 30 expected, each record
    assert all((b[1:] > b[:-1]).all() for b in drawn)
    assert len(poisson_batch(7, 0.0, g)) == 0 and poisson_batch(7, 1.0, g).tolist() == list(range(7))


def test_nothing_is_changed_by_asking():
    net, batch = pictures()
    net.eval()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    for method in ("micro", "vmap", "ghost"):
        clipped_sum(net, each_loss, batch, 1.0, method)
        assert all(p.grad is None and p.requires_grad for p in net.parameters()) and not net.training
        assert not any(layer._forward_hooks for layer in net.modules())
    assert all(torch.equal(before[name], x) for name, x in net.state_dict().items()) and torch.equal(state, torch.get_rng_state())
    broken = lambda network, x, y: (network(x, y), 1 / 0)[0]
    with pytest.raises(ZeroDivisionError):
        clipped_sum(net, broken, batch, 1.0)
    assert not any(layer._forward_hooks for layer in net.modules())


def test_frozen_parameters_are_left_alone():
    net, batch = pictures()
    net.first.requires_grad_(False)
    net.last.bias.requires_grad_(False)
    slow = clipped_sum(net, each_loss, batch, 0.3, "micro")
    assert "first.weight" not in slow.sums and "last.bias" not in slow.sums
    for method in ("vmap", "ghost"):
        agree(clipped_sum(net, each_loss, batch, 0.3, method), slow)


class Pad(nn.Module):
    """A parameter that is no layer's: ghost norms do not know it, `auto` goes by vmap."""

    def __init__(self, size):
        super().__init__()
        self.pad, self.line = nn.Parameter(torch.zeros(size)), nn.Linear(3, 2)

    def forward(self, x, i):
        return self.line(x).square().sum(1) + 5 * self.pad[i]


def test_a_free_parameter():
    net, x, i = Pad(8).double(), torch.zeros(4, 3).double(), torch.tensor([1, 5, 6, 2])
    with torch.no_grad():
        net.line.bias.zero_()                                     # its gradient is then zero
    found = clipped_sum(net, lambda network, x, i: network(x, i), (x, i), 0.5)
    assert found.norms.tolist() == [5.0] * 4
    expected = torch.zeros(8).double()
    expected[i] = 0.5
    torch.testing.assert_close(found.sums["pad"], expected)
    assert "method='vmap'" in refused(passages, net, lambda network, x, i: network(x, i), (x, i))


class Past(nn.Module):
    """Reads a weight past its layer."""

    def __init__(self, norm=False):
        super().__init__()
        self.line = nn.utils.weight_norm(nn.Linear(3, 3)) if norm else nn.Linear(3, 3)
        self.norm = norm

    def forward(self, x):
        x = torch.tanh(self.line(x.to(self.line.bias.dtype)))
        return x if self.norm else F.linear(x, self.line.weight)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("norm", [False, True])
def test_a_weight_that_is_used_past_its_layer_is_not_missed(norm):
    torch.manual_seed(0)
    net, x = Past(norm).double(), torch.randn(4, 3).double()
    loss = lambda network, x: network(x).square().sum(1)
    assert ("(Linear)" if norm else "'line.weight' is used outside of its layer") in refused(clipped_sum, net, loss, (x,), 0.5, "ghost")
    agree(clipped_sum(net, loss, (x,), 0.5, "vmap"), clipped_sum(net, loss, (x,), 0.5, "micro"))


def test_half_precision_is_clipped_in_float32():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(5, 6), torch.randint(3, (5,))
    wide = clipped_sum(net, plain_loss, (x, y), 0.5)
    half = clipped_sum(copy.deepcopy(net).bfloat16(), plain_loss, (x.bfloat16(), y), 0.5)
    assert half.norms.dtype == torch.float32
    torch.testing.assert_close(half.norms, wide.norms, rtol=5e-2, atol=1e-2)


def training(path=None, stop=None, steps=14):
    """Private logistic regression as a Loop; `stop`: the step at which it is interrupted after its noise was drawn."""
    torch.manual_seed(0)
    net, x = nn.Linear(5, 3).double(), torch.randn(60, 5, generator=generator()).double()
    y = torch.randint(3, (60,), generator=generator(1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    sanitizer = Sanitizer(Budget(60, 3, steps, 1e-3, noise_multiplier=1.1), 0.5, seed=7)
    sizes = []

    def step(n):
        chosen = sanitizer.sample()
        sizes.append(len(chosen))
        sanitizer.at_parameters(net, plain_loss, (x[chosen], y[chosen]))
        if n == stop:
            raise KeyboardInterrupt
        optimizer.step()
        return {"size": torch.tensor(float(len(chosen)))}

    parts = {"net": net, "optimizer": optimizer, "sanitizer": sanitizer}
    loop = Loop(step, steps, parts, code=(plain_loss,), checkpoint=path, every=4)
    if stop is None:
        loop.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            loop.run()
    return net, sanitizer, sizes


def test_killed_and_resumed_with_the_same_noise(tmp_path):
    whole, account, sizes = training()
    assert 0 in sizes                                             # a batch of none is among them, and counts
    training(tmp_path / "run.pt", stop=10)
    again, resumed, _ = training(tmp_path / "run.pt")
    assert torch.equal(whole.weight, again.weight) and torch.equal(whole.bias, again.bias)
    assert resumed.ledger == account.ledger and [e.times for e in resumed.ledger.entries] == [14]
    assert resumed.ledger.epsilon(1e-3) == account.ledger.epsilon(1e-3) == epsilon(0.05, 1.1, 14, 1e-3)


def test_a_step_that_breaks_off_was_paid_for():
    net, ledger = nn.Linear(2, 2), Ledger()
    sanitizer = Sanitizer(Budget(10, 2, 2, 1e-5, noise_multiplier=1.0), 1.0, ledger=ledger)
    broken = lambda network, x: network(x).sum(1) + 1 / 0
    with pytest.raises(ZeroDivisionError):
        sanitizer.at_parameters(net, broken, (torch.randn(3, 2),))
    assert ledger.entries[0].times == 1
    sanitizer.at_parameters(net, lambda network, x: network(x).sum(1), (torch.randn(3, 2),))
    assert ledger.entries[0].times == 2
    assert "2 steps of the budget are spent" in refused(sanitizer.at_parameters, net, broken, (torch.randn(3, 2),))


def test_noise_and_coins_follow_the_seed():
    a, b, c = (Sanitizer(Budget(1000, 100, 5, 1e-5, noise_multiplier=1.0), 1.0, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(a.sample(), b.sample()) and not torch.equal(a.sample(), c.sample())
    x = torch.zeros(50)
    assert torch.equal(noise_like(x, 1.0, a.noise), noise_like(x, 1.0, b.noise))
    state = a.state_dict()
    c.load_state_dict(state)
    assert torch.equal(noise_like(x, 1.0, a.noise), noise_like(x, 1.0, c.noise)) and torch.equal(a.sample(), c.sample())


def test_a_budget_finds_its_noise():
    budget = Budget(1437, 64, 1123, 1e-5, epsilon=1.0)
    assert budget.noise_multiplier == pytest.approx(6.1353, rel=1e-3) and 1 - 1e-3 <= budget.spent() <= 1
    assert budget.spent(0) == 0 < budget.spent(100) < budget.spent()
    assert Budget(1437, 64, 10, 1e-5).spent() == math.inf and Budget(60000, 4000, 4500, 1e-5, noise_multiplier=10.0).spent() == pytest.approx(1.925198, abs=1e-6)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: require_private_model(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))), "layer '1' is a BatchNorm1d"),
    (lambda: require_private_model(nn.Sequential(nn.Conv2d(1, 2, 3), nn.SyncBatchNorm(2))), "SyncBatchNorm"),
    (lambda: require_private_model(nn.Sequential(nn.LazyConv2d(2, 3), nn.LazyBatchNorm2d())), "LazyBatchNorm2d"),
    (lambda: require_private_model(nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, track_running_stats=True))), "InstanceNorm2d"),
    (lambda: require_private_model(nn.Linear(2, 2).requires_grad_(False)), "no parameter that requires a gradient"),
    (lambda: Budget(100, 101, 10, 1e-5), "batch is 101 for 100 records"),
    (lambda: Budget(100, 10, 10, 0.01), "delta is 0.01 for 100 records"),
    (lambda: Budget(100, 10, 10, 1e-5, 3.0, 0.0), "spends an epsilon of infinity and not 3"),
    (lambda: Budget(100, 10, 10, 1e-5, 1.0, 0.5), "expected more noise"),
    (lambda: Budget(100, 0, 10, 1e-5), "batch is 0"),
    (lambda: Sanitizer(Budget(100, 10, 10, 1e-5, 3.0), math.inf), "clip is inf"),
    (lambda: Sanitizer(Budget(100, 10, 10, 1e-5, 3.0), 0.0), "clip is 0.0"),
    (lambda: Sanitizer(Budget(100, 10, 10, 1e-5, 3.0), 1.0, divisor=0.0), "divisor is 0.0"),
    (lambda: Sanitizer(Budget(100, 10, 10, 1e-5, 3.0), 1.0, method="fast"), "'auto' or 'ghost'"),
    (lambda: clip_rows(torch.ones(2, 2), 0.0), "clip is 0.0"),
    (lambda: clip_rows(torch.ones(2, dtype=torch.int64), 1.0), "floating-point rows"),
    (lambda: clip_rows(torch.tensor([[1.0], [math.nan]]), 1.0), "1 of 2 records"),
    (lambda: poisson_batch(10, 1.5, generator()), "sample_rate is 1.5"),
    (lambda: clipped_sum(nn.Linear(2, 2), plain_loss, (torch.ones(3, 2), torch.ones(4)), 1.0), "3, 4 rows"),
    (lambda: clipped_sum(nn.Linear(2, 2), plain_loss, (torch.ones(3, 2), torch.ones(3)), 1.0, draws=2), "multiple of draws=2"),
    (lambda: clipped_sum(nn.Linear(2, 2), plain_loss, (), 1.0), "holds nothing"),
    (lambda: clipped_sum(nn.Linear(2, 2), lambda network, x: network(x).sum(), (torch.ones(3, 2),), 1.0), "reduction='none'"),
    (lambda: clipped_sum(nn.Linear(2, 2), plain_loss, (torch.ones(3, 2),), 1.0, "opacus"), "'ghost' or 'vmap'"),
    (lambda: clipped_sum(nn.Linear(2, 2), lambda network, x: network(x.reshape(-1, 2)).reshape(3, -1).sum(1), (torch.ones(3, 4),), 1.0), "rows in front"),
    (lambda: clipped_sum(nn.Bilinear(2, 2, 2), lambda network, x: network(x, x).sum(1), (torch.ones(3, 2),), 1.0, "ghost"), "Bilinear"),
])
def test_bad_input_is_refused_in_one_line(call, words):
    assert words in refused(call)


def test_a_start_from_private_weights_is_refused():
    torch.manual_seed(0)
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    require_private_model(student, [teacher])
    with torch.no_grad():
        student.bias.zero_()
        teacher.bias.zero_()
    require_private_model(student, [teacher])                      # zeros tell nothing
    student.load_state_dict(teacher.state_dict())
    assert "'weight' starts from the weights" in refused(require_private_model, student, [teacher])


def test_gradients_of_no_records():
    net, batch = pictures()
    nobody = [x[:0] for x in batch]
    for function in (micro_gradients, vmap_gradients):
        assert {name: g.shape for name, g in function(net, each_loss, nobody).items()} == {name: (0, *p.shape) for name, p in net.named_parameters()}
    for method in ("micro", "vmap", "ghost"):
        found = clipped_sum(net, each_loss, nobody, 1.0, method)
        assert not any(total.any() for total in found.sums.values()) and found.norms.shape == (0,)
