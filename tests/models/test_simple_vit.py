import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

import lightning_fold as lf
from lightning_fold.models import SimpleViT
from lightning_fold.models.simple_vit import sinusoidal_positions
from tests.zoo import error_of, randomise, run

HEADS, HEAD_WIDTH, UNITS = 3, 6, 20  # attention is 18 wide in a stream of 16


def small() -> SimpleViT:
    torch.manual_seed(0)
    network = SimpleViT(12, 4, 5, dim=16, depth=2, heads=HEADS, head_width=HEAD_WIDTH, mlp_width=UNITS).double().eval()
    randomise(network)
    return network


def images(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_has_18_9_million_parameters():
    with torch.device("meta"):
        network = SimpleViT()
    block = 2 * 2 * 512 + 4 * 512 * 16 * 64 + (512 * 1024 + 1024) + (1024 * 512 + 512)
    assert lf.count_parameters(network) == (3 * 4 * 4 * 512 + 512) + 6 * block + 2 * 512 + (512 * 10 + 10) == 18_927_114


def test_is_what_its_weights_say():
    """Written out with one token and one head at a time, patches cut by hand."""
    network, x = small(), images()
    w = dict(network.state_dict())

    def norm(tokens, name):
        return F.layer_norm(tokens, (16,), w[f"{name}.weight"], w[f"{name}.bias"])

    def cut(row, column):
        return x[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)

    patches = torch.stack([cut(place // 3, place % 3) for place in range(9)], 1)
    tokens = patches @ w["patches.weight"].flatten(1).T + w["patches.bias"] + w["positions"]
    for block in ("blocks.0", "blocks.1"):
        y = norm(tokens, f"{block}.attention_norm")
        read = []
        for head in range(HEADS):
            rows = slice(HEAD_WIDTH * head, HEAD_WIDTH * (head + 1))
            q, k, v = (y @ w[f"{block}.attention.{name}.weight"][rows].T for name in ("query", "key", "value"))
            read.append(torch.softmax(torch.einsum("bid,bjd->bij", q, k) / math.sqrt(HEAD_WIDTH), -1) @ v)
        tokens = tokens + torch.cat(read, -1) @ w[f"{block}.attention.projection.weight"].T
        hidden = F.gelu(norm(tokens, f"{block}.mlp_norm") @ w[f"{block}.mlp.0.weight"].T + w[f"{block}.mlp.0.bias"])
        tokens = tokens + hidden @ w[f"{block}.mlp.2.weight"].T + w[f"{block}.mlp.2.bias"]
    expected = norm(tokens, "norm").mean(1) @ w["head.weight"].T + w["head.bias"]
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


def test_positions_are_sines_and_cosines_of_column_and_row():
    side, dim = 3, 12
    found = sinusoidal_positions(side, dim)
    for row in range(side):
        for column in range(side):
            angles = [[place / 10_000 ** (i / 2) for i in range(3)] for place in (column, row)]
            expected = [f(angle) for part in angles for f in (math.sin, math.cos) for angle in part]
            torch.testing.assert_close(found[side * row + column], torch.tensor(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 30}, "multiple of patch_size"),
        ({"dim": 30}, "multiple of 4"),
        ({"dim": 4}, "at least 8"),
        ({"head_width": 0}, "at least 1"),
    ],
)
def test_refuses_what_it_cannot_build(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimpleViT(**arguments)


def test_minimize_takes_heads_widths_and_units():
    """A head that nobody reads, two dimensions of queries in every head, four silent units."""
    network, x = small(), images()
    attention, mlp = network.blocks[0].attention, network.blocks[1].mlp
    with torch.no_grad():
        attention.projection.weight[:, :HEAD_WIDTH] = 0
        network.blocks[1].attention.query.weight.view(HEADS, HEAD_WIDTH, 16)[:, [1, 4]] = 0
        mlp[0].weight[::5] = 0
    dense = deepcopy(network)
    lf.minimize(network, x)
    assert error_of(run(network, (images(5, 1),)), run(dense, (images(5, 1),))) <= 1e-12
    assert attention.num_heads == HEADS - 1 and attention.query.out_features == 12
    assert network.blocks[1].attention.key.out_features == HEADS * 4
    assert network.blocks[1].attention.value.out_features == HEADS * HEAD_WIDTH
    assert mlp[0].out_features == UNITS - 4


@pytest.mark.parametrize("method", [lf.prune, lf.fold, lf.factorize])
def test_shrinks_to_a_budget_and_is_built_again(method):
    network = small()
    report = method(network, images(), keep=0.6)
    assert abs(report.parameters_after / report.parameters_before - 0.6) <= 0.02
    rebuilt = small()
    lf.rebuild(rebuilt, lf.describe(network))
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt(images(4, 1)), network(images(4, 1)))


def test_uniform_ratio_reaches_every_width():
    network = small()
    lf.fold(network, images(), keep=0.5, of="channels")
    assert network.patches.out_channels == 8 and network.positions.shape == (9, 8)
    for block in network.blocks:
        widths = [getattr(block.attention, name).out_features for name in ("query", "key", "value")]
        assert widths == [9, 9, 9] and block.mlp[0].out_features == 10
    assert network(images()).shape == (3, 5)


def test_equal_units_fold_without_any_change():
    """Eight of the 20 units are copies of others, in both blocks: a budget takes these and nothing else."""
    network, x = small(), images(6, 1)
    with torch.no_grad():
        for block in network.blocks:
            block.mlp[0].weight[12:], block.mlp[0].bias[12:] = block.mlp[0].weight[:8], block.mlp[0].bias[:8]
            block.mlp[2].weight[:, 12:] = block.mlp[2].weight[:, :8]
    dense = deepcopy(network)
    report = lf.fold(network, images(), keep=1 - 16 * (2 * 16 + 1) / lf.count_parameters(dense))
    assert [block.mlp[0].out_features for block in network.blocks] == [12, 12]
    assert {change.tensor.split(".")[2] for change in report.changes} == {"mlp"}
    assert error_of(run(network, (x,)), run(dense, (x,))) <= 1e-10
