"""DANCE: what its notebook adds to the engine, the wiring of its experiment, and the parts of its checklist that no other test holds."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from kdnotes.condense import study
from kdnotes.condense.evaluate import Protocol, evaluate, fresh
from kdnotes.condense.experts import dance_passes, set_middle, train_experts
from kdnotes.condense.learn import settings_for
from kdnotes.condense.matching import Matching, Pass, RandomNetworks, Settings, match, mean_gap, one_iteration, statistics
from kdnotes.condense.synthetic import SyntheticSet, decode, draw_per_class, from_real
from kdnotes.data.catalogue import load
from kdnotes.data.imageset import to_float
from kdnotes.condense.study import Experts
from kdnotes.experiment import Experiment
from kdnotes.papers import dance
from kdnotes.papers.dance import Config
from kdnotes.results import cited_differences, judge, reported
from kdnotes.runtime import make_fabric

NETWORK = {"network": "convnet2", "options": {"width": 16}}


@pytest.fixture(scope="module")
def real():
    return load("mnist5k", "train", size=16)


@pytest.fixture(scope="module")
def held_out():
    return load("mnist5k", "test", size=16)


@pytest.fixture(scope="module")
def pool(real, tmp_path_factory):
    quick = Protocol(epochs=3, batch_size=64, lr=0.05, strategy="color_crop", looks=1)
    return train_experts(real, 2, protocol=quick, root=tmp_path_factory.mktemp("experts"), workers=1, **NETWORK)


def learned(real, passes, seed, lr, iterations=40, ipc=1):
    found = from_real(real, ipc, 2, seed)
    match(found, real, passes, Settings(iterations, lr=lr, real_batch=32, classes_at_once=5), seed=seed)
    return found


@pytest.fixture(scope="module")
def sets(real, pool):
    """For three seeds the set of one image per class by each method, all from the same mosaics."""
    def random_networks(seed):
        return [Pass(RandomNetworks(fresh("convnet2", 10, real.shape, seed, width=16), seed), mean_gap)]

    rows = {seed: {"random": from_real(real, 1, 1, seed), "mosaic": from_real(real, 1, 2, seed), "DM": learned(real, random_networks(seed), seed, 0.05),
                   "DANCE": learned(real, dance_passes(pool, seed), seed, 0.05)} for seed in range(3)}
    return rows


# 2: no gradient for the weights of either network, nor for the real images; the pixels of a class answer to that class alone
def test_only_pixels_learn_and_each_class_minds_its_own(real, pool):
    passes = dance_passes(pool, 0)
    before = [{name: w.clone() for name, w in weights.items()} for weights in (*pool.starts, *pool.ends)]
    run = Matching(from_real(real, 1, 2), real, passes, Settings(3, lr=0.05, real_batch=8))
    for _ in range(2):
        one_iteration(run)
    assert not run.real.images.is_floating_point()                      # bytes: nothing could flow back into them
    for look in passes:
        net = look.networks(2)
        assert all(p.grad is None and not p.requires_grad for p in net.parameters())
        for c in torch.arange(10).split(1)[:3]:
            rows = run.batches(run.iteration)[c]
            images = decode(run.synthetic.by_class()[c].flatten(0, 1), 2)[None]
            seen = run.show(net, run.real.images[rows], c, "x") if look.real else None
            grad = torch.autograd.grad(look.loss(run.show(net, images, c, "x"), seen, c), run.synthetic.pixels)[0]
            assert grad[c].abs().sum() > 0 and grad[[k for k in range(10) if k != int(c)]].abs().max() == 0
    after = (*pool.starts, *pool.ends)
    assert all(w.equal(old[name]) for weights, old in zip(after, before) for name, w in weights.items())


# 4: accuracy falls from lambda = 0 to 1, monotonically up to the noise of the flat end, and to chance
def test_accuracy_falls_with_lambda_as_in_figure_3b(real, held_out, pool):
    curve = dance.middle_accuracy(pool, held_out, statistics(real), dance.LAMBDAS)
    assert curve.shape == (2, 11) and (curve[:, 0] > 80).all() and (curve[:, -1] < 30).all()
    mean = curve.mean(0)
    assert (mean.diff() < 3).all() and mean[0] > mean[5] > mean[8] > mean[10] - 3


def test_both_ends_of_the_curve_are_the_trained_and_the_random_network(real, held_out, pool):
    few = held_out.take(torch.arange(0, 1000, 10))
    curve = dance.middle_accuracy(pool, few, statistics(real), (0.0, 1.0))
    x = (to_float(few.images) - statistics(real)[0][0]) / statistics(real)[1][0]
    for k, (start, end) in enumerate(zip(pool.starts, pool.ends)):
        for weights, found in ((end, curve[k, 0]), (start, curve[k, 1])):
            net = fresh("convnet2", 10, real.shape, 3, width=16)
            net.load_state_dict(weights)
            assert found.item() == pytest.approx(100 * (net(x).logits.argmax(1) == few.labels).float().mean().item(), abs=1e-3)


@pytest.mark.long
def test_the_experts_accuracy_is_the_mean_over_experts(real, pool, sets):
    begun, normal = sets[0]["mosaic"], statistics(real)
    images, labels = begun.decoded()
    x = (images - normal[0][0]) / normal[1][0]
    each = [100 * (set_middle(pool.net, pool, k, 0.0)(x).logits.argmax(1) == labels).double().mean().item() for k in range(2)]
    assert dance.expert_accuracy(pool, begun, normal) == pytest.approx(sum(each) / 2, abs=1e-4)


@pytest.mark.long
def test_the_feature_gap_by_loops(real, sets):
    net, normal = fresh("convnet2", 10, real.shape, 0, width=16).eval(), statistics(real)
    few = real.take(draw_per_class(real.labels, 10, 6, 1).flatten())
    images, labels = sets[0]["mosaic"].decoded()
    with torch.no_grad():
        features = [net((x - normal[0][0]) / normal[1][0]).features.double() for x in (to_float(few.images), images)]
    gaps = [(features[0][few.labels == c].mean(0) - features[1][labels == c].mean(0)).norm().item() for c in range(10)]
    same = SyntheticSet(to_float(few.images[few.labels.argsort(stable=True)]), real.classes)
    found = dance.feature_gaps(net, few, {"mosaic": sets[0]["mosaic"], "same": same}, normal)
    assert found["mosaic"] == pytest.approx(sum(gaps) / 10, rel=1e-4) and found["same"] < 1e-4


# 14: pixels lie in [0, 1] when an iteration begins, and may leave it in between
def test_pixels_are_clamped_when_an_iteration_begins(real, pool):
    ranges = []
    first, second = dance_passes(pool, 0)

    def noting(networks, name):
        def call(iteration):
            ranges.append((name, *(v.item() for v in run.synthetic.pixels.detach().aminmax())))
            return networks(iteration)
        return call

    passes = [replace(first, networks=noting(first.networks, "align")), replace(second, networks=noting(second.networks, "calibrate"))]
    run = Matching(from_real(real, 1, 2), real, passes, Settings(5, lr=3.0, real_batch=8))
    for _ in range(4):
        one_iteration(run)
    begin = [r for r in ranges if r[0] == "align"]
    assert len(ranges) == 8 and all(0 <= low and high <= 1 for _, low, high in begin)
    assert any(low < 0 or high > 1 for name, low, high in ranges if name == "calibrate")


# 17: what a network is judged on was trained on the decoded set alone
def test_evaluation_sees_the_decoded_set_and_nothing_else(tmp_path, monkeypatch):
    config, seen = Config.profile("smoke", seeds=(0,)), []
    experiment = Experiment.alone("dance", config, tmp_path)
    monkeypatch.setattr(study, "evaluate", lambda images, labels, test, **options: (
        seen.append((images, labels, test, options)), [{"last": 0.5, "best": 0.5}])[1])
    made = dance.set_of(config, "Mosaic", 2, 0)
    experiment.made(dance.score_for(config, made))
    images, labels, test, options = seen[0]
    expected = experiment.made(made).images.decoded()
    assert images.equal(expected[0]) and labels.equal(expected[1]) and len(images) == 10 * 2 * 4
    assert test.fingerprint() == load("digits", "test").fingerprint()
    assert options["normal"] == statistics(experiment.read(made.data))


# 18: the orderings that hold far outside the noise at this size: mosaics beat single images, DM beats mosaics; DANCE is not behind DM
@pytest.mark.long
def test_learned_mosaics_beat_mosaics_beat_single_images(real, held_out, sets):
    protocol = Protocol(epochs=80, batch_size=40, lr=0.05, looks=1, strategy="color_crop_scale_rotate")

    def score(name):
        marks = [evaluate(*sets[seed][name].decoded(), held_out, protocol=protocol, repeats=1, seed=seed, normal=statistics(real), workers=1, **NETWORK) for seed in range(3)]
        return 100 * sum(m[0]["last"] for m in marks) / 3

    found = {name: score(name) for name in ("random", "mosaic", "DM", "DANCE")}
    assert found["mosaic"] > found["random"] + 3 and found["DM"] > found["mosaic"] + 3 and found["DANCE"] > found["DM"] - 3, found


# 18: with calibration the experts recognise nearly everything, without it much less than that
@pytest.mark.long
def test_calibration_keeps_images_in_their_class(real, pool, sets):
    shares = {name: sum(dance.expert_accuracy(pool, sets[seed][name], statistics(real)) for seed in range(3)) / 3 for name in ("mosaic", "DM", "DANCE")}
    assert shares["DANCE"] > 97 and shares["DANCE"] > shares["DM"] + 3, shares


# 19: the direction of Figure 3a: DM begins with the smaller gap and ends with the larger one (several times larger in the paper, after far longer runs)
@pytest.mark.long
def test_training_widens_the_gap_of_dm_against_that_of_dance(real, sets):
    protocol = Protocol(epochs=3, batch_size=64, lr=0.05, strategy="color_crop", looks=1)
    few = real.take(draw_per_class(real.labels, 10, 150, 0).flatten())
    ratios = []
    for seed in range(3):
        compared = {name: sets[seed][name] for name in ("DM", "DANCE")}
        rows = dance.gaps_while_training(few, compared, protocol, "convnet2", {"width": 16}, make_fabric("cpu"), seed)
        assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
        ratios.append((rows[0]["DM"] / rows[0]["DANCE"], rows[-1]["DM"] / rows[-1]["DANCE"]))
    assert all(end > begin for begin, end in ratios) and sum(end for _, end in ratios) / 3 > 1.05, ratios


# the wiring of the experiment

@pytest.fixture(scope="module")
def tiny():
    return Config.profile("smoke", seeds=(0, 1), methods=("Random", "DM, same f", "DANCE"), cross=(), expert_sweep=(), budgets=(), iterations=2)


def test_variants_differ_in_what_they_look_through_alone(tmp_path, tiny):
    experiment, kinds = Experiment.alone("dance", tiny, tmp_path), {}
    for method in dance.VIEWS:
        made = dance.set_of(tiny, method, 1, 0)
        parents = {part: experiment.made(stage) for part, stage in made.needs().items()}
        passes = made.passes(experiment.read(made.data), parents)
        kinds[method] = [(type(p.networks).__name__, p.loss.__name__, p.real) for p in passes]
        assert (made.factor, made.settings.rule) == (2, "idc")
    random, middle, expert = ("RandomNetworks", "mean_gap", True), ("PairNetworks", "mean_gap", True), ("PairNetworks", "calibration", False)
    assert kinds == {"DM, same f": [random], "PLTDA only": [middle], "Calibration only": [random, expert], "DANCE": [middle, expert]}


def test_published_numbers_of_the_paper_profile():
    config = Config.profile("paper")
    plan = dance.set_of(config, "DANCE", 10, 0).settings
    assert (plan.iterations, plan.lr, plan.momentum, plan.real_batch, plan.most, plan.strategy) == (10_000, pytest.approx(0.1), 0.5, 128, 200, "color_crop_cutout")
    experts = dance.experts_of(config)
    assert experts == Experts(5, Protocol(epochs=60, batch_size=64, lr=0.01, strategy="color_crop", looks=1))
    assert dance.score_for(config, dance.set_of(config, "DANCE", 10, 0)).protocol == Protocol() and config.judging.steps == 0
    assert config.sets.ipcs == (1, 10, 50) and 20 in config.networks.expert_sweep
    plain = dance.set_of(config, "DM", 10, 0)
    assert [dance.set_of(config, name, 10, 0).settings.real_batch for name in ("DM", "DM, same f", "DANCE")] == [256, 128, 128]
    assert (plain.settings.lr, plain.settings.space) == (1, "normalised") and plain.settings.strategy == settings_for("dm", 10, 32, "cifar10").strategy != plan.strategy
    lengths = {name: dance.set_of(config, name, 10, 0).settings.iterations for name in dance.BEGUN}
    assert lengths == {"DM": 20_000} | dict.fromkeys(dance.VIEWS, 10_000)
    nette = Config.profile("paper", dataset="imagenette")
    assert (nette.learning.network, nette.sets.size) == ("convnet5", 128)
    assert (dance.set_of(nette, "DANCE", 1, 0).settings.lr, dance.main_table(nette)) == (0.1, "Table 2")
    assert [dance.score_for(nette, dance.set_of(nette, "DANCE", ipc, 0)).protocol.epochs for ipc in (1, 10, 50)] == [2000, 1500, 1000]


def test_every_row_and_claim_is_planned():
    config = Config.profile("demo")
    rows = dance.accuracy_rows(config)
    assert {row.table for row in rows} == {"Table 1", "ablation: views"}
    more = {row.table for row in dance.accuracy_rows(Config.profile("paper"))}
    assert more == {"Table 1", "ablation: views", "ablation: experts", "other architectures"}
    assert {row.table for row in dance.more_rows(config)} == {"Table 1", "budget of the judge", "DD-Ranking"}
    assert {row.method for row in rows if row.table == "Table 1"} == set(config.sets.methods)
    assert len({row.seed for row in rows}) == len(config.seeds) >= 3
    sets = {row.stage.condensed for row in rows}
    assert {made.factor for made in sets if made.method in ("dance", "mosaic")} == {config.sets.factor}


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_the_form_for_a_cpu_judges_for_300_epochs_or_more(dataset):
    """At 28 pixels: stored sets of one image a class, by two networks at least, several sets."""
    config = Config.profile("real", dataset=dataset)
    score = dance.score_for(config, dance.set_of(config, "DANCE", 1, 0))
    assert score.schedule(dataset, 40).epochs >= 300 and score.repeats >= 2 and len(config.seeds) >= 5 and config.sets.size == 0


def test_a_set_is_monitored_where_the_figures_look_and_costs_what_it_costs_unseen():
    config = Config.profile("demo")
    watched, unseen = dance.set_of(config, "DM", 1, 0), dance.set_of(config, "DM", 10, 0)
    assert watched.monitor.every == 12 and unseen.monitor is None and not unseen.needs() and len(watched.needs()) == 3
    assert all(row.stage.condensed.monitor is None for row in dance.cost_rows(config))


@pytest.mark.long
def test_the_run_goes_on_where_it_stopped_and_gives_the_same_numbers(tmp_path, tiny):
    frames, hows = [], []
    for _ in range(2):
        experiment = Experiment.alone("dance", tiny, tmp_path)
        frames.append(dance.run(experiment).frame())
        hows.append(set(experiment.how.values()))
    first = frames[0]
    assert frames[1].equals(first) and hows == [{"built"}, {"read"}]
    assert {"Table 1", "ablation: views", "DD-Ranking", "Figure 3a", "Figure 3b", "Figure 3c", "cost"} == set(first.table)
    assert not first.metric.str.contains("second").any()
    whole = first[first.method == "Whole Dataset"]
    assert set(whole.seed) == {0} and set(whole.setting) == {"ipc=full;arch=ConvNet-2 (4)"}
    steps = first[(first.table == "Figure 3c") & (first.method == "DANCE") & (first.seed == 0)].setting.tolist()
    assert steps == ["ipc=1;condense_step=0", "ipc=1;condense_step=2"]


def test_rates_are_chosen_without_the_test_images(tmp_path, tiny, monkeypatch):
    asked, original = [], study.load
    monkeypatch.setattr(study, "load", lambda name, split, **options: (asked.append(split), original(name, split, **options))[1])
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    asking = tiny.change(methods=("DANCE",), grid=(0.5, 2.0), train_size=30)
    config, tried = dance.with_best_rates(Experiment.alone("dance", asking, tmp_path))
    assert set(asked) == {"train"} and set(tried.method) == set(dance.VIEWS)
    best = tried[tried.method == "DANCE"].groupby("rate").accuracy.mean()
    assert config.learning.rate_dance == pytest.approx(best[best == best.max()].index[-1])
    assert dance.with_best_rates(Experiment.alone("dance", tiny, tmp_path)) == (tiny, None)


@pytest.mark.parametrize(("profile", "dataset"), [(name, "") for name in Config.PROFILES] + sorted(Config.DATASETS))
def test_every_claim_of_the_paper_is_found_among_its_numbers(profile, dataset):
    """And holds there, but for one that the paper's own table turns round: tiles do not pay at 50 images of Fashion-MNIST."""
    paper, config = reported("dance"), Config.profile(profile, dataset=dataset)
    found = {claim.name: cited_differences(claim, paper).mean() for claim in dance.claims(config) if claim.source == "paper"}
    assert len(found) >= 6 and {name for name, gap in found.items() if gap <= 0} <= {"DANCE > DM, 50 per class"}


