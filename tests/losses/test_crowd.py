"""The crowd likelihood, the crowd layer and the other heads, each against its formula written as slow loops in float64.
"""

import math
import re
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdnotes.checks import refused
from kdnotes.losses.annotators import CoNAL, DoctorNet, MaxMIG, UnionNet, max_mig_loss, vote_confusions
from kdnotes.losses.crowd import CrowdLayer, VectorCrowdLayer, crowd_nll, crowd_scores


class Seen(NamedTuple):
    logits: torch.Tensor
    features: torch.Tensor | None = None


def batch(seed=0, B=9, R=7, C=4, D=5, dtype=torch.float64):
    """A batch whose last two annotators are absent."""
    g = torch.Generator().manual_seed(seed)
    asked = torch.rand(B, R - 2, generator=g) < 0.4
    asked[torch.arange(B), torch.randint(R - 2, (B,), generator=g)] = True
    row, annotator = asked.nonzero(as_tuple=True)
    return {"seen": Seen(torch.randn(B, C, generator=g, dtype=dtype), torch.randn(B, D, generator=g, dtype=dtype)),
            "triple": (row, annotator, torch.randint(C, row.shape, generator=g)),
            "T": torch.randn(R, C, C, generator=g, dtype=dtype),
            "V": torch.randn(3, C, C, generator=g, dtype=dtype), "groups": torch.randint(3, (R,), generator=g),
            "x": torch.randn(B, 3, 2, generator=g, dtype=dtype)}


def slow_nll(p, T, triple, stochastic=False):
    """The definition, one annotation at a time."""
    total = 0
    for i, r, y in zip(*(v.tolist() for v in triple)):
        if stochastic:
            q = sum(p[i, a] * (T[r, a].exp() / T[r, a].exp().sum()) for a in range(p.shape[1]))
        else:
            s = torch.stack([sum(p[i, a] * T[r, a, l] for a in range(p.shape[1])) for l in range(p.shape[1])])
            q = s.exp() / s.exp().sum()
        total = total - torch.log(q[y] + 1e-5)
    return total / len(triple[0])


@pytest.mark.parametrize(("C", "uniform", "right", "wrong"),
                         [(10, 2.302485, 1.461107, 2.461033), (8, 2.079362, 1.273973, 2.273912)])
def test_start_values(C, uniform, right, wrong):
    zero = torch.zeros(1, dtype=torch.long)
    eye = torch.eye(C, dtype=torch.float64)
    loss = lambda p: crowd_nll(p[None], eye[None], zero, zero, zero, V=torch.zeros(1, C, C, dtype=torch.float64),
                               groups=zero).item()
    assert loss(torch.full((C,), 1 / C, dtype=torch.float64)) == pytest.approx(uniform, abs=5e-7)
    assert uniform == pytest.approx(-math.log(1 / C + 1e-5), abs=5e-7)
    assert loss(eye[0]) == pytest.approx(right, abs=5e-7) and loss(eye[1]) == pytest.approx(wrong, abs=5e-7)


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=15)
def test_sparse_form_equals_the_definition_with_gradients(seed, stochastic):
    b = batch(seed)
    z, T, V = (v.clone().requires_grad_() for v in (b["seen"].logits, b["T"], b["V"]))
    fast = crowd_nll(z.softmax(1), T, *b["triple"], V=V, groups=b["groups"], stochastic=stochastic)
    slow = slow_nll(z.softmax(1), T + V[b["groups"]], b["triple"], stochastic)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-12)
    for one, two in zip(torch.autograd.grad(fast, (z, T, V)), torch.autograd.grad(slow, (z, T, V), allow_unused=True)):
        assert torch.allclose(one, torch.zeros_like(one) if two is None else two, atol=1e-12)


def test_row_shifts_change_nothing_and_absent_annotators_get_no_gradient():
    b = batch(3)
    p, T, V = b["seen"].logits.softmax(1), b["T"].requires_grad_(), b["V"].requires_grad_()
    loss = lambda T, V: crowd_nll(p, T, *b["triple"], V=V, groups=b["groups"])
    grads = torch.autograd.grad(loss(T, V), (T, V))
    moved = [v.detach() + torch.randn(*v.shape[:2], 1, dtype=torch.float64) for v in (T, V)]
    moved = [v.requires_grad_() for v in moved]
    assert loss(*moved).item() == pytest.approx(loss(T, V).item(), rel=1e-12)
    for one, two in zip(grads, torch.autograd.grad(loss(*moved), moved)):
        assert torch.allclose(one, two, atol=1e-12) and one.sum(2).abs().max() < 1e-12
    assert (grads[0][-2:] == 0).all() and (grads[0][:-2].abs().sum((1, 2)) > 0).any()


