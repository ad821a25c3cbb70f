"""Masks on 112 x 112 faces in batches of 128, against a loop over faces that does the same work with Pillow and NumPy:
least squares for the homography, colours in HSV (of the photograph, before it is shrunk, as MaskTheFace does it for
each face), one bilinear reading, the composition. That colours may be changed after shrinking is what batches gain by,
too.

And the losses of G2D's second stage against a step of its small networks. What is asserted is processor time in one
process with one thread, so that other work on the machine does not decide; faces a second are printed beside it.
"""
import time

import numpy as np
import torch
from PIL import Image

from kdnotes.data.faces import faces
from kdnotes.data.imageset import to_float
from kdnotes.data.masks import Templates, framed, mask_points, put_on
from kdnotes.models.inpaint import GenerativeEncoder
from kdnotes.models.reformers import Cascade, Reformer
from kdnotes.papers.g2d import Losses, coded, relation_terms

BATCH, SIZE = 128, 112


def template() -> Templates:
    """A mask of 256 pixels with soft edges."""
    v, u = torch.meshgrid(torch.linspace(-1, 1, 200), torch.linspace(-1, 1, 256), indexing="ij")
    alpha = (20 * (0.9 - u.abs() ** 3 - v.abs() ** 3)).clamp(0, 1)
    picture = torch.stack([0.4 + 0.2 * (9 * v).sin(), 0.6 + 0.2 * (7 * u).cos(), 0.8 + 0 * u, alpha])
    anchors = torch.tensor([[[6.0, 36], [128, 6], [250, 36], [20, 150], [128, 196], [236, 150]]])
    return Templates(("cloth",), (picture,), anchors)


def system(p, q):
    """Least squares of the homography with a last entry of 1."""
    A, b = [], []
    for (x, y), (u, v) in zip(p, q):
        A += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        b += [u, v]
    return np.append(np.linalg.lstsq(np.array(A), np.array(b), rcond=None)[0], 1.0)


def one_by_one(images, points, picture, anchors, small):
    """The same masks, one face after another."""
    mask, made = Image.fromarray(picture, "RGBA"), []
    value = np.asarray(mask.convert("RGB").convert("HSV"))[..., 2][picture[..., 3] > 127].mean()
    for image, q in zip(images, points):
        face = Image.fromarray(image)
        back = np.linalg.inv(system(anchors, q).reshape(3, 3)).flatten()
        back /= back[8]
        beta = 1 + (np.asarray(face.convert("HSV"))[..., 2].mean() - value) / 255
        hsv = np.asarray(mask.convert("RGB").convert("HSV")).astype(np.float32)
        hsv[..., 2], hsv[..., 1] = np.minimum(255, beta * hsv[..., 2]), np.clip((2 - beta) * hsv[..., 1], 0, 255)
        lit = Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")
        lit.putalpha(mask.getchannel("A"))
        lit = lit.resize(small, Image.Resampling.BILINEAR)
        worn = lit.transform((SIZE, SIZE), Image.Transform.PERSPECTIVE, tuple(back[:8]), Image.Resampling.BILINEAR)
        face.paste(worn, (0, 0), worn)
        made.append(np.asarray(face))
    return np.stack(made)


def seconds(function, clock=time.process_time, repeats=3):
    """The least seconds of `clock` of some calls."""
    found = []
    for _ in range(repeats):
        start = clock()
        function()
        found.append(clock() - start)
    return min(found)


def test_masks(benchmark):
    torch.set_num_threads(1)
    people = faces(BATCH, 1, size=SIZE, seed=0, nuisance=0.5)
    points, templates, which = mask_points(people.landmarks), template(), torch.zeros(BATCH, dtype=torch.int64)
    frame = framed(templates, SIZE)
    arrays = people.images.permute(0, 2, 3, 1).contiguous().numpy()
    picture = (templates.pictures[0].permute(1, 2, 0) * 255).round().byte().numpy()
    anchors = frame.anchors[0].numpy() - 1                    # without the border of the frame
    batched = lambda: put_on(people.images, points, frame, which)
    slow = lambda: one_by_one(arrays, points.numpy(), picture, anchors, (96, 75))
    apart = np.abs(slow().astype(float) / 255 - batched().images.permute(0, 2, 3, 1).numpy()).mean()
    assert apart < 0.02, f"both put the same mask in the same place, not {apart:.3f} apart"
    ours, theirs = seconds(batched), seconds(slow)
    print(f"\n{BATCH / ours:.0f} faces a second of one core, one by one {BATCH / theirs:.0f}: "
          f"{theirs / ours:.1f} times")
    benchmark.extra_info["ratio"] = theirs / ours
    benchmark.pedantic(batched, rounds=1)
    assert theirs > 4 * ours


def test_losses_of_stage_two(benchmark):
    torch.set_num_threads(1)
    x = to_float(faces(BATCH, 1, size=32, seed=0).images)
    m = torch.zeros(BATCH, 1, 32, 32)
    m[:, :, 17:, 4:28] = 1
    encoder, reformer = GenerativeEncoder(4, (24, 48, 72), 3), Reformer(72, 8, 64, 10, widths=(64, 64, 96, 96))
    cascade, t = Cascade(encoder.requires_grad_(False), reformer), torch.randn(BATCH, 64)

    def forward():
        return cascade(coded(x, m))

    def losses():
        s = torch.randn(BATCH, 64).requires_grad_()
        relation_terms(s, t, Losses(), True)["loss"].backward()

    step = seconds(lambda: forward().square().sum().backward())
    share = seconds(losses) / step
    print(f"\nthe losses take {share:.1%} of the networks' {1000 * step:.0f} ms")
    benchmark.extra_info["share"] = share
    benchmark.pedantic(losses, rounds=1)
    assert share < 0.10
