"""Device-resident batches against a DataLoader with torchvision's transforms:
crop, mirror and standardise 32x32 colour images, as float32 tensors on the CPU.

What is asserted is the work for one image, in seconds of one core: both run in one process with one thread, and
processor time is what counts, so that other work on the machine does not decide. Printed beside it: elapsed time, with
the loader at its best of 0, 1 and as many worker processes as there are cores, against the one thread of the resident
batches.
"""
import os
import time

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdnotes.data.augment import Augment
from kdnotes.data.batches import Batches
from kdnotes.data.imageset import ImageSet

IMAGES, BATCH, MEAN, STD = 8192, 256, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
labels = np.arange(IMAGES) % 10


class PerImage(Dataset):
    """The usual way, as torchvision's CIFAR10 does it: one Pillow image at a time."""

    def __init__(self):
        self.transform = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
                                             transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self):
        return IMAGES

    def __getitem__(self, i):
        return self.transform(Image.fromarray(pixels[i])), int(labels[i])


def epoch(batches, clock=time.perf_counter):
    """Seconds of `clock` for one pass."""
    start = clock()
    for _ in batches:
        pass
    return clock() - start


def loaders():
    """The reference with each number of workers, started."""
    found = []
    for workers in sorted({0, 1, os.cpu_count() or 1}):
        found.append(DataLoader(PerImage(), BATCH, shuffle=True, drop_last=True, num_workers=workers,
                                persistent_workers=workers > 0))
        epoch(found[-1])
    return found


def test_resident_batches(benchmark):
    torch.set_num_threads(1)
    images = ImageSet(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels),
                      tuple("0123456789"))
    batches = Batches(images, BATCH, transform=Augment(MEAN, STD, padding=4, flip=True))
    reference = loaders()
    best_loader = min(epoch(loader) for _ in range(2) for loader in reference)
    benchmark.pedantic(epoch, args=(batches,), rounds=20, warmup_rounds=2)
    elapsed = best_loader / benchmark.stats.stats.min
    theirs = min(epoch(reference[0], time.process_time) for _ in range(2))
    ours = min(epoch(batches, time.process_time) for _ in range(20))
    ratio = benchmark.extra_info["ratio"] = round(theirs / ours, 1)
    print(f"\n32x32 images, crop + flip + normalise, on the CPU: DataLoader {theirs / IMAGES * 1e6:.0f} us of one "
          f"core an image, resident batches "
          f"{ours / IMAGES * 1e6:.1f} us: {ratio} times less (at least 10 expected); elapsed, against the loader's "
          f"best number of workers: {elapsed:.1f} times faster")
    assert ratio >= 10
