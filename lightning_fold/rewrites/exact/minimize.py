"""minimize: rewrite a network with zeros exactly into a smaller dense one."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.optim import Optimizer

from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs
from lightning_fold.report import Kept, RewriteReport
from lightning_fold.rewrites.channels.compensated_norms import compensable, compensate, compensate_response_norm
from lightning_fold.rewrites.channels.removal import Removal, complete, remove
from lightning_fold.rewrites.channels.widths import kept_groups
from lightning_fold.rewrites.exact.constant_branches import replace_branches
from lightning_fold.rewrites.exact.constants import choose_carriers, find_sink, move_constants
from lightning_fold.rewrites.exact.input_features import select_read_features
from lightning_fold.rewrites.exact.round_widths import fill, fill_cost
from lightning_fold.rewrites.transaction import asking_attributes, rewrite
from lightning_fold.rewrites.wrappers import on_network
from lightning_fold.structure.graph.trace import layer_of
from lightning_fold.structure.groups import Structure, read_structure, why_pinned
from lightning_fold.structure.liveness import live_groups
from lightning_fold.structure.operators.nodes import family
from lightning_fold.surgery.transaction import Surgery


@on_network
def minimize(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    select_inputs: bool = False,
    multiple_of: int = 1,
    optimizers: Iterable[Optimizer] = (),
) -> RewriteReport:
    """Rewrite ``model`` in place into a smaller dense network that computes the same function.

    Channels that cannot reach the output are removed. Channels that do not depend on the input are removed after
    their constant has moved into the consumers' biases. Without a bias, it moves into the running mean of the BatchNorm
    that follows; before zero padding, it moves into one channel that carries the constants of all. Masks of
    ``torch.nn.utils.prune`` are multiplied into their weights first.

    Source: "Squeeze-Release: Iterative Pruning with Exact Structural Minimization" (arXiv 2606.14346); the rules for
    constants, padding and grouped convolutions are this project's own derivation.

    Args:
        model: any network that ``torch.export`` can trace, with exact zeros in its weights from any source.
        example_inputs: a tensor, a tuple of positional inputs or a dict of inputs by name, batch first.
        select_inputs: also drop input features that a Linear layer does not read; a :class:`SelectFeatures` in front
            of it selects the others.
        multiple_of: round every remaining width up to a multiple of this number (8 suits most hardware), but not beyond
            its original size; the report states the cost. At least 1.
        optimizers: optimizers of the network; the optimizer state of the remaining weights is kept.

    Returns:
        A report whose ``max_relative_error`` was measured on ``example_inputs`` in evaluation mode: below 1e-12 in
        float64 and about 1e-6 in float32. In training mode a BatchNorm normalises with batch statistics, so constant
        channels have other values there.

    Raises:
        TraceError: the network cannot be traced.
        ArgumentError: the network contains NaN, or ``multiple_of`` is out of range.
        RewriteError: the rewritten network does not run or is not exact; the network and optimizers are restored.
    """
    if multiple_of < 1:
        raise ArgumentError(f"minimize(multiple_of={multiple_of}): expected at least 1, for example multiple_of=8.")
    optimizers = list(optimizers)

    def run(ask_attributes: bool) -> RewriteReport:
        def read() -> Structure:
            return read_structure(model, example_inputs, ask_attributes=ask_attributes)

        structure = read()

        def change(surgery: Surgery) -> list[Kept]:
            replaced, whole = replace_branches(surgery, structure, example_inputs)
            current = read() if replaced else structure
            kept = _minimize(surgery, current, multiple_of)
            while _became_dense(surgery, current):  # with one group left, the channels can be removed one by one again
                current = read()
                kept = _minimize(surgery, current, multiple_of)
            if select_inputs:
                select_read_features(surgery, current)
            return kept + whole

        return rewrite("minimize", model, example_inputs, optimizers, change, exact=True)

    return asking_attributes(run, model, example_inputs)


def _minimize(surgery: Surgery, structure: Structure, multiple_of: int) -> list[Kept]:
    contractions = structure.labels.contractions
    sinks = {c.node: find_sink(surgery, structure, c) for c in contractions}
    fixed = {node for node, sink in sinks.items() if sink is None}
    norms = [norm for norm in structure.labels.norms if compensable(structure, norm)]
    others = [norm for norm in structure.labels.norms if norm not in norms]
    fixed |= {
        norm.node for norm in others if family(norm.node) != "global_response_norm"
    }  # they cannot be compensated: only zeros can be removed from them
    live, carriers, needed, removal = _decide(structure, fixed, multiple_of)
    for contraction in contractions:
        sink = sinks[contraction.node]
        if sink is not None:
            move_constants(surgery, structure, contraction, sink, removal, carriers)
    for norm in structure.labels.global_response_norms:
        compensate_response_norm(surgery, structure, norm, removal)
    filling = fill_cost(structure, needed, removal, multiple_of)
    remove(surgery, structure, removal)
    for norm in norms:
        compensate(surgery, structure, norm, removal)
    return filling + _kept(structure, removal, ~live & ~needed.removed)


def _decide(
    structure: Structure, fixed: set[Node], multiple_of: int
) -> tuple[Tensor, dict[Node, int], Removal, Removal]:
    """The live groups, the carriers of constants through zero padding, the removable groups, and those to remove.

    The last two differ if widths are filled up to a multiple.

    A dead group that is kept (as a carrier, or to keep a tensor rectangular) must keep its constant value. Everything
    that it reads through a convolution that cannot take constants is therefore kept too, which can keep further groups.
    """
    held = torch.zeros(structure.count, dtype=torch.bool)
    while True:
        live = live_groups(structure, fixed, held)
        dead = ~live
        dead[list(structure.pinned)] = False
        carriers = choose_carriers(structure, dead, live)
        needed = complete(structure, dead, exact=True)
        removal = fill(structure, needed, multiple_of, exact=True)
        staying = ~live & ~removal.removed
        if not bool((staying & ~held).any()):
            return live, carriers, needed, removal
        held |= staying


def _became_dense(surgery: Surgery, structure: Structure) -> bool:
    """Whether a grouped convolution has one group left."""
    grouped = [structure.trace.names.get(c.weight) for c in structure.labels.contractions if c.groups > 1]
    owners = [surgery.model.get_submodule(name.rpartition(".")[0]) for name in grouped if name is not None]
    return any(getattr(owner, "groups", None) == 1 for owner in owners)


def _kept(structure: Structure, removal: Removal, dead: Tensor) -> list[Kept]:
    """The dead channels that are kept, by the weight that writes or reads them, and all at operators without a rule."""
    seen = ~dead | removal.removed
    counts: Counter[tuple[str, str]] = Counter()
    for contraction in structure.labels.contractions:
        name = structure.trace.names.get(contraction.weight, layer_of(contraction.node))
        for labels in (contraction.rows, contraction.columns):
            groups = structure.group_of[labels].unique() if labels is not None else torch.zeros(0, dtype=torch.int64)
            for group in groups[~seen[groups]].tolist():
                counts[name, _why_kept(structure, removal, group)] += 1
            seen[groups] = True
    unruled = [kept for kept in kept_groups(structure) if (kept.tensor, kept.reason) not in counts]
    return [Kept(name, channels, reason) for (name, reason), channels in counts.items()] + unruled


def _why_kept(structure: Structure, removal: Removal, group: int) -> str:
    if group in structure.pinned:
        return why_pinned(structure.pinned[group])
    return removal.reasons.get(group, "carries the constants of its layer through zero padding")
