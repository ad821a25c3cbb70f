"""CRRCD's wiring: what learns, what is kept, which view is seen, what is measured; the losses have tests of their own."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kdnotes import crossres
from kdnotes.config import leaves
from kdnotes.crossres import Views, paired_batches
from kdnotes.data.catalogue import load, search_sets
from kdnotes.data.degrade import low_resolution
from kdnotes.experiment import Experiment
from kdnotes.losses.contrastive import CRDLoss
from kdnotes.losses.distill import kd_loss
from kdnotes.losses.relation_contrast import Difference, RelationContrast
from kdnotes.models.classifiers import Prediction, build, count_parameters
from kdnotes.papers import crrcd
from kdnotes.papers.crrcd import METHODS, Config, Objective
from kdnotes.recipes import (
    Attention, Correlations, DifferenceContrast, DistancesAndAngles, Hint, Learner, Neighbours, Recipe, RelationalContrast,
    SampleContrast, Similarities, SoftLabels, Variational,
)
from kdnotes.results import Results, cited_differences, judge, reported
from kdnotes.runtime import fingerprint

KEYS = torch.arange(40) % 4
KD, RCD = SoftLabels(0.5, form="ce"), RelationalContrast(2.0, n=8, p=8)
TERMS = (SoftLabels(1.0, form="ce"), Hint(1.0), Attention(1.0), Similarities(1.0), Correlations(1.0), Variational(1.0), Neighbours(1.0), DistancesAndAngles(1.0),
         SampleContrast(1.0, n=16, p=8), DifferenceContrast(1.0, n=8, p=8), RelationalContrast(1.0, n=8, p=8))


@pytest.fixture
def config():
    return Config.profile("smoke", seeds="0", **{"training.steps": 2, "training.teacher_steps": 2, "faces.steps": 2, "train_size": 16})


@pytest.fixture
def experiment(config, tmp_path):
    return Experiment.alone("crrcd", config, tmp_path / "stages")


def stage_of(method, task, config):
    """The student of `method` in `task`."""
    return crrcd.student_of(method, crrcd.task_of(task, 0, config), config)


def further_of(stage, config):
    """The same network, trained further for TinyFace."""
    return crrcd.further(crrcd.Row("search", "", stage, crrcd.searched), config).stage


def batch_of(n=40, d_t=24, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"labels": KEYS[:n], "index": torch.arange(n), "teacher.logits": torch.randn(n, classes, generator=g), "teacher.features": torch.randn(n, d_t, generator=g),
            "teacher.maps": torch.rand(n, 1, 2, 2, generator=g)}, torch.rand(n, 1, 8, 8, generator=g)


def learner_of(terms, labels=1.0):
    torch.manual_seed(0)
    network = build("smallconv", 4, channels=1, size=8, widths=(2, 4, 8), embedding=6)
    return Learner(network, Recipe(labels, terms), {"teacher": 24}, KEYS)


# 7: who gets a gradient
@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_every_term_teaches_the_student_and_its_heads_and_never_the_teacher(term):
    learner, (batch, x) = learner_of((term,), labels=0.0), batch_of()
    for name in ("logits", "features", "maps"):
        batch[f"teacher.{name}"].requires_grad_()
    learner(x, batch)["loss"].backward()
    assert all(batch[f"teacher.{name}"].grad is None for name in ("logits", "features", "maps"))
    assert learner.network.trunk.stage1[0].weight.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.heads.parameters())


def test_without_weight_no_relation_module_is_made():
    """beta = 0 is a recipe without the term: nothing is computed and nothing could get a gradient."""
    assert not list(learner_of((KD,)).heads)
    learner, (batch, x) = learner_of((KD, RCD)), batch_of()
    terms = learner(x, batch)
    (terms["loss"] - terms["rcd"]).backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in learner.heads.parameters())


# 9: the total is the weighted sum, with soft labels as rho^2 times a cross-entropy
def test_the_total_objective():
    learner, (batch, x) = learner_of((KD, RCD)), batch_of()
    learner.eval()
    prediction, rcd = learner.network(x), learner.heads["rcd teacher"]
    rcd.fill(batch["teacher.features"])
    torch.manual_seed(7)
    terms = learner(x, batch)
    torch.manual_seed(7)
    relation = rcd(prediction.features, batch["teacher.features"], batch["index"])
    assert torch.allclose(terms["labels"], F.cross_entropy(prediction.logits, batch["labels"]))
    assert torch.allclose(terms["kd"], 0.5 * kd_loss(prediction.logits, batch["teacher.logits"], 4.0, form="ce"))
    assert torch.allclose(terms["rcd"], 2 * relation)
    assert torch.allclose(terms["loss"], terms["labels"] + terms["kd"] + terms["rcd"])


def test_the_papers_weights_and_those_of_the_benchmark():
    recipes = {method: crrcd.recipe_of(method, Objective()) for method in METHODS}
    weights = {name: {term.name: term.weight for term in recipe.terms} for name, recipe in recipes.items()}
    assert weights["CRRCD"] == {"kd": 0.5, "rcd": 2.0} and recipes["CRRCD"].terms[0].temperature == 4 and recipes["CRRCD"].terms[1].temperature == 0.1
    assert {name: weights[name] for name in ("AT, one stage", "SP, embedding", "VID, embedding", "RKD", "PKT", "CRD", "FitNet, embedding")} == {
        "AT, one stage": {"at": 1000}, "SP, embedding": {"sp": 3000}, "VID, embedding": {"vid": 1}, "RKD": {"rkd": 1}, "PKT": {"pkt": 30000}, "CRD": {"crd": 0.8}, "FitNet, embedding": {"fitnet": 100}}
    assert recipes["KD"].labels == 0.1 and weights["KD"] == {"kd": 0.9}
    assert recipes["CRRCD, literal critic"].terms[1].norm == "none" and recipes["CRRCD"].terms[1].norm == "crd"
    assert RelationalContrast(2.0) == RelationalContrast(2.0, n=512, temperature=0.1, p=128, sides="teacher", norm="crd", bank="queue", policy="labels")


def soft(x, t):
    return (x / t).exp() / (x / t).exp().sum(1, keepdim=True)


def distances(e):
    d = torch.tensor([[math.dist(a, b) for b in e.tolist()] for a in e.tolist()], dtype=torch.float64)
    return d / d[d > 0].mean()


def cosines(e):
    unit = F.normalize(e[:, None] - e[None], dim=-1)                       # [i, j] from j to i
    return torch.stack([unit[:, j] @ unit[:, j].T for j in range(len(e))])


def by_formula(term, head, s, t, maps):
    """Each baseline from its paper's formula, on small matrices."""
    x, y, B = s.features, t.features, len(s.features)
    match term:
        case "kd":
            return -16 * (soft(t.logits, 4) * soft(s.logits, 4).log()).sum(1).mean()
        case "fitnet":
            return ((x @ head.weight.T + head.bias - y) ** 2).sum() / y.numel()
        case "at":
            energy = [m.flatten(1).square() / m.flatten(1).square().norm(dim=1, keepdim=True) for m in maps]
            return (energy[0] - energy[1]).square().mean()
        case "sp":
            G = [e @ e.T / (e @ e.T).norm(dim=1, keepdim=True) for e in (x, y)]
            return (G[0] - G[1]).square().sum() / B**2
        case "rkd":
            huber = lambda a, b: F.smooth_l1_loss(a, b, reduction="mean")
            return 25 * huber(distances(x), distances(y)) + 50 * huber(cosines(x), cosines(y))
        case "pkt":
            P = [F.normalize(e, dim=1) @ F.normalize(e, dim=1).T / 2 + 0.5 for e in (x, y)]
            P = [p / p.sum(1, keepdim=True) for p in P]
            return (P[1] * (P[1] / P[0]).log()).mean()
        case "vid":
            variance = F.softplus(head.alpha) + 1e-5
            return 0.5 * ((y - head.mu(x)) ** 2 / variance + variance.log()).mean()


