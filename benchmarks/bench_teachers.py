"""Many teachers at once against one after another; tangent steps by kept factors against conjugate gradients."""

import copy
from time import perf_counter

import pytest
import torch
from torch import Tensor, nn

from kdnotes.losses.tangent import (
    Jacobian, conjugate_gradient, tangent_basis, tangent_direction, tangent_perturbation, tangent_step, unit,
)
from kdnotes.models.generators import VAE, FlatVAE
from kdnotes.models.lenets import LeNet5
from kdnotes.models.stacked import Stacked, StackedPerceptron, stacked_cross_entropy, stacked_predictions
from kdnotes.privacy.pate import vote_counts

TEACHERS, IMAGES = 250, 24


def own_images(count: int, size: int, each: int = IMAGES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, each, 1, size, size, generator=generator)
    return x, torch.randint(10, (count, each), generator=generator)


def teach(stack: nn.Module, x: Tensor, y: Tensor, steps: int) -> nn.Module:
    """`steps` of SGD on all images of each network of a stack."""
    optimizer = torch.optim.SGD(stack.parameters(), 0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        stacked_cross_entropy(stack(x), y).backward()
        optimizer.step()
    return stack


def teach_one_by_one(stack: nn.Module, x: Tensor, y: Tensor, steps: int) -> list[nn.Module]:
    """The same networks, one after another, as anybody would write it."""
    found = []
    for j in range(stack.count):
        net = stack.network(j).requires_grad_(True)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        for _ in range(steps):
            optimizer.zero_grad()
            made = net(x[j])
            nn.functional.cross_entropy(getattr(made, "logits", made), y[j]).backward()
            optimizer.step()
        found.append(net)
    return found


def same_networks(stack: nn.Module, nets: list[nn.Module]) -> None:
    """Weights equal to rounding, and votes equal from equal weights."""
    for j, net in enumerate(nets):
        for a, b in zip(stack.network(j).parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


KINDS = {"linear": lambda: StackedPerceptron(TEACHERS, 64),
         "perceptrons of 32": lambda: StackedPerceptron(TEACHERS, 64, 10, (32,))}


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_teachers(benchmark, kind):
    (x, y), steps, seconds, nets = own_images(TEACHERS, 8), 20, [], []

    def loop():                                             # before every round, so that both see the same machine
        fresh, start = KINDS[kind](), perf_counter()
        nets[:] = teach_one_by_one(fresh, x, y, steps)
        seconds.append(perf_counter() - start)
        return (KINDS[kind](), x, y, steps), {}

    stack = benchmark.pedantic(teach, setup=loop, rounds=3, warmup_rounds=1)
    same_networks(stack, nets)
    queries, equal = torch.rand(200, 1, 8, 8), [stack.network(j) for j in range(TEACHERS)]
    with torch.no_grad():
        alone = torch.stack([net(queries).argmax(1) for net in equal])
    assert vote_counts(stacked_predictions(stack, queries).long(), 10).equal(vote_counts(alone, 10))
    benchmark.extra_info["ratio"] = ratio = min(seconds) / benchmark.stats["min"]
    print(f"\n{TEACHERS} teachers, {kind}, {steps} steps: a loop {min(seconds):.2f} s, stacked "
          f"{benchmark.stats['min']:.3f} s: {ratio:.1f}x (at least 10x)")
    assert ratio >= 10


def test_stacked_lenets(benchmark):
    """Measured, and the faster way chosen: on a CPU the arithmetic and not the calls takes the time (`together`)."""
    count, steps, seconds, nets = 25, 2, [], []
    x, y = own_images(count, 32, 32)

    def fresh() -> Stacked:
        torch.manual_seed(0)
        return Stacked([LeNet5() for _ in range(count)])

    def loop():
        stack, start = fresh(), perf_counter()
        nets[:] = teach_one_by_one(stack, x, y, steps)
        seconds.append(perf_counter() - start)
        return (fresh(), x, y, steps), {}

    stack = benchmark.pedantic(teach, setup=loop, rounds=2, warmup_rounds=1)
    same_networks(stack, nets)
    benchmark.extra_info["ratio"] = ratio = min(seconds) / benchmark.stats["min"]
    faster = "stacked" if ratio > 1 else "a loop"
    there = ratio_on_gpu() if torch.cuda.is_available() else None
    on_gpu = f"; on {torch.cuda.get_device_name()} {there:.1f}x (at least 4x)" if there else ""
    print(f"\n{count} LeNet-5, {steps} steps of 32 images on a CPU: a loop {min(seconds):.2f} s, stacked "
          f"{benchmark.stats['min']:.2f} s: {ratio:.2f}x, {faster} is faster{on_gpu}")
    assert there is None or there >= 4


def ratio_on_gpu(count: int = 250, steps: int = 10) -> float:
    """How much faster 250 stacked LeNet-5 learn than one after another on a GPU."""
    x, y = (part.cuda() for part in own_images(count, 32, 32))
    seconds = []
    for learn in (teach_one_by_one, teach):
        for run in (1, steps):                              # the first loads what any step needs
            torch.manual_seed(0)
            stack = Stacked([LeNet5() for _ in range(count)]).cuda()
            torch.cuda.synchronize()
            start = perf_counter()
            learn(stack, x, y, run)
            torch.cuda.synchronize()
            took = perf_counter() - start
        seconds.append(took)
    return seconds[0] / seconds[1]


def test_the_student_s_tangent_step_with_kept_bases(benchmark):
    """The published step solves for each direction by four conjugate gradients, each with two passes of the decoder."""
    torch.manual_seed(0)
    vae = VAE(1, 32, 32, (16, 32, 64)).eval().requires_grad_(False)     # networks as of the profile `real`
    student = LeNet5(widths=LeNet5.half)
    z, seconds = torch.randn(128, 32), []
    x = vae.decode(z)
    basis, start = tangent_basis(vae.decoder, z), torch.randn(128, 32)

    def four_steps():                                       # before every round, so that both see the same machine
        begin = perf_counter()
        eta = tangent_direction(student, vae.decoder, x, z, cg_steps=4, start=start)
        tangent_step(vae.decoder, z, eta, 1.5)
        seconds.append(perf_counter() - begin)

    four_steps()
    kept = lambda: tangent_perturbation(student, x, basis, 1.5, start=start)
    benchmark.pedantic(kept, setup=four_steps, rounds=10, warmup_rounds=1)
    benchmark.extra_info["ratio"] = ratio = min(seconds) / benchmark.stats["min"]
    worst = worst_angle(z)
    print(f"\nTangent step of 128 images, d = 32: four conjugate gradients {1e3 * min(seconds):.1f} ms, kept factors "
          f"{1e3 * benchmark.stats['min']:.1f} ms: {ratio:.1f}x (at least 2.5x); directions differ from converged ones "
          f"by {worst:.1e} (at most 1e-4)")
    assert ratio >= 2.5 and worst < 1e-4


def worst_angle(z: Tensor) -> float:
    """The largest distance of unit directions by float32 factors from those of conjugate gradients in float64.

    The decoder is smooth: at a kink, float32 and float64 may stand on two sides. The student is linear with two
    classes: its direction depends neither on where the search begins nor on xi.
    """
    torch.manual_seed(1)
    generator, vae = torch.Generator().manual_seed(1), FlatVAE(1, 32, z.shape[1], (256, 128)).requires_grad_(False)
    x = vae.decode(z)
    w, start = torch.randn(1024, 2, generator=generator) / 50, torch.randn(z.shape, generator=generator)
    student = lambda x: x.flatten(1) @ w.to(x)
    found = tangent_perturbation(student, x, tangent_basis(vae.decoder, z), 1.0, xi=1.0, steps=2, start=start)
    kept = unit(found).flatten(1).double()
    wide, code = copy.deepcopy(vae.decoder).double(), z.double()
    J = Jacobian(wide, code)
    v = J.pull((w[:, 0] - w[:, 1]).double().view(1, 1, 32, 32).expand(len(z), -1, -1, -1))
    eta = conjugate_gradient(lambda u: J.pull(J.push(u)), v, 400)
    converged = unit(J.push(eta)).flatten(1)
    sign = (kept * converged).sum(1, keepdim=True).sign()
    return float((kept - sign * converged).norm(dim=1).max())
