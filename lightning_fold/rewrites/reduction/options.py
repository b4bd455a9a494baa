"""Which layers stay, and what follows the cut: the arguments that prune and fold share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_fold.errors import ArgumentError

Compensate = Literal["none", "bias", "least-squares"]
Repair = Literal["none", "data-free", "data"]


@dataclass(frozen=True)
class Options:
    """What is left alone, and what comes after the cut."""

    compensate: Compensate
    repair: Repair
    batches: list[Any] | None
    seed: int = 0
    skip: Sequence[str] = ()

    def check(self, method: str, repairs: tuple[str, ...]) -> None:
        """Raise ``ValueError`` where a value is unknown, batches are missing or ``skip`` is one string."""
        if isinstance(self.skip, str):
            raise ArgumentError(f"{method}(skip={self.skip!r}): expected a list of patterns, skip=[{self.skip!r}].")
        for name, value, known in (
            ("compensate", self.compensate, get_args(Compensate)),
            ("repair", self.repair, repairs),
        ):
            if value not in known:
                choices = ", ".join(map(repr, known[:-1]))
                raise ArgumentError(f"{method}({name}={value!r}): expected {choices} or {known[-1]!r}.")
        if self.repair == "data" and not self.batches:
            raise ArgumentError(f"{method}(repair='data'): expected batches=..., a loader or a list of batches.")
        if self.batches is not None and not self.batches:
            raise ArgumentError(f"{method}(batches=[]): expected at least one batch of inputs, or of (inputs, ...).")
