"""Natural consistency: what is hidden and shuffled, closed forms of both losses, gradients that must be zero, and one pass of the CNN for all views."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdnotes.checks import refused
from kdnotes.losses.consistency import (
    SHUFFLES,
    SPM_FORMS,
    TCM_FORMS,
    NaturalConsistency,
    draw_mask,
    draw_shuffle,
    hidden_count,
    moving_target,
    reorder,
    spm_loss,
    spread,
    squared_distance,
    tcm_loss,
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- what is hidden


@pytest.mark.parametrize("share, tokens, m", [(0.15, 16, 2), (0.5, 5, 3), (0.5, 7, 4), (0.75, 16, 12), (0.3, 16, 5), (1.0, 4, 4), (0.0, 4, 1)])
def test_halves_are_rounded_upward(share, tokens, m):
    assert hidden_count(share, tokens) == m


@pytest.mark.parametrize("N, m", [(16, 2), (12, 6), (5, 3)])
def test_every_place_is_hidden_as_often(N, m):
    M = draw_mask(10_000, N, m, torch.Generator().manual_seed(0))
    assert M.dtype == torch.bool and (M.sum(1) == m).all()
    p = m / N
    assert ((M.double().mean(0) - p).abs() <= 5 * math.sqrt(p * (1 - p) / 10_000)).all()


# ---- shuffles


@pytest.mark.parametrize("kind", SHUFFLES)
@pytest.mark.parametrize("n", [2, 3, 12])
def test_a_shuffle_is_a_permutation_and_never_the_identity(kind, n):
    order = draw_shuffle(10_000, n, kind, torch.Generator().manual_seed(0))
    assert torch.equal(order.sort(1)[0], torch.arange(n).expand(10_000, n))
    assert not (order == torch.arange(n)).all(1).any()
    assert len(order.unique(dim=0)) > 1 or n == 2
    if n == 2:
        assert (order == torch.tensor([1, 0])).all()


def test_full_shuffles_are_uniform():
    order = draw_shuffle(10_000, 3, "full", torch.Generator().manual_seed(0))
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 5 and ((counts / 10_000 - 0.2).abs() < 5 * math.sqrt(0.16 / 10_000)).all()


def test_half_of_mixed_shuffles_move_a_subset_along_by_one():
    n = 10
    order = draw_shuffle(4000, n, "mixed", torch.Generator().manual_seed(0))
    shifts, sizes = 0, set()
    for row in order.tolist():
        moved = [i for i in range(n) if row[i] != i]
        if [row[i] for i in moved] == moved[1:] + moved[:1]:
            shifts += 1
            sizes.add(len(moved))
    assert 0.45 < shifts / 4000 < 0.56 and sizes == set(range(2, n + 1))


def test_near_shuffles_are_all_that_one_to_three_swaps_can_do():
    n, near = 5, {(i, j) for i in range(5) for j in (i + 1, i + 2) if j < 5}
    reached, found = {tuple(range(n))}, set()
    for _ in range(3):
        reached = {tuple({i: order[j], j: order[i]}.get(k, order[k]) for k in range(n)) for order in reached for i, j in near}
        found |= reached
    order = draw_shuffle(30_000, n, "near", torch.Generator().manual_seed(0))        # the rarest order is expected 30 times or more
    assert set(map(tuple, order.tolist())) == found - {tuple(range(n))}
    assert ((order != torch.arange(n)).sum(1) == 2).float().mean() > 1 / 3


def test_tokens_of_a_frame_move_together():
    f = normal(2, 6, 3)
    order = torch.tensor([[2, 0, 1], [0, 2, 1]])
    slow = torch.stack([torch.cat([f[b, 2 * i : 2 * i + 2] for i in order[b].tolist()]) for b in range(2)])
    assert torch.equal(reorder(f, order), slow)
    assert torch.equal(reorder(f, order).sort(1)[0], f.sort(1)[0])


# ---- SPM


def slow_spm(f_hat, f, M, form, tau, within):
    total, hidden = 0.0, [(b, i) for b in range(len(M)) for i in range(M.shape[1]) if M[b, i]]
    cos = lambda a, b: (a @ b) / (a.norm() * b.norm())
    for b, i in hidden:
        p, t = f_hat[b, i], f[b, i]
        if form == "mse":
            each = (p - (t - t.mean()) / (t.var(unbiased=False) + 1e-5).sqrt()).square().mean()
        elif form == "cos":
            each = 2 - 2 * cos(p, t)
        else:
            others = [f[c, j] for c, j in hidden if c == b or not within]
            score = (lambda a, b: a @ b) if form == "dpc" else lambda a, b: cos(a, b) / tau
            each = torch.stack([score(p, o) for o in others]).logsumexp(0) - score(p, t)
        total = total + each / M[b].sum() / len(M)
    return total


@pytest.mark.parametrize("form", SPM_FORMS)
@pytest.mark.parametrize("within", [False, True])
def test_spm_against_loops(form, within):
    f_hat, f, M = normal(4, 6, 5), normal(4, 6, 5, seed=1), draw_mask(4, 6, 3)
    within = within and form == "nce"
    torch.testing.assert_close(spm_loss(f_hat, f, M, form, 0.3, within), slow_spm(f_hat, f, M, form, 0.3, within))


def test_closed_forms_of_spm():
    f, M = normal(3, 8, 6), draw_mask(3, 8, 4)
    LN = F.layer_norm(f, (6,))
    assert spm_loss(LN, f, M, "mse") < 1e-5 and abs(spm_loss(-LN, f, M, "mse") - 4) < 1e-4 and spm_loss(f, f, M, "mse") > 1e-3
    assert abs(spm_loss(f, f, M, "cos")) < 1e-6 and abs(spm_loss(-f, f, M, "cos") - 4) < 1e-6
    across = torch.stack([-f[..., 1], f[..., 0], -f[..., 3], f[..., 2], -f[..., 5], f[..., 4]], -1)
    assert abs(spm_loss(across, f, M, "cos") - 2) < 1e-6
    same = torch.ones_like(f)
    assert abs(spm_loss(same, same, M, "nce") - math.log(12)) < 1e-6 and abs(spm_loss(same, same, M, "nce", within=True) - math.log(4)) < 1e-6
    assert abs(spm_loss(same, same, M, "dpc") - math.log(12)) < 1e-6


@pytest.mark.parametrize("form", SPM_FORMS)
def test_spm_looks_at_hidden_places_only(form):
    f_hat, f, M = normal(4, 6, 5, dtype=torch.float32), normal(4, 6, 5, seed=1, dtype=torch.float32), draw_mask(4, 6, 3)
    changed = torch.where(M[..., None], f_hat, normal(4, 6, 5, seed=2, dtype=torch.float32))
    assert torch.equal(spm_loss(changed, f, M, form), spm_loss(f_hat, f, M, form))


@pytest.mark.parametrize("form", SPM_FORMS)
def test_a_hidden_feature_is_not_seen_and_a_target_does_not_learn(form):
    f, M, over_time = normal(4, 6, 8).requires_grad_(), draw_mask(4, 6, 3), nn.GRU(8, 8, batch_first=True, bidirectional=False).double()
    token = torch.ones(8, dtype=torch.float64)
    encoded = over_time(torch.where(M[..., None], token, f))[0]
    (grad,) = torch.autograd.grad(spm_loss(encoded, f, M, form), f)
    assert (grad[M].abs().max() == 0) == (form != "dpc")          # dpc has no stop-gradient: this is what would be seen
    assert grad[~M].abs().max() > 0


# ---- TCM


def test_triplets_by_hand():
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for positive, negative, value in ((x, y, 0.0), (x, x, 0.5), (y, x, 2.5), (y, y, 0.5)):
        assert tcm_loss(x, positive, negative, "triplet", margin=0.5).item() == value
    u = x.clone().requires_grad_()
    tcm_loss(u, x, y, "triplet").backward()
    assert u.grad.abs().max() == 0


@pytest.mark.parametrize("form, value", [("triplet", 0.5), ("softplus", math.log(2)), ("nce", math.log(2))])
def test_all_alike_is_the_value_of_a_collapse(form, value):
    same = torch.ones(6, 4)
    assert math.isclose(tcm_loss(same, same, same, form).item(), value, rel_tol=1e-6)


def test_distances_of_unit_vectors():
    u, v = normal(50, 6), normal(50, 6, seed=1)
    D = squared_distance(u, v)
    assert (D >= 0).all() and (D <= 4).all()
    torch.testing.assert_close(D, 2 - 2 * F.cosine_similarity(u, v))
    turn = torch.linalg.qr(normal(6, 6, seed=2))[0]
    torch.testing.assert_close(squared_distance(3 * u @ turn, 0.1 * v @ turn), D)
    assert squared_distance(u[:1], -u[:1]).item() == pytest.approx(4)


def test_softplus_and_nce_are_one_function():
    u, p, n = normal(3, 20, 5)
    torch.testing.assert_close(tcm_loss(u, p, n, "softplus", tau=0.2), tcm_loss(u, p, n, "nce", tau=0.1))
    cos = lambda a, b: F.cosine_similarity(a, b) / 0.1
    torch.testing.assert_close(tcm_loss(u, p, n, "nce", tau=0.1), F.cross_entropy(torch.stack([cos(u, p), cos(u, n)], 1), torch.zeros(20, dtype=torch.int64)))


# ---- the step


def over_time(d=8):
    """A network over time that counts its calls; it knows order by a fixed ramp."""
    torch.manual_seed(0)
    layer, calls = nn.Linear(d, d), []

    def encode(f):
        calls.append(len(f))
        tokens = layer(f) * torch.linspace(0.5, 2, f.shape[1])[:, None]
        return tokens.tanh().mean(1), tokens
    return encode, calls


@pytest.mark.parametrize("modules, sequences", [(("spm", "tcm"), 4), (("spm",), 1), (("tcm",), 3)])
def test_one_call_over_time_for_all_sequences(modules, sequences):
    encode, calls = over_time()
    made = NaturalConsistency(8, 6, modules)(normal(5, 6, 8, dtype=torch.float32).requires_grad_(), encode, generator=torch.Generator().manual_seed(0))
    assert calls == [5 * sequences]
    torch.testing.assert_close(made.loss, made.spm + made.tcm)
    assert ("spm" in modules) == (made.spm > 0) and ("tcm" in modules) == (made.tcm > 0)
    made.loss.backward()


@pytest.mark.parametrize("spm", SPM_FORMS)
@pytest.mark.parametrize("tcm", TCM_FORMS)
def test_one_pass_of_the_cnn_has_the_gradients_of_a_pass_for_each_view(spm, tcm):
    """Frames hidden and shuffled as features against four clips of pixels, each through the CNN by itself."""
    torch.manual_seed(0)
    cnn, (encode, _) = nn.Linear(12, 8).double(), over_time()
    layer = next(cell.cell_contents for cell in encode.__closure__ if isinstance(cell.cell_contents, nn.Module)).double()
    step = NaturalConsistency(8, 6, spm=spm, tcm=tcm, weight=0.7).double()
    X = normal(5, 6, 12)
    step(cnn(X), encode, generator=torch.Generator().manual_seed(3)).loss.backward()
    fast = [p.grad.clone() for p in (*cnn.parameters(), *layer.parameters(), *step.parameters())]
    for p in (*cnn.parameters(), *layer.parameters(), *step.parameters()):
        p.grad = None
    g = torch.Generator().manual_seed(3)
    hide = lambda x, M: torch.where(M[..., None], step.mask_token, cnn(x))
    M, order = draw_mask(5, 6, 3, g), draw_shuffle(5, 6, "mixed", g)
    few = [draw_mask(5, 6, 2, g) for _ in range(3)]
    shuffled = torch.stack([x[o] for x, o in zip(X, order)])
    tokens = encode(hide(X, M))[1]
    vectors = [encode(hide(x, m))[0] for x, m in zip((X, X, shuffled), few)]
    u = step.projector(torch.cat(vectors)).chunk(3)
    loss = spm_loss(step.predictor(tokens), cnn(X), M, spm, 0.1) + 0.7 * tcm_loss(*u, tcm, 0.5, 0.2)
    loss.backward()
    for a, p in zip(fast, (*cnn.parameters(), *layer.parameters(), *step.parameters())):
        torch.testing.assert_close(a, p.grad)


def test_a_static_clip_in_any_order_is_the_same_clip():
    encode, _ = over_time()
    step = NaturalConsistency(8, 6, light=0).eval()
    made = step(normal(5, 1, 8, dtype=torch.float32).expand(-1, 6, -1), encode)
    assert made.far < 1e-10 and made.near < 1e-10              # which of the two is the smaller is a matter of rounding


def test_monitors_see_a_collapse():
    assert spread(torch.ones(4, 3, 5)) == 0 and abs(spread(normal(4000, 1, 5)) - 1) < 0.05
    encode, _ = over_time()
    step = NaturalConsistency(8, 6, tcm="triplet")
    for p in step.projector.parameters():                         # every vector is zero, in any arithmetic
        nn.init.zeros_(p)
    made = step(torch.ones(5, 6, 8), lambda f: (torch.zeros(len(f), 8), f))
    assert made.spread_f == 0 and made.tcm.item() == pytest.approx(0.5) and made.order == 0


def test_another_view_and_another_target_enter():
    encode, _ = over_time()
    step, f, other = NaturalConsistency(8, 6), normal(5, 6, 8, dtype=torch.float32), normal(5, 6, 8, seed=1, dtype=torch.float32)
    call = lambda **given: step.eval()(f, encode, generator=torch.Generator().manual_seed(0), **given)
    assert call(target=other).tcm == call().tcm and call(target=other).spm != call().spm
    assert call(view=other).spm == call().spm and call(view=other).near > call().near


def test_a_step_draws_anew_each_time():
    encode, _ = over_time()
    step, f = NaturalConsistency(8, 6).eval(), normal(5, 6, 8, dtype=torch.float32)
    assert step(f, encode).loss != step(f, encode).loss
    assert torch.equal(*(step(f, encode, generator=torch.Generator().manual_seed(1)).loss for _ in range(2)))


def test_a_moving_target_follows():
    net = nn.Linear(3, 2)
    target, before = moving_target(net, 0.9), net.weight.detach().clone()
    target.update_parameters(net)
    with torch.no_grad():
        net.weight += 1
    target.update_parameters(net)
    torch.testing.assert_close(target.module.weight, 0.9 * before + 0.1 * (before + 1))
    assert not any(p.requires_grad for p in target.parameters()) and net.weight.requires_grad


def test_what_does_not_fit_is_refused():
    f, M = normal(4, 6, 5), draw_mask(4, 6, 3)
    assert "nothing hidden" in refused(spm_loss, f, f, torch.zeros_like(M))
    assert "bool (B, N)" in refused(spm_loss, f, f, M.float())
    assert "'mse' or" in refused(spm_loss, f, f, M, "l2")
    assert "frames is 1" in refused(draw_shuffle, 3, 1)
    assert "permutations (B, n)" in refused(reorder, f, torch.zeros(4, 6, dtype=torch.int64))
    assert "('spm', 'tcm') or one" in refused(NaturalConsistency, 8, 6, ("mim",))
    step = NaturalConsistency(8, 6)
    assert "a multiple of the 6 frames" in refused(step, normal(4, 5, 8), over_time()[0])
