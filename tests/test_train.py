"""kdnotes.train: the loop against a plain one, schedules against PyTorch's, the guard, exact resume, prediction."""

import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from kdnotes.checks import refused
from kdnotes.data.batches import Batches, PictureBatches
from kdnotes.data.pictures import ClassFolder
from kdnotes.runtime import fingerprint, make_fabric, make_generator, seed_everything
from kdnotes.train import Average, History, Loop, SharedBatchNorm, batches_plan, constant, cosine, fit, multistep, one_cycle, predict

FABRIC = make_fabric("cpu", "fp32")


def net() -> nn.Module:
    """A network with everything that has a state: normalisation, dropout, weights."""
    seed_everything(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * 16, 3))


def noisy(batch: dict, generator: torch.Generator) -> dict:
    return batch | {"x": batch["x"] + 0.1 * torch.randn(batch["x"].shape, generator=generator)}


def digits(n: int = 40) -> dict[str, Tensor]:
    return {"x": torch.randn(n, 1, 6, 6, generator=make_generator(0, "x")), "y": torch.arange(n) % 3}


def batches(**options) -> Batches:
    return Batches(digits(), batch_size=8, seed=1, transform=noisy, **options)


def step(model: nn.Module, batch: dict) -> dict[str, Tensor]:
    logits = model(batch["x"])
    ce, size = F.cross_entropy(logits, batch["y"]), logits.square().mean()
    return {"loss": ce + 0.01 * size, "ce": ce, "size": size}


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)


def train(model: nn.Module | None = None, step=step, optimizer=adam, epochs: int = 3, data=None, **options) -> tuple[nn.Module, History]:
    model = net() if model is None else model
    history = fit(model, batches() if data is None else data, step, optimizer=optimizer(model), epochs=epochs, fabric=FABRIC, **options)
    return model, history


def same(a: nn.Module, b: nn.Module) -> bool:
    return fingerprint(a.state_dict()) == fingerprint(b.state_dict())


def without_seconds(history: History) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]


# Schedules


