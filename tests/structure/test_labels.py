"""Labels: ties make groups; what is recorded."""

import torch
from torch import nn

from lightning_fold.structure.constants import constants
from lightning_fold.structure.graph.trace import trace
from lightning_fold.structure.labels import Axis, LabelRecorder, Labels
from lightning_fold.structure.values import Value


def _recorder() -> LabelRecorder:
    graph = trace(nn.Sequential(nn.ReLU()), torch.randn(2, 3))
    return LabelRecorder(graph, constants(graph), set(), ask_attributes=True)


def _joined(count: int, ties: list[tuple[int, int]]) -> list[set[int]]:
    """Brute force: merge sets until nothing changes."""
    sets = [{i} for i in range(count)]
    for left, right in ties:
        one = next(s for s in sets if left in s) | next(s for s in sets if right in s)
        sets = [s for s in sets if not s & one] + [one]
    return sorted(sets, key=min)


def test_groups_are_the_closure_of_the_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        pairs = torch.randint(0, 30, (12, 2), generator=generator)
        found = Labels(count=30, ties=[(pairs[:6, 0], pairs[:6, 1]), (pairs[6:, 0], pairs[6:, 1])]).groups()
        sets = [set((found == group).nonzero().flatten().tolist()) for group in found.unique()]
        assert sorted(sets, key=min) == _joined(30, pairs.tolist())


def test_groups_do_not_depend_on_the_order_of_the_ties() -> None:
    ties = [(torch.tensor([1, 2]), torch.tensor([3, 4])), (torch.tensor([4]), torch.tensor([5]))]
    found, turned = Labels(count=6, ties=ties).groups(), Labels(count=6, ties=[t[::-1] for t in ties[::-1]]).groups()
    assert torch.equal(found[:, None] == found, turned[:, None] == turned)
    assert torch.equal(Labels(count=3).groups(), torch.arange(3))


def test_axis_is_one_whoever_asks_and_labels_are_used_once() -> None:
    run = _recorder()
    first, other, fresh = run.axis("a", 0, 3), run.axis("a", 1, 2), run.fresh(2)
    assert run.axis("a", 0, 3) is first and first == Axis("a", 0, 1, 3) and run.labels.count == 8
    assert torch.cat([first.labels, other.labels, fresh]).tolist() == list(range(1, 8))


def test_side_that_meets_nothing_is_pinned_with_its_layer() -> None:
    run, labels = _recorder(), torch.tensor([4, 4, 3])
    node = next(node for node in run.trace.graph.nodes if node.op == "call_function")
    run.tie_or_pin(labels, labels + 1, node, "why")
    run.tie_or_pin(None, None, node, "why")
    assert len(run.labels.ties) == 1 and run.labels.pins == []
    run.tie_or_pin(None, labels, node, "why")
    (pin,) = run.labels.pins
    assert (pin.labels.tolist(), pin.operator, pin.layer, pin.reason) == ([3, 4], "relu", "0", "why")


def test_channels_over_heads_become_those_of_one_head() -> None:
    run, heads = _recorder(), torch.arange(1, 7).reshape(1, 2, 1, 3)
    (found,), kwargs = run.without_heads((Value(torch.Size((5, 2, 4, 3)), {}, (heads,)),), {"a": 1})
    assert torch.equal(found.labels[3], torch.tensor([1, 2, 3])) and not found.head_labels and kwargs == {"a": 1}
    assert [(left.tolist(), right.tolist()) for left, right in run.labels.ties] == [([1, 2, 3], [4, 5, 6])]
