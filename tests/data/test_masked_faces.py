"""Real masked faces and CelebA's people, in miniatures of the layouts that their authors give out."""
import shutil

import pytest

from kdnotes.data.catalogue import SOURCES, face_sets, load
from kdnotes.data.sets.celeba import celeba_identities
from kdnotes.data.sets.maskedfaces import RMFD, TREES, mfr2, mlfw, rmfrd


@pytest.fixture(params=[False, True], ids=["flat", "nested twice"])
def rmfd(request, tmp_path, face_layouts):
    """Three people in both trees, one in each alone, and a file that is no picture."""
    for tree, people in zip(TREES, (("li", "wang", "zhao", "masked only"), ("li", "wang", "zhao", "bare only"))):
        folder = tmp_path / RMFD / tree / (tree if request.param else "")
        for k, person in enumerate(people):
            for i in range(3):
                face_layouts.put(folder / person / f"a{i}.jpg", 40 * k, (20 + i, 24))
    (folder / "li" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path


def test_rmfrd_joins_people_by_name_and_draws_pairs_across_the_trees(rmfd, caplog):
    faces = rmfrd(rmfd, 8, pairs=24, folds=3)
    assert faces.pictures.classes == ("bare only", "li", "masked only", "wang", "zhao") and len(faces.pictures) == 24 and faces.masked.sum() == 12
    assert faces.left_out == 1 and "1 of 13 pictures cannot be read" in caplog.text
    first, second, same, folds = faces.pairs
    y = faces.pictures.labels
    assert faces.masked[first].all() and not faces.masked[second].any() and (y[first] == y[second]).equal(same)
    assert len(same) == 24 and folds == 3 and same.view(3, 8).sum(1).tolist() == [4] * 3
    genuine = list(zip(first[same].tolist(), second[same].tolist()))
    assert len(set(genuine)) == len(genuine)
    again = rmfrd(rmfd, 8, pairs=24, folds=3)
    assert all(a.equal(b) for a, b in zip(faces.pairs[:3], again.pairs[:3])) and not rmfrd(rmfd, 8, 24, 3, seed=1).pairs.first.equal(first)
    assert len(rmfrd(rmfd, 8, folds=3).pairs.same) == 2 * 27, "as many as there are"
    assert faces.pictures[0].shape == (3, 8, 8) and len(load("rmfrd", "test", rmfd, 8)) == 24


def test_rmfrd_says_what_is_missing(rmfd):
    with pytest.raises(ValueError, match="27 genuine pairs; expected at least 40"):
        rmfrd(rmfd, 8, pairs=400, folds=40)
    shutil.rmtree(rmfd / RMFD / TREES[0])
    with pytest.raises(FileNotFoundError, match="unpack the real-world part of RMFD"):
        rmfrd(rmfd, 8)


@pytest.fixture
def mfr(tmp_path, face_layouts):
    for k, person in enumerate(("AdrianDunbar", "AlexaChung")):
        for i in (1, 2, 3):
            face_layouts.put(tmp_path / "mfr2" / person / f"{person}_{i:04d}.png", 60 * k + i)
    lines = "AdrianDunbar, 1, surgical\nAdrianDunbar, 2, no-mask\nAdrianDunbar, 3, cloth\nAlexaChung, 1, no-mask\nAlexaChung, 2, KN95\nAlexaChung, 3, no-mask\n"
    (tmp_path / "mfr2" / "mfr2_labels.txt").write_text(lines)
    pairs = "AdrianDunbar 1 2\nAlexaChung\t1\t3\nAdrianDunbar 1 AlexaChung 2\nAdrianDunbar  3  AlexaChung  1\nAlexaChung 1 9\n"
    (tmp_path / "mfr2" / "pairs.txt").write_text(pairs)
    return tmp_path


def test_mfr2_reads_its_kinds_and_pairs_and_counts_what_is_not_there(mfr, caplog):
    faces = mfr2(mfr, 16)
    assert faces.kinds == ("surgical", "", "cloth", "", "KN95", "") and faces.masked.tolist() == [True, False, True, False, True, False]
    assert faces.pairs.first.tolist() == [0, 3, 0, 2] and faces.pairs.second.tolist() == [1, 5, 4, 3] and faces.pairs.same.tolist() == [True, True, False, False]
    assert faces.pairs.folds == 2 and faces.left_out == 1 and "1 of 5 pairs of pairs.txt" in caplog.text


@pytest.mark.parametrize("file, line", [("pairs.txt", "AlexaChung 1"), ("pairs.txt", "AlexaChung one 2"), ("mfr2_labels.txt", "AlexaChung 1 cloth")])
def test_mfr2_names_the_file_that_is_wrong(mfr, file, line):
    with open(mfr / "mfr2" / file, "a") as text:
        text.write(line + "\n")
    with pytest.raises(ValueError, match=f"{file} cannot be read") as error:
        mfr2(mfr)
    assert "\n" not in str(error.value)


def test_mlfw_reads_its_pairs_fold_after_fold(tmp_path, face_layouts):
    for part in ("aligned", "origin"):
        for k in range(4):
            face_layouts.put(tmp_path / "MLFW" / part / f"A_B_000{k}_0001.jpg", 50 * k, (24, 24) if part == "aligned" else (30, 40))
    (tmp_path / "MLFW" / "pairs.txt").write_text("A_B_0000_0001.jpg\tA_B_0001_0001.jpg\t1\nA_B_0002_0001.jpg A_B_0001_0001.jpg 0\nA_B_0002_0001.jpg gone.jpg 0\n")
    for part in ("aligned", "origin"):
        faces = mlfw(tmp_path, 8, part)
        assert faces.pairs.first.tolist() == [0, 2] and faces.pairs.same.tolist() == [True, False] and faces.left_out == 1 and len(faces.pictures) == 4
    with pytest.raises(ValueError, match="part is 'raw'"):
        mlfw(tmp_path, 8, "raw")
    (tmp_path / "MLFW" / "pairs.txt").write_text("A_B_0000_0001.jpg A_B_0001_0001.jpg 2\n")
    with pytest.raises(ValueError, match="pairs.txt cannot be read"):
        mlfw(tmp_path)


@pytest.mark.parametrize("name", ["rmfrd", "mfr2", "mlfw"])
def test_what_is_judged_on_is_never_trained_on(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="below the data root"):
        load(name, "test", tmp_path)
    assert SOURCES[name].missing(tmp_path)


@pytest.fixture
def celeba(tmp_path, face_layouts):
    people = (2880, 77, 2880, 5, 77, 2880)
    for k, person in enumerate(people):
        face_layouts.put(tmp_path / "celeba" / "img_align_celeba" / f"{k + 1:06d}.jpg", person, (178, 218))
    lines = lambda words: "".join(f"{k + 1:06d}.jpg {word}\n" for k, word in enumerate(words))
    (tmp_path / "celeba" / "identity_CelebA.txt").write_text(lines(people))
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text(lines((0, 1, 0, 2, 1, 0)))
    return tmp_path


def test_the_people_of_celeba_are_classes_and_parted_as_its_authors_part_them(celeba):
    faces = celeba_identities("train", celeba, 16)
    assert faces.classes == ("2880",) and faces.labels.tolist() == [0] * 3 and faces[0].shape == (3, 16, 16)
    assert len(face_sets("celeba", 8, least=2, root=celeba).learnt) == 3 and len(load("celeba", "test", celeba, 8)) == 1
