"""Two views, unseen classes, batches that carry the teacher's answers, training, and the sets of native low-resolution faces."""

from dataclasses import replace

import pytest
import torch

from kdnotes import crossres
from kdnotes.config import Settings
from kdnotes.crossres import (
    Balance, Head, HeldOut, Optimisation, Pictures, Probe, Share, Task, Taught, Unaided, Views, answers, both_views, fresh_network, fresh_recogniser, frozen, learnt, optimise, paired_batches,
    predict_view, weights_of,
)
from kdnotes.data.catalogue import SEARCHES, face_sets, load, search_sets
from kdnotes.data.imageset import first_of_each, join, to_float, unseen_classes
from kdnotes.data.sets.scface import DISTANCES
from kdnotes.data.sets.uccs import subjects_of
from kdnotes.data.augment import channel_statistics
from kdnotes.data.degrade import low_resolution
from kdnotes.experiment import Experiment
from kdnotes.faces import People
from kdnotes.losses.margin import CosFace
from kdnotes.metrics.probe import linear_probe
from kdnotes.metrics.verify import recognition, search, verification
from kdnotes.models.recognisers import Answer
from kdnotes.recipes import Learner, recipe, target_in
from kdnotes.runtime import fingerprint, make_fabric
from kdnotes.train import one_cycle


@pytest.fixture(scope="module")
def digits():
    return load("digits", "train"), load("digits", "test")


@pytest.mark.parametrize("restore, side", [(True, 8), (False, 3)])
def test_views_are_normalised_by_the_high_ones_statistics(digits, restore, side):
    images = digits[0].images[:32]
    mean, std = channel_statistics(digits[0].images)
    seen = both_views(images, Views(low=3, restore=restore), mean, std)
    assert seen["low"].shape == (32, 1, side, side)
    expected = low_resolution(to_float(images), size=3, mode="bilinear", restore=restore)
    assert torch.allclose(seen["low"] * std + mean, expected, atol=1e-6) and torch.allclose(seen["high"] * std + mean, to_float(images), atol=1e-6)


def test_a_view_depends_on_its_image_and_its_draw_alone(digits):
    images, views = digits[0].images[:32], Views(low=4, flip=True, padding=1)
    zero, one = torch.zeros(1), torch.ones(1)
    a, b = (both_views(images, views, zero, one, torch.Generator().manual_seed(3)) for _ in range(2))
    assert a["high"].equal(b["high"]) and a["low"].equal(b["low"]) and not a["high"].equal(to_float(images))
    assert both_views(images, views, zero, one)["high"].equal(to_float(images))          # without a generator nothing moves
    assert views.random and not Views(low=4).random


def test_unseen_classes_share_nothing_with_the_seen(digits):
    for searched in ("test", "all"):
        train, found = unseen_classes(*digits, (0, 3, 7), searched)
        assert set(train.labels.tolist()) == {0, 1, 2} and train.classes == ("0", "3", "7")
        assert set(found.labels.tolist()) == {1, 2, 4, 5, 6, 8, 9}
    assert len(found) == sum(int((~torch.isin(part.labels, torch.tensor([0, 3, 7]))).sum()) for part in digits)
    assert len(join(*digits)) == 1797 and first_of_each(digits[0], 5).labels.bincount().tolist() == [5] * 10


def test_networks_of_one_seed_start_alike():
    a, b, c = (fresh_network("smallconv:4-8-16:32", 10, 1, 8, seed, "retrieval") for seed in (0, 0, 1))
    weight = lambda network: network.trunk.stage1[0].weight
    assert weight(a).equal(weight(b)) and not weight(a).equal(weight(c))
    faces = [fresh_recogniser("smallface:4-8:16", 5, 3, 16, 0, "faces", head=CosFace, scale=8.0, margin=0.1) for _ in range(2)]
    assert faces[0].head.weight.equal(faces[1].head.weight) and faces[0].head.margin == 0.1
    drawn = [(fresh_network("smallconv:4-8-16:32", 10, 1, 8, 0), torch.rand(3))[1] for _ in range(2)]
    assert drawn[0].equal(drawn[1])                                                       # what is drawn next depends on the names, too


