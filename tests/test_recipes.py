"""One registry of baselines: a name is one recipe; terms against their formulas; what the learner does with them; which code a recipe reaches."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn import functional as F

from kdnotes.losses.contrastive import CRDLoss
from kdnotes.losses.margin import ArcFace
from kdnotes.models.classifiers import Prediction
from kdnotes.models.written import fresh, recogniser
from kdnotes.prints import code_parts
from kdnotes.recipes import (
    BASELINES,
    Angles,
    Attention,
    DifferenceContrast,
    Distances,
    DistancesAndAngles,
    Hint,
    HintByDeviation,
    HintByVariance,
    Learner,
    Recipe,
    RelationalContrast,
    SampleContrast,
    Similarities,
    SoftLabels,
    Term,
    Watched,
    gradient_balance,
    recipe,
    written_out,
)
from kdnotes.runtime import fingerprint

KEYS = torch.arange(48) % 6


def a_batch(d=10, classes=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g)
    return {"labels": KEYS[:24], "index": torch.arange(24), "teacher.logits": draw(24, classes), "teacher.features": 3 * draw(24, d) + 1,
            "assistant.logits": draw(24, classes), "assistant.features": draw(24, d), "teacher.maps": draw(24, 1, 2, 2).abs(), "x": draw(24, 1, 8, 8)}


def learner(terms, d=10, labels=1.0, **more):
    return Learner(fresh("smallconv:4-8-16:10", 6, 1, 8, 0), Recipe(labels, terms), {"teacher": d, "assistant": d}, KEYS, **more)


def test_what_each_name_means():
    """The weights are those of the papers' first runs; a changed one is another baseline and needs another name."""
    assert {name: written_out(found.recipe) for name, found in BASELINES.items()} == {
        "CE": "1 labels", "Student": "1 labels", "KD": "0.1 labels + 0.9 kd(form=ce)", "KD, added": "1 labels + 1 kd", "TAKD": "1 labels + 1 kd(from assistant)",
        "FitNet, embedding": "1 labels + 100 fitnet", "FitNet, unit variance": "1 labels + 1 point", "FitNet, unit deviation": "1 labels + 1 hint", "AT, one stage": "1 labels + 1000 at",
        "SP, embedding": "1 labels + 3000 sp", "SP, weight 300": "1 labels + 300 sp", "CC": "1 labels + 100 cc", "VID, embedding": "1 labels + 1 vid", "PKT": "1 labels + 30000 pkt",
        "RKD": "1 labels + 1 rkd", "RKD-D": "1 labels + 25 pair", "RKD-A": "1 labels + 50 triplet", "RKD-DA": "1 labels + 25 pair + 50 triplet",
        "CRD": "1 labels + 0.8 crd", "CRCD": "1 labels + 1 crcd", "FitNet, unit variance, no labels": "1 point", "SP, weight 300, no labels": "300 sp",
        "RKD-D, no labels": "25 pair", "RKD-A, no labels": "50 triplet", "RKD-DA, no labels": "25 pair + 50 triplet"}
    assert all(found.source for found in BASELINES.values())
    assert len({fingerprint(found.recipe) for found in BASELINES.values()}) == len(BASELINES) - 1         # the labels alone have two names in the literature
    with pytest.raises(ValueError, match="unknown baseline 'FitNet, embeding'; did you mean 'FitNet, embedding'"):
        recipe("FitNet, embeding")


def test_terms_are_their_formulas():
    batch = a_batch()
    s, t = Prediction(torch.randn(24, 6), torch.randn(24, 10)), Prediction(batch["teacher.logits"], batch["teacher.features"])
    same = torch.nn.Identity()
    value = lambda term, head=None: term.value(s, t, batch, head)
    square = (s.features - t.features).square().mean()
    torch.testing.assert_close(value(Hint(1.0), same), square)
    torch.testing.assert_close(value(HintByVariance(1.0), same), square / (t.features - t.features.mean(0)).square().mean())
    torch.testing.assert_close(value(HintByDeviation(1.0), same), square / t.features.var())
    torch.testing.assert_close(value(DistancesAndAngles(1.0)), 25 * value(Distances(1.0)) + 50 * value(Angles(1.0)))
    p, log_q = (t.logits / 4).softmax(1), (s.logits / 4).log_softmax(1)
    torch.testing.assert_close(value(SoftLabels(1.0, form="ce")), -16 * (p * log_q).sum(1).mean())
    torch.testing.assert_close(value(SoftLabels(1.0)), 16 * (p * (p.log() - log_q)).sum(1).mean())
    wider = Prediction(torch.cat([t.logits, torch.randn(24, 3)], 1), t.features)                          # a teacher who knows more classes
    torch.testing.assert_close(SoftLabels(1.0).value(s, wider, batch, None), value(SoftLabels(1.0)))
    G = lambda e: F.normalize(e @ e.T, dim=1)
    torch.testing.assert_close(value(Similarities(1.0)), (G(s.features) - G(t.features)).square().mean())


