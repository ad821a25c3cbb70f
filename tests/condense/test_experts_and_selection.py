"""Expert pairs and the way between them; choosing real images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes.condense.evaluate import OneByOne, accuracies, fresh
from kdnotes.condense.experts import PairNetworks, Pool, dance_passes, set_middle, train_experts
from kdnotes.condense.matching import Settings, match
from kdnotes.condense.selection import choose_images, herding, k_center
from kdnotes.condense.synthetic import from_real
from kdnotes.data.catalogue import load
from kdnotes.runtime import fingerprint

quick = settings(max_examples=20)

def weights(start, end):
    net = fresh("convnet2", 10, (1, 8, 8), 0, width=4)
    filled = [{name: torch.full_like(p, value) for name, p in net.named_parameters()} for value in (start, end)]
    return Pool([filled[0]], [filled[1]], [fingerprint(filled[0])], net)


def test_the_middle_is_weighted_towards_the_start_by_lambda():
    found = weights(2.0, 4.0)
    assert all((p == 3.5).all() for p in set_middle(found.net, found, 0, 0.25).parameters())
    with pytest.raises(ValueError, match="lambda is 1.5"):
        set_middle(found.net, found, 0, 1.5)


def test_both_ends_are_exact(pool):
    x = torch.randn(4, 1, 8, 8)
    for k in range(2):
        for lam, side in ((1.0, pool.starts), (0.0, pool.ends)):
            own = fresh("convnet2", 10, (1, 8, 8), 5, width=8)
            own.load_state_dict(side[k])
            assert set_middle(pool.net, pool, k, lam)(x).logits.equal(own(x).logits)


def test_accuracy_falls_from_the_expert_to_chance(pool):
    test = load("digits", "test")
    found = [accuracies(OneByOne([set_middle(pool.net, pool, 0, lam)]).eval(), test, ((0.3,), (0.37,)))[0] for lam in (0, 0.5, 1)]
    assert found[0] > 0.6 and found[0] > found[1] - 0.05 and found[2] < 0.35


def test_a_start_cannot_meet_the_end_of_another_run(pool):
    with pytest.raises(ValueError, match="not of the same runs"):
        Pool([pool.starts[1]], [pool.ends[0]], [pool.ids[0]], pool.net)
    with pytest.raises(ValueError, match="running statistics"):
        Pool(pool.starts, pool.ends, pool.ids, fresh("convnet2", 10, (1, 8, 8), 0, width=8, norm_kind="batch"))


def test_both_looks_of_an_iteration_meet_the_same_pair(pool):
    between, expert = PairNetworks(pool, 3), PairNetworks(pool, 3, expert=True)
    draws = [between.draw(i) for i in range(400)]
    assert draws == [expert.draw(i) for i in range(400)] and {k for k, _ in draws} == {0, 1}
    lam = torch.tensor([lam for _, lam in draws])
    assert lam.min() < 0.02 and lam.max() > 0.98 and abs(lam.mean() - 0.5) < 0.05
    k, lam = between.draw(7)
    assert between(7).classifier.weight.equal(torch.lerp(pool.ends[k]["classifier.weight"], pool.starts[k]["classifier.weight"], lam))
    assert expert(7).classifier.weight.equal(pool.ends[k]["classifier.weight"])


@pytest.mark.long
def test_calibration_makes_the_expert_recognise_the_images(pool, digits):
    learned = from_real(digits, 2, 2)
    begun = learned.decoded()
    rows = match(learned, digits, dance_passes(pool, 0), Settings(40, lr=0.05, real_batch=32, strategy="color_crop"), watch_every=20)
    assert set(rows[0]) == {"iteration", "loss0", "loss1"}
    net = set_middle(pool.net, pool, 0, 0.0)
    mean, std = torch.tensor(0.3), torch.tensor(0.37)
    share = [(net((x - mean) / std).logits.argmax(1) == y).float().mean().item() for x, y in (begun, learned.decoded())]
    assert share[1] > share[0] + 0.1
    with pytest.raises(ValueError, match="nothing to do"):
        dance_passes(pool, 0, aligned=False, calibrated=False)


def herding_by_loops(x, count):
    mu, chosen = x.mean(0), []
    for k in range(count):
        total = sum((x[i] for i in chosen), torch.zeros_like(mu))
        scores = [float(((k + 1) * mu - total - x[i]).norm()) if i not in chosen else float("inf") for i in range(len(x))]
        chosen.append(scores.index(min(scores)))
    return chosen


def k_center_by_loops(x, count):
    start = [float((row - x.mean(0)).norm()) for row in x]
    chosen = [start.index(min(start))]
    while len(chosen) < count:
        gaps = [min(float((x[i] - x[j]).norm()) for j in chosen) for i in range(len(x))]
        chosen.append(gaps.index(max(gaps)))
    return chosen


@quick
@given(seed=st.integers(0, 999), count=st.integers(1, 8))
def test_choices_equal_their_definitions(seed, count):
    x = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert herding(x, count).tolist() == herding_by_loops(x, count)
    assert k_center(x, count).tolist() == k_center_by_loops(x, count)


def test_chosen_sets_hold_real_images_of_each_class(digits):
    features = digits.images.flatten(1).float()
    for method in ("random", "herding", "k_center"):
        found = choose_images(digits, 3, method, features)
        every = (found.pixels.flatten(1)[:, None] * 255).round().eq(digits.images.flatten(1).float()[None]).all(2)
        assert every.any(1).all() and all(digits.labels[row.nonzero()[0]] == label for row, label in zip(every, found.labels))


@pytest.mark.parametrize(("call", "words"), [
    (lambda digits: choose_images(digits, 3, "best"), "unknown selection 'best'"), (lambda digits: choose_images(digits, 3, "herding"), "needs features of all"),
    (lambda digits: choose_images(digits, 999, "herding", digits.images.flatten(1).float()), "999 are asked for"), (lambda digits: herding(torch.zeros(3, 2), 4), "from 1 to N"),
    (lambda digits: train_experts(digits, 0), "0 experts"),
])
def test_bad_input_is_answered_in_one_line(digits, call, words):
    with pytest.raises(ValueError) as error:
        call(digits)
    assert words in str(error.value) and "\n" not in str(error.value)
