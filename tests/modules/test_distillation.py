import math

import pytest
import torch

import lightning_fold as lf
from lightning_fold.models import MLP
from lightning_fold.modules import Classifier
from lightning_fold.modules.distillation import distillation_loss
from lightning_fold.storage.checkpoints import Snapshot, network_of, record_of


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_loss_is_the_divergence_written_out(temperature):
    logits, expected = torch.randn(2, 7, 4, dtype=torch.float64)
    student, teacher = ((values / temperature).softmax(1) for values in (logits, expected))
    by_hand = [
        sum(float(t[k]) * math.log(float(t[k]) / float(s[k])) for k in range(4))
        for s, t in zip(student, teacher, strict=True)
    ]
    found = distillation_loss(logits, expected, temperature)
    assert float(found) == pytest.approx(temperature**2 * sum(by_hand) / 7)


def test_loss_of_equal_logits_is_zero_and_has_no_gradient():
    logits = torch.randn(5, 3, requires_grad=True)
    loss = distillation_loss(logits, logits.detach().clone(), 2.0)
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(logits.grad, torch.zeros(5, 3))


def test_objective_blends_the_two_once_there_is_a_dense_network():
    torch.manual_seed(0)
    module = Classifier(MLP(6, [5], 3), num_classes=3, distillation=0.3, temperature=2.0).train()
    inputs, targets = torch.randn(8, 6), torch.arange(8) % 3
    plain = torch.nn.functional.cross_entropy(module(inputs), targets)
    assert module.teacher() is None
    torch.testing.assert_close(module.loss(inputs, targets)[0], plain)
    record_of(module).dense = Snapshot.take(module.network, {})
    teacher = module(inputs).detach()
    with torch.no_grad():
        module.network.layers[1].weight.mul_(0.5)
    logits = module(inputs)
    expected = 0.7 * torch.nn.functional.cross_entropy(logits, targets) + 0.3 * distillation_loss(logits, teacher, 2.0)
    torch.testing.assert_close(module.loss(inputs, targets)[0], expected)
    names = [name for name, _ in module.named_parameters()]
    assert all(name.startswith("network.") for name in names)
    torch.testing.assert_close(
        module.eval().loss(inputs, targets)[0], torch.nn.functional.cross_entropy(logits, targets)
    )


@pytest.mark.parametrize("part", ["network._orig_mod", "network.layers"])
def test_teacher_of_a_compiled_network_and_of_one_of_which_a_part_is_rewritten(part):
    torch.manual_seed(0)
    module, inputs = Classifier(MLP(6, [8], 3), num_classes=3, distillation=0.5), torch.randn(5, 6)
    expected = module.network(inputs)
    if part.endswith("_orig_mod"):
        module.network = torch.compile(module.network)
    record = record_of(module, part.removesuffix("._orig_mod"))
    assert record.network == part
    record.dense = Snapshot.take(network_of(module), {})
    lf.prune(network_of(module), inputs, keep=0.5, of="channels")
    teacher = module.teacher()
    assert lf.count_parameters(module.network) < lf.count_parameters(teacher)
    torch.testing.assert_close(teacher(inputs), expected)
