"""DGD's method: who sees what, what a record can move, what is bought once and what it costs, and what is refused."""
import inspect
import math
import warnings
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from kdnotes.experiment import Data, Experiment, Stage, pieces
from kdnotes.losses.datafree import fixed
from kdnotes.losses.tangent import Steady
from kdnotes.models.classifiers import Prediction
from kdnotes.models.lenets import LeNet5, PATENet
from kdnotes.models.stacked import Stacked, StackedPerceptron, stacked_predictions
from kdnotes.papers import dgd
from kdnotes.papers.dgd import (
    CONVERSION, DP, EVERYTHING, LABELS_ONLY, MAIN, METHODS, NOISE, ORDERS, PARTS, PATE_REAL, STRICT, Cast, Chart, Config, Dreaming, Learning, MechanismAudit, OnPixels,
    PrivateSteps, Regulariser, Smoothness, Space, Student, Teaching, choose_queries, costs, generator_terms, network_of, rows, sizes, smoothness_loss, train_generator, train_privately,
    train_student, train_teachers, triple,
)
from kdnotes.privacy.accounting import Ledger, to_epsilon
from kdnotes.privacy.pate import ConfidentGNMax, LNMax, Oracle, partition, vote_counts
from kdnotes.results import reported
from kdnotes.runtime import fingerprint, make_fabric, make_generator
from kdnotes.train import predict


def state(module: nn.Module) -> dict[str, str]:
    return {name: fingerprint(value) for name, value in module.state_dict().items()}


def chart(count: int = 24) -> Chart:
    """A curved decoder from two numbers to images of 3 x 3."""
    torch.manual_seed(1)
    decoder = nn.Sequential(nn.Linear(2, 6), nn.Softplus(), nn.Linear(6, 9), nn.Sigmoid(), nn.Unflatten(1, (1, 3, 3)))
    return Chart(torch.rand(count, 1, 3, 3), torch.randn(count, 2), decoder.requires_grad_(False))


def student() -> nn.Module:
    return network_of("perceptron:8", 3, 1, 3, 0)


# 9: a record moves one teacher, and one vote a query
STACKS = {"linear": lambda: StackedPerceptron(4, 256, 3), "perceptrons": lambda: StackedPerceptron(4, 256, 3, (8,)),
          "LeNets": lambda: Stacked([LeNet5(3, 1, 16, (2, 3, 4, 5)) for _ in range(4)])}


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize("recipe", dgd.RECIPES)
def test_a_record_taken_away_moves_one_teacher_and_one_vote(kind, recipe):
    x, y = torch.rand(4, 12, 1, 16, 16, generator=make_generator(0)), torch.randint(3, (4, 12), generator=make_generator(1))
    queries, how = torch.rand(40, 1, 16, 16, generator=make_generator(2)), Teaching(6, 5, 0.05, recipe)

    def learn(present: torch.Tensor) -> nn.Module:
        torch.manual_seed(0)
        return train_teachers(STACKS[kind](), x, y, how, 0, present)

    everyone = torch.ones(4, 12)
    without = everyone.clone()
    without[2, 3] = 0
    first, second = learn(everyone), learn(without)
    changed = torch.stack([(a != b).flatten(1).any(1) for a, b in zip(first.parameters(), second.parameters())]).any(0)
    assert changed.tolist() == [False, False, True, False]
    votes = [vote_counts(stacked_predictions(stack, queries).long(), 3) for stack in (first, second)]
    assert (votes[0] - votes[1]).abs().sum(1).max() <= 2
    assert all(v.sum(1).eq(4).all() for v in votes)


def test_parts_are_disjoint_and_equal_and_none_is_empty():
    parts = partition(103, 10, 3)
    assert parts.shape == (10, 10) and len(parts.unique()) == 100
    with pytest.raises(ValueError, match="leave empty parts"):
        partition(9, 10)


def test_an_ensemble_of_more_teachers_than_records_is_refused(tmp_path):
    config = Config.profile("smoke", seeds="0", **{"teachers.count": 200})
    with pytest.raises(ValueError, match="leave empty parts"):
        Experiment.alone("dgd", config, tmp_path).made(Cast(config, 0).ensemble())


