"""What judges pictures: a discriminator that looks at each alone, and DPDM's three classifiers at their sizes."""
import pytest
import torch

from kdnotes.models.classifiers import count_parameters
from kdnotes.models.judges import CLASSIFIERS, Discriminator, SetClassifier


def test_a_discriminator_looks_at_each_picture_alone_and_hears_step_and_class():
    torch.manual_seed(0)
    net = Discriminator(8, 1, 10, (4, 8), 8).double()
    x, r, y = torch.randn(5, 1, 8, 8).double(), torch.arange(1, 6), torch.arange(5)
    together = net(x, r, y)
    alone = torch.cat([net(x[i:i + 1], r[i:i + 1], y[i:i + 1]) for i in range(5)])
    assert torch.allclose(together, alone, atol=1e-12) and together.shape == (5, 2)
    assert (net(x, r + 100, y) - together).abs().min() > 0 and (net(x, r, y.flip(0)) - together)[0].abs().min() > 0
    assert not [m for m in net.modules() if "Norm" in type(m).__name__]
    assert Discriminator(8, 1, 0, (4,), 8)(x.float(), r).shape == (5, 2)


def test_the_classifiers_have_the_sizes_of_the_code():
    x = torch.rand(3, 1, 28, 28) * 2 - 1
    assert [count_parameters(SetClassifier(kind)) for kind in CLASSIFIERS] == [7850, 79_510, 241_546]
    assert SetClassifier("cnn").body[11].in_features == 1152 and SetClassifier("cnn", 32, 3, 2).body[11].in_features == 2048
    for kind in CLASSIFIERS:
        assert SetClassifier(kind)(x).logits.shape == (3, 10)
    order = [type(layer).__name__ for layer in SetClassifier("cnn").body[:4]]
    assert order == ["Conv2d", "MaxPool2d", "ReLU", "Dropout"]


@pytest.mark.parametrize("call, words", [
    (lambda: SetClassifier("cnn", 8), "side is 8"),
    (lambda: SetClassifier("resnet"), "kind is 'resnet'"),
    (lambda: Discriminator(8, 1, 10, ()), "there are no widths"),
    (lambda: Discriminator(8)(torch.rand(1, 1, 9, 8), torch.tensor([1]), torch.tensor([0])), "expected (N, 1, 8, 8)"),
])
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(ValueError) as told:
        call()
    assert words in str(told.value) and "\n" not in str(told.value)
