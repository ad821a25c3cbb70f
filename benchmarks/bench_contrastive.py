"""Relational contrast, forward and backward, against the form that gives every pair (i, j) its own n chance relations:
a tensor A x B x (n + 1) x p.
"""

from time import perf_counter

import torch
from probe import in_a_process_of_its_own, needs_linux, peak_of

from kdnotes.losses.contrastive import noise_contrast, shared_negatives
from kdnotes.losses.relation_contrast import RelationContrast

B, N, P, D_S, D_T, M, CLASSES = 96, 512, 128, 512, 512, 8192, 100


def made(n: int) -> tuple:
    """A relational contrast whose teacher memory is full, embeddings of both sides and which samples they are."""
    torch.manual_seed(0)
    model = RelationContrast(D_S, D_T, torch.arange(M) % CLASSES, n=n, p=P).eval()
    model.fill(torch.randn(M, D_T))
    return model, torch.randn(B, D_S).requires_grad_(), torch.randn(B, D_T), torch.arange(B)


def factored(model, s, t, index, generator):
    return model(s, t, index, generator)


def naive(model, s, t, index, generator):
    """The same value:
    the true relation and the n chance relations of every pair side by side, then one product with the cross relation.
    """
    side, keys = model.sides["teacher"], model.keys[index]
    drawn, valid = shared_negatives(keys, side.bank.keys, side.n, side.size, generator)
    # (B, n): each sample's own chance samples
    k = drawn[valid.nonzero()[:, 1].view(len(s), side.n)]
    v_t, v_ts = model.within(t[:, None], t), model.across(t[:, None], s)
    # generous: every relation computed once, then copied
    chance = model.within(t[:, None], side.bank.rows[drawn])
    place = torch.zeros(M, dtype=torch.long).scatter(0, drawn, torch.arange(len(drawn)))[k]
    pairs = torch.cat([v_t[:, :, None], chance[:, place]], 2)                   # (A, B, n + 1, p)
    scores = torch.einsum("abp,abkp->abk", v_ts, pairs)
    each = noise_contrast(side.critic, scores[..., 0], scores[..., 1:])
    different = 1 - torch.eye(len(s))
    return (each * different).sum() / different.sum()


LOSSES = {"naive": naive, "kdnotes": factored}


def step(name: str, n: int = N):
    model, s, t, index = made(n)
    parameters = [s, *model.parameters()]
    return lambda: torch.autograd.grad(LOSSES[name](model, s, t, index, torch.Generator().manual_seed(0)), parameters)


def peak_of_one_step(name: str) -> float:
    """Peak of resident memory, in MiB above what the process held before, of one step at B = 96, n = 512, p = 128."""
    return peak_of(step(name, 8), step(name))


def test_time_of_the_relational_contrast(benchmark):
    fast, slow, seconds = step("kdnotes"), step("naive"), []

    def time_the_naive_one():                              # before every round, so that both see the same machine
        start = perf_counter()
        slow()
        seconds.append(perf_counter() - start)

    for a, b in zip(fast(), slow()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        benchmark.pedantic(fast, setup=time_the_naive_one, rounds=3)
    finally:
        torch.set_num_threads(before)
    best, naive_best = benchmark.stats["min"], min(seconds)
    benchmark.extra_info["ratio"] = ratio = naive_best / best
    print(f"\nrelational contrast, B={B}, n={N}, p={P}: naive {naive_best:.2f} s, kdnotes {best:.2f} s: "
          f"{ratio:.1f}x (at least 3x)")
    assert ratio >= 3


@needs_linux
def test_memory_of_the_relational_contrast():
    used = {name: in_a_process_of_its_own(__file__, "peak_of_one_step", name) for name in LOSSES}
    ratio = used["naive"] / used["kdnotes"]
    print(f"\nrelational contrast, B={B}, n={N}, p={P}: peak memory naive {used['naive']:.0f} MiB, kdnotes "
          f"{used['kdnotes']:.0f} MiB: 1/{ratio:.0f} (at most 1/10)")
    assert ratio >= 10
