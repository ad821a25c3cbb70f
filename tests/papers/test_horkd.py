"""The wiring of HORKD's three streams; the closed forms of its losses are tested with the losses themselves."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kdnotes.config import leaves
from kdnotes.crossres import both_views, paired_batches
from kdnotes.experiment import Experiment
from kdnotes.losses import relational
from kdnotes.models.classifiers import Prediction, build, count_parameters
from kdnotes.models.written import parse
from kdnotes.papers import horkd
from kdnotes.papers.horkd import ALONE, ORDERS, Bridge, Config, Losses, Pictures, hybrid
from kdnotes.recipes import HintByVariance, Learner, Recipe, SoftLabels

LOSSES = {"kd": "kd_loss", "point": "point_loss", "pair": "pair_loss", "triplet": "triplet_loss", "sp": "group_loss"}


def everything(targets="teacher", **weights) -> Recipe:
    """Labels, soft labels and all orders."""
    orders = hybrid(replace(Losses(), **weights), ORDERS, 1.0, targets)
    first = ("teacher",) if targets == "teacher" else ("assistant",)
    return replace(orders, terms=(SoftLabels(1.0, first), *orders.terms))


@pytest.fixture
def config():
    return Config.profile("smoke", seeds="0", **{"training.steps": 2, "training.teacher_steps": 2, "train_size": 24, "low_sweep": (4,), "weight_sweep": (0.2,)})


@pytest.fixture
def experiment(config, tmp_path):
    return Experiment.alone("horkd", config, tmp_path)


def prediction(n=8, d=5, classes=4, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    logits, features = (torch.randn(n, k, generator=generator, requires_grad=grad) for k in (classes, d))
    return Prediction(logits, features)


def batch_of(**targets: Prediction) -> dict:
    """The labels of a batch of eight, with the answers of those who teach."""
    answers = {f"{name}.{part}": value for name, t in targets.items() for part, value in t._asdict().items()}
    return {"labels": torch.arange(8) % 4} | answers


def terms_of(recipe: Recipe, s: Prediction, **targets: Prediction) -> dict:
    """The terms of a recipe for a network whose features have the dimension of the targets'."""
    network = torch.nn.Module()
    network.feature_dim = s.features.shape[1]
    learner = Learner(network, recipe, {name: t.features.shape[1] for name, t in targets.items()})
    return learner.terms(s, batch_of(**targets))


# 8: no gradient reaches the teacher, nor, in the second stage, the assistant
@pytest.mark.parametrize("targets", ["teacher", "assistant", "both"])
def test_no_gradient_reaches_what_teaches(targets):
    s, t, a = prediction(seed=1, grad=True), prediction(seed=2, grad=True), prediction(seed=3, grad=True)
    terms_of(everything(targets), s, teacher=t, assistant=a)["loss"].backward()
    assert all(part.grad is None for part in (*t, *a))
    assert all(part.grad.abs().sum() > 0 for part in s)


# 13: a weight of zero removes the computation, not only its gradient
@pytest.mark.parametrize("term", LOSSES)
def test_a_weight_of_zero_removes_the_computation(term, monkeypatch):
    called = []
    for name in LOSSES.values():
        original = getattr(__import__("kdnotes.recipes", fromlist=["recipes"]), name)
        monkeypatch.setattr(f"kdnotes.recipes.{name}", lambda *args, _name=name, _original=original, **kw: (called.append(_name), _original(*args, **kw))[1])
    weights = {} if term == "kd" else {"group" if term == "sp" else term: 0.0}
    recipe = everything(**weights)
    recipe = recipe if term != "kd" else replace(recipe, terms=recipe.terms[1:])
    terms = terms_of(recipe, prediction(seed=1), teacher=prediction(seed=2))
    assert LOSSES[term] not in called and len(called) == 4 and term not in terms


