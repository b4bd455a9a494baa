"""What prune and fold share: sizes under a budget, the cut itself, least squares behind it, repair, and what helped."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_fold.report import Kept, RewriteError, RewriteReport
from lightning_fold.rewrites.batch_norms import Rescaling, find_producers, rescaling
from lightning_fold.rewrites.budget import allocate, cost_model, error_curve, uniform
from lightning_fold.rewrites.calibration import (
    Calibration,
    from_batches,
    from_noise,
    relative_squared_error,
    second_moments,
)
from lightning_fold.rewrites.choosing import Chooser, Setting
from lightning_fold.rewrites.consumers import Consumer, find_consumers
from lightning_fold.rewrites.least_squares import refit
from lightning_fold.rewrites.merging import combine, fold_ar, targets
from lightning_fold.rewrites.options import Budget, Options
from lightning_fold.rewrites.projection import least_squares_projector, membership, projector
from lightning_fold.rewrites.removal import Removal, complete, remove
from lightning_fold.rewrites.repair import is_layer_norm, repair, tune_layer_norms
from lightning_fold.rewrites.transaction import outputs, rewrite
from lightning_fold.rewrites.widths import Width, find_widths, pinned_widths
from lightning_fold.structure.groups import Structure, reading_axes
from lightning_fold.structure.trace import Inputs
from lightning_fold.surgery import Surgery

_MEASURED = 32  # examples on which the error of a width is measured


def reduce_widths(
    method: str,
    model: nn.Module,
    example_inputs: Inputs,
    budget: Budget,
    options: Options,
    optimizers: Iterable[Optimizer],
    choose: Callable[[Setting], Chooser],
) -> RewriteReport:
    """Make the widths of ``model`` smaller, in place, in the way that ``choose`` gives.

    Raises:
        ValueError: the budget is out of range or cannot be met, or no channel can go.
        RewriteError: the network does not run afterwards; everything is as it was before.
    """
    budget.check(method)
    optimizers = list(optimizers)

    def run(ask_attributes: bool) -> RewriteReport:
        structure, widths = find_widths(method, model, example_inputs, ask_attributes=ask_attributes)
        reduction = _Reduction(method, model, example_inputs, structure, widths, options, choose)
        kept = reduction.sizes(budget)
        report = rewrite(method, model, example_inputs, optimizers, lambda surgery: reduction.change(surgery, kept))
        reduction.check_budget(budget, report)
        return replace(report, notes=tuple(reduction.notes))

    try:
        return run(True)
    except RewriteError:
        if not find_widths(method, model, example_inputs)[0].labels.sizes:
            raise  # else the code may not ask the attributes that repeat the size of its attention heads
        return run(False)


class _Reduction:
    """One call of prune or fold."""

    def __init__(
        self,
        method: str,
        model: nn.Module,
        example_inputs: Inputs,
        structure: Structure,
        widths: list[Width],
        options: Options,
        choose: Callable[[Setting], Chooser],
    ) -> None:
        self.method, self.model, self.example_inputs = method, model, example_inputs
        self.structure, self.options = structure, options
        self.notes: list[str] = []
        self._calibration: Calibration | None = None
        self.chooser = choose(Setting(model, Surgery(model), structure, self.calibrate))
        self.refused = [(w, reason) for w in widths if (reason := self.chooser.refused(w)) is not None]
        self.widths = [width for width in widths if self.chooser.refused(width) is None]

    def calibrate(self) -> Calibration:
        """The dense network on data, or on noise."""
        if self._calibration is None:
            batches = self.options.batches
            self._calibration = (
                from_noise(self.model, self.example_inputs, self.options.seed)
                if batches is None
                else from_batches(self.model, batches)
            )
        return self._calibration

    # ---- how small

    def sizes(self, budget: Budget) -> list[int]:
        """How many channels each block of each width keeps."""
        if budget.share is None:
            return uniform(self.widths, budget.ratio)
        flops = budget.keep_flops is not None
        costs = cost_model(self.model, self.example_inputs, self.structure, self.widths, flops=flops)
        calibration = self.calibrate()
        inputs = tuple(v[:_MEASURED] if isinstance(v, Tensor) and v.dim() else v for v in calibration.inputs)
        expected = outputs(calibration.network, inputs)
        moments = self._moments(calibration) if self.options.compensate == "least-squares" else {}
        curves = [
            error_curve(width, lambda size, w=width: self._error(calibration, inputs, expected, moments, w, size))
            for width in self.widths
        ]
        name = "keep_flops" if flops else "keep_parameters"
        return allocate(self.method, costs, curves, budget.share, name)

    def check_budget(self, budget: Budget, report: RewriteReport) -> None:
        """Say so where the result is not within 2 % of the budget."""
        before, after = report.parameters_before, report.parameters_after
        if budget.keep_flops is not None:
            before, after = report.flops_before or 1, report.flops_after or 0
        if budget.share is not None and abs(after / before - budget.share) > 0.02:
            what = "parameters" if budget.keep_flops is None else "FLOPs"
            self.notes.append(
                f"{after / before:.1%} of the {what} are left, the nearest to the {budget.share:.1%} asked for"
            )

    def _moments(self, calibration: Calibration) -> dict[str, Tensor]:
        consumers = find_consumers(self.structure)
        moments = second_moments(calibration, [consumer.path for consumer in consumers])
        return {consumer.weight: moments[consumer.path] for consumer in consumers}

    def _error(
        self,
        calibration: Calibration,
        inputs: tuple[Any, ...],
        expected: list[Tensor],
        moments: dict[str, Tensor],
        width: Width,
        size: int,
    ) -> float:
        """Error of the outputs when one width alone is projected to ``size`` channels in each block."""
        assignment = self.chooser.assign(width, size)
        matrix = membership(assignment)
        copy = deepcopy(calibration.network)
        surgery = Surgery(copy)
        cluster_of, _ = self._decide([width], [assignment])
        self._rescaling([width], cluster_of).apply(surgery)
        merged = matrix[:, matrix.sum(0) > 1].sum(1) > 0
        lengths = torch.where(merged, self.chooser.lengths(width), 1.0)
        for member in width.group.members:
            index, action = member.indices, projector(matrix)
            if member.reads:
                if member.tensor not in moments or index.shape[1] > 1:
                    continue
                inner = moments[member.tensor][index[:, 0]][:, index[:, 0]] / (lengths[:, None] * lengths)
                action = least_squares_projector(inner, matrix).T
            surgery.transform(member.tensor, _mix(action, member.dim, index))
        return relative_squared_error(outputs(copy, inputs), expected)

    # ---- the cut

    def change(self, surgery: Surgery, kept: list[int]) -> list[Kept]:
        """Cut, and do what comes after."""
        assignments = [self.chooser.assign(width, size) for width, size in zip(self.widths, kept, strict=True)]
        cluster_of, removal = self._decide(self.widths, assignments)
        scaling = self._rescaling(self.widths, cluster_of)
        dense = self.calibrate() if self._needs_calibration() else None
        self._cut(surgery, cluster_of, removal, scaling, dense)
        if self.options.compensate != "none":
            self._compensate(surgery, cluster_of, removal, scaling)
        if self.options.repair == "data":
            assert dense is not None
            self._repair(surgery, dense, cluster_of, removal)
        return [*pinned_widths(self.structure), *(Kept(w.group.name, w.group.size, r) for w, r in self.refused)]

    def _needs_calibration(self) -> bool:
        return self.options.compensate != "none" or self.options.batches is not None

    def _decide(self, widths: list[Width], assignments: list[Tensor]) -> tuple[Tensor, Removal]:
        """For every channel of the network the one that stands for its cluster, and which go."""
        each = torch.arange(self.structure.count)
        cluster_of, removed = each.clone(), torch.zeros(self.structure.count, dtype=torch.bool)
        for width, assignment in zip(widths, assignments, strict=True):
            ids, labels = width.group.ids, assignment.tolist()
            first = {label: position for position, label in reversed(list(enumerate(labels)))}
            cluster_of[ids] = ids[torch.tensor([first[label] if label >= 0 else i for i, label in enumerate(labels)])]
            removed[ids[assignment < 0]] = True
        removal = complete(self.structure, removed | (cluster_of != each))
        return torch.where(removal.removed, cluster_of, each), removal

    def _rescaling(self, widths: list[Width], cluster_of: Tensor) -> Rescaling:
        counts = torch.bincount(cluster_of, minlength=self.structure.count)
        lengths = torch.ones(self.structure.count, dtype=torch.float64)
        for width in widths:
            lengths[width.group.ids] = self.chooser.lengths(width)
        reading = reading_axes(self.structure)
        return rescaling(Surgery(self.model), self.structure, counts[cluster_of] > 1, lengths, reading)

    def _cut(
        self,
        surgery: Surgery,
        cluster_of: Tensor,
        removal: Removal,
        scaling: Rescaling,
        dense: Calibration | None = None,
    ) -> None:
        """Rescale, merge and remove; Fold-AR, unless data shows that it does harm."""
        scaling.apply(surgery)
        factors = fold_ar(surgery, self.structure, cluster_of) if self.options.repair == "data-free" else {}
        combine(surgery, self.structure, cluster_of)
        if factors and dense is not None and dense.real:
            before = self._held_out_error(surgery.model, dense, removal)
            self._scale(surgery, factors)
            if self._held_out_error(surgery.model, dense, removal) > before:
                self._scale(surgery, {name: 1 / factor for name, factor in factors.items()})
                self.notes.append("Fold-AR was undone: on held-out data it makes the error larger")
        else:
            self._scale(surgery, factors)
        remove(surgery, self.structure, removal)

    def _held_out_error(self, model: nn.Module, dense: Calibration, removal: Removal) -> float:
        """The error of a network whose channels are merged but not yet removed."""
        copy = deepcopy(model)
        with Surgery(copy) as surgery:
            remove(surgery, self.structure, removal)
        return relative_squared_error(outputs(copy, dense.held_out), outputs(dense.network, dense.held_out))

    @staticmethod
    def _scale(surgery: Surgery, factors: dict[str, Tensor]) -> None:
        for name, factor in factors.items():
            surgery.transform(name, lambda gamma, f=factor: gamma * f.to(gamma), moments=lambda moment: moment)

    # ---- least squares

    def _compensate(self, surgery: Surgery, cluster_of: Tensor, removal: Removal, scaling: Rescaling) -> None:
        """Solve for the consumers' columns, on copies that see the calibration's inputs."""
        dense = self.calibrate()
        reference = deepcopy(dense.network)
        scaling.apply(Surgery(reference))
        small = deepcopy(reference)
        self._cut_as(surgery, Surgery(small), cluster_of, removal)
        expected = outputs(reference, dense.held_out)
        before = relative_squared_error(outputs(small, dense.held_out), expected)
        consumers = [c for c in find_consumers(self.structure) if dense.real or self._loses_columns(c, removal)]
        rows = self._rows(cluster_of, removal)
        found = refit(
            replace(dense, network=reference),
            small,
            consumers,
            rows,
            weights=self.options.compensate == "least-squares",
        )
        after = relative_squared_error(outputs(small, dense.held_out), expected)
        if not after <= before:
            self.notes.append(
                f"compensate={self.options.compensate!r} was undone: the error on held-out inputs would go "
                f"from {before:.3g} to {after:.3g}"
            )
            return
        for consumer in consumers:
            correction = found[consumer.path]
            if correction.weight is not None:
                _add(surgery, consumer.weight, correction.weight)
            if consumer.shift is not None:
                _add(surgery, consumer.shift[0], consumer.shift[1] * correction.shift)

    # ---- repair

    def _repair(self, surgery: Surgery, dense: Calibration, cluster_of: Tensor, removal: Removal) -> None:
        """BatchNorm statistics, then LayerNorms; what does not help on held-out data is not done."""
        rows = self._norm_rows(surgery.model, cluster_of, removal)
        steps: dict[str, Callable[[nn.Module], None]] = {
            "BatchNorm re-estimation": lambda copy: repair(copy, [dense.inputs]),
            "LayerNorm tuning": lambda copy: tune_layer_norms(dense.network, copy, dense.inputs, rows),
        }
        expected = outputs(dense.network, dense.held_out)
        before = relative_squared_error(outputs(surgery.model, dense.held_out), expected)
        for name, step in steps.items():
            copy = deepcopy(surgery.model)
            step(copy)
            after = relative_squared_error(outputs(copy, dense.held_out), expected)
            if after > before:
                self.notes.append(
                    f"{name} was undone: the error on held-out data would go from {before:.3g} to {after:.3g}"
                )
                continue
            before = after
            for key, value in {**dict(copy.named_parameters()), **dict(copy.named_buffers())}.items():
                if not torch.equal(value, surgery.tensor(key)):
                    surgery.transform(key, lambda _, v=value: v.detach(), moments=lambda moment: moment)

    def _norm_rows(self, model: nn.Module, cluster_of: Tensor, removal: Removal) -> dict[str, Tensor]:
        """For each LayerNorm (channels left, channels) the mean over the clusters of its channels."""
        norms = [path for path, module in model.named_modules() if is_layer_norm(module)]
        axes = self.structure.labels.axes
        return {
            path: self._means(self.structure.groups(axes[f"{path}.weight", 0]), cluster_of, removal)
            for path in norms
            if (f"{path}.weight", 0) in axes
        }

    def _cut_as(self, done: Surgery, surgery: Surgery, cluster_of: Tensor, removal: Removal) -> None:
        """Cut a rescaled copy, with the BatchNorm scales that the network itself has got."""
        combine(surgery, self.structure, cluster_of)
        remove(surgery, self.structure, removal)
        for gamma in {producer.norm[0] for producer in find_producers(self.structure) if producer.norm is not None}:
            surgery.transform(gamma, lambda _, name=gamma: done.tensor(name).detach())

    def _loses_columns(self, consumer: Consumer, removal: Removal) -> bool:
        columns = consumer.contraction.columns
        return columns is not None and bool(removal.removed[self.structure.group_of[columns]].any())

    def _rows(self, cluster_of: Tensor, removal: Removal) -> dict[str, Tensor]:
        """For each layer (rows left, rows) the mean over the clusters of its rows."""
        found = {}
        for consumer in find_consumers(self.structure):
            labels = consumer.contraction.rows
            if labels is None:
                size = consumer.contraction.weight.meta["val"].shape[1 - consumer.contraction.column_dim]
                found[consumer.path] = torch.eye(size, dtype=torch.float64)
                continue
            found[consumer.path] = self._means(self.structure.group_of[labels], cluster_of, removal)
        return found

    @staticmethod
    def _means(groups: Tensor, cluster_of: Tensor, removal: Removal) -> Tensor:
        left = torch.nonzero(~removal.removed[groups]).flatten()
        matrix = (targets(groups, cluster_of)[None] == left[:, None]).double()
        return matrix / matrix.sum(1, keepdim=True)


def _mix(action: Tensor, dim: int, indices: Tensor):
    """Multiply the channels along ``dim`` with a (channels, channels) matrix from the left."""

    def change(tensor: Tensor) -> Tensor:
        moved = tensor.movedim(dim, 0).clone()
        index = indices.to(tensor.device)
        channels = moved[index]
        moved[index] = (action.to(tensor) @ channels.flatten(1)).reshape(channels.shape)
        return moved.movedim(0, dim)

    return change


def _add(surgery: Surgery, name: str, value: Tensor) -> None:
    surgery.transform(name, lambda tensor: tensor + value.to(tensor), moments=lambda moment: moment)
