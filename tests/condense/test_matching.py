"""The matching loop: measures, sharing of draws, steps, checkpoints, resuming."""

import logging
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes.condense.matching import (PIXELS_AT_ONCE, Matching, Pass, RandomNetworks, RealBatches, Settings, calibration, compiled, decoded_classes, match, mean_gap,
                                       moment_gap, one_iteration, shares, statistics)
from kdnotes.condense.synthetic import SyntheticSet, decode, from_real
from kdnotes.data.imageset import ImageSet
from kdnotes.models.classifiers import Prediction, build

quick = settings(max_examples=15)


def toy(per_class=24, classes=3, side=8, seed=0, name="toy"):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(per_class)
    images = torch.randint(200, (len(labels), 1, side, side), generator=g, dtype=torch.uint8) + 25 * labels.view(-1, 1, 1, 1).byte()
    return ImageSet(images, labels, tuple(map(str, range(classes))), name)


def net(norm_kind="instance", depth=2):
    torch.manual_seed(0)
    return build(f"convnet{depth}", 3, channels=1, size=8, width=4, norm_kind=norm_kind)


def shown(features, logits=None):
    return Prediction(torch.zeros(*features.shape[:2], 3) if logits is None else logits, features)


def dm(seed=0, every=1):
    return [Pass(RandomNetworks(net(), seed, every), mean_gap)]


def test_the_mean_gap_by_hand_and_its_invariances():
    X, Y = torch.tensor([[[0.0, 1], [2, 2]]]).double(), torch.tensor([[[0.0, 0], [1, 0]]]).double()
    labels = torch.tensor([0])
    assert mean_gap(shown(X), shown(Y), labels) == 2.5 == mean_gap(shown(X.repeat(1, 3, 1)), shown(Y.repeat(1, 2, 1).flip(1)), labels)
    torch.testing.assert_close(moment_gap(shown(X), shown(Y), labels, "linear").float(), torch.tensor(2.5))


@quick
@given(seed=st.integers(0, 999))
def test_measures_are_sums_over_classes_and_spare_the_real_side(seed):
    g = torch.Generator().manual_seed(seed)
    X, Y = torch.randn(3, 4, 6, generator=g).requires_grad_(), torch.randn(3, 5, 6, generator=g).requires_grad_()
    for loss in (mean_gap, moment_gap, partial(moment_gap, kernel="polynomial")):
        whole = loss(shown(X), shown(Y), torch.arange(3))
        parts = [loss(shown(X[c : c + 1]), shown(Y[c : c + 1]), torch.tensor([c])) for c in range(3)]
        torch.testing.assert_close(whole, sum(parts))
        gx, gy = torch.autograd.grad(parts[1], [X, Y], allow_unused=True)
        assert gy is None and gx[1].abs().sum() > 0 and gx[[0, 2]].abs().sum() == 0


def test_calibration_step_in_closed_form():
    """A linear expert without augmentation: one step moves the pixels by -lr W^T (softmax - onehot) / n, pulled back through the decoding."""
    real, lr = toy(), 0.05
    torch.manual_seed(1)
    W = torch.randn(3, 64)
    normal = statistics(real)

    class Linear(torch.nn.Module):
        def forward(self, x):
            return Prediction(x.flatten(1) @ W.T, x.flatten(1))

    begun = from_real(real, 2, 2)
    run = Matching(SyntheticSet(begun.pixels.clone(), begun.classes, 2), real, [Pass(lambda i: Linear(), calibration, real=False)], Settings(1, lr, strategy="none"))
    one_iteration(run)
    x = begun.pixels.clone().requires_grad_()
    z = (decode(x, 2) - normal[0][0]) / normal[1][0]
    labels = begun.labels.repeat(4)
    residual = (z.flatten(1) @ W.T).softmax(1) - torch.nn.functional.one_hot(labels, 3)
    pulled = torch.autograd.grad(z, x, (residual.detach() @ W).view_as(z) / 8)[0]          # n = 2 * 2^2 decoded images a class
    torch.testing.assert_close(run.synthetic.pixels.detach(), begun.pixels - lr * pulled, atol=1e-5, rtol=1e-4)


def test_decoded_classes_keep_order_and_draw_a_part_of_many():
    pixels = torch.rand(3, 2, 1, 8, 8)
    x = decoded_classes(pixels, 2, 200, torch.Generator())
    for c in range(3):
        torch.testing.assert_close(x[c], decode(pixels[c], 2))
    part = decoded_classes(pixels, 2, 5, torch.Generator().manual_seed(0))
    assert part.shape == (3, 5, 1, 8, 8) and all(any(row.equal(other) for other in x[1]) for row in part[1])


