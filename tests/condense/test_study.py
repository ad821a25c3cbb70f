"""Sets, scores and costs as stages: what is kept, what is held out, what is named how, and which code a key knows."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from kdnotes.condense import matching, study
from kdnotes.condense.evaluate import Protocol
from kdnotes.condense.experts import EXPERT_PROTOCOL, PairNetworks
from kdnotes.condense.gradients import from_noise
from kdnotes.condense.matching import RandomNetworks
from kdnotes.condense.study import (
    Cost, Experts, Images, LiveBytes, Monitor, Operations, Score, best_rates, condensed_set, on_held_out, score_of, score_rows, tune,
)
from kdnotes.condense.synthetic import from_real
from kdnotes.config import Settings
from kdnotes.experiment import Experiment, Planner, Study

DIGITS = Images("digits", per_class=30)
PROTOCOL = Protocol(epochs=2, batch_size=32, lr=0.05, strategy="none", cutmix=0.0, looks=2)
QUICK = Experts(1, replace(EXPERT_PROTOCOL, epochs=1))


def experiment_in(folder):
    return Experiment.alone("toy", Settings(), folder)


@pytest.fixture
def code_as_it_was(monkeypatch):
    """What a test replaces after a stage was first seen is no edit of that stage's code."""
    known, now = {}, Planner.code

    def code(planner, stage):
        if stage not in known:
            known[stage] = now(planner, stage)
        return known[stage]

    monkeypatch.setattr(Planner, "code", code)


@pytest.fixture
def experiment(tmp_path):
    return experiment_in(tmp_path)


def small(method="m3d", factor=1, **settings):
    learned = {"iterations": 4, "real_batch": 8, "classes_at_once": 10, "lr": 0.3} if method in study.RECIPES else {}
    return condensed_set(DIGITS, method, 1, factor=factor, network="convnet2:4", **(learned | settings))


def score(condensed, repeats=1):
    return score_of(condensed, PROTOCOL, network="convnet2:4", repeats=repeats)


def passes(experiment, condensed):
    parents = {part: experiment.made(stage) for part, stage in condensed.needs().items()}
    return condensed.passes(experiment.read(condensed.data), parents)


def test_held_out_images_come_from_training_and_the_test_set_is_not_read(monkeypatch):
    whole, part = Images("digits").load(), Images("digits", per_class=20, held_out=0.25)
    asked, original = [], study.load
    monkeypatch.setattr(study, "load", lambda name, split, **options: asked.append(split) or original(name, split, **options))
    train, held = part.load(), part.judged().load()
    assert set(asked) == {"train"} and len(train) == 200 and abs(len(held) - len(whole) / 4) <= 10
    rows = [set(map(bytes, images.images.flatten(1).numpy())) for images in (train, held, whole)]
    assert not rows[0] & rows[1] and rows[0] | rows[1] <= rows[2]
    assert Images("digits").judged().load().fingerprint() == original("digits", "test").fingerprint()


def test_a_set_and_its_marks_are_computed_once(tmp_path, monkeypatch, code_as_it_was):
    wanted = score(small())
    first = experiment_in(tmp_path)
    kept = first.made(wanted.condensed), first.made(wanted)
    for name in ("match", "evaluate"):
        monkeypatch.setattr(study, name, lambda *args, **kw: pytest.fail("computed again"))
    again = experiment_in(tmp_path)
    found = again.made(wanted.condensed), again.made(wanted)
    assert found[0].images.pixels.equal(kept[0].images.pixels) and found[0].history == kept[0].history and found[1] == kept[1]
    assert len(kept[1]["last"]) == 1 and kept[1]["last"] <= kept[1]["best"] and set(again.how.values()) == {"read"}


@pytest.mark.parametrize("method", ["m3d", "dsa"])
def test_a_killed_set_goes_on_from_its_checkpoint(experiment, tmp_path, method, monkeypatch, code_as_it_was):
    from kdnotes.condense import gradients

    wanted = small(method, iterations=6)
    whole = experiment_in(tmp_path / "whole").made(wanted).images.pixels
    module, step = (matching, "one_pass") if method == "m3d" else (gradients, "gradient_step")
    original, count = getattr(module, step), [0]

    def killed(*args, **kw):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return original(*args, **kw)

    monkeypatch.setattr(module, step, killed)
    with pytest.raises(KeyboardInterrupt):
        experiment.made(wanted)
    assert experiment.made(wanted).images.pixels.equal(whole)


