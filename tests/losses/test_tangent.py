"""Smoothness along and across a manifold: closed forms, published examples, invariances, and what no gradient may reach."""
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from kdnotes.losses.tangent import (
    Basis, Jacobian, Steady, conjugate_gradient, kl_rows, latent_direction, normal_perturbation, prediction_entropy, tangent_basis, tangent_direction,
    tangent_perturbation, tangent_step, tnar_loss, unit, vat_loss, vat_perturbation,
)
from kdnotes.runtime import make_generator

D64 = torch.float64
w = torch.tensor([1.0, 2, 2], dtype=D64)


def two_classes(x):
    return torch.stack([x @ w.to(x) / 2, -x @ w.to(x) / 2], 1)


def normal(*shape, seed=0, dtype=D64):
    return torch.randn(*shape, generator=make_generator(seed), dtype=dtype)


def student(inputs=7, dtype=D64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)


def decoder(dtype=D64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 7)).to(dtype)


# ---- VAT


@pytest.mark.parametrize("dtype, xi", [(D64, 1e-6), (torch.float32, 1e-2), (D64, 1e-2)])
@pytest.mark.parametrize("seed", range(3))
def test_two_classes_move_along_their_difference(dtype, xi, seed):
    r = vat_perturbation(two_classes, normal(5, 3, seed=seed, dtype=dtype), 0.7, xi, generator=make_generator(seed))
    assert_close(r.abs(), (0.7 * w / 3).to(dtype).expand(5, 3), rtol=1e-4, atol=0)


@pytest.mark.parametrize("length", [1e-2, 1e-3, 1e-4])
def test_kl_becomes_its_quadratic_form(length):
    W, x, r = normal(4, 6), normal(5, 6, seed=1), length * unit(normal(5, 6, seed=2))
    p = (x @ W.T).softmax(1)
    H = torch.einsum("ka,nkl,lb->nab", W, torch.diag_embed(p) - p[:, :, None] * p[:, None], W)
    assert_close(kl_rows(x @ W.T, (x + r) @ W.T), torch.einsum("na,nab,nb->n", r, H, r) / 2, rtol=20 * length, atol=0)


def test_the_power_iteration_finds_the_largest_curvature():
    net, x = student(), normal(4, 7)
    r = vat_perturbation(net, x, 1.0, 1e-5, 300, generator=make_generator(0))
    for one, direction in zip(x, r):
        clean = net(one[None]).detach()
        H = torch.autograd.functional.hessian(lambda r, clean=clean, one=one: kl_rows(clean, net((one + r)[None])).sum(), torch.zeros(7, dtype=D64))
        assert abs(torch.linalg.eigh(H).eigenvectors[:, -1] @ direction) > 0.9999


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 4, 4)])
def test_lengths(norm, shape):
    net = nn.Sequential(nn.Flatten(), student(normal(*shape)[0].numel()))
    length = lambda r: r.flatten(1).norm(dim=1) if norm == "l2" else r.flatten(1).abs().amax(1)
    r = vat_perturbation(net, normal(*shape), 0.3, norm=norm, generator=make_generator(0))
    n = normal_perturbation(net, normal(*shape), r, 0.4, "relaxed", norm=norm, generator=make_generator(1))
    assert_close(length(r), torch.full((shape[0],), 0.3, dtype=D64)) and r.shape == shape
    assert_close(length(n), torch.full((shape[0],), 0.4, dtype=D64))
    assert not unit(torch.zeros(2, 3), norm).any()


# ---- one answer


def test_the_same_units_drop_and_batch_norms_keep_nothing():
    net = nn.Sequential(nn.Linear(7, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 3))
    x, held, flags = normal(6, 7, dtype=torch.float32), {k: v.clone() for k, v in net.state_dict().items()}, [m.training for m in net.modules()]
    assert vat_loss(net, x, 0 * x).detach() == 0
    steady = Steady(net)
    first, drawn = steady(x), torch.get_rng_state()
    assert steady(x).equal(first) and torch.get_rng_state().equal(drawn), "only the first call draws"
    assert not Steady(net)(x).equal(first), "the next step drops others"
    r = vat_perturbation(net, x, 0.5, generator=make_generator(0))
    tnar_loss(net, x, r, r).backward()
    assert all(v.equal(held[k]) for k, v in net.state_dict().items()) and flags == [m.training for m in net.modules()]
    assert net[1].track_running_stats
    normalised = nn.functional.batch_norm(net[0](x), None, None, net[1].weight, net[1].bias, training=True)
    net[2].eval()
    assert_close(Steady(net)(x), net[3](normalised))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(kind):
    net, x = student(dtype=kind), normal(4, 7).to(kind)
    r, start = vat_perturbation(net, x, 0.5, start=normal(4, 7)), normal(4, 7)
    assert r.dtype == torch.float32 and Steady(net)(x).dtype == torch.float32
    assert_close(r, vat_perturbation(student(dtype=kind).float(), x.float(), 0.5, start=start))


