"""One file for each kind of operator; each family has a rule for labels and a rule for constants."""

from torch.fx import Node

from lightning_fold.structure.operators.nodes import family, registered
from lightning_fold.structure.rules import (
    attention,
    contraction,
    elementwise,
    joining,
    movement,
    norms,
    patches,
    pooling,
)
from lightning_fold.structure.rules.rule import Rule

__all__ = ["RULES", "Rule", "rule_of"]

RULES: dict[str, Rule] = {
    **attention.RULES,
    **contraction.RULES,
    **elementwise.RULES,
    **joining.RULES,
    **movement.RULES,
    **norms.RULES,
    **patches.RULES,
    **pooling.RULES,
}


def rule_of(node: Node) -> Rule | None:
    """The rule for ``node``'s operator: its registered rule, or that of its family; ``None`` if there is none."""
    found = registered(node)
    return RULES.get(family(node)) if found is None or found.rule is None else found.rule
