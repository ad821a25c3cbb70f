"""CCC's configuration, stages, tables and a whole run on a tiny crowd."""

import dataclasses
from functools import partial

import pytest
import torch

from kdnotes.crowdlearn import study
from kdnotes.crowdlearn.committee import confusions, couple, posterior, probabilities
from kdnotes.crowdlearn.study import PublishedCrowd, Task, agreement, new_network, scores
from kdnotes.data.crowd_statistics import raw_accuracy
from kdnotes.data.crowds import CrowdData, Labelled
from kdnotes.data.synthetic_crowds import synthetic
from kdnotes.experiment import Experiment, Planner
from kdnotes.losses import annotators
from kdnotes.models.perceptron import Perceptron
from kdnotes.papers import ccc
from kdnotes.papers.ccc import Config, Correction, claims, fit, run, stage_of
from kdnotes.results import cited_differences, judge, reported, select
from kdnotes.runtime import make_fabric

METHODS = [name for name in ccc.METHODS if not name.endswith(" ×2") or name in ("CrowdLayer ×2", "CoNAL ×2")]
TINY = {"train_size": 120, "network": "mlp:12", "epochs": 2, "warmup": 1, "annotators": 12, "groups": 3,
        "meta_size": 20, "meta_batch": 8, "batch_size": 40}


def rows_of(config):
    return [row for seed in config.seeds for row in ccc.main_rows(seed, config) + ccc.ablation_rows(seed, config)]


def alone(config, root, profile="demo"):
    return Experiment.alone("ccc", config, root, profile)


@pytest.mark.parametrize("profile", Config.PROFILES)
def test_profiles_and_their_datasets_are_valid(profile):
    assert rows_of(Config.profile(profile)) and claims(Config.profile(profile))
    for name, dataset in Config.DATASETS:
        if name == profile:
            config = Config.profile(profile, dataset=dataset)
            names = [claim.name for claim in claims(config)]
            assert config.dataset == dataset and rows_of(config) and len(set(names)) == len(names)


def test_the_paper_profile_is_the_authors_code():
    config = Config.profile("paper")
    expected = {"network": "resnet34", "optimizer": "sgd", "lr": 0.01, "weight_decay": 5e-4, "warmup": 10, "epochs": 50,
                "milestones": (30,), "batch_size": 128}
    assert {name: getattr(config.training, name) for name in expected} == expected and config.dataset == "cifar10n"
    assert config.correction == Correction()  # the library's defaults are the code's
    expected = {"meta_batch": 128, "meta_size": 1000, "groups": 30, "gamma": 0.5, "active": "head", "duplicates": True}
    assert {name: getattr(Correction(), name) for name in expected} == expected
    assert all(Config.profile(name, dataset="labelme").correction.active == "all" for name in ("real", "paper"))


@pytest.mark.parametrize(("wrong", "words"), [
    ({"methods": ("CCD",)}, "unknown tables.methods.* 'CCD'"), ({"case": "IND-I"}, "unknown crowd.case"),
    ({"network": "mlp"}, "mlp:widths"), ({"network": "mlp:64:drop"}, "ends in 'drop', which mlp does not know"),
    ({"network": "mlp:0"}, "not of the form"), ({"network": "mlp:-5"}, "not of the form"),
    ({"network": "mlp:64:32"}, "no option 'embedding'"),
    ({"network": "mlp::dropout"}, "mlp:widths"), ({"network": "resnet34:32"}, "no option 'width"),
    ({"network": "resnet99"}, "unknown network"), ({"optimizer": "lion"}, "unknown training.optimizer"),
    ({"lr": 0.0}, "lr=0.0"), ({"epochs": 0}, "epochs=0 is out of range; expected int at least 1"),
    ({"labels_per_item": 100.0}, "must lie between"), ({"density_sweep": (100,)}, "must lie between"),
    ({"groups": 0}, "groups=0 is out of range; expected int at least 1"), ({"active": "some"}, "known: all, head"),
    ({"holdout": 1.0}, "holdout"), ({"holdout": 0.0}, "no published validation set"), ({"gama": 1}, "gamma"),
    ({"alpha": float("nan")}, "alpha"), ({"alpha": 0.0}, "alpha"), ({"milestones": (99,)}, "within the"),
    ({"milestones": (-1,)}, "milestones"), ({"methods": ()}, "methods"),
])
def test_bad_configurations_are_refused_in_words(wrong, words):
    with pytest.raises(ValueError, match=words) as refusal:
        Config.profile("demo", **wrong)
    assert "\n" not in str(refusal.value)


