"""The table of families names operators that ATen really has, each once."""

import pytest
import torch

from lightning_fold.structure.operators.families import FAMILIES, NEW

OWN = {"written_layer_norm", "written_rms_norm", "channel_share"}  # stand for what a module writes out


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_name_is_an_operator(name: str) -> None:
    composite = (
        getattr(torch, name, None) or getattr(torch.Tensor, name, None) or getattr(torch.nn.functional, name, None)
    )
    assert name in OWN or hasattr(torch.ops.aten, name) or composite is not None


def test_an_operator_that_ATen_calls_pointwise_is_in_no_family_that_mixes_elements() -> None:
    mixing = {"contraction", "matmul", "attention", "reduction", "batch_norm", "layer_norm", "group_norm"}
    for name, family in FAMILIES.items():
        packet = getattr(torch.ops.aten, name, None)
        overloads = [getattr(packet, each) for each in packet.overloads()] if packet is not None else []
        pointwise = any(torch.Tag.pointwise in overload.tags for overload in overloads)
        assert not (pointwise and family in mixing), name


def test_what_makes_new_tensors_is_a_family() -> None:
    assert {FAMILIES[name] for name in NEW} == {"new"}
