"""M3D: the rest of its checklist (the first items are tests of losses.mmd and of the rooms of condense), and the wiring of the study."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from kdnotes.condense import study
from kdnotes.condense.evaluate import Protocol, evaluate, fresh
from kdnotes.condense.learn import condense, passes_for, settings_for
from kdnotes.condense.matching import Matching, RandomNetworks, Settings, match, mean_gap, moment_gap, one_iteration, statistics
from kdnotes.condense.synthetic import from_real
from kdnotes.data.catalogue import load
from kdnotes.data.imageset import ImageSet
from kdnotes.losses.mmd import WIDTHS, make_kernel, mean_distance, mmd2
from kdnotes.models.classifiers import Prediction
from kdnotes.experiment import Experiment, Planner, Study
from kdnotes.papers import m3d
from kdnotes.papers.m3d import Config, TABLES
from kdnotes.results import judge, reported

X, Y = torch.tensor([[0.0, 0], [1, 0]]).double(), torch.tensor([[0.0, 1], [2, 2]]).double()


@pytest.fixture(scope="module")
def digits():
    return load("digits", "train")


def tiny(seed=0):
    return fresh("convnet2", 10, (1, 8, 8), seed, width=4)


def prediction(x):
    return Prediction(torch.zeros(*x.shape[:2], 2, dtype=x.dtype), x)


# 1: the blocks of the worked example, and the loss of a class as the condensation computes it
def test_the_blocks_of_the_worked_example():
    k = make_kernel("gaussian", X, Y)
    assert [k(a, b).mean().item() for a, b in ((X, X), (X, Y), (Y, Y))] == pytest.approx([4.2417027815, 2.1822499726, 3.2711118219], abs=1e-9)
    assert mean_distance(X, Y).item() == pytest.approx(11 / 3, abs=1e-12)
    assert moment_gap(prediction(X[None]), prediction(Y[None]), torch.tensor([0])).item() == pytest.approx(3.1483146583, abs=1e-9)


# 3: equal means: DM has no gradient, M3D has
def test_where_means_are_equal_only_dm_is_blind():
    x, y = torch.tensor([[[-1.0], [1.0]]], dtype=torch.float64, requires_grad=True), torch.tensor([[[-2.0], [2.0]]], dtype=torch.float64)
    gaps = {name: gap(prediction(x), prediction(y), torch.tensor([0])) for name, gap in (("dm", mean_gap), ("m3d", moment_gap))}
    slopes = {name: torch.autograd.grad(gap, x)[0].abs().max().item() for name, gap in gaps.items()}
    assert gaps["dm"] == 0 and slopes["dm"] == 0 and gaps["m3d"].item() == pytest.approx(1.1506891508, abs=1e-9) and slopes["m3d"] > 0.1


# 4: M3D with the linear kernel is DM, n != m
def test_the_linear_kernel_is_dm_for_any_numbers_of_images():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 5, 7, generator=g, dtype=torch.float64), torch.randn(3, 11, 7, generator=g, dtype=torch.float64) + 0.4
    classes = torch.arange(3)
    linear = moment_gap(prediction(x), prediction(y), classes, kernel="linear")
    assert linear.item() == pytest.approx((x.mean(1) - y.mean(1)).square().sum().item(), abs=1e-10)
    assert mean_gap(prediction(x), prediction(y), classes).item() == pytest.approx(linear.item(), rel=1e-5)


# 8: biased, whatever the two points; and a single learned image does not pull on itself
def test_the_biased_form_is_zero_where_the_unbiased_one_is_not():
    for seed in range(5):
        pair = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert abs(mmd2(pair, pair).item()) < 1e-14 and mmd2(pair, pair, biased=False).item() == pytest.approx(-3.5649481878, abs=1e-9)
    one = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    block = make_kernel("gaussian", one, Y.repeat(1, 2))(one, one)
    assert block.item() == 5 == len(WIDTHS) and torch.autograd.grad(block.sum(), one)[0].abs().sum() == 0


# 6, end of it: the gradient shrinks as the features grow
def test_the_gaussian_gradient_shrinks_with_the_scale_of_the_features():
    def slope(scale, kernel):
        x = (scale * X).requires_grad_()
        return torch.autograd.grad(mmd2(x, scale * Y, kernel), x)[0].norm().item()

    assert slope(10, "gaussian") == pytest.approx(slope(1, "gaussian") / 10, rel=1e-9)
    assert slope(10, "linear") == pytest.approx(10 * slope(1, "linear"), rel=1e-9)


# 10: gradients reach the pixels of the class alone: no weight, no real image, no other class
def test_gradients_of_one_class_stay_in_its_pixels(digits):
    run = Matching(from_real(digits, 2, 2), digits, passes_for("m3d", digits, tiny(), 0), Settings(1, lr=1.0, real_batch=8))
    net, rows = run.passes[0].networks(0), run.batches(0)
    images, pixels = digits.images[rows[3:4]].float().requires_grad_(), run.synthetic.by_class()
    learned = run.show(net, study_decode(pixels[3:4]), torch.tensor([3]), "pass 0")
    loss = run.passes[0].loss(learned, run.show(net, images, torch.tensor([3]), "pass 0"), torch.tensor([3]))
    gradient, real = torch.autograd.grad(loss, [run.synthetic.pixels, images], allow_unused=True)
    by_class = gradient.view(10, 2, -1).abs().sum((1, 2))
    assert real is None and by_class[3] > 0 and by_class[[c for c in range(10) if c != 3]].sum() == 0
    assert not any(p.requires_grad for p in net.parameters())


def study_decode(pixels):
    from kdnotes.condense.matching import decoded_classes
    return decoded_classes(pixels, 2, 200, torch.Generator().manual_seed(0))


# 11: coinciding features, by the matrix product and by cdist
def test_coinciding_features_give_finite_gradients_in_both_ways_of_measuring():
    x = torch.ones(3, 5, dtype=torch.float64).requires_grad_()
    y = torch.cat([torch.ones(2, 5), torch.zeros(1, 5)]).double()
    product = torch.autograd.grad(mmd2(x, y), x)[0]
    b = mean_distance(x, y)
    k = lambda u, v: sum(torch.exp(-torch.cdist(u, v).square() / (q * b)) for q in WIDTHS)
    by_cdist = torch.autograd.grad(k(x, x).mean() - 2 * k(x, y).mean() + k(y, y).mean(), x)[0]
    assert product.isfinite().all() and by_cdist.isfinite().all()
    torch.testing.assert_close(product, by_cdist, atol=1e-10, rtol=1e-6)


# 12: in the loop itself the network is replaced at multiples of IPM, and bit for bit the same in between
def test_a_network_serves_five_iterations(digits):
    run = Matching(from_real(digits, 1, 2), digits, passes_for("m3d", digits, tiny(), 0), Settings(11, lr=1.0, real_batch=8))
    met = []
    for _ in range(11):
        one_iteration(run)
        met.append(torch.cat([p.flatten() for p in run.passes[0].networks.net.parameters()]).clone())
    assert [i for i in range(1, 11) if not met[i].equal(met[i - 1])] == [5, 10]
    assert RandomNetworks(tiny(), 0, 5).every == 5 and not run.passes[0].networks.net.classifier.weight.requires_grad


# 13: the same images in both slots
def test_the_same_images_on_both_sides_give_no_loss_whatever_is_drawn():
    images = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    real = ImageSet(images, torch.arange(3).repeat_interleave(3), ("a", "b", "c"), "toy")
    run = Matching(from_real(real, 3, 1), real, passes_for("m3d", real, fresh("convnet2", 3, (1, 8, 8), 0, width=4), 0), Settings(1, lr=0.1))
    for run.iteration in range(12):
        x, classes, net = run.synthetic.by_class().detach(), torch.arange(3), run.passes[0].networks(0)
        same = moment_gap(run.show(net, x, classes, "s"), run.show(net, x.flip(1), classes, "s"), classes)
        other = moment_gap(run.show(net, x, classes, "s"), run.show(net, x.roll(1, 0), classes, "s"), classes)
        assert abs(same.item()) < 1e-4 < other.item()


# 15: the points with equal means
def test_points_with_equal_means():
    linear, polynomial, gaussian = (m3d.matched_moments(*m3d.match_points(kernel, seed=1)) for kernel in ("linear", "polynomial", "gaussian"))
    assert linear["mean_distance"] < 1e-3 and linear["variance_ratio"] < 0.1 and linear["near_mode_rate"] < 10
    assert abs(gaussian["variance_ratio"] - 1) < 0.1 and gaussian["near_mode_rate"] > 95
    assert 0.8 < polynomial["variance_ratio"] < 1.2 and polynomial["near_mode_rate"] < 95


# 16: what is far outside the noise is held here; M3D against DM is measured and reported, not held
@pytest.mark.slow
def test_learned_mosaics_beat_mosaics_beat_single_images():
    real, test = (load("mnist5k", split, size=16) for split in ("train", "test"))
    net = {"network": "convnet2", "options": {"width": 16}}

    def accuracy(method, seed, **changes):
        images, labels = condense(real, 1, method, seed=seed, **net, **changes).decoded()
        protocol = Protocol(epochs=120, batch_size=64, lr=0.05, looks=1, strategy="color_crop_scale_rotate")
        return evaluate(images, labels, test, protocol=protocol, repeats=1, seed=seed, normal=statistics(real), workers=1, **net)[0]["last"]

    schedule = {"iterations": 50, "lr": 0.2, "real_batch": 32, "classes_at_once": 10}
    mean = {name: sum(accuracy(name, seed, **options) for seed in (0, 1)) / 2 for name, options in (("m3d", schedule), ("mosaic", {}), ("random", {}))}
    assert mean["m3d"] > mean["mosaic"] + 0.02 and mean["mosaic"] > mean["random"] + 0.02, mean


# the study around it ------------------------------------------------------------------------------------------------------

@pytest.fixture
def config():
    return Config.profile("smoke", per_class=12, iterations=2, steps=2, tune_steps=2, cost_steps=1, point_steps=2)


@pytest.fixture
def here(monkeypatch):
    """All in this process, so that what a test replaces is replaced everywhere."""
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)


def test_dm_at_equal_factor_differs_from_m3d_in_loss_and_interval_alone(config):
    dm, ours = m3d.rivals(config, seed=0)
    assert dm.rated(0.1).settings == ours.rated(0.1).settings and (dm.factor, ours.factor) == (2, 2)
    plan = dm.settings
    assert (plan.strategy, plan.rule, plan.momentum) == ("color_crop_cutout", "idc", 0.5)
    linear = m3d.learned(config, "m3d", dm.data, dm.ipc, 0, kernel="linear", every=1)
    real, ends = dm.data.load(), []
    for each in (dm, linear):
        found = each.begun(real)
        match(found, real, each.passes(real, {}), replace(each.settings, lr=0.1, iterations=4))
        ends.append(found.pixels)
    torch.testing.assert_close(*ends, atol=1e-4, rtol=0)


def test_the_published_settings_are_in_the_paper_profile():
    config = Config.profile("paper")
    sets, learning, judging = config.sets, config.learning, config.judging
    assert set(config.datasets) == {"mnist", "fashion_mnist", "svhn", "cifar10", "cifar100"} and sets.ipcs == (1, 10, 50)
    assert (learning.iterations, sets.factor, learning.every) == (0, 2, 5)
    assert (learning.kernel, learning.network) == ("gaussian", "convnet3")
    assert (judging.epochs, judging.steps, judging.batch_size, judging.judge_lr, judging.cutmix) == (0, 0, 64, 0.01, 0.5)
    images = study.Images("digits", held_out=0.5)
    ours = m3d.learned(config, "m3d", images, 10, 0)
    assert m3d.rates_for(config, ours) == () and ours.settings.lr == settings_for("m3d", 10, 32).lr == 10
    dm = m3d.learned(config, "dm", images, 10, 0)
    assert m3d.rates_for(config, dm) == () and (dm.settings.lr, dm.settings.space) == (1.0, "normalised")
    idm, alike = m3d.learned(config, "idm", study.Images("cifar10", size=32), 1, 0), m3d.dm_like_m3d(config, images, 10, 0)
    assert [each.settings.real_batch for each in (ours, alike, dm, idm)] == [128, 128, 256, 5000] and idm.command.plan.every == 5
    assert [each.settings.iterations for each in (ours, alike, dm, idm)] == [10_000, 10_000, 20_000, 20_000]
    linear = m3d.learned(config, "m3d", images, 10, 0, kernel="linear")
    assert m3d.rates_for(config, alike) == m3d.rates_for(config, linear) == (0.06, 0.25, 1.0)      # none is published
    score = m3d.score_for(config, ours)
    assert score.protocol == Protocol(looks=judging.looks) and score.network == "convnet3" and score.most_steps == 0


def test_rates_are_multiples_of_the_images_per_class_and_belong_to_the_loss(config):
    images = study.Images("digits")
    rates = {kernel: m3d.rates_for(config, m3d.learned(config, "m3d", images, 10, 0, kernel=kernel))
             for kernel in ("gaussian", "linear", "polynomial", "laplace")}
    assert rates["gaussian"] == rates["laplace"] == tuple(10 * r for r in config.tuning.rates_gaussian)
    assert rates["linear"] == m3d.rates_for(config, m3d.dm_like_m3d(config, images, 10, 0))
    assert m3d.rates_for(config.change(rates_dm=(1.0, 2.0)), m3d.learned(config, "dm", images, 10, 0)) == (10.0, 20.0)
    assert max(rates["polynomial"]) < min(rates["linear"]) < min(rates["gaussian"])
    assert m3d.rates_for(config, m3d.learned(config, "dsa", images, 10, 0)) == tuple(10 * r for r in config.tuning.rates_gradient)
    assert m3d.rates_for(config, m3d.chosen(config, "random", images, 10, 0)) == m3d.rates_for(config, None) == ()


def test_rates_are_chosen_without_test_images(config, tmp_path, monkeypatch, here):
    original = study.load

    def guarded(name, split, **options):
        assert split == "train", "the choice of a rate asked for test images"
        return original(name, split, **options)

    monkeypatch.setattr(study, "load", guarded)
    config = config.change(rates_gaussian=(1.0, 5.0))
    chosen = m3d.choose_rates(Experiment.alone("m3d", config, tmp_path), list(m3d.rivals(config, 0)))
    rates = config.tuning.rates_linear
    assert sorted(chosen.values())[0] == rates[0] and set(chosen.values()) <= {*rates, 1.0, 5.0}


def test_every_table_and_claim_is_planned():
    config = Config(seeds=(0, 1), studies=m3d.Studies(others=("k_center", "idm"), gradient_ipcs=(1,), kernels=("linear", "polynomial", "gaussian"), factors=(1, 2),
                                                      intervals=(1, 5), rate_sets=3), judging=m3d.Judging(cross=("convnet3:16",), budgets=(0.5,)))
    rows = m3d.accuracy_rows(config)
    assert {row.table for row in rows} == {TABLES[key] for key in ("main", "parts", "factor", "interval", "kernel", "cross", "budget", "ranking")}
    methods = {row.method for row in rows if row.table == TABLES["main"]}
    assert methods == {"Random", "Herding", "K-Center", "Mosaic", "DC", "DSA", "IDM", "DM", "DM, f=2", "M3D", "Whole Dataset"}
    assert {row.method for row in rows if row.table == TABLES["budget"]} == methods - {"Whole Dataset"}
    assert {row.seed for row in rows} == {0, 1}
    assert len({claim.name for claim in m3d.claims(config)}) == len(m3d.claims(config)) > 15
    parts = [row for row in rows if row.table == TABLES["parts"] and row.seed == 0]
    assert [row.method for row in parts] == ["DM", "DM, f=1", "DM, f=2", "DM, f=2, IPM=5", "M3D"]
    pipeline, tiles, interval, ours = [row.stage.condensed for row in parts][1:]
    assert replace(pipeline, factor=2) == tiles and replace(interval, kernel="gaussian") == ours
    assert tiles.rated(0.1).settings == interval.rated(0.1).settings


def test_a_name_is_one_recipe_in_every_table():
    """And a claim names rows that there are."""
    config = Config.profile("real", dataset="mnist+cifar10", gradient_ipcs=(10,))
    recipes = {}
    for row in m3d.accuracy_rows(config.change(seeds=(0,))):
        for each in m3d.sets_of(row.stage):
            if each.ipc == 10 and each.data.name == "mnist":
                recipes.setdefault((row.method if not hasattr(row.stage, "drawn") else study.method_name(each), row.setting.get("kernel"), row.setting.get("IPM")), set()).add(each)
    assert {key: len(sets) for key, sets in recipes.items() if len(sets) > 1} == {}
    cost = {row.method: row.stage.condensed for row in m3d.cost_rows(config)}
    assert set(cost) == {"DM, f=2", "M3D", "DC", "DSA"} == {row.method for row in m3d.accuracy_for_cost(config, m3d.main_table(config, 0))}
    assert {study.method_name(condensed) for condensed in cost.values()} == set(cost)
    planned = {(row.table, row.method) for row in m3d.accuracy_rows(config) + m3d.cost_rows(config)}
    for claim in m3d.claims(config):
        if claim.where["table"] not in (TABLES["rate"], TABLES["theory"]):
            names = {side if isinstance(side, str) else side["method"] for side in (claim.better, claim.worse)}
            assert {(claim.where["table"], name) for name in names} <= planned, claim.name


def test_without_tiles_dm_in_the_pipeline_is_still_a_row_of_its_own():
    config = Config.profile("demo", dataset="digits", seeds=(0,))
    sets = {row.method: row.stage.condensed for row in m3d.main_table(config, 0)}
    assert sets["DM"].settings.space == "normalised" and sets["DM, f=1"].settings.space == "unit" and "M3D, f=1" in sets
    claim = {claim.name: claim for claim in m3d.claims(config)}["IPC 1: M3D > DM at equal f"]
    assert (claim.better, claim.worse) == ("M3D, f=1", "DM, f=1")


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_what_was_tried_is_a_table(dataset):
    """Of the form for a CPU: three rates for each of four variants, on held-out images, with the first seed."""
    config = Config.profile("real", dataset=dataset)
    rows = m3d.tried_rows(config, m3d.accuracy_rows(config))
    rates = {name: [row.setting["rate"] for row in rows if row.method == name] for name in {row.method for row in rows}}
    assert rates == dict.fromkeys(("DM, f=1", "DM, f=2"), ["0.01", "0.04", "0.16"]) | dict.fromkeys(("M3D, f=1", "M3D"), ["0.1", "0.4", "1.6"])
    assert {row.stage.judged.split for row in rows} == {"held out"} and {row.repeat for row in rows} == {0}
    assert all(float(row.setting["rate"]) == row.stage.condensed.settings.lr for row in rows)


def test_a_rate_that_is_not_tried_is_the_published_one(config, tmp_path):
    config = config.change(rates_gaussian=(), rates_linear=(0.1,), rate_sets=1)
    rows = m3d.rate_rows(Experiment.alone("m3d", config, tmp_path))
    assert {row.method: row.setting["lr"] for row in rows if "lr" in row.setting and row.setting["lr"] in (0.1, 1.0)} == {"DM, f=2": 0.1, "M3D": 1.0}


@pytest.mark.long
def test_a_run_gives_every_number_once_and_a_second_run_computes_nothing(config, tmp_path, monkeypatch, here):
    config = config.change(seeds=(0, 1, 2), cross=("convnet1:4",), kernels=("gaussian", "linear"), intervals=(5,), factors=(2,),
                           rates_gaussian=(1.0, 5.0), gradient_ipcs=(), rate_sets=3, cost_draws=3, others=())
    known, now = {}, Planner.code
    monkeypatch.setattr(Planner, "code", lambda self, stage: known.get(stage) or known.setdefault(stage, now(self, stage)))
    frame, again = m3d.run(Experiment.alone("m3d", config, tmp_path)).frame(), Experiment.alone("m3d", config, tmp_path)
    for name in ("match", "match_gradients", "evaluate"):
        monkeypatch.setattr(study, name, lambda *args, **kw: pytest.fail("computed again"))
    assert m3d.run(again).frame().equals(frame) and set(again.how.values()) == {"read"}
    assert set(TABLES.values()) == set(frame.table)
    assert frame[frame.metric.str.startswith("accuracy")].seed.nunique() == 3
    judged = judge(m3d.claims(config), frame).set_index("claim")
    assert (judged.loc[[name for name in judged.index if name.startswith(("IPC", "gaussian", "M3D is", "a step"))], "n"] == 3).all()


def test_one_seed_decides_nothing_about_accuracy_however_many_networks_judge(config, tmp_path, monkeypatch, here):
    config = config.change(seeds=(4,), repeats=3, kernels=(), factors=(), gradient_ipcs=(), budgets=(), rate_sets=0, rates_gaussian=(1.0,))
    monkeypatch.setattr(m3d, "cost_rows", lambda *args: [])
    monkeypatch.setattr(study, "evaluate", partial(evaluate, workers=1))
    experiment = Experiment.alone("m3d", config, tmp_path)
    frame = m3d.run(experiment).frame()
    assert frame[frame.table == TABLES["main"]].seed.unique().tolist() == [4]
    judged = experiment.judge(m3d.claims(config))
    of_sets = judged[judged.metric == "accuracy"]
    assert (of_sets.n == 1).all() and (of_sets.verdict == "inconclusive").all()


def test_a_drop_is_from_the_chosen_rate_to_the_mean_of_the_others():
    stage = m3d.RateDrop(None, (None, None), 0)
    made = stage.build({"chosen": {"last": [50.0, 70.0]}, "other 0": {"last": [40.0, 50.0]}, "other 1": {"last": [20.0, 90.0]}}, None, None)
    assert m3d.accuracy_drop(stage, made, None) == {"accuracy_drop": 60.0 - 50.0}


def test_both_papers_judge_alike():
    """Chosen sets of the same images are the same stages in both notebooks, and get the same marks from the same judge."""
    from kdnotes.papers import dance

    ours, theirs = Config.profile("demo"), dance.Config.profile("demo")
    assert ours.judging == theirs.judging and ours.judging.repeats >= 2
    for method, name, factor in (("random", "Random", 0), ("herding", "Herding", 0), ("mosaic", "Mosaic", 2)):
        score = m3d.score_for(ours, m3d.chosen(ours, method, m3d.images_of(ours), 1, 3, factor))
        assert score == dance.score_for(theirs, dance.set_of(theirs, name, 1, 3))
    assert m3d.whole_score(ours, m3d.images_of(ours)) == dance.whole_score(theirs)


def test_no_claim_names_a_number_of_the_paper_that_was_not_read():
    for profile in Config.PROFILES:
        found = m3d.claims(Config.profile(profile))
        assert {claim.source for claim in found} <= {"sheet", "ours"}
    assert {claim.name: claim.source for claim in found}["IPC 10: M3D > DM at equal f"] == "sheet"


@pytest.mark.long
def test_a_verdict_on_cost_does_not_know_the_clock(config, tmp_path, monkeypatch, here):
    frames = []
    for attempt in ("first", "second"):
        experiment = Experiment.alone("m3d", config, tmp_path / attempt)
        frames.append(Study(m3d.cost_rows(config.change(cost_draws=3))).run(experiment).frame())
    assert frames[0].equals(frames[1]) and not frames[0].metric.str.contains("second").any()
    judged = judge(m3d.claims(config), frames[0]).set_index("claim")
    assert (judged.loc[[name for name in judged.index if name.startswith("a step")], "verdict"] == "supported").all()


@pytest.mark.parametrize(("overrides", "message"), [
    ({"iterations": -1}, "learning.iterations=-1 is out of range; expected int at least 0"), ({"kernel": "gauss"}, "did you mean 'gaussian'"),
    ({"network": "convnt3"}, "did you mean 'convnet3'"), ({"network": "resnet10"}, "running statistics"),
    ({"cross": ("resnet10:x",)}, "not of the form"), ({"ipcs": ()}, "at least 1"), ({"factors": (0,)}, "at least 1"),
    ({"held_out": 1.0}, "held_out=1.0 is out of range"), ({"rates_linear": (0.0,)}, "above 0"), ({"rates_linear": ()}, r"rates_linear=\(\) leaves no rate"), ({"rates_polynomial": ()}, "none is published"), ({"spread": (0.5, 2.0)}, "must hold 1.0"),
    ({"iteration": 5}, "did you mean 'iterations'"), ({"steps": -1}, "judging.steps=-1"), ({"ipcs": (1, 1)}, "holds a value twice"),
    ({"per_class": 3}, "per_class=3 is too few"), ({"size": 8, "cross": ("convnet5",)}, "at least 32 pixels"), ({"dataset": "mnist+mnist"}, "override"),
    ({"judge": "convnet9"}, "convnet"), ({"repeats": 1}, "at least 2"), ({"left_out": (("mnist", 0),)}, "at least 1"),
])
def test_bad_configurations_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        Config.chosen({"profile": "demo", "overrides": overrides})
    assert "\n" not in str(error.value)


def test_images_that_are_too_few_are_told_before_anything_is_made(config, tmp_path):
    experiment = Experiment.alone("m3d", config.change(per_class=0, ipcs=(1, 200)), tmp_path)
    with pytest.raises(ValueError, match="the largest set needs 800"):
        m3d.run(experiment)
    assert not experiment.how


@pytest.mark.parametrize(("profile", "dataset"), [(name, "") for name in Config.PROFILES] + sorted(Config.DATASETS))
def test_every_profile_is_a_valid_configuration(profile, dataset):
    config = Config.profile(profile, dataset=dataset)
    assert not dataset or config.dataset == dataset


def test_reported_numbers_keep_where_they_are_from():
    table = reported("m3d")
    ours = table[(table.method == "M3D") & ~table.context]
    assert len(ours) == 15 and set(ours.source) == {"recalled", "note"} and "paper" not in set(table.source)
    assert set(ours[ours.dataset.isin(["MNIST", "Fashion-MNIST", "SVHN"])].source) == {"recalled"}
    assert not len(table[table.dataset.str.startswith("ImageNet") & (table.method == "M3D")]), "M3D's ImageNet numbers are not known"
    assert all(math.isfinite(value) for value in table.value)
