"""AIRD: closed forms of its losses, the wiring of teacher and student, adaptation, and the protocol."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdnotes.crossres import Views, both_views
from kdnotes.data.protocols import FaceSets, Pairs, verification_pairs
from kdnotes.data.degrade import low_resolution
from kdnotes.data.imageset import to_float
from kdnotes.losses.contrastive import info_nce, supervised_info_nce
from kdnotes.losses.margin import ArcFace, CosFace, arc_margin, cos_margin
from kdnotes.losses.relational import pair_loss, triplet_cosines, triplet_loss
from kdnotes.metrics.verify import judge_folds, tar_at_far
from kdnotes.models.adapt import FaceBN
from kdnotes.papers import aird
from kdnotes.papers.aird import Config, Learner, Look, Recipe, Stream, instance_loss, relation_loss
from kdnotes.results import reported
from kdnotes.parallel import Place
from kdnotes.runtime import make_fabric
from kdnotes.train import fit

EVERYTHING = Recipe(instance=10, relation=2, kd=1, hint=1, sp=300, crd=0.8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place("cpu", "32-true", tmp_path_factory.mktemp("aird"))


@pytest.fixture
def config():
    return Config.profile("smoke", seeds=(0,), steps=3, teacher_steps=3, closed_steps=3)


def embeddings(n=6, d=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=generator, dtype=dtype) for _ in "st")


def rotation(d=4, seed=3):
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q


# 1: margins
def test_the_margin_losses_by_hand():
    cosines, label = torch.tensor([[0.8, 0.1, -0.2]], dtype=torch.float64), torch.tensor([0])
    assert math.isclose(F.cross_entropy(10 * cos_margin(cosines, label, 0.35), label), 0.0312087, rel_tol=1e-5)
    assert math.isclose(arc_margin(cosines, label, 0.5)[0, 0], 0.4144107, rel_tol=1e-6)
    assert math.isclose(F.cross_entropy(10 * arc_margin(cosines, label, 0.5), label), 0.0442575, rel_tol=1e-5)
    assert math.isclose(F.cross_entropy(10 * cosines, label), 0.00095682, rel_tol=1e-5)


@pytest.mark.parametrize(("margin", "kind"), [("cosface", CosFace), ("arcface", ArcFace)])
def test_identities_are_told_apart_by_the_chosen_margin_and_classes_by_none(config, place, margin, kind):
    config = replace(config, margin=margin)
    for task, m in (("open", config.m), ("closed", 0.0)):
        head = aird.new_network(Stream(task, 0, low=8 if task == "open" else 4), config, aird.people_of(config, task, 0, place)).head
        assert type(head) is kind and head.margin == m and head.scale == config.scale


# 2: the instance loss
def test_the_instance_loss_by_hand():
    s, t = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True), torch.tensor([[4.0, 3.0]], dtype=torch.float64, requires_grad=True)
    loss = instance_loss(s, t)
    gradient, = torch.autograd.grad(loss, s, retain_graph=True)
    assert math.isclose(loss.detach(), 0.08, rel_tol=1e-12) and math.isclose(instance_loss(17 * s.detach(), t), 0.08, rel_tol=1e-12)
    assert abs(float((gradient * s.detach()).sum())) < 1e-15
    loss.backward()
    assert t.grad is None
    a, b = embeddings()
    slow = sum(2 - 2 * float(F.cosine_similarity(x, y, dim=0)) for x, y in zip(a, b)) / 6
    assert math.isclose(instance_loss(a, b), slow, rel_tol=1e-10)


# 3: InfoNCE
def test_info_nce_by_hand():
    eye = torch.eye(4, dtype=torch.float64)
    assert math.isclose(instance_loss(eye, eye, "nce", 0.1), 1.361905e-4, rel_tol=1e-6)
    assert math.isclose(instance_loss(torch.ones(4, 3), torch.ones(4, 3), "nce"), math.log(4), rel_tol=1e-6)


# 4: the relation loss
def test_the_relation_loss_by_hand_and_what_it_does_not_see():
    two, labels = torch.eye(2, dtype=torch.float64).repeat_interleave(2, 0), torch.tensor([0, 0, 1, 1])
    assert math.isclose(relation_loss(two, two, labels), 0.6931926, abs_tol=5e-8)
    s, t = embeddings()
    y, turn, order = torch.tensor([0, 1, 0, 2, 1, 2]), rotation(), torch.tensor([3, 1, 5, 0, 4, 2])
    assert torch.isclose(relation_loss(s, t, torch.arange(6)), info_nce(s, t, 0.1))
    assert torch.isclose(relation_loss(s @ turn, t @ turn, y), relation_loss(s, t, y))
    assert torch.isclose(relation_loss(s[order], t[order], y[order]), relation_loss(s, t, y))
    assert abs(relation_loss(s @ turn, t, y) - relation_loss(s, t, y)) > 0.1          # it aligns the spaces ...
    assert torch.isclose(relation_loss(s @ turn, t, y, "rkd"), relation_loss(s, t, y, "rkd"))     # ... and distances and angles do not
    assert torch.isclose(relation_loss(s, t, y), supervised_info_nce(s, t, y, 0.1))


def test_similarity_distributions_by_a_slow_loop():
    s, t = embeddings()
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        p_t, p_s = (torch.softmax(torch.stack([F.cosine_similarity(x[i], t[j], dim=0) / 0.2 for j in others]), 0) for x in (t, s))
        total += float((p_t * (p_t / p_s).log()).sum())
    assert math.isclose(aird.similarity_kl(s, t, 0.2, 0.2), total / 6, rel_tol=1e-9)
    assert aird.similarity_kl(5 * t, t) < 1e-12 and aird.similarity_kl(s, t) > 0
    turn = rotation()
    assert torch.isclose(aird.similarity_kl(s @ turn, t @ turn), aird.similarity_kl(s, t))


# 6: distances and angles
def test_relational_distances_and_angles_by_hand():
    t = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    s = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]], dtype=torch.float64)
    assert math.isclose(pair_loss(s, t), 0.0138889, abs_tol=5e-8) and math.isclose(9 / 6 * pair_loss(s, t), 0.0208333, abs_tol=5e-8)
    assert math.isclose(triplet_loss(s, t), 0.0129630, abs_tol=5e-8) and math.isclose(27 / 6 * triplet_loss(s, t), 0.0583333, abs_tol=5e-7)
    cosines = triplet_cosines(t)
    assert torch.allclose(torch.stack([cosines[0, 1, 2], cosines[1, 0, 2], cosines[2, 0, 1]]), torch.tensor([0, 0.6, 0.8], dtype=torch.float64))
    copy = 7 * t @ rotation(2) + 3
    assert pair_loss(copy, t) < 1e-15 and triplet_loss(copy, t) < 1e-15 and relation_loss(copy, t, torch.arange(3), "rkd") < 1e-12


# 5: the teacher stays as it is
def test_nothing_of_the_teacher_moves_in_an_epoch(config, place):
    stream = Stream("open", 0, EVERYTHING, config.low)
    people = aird.people_of(config, "open", 0, place)
    teacher = aird.new_network(Stream("open", 0), config, people).eval()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    moving = replace(config, flip=True)                                  # then the teacher looks at every batch anew
    for setting in (config, moving):
        batches = aird.batches_of(stream, setting, people, teacher, torch.device("cpu"))
        learner = Learner(aird.new_network(stream, setting, people), stream.recipe, setting, config.dim, people.student.labels)
        step = lambda module, batch: aird.total_loss(stream.recipe, module, "low", batch)
        fit(learner, batches, step, optimizer=torch.optim.SGD(learner.parameters(), 0.01), epochs=1, fabric=make_fabric("cpu"))
    after = teacher.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items()) and all(p.grad is None for p in teacher.parameters())
    batch = next(iter(batches)) | {"teacher.features": torch.randn(24, config.dim, requires_grad=True), "teacher.logits": torch.randn(24, 16, requires_grad=True)}
    aird.total_loss(stream.recipe, learner, "low", batch)["loss"].backward()
    assert batch["teacher.features"].grad is None and batch["teacher.logits"].grad is None


# 15: both views of a face share the augmentation
def test_the_low_view_is_the_high_view_degraded():
    images = torch.randint(0, 256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    zero, one = torch.zeros(3), torch.ones(3)
    views = both_views(images, Views(8, "area", restore=False, flip=True, padding=3), zero, one, torch.Generator().manual_seed(1))
    assert torch.equal(views["low"], low_resolution(views["high"], size=8, mode="area")) and views["low"].shape[-1] == 8
    assert not torch.equal(views["high"], to_float(images))


def test_the_answers_of_the_teacher_travel_with_their_faces(config, place):
    people = aird.people_of(config, "open", 0, place)
    teacher = aird.new_network(Stream("open", 0), config, people).eval()
    for flip in (False, True):
        for batch in aird.batches_of(Stream("open", 0, EVERYTHING, 8), replace(config, flip=flip), people, teacher, torch.device("cpu")):
            with torch.no_grad():
                assert torch.allclose(teacher(batch["high"]).features, batch["teacher.features"], atol=1e-4)
            assert batch["labels"].bincount().unique().tolist() in ([config.per_class], [0, config.per_class])


# the terms
@pytest.mark.parametrize("kind", aird.RELATIONS)
def test_every_relation_trains_the_student(config, place, kind):
    people = aird.people_of(config, "open", 0, place)
    recipe, teacher = Recipe(instance=10, relation=2, rld=kind), aird.new_network(Stream("open", 0), config, people).eval()
    stream = Stream("open", 0, recipe, config.low)
    learner = Learner(aird.new_network(stream, config, people), recipe, replace(config, dim=config.dim), config.dim, people.student.labels)
    terms = aird.total_loss(recipe, learner, "low", next(iter(aird.batches_of(stream, config, people, teacher, torch.device("cpu")))))
    assert set(terms) == {"loss", "identity", "instance", "relation"} and torch.isclose(terms["loss"], terms["identity"] + terms["instance"] + terms["relation"])
    terms["relation"].backward()
    assert learner.network.embedder.trunk[0][0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("anchors", "kept"), [(16, 16), (0, None)])
def test_relation_vectors_are_contrasted_for_some_anchors_or_for_all(config, place, anchors, kept):
    people, recipe = aird.people_of(config, "open", 0, place), Recipe(relation=2, rld="crrcd")
    network = aird.new_network(Stream("open", 0, recipe, 8), config, people)
    assert Learner(network, recipe, replace(config, anchors=anchors), config.dim, people.student.labels).memory["relation"].anchors == kept


def test_a_weight_of_zero_removes_the_computation(config, place, monkeypatch):
    people, asked = aird.people_of(config, "open", 0, place), []
    monkeypatch.setattr(aird, "term_loss", lambda term, *rest: asked.append(term) or torch.zeros(()))
    batch = {"low": torch.rand(4, 3, 8, 8), "labels": torch.arange(4), "teacher.features": torch.rand(4, config.dim), "teacher.logits": torch.rand(4, 16)}
    for recipe, expected in ((Recipe(), []), (replace(EVERYTHING, kd=0), ["instance", "relation", "hint", "sp", "crd"])):
        learner = Learner(aird.new_network(Stream("open", 0, recipe, 8), config, people), recipe, config, config.dim, people.student.labels)
        terms = aird.total_loss(recipe, learner, "low", batch)
        assert asked == expected and set(terms) == {"loss", "identity", *expected}
    assert "identity" not in aird.total_loss(replace(EVERYTHING, identity=0), learner, "low", batch)


def test_a_map_is_learnt_where_dimensions_differ_and_dropped_afterwards(config, place):
    people = aird.people_of(config, "open", 0, place)
    network = aird.new_network(Stream("open", 0, EVERYTHING, 8), config, people)
    assert isinstance(Learner(network, EVERYTHING, config, config.dim, people.student.labels).g, nn.Identity)
    assert Learner(network, Recipe(), config, 40, people.student.labels)(torch.rand(4, 3, 8, 8), torch.arange(4))[1].shape == (4, 40)
    kept = aird.learn(Stream("open", 0, EVERYTHING, 8), config, place)
    assert kept.state_dict().keys() == network.state_dict().keys() and not any(p.requires_grad for p in kept.parameters()) and not kept.training


# the protocol
def test_nobody_is_on_both_sides(config, place):
    people = aird.people_of(config, "open", 0, place)
    rows = {part: {tuple(x.flatten()[:60].tolist()) for x in getattr(people, part).images} for part in people._fields[:4]}
    assert not rows["test"] & (rows["teacher"] | rows["known"]) and not rows["known"] & rows["teacher"] and rows["student"] < rows["teacher"]
    assert [len(part.classes) for part in people[:4]] == [config.teacher_people, config.student_people, config.student_people, config.test_people]
    assert len(people.known) == config.known * config.student_people and len(people.teacher) == config.per_identity * config.teacher_people
    first = people.teacher.labels < config.student_people
    assert torch.equal(people.teacher.images[first], people.student.images) and torch.equal(people.teacher.labels[first], people.student.labels)
    other = aird.people_of(config, "open", 1, place)
    assert not torch.equal(other.test.images, people.test.images)


def test_real_faces_keep_the_protocol_of_their_set(config, place, monkeypatch):
    own = aird.open_set(config, 0, place)
    learnt = own.teacher.take(torch.arange(len(own.teacher)))
    prescribed = Pairs(torch.tensor([0, 1]), torch.tensor([1, 9]), torch.tensor([True, False]), 2)
    monkeypatch.setattr(aird, "face_sets", lambda dataset, size, least, people: FaceSets(learnt, own.test, prescribed))
    real = replace(config, dataset="lfw", per_identity=0, known=1)
    people = aird.open_set(real, 5, place)
    assert people.test is own.test and len(people.known) == config.student_people and len(people.teacher) == config.teacher_people * (config.per_identity - 1)
    assert people.pairs is prescribed and aird.pairs_of(people, real, 5).pairs is prescribed and aird.pairs_of(people, real, 5).known_pairs is None
    drawn = aird.people_of(config, "open", 0, place)
    assert len(drawn.pairs.same) == config.pairs and 0 < len(drawn.known_pairs.same) <= config.pairs
    monkeypatch.setattr(aird, "face_sets", lambda dataset, size, least, people: FaceSets(learnt))
    split = aird.open_set(replace(real, dataset="orl", teacher_people=12, student_people=8, test_people=4, batch_size=16), 5, place)
    assert split.pairs is None and [len(part.classes) for part in split[:4]] == [12, 8, 8, 4]


def test_the_report_has_nothing_to_show_as_reported():
    from kdnotes.report.page import reported_html

    assert reported_html("aird") == ""


def test_the_closed_set_gives_a_few_labels_and_other_ones_for_each_seed(config, place):
    a, b = (aird.people_of(config, "closed", seed, place) for seed in (0, 1))
    assert a.student.labels.bincount().tolist() == [config.closed_labels] * 10 and len(a.teacher) == 1442 and len(a.test) == 355
    assert not torch.equal(a.student.images, b.student.images)


# 12 and 13: the measures
def test_verification_by_hand():
    same = torch.tensor(([True] * 30 + [False] * 30) * 10)
    assert judge_folds(same.double(), same).accuracy.eq(1).all()
    noise = torch.randn(600, generator=torch.Generator().manual_seed(0))
    assert abs(judge_folds(noise, same).accuracy.mean() - 0.5) < 0.1
    fold = torch.arange(600) // 60
    flipped = torch.where(fold == 2, same.roll(30), same)
    assert torch.equal(judge_folds(noise + same, same).threshold[2], judge_folds(noise + same, flipped).threshold[2])


def test_true_accepts_at_a_rate_of_false_ones_by_hand():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.1, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, -0.1, -0.2, -0.3])
    found = tar_at_far(scores, torch.arange(14) < 4, (0.0, 0.1, 0.5, 0.6))
    assert found == {0.0: 0.75, 0.1: 0.75, 0.5: 0.75, 0.6: 1.0}


def test_perfect_embeddings_are_recognised_perfectly():
    labels = torch.arange(12).repeat_interleave(6)
    found = aird.recognition(torch.eye(12)[labels], labels, verification_pairs(labels, 120, 3, 0))
    assert found == {"verification_accuracy": 100, "auc": 100, "equal_error_rate": 0, "tar_at_far_0.1": 100, "rank1": 100, "rank5": 100}


# adaptation
def test_predictions_come_back_in_the_order_of_the_images(config, place):
    people = aird.people_of(config, "open", 0, place)
    network = aird.new_network(Stream("open", 0, Recipe(), 8), config, people).eval()
    x = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        plain = network(x)
    assert torch.allclose(aird.adapted(network, x, order, Look(batch=7)).features, plain.features, atol=1e-5)
    with torch.no_grad(), FaceBN(network, "prediction"):
        whole = network(x)
    for look in (Look(adaptation="FaceBN"), Look(adaptation="FaceBN", batch=7), Look(adaptation="prediction-time BN")):
        assert torch.allclose(aird.adapted(network, x, order, look).features, whole.features, atol=1e-4)
    for name in aird.ADAPTATIONS:
        found = aird.adapted(network, x, order, Look(adaptation=name, batch=5))
        assert found.features.shape == plain.features.shape and found.features.isfinite().all()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("adaptation", ["none", "FaceBN"])
def test_a_large_test_set_goes_through_in_parts_with_the_same_answers(config, place, monkeypatch, adaptation):
    people = aird.people_of(config, "open", 0, place)
    network = aird.new_network(Stream("open", 0, Recipe(), 8), config, people).eval()
    x, order = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(50)
    whole = aird.adapted(network, x, order, Look(adaptation=adaptation)).features
    monkeypatch.setattr(aird, "AT_ONCE", 1000)
    monkeypatch.setattr(aird, "PART", 16)
    assert aird.batch_of(Look(adaptation=adaptation), x) == 16 and aird.batch_of(Look(adaptation="prediction-time BN"), x) == 50 and aird.batch_of(Look(batch=4), x) == 4
    assert torch.allclose(aird.adapted(network, x, order, Look(adaptation=adaptation)).features, whole, atol=1e-4)


def test_faces_arrive_shuffled_or_person_by_person():
    labels = torch.arange(5).repeat(4)
    shuffled, sorted_ = (aird.arrival(labels, order, 0) for order in ("shuffled", "by identity"))
    assert shuffled.sort().values.equal(torch.arange(20)) and labels[sorted_].equal(labels.sort().values) and not labels[shuffled].equal(labels.sort().values)


def test_shifts_are_what_they_say():
    x = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    shifted = {name: shift(x, torch.Generator().manual_seed(1)) for name, shift in aird.SHIFTS.items()}
    assert torch.equal(shifted["clean"], x) and torch.allclose(shifted["dark"], 0.35 * x + 0.02) and torch.allclose(shifted["bright"], 0.5 * x + 0.5)
    assert torch.allclose(shifted["blur"][:, :, 2, 2], x[:, :, 1:4, 1:4].mean((2, 3))) and torch.allclose(aird.blurred(torch.full((1, 1, 4, 4), 0.3)), torch.tensor(0.3))
    assert all(0 <= float(y.min()) and float(y.max()) <= 1 for y in shifted.values())


# the study
def test_every_row_and_claim_is_planned(config):
    rows = aird.trials(config)
    tables = {row.table for row in rows}
    assert tables == {"T1 verification", "T2 identification", "T3 ablation", "variants", "adaptation", "layers", "batch size", "rho", "batch bias", "F1 resolution", "closed set"}
    methods = {table: {row.method for row in rows if row.table == table} for table in tables}
    assert {"teacher on high", "teacher fed low", "CE", "KD", "FitNet", "RKD", "SP", "CRD", "IlD", "RlD", "AIRD"} == methods["T1 verification"] == methods["closed set"]
    assert {"none", "FaceBN", "prediction-time BN", "alpha-BN", "TENT"} <= methods["adaptation"] and {f"RlD = {kind}" for kind in aird.RELATIONS} <= methods["variants"]
    shifts = {row.look.shift for row in rows if row.table == "T3 ablation"}
    assert shifts == {"none", "clean", "dark", "bright", "blur", "noise"}
    settings = [(row.table, row.method, row.setting, row.stream.seed) for row in rows]
    assert len(settings) == len(set(settings))


def test_every_claim_finds_its_rows(config):
    from kdnotes.results import Results, judge

    results = Results("aird", "smoke")
    rows = [row for seed in range(3) for row in aird.trials(replace(config, seeds=(seed,)))]
    for row in rows:
        for metric in aird.METRICS.get(row.table, ("verification_accuracy",)):
            results.add(row.table, "faces", row.method, metric, 50.0, row.stream.seed, dict(row.setting))
    judged = judge(aird.claims(config), results.frame())
    assert (judged.n == 3).all() and (judged.difference == 0).all()


def test_no_number_is_reported_and_the_tables_cope_with_that():
    from kdnotes.results import Results, compare

    assert reported("aird").empty
    results = Results("aird", "smoke")
    results.add("T1 verification", "faces", "CE", "verification_accuracy", 80.0, 0, {"low": 8})
    assert compare(results.frame(), reported("aird"), "T1 verification").filter(like="reported").eq("—").all(axis=None)


def test_a_second_run_trains_nothing_and_gives_the_same_numbers(tmp_path, monkeypatch):
    config = Config.profile("smoke", seeds=(0,), steps=2, teacher_steps=2, closed_steps=2, low_sweep=(), tasks=("closed",))
    monkeypatch.setattr(Place, "map", lambda self, function, items, desc="": [function(item) for item in items])
    fabric = make_fabric("cpu", "fp32")
    first = aird.run(config, fabric, tmp_path).frame()
    monkeypatch.setattr(aird, "fit", lambda *args, **kw: pytest.fail("trained again"))
    assert aird.run(config, fabric, tmp_path).frame().equals(first) and first.value.between(0, 100).all()


# native low resolution
NATIVE = {"dataset": "casia+tinyface+survface+scface+uccs", "seeds": (0,), "steps": 2, "teacher_steps": 2, "batch_size": 8, "per_class": 2, "subjects": 3, "adapt_on": 9,
          "size": 32, "low": 8, "low_sweep": (), "teacher": "smallface", "teacher_widths": (4, 8), "student": "smallface", "student_widths": (4, 8), "dim": 16,
          "negatives": 4, "padding": 0}


@pytest.fixture
def natives(tmp_path, face_layouts, monkeypatch):
    """A data root with CASIA-WebFace and every native set, but without LFW."""
    face_layouts.casia(tmp_path, {"a": 4, "b": 4, "c": 3, "d": 4, "e": 1})
    face_layouts.survface(tmp_path, repeat=5)
    for write in (face_layouts.tinyface, face_layouts.scface, face_layouts.uccs):
        write(tmp_path)
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path))
    return tmp_path


def test_a_biased_batch_holds_several_images_of_one_person():
    for config, expected in ((Config.profile("demo"), 14), (Config.profile("real"), 4), (Config.profile("real", dataset="orl"), 4)):
        assert {row.look.batch for row in aird.adaptation_tables(0, config) if row.table == "batch bias"} == {expected}


def test_students_of_casia_meet_native_faces_from_data_to_claims(natives, run_from_parameters, monkeypatch, tmp_path):
    """The whole notebook from its parameters on, on miniature sets in their true layouts; LFW is not asked for where it is not in the data set's name."""
    monkeypatch.setattr(Place, "map", lambda self, function, items, desc="": [function(item) for item in items])
    overrides = {name: value for name, value in NATIVE.items() if name not in ("dataset", "seeds")}
    space = run_from_parameters(aird, "import dataclasses", dataset="tinyface+survface+scface+uccs", out=str(tmp_path / "run"), overrides=overrides)
    config, frame, judged, folder = (space[name] for name in ("config", "frame", "judged", "folder"))
    assert config.parts == ("native",) and config.source == "casia_webface" and set(frame.table) == {"native low resolution"}
    assert set(frame.method) == {"teacher fed low", *aird.recipes(config)} and frame.value.between(0, 100).all()
    for name, metrics in aird.NATIVE_METRICS.items():
        assert set(metrics) <= set(frame[frame.dataset == name].metric)
    rank1 = frame[(frame.dataset == "scface") & (frame.metric == "rank1") & (frame.method == "AIRD")]
    assert set(rank1.setting) == {f"low=8;distance={d};adaptation={a}" for d in ("4.2", "2.6", "1") for a in ("none", "FaceBN", "FaceBN, mixed")}
    assert len(judged) == 4 * 4 + 1 and (judged.n == 1).all() and (judged.verdict == "inconclusive").all()
    made = {path.stem for kind in ("figures", "tables") for path in (folder.path / kind).iterdir()}
    assert {"native", "native-tinyface-search", "native-survface-search", "native-survface-pairs", "native-scface-search", "native-uccs-search"} <= made
    assert json.loads((folder.path / "manifest.json").read_text())["status"] == "finished"


