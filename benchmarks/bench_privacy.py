"""What privacy costs: the account of noisy votes, and the gradients of single records in a diffusion U-Net."""

import math
from time import perf_counter

import numpy as np
import torch
from probe import in_a_process_of_its_own, needs_linux, peak_of
from torch import Tensor

from kdnotes.models.diffusion import DenoisingMLP, Diffusion, UNet, denoising_losses
from kdnotes.privacy.pate import gnmax_rdp
from kdnotes.privacy.sanitize import clip_factors, clipped_sum, vmap_gradients

SIGMA, ORDERS = 40.0, np.geomspace(1.5, 500, 200)


def many_votes(queries: int = 10_000, teachers: int = 250, classes: int = 10) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.multinomial(teachers, rng.dirichlet(np.full(classes, 0.1), size=queries)))


def plain_rdp(votes: list[int], sigma: float, order: float) -> float:
    """The cost of one query at one order, as the formula stands."""
    top = max(votes)
    gaps = sorted(top - n for n in votes)[1:]
    q = min(sum(math.erfc(gap / (2 * sigma)) for gap in gaps) / 2, 1 - 1 / len(votes))
    free = order / sigma**2
    if q <= 0 or q >= 1:
        return free
    mu2 = sigma * math.sqrt(math.log(1 / q))
    mu1 = mu2 + 1
    if order >= mu1 or mu2 <= 1:
        return free
    eps1, eps2 = mu1 / sigma**2, mu2 / sigma**2
    edge = (mu2 - 1) * eps2 - mu2 * math.log(mu1 / (mu1 - 1) * mu2 / (mu2 - 1))
    if eps2 >= math.log(1 / q) or math.log(q) > edge:
        return free
    log_a = math.log1p(-q) - math.log1p(-math.exp((math.log(q) + eps2) * (1 - 1 / mu2)))
    log_b = eps1 - math.log(q) / (mu1 - 1)
    terms = np.logaddexp(math.log1p(-q) + (order - 1) * log_a, math.log(q) + (order - 1) * log_b)
    return min(free, max(float(terms) / (order - 1), 0.0))


def test_time_of_the_account_of_votes(benchmark):
    votes = many_votes()
    rows, slow, seconds = votes[:5].tolist(), np.empty((5, 200)), []

    def loop_over_a_few():                                  # before every round, so that both see the same machine
        start = perf_counter()
        for i, row in enumerate(rows):
            for j, order in enumerate(ORDERS):
                slow[i, j] = plain_rdp(row, SIGMA, order)
        seconds.append((perf_counter() - start) * len(votes) / len(rows))

    loop_over_a_few()
    np.testing.assert_allclose(gnmax_rdp(votes[:5], SIGMA, ORDERS), slow, rtol=1e-6, atol=1e-12)
    benchmark.pedantic(lambda: gnmax_rdp(votes, SIGMA, ORDERS).sum(0), setup=loop_over_a_few, rounds=3)
    best = benchmark.stats["min"]
    benchmark.extra_info["ratio"] = ratio = min(seconds) / best
    print(f"\nAccount of 10,000 queries at 200 orders: a loop {min(seconds):.0f} s, kdnotes {best:.2f} s (at most "
          f"0.5): {ratio:.0f}x (at least 100x)")
    assert best < 0.5 and ratio >= 100


CHAIN = Diffusion(500)


def denoising(network, x_0, r, noise, y):
    return denoising_losses(CHAIN, network, x_0, r, noise, y)


def batch_of(rows: int, side: int) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x_0, noise = torch.randn(2, rows, 1, side, side)
    return x_0, torch.randint(1, 501, (rows,)), noise, torch.randint(10, (rows,))


def unet_batch(rows: int) -> tuple[UNet, tuple[Tensor, ...]]:
    """DPDM's network for 28 x 28 pictures, some way from its start, where half of it is silent."""
    torch.manual_seed(1)
    net = UNet(null=False)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.02 * torch.randn_like(p)
    return net, batch_of(rows, 28)


