"""Any network as one that returns its logits and its features: own ones in all forms, torchvision's, wrapped, copied."""

import copy
import io
import pickle
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdnotes.checks import refused
from kdnotes.models import Prediction, as_predictor
from kdnotes.models.classifiers import build
from kdnotes.models.predictor import Predictor, as_batches, evaluating, inputs_of, layer_names, linear_layers, logits_of

torch.set_num_threads(1)
X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", "logits aux_logits")


@dataclass
class Scored:
    """The same, with names of its own."""

    scores: torch.Tensor
    state: tuple | None = None


@dataclass
class Output:
    """As Hugging Face's networks answer: an object with fields."""

    logits: torch.Tensor
    hidden_states: tuple | None = None


FORMS = {
    "logits": lambda z, h: z,
    "tuple": lambda z, h: (z, h),
    "features first": lambda z, h: (h, z),
    "list of maps first": lambda z, h: ([h, h], z),
    "dict": lambda z, h: {"logits": z, "loss": None},
    "dict of other names": lambda z, h: {"embedding": h, "scores": z},
    "ordered dict": lambda z, h: OrderedDict(features=h, logits=z),
    "object": lambda z, h: Output(z),
    "object of other names": lambda z, h: Scored(z, (h,)),
    "plain object": lambda z, h: SimpleNamespace(scores=z, loss=None),
    "features beside a list": lambda z, h: [h, [z]],
    "features in a list": lambda z, h: (z, [h, h]),
    "named tuple": lambda z, h: Pair(z, None),
    "prediction": lambda z, h: Prediction(z, h),
    "log softmax": lambda z, h: z.log_softmax(1),
    "log softmax and features": lambda z, h: (z.log_softmax(1), h),
}


class Own(nn.Module):
    """A user's network: layers in no order of running, a frozen part, a parameter and a buffer at the root."""

    def __init__(self, form="logits"):
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.fc = nn.Linear(7, 4)
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
        self.embed = nn.Linear(5, 7)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.body[1].requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.body[1].eval()
        return self

    def forward(self, x):
        self.seen += len(x)
        h = torch.relu(self.embed(self.body(x).mean((2, 3)) * self.scale))
        return FORMS[self.form](self.fc(h), h)


def features_by_hand(net, x):
    return torch.relu(net.embed(net.body(x).mean((2, 3)) * net.scale))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [True, False])
def test_a_network_of_ones_own_in_every_form(form, training):
    net = Own(form).train(training)
    logits, features = as_predictor(net)(X)
    h = features_by_hand(net, X)
    z = net.fc(h)
    assert torch.allclose(features, h) and torch.allclose(logits, z.log_softmax(1) if form.startswith("log softmax") else z)
    assert isinstance(as_predictor(net)(X), Prediction) and isinstance(as_predictor(as_predictor(net)), Predictor)


def test_gradients_flow_through_the_features():
    net = Own()
    as_predictor(net)(X).features.sum().backward()
    expected = Own()
    features_by_hand(expected, X).sum().backward()
    assert torch.allclose(net.embed.weight.grad, expected.embed.weight.grad) and net.fc.weight.grad is None


def test_a_layer_by_its_name_is_heard_as_it_made_its_output():
    net = Own()
    for name, shape in (("body.1", 5 * 64), ("body", 5 * 64), ("embed", 7), ("fc", 4)):
        assert as_predictor(net, layer=name)(X).features.shape == (6, shape)
    before = as_predictor(net, layer="body.1")(X).features                     # a ReLU in place comes next
    assert before.min() < 0 and torch.allclose(before, net.body[1](net.body[0](X)).flatten(1))
    assert torch.equal(as_predictor(as_predictor(net), layer="embed")(X).features,
                       as_predictor(net, layer="embed")(X).features)
    classifier = build("smallconv", 4, size=8)
    assert as_predictor(classifier) is classifier
    assert as_predictor(classifier, layer="trunk.stage1")(X).features.shape == (6, 32 * 16)


