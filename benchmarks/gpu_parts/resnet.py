"""ResNet-18 on CIFAR-10: a smooth and a plain network, trained for as many epochs as fit, then made small."""

import sys
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_fold as lf
from benchmarks.gpu_parts.cifar import Cifar, normalise, read
from benchmarks.gpu_parts.files import join, split
from benchmarks.gpu_parts.placement import memory_format, placed
from benchmarks.gpu_parts.plan import SMOOTH, Deadline, epochs_that_fit, learning_rate
from benchmarks.gpu_parts.results import Results
from benchmarks.gpu_parts.rewriting import Done, Job, Network, Pool
from lightning_fold.models import CifarResNet
from lightning_fold.regularizers import Smoothness

# Learning rate x strength x steps that lost nothing at 15 % of the parameters: 14 epochs of 352 steps.
LEAD = 0.1 * 0.0005 * 14 * 352
SMOOTHED = {"every": 8, "skip": ["conv1", "linear"]}
PART = "ResNet-18"


@dataclass(frozen=True)
class Recipe:
    """How long and on what to train; the learning rate is for SGD with Nesterov momentum 0.9.

    Attributes:
        batch: images in a step.
        rate: peak learning rate, that of 0.1 at batch 128 scaled by the batch.
        most: the largest number of epochs.
        timed: steps that measure an epoch.
        whitened, repaired: training images, in batches of 128, for factorize and for repair of fold.
        factorized, smooth_folds, plain_folds: shares of the parameters, the most important first.
    """

    network: dict[str, Any]
    images: int | None = None
    batch: int = 512
    rate: float = 0.4
    decay: float = 5e-4
    smoothing: float = 0.1
    most: int = 60
    timed: int = 16
    whitened: int = 2048
    repaired: int = 2048
    factorized: tuple[float, ...] = (0.3, 0.15, 0.1)
    smooth_folds: tuple[float, ...] = (0.5, 0.3)
    plain_folds: tuple[float, ...] = (0.3, 0.5, 0.75, 0.9)


FULL = Recipe({"depth": 18, "widths": [64, 128, 256, 512], "shortcut": "B"})
TINY = replace(
    FULL, network={"depth": 8, "widths": [8, 12, 16], "shortcut": "B"}, images=128, batch=64, rate=0.05, most=2
)
TINY = replace(TINY, timed=1, whitened=128, repaired=256, factorized=(0.3,), smooth_folds=(0.5,), plain_folds=(0.5,))

# Accuracy in percent that must be reached, by the network's name and what was done.
MUST = {
    ("smooth", "dense"): 94.5,
    ("smooth", "factorize to 30 %"): 94.2,
    ("smooth", "factorize to 15 %"): 94.0,
    ("smooth", "factorize to 10 %"): 93.0,
    ("smooth", "fold to 50 %"): 94.0,
    ("smooth", "fold to 30 %"): 93.0,
    ("plain", "fold to 90 %"): 94.0,
    ("plain", "fold to 75 %"): 92.0,
    ("plain", "fold to 50 %"): 88.0,
    ("plain", "fold to 30 %"): 82.0,
}