def test_figure_3_compares_with_dm_as_published_over_the_whole_curve():
    config = Config.profile("demo")
    found = {claim.name: claim for claim in dance.claims(config) if claim.where.get("table") in ("Figure 3a", "Figure 3c")}
    for name in ("gap in training: DANCE < DM", "recognised while learned: DANCE > DM"):
        claim = found[name]
        assert (claim.source, claim.worse) == ("paper", "DM") and "train_epoch" not in claim.where
    assert found["recognised while learned: DANCE > DM"].where["condense_step"] == [12, 24, 36, 48, 60]       # 0: nothing is learned
    falls, grows = found["DM's recognition falls while it learns"], found["DM's gap grows in training"]
    assert falls.better["condense_step"] == 0 and falls.worse["condense_step"] == config.learning.iterations and falls.better["method"] == "DM"
    assert grows.worse["train_epoch"] == 0 and grows.lower is False
    assert all(claim.source == "ours" for claim in found.values() if claim.worse == "DM, same f")
    rows = [{"paper": "dance", "table": "Figure 3c", "dataset": "d", "setting": f"ipc=1;condense_step={step}", "method": "DM", "seed": seed, "profile": "demo",
             "metric": "expert_accuracy_synthetic", "value": 90.0 + seed - (3.0 if step else 0.0)} for step in (0, config.learning.iterations) for seed in range(3)]
    judged = judge([falls], pd.DataFrame(rows)).iloc[0]
    assert (judged.verdict, judged.difference, judged.reported) == ("supported", 3.0, 94 - 59)


