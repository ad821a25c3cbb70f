"""Triplet loss, forward and backward, against the plain formula that materialises the N x N x D differences."""

import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest
import torch
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


def resident(field: str) -> float:
    """MiB of resident memory of this process, now ("VmRSS") or at its peak ("VmHWM")."""
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))


def peak_of_one_step(name: str) -> float:
    """Peak of resident memory, in MiB above what the process held before, of one step at N = 256, D = 512."""
    torch.set_num_threads(2)
    step(LOSSES[name], 16, 512, 512)()
    run = step(LOSSES[name], 256, 512, 512)
    Path("/proc/self/clear_refs").write_text("5")     # the peak starts from here
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def in_a_process_of_its_own(name: str) -> float:
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import bench_relational; print(bench_relational.peak_of_one_step({name!r}))"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(("N", "D_s", "D_t", "threads", "rounds", "at_least"), [(256, 512, 512, 2, 5, 5.0), (96, 32, 128, 1, 30, 1.0)])
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
    print(f"\ntriplet loss, N={N}, D={D_s}/{D_t}, threads={threads}: plain {1e3 * plain_best:.1f} ms, kdnotes {1e3 * best:.1f} ms: {ratio:.1f}x (at least {at_least:.0f}x)")
    assert ratio >= at_least


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of resident memory as Linux tells it")
def test_memory_of_the_triplet_loss():
    used = {name: in_a_process_of_its_own(name) for name in LOSSES}
    ratio = used["plain"] / used["kdnotes"]
    print(f"\ntriplet loss, N=256, D=512: peak memory plain {used['plain']:.0f} MiB, kdnotes {used['kdnotes']:.0f} MiB: 1/{ratio:.0f} (at most 1/4)")
    assert ratio >= 4
