"""Diffusion: schedule values, the forward and backward chain against their formulas, oracles, sizes of networks, EDM, private gradients, bad input."""

import itertools
import math

import pytest
import torch
from torch import nn

from kdnotes.models.diffusion import (
    DenoisingMLP,
    Diffusion,
    Preconditioned,
    UNet,
    VPreconditioned,
    alpha_bars,
    denoising_losses,
    draw_cosine_sigmas,
    draw_sigmas,
    drop_labels,
    edm_losses,
    edm_sampled,
    guided,
    noise_levels,
    sampled,
    sampling_steps,
    timestep_embedding,
)
from kdnotes.privacy.sanitize import clipped_sum

G = torch.Generator().manual_seed(0)
normal = lambda *shape: torch.randn(*shape, generator=G, dtype=torch.float64)
full = lambda n, t: torch.full((n,), t)


@pytest.mark.parametrize("T, scale, one, half, end", [(1000, 1, 0.99990000, 0.07858724, 4.035830e-05), (500, 2, 0.99980000, 0.07810849, 3.766093e-05),
                                                      (100, 10, 0.99900000, 0.07419700, 2.039009e-05)])
def test_the_schedule_has_the_values_of_its_closed_product(T, scale, one, half, end):
    a = alpha_bars(T)
    assert a.dtype == torch.float64 and len(a) == T + 1 and a[0] == 1
    assert (float(a[1]), float(a[T // 2])) == (pytest.approx(one, abs=1e-8), pytest.approx(half, abs=1e-7)) and float(a[T]) == pytest.approx(end, rel=1e-6)
    slow = math.prod(1 - scale * (1e-4 + (0.02 - 1e-4) * t / (T - 1)) for t in range(T))
    assert float(a[T]) == pytest.approx(slow, rel=1e-10)


def test_ends_that_are_not_scaled_leave_signal():
    a = alpha_bars(500, 0.5e-4, 0.01)                             # the ends of 1000 steps, as they are, in 500
    assert (float(a[1]), float(a[250]), float(a[500])) == (pytest.approx(0.9999, abs=1e-8), pytest.approx(0.28068530, abs=1e-7), pytest.approx(6.352711e-3, rel=1e-6))


@pytest.mark.parametrize("prediction", ["x0", "v", "eps"])
def test_the_clean_picture_comes_back_from_what_is_predicted(prediction):
    diffusion, x_0, noise, r = Diffusion(500, prediction), normal(8, 2, 3, 3), normal(8, 2, 3, 3), torch.tensor([1, 2, 50, 100, 250, 400, 499, 500])
    x_r = diffusion.noised(x_0, r, noise)
    a = diffusion.alpha_bar[r].view(-1, 1, 1, 1)
    assert torch.allclose(x_r, a.sqrt() * x_0 + (1 - a).sqrt() * noise, atol=1e-14)
    clean = diffusion.clean(diffusion.target(x_0, r, noise), x_r, r)
    assert torch.allclose(clean, x_0, atol=1e-10)
    assert torch.allclose(diffusion.noise_in(clean, x_r, r), noise, atol=1e-10)
    single = diffusion.noised(x_0.float(), r, noise.float())
    assert torch.allclose(diffusion.clean(diffusion.target(x_0.float(), r, noise.float()), single, r), x_0.float(), atol=1e-5 if prediction != "eps" else 1e-4)


def test_an_error_of_the_noise_is_one_of_the_picture_by_the_factor_of_its_step():
    eps, x0, r = Diffusion(500, "eps"), normal(1, 1, 4, 4), full(1, 500)
    out, other = normal(1, 1, 4, 4), normal(1, 1, 4, 4)
    gap = (eps.clean(out, x0, r) - eps.clean(other, x0, r)).square().sum() / (out - other).square().sum()
    a = float(eps.alpha_bar[500])
    assert float(gap) == pytest.approx((1 - a) / a, rel=1e-9) == pytest.approx(2.6552e4, rel=1e-3)


def test_the_posterior_is_bayes_and_full_ddim_with_eta_1():
    diffusion, x_0, x_r = Diffusion(100), normal(100, 1, 2, 2), normal(100, 1, 2, 2)
    r = torch.arange(1, 101)
    mean, variance = diffusion.posterior(x_0, x_r, r)
    a, before = (diffusion.alpha_bar[t].view(-1, 1, 1, 1) for t in (r, r - 1))
    beta = 1 - a / before
    bayes = before.sqrt() * beta / (1 - a) * x_0 + (a / before).sqrt() * (1 - before) / (1 - a) * x_r
    assert torch.allclose(mean, bayes, atol=1e-12) and torch.allclose(variance, (1 - before) / (1 - a) * beta, atol=1e-15)
    z = normal(100, 1, 2, 2)
    assert torch.allclose(diffusion.step(x_0, x_r, r, r - 1, 1.0, z), mean + variance.sqrt() * z, atol=1e-10)
    assert diffusion.step(x_0, x_r, r, r - 1, 1.0, z)[0].equal(x_0[0])             # the last step adds no noise


def test_a_deterministic_step_with_the_true_picture_lands_on_the_forward_chain():
    diffusion, x_0, noise = Diffusion(500), normal(9, 1, 2, 2), normal(9, 1, 2, 2)
    r = torch.tensor([500, 400, 300, 2, 1, 37, 250, 499, 500])
    to = torch.tensor([499, 100, 0, 1, 0, 36, 20, 498, 480])
    assert torch.allclose(diffusion.step(x_0, diffusion.noised(x_0, r, noise), r, to), diffusion.noised(x_0, to, noise), atol=1e-11)


class Oracle(nn.Module):
    """Knows the one picture `x` that there is, and says it in the language of `diffusion`."""

    null = 10

    def __init__(self, x, diffusion):
        super().__init__()
        self.x, self.diffusion, self.calls = x, diffusion, []

    def forward(self, x_r, r, y):
        self.calls.append(int(r[0]))
        x_0 = self.x.expand_as(x_r).to(x_r)
        return self.diffusion.target(x_0, r, self.diffusion.noise_in(x_0, x_r, r))


@pytest.mark.parametrize("prediction, steps, eta", [*itertools.product(("x0", "v", "eps"), (1, 3, 25, 100), (0.0,)), ("x0", 100, 1.0), ("v", 7, 0.5)])
def test_with_an_oracle_any_number_of_steps_returns_the_one_picture(prediction, steps, eta):
    diffusion = Diffusion(100, prediction)
    point = normal(1, 1, 3, 3).tanh()
    oracle = Oracle(point, diffusion)
    made = sampled(oracle, diffusion, normal(4, 1, 3, 3), steps=steps, eta=eta, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(made, point.expand_as(made), atol=1e-9)
    assert oracle.calls[0] == 100 and len(oracle.calls) == steps and oracle.calls == sampling_steps(100, steps)[:-1]


def test_sampling_starts_at_T_and_visits_no_step_twice():
    assert sampling_steps(500, 25)[:2] == [500, 480] and sampling_steps(500, 25)[-2:] == [20, 0]
    for T, steps in ((500, 500), (500, 7), (100, 99), (21, 1)):
        path = sampling_steps(T, steps)
        assert path[0] == T and path[-1] == 0 and len(set(path)) == steps + 1 and path == sorted(path, reverse=True)


def test_sampling_by_hand_with_guidance_and_clamp():
    diffusion, network, noise, y = Diffusion(50, "eps"), DenoisingMLP((1, 2, 2), 3, 8, time=4).double(), normal(5, 1, 2, 2), torch.arange(5) % 3
    x = noise
    for now, then in ((50, 33), (33, 16), (16, 0)):
        a, b = diffusion.alpha_bar[now], diffusion.alpha_bar[then]
        clean = [(x - (1 - a).sqrt() * network(x, full(5, now), label)) / a.sqrt() for label in (y, full(5, 3))]
        x_0 = (1.7 * clean[0] - 0.7 * clean[1]).clamp(-1, 1)
        x = b.sqrt() * x_0 + (1 - b).sqrt() * (x - a.sqrt() * x_0) / (1 - a).sqrt()
    assert torch.allclose(sampled(network, diffusion, noise, y, steps=3, guidance=0.7), x, atol=1e-10)
    assert sampled(network, diffusion, noise, y, 3).equal(sampled(network.train(), diffusion, noise, y, 3, guidance=0.0)) and network.training


def test_guidance_of_0_asks_once_and_of_w_extrapolates():
    asked = []
    denoise = lambda x, r, y: asked.append(y.tolist()) or x + y[:, None, None, None]
    x = torch.zeros(2, 1, 1, 1)
    assert guided(denoise, x, full(2, 1), torch.tensor([1, 2]), 5, 0.0).flatten().tolist() == [1, 2] and asked == [[1, 2]]
    assert guided(denoise, x, full(2, 1), torch.tensor([1, 2]), 5, 2.0).flatten().tolist() == [3 * 1 - 2 * 5, 3 * 2 - 2 * 5]


def test_losses_are_for_each_record_and_a_sum_is_pixels_times_a_mean():
    diffusion, network, x_0, noise, r = Diffusion(), DenoisingMLP(classes=0), normal(6, 1, 8, 8).float(), normal(6, 1, 8, 8).float(), torch.arange(1, 7)
    mean, total = (denoising_losses(diffusion, network, x_0, r, noise, reduction=k) for k in ("mean", "sum"))
    assert torch.allclose(total, 64 * mean) and mean.shape == (6,)
    slow = [(network(diffusion.noised(x_0[i:i + 1], r[i:i + 1], noise[i:i + 1]), r[i:i + 1]) - x_0[i:i + 1]).square().mean().item() for i in range(6)]
    assert mean.tolist() == pytest.approx(slow, rel=1e-5)


def test_labels_are_dropped_at_the_given_rate_and_by_the_given_generator():
    y = torch.arange(20000) % 10
    dropped = drop_labels(y, 10, 0.1, torch.Generator().manual_seed(0))
    assert abs(float((dropped == 10).float().mean()) - 0.1) < 0.01 and (dropped[dropped != 10] == y[dropped != 10]).all()
    assert drop_labels(y, 10, 0.0, torch.Generator().manual_seed(0)).equal(y) and (drop_labels(y, 10, 1.0, torch.Generator()) == 10).all()


def test_the_step_is_seen_as_whole_numbers():
    e = timestep_embedding(torch.tensor([0, 1, 500]), 32)
    assert e.shape == (3, 32) and e[0].tolist() == [0.0] * 16 + [1.0] * 16
    assert e[2].tolist() == pytest.approx([f(500 * 10000 ** (-k / 15)) for f in (math.sin, math.cos) for k in range(16)], abs=1e-4)


COUNTS = [(lambda: UNet(), 1_753_345), (lambda: UNet(32, 3, 0, attention=(8, 16)), 1_804_451), (lambda: UNet(64, 3, 0, factors=(1, 1, 2, 2), attention=(8, 16)), 1_999_907),
          (lambda: DenoisingMLP(null=False), 117_824), (lambda: DenoisingMLP(), 118_080)]


@pytest.mark.parametrize("make, count", COUNTS)
def test_networks_have_their_number_of_parameters_and_no_batch_normalisation(make, count):
    network = make()
    assert sum(p.numel() for p in network.parameters()) == count
    assert not [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._NormBase)] and not list(network.buffers())


def small_unet(**options):
    return UNet(8, 2, **{"classes": 3, "width": 8, "factors": (1, 2), "blocks": 1, "attention": (4,)} | options)


def test_the_unet_starts_at_nothing_and_treats_each_picture_alone():
    network, x, r, y = small_unet(), normal(4, 2, 8, 8).float(), torch.tensor([1, 20, 300, 500]), torch.tensor([0, 1, 2, 3])
    assert network(x, r, y).abs().max() < 1e-3 and network(x, r, y).shape == x.shape
    for p in network.parameters():
        nn.init.normal_(p, std=0.2)
    alone = torch.cat([network(x[i:i + 1], r[i:i + 1], y[i:i + 1]) for i in range(4)])
    assert torch.allclose(network(x, r, y), alone, atol=1e-4)
    assert not torch.allclose(network(x, r, y), network(x, r, y.flip(0)), atol=1e-3) and not torch.allclose(network(x, r, y), network(x, r.flip(0), y), atol=1e-3)


@pytest.mark.parametrize("make, shape", [(small_unet, (2, 8, 8)), (lambda: DenoisingMLP((1, 4, 4), 3, 8, time=4), (1, 4, 4))])
@pytest.mark.parametrize("method", ["ghost", "vmap"])
def test_gradients_of_records_are_those_of_batches_of_one(make, shape, method):
    diffusion, network = Diffusion(), make().double()
    for p in network.parameters():
        nn.init.normal_(p, std=0.2)
    batch = [normal(3, *shape), torch.tensor([2, 250, 500]), normal(3, *shape), torch.tensor([0, 3, 1])]
    loss = lambda model, x, r, noise, y: denoising_losses(diffusion, model, x, r, noise, y)
    found, slow = (clipped_sum(network, loss, batch, 0.5, method=m) for m in (method, "micro"))
    for name, g in slow.sums.items():
        assert torch.allclose(found.sums[name], g, atol=1e-9), name


def test_edm_is_preconditioned_as_its_table_says():
    inner = type("Inner", (nn.Module,), {"forward": lambda self, x, r, y: x + r[:, None, None, None]})()
    d, x, sigma = Preconditioned(inner), normal(3, 1, 2, 2), torch.tensor([0.01, 0.5, 80.0], dtype=torch.float64)
    s, t = sigma.view(-1, 1, 1, 1), math.sqrt(1 / 3)
    out = t**2 / (s**2 + t**2) * x + s * t / (s**2 + t**2).sqrt() * (x / (s**2 + t**2).sqrt() + s.log() / 4)
    assert torch.allclose(d(x, sigma), out, atol=1e-12)
    assert torch.allclose(d.weight(sigma), (sigma**2 + 1 / 3) / (sigma**2 / 3), atol=1e-9)


def test_the_target_of_edm_has_variance_1_and_its_loss_is_weighted():
    d, n = Preconditioned(DenoisingMLP((1, 2, 2), 0, 8, time=4).double()), 4000
    x_0, noise = (torch.rand(n, 1, 2, 2, generator=G, dtype=torch.float64) * 2 - 1), normal(n, 1, 2, 2)
    for level in (0.01, 0.5, 10.0):
        sigma = torch.full((n,), level, dtype=torch.float64)
        s, t = level, math.sqrt(1 / 3)
        asked = (x_0 - t**2 / (s**2 + t**2) * (x_0 + s * noise)) * math.sqrt(s**2 + t**2) / (s * t)
        assert float(asked.var()) == pytest.approx(1, abs=0.05)
        losses = edm_losses(d, x_0, sigma, noise)
        slow = (s**2 + t**2) / (s * t) ** 2 * (d(x_0 + s * noise, sigma) - x_0).square().mean((1, 2, 3))
        assert torch.allclose(losses, slow, rtol=1e-10)


def test_the_v_form_predicts_minus_v_and_its_weight_makes_the_loss_that_of_v():
    x_0, noise, sigma = normal(3, 1, 2, 2), normal(3, 1, 2, 2), torch.tensor([0.01, 0.5, 80.0], dtype=torch.float64)
    s = sigma.view(-1, 1, 1, 1)
    alpha = 1 / (1 + s.square()).sqrt()
    v, wrong, told = alpha * noise - alpha * s * x_0, normal(3, 1, 2, 2), []

    class Says(nn.Module):
        def forward(self, x, t, y):
            assert torch.allclose(x, alpha * (x_0 + s * noise), atol=1e-12)
            told.append(t)
            return -v + wrong

    d = VPreconditioned(Says())
    assert torch.allclose(edm_losses(d, x_0, sigma, noise), wrong.square().mean((1, 2, 3)), rtol=1e-8)
    assert torch.allclose((math.pi / 2 * told[0]).tan(), sigma, rtol=1e-9) and torch.allclose(1 / (math.pi / 2 * told[0]).cos().square() - 1, sigma.square(), rtol=1e-9)
    assert torch.allclose(VPreconditioned(lambda x, t, y: -v)(x_0 + s * noise, sigma), x_0, atol=1e-9)


def test_levels_of_the_v_form_are_uniform_in_the_time_of_the_cosine_schedule():
    sigma = draw_cosine_sigmas(40000, torch.Generator().manual_seed(0)).double()
    ratio, t = -2 * sigma.log(), 2 / math.pi * sigma.atan()
    assert ratio.max() <= 13 + 1e-3 and ratio.min() >= -9 - 1e-3
    first, last = (2 / math.pi * math.atan(math.exp(-x / 2)) for x in (13, -9))
    uniform = (t - first) / (last - first)
    assert float((uniform.sort().values - torch.linspace(0, 1, 40000)).abs().max()) < 0.01        # Kolmogorov's distance; 0.0082 is exceeded once in a hundred


def test_levels_of_noise():
    levels, drawn = noise_levels(), draw_sigmas(40000, torch.Generator().manual_seed(0)).log()
    assert len(levels) == 50 and float(levels[0]) == pytest.approx(80) and float(levels[-1]) == pytest.approx(0.002)
    assert torch.allclose((levels ** (1 / 7)).diff(), (levels ** (1 / 7)).diff().mean().expand(49))
    assert float(drawn.mean()) == pytest.approx(-1.2, abs=0.03) and float(drawn.std()) == pytest.approx(1.2, abs=0.03)


@pytest.mark.parametrize("options", [{}, {"heun": True}, {"heun": True, "churn": 10.0, "churned": (0.05, 50.0)}])
def test_edm_sampling_finds_the_one_picture_of_an_oracle(options):
    point = normal(1, 1, 2, 2)
    oracle = type("One", (nn.Module,), {"forward": lambda self, x, sigma, y: point.expand_as(x)})()
    assert torch.allclose(edm_sampled(oracle, normal(3, 1, 2, 2), generator=torch.Generator().manual_seed(0), **options), point.expand(3, 1, 2, 2), atol=1e-12)


def test_steps_of_second_order_follow_the_exact_path_of_normal_data():
    best = lambda x, sigma, y: x * (0.25 / (0.25 + sigma.square()))[:, None, None, None]
    z = normal(4, 1, 2, 2)
    exact = z * 80 * math.sqrt(0.25 / (0.25 + 80**2))
    gap = {(heun, n): float((edm_sampled(best, z, steps=n, heun=heun) / exact - 1).abs().max()) for heun in (False, True) for n in (50, 100)}
    assert gap[False, 50] < 0.1 and 1.7 < gap[False, 50] / gap[False, 100] < 2.3 and 3 < gap[True, 50] / gap[True, 100] < 5


X = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize("call, words", [
    (lambda: alpha_bars(20), "expected first <= last and T above 20"), (lambda: Diffusion(500, "x"), "expected 'x0' or 'v' or 'eps'"), (lambda: alpha_bars(0), "T is 0"),
    (lambda: Diffusion().noised(X, full(2, 501), X), "r reaches outside of 0..500"), (lambda: Diffusion().noised(X, full(2, -1), X), "r reaches outside"),
    (lambda: Diffusion().noised(X, full(2, 0.5), X), "expected whole numbers of shape (2,)"), (lambda: Diffusion().noised(X, full(1, 5), X[:1]), "expected one shape"),
    (lambda: Diffusion().noised(X.byte(), full(2, 5), X), "expected floating point in [-1, 1]"), (lambda: Diffusion().posterior(X, X, full(2, 0)), "r - 1 reaches outside"),
    (lambda: Diffusion().step(X, X, full(2, 5), full(2, 1), eta=1.0), "eta is 1 and there is no noise"), (lambda: sampled(DenoisingMLP(), Diffusion(), X, full(2, 1), eta=0.5), "expected generator="),
    (lambda: sampled(DenoisingMLP(), Diffusion(), X, full(2, 1), steps=501), "steps is 501"), (lambda: sampled(DenoisingMLP(null=False), Diffusion(), X, full(2, 1), guidance=1.0), "null=True"),
    (lambda: DenoisingMLP()(X, full(2, 1)), "y is none; expected labels (2,), 10 for none"), (lambda: DenoisingMLP(classes=0)(X, full(2, 1), full(2, 1)), "expected no labels"),
    (lambda: DenoisingMLP()(X, full(2, 1), full(2, 11)), "y reaches outside of 0..10"), (lambda: DenoisingMLP()(X[..., :4], full(2, 1), full(2, 1)), "expected (N, 1, 8, 8)"),
    (lambda: UNet(30), "expected a side that halves"), (lambda: UNet(8, 1, factors=(1,))(X[:, :, :4, :4], full(2, 1), full(2, 1)), "expected (N, 1, 8, 8)"),
    (lambda: denoising_losses(Diffusion(), DenoisingMLP(), X, full(2, 1), X, full(2, 1), "total"), "expected 'mean' or 'sum'"),
    (lambda: edm_sampled(Preconditioned(DenoisingMLP()), X, full(2, 1), churn=1.0), "churn needs"), (lambda: noise_levels(5, 1.0, 2.0), "expected low below high"),
    (lambda: draw_cosine_sigmas(5, G, -9.0, 13.0), "expected the former below the latter"),
    (lambda: timestep_embedding(torch.zeros(2), 5), "expected numbers (N,) and an even dim"), (lambda: drop_labels(torch.tensor([11]), 10), "labels run from 11"),
])
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)
