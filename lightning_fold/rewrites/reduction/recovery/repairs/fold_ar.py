"""Fold-AR: rescaling the mean of merged rows by a factor that depends only on their cosines."""

from collections.abc import Callable

from torch import Tensor

from lightning_fold.report import some_of
from lightning_fold.rewrites.channels.merge import fold_ar
from lightning_fold.rewrites.reduction.cut import Cut
from lightning_fold.rewrites.reduction.recovery.recovery import Recovery
from lightning_fold.rewrites.reduction.recovery.repairs.repair import Repair
from lightning_fold.rewrites.transaction import outputs
from lightning_fold.surgery.editor import Editor, NetworkEditor
from lightning_fold.surgery.transaction import Surgery


class FoldAR(Repair):
    """Rescale each BatchNorm that follows a merged layer, unless that increases the error on held-out inputs.

    Source: "Model Folding" (arXiv 2502.10216).
    """

    for_merged_channels = True

    def before_cut(self, surgery: Surgery, cut: Cut) -> dict[str, Tensor]:
        """Return the factors of each BatchNorm's scale."""
        return fold_ar(surgery, cut.structure, cut.cluster_of)

    def after_cut(self, surgery: Surgery, recovery: Recovery, found: dict[str, Tensor]) -> None:
        """Multiply each BatchNorm's scale by its factors; undo single BatchNorms where that lowers the error."""
        if not found:
            return
        assert recovery.dense is not None
        axes = recovery.cut.structure.labels.axes
        left = {
            name: f[recovery.cut.staying(recovery.cut.structure.groups(axes[name, 0]))] for name, f in found.items()
        }
        small = NetworkEditor(recovery.calibrated(surgery)[1])
        expected = outputs(recovery.dense.network, recovery.dense.held_out)
        helpful, errors = _helpful(small, left, lambda: recovery.error(small.model, expected))
        for name in helpful:
            surgery.scale(name, 0, left[name])
        if undone := [name.rpartition(".")[0] for name in left if name not in helpful]:
            where = f"{len(undone)} of {len(left)} BatchNorms ({some_of(undone)})"
            inputs = "held-out data" if recovery.dense.real else "noise (there is no data)"
            nowhere, everywhere, left_over = errors
            recovery.notes.append(
                f"Fold-AR was undone at {where} because it increased the error of the outputs on {inputs}: "
                f"{left_over:.3g} as applied, {everywhere:.3g} with all of Fold-AR, {nowhere:.3g} without it"
            )


def _helpful(
    small: Editor, factors: dict[str, Tensor], error: Callable[[], float]
) -> tuple[list[str], tuple[float, float, float]]:
    """The scales whose factors do not increase the error, and the errors with no factor, with all, and with these."""
    plain, nowhere = {name: small.tensor(name).detach().clone() for name in factors}, error()
    for name, factor in factors.items():
        small.scale(name, 0, factor)
    everywhere = least = error()
    helpful = []
    for name, factor in factors.items():
        small.set(name, plain[name])
        without = error()
        if without < least:
            least = without
        else:
            small.scale(name, 0, factor)
            helpful.append(name)
    return (helpful, (nowhere, everywhere, least)) if least <= nowhere else ([], (nowhere, everywhere, nowhere))
