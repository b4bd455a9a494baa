"""The loss of learning from another network's outputs."""

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(logits: Tensor, expected: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(expected / T), softmax(logits / T)), averaged over the batch.

    Args:
        logits: (B, classes), of the student.
        expected: (B, classes), of the teacher.
        temperature: T, above 0.
    """
    student, teacher = (F.log_softmax(values / temperature, dim=1) for values in (logits, expected))
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")
