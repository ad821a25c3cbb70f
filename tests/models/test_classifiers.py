"""Classifiers: published parameter counts, slow references of the forward pass, shapes, options and bad input."""

import itertools
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from kdnotes.models import classifiers
from kdnotes.models.classifiers import (
    PostActivation,
    PreActivation,
    Prediction,
    build,
    count_multiply_adds,
    count_parameters,
    names,
)

SMALL = ["resnet8", "resnet20", "resnet8x4", "wrn_16_1", "wrn_16_2", "vgg8", "shufflenet_v1", "shufflenet_v2",
         "smallconv"]


def on_meta(name, classes=100, channels=3, size=32, **options):
    """The net's shapes without its memory."""
    with torch.device("meta"):
        return build(name, classes, channels, size, **options)


# --- counts, from the papers' descriptions ---------------------------------------------------------------------------


def resnet_count(depth, widths, channels, classes, projections=True):
    """He et al. 2016, section 4.2: 3x3 convolutions without bias, each followed by batch normalisation (2 per channel).
    """
    n, a = (depth - 2) // 6, widths[0]
    total = 9 * channels * a + 2 * a
    for i, b in enumerate(widths[1:]):
        total += 9 * a * b + 2 * b + (2 * n - 1) * (9 * b * b + 2 * b)
        total += (a * b + 2 * b) if projections and (i > 0 or a != b) else 0
        a = b
    return total + a * classes + classes


def wrn_count(depth, k, channels, classes):
    """Zagoruyko and Komodakis 2016, table 1: the block normalises its input; projections are bare 1x1 convolutions."""
    n, a = (depth - 4) // 6, 16
    total = 9 * channels * a
    for b in (16 * k, 32 * k, 64 * k):
        total += 2 * a + 9 * a * b + 2 * b + 9 * b * b + (n - 1) * (18 * b * b + 4 * b) + (a * b if a != b else 0)
        a = b
    return total + 2 * a + a * classes + classes


def vgg_count(convolutions, channels, classes):
    a, total = channels, 0
    for b, n in zip((64, 128, 256, 512, 512), convolutions):
        for _ in range(n):
            total, a = total + 9 * a * b + b + 2 * b, b
    return total + a * classes + classes


@pytest.mark.parametrize("channels, classes", [(3, 100), (3, 10), (1, 7)])
def test_counts_follow_from_the_papers_descriptions(channels, classes):
    for depth in (8, 14, 20, 32, 44, 56, 110):
        assert count_parameters(on_meta(f"resnet{depth}", classes,
                                        channels)) == resnet_count(depth, (16, 16, 32, 64), channels, classes)
    for depth in (8, 32):
        assert count_parameters(on_meta(f"resnet{depth}x4", classes,
                                        channels)) == resnet_count(depth, (32, 64, 128, 256), channels, classes)
    for depth, k in itertools.product((16, 40), (1, 2)):
        assert count_parameters(on_meta(f"wrn_{depth}_{k}", classes,
                                        channels)) == wrn_count(depth, k, channels, classes)
    for name, convolutions in {"vgg8": (1, 1, 1, 1, 1), "vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2)}.items():
        assert count_parameters(on_meta(name, classes, channels)) == vgg_count(convolutions, channels, classes)


def shufflenet_v1_count(channels, classes):
    """Zhang et al. 2018, figure 2: grouped 1x1 (3 groups), 3x3 by channel, grouped 1x1, each normalised;
    a quarter of the width inside.
    """
    a, total = 24, channels * 24 + 48
    for b, blocks in ((240, 4), (480, 8), (960, 4)):
        for unit in range(blocks):
            new = b - a if unit == 0 else b
            mid = new // 4
            total += a * mid // (1 if a == 24 else 3) + 2 * mid + 9 * mid + 2 * mid + mid * new // 3 + 2 * new
            a = b
    return total + 960 * classes + classes


def shufflenet_v2_count(channels, classes):
    """Ma et al. 2018, figure 3 c and d, width 1."""
    a, total = 24, channels * 24 + 48
    for b, blocks in ((116, 4), (232, 8), (464, 4)):
        h = b // 2
        total += 9 * a + 2 * a + a * h + 2 * h + a * h + 2 * h + 9 * h + 2 * h + h * h + 2 * h
        total += (blocks - 1) * (2 * (h * h + 2 * h) + 9 * h + 2 * h)
        a = b
    return total + 464 * 1024 + 2048 + 1024 * classes + classes


@pytest.mark.parametrize("channels, classes", [(3, 100), (1, 7)])
def test_counts_of_the_shufflenets_follow_from_their_papers(channels, classes):
    assert count_parameters(on_meta("shufflenet_v1", classes, channels)) == shufflenet_v1_count(channels, classes)
    assert count_parameters(on_meta("shufflenet_v2", classes, channels)) == shufflenet_v2_count(channels, classes)


def shuffled(x, groups):
    """Channel g * n + i becomes channel i * groups + g."""
    n = x.shape[1] // groups
    return torch.stack([x[:, g * n + i] for i in range(n) for g in range(groups)], 1)


def test_shuffle_units_equal_a_forward_pass_written_out():
    torch.manual_seed(0)
    x, norm = torch.randn(2, 48, 6,
                          6), lambda layer, x: layer[1](F.conv2d(x, layer[0].weight, None, layer[0].stride,
                                                                 layer[0].padding, 1, layer[0].groups))
    for stride, outputs in ((1, 48), (2, 96)):
        unit = classifiers.GroupedUnit(48, outputs, stride).eval()
        a, _, _, b, _, c = unit.branch
        y = norm(c, norm(b, shuffled(norm(a, x).relu(), 3)).relu())
        expected = torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1).relu() if stride == 2 else (x + y).relu()
        torch.testing.assert_close(unit(x), expected)
        unit = classifiers.SplitUnit(48, outputs, stride).eval()
        a, _, b, c, _ = unit.right
        left, right = (x, x) if stride == 2 else (x[:, :24], x[:, 24:])
        right = norm(c, norm(b, norm(a, right).relu())).relu()
        left = norm(unit.left[1], norm(unit.left[0], left)).relu() if stride == 2 else left
        torch.testing.assert_close(unit(x), shuffled(torch.cat([left, right], 1), 2))


