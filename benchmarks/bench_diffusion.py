"""Sampling: 1,000 digits of 8 x 8 pixels in 25 DDIM steps, by the small perceptron, under 2 s."""

import torch

from kdnotes.models.diffusion import DenoisingMLP, Diffusion, sampled


def test_time_of_a_thousand_digits(benchmark):
    g = torch.Generator().manual_seed(0)
    network, diffusion = DenoisingMLP(null=False), Diffusion(500)
    noise, y = torch.randn(1000, 1, 8, 8, generator=g), torch.arange(1000) % 10
    made = sampled(network, diffusion, noise, y, steps=25)                        # warms up, and is what it should be
    assert made.shape == noise.shape and made.isfinite().all()
    benchmark.pedantic(lambda: sampled(network, diffusion, noise, y, steps=25), rounds=3)
    best = benchmark.stats["min"]
    print(f"\n1,000 digits in 25 DDIM steps: {best:.2f} s (under 2 s)")
    assert best < 2
