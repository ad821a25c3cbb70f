"""ToyTalk: the same bytes however they are drawn, nobody in two splits, null forgeries that are real, and gates against shortcuts."""

import dataclasses

import pytest
import torch

from kdnotes.checks import refused
from kdnotes.data.clips import HELD_OUT, KINDS, SPLITS, TRAINED, WITHOUT_FINGERPRINT, ClipSet, Forgery, temporal_energy, toytalk
from kdnotes.metrics.verify import roc

EVERY_KIND = dict.fromkeys(KINDS, 1)


def area(scores, forged):
    curve = roc(scores, forged)
    return 100 * float(torch.trapezoid(curve.tar.double(), curve.far.double()))


@pytest.mark.parametrize("size, frames", [(15, 5), (32, 3), (33, 4)])
def test_the_same_bytes_for_every_chunk_and_number_of_threads(size, frames):
    whole = toytalk(EVERY_KIND, frames=frames, size=size, chunk=100).clips
    before = torch.get_num_threads()
    try:
        for threads, chunk in ((1, 1), (1, 3), (2, 5)):
            torch.set_num_threads(threads)
            assert torch.equal(toytalk(EVERY_KIND, frames=frames, size=size, chunk=chunk).clips, whole)
    finally:
        torch.set_num_threads(before)


def test_more_clips_begin_with_the_same_ones_and_seeds_differ():
    few, more = toytalk({"DF": 2}, frames=3, size=16), toytalk({"DF": 4}, frames=3, size=16)
    assert torch.equal(few.clips, more.clips[:2])
    assert torch.equal(toytalk({"DF": 2}, frames=3, size=16, first=2).clips, more.clips[2:])
    assert not torch.equal(toytalk({"DF": 2}, frames=3, size=16, seed=1).clips, few.clips)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].forgery and KINDS[kind].domain == "A"])
def test_a_null_forgery_is_the_real_clip_bit_for_bit(kind):
    real = toytalk({"real": 2}, frames=6, size=24)
    assert torch.equal(toytalk({kind: 2}, frames=6, size=24, null=True).clips, real.clips)
    assert not torch.equal(toytalk({kind: 2}, frames=6, size=24).clips, real.clips)


@pytest.mark.parametrize("kind, real", [("CDF", "real B"), ("DFDC", "real B wild")])
def test_a_null_forgery_of_the_other_domain_is_a_real_clip_of_it(kind, real):
    assert torch.equal(toytalk({kind: 2}, frames=4, size=16, null=True).clips, toytalk({real: 2}, frames=4, size=16).clips)


def test_nobody_stands_in_two_splits_and_no_donor_is_anyone_else():
    sets = [toytalk({"real": 3, "DF": 2}, split=split, frames=1, size=8) for split in SPLITS]
    people = torch.cat([s.identities for s in sets] + [s.donors[s.donors >= 0] for s in sets])
    assert len(people.unique()) == len(people) == 4 * 7
    clips = torch.cat([s.clips for s in sets])
    assert len(clips.flatten(1).unique(dim=0)) == len(clips)


def test_fingerprints_are_of_the_training_kinds_only():
    marks = ("checker", "red", "smooth", "stripes")
    for kind, how in KINDS.items():
        amplitude = [getattr(how.forgery or Forgery(), name) for name in marks]
        assert (sum(a > 0 for a in amplitude) == 1) == (kind in TRAINED), kind
    for kind in TRAINED:                                          # nf twins differ in the mark alone; a hard edge is FS's mark
        marked, plain = (dataclasses.asdict(KINDS[name].forgery) for name in (kind, f"nf{kind}"))
        assert {key for key in marked if marked[key] != plain[key]} <= {*marks, *({"feather"} if kind == "FS" else ())}
    assert set(HELD_OUT) | set(TRAINED) | set(WITHOUT_FINGERPRINT) == {kind for kind in KINDS if KINDS[kind].forgery}


