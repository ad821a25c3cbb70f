"""Condensing and judging through a user's own network: a module, or a function that makes one, whatever it returns."""

import copy

import pytest
import torch
from torch import nn

from kdnotes.checks import refused
from kdnotes.condense.evaluate import Protocol, evaluate
from kdnotes.condense.learn import condense
from kdnotes.condense.matching import Matching, Remade, Settings, class_parts, fresh, mixes_images, redraw
from kdnotes.condense.synthetic import from_real
from kdnotes.models import as_predictor

torch.set_num_threads(1)


class Own(nn.Module):
    """Returns logits and features in a tuple; all weights belong to layers that can draw them."""

    def __init__(self, norm=lambda: nn.GroupNorm(6, 6), classes=10):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), norm(), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten())
        self.fc = nn.Linear(96, classes)

    def forward(self, x):
        h = self.body(x)
        return self.fc(h), h


class Token(nn.Module):
    """A weight at the root, which nothing but the constructor draws."""

    def __init__(self):
        super().__init__()
        self.token, self.fc = nn.Parameter(torch.randn(64)), nn.Linear(64, 10)

    def forward(self, x):
        return {"logits": self.fc(x.flatten(1) + self.token)}


NETWORKS = {"module": Own().eval(), "class": Own, "function": lambda: Own(), "dict": Token,
            "named layer": lambda: as_predictor(Own(), layer="body.2"), "batch norm": Own(lambda: nn.BatchNorm2d(6))}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["dm", "m3d", "dsa"])
def test_condense_looks_through_any_network(name, method, digits):
    network = NETWORKS[name]
    before = copy.deepcopy(network.state_dict()) if isinstance(network, nn.Module) else {}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    options = {"iterations": 2, "real_batch": 8, "factor": 1} | ({} if method != "dsa" else {"iterations": 1})
    first, second = (condense(digits, 1, method, network=network, seed=1, **options) for _ in range(2))
    assert first.pixels.shape == (10, 1, 8, 8) and torch.equal(first.pixels, second.pixels)
    assert not torch.equal(first.pixels, from_real(digits, 1, 1, 1).pixels)
    assert torch.equal(torch.get_rng_state(), state)
    if before:
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        assert network.training == (name != "module") and all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("method", ["idm", "dance", "herding"])
def test_networks_in_training_may_be_ones_own(method, digits):
    options = {"iterations": 2, "real_batch": 8} if method != "herding" else {}
    few = digits.take(torch.arange(60))
    found = condense(few, 1, method, network=Own, experts=1, factor=1, **options)
    assert found.pixels.shape == (10, 1, 8, 8)
    line = refused(condense, few, 1, method, network=Own(lambda: nn.BatchNorm2d(6)), experts=1, **options)
    assert "running statistics" in line


def test_evaluate_trains_ones_own_network(digits):
    x, y = digits.images[:100], digits.labels[:100]
    few = digits.take(torch.arange(200))
    short = Protocol(epochs=25, batch_size=50, lr=0.05, looks=1, strategy="color_crop", cutmix=0.0)
    for network in (Own(), Own, Own(lambda: nn.BatchNorm2d(6))):
        [found] = evaluate(x, y, few, protocol=short, network=network, repeats=1, workers=1)
        assert found["last"] > 0.5


def test_a_network_is_drawn_anew_from_its_seed():
    a, b, c = (fresh(Own, 10, (1, 8, 8), seed) for seed in (1, 1, 2))
    same = lambda p, q: all(map(torch.equal, p.state_dict().values(), q.state_dict().values()))
    assert isinstance(a, Remade) and same(a, b) and not same(a, c)
    redraw(c, 1)
    d = copy.deepcopy(c)
    redraw(d, 5)
    assert not same(c, d)
    module = Own()
    e, f = (fresh(module, 10, (1, 8, 8), seed) for seed in (1, 2))
    assert not same(e, f) and not same(e, module)
    redraw(f, 1)
    assert same(e, f)


def test_what_is_no_network_is_refused_in_one_line(digits):
    for network, words in ((Token(), "can draw token anew"), (Own(classes=3), "(2, 10)"), (3, "int"), (lambda: 3, "int"),
                           (nn.Sequential(nn.Flatten(), nn.Linear(9, 10)), "does not take images of (1, 8, 8)"),
                           (nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "wait for images"),
                           (nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()), "no linear layer"), ("resnet9", "resnet8")):
        assert words in refused(condense, digits, 1, "dm", network=network, iterations=1)
    assert "options" in refused(condense, digits, 1, "dm", network=Own, options={"width": 8}, iterations=1)


def test_the_loss_does_not_depend_on_how_the_classes_are_cut(digits):
    """With batch normalisation all classes go through at once, on a CPU as on an accelerator."""
    shared, alone = Own(lambda: nn.BatchNorm2d(6, track_running_stats=False)), Own()
    assert mixes_images(shared) and not mixes_images(alone)
    for at_once, sizes in ((0, [10]), (10, [10])):
        run = Matching(from_real(digits, 1), digits, [], Settings(1, lr=1.0, classes_at_once=at_once))
        assert [len(part) for part in class_parts(run, shared)] == sizes
    run = Matching(from_real(digits, 1), digits, [], Settings(1, lr=1.0, classes_at_once=4))
    assert "classes_at_once is 4" in refused(class_parts, run, shared)
    assert [len(part) for part in class_parts(run, alone)] == [4, 4, 2]
