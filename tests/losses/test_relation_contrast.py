"""Contrast of relations:
the formula as loops in float64 for every option, invariances, who learns, and what is remembered.
"""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from kdnotes.losses.contrastive import Head, IndexBank, Queue
from kdnotes.losses.relation_contrast import Difference, FeatureRelation, RelationContrast, RelationHead

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 1, 0, 2, 1, 0, 2])


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def made(d_s=3, d_t=4, n=7, seed=0, **options):
    """A model in eval mode whose memories hold the training set's embeddings."""
    torch.manual_seed(seed)
    model = RelationContrast(d_s, d_t, LABELS, n=n, p=6, length=len(LABELS), **options).double().eval()
    for side, dim in (("teacher", d_t), ("student", d_s)):
        if side in model.sides:
            model.fill(normal(9, len(LABELS), dim), side)
    return model


def relation(head, a, b):
    """One unit relation vector, straight from its definition."""
    if isinstance(head, Difference):
        u = F.normalize(head.g_j.linear(b), dim=0) - F.normalize(head.g_i.linear(a), dim=0)
        return u / u.norm()
    r = head.relation
    hidden = (r.in_i.weight @ a + r.in_i.bias) - (r.in_j.weight @ b + r.in_j.bias)
    v = head.h(r.out(torch.clamp(hidden, min=0)))
    return v / v.norm()


@torch.no_grad()
def by_loops(model, s, t, index, drawn, norm):
    """-log h(true) - sum over chance pairs of log(1 - h), mean over i != j; Z from the scores of this very batch."""
    total, m = 0.0, len(LABELS)
    for name, side in model.sides.items():
        scores = {}
        for i, j in itertools.permutations(range(len(s)), 2):
            v_t, v_ts = relation(model.within, t[i], t[j]), relation(model.across, t[i], s[j])
            chance = []
            for k in [k for k in drawn[name] if side.bank.keys[k] != LABELS[index[j]]][: side.n]:
                row = side.bank.rows[k]
                chance.append(v_ts @ relation(model.within, t[i], row)
                              if name == "teacher" else v_t @ relation(model.across, t[i], row))
            scores[i, j] = (float(v_t @ v_ts), [float(x) for x in chance])
        tau = side.critic.temperature
        Z = math.exp(float(side.critic.log_Z)) if norm == "crd" else 1.0
        for true, chance in scores.values():
            n = len(chance)
            P = [math.exp(x / tau) / Z for x in (true, *chance)]
            h = [p / (p + n / m) for p in P]
            total += (-math.log(h[0]) - sum(math.log(1 - x) for x in h[1:])) / len(scores)
    return total


# 1: the factored computation is the formula
@pytest.mark.parametrize("norm, sides", itertools.product(["crd", "none"], ["teacher", "student", "both"]))
def test_the_loss_equals_its_double_loop(norm, sides):
    model, s, t, index = made(norm=norm, sides=sides), normal(1, 5, 3), normal(2, 5, 4), torch.tensor([3, 0, 7, 4, 11])
    value = model(s, t, index, torch.Generator().manual_seed(5)).item()
    generator, drawn = torch.Generator().manual_seed(5), {}
    for name, side in model.sides.items():
        drawn[name] = torch.randperm(len(LABELS), generator=generator)[: side.size].tolist()
    assert abs(value - by_loops(model, s, t, index, drawn, norm)) < 1e-10


@pytest.mark.parametrize("options", [{"tie": True, "sides": "both"}, {"share_in": True}, {"relation": "difference"},
                                     {"bank": "index"}, {"relation": "difference", "sides": "both"}])
def test_every_reading_equals_its_double_loop(options):
    model, s, t, index = made(**options), normal(1, 4, 3), normal(2, 4, 4), torch.tensor([3, 0, 7, 4])
    value = model(s, t, index, torch.Generator().manual_seed(5)).item()
    generator, drawn = torch.Generator().manual_seed(5), {}
    for name, side in model.sides.items():
        drawn[name] = torch.randperm(len(LABELS), generator=generator)[: side.size].tolist()
    assert abs(value - by_loops(model, s, t, index, drawn, "crd")) < 1e-10


# 2 and 19: a module that sees no difference between relations knows nothing
def test_an_uninformative_critic_costs_its_closed_form():
    model, s, t = made(n=4, sides="both"), normal(1, 5, 3), normal(2, 5, 4)
    for head in (model.within, model.across):
        torch.nn.init.zeros_(head.relation.out.weight)
        torch.nn.init.zeros_(head.h.weight)                                # every relation vector is h's bias
    value = model(s, t, torch.arange(5)).item()
    assert abs(value - 2 * (5 * math.log(5) - 4 * math.log(4))) < 1e-9


