"""Gradient matching: the distance, the step against second derivatives by hand, the loops."""

import pytest
import torch

from kdnotes.condense.gradients import Inner, from_noise, gradient_gap, gradient_step, inner_for, learn_from, match_gradients
from kdnotes.condense.learn import RECIPES, condense
from kdnotes.condense.matching import Matching, Settings, standardised, statistics
from kdnotes.condense.synthetic import SyntheticSet, from_real
from kdnotes.data.catalogue import load
from kdnotes.models.classifiers import Prediction, build

PLAIN = Settings(5, lr=0.5, real_batch=32, strategy="none")


def net():
    torch.manual_seed(0)
    return build("convnet2", 10, channels=1, size=8, width=4)


def stopping(model, forwards):
    """`model`, interrupted at the forward pass after so many."""
    def step(*_):
        if next(left, None) is None:
            raise KeyboardInterrupt
    left = iter(range(forwards))
    model.register_forward_pre_hook(step)
    return model


def test_the_gap_by_loops():
    g = torch.Generator().manual_seed(0)
    a, b = ([torch.randn(4, 3, 2, 2, generator=g), torch.randn(4, generator=g), torch.randn(5, 6, generator=g)] for _ in range(2))
    expected = sum(1 - (x.flatten() @ y.flatten()) / (x.norm() * y.norm()) for i in (0, 2) for x, y in zip(a[i], b[i]))
    torch.testing.assert_close(gradient_gap(a, b), expected)
    assert gradient_gap(a, [3 * x for x in a]).abs() < 1e-5


def test_the_step_descends_the_gap_of_a_linear_network_by_finite_differences():
    real = load("digits", "train")

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(10, 64, generator=torch.Generator().manual_seed(1)) / 8)

        def forward(self, x):
            return Prediction(x.flatten(1) @ self.weight.T, x.flatten(1))

    def gap(pixels):
        run = Matching(SyntheticSet(pixels.clone(), real.classes), real, [], PLAIN)
        return gradient_step(run, Linear()), run.synthetic.pixels.detach()

    begun = from_real(real, 1).pixels
    value, moved = gap(begun)
    gradient, step = (begun - moved) / PLAIN.lr, torch.zeros_like(begun)
    step[3, 0, 4, 4] = 1e-2
    numeric = (gap(begun + step)[0] - gap(begun - step)[0]) / 2e-2
    assert gradient[3, 0, 4, 4].item() == pytest.approx(numeric, rel=0.05, abs=1e-3)
    assert gap(begun - 0.05 * gradient / gradient.norm())[0] < value


@pytest.mark.long
def test_the_loops_learn_pixels_and_draw_networks_from_the_seed():
    real, first, second = load("digits", "train"), None, None
    for _ in range(2):
        learned = from_real(real, 1, 2)
        rows = match_gradients(learned, real, net(), PLAIN, Inner(2, 2), seed=4)
        first, second = learned.pixels, first
    assert first.equal(second) and [row["iteration"] for row in rows] == [1, 2, 3, 4, 5]
    assert 0 <= first.min() and first.max() <= 1 and not first.equal(from_real(real, 1, 2).pixels)


def test_a_row_without_a_gradient_counts_one_as_in_the_published_code():
    """Its denominator is the product of the norms plus 1e-6, not their maximum with it."""
    a, b = torch.tensor([[1e-4, 0.0], [0.0, 0.0]]), torch.tensor([[1e-3, 0.0], [2.0, 0.0]])
    expected = (1 - 1e-7 / (1e-7 + 1e-6)) + 1
    assert gradient_gap([a], [b]).item() == pytest.approx(expected, abs=1e-5)


def test_rounds_of_dc_by_plain_lines():
    """Three rounds in normalised pixels: a step of the pixels, then two epochs of plain SGD in batches of 256."""
    real = load("digits", "train")
    plan = Settings(1, lr=0.1, real_batch=100, strategy="none", space="normalised")
    run, model, other = Matching(from_real(real, 2), real, [], plan), net(), net()
    (mean,), (std,) = run.normal
    z = ((from_real(real, 2).pixels - mean) / std).requires_grad_()
    images, optimizer = torch.optim.SGD([z], lr=0.1, momentum=0.5), torch.optim.SGD(other.parameters(), lr=0.01)
    entropy, labels = torch.nn.functional.cross_entropy, torch.arange(10).repeat_interleave(2)
    for turn in range(3):
        rows = run.batches(run.iteration)
        gradient_step(run, model)
        learn_from(run, model, 2, 0.01, turn)
        loss = 0.0
        for c in range(10):
            seen = torch.autograd.grad(entropy(other((real.images[rows[c]] / 255 - mean) / std).logits, real.labels[rows[c]]), list(other.parameters()))
            own = torch.autograd.grad(entropy(other(z[2 * c : 2 * c + 2]).logits, labels[2 * c : 2 * c + 2]), list(other.parameters()), create_graph=True)
            for g, t in zip(own, seen):
                if g.ndim > 1:
                    g, t = g.flatten(1), t.flatten(1)
                    loss = loss + (1 - (g * t).sum(1) / (g.norm(dim=1) * t.norm(dim=1) + 1e-6)).sum()
        images.zero_grad()
        loss.backward()
        images.step()
        for _ in range(2):
            optimizer.zero_grad()
            entropy(other(z.detach()).logits, labels).backward()
            optimizer.step()
    torch.testing.assert_close(run.synthetic.pixels.detach(), z.detach() * std + mean, atol=1e-4, rtol=0)
    assert (run.synthetic.pixels - from_real(real, 2).pixels).abs().max() > 1e-3
    torch.testing.assert_close([p.detach() for p in model.parameters()], [p.detach() for p in other.parameters()], atol=1e-5, rtol=0)