def test_while_they_learn_sets_of_different_lengths_are_compared_where_both_were_looked_at():
    config = Config.profile("paper", seeds=(0,))
    noted = {name: dance.noted(config, name) for name in ("DM", "DANCE")}
    assert noted["DANCE"] == list(range(500, 10_001, 500)) and noted["DM"] == list(range(500, 20_001, 500))
    steps = {name: [row.setting["condense_step"] for row in dance.monitor_rows(config) if row.method == name] for name in noted}
    assert steps == {name: [0, *at] for name, at in noted.items()}
    found = {claim.name: claim for claim in dance.curve_claims(config)}
    assert found["recognised while learned: DANCE > DM"].where["condense_step"] == noted["DANCE"]
    assert found["DM's recognition falls while it learns"].worse["condense_step"] == 20_000
    assert found["recognised: DANCE > DM, same f"].where["condense_step"] == 10_000
    own = reported("dance").pipe(lambda frame: frame[frame.table == "Figure 3c"])
    mean = {name: own[(own.method == name) & ~own.setting.str.contains("step=0;")].value.mean() for name in ("DANCE", "DM")}
    assert cited_differences(found["recognised while learned: DANCE > DM"], reported("dance")).mean() == pytest.approx(mean["DANCE"] - mean["DM"])