def rates(scheduler, total: int) -> list[float]:
    """What a scheduler of PyTorch's does to a learning rate of 1, step by step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    scheduler, seen = scheduler(optimizer), []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=25)
@given(total=st.integers(4, 60), pct=st.floats(0.1, 0.9), div=st.floats(2, 50))
def test_schedules_are_those_of_pytorch(total, pct, div):
    lr = torch.optim.lr_scheduler
    torchs_cycle = lambda o: lr.OneCycleLR(o, max_lr=1.0, total_steps=total, pct_start=pct, div_factor=div, final_div_factor=1e3)
    if pct * total > 1.5:  # below, PyTorch's rise has no length
        ours = [one_cycle(pct, div, 1e3)(s, total) for s in range(total)]
        assert ours == pytest.approx(rates(torchs_cycle, total), abs=1e-9)
    assert [cosine()(s, total) for s in range(total)] == pytest.approx(rates(lambda o: lr.CosineAnnealingLR(o, total), total), abs=1e-9)
    milestones = [round(total * pct / 2), round(total * pct)]
    ours = [multistep(milestones, 0.3, of=total)(s, total) for s in range(total)]
    assert ours == pytest.approx(rates(lambda o: lr.MultiStepLR(o, milestones, gamma=0.3), total), abs=1e-9)
    warm = [cosine(warmup=0.5)(s, 2 * total) for s in range(2 * total)]
    assert warm[total:] == pytest.approx([cosine()(s, total) for s in range(total)])
    assert warm[:total] == pytest.approx([(s + 1) / (total + 1) for s in range(total)])
    assert {constant()(s, total) for s in range(total)} == {1.0}


def test_schedules_in_epochs_and_their_limits():
    schedule = multistep([150, 180, 210], 0.1, of=240)
    assert [schedule(epoch * 7, 240 * 7) for epoch in (0, 149, 150, 180, 210, 239)] == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.001])
    assert [schedule(150 * 7 - 1, 240 * 7), multistep([0.1])(3, 30), multistep([0.1])(2, 30)] == pytest.approx([1, 0.1, 1])
    assert all(0 < one_cycle()(s, total) <= 1 for total in (1, 2, 3) for s in range(total))
    for wrong in (lambda: multistep(["ab"]), lambda: multistep([0.5], gamma=-1), lambda: multistep([1], of=0), lambda: cosine("long"),
                  lambda: one_cycle(div_factor=0), lambda: one_cycle(div_factor=-25), lambda: one_cycle(final_div_factor=0)):
        assert "expected" in refused(wrong)
    for wrong in (lambda: multistep([30, 60]), lambda: cosine(warmup=5), lambda: one_cycle(pct_start=-0.1)):
        with pytest.raises(ValueError, match="give a fraction of the training"):
            wrong()


def test_what_makes_no_training_is_refused_in_a_line():
    pairs = DataLoader(TensorDataset(torch.rand(12, 64), torch.arange(12) % 10), 4)
    plain = lambda model, batch: {"loss": F.cross_entropy(model(batch[0]), batch[1])}

    def call(model=None, batches=pairs, step=plain, optimizer=sgd, **options):
        model = nn.Linear(64, 10) if model is None else model
        made = optimizer(model) if optimizer is sgd else optimizer
        return fit(model, batches, step, optimizer=made, fabric=FABRIC, **{"epochs": 1} | options)

    assert len(call().rows) == 1
    for wrong, words in (({"batches": (batch for batch in pairs)}, "DataLoader, Batches or a list"), ({"batches": 3}, "a int without a length"),
                         ({"optimizer": torch.optim.SGD}, "expected one that was made"), ({"optimizer": "adam"}, "'adam'"), ({"step": "loss"}, "step is a str"),
                         ({"schedule": "cosine"}, "such as cosine()"), ({"epochs": 1.5}, "epochs is a float"), ({"clip": "a"}, "clip is a str"),
                         ({"step": lambda model, batch: {"loss": torch.tensor(1.0)}}, "depends on no weight that is trained")):
        assert words in refused(call, **wrong), wrong


def test_history():
    history = History([{"epoch": 1, "loss": 2.0, "accuracy": 0.5}, {"epoch": 2, "loss": 1.0}])
    assert history.last("loss") == 1.0 and history.last("accuracy") == 0.5 and list(history.frame()["epoch"]) == [1, 2]
    with pytest.raises(ValueError, match="history has no 'lost'; it has epoch, loss"):
        history.last("lost")
    with pytest.raises(ValueError, match="no rows"):
        History().last("loss")


# The loop


@pytest.mark.parametrize("clip", [None, 0.5])
def test_fit_is_the_plain_loop_bit_for_bit(clip):
    ours, history = train(optimizer=sgd, schedule=cosine(0.2), clip=clip, callbacks=[lambda model, epoch: {"twice": torch.tensor(2 * epoch)}])
    plain, data, seen = net(), batches(), []
    optimizer = sgd(plain)
    for epoch in range(3):
        data.set_epoch(epoch)
        for batch in data:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * cosine(0.2)(len(seen), 15)
            optimizer.zero_grad()
            terms = step(plain, batch)
            terms["loss"].backward()
            if clip:
                nn.utils.clip_grad_norm_(plain.parameters(), clip)
            optimizer.step()
            seen.append([group["lr"], *(term.item() for term in terms.values())])
    assert same(ours, plain)
    frame, seen = history.frame(), torch.tensor(seen, dtype=torch.float64).view(3, 5, 4)
    assert list(frame.columns) == ["epoch", "lr", "loss", "ce", "size", "twice", "seconds"]
    assert list(frame["epoch"]) == [1, 2, 3] and list(frame["twice"]) == [2, 4, 6] and (frame["seconds"] > 0).all()
    torch.testing.assert_close(torch.tensor(frame[["loss", "ce", "size"]].values), seen[..., 1:].mean(1), rtol=1e-12, atol=0)
    assert list(frame["lr"]) == pytest.approx(seen[:, -1, 0].tolist())


def test_what_is_lent_comes_back():
    model, norm = net(), nn.BatchNorm2d
    optimizer = sgd(model)
    fit(model, batches(), step, optimizer=optimizer, epochs=1, fabric=FABRIC, schedule=one_cycle())
    assert not model.training and optimizer.param_groups[0]["lr"] == 0.1 and all(p.grad is None for p in model.parameters())
    assert type(model[1]) is norm and type(model) is nn.Sequential and model(digits()["x"]).shape == (40, 3)
    fit(model, batches(), step, optimizer=optimizer, epochs=1, fabric=FABRIC, schedule=one_cycle())  # a second stage
    assert fit(model, batches(), step, optimizer=optimizer, epochs=0, fabric=FABRIC).rows == []


def test_it_learns_in_mixed_precision_and_from_a_loader():
    dtypes = set()

    def mixed(model, batch):
        x, y = batch
        logits = model(x)
        dtypes.add((logits.dtype, x.dtype))
        return {"loss": F.cross_entropy(logits, y)}

    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    model[1].register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    loader = DataLoader(TensorDataset(digits()["x"], digits()["y"]), batch_size=8, shuffle=True)
    history = fit(model, loader, mixed, optimizer=adam(model), epochs=20, fabric=make_fabric("cpu", "bf16"))
    assert history.last("loss") < 0.7 * history.rows[0]["loss"]
    assert dtypes == {torch.bfloat16, (torch.float32, torch.float32)}, "computed in 16 bits, judged in 32"


# The guard


@pytest.mark.parametrize("poison, message", [
    ({"size": math.nan}, "'size' is nan at epoch 2, step 4; lower"),
    ({"ce": math.inf}, "'ce' is inf at epoch 2, step 4; lower"),
    ({"ce": -math.inf, "size": math.nan}, "'ce' is -inf and 'size' is nan at epoch 2, step 4; lower"),
    ({"loss": math.nan}, "'loss' is nan at epoch 2, step 4; lower"),
])
@pytest.mark.parametrize("every", [None, 4])
def test_the_guard_names_term_epoch_and_step(poison, message, every, tmp_path):
    steps = []

    def poisoned(model, batch):
        terms = step(model, batch)
        steps.append(1)
        if len(steps) == 5 + 4:
            terms = {name: term + poison.get(name, 0) for name, term in terms.items()}
            terms["loss"] = terms["loss"] + sum(poison.values())
        return terms

    with pytest.raises(FloatingPointError) as caught:
        train(step=poisoned, checkpoint=tmp_path / "run.pt", every=every)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    assert saved["done"] in (5, 8) and all(w.isfinite().all() for w in saved["parts"]["model"].values()), "the good checkpoint is still there"


def test_the_guard_finds_a_step_among_many():
    data = Batches(digits(400), batch_size=4, seed=0)
    with pytest.raises(FloatingPointError, match="'loss' is nan at epoch 1, step 71;"):
        train(net(), lambda m, b, n=iter(range(1, 200)): {"loss": m(b["x"]).mean() * (math.nan if next(n) >= 71 else 1)}, data=data)


@pytest.mark.parametrize("returned, message", [
    (lambda loss: {"ce": loss}, r"step returned \['ce'\]; return a dict with 'loss'"),
    (lambda loss: loss, "step returned Tensor; return a dict with 'loss'"),
    (lambda loss: {"loss": loss.expand(3)}, r"step returned 'loss' as shape \(3,\); return every term as a scalar tensor"),
    (lambda loss: {"loss": loss, "kd": 1.0}, "step returned 'kd' as float; return every term as a scalar tensor"),
])
def test_a_step_that_returns_something_else(returned, message):
    with pytest.raises(ValueError, match=message):
        train(step=lambda model, batch: returned(step(model, batch)["loss"]))


def test_bad_arguments_are_refused_before_training(tmp_path):
    class Short(list):
        __len__ = lambda self: 3

    names = iter(["a", "b"])
    stranger = lambda model: torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(2))], lr=0.1)
    for options, message in [
        ({"epochs": -1}, "-1 epochs of 5 batches; give at least 0"),
        ({"data": []}, "3 epochs of 0 batches; .*is batch_size larger than the set"),
        ({"clip": 0}, "clip=0; give a positive number"),
        ({"every": 0}, "every=0; give a positive number"),
        ({"extra": {"model": nn.Linear(1, 1)}}, r"extra=\['model'\] are names of the training itself"),
        ({"optimizer": stranger}, "the optimizer trains 1 parameters that belong neither to the model nor to a module in extra"),
        ({"data": Short([{"x": torch.zeros(2, 1, 6, 6), "y": torch.zeros(2).long()}])}, r"batches ended after 1 of 3; their len\(\)"),
        ({"step": lambda m, b: {"loss": step(m, b)["loss"], next(names): torch.ones(())}}, r"step returned \['loss', 'b'\] after \['loss', 'a'\]"),
        ({"checkpoint": Path(__file__) / "below.pt"}, "cannot write to folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(**options)


# Exact resume


class Cut(Exception):
    """The power is gone."""


def interrupted(path: Path, cuts: set[int], every: int | None, **options) -> tuple[nn.Module, History, int]:
    """A training that loses its power at those steps (counted over all attempts), and is called again until it ends."""
    taken, cuts = [], sorted(cuts)  # in lists, which are not taken for settings of the step

    def fragile(model, batch):
        taken.append(1)
        if len(taken) in cuts:
            raise Cut
        return step(model, batch)

    while True:
        try:
            model, history = train(step=fragile, checkpoint=path, every=every, **options)
            return model, history, len(taken)
        except Cut:
            seed_everything(99)  # a new process has other random numbers


@settings(max_examples=12)
@given(cuts=st.sets(st.integers(1, 25), min_size=1, max_size=3), every=st.sampled_from([None, 1, 2, 3]), loader=st.booleans())
def test_an_interrupted_training_ends_bit_identical(tmp_path_factory, cuts, every, loader):
    def data():
        if not loader:
            return batches()
        pairs = [{"x": x, "y": y} for x, y in zip(digits()["x"], digits()["y"])]
        return DataLoader(pairs, batch_size=8, shuffle=True)  # draws its order from the global generator

    path = tmp_path_factory.mktemp("resume") / "run.pt"
    whole, expected = train(data=data(), schedule=one_cycle(), clip=1.0)
    model, history, taken = interrupted(path, cuts, every, data=data(), schedule=one_cycle(), clip=1.0)
    assert same(model, whole) and without_seconds(history) == without_seconds(expected)
    again, history, _ = interrupted(path, {1}, every, data=data(), schedule=one_cycle(), clip=1.0)
    assert same(again, whole) and without_seconds(history) == without_seconds(expected), "a finished training is loaded, not repeated"
    assert every != 1 or taken <= 15 + 2 * len(cuts), "at most the cut step and the unsaved one before it are repeated"


def test_what_is_in_extra_resumes_too(tmp_path):
    def attempt(path, cut):
        torch.manual_seed(0)
        model, head, generator = nn.Sequential(nn.Flatten(), nn.Linear(36, 8)), nn.Linear(8, 3), torch.Generator().manual_seed(5)
        steps, cuts = [], [cut]

        def headed(model, batch):
            steps.append(1)
            if len(steps) in cuts:
                raise Cut
            noise = torch.rand(len(batch["y"]), 8, generator=generator)
            return {"loss": F.cross_entropy(head(model(batch["x"]) + noise), batch["y"])}

        optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=0.01)
        fit(model, batches(), headed, optimizer=optimizer, epochs=2, fabric=FABRIC, checkpoint=path, every=2, extra={"head": head, "noise": generator})
        return fingerprint(model.state_dict(), head.state_dict(), generator.get_state())

    whole = attempt(tmp_path / "whole.pt", None)
    with pytest.raises(Cut):
        attempt(tmp_path / "cut.pt", 9)
    assert attempt(tmp_path / "cut.pt", None) == whole
    assert attempt(tmp_path / "cut.pt", 1) == whole, "a finished one restores them as well"


def test_a_checkpoint_of_another_training_is_refused_and_kept(tmp_path):
    path = tmp_path / "run.pt"
    train(checkpoint=path)
    content = path.read_bytes()
    wide = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    for options, difference in [
        ({"epochs": 4}, "epochs: 3 in the file, 4 asked"),
        ({"data": Batches(digits(80), 8, seed=1, transform=noisy)}, "steps per epoch: 5 in the file, 10 asked; .*data: print"),
        ({"optimizer": sgd}, "optimizer: AdamW in the file, SGD asked; optimizer lr: 0.01 in the file, 0.1 asked"),
        ({"model": wide}, "model: Sequential of 9 tensors, .* in the file, Sequential of 2 tensors"),
        *others(),
    ]:
        with pytest.raises(ValueError, match=f"checkpoint {path} is of another training .*{difference}.*; remove it or name another") as caught:
            train(checkpoint=path, **options)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == content
    train(checkpoint=path, desc="another name", every=3, callbacks=[lambda model, epoch: {"twice": 2 * epoch}])  # no settings


def others() -> list[tuple[dict, str]]:
    """Trainings that differ from the plain one in one thing each, and the words for it."""
    rate = lambda **options: lambda model: torch.optim.AdamW(model.parameters(), **{"lr": 0.01} | options)
    changed = digits()
    changed["x"][7, 0, 1, 1] += 1e-3
    same_data = lambda **options: Batches(options.pop("given", digits()), **{"batch_size": 8, "seed": 1, "transform": noisy} | options)

    def softer(model: nn.Module, batch: dict) -> dict[str, Tensor]:
        logits = model(batch["x"])
        ce, size = F.cross_entropy(logits, batch["y"], label_smoothing=0.1), logits.square().mean()
        return {"loss": ce + 0.01 * size, "ce": ce, "size": size}

    dropped = net()
    dropped[4].p = 0.4
    return [
        ({"optimizer": rate(lr=1.0)}, r"\(optimizer lr: 0.01 in the file, 1.0 asked\)"),
        ({"optimizer": rate(weight_decay=0.3)}, r"\(optimizer weight_decay: 0.01 in the file, 0.3 asked\)"),
        ({"optimizer": rate(betas=(0.5, 0.9))}, r"\(optimizer betas: \(0.9, 0.999\) in the file, \(0.5, 0.9\) asked\)"),
        ({"clip": 1.0}, r"\(clip: None in the file, 1.0 asked\)"),
        ({"schedule": cosine(0.1)}, r"schedule: constant\(\) in the file, cosine\(warmup=0.1\) asked"),
        ({"data": same_data(given=changed)}, r"\(data: print \w+ in the file, print \w+ asked\)"),
        ({"data": same_data(seed=2)}, r"\(order seed: 1 in the file, 2 asked\)"),
        ({"data": same_data(transform=None)}, r"transform: noisy in the file, None asked"),
        ({"data": same_data(shuffle=False)}, r"\(shuffle: True in the file, False asked\)"),
        ({"step": softer}, "code of .*softer"),
        ({"model": dropped}, r"\(model: Sequential of 9 tensors, print \w+ in the file"),
        ({"extra": {"more": nn.Linear(1, 1)}}, r"\(more: nothing in the file, Linear of 2 tensors"),
        ({"plan": {"warm": 3}}, r"\(warm: nothing in the file, 3 asked\)"),
    ]


def test_a_value_or_a_teacher_bound_to_the_step_belongs_to_the_plan(tmp_path):
    torch.manual_seed(3)
    teachers = [nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).requires_grad_(False) for _ in range(2)]

    def distil(teacher: nn.Module, temperature: float):
        def step(model, batch):
            logits, target = model(batch["x"]) / temperature, teacher(batch["x"]) / temperature
            return {"loss": F.kl_div(logits.log_softmax(1), target.softmax(1), reduction="batchmean")}

        return step

    path = tmp_path / "run.pt"
    whole, _ = train(step=distil(teachers[0], 4.0), checkpoint=path)
    for other in (distil(teachers[1], 4.0), distil(teachers[0], 2.0)):
        with pytest.raises(ValueError, match="code of .*distil.<locals>.step"):
            train(step=other, checkpoint=path)
    again, _ = train(step=distil(teachers[0], 4.0), checkpoint=path)
    assert same(again, whole)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_an_interrupted_training_is_not_continued_with_another_momentum(momentum, tmp_path):
    path = tmp_path / "run.pt"

    taken = []

    def fragile(model, batch):
        taken.append(1)
        if len(taken) == 9:
            raise Cut
        return step(model, batch)

    with pytest.raises(Cut):
        train(step=fragile, optimizer=sgd, checkpoint=path, every=2)
    other = lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, weight_decay=1e-3)
    with pytest.raises(ValueError, match=f"optimizer momentum: 0.9 in the file, {momentum} asked; optimizer nesterov: True"):
        train(step=fragile, optimizer=other, checkpoint=path)


def test_batches_of_every_kind_are_told_apart(tmp_path):
    x, y = digits()["x"], digits()["y"]
    pairs = lambda n=8, data=x, **options: DataLoader(TensorDataset(data, y), batch_size=n, **{"shuffle": True} | options)
    step_of_pairs = lambda model, batch: {"loss": F.cross_entropy(model(batch[0]), batch[1])}
    path = tmp_path / "run.pt"
    train(step=step_of_pairs, data=pairs(), checkpoint=path)
    for other, difference in [(pairs(data=x + 1), "data: print"), (pairs(shuffle=False), "sampler: RandomSampler"),
                              (pairs(drop_last=True), "drop last: False in the file, True asked")]:
        with pytest.raises(ValueError, match=difference):
            train(step=step_of_pairs, data=other, checkpoint=path)
    for name in ("one", "two"):
        for label in ("a", "b"):
            picture = tmp_path / name / label / "0.png"
            picture.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8), "red" if name == "two" else "blue").save(picture)
    one, again, two = (batches_plan(PictureBatches(ClassFolder(tmp_path / n, 8), 1, workers=0)) for n in ("one", "one", "two"))
    assert one["data"] == again["data"] != two["data"]
    own = [(a, b) for a, b in zip(x.split(8), y.split(8))]
    train(step=step_of_pairs, data=own, checkpoint=tmp_path / "list.pt")
    with pytest.raises(ValueError, match="data: print"):
        train(step=step_of_pairs, data=own[::-1], checkpoint=tmp_path / "list.pt")


def test_any_flipped_bit_is_noticed(tmp_path, caplog):
    """Sixty single bits all over the file, the first and the last byte among them."""
    path = tmp_path / "run.pt"
    whole, _ = train(checkpoint=path)
    content = path.read_bytes()
    generator = make_generator(0, "bits")
    places = [0, len(content) - 1, *torch.linspace(1, len(content) - 2, 58).long().tolist()]
    for place in places:
        bad = bytearray(content)
        bad[place] ^= 1 << int(torch.randint(8, (), generator=generator))
        path.write_bytes(bad)
        caplog.clear()
        again, _ = train(epochs=0, checkpoint=path)
        assert [record.levelname for record in caplog.records] == ["WARNING"] and "\n" not in caplog.messages[0], place
        assert "is damaged (its print does not fit its content); the training starts again" in caplog.messages[0]
    again, _ = train(checkpoint=path)
    assert same(again, whole)


def test_a_full_disk_is_said_in_one_line_and_the_checkpoint_before_stays(tmp_path):
    resource = pytest.importorskip("resource")
    path, limits = tmp_path / "run.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    train(epochs=3, checkpoint=path)
    content = path.read_bytes()
    wide = nn.Sequential(nn.Flatten(), nn.Linear(36, 3000), nn.Linear(3000, 3))

    def starved(model, epoch):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))

    try:
        with pytest.raises(OSError) as caught:
            train(wide, checkpoint=tmp_path / "wide.pt", callbacks=[starved], epochs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value) and f"cannot write checkpoint {tmp_path / 'wide.pt'} (" in str(caught.value)
    assert "file too large; make room or name a file elsewhere" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"] and path.read_bytes() == content


# A loop of one's own


def test_a_loop_of_two_optimizers_an_average_and_noise_resumes_bit_for_bit(tmp_path):
    def duel(cut: int = 0, lr: float = 1e-2, **options):
        torch.manual_seed(0)
        a, b = nn.Linear(3, 3), nn.Linear(3, 1)
        average, noise = torch.optim.swa_utils.AveragedModel(a), torch.Generator().manual_seed(1)
        optimizers = [torch.optim.Adam(m.parameters(), lr=lr) for m in (a, b)]
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizers[0], 0.9)
        point = torch.zeros(3, requires_grad=True)

        def step(n: int) -> dict[str, Tensor]:
            losses = {}
            for name, optimizer, sign in zip("ab", optimizers, (1, -1)):
                x = torch.randn(8, 3, generator=noise) + torch.rand(3)
                losses[name] = sign * b(a(x) + point).mean() + 0.1 * (a(x) ** 2).mean()
                optimizer.zero_grad()
                losses[name].backward()
                optimizer.step()
            with torch.no_grad():
                point.sub_(0.1 * point.grad)
                point.grad = None
            average.update_parameters(a)
            schedule.step()
            return losses

        def fragile(n: int) -> dict[str, Tensor]:
            if n == cut:
                raise Cut
            return step(n)

        parts = {"a": a, "b": b, "average": average, "noise": noise, "A": optimizers[0], "B": optimizers[1], "schedule": schedule}
        parts["point"] = point
        loop = Loop(fragile if cut else step, 30, parts, code=(step,), **options)
        rows = loop.run()
        return fingerprint([p.detach() for m in (a, b, average) for p in m.parameters()], point.detach(), noise.get_state()), rows

    whole = duel(row_every=7)
    assert [row["step"] for row in whole[1]] == [7, 14, 21, 28, 30] and set(whole[1][0]) == {"step", "a", "b"}
    for cut in (3, 8, 29):
        path = tmp_path / f"{cut}.pt"
        with pytest.raises(Cut):
            duel(cut, row_every=7, checkpoint=path, every=2)
        seed_everything(5)
        assert duel(row_every=7, checkpoint=path, every=2) == whole == duel(row_every=7, checkpoint=path)
        with pytest.raises(ValueError, match=r"\(A lr: 0.01 in the file, 0.5 asked; A initial_lr: .*; B lr"):
            duel(row_every=7, checkpoint=path, lr=0.5)


def test_a_loop_without_rows_forgets_its_terms_and_says_at_which_step_one_broke(tmp_path):
    weight = torch.zeros(1)
    loop = Loop(lambda n: {"x": weight.sum() + (math.nan if n == 70 else 0)}, 200, {"weight": weight}, checkpoint=tmp_path / "run.pt", every=50)
    with pytest.raises(FloatingPointError, match="'x' is nan at step 71; lower"):
        loop.run()
    assert len(loop.terms.values) <= 33 and loop.rows == []
    assert torch.load(tmp_path / "run.pt", weights_only=True)["done"] == 50


def test_a_broken_tensor_does_not_replace_a_good_one(tmp_path):
    x = torch.zeros(2)

    def step(n):
        x.fill_(math.nan if n == 3 else n)
        return {"loss": torch.zeros(())}

    with pytest.raises(FloatingPointError, match="'x' is NaN or infinite after step 4"):
        Loop(step, 5, {"x": x}, checkpoint=tmp_path / "run.pt", every=1).run()
    assert torch.load(tmp_path / "run.pt", weights_only=True)["parts"]["x"].tolist() == [2, 2]


class Counter:
    """Has a state that needs code to be read."""

    def state_dict(self):
        return {"at": Path("here"), "how": Counter}

    def load_state_dict(self, state):
        pass


def test_a_loop_refuses_what_it_cannot_keep(tmp_path):
    step = lambda n: {"loss": torch.zeros(())}
    for call, kind, message in [
        (lambda: Loop(step, -1, {}), ValueError, "steps=-1; give at least 0"),
        (lambda: Loop(step, 1, {}, every=0), ValueError, "every=0; give a positive number"),
        (lambda: Loop(step, 1, {"log": []}), ValueError, "part 'log' is a list; give something with state_dict"),
        (lambda: Loop(step, 1, {"o": torch.optim.SGD([nn.Parameter(torch.zeros(2))])}), ValueError, "the optimizer trains 1 parameters"),
        (lambda: Loop(step, 1, {"count": Counter()}, checkpoint=tmp_path / "a.pt").run(), TypeError, "part 'count' holds what no checkpoint can keep"),
        (lambda: Loop(lambda n: {}, 1, {}).run(), ValueError, r"step returned \[\]; return a dict with at least one term"),
    ]:
        with pytest.raises(kind, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"noise", None])
def test_a_damaged_checkpoint_is_said_and_replaced(content, tmp_path, caplog):
    path = tmp_path / "run.pt"
    whole, _ = train(checkpoint=path)
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    again, _ = train(checkpoint=path)
    assert same(again, whole) and len(caplog.records) == 1
    assert f"checkpoint {path} is damaged" in caplog.text and "the training starts again" in caplog.text
    assert torch.load(path, weights_only=True)["done"] == 15


KILLED = """
import sys, time, torch
from torch import nn
from kdnotes.data.batches import Batches
from kdnotes.runtime import fingerprint, make_fabric, make_generator, seed_everything
from kdnotes.train import fit, one_cycle

