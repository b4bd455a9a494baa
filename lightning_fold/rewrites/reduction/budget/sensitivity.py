"""How much the outputs of a network change when a single width shrinks."""

import torch
from torch import Tensor

from lightning_fold.inputs import call
from lightning_fold.rewrites.calibration import Calibration, relative_squared_error, second_moments
from lightning_fold.rewrites.channels.consumers import find_consumers
from lightning_fold.rewrites.channels.widths import PrunableGroup
from lightning_fold.rewrites.reduction.budget.allocation import Curve, error_curve
from lightning_fold.rewrites.reduction.cut import plan_cut
from lightning_fold.rewrites.reduction.projection import least_squares_projector, membership, project
from lightning_fold.rewrites.reduction.selector import ChannelSelector
from lightning_fold.rewrites.transaction import float_tensors
from lightning_fold.structure.graph.trace import evaluation_mode
from lightning_fold.structure.groups import Member, Structure
from lightning_fold.surgery.optimizers import Transform
from lightning_fold.surgery.overlay import Overlay

_EXAMPLES = 32  # used to measure the error of a width


def error_curves(
    calibration: Calibration,
    structure: Structure,
    widths: list[PrunableGroup],
    selector: ChannelSelector,
    *,
    refitted: bool,
) -> list[Curve]:
    """For each width, the error of the outputs as a function of its size, relative to their variation.

    Only this width is projected: shapes do not change, its rows are multiplied by C, and with ``refitted`` the columns
    that read it are refit by least squares.
    """
    sensitivity = _Sensitivity(calibration, structure, selector, refitted)
    return [error_curve(width, lambda size, w=width: sensitivity.error(w, size)) for width in widths]


class _Sensitivity:
    """The dense network, its outputs, and the second moments of its consumers' inputs."""

    def __init__(
        self, calibration: Calibration, structure: Structure, selector: ChannelSelector, refitted: bool
    ) -> None:
        self.network, self.structure, self.selector = calibration.network, structure, selector
        self.inputs = calibration.examples(_EXAMPLES)
        self.expected = self._outputs({})
        self.moments: dict[str, Tensor] = {}
        if refitted:
            consumers = [each for each in find_consumers(structure) if each.reads_each_once(structure)]
            found = second_moments(calibration, [consumer.path for consumer in consumers])
            self.moments = {consumer.weight: found[consumer.path] for consumer in consumers}

    def error(self, width: PrunableGroup, size: int) -> float:
        """The error when ``width`` is projected to ``size`` channels in each block."""
        assignment = self.selector.approximate(width, size)
        overlay = Overlay(self.network)
        plan_cut(overlay, self.structure, self.selector, [width], [assignment]).rescaling.apply(overlay)
        for member in width.group.members:
            if not member.reads:
                overlay.transform(member.tensor, _on_channels(member, lambda rows: project(rows, assignment)))
            elif member.tensor in self.moments and member.indices.shape[1] == 1:
                refit = self._refit(width, member, assignment)
                overlay.transform(member.tensor, _on_channels(member, lambda columns, a=refit: a.to(columns) @ columns))
        return relative_squared_error(self._outputs(overlay.changed), self.expected)

    def _refit(self, width: PrunableGroup, member: Member, assignment: Tensor) -> Tensor:
        """(channels, channels) the factor of the columns, after merged channels were rescaled."""
        matrix = membership(assignment)
        merged = matrix[:, matrix.sum(0) > 1].sum(1) > 0
        scales = torch.where(merged, self.selector.scales(width), 1.0)
        index = member.indices[:, 0]
        moments = self.moments[member.tensor][index][:, index] / (scales[:, None] * scales)
        return least_squares_projector(moments, matrix).T

    def _outputs(self, changed: dict[str, Tensor]) -> list[Tensor]:
        with evaluation_mode(self.network), torch.no_grad():
            return float_tensors(call(self.network, self.inputs, changed))


def _on_channels(member: Member, change: Transform) -> Transform:
    """Apply ``change`` to the elements of each channel in ``member``, (channels, elements)."""

    def apply(tensor: Tensor) -> Tensor:
        moved = tensor.movedim(member.dim, 0).clone()
        index = member.indices.to(tensor.device)
        channels = moved[index]
        moved[index] = change(channels.flatten(1)).reshape(channels.shape)
        return moved.movedim(0, member.dim)

    return apply
