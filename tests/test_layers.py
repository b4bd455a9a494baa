import pytest
import torch

from lightning_fold.layers import SelectFeatures


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
def test_selects_features_of_the_last_dimension(shape):
    features = torch.randn(shape)
    torch.testing.assert_close(SelectFeatures(torch.tensor([4, 0, 4]))(features), features[..., [4, 0, 4]])


def test_state_dict_brings_the_positions_back():
    layer, empty = SelectFeatures(torch.tensor([5, 2])), SelectFeatures(2)
    features = torch.randn(4, 6)
    torch.testing.assert_close(empty(features), features[:, :2])
    empty.load_state_dict(layer.state_dict())
    torch.testing.assert_close(empty(features), features[:, [5, 2]])
    assert not list(layer.parameters())
    assert repr(layer) == "SelectFeatures(2 features)"
