"""The report of a rewrite, as one frozen value that prints as a table."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from io import StringIO

from rich.console import Console
from rich.table import Table
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """A tensor whose shape changed: dotted name, shape before, shape after (``None``: created or removed)."""

    tensor: str
    before: Shape | None
    after: Shape | None


@dataclass(frozen=True)
class Kept:
    """Channels that could not be removed: where, how many, why, and if known the parameters that this costs."""

    tensor: str
    channels: int
    reason: str
    parameters: int | None = None


@dataclass(frozen=True)
class RewriteReport:
    """The results of a rewrite.

    Attributes:
        method: name of the rewrite.
        parameters_before, parameters_after: number of parameters.
        flops_before, flops_after: floating-point operations of one forward pass of the example inputs, 2 for each
            multiply-add; ``None`` if no inputs were given.
        max_relative_error: largest absolute change of an output element divided by the largest absolute output, for
            exact rewrites; ``None`` otherwise.
        changes: every tensor whose shape changed.
        kept: what could not be removed, and why.
        notes: changes that were reverted because they made things worse, requests that were met in another way or not
            at all, and the gap to a budget that was missed.
        masks: name of each sparsified parameter -> boolean tensor of its shape, True where the weight is kept.
    """

    method: str
    parameters_before: int
    parameters_after: int
    flops_before: int | None = None
    flops_after: int | None = None
    max_relative_error: float | None = None
    changes: tuple[Change, ...] = ()
    kept: tuple[Kept, ...] = ()
    notes: tuple[str, ...] = ()
    masks: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def factor(self) -> float:
        """Compression factor: parameters before divided by parameters after."""
        return self.parameters_before / max(self.parameters_after, 1)

    @property
    def summary(self) -> str:
        """One line with the rewrite and the parameters before and after."""
        sizes = f"{self.parameters_before:,} -> {self.parameters_after:,} parameters ({self.factor:.2f}x)"
        error = "" if self.max_relative_error is None else f", relative error {self.max_relative_error:.1e}"
        return f"{self.method}: {sizes}{error}"

    def __str__(self) -> str:
        lines = StringIO()
        console = Console(file=lines, width=110, markup=False, highlight=False)
        console.print(self.summary, soft_wrap=True)
        if self.changes:
            console.print(self._table())
        for kept in self.kept:
            cost = "" if kept.parameters is None else f" ({kept.parameters:,} parameters)"
            what = f"{counted(kept.channels, 'channel')} of {kept.tensor}"
            console.print(f"kept {what}: {kept.reason}{cost}", soft_wrap=True)
        for note in self.notes:
            console.print(f"note: {note}", soft_wrap=True)
        return lines.getvalue().rstrip()

    def _table(self) -> Table:
        table = Table("tensor", "before", "after")
        for change in self.changes:
            table.add_row(change.tensor, _shape(change.before), _shape(change.after))
        return table


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 channel``, ``2 channels``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def some_of(names: Iterable[str]) -> str:
    """The first three names, for use in a sentence: ``a, b, c and 4 more``."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shape(shape: Shape | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape)) or "scalar"
