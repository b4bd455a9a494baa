"""Channels divided by their mean: global response normalisation, in any notation."""

from typing import Any

from torch.fx import Graph, Node

from lightning_fold.structure.operators.nodes import argument, channel_share, family, operator_name


def join_channel_shares(graph: Graph) -> None:
    """Replace every ``value / (value.mean(dim, keepdim=True) + number)`` with one operator, in place."""
    for node in list(graph.nodes):
        if node.op != "call_function" or operator_name(node) != "div" or len(node.all_input_nodes) != 2:
            continue
        value, total = node.all_input_nodes
        mean = total.args[0] if operator_name(total) == "add" and len(total.all_input_nodes) == 1 else None
        if not isinstance(mean, Node) or operator_name(mean) != "mean" or mean.args[0] is not value:
            continue
        dims, keeps = argument(mean, 1, "dim", None), argument(mean, 2, "keepdim", False)
        if keeps and isinstance(dims, list) and len(dims) == len(mean.users) == len(total.users) == 1:
            with graph.inserting_after(node):
                joined = graph.call_function(channel_share, (value, dims[0], total.args[1]))
            joined.meta = dict(node.meta)
            node.replace_all_uses_with(joined)
            joined.args = (*joined.args, _scale(joined))
            for each in (node, total, mean):
                graph.erase_node(each)


def _scale(share: Node) -> Node | None:
    """The tensor that scales only ``share * x``."""
    product = _only_user(share, "mul")
    if product is None or len(product.all_input_nodes) != 2:
        return None
    scaled = _only_user(product, "mul") or _only_user(product, "addcmul")
    if scaled is None or scaled.kwargs:
        return None
    factors: Any = [factor for factor in scaled.args[-2:] if factor is not product]
    scale = factors[0] if len(factors) == 1 else None
    while isinstance(scale, Node) and len(scale.users) == 1 and family(scale) == "movement":
        scale = scale.args[0]
    return scale if isinstance(scale, Node) and scale.op == "placeholder" and len(scale.users) == 1 else None


def _only_user(node: Node, name: str) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and operator_name(users[0]) == name else None
