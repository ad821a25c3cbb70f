"""Margin losses: closed forms, a slow loop in float64, the guard past pi, gradients, half precision, bad input."""

import math

import pytest
import torch
from torch.nn import functional as F

from kdnotes.losses.margin import ArcFace, CosFace, arc_margin, cos_margin, cosine_logits

COSINES = torch.tensor([[0.8, 0.1, -0.2]], dtype=torch.float64)
FIRST = torch.tensor([0])


def draw(n=12, d=7, classes=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64), torch.randint(classes, (n,), generator=g)


@pytest.mark.parametrize("margin, expected", [(lambda c: cos_margin(c, FIRST, 0.35), 0.0312087),
                                              (lambda c: arc_margin(c, FIRST, 0.5), 0.0442575),
                                              (lambda c: arc_margin(c, FIRST, 0.0), 0.00095682),
                                              (lambda c: cos_margin(c, FIRST, 0.0), 0.00095682)])
def test_published_forms_by_hand(margin, expected):
    assert F.cross_entropy(10 * margin(COSINES), FIRST).item() == pytest.approx(expected, rel=1e-5)
    assert arc_margin(COSINES, FIRST, 0.5)[0, 0].item() == pytest.approx(0.4144107, abs=5e-8)


def slow_loss(head, features, labels):
    """The formula, one sample and one class at a time."""
    total = 0.0
    for s, y in zip(features, labels.tolist()):
        z = []
        for j, w in enumerate(head.weight.detach()):
            c = float(w @ s / (w.norm() * s.norm()))
            if j == y and isinstance(head, ArcFace):
                past = math.acos(c) + head.margin > math.pi
                c = c - head.margin * math.sin(head.margin) if past else math.cos(math.acos(c) + head.margin)
            elif j == y:
                c = c - head.margin
            z.append(head.scale * c)
        total += math.log(sum(math.exp(v - z[y]) for v in z))
    return total / len(labels)


@pytest.mark.parametrize("kind", [ArcFace, CosFace])
@pytest.mark.parametrize("scale, margin", [(10.0, 0.0), (16.0, 0.35), (30.0, 1.2)])
def test_equals_a_slow_loop(kind, scale, margin):
    features, labels = draw()
    head = kind(7, 5, scale, margin).double()
    assert head(features, labels).item() == pytest.approx(slow_loss(head, features, labels), rel=1e-10)


def test_the_guard_keeps_the_target_falling():
    """cos(theta + m) would rise again past pi; the guarded target never does, and takes the line exactly there."""
    theta = torch.linspace(1e-3, math.pi - 1e-6, 4001, dtype=torch.float64)
    cosines, labels = theta.cos()[:, None].expand(-1, 2), torch.zeros(4001, dtype=torch.int64)
    for m in (0.1, 0.5, 1.3):
        psi = arc_margin(cosines, labels, m)[:, 0]
        inside = theta + m < math.pi
        assert (psi.diff() < 0).all()
        assert torch.allclose(psi[inside], (theta + m)[inside].cos(), atol=1e-9)
        assert torch.allclose(psi[~inside], theta[~inside].cos() - m * math.sin(m), atol=1e-9)


def test_only_the_true_class_moves():
    features, labels = draw()
    for head in (ArcFace(7, 5).double(), CosFace(7, 5).double()):
        plain, with_margin = head.logits(features), head.logits(features, labels)
        own = F.one_hot(labels, 5).bool()
        assert plain[~own].equal(with_margin[~own]) and (with_margin[own] < plain[own]).all()
        assert torch.allclose(plain, 64 * head.cosines(features)) and plain.abs().max() <= 64 + 1e-9


@pytest.mark.parametrize("kind", [ArcFace, CosFace])
def test_lengths_do_not_matter_and_get_no_gradient(kind):
    features, labels = draw()
    head = kind(7, 5, 16.0).double()
    features.requires_grad_()
    loss = head(features, labels)
    g, = torch.autograd.grad(loss, features, retain_graph=True)
    w, = torch.autograd.grad(loss, head.weight)
    assert head(3 * features, labels).item() == pytest.approx(loss.item())
    assert (g * features).sum(1).abs().max() < 1e-12 and (w * head.weight).sum(1).abs().max() < 1e-12
    assert g.abs().sum(1).min() > 0


@pytest.mark.parametrize("kind", [ArcFace, CosFace])
def test_gradients_are_right_and_finite_at_the_poles(kind):
    features, labels = draw(5)
    head = kind(7, 5, 16.0).double()
    assert torch.autograd.gradcheck(lambda x: head(x, labels), features.requires_grad_())
    # an embedding exactly on its class, and exactly opposite
    for sign in (1.0, -1.0):
        at = (sign * head.weight[labels].detach()).float().requires_grad_()
        head.float()(at, labels).backward()
        assert at.grad.isfinite().all()


def test_half_precision_is_computed_in_single():
    features, labels = draw(32, 64)
    head = ArcFace(64, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head.logits(features.bfloat16(), labels)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, head.logits(features.bfloat16().float(), labels))


def test_a_margin_makes_the_task_harder_and_training_moves_towards_the_class():
    features, labels = draw(64)
    heads = [ArcFace(7, 5, 16.0, m).double() for m in (0.0, 0.25, 0.5)]
    for head in heads[1:]:
        head.load_state_dict(heads[0].state_dict())
    losses = [head(features, labels).item() for head in heads]
    assert losses == sorted(losses) and losses[0] < losses[2]
    features.requires_grad_()
    heads[2](features, labels).backward()
    stepped = features.detach() - 0.5 * features.grad
    own = lambda x: heads[2].cosines(x).gather(1, labels[:, None]).mean()
    assert own(stepped) > own(features)


@pytest.mark.parametrize("call, words", [
    (lambda x, y: ArcFace(7, 1), ["classes is 1", "at least 2"]),
    (lambda x, y: ArcFace(7, 5, scale=0.0), ["ArcFace", "scale is 0"]),
    (lambda x, y: CosFace(7, 5, margin=-0.1), ["CosFace", "margin is -0.1", "of at least 0 and below 1.57"]),
    (lambda x, y: ArcFace(7, 5)(x[:, :6], y), ["(12, 6)", "expected 7 numbers a row"]),
    (lambda x, y: ArcFace(7, 5)(x, y[:-1]), ["(11,)", "(12,)"]),
    (lambda x, y: ArcFace(7, 5)(x, y.float()), ["float32", "whole numbers"]),
    (lambda x, y: ArcFace(7, 5)(x, y + 5), ["labels run from", "0..4"]),
    (lambda x, y: cosine_logits(x / 0, x), ["NaN or infinity"]),
    (lambda x, y: cosine_logits(x.long(), x), ["int64", "floating-point"]),
])
def test_bad_input_says_what_is_expected(call, words):
    with pytest.raises(ValueError) as error:
        call(*draw())
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