def test_learning_begins_with_the_mosaic_of_the_same_seed(experiment):
    begun, learned = (experiment.made(small(method, factor=2)).images for method in ("mosaic", "m3d"))
    assert begun.pixels.equal(from_real(experiment.read(DIGITS), 1, 2, seed=0).pixels) and not learned.pixels.equal(begun.pixels)
    assert experiment.made(small("random")).images.pixels.equal(from_real(experiment.read(DIGITS), 1, 1, seed=0).pixels)


def test_dc_alone_begins_with_noise(experiment):
    real = experiment.read(DIGITS)
    assert small("dc").begun(real).pixels.equal(from_noise(real, 1, 1, seed=0).pixels)
    for method in ("dsa", "dm"):
        assert small(method).begun(real).pixels.equal(from_real(real, 1, 1, seed=0).pixels)


def test_a_name_tells_the_factor_where_another_pipeline_learns_the_pixels():
    names = {small("dm"): "DM", small("dm", space="unit"): "DM, f=1", small("dm", 2, space="unit"): "DM, f=2", small("m3d", 2): "M3D",
             small("m3d"): "M3D, f=1", small("dsa"): "DSA", small("random"): "Random", None: "Whole Dataset"}
    assert {each: study.method_name(each) for each in names} == names


def test_a_score_without_a_set_trains_on_all_images(experiment, monkeypatch):
    seen = []
    monkeypatch.setattr(study, "evaluate", lambda images, labels, judged, **options: seen.append((images, options)) or [{"last": 0.5, "best": 0.5}])
    everything = Score(DIGITS, DIGITS.judged(), None, replace(PROTOCOL, batch_size=100, epochs=50), "convnet2:4", most_steps=12)
    assert experiment.made(everything) == {"last": [50.0], "best": [50.0]}
    assert seen[0][0].dtype == torch.uint8 and len(seen[0][0]) == 300 and seen[0][1]["protocol"].epochs == 4      # 3 steps an epoch


def test_the_best_rate_is_the_best_on_held_out_images(experiment, monkeypatch):
    accuracy, seen = {0.1: [50.0, 52.0], 0.2: [60.0, 40.0], 1.0: [55.0, 10.0]}, []

    def make(stages, desc):
        seen.extend(stages)
        return [{"last": accuracy[stage.condensed.settings.lr]} for stage in stages]

    monkeypatch.setattr(experiment, "make", make)
    scores = [score(small()), score(small("dm"))]
    tried = tune(experiment, scores, [(0.1, 0.2, 1.0)] * 2, held_out=0.3)
    assert best_rates(tried) == [0.1, 0.1] and len(tried) == 12 and scores[0].data.held_out == 0
    assert all(each.data.held_out == each.condensed.data.held_out == 0.3 and each.judged.split == "held out" for each in seen)
    assert len(tune(experiment, scores, [(0.1,), (0.2, 1.0)])) == 6 and len(tune(experiment, [], [])) == 0 == len(best_rates(tune(experiment, [], [])))


def test_a_repetition_is_a_set_or_a_network(experiment, monkeypatch):
    marks = [{"last": 0.5, "best": 0.55}, {"last": 0.6, "best": 0.61}]
    monkeypatch.setattr(study, "evaluate", lambda *args, **options: marks)
    rows = Study(score_rows("T", score(replace(small(), seed=3), repeats=2), lr=0.5)).run(experiment).frame()
    assert rows[["metric", "value", "seed"]].values.tolist() == [["accuracy", 55.0, 3], ["accuracy_best", pytest.approx(58.0), 3],
                                                                 ["accuracy_between_networks", pytest.approx(50**0.5), 3]]
    assert set(rows.setting) == {"ipc=1;arch=ConvNet-2 (4);lr=0.5"} and set(rows.method) == {"M3D, f=1"}