# the baselines are what their papers say, on what a batch holds
@pytest.mark.parametrize("term", ["kd", "fitnet", "at", "sp", "rkd", "pkt", "vid"])
def test_a_baseline_is_its_formula(term):
    torch.manual_seed(1)
    s, t = (Prediction(torch.randn(6, 4, dtype=torch.float64), torch.randn(6, d, dtype=torch.float64)) for d in (5, 7))
    known = {known.name: known for known in TERMS}[term]
    head = known.head(5, 7, KEYS)
    head = head.double() if head is not None else None
    maps = torch.rand(6, 1, 3, 3, dtype=torch.float64), torch.rand(6, 1, 3, 3, dtype=torch.float64)
    value = known.value(s, t, {"student.maps": maps[0], "teacher.maps": maps[1], "labels": torch.arange(6)}, head)
    assert torch.allclose(value, by_formula(term, head, s, t, maps), atol=1e-6), term


def test_crcd_contrasts_plain_differences_at_its_own_temperature():
    head = crrcd.recipe_of("CRCD", Objective(n=8, p=8, tau=0.3)).terms[0].head(5, 9, KEYS)
    assert isinstance(head.within, Difference) and isinstance(head.across, Difference) and head.within.g_j is head.across.g_i
    assert head.sides["teacher"].critic.temperature == 0.05 and list(head.sides) == ["teacher", "student"]


