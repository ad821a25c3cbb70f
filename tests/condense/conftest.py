"""What several tests of condensation share: digits, and a pool of two experts on them."""

import pytest

from kdnotes.condense.evaluate import Protocol
from kdnotes.condense.experts import train_experts
from kdnotes.data.catalogue import load

NETWORK = {"network": "convnet2", "options": {"width": 8}}


@pytest.fixture(scope="session")
def digits():
    return load("digits", "train")


@pytest.fixture(scope="session")
def small():
    """`network` and `options` of the pool's networks."""
    return NETWORK


@pytest.fixture(scope="session")
def pool(digits, tmp_path_factory):
    root = tmp_path_factory.mktemp("experts")
    made = train_experts(digits, 2, protocol=Protocol(epochs=6, batch_size=64, lr=0.05, strategy="color_crop", cutmix=0.5), root=root, workers=1, **NETWORK)
    assert len(list(root.glob("expert-*.pt"))) == 2
    return made