def test_the_sum_is_the_sum_of_its_weighted_terms():
    s, t = prediction(seed=1), prediction(seed=2)
    terms = terms_of(everything(), s, teacher=t)
    assert torch.allclose(terms["loss"], sum(value for name, value in terms.items() if name != "loss"))
    assert torch.allclose(terms["labels"], F.cross_entropy(s.logits, torch.arange(8) % 4))
    assert torch.allclose(terms["pair"], 25 * relational.pair_loss(s.features, t.features))
    assert torch.allclose(terms["triplet"], 50 * relational.triplet_loss(s.features, t.features))


def test_both_targets_average_the_higher_orders_and_take_the_first_from_the_assistant():
    s, t, a = prediction(seed=1), prediction(seed=2), prediction(seed=3)
    terms = terms_of(everything("both", group=0.0), s, teacher=t, assistant=a)
    pair = (relational.pair_loss(s.features, t.features) + relational.pair_loss(s.features, a.features)) / 2
    assert torch.allclose(terms["pair"], 25 * pair)
    assert torch.allclose(terms["point"], ((s.features - a.features) ** 2).mean() / a.features.var(0, unbiased=False).mean())


# 14: teacher and assistant see the high view, the student the low view, of the same image with the same flip and crop
def test_the_views_of_a_batch_belong_together(config):
    moved = config.change(flip=True, padding=1, mode="area", **{"images.low": 4})
    task = horkd.task_of("classification", 0, moved)
    images = task.train.load().images[:32]
    zero, one = torch.zeros(1), torch.ones(1)
    for generator in (None, torch.Generator().manual_seed(0)):
        views = both_views(images, task.views, zero, one, generator)
        low = F.interpolate(F.adaptive_avg_pool2d(views["high"], 4), size=8, mode="area")
        assert torch.allclose(views["low"], low, atol=1e-6)
    assert not torch.equal(views["high"], both_views(images, task.views, zero, one)["high"])


def test_the_high_view_does_not_depend_on_how_the_low_one_is_made(config):
    task = horkd.task_of("retrieval", 0, config.change(flip=True, padding=1))
    images, zero, one = task.train.load().images[:32], torch.zeros(1), torch.ones(1)
    of_teacher, of_student = (both_views(images, views, zero, one, torch.Generator().manual_seed(0)) for views in (task.views.known_to("high"), task.views.known_to("low")))
    assert torch.equal(of_teacher["high"], of_student["high"]) and not torch.equal(of_teacher["low"], of_student["low"])


def test_teacher_and_assistant_look_at_the_high_view_and_the_student_at_the_low_one(config):
    task = horkd.task_of("retrieval", 0, config)
    student = horkd.student_of("HORKD", task, config)
    assert student.view == "low" and {name: parent.view for name, parent in student.elders.items()} == {"teacher": "high", "assistant": "high"}
    low = horkd.assisted(task, student.recipe, Bridge("teacher_arch_lr"), hybrid(config.losses, ORDERS[:3], 0.0)).assistant
    assert (low.view, low.network) == ("low", config.networks.teacher)


