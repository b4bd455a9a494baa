"""A trained network read back from a file, with its LightningModule, its data and its name."""

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

SUFFIXES = (".ckpt", ".pt", ".safetensors")  # of the files that hold a network

_EXAMPLES = 32
_SEED = 42  # where the configuration says none: that of the commands


@dataclass(frozen=True)
class Configuration:
    """What a run was configured with.

    Attributes:
        file: where it stands: the configuration, or a checkpoint; ``None`` where none was found.
        sections: its content.
    """

    file: Path | None = None
    sections: dict[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """Seed of the run."""
        given = self.sections.get("seed_everything")
        return given if type(given) is int else _SEED  # true and false are no seeds

    def build(self, base: type, key: Literal["model", "data"]) -> Any:
        """A subclass of ``base`` from ``class_path`` and ``init_args``, checked and nested as LightningCLI does it.

        Raises:
            ValueError: something in the section is wrong.
        """
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(base, key, fail_untyped=False)
        try:
            return parser.instantiate_classes(parser.parse_object({key: self.sections[key]}))[key]
        except jsonargparse.ArgumentError as error:
            raise ArgumentError(f"section {key!r} of {str(self.file)!r}: {summarise(str(error))}") from error


@dataclass
class Run:
    """A trained network with what it takes to rewrite it, measure it and write it.

    Attributes:
        path: the file it was read from.
        module: the LightningModule that holds it, in evaluation mode, on the CPU.
        datamodule: the data of the configuration; ``None`` where there is no configuration.
        inputs: example inputs, batch first.
        name, arguments: what the network is built by; ``name`` is ``None`` where only its LightningModule knows.
        seed: of the global generators whenever the data is set up, so that what it draws then stays the same.
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
            ValueError: there is none.
        """
        if self.datamodule is None:
            raise ArgumentError(
                f"{str(self.path)!r}: data is needed, and there is no configuration beside the file that says which. "
                "Give that of the run with --config."
            )
        return self.datamodule

    def training_batches(self, count: int) -> list[Any]:
        """At most ``count`` batches of the training data, the same ones at every call.

        Raises:
            ValueError: there is no data.
        """
        return list(islice(_training_data(self.data, self.seed), count))


def read_run(path: str | Path, config: str | Path | None = None, *, data: bool = True) -> Run:
    """Read a Lightning checkpoint, or a file that :func:`lightning_fold.save` wrote.

    The LightningModule is built from the checkpoint's hyper-parameters where these name its class, else from the
    section ``model`` of the configuration; the data comes from its section ``data``.

    Args:
        path: the file.
        config: the YAML file of the run; ``None`` takes the ``config.yaml`` beside the file or above its folder.
        data: whether data is needed; where it is not, a file that says everything is read without a configuration.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file or the configuration cannot be read, or something needed is in neither.
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
    """The configuration of the run that wrote ``path``; an empty one where none is found.

    Raises:
        FileNotFoundError: ``config`` is given but not there.
        ValueError: it is no YAML mapping.
    """
    beside = [folder / "config.yaml" for folder in list(path.absolute().parents)[:2]]
    found = Path(config) if config is not None else next((file for file in beside if file.is_file()), None)
    if found is None:
        return Configuration()
    try:
        sections = yaml.safe_load(found.read_text())
    except yaml.YAMLError as error:
        raise ArgumentError(f"{str(found)!r} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(sections, dict):
        raise ArgumentError(f"{str(found)!r}: expected a configuration with the sections model and data.")
    return Configuration(found, sections)


def _read(path: Path) -> dict[str, Any]:
    """What stands in a file; of a .safetensors file that it holds a network."""
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
    """Set up anew: what was set up for a test may hold no training data, or another part of it."""
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
            f"{str(path)!r}: the network must be run to be read, and there is no configuration beside the file that "
            "says with which data. Give that of the run with --config."
        )
    return inputs


def _around(network: nn.Module, inputs: Inputs, configuration: Configuration) -> lightning.LightningModule:
    """A LightningModule that measures ``network``: the configuration's, or a ``Classifier`` where it says none."""
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
    """A section ``model`` whose network gets its values from a file."""
    arguments = section.get("init_args") or {}
    if not isinstance(name := arguments.get("network"), str):
        return section
    kept = without_pretraining(name, arguments.get("network_args") or {})
    return section | {"init_args": arguments | {"network_args": kept}}


class _Holder(lightning.LightningModule):
    """A network that nothing is measured of but its size and time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