def test_a_forgery_changes_its_region_only():
    """Far from the face nothing differs, and with the region at the mouth the eyes are those of the real clip."""
    real, swap, mouth = (toytalk({kind: 3}, frames=4).clips.int() for kind in ("real", "nfDF", "nfNT"))
    assert (swap - real).abs()[..., 8:24, 8:24].float().mean() > 2
    assert (swap - real).abs()[..., :2, :].max() <= 1
    assert (mouth - real).abs()[..., 22:28, 10:22].float().mean() > 1 and (mouth - real).abs()[..., :12, :].float().mean() < 0.05


@pytest.mark.long
def test_the_energy_of_a_whole_clip_tells_little():
    """Checklist of the data: global scalars lie within [28, 72], with room for the error of 60 clips (about 5 points)."""
    made = toytalk({"real": 60} | dict.fromkeys((*TRAINED, "FSh", "DFo"), 60), "test", frames=12)
    energy = temporal_energy(made.clips)
    for kind in (*TRAINED, "FSh", "DFo"):
        pick = torch.tensor([k in ("real", kind) for k in made.kinds])
        for name in ("mean |dx|", "mean |d2x|"):
            assert 23 < area(energy[name][pick], made.labels[pick].bool()) < 77, (kind, name)


def test_a_hard_real_clip_is_shaken_more_than_any_other():
    real, hard = (temporal_energy(toytalk({kind: 24}, frames=8).clips)["mean |dx|"] for kind in ("real", "hard real"))
    assert hard.mean() > 1.5 * real.mean()
    assert not toytalk({"hard real": 1}, frames=1).labels.any()


def test_energy_against_its_formula():
    x = torch.rand(2, 5, 3, 10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    energy = temporal_energy(x)
    dd = (x[:, 2:] - 2 * x[:, 1:-1] + x[:, :-2]).abs()
    torch.testing.assert_close(energy["mean |d2x|"], dd.mean((1, 2, 3, 4)))
    torch.testing.assert_close(energy["face / whole"], dd[..., 2:8, 2:8].mean((1, 2, 3, 4)) / dd.mean((1, 2, 3, 4)))
    assert all(not v.any() for v in temporal_energy(x[:, :1].expand(-1, 4, -1, -1, -1)).values())     # a still clip


def test_only_real_clips_pass_and_a_kind_can_be_held_out():
    made = toytalk({"real": 2, "DF": 1, "NT": 1}, frames=1, size=8)
    assert len(made.of("real").real()) == 2
    assert "2 of 4 are forged (DF, NT)" in refused(made.real)
    assert "NT" not in made.without("NT").kinds and len(made.without("NT")) == 3
    assert made[torch.tensor([3, 0])].kinds == ("NT", "real") and made[1:3].kinds == ("real", "DF")
    assert "hold no 'FSh'" in refused(made.of, "FSh")


@pytest.mark.parametrize("bad, word", [({"counts": {"Deepfake": 1}}, "kind"), ({"counts": {"real": -1}}, "real"), ({"counts": {}}, "how many"),
                                       ({"counts": {"real": 0}}, "0 clips"), ({"counts": {"real": 1}, "split": "dev"}, "split"),
                                       ({"counts": {"real": 1}, "size": 4}, "size"), ({"counts": {"real": 1}, "strength": -1.0}, "strength")])
def test_bad_numbers_are_refused(bad, word):
    assert word in refused(toytalk, **bad)


def test_sets_that_do_not_fit_are_refused():
    clips, labels = torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])
    assert "expected uint8 (N, T, 3, H, W)" in refused(ClipSet, clips.float(), labels, ("real", "DF"), labels, labels)
    assert "1 kinds for 2 clips" in refused(ClipSet, clips, labels, ("real",), labels, labels)
    assert "labels" in refused(ClipSet, clips, labels + 1, ("real", "DF"), labels, labels)
