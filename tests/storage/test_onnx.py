"""A minimized network leaves for onnxruntime and says the same there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lightning_fold as lf
from tests.zoo import ZOO, build, run

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'lightning-fold[export]'")
pytest.importorskip("onnxscript", reason="pip install 'lightning-fold[export]'")


def _in_onnxruntime(model: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path) -> np.ndarray:
    torch.onnx.export(model.eval(), inputs, path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    (found,) = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    return found


@pytest.mark.parametrize("name", ["residual", "separable", "grouped", "conv_stream", "attention_fused"])
def test_minimized_network_agrees_with_the_dense_one_in_onnxruntime(name: str, tmp_path: Path) -> None:
    model = build(name, "rows", dtype=torch.float32)
    inputs = tuple(value.float() for value in ZOO[name].inputs())
    dense = run(model, inputs).numpy()
    assert lf.minimize(model, inputs).factor > 1.02
    found = _in_onnxruntime(model, inputs, tmp_path / "small.onnx")
    assert np.abs(found - dense).max() <= 1e-5 * np.abs(dense).max()


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        return self.head(x + self.branch(x).tanh())


def test_branch_with_nothing_left_is_a_constant_there_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = _Residual(), torch.randn(4, 5)
    nn.init.zeros_(model.branch.weight)
    dense = model(x).detach().numpy()
    lf.minimize(model, x)
    assert isinstance(model.branch, lf.layers.Constant)
    found = _in_onnxruntime(model, (x,), tmp_path / "small.onnx")
    assert np.abs(found - dense).max() <= 1e-5 * np.abs(dense).max()
