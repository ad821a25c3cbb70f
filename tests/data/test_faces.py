"""Drawn faces: what the codes promise, geometry of landmarks and parts, cuts of a face set, disjoint people, pairs; and that pixels alone do not tell people apart."""
import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdnotes.data.faces import (
    FaceSet, IDENTITY, LANDMARKS, NUISANCE, PARTS, draw_identities, draw_nuisances, faces, render,
)
from kdnotes.data.protocols import distinct, identity_groups, split_identities, triangle, verification_pairs
from kdnotes.data.batches import Batches
from kdnotes.data.imageset import to_float
from kdnotes.runtime import make_generator

PIXELS = {name: i for i, name in enumerate(LANDMARKS)}


@pytest.fixture(scope="module")
def codes():
    g = make_generator(5)
    return draw_identities(40, g), draw_nuisances(40, 1.0, g)


def neutral(n, **traits):
    """Portraits of `n` average people, with the given nuisance codes changed."""
    identity, nuisance = torch.full((n, len(IDENTITY)), 0.5), torch.full((n, len(NUISANCE)), 0.5)
    for name, values in traits.items():
        (identity if name in IDENTITY else nuisance)[:, list(IDENTITY if name in IDENTITY else NUISANCE).index(name)] = torch.as_tensor(values)
    return identity, nuisance


# ---- rendering ------------------------------------------------------------------------------------------------------------------------

def test_shapes_types_and_determinism(codes):
    images, marks, parts = render(*codes, 48)
    assert images.shape == (40, 3, 48, 48) and images.dtype == parts.dtype == torch.uint8 and parts.shape == (40, 48, 48) and marks.shape == (40, len(LANDMARKS), 2)
    assert all(a.equal(b) for a, b in zip(render(*codes, 48), (images, marks, parts)))
    assert int(parts.max()) < len(PARTS) and marks.isfinite().all() and images.float().std() > 20


@pytest.mark.parametrize("size", [64, 21])
def test_a_picture_does_not_depend_on_its_batch(codes, size):
    """Windows are chosen for a batch; what lies outside of them must be untouched, to the last byte but for the rounding of a wider register."""
    together = render(*codes, size)
    alone = [render(codes[0][i:i + 1], codes[1][i:i + 1], size) for i in range(12)]
    for i, (image, marks, parts) in enumerate(alone):
        assert (together[0][i].int() - image[0].int()).abs().max() <= 1
        assert (together[2][i] != parts[0]).float().mean() < 1e-3 and torch.allclose(together[1][i], marks[0], atol=1e-3)


def test_the_same_scene_at_every_size(codes):
    small, large = render(*codes, 32), render(*codes, 96)
    shrunk = F.interpolate(large[0].float(), size=32, mode="area")
    quiet = (codes[1][:, list(NUISANCE).index("noise")] - 0.5).abs() < 0.15
    assert (small[0].float() - shrunk)[quiet].abs().mean() < 12
    assert torch.allclose((small[1] + 0.5) * 3, large[1] + 0.5, atol=1e-2)


def test_people_do_not_depend_on_their_number_and_seeds_differ():
    few, many = (draw_identities(n, make_generator(0, "people")) for n in (5, 500))
    assert few.equal(many[:5])
    a, b, c = faces(3, 2, 24), faces(3, 2, 24), faces(3, 2, 24, seed=1)
    assert a.fingerprint() == b.fingerprint() != c.fingerprint() and a.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_without_nuisance_all_pictures_of_a_person_are_one():
    still = faces(4, 3, 32, nuisance=0.0)
    assert still.images[0::3].equal(still.images[1::3]) and not still.images[0].equal(still.images[3])
    spread = [faces(20, 2, 32, nuisance=s).images.float() for s in (0.1, 0.5, 1.0)]
    distances = [(x[0::2] - x[1::2]).abs().mean().item() for x in spread]
    assert distances == sorted(distances) and distances[0] < 0.5 * distances[2]


@pytest.mark.parametrize("trait", [t for t in IDENTITY if t not in ("mole_x", "mole_y", "ear_size", "hair_grey")]
                         + [t for t in list(NUISANCE)[:26] if t not in ("pattern", "wave_x", "wave_y")])