def test_a_student_is_shown_a_share_and_sees_it_as_its_teacher_would(digits, tmp_path):
    """A share decides what is learnt from; images are normalised as for a network that learns from all of them."""
    here = Experiment.alone("toy", Settings(), tmp_path).here
    whole = Unaided("digits", 0, Pictures("digits", "train"), "smallconv:4-8-16:32", "low", Views(4, restore=False), Optimisation(4, 64, 1e-3, 0, per_class=4))
    some = replace(whole, share=Share(classes=6, each=5))
    assert whole.shown(here) is here.read(whole.images) and some.shown(here).labels.bincount().tolist() == [5] * 6
    assert not some.shown(here).images.equal(replace(some, seed=1).shown(here).images)                # others for each seed
    assert all(a.equal(b) for a, b in zip(whole.statistics(here), some.statistics(here)))
    assert len(next(iter(whole.batches(here)))["labels"]) == 40 and len(next(iter(some.batches(here)))["labels"]) == 24        # ten, six classes
    mean, std = whole.statistics(here)
    batch = next(iter(some.batches(here)))
    assert batch["high"].equal(both_views(some.shown(here).images, some.views, mean, std)["high"][batch["index"]])
    assert some.fresh(here)(batch["low"]).logits.shape == (24, 6)


@pytest.mark.parametrize("by_view", [False, True])
def test_first_weights_depend_on_the_text_or_on_the_view(digits, tmp_path, by_view):
    here = Experiment.alone("toy", Settings(), tmp_path).here
    low = Unaided("digits", 0, Pictures("digits", "train"), "smallconv:4-8-16:32", "low", Views(4, restore=False), Optimisation(4, 64, 1e-3, 0), starts_by_view=by_view)
    first = lambda stage: stage.fresh(here).trunk.stage1[0].weight
    names = ("low", 4) if by_view else (low.network,)
    assert first(low).equal(fresh_network(low.network, 10, 1, 4, 0, "digits", *names).trunk.stage1[0].weight)
    assert first(low).equal(first(replace(low, view="high"))) is not by_view
    assert first(low).equal(first(replace(low, network="smallconv:4-8-16:16"))) is by_view


@pytest.mark.parametrize("views", [Views(low=3), Views(low=3, flip=True)])
def test_answers_travel_with_their_images(digits, views):
    teacher = fresh_network("smallconv:4-8-16:32", 10, 1, 8, 0).eval()
    looked = []
    teacher.register_forward_pre_hook(lambda module, args: looked.append(len(args[0])))
    batches = paired_batches(digits[0], views, 64, seed=0, teachers={"teacher": (teacher, "low")})
    assert sum(looked) == (0 if views.random else len(digits[0]))                         # once for all where nothing moves
    looked.clear()
    for batch in batches:
        with torch.no_grad():
            torch.testing.assert_close(target_in(batch), teacher(batch["low"]))
    assert looked == [64] * len(batches) * (2 if views.random else 1)                     # ... else at each batch, beside our own look


@pytest.fixture
def pupil(tmp_path):
    """An experiment, and a student of all digits."""
    views, how, seen = Views(3), Optimisation(6, 64, 1e-3, 0), Pictures("digits", "train", per_class=20)
    teacher = Unaided("digits", 0, seen, "smallconv:4-8-16:16", "high", views.known_to("high"), how)
    return Experiment.alone("toy", Settings(), tmp_path), Taught(task="digits", seed=0, images=seen, network="smallconv:2-4-8:8", view="low", views=views, how=how,
                                                                 recipe=recipe("KD, added"), teacher=teacher, stage="stage2")


def test_a_student_learns_the_same_from_answers_that_were_kept(pupil):
    experiment, student = pupil
    parents = {name: experiment.made(parent) for name, parent in student.needs().items()}
    assert set(parents) == {"teacher", "answers"}
    read, asked = (student.build(known, experiment.here, None) for known in (parents, {"teacher": parents["teacher"]}))
    assert all(value.equal(asked[name]) for name, value in read.items()) and fingerprint(read) != fingerprint(student.fresh(experiment.here).state_dict())


@pytest.mark.parametrize("change", [{"views": Views(3, flip=True)}, {"views": Views(3, padding=1)}, {"share": Share(classes=5)}, {"share": Share(each=3)}])
def test_a_student_whose_images_are_others_asks_its_teacher(pupil, change):
    experiment, student = pupil
    other = replace(student, **change)
    assert set(other.needs()) == {"teacher"} and other.build({"teacher": experiment.made(student.teacher)}, experiment.here, None)


# ---- a teacher from outside ------------------------------------------------------------------------------------------------------------------

