"""Videos on disk: decoding, alignment, crops that are made once, clips of every layout, and what is left out by name; on mp4 files that are encoded here."""

import json
import logging
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from kdnotes.checks import refused
from kdnotes.data.alignment import CROP, EYES, STABLE, face_windows, mean_face, moved, similarity, smoothed, warped
from kdnotes.data.catalogue import known, row_of
from kdnotes.data.clips import toytalk
from kdnotes.data.facecrops import Cropping, NoSingleFace, clip_starts, face_crops, one_face, video_crops
from kdnotes.data.perturb import compress_h264, perturb
from kdnotes.data.sets.videos import SHORT, open_videos, split_of, video_clips, video_folder, video_records
from kdnotes.data.videos import read_video, recoded, video_blocks, video_facts, write_video

ff_tree = runpy.run_path(str(Path(__file__).with_name("test_video_sets.py")))["ff_tree"]
needs_av = pytest.mark.skipif(not __import__("importlib").util.find_spec("av"), reason="needs PyAV: pip install 'kdnotes[video]'")
FACE = 24                                                    # pixels of a face in the films of these tests


def random_faces(T, seed=0):
    """Landmarks of faces that differ in place, size and tilt, float64."""
    g = torch.Generator().manual_seed(seed)
    M = torch.eye(2, 3, dtype=torch.float64).repeat(T, 1, 1)
    angle, size = 0.2 * torch.randn(T, generator=g, dtype=torch.float64), 0.5 + torch.rand(T, generator=g, dtype=torch.float64)
    M[:, 0, 0], M[:, 0, 1], M[:, 1, 0], M[:, 1, 1] = size * angle.cos(), -size * angle.sin(), size * angle.sin(), size * angle.cos()
    M[:, :, 2] = 40 * torch.rand(T, 2, generator=g, dtype=torch.float64)
    return M, moved(M, mean_face().expand(T, -1, -1))


# ---- alignment


def test_the_mean_face():
    p = mean_face()
    assert p.shape == (68, 2) and torch.allclose(p[15:].mean(0), torch.full((2,), 128.0, dtype=torch.float64))
    assert abs(float((p[42:48].mean(0) - p[36:42].mean(0)).norm()) - EYES) < 0.1
    assert p[8, 1] == p[:, 1].max() and p[36, 0] < p[39, 0] < p[42, 0] < p[45, 0]


@pytest.mark.parametrize("T", [1, 2, 7, 13, 14, 40])
def test_smoothing_is_the_mean_of_a_window_that_shrinks_at_both_ends_and_keeps_each_centroid(T):
    p = torch.randn(T, 68, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(T))
    out = smoothed(p)
    for t in range(T):
        k = min(6, t, T - 1 - t)
        mean = p[t - k : t + k + 1].mean(0)
        torch.testing.assert_close(out[t], mean - mean.mean(0) + p[t].mean(0))
    torch.testing.assert_close(out.mean(1), p.mean(1))
    assert torch.equal(out[0], p[0]) or T == 1 or torch.allclose(out[0], p[0])
    torch.testing.assert_close(smoothed(p, 0), p)


def test_similarity_is_exact_and_the_least_squares():
    M, p = random_faces(5)
    torch.testing.assert_close(similarity(mean_face().expand(5, -1, -1), p), M)
    torch.testing.assert_close(similarity(mean_face().expand(5, -1, -1)[:, STABLE, :], p[:, STABLE, :], robust=True), M)
    q = p + torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, source = similarity(mean_face().expand(5, -1, -1), q), mean_face()
    A = torch.cat([torch.stack([source[:, 0], -source[:, 1], torch.ones(68), torch.zeros(68)], 1),
                   torch.stack([source[:, 1], source[:, 0], torch.zeros(68), torch.ones(68)], 1)]).double()
    for k in range(5):
        a, b, x, y = torch.linalg.lstsq(A, torch.cat([q[k, :, 0], q[k, :, 1]])[:, None]).solution[:, 0]
        torch.testing.assert_close(found[k], torch.stack([torch.stack([a, -b, x]), torch.stack([b, a, y])]))


def test_up_to_three_of_eight_points_may_be_wrong():
    M, p = random_faces(20, 3)
    p = p[:, STABLE, :].clone()
    g = torch.Generator().manual_seed(0)
    for k in range(20):
        p[k, torch.randperm(8, generator=g)[:3]] += 40 * torch.randn(3, 2, generator=g, dtype=torch.float64)
    source = mean_face()[STABLE, :].expand(20, -1, -1)
    torch.testing.assert_close(similarity(source, p, robust=True), M, atol=1e-6, rtol=1e-6)
    assert (similarity(source, p) - M).abs().max() > 0.05