def test_equal_shares_are_infinite():
    assert Config.profile("demo", alpha=float("inf")).crowd.alpha == float("inf")


@pytest.mark.parametrize(("wrong", "words"), [
    ({"meta_size": 9}, "no item for each of the 10 classes"), ({"meta_sweep": (5,)}, "meta_size=5 has no item"),
    ({"network": "vgg13", "dataset": "music"}, "use an mlp"), ({"holdout": 0.001}, "cannot hold out"),
])
def test_what_does_not_suit_the_data_is_refused_before_anything_is_trained(wrong, words, tmp_path, monkeypatch):
    x, truth = torch.randn(60, 5), torch.arange(60) % 10
    crowd = synthetic(x, truth, tuple("abcdefghij"), "IND-D", annotators=9).crowd
    monkeypatch.setattr(study, "load_crowd", lambda name, **kw: CrowdData(crowd, Labelled(x, truth)))
    experiment = alone(Config.profile("demo", **TINY | wrong), tmp_path)
    with pytest.raises(ValueError, match=words):
        run(experiment)
    assert not experiment.how


def test_a_value_that_is_in_a_sweep_already_is_no_second_row():
    config = Config.profile("demo", groups=1, group_sweep=(1, 0, 0), density_sweep=(3.0, 1.0), cases=("IND-S", "COR-S"),
                            methods=("CCC", "CCC"), gamma_sweep=(0.5, 1.0), seeds=(0,))
    rows = [(row.table, row.method, tuple(row.setting.items())) for row in rows_of(config)]
    assert len(set(rows)) == len(rows)
    assert [dict(s)["G"] for table, _, s in rows if table == "ablation: number of groups"] == [1, "R"]


def test_networks():
    x = torch.randn(5, 3, 12, 12)
    for text in ("mlp:9-7", "mlp:9:dropout:norm", "smallconv", "resnet34"):
        network = new_network(text, x[0], 4)
        prediction = network(x)
        weight, bias = list(network.parameters())[-2:]
        logits = prediction.features @ weight.T + bias
        assert torch.allclose(prediction.logits, logits, atol=1e-5)  # what the head-only correction relies on
        assert network.feature_dim == prediction.features.shape[1]
    first = next(m for m in new_network("resnet34", x[0], 4).modules() if isinstance(m, torch.nn.Conv2d))
    assert first.padding == (0, 0) and first.kernel_size == (3, 3) and first.stride == (1, 1)
    with pytest.raises(ValueError, match="use an mlp"):
        new_network("resnet18", torch.randn(6), 4)


def test_a_method_and_its_rivals_start_alike_on_the_same_crowd(tmp_path):
    config = Config.profile("demo", **TINY)
    here, made = alone(config, tmp_path).here, {}
    for method in ("CCC", "MajorVote", "CoNAL", "CrowdLayer ×2"):
        stage = stage_of(method, 3, config)
        crowd = stage.task.material(here).crowd
        made[method] = stage.approach.assemble(partial(stage.training.new_network, crowd), crowd, stage.seed)
    first = [torch.cat([p.flatten() for p in committee.experts[0].network.parameters()])
             for committee, _ in made.values()]
    assert all(torch.equal(first[0], other) for other in first[1:])
    one = made["MajorVote"][1]
    assert one.annotators == 1 and torch.equal(one.features, made["CCC"][1].features) and len(one.item) == one.items
    assert stage_of("CrowdLayer", 3, config) == stage_of("CrowdLayer ×2", 3, config)


def test_scores_select_on_validation():
    rows = [{"accuracy": a, "accuracy 1": a - 1, "validation": v, "validation 1": v, "held-out loss": x, "held-out loss 1": -x}
            for a, v, x in ((80, 50, 3.0), (90, 40, 1.0), (70, 60, 2.0), (85, 60, 1.5))]
    expected = {"accuracy_best": 90, "accuracy_last": 85, "accuracy_selected": 70, "accuracy_likelihood": 90, "accuracy_drop": 5}
    assert scores(rows) == expected
    assert scores(rows, expert=1)["accuracy_best"] == 89 and scores(rows, expert=1)["accuracy_likelihood"] == 79
    assert scores(rows, skipped=2) == {"accuracy_best": 85, "accuracy_last": 85, "accuracy_selected": 70,
                                       "accuracy_likelihood": 85, "accuracy_drop": 0}


