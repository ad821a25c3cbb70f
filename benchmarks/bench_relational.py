"""Triplet loss, forward and backward, against the plain formula that materialises the N x N x D differences."""

from time import perf_counter

import pytest
import torch
from probe import in_a_process_of_its_own, needs_linux, peak_of
from torch.nn import functional as F

from kdnotes.losses.relational import triplet_loss


def plain(s, t):
    """The textbook form: unit differences, their products, Huber."""

    def cosines(x):
        e = F.normalize(x[None] - x[:, None], dim=2)
        return e @ e.mT

    return F.smooth_l1_loss(cosines(s), cosines(t.detach()))


LOSSES = {"plain": plain, "kdnotes": triplet_loss}


def step(loss, N, D_s, D_t):
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(N, D_s, generator=g).requires_grad_(), torch.randn(N, D_t, generator=g)
    return lambda: torch.autograd.grad(loss(s, t), s)[0]


def peak_of_one_step(name: str) -> float:
    """Peak of resident memory, in MiB above what the process held before, of one step at N = 256, D = 512."""
    return peak_of(step(LOSSES[name], 16, 512, 512), step(LOSSES[name], 256, 512, 512))


@pytest.mark.parametrize(("N", "D_s", "D_t", "threads", "rounds", "at_least"),
                         [(256, 512, 512, 2, 5, 5.0), (96, 32, 128, 1, 30, 1.0)])
def test_time_of_the_triplet_loss(benchmark, N, D_s, D_t, threads, rounds, at_least):
    fast, slow, seconds = step(triplet_loss, N, D_s, D_t), step(plain, N, D_s, D_t), []

    def time_the_plain_one():                              # before every round, so that both see the same machine
        start = perf_counter()
        slow()
        seconds.append(perf_counter() - start)

    torch.testing.assert_close(fast(), slow(), rtol=1e-3, atol=1e-7)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        benchmark.pedantic(fast, setup=time_the_plain_one, rounds=rounds)
    finally:
        torch.set_num_threads(before)
    best, plain_best = benchmark.stats["min"], min(seconds)
    benchmark.extra_info["ratio"] = ratio = plain_best / best
    print(f"\ntriplet loss, N={N}, D={D_s}/{D_t}, threads={threads}: plain {1e3 * plain_best:.1f} ms, kdnotes "
          f"{1e3 * best:.1f} ms: {ratio:.1f}x (at least {at_least:.0f}x)")
    assert ratio >= at_least


@needs_linux
def test_memory_of_the_triplet_loss():
    used = {name: in_a_process_of_its_own(__file__, "peak_of_one_step", name) for name in LOSSES}
    ratio = used["plain"] / used["kdnotes"]
    print(f"\ntriplet loss, N=256, D=512: peak memory plain {used['plain']:.0f} MiB, kdnotes {used['kdnotes']:.0f} "
          f"MiB: 1/{ratio:.0f} (at most 1/4)")
    assert ratio >= 4
