"""The off-the-shelf recogniser: what it is asked, and how its answers are kept; against published embeddings where they are."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from kdnotes.metrics.verify import best_threshold, pair_scores
from kdnotes.models import recognisers
from kdnotes.models.recognisers import Answer, centred, enlarged, find_faces, is_there, keep_answers, kept_answers, mean_colour, recognise

SHARED = Path(os.environ.get("KDNOTES_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data" / "lfw"
needs_lfw = pytest.mark.skipif(not (SHARED / "dlib.npz").is_file(), reason=f"LFW with dlib's embeddings is not at {SHARED}")
needs_dlib = pytest.mark.skipif(not is_there(), reason="the extra `faces` is not installed")


def crops(part: str, count: int) -> torch.Tensor:
    from PIL import Image
    column = np.asarray(Image.open(SHARED / f"{part}_00.webp")).reshape(-1, 112, 112, 3)[:count]
    return torch.from_numpy(column.copy()).permute(0, 3, 1, 2)


class Counted:
    """A recogniser that notes how many pictures it was asked for, in files, so that other processes count too."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, images: torch.Tensor) -> Answer:
        (self.folder / f"{len(list(self.folder.iterdir()))}-{len(images)}").touch()
        return mean_colour(images)

    def asked(self) -> list[int]:
        return [int(path.name.split("-")[1]) for path in self.folder.iterdir()]


@pytest.fixture
def counted(tmp_path) -> Counted:
    (tmp_path / "asked").mkdir()
    return Counted(tmp_path / "asked")


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_every_picture_is_asked_for_once_whatever_the_order(tmp_path, counted):
    x = pictures(10)
    ask = lambda x: kept_answers(x, tmp_path, 1, 4, counted, "mean").embeddings
    assert ask(x[:5]).equal(mean_colour(x[:5]).embeddings) and sorted(counted.asked()) == [1, 4]
    order = torch.tensor([9, 0, 0, 3, 9, 7])
    assert ask(x[order]).equal(mean_colour(x[order]).embeddings) and sorted(counted.asked()) == [1, 2, 4]
    ask(x), ask(x.flip(0)), ask(x.float() / 255)
    assert sum(counted.asked()) == 10
    changed = x.clone()
    changed[3, 0, 0, 0] ^= 1
    ask(changed)
    assert sum(counted.asked()) == 11


def test_an_interrupted_call_goes_on_where_it_was(tmp_path, counted):
    x = pictures(12)

    def breaks(images: torch.Tensor) -> Answer:
        if sum(counted.asked()) >= 8:
            raise KeyboardInterrupt
        return counted(images)

    with pytest.raises(KeyboardInterrupt):
        kept_answers(x, tmp_path, 1, 4, breaks, "mean")
    assert kept_answers(x, tmp_path, 1, 4, counted, "mean").embeddings.equal(mean_colour(x).embeddings)
    assert sorted(counted.asked()) == [4, 4, 4]


def test_a_damaged_block_is_computed_again(tmp_path, counted):
    x = pictures(4)
    kept_answers(x, tmp_path, 1, 2, counted, "mean")
    next(tmp_path.rglob("block-*.pt")).write_bytes(b"no archive")
    assert kept_answers(x, tmp_path, 1, 2, counted, "mean").embeddings.equal(mean_colour(x).embeddings)
    assert sorted(counted.asked()) == [2, 2, 2]


def test_what_was_computed_elsewhere_is_found(tmp_path, counted):
    x = pictures(6)
    keep_answers(x[:4], mean_colour(x[:4]), tmp_path, "mean")
    assert kept_answers(x, tmp_path, 1, 4, counted, "mean").embeddings.equal(mean_colour(x).embeddings) and counted.asked() == [2]
    for wrong in (Answer(torch.rand(3, 128), torch.rand(4, 68, 2)), Answer(torch.rand(4, 128), torch.rand(4, 5, 2)), Answer(torch.full((4, 3), torch.nan), torch.rand(4, 68, 2))):
        with pytest.raises(ValueError, match="keep_answers"):
            keep_answers(x[:4], wrong, tmp_path, "mean")


def test_workers_do_not_change_the_answers(tmp_path):
    x = pictures(6)
    assert kept_answers(x, tmp_path, 2, 2, mean_colour, "mean").embeddings.equal(mean_colour(x).embeddings)


def test_grey_pictures_and_none_are_answered(tmp_path):
    grey = pictures(3)[:, :1]
    assert kept_answers(grey, tmp_path, 1, 2, mean_colour, "mean").embeddings.equal(mean_colour(grey.expand(-1, 3, -1, -1)).embeddings)
    assert kept_answers(grey[:0], tmp_path, 1, 2, mean_colour, "mean").embeddings.shape == (0, 3)