def test_everybody_is_taken_without_a_copy_and_lfw_judges_where_it_is_named(natives, face_layouts, place):
    config = Config.profile("paper", **NATIVE | {"teacher_people": 0, "student_people": 0})
    assert config.parts == ("open", "native") and config.natives == ("tinyface", "survface", "scface", "uccs") and config.source == "casia"
    with pytest.raises(FileNotFoundError, match="lfw"):
        aird.open_set(config, 0, place)
    alone = replace(config, dataset="tinyface")
    people = aird.people_of(alone, "open", 0, place)
    assert people.test is None and people.pairs is None and people.student is people.teacher and len(people.teacher) == 15 and people.teacher.classes == tuple("abcd")
    assert aird.people_of(alone, "open", 1, place).teacher.images is people.teacher.images            # decoded once, whatever the seed
    face_layouts.lfw(natives)
    people = aird.open_set(config, 0, place)
    assert len(people.test) == 9 and people.pairs.folds == 2 and people.known is people.test
    some = aird.open_set(replace(config, teacher_people=3, student_people=2, batch_size=4), 0, place)
    assert len(some.teacher.classes) == 3 and len(some.student.classes) == 2
    assert {row.table for row in aird.trials(config)} >= {"T1 verification", "T2 identification", "native low resolution"}
    one = {row.stream: None for row in aird.trials(config) if row.table in ("T1 verification", "native low resolution")}
    assert len(one) == 1 + len(aird.recipes(config))                                                   # LFW and the native tests judge the same networks