def test_the_module_stays_as_it_was():
    net = Own().train()
    heard = []
    net.fc.register_forward_hook(lambda *_: heard.append(1))
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    modes = {name: m.training for name, m in net.named_modules()}
    state, keys = copy.deepcopy(net.state_dict()), list(net.state_dict())
    predictor = as_predictor(net)
    with evaluating(predictor):
        assert not any(m.training for m in net.modules())
        predictor(X)
    assert heard == [1] and len(net.fc._forward_hooks) == 1 and not net.embed._forward_hooks
    assert {name: p.requires_grad for name, p in net.named_parameters()} == flags
    assert {name: m.training for name, m in net.named_modules()} == modes and predictor.training
    assert list(predictor.state_dict()) == keys == list(net.state_dict())
    assert [name for name, _ in predictor.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    predictor.train()
    assert net.training and not net.body[1].training                          # the network's own rule holds
    with pytest.raises(RuntimeError), evaluating(predictor):
        raise RuntimeError
    assert net.training and not net.body[1].training and predictor.scale is net.scale


def test_weights_move_both_ways_and_load_by_their_own_names():
    net = Own()
    predictor = as_predictor(net)
    other = {key: value + 1 if value.is_floating_point() else value for key, value in net.state_dict().items()}
    predictor.load_state_dict(other)
    assert torch.equal(net.fc.weight, other["fc.weight"])
    around = nn.ModuleDict({"part": predictor})                               # as a part of something larger
    assert set(around.state_dict()) == {f"part.{key}" for key in other}
    around.load_state_dict({f"part.{key}": value for key, value in Own().state_dict().items()})
    assert torch.equal(net.fc.weight, Own().fc.weight)
    predictor.double()
    assert net.scale.dtype == net.seen.dtype == torch.float64 and predictor(X.double()).logits.dtype == torch.float64
    assert refused_by_torch(lambda: predictor.load_state_dict({}))


def refused_by_torch(call):
    with pytest.raises(RuntimeError, match="fc.weight"):
        call()
    return True


def test_copies_and_pickles_are_whole_and_their_own():
    net = Own()
    predictor = as_predictor(net, layer="embed")
    file = io.BytesIO()
    torch.save(predictor, file)
    file.seek(0)
    for twin in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor)), torch.load(file, weights_only=False)):
        with torch.no_grad():
            assert torch.equal(twin(X).features, predictor(X).features)
            twin.fc.weight.zero_()
        assert twin(X).logits.std(0).max() < 1e-6 and twin.given.fc is twin.fc and net.fc.weight.abs().sum() > 0
        twin.double()
        assert twin.given.scale.dtype == torch.float64 and net.scale.dtype == torch.float32
        twin.eval()
        assert not twin.given.training and net.training


def test_functional_calls_find_the_weights_by_their_names():
    nets = [as_predictor(nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 4))) for _ in range(3)]
    weights, buffers = torch.func.stack_module_state(nets)
    found = torch.vmap(lambda w: torch.func.functional_call(nets[0], w, (X,)).features)(weights)
    assert torch.allclose(found, torch.stack([net(X).features for net in nets]), atol=1e-6)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")],
                         ids=["DataParallel", "compile"])
def test_wrapped_modules(wrap):
    net = Own().eval()
    expected = as_predictor(net)(X)
    wrapped = wrap(net)
    wrapped(X)                                       # compiled before anybody listens
    for found in (as_predictor(wrapped)(X), as_predictor(wrap(Own("tuple").eval()))(X)):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected))
    assert as_predictor(wrapped).state_dict().keys() == wrapped.state_dict().keys()
    for name in ("embed", f"{'module' if wrap is nn.DataParallel else '_orig_mod'}.embed"):
        assert torch.allclose(as_predictor(wrapped, layer=name)(X).features, net.embed(net.body(X).mean((2, 3))), atol=1e-6)
    assert as_predictor(wrap(build("smallconv", 4, size=8).eval()))(X).features.shape == (6, 128)


def test_a_part_that_is_compiled_in_place_is_heard():
    net = Own().eval()
    expected = as_predictor(net)(X).features
    net.fc.compile(backend="eager")
    net(X)
    assert torch.allclose(as_predictor(net)(X).features, expected)
    compiled = torch.compile(as_predictor(Own().eval()), backend="eager")
    assert torch.allclose(compiled(X).features, expected)


NETWORKS = {    # what torchvision's networks call their last linear layer, and the width that it reads
    "resnet18": ("fc", 512), "densenet121": ("classifier", 1024), "mobilenet_v3_small": ("classifier.3", 1024),
    "vgg11": ("classifier.6", 4096), "efficientnet_b0": ("classifier.1", 1280), "shufflenet_v2_x0_5": ("fc", 1024),
    "vit_b_16": ("heads.head", 768), "swin_t": ("head", 768), "convnext_tiny": ("classifier.2", 768),
    "googlenet": ("fc", 1024),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_torchvision(name):
    """On shapes alone: without weights, so that the largest costs nothing."""
    from torchvision.models import get_model

    layer, width = NETWORKS[name]
    options = {"init_weights": False} if name in ("googlenet", "vgg11") else {}
    with torch.device("meta"):
        net = get_model(name, num_classes=7, **options).eval()
        x = torch.empty(2, 3, 224 if name == "vit_b_16" else 64, 224 if name == "vit_b_16" else 64)
        given = []
        net.get_submodule(layer).register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
        logits, features = as_predictor(net)(x)
    assert logits.shape == (2, 7) and features.shape == (2, width) and features is given[0]


class Activated(nn.Module):
    """Features before their activation and dropout, in front of the logits or behind them; as many of both if `width` is 4."""

    def __init__(self, width, first):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.drop, self.fc, self.first = nn.Linear(192, width), nn.Dropout(0.5), nn.Linear(width, 4), first

    def forward(self, x):
        h = self.embed(x.flatten(1))
        z = self.fc(self.drop(torch.relu(h)))
        return (h, z) if self.first else (z, h)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("width", [4, 7])
def test_features_before_their_activation_are_no_logits(width, first, training):
    net = Activated(width, first).train(training)
    torch.manual_seed(1)
    expected = net(X)[1 if first else 0]
    torch.manual_seed(1)
    logits, features = as_predictor(net)(X)
    assert torch.equal(logits, expected) and torch.allclose(net.fc(features), logits)


def test_as_many_inputs_as_classes_are_no_logits():
    class Points(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.classify = nn.Linear(2, 8), nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 2))

        def forward(self, x):
            return self.classify(self.embed(x)), self.embed(x)

    net, x = Points().eval(), torch.randn(6, 2)
    assert all(map(torch.equal, as_predictor(net)(x), net(x)))


