"""Learning from crowds, against the plain way of writing it, at the shape of CIFAR-10N:
batch 128, 747 annotators, 10 classes, three labels an item.

`pytest benchmarks/bench_crowds.py`: each test times both ways in one run, prints the ratio and asserts it.
"""

import copy
import time

import numpy as np
import pytest
import torch

from kdnotes.condense.study import LiveBytes
from kdnotes.crowdlearn.committee import couple
from kdnotes.data.synthetic_crowds import answers, draw_assignment, draw_rates, symmetric, synthetic
from kdnotes.losses.crowd import crowd_nll
from kdnotes.metrics.aggregate import dawid_skene
from kdnotes.models.classifiers import build
from kdnotes.papers import ccc
from kdnotes.runtime import make_fabric

B, R, C, G, ETA = 128, 747, 10, 30, 0.01


def fastest(function, repeats):
    """Seconds of the fastest of `repeats` calls, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def dense_nll(p, T, target, V=None, groups=None):
    """The likelihood with one-hot targets `(B, R, C)` that are all zero where there is no label."""
    scores = torch.einsum("bc,rcl->brl", p, T if V is None else T + V[groups])
    given = target.sum(2)
    return -((scores.softmax(2) * target).sum(2) + 1e-5).log().mul(given).sum() / given.sum()


def make_crowd(items, seed=0):
    """Pictures of noise with three labels each by annotators who work unequally hard."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(C, (items,), generator=g)
    pictures = torch.randint(256, (items, 3, 32, 32), generator=g, dtype=torch.uint8)
    return synthetic(pictures, truth, tuple("0123456789"), "IND-D", annotators=R, labels_per_item=3,
                            seed=seed).crowd


def one_hot(annotations, batch):
    return torch.zeros(batch, R, C).index_put(tuple(annotations), torch.tensor(1.0))


def network():
    class Float(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = build("resnet8", C)

        def forward(self, x):
            return self.network(x.float() / 255)

    return Float()


def report(what, ratio, least):
    print(f"\n{what}: {ratio:.1f}x (at least {least}x asked)")
    assert ratio >= least, f"{what}: {ratio:.2f}x, at least {least}x is asked"


@pytest.fixture
def batch():
    crowd = make_crowd(B)
    annotations = crowd.annotations(torch.arange(B))
    g = torch.Generator().manual_seed(0)
    z = torch.randn(B, C, generator=g, requires_grad=True)
    T = torch.eye(C).repeat(R, 1, 1).requires_grad_()
    return crowd, annotations, z, T, one_hot(annotations, B)


def test_sparse_likelihood(batch, benchmark):
    _, annotations, z, T, target = batch
    sparse = lambda: torch.autograd.grad(crowd_nll(z.softmax(1), T, *annotations), (z, T))
    dense = lambda: torch.autograd.grad(dense_nll(z.softmax(1), T, target), (z, T))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(sparse(), dense()))
    peaks = []
    for way in (dense, sparse):
        with LiveBytes() as memory:
            way()
        peaks.append(memory.peak)
    benchmark.pedantic(sparse, rounds=20, warmup_rounds=3)
    report("sparse likelihood, forward and backward: time", fastest(dense, 15) / fastest(sparse, 50), 10)
    report("sparse likelihood, forward and backward: memory, one-hot targets not counted", peaks[0] / peaks[1], 10)


def test_head_only_correction(benchmark):
    crowd = make_crowd(2 * B)
    expert = couple(network, crowd).experts[0].train()
    index, annotations = torch.arange(B), crowd.annotations(torch.arange(B))
    groups, meta = torch.arange(R) % G, (crowd.features[B:], torch.arange(B) % C)
    with_graph = lambda: expert(crowd.features[index])
    shared = with_graph()  # the real step needs this forward pass anyway
    closed = lambda: ccc.head_gradient(expert, shared, annotations, meta, groups, G, ETA)

    def naive(active):
        copied = copy.deepcopy(expert)
        return ccc.naive_gradient(copied, copied(crowd.features[index]), annotations, meta, groups, G, ETA,
                                  active=active)

    same = [way()[0] for way in (closed, lambda: naive("head"))]
    assert (same[0] - same[1]).abs().max() < 1e-3 * same[1].abs().max()
    ours = fastest(closed, 5)
    benchmark.pedantic(closed, rounds=3)
    with_forward = fastest(lambda: ccc.head_gradient(expert, with_graph(), annotations, meta, groups, G, ETA), 3)
    full, detached = fastest(lambda: naive("all"), 3), fastest(lambda: naive("head"), 3)
    print(f"\nmilliseconds: closed {1e3 * ours:.0f}, with its forward pass {1e3 * with_forward:.0f}; copied network, "
          f"double backward: all layers {1e3 * full:.0f}, detached {1e3 * detached:.0f}")
    report("head-only correction against naive double backward", full / ours, 3)


