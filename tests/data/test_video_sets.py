"""The layouts of forgery benchmarks, on trees of empty files: counts, labels, splits, and what is missing told by name."""

import json

import pytest

from kdnotes.checks import refused
from kdnotes.data.sets.videos import FF_KINDS, celeb_df, deeper_forensics, dfdc_test, faceforensics

PAIRS = {"train": [["000", "003"], ["004", "005"]], "val": [["010", "011"], ["012", "013"]], "test": [["020", "007"], ["021", "022"]]}


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def ff_tree(root, quality="c23", originals="original_sequences/youtube", splits="splits", kinds=FF_KINDS):
    for split, pairs in PAIRS.items():
        (root / splits).mkdir(parents=True, exist_ok=True)
        (root / splits / f"{split}.json").write_text(json.dumps(pairs))
        for a, b in pairs:
            touch(root, *(f"{originals}/{quality}/videos/{n}.mp4" for n in (a, b)),
                  *(f"manipulated_sequences/{kind}/{quality}/videos/{n}.mp4" for kind in kinds for n in (f"{a}_{b}", f"{b}_{a}")))
    return root


@pytest.mark.parametrize("form", [{}, {"originals": "original_sequences"}, {"splits": "."}, {"quality": "c0"}, {"quality": "raw"}, {"kinds": (*FF_KINDS, "FaceShifter")}])
def test_faceforensics(form, tmp_path):
    records = faceforensics(ff_tree(tmp_path, **form), {"c0": "raw"}.get(form.get("quality"), "c23") if form.get("quality") != "raw" else "c0", form.get("kinds", FF_KINDS))
    kinds = len(form.get("kinds", FF_KINDS))
    for split in PAIRS:
        of = [r for r in records if r.split == split]
        assert sum(r.label == 0 for r in of) == 4 and sum(r.label for r in of) == 4 * kinds
    assert {r.identities for r in records if r.kind == "FaceSwap" and r.split == "test"} == {("020", "007"), ("007", "020"), ("021", "022"), ("022", "021")}
    assert records == sorted(records) and all((r.kind == "real") == (r.label == 0) for r in records)


def test_faceforensics_tells_what_is_wrong(tmp_path):
    root = ff_tree(tmp_path)
    (root / "manipulated_sequences/NeuralTextures/c23/videos/000_003.mp4").unlink()
    assert "1 of 60 videos are missing" in refused(faceforensics, root) and "000_003.mp4" in refused(faceforensics, root)
    assert len(faceforensics(root, kinds=("FaceSwap",))) == 24
    assert "'c23' or" in refused(faceforensics, root, "c99") and "'Deepfakes' or" in refused(faceforensics, root, "c23", ("DF",))
    ff_tree(root, "raw"), ff_tree(root, "c0")
    assert "raw and c0" in refused(faceforensics, root, "raw")
    (root / "splits" / "val.json").write_text(json.dumps([["000", "011"]]))
    assert "video 000 is in train and in val" in refused(faceforensics, root)
    assert "train.json" in refused(faceforensics, tmp_path / "nowhere")


@pytest.mark.parametrize("level, youtube", [("", "YouTube-real"), ("videos/", "Youtube-real")])
def test_celeb_df_whose_list_says_1_for_real(level, youtube, tmp_path):
    touch(tmp_path, *(f"Celeb-real/{level}id{k}_0000.mp4" for k in range(3)), *(f"{youtube}/{level}0000{k}.mp4" for k in range(2)),
          *(f"Celeb-synthesis/{level}id0_id{k}_0000.mp4" for k in (1, 2)))
    lines = ["1 Celeb-real/id2_0000.mp4", "1 YouTube-real/00001.mp4", "0 Celeb-synthesis/id0_id2_0000.mp4"]
    (tmp_path / "List_of_testing_videos.txt").write_text("\n".join(lines) + "\n")
    records = celeb_df(tmp_path)
    assert sorted((r.path.name, r.label) for r in records if r.split == "test") == [("00001.mp4", 0), ("id0_id2_0000.mp4", 1), ("id2_0000.mp4", 0)]
    assert len(records) == 7 and not any(r.split == "val" for r in records)
    assert {r.identities for r in records if r.label} == {("id0", "id1"), ("id0", "id2")}
    (tmp_path / "List_of_testing_videos.txt").write_text("0 Celeb-real/id2_0000.mp4\n")
    assert "1 for real" in refused(celeb_df, tmp_path)
    (tmp_path / "List_of_testing_videos.txt").write_text("1 Celeb-real/id9_0000.mp4\n")
    assert "id9_0000.mp4" in refused(celeb_df, tmp_path)


@pytest.mark.parametrize("level", ["", "videos/"])
@pytest.mark.parametrize("table", ["csv", "json"])
def test_dfdc(level, table, tmp_path):
    touch(tmp_path, *(f"test/{level}{name}.mp4" for name in "abc"))
    if table == "csv":
        (tmp_path / "test" / "labels.csv").write_text("filename,label\na.mp4,1\nb.mp4,0\nc.mp4,1\n")
    else:
        (tmp_path / "test" / "metadata.json").write_text(json.dumps({f"{n}.mp4": {"is_fake": int(n != "b"), "augmentations": {}} for n in "abc"}))
    assert [(r.path.stem, r.label) for r in dfdc_test(tmp_path)] == [("a", 1), ("b", 0), ("c", 1)]
    (tmp_path / "one_face.txt").write_text("b\nc\n")
    assert [r.path.stem for r in dfdc_test(tmp_path, tmp_path / "one_face.txt")] == ["b", "c"]
    (tmp_path / "one_face.txt").write_text("b\nz\n")
    assert "z.mp4" in refused(dfdc_test, tmp_path, tmp_path / "one_face.txt")


def test_deeper_forensics_takes_its_real_videos_from_faceforensics(tmp_path):
    ff = ff_tree(tmp_path / "ff")
    touch(tmp_path, "df/manipulated_videos/end_to_end/020_W123.mp4", "df/manipulated_videos/end_to_end/000_M101.mp4", "df/source_videos/W123/x.mp4")
    records = deeper_forensics(tmp_path / "df", ff)
    assert [r.path.name for r in records if r.label] == ["020_W123.mp4"] and sum(r.label == 0 for r in records) == 4
    assert records[-1].split == "test" and {r.identities for r in records if r.label} == {("020", "W123")}
    assert "manipulated_videos" in refused(deeper_forensics, tmp_path / "df", ff, "mixed")