@given(st.integers(0, 1000))
@settings(max_examples=10)
def test_order_and_names_of_annotators_do_not_matter(seed):
    b = batch(seed)
    row, annotator, label = b["triple"]
    p, order = b["seen"].logits.softmax(1), torch.randperm(len(row))
    rename = torch.randperm(len(b["T"]))
    one = crowd_nll(p, b["T"], row, annotator, label)
    two = crowd_nll(p, b["T"][rename.argsort()], row[order], rename[annotator[order]], label[order])
    assert one.item() == pytest.approx(two.item(), rel=1e-12)


def test_bad_shapes():
    b = batch()
    p, T, (row, annotator, label) = b["seen"].logits.softmax(1), b["T"], b["triple"]
    with pytest.raises(ValueError, match="B x C and confusions R x C x C"):
        crowd_nll(p, T[:, :2], row, annotator, label)
    with pytest.raises(ValueError, match="one length"):
        crowd_nll(p, T, row[:1], annotator, label)
    with pytest.raises(ValueError, match="without annotations"):
        crowd_nll(p, T, row[:0], annotator[:0], label[:0])


def test_gradients_by_finite_differences():
    b = batch(5, B=4, R=4, C=3)
    inputs = (b["seen"].logits.requires_grad_(), b["T"].requires_grad_(), b["V"].requires_grad_())
    f = lambda stochastic, z, T, V: crowd_nll(z.softmax(1), T, *b["triple"], V=V, groups=b["groups"],
                                              stochastic=stochastic)
    for stochastic in (False, True):
        assert torch.autograd.gradcheck(partial(f, stochastic), inputs)
        assert torch.autograd.gradgradcheck(partial(f, stochastic), inputs)


def test_crowd_layer_is_the_likelihood_and_vector_forms_its_special_cases():
    b = batch(1)
    layer = CrowdLayer(7, 4).double()
    assert torch.equal(layer.T, torch.eye(4).double().expand(7, 4, 4))
    layer.T.data = b["T"].clone()
    p = b["seen"].logits.softmax(1)
    assert layer(b["seen"], b["triple"]).item() == pytest.approx(crowd_nll(p, b["T"], *b["triple"]).item())
    corrected = layer(b["seen"], b["triple"], V=b["V"], groups=b["groups"])
    assert corrected.item() == pytest.approx(crowd_nll(p, b["T"] + b["V"][b["groups"]], *b["triple"]).item())
    assert torch.allclose(layer.classify(b["seen"]), p)
    assert torch.allclose(layer.confusions().sum(2), torch.ones(7, 4).double())
    row, annotator, label = b["triple"]
    for kind in VectorCrowdLayer.KINDS:
        thrifty = VectorCrowdLayer(7, 4, kind).double()
        for q in thrifty.parameters():
            q.data.normal_()
        w = torch.ones(7, 4).double() if thrifty.w is None else thrifty.w.expand(7, 4)
        bias = torch.zeros(7, 4).double() if thrifty.b is None else thrifty.b
        expected = 0
        for i, r, y in zip(row, annotator, label):  # diagonal matrix plus bias
            s = p[i] @ torch.diag(w[r]) + bias[r]
            expected = expected - (s.softmax(0)[y] + 1e-5).log() / len(row)
        assert thrifty(b["seen"], b["triple"]).item() == pytest.approx(expected.item(), rel=1e-10)
    with pytest.raises(ValueError, match="unknown crowd layer"):
        VectorCrowdLayer(7, 4, "MV")


def test_doctor_net():
    b = batch(2)
    doctors = DoctorNet(7, 4, 5).double()
    h = b["seen"].features
    expected = sum(-(doctors.weight[r] @ h[i] + doctors.bias[r]).log_softmax(0)[y]
                   for i, r, y in zip(*b["triple"])) / len(b["triple"][0])
    assert doctors(b["seen"], b["triple"]).item() == pytest.approx(expected.item(), rel=1e-10)
    heads = torch.stack([(h @ doctors.weight[r].T + doctors.bias[r]).softmax(1) for r in range(7)])
    assert torch.allclose(doctors.classify(b["seen"]), heads.mean(0))


