"""Two processes compute what one does at the same global batch, started by torchrun and by Fabric."""

import os
import subprocess
import sys

import pytest
import torch

SCRIPT = """
import sys
import torch
from torch import nn
from kdnotes.data.images import Batches
from kdnotes.files import cached
from kdnotes.runtime import is_first, make_fabric, make_generator, seed_everything, world_size
from kdnotes.train import fit, gather, one_cycle

folder, devices = sys.argv[1], int(sys.argv[2])
fabric = make_fabric("cpu", devices=devices)
seed_everything(0)
data = {"x": torch.randn(96, 3, 8, 8, generator=make_generator(0, "x")), "y": torch.arange(96) % 4}
noise = lambda batch, generator: batch | {"x": batch["x"] + 0.3 * torch.randn(batch["x"].shape, generator=generator)}
batches = Batches(data, 16, seed=0, transform=noise, rank=fabric.global_rank, world=fabric.world_size)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8), nn.Flatten())
        self.head, self.unused = nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, x):
        features = self.body(x)
        return self.head(features), features

def step(model, batch):
    '''Two forwards, a weight that is never used, and pairs of samples from both processes.'''
    logits, high = model(batch["x"])
    _, low = model(nn.functional.avg_pool2d(batch["x"], 2).repeat_interleave(2, -1).repeat_interleave(2, -2))
    ce = nn.functional.cross_entropy(logits, batch["y"])
    pairs = (torch.cdist(gather(high), gather(high)) - torch.cdist(gather(low), gather(low))).square().mean()
    return {"loss": ce + 0.1 * pairs, "ce": ce, "pairs": pairs}

class Cut(Exception):
    pass

def train(cut=None):
    seed_everything(1)
    model, steps, cuts = Net(), [], [cut]
    def fragile(model, batch):
        steps.append(1)
        if len(steps) in cuts:
            raise Cut
        return step(model, batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    seen = [type(layer) for layer in model.modules()]
    history = fit(model, batches, fragile, optimizer=optimizer, epochs=3, fabric=fabric, schedule=one_cycle(), clip=1.0,
                  checkpoint=f"{folder}/run{world_size()}.pt" if cut else None, every=4)
    assert seen == [type(layer) for layer in model.modules()]
    return {"weights": model.state_dict(), "rows": [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]}

result = cached(["whole", world_size()], train, folder)
try:
    train(cut=12)
except Cut:
    result["resumed"] = train(cut=99)
if is_first():
    torch.save({**result, "world": world_size(), "fabric": fabric.world_size}, f"{folder}/{sys.argv[3]}.pt")
"""


def launch(folder, name: str, devices: int, *prefix: str) -> dict:
    """Run the script and return what it saved."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, *prefix, str(script), str(folder), str(devices), name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(folder / f"{name}.pt", weights_only=True)


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
    (tmp_path / "fabric").mkdir()
    one = launch(tmp_path, "one", 1)
    torchrun = launch(tmp_path, "torchrun", 1, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    fabric = launch(tmp_path / "fabric", "fabric", 2)
    assert [r["world"] for r in (one, torchrun, fabric)] == [r["fabric"] for r in (one, torchrun, fabric)] == [1, 2, 2]
    for two in (torchrun, fabric):
        torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(two["rows"], one["rows"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
        assert two["rows"] == torchrun["rows"], "however they were started"
    assert one["rows"][-1]["loss"] < 0.7 * one["rows"][0]["loss"], "there was something to learn"
    for result in (one, torchrun, fabric):  # interrupted and resumed, to the last bit
        torch.testing.assert_close(result["resumed"]["weights"], result["weights"], rtol=0, atol=0)
        assert result["resumed"]["rows"] == result["rows"]