seed_everything(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3))
images = torch.randn(96, 1, 6, 6, generator=make_generator(0, "x"))
data = Batches({"x": images, "y": torch.arange(96) % 3}, batch_size=8, transform=lambda b, g: b | {"x": b["x"].roll(int(torch.randint(6, (), generator=g)), -1)})

def step(model, batch):
    print("step", flush=True)
    time.sleep(float(sys.argv[2]))
    return {"loss": nn.functional.cross_entropy(model(batch["x"]), batch["y"])}

optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
history = fit(model, data, step, optimizer=optimizer, epochs=3, fabric=make_fabric("cpu"), schedule=one_cycle(), clip=1.0, checkpoint=sys.argv[1], every=5)
print(fingerprint(model.state_dict(), optimizer.state_dict()["state"], [row["loss"] for row in history.rows]))
"""


@pytest.mark.slow
def test_sigkill_in_the_middle_of_an_epoch_changes_nothing(tmp_path):
    """A process is killed by SIGKILL in its second epoch of twelve steps, started again, and ends as the one that was left alone."""

    def start(checkpoint: str, pause: float) -> subprocess.Popen:
        command = [sys.executable, "-c", KILLED, str(tmp_path / checkpoint), str(pause)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    alone, doomed = start("alone.pt", 0), start("killed.pt", 0.05)
    for _ in range(12 + 9):
        assert doomed.stdout.readline() == "step\n", doomed.stderr.read()
    doomed.kill()
    doomed.communicate()
    assert doomed.returncode == -9
    saved = torch.load(tmp_path / "killed.pt", weights_only=True)
    assert saved["done"] == 20
    resumed = start("killed.pt", 0)
    (*steps, expected), (*rest, digest) = (process.communicate(timeout=120)[0].split() for process in (alone, resumed))
    assert len(steps) == 36 and len(rest) == 36 - 20, "it went on from the eighth step of the second epoch"
    assert digest == expected and len(digest) == 64
    assert {p.name for p in tmp_path.iterdir()} == {"alone.pt", "killed.pt"}


# Shared batch normalisation, in one process


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4), (6, 3, 4, 5), (2, 3, 2, 4, 5)])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_shared_batch_norm_is_batch_norm(shape, options):
    torch.manual_seed(0)
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    torchs, ours = kind(3, **options).double(), SharedBatchNorm(3, **options).double()
    for _ in range(2):
        x = torch.randn(shape, dtype=torch.float64).requires_grad_()
        outputs = [layer(x) for layer in (torchs, ours)]
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(*(torch.autograd.grad(y.pow(3).sum(), x)[0] for y in outputs))
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict())
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x))


# Prediction


class Prediction(NamedTuple):
    logits: Tensor
    features: Tensor


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.classify = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Prediction:
        features = self.embed(x)
        return Prediction(self.classify(features), features)


def test_predict():
    torch.manual_seed(0)
    model, images = Classifier(), torch.randint(0, 256, (50, 1, 6, 6), dtype=torch.uint8)
    model.train()(torch.rand(9, 1, 6, 6))
    expected = model.eval()(images.float() / 255)
    model.train()
    before = fingerprint(model.state_dict())
    for options in ({}, {"batch_size": 7}, {"fabric": FABRIC}, {"transform": lambda x: x.float() / 255}, {"transform": lambda x: x}):
        torch.testing.assert_close(predict(model, images, **options), tuple(expected))
    torch.testing.assert_close(predict(model, images.float() / 255), tuple(expected))
    logits, features = predict(model, images, batch_size=16)
    assert model.training and fingerprint(model.state_dict()) == before and not logits.requires_grad
    F.mse_loss(model(images.float() / 255).features, features).backward()  # may serve as a target
    low = predict(model, images, fabric=make_fabric("cpu", "bf16"))
    assert low[0].dtype == low[1].dtype == torch.float32
    torch.testing.assert_close(low, tuple(expected), rtol=0.05, atol=0.05)
    with pytest.raises(ValueError, match=r"no images to predict: shape \(0, 1, 6, 6\)"):
        predict(model, images[:0])


class Returning(nn.Module):
    """A user's network: logits in a dict, and a frozen normalisation that stays in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.fc = nn.Linear(6, 3)
        self.body[2].eval().requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.fc(self.body(x))}