@pytest.mark.parametrize("name, classes, count", [
    # 10 classes: the counts of the public CIFAR model zoos
    ("resnet20", 10, 272_474), ("resnet56", 10, 855_770), ("resnet110", 10, 1_730_714), ("resnet18", 10, 11_173_962),
    ("resnet34", 10, 21_282_122),
    # 100 classes: the nets of the distillation benchmark (CRD, ICLR 2020)
    ("resnet8x4", 100, 1_233_540), ("resnet32x4", 100, 7_433_860), ("wrn_16_1", 100, 180_916),
    ("wrn_16_2", 100, 703_284),
    ("wrn_40_1", 100, 569_780), ("wrn_40_2", 100, 2_255_156), ("vgg8", 100, 3_965_028), ("vgg13", 100, 9_462_180),
    ("resnet18", 100, 11_220_132), ("resnet50", 100, 23_705_252),
    ("vgg11", 100, 9_277_284), ("shufflenet_v1", 100, 949_258), ("shufflenet_v2", 100, 1_355_528),
    ("wrn_50_2", 100, 67_031_460),
])
def test_counts_are_the_published_integers(name, classes, count):
    assert count_parameters(on_meta(name, classes)) == count


@pytest.mark.parametrize("depth, option_a, millions", [
    (20, 269_722, 0.27), (32, 464_154, 0.46), (44, 658_586, 0.66), (56, 853_018, 0.85), (110, 1_727_962, 1.7),
])
def test_counts_without_projections_are_those_of_he_et_al(depth, option_a, millions):
    """Their table 6 counts parameter-free shortcuts; ours have a 1x1 projection with normalisation in stages 2 and 3.
    """
    projections = (16 * 32 + 64) + (32 * 64 + 128)
    assert count_parameters(on_meta(f"resnet{depth}", 10)) - projections == option_a
    assert option_a == resnet_count(depth, (16, 16, 32, 64), 3, 10, projections=False)
    assert round(option_a / 1e6, 1 if millions == 1.7 else 2) == millions


@pytest.mark.parametrize("name, millions", [("wrn_40_1", 0.6), ("wrn_40_2", 2.2), ("wrn_16_1", 0.2), ("wrn_16_2", 0.7)])
def test_wide_resnets_have_the_sizes_of_their_paper(name, millions):
    assert round(count_parameters(on_meta(name, 10)) / 1e6, 1) == millions


