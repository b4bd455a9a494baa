import json
import subprocess
import sys
import textwrap

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
        select_inputs=True, max_accuracy_drop=0.95, max_drift=0.2,
    )
    trainer = lightning.Trainer(
        max_epochs=6, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[squeeze, ChannelFolding(0.8, "channels")],
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


CONFIG = """
trainer:
  {max_epochs: 4, accelerator: cpu, devices: 2, strategy: ddp, enable_progress_bar: false, enable_model_summary: false,
   callbacks: [{class_path: lightning_fold.callbacks.SqueezeRelease,
                init_args: {dense_epochs: 1, cycles: 1, shrink_epochs: 1, masked_epochs: 1, sparsity: [0.5]}},
               {class_path: lightning_fold.callbacks.CompressionMonitor}]}
model:
  {class_path: lightning_fold.modules.Classifier,
   init_args: {network_args: {in_features: 64, hidden: [20, 16], out_features: 10}}}
data: {class_path: lightning_fold.data.DigitsDataModule}
"""


@pytest.mark.slow
def test_command_ends_with_one_summary(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "command.py").write_text("from lightning_fold.cli import main\n\nmain()\n")
    command = [sys.executable, "command.py", "fit", "--config", "config.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "runs" / "version_0" / "compression.json").read_text())
    assert summary["dense"]["parameters"] == 64 * 20 + 20 + 20 * 16 + 16 + 16 * 10 + 10
    assert f"{summary['dense']['parameters'] / summary['compressed']['parameters']:.1f}x smaller" in done.stdout
    assert done.stdout.count("x smaller") == 1
    events = EventAccumulator(str(tmp_path / "runs" / "version_0"), {"images": 0}).Reload()
    assert {f"compression/{name}" for name in ("widths", "spectra", "accuracy")} <= set(events.Tags()["images"])
