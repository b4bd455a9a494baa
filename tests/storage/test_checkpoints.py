import pickle
from copy import deepcopy

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_fold as lf
from lightning_fold.callbacks import ChannelPruning
from lightning_fold.models import MLP
from lightning_fold.modules import Classifier
from lightning_fold.storage.checkpoints import Snapshot, network_of, record_of, restore_structure, store_structure

ARGUMENTS = {"in_features": 8, "hidden": [12, 10], "out_features": 3}
INPUTS = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Foreign(lightning.LightningModule):
    """Has hooks of its own, which must go on to work."""

    def __init__(self, hidden=12):
        super().__init__()
        self.net = MLP(8, [hidden], 3)
        self.saved = self.loaded = 0

    def on_save_checkpoint(self, checkpoint):
        self.saved += 1
        checkpoint["mine"] = 5

    def on_load_checkpoint(self, checkpoint):
        self.loaded = checkpoint["mine"]


def loader():
    return DataLoader(TensorDataset(INPUTS, INPUTS.argmax(1) % 3), batch_size=3)


@pytest.fixture
def checkpoint(tmp_path):
    """Path of the checkpoint of a Classifier that was pruned in training, and the module."""
    torch.manual_seed(0)
    module = Classifier(network_args=ARGUMENTS, num_classes=3)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ChannelPruning(keep=0.5, of="channels", at_epoch=1)],
    )
    trainer.fit(module, loader(), loader())
    trainer.save_checkpoint(tmp_path / "small.ckpt", weights_only=False)
    return tmp_path / "small.ckpt", module


def test_checkpoint_is_plain_values_and_tensors(checkpoint):
    path, module = checkpoint
    content = torch.load(path, weights_only=True)
    stored = content["lightning_fold"]
    assert stored["structure"] == lf.describe(module.network)
    assert stored["structure"]["layers.1"]["shapes"] == {"weight": [6, 8], "bias": [6]}
    assert stored["dense"]["parameters"] == lf.count_parameters(MLP(**ARGUMENTS))
    assert stored["methods"] == [{"method": "prune", "epoch": 1, "parameters": lf.count_parameters(module.network)}]


def test_classifier_loads_compressed(checkpoint):
    path, module = checkpoint
    loaded = Classifier.load_from_checkpoint(path, weights_only=True)
    assert lf.count_parameters(loaded.network) < lf.count_parameters(MLP(**ARGUMENTS))
    torch.testing.assert_close(loaded.network(INPUTS), module.network(INPUTS), rtol=0, atol=0)
    assert record_of(loaded).methods == record_of(module).methods
    torch.testing.assert_close(loaded.teacher()(INPUTS), module.teacher()(INPUTS), rtol=0, atol=0)


def test_dense_network_comes_back_into_a_compressed_one(checkpoint):
    _, module = checkpoint
    twin = record_of(module).dense.network_like(module.network)
    assert lf.describe(twin) == lf.describe(MLP(**ARGUMENTS))
    torch.testing.assert_close(twin.state_dict(), record_of(module).dense.state_dict, rtol=0, atol=0)
    assert lf.count_parameters(module.network) < lf.count_parameters(twin)


def test_snapshot_is_a_copy():
    network = MLP(**ARGUMENTS)
    snapshot = Snapshot.take(network, {"accuracy/val": 0.5})
    before = network(INPUTS).detach()
    with torch.no_grad():
        network.layers[1].weight.zero_()
    torch.testing.assert_close(snapshot.network_like(network)(INPUTS), before)
    assert not torch.allclose(network(INPUTS), before)


@pytest.mark.parametrize(
    "network",
    [
        MLP(8, [12], 3),
        MLP(8, [12, 10, 9], 3),
        nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(12, 3)),
    ],
)
def test_checkpoint_of_another_network_is_refused_and_nothing_changes(checkpoint, network):
    path, _ = checkpoint
    content = torch.load(path, weights_only=True)
    module = Classifier(network, num_classes=3)
    before, parameters = deepcopy(lf.describe(network)), list(network.parameters())
    with pytest.raises(ValueError, match="expected the structure of the same network"):
        restore_structure(module, content)
    assert lf.describe(network) == before
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))


def test_module_that_knows_nothing_gets_hooks_beside_its_own():
    module, other = Foreign(), Foreign()
    record_of(module)
    record_of(other)
    lf.prune(module.net, INPUTS, keep=0.5, of="channels")
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert (module.saved, checkpoint["mine"]) == (1, 5)
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"])
    assert other.loaded == 5
    torch.testing.assert_close(other.net(INPUTS), module.net(INPUTS), rtol=0, atol=0)


@pytest.mark.parametrize("copy", [deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_followed_module_can_be_copied(copy):
    """Its hooks then work on the copy, as they do when a module is sent to another process."""
    module = Foreign()
    record_of(module)
    twin = copy(module)
    lf.prune(twin.net, INPUTS, keep=0.5, of="channels")
    checkpoint = {}
    twin.on_save_checkpoint(checkpoint)
    assert checkpoint["lightning_fold"]["structure"] == lf.describe(twin.net) != lf.describe(module.net)
    assert (twin.saved, module.saved) == (1, 0)


def test_checkpoint_without_a_structure_is_left_alone():
    module = Foreign()
    before = lf.describe(module.net)
    restore_structure(module, {"state_dict": {}})
    assert lf.describe(module.net) == before
    store = {}
    store_structure(module, store)
    assert store["lightning_fold"] == {"network": "net", "structure": before, "dense": None, "methods": []}


@pytest.mark.parametrize(
    ("children", "expected"),
    [
        ({"model": nn.Linear(2, 2), "head": nn.Linear(2, 2)}, "model"),
        ({"encoder": nn.Linear(2, 2), "activation": nn.ReLU()}, "encoder"),
        ({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)}, ""),
    ],
)
def test_network_is_found(children, expected):
    module = lightning.LightningModule()
    for name, child in children.items():
        module.add_module(name, child)
    assert record_of(module).network == expected
    assert network_of(module) is (children[expected] if expected else module)


def test_two_callbacks_cannot_compress_two_networks():
    module = lightning.LightningModule()
    module.one, module.two = nn.Linear(2, 2), nn.Linear(2, 2)
    record_of(module, "one")
    assert record_of(module).network == "one"
    with pytest.raises(ValueError, match=r"another callback already compresses 'one'"):
        record_of(module, "two")