@pytest.mark.parametrize("flip", [False, True])
def test_targets_travel_with_their_images(config, experiment, flip):
    config = config.change(flip=flip)
    stage = horkd.student_of("HORKD", horkd.task_of("retrieval", 0, config), config)
    teachers = {name: (parent.fresh(experiment.here).eval(), parent.view) for name, parent in stage.elders.items()}
    assert set(teachers) == {"teacher", "assistant"}
    for batch in stage.batches(experiment.here, teachers):
        for name, (network, _) in teachers.items():
            with torch.no_grad():
                expected = network(batch["high"])
            assert torch.allclose(batch[f"{name}.features"], expected.features, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("bridge", [Bridge(), Bridge("teacher_arch_lr"), Bridge(schedule="joint")])
def test_answers_that_stay_the_same_are_found_once_and_are_those_that_would_be_asked_for(config, experiment, bridge, flip):
    config = config.change(flip=flip)
    task = horkd.task_of("retrieval", 0, config)
    stage = horkd.assisted(task, hybrid(config.losses, ORDERS[:3], 0.0, "both"), bridge, hybrid(config.losses, ORDERS[:3], 0.0))
    answered = {name for name in stage.needs() if name.startswith("answers")}
    assert answered == (set() if flip else {f"answers of {name}" for name in stage.elders})
    parents = dict(zip(stage.needs(), experiment.make(stage.needs().values())))
    asked = {name: network for name, network in parents.items() if name in stage.elders}
    seen = [[batch for _, batch in zip(range(3), stage.lessons(known, experiment.here))] for known in (parents, asked)]
    for a, b in zip(*seen):
        assert a.keys() == b.keys() >= {f"{name}.{part}" for name in stage.elders for part in ("logits", "features")}
        assert all(torch.equal(a[name], b[name]) for name in a)


# 17: with the assistant's weights and its view, the student starts at zero loss against the assistant
def test_a_student_that_is_the_assistant_has_nothing_to_learn(config, experiment):
    recipe = hybrid(config.losses, ORDERS, 0.0, "assistant")
    stage = horkd.student_of("HORKD", horkd.task_of("retrieval", 0, config), config)
    assistant = replace(stage.assistant, seed=7).fresh(experiment.here).eval()
    network = stage.fresh(experiment.here)
    network.load_state_dict(assistant.state_dict())
    learner = Learner(network, recipe, {"assistant": assistant.feature_dim}).eval()
    assert all(isinstance(r, torch.nn.Identity) for r in learner.heads.values()) and learner.heads
    images = experiment.read(stage.images)
    batch = next(iter(paired_batches(images, stage.views, 32, 0, {"assistant": (assistant, "high")})))
    with torch.no_grad():
        terms = learner(batch["high"], batch)
    assert all(float(value) < 1e-6 for value in terms.values()), terms


def test_an_assistant_lends_the_weights_that_its_student_starts_from(config, experiment, monkeypatch):
    monkeypatch.setattr("kdnotes.crossres.learnt", lambda learner, *args: horkd.weights_of(learner.network))     # nothing is trained
    stage = horkd.student_of("HORKD", horkd.task_of("retrieval", 0, config), config)
    parents = {name: replace(parent, seed=5).fresh(experiment.here) for name, parent in stage.elders.items()}
    here = experiment.here
    lent, fresh = (s.build(parents, here, None) for s in (stage, replace(stage, lends=False)))
    assert all(torch.equal(lent[name], value) for name, value in parents["assistant"].state_dict().items())
    assert any(not torch.equal(fresh[name], lent[name]) for name in lent)


# 18: what is kept is the student alone
def test_inference_needs_the_plain_student_only(config, experiment):
    stage = horkd.student_of("HORKD", horkd.task_of("retrieval", 0, config), config)
    network = experiment.made(stage)
    name, options = parse(config.networks.student)
    plain = build(name, 5, channels=1, size=8, **options)
    assert type(network) is type(plain) and count_parameters(network) == count_parameters(plain)
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert not any(parameter.requires_grad for parameter in network.parameters()) and not network.training


def test_the_regression_is_trained_where_dimensions_differ_and_identity_where_not():
    network = build("smallconv", 3, channels=1, size=8, widths=(4, 4, 4), embedding=6)
    learner = Learner(network, Recipe(1.0, (HintByVariance(1.0, ("teacher", "assistant")),)), {"teacher": 10, "assistant": 6})
    features = network(torch.randn(2, 1, 8, 8)).features
    assert learner.heads["point teacher"](features).shape == (2, 10) and learner.heads["point assistant"](features).shape == (2, 6)
    assert count_parameters(learner) == count_parameters(network) + 6 * 10 + 10


# 20: the rows of the expected ordering are all there, and its verdict comes from the data
def test_every_row_and_claim_of_the_study_is_planned(config):
    rows = horkd.rows(config)
    methods = {row.method for row in rows if row.table == horkd.TABLES["retrieval"]}
    assert {"CE", "KD, added", "FitNet, unit variance, no labels", "RKD-D, no labels", "RKD-A, no labels", "RKD-DA, no labels", "SP, weight 300, no labels",
            "TAKD", "HORKD, order 1", "HORKD, orders 1+2", "HORKD", "HORKD + group", ALONE, horkd.FRESH, horkd.LONG} <= methods
    for claim in horkd.claims(config):
        assert {claim.better, claim.worse} <= {row.method for row in rows if row.table == claim.where["table"]}


# 20: ... and the part of the ordering that is far outside the noise is held here: relations beat labels on unseen classes
@pytest.mark.slow
def test_relations_beat_labels_on_unseen_classes_at_low_resolution(tmp_path):
    config = Config.profile("demo")
    experiment = Experiment.alone("horkd", config, tmp_path)
    wanted = [row for seed in (0, 1) for row in horkd.main_table("retrieval", seed, config) if row.method in (ALONE, "CE")]
    frame = horkd.Study(wanted).run(experiment).frame()
    recall = frame[frame.metric == "recall_at_1"].pivot_table(index="seed", columns="method", values="value")
    assert len(recall) == 2 and (recall[ALONE] > recall["CE"] + 2).all()


def test_the_controls_of_the_assistant_are_as_long_and_as_fresh_as_they_say(config):
    """HORKD's student starts from its assistant: one control learns as long as both together, the other starts anew."""
    for task in (horkd.task_of(name, 0, config) for name in ("retrieval", "faces")):
        full, alone, long, fresh = (horkd.student_of(method, task, config) for method in ("HORKD", ALONE, horkd.LONG, horkd.FRESH))
        assert long.how.steps == full.how.steps + full.assistant.how.steps == 2 * alone.how.steps and long.assistant is None
        assert replace(long, how=alone.how) == alone and replace(fresh, lends=True) == full and full.lends and not fresh.lends
    tables = {row.table: {r.method for r in horkd.rows(config) if r.table == row.table} for row in horkd.rows(config)}
    assert not set(horkd.CONTROLS) & tables[horkd.TABLES["classification"]]
    names = {claim.name for claim in horkd.claims(Config())}
    assert {f"{start}{name}" for start in ("", "faces: ") for name in ("assistant > no assistant", "assistant > no assistant, equal steps",
            "fresh start > no assistant", "hybrid > RKD-DA")} <= names


def test_what_relations_do_without_an_assistant_is_asked_where_its_rows_are():
    found = {claim.name: claim for claim in horkd.claims(Config())}
    alone, orders = found["classification: relations alone > plain student"], found["classification: orders 1+2+3 > order 1"]
    assert (alone.better, alone.worse) == (ALONE, "CE") and (orders.better, orders.worse) == ("HORKD", "HORKD, order 1")
    assert {"classification: assistant > no assistant", "faces: relations alone > plain student", "FitNet > plain student"} <= set(found)
    assert not any(name.startswith(("classification: fresh", "classification: assistant > no assistant,")) for name in found)
    assert "faces: relations alone > plain student" not in {claim.name for claim in horkd.claims(Config.profile("smoke"))}      # no such row
    attested = {name for name, claim in found.items() if claim.source == "sheet"}
    assert attested == {f"{start}{name}" for start in ("", "classification: ", "faces: ")
                        for name in ("hybrid > plain student", "assistant > no assistant")}


def test_a_demo_has_few_rows_and_claims_what_they_can_test():
    config = Config.profile("demo")
    rows = horkd.rows(config)
    found, made = horkd.claims(config), {(row.table, row.method) for row in rows}
    assert {row.table for row in rows} == {horkd.TABLES["retrieval"], horkd.TABLES["faces"]} and len(config.seeds) >= 6
    assert all({(claim.where["table"], method) for method in claim.methods} <= made for claim in found)
    assert {"hybrid > RKD-DA", "assistant > no assistant, equal steps", "faces: hybrid > RKD-DA"} <= {claim.name for claim in found}
    assert not {"hybrid > RKD-D", "hybrid > RKD-A"} & {claim.name for claim in found}


def test_the_published_weights_and_a_twenty_fifth_of_them_are_swept_where_the_paper_is_repeated():
    assert Config.profile("paper").losses.weight_sweep == (0.0, 0.04, 0.2) and Config.profile("real").losses.weight_sweep == (0.0, 0.2)
    assert leaves(Config)["faces.low"].rule.source == leaves(Config)["faces.subjects"].rule.source == "quoted"


def test_uccs_is_named_by_a_frozen_network_under_a_new_last_layer():
    config = Config.profile("paper", dataset="uccs")
    task = horkd.task_of("faces", 0, config)
    assert (task.train.dataset, task.test, task.dataset) == ("casia_webface", horkd.NativeTest("uccs", 112, 180), "UCCS")
    rows = horkd.main_table("faces", 0, config)
    assert all(row.measure.func is horkd.identified and row.measure.keywords["enrolled"] == task.test for row in rows)
    assert all(row.stage.images == task.train for row in rows) and {claim.metric for claim in horkd.face_claims(config)} == {"accuracy"}


def test_joint_and_two_stage_differ_in_what_is_trained_beforehand(config):
    task, recipe = horkd.task_of("retrieval", 0, config), everything("both")
    helper = hybrid(config.losses, ORDERS[:3], 0.0)
    two_stage, joint = (horkd.assisted(task, recipe, Bridge(schedule=schedule), helper) for schedule in ("two_stage", "joint"))
    assert set(two_stage.elders) == {"teacher", "assistant"} and set(joint.elders) == {"teacher"}
    n, network = 6, lambda: build("smallconv", 5, channels=1, size=8, widths=(2, 4, 8), embedding=8)
    both = horkd.Both(Learner(network(), helper, {"teacher": 16}), Learner(network(), recipe, {"teacher": 16, "assistant": 8}), ("high", "low"))
    batch = {"high": torch.randn(n, 1, 8, 8), "low": torch.randn(n, 1, 8, 8), "labels": torch.arange(n) % 5,
             "teacher.logits": torch.randn(n, 5), "teacher.features": torch.randn(n, 16)}
    both(batch)["student"].backward()
    grads = [p.grad for p in both.assistant.parameters()]
    assert all(g is None for g in grads), "the student's loss must not move the assistant"


def test_unseen_classes_are_never_trained_on(config):
    task = horkd.task_of("retrieval", 0, config)
    train, test = task.train.load(), task.test.load()
    assert len(train.classes) == 5 and set(test.labels.tolist()) == {1, 3, 5, 7, 9}
    assert sorted(train.classes) == ["0", "2", "4", "6", "8"]


def test_equal_seeds_start_from_equal_weights(config, experiment):
    task = horkd.task_of("retrieval", 3, config)
    first, second = (horkd.student_of(method, task, config).fresh(experiment.here).state_dict() for method in ("CE", "HORKD"))
    assert all(torch.equal(first[key], second[key]) for key in first)


# what a key knows, and what it does not
@pytest.mark.parametrize("change", [{"training.steps": 9}, {"images.low": 4}, {"pair": 5.0}, {"delta": 2.0}, {"networks.student": "smallconv:4-8-16:16"}, {"ks": (1,)},
                                    {"low_sweep": ()}, {"bridge.targets": "teacher"}, {"faces.steps": 9}, {"faces.pairs": 40}, {"tasks": ("retrieval",)}])
def test_the_teacher_does_not_know_its_students(config, experiment, change):
    before, after = (horkd.task_of("retrieval", 0, c).teacher for c in (config, config.change(**change)))
    assert before == after and experiment.node(before).key == experiment.node(after).key


def test_the_steps_of_the_faces_concern_the_faces_alone(config):
    stages = lambda c, task: [row.stage for row in horkd.rows(c) if row.stage.task == task]
    longer = config.change(**{"training.steps": 99})
    assert stages(config, "faces") == stages(longer, "faces") and stages(config, "retrieval") != stages(longer, "retrieval")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training.steps": 0}, "training.steps=0 is out of range; expected int at least 1"),
        ({"steps": 3}, "'steps' is ambiguous: give one of training.steps, faces.steps"),
        ({"images.low": 0}, "images.low=0"),
        ({"networks.student": "smalconv:4-8:3"}, "did you mean 'smallconv'"),
        ({"networks.student": "smallconv:4-x-16:32"}, "name:widths:embedding"),
        ({"tasks": ("retrival",)}, "did you mean 'retrieval'"),
        ({"assistant": "big"}, "student_arch_hr"),
        ({"pair": -1.0}, "at least 0"),
        ({"step": 3}, "did you mean 'steps'"),
        ({"seen": (1,)}, "1 items; expected at least 2"),
        ({"seen": (1, 1)}, "at least two classes"),
        ({"faces.low": 64}, "must not exceed the high resolution, faces.size=32"),
        ({"faces.methods": ("HORKDD",)}, "did you mean 'HORKD'"),
        ({"people": (5,)}, "1 items; expected 2"),
        ({"faces.student": "smalconv"}, "did you mean 'smallconv'"),
    ],
)
def test_bad_configurations_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        Config.profile("demo", **overrides)


