"""Surgery: one transaction on the network and its optimizers."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_fold.surgery.transaction import Surgery
from tests.zoo import ZOO, build


def _trained(name: str = "residual") -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build(name)
    wide = [p for p in model.parameters() if p.dim() > 1]
    optimizer = torch.optim.AdamW(
        [{"params": wide, "lr": 0.1}, {"params": [p for p in model.parameters() if p.dim() < 2]}]
    )
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "tensors": {key: (id(value), value.detach().clone()) for key, value in tensors.items()},
        "modules": {path: id(module) for path, module in model.named_modules()},
        "repr": repr(model),
        "groups": [
            [id(p) for p in g["params"]] + [v for k, v in g.items() if k != "params"] for g in optimizer.param_groups
        ],
        "state": {id(p): {k: (id(v), v.clone()) for k, v in s.items()} for p, s in optimizer.state.items()},
    }


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_equal, left, right))
    return left == right


def test_exception_restores_network_and_optimizer() -> None:
    model, optimizer = _trained()
    before = _snapshot(model, optimizer)
    with pytest.raises(KeyError), Surgery(model, [optimizer]) as surgery:
        surgery.select("0.0.weight", 0, torch.arange(3))
        surgery.select("0.1.running_mean", 0, torch.arange(3))
        surgery.transform("1.bn1.weight", lambda tensor: tensor * 2)
        surgery.create("1.conv1.bias", torch.ones(8), "1.conv1.weight")
        surgery.replace_module("3.linear", nn.Sequential(nn.Linear(12, 2), nn.Linear(2, 4)))
        surgery.select_grouped("2.conv1.weight", torch.arange(4), torch.arange(4), 4)
        assert not _equal(before, _snapshot(model, optimizer))
        raise KeyError("stop")
    assert _equal(before, _snapshot(model, optimizer))
    assert model[1].conv1.bias is None and isinstance(model[3].linear, nn.Linear)
    optimizer.step()


def test_select_takes_rows_moments_and_sizes() -> None:
    model, optimizer = _trained()
    old = model[0][0].weight
    weight, moment = old.detach().clone(), optimizer.state[old]["exp_avg"].clone()
    keep = torch.tensor([6, 1, 4])
    with Surgery(model, [optimizer]) as surgery:
        surgery.select("0.0.weight", 0, keep)
    new = model[0][0].weight
    assert torch.equal(new, weight[[6, 1, 4]]) and model[0][0].out_channels == 3
    assert torch.equal(optimizer.state[new]["exp_avg"], moment[[6, 1, 4]])
    assert optimizer.param_groups[0]["params"][0] is new and old not in optimizer.state
    assert float(optimizer.state[new]["step"]) == 1


def test_select_grouped_against_a_loop() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(12, 9, 3, groups=3))
    weight = model[0].weight.detach().clone()
    rows, columns = torch.tensor([0, 2, 6, 7]), torch.tensor([1, 3, 8, 11])  # the second group leaves
    with Surgery(model) as surgery:
        surgery.select_grouped("0.weight", rows, columns, 3)
    expected = torch.stack([weight[0, [1, 3]], weight[2, [1, 3]], weight[6, [0, 3]], weight[7, [0, 3]]])
    assert torch.equal(model[0].weight, expected)
    assert (model[0].groups, model[0].in_channels, model[0].out_channels) == (2, 4, 4)


def test_tied_parameters_stay_tied_and_marks_stay() -> None:
    model = build("shared_linear")
    model.left.weight.no_decay = True
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Surgery(model, [optimizer]) as surgery:
        surgery.select("left.weight", 1, torch.arange(5))
    assert model.left.weight is model.right.weight and model.right.in_features == 5
    assert model.left.weight.no_decay
    assert sum(p is model.left.weight for p in optimizer.param_groups[0]["params"]) == 1


def test_created_parameter_joins_the_group_of_its_kind() -> None:
    model, optimizer = _trained()
    with Surgery(model, [optimizer]) as surgery:
        surgery.create("1.conv1.bias", torch.ones(8, dtype=torch.float64), "1.conv1.weight")
    assert model[1].conv1.bias.requires_grad
    for group, wide in zip(optimizer.param_groups, (True, False), strict=True):
        expected = [p for p in model.parameters() if (p.dim() > 1) == wide]
        assert list(map(id, group["params"])) == list(map(id, expected))


def test_created_parameter_joins_its_neighbour_where_groups_are_of_layers() -> None:
    """Also where the neighbour's group holds weights alone; and where nothing of the network has its dimensions."""
    for bias in (True, False):
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=bias))
        first, second = nn.ModuleList(model[:2]), nn.ModuleList(model[2:])
        optimizers = [torch.optim.SGD(first.parameters(), lr=0.1), torch.optim.Adam(second.parameters())]
        with Surgery(model, optimizers) as surgery:
            surgery.create("0.bias", torch.ones(3), "0.weight")
        for optimizer, part in zip(optimizers, (first, second), strict=True):
            assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, part.parameters()))


def test_state_of_broadcast_shape_follows_the_selection() -> None:
    """Adafactor's row and column statistics: (rows, 1) and (1, columns)."""
    model = nn.Sequential(nn.Linear(5, 4))
    optimizer = torch.optim.Adafactor(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = {key: value.clone() for key, value in optimizer.state[model[0].weight].items()}
    with Surgery(model, [optimizer]) as surgery:
        surgery.select("0.weight", 0, torch.tensor([0, 3]))
        surgery.select("0.weight", 1, torch.tensor([4, 1, 2]))
    found = optimizer.state[model[0].weight]
    assert torch.equal(found["row_var"], state["row_var"][[0, 3]])
    assert torch.equal(found["col_var"], state["col_var"][:, [4, 1, 2]])


@pytest.mark.parametrize("name", ["residual", "grouped", "shared_linear"])
def test_nothing_done_changes_nothing(name: str) -> None:
    model, optimizer = _trained(name)
    before = _snapshot(model, optimizer)
    with Surgery(model, [optimizer]):
        pass
    assert _equal(before, _snapshot(model, optimizer))
    assert model(*ZOO[name].inputs()).isfinite().all()


def test_module_is_replaced_under_all_its_names() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ModuleDict({"a": shared, "b": nn.Linear(3, 3)}), shared)
    optimizer = torch.optim.Adam(model.parameters())
    with Surgery(model, [optimizer]) as surgery:
        surgery.replace_module("1.a", nn.Sequential(nn.Identity(), shared))
    assert model[0] is model[2] is model[1]["a"] and model[0][1] is shared
    with pytest.raises(KeyError), Surgery(model, [optimizer]) as surgery:
        surgery.replace_module("2", nn.Linear(3, 3, bias=False))
        assert model[1]["a"].bias is None
        raise KeyError("stop")
    assert model[0] is model[2] is model[1]["a"] and model[0][1] is shared
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