def test_the_warm_up_is_no_candidate_for_the_best_epoch():
    """As in the authors' code, where the best accuracy is looked for in CCC's own epochs."""
    config = Config.profile("demo", **TINY)
    assert stage_of("CCC", 0, config).skipped == config.training.warmup == 1
    assert stage_of("CrowdLayer ×2", 0, config).skipped == 0
    rows = [dict.fromkeys(("accuracy", "validation", "held-out loss"), value) for value in (99.0, 50.0, 60.0)]
    assert study.measured(stage_of("CCC", 0, config), {"rows": rows}, None)["accuracy_best"] == 60
    assert study.measured(stage_of("MajorVote", 0, config), {"rows": rows}, None)["accuracy_best"] == 99


@pytest.mark.parametrize("method, dataset, expected", [
    ("CoNAL", "labelme", {"lr": 0.01, "batch_size": 1024, "epochs": 100, "renewed": True}),
    ("CoNAL", "music", {"lr": 0.01, "batch_size": 1024, "epochs": 200, "renewed": True}),
    ("Max-MIG", "labelme", {"lr": 1e-4, "batch_size": 64, "renewed": False}),
    ("Max-MIG", "cifar10n", {"lr": 1e-3, "batch_size": 64, "epochs": 50, "optimizer": "adam", "weight_decay": 0.0}),
])
def test_the_schedules_of_the_authors(method, dataset, expected):
    config = Config.profile("real", dataset=dataset)
    stage, common = (stage_of(name, 0, config) for name in (f"{method}, own schedule", method))
    assert {name: getattr(stage.training, name) for name in expected} == expected and not stage.training.milestones
    assert stage.training.network == common.training.network and stage.task == common.task
    if method == "CoNAL":
        assert (stage.approach.embedding, stage.approach.unit) == ((80, False) if dataset == "music" else (20, True))
    with pytest.raises(ValueError, match="no schedule of its own"):
        ccc.own_schedule("UnionNet, own schedule", config)


@pytest.mark.parametrize("method", ["MajorVote", "CoNAL", "Max-MIG", "CrowdLayer"])
def test_two_networks_of_a_method_are_two_starts_whose_answers_are_averaged(tmp_path, method):
    config = Config.profile("demo", **TINY)
    here = alone(config, tmp_path).here
    one, two = (stage_of(name, 0, config) for name in (method, f"{method} ×2"))
    crowd = one.task.material(here).crowd
    (single, lesson), (pair, other) = (s.approach.assemble(partial(s.training.new_network, crowd), crowd, 0) for s in (one, two))
    weights = [torch.cat([p.flatten() for p in expert.network.parameters()]) for expert in (*single.experts, *pair.experts)]
    assert len(pair.experts) == 2 and torch.equal(weights[0], weights[-2]) and not torch.equal(*weights[-2:])
    assert torch.equal(lesson.label, other.label)
    groups = two.approach.parameters(pair, 1e-3)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in pair.parameters())
    assert {g.get("lr") for g in groups} == ({None, 1e-4} if method == "Max-MIG" else {None})


def test_annotators_start_where_it_is_said(tmp_path):
    config = Config.profile("demo", start_sweep=("4 I", "votes"), **TINY)
    here = alone(config, tmp_path).here
    starts = {}
    for start in ("I", "4 I", "votes"):
        stage = stage_of("CCC", 0, config, start=start)
        crowd = stage.task.material(here).crowd
        committee, _ = stage.approach.assemble(partial(stage.training.new_network, crowd), crowd, 0)
        starts[start] = confusions(committee)
        assert all(torch.equal(expert.head.T, committee.experts[0].head.T) for expert in committee.experts)
    assert starts["I"][:, 0, 0].allclose(torch.tensor(torch.e / (torch.e + 9)))
    assert starts["4 I"].diagonal(dim1=1, dim2=2).min() > 0.85
    votes_of = torch.nn.functional.one_hot(crowd.truth.reveal(), 10)                     # of the vote, not of the truth
    assert torch.allclose(starts["votes"].sum(2), torch.ones(12, 10)) and votes_of.shape[1] == 10
    assert starts["votes"].max() > 0.9 and starts["votes"].min() < 1e-3
    rows = [row for row in rows_of(config) if row.table == "ablation: start of the matrices"]
    assert {(row.method, row.setting["start"]) for row in rows} == {(m, s) for m in ("CCC", "CrowdLayer ×2") for s in starts}
    with pytest.raises(ValueError, match="'5 I'"):
        Config.profile("demo", start_sweep=("5 I",))