def test_predict_takes_any_network_and_any_batches():
    torch.manual_seed(0)
    model, data = Returning(), digits()
    pairs = TensorDataset(data["x"], data["y"])
    logits, features = predict(model, data["x"])
    assert features.shape == (len(data["x"]), 6) and torch.allclose(model.fc(features), logits, atol=1e-6)
    assert model.training and model.body[1].training and not model.body[2].training           # flag by flag as it was
    for images in (pairs, DataLoader(pairs, 7), list(DataLoader(pairs, 5)), [{"images": data["x"]}]):
        torch.testing.assert_close(predict(model, images), (logits, features))
    with pytest.raises(ValueError, match="an empty list"):
        predict(model, [])


def test_frozen_parts_stay_in_evaluation_mode_while_the_rest_learns():
    torch.manual_seed(0)
    model = Returning()
    before, weight = model.body[2].running_mean.clone(), model.fc.weight.detach().clone()
    seen = []

    def step(wrapped: nn.Module, batch: dict) -> dict[str, Tensor]:
        seen.append((model.training, model.body[2].training))
        return {"loss": F.cross_entropy(wrapped(batch["x"])["logits"], batch["y"])}

    fit(model, batches(), step, optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1), epochs=2, fabric=FABRIC)
    assert set(seen) == {(True, False)} and torch.equal(model.body[2].running_mean, before) and not torch.equal(model.fc.weight, weight)


