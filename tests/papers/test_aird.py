"""AIRD: closed forms of its losses, the wiring of teacher and student, adaptation, and the protocol."""

import math
import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdnotes.config import leaves
from kdnotes.crossres import Views, both_views, weights_of
from kdnotes.data.degrade import low_resolution
from kdnotes.data.imageset import to_float
from kdnotes.data.protocols import verification_pairs
from kdnotes.experiment import Experiment
from kdnotes.losses.contrastive import info_nce, supervised_info_nce
from kdnotes.losses.margin import ArcFace, CosFace, arc_margin, cos_margin
from kdnotes.losses.relational import pair_loss, triplet_cosines, triplet_loss
from kdnotes.metrics.verify import judge_folds, recognition, tar_at_far
from kdnotes.models.classifiers import Prediction
from kdnotes.papers import aird
from kdnotes.papers.aird import Config, Instance, Look, Recipe, Relation, Taught, instance_loss, relation_loss
from kdnotes.recipes import DistancesAndAngles, HintByDeviation, Learner, SampleContrast, Similarities, SoftLabels
from kdnotes.results import Results, compare, judge, reported
from kdnotes.runtime import make_fabric
from kdnotes.train import fit

ALL_TERMS = (Instance(10), Relation(2), SoftLabels(1), HintByDeviation(1), Similarities(300), SampleContrast(0.8, n=16, share=0.5))
EVERYTHING = Recipe(1.0, ALL_TERMS)


@pytest.fixture
def config():
    return Config.profile("smoke", seeds=(0,), steps=3, teacher_steps=3, closed_steps=3)


@pytest.fixture
def experiment(config, tmp_path):
    return Experiment.alone("aird", config, tmp_path)


@pytest.fixture
def here(experiment):
    return experiment.here


def student(config, recipe=EVERYTHING, task="open", seed=0, low=0):
    return aird.task_of(task, seed, config, low).student(recipe, Taught)


def learner_of(stage, here, recipe=None):
    """The learner of a student's stage, untrained."""
    network = stage.fresh(here)
    return Learner(network, recipe or stage.recipe, {"teacher": stage.teacher.fresh(here).feature_dim}, stage.shown(here).labels)


def embeddings(n=6, d=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=generator, dtype=dtype) for _ in "st")


def rotation(d=4, seed=3):
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q


def rkd(s, t):
    return DistancesAndAngles(1.0).value(Prediction(None, s), Prediction(None, t), {}, None)


# 1: margins
def test_the_margin_losses_by_hand():
    cosines, label = torch.tensor([[0.8, 0.1, -0.2]], dtype=torch.float64), torch.tensor([0])
    assert math.isclose(F.cross_entropy(10 * cos_margin(cosines, label, 0.35), label), 0.0312087, rel_tol=1e-5)
    assert math.isclose(arc_margin(cosines, label, 0.5)[0, 0], 0.4144107, rel_tol=1e-6)
    assert math.isclose(F.cross_entropy(10 * arc_margin(cosines, label, 0.5), label), 0.0442575, rel_tol=1e-5)
    assert math.isclose(F.cross_entropy(10 * cosines, label), 0.00095682, rel_tol=1e-5)


@pytest.mark.parametrize(("margin", "kind"), [("cosface", CosFace), ("arcface", ArcFace)])
def test_identities_are_told_apart_by_the_chosen_margin_and_classes_by_none(config, here, margin, kind):
    config = config.change(margin=margin)
    for task, m in (("open", config.losses.m), ("closed", 0.0)):
        head = student(config, task=task).fresh(here).head
        assert type(head) is kind and head.margin == m and head.scale == config.losses.scale


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
    assert torch.isclose(rkd(s @ turn, t), rkd(s, t))                                 # ... and distances and angles do not
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
    assert pair_loss(copy, t) < 1e-15 and triplet_loss(copy, t) < 1e-15 and rkd(copy, t) < 1e-12