@quick
@given(size=st.integers(1, 30), classes=st.integers(1, 4), seed=st.integers(0, 99))
def test_real_batches_use_a_class_up_before_they_repeat(size, classes, seed):
    real = toy(classes=classes)
    batches = RealBatches(real.labels, classes, size, seed)
    turns = 24 // batches.size
    assert batches.size == min(size, 24)
    first = torch.cat([batches(i) for i in range(turns)], 1)
    assert (real.labels[first] == torch.arange(classes)[:, None]).all() and all(len(row.unique()) == turns * batches.size for row in first)
    fresh = RealBatches(real.labels, classes, size, seed)
    assert fresh(turns + 1).equal(batches(turns + 1)) and fresh(0).equal(batches(0))                  # any order of asking


def test_random_networks_change_when_they_should_and_only_then():
    networks = RandomNetworks(net(), seed=1, every=5)
    weights = []
    for i in range(11):
        weights.append(torch.cat([p.flatten() for p in networks(i).parameters()]).clone())
        torch.rand(3)
    assert [i for i in range(1, 11) if not weights[i].equal(weights[i - 1])] == [5, 10]
    assert not any(p.requires_grad for p in networks.net.parameters())
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    networks(0)
    assert torch.rand(1).equal(before)                                                              # the global generator is left alone


def moved(at_once, norm_kind="instance", rule="idc"):
    real = toy()
    run = Matching(from_real(real, 2, 2), real, [Pass(RandomNetworks(net(norm_kind), 0), mean_gap)],
                   Settings(1, lr=0.1, real_batch=8, classes_at_once=at_once, rule=rule))
    one_iteration(run)
    return run.synthetic.pixels.detach()


def test_all_classes_in_one_forward_equal_a_loop_over_classes():
    for rule in ("idc", "dsa"):
        torch.testing.assert_close(moved(1, rule=rule), moved(3, rule=rule), atol=1e-5, rtol=0)
        torch.testing.assert_close(moved(2, rule=rule), moved(3, rule=rule), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved(0, "batch"), moved(3, "batch"), atol=0, rtol=0)       # never cut, on any device
    with pytest.raises(ValueError, match="classes_at_once is 1"):
        moved(1, "batch")


def test_shares_of_images_equal_all_at_once(monkeypatch):
    found = []
    for limit in (1, 200, 10**9):                                                                    # an image, three images, all
        monkeypatch.setitem(PIXELS_AT_ONCE, "cpu", limit)
        found.append((moved(3), len(shares(net(), torch.rand(8, 1, 8, 8)))))
    assert [parts for _, parts in found] == [8, 4, 1] and len(shares(net("batch"), torch.rand(8, 1, 8, 8))) == 1
    torch.testing.assert_close(found[0][0], found[2][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1][0], found[2][0], atol=1e-5, rtol=0)


def test_the_same_image_on_both_sides_gives_no_loss_whatever_is_drawn():
    real = toy(per_class=1)
    run = Matching(from_real(real, 1), real, dm(), Settings(1, lr=0.1))
    for run.iteration in range(20):
        images, classes = run.synthetic.by_class().detach(), torch.arange(3)
        net = run.passes[0].networks(0)
        a, b = run.show(net, images, classes, "x"), run.show(net, real.images.view_as(images), classes, "x")
        assert mean_gap(a, b, classes) < 1e-10


