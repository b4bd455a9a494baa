"""Einsum written out: against torch.einsum."""

import pytest
import torch

from lightning_fold.structure.graph.canonical import einsum

SHAPES = {"b": 2, "h": 3, "n": 4, "m": 5, "d": 6, "o": 7}
EQUATIONS = [
    *("bhnd,bhmd->bhnm", "bhnm,bhmd->bnhd", "bnd,do->bno", "od,bnd->bno", "bnd,hdo->bhno", "bnhd,hdo->bno"),
    *("bd,d->b", "nd,md->nm", "bnd,bmd->b", "bn,bn->bn", "bnd,md->bnm", "b d, b d -> b"),
    *("bnd,do", "bnn->bn", "...d,do->...o", "bnd,do,oh->bnh", "bnd,bd->bd"),
]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_written_out(equation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = equation.replace(" ", "").partition("->")[0].replace("...", "bn").split(",")
    operands = [torch.randn([SHAPES[x] for x in part], generator=generator, dtype=torch.float64) for part in parts]
    torch.testing.assert_close(einsum(equation, operands), torch.einsum(equation, operands), rtol=1e-12, atol=1e-12)
