"""CCC's method: groups, distillation, the virtual step, the meta-gradient in both forms, and the whole iteration."""

import copy
import dataclasses

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdnotes.checks import refused
from kdnotes.crowdlearn import committee as room
from kdnotes.crowdlearn.baselines import APPROACHES
from kdnotes.crowdlearn.committee import Committee, Expert, committee_step, couple, probabilities
from kdnotes.data.crowd_statistics import raw_accuracy
from kdnotes.data.crowds import Crowd, take
from kdnotes.data.synthetic_crowds import synthetic
from kdnotes.losses.crowd import CrowdLayer, crowd_nll
from kdnotes.models.classifiers import Prediction
from kdnotes.papers import ccc
from kdnotes.papers.ccc import Correction, advice, distil, fit, fit_ccc, group_annotators, normalise_correction
from kdnotes.runtime import make_fabric

C, R = 4, 12


class Net(nn.Module):
    """Two layers with batch normalisation between, ending in a linear layer on `features`."""

    def __init__(self, inputs=6, width=8, norm=True):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, width), *([nn.BatchNorm1d(width)] if norm else []), nn.Tanh())
        self.classifier = nn.Linear(width, C)

    def forward(self, x):
        features = self.body(x)
        return Prediction(self.classifier(features), features)


def clusters(items=240, seed=0, labels_per_item=3.0):
    """Four clouds of points, labelled by a sparse crowd."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.arange(items) % C
    x = F.one_hot(truth, 6).float() * 2 + 0.7 * torch.randn(items, 6, generator=g)
    return synthetic(x, truth, tuple("abcd"), "IND-A", annotators=R, labels_per_item=labels_per_item, seed=seed).crowd


@pytest.fixture
def setting():
    """An expert in float64, the graph of a training batch, a meta batch, groups of annotators."""
    crowd = clusters()
    expert = couple(Net, crowd, seed=1).experts[0].double().train()
    expert.head.T.data += 0.3 * torch.randn(R, C, C, generator=torch.Generator().manual_seed(2)).double()
    g = torch.Generator().manual_seed(3)
    index = torch.randperm(240, generator=g)[:20]
    meta = (crowd.features[torch.randperm(240, generator=g)[:16]].double(), torch.randint(C, (16,), generator=g))
    return {"crowd": crowd, "expert": expert, "x": crowd.features[index].double(), "annotations": crowd.annotations(index), "meta": meta,
            "groups": torch.arange(R) % 3, "count": 4, "eta": 0.05}  # the fourth group has no member


def asked(s):
    return s["expert"], s["expert"](s["x"]), s["annotations"], s["meta"], s["groups"], s["count"], s["eta"]


def meta_loss_of(s, V):
    """The meta loss after the virtual step, as written in the paper: a copied network, plain SGD by hand."""
    network, T = copy.deepcopy(s["expert"].network), s["expert"].head.T.detach().clone().requires_grad_()
    p = network(s["x"]).logits.softmax(1)
    loss = crowd_nll(p, T, *s["annotations"], V=V, groups=s["groups"])
    names, values = zip(*network.named_parameters())
    grads = torch.autograd.grad(loss, [*values, T])
    with torch.no_grad():
        for value, grad in zip(values, grads):
            value -= s["eta"] * grad
    return F.cross_entropy(network(s["meta"][0]).logits, s["meta"][1]), (T - s["eta"] * grads[-1]).detach()


# ---------------------------------------------------------------- the meta-gradient

def test_all_layers_gradient_equals_finite_differences(setting):
    s = setting
    D, T = ccc.naive_gradient(*asked(s), active="all")
    step, numeric = 1e-5, torch.zeros_like(D)
    for place in range(D.numel()):
        bump = torch.zeros(D.numel(), dtype=torch.float64)
        bump[place] = step
        up, down = (meta_loss_of(s, sign * bump.view_as(D))[0].detach() for sign in (1, -1))
        numeric.view(-1)[place] = (up - down) / (2 * step)
    assert torch.allclose(D, numeric, rtol=1e-5, atol=1e-7 * float(D.abs().max()))
    assert torch.allclose(T, meta_loss_of(s, torch.zeros_like(D))[1], atol=1e-12)
    assert D.sum(2).abs().max() < 1e-12          # a row shift changes nothing
    assert (D[3] == 0).all() and D[:3].abs().amax((1, 2)).min() > 0  # a group without annotators in the batch


@pytest.mark.parametrize("stochastic", [False, True])
def test_head_form_equals_naive_double_backward(setting, stochastic):
    s = setting
    s["expert"].head.stochastic = stochastic
    closed, T = ccc.head_gradient(*asked(s))
    naive, T_naive = ccc.naive_gradient(*asked(s), active="head")
    assert (closed - naive).abs().max() / naive.abs().max() < 1e-13 and torch.equal(T, T_naive)
    full, _ = ccc.naive_gradient(*asked(s), active="all")
    assert not torch.allclose(full, naive, rtol=1e-2)


class Ends(nn.Module):
    """A user's own network that ends in one of the ways in which networks end."""

    def __init__(self, way):
        super().__init__()
        self.way, self.body = way, nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.last = nn.Linear(8, C, bias=way not in ("no bias", "cosine"))
        if way == "weight norm":
            self.last = nn.utils.parametrizations.weight_norm(self.last)
        if way == "tied":
            self.body[0] = nn.Linear(6, 8, bias=False)
            self.last.weight = nn.Parameter(torch.randn(C, 8) / 3)
            self.again = nn.Linear(8, C, bias=False)
            self.again.weight = self.last.weight
        if way == "frozen body":
            self.body.requires_grad_(False)
        if way == "frozen bias":
            self.last.bias.requires_grad_(False)
        if way == "unused later":
            self.later = nn.Linear(3, 3)

    def forward(self, x):
        h = self.body(x)
        if self.way == "cosine":
            return 5 * self.last(F.normalize(h))
        if self.way == "own features":
            return {"logits": self.last(F.normalize(h)), "features": h}
        if self.way == "dropout":
            return {"logits": self.last(F.dropout(h, 0.5, self.training)), "features": h}
        if self.way == "tied":
            return self.last(h) + 0.3 * self.again(h.square())
        return self.last(h)