# 6: what scale does and does not change
@pytest.mark.parametrize("head", ["within", "across"])
def test_the_length_of_a_relation_is_of_no_consequence(head):
    model, s, t, g = made(), normal(1, 5, 3), normal(2, 5, 4), lambda: torch.Generator().manual_seed(0)
    value = model(s, t, torch.arange(5), g())
    with torch.no_grad():
        getattr(model, head).h.weight.mul_(7.3)
        getattr(model, head).h.bias.mul_(7.3)
    assert_close(model(s, t, torch.arange(5), g()), value)
    assert abs(model(2 * s, t, torch.arange(5), g()) - value) > 1e-6       # embeddings meet biases


# 7: who learns
@pytest.mark.parametrize("sides, bank", itertools.product(["teacher", "both"], ["queue", "index"]))
def test_teacher_memories_and_z_are_constants(sides, bank):
    torch.manual_seed(0)
    model = RelationContrast(3, 4, LABELS, n=5, p=6, sides=sides, bank=bank)
    s, t = normal(1, 5, 3, dtype=torch.float32).requires_grad_(), normal(2, 5, 4, dtype=torch.float32).requires_grad_()
    for _ in range(2):
        model(s, t, torch.arange(5)).backward()
    assert t.grad is None and s.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert not any(b.requires_grad or b.grad is not None for b in model.buffers())


def test_a_shared_input_map_has_no_use_for_its_bias():
    model, s, t = made(share_in=True), normal(1, 5, 3), normal(2, 5, 4)
    model(s, t, torch.arange(5)).backward()
    assert model.within.relation.in_i.bias.grad.abs().max() < 1e-12
    assert model.within.relation.in_i.weight.grad.abs().sum() > 0


def test_tied_modules_share_all_but_the_students_map():
    model = RelationContrast(3, 4, LABELS, p=6, tie=True)
    assert model.across.relation.out is model.within.relation.out and model.across.h is model.within.h
    assert model.across.relation.in_i is model.within.relation.in_i
    assert model.across.relation.in_j is not model.within.relation.in_j
    untied = RelationContrast(3, 4, LABELS, p=6)
    assert sum(p.numel() for p in untied.parameters()) > sum(p.numel() for p in model.parameters())


# 8: dimensions may differ, and a relation has a direction
@pytest.mark.parametrize("share_in", [False, True])
def test_relations_are_directed(share_in):
    module, a, b = FeatureRelation(5, 5, p=8, share_in=share_in).double(), normal(0, 5), normal(1, 5)
    assert not torch.allclose(module(a, b), module(b, a))
    assert FeatureRelation(5, 3)(torch.ones(2, 1, 5), torch.ones(4, 3)).shape == (2, 4, 128)


def test_folded_outer_maps_are_the_two_maps():
    head, a, b = RelationHead(5, 3, p=8).double(), normal(0, 6, 5), normal(1, 7, 3)
    assert_close(head(a[:, None], b), F.normalize(head.h(head.relation(a[:, None], b)), dim=-1))
    difference = Difference(Head(5, 8), Head(3, 8)).double()
    assert_close(difference(a[:, None], b).norm(dim=-1), torch.ones(6, 7, dtype=torch.float64))


# 10: chance pairs are wrong pairs, n of them
def test_chance_pairs_are_of_another_class_and_n_of_them():
    labels = torch.arange(4000) % 10
    model = RelationContrast(3, 4, labels, n=128, p=6, length=4000)
    model.fill(normal(0, 4000, 4, dtype=torch.float32))
    side = model.sides["teacher"]
    for _ in range(5):
        keys = torch.arange(10)
        k, valid = side.draw(keys, None)
        assert len(k) < 200 and (valid.sum(1) == 128).all()


# 11: memories
def test_the_queue_is_fed_by_training_alone():
    model = RelationContrast(3, 4, LABELS, n=5, p=6, length=8, sides="both")
    s, t = normal(1, 5, 3, dtype=torch.float32), normal(2, 5, 4, dtype=torch.float32)
    for start in (0, 5):
        model(s, t, torch.arange(start, start + 5))
    teacher, student = model.sides["teacher"].bank, model.sides["student"].bank
    assert isinstance(teacher, Queue) and teacher.pushed == student.pushed == 10
    assert sorted(teacher.keys.tolist()) == sorted(LABELS[2:10].tolist())
    model.eval()(s, t, torch.arange(5))
    assert teacher.pushed == 10


def test_an_index_bank_can_start_full():
    model, e = RelationContrast(3, 4, LABELS, n=5, p=6, bank="index"), normal(0, 12, 4, dtype=torch.float32)
    model.fill(e)
    bank = model.sides["teacher"].bank
    assert isinstance(bank, IndexBank) and bank.rows.equal(e) and bank.keys.equal(LABELS)
    model(normal(1, 2, 3, dtype=torch.float32), 5 * e[:2], torch.tensor([7, 1]))
    assert bank.rows[[7, 1]].equal(5 * e[:2]) and bank.rows[0].equal(e[0])