# 8: embeddings of different width
def test_heads_take_any_two_dimensions():
    for method, kind in (("CRD", CRDLoss), ("CRCD", RelationContrast), ("RCD only", RelationContrast)):
        head = crrcd.recipe_of(method, Objective(n=8, p=8, crd_n=16)).terms[0].head(5, 9, KEYS)
        assert isinstance(head, kind) and head(torch.randn(6, 5), torch.randn(6, 9), torch.arange(6)).ndim == 0


def test_the_policy_decides_who_is_a_chance_pair():
    labels, single = (Objective(n=8, p=8, policy=policy).contrast().head(5, 9, KEYS).keys for policy in ("labels", "index"))
    assert labels.equal(KEYS) and single.equal(torch.arange(40))


# 13: teacher and student see the same picture
@pytest.mark.parametrize("restore", [True, False])
def test_both_views_share_index_shift_and_mirror(restore):
    train, views = load("digits", "train").take(slice(0, 64)), Views(low=4, mode="area", restore=restore, flip=True, padding=1)
    seen = []
    teacher = build("smallconv", 10, 1, 8, widths=(2, 4, 8), embedding=6).eval()
    teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    batches = paired_batches(train, views, 16, seed=0, teachers={"teacher": (teacher, "high")}, stage="stage2", statistics=(torch.zeros(1), torch.ones(1)))
    moved = 0
    for batch in batches:
        assert seen.pop().equal(batch["high"])                             # the teacher sees the high view of these very images
        low = low_resolution(batch["high"].clamp(0, 1), size=4, mode="area", restore=restore)
        assert torch.allclose(batch["low"], low, atol=1e-6) and batch["images"].equal(train.images[batch["index"]])
        moved += int((batch["high"] != train.images[batch["index"]] / 255).flatten(1).any(1).sum())
        with torch.no_grad():
            assert torch.allclose(batch["teacher.features"], teacher(batch["high"]).features, atol=1e-5)
    assert moved > 20


def test_known_answers_are_those_of_the_teacher(config, experiment, monkeypatch):
    stage, seen = stage_of("CRRCD", "retrieval", config), []
    parents = {name: experiment.made(parent) for name, parent in stage.needs().items()}
    monkeypatch.setattr(crossres, "learnt", lambda learner, batches, *rest: seen.extend((learner, batches)))      # nothing is trained
    stage.build(parents, experiment.here, None)
    learner, batches = seen
    for batch in batches:
        with torch.no_grad():
            assert torch.allclose(batch["teacher.features"], parents["teacher"](batch["high"]).features, atol=1e-5)
    bank, train = learner.heads["rcd teacher"].sides["teacher"].bank, experiment.read(stage.images)
    from_set = torch.cdist(bank.rows, batches.tensors["teacher.features"]).argmin(1)               # a queue is filled in a drawn order
    assert from_set.sort().values.equal(torch.arange(len(train))) and bank.keys.equal(train.labels[from_set])
    assert torch.allclose(bank.rows, batches.tensors["teacher.features"][from_set])