def test_a_claim_stands_beside_the_numbers_of_its_own_data_set_where_there_are_any():
    paper = reported("dance")
    for dataset, name, other, ipc, alone in (("tinyimagenet", "TinyImageNet", "DM", 10, True), ("imagenette", "ImageNette", "DM", 10, True),
                                             ("imagefruit", "ImageFruit", "Random", 1, True), ("imagefruit", "ImageFruit", "DM", 1, False), ("mnist", "MNIST", "DM", 10, False)):
        config = Config.profile("paper", dataset=dataset)
        claim = {claim.name: claim for claim in dance.claims(config)}[f"DANCE > {other}, {ipc} per class"]
        assert list(cited_differences(claim, paper).index.get_level_values(0).unique()) == [name] if alone else claim.cited.where == {"ipc": ipc}


def test_the_middle_networks_are_counted_by_experts():
    config = Config.profile("demo")
    claim = {claim.name: claim for claim in dance.claims(config)}["lambda = 0 > lambda = 1"]
    rows = [{"paper": "dance", "table": row.table, "dataset": row.dataset, "setting": ";".join(f"{k}={v}" for k, v in row.setting.items()), "method": row.method,
             "seed": row.seed, "profile": "demo", "metric": "accuracy", "value": 90.0 - 80 * float(row.setting["lambda"]) + row.seed} for row in dance.middle_rows(config)]
    judged = judge([claim], pd.DataFrame(rows)).iloc[0]
    assert (judged.unit, judged.n, judged.difference) == ("expert", config.networks.experts, 80)


