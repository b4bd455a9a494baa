"""How fast the singular values of weights decay."""

from collections.abc import Mapping

import torch
from torch import Tensor


def spectrum_decay(weights: Mapping[str, Tensor]) -> float:
    """Share of the energy in the largest quarter of the singular values, averaged over ``weights``; in [0, 1].

    The energy is the sum of squares. A weight (O, I, ...) is the matrix O x (I ...) with n singular values; the largest
    ceil(n / 4) of them are a quarter. The share is ceil(n / 4) / n if all are equal, and 1 for a matrix of rank
    ceil(n / 4) or less. It is NaN without weights, or if the energy of one is not finite.
    """
    shares = []
    for weight in weights.values():
        matrix = weight.detach().flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
        matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
        gram = matrix @ matrix.mT
        if not bool(gram.isfinite().all()):  # eigenvalues need finite entries
            return float("nan")
        energies = torch.linalg.eigvalsh(gram).clamp_min(0).flip(0)
        total = energies.sum().clamp_min(torch.finfo(energies.dtype).tiny)
        shares.append(energies[: -(-len(energies) // 4)].sum() / total)
    return float(torch.stack(shares).mean()) if shares else float("nan")