@pytest.mark.parametrize(("profile", "dataset"), [(name, "") for name in Config.PROFILES] + sorted(Config.DATASETS))
def test_every_profile_is_a_valid_configuration(profile, dataset):
    config = Config.profile(profile, dataset=dataset)
    assert not dataset or config.dataset == dataset
    assert horkd.rows(config.change(seeds=(0,)))


def test_every_setting_says_where_its_default_comes_from():
    assert all(leaf.rule.source and leaf.rule.text for leaf in leaves(Config).values())


def test_splits_that_are_disjoint_in_classes_already(monkeypatch):
    """CUB-200-2011 and Cars196: training and test images share no class."""
    from kdnotes.data.imageset import ImageSet

    classes = tuple("abcd")
    sets = {split: ImageSet(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), labels, classes, "birds")
            for split, labels in (("train", torch.tensor([0, 0, 0, 1, 1, 1])), ("test", torch.tensor([2, 2, 2, 3, 3, 3])))}
    monkeypatch.setattr("kdnotes.crossres.load", lambda name, split, size=None: sets[split])
    train, test = (Pictures("birds of this test", part, seen=(0, 1)).load() for part in ("train", "test"))
    assert set(train.labels.tolist()) == {0, 1} and set(test.labels.tolist()) == {2, 3} and len(test) == 6