def told(images):
    """In dlib's place: 128 numbers that depend on the picture's colours and on its size."""
    colour = images.float().mean((2, 3)).double()
    return Answer((colour @ torch.randn(3, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 255).float() + images.shape[-1],
                  torch.zeros(len(images), 68, 2))


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """An experiment and a task on drawn faces with dlib as the teacher, and the sizes and numbers of pictures that were asked for."""
    asked = []
    monkeypatch.setattr(crossres, "kept_answers", lambda images: (asked.append((len(images), images.shape[-1])), told(images))[1])
    train, how = People("faces", "train", 16, (6, 4), 4, 0.5, seeds=(0, 0, 0)), Optimisation(3, 8, 1e-3, 0)
    task = Task("faces", 0, "faces", train, replace(train, part="test", pairs=8, folds=2), ("dlib:24", "smallface:4-8:8"), Views(8, flip=True), how, how,
                Head("cosface", 16.0, 0.1))
    return Experiment.alone("toy", Settings(), tmp_path), task, asked


def test_a_teacher_from_outside_sees_its_own_size_once_and_its_answers_travel_with_the_pictures(outside):
    experiment, task, asked = outside
    teacher, train, judged = experiment.made(task.teacher), experiment.read(task.train), experiment.read(task.test)
    assert asked == [(24, 24), (16, 24)], "training and judged pictures, at 24 pixels"
    large = [told(people.images).embeddings for people in (experiment.read(replace(task.train, size=24)), experiment.read(replace(task.test, size=24)).test)]
    for images, embeddings in zip((train, judged.test), large):
        seen = predict_view(teacher, images.images, "high", task.views, task.teacher.statistics(experiment.here))
        assert torch.allclose(seen.features, embeddings - large[0].mean(0), atol=1e-5) and seen.logits.shape == (len(images), 6)
    batches = task.student(recipe("KD, added"), Taught).batches(experiment.here, {"teacher": (teacher, "high")})
    for batch in batches:                                                             # mirrored at random, and recalled nevertheless
        assert torch.allclose(batch["teacher.features"], (large[0] - large[0].mean(0))[batch["index"]], atol=1e-5)
    assert len(asked) == 2
    predict_view(teacher, train.images, "fed", task.views, task.teacher.statistics(experiment.here))
    assert asked[2:] == [(24, 16)], "what it has not seen it is asked for, as large as it is"


@pytest.mark.parametrize("views", [Views(8), Views(8, restore=False, flip=True)])
@pytest.mark.parametrize("method", ["KD, added", "RKD-DA", "FitNet, unit variance", "CRD"])
def test_students_learn_from_a_teacher_from_outside_by_every_recipe(outside, views, method):
    experiment, task, asked = outside
    task = replace(task, views=views)
    student = task.student(recipe(method).fitted(crd={"n": 4, "share": 0.5}), Taught, stage="stage2")
    assert experiment.made(student).feature_dim == 8 and len(asked) == 2


def test_maps_of_one_place_are_not_compared(pupil):
    experiment, student = pupil
    small = replace(student, recipe=recipe("AT, one stage"), views=Views(4, restore=False))
    with pytest.raises(ValueError, match="stage2 of the student makes maps of one place, where all attention is 1; compare an earlier stage"):
        experiment.made(small)
    plain, taught = (experiment.made(replace(small, recipe=recipe(name), stage="stage1")) for name in ("CE", "AT, one stage"))
    assert any(not mine.equal(other) for mine, other in zip(plain.parameters(), taught.parameters(), strict=True))


def test_a_teacher_from_outside_is_refused_where_it_has_no_answer(outside):
    experiment, task, _ = outside
    with pytest.raises(ValueError, match="teacher='dlib' knows faces, and the task 'faces' is one of digits"):
        print(replace(task, train=Pictures("digits", "train"), dataset="digits", networks=("dlib", "smallconv:4-8:4")).teacher)
    with pytest.raises(ValueError, match="compares maps, and teacher='dlib:24' has none"):
        task.student(recipe("AT, one stage"), Taught, stage="stage2")


def test_a_probe_is_of_the_unseen_classes_or_of_another_set_at_the_same_size():
    like = Pictures("digits", "train", seen=(0, 2, 4))
    unseen, other = Probe("digits", "test", like).load(), Probe("mnist5k", "test", like).load()
    assert unseen.classes == tuple("1356789") and unseen.shape == other.shape == (1, 8, 8) and len(other.classes) == 10
    assert set(unseen.labels.tolist()) == set(range(7)) and len(unseen) == int((~torch.isin(load("digits", "test").labels, torch.tensor([0, 2, 4]))).sum())


# ---- native low resolution -----------------------------------------------------------------------------------------------------------------

@pytest.fixture
def native(tmp_path, face_layouts, monkeypatch):
    """Every native set, CASIA-WebFace and LFW below one root, which the package is told of."""
    for write in (face_layouts.casia, face_layouts.lfw, face_layouts.tinyface, face_layouts.survface, face_layouts.scface, face_layouts.uccs):
        write(tmp_path)
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path))
    return tmp_path


