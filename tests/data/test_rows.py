"""One way of choosing rows, whatever names them."""

import numpy as np
import pandas as pd
import pytest
import torch

from kdnotes.checks import refused
from kdnotes.data.rows import chosen_rows

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]
MASKS = [[True, False, True], (True, False, True), np.array([True, False, True]), torch.tensor([True, False, True]),
         pd.Series([True, False, True]), [np.True_, np.False_, np.True_]]


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: type(m).__name__)
def test_a_mask_is_a_mask_in_every_container(mask):
    assert chosen_rows(mask, 3).tolist() == [0, 2] and chosen_rows(mask, 3).dtype == torch.int64


@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_numbers_of_every_type_are_numbers(kind):
    """Of uint8 torch makes a mask."""
    assert chosen_rows(torch.tensor([1, 0, 1]).to(kind), 3).tolist() == [1, 0, 1]
    assert chosen_rows(np.array([1, 0, 1], str(kind).removeprefix("torch.")), 3).tolist() == [1, 0, 1]


@pytest.mark.parametrize(("choice", "rows"), [
    ([2, -1, -3], [2, 2, 0]), (range(2, -1, -1), [2, 1, 0]), (slice(None), [0, 1, 2]), (slice(None, None, -2), [2, 0]),
    (slice(-2, 99), [1, 2]), (pd.Series([2, 0], index=[7, 8]), [2, 0]), (pd.Index([1]), [1]),
    (torch.tensor([0, 1, 2, 0])[::3], [0, 0]),
])
def test_ways_to_choose(choice, rows):
    assert chosen_rows(choice, 3).tolist() == rows


@pytest.mark.parametrize(("wrong", "words"), [
    ([True, False], "the mask has 2 truth values for 3 images"), (torch.ones(4, dtype=torch.bool), "mask has 4"),
    ([0, 3], "3 is outside the 3 images"), ([-4], "-4 is outside"), (np.array([2**63], np.uint64), "names 9223372036854775808"),
    ([], "none of the 3 images"), ([False] * 3, "none of the 3"), (slice(5, 9), "none of the 3"), (torch.zeros(0), "float32"),
    ([0.0, 1.0], "float64"), (torch.tensor([1.5]), "float32"), ("01", "is str"), (["0"], "is list"), ([None, 1], "is list"),
    (2, "shape .*in one row"), (torch.tensor(1), "shape"), (True, "shape"), ([[0], [1]], "shape"), ([True, 2], "mixes truth values"),
    (None, "NoneType"), ({0, 1}, "is set"), ({0: 1}, "is dict"), (torch.tensor([1j]), "complex"), (pd.Series([True, None, False]), "is Series"),
])
def test_what_chooses_nothing_is_refused_in_a_line(wrong, words):
    with pytest.raises((ValueError, TypeError), match=words):
        chosen_rows(wrong, 3, "images")
    assert "images" in refused(chosen_rows, wrong, 3, "images")