class Training:
    """One network that is trained from its first weights as often as is asked for, compiled once."""

    def __init__(self, recipe: Recipe, data: Cifar, device: torch.device) -> None:
        self.recipe, self.data, self.device = recipe, data, device
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # for the nuclear norm, which says what that does to it
        torch.manual_seed(0)
        self.network = placed(CifarResNet(**recipe.network), device)
        self.initial = deepcopy(self.network.state_dict())
        self.steps = max(1, len(data.train) // recipe.batch)
        # Without a GPU the code is only traced: compiling takes a minute of its own.
        self.compiled: Any = torch.compile(self.network, backend="inductor" if device.type == "cuda" else "eager")
        self._reset(0.0, 1)

    def measure(self) -> float:
        """Seconds of an epoch with penalties, once everything is compiled; the weights are the first ones again."""
        self._reset(1e-6, 1)
        for step in range(2 * self.recipe.timed):
            if step == self.recipe.timed:
                start = self._now()
            self._step(torch.arange(self.recipe.batch, device=self.device) % len(self.data.train), step, 0, 0.0)
        return (self._now() - start) / self.recipe.timed * self.steps

    def run(self, seconds: float, epoch_seconds: float, *, smooth: bool) -> dict[str, Any]:
        """Train in about so many seconds; an epoch that takes longer than measured makes the training shorter."""
        deadline, epochs = Deadline.after(seconds), epochs_that_fit(seconds, epoch_seconds, self.recipe.most)
        strength = min(LEAD / (self.recipe.rate * epochs * self.steps), 0.003) if smooth else 0.0
        self._reset(strength, epochs)
        start, done, loss = self._now(), 0, 0.0
        while done < epochs:
            loss = self._epoch(done, epochs)
            done += 1
            mean = (self._now() - start) / done
            epochs = min(epochs, done + int(deadline.left / mean + 0.2))
            sys.stdout.write(f"epoch {done} of {epochs}  loss {loss:.4f}  {mean:.2f} s\n")
            sys.stdout.flush()
        return {"epochs": done, "seconds an epoch": mean, "last loss": loss, "strength": strength}

    def _epoch(self, epoch: int, epochs: int) -> float:
        order = torch.randperm(len(self.data.train), device=self.device)
        losses = []
        for step in range(self.steps):
            done = epoch * self.steps + step
            rate = learning_rate(done / (epochs * self.steps), self.recipe.rate)
            chosen = order[step * self.recipe.batch : (step + 1) * self.recipe.batch]
            losses.append(self._step(chosen, done, epoch, rate))
        return float(torch.stack(losses).mean())

    def _step(self, chosen: Tensor, step: int, epoch: int, rate: float) -> Tensor:
        images, targets = self.data.augmented(chosen)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.compiled(images.contiguous(memory_format=memory_format(self.device)))
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.recipe.smoothing)
        loss.backward()
        if self.smoothness is not None:
            self.smoothness.add_gradients(self.network, step=step, epoch=epoch)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _reset(self, strength: float, epochs: int) -> None:
        self.network.load_state_dict(self.initial)
        self.network.train()
        penalties = {"nuclear_norm": strength}
        warmup = epochs // 8
        self.smoothness = Smoothness(penalties, warmup_epochs=warmup, **SMOOTHED) if strength else None  # pyright: ignore
        settings: Any = {"lr": self.recipe.rate, "momentum": 0.9, "nesterov": True, "weight_decay": self.recipe.decay}
        self.optimizer = torch.optim.SGD(self.network.parameters(), fused=True, **settings)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()


def accuracy(network: nn.Module, data: Cifar, device: torch.device) -> float:
    """Percent of all test images that are told right, in float32."""
    network, form, right = placed(network, device).eval(), memory_format(device), 0
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for images, targets in zip(data.test.split(1000), data.test_targets.split(1000), strict=True):
            inputs = normalise(images).contiguous(memory_format=form)
            right += int((network(inputs).argmax(1) == targets).sum())
    return 100 * right / len(data.test)


