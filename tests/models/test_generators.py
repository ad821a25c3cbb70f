"""DAFL's generator and TNAR's autoencoder: published sizes, the odd epsilon, and the terms of the ELBO by value."""
import math

import pytest
import torch
from torch import nn

from kdnotes.models.generators import VAE, DAFLGenerator, gaussian_kl, pixel_cross_entropy, vae_loss


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_sizes_and_the_accidental_epsilon():
    with torch.device("meta"):
        assert (count(DAFLGenerator()), count(DAFLGenerator(1000, 3))) == (1_049_985, 8_423_939)
        vae = VAE()
        assert vae(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    norms = [layer for layer in DAFLGenerator().modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [layer.eps for layer in norms] == [1e-5, 0.8, 0.8, 1e-5] and not norms[-1].affine
    assert all(layer.eps == 1e-6 and layer.momentum == 0.01 for layer in vae.modules() if isinstance(layer, nn.BatchNorm2d))
    assert all(layer.bias is None for layer in vae.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d))


@pytest.mark.parametrize("channels, size", [(1, 32), (3, 8)])
def test_a_batch_of_generated_images_is_standardised(channels, size):
    x = DAFLGenerator(7, channels, size, 8)(torch.randn(32, 7))
    assert x.shape == (32, channels, size, size)
    assert x.mean((0, 2, 3)).abs().max() < 1e-4 and (x.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-2


def test_terms_of_the_elbo():
    assert gaussian_kl(torch.ones(2, 5), torch.zeros(2, 5)).tolist() == [2.5, 2.5] and not gaussian_kl(torch.zeros(2, 5), torch.zeros(2, 5)).any()
    half = torch.full((3, 1, 8, 8), 0.5, dtype=torch.float64)
    assert float(pixel_cross_entropy(torch.rand_like(half), half)[0]) == pytest.approx(44.3614, abs=1e-4)
    mu, log_var = torch.tensor([[0.5, -1.0]], dtype=torch.float64), torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    z = mu + (log_var / 2).exp() * torch.randn(400_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_q = -((z - mu) ** 2 / log_var.exp() + log_var + math.log(2 * math.pi)).sum(1) / 2
    log_p = -(z**2 + math.log(2 * math.pi)).sum(1) / 2
    assert float((log_q - log_p).mean()) == pytest.approx(float(gaussian_kl(mu, log_var)), abs=5e-3)
    assert float(vae_loss(half[:1], half[:1], mu, log_var, 0.5)) == pytest.approx(64 * math.log(2) + float(gaussian_kl(mu, log_var)) / 2, rel=1e-6)


@pytest.mark.parametrize("call, said", [
    (lambda: DAFLGenerator(size=30), "multiple of 4"), (lambda: VAE(1, 28, 4, (8, 8, 8)), "multiple of 8"), (lambda: VAE(widths=()), "no widths"),
    (lambda: VAE(1, 8, 4, (4,))(torch.rand(2, 1, 16, 16)), "8 numbers"), (lambda: DAFLGenerator(5, 1, 8, 4)(torch.rand(2, 4)), "5 numbers"),
])
def test_bad_input_is_told_in_one_line(call, said):
    with pytest.raises((ValueError, TypeError), match=said) as error:
        call()
    assert "\n" not in str(error.value)
