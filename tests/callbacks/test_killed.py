"""A process that is killed at random moments resumes from its last checkpoint and ends as the unbroken run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Children are forked after the imports, so that a life is spent training; each may be killed at any moment.
SCRIPT = """
import os, random, signal, sys, time
import lightning, torch
import lightning_fold as lf
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset
from sklearn.datasets import load_digits
from lightning_fold.callbacks import CompressionMonitor, SqueezeRelease

torch.set_num_threads(1)
images, targets = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images[:256] / 16, dtype=torch.float32), torch.tensor(targets[:256]))


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(64, 24), torch.nn.ReLU(), torch.nn.Linear(24, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)
        )

    def training_step(self, batch):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("accuracy/val", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def train(folder):
    squeeze = SqueezeRelease(dense_epochs=1, cycles=2, shrink_epochs=1, masked_epochs=1, sparsity=[0.6, 0.3])
    saved = ModelCheckpoint(folder, monitor="compressed/accuracy", mode="max", save_top_k=2, save_last=True)
    trainer = lightning.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[squeeze, CompressionMonitor(), saved], num_sanity_val_steps=0,
    )
    module, loader = Digits(), DataLoader(data, batch_size=64)
    last = os.path.join(folder, "last.ckpt")
    trainer.fit(module, loader, loader, ckpt_path=last if os.path.exists(last) else None, weights_only=True)
    torch.save(module.net.state_dict(), f"{folder}/done.part")
    os.replace(f"{folder}/done.part", f"{folder}/done.pt")


def live(folder, seconds):
    # Train in a process of its own for so many seconds at most; whether it was killed.
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # makes the pool of threads anew, before two threads do so at once
            train(folder)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0, "a run failed"
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


root, kills = sys.argv[1], int(sys.argv[2])
network = Digits().net
lf.sparsify(network, 0.5)
lf.minimize(network, data.tensors[0][:4])  # imports what each child would; training here would forbid to fork
start = time.monotonic()
live(f"{root}/unbroken", 300)
whole = time.monotonic() - start
chance, killed, runs, resumed = random.Random(0), 0, 0, 0
while killed < kills or not os.path.exists(f"{root}/{runs - 1}/done.pt"):
    folder = f"{root}/{runs}"
    resumed += os.path.exists(f"{folder}/last.ckpt")
    if live(folder, chance.uniform(0.1, 0.9) * whole if killed < kills else 300):
        killed += 1
    else:
        runs += 1
print(killed, runs, resumed)
"""


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, env={"PYTHONPATH": root}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    killed, runs, resumed = map(int, done.stdout.split()[-3:])
    assert killed == 20 and runs >= 1 and resumed >= 10
    unbroken = torch.load(tmp_path / "unbroken" / "done.pt", weights_only=True)
    for run in range(runs):
        found = torch.load(tmp_path / str(run) / "done.pt", weights_only=True)
        torch.testing.assert_close(found, unbroken, rtol=0, atol=0)
        for checkpoint in (tmp_path / str(run)).glob("*.ckpt"):
            assert "state_dict" in torch.load(checkpoint, weights_only=True)