def test_dawid_skene_of_150_000_annotations(benchmark):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, C, 50_000)
    item, annotator = draw_assignment(draw_rates(R, 3.1, 0.5, rng), 50_000, rng)
    # 82 % of the labels are right, as in CIFAR-10N
    theta = np.stack([symmetric(C, tau) for tau in rng.beta(2, 9, R)])
    label = answers(truth, item, annotator, theta, rng)
    assert len(item) > 150_000 and abs((label == truth[item]).mean() - 0.82) < 0.03
    merge = lambda: dawid_skene(item, annotator, label)
    found = benchmark.pedantic(merge, rounds=1)
    seconds = fastest(merge, 3)
    print(f"\nDawid-Skene, {len(item)} annotations, {len(found.log_likelihood)} iterations: "
          f"{seconds:.2f} s (under 1 s asked)")
    assert seconds < 1


def plain_epoch(committee, crowd, optimizers, meta_size):
    """As the formulas read:
    dense targets, a copied network a batch, double backward, a pass over the data for each class.
    """
    meta, T_groups = [], []
    for expert in committee.experts:
        chosen = [], []
        for c in range(C):
            pool = crowd.item[crowd.label == c]
            with torch.no_grad():
                loss = torch.cat([-expert.eval()(crowd.features[part]).logits.log_softmax(1)[:, c]
                                  for part in pool.split(512)])
            chosen[0].append(pool[loss.argsort()[: meta_size // C]])
            chosen[1].append(torch.full((len(chosen[0][-1]),), c))
        meta.append(tuple(map(torch.cat, chosen)))
        T_groups.append(ccc.group_annotators(expert.head.T, G))
        expert.train()
    for index in torch.randperm(crowd.items).split(B):
        target, annotations = one_hot(crowd.annotations(index), len(index)), crowd.annotations(index)
        for m, (expert, optimizer) in enumerate(zip(committee.experts, optimizers)):
            copied, pick = copy.deepcopy(expert), torch.randperm(len(meta[1 - m][0]))[:B]
            test = crowd.features[meta[1 - m][0][pick]], meta[1 - m][1][pick]
            copied.head.forward = lambda seen, _, V, groups, copied=copied, target=target: dense_nll(
                seen.logits.softmax(1), copied.head.T, target, V, groups)
            D, T = ccc.naive_gradient(copied, copied(crowd.features[index]), annotations, test, T_groups[m], G, ETA,
                                      active="all")
            V = ccc.normalise_correction(D, T, 0.5)
            optimizer.zero_grad()
            dense_nll(expert(crowd.features[index]).logits.softmax(1), expert.head.T, target, V, T_groups[m]).backward()
            optimizer.step()


def test_an_epoch(benchmark):
    crowd, correction = make_crowd(4 * B), ccc.Correction(groups=G, meta_size=200, meta_batch=B)
    sgd = lambda module: torch.optim.SGD(module.parameters(), ETA, momentum=0.9, weight_decay=5e-4)
    plain, ours = couple(network, crowd), couple(network, crowd)
    optimizers, fabric = [sgd(expert) for expert in plain.experts], make_fabric("cpu", "fp32")
    optimizer = sgd(ours)
    run = lambda: ccc.fit(ours, crowd, optimizer=optimizer, epochs=1, warmup=0, correction=correction, batch_size=B,
                          fabric=fabric)
    benchmark.pedantic(run, rounds=1)
    report("an epoch of four batches",
           fastest(lambda: plain_epoch(plain, crowd, optimizers, 200), 2) / fastest(run, 2), 2)
