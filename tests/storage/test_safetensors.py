"""Files of the safetensors format."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.storage.safetensors import read_safetensors, write_safetensors
from tests.zoo import ZOO, build

pytestmark = pytest.mark.skipif(not find_spec("safetensors"), reason="safetensors is not installed")


def test_content_comes_back(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": whole, "b": whole.t(), "c": whole[0], "d": torch.tensor(3), "e": torch.zeros(0, dtype=torch.half)}
    rest = {"network": None, "structure": {"": {"sizes": [1, 2.5, True, "x"]}}}
    write_safetensors({"state_dict": tensors, **rest}, tmp_path / "x")
    found = read_safetensors(tmp_path / "x")
    state = found.pop("state_dict")
    assert found == rest and state.keys() == tensors.keys()
    assert all(torch.equal(state[key], tensors[key]) and state[key].dtype == tensors[key].dtype for key in tensors)


def test_file_of_another_program_has_its_tensors_alone(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "x", {"format": "pt"})
    found = read_safetensors(tmp_path / "x")
    assert found.keys() == {"state_dict"} and torch.equal(found["state_dict"]["a"], torch.ones(2))


def test_safetensors_of_a_network_with_tied_weights(tmp_path):
    model = build("shared_linear").eval()
    lf.save(model, tmp_path / "x.safetensors", network="tests.zoo.build", network_args={"name": "shared_linear"})
    inputs = ZOO["shared_linear"].inputs()
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    torch.testing.assert_close(lf.load(tmp_path / "x.safetensors")(*inputs), model(*inputs))


def test_truncated_safetensors_are_refused(tmp_path):
    path = tmp_path / "small.safetensors"
    model = nn.Linear(3, 2)
    arguments = {"in_features": 3, "out_features": 2}
    lf.save(model, path, network="torch.nn.Linear", network_args=arguments)
    whole = path.read_bytes()
    for size in (0, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="expected a complete safetensors file"):
            lf.load(path)
