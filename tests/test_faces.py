"""Faces to learn from and faces that are judged."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from kdnotes import faces
from kdnotes.data.degrade import interpolate
from kdnotes.data.imageset import ImageSet, to_float
from kdnotes.data.protocols import FaceSets, Pairs
from kdnotes.faces import Faces, Native, Prepared, native_embeddings
from kdnotes.losses.margin import CosFace
from kdnotes.models.adapt import FaceBN
from kdnotes.models.embedders import Recogniser, embedder

LEARNT = Faces("faces", "train", 0, 32, 0.6, (16, 12), (4, 2), 4)
JUDGED = replace(LEARNT, part="test", first=12, pairs=60, folds=2)


def test_nobody_is_on_both_sides():
    learnt, judged = LEARNT.load(), JUDGED.load()
    rows = [{tuple(x.flatten()[:60].tolist()) for x in part.images} for part in (learnt, judged.known, judged.test)]
    assert not rows[2] & (rows[0] | rows[1]) and not rows[1] & rows[0]
    assert (len(learnt), len(judged.known), len(judged.test)) == (16 * 4, 12 * 2, 12 * 6)
    assert len(judged.pairs.same) == 60 and 0 < len(judged.known_pairs.same) <= 60


def test_real_faces_keep_the_protocol_of_their_set(monkeypatch):
    learnt, test = LEARNT.load(), JUDGED.load().test
    prescribed = Pairs(torch.tensor([0, 1]), torch.tensor([1, 9]), torch.tensor([True, False]), 2)
    monkeypatch.setattr(faces, "face_sets", lambda dataset, size, least, people: FaceSets(learnt, test, prescribed))
    real = replace(LEARNT, source="lfw", each=(0, 1), seed=5)
    judged = replace(JUDGED, source="lfw", each=(0, 1), seed=5).load()
    assert judged.test is test and judged.pairs is prescribed and judged.known_pairs is None
    assert len(judged.known) == 12 and len(real.load()) == 16 * 3
    monkeypatch.setattr(faces, "face_sets", lambda dataset, size, least, people: FaceSets(learnt))
    own = replace(JUDGED, source="orl", people=(12, 4), first=8, pairs=8).load()
    assert [len(part.classes) for part in (own.test, own.known)] == [4, 8] and len(own.pairs.same) == 8
    assert len(replace(real, source="orl", people=(12, 4)).load().classes) == 12


def test_who_is_taken_whole_is_not_copied(monkeypatch):
    learnt, test = LEARNT.load(), JUDGED.load().test
    monkeypatch.setattr(faces, "face_sets", lambda dataset, size, least, people: FaceSets(learnt, test))
    everybody = replace(LEARNT, source="casia", people=(0, 0), each=(0, 0))
    assert everybody.load() is learnt
    assert replace(everybody, part="test", pairs=60, folds=2).load().known is test


def test_too_few_people_are_told_with_the_numbers():
    with pytest.raises(ValueError, match="teacher_people \\+ test_people = 28, but digits has 10 people"):
        replace(LEARNT, source="digits", size=8).load()


def test_each_camera_has_statistics_of_its_own():
    torch.manual_seed(0)
    network = Recogniser(embedder("smallface", 16, 3, 8, widths=(4, 8)), CosFace(16, 12, 16.0)).eval()
    g = torch.Generator().manual_seed(0)
    images = [(shade * torch.rand(n, 3, 8, 8, generator=g)).to(torch.uint8) for shade, n in ((80, 30), (255, 20))]
    sides = tuple(ImageSet(x, torch.arange(len(x)) % 5, tuple("abcde")) for x in images)
    ready = partial(Prepared, size=8, statistics=(torch.zeros(3), torch.ones(3)), batch=7)
    x = [to_float(side.images) for side in sides]

    def expected(seen, shown, mode="prediction"):
        with torch.no_grad(), FaceBN(network, "adabn") as face:
            if mode != "plain":
                face.adapt(seen)
            return network(shown).features

    before = {key: value.clone() for key, value in network.state_dict().items()}
    together, own = Native(sides), Native(sides, apart=True)
    embed = lambda native, **how: native_embeddings(network, native, ready, **how)
    for native, how in ((together, {"adapt": True}), (own, {"adapt": True, "mixed": True})):
        assert all(torch.allclose(found, expected(torch.cat(x), part), atol=1e-4) for found, part in zip(embed(native, **how), x))
    apart = embed(own, adapt=True)
    assert all(torch.allclose(found, expected(part, part), atol=1e-4) for found, part in zip(apart, x))
    assert all(torch.allclose(found, expected(None, part, "plain"), atol=1e-5) for found, part in zip(embed(own), x))
    assert torch.allclose(embed(own, adapt=True, count=30)[0], apart[0], atol=1e-5)
    assert not torch.allclose(embed(own, adapt=True, count=9)[0], apart[0], atol=1e-3)
    assert apart[0].requires_grad is False and not apart[0].is_inference()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_prepared_images_are_what_the_network_would_be_shown():
    images = torch.randint(0, 256, (11, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.1])
    native, enlarged = Prepared(images, 8, (mean, std), batch=4), Prepared(images, 32, (mean, std), batch=4)
    for _ in range(2):                                                   # it can be read again
        assert torch.allclose(torch.cat(list(native)), (to_float(images) - mean[:, None, None]) / std[:, None, None])
        assert [len(part) for part in enlarged] == [4, 4, 3] and len(enlarged) == 3
    whole = interpolate(to_float(images), (32, 32), "bilinear", antialias=False)
    assert torch.allclose(torch.cat(list(enlarged)), (whole - mean[:, None, None]) / std[:, None, None], atol=1e-5)
