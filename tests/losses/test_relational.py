"""Relations of every order, against their formulas written as loops in float64, and by what must leave them unchanged.
"""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from kdnotes import inputs
from kdnotes.losses.relational import (
    class_centroids,
    correlation_kernel,
    correlation_loss,
    group_loss,
    pair_distances,
    pair_loss,
    pair_potentials,
    pkt_loss,
    point_loss,
    similarity_matrix,
    triplet_cosines,
    triplet_loss,
)

quick = settings(max_examples=25)
seeds = st.integers(0, 10**6)
LOSSES = {"point": point_loss, "pair": pair_loss, "triplet": triplet_loss, "group": group_loss}
RELATIONS = {"pair": pair_loss, "triplet": triplet_loss, "group": group_loss}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
every_relation = pytest.mark.parametrize("loss", RELATIONS.values(), ids=RELATIONS)

T = torch.tensor([[0, 0], [1, 0], [0, 1]], dtype=torch.float64)
S = torch.tensor([[0, 0], [2, 0], [0, 1]], dtype=torch.float64)


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def orthogonal(seed, d):
    return torch.linalg.qr(normal(seed, d, d))[0]


# The formulas, element by element.


def distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)))


def huber(x, delta=1.0):
    return x * x / 2 if abs(x) <= delta else delta * (abs(x) - delta / 2)


def mu_by_loops(t):
    d = [distance(a, b) for a in t for b in t]
    d = [x for x in d if x > 0]
    return sum(d) / len(d) if d else 1.0


def pair_by_loops(s, t, delta=1.0):
    s, t = s.tolist(), t.tolist()
    mu_s, mu_t, n = mu_by_loops(s), mu_by_loops(t), range(len(s))
    return sum(huber(distance(s[i], s[j]) / mu_s - distance(t[i], t[j]) / mu_t, delta) for i in n
               for j in n) / len(s) ** 2


def cosine_by_loops(a, vertex, b):
    u, v = [x - y for x, y in zip(a, vertex)], [x - y for x, y in zip(b, vertex)]
    length = math.hypot(*u) * math.hypot(*v)
    return sum(x * y for x, y in zip(u, v)) / length if length else 0.0


def triplet_by_loops(s, t, delta=1.0):
    s, t, n = s.tolist(), t.tolist(), range(len(s))
    return sum(huber(cosine_by_loops(s[i], s[j], s[k]) - cosine_by_loops(t[i], t[j], t[k]), delta) for i in n
               for j in n for k in n) / len(s) ** 3


def similarity_by_loops(s, t):
    def rows(e):
        G = [[sum(x * y for x, y in zip(a, b)) for b in e] for a in e]
        return [[x / math.hypot(*row) for x in row] for row in G]

    return sum((a - b) ** 2 for r, q in zip(rows(s.tolist()), rows(t.tolist())) for a, b in zip(r, q)) / len(s) ** 2


def point_by_loops(s, t):
    return sum((a - b) ** 2 for x, y in zip(s.tolist(), t.tolist()) for a, b in zip(x, y)) / s.numel()


BY_LOOPS = {"point": point_by_loops, "pair": pair_by_loops, "triplet": triplet_by_loops, "group": similarity_by_loops}


def triplet_plain(s, t, delta=1.0):
    """The textbook form, which stores all N x N x D unit differences."""

    def cosines(x):
        e = F.normalize(x[None] - x[:, None], dim=2)
        return e @ e.mT

    return F.huber_loss(cosines(s), cosines(t), delta=delta)


# Values.


@pytest.mark.parametrize("name", LOSSES)
def test_equal_to_the_loops_and_never_negative(name):
    for seed in range(5):
        s, t = normal(seed, 6, 3), normal(seed + 100, 6, 3)
        assert LOSSES[name](s, t).item() == pytest.approx(BY_LOOPS[name](s, t), abs=1e-10)
        assert LOSSES[name](s, t) > 0 and LOSSES[name](t, t) == 0
    if name in ("pair", "triplet"):
        assert LOSSES[name](s, t, delta=0.2).item() == pytest.approx(BY_LOOPS[name](s, t, delta=0.2), abs=1e-10)


def test_closed_form_of_the_pair_loss():
    loss = pair_loss(S, T).item()
    assert loss == pytest.approx(0.0184845, abs=5e-8)
    assert 9 * loss == pytest.approx(0.1663601, abs=5e-8)
    assert 9 / 6 * loss == pytest.approx(0.0277267, abs=5e-8)


