"""CCC's configuration, jobs, tables and a whole run on a tiny crowd."""

import dataclasses

import pytest
import torch

from kdnotes.data import crowds
from kdnotes.papers import ccc
from kdnotes.papers.ccc import Config, Correction, Job, claims, fit, job_of, new_network, run, scores, trials
from kdnotes.results import judge, reported
from kdnotes.runtime import make_fabric

TINY = {"train_size": 120, "network": "mlp:12", "epochs": 2, "warmup": 1, "annotators": 12, "groups": 3, "meta_size": 20, "meta_batch": 8, "batch_size": 40}


@pytest.mark.parametrize("profile", Config.PROFILES)
def test_profiles_and_their_datasets_are_valid(profile):
    assert trials(Config.profile(profile)) and claims(Config.profile(profile))
    for name, dataset in Config.DATASETS:
        if name == profile:
            config = Config.profile(profile, dataset=dataset)
            names = [claim.name for claim in claims(config)]
            assert config.dataset == dataset and trials(config) and len(set(names)) == len(names)


def test_the_paper_profile_is_the_authors_code():
    config = Config.profile("paper")
    expected = {"dataset": "cifar10n", "network": "resnet34", "optimizer": "sgd", "lr": 0.01, "weight_decay": 5e-4, "warmup": 10, "epochs": 50,
                "milestones": (30,), "batch_size": 128, "meta_batch": 128, "meta_size": 1000, "groups": 30, "gamma": 0.5, "active": "head", "duplicates": True}
    assert {name: getattr(config, name) for name in expected} == expected
    assert ccc.correction_of(config) == Correction()  # the library's defaults are the code's
    assert Config.profile("paper", dataset="labelme").active == "all"


@pytest.mark.parametrize(("wrong", "words"), [
    ({"methods": ("CCD",)}, "unknown method 'CCD'"), ({"case": "IND-I"}, "unknown case"), ({"network": "mlp"}, "mlp:sizes"), ({"network": "mlp:64:drop"}, "unknown options drop"),
    ({"network": "resnet99"}, "unknown network"), ({"optimizer": "lion"}, "unknown optimizer"), ({"lr": 0.0}, "lr=0.0"), ({"epochs": 0}, "epochs=0 must be at least 1"),
    ({"labels_per_item": 100.0}, "must lie between"), ({"groups": 0}, "groups >= 1"), ({"active": "some"}, "'head' or 'all'"), ({"holdout": 1.0}, "holdout"), ({"gama": 1}, "gamma"), ({"milestones": (99,)}, "within the"), ({"milestones": (99,)}, "within the"),
])
def test_bad_configurations_are_refused_in_words(wrong, words):
    with pytest.raises(ValueError, match=words):
        Config.profile("demo", **wrong)


def test_networks():
    x = torch.randn(5, 3, 12, 12)
    for text in ("mlp:9-7", "mlp:9:dropout:norm", "smallconv", "resnet34"):
        network = new_network(text, x[0], 4)
        prediction = network(x)
        weight, bias = list(network.parameters())[-2:]
        assert torch.allclose(prediction.logits, prediction.features @ weight.T + bias, atol=1e-5)  # what the head-only correction relies on
        assert network.feature_dim == prediction.features.shape[1]
    first = next(m for m in new_network("resnet34", x[0], 4).modules() if isinstance(m, torch.nn.Conv2d))
    assert first.padding == (0, 0) and first.kernel_size == (3, 3) and first.stride == (1, 1)
    with pytest.raises(ValueError, match="use an mlp"):
        new_network("resnet18", torch.randn(6), 4)


def test_a_method_and_its_rivals_start_alike_on_the_same_crowd():
    config = Config.profile("demo", **TINY)
    made = {m: ccc.assemble(job_of(m, 3, config), ccc.material(config, job_of(m, 3, config)).crowd, config) for m in ("CCC", "MajorVote", "CoNAL", "CrowdLayer ×2")}
    first = [torch.cat([p.flatten() for p in committee.experts[0].network.parameters()]) for committee, _ in made.values()]
    assert all(torch.equal(first[0], other) for other in first[1:])
    one = made["MajorVote"][1]
    assert one.annotators == 1 and torch.equal(one.features, made["CCC"][1].features) and len(one.item) == one.items
    assert job_of("CrowdLayer", 3, config) == job_of("CrowdLayer ×2", 3, config)


def test_scores_select_on_validation():
    rows = [{"accuracy": a, "accuracy 1": a - 1, "validation": v, "validation 1": v} for a, v in ((80, 50), (90, 40), (70, 60), (85, 60))]
    assert scores(rows) == {"accuracy_best": 90, "accuracy_last": 85, "accuracy_selected": 70, "accuracy_drop": 5}
    assert scores(rows, expert=1)["accuracy_best"] == 89