def test_pixels_learn_and_nothing_else_does():
    real = toy()
    networks = RandomNetworks(net(), 0, every=100)
    synthetic = from_real(real, 2, 2)
    begun = synthetic.pixels.clone()
    weights = [p.clone() for p in networks(0).parameters()]
    rows = match(synthetic, real, [Pass(networks, mean_gap)], Settings(60, lr=0.1, real_batch=24), watch_every=20)
    assert all(p.equal(w) and p.grad is None for p, w in zip(networks.net.parameters(), weights))
    assert [row["iteration"] for row in rows] == [20, 40, 60] and rows[-1]["loss0"] < rows[0]["loss0"]
    assert not synthetic.pixels.equal(begun) and 0 <= synthetic.pixels.min() and synthetic.pixels.max() <= 1 and not synthetic.pixels.requires_grad


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "mine"])
def test_a_published_rate_of_normalised_pixels_makes_their_steps(name):
    """Two steps of DM in normalised pixels, learned by plain lines; nothing is clamped. In [0, 1] pixels the same rate moves 1 / std^2 as far."""
    channels, g = 3 if name == "cifar10" else 1, torch.Generator().manual_seed(0)
    real = ImageSet(torch.randint(256, (24, channels, 8, 8), dtype=torch.uint8, generator=g), torch.arange(2).repeat(12), ("a", "b"), name)
    net = build("convnet1", 2, channels=channels, size=8, width=8).requires_grad_(False)
    ends = {}
    for space in ("normalised", "unit"):
        run = Matching(from_real(real, 2), real, [Pass(lambda i: net, mean_gap)], Settings(2, lr=3.0, real_batch=12, strategy="none", space=space))
        first = run.synthetic.pixels.detach().clone()
        one_iteration(run)
        ends[space] = run.synthetic.pixels.detach() - first
    one_iteration(run := Matching(from_real(real, 2), real, run.passes, Settings(2, lr=3.0, real_batch=12, strategy="none", space="normalised")))
    one_iteration(run)
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in run.normal)
    z, x = ((first - mean) / std).requires_grad_(), (real.images / 255 - mean) / std
    optimizer = torch.optim.SGD([z], lr=3.0, momentum=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        sum((net(x[real.labels == c]).features.mean(0) - net(z[2 * c : 2 * c + 2]).features.mean(0)).square().sum() for c in (0, 1)).backward()
        optimizer.step()
    found = run.synthetic.pixels.detach()
    torch.testing.assert_close(found, z.detach() * std + mean, atol=1e-5, rtol=0)
    assert found.min() < 0 or found.max() > 1
    torch.testing.assert_close(ends["unit"] * std.square(), ends["normalised"], atol=1e-5, rtol=0)


def test_a_joint_step_moves_a_pixel_as_far_as_a_sweep_over_the_classes():
    """SGD with momentum 1/2 and a constant gradient: 2 lr g per iteration in both forms, the joint one behind by 1 to 2 lr g."""
    lr, g, C, iterations = 0.1, 1.0, 10, 25
    joint, sweep = torch.zeros(C, requires_grad=True), torch.zeros(C, requires_grad=True)
    a, b = (torch.optim.SGD([x], lr=lr, momentum=0.5) for x in (joint, sweep))
    for _ in range(iterations):
        before = joint.detach().clone(), sweep.detach().clone()
        joint.grad = torch.full((C,), g)
        a.step()
        for c in range(C):
            sweep.grad = torch.zeros(C)
            sweep.grad[c] = g
            b.step()
    # the sweep's last classes are still carried on by the next sweep, so a whole iteration is compared
    assert torch.allclose(before[0] - joint.detach(), torch.tensor(2 * lr * g), atol=1e-6 * lr)
    assert torch.allclose(before[1] - sweep.detach(), torch.tensor(2 * lr * g), atol=1e-6 * lr)
    lag = (joint - sweep).detach() / (lr * g)
    assert (lag >= 1 - 2e-3).all() and (lag <= 2 + 2e-3).all()


@pytest.mark.parametrize("killed_at", [3, 10, 17])
def test_a_killed_run_arrives_where_it_would_have_arrived(tmp_path, killed_at):
    real, plan = toy(), Settings(20, lr=0.3, real_batch=8)
    whole = from_real(real, 1, 2)
    rows = match(whole, real, dm(every=3), plan, watch_every=4)

    class Killed(Exception):
        pass

    def kill(iteration, synthetic):
        if iteration == killed_at:
            raise Killed
        return {}

    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        match(from_real(real, 1, 2), real, dm(every=3), plan, watch=kill, watch_every=1, checkpoint=path, every=4)
    again = from_real(real, 1, 2)
    match(again, real, dm(every=3), plan, watch_every=4, checkpoint=path, every=4)
    assert again.pixels.equal(whole.pixels)
    finished = from_real(real, 1, 2)
    match(finished, real, dm(every=3), plan, watch_every=4, checkpoint=path)                          # of a finished run: the result at once
    assert finished.pixels.equal(whole.pixels) and rows[-1]["iteration"] == 20


def test_checkpoints_of_other_runs_and_damaged_ones(tmp_path, caplog):
    real, path = toy(), tmp_path / "run.pt"
    match(from_real(real, 1, 2), real, dm(), Settings(2, lr=0.3, real_batch=8), checkpoint=path)
    others = [
        ({"seed": 1}, "seed: 0 in the file, 1 asked"),
        ({"passes": [Pass(RandomNetworks(net(), 0), partial(moment_gap, kernel="linear"))]}, "loss of pass 0: mean_gap in the file, .*moment_gap.*linear"),
        ({"settings": Settings(3, lr=0.3, real_batch=8)}, "steps: 2 in the file, 3 asked"),
        ({"settings": Settings(2, lr=0.4, real_batch=8)}, "optimizer lr: 0.3 in the file, 0.4 asked"),
        ({"settings": Settings(2, lr=0.3, real_batch=8, momentum=0.9)}, "optimizer momentum: 0.5 in the file, 0.9 asked"),
        ({"settings": Settings(2, lr=0.3, real_batch=8, rule="dsa")}, "rule: idc in the file, dsa asked"),
        ({"settings": Settings(2, lr=0.3, real_batch=9)}, "real batch: 8 in the file, 9 asked"),
        ({"passes": [Pass(RandomNetworks(net(), 0), lambda *given: 2 * mean_gap(*given))]}, "code of"),
    ]
    for other, difference in others:
        call = {"passes": dm(), "settings": Settings(2, lr=0.3, real_batch=8), "checkpoint": path} | other
        with pytest.raises(ValueError, match=f"is of another training .*{difference}"):
            match(from_real(real, 1, 2), real, call.pop("passes"), call.pop("settings"), **call)
    with pytest.raises(ValueError, match="real images: "):
        match(from_real(real, 1, 2), toy(seed=1), dm(), Settings(2, lr=0.3, real_batch=8), checkpoint=path)
    path.write_bytes(path.read_bytes()[:50])
    with caplog.at_level(logging.WARNING, "kdnotes"):
        match(from_real(real, 1, 2), real, dm(), Settings(2, lr=0.3, real_batch=8), checkpoint=path)
    assert "damaged" in caplog.text


def test_without_a_compiler_one_line_is_logged_and_the_network_runs(monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no compiler")))
    model = net()
    with caplog.at_level(logging.INFO, "kdnotes"):
        assert compiled(model, torch.rand(2, 1, 8, 8)) is model
    assert len(caplog.records) == 1 and "networks run as they are" in caplog.text


@pytest.mark.parametrize("wrong", [lambda x: x * torch.nan, lambda x: x + 1e29, lambda x: x.detach() + 0 * x.sum()], ids=["nan", "huge", "no gradient"])
def test_compiled_code_that_gives_other_numbers_is_not_used(wrong, monkeypatch, caplog):
    """A compiler that takes the machine for another one gives features of 1e29 or NaN, and says nothing."""
    monkeypatch.setattr(torch, "compile", lambda model, **options: lambda x: model(wrong(x)))
    model = net()
    with caplog.at_level(logging.WARNING, "kdnotes"):
        assert compiled(model, torch.rand(2, 1, 8, 8)) is model
    assert len(caplog.records) == 1 and "it gives" in caplog.text


def test_compiling_is_tried_with_gradients_whoever_asks_first(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: lambda x: model(x))
    model = net()
    with torch.no_grad():
        assert compiled(model, torch.rand(2, 1, 8, 8)) is not model


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    real = toy()
    with pytest.raises(FloatingPointError, match="'loss0' is nan at step 1; lower"):
        match(from_real(real, 1, 2), real, [Pass(RandomNetworks(net(), 0), lambda *a: mean_gap(*a) * float("nan"))], Settings(5, lr=0.1), watch_every=1)


def test_statistics_are_the_published_ones_where_the_set_is_known():
    assert statistics(toy(name="cifar100"))[0][0] == 0.4914 and statistics(toy(name="fashion_mnist")) == ((0.2861,), (0.353,))
    real = toy()
    assert statistics(real)[0][0] == pytest.approx(real.images.double().mean().item() / 255, abs=1e-6)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: Settings(0, lr=1.0), "iterations is 0"), (lambda: Settings(5, lr=-1.0), "lr is -1.0"), (lambda: Settings(5, lr=1.0, momentum=1.0), "momentum 1.0"),
    (lambda: Settings(5, lr=1.0, compile="maybe"), "'maybe'"), (lambda: match(from_real(toy(classes=2), 1), toy(), dm(), Settings(1, 1.0)), "has 2 classes"),
    (lambda: match(from_real(toy(), 1), toy(), dm(), Settings(1, 1.0, strategy="blur")), "unknown augmentation 'blur'"),
    (lambda: RealBatches(torch.tensor([0, 2]), 3, 4, 0), "class 1 has no images"),
])
def test_bad_input_is_answered_in_one_line(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)
