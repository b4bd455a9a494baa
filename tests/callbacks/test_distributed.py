import subprocess
import sys
import textwrap

import pytest
import torch

SCRIPT = """
import sys
import lightning, torch
from torch.utils.data import DataLoader, TensorDataset
from lightning_fold.callbacks import ChannelFolding, SqueezeRelease
from lightning_fold.models import MLP
from lightning_fold.modules import Classifier

if __name__ == "__main__":
    torch.set_num_threads(1)
    lightning.seed_everything(1)
    inputs = torch.randn(96, 12)
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    module = Classifier(MLP(12, [14, 10], 3), num_classes=3)
    squeeze = SqueezeRelease(
        dense_epochs=1, cycles=2, shrink_epochs=1, masked_epochs=1, sparsity=[0.5], group_penalty=[0.5],
        select_inputs=True, max_accuracy_drop=0.95, release_amplitude=0.2,
    )
    trainer = lightning.Trainer(
        max_epochs=6, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[squeeze, ChannelFolding(ratio=0.2)],
    )
    trainer.fit(module, DataLoader(data, batch_size=16, shuffle=True), DataLoader(data, batch_size=48))
    torch.save((module.network.state_dict(), trainer.world_size), f"{sys.argv[1]}/{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_processes_stay_alike_through_rewrites(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    (first, world), (second, _) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert world == 2
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert sum(tensor.numel() for tensor in first.values()) < 12 * 14 + 14 + 14 * 10 + 10 + 10 * 3 + 3
