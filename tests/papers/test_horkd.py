"""The wiring of HORKD's three streams; the closed forms of its losses are tested with the losses themselves."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kdnotes.crossres import both_views, parse_network
from kdnotes.losses import relational
from kdnotes.papers import horkd
from kdnotes.papers.horkd import Config, Learner, Recipe, Stream, TERMS
from kdnotes.models.classifiers import Prediction, build, count_parameters
from kdnotes.parallel import Place
from kdnotes.runtime import make_fabric

EVERYTHING = Recipe(task=1, kd=1, point=1, pair=25, triplet=50, group=300)
BRIDGED = replace(EVERYTHING, assistant="student_arch_hr", targets="both", init_from_assistant=True)


@pytest.fixture
def config():
    return Config.profile("smoke", seeds=(0,), steps=2, teacher_steps=2, train_size=24, low_sweep=(4,), weight_sweep=(0.2,))


@pytest.fixture
def place(tmp_path):
    return Place("cpu", "32-true", tmp_path)


def prediction(n=8, d=5, classes=4, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    logits, features = (torch.randn(n, k, generator=generator, requires_grad=grad) for k in (classes, d))
    return Prediction(logits, features)


# 8: no gradient reaches the teacher, nor, in the second stage, the assistant
@pytest.mark.parametrize("targets", ["teacher", "assistant", "both"])
def test_no_gradient_reaches_what_teaches(targets):
    s, t, a = prediction(seed=1, grad=True), prediction(seed=2, grad=True), prediction(seed=3, grad=True)
    recipe = replace(EVERYTHING, assistant="student_arch_hr", targets=targets)
    horkd.hybrid_loss(recipe, s, {}, {"teacher": t, "assistant": a}, torch.arange(8) % 4)["loss"].backward()
    assert all(part.grad is None for part in (*t, *a))
    assert all(part.grad.abs().sum() > 0 for part in s)


# 13: a weight of zero removes the computation, not only its gradient
@pytest.mark.parametrize("term", TERMS)
def test_a_weight_of_zero_removes_the_computation(term, monkeypatch):
    called = []
    for name in ("kd_loss", "point_loss", "pair_loss", "triplet_loss", "group_loss"):
        original = getattr(horkd, name)
        monkeypatch.setattr(horkd, name, lambda *args, _name=name, _original=original, **kw: (called.append(_name), _original(*args, **kw))[1])
    s, t = prediction(seed=1), prediction(seed=2)
    terms = horkd.hybrid_loss(replace(EVERYTHING, **{term: 0.0}), s, {}, {"teacher": t}, torch.arange(8) % 4)
    assert f"{term}_loss" not in called and len(called) == 4 and term not in terms


def test_the_sum_is_the_sum_of_its_weighted_terms():
    s, t, labels = prediction(seed=1), prediction(seed=2), torch.arange(8) % 4
    terms = horkd.hybrid_loss(EVERYTHING, s, {}, {"teacher": t}, labels)
    assert torch.allclose(terms["loss"], sum(value for name, value in terms.items() if name != "loss"))
    assert torch.allclose(terms["task"], F.cross_entropy(s.logits, labels))
    assert torch.allclose(terms["pair"], 25 * relational.pair_loss(s.features, t.features))
    assert torch.allclose(terms["triplet"], 50 * relational.triplet_loss(s.features, t.features))


def test_both_targets_average_the_higher_orders_and_take_the_first_from_the_assistant():
    s, t, a = prediction(seed=1), prediction(seed=2), prediction(seed=3)
    terms = horkd.hybrid_loss(replace(BRIDGED, group=0), s, {}, {"teacher": t, "assistant": a}, torch.arange(8) % 4)
    pair = (relational.pair_loss(s.features, t.features) + relational.pair_loss(s.features, a.features)) / 2
    assert torch.allclose(terms["pair"], 25 * pair)
    assert torch.allclose(terms["point"], ((s.features - a.features) ** 2).mean() / a.features.var(0, unbiased=False).mean())


# 14: teacher and assistant see the high view, the student the low view, of the same image with the same flip and crop
def test_the_views_of_a_batch_belong_together(config):
    moved = replace(config, flip=True, padding=1, mode="area", low=4)
    stream = Stream("classification", 0, moved.student, Recipe(task=1), low=4)
    images = horkd.data_of(stream, moved)[0].images[:32]
    zero, one = torch.zeros(1), torch.ones(1)
    for generator in (None, torch.Generator().manual_seed(0)):
        views = both_views(images, horkd.views_of(moved, 4), zero, one, generator)
        low = F.interpolate(F.adaptive_avg_pool2d(views["high"], 4), size=8, mode="area")
        assert torch.allclose(views["low"], low, atol=1e-6)
    assert not torch.equal(views["high"], both_views(images, horkd.views_of(moved, 4), zero, one)["high"])


def test_teacher_and_assistant_look_at_the_high_view_and_the_student_at_the_low_one(config):
    student = Stream("retrieval", 0, config.student, BRIDGED, low=3)
    parents = horkd.ancestors(student, config)
    assert student.view == "low" and {name: parent.view for name, parent in parents.items()} == {"teacher": "high", "assistant": "high"}
    low = horkd.assistant_of(replace(student, recipe=replace(BRIDGED, assistant="teacher_arch_lr", init_from_assistant=False)), config)
    assert (low.view, low.network) == ("low", config.teacher)


@pytest.mark.parametrize("flip", [False, True])
def test_targets_travel_with_their_images(config, place, flip):
    config = replace(config, flip=flip)
    stream = Stream("retrieval", 0, config.student, BRIDGED, low=3)
    teachers = {name: horkd.new_network(parent, config).eval() for name, parent in horkd.ancestors(stream, config).items()}
    views = {"teacher": "high", "assistant": "high"}
    for batch in horkd.training_batches(stream, config, teachers, views, torch.device("cpu")):
        for name, target in horkd.targets_in(batch).items():
            with torch.no_grad():
                expected = teachers[name](batch["high"])
            assert torch.allclose(target.features, expected.features, atol=1e-5)


# 17: with the assistant's weights and its view, the student starts at zero loss against the assistant
def test_a_student_that_is_the_assistant_has_nothing_to_learn(config):
    recipe = replace(BRIDGED, task=0, kd=0, targets="assistant")
    stream = Stream("retrieval", 0, config.student, recipe, low=3)
    assistant = horkd.new_network(replace(stream, seed=7), config).eval()
    learner = horkd.learner_of(stream, {"assistant": assistant}, config).eval()
    assert all(isinstance(r, torch.nn.Identity) for r in learner.r.values())
    images = both_views(horkd.data_of(stream, config)[0].images[:32], horkd.views_of(config, 3), torch.zeros(1), torch.ones(1))["high"]
    with torch.no_grad():
        s, r = learner(images)
        terms = horkd.hybrid_loss(recipe, s, r, {"assistant": assistant(images)}, torch.zeros(32, dtype=torch.int64))
    assert all(float(value) < 1e-6 for value in terms.values()), terms


# 18: what is kept is the student alone
def test_inference_needs_the_plain_student_only(config, place):
    stream = Stream("retrieval", 0, config.student, BRIDGED, low=3)
    network = horkd.learn(stream, config, place)
    name, options = parse_network(config.student)
    plain = build(name, 5, channels=1, size=8, **options)
    assert type(network) is type(plain) and count_parameters(network) == count_parameters(plain)
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert not any(parameter.requires_grad for parameter in network.parameters()) and not network.training


def test_the_regression_is_trained_where_dimensions_differ_and_identity_where_not():
    network = build("smallconv", 3, channels=1, size=8, widths=(4, 4, 4), embedding=6)
    learner = Learner(network, {"teacher": 10, "assistant": 6})
    _, r = learner(torch.randn(2, 1, 8, 8))
    assert r["teacher"].shape == (2, 10) and r["assistant"].shape == (2, 6)
    assert count_parameters(learner) == count_parameters(network) + 6 * 10 + 10


# 20: the rows of the expected ordering are all there, and its verdict comes from the data
def test_every_row_and_claim_of_the_study_is_planned(config):
    rows = horkd.trials(config)
    methods = {row.method for row in rows if row.table == horkd.TABLES["retrieval"]}
    assert {"CE", "KD", "FitNet", "RKD-D", "RKD-A", "RKD-DA", "SP", "TAKD", "HORKD, order 1", "HORKD, orders 1+2", "HORKD", "HORKD + group"} <= methods
    named = {side for claim in horkd.claims(config) for side in (claim.better, claim.worse)}
    assert named <= methods


# 20: ... and the part of the ordering that is far outside the noise is held here: relations beat labels on unseen classes
@pytest.mark.slow
def test_relations_beat_labels_on_unseen_classes_at_low_resolution(place):
    config = Config.profile("demo")
    methods = horkd.recipes("retrieval", config)

    def recall(name, seed):
        stream = Stream("retrieval", seed, config.student, methods[name], config.low)
        return horkd.measure(horkd.Trial("", name, stream, "low"), config, place)["recall_at_1"]

    for seed in (0, 1):
        assert recall("HORKD, no assistant", seed) > recall("CE", seed) + 2


def test_joint_and_two_stage_differ_in_what_is_trained_beforehand(config):
    stream = Stream("retrieval", 0, config.student, BRIDGED, low=3)
    joint = replace(stream, recipe=replace(BRIDGED, schedule="joint", init_from_assistant=False))
    assert set(horkd.ancestors(stream, config)) == {"teacher", "assistant"} and set(horkd.ancestors(joint, config)) == {"teacher"}
    module, step = horkd.assemble(joint, {"teacher": horkd.new_network(horkd.ancestors(joint, config)["teacher"], config)}, config)
    n = 6
    batch = {"high": torch.randn(n, 1, 8, 8), "low": torch.randn(n, 1, 8, 8), "labels": torch.arange(n) % 5,
             "teacher.logits": torch.randn(n, 5), "teacher.features": torch.randn(n, 16)}
    step(module, batch)["student"].backward()
    grads = [p.grad for p in module.assistant.parameters()]
    assert all(g is None for g in grads), "the student's loss must not move the assistant"


def test_unseen_classes_are_never_trained_on(config):
    stream = Stream("retrieval", 0, config.student, Recipe(task=1), low=3)
    train, test = horkd.data_of(stream, config)
    assert len(train.classes) == 5 and set(test.labels.tolist()) == {1, 3, 5, 7, 9}
    assert sorted(train.classes) == ["0", "2", "4", "6", "8"]


def test_every_generation_follows_its_ancestors(config):
    levels = horkd.generations([row.stream for row in horkd.trials(config)], config)
    seen = set()
    for level in levels:
        assert all(set(horkd.ancestors(stream, config).values()) <= seen for stream in level)
        assert not seen & set(level)
        seen |= set(level)


def test_equal_seeds_start_from_equal_weights(config):
    a, b = (Stream("retrieval", 3, config.student, recipe, 3) for recipe in (Recipe(task=1), replace(BRIDGED, init_from_assistant=False)))
    first, second = horkd.new_network(a, config).state_dict(), horkd.new_network(b, config).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_second_run_trains_nothing_and_gives_the_same_numbers(tmp_path, monkeypatch):
    config = Config.profile("smoke", seeds=(0,), steps=2, teacher_steps=2, train_size=24, tasks=("retrieval",), low_sweep=(), weight_sweep=())
    monkeypatch.setattr(Place, "map", lambda self, function, items, desc: [function(item) for item in items])
    fabric = make_fabric("cpu", "fp32")
    first = horkd.run(config, fabric, tmp_path).frame()
    monkeypatch.setattr(horkd, "fit", lambda *args, **kw: pytest.fail("trained again"))
    second = horkd.run(config, fabric, tmp_path).frame()
    assert first.equals(second) and first.value.between(0, 100).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"low": 0}, "low=0"),
        ({"student": "smalconv:4-8:3"}, "did you mean 'smallconv'"),
        ({"student": "smallconv:4-x-16:32"}, "name:widths:embedding"),
        ({"tasks": ("retrival",)}, "did you mean 'retrieval'"),
        ({"assistant": "big"}, "student_arch_hr"),
        ({"pair": -1.0}, "must be >= 0"),
        ({"step": 3}, "did you mean 'steps'"),
        ({"seen": (1,)}, "at least two classes"),
        ({"face_low": 64}, "must not exceed the high resolution, face_size=32"),
        ({"face_methods": ("HORKDD",)}, "did you mean 'HORKD'"),
        ({"people": (5,)}, "two numbers of at least 2"),
        ({"face_student": "smalconv"}, "did you mean 'smallconv'"),
    ],
)
def test_bad_configurations_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        Config.profile("demo", **overrides)


@pytest.mark.parametrize(("profile", "dataset"), [(name, "") for name in Config.PROFILES] + sorted(Config.DATASETS))
def test_every_profile_is_a_valid_configuration(profile, dataset):
    config = Config.profile(profile, dataset=dataset)
    assert config.profile_name == profile and (not dataset or config.dataset == dataset)
    assert horkd.trials(replace(config, seeds=(0,)))


def test_a_network_is_one_line_of_text():
    assert parse_network("resnet50::512:pretrained") == ("resnet50", {"embedding": 512, "pretrained": True})
    assert parse_network("smallconv:4-8-16:32") == ("smallconv", {"widths": (4, 8, 16), "embedding": 32})
    assert parse_network("resnet20") == ("resnet20", {})


def test_splits_that_are_disjoint_in_classes_already(monkeypatch):
    """CUB-200-2011 and Cars196: training and test images share no class."""
    from kdnotes.data.images import ImageSet

    classes = tuple("abcd")
    sets = {split: ImageSet(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), labels, classes, "birds")
            for split, labels in (("train", torch.tensor([0, 0, 0, 1, 1, 1])), ("test", torch.tensor([2, 2, 2, 3, 3, 3])))}
    monkeypatch.setattr(horkd, "load", lambda name, split, size=None: sets[split])
    train, test = horkd.images_of("birds of this test", "retrieval", (0, 1), "all", 0, 0)
    assert set(train.labels.tolist()) == {0, 1} and set(test.labels.tolist()) == {2, 3} and len(test) == 6


# faces: the third family of tasks
def test_faces_are_of_people_nobody_has_seen_and_others_for_each_seed(config):
    sets = [horkd.people_of(config, seed) for seed in (0, 1)]
    for people in sets:
        assert (len(people.learnt.classes), len(people.test.classes)) == config.people and len(people.learnt) == config.people[0] * config.each
        rows = [{tuple(x.flatten()[:50].tolist()) for x in part.images} for part in people[:2]]
        assert not rows[0] & rows[1]
        assert torch.equal(people.pairs.same, people.test.labels[people.pairs.first] == people.test.labels[people.pairs.second]) and people.pairs.same.sum() == config.pairs // 2
    assert not torch.equal(sets[0].test.images, sets[1].test.images)


def test_faces_have_data_resolution_networks_and_steps_of_their_own(config):
    own = horkd.config_for("faces", config)
    assert (own.dataset, own.size, own.low, own.teacher, own.student, own.steps) == ("faces", 32, 16, config.face_teacher, config.face_student, config.face_steps)
    assert horkd.config_for("faces", own) == own and horkd.config_for("retrieval", config) is config
    rows = horkd.main_table("faces", 0, config)
    assert {row.method for row in rows} == {"teacher on high", "teacher fed low", "assistant on high", "assistant fed low", *config.face_methods}
    for row in rows:
        assert row.setting == (("low", 16),) and row.stream.low in (0, 16)
        assert {parent.network for name, parent in horkd.ancestors(row.stream, config).items() if name == "teacher"} <= {config.face_teacher}
    assert all(recipe.task == 1 for recipe in horkd.recipes("faces", config).values())


def test_faces_are_verified_and_identified(config, place):
    rows = {row.method: row for row in horkd.main_table("faces", 0, config)}
    found = horkd.measure(rows["HORKD"], config, place)
    assert set(found) == {"verification_accuracy", "auc", "rank1", "rank5"} and all(0 <= value <= 100 for value in found.values())
    prediction, labels = horkd.outputs(rows["HORKD"].stream, "low", 16, config, place)
    people = horkd.people_of(config, 0)
    assert labels.equal(people.test.labels) and prediction.logits.shape == (len(labels), config.people[0])
    other = horkd.measure(rows["HORKD"], replace(config, steps=99, low=2), place)         # the other tasks' fields do not concern the faces
    assert other == found


def test_real_faces_keep_the_protocol_of_their_set(config, monkeypatch):
    from kdnotes.crossres import FaceSets
    from kdnotes.data.folders import Pairs

    own = horkd.people_of(config, 0)
    prescribed = Pairs(torch.tensor([0, 1]), torch.tensor([1, 9]), torch.tensor([True, False]), 2)
    monkeypatch.setattr(horkd, "face_sets", lambda dataset, size, least, people: FaceSets(own.learnt, own.test, prescribed))
    assert horkd.people_of(replace(config, face_dataset="lfw"), 3).pairs is prescribed
    monkeypatch.setattr(horkd, "face_sets", lambda dataset, size, least, people: FaceSets(own.learnt))
    sets = horkd.people_of(replace(config, face_dataset="orl", people=(6, 4), pairs=40), 3)
    assert (len(sets.learnt.classes), len(sets.test.classes), len(sets.pairs.same)) == (6, 4, 40)


def test_the_assistant_can_be_left_out():
    config = Config.profile("smoke", assistant="none")
    assert all(recipe.assistant == "none" for name, recipe in horkd.recipes("retrieval", config).items() if name != "TAKD")
    assert len(horkd.trials(config)) > 0


def test_a_copy_of_a_recipe_is_the_same_stream():
    assert Stream("retrieval", 0, "resnet20", copy.deepcopy(BRIDGED), 3) == Stream("retrieval", 0, "resnet20", BRIDGED, 3)


@pytest.mark.parametrize(("dataset", "words", "other"), [("casia", "CASIA-WebFace", "uccs/"), ("uccs", "uccs", "CASIA"), ("cub200", "CUB_200_2011", "CASIA")])
def test_a_run_without_its_data_is_refused_before_it_starts(tmp_path, dataset, words, other):
    from kdnotes.batch.plan import check_data

    with pytest.raises(FileNotFoundError, match="the data of .* are not there") as error:
        check_data(Config, dataset, tmp_path)
    assert words in str(error.value) and other not in str(error.value) and "\n" not in str(error.value)
    check_data(Config, "digits", tmp_path)
