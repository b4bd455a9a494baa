"""The steps after the cut: Fold-AR, least squares, repair; each is undone if it increases the held-out error.

Without data, the held-out inputs are noise.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from lightning_fold.report import some_of
from lightning_fold.rewrites.calibration import Calibration, relative_squared_error
from lightning_fold.rewrites.channels.consumers import ONLY_SOLVED, find_consumers
from lightning_fold.rewrites.channels.producers import find_producers
from lightning_fold.rewrites.reduction.cut import Cut
from lightning_fold.rewrites.reduction.recovery.least_squares import refit
from lightning_fold.rewrites.repair import is_layer_norm
from lightning_fold.rewrites.transaction import outputs
from lightning_fold.structure.graph.trace import layer_of
from lightning_fold.structure.labels import Contraction
from lightning_fold.surgery.editor import NetworkEditor
from lightning_fold.surgery.transaction import Surgery


@dataclass
class Recovery:
    """Steps that improve a network after its cut.

    Attributes:
        cut: the cut of the network.
        dense: the dense network and inputs; ``None`` if no step needs them.
        notes: notes for the report, for example on undone steps.
    """

    cut: Cut
    dense: Calibration | None
    notes: list[str] = field(default_factory=list)

    def compensate(self, surgery: Surgery, *, weights: bool) -> None:
        """Fit the columns and biases of consumers (or only biases) on copies that run on the calibration inputs."""
        assert self.dense is not None
        dense = self.dense
        reference, small = self.calibrated(surgery)
        expected = outputs(reference, dense.held_out)
        before = self.error(small, expected)
        consumers = [c for c in find_consumers(self.cut.structure) if dense.real or self._loses_columns(c.contraction)]
        found = refit(replace(dense, network=reference), small, consumers, self._rows(), weights=weights)
        after = self.error(small, expected)
        if not after <= before:
            self.notes.append(_undone(f"compensate={'least-squares' if weights else 'bias'!r}", before, after))
            return
        for consumer in consumers:
            correction = found[consumer.path]
            if correction.weight is not None:
                surgery.add(consumer.weight, correction.weight)
            if consumer.sink is not None:
                surgery.add(consumer.sink.tensor, consumer.sink.sign * correction.shift)
        self.notes += self._not_compensated(weights)

    def if_better(self, name: str, surgery: Surgery, step: Callable[[nn.Module], object]) -> None:
        """Run ``step`` on a copy and take over its values, unless it increases the error on held-out inputs."""
        assert self.dense is not None
        better, notes = improved(name, surgery.model, self.dense, step)
        self.notes += notes
        for key, value in {**dict(better.named_parameters()), **dict(better.named_buffers())}.items():
            if not torch.equal(value, surgery.tensor(key)):
                surgery.set(key, value)

    def calibrated(self, surgery: Surgery) -> tuple[nn.Module, nn.Module]:
        """The calibration's network, rescaled like the network, and a copy of it that is cut like the network."""
        assert self.dense is not None
        reference = deepcopy(self.dense.network)
        self.cut.rescaling.apply(NetworkEditor(reference))
        small = NetworkEditor(deepcopy(reference))
        self.cut.apply(small)
        producers = find_producers(self.cut.structure)
        for gamma in {producer.norm[0] for producer in producers if producer.norm is not None}:
            small.set(gamma, surgery.tensor(gamma))
        return reference, small.model

    def error(self, small: nn.Module, expected: list[Tensor]) -> float:
        """The error of the outputs of ``small`` on held-out inputs, relative to the variation of ``expected``."""
        assert self.dense is not None
        return relative_squared_error(outputs(small, self.dense.held_out), expected)

    def _loses_columns(self, contraction: Contraction) -> bool:
        columns = contraction.columns
        depthwise = contraction.groups > 1 and contraction.weight.meta["val"].shape[1] == 1  # no channel reads others
        return (
            columns is not None
            and not depthwise
            and bool(self.cut.removal.removed[self.cut.structure.group_of[columns]].any())
        )

    def _not_compensated(self, weights: bool) -> list[str]:
        """A note on the layers that lose columns and were not compensated."""
        structure = self.cut.structure
        solved = {c.contraction.node for c in find_consumers(structure) if weights or c.sink is not None}
        losing = [c.node for c in structure.labels.contractions if self._loses_columns(c)]
        left = [node for node in losing if node in structure.trace.evaluated and node not in solved]
        names = some_of(layer_of(node) or "the network itself" for node in left)
        if not names:
            return []
        if weights:
            return [f"compensate='least-squares' did not fit {names}: it fits {ONLY_SOLVED}"]
        return [f"compensate='bias' did not fit {names}: it fits {ONLY_SOLVED}, with a bias or BatchNorm"]

    def _rows(self) -> dict[str, Tensor]:
        """For each consumer, the matrix (rows left, rows) that averages over the clusters of its rows."""
        found = {}
        for consumer in find_consumers(self.cut.structure):
            contraction = consumer.contraction
            if contraction.rows is None:
                size = contraction.weight.meta["val"].shape[1 - contraction.column_dim]
                found[consumer.path] = torch.eye(size, dtype=torch.float64)
            else:
                found[consumer.path] = self.cut.means(self.cut.structure.group_of[contraction.rows])
        return found

    def norm_rows(self, model: nn.Module) -> dict[str, Tensor]:
        """For each LayerNorm, the matrix (channels left, channels) that averages over the clusters of its channels.

        LayerNorms that are called more than once have no single target and are left out.
        """
        axes, uses = self.cut.structure.labels.axes, self.cut.structure.uses
        return {
            path: self.cut.means(self.cut.structure.groups(axes[f"{path}.weight", 0]))
            for path, module in model.named_modules()
            if is_layer_norm(module) and (f"{path}.weight", 0) in axes and uses[f"{path}.weight"] == 1
        }


def improved(
    name: str, model: nn.Module, dense: Calibration, step: Callable[[nn.Module], object]
) -> tuple[nn.Module, list[str]]:
    """A copy of ``model`` after ``step``; or ``model`` and a note if ``step`` increases the error on held-out inputs.

    Args:
        name: name of the step in the note.
        model: the network after its rewrite; not changed.
        dense: the network before the rewrite, and held-out inputs.
        step: changes the values of a network, in place.
    """
    expected, copy = outputs(dense.network, dense.held_out), deepcopy(model)
    before = relative_squared_error(outputs(copy, dense.held_out), expected)
    step(copy)
    after = relative_squared_error(outputs(copy, dense.held_out), expected)
    return (model, [_undone(name, before, after)]) if after > before else (copy, [])


def _undone(name: str, before: float, after: float) -> str:
    return f"{name} was undone: it would change the error on held-out inputs from {before:.3g} to {after:.3g}"
