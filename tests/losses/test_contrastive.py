"""Contrast of samples:
closed forms, the formulas as loops in float64, who gets a gradient, what is drawn and what is remembered.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from kdnotes.losses import contrastive
from kdnotes.losses.contrastive import (
    CRDLoss,
    Critic,
    IndexBank,
    Negatives,
    Queue,
    info_nce,
    information_bound,
    noise_contrast,
    scores_at,
    shared_negatives,
    shared_size,
    supervised_info_nce,
)

quick = settings(max_examples=25)
seeds = st.integers(0, 10**6)


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


# InfoNCE, plain and supervised


def supervised_by_loops(s, t, y, tau):
    s, t, total = unit(s), unit(t), 0.0
    for i in range(len(s)):
        row = [float(s[i] @ t[k]) / tau for k in range(len(s))]
        log_sum = math.log(sum(math.exp(x) for x in row))
        positives = [j for j in range(len(s)) if y[j] == y[i]]
        total -= sum(row[j] - log_sum for j in positives) / len(positives)
    return total / len(s)


@quick
@given(seeds, st.integers(2, 7), st.sampled_from([0.1, 0.5, 2.0]))
def test_both_losses_are_their_formulas(seed, N, tau):
    s, t, y = normal(seed, N, 4), normal(seed + 1, N, 4), torch.arange(N) % 3
    assert abs(float(supervised_info_nce(s, t, y, tau)) - supervised_by_loops(s, t, y.tolist(), tau)) < 1e-10
    assert abs(float(info_nce(s, t, tau)) - supervised_by_loops(s, t, list(range(N)), tau)) < 1e-10


def test_closed_forms():
    eye = torch.eye(4, dtype=torch.float64)
    assert abs(info_nce(eye, eye, 0.1) - 1.361905e-4) < 1e-9
    assert abs(info_nce(torch.ones(4, 3), torch.ones(4, 3), 0.1) - math.log(4)) < 1e-6
    two = torch.eye(2, dtype=torch.float64).repeat_interleave(2, 0)
    assert abs(supervised_info_nce(two, two, torch.tensor([0, 0, 1, 1]), 0.1) - 0.6931926) < 1e-7


@quick
@given(seeds)
def test_what_the_losses_do_not_see(seed):
    s, t, y = normal(seed, 6, 5), normal(seed + 1, 6, 5), torch.tensor([0, 0, 1, 1, 2, 0])
    turn, order = torch.linalg.qr(normal(seed + 2, 5,
                                         5))[0], torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    for loss in (info_nce, lambda a, b, labels=y: supervised_info_nce(a, b, labels)):
        value = loss(s, t)
        assert_close(loss(3 * s @ turn, 0.5 * t @ turn), value)
        moved = loss(s[order], t[order]) if loss is info_nce else loss(s[order], t[order], y[order])
        assert_close(moved, value)
        assert abs(loss(s @ turn, t) - value) > 1e-6


def test_no_gradient_reaches_the_teacher_and_half_precision_is_lifted():
    s, t = normal(0, 6, 5).requires_grad_(), normal(1, 6, 5).requires_grad_()
    (info_nce(s, t) + supervised_info_nce(s, t, torch.arange(6) % 2)).backward()
    assert t.grad is None and s.grad.abs().sum() > 0
    assert info_nce(s.bfloat16(), t.bfloat16(), 0.01).dtype == torch.float32
    assert torch.autograd.gradcheck(lambda s: supervised_info_nce(s, t, torch.arange(6) % 2), s)


# The critic


def test_with_equal_scores_the_loss_depends_on_n_alone():
    for n, value in ((1, 1.3862944), (4, 2.5020121), (512, 7.2393006)):
        for score, tau in ((0.0, 0.1), (0.9, 0.1), (-0.3, 0.05)):
            critic = Critic(m=494_414, temperature=tau).double()
            loss = noise_contrast(critic, torch.full((2,), score, dtype=torch.float64),
                                  torch.full((2, n), score, dtype=torch.float64))
            assert (loss - value).abs().max() < 1e-6
            assert abs(critic.log_Z - (math.log(494_414) + score / tau)) < 1e-9
            assert abs(loss[0] - ((n + 1) * math.log(n + 1) - n * math.log(n))) < 1e-9


def test_the_literal_critic():
    critic, zero = Critic(8, 0.1, norm="none").double(), torch.zeros(1, dtype=torch.float64)
    assert abs(critic.log_odds(zero, 4).sigmoid() - 2 / 3) < 1e-12
    loss = noise_contrast(critic, zero, torch.zeros(1, 4, dtype=torch.float64))
    assert abs(loss - 0.4054651 - 4.3944492) < 1e-6
    one = torch.ones(1, dtype=torch.float64)
    assert abs(critic.log_odds(one, 4).sigmoid() - 0.9999773) < 1e-7
    assert abs(noise_contrast(critic, 1e3 * one, one.expand(1, 4)) - 42.7726795) < 1e-5
    large = Critic(494_414, 0.1, norm="none").double()
    assert abs(large.log_odds(zero, 512).sigmoid() - 0.99897) < 1e-5
    assert abs(noise_contrast(large, 1e3 * one, torch.zeros(1, 512, dtype=torch.float64)) - 3519) < 1


@pytest.mark.parametrize("norm", ["crd", "none"])
def test_the_posterior_rises_with_the_score_and_has_its_limit(norm):
    critic = Critic(100, 0.1, norm=norm).double()
    if norm == "crd":
        critic.log_Z.fill_(3.0)
    s = torch.linspace(-2, 2, 401, dtype=torch.float64)
    h = critic.log_odds(s, 7).sigmoid()
    assert (h.diff() > 0).all() and h.min() > 0 and h.max() < 1
    Z = 1 if norm == "none" else math.exp(3.0)
    far = 7 / 100 * Z * math.exp(-2 / 0.1)
    assert abs((1 - h[-1]) / far - 1) < 1e-5


@pytest.mark.parametrize("norm", ["crd", "none"])
def test_extreme_scores_stay_finite_in_float32(norm):
    critic = Critic(1000, 1.0, norm=norm)
    if norm == "crd":
        critic.log_Z.fill_(math.log(1000))
        critic.settled = True
    positive, negative = torch.tensor([100.0, -100.0],
                                      requires_grad=True), torch.tensor([[100.0, -100.0]]).repeat(2, 1).requires_grad_()
    loss = noise_contrast(critic, positive, negative)
    loss.sum().backward()
    assert loss.isfinite().all() and positive.grad.isfinite().all() and negative.grad.isfinite().all()
    assert positive.grad[1] < -0.9 and negative.grad[0, 0] > 0.9 and negative.grad[0, 1].abs() < 1e-6


def test_only_valid_chance_pairs_count_and_their_number_is_the_prior():
    critic = Critic(50, 0.2, norm="none").double()
    positive, negative = normal(0, 3), normal(1, 3, 6)
    valid = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    loss = noise_contrast(critic, positive, negative, valid)
    for row in (0, 2):
        alone = noise_contrast(critic, positive[row : row + 1], negative[row : row + 1, valid[row]])
        assert_close(loss[row : row + 1], alone)
    assert loss[1] == 0                                                    # nothing to be told apart from


def test_z_is_set_once_and_survives_a_checkpoint():
    critic = Critic(50, 0.2)
    noise_contrast(critic, normal(0, 3, dtype=torch.float32), normal(1, 3, 6, dtype=torch.float32))
    first = critic.log_Z.clone()
    noise_contrast(critic, 9 + normal(0, 3, dtype=torch.float32), normal(1, 3, 6, dtype=torch.float32))
    assert critic.log_Z == first
    again = Critic(50, 0.2)
    again.load_state_dict(critic.state_dict())
    noise_contrast(again, 9 + normal(0, 3, dtype=torch.float32), normal(1, 3, 6, dtype=torch.float32))
    assert again.log_Z == first
    scores = torch.cat([normal(0, 3, dtype=torch.float32)[:, None], normal(1, 3, 6, dtype=torch.float32)], 1)
    expected = math.log(50 * (scores / 0.2).exp().mean())
    assert abs(first - expected) < 1e-5


def test_the_bound_on_the_information():
    assert abs(information_bound(7.2393006, 512) + 1.0010) < 1e-4
    bounds = []
    for apart in (0.0, 0.3, 0.6, 0.9):
        critic = Critic(1000, 0.1).double()
        loss = noise_contrast(critic, torch.full((1,), apart, dtype=torch.float64),
                              torch.full((1, 512), -apart, dtype=torch.float64))
        bounds.append(float(information_bound(loss, 512)))
    assert bounds == sorted(bounds) and bounds[-1] <= math.log(512)


# Chance pairs


@quick
@given(seeds, st.integers(2, 6), st.integers(1, 40))
def test_no_negative_has_the_key_of_its_sample(seed, classes, n):
    g = torch.Generator().manual_seed(seed)
    memory = torch.cat([torch.arange(classes), torch.randint(classes, (60,), generator=g)])
    keys = torch.arange(classes)
    drawn = Negatives(memory).draw(keys, n, g)
    assert drawn.shape == (classes, n) and (memory[drawn] != keys[:, None]).all()
    index, valid = shared_negatives(keys, memory, n,
                                    shared_size(n, float(memory.bincount().max()) / len(memory), len(memory)), g)
    assert not (valid & (memory[index] == keys[:, None])).any()
    available = (memory != keys[:, None]).sum(1)
    assert (valid.sum(1) <= n).all() and (valid.sum(1) <= available).all()
    assert index.unique().numel() == len(index)


def test_shared_negatives_are_exactly_n_where_the_memory_is_large():
    memory = torch.randint(10, (20_000,), generator=torch.Generator().manual_seed(0))
    index, valid = shared_negatives(torch.arange(10), memory, 512, shared_size(512, 0.105, 20_000),
                                    torch.Generator().manual_seed(1))
    assert (valid.sum(1) == 512).all() and len(index) < 700


def test_empty_entries_of_a_memory_never_count():
    memory = torch.tensor([-1, 0, -1, 1, 1])
    index, valid = shared_negatives(torch.tensor([0]), memory, 4, 5)
    assert valid.sum() == 2 and (memory[index[valid[0]]] == 1).all()


def test_draws_are_uniform_over_the_others_and_repeatable():
    memory = torch.tensor([3, 0, 0, 3, 1])
    drawn = Negatives(memory).draw(torch.tensor([3]), 30_000, torch.Generator().manual_seed(0))[0]
    assert (drawn.bincount(minlength=5) / 30_000 - torch.tensor([0, 1, 1, 0, 1]) / 3).abs().max() < 0.02
    again = Negatives(memory).draw(torch.tensor([3]), 30_000, torch.Generator().manual_seed(0))[0]
    assert drawn.equal(again)
    # keys that are sample numbers: any other sample
    alone = Negatives(torch.arange(5)).draw(torch.tensor([2]), 1000)
    assert set(alone[0].tolist()) == {0, 1, 3, 4}


def test_memory_goes_by_how_many_keys_there_are_and_not_by_the_largest():
    memory = torch.tensor([3, 0, 0, 3, 1])
    far, draws = Negatives(memory * 10**15), []
    for negatives, keys in ((Negatives(memory), memory), (far, memory * 10**15)):
        draws.append(negatives.draw(keys, 50, torch.Generator().manual_seed(0)))
    assert draws[0].equal(draws[1]) and sum(b.numel() for b in far.buffers()) < 20
    everybody = far.draw(torch.tensor([7]), 1000)                          # a key that nothing in the memory has
    assert set(everybody[0].tolist()) == {0, 1, 2, 3, 4}


def test_a_broken_first_batch_settles_nothing():
    critic = Critic(50, 0.2)
    assert noise_contrast(critic, torch.tensor([math.nan]), torch.zeros(1, 3)).isnan()
    assert noise_contrast(critic, torch.zeros(1), torch.zeros(1, 3)).isfinite() and critic.log_Z.isfinite()


# Memories


@quick
@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 12))
def test_a_queue_keeps_the_newest_in_order(length, total, size):
    queue, rows = Queue(length, 2), torch.arange(total).float()
    for part in torch.arange(total).split(size):
        queue.push(rows[part, None].expand(-1, 2), part % 3, part)
    kept = queue.rows[:, 0][queue.keys >= 0]
    assert sorted(kept.tolist()) == list(range(max(0, total - length), total))
    assert queue.keys[queue.keys >= 0].equal(kept.long() % 3)
    assert (queue.pushed == total) and not queue.rows.requires_grad


def test_an_index_bank_holds_the_last_row_of_each_sample():
    bank = IndexBank(6, 3)
    first, second = normal(0, 4, 3, dtype=torch.float32), normal(1, 2, 3, dtype=torch.float32).requires_grad_()
    bank.push(first, torch.tensor([0, 1, 0, 1]), torch.tensor([5, 0, 2, 3]))
    bank.push(second, torch.tensor([1, 1]), torch.tensor([2, 4]))
    assert bank.rows[[5, 0, 3]].equal(first[[0, 1, 3]]) and bank.rows[[2, 4]].equal(second.detach())
    assert not bank.rows.requires_grad
    assert bank.keys.tolist() == [1, -1, 1, 1, 1, 0]


def test_an_index_bank_with_momentum_stays_on_the_sphere():
    bank = IndexBank(2, 3, momentum=0.5, unit=True)
    a, b = unit(normal(0, 1, 3, dtype=torch.float32)), unit(normal(1, 1, 3, dtype=torch.float32))
    bank.rows[:1] = a
    bank.push(b, torch.tensor([0]), torch.tensor([0]))
    assert_close(bank.rows[:1], unit(0.5 * a + 0.5 * b))


# CRD


def test_crd_is_its_formula():
    torch.manual_seed(0)
    keys, index, n, tau = torch.arange(12) % 3, torch.tensor([4, 0, 7]), 5, 0.07
    crd = CRDLoss(4, 6, keys, n=n, p=8).double().eval()
    s, t = normal(0, 3, 4), normal(1, 3, 6)
    k = torch.cat([index[:, None], crd.negatives.draw(keys[index], n, torch.Generator().manual_seed(3))], 1)
    value = float(crd(s, t, index, torch.Generator().manual_seed(3)).detach())
    expected, m = 0.0, len(keys)
    with torch.no_grad():
        for v, bank in ((unit(crd.g_s.linear(s)), crd.bank_t.rows), (unit(crd.g_t.linear(t)), crd.bank_s.rows)):
            scores = torch.stack([torch.stack([v[i] @ bank[j] for j in k[i]]) for i in range(3)])
            Z = m * (scores / tau).exp().mean()
            h = (scores / tau).exp() / Z / ((scores / tau).exp() / Z + n / m)
            expected -= float((h[:, 0].log() + (1 - h[:, 1:]).log().sum(1)).mean())
    assert abs(value - expected) < 1e-10


def test_crd_learns_its_heads_and_nothing_else():
    keys = torch.arange(20) % 4
    crd = CRDLoss(4, 6, keys, n=8, p=8)
    s, t = (normal(i, 5, d, dtype=torch.float32).requires_grad_() for i, d in enumerate((4, 6)))
    before = crd.bank_t.rows.clone()
    crd(s, t, torch.arange(5)).backward()
    assert t.grad is None and s.grad.abs().sum() > 0 and all(p.grad.abs().sum() > 0 for p in crd.parameters())
    assert not any(b.requires_grad for b in crd.buffers())
    moved = (crd.bank_t.rows != before).any(1)
    # the batch's entries follow, the others stay
    assert moved.tolist() == [True] * 5 + [False] * 15
    assert_close(crd.bank_t.rows[:5], F.normalize(0.5 * before[:5] + 0.5 * crd.g_t(t).detach(), dim=1))
    kept = crd.bank_t.rows.clone()
    crd.eval()(s, t, torch.arange(5))
    assert crd.bank_t.rows.equal(kept)                                      # measuring remembers nothing


def test_both_ways_to_score_agree():
    v, rows = normal(0, 3, 4), normal(1, 100, 4)
    few, many = torch.randint(100, (3, 2)), torch.randint(100, (3, 50))
    for k in (few, many):                                                  # one by a copy of rows, one by the whole table
        assert_close(scores_at(v, rows, k), (rows[k] * v[:, None]).sum(2))


# What cannot be


@pytest.mark.parametrize("call, words", [
    (lambda: info_nce(torch.ones(3, 2), torch.ones(4, 2)), ("3 rows", "4")),
    (lambda: info_nce(torch.ones(3, 2), torch.ones(3, 4)), ("dimension 2", "4", "trained layer")),
    (lambda: info_nce(torch.ones(3, 2), torch.ones(3, 2), 0), ("temperature", "above 0")),
    (lambda: info_nce(torch.full((3, 2), math.nan), torch.ones(3, 2)), ("NaN", "row 0")),
    (lambda: supervised_info_nce(torch.ones(3, 2), torch.ones(3, 2), torch.zeros(3)), ("labels", "float32", "(3,)")),
    (lambda: Critic(10, 0.1, norm="z"), ("'z'", "'crd'")),
    (lambda: Critic(10, 0.0), ("temperature", "above 0")),
    (lambda: Negatives(torch.zeros(4, dtype=torch.long)), ("1 different", "two or more")),
    (lambda: Queue(0, 4), ("length is 0",)),
    (lambda: IndexBank(4, 4, momentum=1.0), ("momentum is 1.0", "below 1")),
    (lambda: CRDLoss(4, 4, torch.arange(4), n=0), ("n is 0",)),
    (lambda: CRDLoss(4, 4, torch.arange(4), n=2)(torch.ones(3, 4), torch.ones(2, 4), torch.arange(3)), ("3 rows", "2")),
    (lambda: CRDLoss(4, 4, torch.arange(4), n=2)(torch.ones(3, 5), torch.ones(3, 4), torch.arange(3)), ("student", "4 numbers a row")),
    (lambda: CRDLoss(4, 4, torch.arange(4), n=2)(torch.ones(2, 4), torch.ones(2, 4), torch.tensor([0, 4])), ("index", "0..3")),
    (lambda: IndexBank(4, 4).push(torch.ones(1, 4), torch.zeros(1), torch.zeros(1).long()), ("keys", "float32")),
    (lambda: Queue(4, 4).push(torch.ones(1, 3), torch.zeros(1).long()), ("rows", "4 numbers a row")),
])
def test_bad_requests_say_what_is_expected(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), str(error.value)


def test_public_names():
    assert {"info_nce", "supervised_info_nce", "CRDLoss", "Critic", "Queue", "IndexBank"} <= set(contrastive.__all__)
