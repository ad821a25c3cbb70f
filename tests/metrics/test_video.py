"""From clips to videos: AUC with ties, four rules that differ."""
import pytest
import torch
from sklearn.metrics import roc_auc_score

from kdnotes.checks import refused
from kdnotes.metrics.video import RULES, roc_auc, video_auc, video_scores


def drawn(n: int = 200, levels: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randint(levels, (n,), generator=g).double() / 3 - 2, torch.rand(n, generator=g) < 0.3


# 12: Mann-Whitney with ties at one half, sklearn's value, invariant under increasing maps
def test_auc_is_mann_whitney_and_sklearns():
    scores, positive = drawn()
    pairs = scores[positive][:, None] - scores[~positive][None]
    slow = ((pairs > 0).double() + 0.5 * (pairs == 0)).mean()
    assert roc_auc(scores, positive) == pytest.approx(float(slow), abs=1e-12)
    assert roc_auc(scores, positive) == pytest.approx(roc_auc_score(positive.numpy(), scores.numpy()), abs=1e-12)
    for rising in (torch.exp, torch.atan, lambda s: 3 * s - 7, lambda s: s**3):
        assert roc_auc(rising(scores), positive) == roc_auc(scores, positive)
    assert roc_auc(-scores, positive) == pytest.approx(1 - roc_auc(scores, positive))


def test_the_hand_case():
    logits = torch.tensor([0.0, 2.0, 1.0, 1.0, 1.0, 3.0])        # real {0, 2}, {1}; forged {1, 1}, {3}
    videos, forged = torch.tensor([0, 0, 1, 2, 2, 3]), torch.tensor([0, 0, 0, 1, 1, 1])
    scores, numbers = video_scores(logits, videos)
    assert scores.tolist() == [1, 1, 1, 3] and numbers.tolist() == [0, 1, 2, 3]
    assert video_auc(logits, videos, forged) == 0.75


def test_the_mean_is_of_logits_before_any_sigmoid():
    logits, videos, forged = torch.tensor([10.0, -4.0, -4.0, 0.5]), torch.tensor([7, 7, 7, 3]), torch.tensor([1, 1, 1, 0])
    assert video_scores(logits, videos)[0].tolist() == pytest.approx([0.5, 2 / 3])
    assert video_auc(logits, videos, forged) == 1.0 and video_auc(logits, videos, forged, "probabilities") == 0.0
    assert video_auc(logits, videos, forged, "clips") == pytest.approx(1 / 3)


def test_a_sigmoid_in_single_precision_makes_ties():
    logits, videos, forged = torch.tensor([40.0, 50.0]), torch.tensor([0, 1]), torch.tensor([0, 1])
    assert video_auc(logits, videos, forged) == 1.0 and video_auc(logits, videos, forged, "sigmoid") == 0.5
    assert set(RULES) == {"logits", "sigmoid", "probabilities", "clips"}


def test_what_is_no_video_is_refused():
    assert "one label a video" in refused(video_auc, torch.zeros(3), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    assert "both kinds" in refused(roc_auc, torch.zeros(3), torch.ones(3, dtype=torch.long))
    assert "rule" in refused(video_scores, torch.zeros(3), torch.arange(3), "median")
