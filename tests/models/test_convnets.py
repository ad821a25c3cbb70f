"""Nets of dataset condensation: published sizes, features, independence of company."""

import pytest
import torch

from kdnotes.models.classifiers import build, count_parameters
from kdnotes.models.convnets import Halve, convnet

SIZES = [
    ("convnet3", {"classes": 10}, 320_010, 2048), ("convnet3", {"classes": 100}, 504_420, 2048),
    ("convnet3", {"classes": 10, "channels": 1, "size": 28}, 317_706, 2048),
    ("convnet3", {"classes": 200, "size": 64}, 1_938_120, 8192),
    ("convnet5", {"classes": 10, "size": 128}, 615_690, 2048), ("densenet121", {"classes": 10}, 1_000_618, 384),
    ("resnet18", {"classes": 10}, 11_173_962, 512),
]


def resnet10_weights(channels, classes, widths, kernel):
    """Convolutions without bias, a scale and an offset a channel after each, a linear layer: counted by hand."""
    total, before = kernel**2 * channels * widths[0] + 2 * widths[0], widths[0]
    for i, w in enumerate(widths):
        total += 9 * before * w + 9 * w * w + 4 * w + (before * w + 2 * w if i else 0)
        before = w
    return total + (before + 1) * classes


@pytest.mark.parametrize(("name", "shape", "weights", "features"), SIZES)
def test_published_sizes(name, shape, weights, features):
    with torch.device("meta"):
        net = build(name, **shape)
        assert count_parameters(net) == weights and net.feature_dim == features
        side = shape.get("size", 32)
        logits, found = net(torch.empty(1, shape.get("channels", 3), side, side))
    assert logits.shape == (1, shape["classes"]) and found.shape == (1, features)


@pytest.mark.parametrize(("name", "size", "widths", "kernel", "last"), [
    ("resnet10", 32, (32, 64, 128, 256), 3, 4), ("resnetap10", 32, (32, 64, 128, 256), 3, 4),
    ("resnet10_in", 28, (32, 64, 128, 256), 3, 4),
    ("resnetap10", 224, (64, 128, 256, 512), 7, 7), ("resnet10", 224, (64, 128, 256, 512), 7, 7),
    ("resnetap10", 128, (64, 128, 256, 512), 3, 8),
])
def test_resnet10_sizes_and_the_grid_of_its_last_stage(name, size, widths, kernel, last):
    with torch.device("meta"):
        net = build(name, 10, size=size)
        assert count_parameters(net) == resnet10_weights(3, 10, widths, kernel) and net.feature_dim == widths[-1]
        sides = []
        net.trunk.stage4.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
        assert net(torch.empty(1, 3, size, size)).logits.shape == (1, 10) and sides == [last]


def test_average_pooling_stands_where_strides_were():
    strides = [m.stride for m in build("resnetap10", 2, size=32).modules() if isinstance(m, torch.nn.Conv2d)]
    assert set(strides) == {(1, 1)}
    assert sum(s == (2, 2)
               for s in (m.stride for m in build("resnet10", 2).modules() if isinstance(m, torch.nn.Conv2d))) == 6


@pytest.mark.parametrize(("name", "options", "together"), [
    ("convnet3", {"width": 16}, True), ("resnetap10", {"widths": (4, 4, 4, 4)}, True),
    ("resnet10_in", {"widths": (4, 4, 4, 4)}, True),
    ("convnet3", {"width": 16, "norm_kind": "batch"}, False), ("resnet10", {"widths": (4, 4, 4, 4)}, False),
])
def test_classes_may_share_a_batch_with_instance_norm_only(name, options, together):
    torch.manual_seed(0)
    net, x = build(name, 10, **options), torch.randn(12, 3, 32, 32)
    alone = torch.cat([net(part).features for part in x.split(4)])
    gap = (alone - net(x).features).abs().max()
    assert gap < 1e-5 if together else gap > 1e-3


def test_convnet_is_written_as_published():
    trunk, width = convnet(1, 28)
    assert [type(m).__name__ for m in trunk[0]] == ["Conv2d", "GroupNorm", "ReLU", "Halve"] and width == 2048
    assert trunk[0][0].padding == (3, 3) and trunk[1][0].padding == (1, 1) and trunk[0][1].num_groups == 128
    assert trunk[0][1].affine
    assert convnet(3, 28)[0][0][0].padding == (1, 1) and convnet(3, 28)[1] == 128 * 9


@pytest.mark.parametrize(("call", "words"), [
    (lambda: build("convnet3", 10, size=4), "at least 8 pixels"),
    (lambda: build("convnet3", 10, norm_kind="layer"), "norm_kind is 'layer'"),
    (lambda: build("resnet10", 10, size=4), "at least 8 pixels"), (lambda: build("convnet9", 10), "did you mean"),
    (lambda: build("densenet121", 10, size=4), "at least 8 pixels"),
    (lambda: build("convnet3", 10, depth=2), "it takes embedding, norm_kind, width"),
])
def test_bad_input_is_answered_in_one_line(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sides", [(2, 2), (6, 10), (7, 9), (4, 130), (0, 4)])
def test_halving_is_average_pooling(dtype, sides):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, *sides, generator=g, dtype=torch.float64).to(dtype)
    if 0 in sides:
        with pytest.raises(ValueError, match="Halve: maps are"):
            Halve()(x)
        return
    for given in (x, x.transpose(0, 1).contiguous().transpose(0, 1), x.to(memory_format=torch.channels_last)):
        ours, theirs = (given.clone().requires_grad_() for _ in range(2))
        a, b = Halve()(ours), torch.nn.functional.avg_pool2d(theirs, 2)
        torch.testing.assert_close(a, b)
        (a * a).sum().backward(), (b * b).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_halving_inside_inference_mode_spoils_no_later_gradient():
    x = torch.randn(1, 1, 14, 22)
    with torch.inference_mode():
        Halve()(x)
    x.requires_grad_()
    Halve()(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.25))
