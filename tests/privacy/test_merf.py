"""DP-MERF: features of length 1, a kernel in the mean, the sensitivity and what one release costs."""
import math

import pytest
import torch

from kdnotes.privacy.accounting import Ledger, epsilon, gaussian_epsilon
from kdnotes.privacy.merf import EmbeddingGenerator, RandomFeatures, mean_embedding, noisy_embedding

SEED = lambda: torch.Generator().manual_seed(0)


def test_features_have_length_1_and_give_the_gaussian_kernel():
    x = torch.rand(40, 16, generator=SEED()).double()
    phi = RandomFeatures(16, 40_000, scale=2.0)(x)
    assert torch.allclose(phi.norm(dim=1), torch.ones(40).double(), atol=1e-12)
    kernel = (-torch.cdist(x, x).square() / 4).exp()
    assert (phi @ phi.T - kernel).abs().max() < 0.03
    assert RandomFeatures(16, 10, seed=1)(x).equal(RandomFeatures(16, 10, seed=1)(x.reshape(40, 1, 4, 4)))
    assert not list(RandomFeatures(16, 10).parameters())


def test_the_mean_embedding_by_a_loop_and_its_sensitivity():
    phi = torch.nn.functional.normalize(torch.randn(30, 8, generator=SEED()).double(), dim=1)
    y = torch.arange(30) % 3
    slow = torch.zeros(8, 3).double()
    for row, k in zip(phi, y):
        slow[:, k] += row / 30
    assert torch.allclose(mean_embedding(phi, y, 3), slow, atol=1e-15)
    other, z = phi.clone(), y.clone()
    other[4], z[4] = -phi[4], (y[4] + 1) % 3
    assert (mean_embedding(other, z, 3) - slow).norm() <= 2 / 30 + 1e-12
    other[4], z[4] = -phi[4], y[4]
    assert float((mean_embedding(other, z, 3) - slow).norm()) == pytest.approx(2 / 30)      # and it is attained


def test_one_release_with_the_noise_it_says():
    phi = torch.nn.functional.normalize(torch.randn(50, 4000, generator=SEED()), dim=1)
    y = torch.arange(50) % 10
    noisy, release = noisy_embedding(phi, y, 10, 5.0, SEED())
    apart = noisy - mean_embedding(phi, y, 10)
    assert float(apart.std()) == pytest.approx(2 * 5 / 50, rel=0.02)
    ledger = Ledger()
    ledger.spend(release)
    assert ledger.valid and ledger.epsilon(1e-5, conversion="classic") == pytest.approx(0.98, abs=0.005)
    assert ledger.epsilon(1e-5, "gaussian") == pytest.approx(0.7255, abs=1e-4)
    assert epsilon(1.0, 25.0, 1, 1e-5, conversion="classic", orders=range(2, 400)) == pytest.approx(0.193, abs=5e-4)
    assert gaussian_epsilon(1 / 25, 1e-5) == pytest.approx(0.1254, abs=1e-4)
    assert gaussian_epsilon(1 / 0.4999, 1e-5) == pytest.approx(10, abs=2e-3)


def test_the_published_generator_starts_from_15_numbers():
    net = EmbeddingGenerator()
    assert (net.layers[0].in_features, net.layers[0].out_features) == (15, 200)
    assert net.layers[3].out_features == 784 and net(torch.randn(4, 5), torch.arange(4)).shape == (4, 1, 28, 28)


@pytest.mark.parametrize("call, words", [
    (lambda: RandomFeatures(4, 5), "features is 5"),
    (lambda: RandomFeatures(4, 6)(torch.rand(2, 5)), "expected floats, 4 a row"),
    (lambda: noisy_embedding(torch.full((2, 3), 9.0), torch.tensor([0, 1]), 2, 1.0, SEED()), "has length 15.59"),
    (lambda: EmbeddingGenerator(side=10), "side is 10"),
    (lambda: EmbeddingGenerator(side=8)(torch.rand(1, 5), torch.tensor([0])), "a single code"),
    (lambda: noisy_embedding(torch.zeros(2, 3), torch.tensor([0, 1]), 2, math.inf, SEED()), "noise_multiplier"),
])
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(ValueError) as told:
        call()
    assert words in str(told.value) and "\n" not in str(told.value)
