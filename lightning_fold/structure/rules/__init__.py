"""One file for each kind of operator; in it, for each family, the rule for labels beside the rule for constants."""

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