def test_reported_numbers_join_the_names_of_the_run():
    paper = reported("dance")
    own = paper[~paper.context]
    assert set(own.source) == {"paper"} and {"Table 1", "Table 2", "Figure 3a", "Figure 3b", "Figure 3c"} == set(own.table)
    assert set(own[own.table == "Table 1"].dataset) <= set(study.DATASET_NAMES.values())
    assert {"Random", "Herding", "K-Center", "DM", "DANCE", "Whole Dataset"} <= set(own[own.table == "Table 1"].method)
    assert set(paper[paper.context].source) == {"note"}


@pytest.mark.parametrize(("overrides", "words"), [
    ({"iterations": -1}, "learning.iterations=-1 is out of range; expected int at least 0"), ({"rate_dance": 0.0}, "rate_dance=0.0 is out of range; expected float above 0"),
    ({"grid": (0.0, 1.0)}, "grid[0]=0.0 is out of range"), ({"ipc": 7}, "ipc=7"), ({"methods": ("DANSE",)}, "did you mean 'DANCE'"),
    ({"network": "convnet3:x"}, "not of the form"), ({"network": "resnet10"}, "running statistics"), ({"iteration": 5}, "did you mean 'iterations'"),
    ({"methods": ("DM", "DM")}, "holds a value twice"), ({"size": 8, "cross": ("convnet4",)}, "at least 16 pixels"), ({"repeats": 1}, "at least 2"), ({"train_size": 3}, "train_size=3 is too few"),
])
def test_bad_input_is_answered_in_one_line(overrides, words):
    with pytest.raises(ValueError) as error:
        Config.profile("demo", **overrides)
    assert words in str(error.value) and "\n" not in str(error.value)
