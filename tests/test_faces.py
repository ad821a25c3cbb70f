"""Faces to learn from and faces that are judged."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from kdnotes import faces
from kdnotes.data import pictures
from kdnotes.data.degrade import interpolate
from kdnotes.data.imageset import ImageSet, to_float
from kdnotes.data.protocols import FaceSets, Pairs
from kdnotes.faces import Native, People, Prepared, native_embeddings, seeds_of
from kdnotes.losses.margin import CosFace
from kdnotes.models.adapt import FaceBN
from kdnotes.models.embedders import Recogniser, embedder

LEARNT = People("faces", "train", 32, (16, 12), 4, 0.6, least=4, seeds=seeds_of(0), held=2)
JUDGED = replace(LEARNT, part="test", first=12, pairs=60, folds=2)


def gives(*found):
    """A `face_sets` that gives the same for every part."""
    return lambda dataset, size, least, people, part="": FaceSets(*found)


def test_nobody_is_on_both_sides():
    learnt, judged = LEARNT.load(), JUDGED.load()
    rows = [{tuple(x.flatten()[:60].tolist()) for x in part.images} for part in (learnt, judged.known, judged.test)]
    assert not rows[2] & (rows[0] | rows[1]) and not rows[1] & rows[0]
    assert (len(learnt), len(judged.known), len(judged.test)) == (16 * 4, 12 * 2, 12 * 6)
    assert len(judged.pairs.same) == 60 and 0 < len(judged.known_pairs.same) <= 60


def test_real_faces_keep_the_protocol_of_their_set(monkeypatch):
    learnt, test = LEARNT.load(), JUDGED.load().test
    prescribed = Pairs(torch.tensor([0, 1]), torch.tensor([1, 9]), torch.tensor([True, False]), 2)
    monkeypatch.setattr(faces, "face_sets", gives(learnt, test, prescribed))
    real = replace(LEARNT, dataset="lfw", people=(16, 0), pictures=0, held=1, seeds=seeds_of(5))
    judged = replace(real, part="test", first=12, pairs=60, folds=2).load()
    assert judged.test is test and judged.pairs is prescribed and judged.known is judged.known_pairs is None
    assert len(real.load()) == 16 * 3 and len(replace(real, people=(10, 0)).load().classes) == 10 and len(replace(real, pictures=2).load()) == 16 * 2
    assert len(replace(real, people=(10, 6)).load().classes) == 16                      # no split where the set prescribes one
    known = replace(real, part="test", held=2, first=12, pairs=8, folds=2).load()
    assert known.test is test and len(known.known) == 12 * 2 and len(known.known_pairs.same) == 8
    monkeypatch.setattr(faces, "face_sets", gives(learnt))
    own = replace(JUDGED, dataset="orl", people=(12, 4), first=8, pairs=8).load()
    assert [len(part.classes) for part in (own.test, own.known)] == [4, 8] and len(own.pairs.same) == 8
    assert len(replace(real, dataset="orl", people=(12, 4)).load().classes) == 12


def test_who_is_taken_whole_is_not_copied(monkeypatch):
    learnt, test = LEARNT.load(), JUDGED.load().test
    monkeypatch.setattr(faces, "face_sets", gives(learnt, test))
    everybody = replace(LEARNT, dataset="casia", people=(0, 0), pictures=0, held=0)
    assert everybody.load() is learnt
    judged = replace(everybody, part="test", pairs=60, folds=2).load()
    assert judged.test is test and judged.known is None


@pytest.mark.parametrize(("dataset", "learnt", "judged"), [("casia", 11, 9), ("lfw", 4, 5), ("survface", 1, 4), ("casia_webface", 10, 10)])
def test_a_picture_is_decoded_once(tmp_path, face_layouts, monkeypatch, dataset, learnt, judged):
    """Whoever learns does not decode those that are judged, and the judge does not decode those to learn from; a set that prescribes nobody is split."""
    for write in (face_layouts.casia, face_layouts.lfw, face_layouts.survface):
        write(tmp_path)
    monkeypatch.setenv("KDNOTES_DATA", str(tmp_path))
    decoded, read = [], pictures.read_picture
    monkeypatch.setattr(pictures, "read_picture", lambda path, *more: decoded.append(path) or read(path, *more))
    people, least = ((1, 2), 2) if dataset == "casia_webface" else ((0, 0), 1)
    train = People(dataset, "train", 8, people, pairs=4, folds=2, least=least)
    for part, count in (("train", learnt), ("test", judged)):
        decoded.clear()
        found = replace(train, part=part).load()
        assert any(people) or len(found if part == "train" else found.test) == count
        assert len(set(decoded)) == count


def test_a_set_that_prescribes_nobody_needs_people_to_be_split_off(monkeypatch):
    monkeypatch.setattr(faces, "face_sets", gives(LEARNT.load()))
    with pytest.raises(ValueError, match="orl does not prescribe who is judged; ask for some people to be split off"):
        People("orl", "test", 32, (8, 0)).load()


def test_too_few_people_are_told_with_the_numbers():
    with pytest.raises(ValueError, match="digits has 10 people with at least 4 pictures; expected 16 to learn from and 12 others to be judged; ask for fewer"):
        replace(LEARNT, dataset="digits", size=8).load()


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
