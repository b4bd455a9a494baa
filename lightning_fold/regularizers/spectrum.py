"""How fast the singular values of weights fall."""

from collections.abc import Mapping

import torch
from torch import Tensor


def spectrum_decay(weights: Mapping[str, Tensor]) -> float:
    """Share of the energy in the largest quarter of the singular values, averaged over ``weights``; in [0, 1].

    The energy is the sum of squares, a weight (O, I, ...) the matrix O x (I ...) with n singular values, of which the
    largest ceil(n / 4) are a quarter. Where all are equal it is ceil(n / 4) / n; a matrix of that rank, or less, has 1.
    NaN without weights, and where the energy of one is not finite.
    """
    shares = []
    for weight in weights.values():
        matrix = weight.detach().flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
        matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
        gram = matrix @ matrix.mT
        if not bool(gram.isfinite().all()):  # which has no eigenvalues
            return float("nan")
        energies = torch.linalg.eigvalsh(gram).clamp_min(0).flip(0)
        total = energies.sum().clamp_min(torch.finfo(energies.dtype).tiny)
        shares.append(energies[: -(-len(energies) // 4)].sum() / total)
    return float(torch.stack(shares).mean()) if shares else float("nan")