def test_auxiliary_heads_are_no_logits():
    from torchvision.models import GoogLeNet

    with torch.device("meta"):
        net = GoogLeNet(num_classes=7, aux_logits=True, init_weights=False, transform_input=False).train()
        logits, features = as_predictor(net)(torch.empty(2, 3, 64, 64))
    assert logits.shape == (2, 7) and features.shape == (2, 1024)


class Returning(nn.Module):
    """Returns what `make` makes of two linear layers' outputs."""

    def __init__(self, make):
        super().__init__()
        self.a, self.b, self.make = nn.Linear(192, 5), nn.Linear(192, 4), make

    def forward(self, x):
        return self.make(self.a(x.flatten(1)), self.b(x.flatten(1)))


def test_what_cannot_be_told_is_refused_in_one_line():
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    line = refused(as_predictor, convolutions)
    assert "no linear layer" in line and "layer=" in line and line.endswith("layers: 0, 1, 2")
    assert as_predictor(convolutions, layer="1")(X).features.shape == (6, 4)
    line = refused(as_predictor, Own(), layer="head")
    assert "Own has no layer 'head'" in line and "fc, body, embed, body.0" in line
    assert "(6, 5), (6, 4)" in refused(as_predictor(Returning(lambda a, b: (a, b))), X)
    assert as_predictor(Returning(lambda a, b: (a, b)), logits=lambda out: out[1])(X).logits.shape == (6, 4)
    assert "keys p, q" in refused(as_predictor(Returning(lambda a, b: {"p": a, "q": b})), X)
    assert "shape (6, 5, 1)" in refused(as_predictor(Returning(lambda a, b: a[..., None])), X)
    assert "NoneType" in refused(as_predictor(Returning(lambda a, b: None)), X)
    assert "no linear layer of Returning gives its logits (6, 9)" in refused(
        as_predictor(Returning(lambda a, b: torch.cat([a, b], 1))), X)
    assert "did not run" in refused(as_predictor(Unused(), layer="never"), X)
    assert "function" in refused(as_predictor, lambda x: x)
    assert "ScriptModule" in refused(as_predictor, torch.jit.script(nn.Sequential(nn.Linear(2, 2))))


def test_what_lies_deep_counts_only_where_it_leaves_one_answer():
    deep = Returning(lambda a, b: (b, [a]))                            # nothing tells which of the two; next to the surface there is one
    assert as_predictor(deep)(X).logits.shape == (6, 4)
    looped = SimpleNamespace()
    looped.inside = looped
    assert "in it" in refused(as_predictor(Returning(lambda a, b: looped)), X)


def test_a_single_linear_layer_is_a_network():
    layer = nn.Linear(3, 2)
    assert layer_names(as_predictor(layer)) == "none" and list(linear_layers(as_predictor(layer))) == [""]
    logits, features = as_predictor(layer)(X[:, :, 0, 0])
    assert torch.equal(logits, layer(X[:, :, 0, 0])) and torch.equal(features, X[:, :, 0, 0])


class Unused(nn.Module):
    """One of its layers never runs; the other runs on places, not on images."""

    def __init__(self):
        super().__init__()
        self.never, self.fc = nn.Linear(2, 2), nn.Linear(192, 2)

    def forward(self, x):
        return self.fc(x.flatten(1))


def test_a_layer_that_runs_twice_answers_for_its_own_logits():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(192, 4)

        def forward(self, x):
            logits = self.fc(x.flatten(1))
            self.fc(-x.flatten(1))
            return logits

    assert torch.equal(as_predictor(Twice())(X).features, X.flatten(1))


def test_images_in_any_form_are_the_same_batches():
    y = torch.arange(6)
    pairs = TensorDataset(X, y)
    forms = [X, pairs, DataLoader(pairs, 4), list(DataLoader(pairs, 4)), [X[:2], X[2:]], [{"images": X, "labels": y}],
             iter(DataLoader(pairs, 4)), ((x, y) for x, y in DataLoader(pairs, 5))]
    for images in forms:
        assert torch.equal(torch.cat(list(as_batches(images, 4))), X)
    assert list(map(len, as_batches(X, 4))) == [4, 2] and not list(as_batches(X[:0], 4))
    assert as_batches(iter([X]), 4).once and not as_batches([X], 4).once
    for wrong, words in ((3, "int"), ("folder", "str"), ({"images": X}, "dict")):
        assert words in refused(as_batches, wrong, 4)
    assert "batch_size is 0" in refused(as_batches, X, 0)
    assert "keys labels" in refused(inputs_of, {"labels": y}) and "tuple" in refused(inputs_of, ())
    assert logits_of((X[:, 0, 0],)).shape == (6, 8)