def colours(images):
    """The mean colour, by which the fixtures tell people apart."""
    x = images.images.float().mean((2, 3)) - 100
    return torch.cat([x, torch.ones(len(x), 1)], 1)


def test_the_first_view_of_lfw_is_judged_in_folds(native):
    sets = face_sets("lfw", 8, least=1)
    assert sets.pairs.folds == 2 and recognition(colours(sets.test), sets.test.labels, sets.pairs)["verification_accuracy"] >= 50


def test_every_search_is_opened_whole(native):
    made = {test: search_sets(test, 8) for tests in SEARCHES.values() for test in tests}
    assert {test: (len(sets.gallery), len(sets.probe), sets.cameras) for test, sets in made.items()} == {
        "tinyface": (4 + 3, 3, 1), "survface": (3, 2 + 2, 1)} | dict.fromkeys(DISTANCES, (3, 15, 2))
    for sets in made.values():
        assert sets.gallery.classes == sets.probe.classes and sets.gallery.shape == sets.probe.shape == (3, 8, 8) and sets.gallery.images.dtype == torch.uint8
        found = search(colours(sets.gallery), sets.gallery.labels, colours(sets.probe), sets.probe.labels, ranks=(1, 2))
        assert found["rank1"] == found["rank2"] == found["mean_average_precision"] == 100
    assert fingerprint(search_sets("tinyface", 8)) == fingerprint(made["tinyface"]) and search_sets("tinyface", 4).gallery.shape == (3, 4, 4)
    strangers = search(colours(made["survface"].gallery), made["survface"].gallery.labels, colours(made["survface"].probe), made["survface"].probe.labels, fpirs=(0.5, 0.01))
    assert list(strangers)[-2:] == ["tpir20_at_fpir_0.5", "tpir20_at_fpir_0.01"] and strangers["tpir20_at_fpir_0.5"] >= strangers["tpir20_at_fpir_0.01"]
    with pytest.raises(ValueError, match="unknown search 'scface'; did you mean 'scface:"):
        search_sets("scface", 8)
    (native / "SCface" / "mugshot_frontal_cropped_all").rename(native / "elsewhere")
    with pytest.raises(FileNotFoundError, match="lay the distributed folders"):
        search_sets("scface:1", 16)


def test_faces_to_learn_from_and_the_pairs_of_other_faces(native):
    casia = face_sets("casia", 8, least=2)
    assert len(casia.learnt) == 10 and len(casia.learnt.classes) == 3 and len(casia.test) == 9 and casia.pairs.folds == 2
    assert len(face_sets("casia", 8, people=0).learnt) == 10 and face_sets("casia", 8, people=2).learnt.classes == ("0000045", "0000100")
    tiny, surv = face_sets("tinyface", 8, least=1), face_sets("survface", 8, least=1)
    assert tiny.learnt.classes == ("11", "3") and tiny.test is None and surv.learnt.classes == ("1",) and len(surv.test) == len(surv.pairs.same) == 4
    judged = verification(colours(surv.test), surv.pairs._replace(folds=2), fars=(0.3, 0.001))
    assert judged == {"verification_accuracy": 100, "auc": 100, "equal_error_rate": 0, "tar_at_far_0.3": 100, "tar_at_far_0.001": 100}
    whole = recognition(colours(casia.test), casia.test.labels, casia.pairs)
    assert whole.items() >= verification(colours(casia.test), casia.pairs).items() and whole["rank1"] == 100


