"""The linear probe: scikit-learn, determinism, what it leaves alone, bad input."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from kdnotes.metrics.probe import linear_probe


def blobs(seed=0, classes=4, n=160, d=6):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return torch.randn(classes, d, generator=g)[labels] * 1.5 + torch.randn(n, d, generator=g), labels


def test_it_is_the_regularised_softmax_regression():
    x, y = blobs()
    z = (x - x.mean(0)) / x.std(0)
    # decay |W|^2 beside the mean loss
    plain = LogisticRegression(C=1 / (2 * 0.01 * len(x)), tol=1e-8, max_iter=5000).fit(z.numpy(), y.numpy())
    found = linear_probe(x, y, x[:20], steps=2000, decay=0.01).softmax(1)
    assert torch.allclose(found.double(), torch.tensor(plain.predict_proba(z[:20].numpy())).double(), atol=1e-3)


def test_it_changes_nothing_and_runs_in_every_mode():
    x, y = blobs()
    x.requires_grad_(True)
    state, plain = torch.get_rng_state(), linear_probe(x, y, x)
    assert torch.get_rng_state().equal(state) and x.grad is None and not plain.requires_grad
    with torch.inference_mode():
        assert linear_probe(x.detach().clone(), y.clone(), x.detach()).equal(plain)
    assert linear_probe(x.detach().double(), y.to(torch.int16), x.detach().half()).dtype == torch.float64
    assert linear_probe(x.detach().t().contiguous().t(), y, x).equal(plain)


@pytest.mark.parametrize("change, words", [
    (lambda x, y: (x[:1], y[:1], x), "training features have shape (1, 6); expected at least 2"), (lambda x, y: (x, y - 1, x), "labels run from -1"),
    (lambda x, y: (x, y, x[:, :2]), "dimension 2"),
    (lambda x, y: (x, y, x[:0]), "test features have shape"), (lambda x, y: (x / 0, y, x), "NaN"),
    (lambda x, y: (x, y[:3], x), "expected whole numbers"),
])
def test_bad_input_is_refused_in_one_line(change, words):
    with pytest.raises(ValueError) as error:
        linear_probe(*change(*blobs()))
    assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="steps is 0"):
        linear_probe(*blobs(), blobs()[0], steps=0)


def test_a_layer_by_the_largest_label_is_refused_before_it_is_made():
    x, y = blobs()
    with pytest.raises(ValueError, match="1000000001 classes .*number them from 0 without gaps"):
        linear_probe(x, torch.where(y == 0, 10**9, y), x)
