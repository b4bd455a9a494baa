"""The steps that prune and fold share.

Read the widths (``channels/widths``); distribute the ``budget`` over them; let a ``selector`` (importances or clusters)
choose channels, as a ``projection``; carry out the ``cut``: merge and remove channels, adapt norms (``channels``); then
improve the result (``recovery``: Fold-AR, least squares, ``repair``).
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import nn
from torch.optim import Optimizer

from lightning_fold.inputs import Inputs
from lightning_fold.report import Kept, RewriteReport
from lightning_fold.rewrites.calibration import LazyCalibration
from lightning_fold.rewrites.channels.widths import (
    PrunableGroup,
    check_patterns,
    find_bundles,
    find_prunable_groups,
    hold_bundles,
    pinned_groups,
)
from lightning_fold.rewrites.reduction.budget.allocation import allocate, share_out
from lightning_fold.rewrites.reduction.budget.cost_model import cost_model
from lightning_fold.rewrites.reduction.budget.sensitivity import error_curves
from lightning_fold.rewrites.reduction.cut import plan_cut
from lightning_fold.rewrites.reduction.options import Options
from lightning_fold.rewrites.reduction.recovery.recovery import Recovery
from lightning_fold.rewrites.reduction.selector import ChannelSelector, SelectionContext
from lightning_fold.rewrites.size import Size, missed
from lightning_fold.rewrites.transaction import asking_attributes, rewrite
from lightning_fold.structure.groups import Structure
from lightning_fold.surgery.transaction import Surgery


def reduce_channels(
    method: str,
    model: nn.Module,
    example_inputs: Inputs,
    size: Size,
    options: Options,
    optimizers: Iterable[Optimizer],
    choose: Callable[[SelectionContext], ChannelSelector],
) -> RewriteReport:
    """Shrink the widths of ``model``, in place, with the selector that ``choose`` returns.

    Raises:
        ArgumentTypeError: the size has the wrong type.
        ArgumentError: the size is out of range or cannot be met, or no channel can be removed.
        RewriteError: the network does not run afterwards; all changes are undone.
    """
    size.check(method)
    optimizers = list(optimizers)

    def run(ask_attributes: bool) -> RewriteReport:
        structure, widths = find_prunable_groups(method, model, example_inputs, ask_attributes=ask_attributes)
        reduction = _Reduction(method, model, example_inputs, structure, widths, options, choose)
        kept = reduction.sizes(size)
        report = rewrite(method, model, example_inputs, optimizers, lambda surgery: reduction.change(surgery, kept))
        reduction.check_size(size, report)
        return replace(report, notes=(*reduction.calibration.notes(), *reduction.notes))

    return asking_attributes(run, model, example_inputs)


class _Reduction:
    """One call of prune or fold."""

    def __init__(
        self,
        method: str,
        model: nn.Module,
        example_inputs: Inputs,
        structure: Structure,
        widths: list[PrunableGroup],
        options: Options,
        choose: Callable[[SelectionContext], ChannelSelector],
    ) -> None:
        self.method, self.model, self.example_inputs = method, model, example_inputs
        self.structure, self.options = structure, options
        self.notes: list[str] = []
        self.calibration = LazyCalibration(model, example_inputs, options.batches, options.seed, options.source)
        self._planned = 1.0
        self.selector = choose(SelectionContext(model, structure, self.calibration))
        check_patterns(method, widths, options.skip)
        self._found = widths
        reasons = [width.skipped(options.skip) or self.selector.refused(width) for width in widths]
        self.refused, self.widths = hold_bundles(structure, widths, reasons)

    def sizes(self, size: Size) -> list[int]:
        """The number of channels that each block of each width keeps."""
        size.check_patterns(self.method, [layer for width in self._found for layer in width.writers])
        bundles = find_bundles(self.structure, self.widths)
        if not size.is_budget:
            return share_out(self.widths, [size.share_of(width.writers) for width in self.widths], bundles)
        flops = size.of == "flops"
        costs = cost_model(self.model, self.example_inputs, self.structure, self.widths, flops=flops)
        fewest = share_out(self.widths, [size.bound_of(width.writers) or 0.0 for width in self.widths], bundles)
        refitted = self.options.compensate == "least-squares"
        curves = error_curves(self.calibration.get(), self.structure, self.widths, self.selector, refitted=refitted)
        kept = allocate(self.method, costs, curves, size, fewest)
        self._planned = costs.cost(kept) / costs.total
        return kept

    def change(self, surgery: Surgery, kept: list[int]) -> list[Kept]:
        """Cut the network and recover; return what could not shrink."""
        assignments = [self.selector.assign(width, size) for width, size in zip(self.widths, kept, strict=True)]
        cut = plan_cut(surgery, self.structure, self.selector, self.widths, assignments)
        shrinking = [width for width, size in zip(self.widths, kept, strict=True) if size < width.size]
        self.notes += self.selector.notes(shrinking)
        options = self.options
        needed = options.compensate != "none" or options.repair.does_something or options.batches is not None
        recovery = Recovery(cut, self.calibration.get() if needed else None, self.notes)
        cut.rescaling.apply(surgery)
        found = options.repair.before_cut(surgery, cut)
        cut.apply(surgery)
        options.repair.after_cut(surgery, recovery, found)
        if options.compensate != "none":
            recovery.compensate(surgery, weights=options.compensate == "least-squares")
        options.repair.finish(surgery, recovery)
        return [*pinned_groups(self.structure), *(Kept(w.group.name, w.group.size, r) for w, r in self.refused)]

    def check_size(self, size: Size, report: RewriteReport) -> None:
        """Add a note if the result misses the budget."""
        note = missed(report, size, self._planned)
        self.notes += [note] if note else []
