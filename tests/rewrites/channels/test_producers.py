"""Producers: a layer and the BatchNorm behind it are one affine map."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_fold.rewrites.channels.producers import double, effective_rows, find_producers
from lightning_fold.structure.groups import read_structure
from lightning_fold.surgery.editor import NetworkEditor
from tests.zoo import ZOO, build


@pytest.mark.parametrize(
    ("layers", "size"),
    [
        ([nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)], (3,)),
        ([nn.Linear(3, 4, bias=False), nn.Linear(4, 2)], (3,)),
        ([nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)], (3, 1, 1)),
        ([nn.ConvTranspose2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)], (3, 1, 1)),
    ],
)
def test_rows_and_bias_give_what_layer_and_norm_give(layers: list[nn.Module], size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*layers).double().eval()
    if isinstance(model[1], nn.modules.batchnorm._BatchNorm):
        for tensor in (model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)
    x = torch.randn(6, *size, dtype=torch.float64)
    producer = find_producers(read_structure(model, x))[0]
    rows, bias = effective_rows(NetworkEditor(model), producer)
    expected = model[: 1 if producer.norm is None else 2](x).flatten(1)
    torch.testing.assert_close(x.flatten(1) @ rows.T + bias, expected, rtol=1e-12, atol=1e-12)


def test_the_names_of_all_that_writes_the_channels() -> None:
    inputs = ZOO["residual"].inputs()
    producers = find_producers(read_structure(build("residual"), inputs))
    model = build("residual")
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {p.norm[0].rpartition(".")[0] for p in producers if p.norm is not None} == norms
    for producer in producers:
        known = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
        assert set(producer.tensors) <= known
        layer = model.get_submodule(producer.weight.rpartition(".")[0])
        assert (producer.bias is not None) == (layer.bias is not None)


def test_layers_that_are_called_twice_or_share_a_weight_are_none() -> None:
    found = {
        producer.weight for producer in find_producers(read_structure(build("shared_linear"), ZOO["mlp"].inputs()))
    }
    assert found == {"first.weight", "last.weight"}


def test_a_norm_that_another_reader_goes_round_is_not_right_behind() -> None:
    class Round(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(self.norm(x) + F.relu(x))

    producers = find_producers(read_structure(Round().eval(), torch.randn(4, 3)))
    assert {producer.weight: producer.norm for producer in producers}["first.weight"] is None


def test_double_is_a_copy_apart_from_the_graph() -> None:
    model = nn.Linear(2, 3)
    found = double(NetworkEditor(model), "weight")
    assert found.dtype == torch.float64 and not found.requires_grad
    assert found.tolist() == model.weight.tolist()
