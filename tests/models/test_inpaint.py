"""The painter of ICT, its discriminator, its transformer prior, and the reformers of G2D: shapes, counts, and what they may not see."""
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from kdnotes.data.masks import blanked
from kdnotes.models.inpaint import (
    Decoder, GenerativeEncoder, PatchDiscriminator, TransformerPrior, coarse, fit_palette, prior_loss, prior_picture, sampled, to_images, to_tokens,
)
from kdnotes.models.reformers import UNITS, Cascade, Reformer, weighted_layers
from kdnotes.runtime import make_generator


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def small() -> GenerativeEncoder:
    torch.manual_seed(0)
    return GenerativeEncoder(4, (4, 6, 8), 3)


def test_published_sizes():
    with torch.device("meta"):
        encoder, decoder, D, prior = GenerativeEncoder(), Decoder(), PatchDiscriminator(), TransformerPrior()
        assert (count(encoder), count(decoder), count(D), count(prior)) == (10_115_904, 664_963, 2_763_776, 96_276_480)
        assert count(Reformer()) == 12_110_208 and count(Reformer(form="b")) == 12_884_160
        x = torch.rand(1, 6, 256, 256)
        f = encoder(x)
        assert f.shape == (1, 256, 64, 64) and decoder(f).shape == (1, 3, 256, 256) and D(x[:, :3]).shape == (1, 1, 30, 30)
        assert Reformer()(f).shape == (1, 512)
    assert not any("Norm" in type(layer).__name__ for module in (encoder, decoder) for layer in module.modules())
    assert all(layer.bias is None for layer in D.modules() if isinstance(layer, nn.Conv2d))
    assert not any(isinstance(layer, nn.Dropout) for layer in prior.modules())


@pytest.mark.parametrize("form", UNITS)
@pytest.mark.parametrize("depth", [10, 14, 22, 34])
def test_reformers_have_the_layers_that_their_depth_says(form, depth):
    reformer = Reformer(6, 8, 10, depth, form, (4, 4, 6, 8))
    assert weighted_layers(reformer) == depth and reformer(torch.rand(2, 6, 8, 8)).shape == (2, 10)


def test_strides_stop_at_one_pixel():
    for form in UNITS:
        reformer = Reformer(6, 8, 10, 22, form, (4, 4, 6, 8))
        f, sides = reformer.stem(torch.rand(2, 6, 8, 8)), []
        for stage in reformer.stages:
            f = stage(f)
            sides.append(f.shape[-1])
        assert sides == [4, 2, 1, 1]


def test_a_picture_comes_back_in_the_unit_interval(small):
    x = torch.rand(2, 4, 32, 32)
    f = small(x)
    y = Decoder(3, (4, 6, 8))(10 * f)
    assert f.shape == (2, 8, 8, 8) and y.shape == (2, 3, 32, 32) and 0 <= y.min() and y.max() <= 1
    assert small(x, upto=3).equal(f) and not small(x, upto=1).equal(f)


def test_the_last_block_adds_to_its_input_and_nothing_follows(small):
    x = torch.rand(2, 4, 32, 32)
    assert_close(small(x), small(x, 2) + small.blocks[2].branch(small(x, 2)))
    assert (small(x) < 0).any(), "no ReLU after the sum"


def test_neither_descriptor_nor_vector_knows_what_is_under_the_mask(small):
    x, m = torch.rand(3, 3, 32, 32), (torch.rand(3, 1, 32, 32) < 0.3).float()
    reformer = Reformer(8, 8, 10, 10, widths=(4, 4, 6, 8)).eval()
    other = torch.where(m > 0, torch.rand_like(x), x)
    see = lambda x: Cascade(small, reformer)(torch.cat([blanked(x, m), m], 1))
    assert see(x).equal(see(other))


def test_a_frozen_encoder_gets_no_gradient_and_a_free_one_does(small):
    reformer, x = Reformer(8, 8, 10, 10, widths=(4, 4, 6, 8)), torch.rand(2, 4, 32, 32)
    Cascade(small, reformer)(x).sum().backward()
    assert all(p.grad is None for p in small.parameters()) and all(p.grad is not None for p in reformer.parameters())
    Cascade(small, reformer, frozen=False)(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_spectral_norm_holds_the_slope_of_every_convolution():
    torch.manual_seed(0)
    D = PatchDiscriminator(width=4)
    for _ in range(30):
        D(torch.rand(1, 3, 32, 32))
    for layer in D.eval().modules():
        if isinstance(layer, nn.Conv2d):
            assert torch.linalg.svdvals(layer.weight.detach().flatten(1))[0] == pytest.approx(1.0, abs=0.05)


def test_a_palette_is_a_minimum_of_k_means():
    g = make_generator(0)
    centres = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.2, 0.1], [0.2, 0.8, 0.9]])
    x = (centres[torch.randint(3, (4, 8, 8), generator=g)] + 0.01 * torch.randn(4, 8, 8, 3, generator=g)).clamp(0, 1).movedim(3, 1)
    palette = fit_palette(x, 3, generator=make_generator(1))
    if len(to_tokens(x, palette).unique()) == 3:
        assert_close(palette[palette[:, 0].argsort()], centres[[0, 2, 1]], atol=0.01, rtol=0)
    again = to_images(to_tokens(x, palette), palette, 8)
    assert to_images(to_tokens(again, palette), palette, 8).equal(again)
    slow = (x.movedim(1, -1).reshape(4, 64, 1, 3) - palette).square().sum(-1).argmin(-1)
    assert to_tokens(x, palette).equal(slow)