class Study:
    """The whole part: training, files, rewrites, rows."""

    def __init__(self, results: Results, recipe: Recipe, data: Cifar, device: torch.device, work: Path) -> None:
        self.results, self.recipe, self.data, self.device, self.work = results, recipe, data, device, work
        self.training = Training(recipe, data, device)
        self.waiting: list[tuple[str, Job, AsyncResult[Done]]] = []

    def train(self, name: str, seconds: float, epoch_seconds: float) -> Network:
        """Train, add the row of the dense network, write its file; the weights are in a file of their own."""
        figures = self.training.run(seconds, epoch_seconds, smooth=name == "smooth")
        network = deepcopy(self.training.network).to("cpu", memory_format=torch.contiguous_format)  # pyright: ignore
        weights = self.work / f"{name}.pt"
        source = Network("lightning_fold.models.CifarResNet", self.recipe.network, (3, 32, 32), weights)
        lf.save(network, weights, network=source.name, network_args=source.arguments)
        self._row(name, "dense", accuracy(deepcopy(network), self.data, self.device), **figures)
        with self.results.guard(PART, f"{name}: file"):
            self._write(name, network, source)
        return source

    def _write(self, name: str, network: nn.Module, source: Network) -> None:
        """Write the network in bfloat16, in parts, and measure it as it comes back from them."""
        path = self.results.folder / f"{name}.pt"
        example = torch.zeros(1, *source.image, dtype=torch.bfloat16)
        half = deepcopy(network).bfloat16()
        lf.save(half, path, network=source.name, network_args=source.arguments, example_inputs=example)
        parts = split(path)
        whole = lf.load(join(path, self.work / f"{name}-joined.pt")).float()
        found = accuracy(whole, self.data, self.device)
        self._row(name, "dense, from its file", found, files=", ".join(part.name for part in parts))

    def submit(self, name: str, workers: Pool, jobs: list[Job]) -> None:
        """Begin rewrites of the network of this name."""
        self.waiting += [(name, job, result) for job, result in zip(jobs, workers.submit(*jobs), strict=True)]

    def collect(self, deadline: Deadline | None = None) -> None:
        """Add the rows of the rewrites that are done, and with ``deadline`` wait for the others until then."""
        chosen = [each for each in self.waiting if deadline is not None or each[2].ready()]
        self.waiting = [each for each in self.waiting if each not in chosen]
        for name, job, result in chosen:
            what = f"{job.method} to {job.keep:.0%}".replace("%", " %")
            with self.results.guard(PART, f"{name}: {what}"):
                done = result.get(deadline.left if deadline is not None else 0)
                self._row(name, what, accuracy(lf.load(job.target), self.data, self.device), **done.figures())

    def _row(self, name: str, what: str, found: float, **figures: Any) -> None:
        must = MUST.get((name, what))
        asked = {"must": must} if must is not None and self.recipe is FULL else {}
        ok = found >= must if asked and must is not None else True
        self.results.add(PART, f"{name}: {what}", ok=ok, accuracy=round(found, 2), **asked, **figures)


def smooth_jobs(recipe: Recipe, network: Network, work: Path, batches: Path) -> list[Job]:
    """What is done to the smooth network, the most important first; the folds see no data."""
    factorized = (("factorize", keep, batches) for keep in recipe.factorized)
    folded = (("fold", keep, None) for keep in recipe.smooth_folds)
    return [
        Job(network, method, work / f"smooth-{method}-{keep}.pt", keep, batches=seen)
        for method, keep, seen in (*factorized, *folded)
    ]


def plain_jobs(recipe: Recipe, network: Network, work: Path, batches: Path) -> list[Job]:
    """What is done to the plain network."""
    repair: dict[str, Any] = {"batches": batches, "options": {"repair": "data"}}
    return [Job(network, "fold", work / f"plain-fold-{keep}.pt", keep, **repair) for keep in recipe.plain_folds]


def measure(
    results: Results,
    recipe: Recipe,
    folder: Path,
    device: torch.device,
    work: Path,
    workers: Pool,
    deadline: Deadline,
) -> Study:
    """Train both networks until ``deadline``, and add the rows that are known by then.

    Returns:
        the study, whose last rewrites are still going on: ``collect`` waits for them.
    """
    start = time.monotonic()
    data = read(folder, recipe.images).to(device)
    study = Study(results, recipe, data, device, work)
    whitening, repairing = work / "whitening.pt", work / "repairing.pt"
    torch.save(list(data.plain(recipe.whitened).cpu().contiguous().split(128)), whitening)
    torch.save(list(data.plain(recipe.repaired, seed=1).cpu().contiguous().split(128)), repairing)
    epoch = study.training.measure()
    results.about["seconds before the first epoch"] = round(time.monotonic() - start, 1)
    smooth = study.train("smooth", SMOOTH * deadline.left, epoch)
    study.submit("smooth", workers, smooth_jobs(recipe, smooth, work, whitening))
    with results.guard(PART, "plain: training"):
        plain = study.train("plain", 0.97 * deadline.left, epoch)
        study.submit("plain", workers, plain_jobs(recipe, plain, work, repairing))
    study.collect()
    return study