def plain_sum(net, loss, batch, clip, draws=1):
    """All per-record gradients by vmap of grad, K passes one after another, then the clip."""
    each = [vmap_gradients(net, loss, [x[k::draws] for x in batch]) for k in range(draws)]
    mean = {name: sum(g[name] for g in each) / draws for name in each[0]}
    norms = torch.stack([g.flatten(1).square().sum(1) for g in mean.values()]).sum(0).sqrt()
    factors = clip_factors(norms, clip)
    return {name: torch.tensordot(factors, g, 1) for name, g in mean.items()}


CHUNK = 16                                                  # records at a time; the sum does not depend on it
STEPS = {"vmap": plain_sum,
         "vmap in chunks": lambda *given: clipped_sum(*given, method="vmap", chunk=CHUNK).sums,
         "ghost": lambda *given: clipped_sum(*given, method="ghost").sums,
         "ghost in chunks": lambda *given: clipped_sum(*given, method="ghost", chunk=CHUNK).sums}


def peak_of_gradients(name: str) -> float:
    """Peak of resident memory, in MiB above what the process held before, of the clipped sum of 64 records."""
    net, batch = unet_batch(64)
    few = [x[:1] for x in batch]
    return peak_of(lambda: STEPS[name](net, denoising, few, 1.0), lambda: STEPS[name](net, denoising, batch, 1.0))


@needs_linux
def test_ghost_norms_in_a_unet(benchmark):
    """On a CPU the time is that of the products, which are no fewer: what ghost norms save there is memory."""
    net, batch = unet_batch(64)
    ghost, seconds, expected = (lambda: STEPS["ghost in chunks"](net, denoising, batch, 1.0)), [], []

    def time_vmap():                                        # before every round, so that both see the same machine
        start = perf_counter()
        expected.append(plain_sum(net, denoising, batch, 1.0))
        seconds.append(perf_counter() - start)

    found = ghost()
    time_vmap()
    flat = lambda sums: torch.cat([sums[name].flatten() for name in found])     # a key's bias alone has no gradient
    assert float((flat(found) - flat(expected[0])).norm() / flat(found).norm()) < 1e-5
    benchmark.pedantic(ghost, setup=time_vmap, rounds=1)
    speed = min(seconds) / benchmark.stats["min"]
    used = {name: in_a_process_of_its_own(__file__, "peak_of_gradients", name) for name in STEPS}
    memory = used["vmap"] / used["ghost in chunks"]
    benchmark.extra_info["ratio"] = memory
    print(f"\nClipped sum of 64 records, a U-Net of {sum(p.numel() for p in net.parameters()):,} weights: vmap "
          f"{min(seconds):.2f} s, ghost norms in chunks of {CHUNK} {benchmark.stats['min']:.2f} s ({speed:.1f}x); peak "
          f"memory {', '.join(f'{name} {mib:.0f} MiB' for name, mib in used.items())}: 1/{memory:.1f} (at most 1/4)")
    assert memory >= 4


def test_eight_draws_in_one_batch(benchmark):
    torch.manual_seed(0)
    net, batch, seconds = DenoisingMLP(null=False), batch_of(8 * 64, 8), []

    def time_eight_passes():                                # before every round, so that both see the same machine
        start = perf_counter()
        plain = plain_sum(net, denoising, batch, 1.0, draws=8)
        seconds.append(perf_counter() - start)
        return plain

    plain = time_eight_passes()
    for name, total in clipped_sum(net, denoising, batch, 1.0, draws=8).sums.items():
        torch.testing.assert_close(total, plain[name], rtol=1e-4, atol=1e-5)
    one_batch = lambda: clipped_sum(net, denoising, batch, 1.0, draws=8)
    benchmark.pedantic(one_batch, setup=lambda: time_eight_passes() and None, rounds=5)
    benchmark.extra_info["ratio"] = ratio = min(seconds) / benchmark.stats["min"]
    print(f"\nEight draws of 64 records: eight passes {1e3 * min(seconds):.0f} ms, one batch "
          f"{1e3 * benchmark.stats['min']:.0f} ms: {ratio:.1f}x (at least 1.5x)")
    assert ratio >= 1.5