def test_without_the_extra_there_is_one_line_with_the_command(monkeypatch):
    recognisers._dlib.cache_clear()
    monkeypatch.setattr(recognisers, "is_there", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'kdnotes\[faces\]'") as error:
        recognise(pictures(1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("images, said", [(torch.rand(1, 3, 8, 9), "H, H"), (torch.rand(1, 2, 8, 8), "channels"),
                                          (torch.full((1, 3, 8, 8), 7.0), "in \\[0, 1\\]"), (torch.zeros(3, 8, 8), "H, H")])
def test_other_pictures_are_refused(images, said, tmp_path):
    with pytest.raises((ValueError, TypeError), match=said):
        kept_answers(images, tmp_path, 1, 2, mean_colour, "mean")


def test_enlarging_is_bicubic_and_keeps_what_has_the_size():
    from torch.nn.functional import interpolate
    x = pictures(2)
    assert enlarged(x, 8) is x
    slow = interpolate(x.double(), (24, 24), mode="bicubic", align_corners=False).round().clamp(0, 255)
    assert (enlarged(x, 24).double() - slow).abs().max() <= 1


@needs_lfw
def test_the_published_embeddings_verify_as_they_should():
    import csv
    kept = np.load(SHARED / "dlib.npz")
    e = torch.from_numpy(kept["test_embeddings"]).double()
    with open(SHARED / "index.csv") as file:
        where = {(r["person"], int(r["image_number"])): int(r["row"]) for r in csv.DictReader(file) if r["split"] == "test"}
    pairs = []
    for f in (line.rstrip("\n").split("\t") for line in open(SHARED / "pairsDevTest.txt")):
        if len(f) in (3, 4):
            pairs.append((where[f[0], int(f[1])], where[f[0] if len(f) == 3 else f[2], int(f[-1])], len(f) == 3))
    a, b, same = (torch.tensor(side) for side in zip(*pairs))
    scores = pair_scores(e[a], e[b], "euclidean")                       # 98.6 on a grid of thresholds, 98.7 at the best of all
    assert 100 * float(((scores >= best_threshold(scores, same)) == same).double().mean()) == pytest.approx(98.65, abs=0.06)
    unit = centred(e, torch.from_numpy(kept["train_embeddings"]).double().mean(0))
    assert_close(unit.norm(dim=1), torch.ones(len(unit), dtype=torch.float64))
    scores = pair_scores(unit[a], unit[b])
    assert 100 * ((scores >= best_threshold(scores, same)) == same).double().mean() > 98


@needs_dlib
@needs_lfw
def test_dlib_gives_the_published_embeddings_and_landmarks():
    kept, answer = np.load(SHARED / "dlib.npz"), recognise(crops("test", 6))
    assert (answer.embeddings - torch.from_numpy(kept["test_embeddings"][:6])).norm(dim=1).max() < 0.1
    assert (answer.landmarks - torch.from_numpy(kept["test_landmarks"][:6].astype(np.float32))).abs().median() < 0.6


@needs_dlib
@needs_lfw
def test_faces_are_found_in_frames():
    """Crops of LFW, enlarged, in a larger grey frame: one face each, where its landmarks are known to be; none where there is none, two of two."""
    x = torch.nn.functional.interpolate(crops("test", 6).float(), scale_factor=2, mode="bicubic").clamp(0, 255).round().byte()
    frames = torch.full((8, 3, 300, 520), 128, dtype=torch.uint8)
    frames[:6, :, 40:264, 30:254] = x
    frames[6, :, 40:264, 30:254], frames[6, :, 40:264, 270:494] = x[0], x[1]
    found = find_faces(frames)
    known = torch.from_numpy(np.load(SHARED / "dlib.npz")["test_landmarks"][:6].astype(np.float32)) * 2 + torch.tensor([30.5, 40.5])
    assert [len(faces) for faces in found[6:]] == [2, 0] and sum(len(faces) == 1 for faces in found[:6]) >= 5
    errors = [float((faces[0] - points).norm(dim=1).mean()) for faces, points in zip(found, known) if len(faces)]
    assert np.median(errors) < 4


def test_frames_that_are_none_are_refused():
    from kdnotes.checks import refused
    assert "uint8" in refused(find_faces, torch.rand(2, 3, 8, 8)) and "(N, 3, H, W)" in refused(find_faces, torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