@pytest.mark.parametrize(("way", "whole"), [("plain", True), ("no bias", True), ("frozen body", True), ("frozen bias", True), ("unused later", True),
                                            ("cosine", False), ("own features", False), ("dropout", False), ("tied", False), ("weight norm", False)])
def test_the_head_form_fits_however_a_network_ends(setting, way, whole):
    """The short form where logits = W h + b, the double backward elsewhere: never another direction."""
    s = setting
    torch.manual_seed(0)
    expert = Expert(Ends(way), CrowdLayer(R, C)).double().train()
    s["expert"] = expert
    torch.manual_seed(1)
    prediction = expert(s["x"])
    asked = (expert, prediction, s["annotations"], s["meta"], s["groups"], s["count"], s["eta"])
    torch.manual_seed(2)
    closed, T = ccc.head_gradient(*asked)
    assert expert.ending(s["x"], prediction).whole is whole
    torch.manual_seed(2)
    naive, T_naive = ccc.naive_gradient(*asked, active="head")
    assert (closed - naive).abs().max() <= 1e-12 * naive.abs().max() and torch.allclose(T, T_naive, rtol=1e-14) and naive.abs().max() > 0
    state = copy.deepcopy(expert.state_dict())
    assert expert.training and all(torch.equal(v, state[k]) for k, v in expert.state_dict().items() if torch.is_tensor(v))


def test_networks_that_a_head_correction_cannot_reach(setting):
    s = setting
    frozen = Expert(Ends("plain"), CrowdLayer(R, C)).double()
    frozen.network.last.requires_grad_(False)
    for expert, words in ((frozen, "the last layer 'last' is frozen"),):
        with pytest.raises(ValueError, match=words):
            ccc.head_gradient(expert, expert(s["x"]), *(s[k] for k in ("annotations", "meta", "groups", "count", "eta")))
    D, _ = ccc.naive_gradient(frozen, frozen(s["x"]), *(s[k] for k in ("annotations", "meta", "groups", "count", "eta")), active="all")
    assert D.abs().max() > 0


def test_a_tiny_correction_lowers_the_meta_loss_when_all_layers_are_attached(setting):
    s = setting
    D, T = ccc.naive_gradient(*asked(s), active="all")
    V = normalise_correction(D, T, 1e-3)
    assert meta_loss_of(s, V)[0] < meta_loss_of(s, torch.zeros_like(V))[0]