def test_max_mig():
    b = batch(4)
    p, a, prior = b["seen"].logits.softmax(1), torch.randn(9, 4).double().softmax(1), torch.rand(4).double().softmax(0)
    B = len(p)
    expected = -sum(1 + math.log(sum(p[i, c] * a[i, c] / prior[c] for c in range(4))) for i in range(B)) / B
    expected += sum(p[i, c] * a[j, c] / prior[c] for i in range(B) for j in range(B) if i != j
                    for c in range(4)) / (B * (B - 1))
    assert max_mig_loss(p, a, prior).item() == pytest.approx(float(expected), rel=1e-10)
    assert max_mig_loss(prior.expand(B, 4), prior.expand(B, 4), prior).item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="B >= 2"):
        max_mig_loss(p[:1], a[:1], prior)
    row, annotator, label = b["triple"]
    theta = vote_confusions(row, annotator, label, p, 7)
    for r in range(7):
        for c in range(4):
            counts = torch.stack([sum((p[i, c] for i, k, y in zip(row, annotator, label) if k == r and y == l),
                                      torch.tensor(0.0).double()) for l in range(4)])
            assert torch.allclose(theta[r, c],
                                  counts / counts.sum() if counts.sum() else torch.full((4,), 0.25).double())
    mig = MaxMIG(theta, prior)
    slow = torch.stack([(sum((theta[r, :, y] + 1e-4).log() for i, r, y in zip(row, annotator, label) if i == k)
                         + prior.log()).softmax(0) for k in range(B)])
    assert torch.allclose(mig.aggregate(b["triple"], B), slow)
    assert mig(b["seen"], b["triple"]).item() == pytest.approx(max_mig_loss(p, slow, prior).item(), rel=1e-9)


def test_conal():
    b = batch(6)
    conal = CoNAL(7, 4, 6).double()
    for q in conal.parameters():
        q.data += 0.3 * torch.randn_like(q)
    p, x = b["seen"].logits.softmax(1), b["x"]
    expected = 0
    for i, r, y in zip(*b["triple"]):
        v = conal.item[1](conal.item[0](x[i].flatten()))
        u = conal.who.weight[r]
        omega = torch.sigmoid((u / u.norm()) @ (v / v.norm()))
        assert 0.2689 < omega < 0.7311
        expected = expected - (omega * (p[i] @ conal.common) + (1 - omega)
                               * (p[i] @ conal.own[r])).log_softmax(0)[y] / len(b["triple"][0])
    expected = expected - 1e-5 * sum((conal.own[r] - conal.common).square().sum().sqrt() for r in range(7))
    assert conal(b["seen"], b["triple"], x).item() == pytest.approx(expected.item(), rel=1e-10)
    start = CoNAL(7, 4, 6).double()
    assert torch.equal(start.common, 2 * torch.eye(4).double()) and (start.own == start.common).all()
    start(b["seen"], b["triple"], x).backward()
    assert all(torch.isfinite(q.grad).all() for q in start.parameters())


def test_conal_without_common_noise_is_the_crowd_layer(monkeypatch):
    b = batch(7)
    conal = CoNAL(7, 4, 6, penalty=0.0).double()
    conal.own.data = torch.eye(4).double().repeat(7, 1, 1)
    monkeypatch.setattr(conal, "gate", lambda inputs, row, annotator: torch.zeros(len(row)).double())
    layer = CrowdLayer(7, 4).double()
    q = crowd_scores(b["seen"].logits.softmax(1), layer.T, *b["triple"][:2]).softmax(1)
    assert conal(b["seen"], b["triple"],
                 b["x"]).item() == pytest.approx(F.nll_loss(q.log(), b["triple"][2]).item(), rel=1e-12)
    # up to the 1e-5 in the log
    assert conal(b["seen"], b["triple"], b["x"]).item() == pytest.approx(layer(b["seen"], b["triple"]).item(), abs=1e-3)


@pytest.mark.parametrize("form", ["A", "B"])
def test_union_net(form):
    b = batch(8)
    union = UnionNet(7, 4, form).double()
    assert torch.equal(union.W[:, 4:8], torch.eye(4).double())
    union.W.data += torch.randn_like(union.W)
    row, annotator, label = b["triple"]
    p = b["seen"].logits.softmax(1)
    target = torch.zeros(9, 28).double().index_put((row, annotator * 4 + label), torch.tensor(1.0).double())
    if form == "A":
        expected = -(target * (p @ union.W).log_softmax(1)).sum(1).mean()
    else:
        assert torch.allclose(union.transition().sum(1), torch.ones(4).double())
        expected = -(target / target.sum(1, keepdim=True) * (p @ union.W.softmax(1)).log()).sum(1).mean()
    assert union(b["seen"], b["triple"]).item() == pytest.approx(expected.item(), rel=1e-10)
    with pytest.raises(ValueError, match="choose A or B"):
        UnionNet(7, 4, "C")


# ---------------------------------------------------------------- what may come in