# faces: the third family of tasks
def test_faces_are_of_people_nobody_has_seen_and_others_for_each_seed(config):
    own, tests = config.faces, []
    for seed in (0, 1):
        task = horkd.task_of("faces", seed, config)
        learnt, (test, pairs, *_) = task.train.load(), task.test.load()
        assert (len(learnt.classes), len(test.classes)) == own.people and len(learnt) == own.people[0] * own.each
        rows = [{tuple(x.flatten()[:50].tolist()) for x in part.images} for part in (learnt, test)]
        assert not rows[0] & rows[1]
        assert torch.equal(pairs.same, test.labels[pairs.first] == test.labels[pairs.second]) and pairs.same.sum() == own.pairs // 2
        tests.append(test)
    assert not torch.equal(tests[0].images, tests[1].images)


def test_faces_have_data_resolution_networks_and_steps_of_their_own(config):
    task, own = horkd.task_of("faces", 0, config), config.faces
    assert (task.dataset, task.train.size, task.views.low, task.networks, task.learning.steps) == ("faces", 32, 16, (own.teacher, own.student), own.steps)
    rows = horkd.main_table("faces", 0, config)
    assert {row.method for row in rows} == {"teacher on high", "teacher fed low", "assistant on high", "assistant fed low", *own.methods}
    for row in rows:
        assert row.setting == {"low": 16} and row.dataset == "faces"
        assert {parent.network for name, parent in row.stage.needs().items() if name == "teacher"} <= {own.teacher}
    assert all(horkd.recipe_of(method, "faces", config).labels == 1 for method in horkd.METHODS)


