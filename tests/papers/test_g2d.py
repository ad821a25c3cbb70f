"""G2D's method: what the encoder may know, what is frozen, what the stages minimise, and what is judged on whom."""
from dataclasses import replace

import pytest
import torch

from kdnotes.data.imageset import to_float
from kdnotes.data.masks import SHAPES, with_drawn_masks
from kdnotes.experiment import Experiment
from kdnotes.papers import g2d
from kdnotes.papers.g2d import (
    CLOSED, EYES, EVERYTHING, MAIN, PAINTED, Cast, Config, Losses, Named, behind, boxes, coded, completion_terms, filled, inpainted, instance,
    masked_batch, relation_terms, rows, vectors,
)
from kdnotes.runtime import fingerprint, make_generator


@pytest.fixture(scope="module")
def config() -> Config:
    return Config.profile("smoke", seeds="0", methods=EVERYTHING, depths=(10, 14))


@pytest.fixture(scope="module")
def experiment(config, tmp_path_factory) -> Experiment:
    return Experiment.alone("g2d", config, tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def cast(config) -> Cast:
    return Cast(config)


def state(module: torch.nn.Module) -> dict[str, str]:
    """The print of every parameter and buffer."""
    return {name: fingerprint(value) for name, value in module.state_dict().items()}


# 2: the encoder never sees what is under the mask, nor which mask it is
def test_neither_what_is_hidden_nor_what_hides_it_reaches_a_vector(experiment, cast):
    cascade = experiment.made(cast.student("G2D", 0))
    x, o = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
    m = with_drawn_masks(x, generator=make_generator(0)).map
    hidden, worn = torch.where(m > 0, torch.rand_like(x), x), torch.where(m > 0, o, x)
    s, f = cascade(coded(x, m)), cascade.descriptor(coded(x, m))
    for other in (hidden, worn):
        assert cascade(coded(other, m)).equal(s) and cascade.descriptor(coded(other, m)).equal(f)
    both = torch.nn.ModuleDict({"teacher": experiment.made(cast.teacher), "painter": experiment.made(cast.painter)})
    for eyes in ("blanked", "filled", "inpainted"):
        see = lambda x, eyes=eyes: EYES[eyes](both if eyes == "inpainted" else both["teacher"], x, m)
        assert see(hidden).equal(see(x)) and see(worn).equal(see(x))
    assert not EYES["direct"](both["teacher"], worn, m).equal(EYES["direct"](both["teacher"], x, m))


# 3: greedy freezing, by the print of every parameter and buffer
def test_each_stage_leaves_the_ones_before_it_bit_for_bit(experiment, cast):
    painter = experiment.made(cast.painter)
    student = cast.student("G2D", 0)
    cascade = experiment.made(student)
    assert state(cascade.encoder) == state(painter.encoder), "stage 2 leaves the encoder"
    assert state(student.fresh(experiment.here).reformer) != state(cascade.reformer)
    named = experiment.made(Named(student, 0, cast.how(4)))
    assert state(named["student"]) == state(cascade), "stage 3 leaves encoder and reformer, the statistics of BatchNorm too"
    fresh = Named(student, 0, cast.how(4)).fresh(experiment.here)
    assert state(fresh["classifier"]) != state(named["classifier"])


def test_what_is_trained_is_what_the_method_says(experiment, cast):
    boxes_, painter = experiment.made(cast.boxes), experiment.made(cast.painter)
    assert state(boxes_.encoder) != state(painter.encoder), "1b goes on from 1a"
    begins = {"encoder of 1a": boxes_.encoder, "G2D, relations only": painter.encoder, "CE on the generative encoder": painter.encoder,
              "random encoder": cast.student("random encoder", 0).fresh(experiment.here).encoder}
    for method, encoder in begins.items():
        assert state(experiment.made(cast.student(method, 0)).encoder) == state(encoder)
    for method, encoder in {"joint finetune": painter.encoder, "end to end, CE": begins["random encoder"]}.items():
        assert state(experiment.made(cast.student(method, 0)).encoder) != state(encoder)


# 4: the teacher sees unmasked faces, is detached and stays as it is
def test_the_targets_are_those_of_unmasked_faces_and_the_teacher_stays_as_it_is(experiment, cast):
    teacher = experiment.made(cast.teacher)
    before = state(teacher)
    targets, images = experiment.made(cast.targets), experiment.read(cast.train).images
    with torch.no_grad():
        assert torch.allclose(targets, teacher(g2d.scaled(to_float(images))).features, atol=1e-5)
    assert state(teacher) == before and not any(p.requires_grad for p in teacher.parameters()) and not targets.requires_grad
    finetuned = experiment.made(cast.finetuned(0))
    assert state(finetuned) != before and state(experiment.made(cast.teacher)) == before


# 7, 8, 10: losses of stage 2
@pytest.mark.parametrize("relation", ["rkd", "cosine"])
def test_relations_forgive_a_rotation_and_the_instance_term_does_not(relation):
    t = torch.randn(16, 6, dtype=torch.float32, generator=make_generator(0))
    turned = (t @ torch.linalg.qr(torch.randn(6, 6, generator=make_generator(1))).Q).requires_grad_()
    losses = replace(Losses(), relation=relation, vertices=1.0)
    alone = relation_terms(turned, t, losses, False)
    assert alone["loss"] < 1e-6 and "instance" not in alone
    whole = relation_terms(turned, t, losses, True)
    assert float(whole["loss"].detach()) == pytest.approx(float(losses.instance * instance(turned, t).detach()), abs=1e-5)
    order = torch.randperm(16)
    assert torch.isclose(relation_terms(turned[order], t[order], losses, True)["loss"], whole["loss"], atol=1e-5)


def test_two_equal_vectors_do_not_break_stage_two():
    s = torch.randn(16, 8, generator=make_generator(2))
    s[1] = s[0]
    s.requires_grad_()
    loss = relation_terms(s, torch.randn(16, 8, generator=make_generator(3)), replace(Losses(), vertices=1.0), True)["loss"]
    (gradient,) = torch.autograd.grad(loss, s)
    assert gradient.isfinite().all() and gradient.norm() < 100


# 11: losses of stage 1
def test_stage_one_weighs_the_hole():
    x, m = torch.rand(3, 3, 16, 16), torch.zeros(3, 1, 16, 16)
    m[:, :, 8:, 8:] = 1
    terms = completion_terms(x + 0.5, x, m, 4.0)
    assert [round(float(v), 5) for v in terms.values()] == [2.5, 0.5, 0.5]


def test_boxes_lie_anywhere_and_are_a_sixteenth_to_a_quarter():
    m = boxes(400, 32, make_generator(0))                     # the very corners are rarely met
    share = m.mean((1, 2, 3))
    assert 0.04 < share.min() and share.max() < 0.30 and (m.mean(0) > 0).float().mean() > 0.98


def test_painting_keeps_what_is_visible_and_filling_takes_its_mean(experiment, cast):
    x = torch.rand(3, 3, 16, 16)
    m = with_drawn_masks(x, generator=make_generator(0)).map
    for y in (inpainted(experiment.made(cast.painter), x, m), filled(x, m)):
        assert torch.where(m > 0, x, y).equal(x) and not y.equal(x)
    visible = x[0][:, m[0, 0] == 0].mean(1)
    assert torch.allclose(filled(x, m)[0][:, m[0, 0] > 0], visible[:, None].expand(-1, int(m[0].sum())), atol=1e-5)


def test_a_share_of_the_pictures_wears_no_mask():
    batch = {"images": torch.randint(0, 256, (400, 3, 16, 16), dtype=torch.uint8)}
    made = masked_batch(batch, make_generator(0), SHAPES[:2], 0.2)
    bare = ~made["map"].any((1, 2, 3))
    assert 0.12 < bare.float().mean() < 0.28 and made["masked"][bare].equal(made["x"][bare])
    assert torch.where(made["map"] > 0, made["x"], made["masked"]).equal(made["x"])


# 15: fold hygiene
def test_people_and_shape_of_the_test_occur_in_no_training(experiment, cast, config):
    train, judged = experiment.read(cast.train), experiment.read(cast.test)
    prints = lambda images: {fingerprint(image) for image in images}
    assert not prints(train.images) & prints(judged.test.images) and not prints(train.images) & prints(judged.known.images)
    assert config.images.unseen not in config.images.shapes
    with pytest.raises(ValueError, match="must be new"):
        Config.profile("smoke", unseen="band")
    stages = [cast.teacher, cast.boxes, cast.painter, cast.finetuned(0), *(cast.student(m, 0) for m in ("G2D", "end to end, CE"))]
    assert not any(config.images.unseen in stage.shapes for stage in stages if hasattr(stage, "shapes"))


def test_the_masks_of_the_test_are_the_same_for_everyone(experiment, cast):
    images = experiment.read(cast.test).test.images
    assert behind(images, "bandana", 3).images.equal(behind(images, "bandana", 3).images)
    assert not behind(images, "bandana", 3).map.equal(behind(images, "bandana", 4).map)


def test_every_row_is_measured_and_stage_three_changes_no_verification(experiment, config):
    frame = g2d.run(experiment).frame()
    assert {*EVERYTHING, PAINTED, *g2d.TEACHERS} == set(frame[frame.table == MAIN].method)
    rates = frame[(frame.table != g2d.COST)].value
    assert rates.between(0, 100).all() and len(frame[frame.table == CLOSED]) == 1
    claims = experiment.judge(g2d.claims(config))
    assert len(claims) == 12 and set(claims.verdict) <= {"inconclusive"}, "one seed decides nothing"
    cost = frame[frame.table == g2d.COST].set_index("method").value
    assert cost[PAINTED] > cost["teacher, direct"]


def test_a_seed_repeats_students_and_not_what_they_stand_on(config):
    stages = [{row.stage for row in rows(replace(config, seeds=(seed,))) if row.table == MAIN} for seed in (0, 1)]
    shared = {type(stage).__name__ for stage in stages[0] & stages[1]}
    assert shared == {"Teacher", "Both"}
    assert {type(s).__name__ for s in stages[0] - stages[1]} == {"Labelled", "Related", "Invariant", "Teacher"}


def test_batches_do_not_change_vectors(experiment, cast):
    cascade, x = experiment.made(cast.student("G2D", 0)), torch.rand(5, 3, 16, 16)
    m = with_drawn_masks(x, generator=make_generator(0)).map
    whole = vectors(cascade, EYES["cascade"], x, experiment.here, m)
    assert torch.allclose(whole[2:3], vectors(cascade, EYES["cascade"], x[2:3], experiment.here, m[2:3]), atol=1e-6)


def test_the_adversary_plays_where_it_has_a_weight(tmp_path):
    config = Config.profile("smoke", seeds="0", adversarial=0.1, discriminator=2, **{"images.size": 32, "boxes_steps": 2, "masks_steps": 2})
    experiment, cast = Experiment.alone("g2d", config, tmp_path), Cast(config)
    plain = Cast(config.change(adversarial=0.0))
    assert state(experiment.made(cast.boxes)) != state(experiment.made(plain.boxes))


def test_dlib_can_give_the_targets(tmp_path, monkeypatch):
    config = Config.profile("smoke", seeds="0", targets="dlib")
    from kdnotes.models.recognisers import Answer
    fake = lambda images: Answer(images.float().mean((2, 3)).repeat(1, 43)[:, :128], torch.zeros(len(images), 68, 2))
    monkeypatch.setattr(g2d, "kept_answers", fake)
    experiment, cast = Experiment.alone("g2d", config, tmp_path), Cast(config)
    assert experiment.made(cast.targets).mean(0).abs().max() < 1e-3 and cast.student("G2D", 0).dim == 128
    assert experiment.made(cast.student("G2D", 0)).reformer.head.out_features == 128


@pytest.mark.parametrize("profile, dataset", [("demo", ""), ("real", "orl"), ("real", "lfw"), ("paper", "casia")])
def test_every_profile_makes_its_rows(profile, dataset):
    config = Config.profile(profile, dataset=dataset)
    assert len(rows(config)) > 0 and g2d.claims(config)