HEADS = {
    "CrowdLayer": lambda b: CrowdLayer(7, 4), "stochastic": lambda b: CrowdLayer(7, 4, stochastic=True),
    **{kind: (lambda b, kind=kind: VectorCrowdLayer(7, 4, kind)) for kind in VectorCrowdLayer.KINDS},
    "DoctorNet": lambda b: DoctorNet(7, 4, 5), "CoNAL": lambda b: CoNAL(7, 4, 6), "UnionNet A": lambda b: UnionNet(7, 4, "A"), "UnionNet B": lambda b: UnionNet(7, 4),
    "MaxMIG": lambda b: MaxMIG(vote_confusions(*b["triple"], b["seen"].logits.softmax(1), 7), torch.full((4,), 0.25)),
}


@pytest.fixture(params=HEADS)
def head(request):
    """A head in float32, a batch in float64, and the batch's loss."""
    torch.manual_seed(0)
    b = batch(2)
    layer = HEADS[request.param](b | {"seen": Seen(*(v.float() for v in b["seen"]))})
    return layer, b, layer(Seen(*(v.float() for v in b["seen"])), b["triple"], b["x"].float())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_heads_compute_in_float32_or_better(head, kind):
    layer, b, expected = head
    seen = Seen(*(v.to(kind).requires_grad_() for v in b["seen"]))
    loss = layer(seen, b["triple"], b["x"].to(kind))
    assert loss.dtype in (torch.float32, torch.float64) and loss.item() == pytest.approx(expected.item(), rel=2e-2)
    loss.backward()
    assert all(q.grad is None or q.grad.isfinite().all() for q in (*layer.parameters(), *seen))
    assert layer.classify(seen).dtype in (torch.float32, torch.float64)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_heads_take_labels_of_every_integer_type(head, kind):
    layer, b, expected = head
    seen = Seen(*(v.float() for v in b["seen"]))
    assert layer(seen, tuple(v.to(kind) for v in b["triple"]), b["x"].float()).item() == expected.item()


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda z, t: (z * math.nan, t), "NaN or infinity"), (lambda z, t: (z[:, :3], t), "expected 4 numbers a row|labels? run|expected 5"),
    (lambda z, t: (z, (t[0], t[1] + 7, t[2])), "annotator run"), (lambda z, t: (z, (t[0], t[1], t[2] - 1)), "label run"),
    (lambda z, t: (z, (t[0] + 9, t[1], t[2])), "row run"), (lambda z, t: (z, (t[0].float(), t[1], t[2])), "row are torch.float32"),
    (lambda z, t: (z, t[:2]), "row, annotator, label"), (lambda z, t: (z, tuple(v[:0] for v in t)), "without annotations"),
    (lambda z, t: (z[0], t), "floating-point rows"),
])
def test_heads_refuse_in_a_line(head, spoil, words):
    layer, b, _ = head
    z, h = (v.float() for v in b["seen"])
    spoilt, triple = spoil(h if isinstance(layer, DoctorNet) else z, b["triple"])
    seen = Seen(z, spoilt) if isinstance(layer, DoctorNet) else Seen(spoilt, h)
    assert re.search(words, refused(layer, seen, triple, b["x"].float()))


def test_functions_of_annotations_refuse_in_a_line():
    b = batch()
    p, T, (row, annotator, label) = b["seen"].logits.softmax(1), b["T"], b["triple"]
    assert "annotator run" in refused(crowd_nll, p, T[:2], row, annotator, label) and "row run" in refused(crowd_scores, p[:2], T, row, annotator)
    assert "V has shape" in refused(crowd_nll, p, T, row, annotator, label, V=b["V"]) and "groups run" in refused(crowd_nll, p, T, row, annotator, label, V=b["V"][:1], groups=b["groups"])
    assert "T holds NaN" in refused(crowd_nll, p, T * math.nan, row, annotator, label) and "eps is -1" in refused(crowd_nll, p, T, row, annotator, label, eps=-1)
    assert "prior is 0" in refused(max_mig_loss, p, p, torch.zeros(4)).replace("a tensor from 0 to 0", "0") and "annotator run" in refused(vote_confusions, row, annotator, label, p, 2)
    half = vote_confusions(row.to(torch.uint8), annotator, label.to(torch.int16), p.half(), 7)
    assert torch.allclose(half.double(), vote_confusions(row, annotator, label, p, 7), atol=2e-3)
    for make, words in ((lambda: CrowdLayer(0, 3), "annotators is 0"), (lambda: DoctorNet(2, 3, 0), "features is 0"), (lambda: CoNAL(2, 3, 4, penalty=-1), "penalty is -1"),
                        (lambda: VectorCrowdLayer(2, 3, eps=math.nan), "eps is nan"), (lambda: MaxMIG(torch.ones(2, 3, 3), torch.zeros(3)), "prior"),
                        (lambda: MaxMIG(torch.ones(2, 3, 3), torch.ones(2)), "expected R x C x C and C"), (lambda: UnionNet(2.0, 3), "annotators is 2.0")):
        assert words in refused(make)