def test_components_are_uncorrelated_and_keep_what_varies_most():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 1, 3, 4, generator=g) * torch.arange(1.0, 13).view(1, 1, 3, 4)
    crowd = synthetic(x, torch.arange(60) % 3, tuple("abc"), "IND-D", annotators=9, seed=0).crowd
    made = study.as_components(CrowdData(crowd, Labelled(x[:7], torch.zeros(7).long()), None), 5)
    z = made.crowd.features.double()
    assert z.shape == (60, 5) and torch.allclose(z.T @ z / 60, torch.eye(5).double(), atol=1e-5)
    assert torch.allclose(made.test.features, made.crowd.features[:7], atol=1e-5)
    assert torch.corrcoef(torch.stack([z[:, 0], x.flatten(1)[:, 11].double()]))[0, 1] > 0.7           # the sign is fixed too
    with pytest.raises(ValueError, match="components=13: 60 items of 12 numbers have 12 at most"):
        study.as_components(CrowdData(crowd, Labelled(x[:7], torch.zeros(7).long()), None), 13)


def test_the_held_out_loss_is_the_likelihood_of_held_out_labels(tmp_path):
    config = Config.profile("demo", **TINY)
    stage = stage_of("CCC", 0, config)
    stuff = stage.task.material(alone(config, tmp_path).here)
    committee, _ = stage.approach.assemble(partial(stage.training.new_network, stuff.crowd), stuff.crowd, 0)
    found = study.held_out_losses(committee, stuff.valid)
    q = probabilities(committee, stuff.valid.features)[0].double()
    T = committee.experts[0].head.T.double()
    expected = [-((q[i] @ T[r]).softmax(0)[y] + 1e-5).log() for i, r, y in zip(stuff.valid.item, stuff.valid.annotator, stuff.valid.label)]
    assert found[0].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    truth = Labelled(stuff.valid.features, stuff.valid.truth.reveal())
    plain = torch.nn.functional.nll_loss(q.log(), truth.labels)
    assert study.held_out_losses(committee, truth)[0].item() == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("method", ["DoctorNet", "CoNAL", "Max-MIG", "MajorVote"])
def test_the_held_out_loss_on_true_classes_is_that_of_the_answers(tmp_path, method):
    config = Config.profile("demo", **TINY)
    stage = stage_of(method, 0, config)
    stuff = stage.task.material(alone(config, tmp_path).here)
    committee, _ = stage.approach.assemble(partial(stage.training.new_network, stuff.crowd), stuff.crowd, 0)
    truth = Labelled(stuff.valid.features, stuff.valid.truth.reveal())
    before = study.held_out_losses(committee, truth).item()
    answers = probabilities(committee, truth.features)[0].double()
    assert before == pytest.approx(torch.nn.functional.nll_loss(answers.log(), truth.labels).item(), rel=1e-5)
    expert = committee.experts[0]
    logits = expert(truth.features).logits.detach()
    plain = torch.nn.functional.cross_entropy(logits, truth.labels).item()
    with torch.no_grad():
        for weight in expert.head.parameters():
            weight.mul_(3)
    after = study.held_out_losses(committee, truth).item()
    if method == "DoctorNet":                                     # its heads answer, its last layer is never trained
        assert abs(after - before) > 1e-3 and abs(before - plain) > 1e-3
    else:
        assert before == pytest.approx(plain, rel=1e-6) and after == before