@pytest.mark.parametrize("name, count", [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("wrn_50_2", 68_883_240)])
def test_large_images_get_the_imagenet_net(name, count):
    assert count_parameters(on_meta(name, 1000, size=224)) == count
    assert on_meta(name, 1000, size=224).trunk.stem(torch.empty(1, 3, 224, 224, device="meta")).shape[-2:] == (56, 56)


# --- forward passes --------------------------------------------------------------------------------------------------


# those have tests of their own
@pytest.mark.parametrize("name", [name for name in names() if not name.startswith("convnet")])
def test_shapes_and_stage_names(name):
    for channels, size in ((3, 32), (1, 28), (1, 8)):
        if size == 8 and name in ("resnet10_in", "resnetap10"):                     # blind there: tests/models/test_sight.py
            continue
        net = on_meta(name, 10, channels, size).eval()
        prediction = net(torch.empty(2, channels, size, size, device="meta"))
        assert isinstance(prediction, Prediction)
        assert prediction.logits.shape == (2, 10) and prediction.features.shape == (2, net.feature_dim)
    stages = [stage for stage, _ in net.trunk.named_children()]
    numbered = [stage for stage in stages if stage.startswith("stage")]
    assert numbered == [f"stage{i + 1}" for i in range(len(numbered))] and stages[-1] == "pool"


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_linear_in_the_features_and_every_weight_learns(name):
    torch.manual_seed(0)
    net = build(name, 10, channels=1, size=16)
    logits, features = net(torch.rand(4, 1, 16, 16))
    assert torch.allclose(logits, features @ net.classifier.weight.T + net.classifier.bias, atol=1e-6)
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 9])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    silent = {key for key, p in net.named_parameters() if not p.grad.any()}
    # bias in front of batch normalisation
    assert all(key.endswith("bias") and name.startswith("vgg") for key in silent)


@pytest.mark.parametrize("name", SMALL)
def test_eval_mode_treats_images_one_by_one(name):
    net = build(name, 10, channels=1, size=16).eval()
    images, order = torch.rand(6, 1, 16, 16), torch.tensor([3, 1, 5, 0, 2, 4])
    whole = net(images)
    assert torch.allclose(net(images[order]).features, whole.features[order], atol=1e-5)
    assert torch.allclose(net(images[:1]).logits, whole.logits[:1], atol=1e-5)


def normalise(x, state, prefix):
    return F.batch_norm(x, state[f"{prefix}.running_mean"], state[f"{prefix}.running_var"], state[f"{prefix}.weight"],
                        state[f"{prefix}.bias"])


