"""Every value that a stage can read has a print: equal for equal content, in every process, and another for whatever is changed."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from kdnotes.checks import refused
from kdnotes.data.catalogue import face_sets, search_sets
from kdnotes.data.crowds import Crowd, CrowdData, Labelled, hold_out
from kdnotes.data.faces import faces
from kdnotes.data.imageset import ImageSet
from kdnotes.data.pictures import ClassFolder
from kdnotes.data.protocols import Pairs
from kdnotes.data.sets.lfw import lfw_development
from kdnotes.data.sets.tinyface import tinyface
from kdnotes.data.synthetic_crowds import synthetic
from kdnotes.data.truth import Truth, sealed
from kdnotes.runtime import fingerprint


def images(**change):
    fields = {"images": torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2), "labels": torch.tensor([0, 1]), "classes": ("a", "b"), "name": "toy"}
    return ImageSet(**fields | change)


def crowd(**change):
    fields = {"item": [0, 1, 1], "annotator": [0, 0, 1], "label": [0, 1, 1], "items": 2, "annotators": 2, "classes": ("a", "b"), "features": torch.eye(2), "truth": Truth([0, 1])}
    return Crowd(**fields | change)


def test_of_images_the_content_counts_and_the_name_does_not():
    print_ = fingerprint(images())
    assert print_ == fingerprint(images(name="other")) and images().fingerprint() == images(name="other").fingerprint()
    assert images().fingerprint() == fingerprint(images().images, images().labels, images().classes)
    other = images().images.clone()
    other[1, 0, 1, 1] += 1
    for change in ({"images": other}, {"labels": torch.tensor([1, 0])}, {"classes": ("a", "c")}, {"images": other.view(2, 1, 1, 4)}):
        assert fingerprint(images(**change)) != print_ and images(**change).fingerprint() != images().fingerprint()


def test_of_faces_landmarks_and_masks_count():
    few = faces(2, 2, size=16)
    moved = replace(few, landmarks=few.landmarks + 1)
    masked = replace(few, masks=few.masks.flip(0))
    assert len({part.fingerprint() for part in (few, moved, masked)}) == len({fingerprint(part) for part in (few, moved, masked)}) == 3
    assert fingerprint(few) == fingerprint(faces(2, 2, size=16))


@pytest.mark.parametrize("change", [
    {"label": [0, 1, 0]}, {"truth": Truth([1, 1])}, {"truth": None}, {"features": torch.eye(2) * 2}, {"features": None}, {"classes": ("a", "c")},
    {"annotators": 3, "allow": ("silent",)}])
def test_of_a_crowd_everything_counts_the_hidden_truth_too(change):
    assert fingerprint(crowd()) == fingerprint(crowd()) != fingerprint(crowd(**change))


def test_a_sealed_truth_is_printed_without_being_revealed():
    open_print = fingerprint(crowd())
    with sealed():
        assert fingerprint(crowd()) == open_print and fingerprint(Truth([0, 1])) != fingerprint(Truth([1, 0]))
        with pytest.raises(RuntimeError, match="sealed"):
            crowd().truth.reveal()


def test_the_order_of_what_is_allowed_does_not_count():
    one, two = (crowd(allow=allow) for allow in (("silent", "repeats"), ("repeats", "silent", "silent")))
    assert fingerprint(one) == fingerprint(two) and one.allow == ("repeats", "silent")


CODE = """
import torch
from kdnotes.data.crowds import hold_out
from kdnotes.data.synthetic_crowds import synthetic
from kdnotes.data.catalogue import load
from kdnotes.runtime import fingerprint
digits = load("digits", "test")
made = synthetic(digits.images, digits.labels, digits.classes, "COR-S", annotators=20, seed=1)
print(fingerprint(digits, made, hold_out(made.crowd, 0.2)))
"""


@pytest.mark.long
def test_a_print_is_the_same_in_every_process():
    said = {subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": ":".join(sys.path)}).stdout
            for seed in ("1", "2")}
    assert len(said) == 1 and len(said.pop().strip()) == 64


def test_of_picture_files_the_content_counts_and_the_place_does_not(tmp_path):
    prints = []
    for place in ("here", "there"):
        for k in range(2):
            (tmp_path / place / f"class{k}").mkdir(parents=True)
            Image.new("RGB", (6, 6), (100 * k, 0, 0)).save(tmp_path / place / f"class{k}" / "0.png")
        prints.append(fingerprint(ClassFolder(tmp_path / place, 4)))
    assert prints[0] == prints[1] != fingerprint(ClassFolder(tmp_path / "here", 6))
    Image.new("RGB", (6, 6), (1, 0, 0)).save(tmp_path / "here" / "class0" / "0.png")
    assert fingerprint(ClassFolder(tmp_path / "here", 4)) != prints[0]
    gone = ClassFolder(tmp_path / "here", 4)
    gone.files[0].unlink()
    assert "0.png" in refused(fingerprint, gone)


def test_what_readers_give_has_a_print(tmp_path, face_layouts):
    for write in (face_layouts.lfw, face_layouts.tinyface, face_layouts.casia):
        write(tmp_path)
    made = synthetic(None, torch.arange(20) % 2, ("a", "b"), "IND-S", annotators=5, seed=0)
    values = [face_sets("lfw", 8, least=1, root=tmp_path), search_sets("tinyface", 8, root=tmp_path), tinyface(tmp_path, 8), lfw_development(tmp_path, 8), made,
              CrowdData(made.crowd, Labelled(torch.eye(3), torch.arange(3))), Pairs(torch.arange(2), torch.arange(2), torch.ones(2, dtype=torch.bool), 2), hold_out(made.crowd, 0.5)]
    assert len({fingerprint(value) for value in values}) == len(values)
    before = fingerprint(face_sets("casia", 8, root=tmp_path))
    face_layouts.put(tmp_path / "CASIA-WebFace" / "0000045" / "001.jpg", 77)
    assert fingerprint(face_sets("casia", 8, root=tmp_path)) != before
