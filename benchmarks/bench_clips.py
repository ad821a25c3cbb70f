"""Clips of faces: drawn frames a second, perturbations of a batch against a loop over frames, and a step of natural
consistency with one pass of the CNN against the plain form with a pass for each view.
"""

from time import perf_counter

import pytest
import torch

from kdnotes.data.clips import toytalk
from kdnotes.data.perturb import LEVELS, perturb
from kdnotes.losses.consistency import NaturalConsistency, draw_mask, draw_shuffle, spm_loss, tcm_loss
from kdnotes.models.video import video_net

CORES = 2


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(CORES)
    yield
    torch.set_num_threads(before)


def raced(fast, slow, benchmark, rounds: int) -> float:
    """How many times as long `slow` takes as `fast`, run before each of its rounds, so that both see one machine."""
    seconds = []

    def time_the_slow_one():
        start = perf_counter()
        slow()
        seconds.append(perf_counter() - start)

    benchmark.pedantic(fast, setup=time_the_slow_one, rounds=rounds)
    benchmark.extra_info["ratio"] = ratio = min(seconds) / benchmark.stats["min"]
    return ratio


def test_frames_a_second(benchmark):
    """At least 400 forged or real frames of 32 x 32, the same bytes for any chunk."""
    counts = {"real": 32, "DF": 16, "NT": 16}
    assert torch.equal(toytalk(counts, chunk=5).clips, toytalk(counts).clips)
    benchmark.pedantic(toytalk, args=(counts,), rounds=3)
    rate = 64 * 16 / benchmark.stats["min"]
    print(f"\n{rate:,.0f} frames of 32 x 32 a second on {CORES} threads (needed: 400)")
    assert rate >= 400


def test_perturbations_of_a_batch(benchmark):
    """All seven at level 3, against frame after frame."""
    clips = toytalk({"real": 32}, frames=12).clips

    def loop():
        for name in LEVELS:
            for frame in clips.flatten(0, 1)[:, None, None]:
                perturb(frame, name, 3)

    ratio = raced(lambda: [perturb(clips, name, 3) for name in LEVELS], loop, benchmark, 3)
    print(f"\nseven perturbations of 384 frames: {benchmark.stats['min'] * 1e3:.0f} ms, {ratio:.1f}x a loop "
          f"(at least 5x)")
    assert ratio >= 5


def test_one_pass_of_the_cnn(benchmark):
    """A step at batch 32, 12 frames of 32 x 32, with the gradients of the plain form."""
    clips = toytalk({"real": 32}, frames=12).clips
    torch.manual_seed(0)
    net, step = video_net().train(), NaturalConsistency()
    parameters = [*net.parameters(), *step.parameters()]

    def one_pass():
        g = torch.Generator().manual_seed(3)
        return torch.autograd.grad(step(net.frame(clips), net.time, generator=g).loss, parameters)

    def pass_for_each_view():
        g = torch.Generator().manual_seed(3)
        masks = [draw_mask(32, 12, 6, g)]
        order = draw_shuffle(32, 12, "mixed", g)
        masks += [draw_mask(32, 12, 2, g) for _ in range(3)]
        shuffled = clips.gather(1, order.view(32, 12, 1, 1, 1).expand_as(clips))
        seen = [net.time(torch.where(M[..., None], step.mask_token, net.frame(X)))
                for X, M in zip((clips, clips, clips, shuffled), masks)]
        u = step.projector(torch.cat([view.clip for view in seen[1:]])).chunk(3)
        loss = spm_loss(step.predictor(seen[0].tokens), net.frame(clips), masks[0]) + tcm_loss(*u)
        return torch.autograd.grad(loss, parameters)

    for a, b in zip(one_pass(), pass_for_each_view()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    ratio = raced(one_pass, pass_for_each_view, benchmark, 5)
    print(f"\nstage 1, batch 32 of 12 x 32 x 32: {benchmark.stats['min'] * 1e3:.0f} ms, {ratio:.1f}x faster than a "
          f"pass for each view (at least 2.2x)")
    assert ratio >= 2.2