def test_the_spread_of_sets_is_what_is_left_without_that_of_networks():
    """Sets whose true accuracies vary by 3, each judged by two networks that vary by 4."""
    g = torch.Generator().manual_seed(0)
    networks = 60 + 3 * torch.randn(4000, 1, generator=g) + 4 * torch.randn(4000, 2, generator=g)
    rows = [{"table": "T", "dataset": "d", "method": "m", "setting": "ipc=1", "seed": i, "metric": metric, "value": value} for i, pair in enumerate(networks)
            for metric, value in (("accuracy", pair.mean().item()), ("accuracy_between_networks", study.std(pair.tolist())))]
    found = study.spreads(pd.DataFrame(rows), "T", repeats=2).iloc[0]
    assert found["between sets"] == pytest.approx(3, abs=0.3) and found["between networks"] == pytest.approx(4, abs=0.15) and found["sets"] == 4000
    for method in ("Herding", "K-Center"):                                          # one set, whatever the seed
        alone = study.spreads(pd.DataFrame(rows).assign(method=method), "T", repeats=2).iloc[0]
        assert alone["sets"] == 1 and pd.isna(alone["between sets"]) and alone["between networks"] == found["between networks"]
    one = study.spreads(pd.DataFrame(rows[:2]), "T", repeats=2).iloc[0]
    assert one["sets"] == 1 and one["between sets"] != one["between sets"]                                       # NaN: nothing is known
    assert "notes" not in study.spreads(pd.DataFrame(rows), "T", repeats=2).attrs


def test_sets_that_differ_by_less_than_their_networks_are_said_to_do_so():
    rows = [{"table": "T", "dataset": "d", "method": "m", "setting": "ipc=1", "seed": i, "metric": metric, "value": value}
            for i in range(3) for metric, value in (("accuracy", 64.0 + 0.1 * i), ("accuracy_between_networks", 0.8))]
    found = study.spreads(pd.DataFrame(rows), "T", repeats=2)
    (note,) = found.attrs["notes"]
    assert found["between sets"].item() == 0 and "no more than the networks of one set" in note


def test_dd_ranking_by_hand():
    found = study.ranked(60.0, 50.0, 90.0)
    assert (found["hard_label_recovery"], found["improvement_over_random"]) == (30, 10)
    alpha = 0.5 * 0.1 - 0.5 * 0.3
    assert found["label_robust_score"] == pytest.approx(100 * (2.718281828 ** alpha - 2.718281828**-1) / (2.718281828 - 2.718281828**-1))
    assert study.ranked(100, 0, 0)["label_robust_score"] == pytest.approx(100 * (2.718281828 - 0.367879441) / 2.350402387)


def test_measures_of_a_set_stand_on_three_scores(experiment, monkeypatch):
    marks = {40: 0.7, 10: 0.5, 300: 0.9}                                              # by the number of training images
    monkeypatch.setattr(study, "evaluate", lambda images, *args, **options: [{"last": marks[len(images)], "best": 1.0}] * 2)
    learned, drawn = study.judged_set(study.Judging(steps=3), small("mosaic", 2)), study.judged_set(study.Judging(steps=3), small("random"))
    ranking = study.Ranking(learned, drawn, study.judged_whole(study.Judging(), DIGITS))
    rows = Study([study.ranking_row("R", ranking)]).run(experiment).frame().set_index("metric").value
    assert rows["hard_label_recovery"] == pytest.approx(20) and rows["improvement_over_random"] == pytest.approx(20) and len(rows) == 3


def test_a_budget_shortens_and_lengthens_the_judge():
    plan = study.judged_set(study.Judging(steps=100, epochs=60), small())
    assert (plan.at_budget(0.25).most_steps, plan.at_budget(0.25).protocol.epochs) == (25, 15) and plan.at_budget(1.0) == plan
    free = study.judged_set(study.Judging(steps=0), small()).at_budget(2.0)
    assert free.most_steps == 0 and free.protocol.epochs == 3000 and study.Judging().repeats >= 2
    assert [study.published_epochs("imagenette", pictures) for pictures in (1, 4, 40, 200, 201, 501)] == [3000, 2000, 1500, 1000, 500, 300]


def test_a_set_of_normalised_pixels_is_judged_as_it_was_learned(experiment):
    """Its values leave [0, 1], and nobody clamps them: neither the set, nor the judge."""
    wanted = small("dm", lr=50.0, strategy="none")
    assert wanted.settings.space == "normalised" and small().settings.space == "unit"
    pixels = experiment.made(wanted).images.pixels
    assert pixels.min() < 0 or pixels.max() > 1
    assert len(experiment.made(score(wanted))["last"]) == 1