@pytest.mark.parametrize("recipe", dgd.RECIPES)
def test_one_after_another_and_stacked_teachers_are_the_same(experiment, cast, recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(dgd, "pate_rate", lambda n, teachers: 0.05 * 0.1 ** (n * teachers // 12))       # falls early: that of six in the third step, that of one in none
    stage = replace(cast.ensemble(), network="perceptron:5")
    stage = replace(stage, how=replace(stage.how, recipe=recipe))
    stacked, looped = (replace(stage, together=how).build({}, experiment.here, tmp_path / "teachers.resume") for how in ("stacked", "loop"))
    assert stacked.keys() == looped.keys()
    for name in stacked:
        torch.testing.assert_close(stacked[name], looped[name], rtol=1e-4, atol=1e-5)


def test_teachers_one_after_another_are_kept_when_the_next_is_killed(experiment, cast, monkeypatch, tmp_path):
    stage = replace(cast.ensemble(2), network="perceptron:3", together="loop", how=Teaching(1001, 4, 1e-2))
    whole, calls, plain = stage.build({}, experiment.here, tmp_path / "a.resume"), [], train_teachers

    def second_is_killed(*given, **named):
        calls.append(named["checkpoint"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*given, **named)

    monkeypatch.setattr(dgd, "train_teachers", second_is_killed)
    with pytest.raises(KeyboardInterrupt):
        stage.build({}, experiment.here, tmp_path / "b.resume")
    assert [path.name for path in tmp_path.iterdir()] == ["b-0.resume"]
    again = stage.build({}, experiment.here, tmp_path / "b.resume")
    assert fingerprint(again) == fingerprint(whole) and not list(tmp_path.iterdir())


def test_pate_goes_through_its_records_in_order_and_keeps_an_average():
    how = Teaching(3, 128, 0.05, "pate")
    assert [(int(r[0]), int(r[-1])) for r in (how.rows(n, 240, 0) for n in range(3))] == [(0, 127), (112, 239), (0, 127)]
    torch.manual_seed(0)
    net = PATENet(3, 1, 8)
    stack, x, y = Stacked([net]), torch.rand(1, 10, 1, 8, 8), torch.randint(3, (1, 10))
    average, plain = [p.detach().clone() for p in stack.parameters()], Stacked([net])
    optimizer = torch.optim.SGD(plain.parameters(), 0.05)
    named = dict(zip(plain.names, plain.weights))
    for n in range(3):                                        # as the formulas stand
        loss = nn.functional.cross_entropy(plain(x)[0], y[0]) + 0.004 * sum(named[k].square().sum() / 2 for k in net.decayed())
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        decay = min(0.9999, (1 + n) / (10 + n))
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, plain.parameters())]
    train_teachers(stack, x, y, how, 0)
    for a, b in zip(stack.parameters(), average):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# 10: the generator learns, its critic does not
def test_gradients_reach_the_generator_and_never_the_baseline(experiment, cast):
    critic = experiment.made(cast.baseline(False)).network
    before = state(critic)
    generator = cast.synthetic(False).dreamer.fresh((1, 8))
    first = state(generator)
    how = Dreaming(1, 0.1, 5, 10, 10.0, 2, 16, 1e-2)
    train_generator(generator, critic, lambda x: x, how, make_generator(0), make_fabric("cpu", "fp32"))
    assert state(critic) == before and all(p.grad is None for p in critic.parameters()) and state(generator) != first


def test_terms_of_the_generator_by_value():
    uniform = Prediction(torch.zeros(4, 10), torch.full((4, 6), -3.0))
    terms = generator_terms(uniform, [], Dreaming(2, 0.5, 4, 0, 10.0, 1, 1, 1.0))
    assert [float(terms[k]) for k in ("loss", "one_hot", "activation", "entropy")] == pytest.approx([2 * 2.302585 - 1.5 - 4, 2.302585, -3.0, -1.0], abs=1e-5)
    with pytest.raises(ValueError, match="no pass through a batch norm"), fixed(LeNet5()) as heard:
        generator_terms(uniform, heard, Dreaming(0, 0, 0, 1, 10.0, 1, 1, 1.0))


def test_pixels_and_standardised_images_invert_each_other():
    for name in [*dgd.STATISTICS, "digits"]:
        space = Space.of(name)
        x = torch.rand(2, len(space.mean), 4, 4)
        assert torch.allclose(space.to_unit(space.to_norm(x)), x, atol=1e-6)
        assert torch.allclose(space.to_norm(space.to_unit(x)), x, atol=1e-6)


# the choice of queries
def test_queries_take_the_classes_in_turn_and_every_beginning_is_a_choice():
    predicted = torch.tensor([0] * 20 + [1] * 5 + [3] * 2)             # nobody sees a 2
    order = choose_queries(predicted, 27, 27, make_generator(0))
    assert sorted(order.tolist()) == list(range(27))
    assert predicted[order[:6]].tolist() == [0, 1, 3, 0, 1, 3] and predicted[order[:12]].bincount().tolist() == [5, 5, 0, 2]
    assert choose_queries(predicted, 9, 27, make_generator(0)).equal(order[:9])
    assert len(choose_queries(None, 9, 27, make_generator(0)).unique()) == 9
    with pytest.raises(ValueError, match="28 queries for 27 images"):
        choose_queries(predicted, 28, 27, make_generator(0))


# 15, 16: perturbations and what they are detached from
@pytest.mark.parametrize("solver, step, base, normal", [("qr", "linear", "recon", "project"), ("qr", "finite", "input", "project_all"), ("cg", "finite", "recon", "relaxed"),
                                                        ("cg", "linear", "input", "project")])
def test_a_triple_has_the_lengths_and_angles_that_were_asked(solver, step, base, normal):
    how, there = Smoothness(1, 1, 0, epsilon_1=0.5, epsilon_2=0.25, solver=solver, step=step, base=base, normal=normal), chart()
    x, along, across = triple(Steady(student()), there, torch.arange(6), how, make_generator(0))
    assert x.equal((there.reconstructions if base == "recon" else there.images)[:6])
    assert torch.allclose(across.flatten(1).norm(dim=1), torch.full((6,), 0.25), atol=1e-5)
    if step == "linear":
        assert torch.allclose(along.flatten(1).norm(dim=1), torch.full((6,), 0.5), atol=1e-4)
    if normal == "project" or normal == "project_all" and step == "linear":
        assert (along * across).flatten(1).sum(1).abs().max() < 1e-5
    assert not any(part.requires_grad for part in (x, along, across))


def test_only_the_student_gets_a_gradient(monkeypatch):
    there, net = chart(), student()
    there.decoder.requires_grad_(True)
    there.images.requires_grad_(True), there.codes.requires_grad_(True)
    smoothness_loss(net, there, torch.arange(8), Smoothness(1, 1, 0.1), make_generator(0)).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    assert all(p.grad is None for p in there.decoder.parameters()) and there.images.grad is None and there.codes.grad is None


@pytest.mark.parametrize("how", [Smoothness(1, 1, 0), Smoothness(virtual=1)])
def test_a_student_that_says_the_same_of_everything_has_nothing_to_learn_from_smoothness(how):
    net = student()
    nn.init.zeros_(net.classifier.weight)
    smoothness_loss(net, chart(), torch.arange(8), how, make_generator(0)).backward()
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


def test_without_weights_the_training_is_that_on_labels_alone_bit_for_bit():
    x, y, how = torch.rand(9, 1, 3, 3), torch.randint(3, (9,)), Learning(5, 4, 8, 1e-2, 0.5)
    alone, weightless, smooth = (state(train_student(student(), x, y, ask, how, 0)) for ask in (
        None, Regulariser(chart(), Smoothness(0, 0, 0)), Regulariser(chart(), Smoothness(1, 1, 0.1))))
    assert alone == weightless != smooth


def test_the_end_of_tnar_s_training():
    how = Learning(500, 32, 128, 1e-3, 0.2, 0.08)
    assert [how.rate(n) for n in (0, 460)] == [1, 1] and how.rate(499) == pytest.approx(1 / 40)
    assert [how.weight(n) for n in (0, 50, 100, 400)] == [0, 0.5, 1, 1]


# 17: no private array reaches the student, and labels are drawn once
def test_the_student_is_given_synthetic_images_and_labels_only(experiment, cast):
    assert list(inspect.signature(train_student).parameters) == ["student", "images", "labels", "regulariser", "how", "seed", "checkpoint"]
    stage = cast.student("DGD")
    assert not [f for f in fields(stage) if isinstance(getattr(stage, f.name), Data)]
    seen = []
    here = replace(experiment.here, library=type("Shut", (), {"loaded": lambda self, data: seen.append(data), "notes": {}, "kept": {}})())
    parents = {name: experiment.made(parent) for name, parent in stage.needs().items()}
    stage.build(parents, here, experiment.here.root / "none.resume")
    assert not seen, "its training reads no data"
    assert not list(pieces(tuple(parents.values()), Data)) and stage.needs().keys() == {"labels", "manifold"}


def test_labels_are_drawn_once_and_training_leaves_the_account_as_it_is(experiment, cast):
    stage = cast.student("DGD")
    before = experiment.made(stage.labels)
    spent = before.ledger.epsilon(1e-3, conversion=CONVERSION)
    experiment.made(stage), experiment.made(cast.student("labelled only"))
    after = experiment.made(stage.labels)
    assert after.labels.equal(before.labels) and after.ledger == before.ledger and after.ledger.epsilon(1e-3, conversion=CONVERSION) == spent
    assert cast.student("labelled only").labels == stage.labels, "all students of a seed learn the same labels"


# what it costs
@pytest.mark.parametrize("q, gamma, delta, expected", [(50, 0.2, 1e-3, 14.605), (100, 0.05, 1e-5, 5.3025851)])
def test_the_account_of_labels(q, gamma, delta, expected):
    ledger = Ledger(ORDERS, LABELS_ONLY)
    ledger.spend(LNMax(gamma).releases(ORDERS)["answered"], q)
    assert ledger.epsilon(delta, conversion="classic") == pytest.approx(expected, abs=1e-3)


def test_the_ledger_says_what_it_covers_and_the_strict_one_covers_everything(experiment, cast, config):
    plain, strict = (experiment.made(cast.student("DGD", cast.synthetic(s)).labels).ledger for s in (False, True))
    delta = config.labels.delta
    assert plain.covers == LABELS_ONLY and "nothing else" in plain.covers and strict.covers == EVERYTHING
    kinds = [entry.release.mechanism for entry in strict.entries]
    assert kinds == ["sampled Gaussian", "LNMax"] and strict.entries[0].times == config.private.dp_steps
    alone = experiment.made(cast.baseline(True)).ledger.epsilon(delta, conversion=CONVERSION)
    both, labels = (ledger.epsilon(delta, conversion=CONVERSION) for ledger in (strict, plain))
    assert max(alone, labels) < both <= alone + labels
    assert cast.synthetic(True).dreamer.how.statistics == 0, "the statistics of private records are private"
    whole = replace(config, baseline="dpsgd")
    assert Cast(whole, 0).student("DGD").labels.strict is not None


def test_no_two_generators_of_a_seed_give_the_same_stream(experiment, cast, monkeypatch, tmp_path):
    strict, rounds = cast.student("DGD", cast.synthetic(True)).labels, cast.labels(cast.synthetic(False), mechanism="Interactive-GNMax")
    stages = (strict.votes.ensemble, strict.strict, strict, rounds, dgd.StepsAudit(cast.dp, 120, 100, 1.0, cast.seed))
    parents, used = [{name: experiment.made(parent) for name, parent in stage.needs().items()} for stage in stages], []
    for name in ("partition", "Sanitizer", "Oracle"):
        monkeypatch.setattr(dgd, name, lambda *given, real=getattr(dgd, name), **named: used.append((real.__name__, given[2])) or real(*given, **named))
    for stage, made in zip(stages, parents):
        stage.build(made, experiment.here, tmp_path / "stage.resume")
    starts = [cast.seed, *(start for name, seed in used for start in ((2 * seed, 2 * seed + 1) if name == "Sanitizer" else (seed,)))]
    assert [name for name, _ in used] == ["partition", "Sanitizer", "Oracle", "Oracle", "Sanitizer"]
    assert len({float(torch.rand((), generator=torch.Generator().manual_seed(start))) for start in starts}) == 8, "composition wants independent draws"


def test_a_baseline_by_dp_sgd_keeps_to_its_budget():
    x, y = torch.rand(200, 1, 4, 4), torch.randint(3, (200,))
    ledger = train_privately(network_of("perceptron:8", 3, 1, 4, 0), x, y, PrivateSteps(2.0, 1e-3, 5, 50, 1.0, 0.1), 0)
    assert ledger.epsilon(1e-3) <= 2.0 * 1.005 and ledger.entries[0].times == 5 and ledger.valid


def test_no_noise_is_an_infinite_epsilon_and_printed_so(experiment, cast, config):
    stage = cast.labels(cast.synthetic(False), mechanism="plurality")
    bought = experiment.made(stage)
    found = costs(stage, bought, experiment.here, config.labels.delta, 120)
    assert found["epsilon"] == found["epsilon_data_dependent"] == math.inf and found["label_accuracy"] == 100
    printed = bought.ledger.table(config.labels.delta, CONVERSION)
    assert printed["nominal epsilon"].tolist() == ["inf", "inf"] and printed["epsilon that holds"].tolist() == ["none", "none"]


def test_a_delta_that_would_publish_records_is_warned_of(experiment, cast, config):
    stage = cast.labels(cast.synthetic(False))
    with pytest.warns(UserWarning, match="expected less than 1/120"):
        costs(stage, experiment.made(stage), experiment.here, 0.01, 120)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        costs(stage, experiment.made(stage), experiment.here, config.labels.delta, 120)


def test_data_dependent_costs_are_smaller_and_marked(experiment, cast, config):
    stage = cast.labels(cast.synthetic(False))
    bought = experiment.made(stage)
    assert bought.dependent.data_dependent and not bought.dependent.valid
    ledger = Ledger(ORDERS)
    ledger.spend(bought.dependent)
    assert ledger.nominal(1e-3) <= ledger.epsilon(1e-3) == bought.ledger.epsilon(1e-3), "they bound one direction; what holds is the cost at any votes"
    found = costs(stage, bought, experiment.here, config.labels.delta, 120)
    assert found["epsilon_data_dependent"] <= found["epsilon"] and found["asked"] == found["answered"] == 12


# Interactive-GNMax, in two rounds
def test_interactive_labels_cost_what_both_rounds_cost_and_take_a_sure_student_at_its_word(experiment, cast, config):
    stage = cast.labels(cast.synthetic(False), mechanism="Interactive-GNMax")
    stage = replace(stage, mechanism=replace(stage.mechanism, threshold=2.5, confidence=0.11))
    bought, first = experiment.made(stage), experiment.made(stage.first.labels)
    q, done = len(bought.labels), len(first.labels)
    assert (q, done) == (12, 6) and bought.labels[:done].equal(first.labels) and bought.answered[:done].equal(first.answered)
    asked, answered = bought.ledger.entries[0].release, int(bought.answered.sum())
    free = ConfidentGNMax(3.0, 1.0, 1.0).rdp_independent(ORDERS, q, answered)               # a threshold a query, an answer where one was given
    spent = sum(entry.times * torch.tensor(entry.release.rdp, dtype=torch.float64) for entry in bought.ledger.entries)
    assert asked.mechanism == "threshold" and torch.allclose(spent, torch.from_numpy(free), rtol=1e-12) and bought.ledger.covers == LABELS_ONLY
    p = predict(experiment.made(stage.first), bought.images[done:])[0].softmax(1)
    own = ~bought.answered[done:]
    assert own.any() and bought.labels[done:][own].equal(p.argmax(1)[own]), "where the teachers were not asked, it is the student's own label"
    assert bought.dependent.holds == pytest.approx(spent.tolist(), rel=1e-12)
    found = costs(stage, bought, experiment.here, config.labels.delta, 120)
    assert found["own_labels"] == int(own.sum()) and found["asked"] == 12 and found["answered"] == answered and found["epsilon_data_dependent"] <= found["epsilon"]
    learned = experiment.made(replace(cast.student("labelled only"), labels=stage))
    assert state(learned) != state(experiment.made(stage.first))
    assert type(cast.labels(cast.synthetic(False), 1, mechanism="Interactive-GNMax").mechanism) is ConfidentGNMax, "one query leaves none for a second round"


def test_noise_of_the_second_round_is_not_that_of_the_first(experiment, cast, monkeypatch):
    stage, oracles = cast.labels(cast.synthetic(False), mechanism="Interactive-GNMax"), []
    rounds = {each: {name: experiment.made(parent) for name, parent in each.needs().items()} for each in (stage.first.labels, stage)}
    monkeypatch.setattr(dgd, "Oracle", lambda *given: oracles.append(Oracle(*given)) or oracles[-1])
    for each, parents in rounds.items():
        each.build(parents, experiment.here, None)
    first, second = (oracle.noise[1] for oracle in oracles)
    assert first.shape == second.shape == (6, 10) and not torch.isin(first, second).any()


# F: what may be published of a data-dependent epsilon
def test_a_sanitised_epsilon_has_noise_that_was_chosen_without_the_votes(monkeypatch):
    mechanism, draws, seen, whole = dgd.GNMax(40.0), make_generator(0), [], dgd.sanitised_epsilon
    monkeypatch.setattr(dgd, "sanitised_epsilon", lambda *given: seen.append(whole(*given)) or seen[-1])
    sure, unsure = (dgd.guessed_votes(250, 10, 30, share, draws) for share in (0.95, 0.3))
    found = [dgd.sanitised(votes, mechanism, 1e-5, 0.7, 3) for votes in (sure, unsure)]
    assert [f.keys() for f in found] == [{"epsilon_sanitised", "epsilon_sanitised_std"}] * 2 and min(f["epsilon_sanitised_std"] for f in found) > 0
    plans = [(s.order, s.beta, s.sigma_ss) for s in seen]
    assert len(set(plans)) == 1 and seen[1].public_parameters and seen[3].public_parameters, "order, beta and sigma do not look at the votes"
    truth = [to_epsilon(ORDERS, mechanism.rdp(votes, ORDERS).sum(0), 1e-5, "classic").epsilon for votes in (sure, unsure)]
    assert truth[0] < truth[1] and all(s.epsilon > real + s.cost > real for s, real in zip(seen[1::2], truth)), "publishing costs something itself"
    assert [abs(f["epsilon_sanitised"] - s.epsilon) < 5 * s.std for f, s in zip(found, seen[1::2])] == [True, True]
    monkeypatch.setattr(dgd, "has_smooth_bound", lambda sigma, order, classes: False)
    assert dgd.sanitised(sure, mechanism, 1e-5, 0.7, 3) == {}


def test_guessed_votes_agree_as_often_as_guessed():
    votes = dgd.guessed_votes(250, 10, 400, 0.7, make_generator(0))
    assert votes.shape == (400, 10) and votes.sum(1).eq(250).all()
    assert float(votes.amax(1).double().mean() / 250) == pytest.approx(0.7 + 0.03, abs=4 * math.sqrt(0.2 / 250 / 400))


@pytest.mark.parametrize("name, there", [("LNMax", False), ("GNMax", True), ("Confident-GNMax", True), ("Interactive-GNMax", False), ("plurality", False)])
def test_an_epsilon_is_sanitised_where_that_is_asked_and_possible(experiment, cast, config, name, there):
    stage = cast.labels(cast.synthetic(False), mechanism=name)
    if there:                                                                        # the noise of smoke is too small for the theorem
        kind = dgd.GNMax(30.0) if name == "GNMax" else ConfidentGNMax(3.0, 30.0, 30.0)
        stage = replace(stage, mechanism=kind)
    bought = experiment.made(stage)
    asked, plain = (costs(stage, bought, experiment.here, config.labels.delta, 120, share) for share in (0.7, 0.0))
    assert ("epsilon_sanitised" in asked) == there and "epsilon_sanitised" not in plain
    assert {k: v for k, v in asked.items() if "sanitised" not in k} == plain


def test_the_private_images_of_svhn_have_its_extra_part_where_that_is_asked():
    config = Config.profile("paper", "svhn", seeds="0")
    cast = Cast(config, 0)
    assert cast.private.dataset == "svhn_extra" and cast.test.dataset == "svhn" and Space.of("svhn_extra") == Space.of("svhn") != Space()
    assert Cast(Config.profile("paper", "svhn", seeds="0", extra=False), 0).private.dataset == "svhn"


def test_a_threshold_that_nobody_reaches_leaves_a_student_as_it_began(tmp_path):
    config = Config.profile("smoke", seeds="0", mechanism="Confident-GNMax", threshold=1000.0)
    experiment, stage = Experiment.alone("dgd", config, tmp_path), Cast(config, 0).student("labelled only")
    made, bought = experiment.made(stage), experiment.made(stage.labels)
    assert not bought.answered.any() and state(made) == state(stage.fresh((1, 8), 10))
    assert "label_accuracy" not in costs(stage.labels, bought, experiment.here, 1e-3, 120)


@pytest.mark.parametrize("overrides, said", [
    ({"queries": 100}, "labels.queries=100 are more than generative.images=80"),
    ({"queries_sweep": (4, 90)}, "labels.queries=90 are more"),
    ({"private.network": "perceptron:16"}, "needs batch norms in private.network"),
    ({"private.network": "lenet5", "statistics": 1.0}, "needs batch norms"), ({"private.dp_network": "perceptron:16::norm"}, "DP-SGD cannot train it"),
    ({"generative.kind": "dafl", "generative.widths": (8, 8)}, "expected one width"),
    ({"mechanism": "LNmax"}, "did you mean 'LNMax'"), ({"gamma": 0.0}, "above 0"), ({"delta": 1.0}, "below 1"), ({"student.network": "lenet"}, "lenet"),
    ({"private.extra": True}, "expected 'svhn'"), ({"confidence": 1.5}, "at most 1"), ({"consensus": 1.0}, "below 1"),
    ({"methods": ("DGD", "PATE")}, "PATE"), ({"baseline": "dp"}, "dpsgd"),
])
def test_what_cannot_be_is_refused_in_a_line(overrides, said):
    with pytest.raises(ValueError, match=said) as refusal:
        Config.profile("smoke", **overrides)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("votes, said", [([[4, 2, 0], [3, 2, 0]], "row 1 of votes is .* with the sum 5"), ([[7, -1, 0]], "counts from 0 on"), ([[0, 0, 0]], "the number of teachers")])
def test_votes_that_are_none_are_refused(votes, said):
    with pytest.raises(ValueError, match=said):
        Oracle(torch.tensor(votes), LNMax(0.2))


def test_a_class_that_nobody_votes_for_is_answered_and_paid_like_any_other():
    votes = torch.tensor([[30, 20, 0], [50, 0, 0]])
    oracle = Oracle(votes, LNMax(50.0), ledger=Ledger(ORDERS, LABELS_ONLY))
    assert oracle.ask(torch.arange(2)).tolist() == [0, 0] and oracle.ledger.entries[0].times == 2
    assert all(0 <= x < math.inf for x in oracle.dependent().rdp)


# the rows
def test_every_baseline_and_ablation_has_its_row(config, experiment):
    planned = rows(config, **sizes(experiment))
    assert [r.method for r in planned if r.table == MAIN] == list(METHODS)
    assert {r.table for r in planned} >= {MAIN, *dgd.TABLES.values(), dgd.AUDITS, dgd.ENSEMBLES, dgd.BOUGHT, dgd.IMAGES}
    stages = {r.method: r.stage for r in planned if r.table == MAIN}
    asked = {m: getattr(stages[m], "smooth", Smoothness()) for m in PARTS}
    assert [(s.virtual, s.alpha_1, s.alpha_2, s.alpha_3) for s in asked.values()] == [
        (0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 1, 1, 0), (0, 1, 1, 0.1)]
    for method in (PATE_REAL, NOISE):
        assert type(stages[method]) is Student
    public = stages[PATE_REAL].labels.votes.images.public
    halves = [experiment.read(replace(public, part=part)) for part in ("public", "rest", "test")]
    prints = [{fingerprint(image) for image in part.images} for part in halves]
    assert not prints[0] & prints[1] and prints[0] | prints[1] == prints[2] and len(halves[0]) + len(halves[1]) == len(halves[2])
    assert type(stages[DP]) is type(Cast(config, 0).baseline(True)) and stages[STRICT].labels.strict == stages[DP]


def test_every_row_of_smoke_has_its_numbers(config, experiment):
    frame = dgd.run(experiment).frame()
    assert not frame.value.isna().any()
    main = frame[frame.table == MAIN]
    assert set(main[main.metric == "accuracy"].method) == set(METHODS) - {PATE_REAL} and set(main[main.metric == "accuracy_on_half"].method) == set(METHODS)
    spent = frame[(frame.table == dgd.BOUGHT) & (frame.method == DP)].set_index("metric").value
    assert 0.999 * config.private.dp_epsilon < spent["epsilon_tight"] <= config.private.dp_epsilon < spent["epsilon"] < math.inf
    judged = experiment.judge(dgd.claims(config))
    assert judged.difference.notna().all() and len(judged) == 14
    assert judged.set_index("claim").given["PATE with real images > DGD"] == "PublicImages", "they are the same for every seed"


@pytest.mark.parametrize("profile, dataset", [("demo", ""), *[("real", d) for d in ("mnist", "fashion_mnist", "cifar10")],
                                              *[("paper", d) for d in ("mnist", "fashion_mnist", "cifar10", "svhn")]])
def test_rows_of_every_profile_can_be_planned(profile, dataset):
    config = Config.profile(profile, dataset, seeds="0")
    planned = rows(config, 60_000, 5000, (3, 32) if dataset in ("cifar10", "svhn") else (1, 32))
    assert len({r.stage for r in planned}) > 10 and all(isinstance(r.stage, Stage) for r in planned)


def test_no_number_of_the_paper_itself_is_claimed():
    known = reported("dgd")
    assert known.table.str.startswith(("component:", "DAFL", "context:")).all() and not known.method.str.contains("DGD").any()


# 19: audits catch what is broken
@pytest.mark.parametrize("mechanism", [LNMax(0.05), dgd.GNMax(40.0)])
def test_an_audit_lets_a_mechanism_pass_and_refutes_a_broken_one(mechanism):
    whole, broken = (MechanismAudit(mechanism, 100_000, divisor, 0).build({}, None, None) for divisor in (1.0, 10.0))
    assert whole["epsilon_at_least"] <= whole["epsilon_claimed"] < broken["epsilon_at_least"]


def test_one_run_audits_dp_sgd():
    how = PrivateSteps(1.0, 1e-5, 20, 1000, 1.0, 0.1)
    whole, broken = (dgd.StepsAudit(how, 2000, 1000, divisor, 0).build({}, None, None) for divisor in (1.0, 10.0))
    assert whole["epsilon_at_least"] <= whole["epsilon_claimed"] < broken["epsilon_at_least"]


def test_a_baseline_on_pixels_sees_standardised_images():
    net = OnPixels(nn.Identity(), Space((0.5,), (0.25,)))
    assert net(torch.full((1, 1, 2, 2), 0.75)).unique().tolist() == [1.0]