def test_faces_are_verified_and_identified(config, experiment):
    rows = {row.method: row for row in horkd.main_table("faces", 0, config)}
    frame = horkd.Study([rows["HORKD"]]).run(experiment).frame()
    assert set(frame.metric) == {"verification_accuracy", "auc", "rank1", "rank5"} and frame.value.between(0, 100).all()
    stage, task = rows["HORKD"].stage, horkd.task_of("faces", 0, config)
    images = experiment.read(task.test).test
    prediction = horkd.seen_by(stage, experiment.made(stage), experiment.here, images, "low", task.views)
    assert prediction.logits.shape == (len(images), config.faces.people[0])


@pytest.mark.parametrize("margin", ["arcface", "cosface"])
def test_faces_may_have_a_margin_on_cosines_and_a_native_low_view(config, experiment, margin):
    own = replace(config.faces, margin=margin, angle=0.2, restore=False, student="smallface:2-4:8", teacher="smallface:4-8:8")
    config = replace(config, faces=own)
    rows = {row.method: row for row in horkd.main_table("faces", 0, config)}
    frame = horkd.Study([*rows.values()]).run(experiment).frame()
    assert set(frame.method) == set(rows) and frame.value.between(0, 100).all()
    stage, task = rows["HORKD"].stage, horkd.task_of("faces", 0, config)
    student = experiment.made(stage)
    assert type(student.head).__name__.lower() == margin and student.head.scale == 16 and not task.views.restore
    assert {row.measure.keywords["view"] for name, row in rows.items() if "fed" in name} == {"fed"}
    with pytest.raises(ValueError, match=f"faces.margin='{margin}' wants embedders of faces: .*smallconv"):
        replace(config, faces=replace(own, student="smallconv:4-8:8")).check()


