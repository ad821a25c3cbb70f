"""FaceBN and its relatives:
closed forms, limits, exactness of the pooled moments, and that nothing but the statistics moves.
"""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdnotes.checks import refused
from kdnotes.models.adapt import BATCHWISE, MODES, FaceBN, Pooled, Tent, channel_moments, entropy, mix
from kdnotes.models.classifiers import build

torch.set_num_threads(1)


class Block(nn.Module):
    """A residual block: the order in which its layers run is not the order in which they are declared."""

    def __init__(self, c):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU(),
                                    nn.Conv2d(c, c, 3, padding=1))
        self.after = nn.BatchNorm2d(c)
        self.shortcut = nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c))

    def forward(self, x):
        return torch.relu(self.shortcut(x) + self.after(self.branch(x)))


def network(seed=0, dtype=torch.float64, eps=1e-5):
    """Convolutions, a residual block, a linear layer and a last BatchNorm of vectors,
    with source statistics from a little training.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), Block(6),
                        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5), nn.BatchNorm1d(5)).to(dtype)
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eps = eps
            nn.init.uniform_(layer.weight, 0.5, 1.5), nn.init.normal_(layer.bias)
    for _ in range(20):
        net(torch.rand(32, 2, 6, 6, dtype=dtype))
    return net.eval()


def faces(n=48, seed=1, dtype=torch.float64):
    return 0.3 * torch.rand(n, 2, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.05


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def one_channel():
    """The layer of the closed forms: source mean 0 and variance 1, eps 1e-5, gamma 1, beta 0."""
    return nn.BatchNorm1d(1).double().eval()


ONE_FIVE = torch.tensor([[1.0], [5.0]], dtype=torch.float64)


# 7: closed forms of all mixtures
@pytest.mark.parametrize(
    ("mode", "options", "expected"),
    [
        ("plain", {}, (0.999995, 4.999975)),
        ("mixture", {"a": 0.0}, (0.999995, 4.999975)),
        ("mixture", {"a": 0.5}, (-0.316227, 2.213590)),
        ("prediction", {}, (-0.9999988, 0.9999988)),
        ("mixture", {"a": 1.0}, (-0.9999988, 0.9999988)),
        ("pseudo_count", {"prior": 16.0}, (0.577348, 4.041437)),
        ("ema", {"rho": 0.5}, (-0.316227, 2.213590)),
    ],
)
def test_the_values_of_two_numbers_by_hand(mode, options, expected):
    layer = one_channel()
    with FaceBN(layer, mode, **options):
        assert torch.allclose(layer(ONE_FIVE).flatten(), torch.tensor(expected, dtype=torch.float64), atol=1e-6)


def test_variances_are_mixed_linearly_and_not_pooled():
    layer = one_channel()
    with FaceBN(layer, "pseudo_count", prior=16.0) as face:
        layer(ONE_FIVE)
        mean, variance = face.statistics()[""]
    assert math.isclose(mean, 1 / 3) and math.isclose(variance, 4 / 3)
    pooled = Pooled()
    for _ in range(8):
        pooled.add(torch.tensor([[-1.0], [1.0]], dtype=torch.float64))    # sixteen numbers of mean 0 and variance 1
    pooled.add(ONE_FIVE)
    assert math.isclose(pooled.mean, 1 / 3) and math.isclose(pooled.var, 20 / 9)


def test_batch_moments_are_biased_and_taken_over_batch_and_space():
    u = torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    mean, var = channel_moments(u)
    rows = u.transpose(0, 1).flatten(1)
    assert torch.allclose(mean, rows.mean(1))
    assert torch.allclose(var, ((rows - rows.mean(1, keepdim=True)) ** 2).mean(1))
    assert all(m.dtype == torch.float32 for m in channel_moments(u.half()))
    assert channel_moments(u.double())[0].dtype == torch.float64
    assert mix((0.0, 1.0), (3.0, 4.0), 0.25) == (0.75, 1.75)


# 9: PyTorch's own running statistics hold the unbiased variance
def test_the_source_statistics_of_pytorch_hold_the_unbiased_variance():
    layer = one_channel().train()
    layer(ONE_FIVE)
    assert math.isclose(layer.running_mean, 0.3, rel_tol=1e-6) and math.isclose(layer.running_var, 1.7, rel_tol=1e-6)


# 8: the limits
@pytest.mark.parametrize("mode", ["plain", "adabn"])
def test_without_adaptation_the_model_is_the_model_bit_for_bit(mode):
    net, x = network(dtype=torch.float32), faces(dtype=torch.float32)
    plain = net(x)
    with FaceBN(net, mode):
        assert torch.equal(net(x), plain)
    with FaceBN(net, "mixture", a=0.0):
        assert torch.equal(net(x), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_whole_weight_on_one_batch_is_training_mode(dtype):
    net, x = network(dtype=dtype), faces(dtype=dtype)
    expected = copy.deepcopy(net).train()(x)
    with FaceBN(net, "prediction"):
        assert torch.allclose(net(x), expected, atol=1e-10 if dtype is torch.float64 else 2e-5)


def test_adabn_is_one_large_batch_whatever_the_order_and_the_split():
    net, x = network(), faces()
    with FaceBN(net, "prediction"):
        whole = net(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    for batches in ([x], list(x.split(48)), list(x.split(7)), list(x[order].split(5)),
                    [x[order][:1], x[order][1:40], x[order][40:]]):
        with FaceBN(net) as face:
            face.adapt(batches)
            assert torch.allclose(net(x), whole, atol=1e-10)
            # pass 2 does not look at its batches
            assert torch.allclose(torch.cat([net(part) for part in x.split(11)]), whole, atol=1e-10)
    with FaceBN(net) as face:
        face.adapt(x, batch_size=10)
        assert torch.allclose(net(x), whole, atol=1e-10)


@settings(max_examples=15)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 1000))
def test_pooled_moments_are_those_of_all_at_once(sizes, seed):
    parts = [7 + torch.randn(n, 3, 2, generator=torch.Generator().manual_seed(seed + n), dtype=torch.float64)
             for n in sizes]
    pooled = Pooled()
    for part in parts:
        pooled.add(part)
    mean, var = channel_moments(torch.cat(parts))
    assert torch.allclose(pooled.mean, mean) and torch.allclose(pooled.var, var)


def test_a_single_pooled_pass_is_something_else():
    """With the source statistics below, it does not depend on the split;
    but its deeper moments do not fit what pass 2 sees.
    """
    net, x = network(), faces()
    outputs = []
    for size in (48, 7):
        with FaceBN(net) as face:
            face.adapt(list(x.split(size)), layerwise=False)
            outputs.append(net(x))
    with FaceBN(net, "prediction"):
        whole = net(x)
    assert torch.allclose(*outputs, atol=1e-10) and (outputs[0] - whole).abs().max() > 0.1


# 10: what FaceBN sees through
@pytest.mark.parametrize("c", [0.05, 3.0, 100.0])
def test_brightness_makes_no_difference_to_embeddings(c):
    net, x = network(eps=1e-12), faces()
    plain = (net(x) - net(c * x)).abs().max()
    with FaceBN(net, "prediction"):
        assert torch.allclose(net(x), net(c * x), rtol=0, atol=1e-6)
    outputs = []
    for images in (x, c * x):
        with FaceBN(net) as face:
            face.adapt(list(images.split(9)))
            outputs.append(net(images))
    assert torch.allclose(*outputs, rtol=0, atol=1e-6) and plain > 0.1
    with FaceBN(net) as face:
        face.adapt(list((c * x).split(9)), layerwise=False)
        single = net(c * x)
    assert (single - outputs[0]).abs().max() > 1e-3


# 11: nothing else moves
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_nothing_but_the_statistics_moves_and_reset_is_exact(mode, guard):
    net, x = network(dtype=torch.float32).train(), faces(dtype=torch.float32)
    before, buffers = state(net), dict(net.named_buffers())
    with guard(), FaceBN(net, mode) as face:
        assert not net.training
        net(x[:16])
        if mode in ("adabn", "ema", "mixture"):
            face.adapt(list(x.split(16)))
        adapted = state(net)
        assert same_state({k: v for k, v in before.items() if k in dict(net.named_parameters())},
                          {k: v for k, v in adapted.items() if k in dict(net.named_parameters())})
        assert same_state(before, adapted) == (mode == "plain")
        face.reset()
        assert same_state(before, state(net))
    assert same_state(before, state(net)) and net.training and all(m.training for m in net.modules())
    assert all(buffers[name] is b for name, b in net.named_buffers())             # the very same tensors
    assert not any(m._forward_pre_hooks for m in net.modules())
    net(x).sum().backward()                                                       # and it can be trained on


def test_an_error_inside_leaves_the_model_as_it_was():
    net, x = network(), faces()
    before = state(net)
    with pytest.raises(KeyboardInterrupt), FaceBN(net, "ema"):
        net(x)
        raise KeyboardInterrupt
    assert same_state(before, state(net)) and not any(m._forward_pre_hooks for m in net.modules())


def test_the_online_average_remembers_and_reset_forgets():
    layer = one_channel()
    with FaceBN(layer, "ema", rho=0.1) as face:
        for step in (1, 2):
            layer(ONE_FIVE)
            mean, variance = face.statistics()[""]
            assert math.isclose(mean, 3 * (1 - 0.9**step)) and math.isclose(variance, 0.9**step + 4 * (1 - 0.9**step))
        face.reset()
        layer(ONE_FIVE)
        assert math.isclose(face.statistics()[""][0], 0.3)
        face.freeze()
        layer(ONE_FIVE)
        assert math.isclose(face.statistics()[""][0], 0.3)


def test_two_passes_of_the_online_average_end_with_frozen_statistics():
    net, x = network(), faces()
    with FaceBN(net, "ema", rho=0.5) as face:
        face.adapt(list(x.split(12)))
        frozen = net(x)
        assert torch.allclose(torch.cat([net(part) for part in x.split(5)]), frozen, atol=1e-12)
    with FaceBN(net, "ema", rho=0.5) as face:
        for part in x.split(12):
            net(part)
        face.freeze()
        assert torch.allclose(net(x), frozen, atol=1e-12)


def test_a_mixture_of_source_and_whole_set():
    layer = one_channel()
    with FaceBN(layer, "mixture", a=0.5) as face:
        face.adapt([ONE_FIVE[:1], ONE_FIVE[1:]])
        mean, variance = face.statistics()[""]
        assert math.isclose(mean, 1.5) and math.isclose(variance, 2.5)
    with FaceBN(layer, "pseudo_count", prior=16.0) as face:
        face.adapt([ONE_FIVE[:1], ONE_FIVE[1:]])
        assert math.isclose(face.statistics()[""][1], 4 / 3)


def test_which_layers_adapt():
    net, x = network(), faces()
    names = {name for name, layer in net.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
    wanted = {"all": names, "conv": names - {"7"}, "vector": {"7"}, "one": {"1"}}
    for kind, expected in wanted.items():
        assert set(FaceBN(net, layers=kind if kind != "one" else lambda name, layer: name == "1").layers) == expected
    with FaceBN(net, "prediction", layers="vector"):
        before = {name: layer.running_mean for name, layer in net.named_modules() if name in names}
        net(x)
        after = {name: layer.running_mean for name, layer in net.named_modules() if name in names}
    assert {name for name in names if before[name] is not after[name]} == {"7"}


def test_any_model_with_batch_normalisation():
    for name in ("resnet8x4", "smallconv", "wrn_16_1"):
        net = build(name, 4, channels=1, size=8)
        x = torch.rand(12, 1, 8, 8)
        plain = net.eval()(x).features
        with torch.inference_mode(), FaceBN(net) as face:
            face.adapt(list((0.3 * x).split(5)))
            adapted = net(0.3 * x).features
        with torch.no_grad():
            expected = copy.deepcopy(net).train()(0.3 * x).features
        assert torch.allclose(adapted, expected, atol=1e-4) and not torch.allclose(adapted, plain, atol=1e-2)


# 14 and TENT
def test_entropy_by_hand():
    assert math.isclose(entropy(torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)), 0.5623351, abs_tol=1e-7)
    assert math.isclose(entropy(torch.zeros(2, 4, dtype=torch.float64)), math.log(4))
    assert entropy(torch.tensor([[1e4, 0.0]])) == 0


def closed_set(seed=0):
    net = build("smallconv", 3, channels=1, size=8, widths=(4, 6, 8), embedding=5)
    torch.manual_seed(seed)
    for _ in range(3):
        net(torch.rand(16, 1, 8, 8))
    return net.eval()


def test_tent_moves_scale_and_shift_alone_and_gives_them_back():
    net, x = closed_set(), 0.4 * torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    before, trainable = state(net), {name: p.requires_grad for name, p in net.named_parameters()}
    with torch.no_grad():
        by_batch = copy.deepcopy(net).train()(x).logits
    affine = {f"{name}.{part}" for name, layer in net.named_modules() if isinstance(layer, nn.BatchNorm2d)
              for part in ("weight", "bias")}
    with torch.inference_mode(), Tent(net, lr=1e-2) as tent:
        first = tent.step(x)
        moved = {key for key, value in net.named_parameters() if not torch.equal(value, before[key])}
        assert moved == affine
        assert torch.allclose(first, by_batch, atol=1e-5)             # the answer comes before the step
        entropies = [float(entropy(tent.step(x))) for _ in range(15)]
        assert entropies[-1] < float(entropy(first))
        tent.reset()
        assert all(torch.equal(value, before[key]) for key, value in net.named_parameters())
        assert torch.allclose(tent.step(x), first, atol=1e-6)
    assert same_state(before, state(net)) and {name: p.requires_grad for name, p in net.named_parameters()} == trainable
    assert all(p.grad is None for p in net.parameters())


def test_one_step_of_tent_is_one_step_of_adam_on_the_entropy():
    net, x = closed_set(), torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    twin = copy.deepcopy(net).train()
    affine = [p for layer in twin.modules() if isinstance(layer, nn.BatchNorm2d) for p in (layer.weight, layer.bias)]
    optimizer = torch.optim.Adam(affine, lr=1e-3)
    entropy(twin(x).logits).backward()
    optimizer.step()
    with Tent(net, lr=1e-3) as tent:
        tent.adapt([x])
        ours = [p for layer in net.modules() if isinstance(layer, nn.BatchNorm2d) for p in (layer.weight, layer.bias)]
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, affine, strict=True))


def test_tent_takes_a_head_of_its_own():
    net, x = network(dtype=torch.float32), faces(dtype=torch.float32)
    head = nn.Linear(5, 4)
    with Tent(net, logits=lambda out: head(out), lr=1e-2) as tent:
        assert tent.step(x).shape == (48, 4)
    assert head.weight.grad is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: FaceBN(nn.Linear(2, 2)), ("no BatchNorm", "Linear")),
        (lambda: FaceBN(network(), "adaptive"), ("unknown mode 'adaptive'", "adabn")),
        (lambda: FaceBN(network(), "mixture", a=1.5), ("a is 1.5", "[0, 1]")),
        (lambda: FaceBN(network(), "ema", rho=-0.1), ("rho is -0.1", "[0, 1]")),
        (lambda: FaceBN(network(), "pseudo_count", prior=-1), ("prior is -1", "at least 0")),
        (lambda: FaceBN(network(), layers="first"), ("'first'", "conv")),
        (lambda: FaceBN(nn.Sequential(nn.BatchNorm2d(3)), layers="vector"), ("vector", "no")),
        (lambda: FaceBN(nn.BatchNorm1d(3, track_running_stats=False)), ("running statistics",)),
        (lambda: Tent(nn.BatchNorm1d(3, affine=False)), ("scale and shift",)),
        (lambda: Tent(network(), lr=0.0), ("lr is 0.0",)),
        (lambda: Tent(network(), lr="fast"), ("lr is a str", "above 0")),
        (lambda: Tent(network(), steps=1.5), ("steps is 1.5", "whole number")),
        (lambda: FaceBN(network(), "mixture", a="x"), ("a is a str", "[0, 1]")),
        (lambda: FaceBN(network(), "pseudo_count", prior="x"), ("prior is a str", "number of images")),
        (lambda: FaceBN(network(), layers=["bn1"]), ("['bn1']", "conv")),
    ],
)
def test_what_cannot_be_adapted_is_refused_in_one_line(call, words):
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_misuse_inside_is_refused_in_one_line():
    net, x = network(), faces()
    with FaceBN(net, "prediction"):
        net.train()
        with pytest.raises(ValueError, match="training mode"):
            net(x)
    with FaceBN(net) as face, pytest.raises(ValueError, match="no images"):
        face.adapt([])
    with FaceBN(net, "plain") as face, pytest.raises(ValueError, match="plain"):
        face.adapt([x])
    with pytest.raises(ValueError, match="with FaceBN"):
        FaceBN(net).adapt([x])
    with FaceBN(net) as face, pytest.raises(ValueError, match="once"):
        face.adapt(iter([x[:9], x[9:]]))                        # a stream that can be read once only


@pytest.mark.parametrize("mode", ["adabn", "prediction", "mixture"])
def test_an_image_without_the_axis_of_the_batch_is_named(mode):
    net = network()
    for side in (6, 5):                                         # as many rows as the first layer has channels, or not
        x = torch.rand(2, side, side, dtype=torch.float64)
        with FaceBN(net, mode) as face:
            for given_ in (x, [x, x]):
                assert "expected (N, 6, ...): pass images as a batch" in refused(face.adapt, given_)
        with Tent(net) as tent:
            assert "expected (N, 6, ...): pass images as a batch" in refused(tent.step, x)


def test_tent_reads_pairs_and_refuses_what_is_broken_before_it_learns():
    net, x = network(), faces()
    with Tent(net) as tent:
        plain = tent.step(x)
    with Tent(net) as tent:
        assert torch.equal(tent.step([x, torch.arange(len(x))]), plain)
        tent.reset()
        before = state(net)
        for wrong, words in ((None, "a batch is a NoneType"), (x.numpy(), "a batch is a ndarray"), (x * math.nan, "logits holds NaN")):
            assert words in refused(tent.step, wrong)
        assert all(p.isfinite().all() for p in net.parameters()) and same_state(before, state(net))


def test_a_layer_that_runs_twice_has_no_one_statistic():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.bn(self.bn(x).exp())

    net, x = Twice().eval(), torch.randn(8, 3)
    with FaceBN(net) as face, pytest.raises(ValueError, match="bn runs 2 times"):
        face.adapt([x[:4], x[4:]])
    expected = copy.deepcopy(net).train()(x)
    with FaceBN(net, "prediction"):
        assert torch.allclose(net(x), expected, atol=1e-5)


def test_the_modes_are_those_of_the_table():
    assert set(MODES) == {"plain", "prediction", "mixture", "pseudo_count", "ema", "adabn"}
    assert set(BATCHWISE) == set(MODES) - {"plain", "adabn"}


# statistics of too few
@pytest.mark.parametrize(("mode", "options"), [("adabn", {}), ("prediction", {}), ("ema", {}), ("mixture", {"a": 1.0}),
                                               ("pseudo_count", {"prior": 0})])
def test_one_image_gives_a_layer_of_vectors_no_variance(mode, options):
    """The maps have 36 and 4 values per channel, the vector one: it is the one that is named."""
    net, x = network(), faces(2)
    with FaceBN(net, mode, **options) as face:
        line = refused(face.adapt, x[:1]) if mode == "adabn" else refused(net, x[:1])
        assert line.startswith("layer 7 sees one value per channel") and "same place" in line
    with FaceBN(net, mode, layers="conv", **options) as face:
        if mode == "adabn":
            face.adapt(x[:1])
        assert not torch.allclose(net(x[:1]), net(x[1:]), atol=1e-3)
    with FaceBN(net, mode, **options) as face:
        if mode == "adabn":
            face.adapt([x[:1], x[1:]])                  # two images, in whatever parts
        net(x)


@pytest.mark.parametrize(("mode", "options"), [("plain", {}), ("mixture", {"a": 0.5}), ("pseudo_count", {})])
def test_one_image_beside_the_source_sends_two_faces_to_two_places(mode, options):
    net, x = network(), faces(2)
    with FaceBN(net, mode, **options):
        assert not torch.allclose(net(x[:1]), net(x[1:]), atol=1e-3)


def test_a_layer_of_one_place_is_counted_too():
    net = nn.Sequential(nn.Conv2d(2, 3, 6), nn.BatchNorm2d(3)).double().eval()
    with FaceBN(net) as face:
        assert "layer 1 sees one value" in refused(face.adapt, faces(1))
    with Tent(nn.Sequential(net, nn.Flatten())) as tent:
        assert "layer 0.1 sees one value" in refused(tent.step, faces(1))
        tent.step(faces(2))


def test_images_that_are_broken_move_nothing():
    net, x = network(), faces(4)
    before = state(net)
    x[1, 0, 0, 0] = math.nan
    with FaceBN(net) as face:
        assert "NaN" in refused(face.adapt, list(x.split(2)))
    with FaceBN(net, "ema"):
        assert "NaN" in refused(net, x)
    assert same_state(before, state(net))


# what a user brings
def test_batches_of_any_kind_give_the_same_statistics():
    net, x = network(dtype=torch.float32), faces(20, dtype=torch.float32)
    pairs = TensorDataset(x, torch.arange(20))
    with FaceBN(net) as face:
        face.adapt(x)
        expected = net(x)
        forms = (pairs, DataLoader(pairs, 7), list(DataLoader(pairs, 6)), [{"images": x, "labels": x}], [x[:3], x[3:]],
                 DataLoader(pairs, 20, shuffle=True))
        for images in forms:
            face.adapt(images)
            assert torch.allclose(net(x), expected, atol=1e-5)
        face.adapt((255 * x).round().byte())
        assert torch.allclose(net(x), expected, atol=0.2)
        assert "dict" in refused(face.adapt, {"images": x}) and "batch_size is 0" in refused(face.adapt, x, 0)
    for images in (pairs, DataLoader(pairs, 10)):
        with Tent(network(dtype=torch.float32)) as tent:
            tent.adapt(images, batch_size=10)
            found = [p.detach().clone() for p in tent.learns]
        with Tent(network(dtype=torch.float32)) as tent:
            tent.adapt(x, batch_size=10)
            assert all(map(torch.equal, found, tent.learns))


@pytest.mark.parametrize("form", [lambda z, h: z, lambda z, h: (z, h), lambda z, h: (h, z), lambda z, h: {"logits": z}])
def test_tent_takes_what_a_network_returns(form):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = network(dtype=torch.float32), nn.Linear(5, 4)

        def forward(self, x):
            h = self.body(x)
            return form(self.fc(h), h)

    torch.manual_seed(2)
    net, x = Own().eval(), faces(dtype=torch.float32)
    with Tent(net) as tent:
        assert tent.step(x).shape == (48, 4)
        tent.freeze()
        assert "with Tent" in refused(tent.step, x)
    assert "with Tent" in refused(Tent(net).step, x)


def test_a_compiled_model_is_adapted_as_it_was_written():
    net, x = network(dtype=torch.float32), faces(dtype=torch.float32)
    with FaceBN(net) as face:
        face.adapt(x)
        expected = net(x)
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        plain = compiled(x)
        with FaceBN(compiled) as face:
            for images in (x, list(x.split(10))):
                face.adapt(images)
                assert torch.allclose(compiled(x), expected, atol=1e-4)
        assert torch.equal(compiled(x), plain)
    assert "compiled" in refused(FaceBN, compiled, "prediction")
    assert "no BatchNorm" in refused(FaceBN, nn.Linear(2, 2)) and "function" in refused(FaceBN, lambda x: x)


def test_small_pieces_refuse_what_they_cannot_use():
    pooled = Pooled()
    pooled.add(torch.rand(3, 2))
    assert "expected 2" in refused(pooled.add, torch.rand(3, 4)) and (pooled.n, pooled.images) == (3, 3)
    for u in (torch.zeros(0, 3), torch.zeros(3), torch.zeros(2, 3, dtype=torch.long)):
        assert "expected floating point (N, c, ...)" in refused(channel_moments, u)
    for logits in (torch.zeros(0, 3), torch.zeros(3), torch.zeros(2, 3, dtype=torch.long)):
        assert "(N, classes)" in refused(entropy, logits)
    assert entropy(torch.zeros(2, 4).half()).dtype == torch.float32