def test_claims_are_the_papers_where_its_table_has_them_and_hold_there():
    for dataset, expected in {"labelme": 6 * 2 - 1, "music": 12, "cifar10n": 4 * 2}.items():       # CoNAL ends ahead on LabelMe
        found = claims(Config.profile("real", dataset=dataset))
        cited = [claim for claim in found if claim.source == "paper" and claim.cited.table == "real-world"]
        assert len(cited) == expected, (dataset, [claim.name for claim in cited])
        assert all(cited_differences(claim, reported("ccc")).item() > 0 for claim in cited)
    assert all(claim.source != "paper" or "selected" not in claim.name and "held-out" not in claim.name
               for claim in claims(Config.profile("real", dataset="music")))
    names = [claim.name for claim in claims(Config.profile("real", dataset="music"))]
    assert "CCC > CoNAL, own schedule, selected" in names and "CCC > MajorVote ×2, best" in names and "CCC > CrowdLayer ×2, by held-out loss" in names


def test_no_comparison_is_claimed_twice():
    at = lambda config: {claim.name for claim in claims(config) if claim.name.endswith(("label per item, last", "labels per item, last")) and claim.name.startswith("CCC >")}
    both = lambda n: {f"CCC > {rival} at {n} label{'s' * (n > 1)} per item, last" for rival in ("CrowdLayer", "CrowdLayer ×2")}
    alike = {"density_sweep": (1.0, 5.0)}
    assert at(Config.profile("demo", cases=(), **alike)) == both(1) | both(5)                     # 3: in the main table
    assert at(Config.profile("demo", cases=("COR-S",), **alike)) == both(1) | both(3) | both(5)   # there over both cases
    assert "CCC > CrowdLayer at 3 labels per item, last" in at(Config.profile("demo", cases=(), methods=("MajorVote", "CCC"), **alike))


def test_a_cited_claim_says_which_rows_of_the_paper_stand_beside_it():
    text = lambda claimed, profile, **changes: {claim.name: claim.text for claim in claims(Config.profile(profile, **changes))}[claimed]
    assert text("CCC > CrowdLayer, last", "demo").endswith(
        "(paper: synthetic independent noise; CIFAR-10, Fashion-MNIST; IND-I, IND-II, IND-III, IND-IV)")
    assert text("G = 10 > G = R, last", "real", dataset="music").endswith(
        "(paper: ablation: number of groups; CIFAR-10; IND-I; G 30 against G 250)")
    assert "paper" not in text("G = 10 > G = 1, last", "real", dataset="music")
    assert text("CCC > CrowdLayer at 1 label per item, last", "demo").endswith(
        "(paper: ablation: annotation density; CIFAR-10; IND-I; labels_per_instance 1)")


def test_ablation_rows_ascend_and_every_annotator_alone_comes_last():
    config = Config.profile("real", dataset="labelme", seeds=(0,))
    values = {key: [row.setting[key] for row in rows_of(config) if key in row.setting] for key in ("G", "M", "gamma")}
    assert values == {"G": [1, 5, 10, 20, "R"], "M": [80, 200, 400], "gamma": [0.25, 0.5, 1.0]}


def test_claims_are_over_all_cases_that_both_sides_are_trained_on():
    found = {claim.name: claim for claim in claims(Config.profile("demo", cases=("COR-S",)))}
    assert found["CCC > MajorVote, last"].where["case"] == ["IND-S", "COR-S"]
    assert found["CCC > CoNAL, selected"].where["case"] == ["IND-S"]


