"""Networks for clips: sizes, the Transformer against a slow reference in float64, and what order can and cannot change."""

import math

import pytest
import torch

from kdnotes.checks import refused
from kdnotes.data.clips import toytalk
from kdnotes.models.video import ForgeryHead, FrameEncoder, OverTime, Recurrent, Seen, Still, VideoNet, moments, sinusoids, video_net

ORDER = torch.tensor([3, 0, 5, 1, 4, 2])


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_sizes_of_the_networks():
    assert count(video_net()) == 346_160
    assert count(FrameEncoder("resnet18", 112, 256).trunk) == 2_782_784
    assert count(FrameEncoder("dpc18", 112, 256).trunk) == 5_210_176
    assert count(FrameEncoder("resnet18", 112, 256).project) == 256 * 256 + 256 + 512


@pytest.mark.parametrize("cnn, grid, tokens", [("small", False, 3), ("resnet18", False, 3), ("resnet18", True, 3 * 4), ("dpc18", True, 3), ("dpc18", False, 3)])
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_shapes(cnn, grid, tokens, pool):
    net = video_net(cnn, 32, 16, 1, 4, pool=pool, grid=grid)
    v, Z = net(torch.rand(2, 3, 3, 32, 32))
    assert v.shape == (2, 16) and Z.shape == (2, tokens, 16)
    if pool == "mean":
        torch.testing.assert_close(v, Z.mean(1))


def test_the_last_block_of_dpc_may_be_negative_and_keeps_no_statistics():
    trunk = FrameEncoder("dpc18", 64, 16).trunk
    assert trunk(torch.rand(2, 3, 64, 64)).min() < 0 and not list(trunk.buffers())


def test_bytes_and_floats_are_the_same():
    clips, net = toytalk({"real": 1}, frames=3).clips, video_net().eval()
    torch.testing.assert_close(net(clips).clip, net(clips.float() / 255).clip)


@pytest.mark.parametrize("training", [True, False])
def test_shuffled_frames_are_shuffled_features(training):
    g = FrameEncoder(size=16, d=8).train(training)
    X = torch.rand(2, 6, 3, 16, 16)
    torch.testing.assert_close(g(X[:, ORDER]), g(X)[:, ORDER], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_order_is_seen_through_positions_alone(pool):
    torch.manual_seed(0)
    net, f = OverTime(16, 2, 4, 8, pool).eval(), torch.randn(3, 6, 16)
    assert (net(f[:, ORDER]).clip - net(f).clip).norm(dim=1).min() > 1e-3
    still = f[:, :1].expand(-1, 6, -1)
    torch.testing.assert_close(net(still[:, ORDER]).clip, net(still).clip)
    net.positions.zero_()
    torch.testing.assert_close(net(f[:, ORDER]).clip, net(f).clip, atol=1e-5, rtol=1e-5)


def slow(net, features):
    """The formulas, with a loop over clips and heads."""
    norm = lambda x, layer: (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias
    clips = []
    for f in features:
        z = f + net.positions[: len(f)]
        z = z if net.cls is None else torch.cat([net.cls[None], z])
        for block in net.blocks:
            u, heads = norm(z, block.before_attention), []
            size = u.shape[1] // block.heads
            W, b = block.qkv.weight.view(3, block.heads, size, -1), block.qkv.bias.view(3, block.heads, size)
            for h in range(block.heads):
                q, k, v = (u @ W[i, h].T + b[i, h] for i in range(3))
                heads.append((q @ k.T / math.sqrt(size)).softmax(-1) @ v)
            z = z + torch.cat(heads, 1) @ block.out.weight.T + block.out.bias
            u = norm(z, block.before_mlp) @ block.mlp[0].weight.T + block.mlp[0].bias
            z = z + (0.5 * u * (1 + torch.erf(u / 2**0.5))) @ block.mlp[2].weight.T + block.mlp[2].bias
        Z = norm(z, net.norm)
        clips.append(Z[0] if net.cls is not None else Z.mean(0))
    return torch.stack(clips)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_transformer_against_its_formulas(pool):
    torch.manual_seed(0)
    net, f = OverTime(24, 3, 4, 8, pool).double(), torch.randn(2, 7, 24, dtype=torch.float64)
    torch.testing.assert_close(net(f).clip, slow(net, f), rtol=1e-10, atol=1e-10)
    single = net.float()(f.float()).clip.double()
    assert (single - slow(net.double(), f)).norm() < 1e-5 * single.norm()


def test_positions_by_hand():
    P = sinusoids(5, 96)
    for t, k in ((0, 0), (3, 7), (4, 47)):
        angle = 1.5 * t * 40 ** (-k / 48)
        assert math.isclose(P[t, k].item(), math.sin(angle), abs_tol=1e-6) and math.isclose(P[t, 48 + k].item(), math.cos(angle), abs_tol=1e-6)
    assert math.isclose(sinusoids(2, 4, 1.0, 1e4)[1, 1].item(), math.sin(0.01), rel_tol=1e-5)


def test_tokens_of_one_frame_share_its_time_and_differ_in_place():
    P = OverTime(16, 1, 4, 3, grid=2).positions.view(3, 4, 16)
    torch.testing.assert_close(P[1] - P[0], (P[1] - P[0])[:1].expand(4, -1))
    assert len(P[0].unique(dim=0)) == 4


def test_still_judges_frames_alone_and_a_recurrence_their_past():
    f = torch.randn(2, 6, 8)
    torch.testing.assert_close(Still()(f[:, ORDER]).clip, Still()(f).clip)
    gru = Recurrent(8)
    changed = f.clone()
    changed[:, 3] += 1
    assert torch.equal(gru(changed).tokens[:, :3], gru(f).tokens[:, :3]) and not torch.equal(gru(changed).tokens[:, 3:], gru(f).tokens[:, 3:])


@pytest.mark.parametrize("read", ["moments", "clip", "tokens"])
def test_heads_give_one_logit_a_clip(read):
    seen = Seen(torch.randn(6, 8), torch.randn(6, 5, 8))
    head = ForgeryHead(8, 4, read=read).eval()
    assert head(seen).shape == (6,)
    if read == "tokens":
        each = head.mlp(seen.tokens)[..., 0]
        torch.testing.assert_close(head(seen), each.mean(1))
    inputs = head.inputs(seen)
    head.standardise(inputs)
    scaled = ((inputs - head.mean) / head.std).flatten(0, -2)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(scaled.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(0), torch.ones(scaled.shape[1]))


def test_moments_of_a_still_clip_have_a_gradient():
    z = torch.ones(2, 4, 3, requires_grad=True)
    made = moments(z)
    made.sum().backward()
    torch.testing.assert_close(made, torch.tensor([[1.0, 1, 1, 0, 0, 0]] * 2), atol=1e-6, rtol=0)
    assert z.grad.isfinite().all()
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(moments(x), torch.cat([x.mean(1), x.std(1, unbiased=False)], 1))


def test_what_does_not_fit_is_refused():
    net = video_net(size=16, d=8, heads=2, frames=4)
    assert "built for size=16" in refused(net, torch.rand(1, 3, 3, 32, 32))
    assert "expected a tensor (B, T, 3, 16, 16)" in refused(net, torch.rand(3, 3, 16, 16))
    assert "at most 4" in refused(net, torch.rand(1, 5, 3, 16, 16))
    assert "do not part d = 10" in refused(video_net, d=10, heads=4)
    assert "'resnet18'" in refused(FrameEncoder, "small", 32, 8, True)
    assert "'mean' or 'cls'" in refused(OverTime, pool="max")
    assert isinstance(net, VideoNet)
