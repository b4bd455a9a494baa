"""The table of rules: every family that a name belongs to has one."""

import torch
from torch import nn

from lightning_fold.structure.graph.trace import trace
from lightning_fold.structure.operators.nodes import FAMILIES, family
from lightning_fold.structure.rules import RULES
from lightning_fold.structure.rules.rule import Rule
from tests.structure.reading import Apply


def test_every_family_has_a_rule_and_every_rule_a_family() -> None:
    assert set(RULES) == set(FAMILIES.values()) | {"pointwise"}
    assert all(isinstance(rule, Rule) for rule in RULES.values())


def test_rule_without_constants_leaves_the_result_unknown() -> None:
    assert {name for name, rule in RULES.items() if rule.constants is None} == {"softmax", "glu"}


def test_operator_without_a_family_has_no_rule() -> None:
    model = Apply(lambda m, x: torch.cumsum(torch.relu(x), 1), a=nn.Identity())
    families = [family(node) for node in trace(model, torch.randn(2, 3)).graph.nodes if node.op == "call_function"]
    assert families == ["pointwise", "unknown"] and "unknown" not in RULES