# 5: the teacher stays as it is
def test_nothing_of_the_teacher_moves_in_an_epoch(config, here):
    teacher = student(config).teacher.fresh(here).eval()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    for setting in (config, config.change(flip=True)):                  # with flips the teacher looks at every batch anew
        stage = student(setting)
        batches, learner = stage.batches(here, {"teacher": (teacher, "high")}), learner_of(stage, here)
        step = lambda module, batch: module(batch["low"], batch)
        fit(learner, batches, step, optimizer=torch.optim.SGD(learner.parameters(), 0.01), epochs=1, fabric=make_fabric("cpu"))
    after = teacher.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items()) and all(p.grad is None for p in teacher.parameters())
    batch = next(iter(batches)) | {"teacher.features": torch.randn(24, 16, requires_grad=True), "teacher.logits": torch.randn(24, 16, requires_grad=True)}
    learner(batch["low"], batch)["loss"].backward()
    assert batch["teacher.features"].grad is None and batch["teacher.logits"].grad is None


# 15: both views of a face share the augmentation
def test_the_low_view_is_the_high_view_degraded():
    images = torch.randint(0, 256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    zero, one = torch.zeros(3), torch.ones(3)
    views = both_views(images, Views(8, "area", restore=False, flip=True, padding=3), zero, one, torch.Generator().manual_seed(1))
    assert torch.equal(views["low"], low_resolution(views["high"], size=8, mode="area")) and views["low"].shape[-1] == 8
    assert not torch.equal(views["high"], to_float(images))


def test_the_answers_of_the_teacher_travel_with_their_faces(config, here):
    teacher, each = student(config).teacher.fresh(here).eval(), config.training.per_class
    for flip in (False, True):
        for batch in student(config.change(flip=flip)).batches(here, {"teacher": (teacher, "high")}):
            with torch.no_grad():
                assert torch.allclose(teacher(batch["high"]).features, batch["teacher.features"], atol=1e-4)
            assert batch["labels"].bincount().unique().tolist() in ([each], [0, each])


# the terms
@pytest.mark.parametrize("kind", aird.RELATIONS)
def test_every_relation_trains_the_student(config, here, kind):
    recipe = aird.variants(config.losses)[f"RlD = {kind}"]
    stage, name = student(config, recipe), recipe.terms[1].name
    teacher = stage.teacher.fresh(here).eval()
    learner, batch = learner_of(stage, here), next(iter(stage.batches(here, {"teacher": (teacher, "high")})))
    terms = learner(batch["low"], batch)
    assert set(terms) == {"loss", "labels", "instance", name} and torch.isclose(terms["loss"], terms["labels"] + terms["instance"] + terms[name])
    terms[name].backward()
    assert learner.network.embedder.trunk[0][0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("anchors", "kept"), [(16, 16), (0, None)])
def test_relation_vectors_are_contrasted_for_some_anchors_or_for_all(config, here, anchors, kept):
    recipe = Recipe(1.0, (aird.relation("crrcd", replace(config.losses, anchors=anchors)),))
    learner = learner_of(student(config, recipe), here)
    assert learner.head(recipe.terms[0], "teacher").anchors == kept


@pytest.mark.parametrize("ild", aird.INSTANCES)
@pytest.mark.parametrize("rld", aird.RELATIONS)
def test_the_parts_are_those_of_the_whole_whatever_the_options(config, ild, rld):
    losses = replace(config.losses, ild=ild, rld=rld)
    methods, readings = aird.recipes(losses), aird.variants(losses)
    assert methods["IlD"].terms + methods["RlD"].terms == methods["AIRD"].terms
    assert readings[f"RlD = {rld}"] == methods["AIRD"] and readings["no identity loss"].terms == methods["AIRD"].terms
    other, = [kind for kind in aird.INSTANCES if kind != ild]
    assert readings[f"IlD = {other}"].terms == (aird.instance(other, losses), aird.relation(rld, losses)) and f"IlD = {ild}" not in readings


def test_the_default_options_weigh_as_they_did(config):
    instance, relation = aird.recipes(config.losses)["AIRD"].terms
    assert (instance, relation) == (Instance(10.0, kind="squared"), Relation(2.0, kind="contrast"))
    assert aird.variants(config.losses)["IlD = nce"].terms == (Instance(2.0, kind="nce"), relation)
    assert aird.variants(config.losses)["RlD = rkd"].terms == (instance, DistancesAndAngles(1.0))


def test_a_weight_of_zero_removes_the_computation(config, here, monkeypatch):
    asked, names = [], ["instance", "relation", "hint", "sp", "crd"]
    monkeypatch.setattr(Learner, "value", lambda self, term, *rest: asked.append(term.name) or torch.zeros(()))
    batch = {"low": torch.rand(4, 3, 8, 8), "labels": torch.arange(4), "teacher.features": torch.rand(4, 16), "teacher.logits": torch.rand(4, 16)}
    some = replace(EVERYTHING, terms=tuple(term for term in ALL_TERMS if term.name in names))
    for recipe, expected in ((Recipe(), []), (some, names)):
        learner = learner_of(student(config), here, recipe)
        terms = learner(batch["low"], batch)
        assert asked == expected and set(terms) == {"loss", "labels", *expected}
    assert "labels" not in learner_of(student(config), here, replace(EVERYTHING, labels=0))(batch["low"], batch)


def test_a_map_is_learnt_where_dimensions_differ_and_dropped_afterwards(config, experiment):
    stage = student(config)
    network = stage.fresh(experiment.here)
    heads = learner_of(stage, experiment.here).heads
    assert all(isinstance(heads[f"{name} teacher"], nn.Identity) for name in ("instance", "relation", "hint"))
    other = student(config.change(teacher="smallface:4-8:40"))
    wider = learner_of(other, experiment.here).heads
    assert all(wider[f"{name} teacher"](torch.rand(4, 16)).shape == (4, 40) for name in ("instance", "relation", "hint"))
    kept = experiment.made(other)
    assert kept.state_dict().keys() == network.state_dict().keys() and not any(p.requires_grad for p in kept.parameters()) and not kept.training


# the protocol
def test_nobody_is_on_both_sides(config, here):
    stage, own = student(config), config.protocol
    teacher, part, judged = here.read(stage.images), stage.shown(here), here.read(aird.faces_of(0, config, "test"))
    rows = [{tuple(x.flatten()[:60].tolist()) for x in images.images} for images in (teacher, part, judged.known, judged.test)]
    assert not rows[3] & (rows[0] | rows[2]) and not rows[2] & rows[0] and rows[1] < rows[0]
    assert [len(images.classes) for images in (teacher, part, judged.known, judged.test)] == [own.teacher_people, own.student_people, own.student_people, own.test_people]
    assert len(judged.known) == own.known * own.student_people and len(teacher) == own.per_identity * own.teacher_people
    first = teacher.labels < own.student_people
    assert torch.equal(teacher.images[first], part.images) and torch.equal(teacher.labels[first], part.labels)
    assert not torch.equal(here.read(aird.faces_of(1, config, "test")).test.images, judged.test.images)


def test_the_report_has_nothing_to_show_as_reported():
    from kdnotes.report.page import reported_html

    assert reported_html("aird") == ""


def test_the_closed_set_gives_a_few_labels_and_other_ones_for_each_seed(config, here):
    a, b = (student(config, task="closed", seed=seed) for seed in (0, 1))
    assert a.shown(here).labels.bincount().tolist() == [config.protocol.closed_labels] * 10 and len(here.read(a.images)) == 1442
    assert len(here.read(next(row for row in aird.main_table("closed set", 0, config)).measure.keywords["judged"])) == 355
    assert not torch.equal(a.shown(here).images, b.shown(here).images)


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
    found = recognition(torch.eye(12)[labels], labels, verification_pairs(labels, 120, 3, 0))
    assert found == {"verification_accuracy": 100, "auc": 100, "equal_error_rate": 0, "tar_at_far_0.1": 100, "rank1": 100, "rank5": 100}


# adaptation; more of it in tests/models/test_testtime.py and tests/data/test_shifts.py
def test_a_look_degrades_then_shifts_then_adapts(config, experiment):
    stage = student(config, Recipe())
    network, images = experiment.made(stage), experiment.read(aird.faces_of(0, config, "test")).test
    x = low_resolution(to_float(images.images), size=8, mode="area")
    mean, std = (part[:, None, None] for part in stage.statistics(experiment.here))
    for shift, shown in (("clean", x), ("none", x), ("dark", 0.35 * x + 0.02)):
        found = aird.seen(stage, network, experiment.here, images, Look(low=8, shift=shift)).features
        assert torch.allclose(found, network((shown - mean) / std).features, atol=1e-4)
    adapted = aird.seen(stage, network, experiment.here, images, Look(low=8, shift="dark", adaptation="FaceBN")).features
    with torch.no_grad():
        fresh = student(config, Recipe()).fresh(experiment.here)
        fresh.load_state_dict(network.state_dict())
        for layer in fresh.modules():
            layer.training = isinstance(layer, nn.modules.batchnorm._BatchNorm)      # the whole set as one batch
        assert torch.allclose(adapted, fresh((0.35 * x + 0.02 - mean) / std).features, atol=1e-3)


# the study
def look(row):
    return row.measure.keywords["look"]


def test_every_row_and_claim_is_planned(config):
    rows = aird.rows(config)
    tables = {row.table for row in rows}
    assert tables == {"T1 verification", "T2 identification", "T3 ablation", "variants", "adaptation", "layers", "batch size", "rho", "batch bias", "F1 resolution", "held-out people", "closed set"}
    methods = {table: {row.method for row in rows if row.table == table} for table in tables}
    assert {"teacher on high", "teacher fed low", *aird.BASELINES, "IlD", "RlD", "AIRD"} == methods["T1 verification"] == methods["T2 identification"] == methods["closed set"]
    assert {"none", "FaceBN", "prediction-time BN", "alpha-BN", "TENT"} <= methods["adaptation"] and {f"RlD = {kind}" for kind in aird.RELATIONS} <= methods["variants"]
    shifts = {look(row).shift for row in rows if row.table == "T3 ablation"}
    assert shifts == {"none", "clean", "dark", "bright", "blur", "noise"}
    settings = [(row.table, row.method, tuple(row.setting.items()), row.stage.seed) for row in rows]
    assert len(settings) == len(set(settings))


def test_weights_are_chosen_on_people_who_are_held_out(config, experiment):
    rows = aird.held_out_table(0, config)
    assert not aird.held_out_table(9, config) and {row.setting["weight"] for row in rows} == {"alpha", "beta", "rho"}
    assert {(row.setting["weight"], row.setting["tried"]) for row in rows} >= {("alpha", 10.0), ("alpha", 2.0), ("beta", 2.0), ("beta", 0.5), ("rho", 0.1)}
    judged, learnt = experiment.read(rows[0].measure.keywords["judged"]), experiment.read(rows[0].stage.images)
    pixels = lambda images: {tuple(x.flatten()[:60].tolist()) for x in images.images}
    assert len(judged.test.classes) == 3 and len(learnt.classes) == config.protocol.teacher_people - 3 and not pixels(judged.test) & pixels(learnt)
    assert not pixels(judged.test) & pixels(experiment.read(aird.faces_of(0, config, "test")).test)
    assert rows[0].stage.teacher.images == rows[0].stage.images                         # nor has the teacher seen them


def test_a_face_and_its_mirror_image_are_embedded_together(config, experiment):
    stage, images = student(config, Recipe()), experiment.read(aird.faces_of(0, config, "test")).test
    network, turned = experiment.made(stage), replace(images, images=images.images.flip(-1))
    ask = lambda images, **more: aird.seen(stage, network, experiment.here, images, Look(low=8, **more)).features
    for adaptation in aird.BOTH:
        both = ask(images, adaptation=adaptation, mirror=True)
        torch.testing.assert_close(both, ask(turned, adaptation=adaptation, mirror=True))
        mean = (F.normalize(ask(images, adaptation=adaptation), dim=1) + F.normalize(ask(turned, adaptation=adaptation), dim=1)) / 2
        torch.testing.assert_close(both, mean)
    mirrored = config.change(mirror=True)
    assert all(look(row).mirror == (row.table != "closed set") for row in aird.rows(mirrored) if "look" in row.measure.keywords)
    assert not any(look(row).mirror for row in aird.rows(config) if "look" in row.measure.keywords)


def test_a_teacher_from_outside_is_shown_no_adaptation():
    rows = aird.rows(Config.profile("real", seeds=(0,)))
    assert {look(row).adaptation for row in rows if row.method == "teacher fed low"} == {"none"}
    assert {look(row).adaptation for row in rows if row.method == "AIRD"} >= {"none", "FaceBN"}


def test_a_teacher_from_outside_is_shown_high_pictures_as_they_lie():
    """Of a mirrored or darkened picture there is only the small copy, which is not high for it; a trained teacher sees the large one."""
    config = Config.profile("real", seeds=(0,))
    trained = config.change(teacher="smallface:8-16:16")
    looks = {c: [look(row) for row in aird.rows(c) if row.method == "teacher on high"] for c in (config, trained)}
    assert {(x.shift, x.adaptation, x.mirror, x.low) for x in looks[config]} == {("clean", "none", False, 0)}
    assert {(x.shift, x.adaptation, x.mirror, x.low) for x in looks[trained]} == {(shift, "none", True, 0) for shift in ("clean", "dark")}
    assert all(look(row).mirror for row in aird.rows(config) if row.method != "teacher on high")


def test_nothing_is_held_out_where_nobody_is_judged_on_it():
    """One picture of a person gives no pair: the people whom students know are judged by two or more, or not at all."""
    configs = [Config.profile(profile, dataset=dataset) for profile, dataset in [(name, "") for name in Config.PROFILES] + sorted(Config.DATASETS)]
    assert {config.protocol.known for config in configs} == {0, 2}


def test_every_claim_finds_its_rows(config):
    results = Results("aird", "smoke")
    for row in [row for seed in range(3) for row in aird.rows(config.change(seeds=(seed,)))]:
        for metric in aird.METRICS.get(row.table, ("accuracy" if row.table == "closed set" else "verification_accuracy",)):
            results.add(row.table, "faces", row.method, metric, 50.0, row.stage.seed, dict(row.setting))
    judged = judge(aird.claims(config), results.frame())
    assert (judged.n == 3).all() and (judged.difference == 0).all()


def test_no_number_is_reported_and_the_tables_cope_with_that():
    assert reported("aird").empty
    results = Results("aird", "smoke")
    results.add("T1 verification", "faces", "CE", "verification_accuracy", 80.0, 0, {"low": 8})
    assert compare(results.frame(), reported("aird"), "T1 verification").filter(like="reported").eq("—").all(axis=None)


@pytest.mark.parametrize(("profile", "name", "adaptation"), [("demo", "teacher fed low + FaceBN", "FaceBN"), ("real", "unadapted teacher", "none")])
def test_the_teacher_is_a_rival_that_adapts_where_it_can(profile, name, adaptation):
    """The student adapts, so must the teacher; one from outside has nothing to adapt, and the claim says so."""
    config = Config.profile(profile)
    found = {claim.name: claim for claim in [*aird.claims(config), *aird.native_claims("tinyface", config)]}
    for claim in (found[f"AIRD + FaceBN > {name}, dark"], found[f"tinyface: AIRD + FaceBN > {name}"]):
        assert claim.worse == {"method": "teacher fed low", "adaptation": adaptation}


def test_the_rivals_of_the_whole_method_adapt_as_it_does(config):
    """CRD, SP and KD learn and adapt from the same pictures: what is compared is the losses alone."""
    found = {claim.name: claim for claim in aird.claims(config)}
    for name, short in (("CRD", "CRD"), ("SP, weight 300", "SP"), ("KD, added", "KD")):
        claim = found[f"AIRD + FaceBN > {short} + FaceBN, dark"]
        assert (claim.better, claim.worse) == ({"method": "AIRD", "adaptation": "FaceBN"}, {"method": name, "adaptation": "FaceBN"})
        assert claim.source == "ours" and name in aird.BASELINES


def test_no_batch_of_the_sweep_is_the_whole_test_set_of_orl():
    """Two batches that hold all pictures are one measurement; ORL has ten pictures of a person."""
    own = Config.profile("real", dataset="orl").protocol
    assert max(own.batch_sweep) < 10 * own.test_people


def test_a_second_run_trains_nothing_and_gives_the_same_numbers(tmp_path, monkeypatch):
    config = Config.profile("smoke", seeds=(0,), steps=2, teacher_steps=2, closed_steps=2, low_sweep=(), tasks=("closed",))
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    first = aird.run(Experiment.alone("aird", config, tmp_path)).frame()
    again = Experiment.alone("aird", config, tmp_path)
    assert aird.run(again).frame().equals(first) and first.value.between(0, 100).all() and set(again.how.values()) == {"read"}


def test_what_nobody_can_be_judged_on_is_told_before_anything_is_trained(tmp_path):
    config = Config.profile("smoke", seeds=(0,), tasks=("open",), pairs=4000)
    experiment = Experiment.alone("aird", config, tmp_path)
    with pytest.raises(ValueError, match="12 people do not give 2000 genuine"):
        aird.run(experiment)
    assert not experiment.how


# what a key knows, and what it does not
@pytest.mark.parametrize("change", [{"training.steps": 9}, {"images.low": 4}, {"alpha": 5.0}, {"student": "smallface:4-8:32"}, {"student_people": 13}, {"batch_sweep": (4,)},
                                    {"low_sweep": ()}, {"mode": "bilinear"}, {"pairs": 40}, {"tasks": ("open",)}, {"closed_steps": 9}, {"test_batch": 8}])
def test_the_teacher_does_not_know_its_students(config, experiment, change):
    before, after = (aird.task_of("open", 0, c).teacher for c in (config, config.change(**change)))
    assert before == after and experiment.node(before).key == experiment.node(after).key


def test_the_student_does_not_know_who_is_judged_nor_how(config):
    for change in ({"pairs": 40}, {"folds": 3}, {"test_batch": 8}, {"tent_lr": 0.1}, {"adapt_on": 5}):
        assert student(config) == student(config.change(**change))
    assert student(config) != student(config.change(steps=9))


def test_equal_seeds_start_from_equal_weights(config, here):
    first, second = (weights_of(student(config, aird.recipes(config.losses)[name]).fresh(here)) for name in ("CE", "AIRD"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_batches_by_identity_are_as_large_as_what_there_is_of_a_person():
    for config, expected in ((Config.profile("demo"), 14), (Config.profile("real"), 4), (Config.profile("real", dataset="orl"), 4)):
        assert {look(row).batch for row in aird.adaptation_tables(0, config) if row.table == "batch bias"} == {expected}


# real faces
NATIVE = {"batch_size": 8, "per_class": 2, "steps": 2, "teacher_steps": 2, "subjects": 3, "adapt_on": 9, "size": 32, "low": 8, "low_sweep": (), "teacher": "smallface:4-8:16",
          "student": "smallface:4-8:16", "negatives": 4, "padding": 0}


@pytest.fixture
def natives(tmp_path, face_layouts, monkeypatch):
    """A data root with CASIA-WebFace and every native set, but without LFW."""
    root = tmp_path / "data"
    face_layouts.casia(root, {"a": 4, "b": 4, "c": 3, "d": 4, "e": 1})
    face_layouts.survface(root, repeat=5)
    for write in (face_layouts.tinyface, face_layouts.scface, face_layouts.uccs):
        write(root)
    monkeypatch.setenv("KDNOTES_DATA", str(root))
    return root


@pytest.mark.long
def test_students_of_casia_meet_native_faces_from_data_to_claims(natives, run_from_parameters, monkeypatch, tmp_path):
    """The whole notebook from its parameters on, on miniature sets in their true layouts; LFW is not asked for where it is not in the data set's name."""
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    space = run_from_parameters(aird, "import math", dataset="tinyface+survface+scface+uccs", out=str(tmp_path / "run"), overrides=NATIVE)
    config, frame, judged, folder = space["config"], space["frame"], space["judged"], space["experiment"].folder
    assert config.parts == ("native",) and config.source == "casia_webface" and set(frame.table) == {"native low resolution"}
    assert set(frame.method) == {"teacher fed low", *aird.recipes(config.losses)} and frame.value.between(0, 100).all()
    for name, metrics in aird.NATIVE_METRICS.items():
        assert set(metrics) <= set(frame[frame.dataset == name].metric)
    rank1 = frame[(frame.dataset == "scface") & (frame.metric == "rank1") & (frame.method == "AIRD")]
    assert set(rank1.setting) == {f"low=8;distance={d};adaptation={a}" for d in ("4.2", "2.6", "1") for a in ("none", "FaceBN", "FaceBN, mixed")}
    assert len(judged) == 4 * 4 + 1 and (judged.n == 1).all() and (judged.verdict == "inconclusive").all()
    made = {path.stem for kind in ("figures", "tables") for path in (folder.path / kind).iterdir()}
    assert {"native", "native-tinyface-search", "native-survface-search", "native-survface-pairs", "native-scface-search", "native-uccs-search"} <= made
    assert folder.manifest["status"] == "finished"


def test_everybody_is_taken_without_a_copy_and_lfw_judges_where_it_is_named(natives, face_layouts, here):
    config = Config.profile("paper", dataset="casia+tinyface+survface+scface+uccs", seeds=(0,), **NATIVE)
    assert config.parts == ("open", "native") and config.natives == ("tinyface", "survface", "scface", "uccs") and config.source == "casia"
    with pytest.raises(FileNotFoundError, match="lfw"):
        aird.faces_of(0, config).load()
    alone = config.change(dataset="tinyface")
    stage = student(alone)
    time.sleep(0.1)                                                                    # files of this very moment would be read again
    everybody = here.read(stage.images)
    assert stage.shown(here) is everybody and len(everybody) == 15 and everybody.classes == tuple("abcd")
    assert here.read(student(alone, seed=1).images) is everybody                       # decoded once, whatever the seed
    face_layouts.lfw(natives)
    judged = aird.faces_of(0, config, "test").load()
    assert len(judged.test) == 9 and judged.pairs.folds == 2 and judged.known is None
    some = student(config.change(teacher_people=3, student_people=2, batch_size=4))
    assert len(here.read(some.images).classes) == 3 and len(some.shown(here).classes) == 2
    rows = aird.rows(config)
    assert {row.table for row in rows} >= {"T1 verification", "T2 identification", "native low resolution"}
    one = {row.stage for row in rows if row.table in ("T1 verification", "native low resolution")}
    assert len(one) == 1 + len(aird.recipes(config.losses))                            # LFW and the native tests judge the same networks


@pytest.mark.parametrize(("dataset", "words"), [("casia", "CASIA-WebFace"), ("tinyface", "unpack the distributed tinyface.zip"), ("faces+scface", "mugshot_frontal_cropped_all"),
                                                ("casia+uccs", "lay the faces out as"), ("survface", "QMUL-SurvFace.zip")])
def test_a_run_without_its_faces_is_refused_before_it_starts(tmp_path, dataset, words):
    from kdnotes.batch.plan import check_data

    changes = {"teacher_people": 4, "per_identity": 4, "batch_size": 8} if dataset.startswith("faces") else {}
    assert Config.profile("paper", dataset=dataset, **changes).dataset == dataset
    with pytest.raises(FileNotFoundError, match=f"the data of .* are not there .*{words}"):
        check_data(Config, dataset, tmp_path)
    check_data(Config, "faces", tmp_path)


# 16: the ordering that is far outside the noise
@pytest.mark.slow
def test_adaptation_brings_a_darkened_world_back(tmp_path):
    config = Config.profile("demo", student_people=40, teacher_people=40, test_people=30, steps=120, pairs=600)
    experiment, gains = Experiment.alone("aird", config, tmp_path), {shift: [] for shift in ("dark", "bright")}
    for seed in range(5):
        stage, judged = student(config, Recipe(), seed=seed), aird.faces_of(seed, config, "test")
        for shift, found in gains.items():
            look = Look(low=config.images.low, shift=shift)
            plain, adapted = (aird.verified(stage, experiment.made(stage), experiment.here, judged, replace(look, adaptation=name), ("auc",)) for name in aird.BOTH)
            found.append(adapted["auc"] - plain["auc"])
    assert min(sum(found) / 5 for found in gains.values()) > 1, gains


@pytest.mark.slow
def test_distillation_does_not_hurt_on_clean_digits_with_all_labels(tmp_path):
    config = Config.profile("demo", closed_labels=0, closed_steps=200, seeds=(0, 1))
    wanted = [row for seed in range(2) for row in aird.main_table("closed set", seed, config)
              if row.method in ("CE", "AIRD") and (look(row).shift, look(row).adaptation) == ("clean", "none")]
    frame = aird.Study(wanted).run(Experiment.alone("aird", config, tmp_path)).frame()
    found = frame.groupby("method").value.mean()
    assert found["AIRD"] > found["CE"] - 1, found


# bad input
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"steps": 0}, "steps=0 is out of range; expected int at least 1"),
        ({"low": 2}, "low=2 is out of range; expected int at least 4"),
        ({"low": 64}, "must not exceed the high resolution"),
        ({"student": "smalface"}, "did you mean 'smallface'"),
        ({"margin": "cosfaces"}, "did you mean 'cosface'"),
        ({"rld": "contrst"}, "did you mean 'contrast'"),
        ({"ild": "nse"}, "unknown losses.ild 'nse'"),
        ({"tasks": ("opn",)}, "did you mean 'open'"),
        ({"tasks": ()}, "nothing to do"),
        ({"teacher_people": 10}, "teacher_people=10 must be at least student_people=60"),
        ({"student_people": 1}, "student_people=1 is out of range; expected int at least 2, or 0"),
        ({"dataset": "faces+lfw"}, "names several sets to learn from; expected one of them, and native tests: "),
        ({"dataset": "tinyface", "tasks": ("open",)}, "leave nothing to do for dataset='tinyface'"),
        ({"per_class": 7}, "per_class=7"),
        ({"lr": 0.0}, "lr=0.0 is out of range; expected float above 0"),
        ({"stepz": 3}, "did you mean 'steps'"),
        ({"teacher_people": 0, "student_people": 0}, "faces are drawn, so both must be above 0"),
        ({"pairs": 2002}, "pairs=2002 must be a multiple of 20"),
        ({"known": 2, "student_people": 16, "folds": 100, "pairs": 2000}, "too few for folds=100"),
        ({"student": "face_resnet18::64"}, "needs images of 8 pixels; here are 4"),
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


def test_too_few_people_are_told_with_the_numbers():
    config = Config.profile("smoke", dataset="digits", teacher_people=16, test_people=12, size=8, low=4, low_sweep=())
    with pytest.raises(ValueError, match="digits has 10 people with at least 4 pictures; expected 16 to learn from and 12 others to be judged; ask for fewer"):
        aird.faces_of(0, config).load()


@pytest.mark.parametrize(("profile", "dataset"), [(name, "") for name in Config.PROFILES] + sorted(Config.DATASETS))
def test_every_profile_is_a_valid_configuration(profile, dataset):
    config = Config.profile(profile, dataset=dataset)
    assert not dataset or config.dataset == dataset
    assert aird.rows(config.change(seeds=(0,)))


def test_every_setting_says_where_its_default_comes_from():
    assert all(leaf.rule.source and leaf.rule.text for leaf in leaves(Config).values())


def test_students_are_taught_and_the_plain_one_is_not(config):
    students = aird.students_of(aird.task_of("open", 0, config), config)
    assert type(students["CE"]) is aird.Unaided and all(type(stage) is Taught for name, stage in students.items() if name != "CE")