def test_names_as_in_print():
    names = [study.method_name(condensed_set(DIGITS, m, 1, factor=f)) for m, f in (("dm", 0), ("dm", 2), ("m3d", 2), ("mosaic", 3))]
    assert names == ["DM", "DM, f=2", "M3D", "Mosaic, f=3"] and study.method_name(None) == "Whole Dataset"
    assert (study.dataset_name("mnist5k"), study.dataset_name("mine")) == ("MNIST-5k", "mine")


def test_dance_has_its_halves(experiment):
    def kinds(**options):
        wanted = condensed_set(DIGITS, "dance", 1, network="convnet2:4", lr=0.1, experts=QUICK, **options)
        return [(type(each.networks), getattr(each.networks, "expert", None), each.real) for each in passes(experiment, wanted)]

    middle, verdict, plain = (PairNetworks, False, True), (PairNetworks, True, False), (RandomNetworks, None, True)
    assert kinds() == [middle, verdict] and kinds(calibrated=False) == [middle] and kinds(aligned="nothing") == [verdict]
    assert kinds(aligned="random") == [plain, verdict] and kinds(aligned="random", calibrated=False) == [plain]
    assert not small("dance", experts=QUICK, aligned="random", calibrated=False).needs()


def test_one_expert_more_trains_one_expert():
    two, three = (condensed_set(DIGITS, "dance", 1, lr=0.1, experts=replace(QUICK, count=count)) for count in (2, 3))
    assert set(two.needs().items()) < set(three.needs().items())
    assert condensed_set(DIGITS, "herding", 1, experts=QUICK).needs()["expert 0"] == two.needs()["expert 0"]


def test_a_monitor_notes_and_changes_nothing(experiment):
    watched = replace(small(iterations=5), monitor=Darkest(2))
    found = experiment.made(watched)
    assert [row["iteration"] for row in found.history] == [2, 4, 5] and all(row["darkest"] <= 0.1 for row in found.history)
    assert found.images.pixels.equal(experiment.made(small(iterations=5)).images.pixels)


class Darkest(Monitor):
    def measure(self, real, parents, network):
        return lambda iteration, learned: {"darkest": learned.pixels.min().item()}


# keys: of the code, what a set is made by; of the settings, what it depends on
def test_an_edited_loss_makes_the_sets_that_use_it_again_and_no_other(tmp_path, monkeypatch):
    stages = {name: score(small(name, **({"experts": QUICK} if name == "dance" else {}))) for name in ("dm", "m3d", "dance", "dsa", "random")}

    def keys():
        return {name: node_of(stage, tmp_path).key for name, stage in stages.items()}

    before = keys()
    assert keys() == before
    monkeypatch.setattr(study, "moment_gap", edited(study.moment_gap))
    assert [name for name, key in keys().items() if key != before[name]] == ["m3d"]
    monkeypatch.undo()
    monkeypatch.setattr(study, "mean_gap", edited(study.mean_gap))
    assert [name for name, key in keys().items() if key != before[name]] == ["dm", "dance"]
    monkeypatch.undo()
    monkeypatch.setitem(study.RECIPES, "m3d", replace(study.RECIPES["m3d"], iterations=7))
    assert keys() == before                                                         # the published numbers stand in the set


def node_of(stage, folder):
    return Planner(experiment_in(folder).here).node(stage)


def edited(loss):
    def changed(learned, seen, labels, kernel="gaussian"):
        return 2 * loss(learned, seen, labels)
    return changed


def test_a_cost_knows_the_code_of_the_set_that_it_only_describes(tmp_path, monkeypatch):
    m3d, dm = Cost(small()), Cost(small("dm"))
    before = [node_of(stage, tmp_path).key for stage in (m3d, dm)]
    monkeypatch.setattr(study, "moment_gap", edited(study.moment_gap))
    after = [node_of(stage, tmp_path).key for stage in (m3d, dm)]
    assert after[0] != before[0] and after[1] == before[1]


def test_a_set_does_not_know_on_what_it_is_judged(tmp_path):
    wanted, planner = score(small()), Planner(experiment_in(tmp_path).here)
    assert list(planner.node(wanted.condensed).data) == [DIGITS] and set(planner.node(wanted).data) == {DIGITS, DIGITS.judged()}
    assert planner.node(on_held_out(wanted, 0.3).condensed).key != planner.node(wanted.condensed).key