def test_subjects_are_classes_whose_last_layer_is_fitted(native):
    train, test = subjects_of(8, subjects=3)
    assert train.classes == test.classes == ("0000", "0001", "0002") and train.labels.bincount().tolist() == [5] * 3 and test.labels.bincount().tolist() == [1] * 3
    assert fingerprint(subjects_of(8, subjects=3)) == fingerprint((train, test))
    logits = linear_probe(colours(train), train.labels, colours(test))
    assert logits.argmax(1).equal(test.labels) and logits.equal(linear_probe(colours(train), train.labels, colours(test)))
    with pytest.raises(ValueError, match="3 subjects in .* have at least 5 pictures; 180 were asked for"):
        subjects_of(8)


# ---- training ------------------------------------------------------------------------------------------------------------------------------

def test_answers_that_are_known_need_no_teacher(digits):
    teacher, views = fresh_network("smallconv:4-8-16:32", 10, 1, 8, 0).eval(), Views(low=3)
    statistics = channel_statistics(digits[0].images)
    known = answers(teacher, both_views(digits[0].images, views, *statistics)["high"], stage="stage2")
    kept, asked = (paired_batches(digits[0], views, 64, 0, **more) for more in ({"known": known}, {"teachers": {"teacher": (teacher, "high")}, "stage": "stage2"}))
    for a, b in zip(kept, asked, strict=True):
        assert a.keys() == b.keys() >= {"teacher.logits", "teacher.features", "teacher.maps"} and all(a[name].equal(b[name]) for name in a)
    with pytest.raises(ValueError, match="are known for images as they are, but Views.* moves them"):
        paired_batches(digits[0], Views(low=3, padding=1), 64, 0, known=known)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_training_is_the_loop_written_out(digits, optimizer):
    """The shared training against plain PyTorch."""
    train, views = first_of_each(digits[0], 12), Views(low=3)
    how = Optimisation(9, 48, 0.01, 1e-2, optimizer, milestones=(2,), milestones_of=4, clip=0.5)
    new = lambda: fresh_network("smallconv:4-8-16:32", 10, 1, 8, 0)
    found = learnt(Learner(new(), recipe("CE")), batches := paired_batches(train, views, 48, seed=1), "low", how, make_fabric("cpu"))
    network = new().train()
    assert len(batches) == 2 and how.epochs(len(batches)) == 4
    kinds = {"adamw": lambda: torch.optim.AdamW(network.parameters(), 0.01, weight_decay=1e-2), "sgd": lambda: torch.optim.SGD(network.parameters(), 0.01, 0.9, weight_decay=1e-2)}
    plain, factor = kinds[optimizer](), one_cycle() if optimizer == "adamw" else lambda step, total: 0.1 ** (step >= 4)
    step = 0
    for epoch in range(4):
        batches.set_epoch(epoch)
        for batch in batches:
            plain.param_groups[0]["lr"] = 0.01 * factor(step, 8)
            plain.zero_grad()
            torch.nn.functional.cross_entropy(network(batch["low"]).logits, batch["labels"]).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            plain.step()
            step += 1
    assert all(torch.allclose(value, found[name], atol=1e-6) for name, value in network.state_dict().items())


def test_a_kept_network_is_frozen_and_asked_about_a_view(digits):
    new, views, statistics = lambda seed: fresh_network("smallconv:4-8-16:32", 10, 1, 8, seed), Views(low=3, restore=False), channel_statistics(digits[0].images)
    network = frozen(new(0), weights_of(new(1)))
    assert not network.training and not any(p.requires_grad for p in network.parameters()) and fingerprint(network.state_dict()) == fingerprint(new(1).state_dict())
    images = digits[1].images[:5]
    shown = {view: predict_view(network, images, view, views, statistics).features for view in ("high", "fed")}
    x = both_views(images, Views(low=3), *statistics)
    assert shown["high"].equal(network(x["high"]).features) and shown["fed"].equal(network(x["low"]).features)
    assert [views.side(view, 8) for view in ("high", "low")] == [8, 3] and Views(low=3).side("low", 8) == 8
    with pytest.raises(ValueError, match="unknown view 'fedd'; did you mean 'fed'"):
        predict_view(network, images, "fedd", views, statistics)


@pytest.mark.parametrize("call, words", [
    (lambda: Views(low=0), ("low=0",)), (lambda: Views(low=3, mode="cubic"), ("mode", "bicubic")), (lambda: Optimisation(8, 48, 1e-3, 0, "adam"), ("adam", "adamw")),
    (lambda: unseen_classes(load("digits", "train"), load("digits", "test"), tuple(range(9))), ("leaves 1 of the 10", "two unseen")),
    (lambda: unseen_classes(load("digits", "train"), load("digits", "test"), (0, 1), "train"), ("'train'", "test")),
])
def test_bad_requests_say_what_is_expected(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), str(error.value)