def test_real_faces_keep_the_protocol_of_their_set(config, monkeypatch):
    from kdnotes.data.protocols import FaceSets, Pairs

    own = horkd.task_of("faces", 0, config).test
    learnt, test, _ = own.chosen(own.sets())
    prescribed = Pairs(torch.tensor([0, 1]), torch.tensor([1, 9]), torch.tensor([True, False]), 2)
    monkeypatch.setattr("kdnotes.faces.face_sets", lambda dataset, size, least, people, part: FaceSets(learnt, test, prescribed))
    assert replace(own, dataset="lfw", seeds=(3, 3, 3)).load()[1] is prescribed
    assert horkd.people_of(0, config.faces).pictures == config.faces.each and horkd.people_of(0, replace(config.faces, dataset="lfw")).pictures == 0   # all of a real person's
    monkeypatch.setattr("kdnotes.faces.face_sets", lambda dataset, size, least, people, part: FaceSets(learnt))
    other = replace(own, dataset="orl", people=(6, 4), pairs=40, seeds=(3, 3, 3))
    judged, pairs, *_ = other.load()
    assert (len(replace(other, part="train").load().classes), len(judged.classes), len(pairs.same)) == (6, 4, 40)


@pytest.mark.slow
def test_faces_on_lfw_stand_beside_the_number_that_is_known(face_layouts, run_from_parameters, tmp_path, monkeypatch):
    face_layouts.casia(tmp_path), face_layouts.lfw(tmp_path)
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path))
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    tiny = {"teacher": "smallconv:2-4-8:8", "student": "smallconv:2-4-8:8", "size": 24, "steps": 2, "teacher_steps": 2, "methods": ("CE", "HORKD")}
    space = run_from_parameters(horkd, "import matplotlib", dataset="casia", out=str(tmp_path / "run"), overrides={"faces": tiny, "batch_size": 8})
    assert set(space["frame"].dataset) == {"LFW"}
    assert [text.get_text() for text in space["fig"].axes[0].get_yticklabels()] == ["24×24", "16×16"]     # what is seen, and nothing else
    table = space["compare"](space["frame"], space["reported"]("horkd"), horkd.TABLES["faces"], reported_table=space["KNOWN"]["LFW"], settings=())
    found = table.set_index("method").loc["HORKD"]
    assert found["verification accuracy (%) · reported"].startswith("90.03") and found["verification accuracy (%) · reproduced"] != "—"


def test_the_assistant_can_be_left_out():
    config = Config.profile("smoke", assistant="none")
    taught = [row for row in horkd.rows(config) if row.method in ("HORKD", "HORKD + group") and row.table == horkd.TABLES["retrieval"]]
    assert taught and all(row.stage.assistant is None for row in taught)


def test_equal_stages_are_trained_once(config):
    task = horkd.task_of("retrieval", 0, config)
    assert horkd.student_of("HORKD", task, config) == horkd.student_of("HORKD", horkd.task_of("retrieval", 0, config), config)