# --- the average over a training ---

def averaged(steps: int, checkpoint: Path | None = None, cut: int = 0, decay: float | None = 0.9) -> tuple[nn.Module, Average | None]:
    """A few steps of a network with batch norm, beside its average; they break off before step `cut`."""
    model = net().train()
    average = None if decay is None else Average(model, decay, warmup=True)
    optimizer, draws = torch.optim.Adam(model.parameters(), 0.01), make_generator(0, "draws")
    seed_everything(1)                                            # dropout

    def step(n: int) -> dict[str, Tensor]:
        loss = model(torch.randn(8, 1, 6, 6, generator=draws)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if average is not None:
            average.update()
        return {"loss": loss}

    def cut_off(n: int) -> dict[str, Tensor]:
        if cut and n == cut:
            raise KeyboardInterrupt
        return step(n)

    parts = {"model": model, "optimizer": optimizer, "draws": draws} | ({} if average is None else {"average": average})
    Loop(cut_off, steps, parts, code=(step,), checkpoint=checkpoint, every=3).run()
    return model, average


def test_an_average_is_the_sum_of_its_formula_and_counters_are_taken_as_they_are():
    model = nn.BatchNorm1d(3)
    average, expected = Average(model, 0.9), model.weight.detach().double()
    for n in range(5):
        with torch.no_grad():
            model.weight.fill_(float(n)), model.num_batches_tracked.fill_(n)
        average.update()
        expected = 0.9 * expected + 0.1 * n
    assert torch.allclose(average.weights["weight"].double(), expected, atol=1e-6) and int(average.weights["num_batches_tracked"]) == 4
    still = average.weights["bias"].clone()
    average.update()
    assert average.weights["bias"].equal(still), "what does not move stays bit for bit"


def test_an_average_changes_no_number_of_the_training_and_survives_a_kill(tmp_path):
    alone, _ = averaged(10, decay=None)
    model, average = averaged(10)
    assert all(a.equal(b) for a, b in zip(alone.state_dict().values(), model.state_dict().values()))
    with pytest.raises(KeyboardInterrupt):
        averaged(10, tmp_path / "a.pt", cut=8)
    again, resumed = averaged(10, tmp_path / "a.pt")
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    assert average.updates == resumed.updates == 10 and all(average.weights[name].equal(mean) for name, mean in resumed.weights.items())
    with pytest.raises(ValueError, match="decay, warmup"):
        averaged(10, tmp_path / "a.pt", decay=0.5)
    with pytest.raises(ValueError, match="give a number from 0 to below 1"):
        Average(model, 1.0)
