"""The queue of networks in training: who is in it, what a step does, the loss by hand, and a run that is killed."""

import pytest
import torch

from kdnotes.condense.learn import passes_for, settings_for
from kdnotes.condense.matching import Settings, calibration, match, mean_gap
from kdnotes.condense.model_queue import KnowingGap, Member, NetworkQueue, Queueing, advance, command_for, idm_passes, real_batch, train_member
from kdnotes.condense.synthetic import from_real
from kdnotes.models.classifiers import Prediction, build

SHORT = Queueing(most=3, begun=0, every=4, trained=2, steps=2, batch=16, lr=0.1)


def net(**options):
    torch.manual_seed(0)
    return build("convnet2", 10, channels=1, size=8, width=4, **options)


def flat(weights):
    return torch.cat([w.flatten() for w in weights.values()])


def test_networks_join_and_the_oldest_leaves(digits):
    queue, births = NetworkQueue(net(), digits, 1, SHORT), []
    for i in range(17):
        queue(i)
        births.append(len(queue.members))
    assert births == [1] * 4 + [2] * 4 + [3] * 9
    young, old = queue.members[-1], queue.members[0]
    assert young.seen == 0 and young.accuracy == 0 and old.seen > 0 and old.seen % 32 == 0
    assert not any(p.requires_grad for p in queue.net.parameters())


def test_each_iteration_trains_some_and_leaves_the_others(digits):
    queue = NetworkQueue(net(), digits, 1, SHORT)
    queue(8)
    before = [flat(m.weights).clone() for m in queue.members]
    advance(queue)
    assert len(before) == 3 and sum(not flat(m.weights).equal(w) for m, w in zip(queue.members, before)) == 2


def test_a_step_is_sgd_and_the_record_counts_answers(digits):
    x, y = digits.images[:32].float() / 255, digits.labels[:32]
    model, reference = net(), net()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    plan = Queueing(lr=0.2)
    half = train_member(Member(start, 3.0, 10), model, [(x, y)], plan)
    found = train_member(half, net(), [(x, y)], plan)                                # its momentum goes with it
    right, optimizer = 0, torch.optim.SGD(reference.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4)
    for _ in range(2):
        logits = reference(x).logits
        right += (logits.argmax(1) == y).sum().item()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, y).backward()
        optimizer.step()
    torch.testing.assert_close(flat(found.weights), torch.cat([p.detach().flatten() for p in reference.parameters()]))
    assert (found.right, found.seen) == (3 + right, 74) and flat(start).equal(torch.cat([p.detach().flatten() for p in net().parameters()]))


def test_it_shows_a_member_and_its_record_and_never_goes_back(digits):
    queue, again = NetworkQueue(net(), digits, 1, SHORT), NetworkQueue(net(), digits, 1, SHORT)
    for i in (0, 3, 9):
        shown = torch.cat([p.flatten() for p in queue(i).parameters()])
        assert shown.equal(torch.cat([p.flatten() for p in queue(i).parameters()]))               # asked twice, nothing moves
        match_ = [k for k, m in enumerate(queue.members) if flat(m.weights).equal(shown)]
        assert len(match_) == 1 and queue.accuracy == queue.members[match_[0]].accuracy
    again(9)
    assert all(flat(a.weights).equal(flat(b.weights)) for a, b in zip(queue.members, again.members))
    with pytest.raises(ValueError, match="cannot go back to 4"):
        queue(4)


def test_the_loss_by_hand(digits):
    g = torch.Generator().manual_seed(0)
    learned = Prediction(torch.randn(2, 3, 10, generator=g), torch.randn(2, 3, 5, generator=g))
    seen, labels = Prediction(torch.zeros(2, 4, 10), torch.randn(2, 4, 5, generator=g)), torch.tensor([4, 7])
    queue = NetworkQueue(net(), digits, 1, SHORT)
    queue.accuracy = 0.25
    expected = mean_gap(learned, seen, labels) + 0.1 * 25 * calibration(learned, None, labels)
    torch.testing.assert_close(KnowingGap(queue, 0.1)(learned, seen, labels), expected)
    queue.accuracy = 0.0
    torch.testing.assert_close(KnowingGap(queue)(learned, seen, labels), mean_gap(learned, seen, labels))


@pytest.mark.parametrize("killed_at", [5, 10])
def test_a_killed_run_arrives_where_it_would_have_arrived(digits, tmp_path, killed_at):
    plan = Settings(12, lr=0.1, real_batch=8, strategy="color_crop")
    begin = lambda: (from_real(digits, 1, 2), digits, idm_passes(net(), digits, 3, SHORT), plan)
    whole = begin()
    match(*whole)

    def kill(iteration, synthetic):
        if iteration == killed_at:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        match(*begin(), watch=kill, watch_every=1, checkpoint=tmp_path / "run.pt", every=4)
    again = begin()
    match(*again, checkpoint=tmp_path / "run.pt", every=4)
    assert again[0].pixels.equal(whole[0].pixels)
    other = begin()
    with pytest.raises(ValueError, match="is of another training .*loss of pass 0: means and labels, weight 0.5 in the file"):
        match(other[0], digits, idm_passes(net(), digits, 3, SHORT, weight=0.1), plan, checkpoint=tmp_path / "run.pt")


def test_a_queue_begins_with_three_and_counts_anew(digits):
    queue = NetworkQueue(net(), digits, 1, Queueing(most=8, every=30, steps=1, batch=16, recount=6))
    queue(0)
    assert len(queue.members) == 4 and not any(m.seen for m in queue.members)         # three, and the one of iteration 0; nobody has learned yet
    assert len({flat(m.weights).sum().item() for m in queue.members}) == 4
    queue(5)
    assert sum(m.seen for m in queue.members) == 5 * 2 * 16
    queue(6)
    assert sum(m.seen for m in queue.members) == 0
    queue(7)
    assert sum(m.seen for m in queue.members) == 2 * 16


def test_members_see_real_images_as_they_are(digits):
    queue = NetworkQueue(net(), digits, 1, SHORT)
    queue(0)
    x, y = real_batch(queue, 0, 0)
    (mean,), (std,) = queue.normal
    own = {bytes(image.numpy()) for image in digits.images}
    assert all(bytes(image.numpy()) in own for image in ((x * std + mean) * 255).round().byte()) and len(y) == 16


def test_published_numbers_and_bad_input(digits):
    plan = Queueing()
    assert (plan.most, plan.begun, plan.every, plan.trained, plan.steps, plan.momentum, plan.weight_decay) == (100, 3, 30, 2, 10, 0.9, 5e-4)
    said = {(name, ipc): command_for(name, ipc) for name, ipc in (("cifar10", 1), ("cifar10", 10), ("mnist5k", 50), ("cifar100", 10), ("tinyimagenet", 50))}
    assert [each.weight for each in said.values()] == [0.5, 0.5, 0.1, 0.1, 0.8]
    assert [each.plan.every for each in said.values()] == [5, 30, 30, 30, 30] and [each.plan.steps for each in said.values()] == [10, 10, 10, 50, 50]
    assert [each.real_batch for each in said.values()] == [5000, 256, 256, 256, 256] and settings_for("idm", 1, 32, "cifar10").real_batch == 5000
    look = passes_for("idm", digits, net(), 0)[0]
    assert look.networks.plan.every == 5 and look.loss.weight == 0.5 and passes_for("idm", digits, net(), 0, ipc=50)[0].loss.weight == 0.1
    with pytest.raises(ValueError, match="running statistics"):
        NetworkQueue(net(norm_kind="batch"), digits, 0)
    with pytest.raises(ValueError, match="most is 0"):
        Queueing(most=0)