@pytest.mark.parametrize("align", ["smooth", "clip"])
def test_the_window_stays_with_a_face_that_wanders_and_turns(align):
    """A stiff face: each frame's landmarks land in the same places of the window, its middle inside it."""
    M, p = random_faces(12, 5)
    if align == "clip":                                          # one map for all: then the face may not move
        p = p[:1].expand(12, -1, -1)
    p = p if align == "clip" else p[torch.zeros(12, dtype=torch.long)] + 3 * torch.arange(12)[:, None, None]
    inside = moved(face_windows(p, align), p)
    assert (inside - inside[0]).abs().max() < 1e-6 and (inside[0, 15:].mean(0) - (CROP - 1) / 2).abs().max() < 1.1
    scale = float((inside[0, 42:48].mean(0) - inside[0, 36:42].mean(0)).norm())
    assert abs(scale - EYES) < 0.5


def test_smoothing_takes_the_tremor_of_a_still_face_away():
    still = mean_face().expand(40, -1, -1)
    tremble = still + torch.randn(40, 68, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shake = lambda M: float(moved(M, still).diff(dim=0).abs().mean())
    none, some, clip = (shake(face_windows(tremble, **how)) for how in ({"reach": 0}, {}, {"align": "clip", "span": 40}))
    assert some < 0.6 * none and clip < 1e-9


def test_a_window_is_read_from_the_frame_as_it_is_and_black_outside():
    frames = torch.randint(0, 256, (3, 3, 50, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shift = torch.eye(2, 3, dtype=torch.float64).repeat(3, 1, 1)
    shift[:, :, 2] = torch.tensor([-10.0, -5.0])
    assert torch.equal(warped(frames, shift, 30), frames[:, :, 5:35, 10:40])
    shift[:, :, 2] = torch.tensor([20.0, 4.0])
    out = warped(frames, shift, 40)
    assert not out[:, :, :4].any() and not out[..., :20].any() and torch.equal(out[:, :, 4:, 20:], frames[:, :, :36, :20])
    assert "a map a frame" in refused(warped, frames, shift[:2]) and "inverted" in refused(warped, frames, 0 * shift)


# ---- files


def film(T=40, faces=1, size=96, seed=0, forged=False):
    """Frames of a talking face of `FACE` pixels that wanders over black; with two faces, one at each side."""
    clips = toytalk({"DF" if forged else "real": 2}, seed=seed, frames=T, size=FACE, first=2 * seed).clips[:, :, :].clamp(min=24)
    frames = torch.zeros(T, 3, size, size, dtype=torch.uint8)
    for k in range(faces):
        for t in range(T):
            x, y = 8 + 48 * k + int(8 * np.sin(0.1 * t + seed)), 30 + int(6 * np.cos(0.13 * t))
            frames[t, :, y : y + FACE, x : x + FACE] = clips[k, t]
    return frames


def find_by_light(frames):
    """Landmarks for the films above: the mean face in the box of each run of bright columns."""
    found = []
    for frame in frames:
        bright = frame.amax(0) > 12
        columns = bright.sum(0) > 4
        edges = torch.nn.functional.pad(columns.int(), (1, 1)).diff().nonzero().flatten().view(-1, 2).tolist()
        faces = []
        for a, b in edges:
            rows = (bright[:, a:b].sum(1) > 4).nonzero().flatten()
            if b - a > FACE // 2 and len(rows):
                faces.append(mean_face(FACE, 8.0) + torch.tensor([(a + b) / 2 - FACE / 2, float(rows[0] + rows[-1] + 1) / 2 - FACE / 2]))
        found.append(torch.stack(faces) if faces else torch.zeros(0, 68, 2))
    return found


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """One file each: good, two faces, no face, short, damaged, cut short, no film at all."""
    pytest.importorskip("av", reason="needs PyAV: pip install 'kdnotes[video]'")
    root = tmp_path_factory.mktemp("films")
    write_video(root / "good.mp4", film())
    write_video(root / "two.mp4", film(faces=2))
    write_video(root / "none.mp4", film(faces=0))
    write_video(root / "short.mp4", film(T=10))
    content = (root / "good.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(content[: len(content) // 2])
    (root / "damaged.mp4").write_bytes(content[:300] + bytes(len(content) - 300))
    (root / "words.mp4").write_text("this is no film")
    return root


@needs_av
def test_frames_come_back_as_they_were_encoded(tmp_path):
    frames = film(T=20)
    read = read_video(write_video(tmp_path / "a.mp4", frames, fps=30, crf=4))
    assert read.frames.shape == frames.shape and read.fps == 30 and (read.frames.float() - frames).abs().mean() < 3
    assert torch.equal(torch.cat(list(video_blocks(tmp_path / "a.mp4", most=11, block=4))), read.frames[:11])
    assert [len(block) for block in video_blocks(tmp_path / "a.mp4", most=11, block=4)] == [4, 4, 3]
    facts = video_facts(tmp_path / "a.mp4")
    assert (facts.frames, facts.size, facts.fps, facts.codec) == (20, (96, 96), 30.0, "h264")
    assert torch.equal(read.frames, recoded(frames, 4, 30))


@needs_av
def test_a_film_of_a_phone_is_turned_as_its_header_says(tmp_path):
    frames = torch.zeros(6, 3, 32, 64, dtype=torch.uint8)
    frames[:, :, :16, :16] = 250                                 # upper left
    content = bytearray(write_video(tmp_path / "a.mp4", frames).read_bytes())
    at = content.index(b"tkhd") + 4 + 40                         # the matrix of the track, by a quarter to the right
    quarter = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    content[at : at + 36] = quarter
    (tmp_path / "b.mp4").write_bytes(bytes(content))
    turned = read_video(tmp_path / "b.mp4").frames
    assert turned.shape == (6, 3, 64, 32) and turned[:, :, :14, 18:].float().mean() > 200 > 60 > turned[:, :, 20:].float().mean()


@needs_av
@pytest.mark.parametrize("name, word", [("cut", "cut.mp4 cannot be read"), ("damaged", "damaged.mp4 cannot be read"), ("words", "words.mp4 cannot be read"), ("absent", "absent.mp4 is missing")])
def test_what_cannot_be_decoded_is_told_by_name(films, name, word):
    assert word in refused(read_video, films / f"{name}.mp4")


@needs_av
def test_a_file_whose_tail_is_gone_is_cut_short_though_its_head_is_there(tmp_path):
    import av
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as video:
        stream = video.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 96, "yuv420p"
        for frame in film().permute(0, 2, 3, 1).numpy():
            video.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        video.mux(stream.encode())
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat") and len(read_video(tmp_path / "a.mp4").frames) == 40
    (tmp_path / "b.mp4").write_bytes(content[: int(0.8 * len(content))])
    assert "cut short or damaged" in refused(read_video, tmp_path / "b.mp4") or "frames are there" in refused(read_video, tmp_path / "b.mp4")


@needs_av
@pytest.mark.parametrize("size", [32, 96])
def test_the_same_frames_give_the_same_bytes_whatever_lies_in_memory(size):
    frames = toytalk({"real": 1}, frames=6, size=size).clips[0]
    first = recoded(frames, 32)
    for k in range(4):
        rubbish = [torch.full((1000 * (k + 1),), k, dtype=torch.uint8) for _ in range(200)]
        del rubbish
        assert torch.equal(recoded(frames, 32), first)


@needs_av
def test_real_compression(tmp_path):
    clips = toytalk({"real": 2}, frames=5, size=32).clips
    errors = [float((perturb(clips, "compression", level, encoder="h264").float() - clips).abs().mean()) for level in (1, 3, 5)]
    assert errors[0] < errors[1] < errors[2]
    assert torch.equal(perturb(clips, "compression", 2, encoder="h264"), compress_h264(clips, 32))
    floats = perturb(clips / 255, "compression", 2, encoder="h264")
    assert floats.dtype == torch.float32 and torch.equal((floats * 255).round().byte(), compress_h264(clips, 32))
    assert "'h264'" in refused(perturb, clips, "compression", 1, encoder="hevc")


# ---- one face


def test_one_face_is_followed_and_gaps_are_bridged():
    a, b = mean_face(), mean_face() + 200
    found = [(a + t)[None] for t in range(30)]
    found[7] = torch.zeros(0, 68, 2)
    found[12] = torch.stack([b, a + 12])                         # somebody in the background, for one frame
    track = one_face(found)
    torch.testing.assert_close(track, torch.stack([a + t for t in range(30)]))
    assert "no face in 4 of 30 frames" in refused(one_face, found[:3] + [torch.zeros(0, 68, 2)] * 4 + found[7 + 1 :] + found[:1], 0.1)
    assert "two faces or more in 30 of 30" in refused(one_face, [torch.stack([a, b])] * 30)
    assert "no face in 0 of 0" in refused(one_face, [])
    assert "(K, 68, 2)" in refused(one_face, [a]) and "NaN" in refused(one_face, [a[None] * float("nan")])
    with pytest.raises(NoSingleFace):
        one_face([torch.zeros(0, 68, 2)] * 3)


@needs_av
def test_crops_hold_the_face_and_are_made_once(films, tmp_path, caplog):
    calls = []
    def landmarks(frames):
        calls.append(len(frames))
        return find_by_light(frames)
    paths = [films / f"{name}.mp4" for name in ("good", "two", "none", "damaged", "cut", "words", "short")]
    with caplog.at_level(logging.WARNING, "kdnotes"):
        made = face_crops(paths, landmarks, root=tmp_path, recipe="by light", workers=1)
    assert [path.stem for path in made.files] == ["good", "short"]
    told = {path.stem: why for path, why in made.left_out.items()}
    assert "two faces or more in 40 of 40 frames" in told["two"] and "no face in 40 of 40 frames" in told["none"]
    assert all(f"{name}.mp4" in told[name] and f"{name}.mp4" in caplog.text for name in ("two", "none", "damaged", "cut", "words"))
    crops = made.crops(films / "good.mp4")
    assert crops.shape == (40, 3, CROP, CROP) and crops.dtype == torch.uint8 and crops[:, :, 45:105, 45:105].float().mean() > 60
    where = lambda x: torch.stack([(m := (x.amax(1) > 12).float()).mean(1) @ torch.arange(x.shape[3]).float() / m.mean((1, 2)) / x.shape[3],
                                   m.mean(2) @ torch.arange(x.shape[2]).float() / m.mean((1, 2)) / x.shape[2]], 1)
    there = read_video(films / "good.mp4").frames
    assert where(crops).std(0).max() * CROP < 1.5 and where(there).std(0).max() * 96 > 3, "the window goes with the face"
    before = len(calls)
    again = face_crops(paths, landmarks, root=tmp_path, recipe="by light", workers=1)
    assert again == made and sum(calls[before:]) < 40, "crops and refusals for the faces' sake are remembered; what cannot be decoded is tried again"
    assert made.fps(films / "good.mp4") == 25
    before = len(calls)
    face_crops([films / "good.mp4"], landmarks, Cropping(most=12), tmp_path, "by light", workers=1)
    assert sum(calls[before:]) == 12, "another plan, other crops"


@needs_av
def test_an_interrupted_call_goes_on_where_it_was(films, tmp_path):
    calls = []
    def breaks(frames):
        calls.append(len(frames))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return find_by_light(frames)
    paths = [films / "good.mp4", films / "short.mp4"]
    with pytest.raises(KeyboardInterrupt):
        face_crops(paths, breaks, root=tmp_path, recipe="x", workers=1)
    assert len(face_crops(paths, breaks, root=tmp_path, recipe="x", workers=1).files) == 2 and calls == [40, 10, 10]


@needs_av
def test_landmarks_that_lie_beside(films, tmp_path):
    (tmp_path / "videos").mkdir(), (tmp_path / "landmarks").mkdir()
    (tmp_path / "videos" / "007.mp4").write_bytes((films / "good.mp4").read_bytes())
    assert "no landmarks/007.npy" in refused(video_crops, tmp_path / "videos" / "007.mp4")
    points = torch.cat(find_by_light(read_video(films / "good.mp4").frames)).numpy()
    np.save(tmp_path / "landmarks" / "007.npy", points)
    assert torch.equal(video_crops(tmp_path / "videos" / "007.mp4"), video_crops(films / "good.mp4", find_by_light))
    np.save(tmp_path / "landmarks" / "007.npy", points[:30])
    assert "40 frames and landmarks of 30" in refused(video_crops, tmp_path / "videos" / "007.mp4")
    np.save(tmp_path / "landmarks" / "007.npy", points[:, :5])
    assert "(40, 5, 2)" in refused(video_crops, tmp_path / "videos" / "007.mp4")


@needs_av
def test_blocks_make_no_difference(films, monkeypatch):
    whole = video_crops(films / "good.mp4", find_by_light)
    monkeypatch.setattr("kdnotes.data.videos.PIXELS_AT_ONCE", 7 * 96 * 96)
    assert (video_crops(films / "good.mp4", find_by_light).int() - whole.int()).abs().max() <= 1


def test_clips_of_110_frames():
    assert clip_starts(110, 25) == [0, 25, 50, 75] and clip_starts(110, 25, True) == [0, 25, 50, 75, 85]
    assert clip_starts(24, 25, True) == [] and clip_starts(50, 25, True) == [0, 25]


# ---- sets


def fill(root, seed=0):
    """Encode a small film into every empty file below `root`: forged ones are ToyTalk's DF."""
    for k, path in enumerate(sorted(root.rglob("*.mp4"))):
        write_video(path, film(T=20, size=96, seed=k % 7, forged="_" in path.stem))


@needs_av
def test_clips_of_faceforensics_end_to_end(tmp_path, caplog):
    root = ff_tree(tmp_path / "FaceForensics++", kinds=("Deepfakes",))
    fill(root)
    from kdnotes.data.sets import videos as sets
    options = {"landmarks": find_by_light, "kept": tmp_path / "kept", "workers": 1, "kinds": ("real", "DF")}
    (root / "original_sequences/youtube/c23/videos/020.mp4").write_bytes(b"damaged")
    records = sets.faceforensics(root, kinds=("Deepfakes",))
    for kind in ("FaceSwap", "Face2Face", "NeuralTextures"):     # the loader asks for all four; only two kinds are opened
        for record in records:
            if record.label:
                place = root / f"manipulated_sequences/{kind}/c23/videos" / record.path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
    with caplog.at_level(logging.WARNING, "kdnotes"):
        test = video_clips("faceforensics", "test", tmp_path, frames=8, size=32, **options)
    assert "020.mp4" in caplog.text and len(test) == 2 * (3 + 4) and test.clips.shape[1:] == (8, 3, 32, 32)
    assert set(test.kinds) == {"real", "DF"} and int(test.labels.sum()) == 8 and test.name == "faceforensics test"
    assert test.videos.bincount().tolist() == [2] * 7 and (test.donors[test.labels == 0] == -1).all() and (test.donors[test.labels == 1] >= 0).all()
    more = video_clips("faceforensics", "test", tmp_path, frames=8, size=32, backpad_last=True, **options)
    assert len(more) == 3 * 7 and torch.equal(more.clips[0], test.clips[0])
    learnt = video_clips("faceforensics", "pretrain", tmp_path, frames=16, size=140, per_video=1, plan=Cropping(align="clip"), **options | {"kinds": None})
    assert len(learnt.real()) == 4 and not set(learnt.identities.tolist()) & set(test.identities.tolist())
    assert "shorter" not in caplog.text
    assert "no video of faceforensics, test, is left of 8" in refused(video_clips, "faceforensics", "test", tmp_path, frames=21, **options)
    assert "kind of video" in refused(video_clips, "faceforensics", "test", tmp_path, **options | {"kinds": ("Deepfake",)})
    assert "two maps" in refused(video_clips, "faceforensics", "test", tmp_path, backpad_last=True, plan=Cropping(align="clip"), **options)


@needs_av
def test_too_many_clips_for_memory_are_refused(tmp_path, monkeypatch):
    (tmp_path / "mine" / "real").mkdir(parents=True), (tmp_path / "mine" / "fake").mkdir()
    write_video(tmp_path / "mine" / "real" / "anna_1.mp4", film(T=16)), write_video(tmp_path / "mine" / "fake" / "anna_1.mp4", film(T=16, forged=True))
    options = {"landmarks": find_by_light, "kept": tmp_path / "kept", "workers": 1}
    made = video_clips("mine", split_of("anna"), tmp_path, **options)
    assert made.kinds == ("fake", "real") and made.clips.shape == (2, 16, 3, 112, 112)
    other = next(split for split in ("train", "val", "test") if split != split_of("anna"))
    assert f"no videos of the split '{other}'" in refused(open_videos, "mine", other, tmp_path, **options)
    monkeypatch.setattr("kdnotes.data.sets.videos.MEMORY_LIMIT", 10)
    assert "per_video=" in refused(video_clips, "mine", split_of("anna"), tmp_path, **options)


def test_a_folder_of_real_and_forged_videos(tmp_path):
    root = tmp_path / "mine"
    for name in ("real/anna_01.mp4", "real/bo_01.MOV", "fake/swap/anna_bo_01.mp4", "fake/lips/bo_02.avi", "fake/cy_1.mp4", "real/notes.txt", "real/.hidden.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    records = video_folder(root)
    assert [(r.path.name, r.kind, r.label) for r in records] == [("cy_1.mp4", "fake", 1), ("bo_02.avi", "lips", 1), ("anna_bo_01.mp4", "swap", 1), ("anna_01.mp4", "real", 0), ("bo_01.MOV", "real", 0)]
    assert all(r.split == split_of(r.identities[0]) for r in records) and records[2].identities == ("anna", "bo")
    assert records == video_records("mine", tmp_path) and "mine" in known(tmp_path, "videos")
    assert row_of(known(tmp_path, "videos")["mine"], tmp_path)["images"] == "2 real + 3 forged videos"
    shares = [sum(split_of(f"person {k}") == split for k in range(2000)) / 2000 for split in ("train", "val", "test")]
    assert all(abs(a - b) < 0.04 for a, b in zip(shares, (0.72, 0.14, 0.14)))
    rows = [f"{r.path.relative_to(root)},{'test' if r.label else 'train'}" for r in records]
    (root / "splits.csv").write_text("path,split\n" + "\n".join(rows))
    assert {(r.label, r.split) for r in video_folder(root)} == {(0, "train"), (1, "test")}
    (root / "splits.csv").write_text("path,split\n" + "\n".join(rows[1:]))
    assert "1 videos have no split" in refused(video_folder, root)
    (root / "splits.csv").write_text("path,split\n" + "\n".join([*rows, "real/zoe.mp4,train"]))
    assert "zoe.mp4" in refused(video_folder, root)
    (root / "splits.csv").write_text("path,split\nreal/anna_01.mp4,dev\n")
    assert "'dev'" in refused(video_folder, root)
    assert "no video" in refused(video_folder, tmp_path / "empty") or "no " in refused(video_folder, tmp_path / "empty")
    assert "unknown set of videos" in refused(video_records, "mien", tmp_path) and "mine" in refused(video_records, "mien", tmp_path)


def test_the_catalogue_lists_sets_of_videos_and_how_to_get_them(tmp_path):
    rows = {name: row_of(source, tmp_path) for name, source in known(tmp_path, "videos").items()}
    assert set(rows) == {"faceforensics", "faceshifter", "celeb_df", "dfdc", "deeper_forensics", "toytalk"}
    assert rows["celeb_df"]["state"] == "absent" and "Celeb-DF-v2/" in rows["celeb_df"]["how"] and rows["toytalk"]["present"]
    ff_tree(tmp_path / "FaceForensics++")
    row = row_of(known(tmp_path, "videos")["faceforensics"], tmp_path)
    assert row["present"] and row["images"] == "12 real + 48 forged videos"
    assert row_of(known(tmp_path, "videos")["faceshifter"], tmp_path)["state"] == "absent"
    (tmp_path / "FaceForensics++/manipulated_sequences/FaceSwap/c23/videos/000_003.mp4").unlink()
    row = row_of(known(tmp_path, "videos")["faceforensics"], tmp_path)
    assert row["state"] == "damaged" and "000_003.mp4" in row["where"]
    assert set(SHORT.values()) == {"DF", "FS", "F2F", "NT", "FSh", "DFo", "CDF", "DFDC"}


def test_the_training_videos_of_dfdc_and_the_tree_of_realforensics(tmp_path):
    part = tmp_path / "DFDC" / "train" / "dfdc_train_part_0"
    part.mkdir(parents=True)
    (part / "metadata.json").write_text(json.dumps({"a.mp4": {"label": "REAL", "split": "train"}, "b.mp4": {"label": "FAKE", "split": "train", "original": "a.mp4"}}))
    from kdnotes.data.sets.videos import dfdc_train, faceforensics
    assert "2 of 2 videos are missing" in refused(dfdc_train, tmp_path / "DFDC")
    (part / "a.mp4").touch(), (part / "b.mp4").touch()
    assert [(r.path.name, r.label, r.identities) for r in dfdc_train(tmp_path / "DFDC")] == [("a.mp4", 0, ("a",)), ("b.mp4", 1, ("a",))]
    (part / "metadata.json").write_text(json.dumps({"a.mp4": {"label": "TRUE"}}))
    assert "metadata.json cannot be read" in refused(dfdc_train, tmp_path / "DFDC")
    root = ff_tree(tmp_path / "x")
    (root / "Forensics").mkdir()
    (root / "original_sequences" / "youtube").rename(root / "Forensics" / "Real")
    for kind in ("Deepfakes", "FaceSwap"):
        (root / "manipulated_sequences" / kind).rename(root / "Forensics" / kind)
    assert len(faceforensics(root, kinds=("Deepfakes", "FaceSwap"))) == 36


@needs_av
@pytest.mark.parametrize("name, kind, forged", [("faceshifter", "FSh", 4), ("celeb_df", "CDF", 1), ("dfdc", "DFDC", 1), ("deeper_forensics", "DFo", 1)])
def test_clips_of_every_other_benchmark_end_to_end(name, kind, forged, tmp_path, caplog):
    """Each in its own tree with an empty file among the real test videos, which is left out by name; labels by folder and list."""
    if name in ("faceshifter", "deeper_forensics"):
        ff_tree(tmp_path / "FaceForensics++", kinds=("FaceShifter",) if name == "faceshifter" else ())
        real = [tmp_path / f"FaceForensics++/original_sequences/youtube/c23/videos/{n}.mp4" for n in ("020", "007", "021", "022")]
        fake = sorted((tmp_path / "FaceForensics++/manipulated_sequences").rglob("02?_*.mp4")) + sorted((tmp_path / "FaceForensics++").rglob("007_*.mp4"))
        if name == "deeper_forensics":
            fake = [tmp_path / "DeeperForensics-1.0/manipulated_videos/end_to_end/021_W123.mp4"]
    elif name == "celeb_df":
        root = tmp_path / "Celeb-DF-v2"
        real, fake = [root / f"Celeb-real/id{k}_0000.mp4" for k in (0, 1)] + [root / "YouTube-real/00000.mp4"], [root / "Celeb-synthesis/id0_id1_0000.mp4"]
        root.mkdir()
        (root / "List_of_testing_videos.txt").write_text("1 Celeb-real/id0_0000.mp4\n1 Celeb-real/id1_0000.mp4\n1 YouTube-real/00000.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n")
    else:
        real, fake = [tmp_path / f"DFDC/test/{n}.mp4" for n in "ab"], [tmp_path / "DFDC/test/c.mp4"]
        (tmp_path / "DFDC" / "test").mkdir(parents=True)
        (tmp_path / "DFDC/test/labels.csv").write_text("filename,label\na.mp4,0\nb.mp4,0\nc.mp4,1\n")
    for k, path in enumerate([*real, *fake]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"") if not k else write_video(path, film(T=18, seed=k, forged=path in fake))
    with caplog.at_level(logging.WARNING, "kdnotes"):
        made = video_clips(name, "test", tmp_path, frames=8, size=24, landmarks=find_by_light, kept=tmp_path / "kept", workers=1)
    assert real[0].name in caplog.text and made.kinds.count(kind) == 2 * forged == 2 * len(fake) and made.kinds.count("real") == 2 * (len(real) - 1)
    assert [k == kind for k in made.kinds] == made.labels.bool().tolist() and int(made.videos.max()) == len(real) + len(fake) - 2
    assert len(made.of("real").real()) == 2 * (len(real) - 1)


# ---- the page of a folder


def test_a_folder_of_pictures_with_a_stray_film_is_one_of_pictures(tmp_path):
    from kdnotes.data.videosurvey import holds_videos
    (tmp_path / "cat").mkdir()
    for name in ("a.png", "b.jpg", "film.mp4"):
        (tmp_path / "cat" / name).touch()
    assert not holds_videos(tmp_path)
    (tmp_path / "cat" / "a.png").unlink(), (tmp_path / "cat" / "b.jpg").unlink()
    assert holds_videos(tmp_path) and not holds_videos(tmp_path / "cat" / "film.mp4")


def test_the_page_of_a_benchmark_and_of_no_layout(tmp_path):
    pytest.importorskip("av", reason="needs PyAV: pip install 'kdnotes[video]'")
    from kdnotes.data.videosurvey import holds_videos, survey_videos
    root = ff_tree(tmp_path / "ff", kinds=("FaceSwap",))
    (root / "stray.mp4").touch()
    assert holds_videos(root) and not holds_videos(tmp_path / "nothing")
    page = survey_videos(root)
    assert page.layout == "FaceForensics++" and len(page.records) == 24 and [p.name for p in page.strays] == ["stray.mp4"]
    assert len([line for line in page.to_mend() if "cannot be read" in line]) == 24, "empty files are no films"
    text = str(page)
    assert "FaceSwap FS" in text and "000_003.mp4 cannot be read" in text and "... 4 more" in text
    (root / "manipulated_sequences/FaceSwap/c23/videos/000_003.mp4").unlink()
    assert "1 of 24 videos are missing" in survey_videos(root).to_mend()[0]
    (tmp_path / "loose").mkdir()
    write_video(tmp_path / "loose" / "a.mp4", film(T=4))
    assert "no layout that is known" in survey_videos(tmp_path / "loose").to_mend()[0]
    assert "is no folder" in refused(survey_videos, tmp_path / "nothing")


@needs_av
def test_the_command_looks_at_videos_and_does_not_copy_them(tmp_path, capsys):
    from kdnotes.cli import main
    write_video(tmp_path / "mine/real/anna_1.mp4", film(T=20)), write_video(tmp_path / "mine/fake/swap/anna_1.mp4", film(T=20, forged=True))
    assert main(["data", "check", str(tmp_path / "mine")]) == 0
    page = capsys.readouterr().out
    assert "a folder with real and fake" in page and "96 x 96 2" in page and "h264 2" in page and "to mend            none" in page
    write_video(tmp_path / "mine/real/bo_1.mp4", film(T=5))
    (tmp_path / "mine/fake/words.mp4").write_text("no film")
    assert main(["data", "check", str(tmp_path / "mine")]) == 1
    page = capsys.readouterr().out
    assert "bo_1.mp4 has 5 frames, a clip 16" in page and "words.mp4 cannot be read" in page
    with pytest.raises(SystemExit, match="2"):
        main(["data", "add", "mine", str(tmp_path / "mine"), "--data-root", str(tmp_path / "root")])
    told = capsys.readouterr().err.strip()
    assert "\n" not in told and "holds videos, which are read where they lie" in told and not (tmp_path / "root").exists()
    assert main(["data", "--data-root", str(tmp_path)]) == 0
    listing = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "present" in listing["mine"] and "2 real + 2 forged videos" in listing["mine"] and "Celeb-DF-v2/" in listing["celeb_df"]


def test_without_the_extra_one_line_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    from kdnotes.cli import main
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    for name in ("mine/real/anna_1.mp4", "mine/fake/anna_1.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"film")
    path, frames = tmp_path / "mine/real/anna_1.mp4", torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for function, given in ((read_video, (path,)), (video_facts, (path,)), (recoded, (frames,)), (write_video, (tmp_path / "a.mp4", frames)),
                            (face_crops, ([path], find_by_light)), (video_clips, ("mine", split_of("anna"), tmp_path))):
        with pytest.raises(ImportError, match=r"pip install 'kdnotes\[video\]'"):
            function(*given, **{"landmarks": find_by_light, "kept": tmp_path, "workers": 1} if function is video_clips else {"root": tmp_path, "workers": 1} if function is face_crops else {})
    assert not (tmp_path / "a.mp4").exists() and len(video_records("mine", tmp_path)) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["data", "check", str(tmp_path / "mine")])
    assert "kdnotes[video]" in capsys.readouterr().err
    assert main(["data", "--data-root", str(tmp_path)]) == 0, "the list of sets needs no decoder"
    assert "1 real + 1 forged videos" in capsys.readouterr().out


@needs_av
def test_a_talking_photograph_with_dlibs_landmarks(tmp_path):
    """From a photograph of LFW set in motion, as an mp4 file, through detector, landmarks, alignment and crop: the eyes stand still where the mean face has them."""
    import os

    from kdnotes.data.photoclips import Portraits, photoclips, suitable
    from kdnotes.models.recognisers import find_faces, is_there
    shared = Path(os.environ.get("KDNOTES_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data" / "lfw"
    if not is_there() or not (shared / "dlib.npz").is_file():
        pytest.skip(f"the extra `faces` is not installed, or LFW with its landmarks is not at {shared}")
    from PIL import Image
    images = torch.from_numpy(np.asarray(Image.open(shared / "test_00.webp")).reshape(-1, 112, 112, 3).copy()).permute(0, 3, 1, 2)
    people = Portraits(images, torch.from_numpy(np.load(shared / "dlib.npz")["test_landmarks"][: len(images)].astype(np.float32)), torch.arange(len(images)))
    clip = photoclips(people.take(suitable(people)), {"real": 1}, frames=18, size=112, seed=2).clips[0]
    film = torch.full((18, 3, 300, 360), 90, dtype=torch.uint8)
    film[:, :, 30:254, 60:284] = torch.nn.functional.interpolate(clip.float(), scale_factor=2, mode="bilinear").round().byte()
    made = face_crops([write_video(tmp_path / "a.mp4", film)], find_faces, root=tmp_path, workers=1)
    assert not made.left_out and made.crops(tmp_path / "a.mp4").shape == (18, 3, CROP, CROP)
    found = one_face(find_faces(film))
    inside = moved(face_windows(found), found)
    eyes = torch.stack([inside[:, 36:42].mean(1), inside[:, 42:48].mean(1)], 1)
    assert abs(float((eyes[:, 1] - eyes[:, 0]).norm(dim=1).mean()) - EYES) < 4 and eyes.std(0).max() < 2.5
    assert (inside[:, 15:].mean(1) - CROP / 2).abs().max() < 6
