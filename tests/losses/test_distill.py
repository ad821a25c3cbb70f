"""Soft labels and hints, against their formulas written out in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdnotes.losses.distill import VIDLoss, attention_loss, hint_loss, kd_loss

quick = settings(max_examples=25)


def kd_by_loops(student, teacher, rho):
    total = 0.0
    for z_s, z_t in zip(student.tolist(), teacher.tolist()):
        p = [math.exp(z / rho) for z in z_t]
        q = [math.exp(z / rho) for z in z_s]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q))
    return rho**2 * total / len(student)


@pytest.mark.parametrize(("rho", "printed"), [(1, 0.1156114), (4, 0.3057213)])
def test_kd_has_the_printed_values(rho, printed):
    z_t, z_s = torch.tensor([[2.0, 0.0, -2.0]]).double(), torch.tensor([[1.0, 0.0, -1.0]]).double()
    assert kd_loss(z_s, z_t, rho).item() == pytest.approx(printed, abs=5e-8)
    assert kd_loss(z_s.float(), z_t.float(), rho).item() == pytest.approx(printed, abs=2e-6)
    # a mean over the batch
    assert kd_loss(z_s.repeat(7, 1), z_t.repeat(7, 1), rho).item() == pytest.approx(printed, abs=5e-8)


@quick
@given(seed=st.integers(0, 10**6), rho=st.floats(0.5, 20), shift=st.floats(-50, 50))
def test_kd_equals_its_formula_and_ignores_a_common_shift_of_the_logits(seed, rho, shift):
    g = torch.Generator().manual_seed(seed)
    z_s, z_t = torch.randn(6, 5, dtype=torch.float64,
                           generator=g), 3 * torch.randn(6, 5, dtype=torch.float64, generator=g)
    loss = kd_loss(z_s, z_t, rho)
    assert loss.item() == pytest.approx(kd_by_loops(z_s, z_t, rho), abs=1e-10)
    assert loss >= 0 and kd_loss(z_t, z_t, rho).abs() < 1e-12
    assert kd_loss(z_s + shift, z_t, rho).item() == pytest.approx(loss.item(), abs=1e-9)


def test_kd_stays_finite_for_a_teacher_that_is_sure():
    z_s = torch.tensor([[0.0, 200.0]], requires_grad=True)
    loss = kd_loss(z_s, torch.tensor([[500.0, -500.0]]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(200) and z_s.grad.isfinite().all()


@quick
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10))
def test_hint_equals_its_formula(seed, scale):
    g = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(6, 3, dtype=torch.float64, generator=g) for _ in range(2))
    by_loops = sum((s[i, k] - t[i, k]).item() ** 2 for i in range(6) for k in range(3)) / 18
    assert hint_loss(s, t).item() == pytest.approx(by_loops, abs=1e-10)
    assert hint_loss(s, t, scale=scale).item() == pytest.approx(by_loops / scale**2, abs=1e-10)
    assert hint_loss(t, t) == 0
    cosines = [(s[i] @ t[i] / s[i].norm() / t[i].norm()).item() for i in range(6)]
    assert hint_loss(s, t, normalize=True).item() == pytest.approx(sum(2 - 2 * c for c in cosines) / 18, abs=1e-10)
    assert hint_loss(scale * t, t, normalize=True).item() == pytest.approx(0, abs=1e-12)


def test_hint_takes_feature_maps_and_a_scale_per_feature():
    s, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(hint_loss(s, t), F.mse_loss(s, t))
    sigma = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    torch.testing.assert_close(hint_loss(s, t, scale=sigma), F.mse_loss(s / sigma, t / sigma))
    torch.testing.assert_close(hint_loss(s, t, normalize=True),
                               F.mse_loss(F.normalize(s.flatten(1)), F.normalize(t.flatten(1))))


@pytest.mark.parametrize("loss", [kd_loss, hint_loss])
def test_gradients_are_right_and_none_reaches_the_teacher(loss):
    s, t = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda s: loss(s, t), s)
    loss(s, t).backward()
    assert s.grad.abs().sum() > 0 and t.grad is None


@pytest.mark.parametrize("loss", [kd_loss, hint_loss])
def test_half_precision_is_lifted(loss):
    s, t = torch.randn(8, 10).bfloat16().requires_grad_(), torch.randn(8, 10).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(s, t)
    value.backward()
    assert value.dtype == torch.float32 and s.grad.dtype == torch.bfloat16
    torch.testing.assert_close(value, loss(s.float(), t.float()))


@pytest.mark.parametrize("loss", [kd_loss, hint_loss])
@pytest.mark.parametrize(("s", "t", "words"), [
    (torch.ones(3, 2), torch.ones(4, 2), ["student has 3 rows, teacher 4", "same N"]),
    (torch.ones(3, 2), torch.ones(3, 5), ["(3, 2)", "(3, 5)"]),
    (torch.ones(3), torch.ones(3), ["student has shape (3,)", "rows (N, "]),
    (torch.ones(0, 2), torch.ones(0, 2), ["shape (0, 2)"]),
    (torch.ones(3, 2), torch.ones(3, 2).long(), ["teacher", "torch.int64", "floating-point"]),
    (torch.ones(3, 2), torch.tensor([[1.0, 2], [1, float("nan")], [float("inf"), 1]]),
     ["teacher holds NaN or infinity in 2 of 3 rows (first in row 1)"]),
    (torch.ones(3, 2), torch.ones(3, 2, device="meta"), ["student is on cpu, teacher on meta"]),
])
def test_bad_input_is_named(loss, s, t, words):
    with pytest.raises(ValueError) as error:
        loss(s, t)
    assert str(error.value).startswith(loss.__name__) and "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


def test_bad_numbers_and_types_are_named():
    x = torch.ones(3, 2)
    for temperature in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="kd_loss: temperature is .* above 0"):
            kd_loss(x, x, temperature=temperature)
    for scale in (torch.tensor([1.0, 0.0]), torch.tensor(float("nan")), torch.ones(3)):
        with pytest.raises(ValueError, match="hint_loss: scale (is|has) "):
            hint_loss(x, x, scale=scale)
    for loss, bad in ((kd_loss, x[:, :1]), (kd_loss, torch.ones(3, 2, 4, 4)), (attention_loss, x)):
        with pytest.raises(ValueError, match=f"{loss.__name__}: .*(single logit|feature maps)"):
            loss(bad, bad)
    for variance, least in ((0.0, 1e-5), (-1.0, 1e-5), (1e-6, 1e-5), (float("nan"), 1e-5), (5.0, 0.0)):
        with pytest.raises(ValueError, match="VIDLoss: (variance|least) is .* above"):
            VIDLoss(3, 2, variance, least)
    assert VIDLoss(3, 2, 500.0).alpha.eq(torch.tensor(500.0) - 1e-5).all()
    with pytest.raises(ValueError, match="hint_loss: scale is -2.0; expected a finite number above 0"):
        hint_loss(x, x, scale=-2.0)
    with pytest.raises(TypeError, match="student is a ndarray; expected a torch.Tensor"):
        hint_loss(x.numpy(), x)


# Cross-entropy with soft labels, attention, information


def test_the_cross_entropy_form_has_its_closed_values_and_the_same_gradient():
    z_t, z_s = torch.tensor([[2.0, 0.0, -2.0]],
                            dtype=torch.float64), torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64,
                                                               requires_grad=True)
    for rho, ce, kl in ((1, 0.5566689, 0.1156114), (4, 16.6287828, 0.3057213)):
        values = {form: kd_loss(z_s, z_t, rho, form=form) for form in ("ce", "kl")}
        assert abs(values["ce"] - ce) < 1e-6 and abs(values["kl"] - kl) < 1e-6
        first, second = (torch.autograd.grad(value, z_s)[0] for value in values.values())
        torch.testing.assert_close(first, second)
    with pytest.raises(ValueError, match="'mse'.*'kl' or 'ce'"):
        kd_loss(z_s, z_t, form="mse")


def attention_by_loops(student, teacher):
    total, count = 0.0, 0
    for a, b in zip(student, teacher):
        maps = []
        for x in (a, b):
            energy = [sum(float(v) ** 2 for v in x[:, i, j]) / len(x) for i in range(x.shape[1])
                      for j in range(x.shape[2])]
            length = sum(e * e for e in energy) ** 0.5
            maps.append([e / length for e in energy])
        total += sum((p - q) ** 2 for p, q in zip(*maps))
        count += len(maps[0])
    return total / count


def test_attention_is_its_formula_and_knows_neither_channels_nor_size():
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(3, c, 4, 3, generator=g, dtype=torch.float64) for c in (2, 5))
    assert abs(float(attention_loss(s, t)) - attention_by_loops(s, t)) < 1e-12
    assert attention_loss(7 * t, t) < 1e-20 and attention_loss(t.repeat(1, 3, 1, 1), t) < 1e-20
    # pooled to the smaller size
    assert attention_loss(t.repeat_interleave(2, 2).repeat_interleave(2, 3), t) < 1e-20
    large = torch.randn(3, 5, 8, 6, generator=g, dtype=torch.float64)      # its features are pooled, then their energy is taken
    pooled = large.unflatten(3, (3, 2)).unflatten(2, (4, 2)).mean((3, 5))
    assert abs(float(attention_loss(s, large)) - attention_by_loops(s, pooled)) < 1e-12
    s_, t_ = s.clone().requires_grad_(), t.clone().requires_grad_()
    attention_loss(s_, t_).backward()
    assert t_.grad is None and s_.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="feature maps"):
        attention_loss(torch.ones(2, 3), torch.ones(2, 3))


def test_vid_is_the_likelihood_of_a_gaussian_up_to_its_constant():
    torch.manual_seed(0)
    vid = VIDLoss(3, 16).double()
    with torch.no_grad():
        vid.alpha.copy_(torch.randn(16))
    s, t = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 16, dtype=torch.float64, requires_grad=True)
    variance = (1 + vid.alpha.exp()).log() + 1e-5
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    expected = -torch.distributions.Normal(vid.mu(s), variance.sqrt()).log_prob(t).mean() - constant
    torch.testing.assert_close(vid(s, t), expected)
    vid(s, t).backward()
    assert t.grad is None and all(p.grad.abs().sum() > 0 for p in vid.parameters())
    assert abs(float(torch.nn.functional.softplus(VIDLoss(3, 4).alpha[0]).detach()) + 1e-5 - 5) < 1e-5