# 14: degradation
@pytest.mark.parametrize("high, low, mean_of_noise, worst", [(112, 16, 1e-3, 0.019), (32, 8, 5e-3, 0.034)])
def test_the_low_view_of_the_papers_sizes(high, low, mean_of_noise, worst):
    shrink = lambda x: low_resolution(x, size=low, mode="bilinear")
    assert shrink(torch.rand(2, 3, high, high)).shape == (2, 3, low, low)
    assert torch.allclose(shrink(torch.full((1, 1, high, high), 0.3)), torch.tensor(0.3), atol=1e-6)
    x = torch.rand(5, 1, high, high, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(shrink(x)[:2], shrink(x[:2]), atol=1e-6)         # whatever else is in the batch
    assert abs(shrink(x).mean() - x.mean()) < mean_of_noise
    assert torch.allclose(low_resolution(x, size=low, mode="area").mean(), x.mean(), atol=1e-6)
    weight = torch.zeros(high)                                             # of each row in the mean brightness
    for i in range(high):
        row = torch.zeros(1, 1, high, high)
        row[:, :, i] = 1
        weight[i] = shrink(row).mean() * high
    assert 0.6 < weight.min() < 0.75 and 1.1 < weight.max() < 1.2
    assert float((weight - 1).clamp_min(0).sum() / high) < worst           # an image of [0, 1] is off by no more than this per axis


# 15: what is kept is the student
def test_only_the_students_network_is_kept(config, experiment):
    stage, plain = stage_of("CRRCD", "retrieval", config), stage_of("Student", "retrieval", config)
    fresh = plain.fresh(experiment.here)
    learner = stage.learner(stage.fresh(experiment.here), stage.recipe, experiment.here, {"teacher": experiment.made(stage.teacher).feature_dim})
    assert count_parameters(experiment.made(stage)) == count_parameters(fresh) < count_parameters(learner)
    assert experiment.made(stage).state_dict().keys() == fresh.state_dict().keys()
    assert all(p.equal(q) for p, q in zip(stage.fresh(experiment.here).parameters(), fresh.parameters()))   # the same start


def test_a_teacher_is_frozen_and_stays_as_it_is(config, experiment):
    stage = stage_of("CRRCD", "retrieval", config)
    teacher = experiment.made(stage.teacher)
    before = fingerprint(teacher.state_dict())
    experiment.made(stage)
    assert fingerprint(experiment.made(stage.teacher).state_dict()) == before
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


# what a key knows, and what it does not
@pytest.mark.parametrize("change", [{"training.steps": 9}, {"images.low": 4}, {"beta": 5.0}, {"tau": 0.2}, {"networks.student": "smallconv:4-8-16:16"}, {"negatives": ()},
                                    {"faces.steps": 9}, {"faces.pairs": 40}, {"probe_steps": 9}])
def test_the_teacher_does_not_know_its_students(config, experiment, change):
    before, after = (stage_of("CRRCD", "retrieval", c).teacher for c in (config, config.change(**change)))
    assert before == after and experiment.node(before).key == experiment.node(after).key


def test_faces_alone_and_faces_beside_retrieval_do_not_share_a_key(face_layouts, tmp_path, monkeypatch):
    monkeypatch.setenv("KDNOTES_DATA", str(face_layouts.lfw(tmp_path)))
    drawn = Config.profile("smoke", studies=("faces", "retrieval"))
    real = replace(drawn, dataset="lfw", images=replace(drawn.images, studies=("faces",)))
    keys = [Experiment.alone("crrcd", c, tmp_path / "s").node(stage_of("Student", "faces", c)).key for c in (drawn, real)]
    assert keys[0] != keys[1]


# 18: identification with a frozen backbone
def test_the_linear_classifier_leaves_the_backbone_alone(config, experiment):
    stage = stage_of("CRRCD", "faces", config)
    network = experiment.made(stage)
    before = fingerprint(network.state_dict())
    found = crrcd.protocols_of(config)["identification"](stage, network, experiment.here, view="low", views=stage.views)
    assert 0 <= found["accuracy"] <= 100 and fingerprint(network.state_dict()) == before


# faces in the paper's own protocols: Tables 5, 6 and 7, on miniatures in the true layouts
TINY = {"faces": {"teacher": "smallface:4-8:8", "student": "smallface:4-8:8", "size": 24, "low": 16, "steps": 2, "tune_steps": 2,
                  "methods": ("Student", "KD", "CRRCD"), "subjects": 3}, "batch_size": 8, "n": 4, "p": 8, "crd_n": 8, "probe_steps": 20}


@pytest.fixture
def native(tmp_path, face_layouts, monkeypatch):
    """A data root with CASIA-WebFace, UCCS and TinyFace, without LFW."""
    root = tmp_path / "data"
    root.mkdir()
    face_layouts.casia(root, {"a": 4, "b": 4, "c": 3, "d": 4, "e": 1})
    for write in (face_layouts.uccs, face_layouts.tinyface):
        write(root)
    monkeypatch.setenv("KDNOTES_DATA", str(root))
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    return root


@pytest.fixture
def executed(run_from_parameters):
    """`executed(dataset, out, overrides)`: the notebook from its parameters on, with the profile `paper`."""
    def run(dataset, out, overrides):
        return run_from_parameters(crrcd, "import math", dataset=dataset, out=str(out), overrides=overrides)
    return run


@pytest.mark.long
def test_uccs_and_tinyface_stand_beside_tables_6_and_7(native, executed, tmp_path):
    space = executed("uccs+tinyface", tmp_path / "run", TINY)
    frame, our_table = space["frame"], space["our_table"]
    assert set(frame.table) == {crrcd.TABLES["identification"], crrcd.TABLES["search"]} and frame.value.between(0, 100).all()
    assert set(frame[frame.dataset == "UCCS"].metric) == {"accuracy"} and set(frame[frame.dataset == "UCCS"].setting) == {"res=16x16"}
    found = frame[frame.dataset == "TinyFace"]
    assert {"rank1", "rank10", "rank20"} <= set(found.metric) and set(found.setting) == {"res=16x16;protocol=1:N"}
    named, searched = our_table("identification").set_index("method"), our_table("search").set_index("method")
    assert named.loc["CRRCD", "accuracy (%) · reported"] == "97.27" and named.loc["CRRCD", "accuracy (%) · reproduced"] == "100.0"
    assert [searched.loc["CRRCD", f"rank-{k} (%) · reported"] for k in (1, 10, 20)] == ["35", "47", "50"] and "VLRR" in named.index
    assert "—" not in set(searched.loc[["Student", "KD", "CRRCD", "teacher on high"], "rank-20 (%) · reproduced"])
    assert {"identification: CRRCD > plain student", "search: CRRCD > plain student"} == set(space["judged"].claim)
    assert space["rivals"] == [] and list(space["told_of_weights"]()) == ["faces: beta = 2, that of the paper"]
    assert json.loads((space["experiment"].folder.path / "manifest.json").read_text())["status"] == "finished"


def test_uccs_fits_the_last_layer_alone_and_tinyface_trains_the_embedder_on(native, tmp_path, monkeypatch):
    config = Config.profile("paper", dataset="uccs+tinyface", seeds="0", **TINY)
    experiment, stage = Experiment.alone("crrcd", config, tmp_path / "stages"), stage_of("CRRCD", "faces", config)
    network, further = experiment.made(stage), experiment.made(further_of(stage, config))
    assert network.head.weight.shape[0] == 5 and further.head.weight.shape[0] == 2                   # people of CASIA-WebFace, and of TinyFace
    weights = [net.embedder.trunk.stage1[0].weight for net in (network, further)]
    assert not weights[0].equal(weights[1]) and torch.allclose(*weights, atol=0.1)                   # it goes on from there
    before, fitted, probe = fingerprint(network.state_dict()), [], crossres.linear_probe
    monkeypatch.setattr(crossres, "linear_probe", lambda x, y, z, steps: fitted.append((x, y, z)) or probe(x, y, z, steps))
    found = crrcd.protocols_of(config)["identification"](stage, network, experiment.here, view="low", views=stage.views)
    assert 0 <= found["accuracy"] <= 100
    (x, y, z), = fitted
    assert fingerprint(network.state_dict()) == before and set(y.tolist()) == {0, 1, 2} and len(x) == 15 and len(z) == 3   # five of six pictures, and the sixth
    gallery, probes, _ = search_sets("tinyface", config.faces.size)
    assert len(gallery) == 4 + 3 and len(probes) == 3                                                # distractors stand in the gallery


def test_lfw_judges_where_it_is_named(native, face_layouts):
    config = Config.profile("paper", dataset="casia+uccs+tinyface", seeds="0", **TINY)
    with pytest.raises(FileNotFoundError, match="lfw"):
        crrcd.people_of(config, "test").load()
    face_layouts.lfw(native)
    unseen, pairs, *_ = crrcd.people_of(config, "test").load()
    assert len(crrcd.people_of(config, "train").load()) == 16 and len(unseen) == 9 and pairs.folds == 2
    rows = crrcd.rows(config)
    assert {row.dataset: row.table for row in rows} == {
        "LFW": crrcd.TABLES["verification"], "UCCS": crrcd.TABLES["identification"], "TinyFace": crrcd.TABLES["search"]}
    assert len({row.stage.network if isinstance(row.stage, crrcd.Tuned) else row.stage for row in rows}) == 1 + 3   # the same networks in all three
    alone = Config.profile("paper", dataset="casia")
    assert set(crrcd.protocols_of(alone)) == {"verification", "identification", "search"} and crrcd.judge_of("search", alone) == "casia"
    assert (alone.faces.teacher, alone.faces.student, alone.faces.size, alone.faces.low) == ("face_resnet50::512", "face_resnet18::512", 112, 16)
    assert Config.profile("paper", dataset="uccs").faces.subjects == 180


@pytest.mark.parametrize(("dataset", "words"), [("uccs", "CASIA-WebFace"), ("tinyface", "tinyface.zip"), ("casia", "pairs.txt"), ("casia+uccs", "lay the faces out as")])
def test_a_run_without_its_faces_is_refused_before_it_starts(tmp_path, dataset, words):
    from kdnotes.batch.plan import check_data

    with pytest.raises(FileNotFoundError, match=f"the data of .* are not there .*{words}"):
        check_data(Config, dataset, tmp_path)
    check_data(Config, "digits", tmp_path)


# 20: the experiment as a whole
def test_tables_settings_and_names_join_with_the_papers():
    config = Config.profile("paper", dataset="cifar100", seeds="0")
    rows = crrcd.pairs_rows(0, config)
    ours = {(";".join(f"{k}={v}" for k, v in row.setting.items()), row.method) for row in rows}
    paper = reported("crrcd")
    theirs = {(setting, method) for setting, method in zip(paper.setting, paper.method)
              if method in {"Teacher", "Student", "KD", "CC", "PKT", "RKD", "CRD", "CRCD", "CRRCD"} and "arch=" in setting}
    theirs = {(setting.replace("student=ResNet32;arch=peer", "student=ResNet8x4;arch=peer") if "ResNet32x4" in setting else setting, method) for setting, method in theirs}
    assert theirs <= ours
    assert not {"FitNet", "AT", "SP", "VID"} & {method for _, method in ours}         # theirs are taken on maps, ours are not and say so
    assert {row.setting["teacher"] for row in rows} == {"WRN-40-2", "ResNet56", "ResNet110", "ResNet32x4", "VGG13", "ResNet18", "VGG11", "WRN50-2"}


def test_methods_of_a_seed_share_everything_but_their_loss():
    rows = crrcd.rows(Config(seeds=(0, 1)))
    assert {row.stage.seed for row in rows} == {0, 1}
    main = [row for row in rows if row.table == "retrieval of unseen classes" and row.stage.seed == 0 and row.stage.view == "low"]
    assert {row.method for row in main} == set(METHODS)
    assert len({(row.stage.network, row.stage.task, row.stage.images, row.stage.views, row.stage.how) for row in main}) == 1
    assert len({row.stage.teacher for row in main if row.method != "Student"}) == 1
    assert {row.setting.get("n") for row in rows if row.table == "number of negatives"} == {16, 128, 256}


def test_the_weight_is_chosen_on_images_that_nobody_else_learns_from(config, experiment):
    rows = crrcd.weight_rows(0, config)
    assert {row.setting["task"] for row in rows} == {"retrieval", "classification"}
    alone = config.change(studies=("faces", "weight"))
    assert {row.setting["task"] for row in crrcd.weight_rows(0, alone)} == {"faces"}
    for name in ("retrieval", "classification"):
        held, whole = ([row for row in rows if row.setting["task"] == name and row.setting["on"] == on] for on in ("held out", "test"))
        assert {row.setting.get("beta") for row in held} == {row.setting.get("beta") for row in whole} == {None, *{2.0, crrcd.objective_of(name, config).beta}}
        learnt, judged = (experiment.read(data) for data in (held[0].stage.images, held[0].measure.keywords["test"]))
        everything = experiment.read(whole[0].stage.images)
        assert len(learnt) + len(judged) == len(everything) and held[1].stage.teacher.images == held[0].stage.images
        assert (set(learnt.classes).isdisjoint(judged.classes)) == (name == "retrieval")
    assert crrcd.objective_of("classification", config).beta == config.objective.closed_beta
    real = Config.profile("real", dataset="cifar10")                       # a short training, for which held-out images were asked
    assert (crrcd.objective_of("classification", real).beta, crrcd.objective_of("retrieval", real).beta) == (0.2, 2.0)


@pytest.mark.parametrize("dataset", [dataset for profile, dataset in Config.DATASETS if profile == "paper"])
def test_the_profile_of_the_paper_has_the_papers_weights_in_every_table(dataset):
    config = Config.profile("paper", dataset=dataset, seeds="0")
    recipes = [row.stage.recipe for row in crrcd.rows(config) if row.method == "CRRCD" and hasattr(row.stage, "recipe")]
    tuned = [row.stage.network.recipe for row in crrcd.rows(config) if row.method == "CRRCD" and isinstance(row.stage, crrcd.Tuned)]
    assert recipes + tuned and all({term.name: term.weight for term in recipe.terms} == {"kd": 0.5, "rcd": 2.0} for recipe in recipes + tuned)


def test_the_balance_is_noted_for_every_term_of_every_method_in_the_first_seed():
    config = Config.profile("smoke", seeds="0,1")
    rows = crrcd.gradient_rows(0, config)
    assert not crrcd.gradient_rows(1, config)
    assert {(row.method, row.setting["term"]) for row in rows} == {
        (method, term.name) for method in METHODS for term in crrcd.recipe_of(method, config.objective).terms}
    assert {row.setting["trained"] for row in rows} == {"0.00", "0.25", "0.50", "0.75", "1.00"}


def test_distillation_can_end_before_the_training_does():
    recipes = {method: crrcd.recipe_of(method, Objective(until=0.96)).until for method in METHODS}
    assert {method for method, until in recipes.items() if until < 1} == {"CRCD", "RCD only", "CRRCD", "CRRCD, literal critic"}


def test_a_run_can_be_repeated_and_taken_up_again(tmp_path, config):
    config = config.change(studies=("pairs", "faces"))
    first, again, other = (crrcd.run(Experiment.alone("crrcd", config, tmp_path / folder)).frame() for folder in ("a", "a", "b"))
    assert first.equals(again) and first.equals(other)                     # everything is kept, and everything anew
    assert {"accuracy", "verification_accuracy", "rank1", "histogram_intersection"} <= set(first.metric)
    assert first.value.map(math.isfinite).all()


@pytest.mark.slow
def test_relational_contrast_helps_to_find_unseen_classes(tmp_path):
    """The only ordering that is asserted at this scale: labels + relations > labels alone, paired over seeds, in the mean over both halves of the digits."""
    gains = []
    for seed, seen in ((0, (0, 2, 4, 6, 8)), (0, (1, 3, 5, 7, 9)), (1, (0, 2, 4, 6, 8)), (1, (1, 3, 5, 7, 9))):
        config = Config.profile("demo", seeds=str(seed), seen=seen, **{"networks.teacher": "smallconv:16-32-64:64"})
        wanted = [row for row in crrcd.retrieval_rows(seed, config) if row.method in ("Student", "RCD only")]
        frame = crrcd.Study(wanted).run(Experiment.alone("crrcd", config, tmp_path)).frame()
        recall = frame[frame.metric == "recall_at_1"].set_index("method").value
        gains.append(recall["RCD only"] - recall["Student"])
    assert sum(gains) / len(gains) > 0, gains


def test_claims_fail_when_the_order_is_wrong():
    rows = Results("crrcd", "demo")
    for seed in range(3):
        for method, value in {"Student": 80, "KD": 81, "CRD": 90, "CRCD": 82, "RKD": 83, "RCD only": 86, "CRRCD": 85, "CRRCD, literal critic": 70, "teacher fed low": 84}.items():
            rows.add(crrcd.TABLES["retrieval"], "digits", method, "recall_at_1", value + 0.1 * seed, seed)
    verdicts = judge(crrcd.embedding_claims(), rows.frame()).set_index("claim").verdict
    assert verdicts["CRRCD > plain student"] == "supported" and verdicts["CRRCD > CRD"] == "not supported"


@pytest.mark.parametrize("config", [Config(), Config.profile("smoke"), Config.profile("real")], ids=["default", "smoke", "real"])
def test_a_claim_of_the_paper_is_found_among_its_numbers(config):
    claims, paper = crrcd.claims(config), reported("crrcd")
    gaps = {claim.name: cited_differences(claim, paper) for claim in claims if claim.source == "paper"}
    assert len(gaps) >= 7 and all(len(gap) and gap.mean() > 0 for gap in gaps.values())
    assert abs(gaps["pairs: CRRCD > CRD"].mean() - 1.335) < 1e-9 and len(gaps["probe: CRRCD > KD"]) == 2
    assert all(claim.better != claim.worse for claim in claims)


def test_a_demo_claims_what_its_rows_can_test():
    config = Config.profile("demo")
    rows = {(row.table, row.method) for row in crrcd.rows(config)}
    found = crrcd.claims(config)
    assert len(config.seeds) >= 6 and all({(claim.where["table"], method) for method in claim.methods} <= rows for claim in found)
    assert {"CRRCD > plain student", "CRRCD > CRD", "faces: CRRCD > CRD", "classification: CRRCD > KD"} <= {claim.name for claim in found}
    assert not any("literal" in claim.name for claim in found) and len(crrcd.claims(Config())) > len(found)


@pytest.mark.parametrize(("tau", "middle"), [(0.1, 0.1), (0.5, 0.08)])
def test_the_middle_of_the_temperatures_is_the_used_one_where_it_is_inside(tau, middle):
    claims = crrcd.sweep_claims(Config.profile("real", dataset="cifar100", tau=tau))["temperature"]
    assert [claim.name for claim in claims] == [f"tau={middle:g} > tau=0.02", f"tau={middle:g} > tau={max(0.3, tau):g}"]


@pytest.mark.parametrize("bad, words", [
    ({"tau": 0.0}, ("tau=0.0", "above 0")), ({"n": 0}, ("n=0", "at least 1")), ({"norm": "Z"}, ("norm", "'Z'", "crd")), ({"studies": ("retreival",)}, ("studies", "retrieval")),
    ({"networks.student": "smalconv"}, ("network", "smallconv")), ({"people": (5,)}, ("people=(5,)", "expected 2")), ({"pair_methods": ("CRRD",)}, ("methods", "CRRCD")),
    ({"networks.pairs": (("vgg8", "vgg8"),)}, ("2 items", "expected 3")), ({"networks.pairs": (("vgg8", "vgg8", "own"),)}, ("'peer' or 'cross'",)),
    ({"anchors": -1}, ("anchors=-1",)), ({"optimizer": "adam"}, ("optimizer", "adamw")), ({"seen": "0"}, ("seen",)), ({"temprature": 1}, ("parameter",)),
    ({"milestones": (300,)}, ("beyond milestones_of=240",)), ({"faces.low": 64}, ("faces.low=64", "must not exceed")),
])
def test_bad_configurations_say_what_is_expected(bad, words):
    with pytest.raises(ValueError) as error:
        Config.profile("demo", **bad)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), str(error.value)


@pytest.mark.parametrize("profile, dataset", [("smoke", ""), *((profile, dataset) for profile, dataset in Config.DATASETS)])
def test_every_profile_is_whole(profile, dataset):
    config = Config.profile(profile, dataset=dataset)
    assert crrcd.rows(config.change(seeds=(0,))) and crrcd.claims(config)


def test_every_setting_says_where_its_default_comes_from():
    assert all(leaf.rule.source and leaf.rule.text for leaf in leaves(Config).values())