def test_every_trait_is_seen(trait):
    """Turning one knob from end to end changes the picture."""
    a, b = render(*neutral(2, **{trait: [0.0, 1.0]}), 48)[0].float()
    assert (a - b).abs().max() > 8


@pytest.mark.parametrize("trait, part", [("glasses", "glasses"), ("object", "object")])
def test_what_is_in_the_way_has_its_label_and_is_absent_otherwise(trait, part):
    _, _, parts = render(*neutral(2, **{trait: [0.5, 1.0]}), 64)
    shown = (parts == PARTS.index(part)).flatten(1).sum(1)
    assert shown[0] == 0 < shown[1]


# ---- geometry -------------------------------------------------------------------------------------------------------------------------

def test_parts_lie_where_the_landmarks_say():
    """Turned, rolled and shifted, without things in front: each centre of mass is near its landmark."""
    g = make_generator(2)
    identity, nuisance = draw_identities(40, g), draw_nuisances(40, 0.8, g)
    nuisance[:, [list(NUISANCE).index(name) for name in ("glasses", "object", "blink")]] = 0.5
    _, marks, parts = render(identity, nuisance, 96)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    for part, names in (("eyes", ("left_eye", "right_eye")), ("mouth", ("mouth_left", "mouth_right"))):
        mask = (parts == PARTS.index(part)).float()
        mass = mask.sum((1, 2))
        centre = torch.stack([(mask * x).sum((1, 2)), (mask * y).sum((1, 2))], 1) / mass[:, None]
        expected = marks[:, [PIXELS[name] for name in names]].mean(1)
        assert (centre - expected)[mass > 20].norm(dim=1).median() < 2.5


def test_a_portrait_is_upright_and_symmetric():
    identity, nuisance = neutral(1)
    _, marks, parts = render(identity, nuisance, 64)
    at = {name: marks[0, i].tolist() for name, i in PIXELS.items()}
    assert at["left_eye"][0] < at["nose_tip"][0] < at["right_eye"][0] and at["left_brow"][1] < at["left_eye"][1] < at["nose_tip"][1] < at["mouth_top"][1] < at["chin"][1]
    for left, right in (("left_eye", "right_eye"), ("mouth_left", "mouth_right"), ("left_jaw", "right_jaw"), ("left_temple", "right_temple")):
        assert at[left][0] + at[right][0] == pytest.approx(63, abs=1e-3) and at[left][1] == pytest.approx(at[right][1], abs=1e-3)
    same = parts[0] == parts[0].flip(1)
    assert same.float().mean() > 0.97


def test_pose_moves_landmarks_as_it_should():
    still = render(*neutral(1), 64)[1][0]
    _, rolled, _ = render(*neutral(2, roll=[0.0, 1.0]), 64)
    angle = [math.atan2(*(m[PIXELS["right_eye"]] - m[PIXELS["left_eye"]]).flip(0).tolist()) for m in rolled]
    assert angle == pytest.approx([NUISANCE["roll"][0], NUISANCE["roll"][1]], abs=1e-3)
    _, shifted, _ = render(*neutral(1, shift_x=[1.0]), 64)
    assert torch.allclose(shifted[0] - still, torch.tensor([NUISANCE["shift_x"][1] * 32, 0.0]).expand(len(LANDMARKS), 2), atol=1e-3)
    _, yawed, _ = render(*neutral(2, yaw=[0.0, 1.0]), 64)
    nose, chin = (yawed[:, PIXELS[name], 0] for name in ("nose_tip", "chin"))
    assert nose[0] < chin[0] - 3 and nose[1] > chin[1] + 3                                   # the nose moves more than the outline


def test_chin_and_jaws_lie_on_the_edge_of_the_skin():
    g = make_generator(4)
    identity, nuisance = draw_identities(30, g), draw_nuisances(30, 0.0, g)
    _, marks, parts = render(identity, nuisance, 128)
    centre = torch.tensor([63.5, 63.5])
    for name in ("chin", "left_jaw", "right_jaw"):
        at = marks[:, PIXELS[name]]
        inward, outward = (at + step * F.normalize(centre - at, dim=1) for step in (4, -4))
        label = lambda p: parts[torch.arange(30), p[:, 1].round().long().clamp(0, 127), p[:, 0].round().long().clamp(0, 127)]
        assert (label(inward) == PARTS.index("skin")).float().mean() > 0.9 and (label(outward) != PARTS.index("skin")).float().mean() > 0.9