# a part is held out
@pytest.mark.parametrize("by", ["images", "classes"])
def test_what_is_held_out_is_not_learnt_from(by):
    whole = Pictures("digits", "train")
    learnt, held = (HeldOut(whole, part, by).load() for part in ("train", "test"))
    pixels = [{tuple(x.flatten().tolist()) for x in images.images} for images in (learnt, held)]
    assert len(learnt) + len(held) == len(whole.load()) and len(held) > 200 and not pixels[0] & pixels[1]
    assert (learnt.classes == held.classes) == (by == "images") and set(held.labels.tolist()) == set(range(len(held.classes)))
    judged = HeldOut(whole, "test", by, pairs=200).load()
    assert judged.test.images.equal(held.images) and len(judged.pairs.same) == 2 * judged.pairs.same.sum() >= 140


@pytest.mark.parametrize("bad, words", [({"part": "tset"}, "did you mean 'test'"), ({"part": "test", "by": "class"}, "did you mean 'classes'")])
def test_an_unknown_part_is_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        HeldOut(**{"of": Pictures("digits", "train"), **bad}).load()


def a_student(name, **more):
    images, how = Pictures("digits", "train", per_class=20), Optimisation(8, 50, 2e-3, 1e-2)
    teacher = Unaided("digits", 0, images, "smallconv:4-8-16:24", "high", Views(4).known_to("high"), how)
    return Taught(task="digits", seed=0, images=images, network="smallconv:4-8-16:16", view="low", views=Views(4, **more), how=how, recipe=recipe(name),
                  teacher=teacher, stage="stage1")


def test_the_balance_is_that_of_the_very_training(tmp_path, monkeypatch):
    """Watching changes nothing: the watched student ends with the weights of the kept one."""
    experiment, student, ended = Experiment.alone("toy", Settings(), tmp_path), a_student("KD, added"), []
    monkeypatch.setattr("kdnotes.crossres.weights_of", lambda network: ended.append(weights_of(network)) or ended[-1])
    kept, found = experiment.made(student), experiment.made(Balance(student, points=3))
    assert all(value.equal(kept.state_dict()[name]) for name, value in ended[-1].items())
    assert found["share of the training"].tolist() == [0, 0.5, 1] and found["kd ratio"].shape == (3,) and (found["kd ratio"] > 0).all()
    assert (found["kd cosine"].abs() <= 1).all()


def test_attention_meets_at_the_smaller_maps(tmp_path):
    """The student sees 4 pixels, the teacher 8: the teacher's features are averaged down before their energy is taken."""
    here = Experiment.alone("toy", Settings(), tmp_path).here
    student = a_student("AT, one stage", restore=False)
    assert set(student.needs()) == {"teacher"} and set(a_student("KD, added").needs()) == {"teacher", "answers"}
    teacher = student.teacher.fresh(here).eval()
    learner, batches = student.lesson({"teacher": teacher}, here)
    batch, heard = next(iter(batches)), []
    teacher.trunk.stage1.register_forward_hook(lambda module, x, maps: heard.append(maps))
    with torch.no_grad():
        teacher(batch["high"])
    expected = torch.nn.functional.avg_pool2d(heard[0], 2).square().mean(1, keepdim=True).sqrt()
    assert batch["teacher.maps"].shape[2:] == (2, 2) and torch.allclose(batch["teacher.maps"], expected, atol=1e-5)
    assert learner.predict(batch["low"])[1]["student.maps"].shape[2:] == (2, 2)


def test_distillation_ends_at_its_share_of_the_training(tmp_path):
    experiment = Experiment.alone("toy", Settings(), tmp_path)
    student = a_student("KD, added")
    student = replace(student, recipe=replace(student.recipe, until=0.5))
    learner, batches = student.lesson({name: experiment.made(stage) for name, stage in student.needs().items()}, experiment.here)
    history = learnt_history(learner, batches, student.how, experiment.here.fabric)
    assert learner.last == 4 and [row["kd"] > 0 for row in history.rows] == [True, False]


def learnt_history(learner, batches, how, fabric):
    return optimise(learner, batches, lambda learner, batch: learner(batch["low"], batch), how, fabric)