def test_a_queue_starts_full_of_every_class_where_the_set_is_sorted_by_class():
    labels = torch.arange(10).repeat_interleave(1000)
    rows = F.one_hot(labels, 10).float()
    banks = []
    for _ in range(2):
        model = RelationContrast(3, 10, labels, n=256, p=6)
        before = torch.get_rng_state()
        model.fill(rows)
        assert torch.get_rng_state().equal(before)                         # the order is drawn from a generator of its own
        banks.append(model.sides["teacher"].bank)
    bank, again = banks
    assert len(bank.keys) == 4096 and bank.rows.argmax(1).equal(bank.keys)    # each row beside its own key
    assert bank.keys.bincount(minlength=10).min() > 300                    # 410 on average
    assert bank.keys.equal(again.keys) and bank.rows.equal(again.rows)


# 12: the order of a batch is of no consequence
def test_a_permuted_batch_costs_the_same():
    model, s, t, index = made(sides="both"), normal(1, 5, 3), normal(2, 5, 4), torch.tensor([3, 0, 7, 4, 11])
    order = torch.tensor([4, 2, 0, 3, 1])
    value = model(s, t, index, torch.Generator().manual_seed(5))
    assert_close(model(s[order], t[order], index[order], torch.Generator().manual_seed(5)), value)


def test_random_anchors_estimate_the_loss_of_all():
    model, s, t, index = made(), normal(1, 6, 3), normal(2, 6, 4), torch.arange(6)
    model(s, t, index)                                                     # settles Z
    few = made(anchors=2)
    few.load_state_dict(model.state_dict())
    every = torch.stack([model(s, t, index).detach() for _ in range(400)]).mean()
    some = torch.stack([few(s, t, index).detach() for _ in range(400)]).mean()
    assert abs(some / every - 1) < 0.05


def test_gradients_and_half_precision():
    model, t = made(norm="none"), normal(2, 4, 4)
    assert torch.autograd.gradcheck(lambda s: model(s, t, torch.arange(4), torch.Generator().manual_seed(0)),
                                    normal(1, 4, 3).requires_grad_())
    single = made().float()
    s, t = normal(1, 5, 3, dtype=torch.float32), normal(2, 5, 4, dtype=torch.float32)
    exact = single(s, t, torch.arange(5), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rough = single(s, t, torch.arange(5), torch.Generator().manual_seed(0))
    assert rough.dtype == torch.float32 and abs(rough / exact - 1) < 0.1


@pytest.mark.parametrize("call, words", [
    (lambda: FeatureRelation(4, 3, share_in=True), ("share_in", "4 and 3")),
    (lambda: RelationContrast(3, 4, LABELS, relation="sum"), ("'sum'", "'module'", "'difference'")),
    (lambda: RelationContrast(3, 4, LABELS, sides="none"), ("'none'", "'teacher'")),
    (lambda: RelationContrast(3, 4, LABELS, bank="list"), ("'list'", "'queue'")),
    (lambda: RelationContrast(3, 4, LABELS, norm="Z"), ("'Z'", "'crd'")),
    (lambda: RelationContrast(3, 4, LABELS, n=0), ("n is 0",)),
    (lambda: RelationContrast(3, 4, LABELS, temperature=-1.0), ("temperature", "above 0")),
    (lambda: RelationContrast(3, 4, torch.zeros(9, dtype=torch.long)), ("two classes",)),
    (lambda: RelationContrast(3, 4, LABELS)(torch.ones(3, 3), torch.ones(2, 4), torch.arange(3)), ("3 rows", "2")),
    (lambda: RelationContrast(3, 4, LABELS)(torch.full((2, 3), math.nan), torch.ones(2, 4), torch.arange(2)),
     ("student holds NaN",)),
    (lambda: RelationContrast(3, 4, LABELS)(torch.ones(1, 3), torch.ones(1, 4), torch.arange(1)), ("one sample", "at least 2")),
    (lambda: RelationContrast(3, 4, LABELS)(torch.ones(2, 4), torch.ones(2, 4), torch.arange(2)), ("student", "3 numbers a row")),
    (lambda: RelationContrast(3, 4, LABELS)(torch.ones(2, 3), torch.ones(2, 4), torch.tensor([0, 12])), ("index run from 0 to 12", "0..11")),
    (lambda: RelationContrast(3, 4, LABELS).fill(torch.ones(2, 4)), ("2 embeddings", "12 training samples")),
    (lambda: RelationContrast(3, 4, LABELS).fill(torch.ones(12, 4), "student"), ("side is 'student'", "'teacher'")),
])
def test_bad_requests_say_what_is_expected(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), str(error.value)


def test_memory_goes_by_how_many_keys_there_are_and_not_by_the_largest():
    s, t = normal(1, 4, 3, dtype=torch.float32), normal(2, 4, 4, dtype=torch.float32)
    values = []
    for keys in (LABELS, LABELS * 10**12, LABELS.to(torch.uint8)):
        torch.manual_seed(0)
        model = RelationContrast(3, 4, keys, n=5, p=6)
        values.append(model(s, t, torch.arange(4), torch.Generator().manual_seed(3)).detach())
    assert values[0] == values[1] == values[2]