def test_closed_form_of_the_triplet_loss():
    loss = triplet_loss(S, T).item()
    assert loss == pytest.approx(0.0038012, abs=5e-8)
    assert 27 * loss == pytest.approx(0.1026334, abs=5e-8)
    assert 27 / 6 * loss == pytest.approx(0.0171056, abs=5e-8)


def test_closed_form_of_the_similarity_loss():
    e = torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.float64)
    assert group_loss(e[[0, 2, 1]], e).item() == pytest.approx(0.1706554, abs=5e-8)
    assert_close(similarity_matrix(e).norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_cosines_of_degenerate_triplets():
    cosines = triplet_cosines(normal(0, 5, 3)[[0, 1, 2, 3, 4, 4]])
    N = torch.arange(6)
    assert (cosines[N, N, :] == 0).all() and (cosines[N, :, N] == 0).all()          # i = j and k = j
    assert (cosines[4, 5, :] == 0).all() and (cosines[5, :, 4] == 0).all()          # a copy of the vertex
    assert_close(cosines[0].diagonal()[1:], torch.ones(5, dtype=torch.float64))     # i = k
    assert_close(cosines[0, 4], cosines[0, 5])
    assert cosines.abs().max() < 1 + 1e-12


# Invariances.


@quick
@given(seed=seeds, scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_pairs_and_triplets_forgive_moves_turns_mirrors_and_sizes(seed, scale, shift):
    s, t, Q = normal(seed, 7, 4), normal(seed + 1, 7, 5), orthogonal(seed + 2, 4)
    Q[0] *= 1 if seed % 2 else -1
    for loss in (pair_loss, triplet_loss):
        assert_close(loss(scale * s @ Q + shift, t), loss(s, t), rtol=1e-8, atol=1e-12)
        assert_close(loss(t, scale * s @ Q + shift), loss(t, s), rtol=1e-8, atol=1e-12)
    assert_close(group_loss(scale * s @ Q, t), group_loss(s, t), rtol=1e-8, atol=1e-12)


def test_points_and_similarities_do_not_forgive_a_move():
    t = normal(0, 8, 4)
    assert point_loss(t + 1, t) > 0.5 and group_loss(t + 1, t) > 1e-4
    assert point_loss(t @ orthogonal(1, 4), t) > 0.1 and point_loss(2 * t, t) > 0.1


@quick
@given(seed=seeds, wider=st.integers(1, 6))
def test_dimensions_are_free(seed, wider):
    s, t = normal(seed, 6, 3), normal(seed + 1, 6, 8)
    padded, embedded = F.pad(t, (0, wider)), t @ orthogonal(seed + 2, 8 + wider)[:8]
    for loss in RELATIONS.values():
        assert loss(s, t).isfinite()
        for other in (padded, embedded):
            assert_close(loss(s, other), loss(s, t), rtol=1e-8, atol=1e-12)
            assert loss(other, t) < 1e-20


@every_loss
def test_the_order_of_the_batch_does_not_matter(loss):
    s, t, order = normal(0, 9, 4), normal(1, 9, 4), torch.randperm(9, generator=torch.Generator().manual_seed(2))
    assert_close(loss(s[order], t[order]), loss(s, t))
    assert not torch.isclose(loss(s[order], t), loss(s, t))


def test_cosines_are_symmetric_in_the_outer_points_and_not_in_the_vertex():
    cosines = triplet_cosines(normal(0, 7, 3))
    assert_close(cosines, cosines.transpose(1, 2))
    assert (cosines - cosines.transpose(0, 1)).abs().max() > 0.1


# Gradients.


@every_loss
def test_gradients_equal_finite_differences_and_spare_the_teacher(loss):
    s, t = normal(0, 6, 4).requires_grad_(), normal(1, 6, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, t), s)
    loss(s, t).backward()
    assert s.grad.abs().sum() > 0 and t.grad is None


def test_gradients_in_the_linear_branch_and_of_the_distances_themselves():
    s, t = normal(0, 6, 3).requires_grad_(), normal(1, 6, 3)
    assert torch.autograd.gradcheck(lambda s: pair_loss(s, t, delta=0.1), s)
    assert torch.autograd.gradcheck(lambda s: triplet_loss(s, t, delta=0.1), s)
    assert torch.autograd.gradgradcheck(lambda s: pair_loss(s, t), s)
    assert torch.autograd.gradcheck(lambda s: triplet_cosines(s)[1:4], s)


@quick
@given(seed=seeds)
def test_no_gradient_goes_into_size_or_place(seed):
    s, t = normal(seed, 8, 4).requires_grad_(), normal(seed + 1, 8, 6)
    for loss in (pair_loss, triplet_loss):
        (g,) = torch.autograd.grad(loss(s, t), s)
        assert abs((g * (s - s.mean(0))).sum()) < 1e-12 and g.sum(0).abs().max() < 1e-12
        assert g.norm() > 1e-6


def test_the_mean_distance_of_the_student_carries_gradient():
    s, t = normal(0, 6, 3).requires_grad_(), normal(1, 6, 3)
    detached = F.huber_loss(pair_distances(s) / (pair_distances(s).sum() / 30).detach(), pair_potentials(t))
    assert_close(detached, pair_loss(s, t))
    assert not torch.allclose(*(torch.autograd.grad(loss, s)[0] for loss in (detached, pair_loss(s, t))))


def test_large_mismatches_count_linearly():
    # the last point is 2.5 mean distances away
    far = torch.tensor([[0.0], [0.01], [0.02], [0.03], [10.0]]).double()
    near = torch.tensor([[0.0], [10.0], [0.01], [0.02], [0.03]]).double()
    psi_s, psi_t = pair_potentials(far).requires_grad_(), pair_potentials(near)
    assert (psi_s - psi_t).abs().max() > 1.5
    loss = F.huber_loss(psi_s, psi_t)
    assert_close(loss, pair_loss(far, near))
    (g,) = torch.autograd.grad(loss, psi_s)
    assert g.abs().max() <= 1 / 25 + 1e-12
    assert_close(g.abs().max(), torch.tensor(1 / 25).double())
    step = torch.zeros_like(psi_t)
    # psi_s is 2.5 above psi_t there: every further unit costs the same
    step[0, 4] = 1.0
    costs = [(F.huber_loss(psi_s + k * step, psi_t) * 25).item() for k in range(3)]
    assert costs[2] - costs[1] == pytest.approx(costs[1] - costs[0]) == pytest.approx(1)


# Degenerate batches.


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_batches_stay_finite(loss, dtype):
    x = normal(0, 6, 4, dtype=dtype)
    t = normal(1, 6, 4, dtype=dtype)
    for s in (x[[0, 1, 2, 0, 1, 2]], x[[0] * 6], torch.zeros(6, 4, dtype=dtype), 1e-12 * x, 1e8 * x, x + 1e5, x[:2],
              torch.cat([x[:5], x[:1] + 1e-6])):
        s = s.clone().requires_grad_()
        for a, b in ((s, t[: len(s)]), (s, s.detach()), (s, x[[0] * len(s)])):
            value = loss(a, b)
            (g,) = torch.autograd.grad(value, s)
            assert value >= 0 and value.isfinite() and g.isfinite().all()


def test_copies_stay_out_of_the_mean_distance():
    t = normal(0, 5, 512, dtype=torch.float32)[[0, 1, 2, 3, 4, 1]] + 100
    d = pair_distances(t)
    assert d[1, 5] == 0 and (d.diagonal() == 0).all()
    assert_close(pair_potentials(t).sum() / 28, torch.tensor(1.0))        # 30 ordered pairs less the two of the copy
    assert pair_loss(t.double(),
                     normal(1, 6, 3)).item() == pytest.approx(pair_by_loops(t.double(), normal(1, 6, 3)), abs=1e-10)
    assert (pair_potentials(torch.ones(4, 3)) == 0).all()                 # no pair is left: the unit is 1


def test_a_batch_of_copies_equals_the_loops():
    s, t = normal(0, 4, 3)[[0, 1, 2, 3, 3, 0]], normal(1, 5, 3)[[0, 1, 2, 2, 3, 4]]
    assert triplet_loss(s, t).item() == pytest.approx(triplet_by_loops(s, t), abs=1e-10)
    s.requires_grad_()
    # normalising a zero difference would explode here
    through_cosines = F.huber_loss(triplet_cosines(s), triplet_cosines(t))
    assert_close(torch.autograd.grad(triplet_loss(s, t), s), torch.autograd.grad(through_cosines, s), rtol=1e-9,
                 atol=1e-12)


@quick
@given(seed=seeds)
def test_two_samples_have_no_relation_to_miss(seed):
    s, t = normal(seed, 2, 3), normal(seed + 1, 2, 9)
    assert pair_loss(s, t) < 1e-24 and triplet_loss(s, t) < 1e-24


def test_neighbours_keep_their_digits_in_float32():
    x = normal(0, 16, 64, dtype=torch.float32)
    x[1] = x[0] + 1e-3 * x[2]
    assert_close(triplet_cosines(x).double(), triplet_cosines(x.double()), rtol=0, atol=1e-3)     # sides of 1 : 1000
    assert_close(pair_distances(x + 1000).double(), pair_distances((x + 1000).double()), rtol=1e-6, atol=0)


# Fast equals plain.


@pytest.mark.parametrize("chunk", [1, 7, 24, None])
@pytest.mark.parametrize("delta", [1.0, 0.3])
def test_the_chunked_loss_is_the_plain_loss(chunk, delta):
    s, t = normal(0, 24, 16, dtype=torch.float32).requires_grad_(), normal(1, 24, 40, dtype=torch.float32)
    fast, plain = triplet_loss(s, t, delta=delta, chunk=chunk), triplet_plain(s, t, delta)
    assert_close(fast, plain, rtol=0, atol=1e-6)
    assert_close(torch.autograd.grad(fast, s), torch.autograd.grad(plain, s), rtol=1e-4, atol=1e-7)
    s, t = s.detach().double().requires_grad_(), t.double()
    fast, plain = triplet_loss(s, t, delta=delta, chunk=chunk), triplet_plain(s, t, delta)
    assert_close(fast, plain, rtol=1e-10, atol=0)
    assert_close(torch.autograd.grad(fast, s), torch.autograd.grad(plain, s), rtol=1e-9, atol=1e-13)


PEAK = """
import torch
from pathlib import Path
from kdnotes.losses.relational import triplet_loss

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

g = torch.Generator().manual_seed(0)
s, t = torch.randn(512, 64, generator=g).requires_grad_(), torch.randn(512, 64, generator=g)
triplet_loss(s[:16], t[:16]).backward()
Path("/proc/self/clear_refs").write_text("5")      # the peak starts from here
before = resident("VmRSS")
loss = triplet_loss(s, t, chunk=4)
loss.backward()
print(resident("VmHWM") - before, loss.item())
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(),
                    reason="reads the peak of resident memory as Linux tells it")
def test_a_large_batch_needs_memory_for_a_few_vertices_only():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    used, loss = map(float, done.stdout.split())
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(512, 64, generator=g).double() for _ in range(2))
    units = ([F.normalize(x - x[j], dim=1) for x in (s, t)] for j in range(512))
    assert loss == pytest.approx(sum(F.huber_loss(a @ a.T, b @ b.T).item() for a, b in units) / 512, abs=1e-6)
    # all cosines of one side would be 512 MiB, the three tables of four vertices are 12
    assert 8 < used < 64, f"{used:.0f} MiB"


def test_random_vertices_estimate_loss_and_gradient_without_bias():
    s, t, g = normal(0, 16, 4).requires_grad_(), normal(1, 16, 6), torch.Generator().manual_seed(2)
    whole = triplet_loss(s, t)
    (gradient,) = torch.autograd.grad(whole, s)
    draws = torch.stack([triplet_loss(s, t, vertices=3, generator=g, chunk=2) for _ in range(400)])
    assert draws.std() > 0 and abs(draws.mean() - whole) < 4 * draws.std() / 20
    (mean_gradient,) = torch.autograd.grad(draws.mean(), s)
    assert (mean_gradient - gradient).norm() < 0.2 * gradient.norm()
    assert_close(triplet_loss(s, t, vertices=16, generator=g), whole)
    again = [triplet_loss(s, t, vertices=3, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert again[0] == again[1]
    one = torch.stack([triplet_loss(s, t, vertices=1, generator=torch.Generator().manual_seed(i))
                       for i in range(200)]).detach()
    seen = {round(x, 12) for x in one.tolist()}
    assert len(seen) == 16 and sum(seen) / 16 == pytest.approx(whole.item(), abs=1e-10)    # each vertex once: the whole


# Precision.


@every_loss
def test_half_precision_is_lifted_under_autocast(loss):
    s, t = normal(0, 32, 16).bfloat16().requires_grad_(), normal(1, 32, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(s, t)
        value.backward()
    exact = s.detach().float().requires_grad_()
    reference = loss(exact, t.float())
    reference.backward()
    assert value.dtype == torch.float32 and s.grad.dtype == torch.bfloat16
    assert_close(value, reference)
    assert_close(s.grad, exact.grad.bfloat16())
    assert loss(s.detach().double(), t.double()).dtype == torch.float64


@every_relation
def test_where_nobody_looks_for_nan_it_comes_out_as_nan(loss, monkeypatch):
    """On an accelerator the entries are not inspected; the training loop finds the NaN in the loss."""
    monkeypatch.setattr(inputs, "require_finite", lambda *args, **tensors: None)
    s, t = normal(0, 6, 3), normal(1, 6, 3)
    s[2, 1] = float("nan")
    assert loss(s, t).isnan() and loss(t, s).isnan() and loss(s[[2, 2]], t[:2]).isnan()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_relation
def test_a_cuda_device_gives_the_same_and_is_never_waited_for(loss):
    s, t = normal(0, 64, 16, dtype=torch.float32).requires_grad_(), normal(1, 64, 32, dtype=torch.float32)
    expected = loss(s, t)
    s_, t_ = s.detach().cuda().requires_grad_(), t.cuda()
    loss(s_, t_)                                         # libraries start up
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = loss(s_, t_)
        (gradient,) = torch.autograd.grad(value, s_)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(value.cpu(), expected, rtol=1e-4, atol=1e-7)
    assert_close(gradient.cpu(), torch.autograd.grad(expected, s)[0], rtol=1e-3, atol=1e-6)


# Points and groups.


def test_points_of_another_width_need_a_layer_which_is_trained_along():
    s, t, r = normal(0, 6, 3).requires_grad_(), normal(1, 6, 5), torch.nn.Linear(3, 5).double()
    loss = point_loss(s, t, project=r, scale=2.0)
    assert_close(loss, F.mse_loss(r(s), t) / 4)
    loss.backward()
    assert r.weight.grad.abs().sum() > 0 and s.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"\(6, 3\).*\(6, 5\).*trained layer"):
        point_loss(s, t)


def test_centroids_are_means_of_classes():
    x, labels = normal(0, 9, 4), torch.tensor([5, 5, 2, 2, 2, 9, 9, 9, 5])
    centroids = class_centroids(x, labels)
    for row, label in zip(centroids, (2, 5, 9)):
        assert_close(row, x[labels == label].mean(0))


def test_the_centroid_group_compares_classes_by_pairs_and_triplets():
    s, t, labels = normal(0, 12, 3).requires_grad_(), normal(1, 12, 5), torch.arange(12) % 4
    loss = group_loss(s, t, labels, kind="centroid")
    s_, t_ = class_centroids(s, labels), class_centroids(t, labels)
    assert loss.item() == pytest.approx(pair_by_loops(s_, t_) + 2 * triplet_by_loops(s_, t_), abs=1e-10)
    assert torch.autograd.gradcheck(lambda s: group_loss(s, t, labels, kind="centroid"), s)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert_close(group_loss(s[order], t[order], labels[order], kind="centroid"), loss)
    assert_close(group_loss(3 * s + 1, t, 10 - labels, kind="centroid"), loss)     # names of classes do not matter


# Bad input.


@every_relation
@pytest.mark.parametrize(("s", "t", "words"), [
    (torch.ones(3, 2), torch.ones(4, 2), ["student has 3 rows, teacher 4", "same N samples"]),
    (torch.ones(1, 2), torch.ones(1, 2), ["one sample", "at least 2"]),
    (torch.ones(3), torch.ones(3), ["student has shape (3,)"]),
    (torch.ones(3, 2), torch.ones(3, 2, 4, 4), ["teacher has shape (3, 2, 4, 4)", "(N, D)", "flatten"]),
    (torch.ones(3, 2), torch.ones(3, 2).int(), ["teacher", "torch.int32", "floating-point"]),
    (torch.tensor([[1.0], [2.0], [float("nan")]]), torch.ones(3, 2),
     ["student holds NaN or infinity in 1 of 3 rows (first in row 2)"]),
    (torch.ones(3, 2), torch.full((3, 2), float("inf")), ["teacher holds NaN or infinity in 3 of 3 rows"]),
])
def test_bad_embeddings_are_named(loss, s, t, words):
    with pytest.raises(ValueError) as error:
        loss(s, t)
    assert str(error.value).startswith(loss.__name__) and "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(("call", "message"), [
    (lambda x: triplet_loss(x, x, vertices=0),
     "triplet_loss: vertices is 0; expected a whole number from 1 to 4"),
    (lambda x: triplet_loss(x, x, vertices=5), "vertices is 5"),
    (lambda x: triplet_loss(x, x, chunk=0), "triplet_loss: chunk is 0; expected a whole number of at least 1"),
    (lambda x: triplet_loss(x, x, delta=-1.0), "triplet_loss: delta is -1.0"),
    (lambda x: pair_loss(x, x, delta=0), "pair_loss: delta is 0"),
    (lambda x: group_loss(x, x, kind="both"), "group_loss: kind is 'both'; expected 'similarity' or 'centroid'"),
    (lambda x: group_loss(x, x, kind="centroid"), "labels are missing"),
    (lambda x: group_loss(x, x, torch.arange(3), kind="centroid"), "labels are torch.int64 of shape (3,)"),
    (lambda x: group_loss(x, x, torch.zeros(4, dtype=torch.int8), kind="centroid"), "the batch holds one class"),
])
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError) as error:
        call(torch.randn(4, 3))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_arrays_are_not_tensors():
    with pytest.raises(TypeError, match="pair_loss: student is a ndarray; expected a torch.Tensor"):
        pair_loss(torch.ones(3, 2).numpy(), torch.ones(3, 2))
    with pytest.raises(TypeError, match="triplet_loss: vertices is 2.0; expected a whole number from 1 to 3"):
        triplet_loss(torch.ones(3, 2), torch.ones(3, 2), vertices=2.0)


# The batch against itself: neighbour probabilities and correlation


def pkt_by_loops(s, t, least=1e-7):
    def p(x):
        K = [[(1 + sum(a * b for a, b in zip(u, v)) / math.hypot(*u) / math.hypot(*v)) / 2 for v in x] for u in x]
        return [[k / sum(row) for k in row] for row in K]

    p_s, p_t = p(s.tolist()), p(t.tolist())
    return sum(q * math.log((q + least) / (r + least)) for a, b in zip(p_t, p_s) for q, r in zip(a, b)) / len(s) ** 2


def cc_by_loops(s, t, gamma, order):
    def k(x, y):
        dot = sum(a * b for a, b in zip(x, y)) / math.hypot(*x) / math.hypot(*y)
        return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * dot**p for p in range(order + 1))

    s, t = s.tolist(), t.tolist()
    return sum((k(s[i], s[j]) - k(t[i], t[j])) ** 2 for i in range(len(s)) for j in range(len(s))) / len(s) ** 2


@quick
@given(seeds, st.integers(2, 6))
def test_pkt_and_correlation_are_their_formulas(seed, N):
    s, t = normal(seed, N, 3), normal(seed + 1, N, 4)
    assert abs(float(pkt_loss(s, t)) - pkt_by_loops(s, t)) < 1e-10
    assert abs(float(correlation_loss(s, t, 0.7, 3)) - cc_by_loops(s, t, 0.7, 3)) < 1e-10
    turned = 3 * t @ orthogonal(seed, 4)
    assert pkt_loss(turned, t).abs() < 1e-10 and correlation_loss(turned, t) < 1e-20


@pytest.mark.parametrize("loss", [pkt_loss, correlation_loss])
def test_pkt_and_correlation_leave_the_teacher_alone_and_refuse_what_does_not_fit(loss):
    s, t = normal(0, 5, 3).requires_grad_(), normal(1, 5, 4).requires_grad_()
    loss(s, t).backward()
    assert t.grad is None and s.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda s: loss(s, t), s)
    with pytest.raises(ValueError, match="5 rows"):
        loss(s, t[:4])


def test_the_series_of_the_kernel_converges_to_the_gaussian():
    x = F.normalize(normal(0, 6, 3), dim=1)
    assert_close(correlation_kernel(x, 0.4, 15), torch.exp(-0.4 * torch.cdist(x, x) ** 2))
    assert (correlation_kernel(x, 0.4, 2) - torch.exp(-0.4 * torch.cdist(x, x) ** 2)).abs().max() < 0.1