def test_heads_are_built_for_two_dimensions_and_bounded_by_the_images():
    assert isinstance(Hint(1.0).head(10, 10, KEYS), torch.nn.Linear)
    for kind in (HintByVariance, HintByDeviation):
        assert isinstance(kind(1.0).head(10, 10, KEYS), torch.nn.Identity) and kind(1.0).head(10, 7, KEYS).weight.shape == (7, 10)
    assert [SampleContrast(1.0, n=n, share=share).head(10, 7, KEYS).n for n, share in ((9, 0.0), (40, 0.5), (9, 0.5))] == [9, 24, 9]
    assert [RelationalContrast(1.0, n=n, share=share).head(10, 7, KEYS).sides["teacher"].n for n, share in ((9, 0.0), (500, 0.0), (500, 0.5))] == [9, 47, 24]
    crcd = DifferenceContrast(1.0, n=8).head(10, 7, KEYS)
    assert list(crcd.sides) == ["teacher", "student"] and {side.critic.temperature for side in crcd.sides.values()} == {0.05}
    assert SampleContrast(1.0, policy="index").head(10, 7, KEYS).negatives.keys.equal(torch.arange(48))
    with pytest.raises(ValueError, match="unknown policy 'label'; did you mean 'labels'"):
        SampleContrast(1.0, policy="label").head(10, 7, KEYS)


def test_the_loss_is_the_weighted_sum_and_teachers_get_no_gradient():
    batch, terms = a_batch(), (SoftLabels(0.5), HintByVariance(2.0, ("assistant",)), Distances(25.0, ("teacher", "assistant")))
    made = learner(terms, labels=0.3)
    for name in ("teacher.logits", "teacher.features", "assistant.logits", "assistant.features"):
        batch[name].requires_grad_(True)
    found = made(batch["x"], batch)
    s = made.network(batch["x"])
    target = lambda name: Prediction(batch[f"{name}.logits"], batch[f"{name}.features"])
    each = [Distances(1.0).value(s, target(name), batch, None) for name in ("teacher", "assistant")]
    expected = {"labels": 0.3 * F.cross_entropy(s.logits, batch["labels"]), "kd": 0.5 * SoftLabels(1.0).value(s, target("teacher"), batch, None),
                "point": 2 * HintByVariance(1.0).value(s, target("assistant"), batch, torch.nn.Identity()), "pair": 25 * (each[0] + each[1]) / 2}
    assert list(found) == ["loss", *expected]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["loss"], sum(found[name] for name in expected))
    found["loss"].backward()
    assert all(batch[f"{name}.{part}"].grad is None for name in ("teacher", "assistant") for part in ("logits", "features"))
    assert made.network.trunk.stage1[0].weight.grad is not None and made.recipe.teachers == ("teacher", "assistant")


def test_labels_of_faces_have_their_margin_and_maps_are_heard_only_where_a_term_looks():
    face_net, labels = recogniser("smallface:4-8:10", 6, 1, 8, ArcFace), KEYS[:24]
    found = Learner(face_net, recipe("CE"))(a_batch()["x"], {"labels": labels})
    torch.testing.assert_close(found["loss"], face_net.head(face_net(a_batch()["x"]).features, labels))
    assert learner((SoftLabels(1.0),)).predict(a_batch()["x"])[1] == {}
    assert learner((Attention(1.0),), stage="stage1").predict(a_batch()["x"])[1]["student.maps"].shape == (24, 1, 4, 4)
    with pytest.raises(ValueError, match="unknown stage 'stage9' of a Classifier; known: stage1"):
        learner((Attention(1.0),), stage="stage9").predict(a_batch()["x"])


def test_a_memory_can_start_full():
    made = learner((RelationalContrast(1.0, n=8, p=4), SampleContrast(1.0, n=8, p=4), SoftLabels(1.0)))
    rows = torch.randn(48, 10)
    made.remember(rows)
    filled = made.heads["rcd teacher"].sides["teacher"].bank.rows                      # each once, in drawn order: data may come by class
    assert filled[filled[:, 0].argsort()].equal(rows[rows[:, 0].argsort()]) and not filled.equal(rows)
    assert isinstance(made.heads["crd teacher"], CRDLoss)
    learner((RelationalContrast(1.0, n=8, sides="student"),)).remember(rows)                                # nothing of the teacher's to fill


# what pulls on the weights
def test_the_balance_of_the_gradients_is_that_of_the_weights_which_all_terms_reach():
    made, batch = learner((SoftLabels(0.5), HintByVariance(2.0), RelationalContrast(1.0, n=8, p=4))), a_batch()
    s, maps = made.predict(batch["x"])
    terms = made.terms(s, batch)
    found = gradient_balance(made, s, batch, terms)
    shared = [w for name, w in made.network.named_parameters() if not name.startswith("classifier")]
    flat = lambda loss: torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)])
    own = flat(F.cross_entropy(s.logits, batch["labels"]))
    assert list(found) == ["kd", "point", "rcd"]
    for name, (ratio, cosine) in found.items():
        g = flat(terms[name])
        torch.testing.assert_close(torch.tensor([ratio, cosine]), torch.stack([g.norm() / own.norm(), F.cosine_similarity(g, own, dim=0)]))
    terms["loss"].backward()                                              # the graph is kept
    assert all(w.grad is not None for w in shared)


