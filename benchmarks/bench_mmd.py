"""Discrepancy of CIFAR-10-shaped features (10 classes, 40 learned against 128 real rows of 2048),
forward and backward, against the n x m x d broadcast.
"""

from time import perf_counter

import torch
from probe import in_a_process_of_its_own, needs_linux, peak_of

from kdnotes.losses.mmd import mmd2


def plain(x, y):
    """The research form: one class at a time, all pairs of the pooled sample by broadcasting."""
    total = 0.0
    for a, b in zip(x, y):
        z = torch.cat([a, b])
        D = (z[:, None] - z[None]).square().sum(2)
        unit = D.detach().sum() / (len(z) * (len(z) - 1))
        K = sum(torch.exp(-D / (unit * q)) for q in (0.25, 0.5, 1, 2, 4))
        n = len(a)
        total = total + K[:n, :n].mean() - 2 * K[:n, n:].mean() + K[n:, n:].mean()
    return total


LOSSES = {"plain": plain, "kdnotes": lambda x, y: mmd2(x, y).sum()}


def step(loss, classes=10, d=2048):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(classes, 40, d, generator=g).requires_grad_(), torch.randn(classes, 128, d, generator=g)
    return lambda: torch.autograd.grad(loss(x, y), x)[0]


def peak_of_one_step(name: str) -> float:
    """Peak of resident memory, in MiB above what the process held before, of one step."""
    return peak_of(step(LOSSES[name], 1, 64), step(LOSSES[name]))


def test_time_of_the_discrepancy(benchmark):
    fast, slow, seconds = step(LOSSES["kdnotes"]), step(plain), []

    def time_the_plain_one():                              # before every round, so that both see the same machine
        start = perf_counter()
        slow()
        seconds.append(perf_counter() - start)

    torch.testing.assert_close(fast(), slow(), rtol=1e-3, atol=1e-6)
    benchmark.pedantic(fast, setup=time_the_plain_one, rounds=3)
    best, plain_best = benchmark.stats["min"], min(seconds)
    benchmark.extra_info["ratio"] = ratio = plain_best / best
    print(f"\nMMD, 10 classes, 40 against 128 rows of 2048: plain {1e3 * plain_best:.0f} ms, kdnotes {1e3 * best:.1f} "
          f"ms: {ratio:.0f}x (at least 5x)")
    assert ratio >= 5


@needs_linux
def test_memory_of_the_discrepancy():
    used = {name: in_a_process_of_its_own(__file__, "peak_of_one_step", name) for name in LOSSES}
    ratio = used["plain"] / used["kdnotes"]
    print(f"\nMMD: peak memory plain {used['plain']:.0f} MiB, kdnotes {used['kdnotes']:.0f} MiB: "
          f"1/{ratio:.0f} (at most 1/5)")
    assert ratio >= 5
