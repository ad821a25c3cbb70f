"""Every network that can be built sees: two different images have different features, at every size that it takes."""

import pytest
import torch
from torch import nn

from kdnotes.checks import refused
from kdnotes.models import embedders, written
from kdnotes.models.classifiers import build, names, normalised_values
from kdnotes.models.perceptron import Perceptron

torch.set_num_threads(1)
LIGHT = ("resnet8", "resnet20", "wrn_16_1", "vgg8", "shufflenet_v1", "shufflenet_v2", "smallconv", "resnet10", "resnet10_in",
         "resnetap10", "convnet1", "convnet2", "convnet3", "convnet4", "convnet5", "convnet6")
SIZES = [(name, size) for name in names() for size in (8, 16)]
SIZES += [(name, size) for name in LIGHT for size in (9, 28, 32)] + [("convnet6", 64), ("smallconv", 64), ("resnet8", 64)]
LEAST = {"convnet4": 16, "convnet5": 32, "convnet6": 64, "resnet10_in": 9, "resnetap10": 16}


def spread(features):
    """How far the features of the images lie apart, at most."""
    return (features - features[0]).abs().max()


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_a_network_sees_or_says_how_large_images_must_be(name, size):
    torch.manual_seed(0)
    if size < LEAST.get(name, 4) and (name, size) != ("convnet5", 28):         # with a wide border, as MNIST has
        line = refused(build, name, 3, channels=1, size=size)
        assert f"at least {LEAST[name]} pixels" in line and (str(size) in line)
        return
    net = build(name, 3, channels=1, size=size).train()
    with torch.no_grad():
        features = net(torch.rand(4, 1, size, size)).features
    assert spread(features) > 1e-3
    counts = normalised_values(net.trunk, 1, size)
    assert min(counts.values(), default=2) >= 2


@pytest.mark.parametrize("name", embedders.names())
@pytest.mark.parametrize("size", [8, 16])
def test_an_embedder_sees(name, size):
    torch.manual_seed(0)
    net = embedders.embedder(name, 16, channels=1, size=size).train()
    with torch.no_grad():
        assert spread(net(torch.rand(4, 1, size, size))) > 1e-3
    assert "one image" in refused(net, torch.rand(1, 1, size, size))
    assert net.eval()(torch.rand(1, 1, size, size)).shape == (1, 16)


def test_the_smallest_size_is_the_smallest():
    for name, least in LEAST.items():
        with torch.device("meta"):
            written.network(name, 2, 1, least)
            assert f"at least {least} pixels" in refused(written.network, name, 2, 1, least - 1)


def test_values_are_counted_layer_by_layer():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.BatchNorm2d(4),
                        nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert normalised_values(net, 1, 4, count=3) == {"1": 4, "2": 8, "3": 12, "5": 3}
    assert normalised_values(net, 1, 4, count=1)["5"] == 1
    assert all(value.equal(before[key]) for key, value in net.state_dict().items())
    assert not any("forward" in vars(layer) for layer in net)


def test_a_single_image_in_training_mode_is_refused_where_nothing_is_left_of_it():
    net = build("vgg8", 3, channels=1, size=8).train()
    line = refused(net, torch.rand(1, 1, 8, 8))
    assert "one image (1, 1, 8, 8) in training mode" in line
    assert net(torch.rand(2, 1, 8, 8)).logits.shape == net.eval()(torch.rand(2, 1, 8, 8)).logits.shape
    assert build("resnet8", 3, channels=1, size=8).train()(torch.rand(1, 1, 8, 8)).logits.shape == (1, 3)
    assert "one image (1, 4)" in refused(Perceptron(4, 2, (3,), norm=True).train(), torch.rand(1, 4))
    assert Perceptron(4, 2, (3,)).train()(torch.rand(1, 4)).logits.shape == (1, 2)
