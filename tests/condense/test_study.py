"""Jobs and exams: what is kept, what is held out, what is named how."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from kdnotes.condense import study
from kdnotes.condense.evaluate import Protocol
from kdnotes.condense.experts import PairNetworks
from kdnotes.condense.matching import RandomNetworks
from kdnotes.condense.study import Exam, Job, LiveBytes, Source, cost_of, job, learned_set, passes_of, score_rows, scores, sets_of, training_images, tune, tuned
from kdnotes.condense.synthetic import from_real
from kdnotes.results import Results
from kdnotes.parallel import place_of
from kdnotes.runtime import make_fabric

DIGITS = Source("digits", per_class=30)
EXAM = Exam(Protocol(epochs=2, batch_size=32, lr=0.05, strategy="none", cutmix=0.0, looks=2), "convnet2:4", repeats=2)


@pytest.fixture
def place(tmp_path):
    return place_of(make_fabric("cpu"), tmp_path)


def small(method="m3d", **settings):
    learned = {"iterations": 4, "real_batch": 8, "classes_at_once": 10, "lr": 0.3} if method in study.RECIPES else {}
    return job(DIGITS, method, 1, factor=settings.pop("factor", 1), network="convnet2:4", **(learned | settings))


def test_held_out_images_come_from_training_and_the_test_set_is_not_read(monkeypatch):
    whole, _ = sets_of(Source("digits"))
    asked, original = [], study.load
    monkeypatch.setattr(study, "load", lambda name, split, **options: asked.append(split) or original(name, split, **options))
    train, held = study.read_sets(Source("digits", per_class=20, held_out=0.25))
    assert asked == ["train"] and len(train) == 200 and abs(len(held) - len(whole) / 4) <= 10
    rows = [set(map(bytes, images.images.flatten(1).numpy())) for images in (train, held, whole)]
    assert not rows[0] & rows[1] and rows[0] | rows[1] <= rows[2]


def test_a_set_and_its_marks_are_computed_once(place, monkeypatch):
    exam = replace(EXAM, repeats=1)                                    # one network: in this process
    first = learned_set(small(), place), scores(small(), exam, place)
    for name in ("match", "evaluate"):
        monkeypatch.setattr(study, name, lambda *args, **kw: pytest.fail("computed again"))
    again = learned_set(small(), place), scores(small(), exam, place)
    assert again[0].set.pixels.equal(first[0].set.pixels) and again[0].rows == first[0].rows and again[1] == first[1]
    assert all(last <= best for last, best in zip(*(first[1][mark] for mark in ("last", "best")))) and len(first[1]["last"]) == 1


@pytest.mark.parametrize("method", ["m3d", "dsa"])
def test_a_killed_set_goes_on_from_its_checkpoint(place, tmp_path, method, monkeypatch):
    from kdnotes.condense import gradients, matching

    wanted = small(method, iterations=6)
    whole = learned_set(wanted, place_of(make_fabric("cpu"), tmp_path / "whole")).set.pixels
    module, step = (matching, "one_iteration") if method == "m3d" else (gradients, "gradient_step")
    original, count = getattr(module, step), [0]

    def killed(*args, **kw):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return original(*args, **kw)

    monkeypatch.setattr(module, step, killed)
    with pytest.raises(KeyboardInterrupt):
        learned_set(wanted, place)
    assert learned_set(wanted, place).set.pixels.equal(whole)


def test_learning_begins_with_the_mosaic_of_the_same_seed(place):
    begun = training_images(small("mosaic", factor=2), place)
    real, _ = sets_of(DIGITS)
    assert begun[0].equal(from_real(real, 1, 2, seed=0).decoded()[0])
    assert not learned_set(small(factor=2), place).set.pixels.equal(learned_set(small("mosaic", factor=2), place).set.pixels)
    everything = training_images(job(DIGITS, "full"), place)
    assert everything[0].dtype == torch.uint8 and len(everything[1]) == 300


def test_the_best_rate_is_the_best_on_held_out_images(place, monkeypatch):
    accuracy = {0.1: [50.0, 52.0], 0.2: [60.0, 40.0], 1.0: [55.0, 10.0]}
    seen = []

    def fake(pairs, place, desc):
        seen.extend(pairs)
        return [{"last": accuracy[dict(each.settings)["lr"]]} for each, _ in pairs]

    monkeypatch.setattr(study, "all_scores", fake)
    jobs = [small(), small("dm")]
    best, frame = tuned(jobs, (0.1, 0.2, 1.0), EXAM, place, held_out=0.3)
    assert [dict(each.settings)["lr"] for each in best] == [0.1, 0.1] and [each.source.held_out for each in best] == [0, 0]
    assert all(each.source.held_out == 0.3 for each, _ in seen) and len(frame) == 12
    assert len(tune(jobs, [(0.1,), (0.2, 1.0)], [EXAM, replace(EXAM, repeats=1)], place)) == 6 and len(tune([], (), EXAM, place)) == 0


def test_a_repetition_is_a_set_or_a_network():
    found = {"last": [50.0, 60.0], "best": [55.0, 61.0]}
    rows = Results("toy", "demo", score_rows("T", replace(small(), seed=3), EXAM, found, lr=0.5)).frame()
    assert rows[["metric", "value", "seed"]].values.tolist() == [["accuracy", 55.0, 3], ["accuracy_best", 58.0, 3]]
    assert set(rows.setting) == {"ipc=1;arch=ConvNet-2 (4);lr=0.5"} and set(rows.method) == {"M3D, f=1"}
    rows = Results("toy", "demo", score_rows("T", small("dm"), EXAM, found, several=False)).frame()
    assert rows[rows.metric == "accuracy"][["value", "seed"]].values.tolist() == [[50, 0], [60, 1]] and set(rows.method) == {"DM"}


def test_names_as_in_print():
    names = [study.arch_name(text) for text in ("convnet3", "convnet2:16", "resnet10", "densenet121", "resnetap10")]
    assert names == ["ConvNet-3", "ConvNet-2 (16)", "ResNet-10", "DenseNet-121", "ResNetAP-10"]
    assert study.network_of("resnet10:8-16-32-64") == ("resnet10", {"widths": (8, 16, 32, 64)})
    assert [study.method_name(job(DIGITS, m, 1, factor=f)) for m, f in (("dm", 0), ("dm", 2), ("m3d", 2), ("mosaic", 3))] == ["DM", "DM, f=2", "M3D", "Mosaic, f=3"]


def test_dance_has_its_halves(place):
    def kinds(**options):
        wanted = job(DIGITS, "dance", 1, network="convnet2:4", experts=1, expert_epochs=1, **options)
        return [(type(look.networks), getattr(look.networks, "expert", None), look.real) for look in passes_of(wanted, sets_of(DIGITS)[0], place)]

    middle, verdict, plain = (PairNetworks, False, True), (PairNetworks, True, False), (RandomNetworks, None, True)
    assert kinds() == [middle, verdict] and kinds(calibrated=False) == [middle] and kinds(aligned=False) == [verdict]
    assert kinds(aligned="random") == [plain, verdict] and kinds(aligned="random", calibrated=False) == [plain]


def test_memory_is_that_of_the_tensors_alive():
    with LiveBytes() as held:
        a = torch.ones(1000)
        b = a + 1
        del a
        c = b.view(10, 100)
        del b
    assert held.peak == 8000 and held.now == c.untyped_storage().nbytes() == 4000


def test_cost_grows_with_the_real_images(place):
    few, many = (cost_of(small(real_batch=n), place, iterations=1, repeats=2) for n in (2, 30))
    assert len(few["seconds"]) == 2 and min(few["seconds"]) > 0 and many["memory"] > 2 * few["memory"] > 0


def test_sheets_show_every_set(place):
    import matplotlib.pyplot as plt

    fig = study.sheets({"a": learned_set(small(), place).set, "b": learned_set(small("mosaic"), place).set})
    assert [ax.get_title() for ax in fig.axes] == ["a", "b"]
    plt.close(fig)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: job(DIGITS, "m4d", 1), "did you mean 'm3d'"), (lambda: job(DIGITS, "m3d", 1, iteration=3), "did you mean 'iterations'"),
    (lambda: Source("digits", held_out=1.0), "held-out share in [0, 1)"), (lambda: Source("digits", size=-1), "at least 0"),
    (lambda: study.network_of("convnet2:x"), "name:width"), (lambda: Job(DIGITS, "dm", 1, settings=(("colour", 1),)), "unknown setting 'colour'"),
    (lambda: sets_of(Source("digitz")), "digit"),
])
def test_bad_input_is_answered_in_one_line(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_kept_rows_are_plain_and_the_frame_has_its_columns(place):
    frame = tune([small()], (0.3,), replace(EXAM, repeats=1), place, held_out=0.3)
    assert isinstance(frame, pd.DataFrame) and list(frame) == ["job", "lr", "network", "accuracy"]
