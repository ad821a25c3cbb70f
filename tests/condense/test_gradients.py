"""Gradient matching: the distance, the step against second derivatives by hand, the loops."""

import pytest
import torch

from kdnotes.condense.gradients import Inner, gradient_gap, gradient_step, inner_for, learn_from, match_gradients
from kdnotes.condense.matching import Matching, Settings
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


def test_the_loops_learn_pixels_and_draw_networks_from_the_seed():
    real, first, second = load("digits", "train"), None, None
    for _ in range(2):
        learned = from_real(real, 1, 2)
        rows = match_gradients(learned, real, net(), PLAIN, Inner(2, 2), seed=4)
        first, second = learned.pixels, first
    assert first.equal(second) and [row["iteration"] for row in rows] == [1, 2, 3, 4, 5]
    assert 0 <= first.min() and first.max() <= 1 and not first.equal(from_real(real, 1, 2).pixels)


def test_the_network_learns_in_between():
    real, model = load("digits", "train"), net()
    run = Matching(from_real(real, 2), real, [], PLAIN)
    x, y = run.synthetic.decoded()

    def loss():
        return torch.nn.functional.cross_entropy(model((x - run.normal[0][0]) / run.normal[1][0]).logits, y).item()

    before = loss()
    learn_from(run, model, 20, 0.05, 0)
    assert loss() < before


def test_published_rounds_and_bad_input():
    assert [inner_for(ipc).rounds for ipc in (1, 5, 10, 50, 80)] == [1, 1, 10, 50, 50] and inner_for(10).steps == 50
    with pytest.raises(ValueError, match="at least 1 round"):
        Inner(0, 1)


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
    with pytest.raises(ValueError, match="is of another training .*steps of a network: 1 in the file, 2 asked"):
        match_gradients(from_real(real, 1, 2), real, net(), checkpoint=path, **call | {"inner": Inner(2, 2)})


def test_a_long_run_compiles_nothing_since_compilers_have_no_second_derivatives(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *a, **k: pytest.fail("compiled"))
    real = load("digits", "train")
    with pytest.raises(KeyboardInterrupt):
        match_gradients(from_real(real, 1), real, stopping(net(), 25), Settings(1000, lr=0.5, real_batch=16, strategy="none"), Inner(1, 1))
