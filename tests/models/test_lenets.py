"""LeNet-5, its half, PATE's network and the CIFAR ResNets: published sizes, pixel spaces, features."""
import pytest
import torch
from torch import nn

from kdnotes.models.classifiers import build
from kdnotes.models.lenets import LeNet5, PATENet, pate_rate, perceptron


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_sizes():
    with torch.device("meta"):
        assert (count(LeNet5()), count(LeNet5(widths=LeNet5.half))) == (61_706, 15_738)
        assert (count(PATENet()), count(PATENet(channels=3, size=32))) == (2_691_274, 3_431_754)
        assert (count(build("resnet34", 10)), count(build("resnet18", 10))) == (21_282_122, 11_173_962)


def test_the_features_are_those_in_front_of_both_linear_layers():
    net = LeNet5()
    made = net(torch.rand(3, 1, 32, 32))
    assert made.features.shape == (3, 120) and (made.features >= 0).all() and torch.equal(net.head(made.features), made.logits)
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len([m for m in LeNet5(norm=True).modules() if isinstance(m, nn.BatchNorm2d)]) == 3
    for size in (16, 28, 40):
        assert LeNet5(size=size)(torch.rand(2, 1, size, size)).features.shape == (2, 120)


def test_the_pixels_that_pate_sees():
    assert PATENet().seen(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 28, 28)).flatten(1).unique(dim=1).tolist() == [[-0.5], [254.5]]
    x = torch.rand(4, 3, 32, 32)
    x[3] = 0.25                                                       # no contrast: divided by 1 / sqrt(3072)
    seen = PATENet(channels=3, size=32).seen(x).flatten(1)
    assert seen.mean(1).abs().max() < 1e-4 and torch.allclose(seen[:3].std(1, correction=0), torch.ones(3), atol=1e-5)
    assert seen[3].abs().max() < 1e-2


def test_first_weights_and_layers_of_pate():
    net = PATENet()
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer, std, bias in zip(layers, (1e-4, 1e-4, 0.04, 0.04, 1 / 192), (0, 0.1, 0.1, 0.1, 0)):
        assert layer.weight.abs().max() <= 2 * std and layer.bias.unique().tolist() == pytest.approx([bias])
    norms = [m for m in net.modules() if isinstance(m, nn.LocalResponseNorm)]
    assert [(m.size, m.alpha, m.beta, m.k) for m in norms] == [(9, 0.001, 0.75, 1.0)] * 2
    kinds = [type(m).__name__ for m in net.body]
    assert kinds[:8] == ["Conv2d", "ReLU", "MaxPool2d", "LocalResponseNorm", "Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"]


def test_the_rate_of_pate_falls_every_656_steps():
    assert [pate_rate(step) for step in (0, 655)] == [0.05, 0.05] and pate_rate(656) == pytest.approx(0.005)
    assert pate_rate(1639, teachers=100) == 0.05 and pate_rate(1640, teachers=100) == pytest.approx(0.005)


@pytest.mark.parametrize("norm", [False, True])
def test_a_batch_norm_stands_behind_each_linear_layer(norm):
    net = perceptron(3, 1, 4, (5, 6), norm)
    kinds = [type(m).__name__ for m in net.trunk]
    assert kinds == ["Flatten", *["Linear", *["BatchNorm1d"] * norm, "ReLU"] * 2]
    assert net(torch.rand(4, 1, 4, 4)).features.shape == (4, 6)
