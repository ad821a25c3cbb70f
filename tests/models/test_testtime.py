"""Test images in batches, and the ways in which a network adapts to them."""

import pytest
import torch

from kdnotes.checks import refused
from kdnotes.losses.margin import CosFace
from kdnotes.models import testtime
from kdnotes.models.adapt import FaceBN
from kdnotes.models.embedders import Recogniser, embedder
from kdnotes.models.testtime import ADAPTATIONS, Adapting, adapted, arrival, batch_of


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Recogniser(embedder("smallface", 16, 3, 8, widths=(4, 8)), CosFace(16, 12, 16.0)).eval()


def images(n):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_predictions_come_back_in_the_order_of_the_images(network):
    x, order = images(20), torch.randperm(20, generator=torch.Generator().manual_seed(1))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        plain = network(x)
    assert torch.allclose(adapted(network, x, order, Adapting(batch=7)).features, plain.features, atol=1e-5)
    with torch.no_grad(), FaceBN(network, "prediction"):
        whole = network(x)
    for how in (Adapting("FaceBN"), Adapting("FaceBN", batch=7), Adapting("prediction-time BN")):
        assert torch.allclose(adapted(network, x, order, how).features, whole.features, atol=1e-4)
    for name in ADAPTATIONS:
        for batch in (5, 1):                                           # one image at a time is a batch, too
            if batch == 1 and name in ("prediction-time BN", "EMA, one pass", "EMA, two passes"):
                assert "one value per channel" in refused(adapted, network, x, order, Adapting(name, batch=batch))
                continue
            found = adapted(network, x, order, Adapting(name, batch=batch))
            assert found.features.shape == plain.features.shape and found.features.isfinite().all()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("adaptation", testtime.WHOLE)
def test_a_large_test_set_goes_through_in_parts_with_the_same_answers(network, monkeypatch, adaptation):
    x, order = images(50), torch.arange(50)
    whole = adapted(network, x, order, Adapting(adaptation)).features
    monkeypatch.setattr(testtime, "AT_ONCE", 1000)
    monkeypatch.setattr(testtime, "PART", 16)
    assert batch_of(Adapting(adaptation), x) == 16 and batch_of(Adapting("prediction-time BN"), x) == 50 and batch_of(Adapting(batch=4), x) == 4
    assert torch.allclose(adapted(network, x, order, Adapting(adaptation)).features, whole, atol=1e-4)


def test_faces_arrive_shuffled_or_person_by_person():
    labels = torch.arange(5).repeat(4)
    shuffled, sorted_ = (arrival(labels, order, 0) for order in ("shuffled", "by identity"))
    assert shuffled.sort().values.equal(torch.arange(20)) and labels[sorted_].equal(labels.sort().values) and not labels[shuffled].equal(labels.sort().values)


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_a_single_last_image_joins_the_batch_before_it(network, name):
    found = adapted(network, images(9), torch.arange(9), Adapting(name, batch=4))
    assert found.features.shape == (9, 16) and found.features.isfinite().all()
    if name in ("prediction-time BN", "FaceBN", "TENT"):
        assert "one value per channel" in refused(adapted, network, images(1), torch.arange(1), Adapting(name))


def test_what_cannot_be_adapted_is_refused(network):
    assert "did you mean 'FaceBN'" in refused(Adapting, "facebn")
    assert "did you mean 'shuffled'" in refused(Adapting, order="shufled") and "unknown order" in refused(arrival, torch.arange(3), "sorted", 0)
    assert "batch=-1" in refused(Adapting, batch=-1)
    for count, order in ((0, []), (3, [0, 1]), (3, [0, 1, 1]), (2, [1, 2])):
        line = refused(adapted, network, images(3)[:count], torch.tensor(order, dtype=torch.int64), Adapting())
        assert f"{count} images come in an order of {len(order)} places; expected at least one image, and each of them once" in line
