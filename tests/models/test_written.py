"""Networks by one line of text: the form, the registry, the seed, the printed name."""

from functools import partial

import pytest
import torch

from kdnotes.losses.margin import ArcFace, CosFace
from kdnotes.models import classifiers, convnets, embedders
from kdnotes.models.written import fresh, network, parse, printed, recogniser, words_of


@pytest.mark.parametrize("text, expected", [
    ("resnet20", ("resnet20", {})), ("smallconv:4-8-16:32", ("smallconv", {"widths": (4, 8, 16), "embedding": 32})),
    ("resnet50::512:pretrained", ("resnet50", {"embedding": 512, "pretrained": True})),
    ("resnet50::pretrained", ("resnet50", {"pretrained": True})),
    ("convnet3:128", ("convnet3", {"width": 128})), ("resnet10:8-16-32-64", ("resnet10", {"widths": (8, 16, 32, 64)})),
    ("resnet8x4::128", ("resnet8x4", {"embedding": 128})),
])
def test_the_form(text, expected):
    assert parse(text) == expected


def test_every_name_of_the_registry_stands_alone():
    assert all(parse(name) == (name, {}) for name in classifiers.names()) and "convnet3" in classifiers.names()
    assert parse("iresnet18::256", embedders.ARCHITECTURES) == ("iresnet18", {"embedding": 256})
    # a registry of one's own
    perceptron = {"mlp": partial(lambda channels, size, widths, dropout=False, norm=False: None)}
    assert parse("mlp:512-256:dropout:norm", perceptron, ()) == ("mlp",
                                                                 {"widths": (512, 256), "dropout": True, "norm": True})
    assert words_of(perceptron["mlp"]) == ["dropout", "norm"]


@pytest.mark.parametrize("text, words", [
    ("smalconv", "did you mean 'smallconv'"), ("smallconv:4-x:32", "name:widths:embedding"),
    ("smallconv:4-8:x y", "name:widths:embedding"), ("convnet2:x", "name:width"),
    ("smallconv:0-4", "name:widths"), ("smallconv:4-8:1:2", "name:widths"), ("convnet3:8-16", "no option 'widths'"),
    ("vgg8:16", "no option 'width'"),
    ("convnet3:16::pretrained", "its words: none"), ("resnet50::frozen", "its words: pretrained"),
    ("", "unknown network ''"), ("resnet20:", ""),
])
def test_other_forms_are_refused_in_one_line(text, words):
    if not words:
        assert parse(text) == ("resnet20", {})                # an empty field is a field left out
        return
    with pytest.raises(ValueError) as error:
        parse(text)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_seed_is_all_that_the_weights_depend_on():
    state = torch.get_rng_state()
    a, b, c = (fresh("convnet2:8", 4, 1, 8, seed) for seed in (3, 3, 4))
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(3)
    plain = classifiers.build("convnet2", 4, channels=1, size=8, width=8)
    for one, other, third, direct in zip(*(net.parameters() for net in (a, b, c, plain)), strict=True):
        assert one.equal(other) and one.equal(direct) and (one.ndim < 2 or not one.equal(third))
    torch.manual_seed(3)
    assert all(p.equal(q) for p, q in zip(network("convnet2:8", 4, 1, 8).parameters(), plain.parameters()))
    assert convnets.convnet(1, 8, 2, 8)[1] == plain.feature_dim


def test_a_recogniser_has_the_head_that_is_asked_for():
    net = recogniser("smallface:4-8:24", 5, 3, 16, CosFace, scale=8.0, margin=0.1)
    assert net.feature_dim == 24 and net.head.weight.shape == (5, 24) and net.head.margin == 0.1
    assert net(torch.rand(2, 3, 16, 16)).logits.shape == (2, 5)
    assert recogniser("smallface:4-8", 5, 3, 16, ArcFace).feature_dim == 512


def test_names_as_tables_print_them():
    ours = ["convnet3", "convnet2:16", "resnet10:4-4-4-4", "densenet121", "resnetap10", "resnet10_in", "vgg11",
            "smallconv:4-8-16:32", "wrn_40_2"]
    assert list(map(printed, ours)) == ["ConvNet-3", "ConvNet-2 (16)", "ResNet-10 (4-4-4-4)", "DenseNet-121",
                                        "ResNetAP-10", "ResNet-10 (IN)", "VGG-11", "smallconv:4-8-16:32", "WRN-40-2"]
    crd = ["wrn_40_2", "wrn_50_2", "resnet8x4", "resnet56", "vgg8", "shufflenet_v1", "smallconv:4-8-16:32"]
    assert [printed(text, "") for text in crd] == ["WRN-40-2", "WRN50-2", "ResNet8x4", "ResNet56", "VGG8",
                                                   "ShuffleNetV1", "smallconv:4-8-16:32"]