def test_the_network_learns_in_between():
    real, model = load("digits", "train"), net()
    run = Matching(from_real(real, 2), real, [], PLAIN)
    x, y = run.synthetic.decoded()

    def loss():
        return torch.nn.functional.cross_entropy(model((x - run.normal[0][0]) / run.normal[1][0]).logits, y).item()

    before = loss()
    learn_from(run, model, 20, 0.05, 0)
    assert loss() < before


def test_dc_begins_with_noise_of_normalised_pixels_and_dsa_with_real_images():
    real = load("digits", "train")
    begun = from_noise(real, 40, seed=3)
    noise = standardised(begun.pixels, statistics(real))
    assert noise.mean().abs() < 0.02 and abs(noise.std().item() - 1) < 0.02 and begun.ipc == 40
    assert begun.pixels.equal(from_noise(real, 40, seed=3).pixels) and not begun.pixels.equal(from_noise(real, 40, seed=4).pixels)
    plan = {"iterations": 1, "lr": 1e-9, "real_batch": 8, "network": "convnet2", "options": {"width": 4}, "inner": Inner(1, 0), "seed": 3}
    torch.testing.assert_close(condense(real, 1, "dc", **plan).pixels, from_noise(real, 1, seed=3).pixels, atol=1e-6, rtol=0)
    torch.testing.assert_close(condense(real, 1, "dsa", **plan).pixels, from_real(real, 1, seed=3).pixels, atol=1e-6, rtol=0)
    assert {name for name, recipe in RECIPES.items() if recipe.begins == "noise"} == {"dc"}


def test_published_rounds_and_bad_input():
    pairs = {1: (1, 1), 5: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10), 80: (50, 10)}
    assert {ipc: (inner_for(ipc).rounds, inner_for(ipc).epochs) for ipc in pairs} == pairs
    with pytest.raises(ValueError, match="rounds is 0"):
        Inner(0, 1)


@pytest.mark.long
@pytest.mark.parametrize("forwards", [30, 100, 130])
def test_a_killed_run_arrives_where_it_would_have_arrived(tmp_path, forwards):
    """Killed in the first, the third and the fourth of five networks, of 41 forward passes each."""
    real = load("digits", "train")
    call = {"settings": Settings(5, lr=0.5, real_batch=16, strategy="color_crop", rule="dsa"), "inner": Inner(2, 1), "seed": 2}
    whole, again = from_real(real, 1, 2), from_real(real, 1, 2)
    rows = match_gradients(whole, real, net(), **call)
    killed, path = stopping(net(), forwards), tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        match_gradients(from_real(real, 1, 2), real, killed, checkpoint=path, every=2, **call)
    assert path.exists() == (forwards > 82)
    assert match_gradients(again, real, net(), checkpoint=path, every=2, **call) == rows and again.pixels.equal(whole.pixels)
    finished = from_real(real, 1, 2)
    match_gradients(finished, real, killed, checkpoint=path, **call)                                 # of a finished run: the result, and no forward pass
    assert finished.pixels.equal(whole.pixels)
    with pytest.raises(ValueError, match="is of another training .*epochs of a network: 1 in the file, 2 asked"):
        match_gradients(from_real(real, 1, 2), real, net(), checkpoint=path, **call | {"inner": Inner(2, 2)})


def test_a_long_run_compiles_nothing_since_compilers_have_no_second_derivatives(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *a, **k: pytest.fail("compiled"))
    real = load("digits", "train")
    with pytest.raises(KeyboardInterrupt):
        match_gradients(from_real(real, 1), real, stopping(net(), 25), Settings(1000, lr=0.5, real_batch=16, strategy="none"), Inner(1, 1))