@pytest.mark.parametrize(("dataset", "words"), [("casia", "CASIA-WebFace"), ("tinyface", "unpack the distributed tinyface.zip"), ("faces+scface", "mugshot_frontal_cropped_all"),
                                                ("casia+uccs", "lay the faces out as"), ("survface", "QMUL-SurvFace.zip")])
def test_a_run_without_its_faces_is_refused_before_it_starts(tmp_path, dataset, words):
    from kdnotes.batch.plan import check_data

    assert Config.profile("paper", dataset=dataset).dataset == dataset
    with pytest.raises(FileNotFoundError, match=f"the data of .* are not there .*{words}"):
        check_data(Config, dataset, tmp_path)
    check_data(Config, "faces", tmp_path)


def test_each_camera_has_statistics_of_its_own(config, place):
    from kdnotes.data.imageset import ImageSet

    people = aird.people_of(config, "open", 0, place)
    network = aird.new_network(Stream("open", 0, Recipe(), 8), config, people).eval()
    g = torch.Generator().manual_seed(0)
    images = [(shade * torch.rand(n, 3, 8, 8, generator=g)).to(torch.uint8) for shade, n in ((80, 30), (255, 20))]
    sides = tuple(ImageSet(x, torch.arange(len(x)) % 5, tuple("abcde")) for x in images)
    zero_one = (torch.zeros(3), torch.ones(3))
    ready = lambda x: aird.Prepared(x, 8, zero_one, batch=7)
    x = [to_float(side.images) for side in sides]

    def expected(seen, shown, mode="prediction"):
        with torch.no_grad(), FaceBN(network, "adabn") as face:
            if mode != "plain":
                face.adapt(seen)
            return network(shown).features

    before = {key: value.clone() for key, value in network.state_dict().items()}
    together, own = aird.Native(sides, None), aird.Native(sides, None, apart=True)
    adapt, mixed = Look(adaptation="FaceBN"), Look(adaptation="FaceBN", mixed=True)
    embed = lambda native, look, count=0: aird.native_embeddings(network, native, look, count, 0, ready)
    for native, look in ((together, adapt), (own, mixed)):
        assert all(torch.allclose(found, expected(torch.cat(x), part), atol=1e-4) for found, part in zip(embed(native, look), x))
    assert all(torch.allclose(found, expected(part, part), atol=1e-4) for found, part in zip(embed(own, adapt), x))
    assert all(torch.allclose(found, expected(None, part, "plain"), atol=1e-5) for found, part in zip(embed(own, Look()), x))
    assert torch.allclose(embed(own, adapt, 30)[0], embed(own, adapt)[0], atol=1e-5) and not torch.allclose(embed(own, adapt, 9)[0], embed(own, adapt)[0], atol=1e-3)
    assert embed(own, adapt)[0].requires_grad is False and not embed(own, adapt)[0].is_inference()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_prepared_images_are_what_the_network_would_be_shown():
    from kdnotes.data.degrade import interpolate

    images = torch.randint(0, 256, (11, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    statistics = (torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.1]))
    native, enlarged = aird.Prepared(images, 8, statistics, batch=4), aird.Prepared(images, 32, statistics, batch=4)
    for _ in range(2):                                                   # it can be read again
        assert torch.allclose(torch.cat(list(native)), (to_float(images) - statistics[0][:, None, None]) / statistics[1][:, None, None])
        assert [len(part) for part in enlarged] == [4, 4, 3] and len(enlarged) == 3
    whole = interpolate(to_float(images), (32, 32), "bilinear", antialias=False)
    assert torch.allclose(torch.cat(list(enlarged)), (whole - statistics[0][:, None, None]) / statistics[1][:, None, None], atol=1e-5)