# ---- along and across


@pytest.mark.parametrize("A", [[[1.0, 0], [0, 1], [0, 0]], [[1.0, 0], [0, 2], [0, 0]]])
@pytest.mark.parametrize("dtype", [D64, torch.float32])
def test_published_directions_of_a_linear_decoder(A, dtype):
    A = torch.tensor(A, dtype=dtype)
    plane = lambda z: z @ A.T
    z = normal(6, 2, dtype=dtype)
    x, basis = plane(z), tangent_basis(plane, z)
    eta = tangent_direction(two_classes, plane, x, z, generator=make_generator(0))
    closed = tangent_perturbation(two_classes, x, basis, 1.0, generator=make_generator(1))
    expected = (torch.tensor([1.0, 2, 0], dtype=dtype) / 5**0.5).expand(6, 3)
    for r in (tangent_step(plane, z, eta, 1.0), tangent_step(plane, z, eta, 1.0, step="finite"), closed):
        assert_close(r.abs(), expected, rtol=1e-4, atol=1e-5)
        for kind in ("project", "project_all"):
            across = normal_perturbation(two_classes, x, r, 1.0, kind, basis, generator=make_generator(2))
            assert_close(across.abs(), torch.tensor([0.0, 0, 1], dtype=dtype).expand(6, 3), rtol=1e-4, atol=1e-3 if dtype == torch.float32 else 1e-5)
    assert_close(tangent_step(plane, z, eta, 2.0, "linf", "finite"), plane(z + 2 * unit(eta, "linf")) - x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_directions_are_projections_of_the_difference(seed):
    A, v, z = normal(6, 3, seed=seed), normal(6, seed=10 + seed), normal(4, 3, seed=20 + seed)
    plane, linear = lambda z: z @ A.T, lambda x: torch.stack([x @ v, 0 * x[:, 0]], 1)
    P = A @ torch.linalg.pinv(A)
    r = tangent_perturbation(linear, plane(z), tangent_basis(plane, z), 1.0, generator=make_generator(0))
    n = normal_perturbation(linear, plane(z), r, 1.0, generator=make_generator(1))
    cosine = lambda a, b: torch.cosine_similarity(a, b.expand_as(a)).abs()
    assert_close(cosine(r, P @ v), torch.ones(4, dtype=D64)) and assert_close(cosine(n, v - P @ v), torch.ones(4, dtype=D64))


def top_direction(net, x, Q):
    clean = net(x[None]).detach()
    H = torch.autograd.functional.hessian(lambda r: kl_rows(clean, net((x + r)[None])).sum(), torch.zeros_like(x))
    return Q @ torch.linalg.eigh(Q.T @ H @ Q).eigenvectors[:, -1]


@pytest.mark.long
def test_both_ways_find_the_top_generalised_eigenvector_in_any_coordinates():
    net, draw, z = student(), decoder(), normal(4, 3)
    x, basis = draw(z).detach(), tangent_basis(draw, z)
    M = normal(3, 3, seed=5) + 2 * torch.eye(3, dtype=D64)
    other = lambda u: draw(u @ M.T)                               # the same manifold, other codes
    u = torch.linalg.solve(M, z.T).T
    found = [tangent_perturbation(net, x, basis, 0.5, 1e-5, 300, generator=make_generator(0)),
             tangent_perturbation(net, x, tangent_basis(other, u), 0.5, 1e-5, 300, generator=make_generator(1)),
             tangent_step(draw, z, tangent_direction(net, draw, x, z, 1e-5, 300, 8, generator=make_generator(2)), 0.5),
             tangent_step(other, u, tangent_direction(net, other, x, u, 1e-5, 300, 8, generator=make_generator(3)), 0.5)]
    for r in found:
        assert_close(r.norm(dim=1), torch.full((4,), 0.5, dtype=D64))
        for one, direction, Q in zip(x, r, basis.Q):
            assert abs(top_direction(net, one, Q) @ direction) > 0.5 * 0.9999


def test_one_step_with_solved_systems_is_one_projection():
    net, draw, z = student(), decoder(), normal(5, 3)
    x, basis, eta0 = draw(z).detach(), tangent_basis(draw, z), normal(5, 3, seed=9)
    start = (basis.R @ eta0[..., None]).squeeze(2)                # Q u0 = J eta0
    r = tangent_perturbation(net, x, basis, 0.5, 1e-6, start=start)
    eta = tangent_direction(net, draw, x, z, 1e-6, cg_steps=12, start=eta0)
    assert_close(r, tangent_step(draw, z, eta, 0.5), rtol=1e-4, atol=1e-4)
    assert_close(Jacobian(draw, z).push(latent_direction(basis, r)), r)


def test_jacobian_against_differences_and_autograd():
    draw, z, eta, r = decoder(), normal(5, 3), normal(5, 3, seed=1), normal(5, 7, seed=2)
    J = Jacobian(draw, z)
    slow = torch.stack([torch.autograd.functional.jacobian(lambda u: draw(u[None])[0], one) for one in z])
    assert_close(J.push(eta), ((draw(z + 1e-5 * eta) - draw(z - 1e-5 * eta)) / 2e-5).detach(), rtol=1e-7, atol=1e-9)
    assert_close(J.push(eta), (slow @ eta[..., None]).squeeze(2)) and assert_close(J.pull(r), (slow.mT @ r[..., None]).squeeze(2))
    for chunk in (None, 1, 2):
        Q, R = tangent_basis(draw, z, chunk)
        assert_close(Q @ R, slow) and assert_close(Q.mT @ Q, torch.eye(3, dtype=D64).expand(5, 3, 3))


def test_a_code_that_moves_nothing_is_in_no_tangent_space():
    A = torch.zeros(6, 3, dtype=D64)
    A[:, 1:] = normal(6, 2)
    plane, z = lambda z: z @ A.T, normal(4, 3)
    Q, R = tangent_basis(plane, z)
    assert_close(Q @ R, A.expand(4, 6, 3)) and assert_close(Q @ Q.mT, (A @ torch.linalg.pinv(A)).expand(4, 6, 6))
    r = tangent_perturbation(student(6), plane(z), Basis(Q, R), 0.5, generator=make_generator(0))
    assert_close(Jacobian(plane, z).push(latent_direction(Basis(Q, R), r)), r)


@pytest.mark.parametrize("d", [2, 5, 10])
def test_conjugate_gradients_solve_after_d_steps(d):
    root = torch.linalg.qr(normal(4, d, d)).Q * torch.logspace(0, 1.5, d, dtype=D64)     # condition 1e3
    A, v = root @ root.mT, normal(4, d, seed=1)
    solved = conjugate_gradient(lambda u: (A @ u[..., None]).squeeze(2), v, 2 * d)
    assert_close(solved, torch.linalg.solve(A, v), rtol=1e-7, atol=1e-9)
    assert not conjugate_gradient(lambda u: 0 * u, 0 * v, 3).any()


@pytest.mark.parametrize("dtype", [D64, torch.float32])
def test_projected_directions_are_orthogonal(dtype):
    net, draw, z = student(dtype=dtype), decoder(dtype), normal(6, 3, dtype=dtype)
    x, basis = draw(z).detach(), tangent_basis(draw, z)
    r = tangent_perturbation(net, x, basis, 0.5, generator=make_generator(0))
    for kind in ("project", "project_all"):
        n = normal_perturbation(net, x, r, 0.5, kind, basis, generator=make_generator(1))
        assert ((unit(n) * unit(r)).sum(1).abs() < 1e-5).all() and ((n.norm(dim=1) - 0.5).abs() < 1e-5).all()
    assert ((basis.Q.mT @ n[..., None]).abs() < 1e-5).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_relaxed_step_by_its_formula(norm):
    net, x, r = student(), normal(3, 7), normal(3, 7, seed=1)
    r0, bar = unit(normal(3, 7, seed=2), norm), unit(r, norm)
    at = (1e-4 * r0).requires_grad_()
    (g,) = torch.autograd.grad(kl_rows(net(x), net(x + at)).sum(), at)
    expected = unit(g / 1e-4 - 0.001 * bar * (bar * r0).sum(1, keepdim=True) + 0.001 * r0, norm)
    assert_close(normal_perturbation(net, x, r, 2.0, "relaxed", xi=1e-4, norm=norm, start=normal(3, 7, seed=2)), 2 * expected)


# ---- what the student minimises


def test_gradients_reach_the_student_through_the_perturbed_answers_alone():
    net, draw, z = student(), decoder(), normal(5, 3).requires_grad_()
    x = draw(z)
    r = tangent_step(draw, z, tangent_direction(net, draw, x, z, generator=make_generator(0)), 0.5, step="finite")
    n = normal_perturbation(net, x, r, 0.5, generator=make_generator(1))
    assert not r.requires_grad and not n.requires_grad and all(p.grad is None for p in net.parameters())
    tnar_loss(net, x, r, n).backward()
    assert z.grad is None and all(p.grad is None for p in draw.parameters()) and all(p.grad is not None for p in net.parameters())
    clean, moved = net(x.detach()).detach(), net(x.detach() + r)
    expected = torch.autograd.grad(kl_rows(clean, moved).mean(), net[0].weight)[0]
    assert_close(torch.autograd.grad(tnar_loss(net, x, r, n, 1, 0, 0), net[0].weight)[0], expected)


def test_a_constant_student_is_smooth_and_has_no_direction():
    net = nn.Linear(7, 3).double()
    nn.init.zeros_(net.weight)
    x, r = normal(4, 7), normal(4, 7, seed=1)
    loss = tnar_loss(net, x, r, r, alpha_3=0)
    assert loss.abs() < 1e-15 and torch.autograd.grad(loss, net.bias)[0].abs().max() < 1e-15
    assert not vat_perturbation(net, x, 0.5, generator=make_generator(0)).any()
    fixed = lambda x: x.new_zeros(len(x), 3)
    assert not vat_perturbation(fixed, x, 0.5, generator=make_generator(0)).any() and float(tnar_loss(fixed, x, r, r, alpha_3=0)) == 0


def test_weights_of_zero_leave_nothing():
    asked = []
    assert float(tnar_loss(lambda x: asked.append(x), normal(4, 7), normal(4, 7), normal(4, 7), 0, 0, 0)) == 0 and not asked
    net, x, r, n = student(), normal(4, 7), normal(4, 7, seed=1), normal(4, 7, seed=2)
    parts = 2 * vat_loss(net, x, r) + 3 * vat_loss(net, x, n) + 0.1 * prediction_entropy(net(x))
    assert_close(tnar_loss(net, x, r, n, 2, 3, 0.1), parts)
    assert float(prediction_entropy(torch.zeros(2, 10))) == pytest.approx(2.302585, abs=1e-6)


X = torch.rand(4, 7)


@pytest.mark.parametrize("call, said", [
    (lambda: vat_perturbation(student(6, torch.float32), X, 0.5), "cannot take"),
    (lambda: vat_perturbation(lambda x: x[:, :1], X, 0.5), "K >= 2"),
    (lambda: vat_perturbation(None, X, 0.5), "expected a network or a function"),
    (lambda: vat_perturbation(student(7), X, 0.5, norm="l1"), "norm"),
    (lambda: vat_perturbation(student(7), X, 0.5, start=X[:, :3]), "start has shape"),
    (lambda: vat_loss(student(7), X, X[:, :3]), "expected"),
    (lambda: normal_perturbation(student(7), X, X, 0.5, "project_all"), "tangent_basis"),
    (lambda: normal_perturbation(student(7), X, X, 0.5, "project_all", Basis(torch.rand(4, 6, 2), torch.rand(4, 2, 2))), "the basis has shapes"),
    (lambda: Jacobian(nn.Sequential(nn.Linear(3, 7), nn.BatchNorm1d(7)), X[:, :3]), "decoder.eval"),
    (lambda: tangent_basis(nn.Linear(7, 3), X), "as many pixels"),
    (lambda: tangent_direction(student(7), nn.Linear(3, 6), X, X[:, :3]), "expected"),
    (lambda: tangent_step(decoder(), X[:, :3], X[:, :3], 0.5, step="long"), "step"),
    (lambda: tnar_loss(student(7), X, X, X, alpha_1=-1), "alpha_1"),
])
def test_bad_input_is_told_in_one_line(call, said):
    with pytest.raises((ValueError, TypeError), match=said) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_first_product_with_a_jacobian_warns_of_nothing():
    code = ("import torch; from kdnotes.losses.tangent import Jacobian; "
            "print(Jacobian(lambda z: z.repeat(1, 2), torch.ones(2, 3)).push(torch.ones(2, 3)).sum().item())")
    done = subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", code], capture_output=True, text=True)
    assert (done.stdout, "Warning" in done.stderr, done.returncode) == ("12.0\n", False, 0), done.stderr