def shake(net):
    """Give the normalisation layers something to do, else they are close to the identity in eval mode."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low in ((layer.weight, 0.5), (layer.bias, -0.5), (layer.running_mean, -0.5),
                                (layer.running_var, 0.5)):
                nn.init.uniform_(tensor, low, low + 1)
    return net.double().eval()


def test_resnet_equals_a_forward_pass_written_out():
    torch.manual_seed(1)
    net, x = shake(build("resnet14", 5, channels=2)), torch.rand(3, 2, 12, 12, dtype=torch.float64)
    state = net.state_dict()
    h = F.relu(normalise(F.conv2d(x, state["trunk.stem.0.weight"], padding=1), state, "trunk.stem.1"))
    for s, b in itertools.product((1, 2, 3), (0, 1)):
        at, stride = f"trunk.stage{s}.{b}", 2 if s > 1 and b == 0 else 1
        f = F.relu(normalise(F.conv2d(h, state[f"{at}.branch.0.weight"], stride=stride, padding=1), state,
                             f"{at}.branch.1"))
        f = normalise(F.conv2d(f, state[f"{at}.branch.3.weight"], padding=1), state, f"{at}.branch.4")
        if stride == 2:
            h = normalise(F.conv2d(h, state[f"{at}.shortcut.0.weight"], stride=2), state, f"{at}.shortcut.1")
        h = F.relu(h + f)
    assert torch.allclose(net(x).features, h.mean((2, 3)), atol=1e-12)


def test_wide_resnet_equals_a_forward_pass_written_out():
    torch.manual_seed(2)
    net, x = shake(build("wrn_16_2", 5)), torch.rand(3, 3, 12, 12, dtype=torch.float64)
    state = net.state_dict()
    h = F.conv2d(x, state["trunk.stem.weight"], padding=1)
    for s, b in itertools.product((1, 2, 3), (0, 1)):
        at, stride = f"trunk.stage{s}.{b}", 2 if s > 1 and b == 0 else 1
        a = F.relu(normalise(h, state, f"{at}.activate.0"))
        f = F.relu(normalise(F.conv2d(a, state[f"{at}.branch.0.weight"], stride=stride, padding=1), state,
                             f"{at}.branch.1"))
        f = F.conv2d(f, state[f"{at}.branch.3.weight"], padding=1)
        h = (F.conv2d(a, state[f"{at}.project.weight"], stride=stride) if b == 0 else h) + f
    features = F.relu(normalise(h, state, "trunk.pool.0")).mean((2, 3))
    assert torch.allclose(net(x).features, features, atol=1e-12)


@pytest.mark.parametrize("inputs, outputs, stride", [(8, 8, 1), (8, 16, 2), (8, 16, 1)])
def test_residual_block_is_torchvisions(inputs, outputs, stride):
    ours, x = shake(PostActivation(inputs, outputs, stride)), torch.rand(2, inputs, 8, 8, dtype=torch.float64)
    down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                         nn.BatchNorm2d(outputs)) if (inputs, stride) != (outputs, 1) else None
    theirs = BasicBlock(inputs, outputs, stride, down).double().eval()
    names_of = {"conv1": "branch.0", "bn1": "branch.1", "conv2": "branch.3", "bn2": "branch.4",
                "downsample": "shortcut"}
    state = ours.state_dict()
    theirs.load_state_dict({key: state[names_of[key.split(".")[0]] + key[key.index("."):]]
                            for key in theirs.state_dict()})
    assert torch.allclose(ours(x), theirs(x), atol=1e-12)


def test_preactivation_keeps_the_identity_path_clear():
    """The Jacobian of x -> y - F(a) is the identity, also where x is negative."""
    block, x = PreActivation(4, 4).double(), torch.randn(1, 4, 5, 5, dtype=torch.float64)
    assert torch.allclose(block(x) - block.branch(block.activate(x)), x, atol=1e-12)
    assert block.project is None and PreActivation(4, 4, stride=2).project is not None


def test_large_resnet_is_torchvisions_own():
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18()
    torch.manual_seed(3)
    ours = build("resnet18", 1000, size=96)
    theirs.fc = nn.Identity()
    x = torch.rand(2, 3, 96, 96)
    assert torch.allclose(ours.eval()(x).features, theirs.eval()(x), atol=1e-5)


def test_vgg_pools_once_more_from_64_pixels():
    seen = {}
    for size, last in ((8, 1), (32, 4), (63, 7), (64, 4)):
        net = on_meta("vgg8", 10, size=size).eval()
        net.trunk.stage5.register_forward_hook(lambda module, inputs, output: seen.update(side=output.shape[-1]))
        net(torch.empty(1, 3, size, size, device="meta"))
        assert seen["side"] == last


# --- options ---------------------------------------------------------------------------------------------------------


def test_embedding_is_linear_and_sets_the_feature_size():
    assert build("smallconv", 10).feature_dim == 128 and build("smallconv", 10, embedding=32).feature_dim == 32
    plain, embedded = on_meta("resnet20", 10), on_meta("resnet20", 10, embedding=128)
    assert (plain.feature_dim, embedded.feature_dim) == (64, 128)
    assert count_parameters(embedded) - count_parameters(plain) == (64 * 128 + 128) + (128 - 64) * 10
    net = build("smallconv", 10, channels=1, size=8, widths=(4, 8, 16), embedding=32).eval()
    x = torch.rand(5, 1, 8, 8)
    assert torch.allclose(net(x).features, F.linear(net.trunk(x), net.embed.weight, net.embed.bias), atol=1e-6)
    assert (net(x).features < 0).any()                                                # no ReLU on the feature


def test_widths_can_be_chosen_where_the_name_leaves_them_open():
    assert count_parameters(on_meta("resnet20", 10, widths=(4, 4, 8, 16))) == resnet_count(20, (4, 4, 8, 16), 3, 10)
    assert count_parameters(on_meta("smallconv", 10, 1, 8, widths=(4, 8, 16), embedding=32)) == 2406


def test_one_size_of_weights_serves_several_image_sizes():
    """A student on small images can start from an assistant of the same architecture on large ones."""
    for name in SMALL:
        first, second = build(name, 10, channels=1, size=32), build(name, 10, channels=1, size=8)
        second.load_state_dict(first.state_dict())
        x = torch.rand(2, 1, 16, 16)
        assert torch.equal(first.eval()(x).logits, second.eval()(x).logits)


def test_the_seed_decides_on_the_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build("wrn_16_1", 10).parameters()])

    assert torch.equal(weights(0), weights(0)) and not torch.equal(weights(0), weights(1))


def test_convolutions_start_from_he_normal():
    net = build("resnet8x4", 10)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 20_000:
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
            assert layer.weight.mean().abs() < 0.02 * layer.weight.std()


def test_pretrained_asks_torchvision_for_the_first_imagenet_weights(monkeypatch):
    asked, original = [], torchvision.models.get_model

    def fake(architecture, weights=None):
        asked.append((architecture, weights))
        return original(architecture, weights=None)

    monkeypatch.setattr(torchvision.models, "get_model", fake)
    with torch.device("meta"):
        build("resnet50", 100, size=224, pretrained=True, embedding=512)
        build("resnet18", 100, size=32)
    assert asked == [("resnet50", "IMAGENET1K_V1"), ("resnet18", None)]


def slow_multiply_adds(net, x):
    """Every output entry of a convolution or linear layer costs one multiply-add per incoming weight."""
    total, hooks = [0], []

    def count(layer, inputs, output):
        total[0] += output.numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        net.eval()(x)
    for hook in hooks:
        hook.remove()
    return total[0]


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8", "smallconv"])
def test_multiply_adds_equal_a_count_layer_by_layer(name):
    net = build(name, 10)
    assert count_multiply_adds(net) == slow_multiply_adds(net, torch.rand(1, 3, 32, 32))


def test_counting_leaves_the_model_alone():
    net = build("resnet8", 10).train()
    net.trunk.stem.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    count_multiply_adds(net, size=16)
    assert net.training and not net.trunk.stem.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert count_multiply_adds(net, 16) * 4 == pytest.approx(count_multiply_adds(net, 32), rel=1e-2)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call, words", [
    (lambda: build("resnet23", 10), ["unknown model 'resnet23'", "did you mean", "known: resnet8"]),
    (lambda: build("", 10), ["unknown model ''", "known:"]),
    (lambda: build("vgg8", 10, width=2), ["'vgg8' has no option 'width'", "it takes embedding"]),
    (lambda: build("wrn_16_2", 10, depth=40), ["no option 'depth'"]),
    (lambda: build("resnet20", 10, widths=(16, 32, 64)), ["(16, 32, 64)", "expected four"]),
    (lambda: build("resnet20", 0), ["classes is 0", "at least 1"]),
    (lambda: build("resnet20", 10, channels=2.5), ["channels is 2.5"]),
    (lambda: build("resnet20", 10, size=-1), ["size is -1"]),
    (lambda: build("vgg8", 10, size=4), ["size=4", "at least 8 pixels"]),
    (lambda: build("smallconv", 10, size=3), ["size=3", "at least 4 pixels"]),
    (lambda: build("resnet18", 10, pretrained=True), ["size=32", "larger than 64"]),
    (lambda: build("resnet50", 10, channels=1, size=224, pretrained=True), ["channels=1"]),
    (lambda: build("resnet20", 10, embedding=0), ["embedding is 0"]),
])
def test_bad_requests_say_what_is_expected(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize("images", [
    torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8), torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, 3),
], ids=["uint8", "one image", "grey", "channels last"])
def test_bad_images_say_what_is_expected(images):
    with pytest.raises(ValueError, match=r"expected floating point \(N, 3, H, W\)") as error:
        build("resnet8", 10)(images)
    assert str(tuple(images.shape)) in str(error.value)


def test_torchvision_is_imported_by_the_nets_that_need_it_only():
    owners = {getattr(value, "__module__", None) or getattr(value, "__name__", "")
              for value in vars(classifiers).values()}
    assert not any(str(owner).startswith("torchvision") for owner in owners)


@pytest.mark.long
def test_a_description_of_a_network_is_checked_without_pytorchs_compiler():
    """It would take four seconds to load, in every run."""
    code = ("import sys, torch; from kdnotes.condense.study import check_network; import kdnotes.models.convnets; "
            "[check_network(text, 32) for text in ('resnet10', 'convnet3', 'densenet121')]; print('torch._dynamo.symbolic_convert' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.long
def test_all_names_are_there_whatever_is_imported_first():
    for first in ("kdnotes.models.classifiers", "kdnotes.models"):
        script = f"import {first}; from kdnotes.models.classifiers import build; print(type(build('convnet1', 2, size=8)).__name__)"
        assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "Classifier\n"
