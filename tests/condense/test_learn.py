"""One call from a real to a small training set: every method, its settings, orderings that are robust."""

import pytest
import torch

from kdnotes.condense.evaluate import Protocol, evaluate
from kdnotes.condense.gradients import Inner
from kdnotes.condense.learn import CHOSEN, RECIPES, condense, passes_for, settings_for
from kdnotes.condense.matching import statistics
from kdnotes.data.catalogue import load


@pytest.mark.parametrize("method", [*RECIPES, *CHOSEN])
def test_every_method_gives_a_balanced_set_that_its_seed_determines(method, digits, pool, small):
    short = {"iterations": 2, "real_batch": 16} if method in RECIPES else {}
    inner = {"inner": Inner(2, 1)} if method in ("dc", "dsa") else {}
    found, again, other = (condense(digits, 2, method, seed=seed, pool=pool if method in ("dance", "herding", "k_center") else None, **small, **short, **inner) for seed in (1, 1, 2))
    assert found.pixels.shape == (20, 1, 8, 8) and found.classes == digits.classes
    bounded = method not in RECIPES or RECIPES[method].space == "unit"
    assert not bounded or 0 <= found.pixels.min() and found.pixels.max() <= 1
    assert found.factor == {"mosaic": 2}.get(method, RECIPES[method].factor if method in RECIPES else 1)
    assert found.pixels.equal(again.pixels) and found.pixels.equal(other.pixels) == (method in ("herding", "k_center"))


def test_published_settings():
    assert [settings_for("m3d", ipc, 32).lr for ipc in (1, 10, 50)] == [1, 10, 50] and RECIPES["m3d"].every == 5
    dance = settings_for("dance", 10, 32, "cifar10")
    assert (dance.lr, dance.momentum, dance.real_batch, dance.most, dance.strategy, dance.rule, dance.iterations) == (0.1, 0.5, 128, 200, "color_crop_cutout", "idc", 10_000)
    assert settings_for("dm", 10, 32).rule == "dsa" and settings_for("dm", 10, 32).lr == 1 and settings_for("dc", 1, 32).strategy == "none"
    assert {method: recipe.space for method, recipe in RECIPES.items()} == dict.fromkeys(("dm", "idm", "dc", "dsa"), "normalised") | dict.fromkeys(("m3d", "dance"), "unit")


def test_the_linear_kernel_is_dm(digits):
    """M3D with the linear kernel and a new network each time takes the steps of DM."""
    from kdnotes.condense.evaluate import fresh
    from kdnotes.condense.matching import match
    from kdnotes.condense.synthetic import from_real
    ends = []
    for method, more in (("dm", {}), ("m3d", {"kernel": "linear", "every": 1})):
        learned, net = from_real(digits, 1, 2), fresh("convnet2", 10, digits.shape, 0, width=8)
        match(learned, digits, passes_for(method, digits, net, 0, **more), settings_for("m3d", 1, 8, iterations=5, lr=0.2, real_batch=16))
        ends.append(learned.pixels)
    torch.testing.assert_close(*ends, atol=1e-4, rtol=0)


@pytest.mark.long
def test_learned_images_beat_chosen_ones(digits, small):
    test = load("digits", "test")
    protocol = Protocol(epochs=50, batch_size=16, lr=0.05, looks=1, strategy="none", cutmix=0.0)

    def score(method, **changes):
        scores = []
        for seed in range(2):
            x, y = condense(digits, 1, method, factor=1, seed=seed, **small, **changes).decoded()
            scores += [r["last"] for r in evaluate(x, y, test, protocol=protocol, repeats=1, seed=seed, normal=statistics(digits), workers=1, **small)]
        return sum(scores) / len(scores)

    assert score("dm", iterations=80, lr=0.1, real_batch=48, strategy="none", space="unit") > score("random") + 0.03


@pytest.mark.parametrize(("call", "words"), [
    (lambda d: condense(d, 1, "magic"), "unknown method 'magic'"), (lambda d: condense(d, 1, "mosaic", factor=8), "factor is 8"),
    (lambda d: condense(d, 9999, "random"), "9999 are asked for"), (lambda d: passes_for("dance", d, None, 0), "needs a pool of experts"),
    (lambda d: settings_for("best", 1, 32), "unknown method 'best'"), (lambda d: condense(d, 1, "dm", iterations=0), "iterations is 0"),
    (lambda d: condense(d, 1, "dm", device="cpu"), "unknown option 'device'"), (lambda d: condense(d, 1, "dm", iteration=5), "did you mean 'iterations'"),
    (lambda d: condense(d.images, 1), "real is a Tensor; expected an ImageSet"), (lambda d: condense("digits", 1), "real is a str; expected an ImageSet"),
    (lambda d: condense(d, 1, "dm", lr="a"), "lr is a str"),
])
def test_bad_input_is_answered_in_one_line(digits, call, words):
    with pytest.raises((ValueError, TypeError)) as error:
        call(digits)
    assert words in str(error.value) and "\n" not in str(error.value)
