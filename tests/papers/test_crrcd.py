"""CRRCD's wiring: what learns, what is kept, which view is seen, what is measured; the losses have tests of their own."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kdnotes import crossres
from kdnotes.crossres import Views, both_views, paired_batches
from kdnotes.data.degrade import low_resolution
from kdnotes.data.catalogue import load, search_sets
from kdnotes.losses.contrastive import CRDLoss
from kdnotes.losses.distill import kd_loss
from kdnotes.losses.relation_contrast import Difference, RelationContrast
from kdnotes.models.classifiers import Prediction, build, count_parameters
from kdnotes.papers import crrcd
from kdnotes.papers.crrcd import TERMS, Config, Contrast, Learner, Recipe, Stream
from kdnotes.results import Results, judge, reported
from kdnotes.parallel import Place
from kdnotes.runtime import fingerprint, make_fabric

KEYS = torch.arange(40) % 4


@pytest.fixture
def config():
    return Config.profile("smoke", seeds=(0,), steps=2, teacher_steps=2, face_steps=2, train_size=16)


@pytest.fixture
def place(tmp_path):
    return Place("cpu", "32-true", tmp_path)


def batch_of(n=40, d_t=24, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"labels": KEYS[:n], "index": torch.arange(n), "teacher.logits": torch.randn(n, classes, generator=g), "teacher.features": torch.randn(n, d_t, generator=g),
            "teacher.maps": torch.rand(n, 1, 2, 2, generator=g)}, torch.rand(n, 1, 8, 8, generator=g)


def learner_of(terms, contrast=Contrast(n=8, p=8, crd_n=16), **recipe):
    torch.manual_seed(0)
    network = build("smallconv", 4, channels=1, size=8, widths=(2, 4, 8), embedding=6)
    return Learner(network, Recipe(terms=terms, contrast=contrast, **recipe), KEYS, d_t=24, stage="stage2")


# 7: who gets a gradient
@pytest.mark.parametrize("term", TERMS)
def test_every_term_teaches_the_student_and_its_heads_and_never_the_teacher(term):
    learner, (batch, x) = learner_of(((term, 1.0),), task=0.0), batch_of()
    for name in ("logits", "features", "maps"):
        batch[f"teacher.{name}"].requires_grad_()
    learner(x, batch)["loss"].backward()
    assert all(batch[f"teacher.{name}"].grad is None for name in ("logits", "features", "maps"))
    assert learner.network.trunk.stage1[0].weight.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.heads.parameters())


def test_without_weight_no_relation_module_is_made():
    """beta = 0 is a recipe without the term: nothing is computed and nothing could get a gradient."""
    assert not list(learner_of((("kd", 0.5),)).heads)
    learner, (batch, x) = learner_of((("kd", 0.5), ("rcd", 2.0))), batch_of()
    terms = learner(x, batch)
    (terms["loss"] - terms["rcd"]).backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in learner.heads.parameters())


# 9: the total is the weighted sum, with soft labels as rho^2 times a cross-entropy
def test_the_total_objective():
    learner, (batch, x) = learner_of((("kd", 0.5), ("rcd", 2.0))), batch_of()
    learner.eval()
    prediction, rcd = learner.network(x), learner.heads["rcd"]
    rcd.fill(batch["teacher.features"])
    torch.manual_seed(7)
    terms = learner(x, batch)
    torch.manual_seed(7)
    relation = rcd(prediction.features, batch["teacher.features"], batch["index"])
    assert torch.allclose(terms["task"], F.cross_entropy(prediction.logits, batch["labels"]))
    assert torch.allclose(terms["kd"], 0.5 * kd_loss(prediction.logits, batch["teacher.logits"], 4.0, form="ce"))
    assert torch.allclose(terms["rcd"], 2 * relation)
    assert torch.allclose(terms["loss"], terms["task"] + terms["kd"] + terms["rcd"])


def test_the_papers_weights_and_those_of_the_benchmark():
    methods = crrcd.recipes(Config())
    assert methods["CRRCD"].terms == (("kd", 0.5), ("rcd", 2.0)) and methods["CRRCD"].rho == 4 and methods["CRRCD"].contrast.tau == 0.1
    weights = {name: dict(methods[name].terms) for name in ("AT", "SP", "VID", "RKD", "PKT", "CRD", "FitNet")}
    assert weights == {"AT": {"at": 1000}, "SP": {"sp": 3000}, "VID": {"vid": 1}, "RKD": {"rkd": 1}, "PKT": {"pkt": 30000}, "CRD": {"crd": 0.8}, "FitNet": {"fitnet": 100}}
    assert methods["KD"].task == 0.1 and dict(methods["KD"].terms) == {"kd": 0.9}
    assert methods["CRRCD, literal critic"].contrast.norm == "none" and methods["CRRCD"].contrast.norm == "crd"
    assert Contrast() == Contrast(n=512, tau=0.1, p=128, sides="teacher", norm="crd", bank="queue", policy="labels")


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
    head = crrcd.head_of(term, 5, 7, KEYS, Contrast(n=8, p=8))
    head = head.double() if head is not None else None
    maps = torch.rand(6, 1, 3, 3, dtype=torch.float64), torch.rand(6, 1, 3, 3, dtype=torch.float64)
    value = crrcd.term_loss(term, head, s, t, {"student.maps": maps[0], "teacher.maps": maps[1]}, 4.0)
    assert torch.allclose(value, by_formula(term, head, s, t, maps), atol=1e-6), term


def test_crcd_contrasts_plain_differences_at_its_own_temperature():
    head = crrcd.head_of("crcd", 5, 9, KEYS, Contrast(n=8, p=8, tau=0.3))
    assert isinstance(head.within, Difference) and isinstance(head.across, Difference) and head.within.g_j is head.across.g_i
    assert head.sides["teacher"].critic.temperature == 0.05 and list(head.sides) == ["teacher"]


# 8: embeddings of different width
def test_heads_take_any_two_dimensions():
    for term, kind in (("crd", CRDLoss), ("crcd", RelationContrast), ("rcd", RelationContrast)):
        head = crrcd.head_of(term, 5, 9, KEYS, Contrast(n=8, p=8, crd_n=16))
        assert isinstance(head, kind) and head(torch.randn(6, 5), torch.randn(6, 9), torch.arange(6)).ndim == 0


def test_the_policy_decides_who_is_a_chance_pair():
    labels = crrcd.head_of("rcd", 5, 9, KEYS, Contrast(n=8, p=8)).keys
    single = crrcd.head_of("rcd", 5, 9, KEYS, Contrast(n=8, p=8, policy="index")).keys
    assert labels.equal(KEYS) and single.equal(torch.arange(40))


# 13: teacher and student see the same picture
@pytest.mark.parametrize("restore", [True, False])
def test_both_views_share_index_shift_and_mirror(restore):
    train, views = load("digits", "train").take(slice(0, 64)), Views(low=4, mode="area", restore=restore, flip=True, padding=1)
    seen = []
    teacher = build("smallconv", 10, 1, 8, widths=(2, 4, 8), embedding=6).eval()
    teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    batches = paired_batches(train, views, 16, seed=0, ask=lambda batch: crrcd.answers(teacher, "stage2", batch), statistics=(torch.zeros(1), torch.ones(1)))
    moved = 0
    for batch in batches:
        assert seen.pop().equal(batch["high"])                             # the teacher sees the high view of these very images
        low = low_resolution(batch["high"].clamp(0, 1), size=4, mode="area", restore=restore)
        assert torch.allclose(batch["low"], low, atol=1e-6) and batch["images"].equal(train.images[batch["index"]])
        moved += int((batch["high"] != train.images[batch["index"]] / 255).flatten(1).any(1).sum())
        with torch.no_grad():
            assert torch.allclose(batch["teacher.features"], teacher(batch["high"]).features, atol=1e-5)
    assert moved > 20


def test_known_answers_are_those_of_the_teacher(config, place):
    stream = Stream("retrieval", 0, config.student, crrcd.recipes(config)["CRRCD"], config.teacher)
    teacher = crrcd.learn(crrcd.teacher_of(stream), config, place)
    learner, batches = crrcd.learner_of(stream, config, place)
    for batch in batches:
        with torch.no_grad():
            assert torch.allclose(batch["teacher.features"], teacher(batch["high"]).features, atol=1e-5)
    bank = learner.heads["rcd"].sides["teacher"].bank
    train = crrcd.data_of("retrieval", config)[0]
    assert bank.keys.equal(train.labels) and torch.allclose(bank.rows, batches.tensors["teacher.features"])


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
def test_only_the_students_network_is_kept(config, place):
    stream = Stream("retrieval", 0, config.student, crrcd.recipes(config)["CRRCD"], config.teacher)
    learner, _ = crrcd.learner_of(stream, config, place)
    plain = crrcd.new_network(replace(stream, recipe=Recipe()), config)
    assert count_parameters(crrcd.learn(stream, config, place)) == count_parameters(plain) < count_parameters(learner)
    assert all(p.equal(q) for p, q in zip(crrcd.new_network(stream, config).parameters(), plain.parameters()))   # the same start


def test_a_teacher_is_frozen_and_stays_as_it_is(config, place):
    stream = Stream("retrieval", 0, config.student, crrcd.recipes(config)["CRRCD"], config.teacher)
    teacher = crrcd.learn(crrcd.teacher_of(stream), config, place)
    before = fingerprint(teacher.state_dict())
    crrcd.learn(stream, config, place)
    assert fingerprint(crrcd.learn(crrcd.teacher_of(stream), config, place).state_dict()) == before
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


# 18: identification with a frozen backbone
def test_the_linear_classifier_leaves_the_backbone_alone(config, place, monkeypatch):
    stream = Stream("faces", 0, config.face_student, crrcd.recipes(config)["CRRCD"], config.face_teacher)
    network = crrcd.learn(stream, config, place)
    before = fingerprint(network.state_dict())
    monkeypatch.setattr(crrcd, "learn", lambda *args: network)
    found = crrcd.measure_identification(stream, "low", config, place)
    assert 0 <= found["accuracy"] <= 100 and fingerprint(network.state_dict()) == before


# faces in the paper's own protocols: Tables 5, 6 and 7, on miniatures in the true layouts
TINY = {"seeds": (0,), "face_teacher": "smallface:4-8:8", "face_student": "smallface:4-8:8", "face_size": 24, "face_low": 16, "face_steps": 2, "tune_steps": 2,
        "batch_size": 8, "face_methods": ("Student", "KD", "CRRCD"), "n": 4, "p": 8, "crd_n": 8, "probe_steps": 20, "subjects": 3}


@pytest.fixture
def native(tmp_path, face_layouts, monkeypatch):
    """A data root with CASIA-WebFace, UCCS and TinyFace, without LFW."""
    face_layouts.casia(tmp_path, {"a": 4, "b": 4, "c": 3, "d": 4, "e": 1})
    for write in (face_layouts.uccs, face_layouts.tinyface):
        write(tmp_path)
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path))
    monkeypatch.setattr(Place, "map", lambda self, function, items, desc="": [function(item) for item in items])
    return tmp_path


@pytest.fixture
def executed(run_from_parameters):
    """`executed(dataset, out, overrides)`: the notebook from its parameters on, with the profile `paper`."""
    def run(dataset, out, overrides):
        chosen = {name: value for name, value in overrides.items() if name != "seeds"}
        return run_from_parameters(crrcd, "import math", dataset=dataset, out=str(out), overrides=chosen)
    return run


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
    assert json.loads((space["folder"].path / "manifest.json").read_text())["status"] == "finished"


def test_uccs_fits_the_last_layer_alone_and_tinyface_trains_the_embedder_on(native, tmp_path, place, monkeypatch):
    config = Config.profile("paper", dataset="uccs+tinyface", **TINY)
    stream = Stream("faces", 0, config.face_student, crrcd.recipes(config)["CRRCD"], config.face_teacher)
    network, further = crrcd.learn(stream, config, place), crrcd.tuned(stream, config, place)
    assert network.head.weight.shape[0] == 5 and further.head.weight.shape[0] == 2                   # people of CASIA-WebFace, and of TinyFace
    weights = [net.embedder.trunk.stage1[0].weight for net in (network, further)]
    assert not weights[0].equal(weights[1]) and torch.allclose(*weights, atol=0.1)                   # it goes on from there
    before, fitted = fingerprint(network.state_dict()), []
    monkeypatch.setattr(crrcd, "learn", lambda *args: network)
    monkeypatch.setattr(crrcd, "linear_probe", lambda x, y, z, steps: fitted.append((x, y, z)) or crossres.linear_probe(x, y, z, steps))
    assert 0 <= crrcd.measure_identification(stream, "low", config, place)["accuracy"] <= 100
    (x, y, z), = fitted
    assert fingerprint(network.state_dict()) == before and set(y.tolist()) == {0, 1, 2} and len(x) == 15 and len(z) == 3   # five of six pictures, and the sixth
    gallery, probe, _ = search_sets("tinyface", config.face_size)
    assert len(gallery) == 4 + 3 and len(probe) == 3                                                 # distractors stand in the gallery


def test_lfw_judges_where_it_is_named(native, face_layouts, place):
    config = Config.profile("paper", dataset="casia+uccs+tinyface", **TINY)
    with pytest.raises(FileNotFoundError, match="lfw"):
        crrcd.people_of(config)
    face_layouts.lfw(native)
    people = crrcd.people_of(config)
    assert len(people.train) == 16 and len(people.unseen) == 9 and people.pairs.folds == 2
    rows = {crrcd.dataset_of(row, config): row.table for row in crrcd.trials(config)}
    assert rows == {"LFW": crrcd.TABLES["verification"], "UCCS": crrcd.TABLES["identification"], "TinyFace": crrcd.TABLES["search"]}
    assert len({row.stream for row in crrcd.trials(config)}) == 1 + 3                                 # the same networks in all three
    alone = Config.profile("paper", dataset="casia")
    assert set(crrcd.protocols_of(alone)) == {"verification", "identification", "search"} and crrcd.judge_of("search", alone) == "casia"
    assert (alone.face_teacher, alone.face_student, alone.face_size, alone.face_low) == ("face_resnet50::512", "face_resnet18::512", 112, 16)
    assert Config.profile("paper", dataset="uccs").subjects == 180


@pytest.mark.parametrize(("dataset", "words"), [("uccs", "CASIA-WebFace"), ("tinyface", "tinyface.zip"), ("casia", "pairs.txt"), ("casia+uccs", "lay the faces out as")])
def test_a_run_without_its_faces_is_refused_before_it_starts(tmp_path, dataset, words):
    from kdnotes.batch.plan import check_data

    with pytest.raises(FileNotFoundError, match=f"the data of .* are not there .*{words}"):
        check_data(Config, dataset, tmp_path)
    check_data(Config, "digits", tmp_path)


def test_the_linear_probe_reaches_the_optimum():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    x = torch.randn(3, 5, generator=g)[labels] + 0.3 * torch.randn(90, 5, generator=g)
    z = (x - x.mean(0)) / x.std(0)
    from sklearn.linear_model import LogisticRegression

    # ours: mean loss + decay |W|^2; theirs: C * sum of losses + |W|^2 / 2
    theirs = LogisticRegression(C=1 / (2 * 1e-3 * 90), tol=1e-8, max_iter=2000).fit(z, labels).decision_function(z)
    ours = crossres.linear_probe(x, labels, x, steps=500)
    assert torch.allclose(ours.softmax(1), torch.tensor(theirs).float().softmax(1), atol=2e-3)


def test_the_overlap_of_histograms():
    same = torch.tensor([True, True, False, False])
    assert crrcd.overlap(torch.tensor([0.9, 0.8, -0.5, 0.1]), same) == 0
    assert crrcd.overlap(torch.tensor([0.9, 0.1, 0.9, 0.1]), same) == 1
    assert crrcd.overlap(torch.tensor([0.9, 0.1, 0.9, -0.6]), same) == 0.5


# 20: the experiment as a whole
def test_tables_settings_and_names_join_with_the_papers():
    config = Config.profile("paper", dataset="cifar100", seeds=(0,))
    rows = crrcd.pairs_rows(0, config)
    ours = {(";".join(f"{k}={v}" for k, v in row.setting), row.method) for row in rows}
    paper = reported("crrcd")
    theirs = {(setting, method) for setting, method in zip(paper.setting, paper.method)
              if method in {"Teacher", "Student", "KD", "FitNet", "AT", "SP", "CC", "VID", "PKT", "RKD", "CRD", "CRCD", "CRRCD"} and "arch=" in setting}
    theirs = {(setting.replace("student=ResNet32;arch=peer", "student=ResNet8x4;arch=peer") if "ResNet32x4" in setting else setting, method) for setting, method in theirs}
    assert theirs <= ours
    assert {row.setting[0][1] for row in rows} == {"WRN-40-2", "ResNet56", "ResNet110", "ResNet32x4", "VGG13", "ResNet18", "VGG11", "WRN50-2"}


def test_methods_of_a_seed_share_everything_but_their_loss():
    rows = crrcd.trials(Config.profile("demo", seeds=(0, 1)))
    assert {row.stream.seed for row in rows} == {0, 1}
    main = [row for row in rows if row.table == "retrieval of unseen classes" and row.stream.seed == 0 and row.view == "low"]
    assert {row.method for row in main} == {"Student", "KD", "FitNet", "AT", "SP", "CC", "VID", "PKT", "RKD", "CRD", "CRCD", "RCD only", "CRRCD", "CRRCD, literal critic"}
    assert len({(row.stream.network, row.stream.teacher, row.stream.task) for row in main}) == 1
    settings = {dict(row.setting).get("n") for row in rows if row.table == "number of negatives"}
    assert settings == {16, 128, 256}


def test_a_run_can_be_repeated_and_taken_up_again(tmp_path, config):
    config = replace(config, studies=("pairs", "faces"), seeds=(0,))
    fabric = make_fabric("cpu")
    first = crrcd.run(config, fabric, tmp_path / "a").frame()
    again = crrcd.run(config, fabric, tmp_path / "a").frame()               # everything is kept
    other = crrcd.run(config, fabric, tmp_path / "b").frame()               # everything anew
    assert first.equals(again) and first.equals(other)
    assert {"accuracy", "verification_accuracy", "rank1", "histogram_intersection"} <= set(first.metric)
    assert first.value.map(math.isfinite).all()


@pytest.mark.slow
def test_relational_contrast_helps_to_find_unseen_classes(place):
    """The only ordering that is asserted at this scale: labels + relations > labels alone, paired over seeds, in the mean over both halves of the digits."""
    gains = []
    for seed, seen in ((0, (0, 2, 4, 6, 8)), (0, (1, 3, 5, 7, 9)), (1, (0, 2, 4, 6, 8)), (1, (1, 3, 5, 7, 9))):
        config = Config.profile("demo", seeds=(seed,), seen=seen, teacher="smallconv:16-32-64:64")
        methods = crrcd.recipes(config)
        recall = {name: crrcd.measure_recall(Stream("retrieval", seed, config.student, methods[name], config.teacher), "low", config, place)["recall_at_1"]
                  for name in ("Student", "RCD only")}
        gains.append(recall["RCD only"] - recall["Student"])
    assert sum(gains) / len(gains) > 0, gains


def test_claims_fail_when_the_order_is_wrong():
    rows = Results("crrcd", "demo")
    for seed in range(3):
        for method, value in {"Student": 80, "KD": 81, "CRD": 90, "CRCD": 82, "RKD": 83, "RCD only": 86, "CRRCD": 85, "CRRCD, literal critic": 70, "teacher fed low": 84}.items():
            rows.add(crrcd.TABLES["retrieval"], "digits", method, "recall_at_1", value + 0.1 * seed, seed)
    verdicts = judge(crrcd.embedding_claims(), rows.frame()).set_index("claim").verdict
    assert verdicts["CRRCD > plain student"] == "supported" and verdicts["CRRCD > CRD"] == "not supported"


@pytest.mark.parametrize("bad, words", [
    ({"tau": 0.0}, ("tau=0.0", "above 0")), ({"n": 0}, ("n=0", "at least 1")), ({"norm": "Z"}, ("norm", "'Z'", "crd")), ({"studies": ("retreival",)}, ("study", "retrieval")),
    ({"student": "smalconv"}, ("network", "smallconv")), ({"people": (5,)}, ("people=(5,)", "two numbers")), ({"pair_methods": ("CRRD",)}, ("method", "CRRCD")),
    ({"pairs": (("vgg8", "vgg8"),)}, ("triples",)), ({"anchors": -1}, ("anchors=-1",)), ({"optimizer": "adam"}, ("optimizer", "adamw")), ({"seen": "0"}, ("seen",)),
    ({"temprature": 1}, ("parameter",)),
])
def test_bad_configurations_say_what_is_expected(bad, words):
    with pytest.raises(ValueError) as error:
        Config.profile("demo", **bad)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), str(error.value)


def test_bad_recipes_say_what_is_expected():
    with pytest.raises(ValueError, match="loss term 'crdd'.*crd"):
        Recipe(terms=(("crdd", 1.0),))
    with pytest.raises(ValueError, match="weight of kd is 0"):
        Recipe(terms=(("kd", 0),))
    with pytest.raises(ValueError, match="stage9.*stage1"):
        crrcd.stage_of(build("resnet8", 4), "stage9")


@pytest.mark.parametrize("profile, dataset", [("real", "cifar10"), ("real", "mnist"), ("real", "fashion_mnist"), ("paper", "cifar100"), ("paper", "svhn"), ("paper", "lfw"), ("paper", "casia"), ("paper", "uccs"),
                                              ("paper", "tinyface"), ("demo", "mnist5k")])
def test_every_profile_is_whole(profile, dataset):
    config = Config.profile(profile, dataset=dataset)
    assert crrcd.trials(config) and crrcd.claims(config)
    assert copy.deepcopy(config) == config


def test_the_cross_resolution_floor_is_shared():
    assert crrcd.both_views is both_views and crossres.Views is Views
    assert isinstance(crrcd.target_in({"teacher.logits": torch.ones(1, 2), "teacher.features": torch.ones(1, 3)}), Prediction)