@pytest.fixture
def prior() -> TransformerPrior:
    torch.manual_seed(1)
    return TransformerPrior(side=4, colours=6, width=16, heads=2, depth=2)


def test_the_prior_hears_every_known_token_and_no_unknown_one(prior):
    tokens, unknown = torch.randint(6, (1, 16)), torch.zeros(1, 16, dtype=torch.bool)
    unknown[0, 5] = True
    other = tokens.clone()
    other[0, 5] = (tokens[0, 5] + 1) % 6
    assert prior(tokens, unknown).equal(prior(other, unknown))
    for place in (0, 15):                              # before and behind: attention runs both ways
        other = tokens.clone()
        other[0, place] = (tokens[0, place] + 1) % 6
        assert not torch.allclose(prior(tokens, unknown)[0, 5], prior(other, unknown)[0, 5], atol=1e-9)


def test_the_loss_of_the_prior_counts_unknown_tokens_over_all_or_over_themselves(prior):
    tokens, unknown = torch.randint(6, (3, 16)), torch.rand(3, 16) < 0.25
    uniform = torch.zeros(3, 16, 6)
    assert_close(prior_loss(uniform, tokens, unknown), math.log(6) * unknown.float().mean())
    assert_close(prior_loss(uniform, tokens, unknown, "unknown"), torch.tensor(math.log(6)))
    logits = prior(tokens, unknown).requires_grad_()
    (gradient,) = torch.autograd.grad(prior_loss(logits, tokens, unknown), logits)
    assert not gradient[~unknown].any() and gradient[unknown].any()


def test_sampling_in_raster_order_looks_at_what_was_drawn(prior):
    tokens, unknown = torch.randint(6, (2, 16)), torch.zeros(2, 16, dtype=torch.bool)
    unknown[0, [3, 7]] = unknown[1, [7, 9]] = True
    filled = sampled(prior, tokens, unknown, top_k=1)
    step, left = torch.where(unknown, 0, tokens), unknown.clone()
    for place in (3, 7, 9):
        best = prior(step, left)[:, place].argmax(-1)
        step[:, place] = torch.where(left[:, place], best, step[:, place])
        left[:, place] = False
    assert filled.equal(step) and filled[~unknown].equal(tokens[~unknown])
    one, two = (sampled(prior, tokens, unknown, at_once=True, generator=make_generator(3)) for _ in range(2))
    assert one.equal(two) and one[~unknown].equal(tokens[~unknown])
    assert sampled(prior, torch.where(unknown, 5 - tokens, tokens), unknown, generator=make_generator(3)).equal(
        sampled(prior, tokens, unknown, generator=make_generator(3)))


def test_the_prior_picture_is_made_from_what_is_outside_of_the_mask(prior):
    x, m = torch.rand(2, 3, 16, 16), torch.zeros(2, 1, 16, 16)
    m[:, :, 9:, 3:13] = 1
    palette = torch.rand(6, 3)
    other = torch.where(m > 0, torch.rand_like(x), x)
    a, b = (prior_picture(prior, palette, y, m, generator=make_generator(0)) for y in (x, other))
    assert a.equal(b) and a.shape == x.shape
    small, unknown = coarse(torch.where(m > 0, 1, x), m, 4)
    assert small.shape == (2, 3, 4, 4) and unknown[0, 0].tolist() == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]


def test_the_prior_learns_to_complete():
    torch.manual_seed(0)
    prior = TransformerPrior(side=4, colours=4, width=32, heads=4, depth=2)
    optimizer = torch.optim.AdamW(prior.parameters(), 3e-3, betas=(0.9, 0.95), weight_decay=0)
    for _ in range(60):
        tokens = torch.randint(4, (64, 4)).repeat(1, 4)          # every row of the picture is the same
        unknown = (torch.arange(16) >= 8).expand(64, 16)
        loss = prior_loss(prior(tokens, unknown), tokens, unknown, "unknown")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * math.log(4)


@pytest.mark.parametrize("call, said", [
    (lambda: GenerativeEncoder(4, (4, 8))(torch.rand(1, 4, 32, 32)), "expected three"),
    (lambda: GenerativeEncoder(4, (4, 6, 8), 1)(torch.rand(1, 3, 32, 32)), "4, H, W"),
    (lambda: GenerativeEncoder(4, (4, 6, 8), 1)(torch.rand(1, 4, 30, 30)), "multiples of 4"),
    (lambda: PatchDiscriminator(width=4)(torch.rand(1, 3, 16, 16)), "at least 32"),
    (lambda: TransformerPrior(width=30, heads=8), "give a multiple"),
    (lambda: TransformerPrior(4, 6, 8, 2, 1)(torch.zeros(1, 9, dtype=torch.int64), torch.zeros(1, 9)), "expected whole numbers"),
    (lambda: fit_palette(torch.rand(1, 3, 4, 4), 512), "16 pixels for 512 colours"),
    (lambda: Reformer(depth=18), "depth is 18"),
    (lambda: Reformer(form="c"), "unknown form of reformer"),
    (lambda: Reformer(units=(1, 2)), "one a stage"),
    (lambda: Reformer(6, 8, 4, 10, widths=(4, 4, 6, 8))(torch.rand(1, 5, 8, 8)), "descriptors are"),
])
def test_bad_input_is_told_in_one_line(call, said):
    with pytest.raises((ValueError, TypeError), match=said) as error:
        call()
    assert "\n" not in str(error.value)
