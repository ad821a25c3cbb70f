"""The judgement of a small training set: protocol, independence of the networks, equality of the ways to train them."""

import pytest
import torch

from kdnotes.condense.evaluate import (DM_PROTOCOL, Contest, Looks, OneByOne, Protocol, Rounds, Together, evaluate, fresh, mixed_loss, protocol_for,
                                       train_networks)
from kdnotes.data.imageset import ImageSet
from kdnotes.runtime import make_fabric

NORMAL = ((0.5,), (0.25,))
SHORT = Protocol(epochs=6, batch_size=8, looks=3, strategy="color_crop_scale_rotate")


def toy(per_class=12, classes=3, side=8, seed=0):
    """Classes that differ in the place of a bright square, with noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(per_class)
    images = torch.randint(90, (len(labels), 1, side, side), generator=g)
    for c in range(classes):
        images[labels == c, :, 2 * c : 2 * c + 3, 2:6] += 150
    return ImageSet(images.byte(), labels, tuple(map(str, range(classes))), "toy")


def nets(seeds, network="convnet2", **options):
    return [fresh(network, 3, (1, 8, 8), seed, **({"width": 4} | options)) for seed in seeds]


def rounds(seeds, protocol=SHORT):
    data = toy()
    return Rounds(data.images, data.labels, protocol, NORMAL, seeds)


def test_protocols_are_the_published_ones():
    p = Protocol()
    assert (p.epochs, p.batch_size, p.lr, p.momentum, p.weight_decay, p.milestones, p.gamma, p.cutmix) == (1500, 64, 0.01, 0.9, 5e-4, (2 / 3, 5 / 6), 0.2, 0.5)
    assert (DM_PROTOCOL.epochs, DM_PROTOCOL.batch_size, DM_PROTOCOL.milestones, DM_PROTOCOL.gamma, DM_PROTOCOL.rule, DM_PROTOCOL.cutmix) == (1000, 256, (0.5,), 0.1, "dsa", 0.0)
    assert "flip" not in protocol_for("mnist").strategy and "flip" in protocol_for("fashion_mnist").strategy
    assert "flip" not in protocol_for("svhn", DM_PROTOCOL).strategy


def test_a_network_gets_the_same_batches_alone_and_in_company():
    for epoch in (0, 3):
        both, alone = rounds([5, 6]), rounds([6])
        both.set_epoch(epoch)
        alone.set_epoch(epoch)
        for a, b in zip(both, alone, strict=True):
            assert a["x"].shape[:2] == a["labels"].shape and all(a[key][1].equal(b[key][0]) for key in a)
            assert not a["labels"][0].equal(a["labels"][1])


def test_an_epoch_shows_every_image_once():
    seen = torch.cat([batch["labels"] for batch in rounds([1, 2])], 1)
    assert seen.shape == (2, 36) and all(row.bincount().tolist() == [12] * 3 for row in seen) and len(rounds([1])) == 5


def test_the_mixed_loss_by_loops():
    g = torch.Generator().manual_seed(0)
    logits, labels, partners = torch.randn(2, 5, 3, generator=g), torch.randint(3, (2, 5), generator=g), torch.randint(3, (2, 5), generator=g)
    lam = torch.tensor([0.3, 1.0])
    expected = sum((lam[e] * -logits[e, b].log_softmax(0)[labels[e, b]] + (1 - lam[e]) * -logits[e, b].log_softmax(0)[partners[e, b]]) / 5
                   for e in range(2) for b in range(5))
    torch.testing.assert_close(mixed_loss(logits, {"lam": lam, "labels": labels, "partners": partners}), expected)


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_together_equals_one_by_one_equals_alone(cutmix):
    protocol, fabric, ends = Protocol(epochs=3, batch_size=16, cutmix=cutmix), make_fabric("cpu", "fp32"), {}
    for name, seeds, together in (("together", (1, 2), True), ("one by one", (1, 2), False), ("alone", (2,), False)):
        own = nets(seeds)
        begun = own[-1].classifier.weight.detach().clone()
        train_networks(own, rounds(seeds, protocol), fabric, together=together)
        ends[name] = torch.cat([p.detach().flatten() for p in own[-1].parameters()])
        assert not own[-1].classifier.weight.equal(begun)
    torch.testing.assert_close(ends["together"], ends["alone"], atol=1e-4, rtol=0)
    torch.testing.assert_close(ends["one by one"], ends["alone"], atol=1e-5, rtol=0)


def test_the_learning_rate_drops_at_two_thirds_and_five_sixths():
    history = train_networks(nets([1]), rounds([1], Protocol(epochs=12, batch_size=36, lr=0.1)), make_fabric("cpu", "fp32"))
    assert [row["lr"] for row in history.rows] == pytest.approx([0.1] * 8 + [0.02] * 2 + [0.004] * 2)


def test_networks_with_running_statistics_train_one_by_one():
    with pytest.raises(ValueError, match="running statistics"):
        Together(nets([1, 2], norm_kind="batch"))
    data = toy()
    found = evaluate(data.images / 255, data.labels, toy(seed=1), protocol=SHORT, network="convnet2", options={"width": 4, "norm_kind": "batch"}, repeats=1, normal=NORMAL, workers=1)
    assert 0 <= found[0]["last"] <= found[0]["best"] <= 1


def test_accuracy_is_looked_at_evenly_and_at_the_end():
    looks, own = Looks(toy(seed=1), NORMAL, Protocol(epochs=7, looks=3)), nets([1])
    model = OneByOne(own).train()
    for epoch in range(1, 8):
        looks(model, epoch)
    assert [epoch for epoch, _ in looks.rows] == [2, 4, 6, 7] and model.training
    right = (own[0].eval()((toy(seed=1).images / 255 - 0.5) / 0.25).logits.argmax(1) == toy().labels).float().mean().item()
    assert looks.rows[0][1] == [pytest.approx(right)]


@pytest.mark.long
def test_what_can_be_learned_is_learned_from_bytes_as_from_floats():
    data, test = toy(), toy(seed=1)
    call = {"protocol": Protocol(epochs=25, batch_size=12, lr=0.05, looks=2, strategy="none", cutmix=0.0), "network": "convnet2", "options": {"width": 8}, "repeats": 2, "normal": NORMAL}
    found = evaluate(data.images / 255, data.labels, test, workers=1, **call)
    as_bytes = evaluate(data.images, data.labels, test, workers=1, **call)
    assert [row["last"] for row in as_bytes] == pytest.approx([row["last"] for row in found], abs=0.06)
    assert min(row["last"] for row in found) > 0.8 and found[0]["looks"][-1][0] == 25
    together = Contest(data.images / 255, data.labels, test, call["protocol"], "convnet2", {"width": 8}, NORMAL).run([1, 2], together=True)
    assert min(row["last"] for row in together) > 0.8


@pytest.mark.parametrize(("call", "words"), [
    (lambda: evaluate(toy(side=16).images, toy().labels, toy()), "expected images (1, 8, 8)"), (lambda: evaluate(toy().images, toy().labels + 1, toy()), "labels up to 3"),
    (lambda: evaluate(toy().images[:5], toy().labels, toy()), "36 labels"), (lambda: Protocol(epochs=0), "epochs is 0"), (lambda: Protocol(looks="a"), "looks is a str"), (lambda: Protocol(cutmix=2), "cutmix is 2"),
    (lambda: evaluate(toy().images.numpy(), toy().labels, toy()), "images are a ndarray"), (lambda: evaluate(toy().images, toy().labels, (toy().images, toy().labels)), "expected an ImageSet"),
    (lambda: evaluate(toy().images, toy().labels, toy(), repeats=1.5), "repeats is 1.5"),
    (lambda: Protocol(strategy="blur"), "unknown augmentation 'blur'"), (lambda: Rounds(toy().images / torch.zeros(1), toy().labels, SHORT, NORMAL, [1]), "finite pixels"),
])
def test_bad_input_is_answered_in_one_line(call, words):
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_batch_in_parts_gives_the_gradient_of_the_whole(monkeypatch):
    """On a CPU a network sees its batch part by part, unless images of a batch depend on each other."""
    from kdnotes.condense import matching

    torch.manual_seed(0)
    x, seen, gradients = torch.randn(1, 10, 1, 8, 8), [], []
    for norm in ("instance", "batch"):
        net = fresh("convnet1", 3, (1, 8, 8), 0, width=4, norm_kind=norm)
        net.register_forward_pre_hook(lambda net, given: seen.append(len(given[0])))
        seen.clear()
        for pixels in (2**14, 3 * 64):
            monkeypatch.setattr(matching, "PIXELS_AT_ONCE", {"cpu": pixels})
            net.zero_grad()
            OneByOne([net])(x)[0].square().sum().backward()
            gradients.append([p.grad.clone() for p in net.parameters()])
        assert seen == ([10, 2, 2, 2, 2, 2] if norm == "instance" else [10, 10])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)


def test_pixels_outside_the_unit_are_those_of_a_learned_set():
    real, net = toy(), {"network": "convnet1", "options": {"width": 4}}
    wide, labels = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2, torch.arange(3).repeat(2)
    call = {"protocol": Protocol(epochs=1, looks=1), "repeats": 1, "workers": 1, "normal": NORMAL, **net}
    with pytest.raises(ValueError, match="bounded=False for the pixels that DM, DC, DSA and IDM learn"):
        evaluate(wide, labels, real, **call)
    assert len(evaluate(wide, labels, real, bounded=False, **call)) == 1
    plain = real.images / 255
    assert evaluate(plain, real.labels, real, bounded=False, **call) == evaluate(plain, real.labels, real, **call)
