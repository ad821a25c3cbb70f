"""Face embedders:
sizes, shapes at every size, BatchNorm after every convolution, gradients, the pair with a margin head, bad input.
"""
import pytest
import torch
from torch import nn

from kdnotes.losses.margin import ArcFace, CosFace
from kdnotes.models.classifiers import Prediction, count_parameters
from kdnotes.models.embedders import Embedder, ImprovedResidual, Recogniser, embedder, names
from kdnotes.train import predict

SMALL = [("smallface", 16), ("smallface", 33), ("iresnet18", 16), ("face_resnet18", 16)]


def ghost(name, **options):
    with torch.device("meta"):
        return embedder(name, **options)


def test_sizes():
    """Millions of weights at 112 pixels and 512 features;
    the structure is that of the ArcFace authors' code, counted block by block in the notebook.
    """
    millions = {"iresnet18": 24.03, "iresnet34": 34.14, "iresnet50": 43.59, "iresnet100": 65.16}
    assert {name: round(count_parameters(ghost(name)) / 1e6, 2) for name in millions} == millions
    exact = {"iresnet18": 24_025_600, "iresnet50": 43_590_848}
    assert {name: count_parameters(ghost(name)) for name in exact} == exact


def test_depth_is_what_the_name_says():
    """Convolutions on the longest path and the linear layer: 18, 34, 50, 100."""
    for name, depth in (("iresnet18", 18), ("iresnet34", 34), ("iresnet50", 50), ("iresnet100", 100)):
        assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in ghost(name).modules()) + 1 == depth


@pytest.mark.parametrize("name, size", [*((name, size) for name in names() for size in (16, 24, 64, 112)),
                                        ("smallface", 8), ("iresnet18", 15), ("face_resnet18", 65)])
def test_embeddings_have_the_announced_shape(name, size):
    net = ghost(name, dim=64, size=size)
    assert net.eval()(torch.empty(2, 3, size, size, device="meta")).shape == (2, 64) and net.feature_dim == 64


@pytest.mark.parametrize("name, size, side", [("iresnet18", 16, 2), ("face_resnet18", 16, 2), ("iresnet50", 112, 7),
                                              ("face_resnet50", 112, 4), ("smallface", 16, 4)])
def test_the_stem_keeps_small_faces_whole(name, size, side):
    net = ghost(name, size=size)
    maps = net.trunk(torch.empty(1, 3, size, size, device="meta"))
    assert maps.shape[2:] == (side, side)
    if size == 16:
        first = next(iter(net.trunk))(torch.empty(1, 3, size, size, device="meta"))
        assert first.shape[2:] == (16, 16) and not any(isinstance(m, nn.MaxPool2d) for m in net.modules())


@pytest.mark.parametrize("name", names())
def test_every_convolution_is_followed_by_a_normalisation(name):
    """Scaling the weights of any convolution changes nothing under batch statistics."""
    layers = [m for m in ghost(name, size=16).modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    assert all(conv.bias is None for conv in layers if isinstance(conv, nn.Conv2d))
    if name in ("iresnet50", "iresnet100", "iresnet34", "face_resnet50"):
        return
    torch.manual_seed(0)
    net, x = embedder(name, dim=8, size=16).double().train(), torch.rand(8, 3, 16, 16, dtype=torch.float64)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            layer.eps = 1e-12
    before = net(x)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight *= 3.0
    assert torch.allclose(net(x), before, atol=1e-4)


@pytest.mark.parametrize("name, size", SMALL)
def test_gradients_reach_every_weight(name, size):
    model = Recogniser(embedder(name, dim=16, channels=1, size=size), CosFace(16, 5, scale=16.0))
    out = model(torch.rand(4, 1, size, size))
    assert isinstance(out, Prediction) and out.logits.shape == (4, 5) and out.features.shape == (4, 16)
    model.head(out.features, torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["embedder.head.4.weight"]


def test_the_head_normalises_and_drops():
    torch.manual_seed(0)
    net = embedder("smallface", dim=32, size=16, dropout=0.5)
    x = torch.rand(64, 3, 16, 16)
    f = net(x)
    assert torch.allclose(f.mean(0), torch.zeros(32), atol=1e-4) and not f.equal(net(x))
    net.eval()
    assert net(x).equal(net(x)) and torch.allclose(net(x[:3]), net(x)[:3], atol=1e-5)


def test_residual_block_equals_its_parts():
    torch.manual_seed(0)
    block, x = ImprovedResidual(4, 8, 2).eval(), torch.randn(3, 4, 9, 9)
    expected = block.shortcut[1](block.shortcut[0](x)) + block.branch(x)
    assert torch.allclose(block(x), expected) and block(x).shape == (3, 8, 5, 5) and block.branch[4].stride == (2, 2)
    assert block.branch[1].stride == (1, 1)


def test_a_recogniser_answers_like_a_classifier():
    model = Recogniser(embedder("smallface", dim=16, size=16), ArcFace(16, 7, scale=32.0))
    images = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8)
    logits, features = predict(model, images, batch_size=4)
    assert logits.shape == (10, 7) and torch.allclose(logits, model.head.logits(features), atol=1e-4)
    assert logits.abs().max() <= 32.001
    assert model.feature_dim == 16 and count_parameters(model) - count_parameters(model.embedder) == 7 * 16


@pytest.mark.parametrize("call, words", [
    (lambda: embedder("iresnet51"), ["'iresnet51'", "did you mean 'iresnet"]),
    (lambda: embedder("iresnet18", widths=(4,)), ["no option 'widths'", "it takes dropout"]),
    (lambda: embedder("iresnet18", size=4), ["size is 4", "at least 8"]),
    (lambda: embedder("smallface", size=3), ["size is 3", "at least 4"]),
    (lambda: embedder("smallface", dim=0), ["dim is 0"]),
    (lambda: embedder("smallface", size=16)(torch.zeros(2, 3, 32, 32)), ["(2, 3, 32, 32)", "(N, 3, 16, 16)"]),
    (lambda: embedder("smallface", size=16)(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)), ["uint8", "[0, 1]"]),
    (lambda: Recogniser(embedder("smallface", dim=8, size=16), ArcFace(16, 3)), ["8 features", "takes 16"]),
])
def test_bad_input_says_what_is_expected(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_embedder_is_a_trunk_and_a_head():
    net = embedder("smallface", dim=8, size=16, widths=(4, 8))
    assert isinstance(net, Embedder) and [name for name, _ in net.trunk.named_children()] == ["stage1", "stage2"]
    assert net.head[3].in_features == 8 * 8 * 8