# ---- sets -----------------------------------------------------------------------------------------------------------------------------

def test_landmarks_and_masks_follow_every_cut():
    people = faces(6, 4, 24)
    rows = torch.tensor([5, 0, 23])
    some = people.take(rows)
    assert isinstance(some, FaceSet) and some.landmarks.equal(people.landmarks[rows]) and some.masks.equal(people.masks[rows]) and some.images.equal(people.images[rows])
    chosen = people.select([4, 1], relabel=True)
    assert isinstance(chosen, FaceSet) and chosen.classes == ("person 4", "person 1") and chosen.labels.tolist() == [1] * 4 + [0] * 4
    assert chosen.masks.equal(torch.cat([people.masks[4:8], people.masks[16:20]]))
    first, rest = people.split(0.5, seed=0)
    assert len(first) == len(rest) == 12 and len(first.landmarks) == 12 and isinstance(people.to("cpu"), FaceSet)
    assert people.part("eyes", "mouth").equal((people.masks == PARTS.index("eyes")) | (people.masks == PARTS.index("mouth")))
    assert next(iter(Batches(people, 8, per_class=4)))["labels"].view(2, 4).eq(next(iter(Batches(people, 8, per_class=4)))["labels"].view(2, 4)[:, :1]).all()


@settings(max_examples=40)
@given(people=st.integers(3, 60), seed=st.integers(0, 99), data=st.data())
def test_groups_of_people_are_disjoint(people, seed, data):
    parts = data.draw(st.one_of(st.lists(st.integers(1, people), min_size=1, max_size=4).filter(lambda p: sum(p) <= people),
                                st.sampled_from([[0.5, 0.5], [0.8, 0.2], [0.34, 0.33, 0.33]])))
    groups = identity_groups(people, parts, seed)
    flat = sum(groups, [])
    assert len(flat) == len(set(flat)) and set(flat) <= set(range(people)) and groups == identity_groups(people, parts, seed)
    assert [len(g) for g in groups] == parts if isinstance(parts[0], int) else len(flat) == people


def test_split_identities():
    people = faces(10, 3, 16)
    train, test = split_identities(people, (0.6, 0.4), seed=3)
    assert isinstance(train, FaceSet) and (len(train.classes), len(test.classes)) == (6, 4) and not set(train.classes) & set(test.classes)
    assert train.labels.unique().tolist() == list(range(6)) and len(train) == 18
    kept = split_identities(people, (2,), relabel=False)[0]
    assert kept.classes == people.classes and len(kept.labels.unique()) == 2


# ---- pairs ----------------------------------------------------------------------------------------------------------------------------

