"""Stacked networks: each is what it would be alone, whatever the others see."""
import pytest
import torch
from torch import nn

from kdnotes.models.lenets import LeNet5
from kdnotes.models.stacked import Stacked, StackedPerceptron, StackOfOne, stacked_cross_entropy, stacked_predictions


def lenets(count: int = 3) -> list[nn.Module]:
    torch.manual_seed(0)
    return [LeNet5(3, 1, 16, (2, 3, 4, 5)) for _ in range(count)]


STACKS = {"linear": lambda: StackedPerceptron(3, 256, 3), "perceptrons": lambda: StackedPerceptron(3, 256, 3, (8, 4)), "LeNets": lambda: Stacked(lenets())}


@pytest.mark.parametrize("kind", STACKS)
def test_each_network_answers_as_alone(kind):
    stack, x = STACKS[kind](), torch.rand(5, 1, 16, 16)
    alone = [stack.network(j)(x) for j in range(3)]
    alone = torch.stack([getattr(made, "logits", made) for made in alone])
    own = torch.stack([x, x.flip(0), x])
    assert torch.allclose(stack(x), alone, atol=1e-5)
    assert torch.allclose(stack(own), torch.stack([alone[0], alone[1].flip(0), alone[2]]), atol=1e-5)
    assert stacked_predictions(stack, x, batch_size=2).equal(alone.argmax(2).to(torch.int16))
    assert torch.allclose(StackOfOne(stack.network(2))(x)[0], alone[2], atol=1e-6)


@pytest.mark.parametrize("kind", STACKS)
def test_a_gradient_is_the_one_that_the_network_would_have_alone(kind):
    stack, x, y = STACKS[kind](), torch.rand(3, 6, 1, 16, 16), torch.randint(3, (3, 6))
    weights = torch.rand(3, 6)
    stacked_cross_entropy(stack(x), y, weights).backward()
    for j in range(3):
        one = StackOfOne(stack.network(j).requires_grad_(True))
        stacked_cross_entropy(one(x[j:j + 1]), y[j:j + 1], weights[j:j + 1]).backward()
        own = [p.grad for p in one.parameters()]
        if kind == "LeNets":
            found = [w.grad[j] for w in stack.weights]
        else:
            found = [part for W, b in zip(stack.W, stack.b) for part in (W.grad[j], b.grad[j, 0])]
        for a, b in zip(found, own, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", STACKS)
def test_a_record_moves_one_network_and_leaves_the_others_bit_for_bit(kind):
    x, y = torch.rand(3, 6, 1, 16, 16), torch.randint(3, (3, 6))

    def gradients(change: bool) -> list[torch.Tensor]:
        stack, seen = STACKS[kind](), x.clone()
        seen[1, 2] += float(change)
        stacked_cross_entropy(stack(seen), y).backward()
        return [p.grad for p in stack.parameters()]

    for before, after in zip(gradients(False), gradients(True)):
        moved = (before != after).flatten(1).any(1).tolist()
        assert not moved[0] and not moved[2]
    assert any((a != b)[1].any() for a, b in zip(gradients(False), gradients(True)))


def test_a_network_begins_the_same_whatever_their_number():
    few, many = StackedPerceptron(2, 4, 3, (5,), seed=1), StackedPerceptron(7, 4, 3, (5,), seed=1)
    assert all(a.equal(b[:2]) for a, b in zip(few.parameters(), many.parameters()))
    assert not few.W[0][0].equal(few.W[0][1]) and not few.W[0].equal(StackedPerceptron(2, 4, 3, (5,), seed=2).W[0])


def test_given_networks_stay_as_they_are():
    nets = lenets()
    before = [p.detach().clone() for p in nets[0].parameters()]
    stack = Stacked(nets)
    with torch.no_grad():
        for w in stack.weights:
            w.add_(1)
    stack.network(1)
    assert all(a.equal(b) for a, b in zip(before, nets[0].parameters()))