def test_a_single_last_image_does_not_stop_tent(config, place):
    people = aird.people_of(config, "open", 0, place)
    network = aird.new_network(Stream("open", 0, Recipe(), 8), config, people).eval()
    found = aird.adapted(network, torch.rand(9, 3, 8, 8), torch.arange(9), Look(adaptation="TENT", batch=4))
    assert found.features.shape == (9, config.dim) and found.features.isfinite().all()


# 16: the ordering that is far outside the noise
@pytest.mark.slow
def test_adaptation_brings_a_darkened_world_back(place):
    config = Config.profile("demo", student_people=40, teacher_people=40, test_people=30, steps=120, pairs=600)
    gains = {shift: [] for shift in ("dark", "bright")}
    for seed in range(5):
        stream = Stream("open", seed, Recipe(), config.low)
        for shift, found in gains.items():
            plain, adapted = aird.measure((stream, (Look(shift), Look(shift, "FaceBN"))), config, place)
            found.append(adapted["auc"] - plain["auc"])
    assert min(sum(found) / 5 for found in gains.values()) > 1, gains


@pytest.mark.slow
def test_distillation_does_not_hurt_on_clean_digits_with_all_labels(place):
    config = Config.profile("demo", closed_labels=0, closed_steps=200)
    found = {name: [aird.measure((Stream("closed", seed, aird.recipes(config)[name], config.closed_low), (Look(),)), config, place)[0]["accuracy"] for seed in range(2)] for name in ("CE", "AIRD")}
    assert sum(found["AIRD"]) / 2 > sum(found["CE"]) / 2 - 1, found