def test_memory_is_that_of_the_tensors_alive():
    with LiveBytes() as held:
        a = torch.ones(1000)
        b = a + 1
        del a
        c = b.view(10, 100)
        del b
    assert held.peak == 8000 and held.now == c.untyped_storage().nbytes() == 4000


def test_operations_by_hand():
    x, kernel = torch.ones(2, 3, 8, 8, requires_grad=True), torch.ones(5, 3, 3, 3)
    with Operations() as products:
        y = torch.nn.functional.conv2d(x, kernel)
    with Operations() as others:
        (y.flatten(1) + 1).exp().view(-1)
    assert products.count == 2 * (2 * 5 * 6 * 6) * 27 and others.count == 2 * (2 * 5 * 6 * 6)
    with Operations() as matrices:
        torch.ones(4, 5) @ torch.ones(5, 6)
    assert matrices.count == 2 * 4 * 5 * 6 + 20 + 30


def test_cost_grows_with_the_real_images_and_is_the_same_whenever_it_is_counted(experiment, tmp_path):
    few, many = (experiment.made(Cost(small(real_batch=n), steps=2)) for n in (2, 30))
    assert many["operations"] > 5 * few["operations"] > 0 and many["peak_memory_mib"] > 2 * few["peak_memory_mib"] > 0
    assert experiment_in(tmp_path / "again").made(Cost(small(real_batch=2), steps=2)) == few and few["relative_operations"] == 1
    relative = experiment.made(Cost(small(real_batch=30), 2, small(real_batch=2)))["relative_operations"]
    assert relative == many["operations"] / few["operations"]


def test_a_step_of_gradient_matching_costs_several_of_distribution_matching(experiment):
    dm, dc = (experiment.made(Cost(small(method), steps=2))["operations"] for method in ("dm", "dc"))
    assert dc > 1.5 * dm


def test_sheets_show_every_set(experiment):
    import matplotlib.pyplot as plt

    fig = study.sheets({"a": experiment.made(small()).images, "b": experiment.made(small("mosaic")).images})
    assert [ax.get_title() for ax in fig.axes] == ["a", "b"]
    plt.close(fig)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: condensed_set(DIGITS, "m4d", 1), "did you mean 'm3d'"), (lambda: condensed_set(DIGITS, "m3d", 1, iteration=3), "did you mean 'iterations'"),
    (lambda: condensed_set(DIGITS, "dm", 1, kernel="linear"), "unknown setting 'kernel'"),
    (lambda: condensed_set(DIGITS, "dance", 1), "depends on the size"), (lambda: condensed_set(DIGITS, "dance", 1, lr=0.1, aligned="x"), "unknown alignment"),
    (lambda: condensed_set(DIGITS, "dance", 1, lr=0.1, aligned="nothing", calibrated=False), "keep at least one"),
    (lambda: Images("digits", held_out=1.0), "held-out share in [0, 1)"), (lambda: Images("digits", size=-1), "at least 0"),
    (lambda: Images("digits", split="held out"), "where a share is held out"), (lambda: Experts(0), "at least 1"),
    (lambda: study.check_network("convnet2:x"), "not of the form"), (lambda: study.check_network("convnt2"), "convnet2"),
    (lambda: study.check_network("resnet10", plain=True), "running statistics"), (lambda: study.check_network("convnet5", 8), "at least 32 pixels"),
    (lambda: study.check_names("a+a"), "each once"), (lambda: study.check_no_doubles(ipcs=(1, 1)), "ipcs=(1, 1) holds a value twice"),
    (lambda: study.check_enough(4, each=0, train=3), "train=3 is too few"), (lambda: study.check_size(8, 8, ()), "factor is 8"),
    (lambda: study.check_size(8, 1, ("convnet5",)), "at least 32 pixels"),
    (lambda: study.check_fit(DIGITS.load(), 40, 1, ()), "30 images"), (lambda: study.check_fit(DIGITS.load(), 4, 8, ()), "factor is 8"),
    (lambda: Images("digitz").load(), "digit"),
])
def test_bad_input_is_answered_in_one_line(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_frame_of_rates_has_its_columns(experiment):
    frame = tune(experiment, [score(small())], [(0.3,)], held_out=0.3)
    assert isinstance(frame, pd.DataFrame) and list(frame) == ["score", "lr", "network", "accuracy"]