def test_a_validation_crowd_is_held_out(tmp_path):
    config = Config.profile("demo", **TINY)
    here = alone(config, tmp_path).here
    stuff = stage_of("CCC", 0, config).task.material(here)
    assert stuff.crowd.items == 108 and stuff.valid.items == 12 and stuff.theta.shape == (12, 10, 10)
    p = torch.nn.functional.one_hot(stuff.valid.truth.reveal(), 10).float()
    assert agreement(p, stuff.valid) == pytest.approx(100 * raw_accuracy(stuff.valid))
    again = stage_of("MajorVote", 0, config).task.material(here)
    assert torch.equal(stuff.crowd.label, again.crowd.label)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("ccc")
    config = Config.profile("demo", seeds=(0, 1), methods=METHODS, cases=("COR-S",), group_sweep=(1, 0), self_distilled=True,
                            start_sweep=("4 I",), **TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("joblib.cpu_count", lambda: 1)  # in this process: starting workers takes longer than training
        experiment = alone(config, root)
        results = run(experiment)
    assert set(range(len(results.rows))) == set(experiment.made_by)  # `kdnotes why` has a chain for every number
    return config, root, results


@pytest.mark.long
def test_a_whole_run(whole):
    config, root, results = whole
    frame = results.frame()
    main = frame[(frame.table == "synthetic crowds") & (frame.setting == f"case={config.crowd.case}")]
    assert set(main.method) == set(METHODS) and set(main.seed) == {0, 1}
    assert set(main.metric) == {"accuracy_best", "accuracy_last", "accuracy_selected", "accuracy_likelihood", "accuracy_drop"}
    assert {"ablation: number of groups", "ablation: coupling", "ablation: annotation density", "labels recovered",
            "lead over two crowd layers"} < set(frame.table)
    assert frame.value.between(-100, 100).all() and not list(root.glob("*.resume"))
    judged = judge(claims(config), frame)
    assert (judged.n == 2).all() and set(judged.verdict) == {"inconclusive"}  # all find rows; two seeds decide nothing


@pytest.mark.long
def test_a_second_run_trains_nothing_and_equals_the_first(whole, monkeypatch):
    config, root, results = whole
    experiment = alone(config, root)
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    again = run(experiment)
    assert again.frame().equals(results.frame()) and set(experiment.how.values()) == {"read"}


def kept(config, root):
    """Whether the trainings of each method are there, by the code as it is now."""
    planner, found = Planner(alone(config, root).here), {}
    for row in rows_of(config):
        path = root / f"{planner.node(row.stage).name}.pt"
        found.setdefault(row.method.removesuffix(", self-distilled"), set()).add(path.is_file())
    return found


@pytest.mark.long
def test_a_change_of_the_correction_trains_only_what_is_corrected(whole, monkeypatch):
    config, root, _ = whole
    monkeypatch.setattr(ccc, "normalise_correction", lambda D, T, gamma: 0 * D)
    assert kept(config, root) == {"CCC": {False}} | {method: {True} for method in METHODS if method != "CCC"}


@pytest.mark.long
def test_a_change_of_one_baseline_trains_only_that_one(whole, monkeypatch):
    config, root, _ = whole
    monkeypatch.setattr(annotators.UnionNet, "forward", lambda self, *given: self.W.sum())
    assert kept(config, root) == {method: {method != "UnionNet"} for method in METHODS}


@pytest.mark.slow
def test_modelling_annotators_pays_and_holds(tmp_path):
    """Skewed, sparse noise: the crowd layer beats majority vote, and CCC does not fall back on the wrong labels.

    Two crowds; majority vote does fall back. CCC's own lead is a claim.
    """
    config = Config.profile("demo", seeds=(0, 1), warmup=4, epochs=6, annotators=100)
    experiment = alone(config, tmp_path)
    for seed in config.seeds:
        found = {m: scores(experiment.made(stage_of(m, seed, config))["rows"])
                 for m in ("MajorVote", "CrowdLayer ×2", "CCC")}
        least = min(found[m]["accuracy_last"] for m in ("CrowdLayer ×2", "CCC"))
        assert least > found["MajorVote"]["accuracy_last"] + 10
        assert found["CCC"]["accuracy_drop"] < found["MajorVote"]["accuracy_drop"] - 5


def test_a_published_crowd_runs_too(tmp_path, monkeypatch):
    g = torch.Generator().manual_seed(0)
    truth = torch.arange(90) % 3
    x = torch.nn.functional.one_hot(truth, 5).float() + 0.3 * torch.randn(90, 5, generator=g)
    drawn = synthetic(x, truth, tuple("abc"), "IND-D", annotators=9, seed=0).crowd
    crowd = dataclasses.replace(drawn, name="labelme")
    data = CrowdData(crowd, Labelled(x, truth), Labelled(x, truth))
    monkeypatch.setattr(study, "load_crowd", lambda name, **kw: data)
    tiny = TINY | {"train_size": 0, "network": "mlp:8:dropout"}
    config = Config.profile("real", seeds=(0,), methods=("MajorVote", "CCC"), group_sweep=(0,), meta_sweep=(),
                            gamma_sweep=(), **tiny)
    experiment, stage = alone(config, tmp_path / "first"), stage_of("CCC", 0, config)
    stuff = stage.task.material(experiment.here)
    assert isinstance(stuff.valid, Labelled) and stuff.crowd.features.mean().abs() < 1e-5 and stuff.theta is None
    found = experiment.made(stage)
    assert len(found["rows"]) == 3 and found["confusions"].shape == (9, 3, 3) and 0 <= found["meta_accuracy"] <= 100
    assert stage.correction == config.correction and stage.task == Task(PublishedCrowd("labelme", 0), (), 0.0, 0)
    with pytest.raises(ValueError, match="no published validation set"):
        monkeypatch.setattr(study, "load_crowd", lambda name, **kw: data._replace(valid=None))
        run(alone(config, tmp_path / "second"))


def test_fine_tuning_adds_a_row(tmp_path):
    config = Config.profile("demo", finetune=1, **TINY)
    experiment = alone(config, tmp_path)
    ours, plain = (experiment.made(stage_of(method, 0, config)) for method in ("CCC", "CrowdLayer ×2"))
    assert len(ours["rows"]) == 4 and len(plain["rows"]) == 3
    assert stage_of("MajorVote", 0, config) == stage_of("MajorVote", 0, Config.profile("demo", **TINY))


def test_reading_back_and_fine_tuning():
    made = synthetic(torch.randn(80, 6), torch.arange(80) % 4, tuple("abcd"), "IND-D", annotators=8, seed=0).crowd
    committee = couple(lambda: Perceptron(6, 4, [8]), made)
    with pytest.raises(ValueError, match="needs the meta sets"):
        ccc.fine_tune(committee, made, 1)
    sgd = torch.optim.SGD(committee.parameters(), 0.1)
    fit(committee, made, optimizer=sgd, epochs=1, warmup=1, correction=Correction(3, 16, 8), batch_size=20,
        fabric=make_fabric("cpu", "fp32"))
    theta, belief = confusions(committee).double(), posterior(committee, made)
    assert torch.allclose(theta.sum(2), torch.ones(8, 4).double(), atol=1e-6)
    p = probabilities(committee, made.features).mean(0).double()
    for i in (0, 17):
        who = made.annotations(torch.tensor([i]))
        expected = p[i].clone()
        for r, y in zip(who.annotator, who.label):
            expected = expected * theta[r, :, y]
        assert torch.allclose(belief[i].double(), expected / expected.sum(), atol=1e-5)
    before = committee.experts[0].head.T.clone(), committee.experts[0].network.classifier.weight.clone()
    ccc.fine_tune(committee, made, 2, lr=0.1, batch_size=8, fabric=make_fabric("cpu", "fp32"))
    assert torch.equal(before[0], committee.experts[0].head.T)
    assert not torch.equal(before[1], committee.experts[0].network.classifier.weight)


def test_reported_numbers_ship_with_the_package():
    table = reported("ccc")
    row = select(table, table="real-world", dataset="LabelMe", method="CCC", metric="accuracy_best")
    assert len(table) == 182 and row.value.item() == 87.65
    assert set(table[table.table == "real-world"].method) < set(ccc.METHODS)  # the names join


def test_a_lead_and_what_is_recovered_are_rows_of_methods_that_were_asked_for():
    config = Config.profile("demo", seeds=(0,), methods=("CrowdLayer", "CrowdLayer ×2", "CCC"), density_sweep=(1.0, 2.0), **TINY)
    rows = rows_of(config)
    dense = [row for row in rows if row.table == "ablation: annotation density"]
    leads = study.lead_rows(dense, "CCC", "CrowdLayer ×2", "lead")
    assert [row.setting["labels_per_instance"] for row in leads] == [1.0, 2.0, 3.0]
    assert all(row.stage.ours.task == row.stage.rival.task and row.table == "lead" for row in leads)
    assert not study.lead_rows(dense, "CCC", "UnionNet", "lead")
    main = [row for row in rows if row.table == "synthetic crowds" and row.method in ("CrowdLayer ×2", "CCC") and row.setting["case"] == "IND-S"]
    assert [row.method for row in study.recovered_rows(main, beside="CCC")] == ["CrowdLayer ×2", "CCC", "raw labels", "MajorVote", "Dawid-Skene"]
    assert [row.method for row in study.recovered_rows(main[:1], beside="CCC")] == ["CrowdLayer ×2"]