# bad input
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"low": 2}, "low=2 must be at least 4"),
        ({"low": 64}, "must not exceed the high resolution"),
        ({"student": "smalface"}, "did you mean 'smallface'"),
        ({"margin": "cosfaces"}, "did you mean 'cosface'"),
        ({"rld": "contrst"}, "did you mean 'contrast'"),
        ({"ild": "nse"}, "unknown instance loss 'nse'"),
        ({"tasks": ("opn",)}, "did you mean 'open'"),
        ({"tasks": ()}, "nothing to do"),
        ({"teacher_people": 10}, "teacher_people=10 must be at least 60"),
        ({"student_people": 1}, "student_people=1 must be at least 2"),
        ({"dataset": "faces+lfw"}, "names several sets to learn from; expected one of them, and native tests: tinyface"),
        ({"dataset": "tinyface", "tasks": ("open",)}, "leave nothing to do for dataset='tinyface'"),
        ({"per_class": 7}, "per_class=7"),
        ({"lr": 0.0}, "lr=0.0 must be above 0"),
        ({"stepz": 3}, "did you mean 'steps'"),
    ],
)
def test_bad_configurations_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        Config.profile("demo", **overrides)


def test_unknown_losses_are_refused():
    with pytest.raises(ValueError, match="unknown instance loss"):
        instance_loss(*embeddings(), kind="cosine")
    with pytest.raises(ValueError, match="unknown relation loss"):
        relation_loss(*embeddings(), torch.arange(6), kind="sp")


def test_too_few_people_are_told_with_the_numbers(place):
    config = Config.profile("smoke", dataset="digits", teacher_people=16, test_people=12, size=8, low=4, low_sweep=())
    with pytest.raises(ValueError, match="teacher_people \\+ test_people = 28, but digits has 10 people"):
        aird.open_set(config, 0, place)


@pytest.mark.parametrize(("profile", "dataset"), [(name, "") for name in Config.PROFILES] + sorted(Config.DATASETS))
def test_every_profile_is_a_valid_configuration(profile, dataset):
    config = Config.profile(profile, dataset=dataset)
    assert config.profile_name == profile and (not dataset or config.dataset == dataset)
    assert aird.trials(replace(config, seeds=(0,)))