def test_a_validation_crowd_is_held_out():
    config = Config.profile("demo", **TINY)
    stuff = ccc.material(config, job_of("CCC", 0, config))
    assert stuff.crowd.items == 108 and stuff.valid.items == 12 and stuff.theta.shape == (12, 10, 10)
    p = torch.nn.functional.one_hot(stuff.valid.truth.reveal(), 10).float()
    assert ccc.agreement(p, stuff.valid) == pytest.approx(100 * crowds.raw_accuracy(stuff.valid))
    again = ccc.material(config, job_of("MajorVote", 0, config))
    assert torch.equal(stuff.crowd.label, again.crowd.label)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("ccc")
    config = Config.profile("demo", seeds=(0, 1), methods=ccc.METHODS, **TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("joblib.cpu_count", lambda: 1)  # in this process: starting workers takes longer than these trainings
        return config, root, run(config, make_fabric("cpu", "fp32"), root)


def test_a_whole_run(whole):
    config, root, results = whole
    frame = results.frame()
    main = frame[(frame.table == "synthetic crowds") & (frame.setting == f"case={config.case}")]
    assert set(main.method) == set(ccc.METHODS) and set(main.seed) == {0, 1}
    assert set(main.metric) == {"accuracy_best", "accuracy_last", "accuracy_selected", "accuracy_drop"}
    assert {"ablation: number of groups", "ablation: coupling", "ablation: annotation density", "labels recovered", "lead over two crowd layers"} < set(frame.table)
    assert frame.value.between(-100, 100).all() and not list(root.glob("*.resume"))
    judged = judge(claims(config), frame)
    assert (judged.n == 2).all() and set(judged.verdict) == {"inconclusive"}  # every claim finds its rows; two seeds decide nothing


def test_a_second_run_trains_nothing_and_equals_the_first(whole, monkeypatch):
    config, root, results = whole
    monkeypatch.setattr(ccc, "train_job", None)
    again = run(config, make_fabric("cpu", "fp32"), root)
    assert again.frame().equals(results.frame())


@pytest.mark.slow
def test_modelling_annotators_pays_and_holds():
    """Skewed, sparse noise: the crowd layer beats majority vote, and CCC does not fall back on the wrong labels as majority vote does (two crowds; CCC's own lead is a claim)."""
    config = Config.profile("demo", seeds=(0, 1), warmup=4, epochs=6, annotators=100)
    for seed in config.seeds:
        found = {m: scores(ccc.train_job(job_of(m, seed, config), config, make_fabric("cpu", "fp32"), None)["rows"], 0) for m in ("MajorVote", "CrowdLayer ×2", "CCC")}
        assert min(found[m]["accuracy_last"] for m in ("CrowdLayer ×2", "CCC")) > found["MajorVote"]["accuracy_last"] + 10
        assert found["CCC"]["accuracy_drop"] < found["MajorVote"]["accuracy_drop"] - 5


def test_a_published_crowd_runs_too(tmp_path, monkeypatch):
    g = torch.Generator().manual_seed(0)
    truth = torch.arange(90) % 3
    x = torch.nn.functional.one_hot(truth, 5).float() + 0.3 * torch.randn(90, 5, generator=g)
    crowd = dataclasses.replace(crowds.synthetic(x, truth, tuple("abc"), "IND-D", annotators=9, seed=0).crowd, name="labelme")
    data = crowds.CrowdData(crowd, crowds.Labelled(x, truth), crowds.Labelled(x, truth))
    monkeypatch.setattr(ccc, "remembered", lambda key, build: build())
    monkeypatch.setattr(crowds, "load", lambda name, **kw: data)
    config = Config.profile("real", seeds=(0,), methods=("MajorVote", "CCC"), **TINY | {"train_size": 0, "network": "mlp:8:dropout"}, group_sweep=(0,), meta_sweep=(), gamma_sweep=())
    stuff = ccc.material(config, job_of("CCC", 0, config))
    assert isinstance(stuff.valid, crowds.Labelled) and stuff.crowd.features.mean().abs() < 1e-5 and stuff.theta is None
    found = ccc.train_job(job_of("CCC", 0, config), config, make_fabric("cpu", "fp32"), None)
    assert len(found["rows"]) == 3 and found["confusions"].shape == (9, 3, 3) and 0 <= found["meta_accuracy"] <= 100
    assert job_of("CCC", 0, config) == Job("CCC", 0, correction=ccc.correction_of(config))
    with pytest.raises(ValueError, match="no published validation set"):
        monkeypatch.setattr(crowds, "load", lambda name, **kw: data._replace(valid=None))
        ccc.material(config, job_of("CCC", 0, config))


def test_reading_back_and_fine_tuning():
    made = crowds.synthetic(torch.randn(80, 6), torch.arange(80) % 4, tuple("abcd"), "IND-D", annotators=8, seed=0).crowd
    committee = ccc.couple(lambda: ccc.Perceptron(6, [8], 4), made)
    with pytest.raises(ValueError, match="needs the meta sets"):
        ccc.fine_tune(committee, made, 1)
    fit(committee, made, optimizer=torch.optim.SGD(committee.parameters(), 0.1), epochs=1, warmup=1, correction=Correction(3, 16, 8), batch_size=20, fabric=make_fabric("cpu", "fp32"))
    theta, belief = ccc.confusions(committee).double(), ccc.posterior(committee, made)
    assert torch.allclose(theta.sum(2), torch.ones(8, 4).double(), atol=1e-6)
    p = ccc.probabilities(committee, made.features).mean(0).double()
    for i in (0, 17):
        who = made.annotations(torch.tensor([i]))
        expected = p[i].clone()
        for r, y in zip(who.annotator, who.label):
            expected = expected * theta[r, :, y]
        assert torch.allclose(belief[i].double(), expected / expected.sum(), atol=1e-5)
    before = committee.experts[0].head.T.clone(), committee.experts[0].network.classifier.weight.clone()
    ccc.fine_tune(committee, made, 2, lr=0.1, batch_size=8, fabric=make_fabric("cpu", "fp32"))
    assert torch.equal(before[0], committee.experts[0].head.T) and not torch.equal(before[1], committee.experts[0].network.classifier.weight)


def test_reported_numbers_ship_with_the_package():
    table = reported("ccc")
    row = table[(table.table == "real-world") & (table.dataset == "LabelMe") & (table.method == "CCC") & (table.metric == "accuracy_best")]
    assert len(table) == 182 and row.value.item() == 87.65
    assert set(table[table.table == "real-world"].method) < set(ccc.METHODS)  # the names join