def test_labels_in_the_place_of_a_term_have_ratio_one_and_cosine_one():
    @dataclass(frozen=True)
    class Again(Term):
        name = "again"

        def value(self, s, t, batch, head):
            return F.cross_entropy(s.logits, batch["labels"])

    made, batch = learner((Again(3.0),), labels=0.0), a_batch()
    s, _ = made.predict(batch["x"])
    ratio, cosine = gradient_balance(made, s, batch, made.terms(s, batch))["again"]
    assert abs(ratio - 3) < 1e-5 and abs(cosine - 1) < 1e-5                # also where the recipe leaves the labels out


def test_a_watched_learner_learns_as_it_would_unwatched():
    steps, weights = 5, []
    for watch in (False, True):
        torch.manual_seed(0)
        made = learner((SoftLabels(1.0), RelationalContrast(1.0, n=8, p=4)))
        module = Watched(made, at=[0, 4]) if watch else made
        optimizer, batch = torch.optim.SGD(made.parameters(), 0.1), a_batch()
        for _ in range(steps):
            optimizer.zero_grad()
            module.train()(batch["x"], batch)["loss"].backward()
            optimizer.step()
        weights.append(torch.cat([w.detach().flatten() for w in made.network.parameters()]))
    assert weights[0].equal(weights[1]) and list(module.notes) == [0, 4] and module.network is made.network
    assert all(set(note) == {"kd", "rcd"} and all(map(math.isfinite, sum(note.values(), ()))) for note in module.notes.values())


# a recipe may let go of the teacher
def test_after_its_share_of_the_training_only_the_labels_count(monkeypatch):
    made, batch, asked = learner((SoftLabels(1.0),)), a_batch(), []
    made.recipe, made.last = replace(made.recipe, until=0.5), 2
    monkeypatch.setattr(SoftLabels, "value", lambda self, *rest: asked.append(made.steps) or torch.ones(()))
    found = [made(batch["x"], batch) for _ in range(4)]
    assert len(asked) == 2 and [float(terms["kd"]) for terms in found] == [1, 1, 0, 0]
    assert all(list(terms) == ["loss", "labels", "kd"] for terms in found) and found[3]["loss"].equal(found[3]["labels"])
    other = learner((SoftLabels(1.0),))
    other.load_state_dict(made.state_dict())
    assert other.steps == 4                                               # a checkpoint knows how far it is
    made.eval()(batch["x"], batch)
    assert made.steps == 4 and len(asked) == 3                            # evaluation is no training
    assert written_out(made.recipe) == "1 labels + 1 kd, labels alone after 50%"


def test_a_paper_adds_a_term_of_its_own():
    @dataclass(frozen=True)
    class Lengths(Term):
        name = "lengths"

        def value(self, s, t, batch, head):
            return (s.features.norm(dim=1) - t.features.norm(dim=1)).square().mean()

    own = Recipe(1.0, (Lengths(0.5), Distances(25.0)))
    assert list(learner(own.terms)(a_batch()["x"], a_batch())) == ["loss", "labels", "lengths", "pair"] and written_out(own) == "1 labels + 0.5 lengths + 25 pair"


def test_a_recipe_reaches_the_code_of_its_own_terms_only():
    """So an edited loss trains again whoever has it, and nobody else."""
    reached = lambda *things: set(code_parts(*things))
    plain, contrast, hints = reached(Learner), reached(Learner, SampleContrast), reached(Learner, HintByVariance)
    assert not {name for name in plain if name.startswith("kdnotes.losses.")}
    assert "kdnotes.losses.contrastive.CRDLoss" in contrast - hints and "kdnotes.losses.relational.point_loss" in hints - contrast
    assert fingerprint(recipe("RKD-D")) != fingerprint(Recipe(1.0, (Angles(25.0),)))                        # the kind of a term is in the key


@pytest.mark.parametrize("call, words", [
    (lambda: SoftLabels(0.0), "weight 0.0"), (lambda: Hint(float("nan")), "weight nan"), (lambda: Hint(1.0, ()), "and a target"), (lambda: Recipe(0.0), "something to learn from"),
    (lambda: Recipe(-1.0), "at least 0"), (lambda: Recipe(1.0, (), 0.0), "above 0"), (lambda: Recipe(0.0, (Hint(1.0),), 0.9), "where the labels count"), (lambda: Recipe(1.0, (Hint(1.0), Hint(2.0))), "each term once"),
])
def test_bad_recipes_are_refused_in_one_line(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)