def test_normalisation(setting):
    D, T = ccc.head_gradient(*asked(setting))
    V = normalise_correction(D, T, 0.5)
    assert V.abs().max().item() == pytest.approx(0.5 * T.max().item(), rel=1e-14) and (V * D).sum() < 0
    assert torch.allclose(normalise_correction(7 * D, T, 0.5), V, rtol=1e-12) and not V.requires_grad
    assert (normalise_correction(torch.zeros_like(D), T, 0.5) == 0).all() and (normalise_correction(D, T, 0.0) == 0).all()


def test_lookahead_is_plain_sgd_and_leaves_the_model_alone(setting):
    s = setting
    expert = s["expert"]
    optimizer = torch.optim.SGD(expert.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
    expert.head(expert(s["x"]), s["annotations"]).backward()
    optimizer.step()  # momentum buffers exist now
    optimizer.zero_grad()
    prediction = expert(s["x"])
    state = copy.deepcopy(expert.state_dict())
    hat, T = ccc.lookahead(expert.head(prediction, s["annotations"]), expert.network, expert.head.T, 0.05)
    grads = torch.autograd.grad(expert.head(prediction, s["annotations"]), [*expert.network.parameters(), expert.head.T])
    for value, grad, stepped in zip([*expert.network.parameters(), expert.head.T], grads, [*hat.values(), T]):
        assert torch.allclose(stepped, value - 0.05 * grad, atol=1e-14)
    ccc.forward_with(expert.network, hat, s["meta"][0])
    assert all(torch.equal(v, state[k]) for k, v in expert.state_dict().items() if torch.is_tensor(v))  # statistics included
    assert all(p.grad is None for p in expert.parameters())


# ---------------------------------------------------------------- groups and meta sets

def test_groups():
    g = torch.Generator().manual_seed(0)
    T = torch.cat([torch.eye(C) + 0.01 * torch.randn(6, C, C, generator=g), 3 * torch.eye(C) + 0.01 * torch.randn(6, C, C, generator=g)])
    T[4] = T[9] = T[0]
    found = group_annotators(T, 5, seed=1)
    assert found[4] == found[9] == found[0] and found.max() < 5
    order = torch.randperm(R, generator=g)
    two = group_annotators(T, 2, seed=1)
    assert len(set(zip(two[order].tolist(), group_annotators(T[order], 2, seed=5).tolist()))) == 2  # the same partition
    assert group_annotators(T, R).tolist() == list(range(R)) == group_annotators(T, 99).tolist()
    assert set(group_annotators(T, 1).tolist()) == {0} and set(group_annotators(torch.eye(C).repeat(R, 1, 1), 5).tolist()) == {0}
    with pytest.raises(ValueError, match="at least 1"):
        group_annotators(T, 0)


@pytest.mark.parametrize("duplicates", [True, False])
def test_distillation_keeps_the_smallest_losses_of_every_class(duplicates):
    crowd = clusters(seed=4)
    log_p = torch.randn(240, C, generator=torch.Generator().manual_seed(1)).log_softmax(1)
    items, labels = distil(log_p, crowd, 4 * 9, duplicates)
    assert torch.bincount(labels, minlength=C).tolist() == [9] * C
    for c in range(C):
        pool = crowd.item[crowd.label == c]
        pool = pool if duplicates else pool.unique()
        losses = (-log_p[pool, c]).sort().values
        mine = (-log_p[items[labels == c], c]).sort().values
        assert torch.equal(mine, losses[:9]) and set(items[labels == c].tolist()) <= set(pool.tolist())
        assert duplicates or len(set(items[labels == c].tolist())) == 9
    few, few_labels = distil(log_p, crowd, 4 * 10_000, duplicates)
    assert len(few) == (len(crowd.item) if duplicates else len((crowd.item * C + crowd.label).unique()))
    with pytest.raises(ValueError, match="no item for each of the 4 classes"):
        distil(log_p, crowd, 3)


def test_meta_sets_are_drawn_in_evaluation_mode_and_training_mode_comes_back():
    crowd = clusters()
    committee = couple(Net, crowd).train()
    state = copy.deepcopy(committee.experts.state_dict())
    Correction(groups=3, meta_size=40).prepare(committee, crowd)
    assert committee.training and committee.experts[0].network.body[1].training
    assert all(torch.equal(v, state[k]) for k, v in committee.experts.state_dict().items() if torch.is_tensor(v))
    committee.eval()
    for m in (0, 1):
        expected = distil(committee.experts[m](crowd.features).logits.log_softmax(1).detach(), crowd, 40)
        assert torch.equal(committee.lessons["items"][m], expected[0])


def test_meta_batches_go_through_the_set_and_restart():
    lessons = {"items": [torch.arange(10)], "labels": [torch.arange(10) % 3], "epoch": 0, "tick": 0}
    seen = []
    for tick in range(6):
        items, labels = ccc.meta_batch(lessons | {"tick": tick}, 0, 5)
        assert torch.equal(labels, items % 3)
        seen.append(items)
    for first, second in zip(seen[::2], seen[1::2]):
        assert sorted(torch.cat([first, second]).tolist()) == list(range(10))
    assert not torch.equal(seen[0], seen[2])
    assert len(ccc.meta_batch(lessons, 0, 64)[0]) == 10
    rest = [len(ccc.meta_batch(lessons | {"tick": tick}, 0, 4)[0]) for tick in range(4)]
    assert rest == [4, 4, 2, 4]                                                       # as the loaders of the public code
    assert [len(ccc.meta_batch(lessons | {"tick": tick}, 0, 3)[0]) for tick in range(4)] == [3, 3, 3, 3]  # no batch of one
    both = {"items": [torch.arange(10), torch.arange(4)], "labels": [torch.arange(10), torch.arange(4)], "epoch": 0}
    assert [len(ccc.meta_batch(both | {"tick": tick}, m, 4)[0]) for tick in range(3) for m in (0, 1)] == [4] * 6  # both begin anew


# ---------------------------------------------------------------- the iteration

def one_step(crowd, correction, lessons_from=None, seed=0):
    """A committee after its preparation, with the first batch's terms and gradients."""
    committee = couple(Net, crowd, seed=seed).train()
    optimizer = torch.optim.SGD(committee.parameters(), 0.05)
    correction.prepare(committee, crowd)
    if lessons_from:
        lessons_from(committee.lessons)
    index = torch.arange(40)
    step = committee_step(committee, crowd, advise=advice(committee, crowd, optimizer, correction))
    terms = step(committee, {"inputs": crowd.features[index], "index": index})
    terms["loss"].backward()
    return committee, terms


def test_model_one_is_corrected_by_meta_set_two_only():
    crowd, correction = clusters(), Correction(groups=3, meta_size=40, meta_batch=8)
    swap = lambda m: (lambda lessons: lessons["labels"].__setitem__(m, (lessons["labels"][m] + 1) % C))
    plain, other, own = (one_step(crowd, correction, change)[0] for change in (None, swap(1), swap(0)))
    grads = [[p.grad for p in committee.experts[0].parameters()] for committee in (plain, other, own)]
    assert all(torch.equal(a, b) for a, b in zip(grads[0], grads[2]))      # meta set 1 changed: model 1 as before
    assert not all(torch.equal(a, b) for a, b in zip(grads[0], grads[1]))  # meta set 2 changed: model 1 differs
    alone = Correction(groups=3, meta_size=40, meta_batch=8, coupled=False)
    one, two = (one_step(crowd, alone, change)[0].experts[0].head.T.grad for change in (None, swap(0)))
    assert not torch.equal(one, two)


def test_the_correction_is_a_constant_offset_of_T():
    crowd, correction = clusters(), Correction(groups=3, meta_size=40, meta_batch=8)
    committee, terms = one_step(crowd, correction)
    again = couple(Net, crowd).train()
    correction.prepare(again, crowd)
    index = torch.arange(40)
    prediction = again.experts[0](crowd.features[index])
    V = correction.correct(again, 0, prediction, crowd.annotations(index), crowd, 0.05)
    head = again.experts[0].head
    loss = crowd_nll(prediction.logits.softmax(1), head.T + V["V"][V["groups"]].detach(), *crowd.annotations(index))
    loss.backward()
    assert loss.item() == terms["loss 1"].item()
    for ours, plain in zip(committee.experts[0].parameters(), again.experts[0].parameters()):
        assert torch.allclose(ours.grad, plain.grad, atol=1e-7)


def test_batch_norm_statistics_move_once_per_batch():
    committee, _ = one_step(clusters(), Correction(groups=3, meta_size=40, meta_batch=8))
    assert [int(expert.network.body[1].num_batches_tracked) for expert in committee.experts] == [1, 1]


def test_identity_groups_are_ungrouped_and_a_group_shares_its_correction(setting):
    s = setting
    single, _ = ccc.head_gradient(*asked({**s, "groups": torch.arange(R), "count": R}))
    grouped, _ = ccc.head_gradient(*asked(s))
    assert torch.allclose(torch.stack([single[s["groups"] == g].sum(0) for g in range(3)]), grouped[:3], atol=1e-14)
    assert torch.equal(group_annotators(s["expert"].head.T, R), torch.arange(R))


def trained(correction, epochs=3, warmup=2, seed=0, crowd=None, precision="fp32", kind=torch.optim.Adam, **more):
    crowd = crowd or clusters()
    committee = couple(Net, crowd, seed=seed)
    optimizer = kind(committee.parameters(), 0.01)
    options = {"optimizer": optimizer, "batch_size": 40, "seed": seed, "fabric": make_fabric("cpu", precision), **more}
    if correction is None:
        return committee, room.fit(committee, crowd, epochs=warmup + epochs, **options)
    return committee, fit(committee, crowd, epochs=epochs, warmup=warmup, correction=correction, **options)


SMALL = Correction(groups=3, meta_size=40, meta_batch=8)


def weights(committee):
    return torch.cat([p.detach().flatten() for p in committee.parameters()])


def test_gamma_zero_is_the_two_model_crowd_layer_bit_for_bit():
    zero = Correction(groups=3, meta_size=40, meta_batch=8, gamma=0.0)
    plain, with_zero = trained(None)[0], trained(zero)[0]
    assert torch.equal(weights(plain), weights(with_zero)) and not torch.equal(weights(plain), weights(trained(SMALL)[0]))


def test_gamma_zero_also_through_the_whole_computation(monkeypatch):
    """Without the short cut: V* = -0 * D is computed and added."""
    original = Correction.correct

    def computed(*rest, **more):
        found = original(*rest, **more)
        return found | {"V": found["V"] * 0}

    plain = trained(None)[0]
    monkeypatch.setattr(Correction, "correct", computed)
    assert torch.equal(weights(plain), weights(trained(SMALL)[0]))


@pytest.mark.long
def test_training_beats_the_raw_labels_and_hides_the_truth():
    crowd = clusters(items=400)

    def peek(model, epoch):
        crowd.truth.reveal()

    with pytest.raises(RuntimeError, match="sealed"):
        trained(SMALL, crowd=crowd, callbacks=[peek])
    committee, history = trained(SMALL, crowd=crowd, epochs=25, warmup=5)
    p = probabilities(committee, crowd.features).mean(0)
    assert (p.argmax(1) == crowd.truth.reveal()).double().mean() > raw_accuracy(crowd) + 0.2
    assert len(history.rows) == 30 and {"loss", "loss 1", "loss 2"} <= set(history.rows[-1])


def test_inference_ignores_the_confusions_and_averages():
    crowd = clusters()
    committee = couple(Net, crowd)
    before = probabilities(committee, crowd.features)
    assert torch.allclose(before.mean(0), (committee.eval()(crowd.features)[0].logits.softmax(1) + committee(crowd.features)[1].logits.softmax(1)).detach() / 2)
    for expert in committee.experts:
        expert.head.T.data.normal_()
    assert torch.equal(before, probabilities(committee, crowd.features))
    twins = Committee([committee.experts[0], copy.deepcopy(committee.experts[0])])
    assert torch.allclose(probabilities(twins, crowd.features).mean(0), before[0])


def test_renaming_annotators_changes_nothing_but_their_names():
    crowd = clusters()
    rename = torch.randperm(R, generator=torch.Generator().manual_seed(0))
    renamed = Crowd(crowd.item, rename[crowd.annotator], crowd.label, crowd.items, R, crowd.classes, crowd.features, allow=("silent",))
    alone = Correction(groups=R, meta_size=40, meta_batch=8)  # K-means starts from random annotators: leave it out
    one, two = (trained(alone, crowd=given, kind=torch.optim.SGD)[0] for given in (crowd, renamed))  # Adam would magnify rounding
    assert torch.allclose(probabilities(one, crowd.features), probabilities(two, crowd.features), atol=1e-5)
    assert torch.allclose(one.experts[0].head.T, two.experts[0].head.T[rename], atol=1e-5)


def test_all_layers_mode_and_half_precision_train():
    committee, history = trained(Correction(groups=3, meta_size=40, meta_batch=8, active="all"))
    assert torch.isfinite(weights(committee)).all() and len(history.rows) == 5
    half, _ = trained(SMALL, precision="bf16")
    assert torch.isfinite(weights(half)).all() and half.experts[0].head.T.dtype == torch.float32


def test_exact_resume_in_the_middle_of_a_corrected_epoch(tmp_path, monkeypatch):
    whole, history = trained(SMALL)
    made, count = room.committee_step, [0]

    def failing(*args, **kwargs):
        step = made(*args, **kwargs)

        def cut(model, batch):
            count[0] += 1
            if count[0] == 3 * 6 + 4:  # the second epoch with corrections, fourth batch
                raise KeyboardInterrupt
            return step(model, batch)

        return cut

    monkeypatch.setattr(room, "committee_step", failing)
    with pytest.raises(KeyboardInterrupt):
        trained(SMALL, checkpoint=tmp_path / "run.pt", every=1)
    resumed, again = trained(SMALL, checkpoint=tmp_path / "run.pt", every=1)
    assert torch.equal(weights(whole), weights(resumed)) and count[0] < 2 * 30
    assert [row["loss"] for row in history.rows] == [row["loss"] for row in again.rows]
    assert all(torch.equal(a, b) for name in ("groups", "items", "labels") for a, b in zip(whole.lessons[name], resumed.lessons[name]))


def test_every_item_is_seen_in_an_epoch():
    """255 items in batches of 128: the last 127 come too, as in the public code."""
    crowd, seen = clusters(items=255), []
    committee = couple(Net, crowd)
    optimizer = torch.optim.SGD(committee.parameters(), 0.01)
    room.fit(committee, crowd, optimizer=optimizer, epochs=1, fabric=make_fabric("cpu", "fp32"),
             advise=lambda predictions, annotations: seen.append(len(predictions[0].logits)) or [{}, {}])
    assert seen == [128, 127]


def own_crowd(items=160, known=True):
    """A table and features with names, and the truth of every second item."""
    drawn = clusters(items)
    names = [f"img{i}.png" for i in range(items)]
    frame = pd.DataFrame({"item": [names[i] for i in drawn.item], "annotator": [f"ann{r}" for r in drawn.annotator],
                          "label": [drawn.classes[c] for c in drawn.label]}).sample(frac=1, random_state=0)
    truth = {name: drawn.classes[c] for name, c in list(zip(names, drawn.truth.reveal()))[::2]}
    return Crowd.from_table(frame, truth if known else None, dict(zip(names, drawn.features)))


class Own(nn.Module):
    """A plain network of somebody else: a tensor in, a tensor out."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, C))

    def forward(self, x):
        return self.layers(x)


QUICK = {"epochs": 4, "warmup": 2, "lr": 0.02, "device": "cpu"}


def test_fit_ccc_on_a_network_of_ones_own():
    crowd, network = own_crowd(), Own()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    found = fit_ccc(crowd, network, **QUICK)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items()) and network.training and torch.equal(torch.get_rng_state(), state)
    assert list(found.predictions.index) == list(crowd.item_names) and crowd.item_names[:3] == ("img0.png", "img1.png", "img2.png")
    assert list(found.predictions.columns) == ["label", "belief", "recovered", "truth", "right"] and found.predictions["truth"].notna().sum() == 80
    assert found.accuracy == pytest.approx(found.predictions["right"].dropna().mean()) and found.accuracy > raw_accuracy(crowd)
    answers = found.network(crowd.features)
    assert torch.allclose(answers.exp().sum(1), torch.ones(160), atol=1e-5) and not found.network.training
    assert [crowd.classes[c] for c in answers.argmax(1)] == list(found.predictions["label"])
    matrix = found.confusions["ann2"]
    assert list(matrix.index) == list("abcd") and abs(matrix.to_numpy().sum(1) - 1).max() < 1e-5 and set(found.confusions) == set(crowd.annotator_names)
    again = fit_ccc(crowd, network, **QUICK)
    assert again.predictions.equals(found.predictions) and not fit_ccc(crowd, network, seed=1, **QUICK).predictions["belief"].equals(found.predictions["belief"])


def test_fit_ccc_takes_functions_names_and_frozen_parts():
    crowd = own_crowd(known=False)
    found = fit_ccc(crowd, Own, **QUICK | {"epochs": 1})
    assert found.accuracy is None and "truth" not in found.predictions
    part = Own()
    part.layers[0].requires_grad_(False)
    first, second = (e.network.layers for e in fit_ccc(crowd, part, **QUICK | {"epochs": 1}).committee.experts)
    assert torch.equal(first[0].weight, part.layers[0].weight) and torch.equal(second[0].weight, part.layers[0].weight) and not torch.equal(first[4].weight, second[4].weight)


@pytest.mark.parametrize("name", APPROACHES)
def test_every_approach_takes_a_network_of_ones_own_and_leaves_the_generators(name):
    crowd, state = own_crowd(60), torch.get_rng_state()
    known = take(crowd, crowd.truth.known()[0]) if name.startswith("clean labels") else crowd
    committee, lesson = APPROACHES[name].assemble(Own, crowd, seed=0)
    assert torch.equal(torch.get_rng_state(), state) and lesson.items == known.items
    optimizer = torch.optim.Adam(APPROACHES[name].parameters(committee, 1e-2), 1e-2)
    doubles = dataclasses.replace(lesson, features=lesson.features.double())                 # as NumPy makes them
    history = room.fit(committee, doubles, optimizer=optimizer, epochs=1, batch_size=32, fabric=make_fabric("cpu", "fp32"))
    assert history.rows[0]["loss"] > -10 and probabilities(committee, doubles.features).shape[1:] == (lesson.items, C)


def test_fit_ccc_refuses_in_a_line():
    crowd, table = own_crowd(40), {"item": ["a", "b"], "annotator": ["x", "x"], "label": ["cat", "dog"]}
    assert "merge the labels alone: metrics.aggregate.aggregate" in refused(fit_ccc, Crowd.from_table(table), Own(), **QUICK)
    assert "gives 4 scores, the crowd has 2 classes" in refused(fit_ccc, Crowd.from_table(table, features=torch.zeros(2, 6)), Own(), **QUICK)
    assert "the class 'cat' only" in refused(fit_ccc, Crowd.from_table(table | {"label": ["cat", "cat"]}, features=torch.zeros(2, 6)), Own(), **QUICK)
    assert "scale them" in refused(fit_ccc, Crowd.from_table(table, features=torch.zeros(2, 6, dtype=torch.uint8)), Own(), **QUICK)
    assert "meta_size=3 has no item for each of the 4 classes" in refused(fit_ccc, crowd, Own, correction=Correction(meta_size=3), **QUICK)
    network = Own()
    assert "start from the same weights" in refused(fit_ccc, crowd, lambda: network, **QUICK)
    for wrong in (lambda: 3, 3, "resnet18", None):
        assert "expected an nn.Module, or a function that makes one" in refused(fit_ccc, crowd, wrong, **QUICK)
    for still in (nn.Identity(), Own().requires_grad_(False)):
        assert "has no weights that are trained" in refused(fit_ccc, crowd, still, **QUICK)
    assert "Linear cannot read features of shape (6,): mat1 and mat2" in refused(fit_ccc, crowd, nn.Linear(5, C), **QUICK)
    assert "batch_size is 0" in refused(fit_ccc, crowd, Own(), **QUICK | {"batch_size": 0})
    assert "Crowd.from_table(table) makes one" in refused(fit_ccc, table, Own(), **QUICK)
    assert "correction is a int" in refused(fit_ccc, crowd, Own(), correction=3, **QUICK)
    assert "optimizer is a str; expected a function" in refused(fit_ccc, crowd, Own(), optimizer="adam", **QUICK)


def test_fit_ccc_takes_a_single_layer_and_the_head_of_it_is_corrected():
    crowd = own_crowd(40)
    found = fit_ccc(crowd, nn.Linear(6, C), **QUICK | {"epochs": 1})
    x = crowd.features[:4]
    assert found.committee.experts[0].ending(x, found.committee.experts[0](x)) == room.Ending(("weight", "bias"), True, True)


def test_bad_settings():
    for wrong in ({"groups": 0}, {"gamma": -1}, {"active": "none"}, {"meta_batch": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*(out of range|known: all, head)"):
            Correction(**wrong)