def test_triangle_counts_pairs():
    k = torch.arange(200 * 199 // 2)
    i, j = triangle(k, torch.tensor(200))
    assert (i < j).all() and len(set(zip(i.tolist(), j.tolist()))) == len(k) and int(j.max()) == 199
    big = torch.tensor([2**40 + 12345])
    i, j = triangle(big, big)
    assert j * (j - 1) // 2 + i == big and 0 <= i < j


@pytest.mark.parametrize("total, count", [(10, 10), (5000, 20), (2**22, 1000), (2**40, 5000)])
def test_distinct_numbers(total, count):
    k = distinct(total, count, make_generator(0))
    assert len(k) == count == len(k.unique()) and int(k.min()) >= 0 and int(k.max()) < total


@settings(max_examples=25)
@given(seed=st.integers(0, 99), people=st.integers(20, 60), folds=st.sampled_from([2, 5, 10]))
def test_pairs_keep_their_promises(seed, people, folds):
    labels = torch.arange(people).repeat_interleave(4)[torch.randperm(4 * people, generator=make_generator(seed))]
    pairs = verification_pairs(labels, 4 * folds, folds, seed)
    assert pairs.same.equal(labels[pairs.first] == labels[pairs.second]) and pairs.same.view(folds, 2, 2).float().mean((0, 2)).tolist() == [1.0, 0.0]
    assert len({frozenset(p) for p in zip(pairs.first.tolist(), pairs.second.tolist())}) == 4 * folds
    in_fold = [set(labels[torch.cat([pairs.first[f], pairs.second[f]])].tolist()) for f in torch.arange(4 * folds).view(folds, -1)]
    assert sum(map(len, in_fold)) == len(set().union(*in_fold))
    again = verification_pairs(labels, 4 * folds, folds, seed)
    assert pairs.first.equal(again.first) and pairs.second.equal(again.second)


def test_pairs_of_few_people_say_that_folds_share_them(caplog):
    labels = torch.arange(4).repeat_interleave(10)
    with caplog.at_level(logging.WARNING, logger="kdnotes"):
        pairs = verification_pairs(labels, 200, 10)
    assert "folds share people" in caplog.text and len(pairs.first) == 200 and pairs.same.view(10, 20).sum(1).tolist() == [10] * 10
    every = verification_pairs(labels, 2 * 180, 2)                                       # every genuine pair there is
    assert len({frozenset(p) for p in zip(every.first[every.same].tolist(), every.second[every.same].tolist())}) == 180


@pytest.mark.parametrize("call, words", [
    (lambda: faces(0, 3), ["identities is 0"]),
    (lambda: faces(3, 2.5), ["per_identity is 2.5"]),
    (lambda: faces(3, 2, nuisance=1.5), ["nuisance strength is 1.5", "from 0"]),
    (lambda: faces(3, 2, size=4), ["size is 4", "at least 8"]),
    (lambda: render(torch.rand(2, 3), torch.rand(2, 3)), ["(2, 3)", f"(N, {len(IDENTITY)})"]),
    (lambda: render(*(2 * c for c in neutral(1, yaw=[0.9]))), ["codes run from", "[0, 1]"]),
    (lambda: faces(2, 2, 16).part("ear"), ["['ear']", "mouth"]),
    (lambda: FaceSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 0]), ("a",)), ["landmarks are None"]),
    (lambda: split_identities(faces(4, 1, 16), (3, 2)), ["[3, 2]", "4 people"]),
    (lambda: split_identities(faces(4, 1, 16), (0.5, 2)), ["not a mixture"]),
    (lambda: verification_pairs(torch.arange(9) // 3, 15, 2), ["15 pairs in 2 folds"]),
    (lambda: verification_pairs(torch.arange(9) // 3, 40, 2), ["9 pictures of 3 people", "fewer pairs"]),
])
def test_bad_input_says_what_is_expected(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.long
@pytest.mark.parametrize("size", [16])
def test_pixels_do_not_tell_people_apart_and_a_trained_embedder_does(size):
    from kdnotes.losses.margin import CosFace
    from kdnotes.metrics.retrieve import recall_at_k
    from kdnotes.metrics.verify import kfold_accuracy
    from kdnotes.models.embedders import Recogniser, embedder
    train, test = split_identities(faces(150, 12, size=size, seed=7), (100, 50), seed=7)
    pairs = verification_pairs(test.labels, 1000, 10, seed=7)
    accuracy = lambda f: kfold_accuracy(f[pairs.first], f[pairs.second], pairs.same)
    pixels = to_float(test.images).flatten(1)
    raw = max(accuracy(pixels), accuracy(pixels - pixels.mean(0)), accuracy(pixels - pixels.mean(1, keepdim=True)))
    torch.manual_seed(0)
    model = Recogniser(embedder("smallface", dim=64, size=size), CosFace(64, 100, scale=16.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=5e-2)
    batches = Batches(train, 100)
    for epoch in range(8):
        batches.set_epoch(epoch)
        for batch in batches:
            optimizer.zero_grad()
            model.head(model(to_float(batch["images"])).features, batch["labels"]).backward()
            optimizer.step()
    with torch.no_grad():
        features = model.eval()(to_float(test.images)).features
    assert 0.5 < raw < 0.68 and accuracy(features) > raw + 0.1
    assert recall_at_k(features, test.labels, 1, metric="cosine")[1] > 2 * recall_at_k(pixels, test.labels, 1)[1]
