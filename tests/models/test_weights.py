"""Weights that come with the package: half precision, with the print of their making, and refused without one."""
import pytest
import torch
from safetensors.torch import save_file

from kdnotes.checks import refused
from kdnotes.models.weights import packaged, read_weights, write_weights


def test_weights_come_back_in_half_precision_with_their_print(tmp_path):
    path, x = tmp_path / "w.safetensors", torch.randn(40, 3)
    write_weights(path, {"x": x, "n": torch.tensor(7)}, {"seed": 3, "fields": {"steps": 10}})
    found = read_weights(path)
    assert found.tensors["x"].equal(x.half().float()) and found.tensors["n"] == 7 and found.tensors["n"].dtype == torch.int64
    assert found.made == {"seed": 3, "fields": {"steps": 10}} and path.stat().st_size < 700


def test_what_cannot_be_kept_or_read_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    assert "65504" in refused(write_weights, path, {"x": torch.tensor([1e5])}, {}) and not path.exists()
    assert "tensors by name" in refused(write_weights, path, {"x": [1.0]}, {})
    assert "no weights" in refused(read_weights, path)
    path.write_bytes(b"nothing of the kind")
    assert "no safetensors" in refused(read_weights, path)
    save_file({"x": torch.zeros(2)}, path)
    assert "no print of its making" in refused(read_weights, path)
    assert "there are naco" in refused(packaged, "nacho")


@pytest.mark.parametrize("name", ["naco"])
def test_what_is_packaged_is_small_and_says_how_it_was_made(name):
    found = read_weights(packaged(name))
    assert packaged(name).stat().st_size <= 1.5e6
    assert {"stage", "fields", "data", "code", "seconds", "history"} <= set(found.made)
