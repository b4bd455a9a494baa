"""Reads a trained network from a file, with its LightningModule, its data and its name."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import lightning
import yaml
from torch import Tensor, nn

from lightning_fold.commands.config_errors import summarise
from lightning_fold.errors import ArgumentError, MissingFileError
from lightning_fold.inputs import Inputs
from lightning_fold.models.factory import without_pretraining
from lightning_fold.modules import Classifier
from lightning_fold.modules.base import network_source
from lightning_fold.storage.checkpoints import network_of, record_of
from lightning_fold.storage.files import example_of, load_file, read_checkpoint

SUFFIXES = (".ckpt", ".pt", ".safetensors")  # files that hold a network

_EXAMPLES = 32
_SEED = 42  # the commands' default, used if the configuration has none


@dataclass(frozen=True)
class Configuration:
    """The configuration of a run.

    Attributes:
        file: the file it was read from, a configuration or a checkpoint; ``None`` if none was found.
        sections: its content.
    """

    file: Path | None = None
    sections: dict[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """Seed of the run."""
        given = self.sections.get("seed_everything")
        return given if type(given) is int else _SEED  # true and false are not seeds

    def build(self, base: type, key: Literal["model", "data"]) -> Any:
        """Build a subclass of ``base`` from ``class_path`` and ``init_args``, checked and nested as in LightningCLI.

        Raises:
            ArgumentError: the section has a mistake.
        """
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(base, key, fail_untyped=False)
        try:
            return parser.instantiate_classes(parser.parse_object({key: self.sections[key]}))[key]
        except jsonargparse.ArgumentError as error:
            raise ArgumentError(f"section {key!r} of {str(self.file)!r}: {summarise(str(error))}") from error


@dataclass
class Run:
    """A trained network with all that is needed to rewrite, measure and write it.

    Attributes:
        path: the file it was read from.
        module: the LightningModule that holds the network, in evaluation mode, on the CPU.
        datamodule: the data of the configuration; ``None`` if that has none.
        inputs: example inputs, batch first.
        name, arguments: how to build the network; ``name`` is ``None`` if only its LightningModule can.
        seed: seeds the global generators whenever the data is set up, so that random splits are reproducible.
    """

    path: Path
    module: lightning.LightningModule
    datamodule: lightning.LightningDataModule | None
    inputs: Inputs
    name: str | None
    arguments: dict[str, Any]
    seed: int = _SEED

    @property
    def network(self) -> nn.Module:
        """The network."""
        return network_of(self.module)

    @property
    def data(self) -> lightning.LightningDataModule:
        """The data.

        Raises:
            ArgumentError: there is none.
        """
        if self.datamodule is None:
            raise ArgumentError(
                f"{str(self.path)!r}: data is needed, but no configuration beside the file describes it. "
                "Give the run's configuration with --config."
            )
        return self.datamodule

    def training_batches(self, count: int) -> list[Any]:
        """At most ``count`` batches of the training data, the same in every call.

        Raises:
            ArgumentError: there is no data.
        """
        return list(islice(_training_data(self.data, self.seed), count))


def read_run(path: str | Path, config: str | Path | None = None, *, data: bool = True) -> Run:
    """Read a Lightning checkpoint, or a file that :func:`lightning_fold.save` wrote.

    The LightningModule is built from the checkpoint's hyper-parameters if they name its class, else from the section
    ``model`` of the configuration. The data comes from the configuration's section ``data``.

    Args:
        path: the file.
        config: the YAML file of the run; ``None`` takes the ``config.yaml`` beside the file or above its folder.
        data: whether data is needed; if not, a self-contained file is read without a configuration.

    Raises:
        MissingFileError: there is no such file.
        ArgumentError: the file or the configuration cannot be read, or neither holds all that is needed.
    """
    path = Path(path)
    content = _read(path)
    network, content = load_file(path) if "network" in content else (None, content)
    example = example_of(content) if network is not None else None
    configuration = read_config(path, config) if data or example is None else Configuration()
    seed = configuration.seed
    lightning.seed_everything(seed, verbose=False)
    has_data = "data" in configuration.sections
    datamodule = configuration.build(lightning.LightningDataModule, "data") if has_data else None
    batch = _first_inputs(datamodule, seed) if datamodule is not None else None
    inputs = _needed(example if batch is None else batch, path)
    if network is None:
        module = _restore(path, content, configuration)
        name, arguments = network_source(module)
    else:
        module = _around(network, inputs, configuration)
        name, arguments = content["network"], content["network_args"]
    return Run(path, module.eval(), datamodule, inputs, name, arguments, seed)


def read_config(path: Path, config: str | Path | None = None) -> Configuration:
    """The configuration of the run that wrote ``path``; an empty one if none is found.

    Raises:
        FileNotFoundError: ``config`` is given but does not exist.
        ArgumentError: the configuration is not a YAML mapping.
    """
    beside = [folder / "config.yaml" for folder in list(path.absolute().parents)[:2]]
    found = Path(config) if config is not None else next((file for file in beside if file.is_file()), None)
    if found is None:
        return Configuration()
    try:
        sections = yaml.safe_load(found.read_text())
    except yaml.YAMLError as error:
        raise ArgumentError(f"{str(found)!r} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(sections, dict):
        raise ArgumentError(f"{str(found)!r}: expected a configuration with the sections model and data.")
    return Configuration(found, sections)


def _read(path: Path) -> dict[str, Any]:
    """The content of a file; for a .safetensors file, only that it holds a network."""
    if not path.is_file():
        raise MissingFileError(f"{str(path)!r}: there is no such file; expected a Lightning checkpoint or a network.")
    if path.suffix == ".pt2":
        raise ArgumentError(
            f"{str(path)!r}: a .pt2 program is final; expected {', '.join(SUFFIXES)}. torch.export.load(path) and "
            "lightning_fold.load(path, trusted=True) read it."
        )
    content = {"network": None} if path.suffix == ".safetensors" else read_checkpoint(path)
    if "network" not in content and "state_dict" not in content:
        raise ArgumentError(
            f"{str(path)!r}: expected a Lightning checkpoint or a network written by lightning-fold, found a file with "
            f"the keys {sorted(map(str, content))[:8]}."
        )
    return content


def _restore(path: Path, content: dict[str, Any], configuration: Configuration) -> lightning.LightningModule:
    arguments = content.get("hyper_parameters", {})
    if "_class_path" in arguments:
        own = {name: value for name, value in arguments.items() if name not in ("_class_path", "_instantiator")}
        section = {"class_path": arguments["_class_path"], "init_args": own}
        configuration = Configuration(path, {"model": section})
    if "model" not in configuration.sections:
        raise ArgumentError(
            f"{str(path)!r} does not name the class of its LightningModule. Give the configuration of the run with "
            "--config, with a section 'model' of class_path and init_args."
        )
    module = configuration.build(lightning.LightningModule, "model")
    record_of(module, content.get("lightning_fold", {}).get("network", ""))
    module.on_load_checkpoint(content)
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        built = configuration.sections["model"]["class_path"]
        raise ArgumentError(
            f"{str(path)!r} is the checkpoint of another network than {built} builds: "
            f"{' '.join(lines[1:2])} ({len(lines) - 1} such differences)."
        ) from error
    return module


def _training_data(datamodule: lightning.LightningDataModule, seed: int) -> Iterable[Any]:
    """Set up again: data that was set up for a test may have no training data, or a different part of it."""
    lightning.seed_everything(seed, verbose=False)
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule.train_dataloader()


def _first_inputs(datamodule: lightning.LightningDataModule, seed: int) -> Tensor:
    batch = next(iter(_training_data(datamodule, seed)))
    first = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(first, Tensor):
        raise ArgumentError(
            f"{type(datamodule).__name__}: expected batches of tensors or (inputs, ...), found {type(batch).__name__}."
        )
    return first[:_EXAMPLES]


def _needed(inputs: Inputs | None, path: Path) -> Inputs:
    if inputs is None:
        raise ArgumentError(
            f"{str(path)!r}: the network must be run to be traced, but no configuration beside the file describes its "
            "data. Give the run's configuration with --config."
        )
    return inputs


def _around(network: nn.Module, inputs: Inputs, configuration: Configuration) -> lightning.LightningModule:
    """A LightningModule that measures ``network``: the configuration's, or a ``Classifier`` if that has none."""
    if section := configuration.sections.get("model"):
        own = Configuration(configuration.file, {"model": _without_pretraining(section)})
        module = own.build(lightning.LightningModule, "model")
        if place := record_of(module).network:
            module.set_submodule(place, network)
            return module
    if "data" not in configuration.sections:
        return _Holder(network)
    logits = network(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    return Classifier(network, num_classes=logits.shape[-1])


def _without_pretraining(section: dict[str, Any]) -> dict[str, Any]:
    """The section ``model`` without pretrained weights: the network's weights come from a file."""
    arguments = section.get("init_args") or {}
    if not isinstance(name := arguments.get("network"), str):
        return section
    kept = without_pretraining(name, arguments.get("network_args") or {})
    return section | {"init_args": arguments | {"network_args": kept}}


class _Holder(lightning.LightningModule):
    """Holds a network of which only size and latency are measured."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
