"""A trained network read back from a file, with its LightningModule, its data and its name."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import lightning
import yaml
from torch import Tensor, nn

from lightning_fold.checkpointing import follow, network_of
from lightning_fold.config_errors import summarise
from lightning_fold.modules import Classifier
from lightning_fold.modules.base import network_source
from lightning_fold.serialization import example_of, load_file, read_checkpoint
from lightning_fold.structure.inputs import Inputs

SUFFIXES = (".ckpt", ".pt", ".safetensors")  # of the files that hold a network

_EXAMPLES = 32
_SEED = 42  # where the configuration says none: that of the commands


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
            raise ValueError(
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


def read_run(path: str | Path, config: str | Path | None = None) -> Run:
    """Read a Lightning checkpoint, or a file that :func:`lightning_fold.save` wrote.

    The LightningModule is built from the checkpoint's hyper-parameters where these name its class, else from the
    section ``model`` of the configuration; the data comes from its section ``data``.

    Args:
        path: the file.
        config: the YAML file of the run; ``None`` takes the ``config.yaml`` beside the file or above its folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file or the configuration cannot be read, or something needed is in neither.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r}: there is no such file; expected a Lightning checkpoint or a network.")
    sections = read_config(path, config)
    given = sections.get("seed_everything")
    seed = given if type(given) is int else _SEED  # true and false are no seeds
    lightning.seed_everything(seed, verbose=False)
    datamodule = _build(lightning.LightningDataModule, "data", sections["data"]) if "data" in sections else None
    batch = _first_inputs(datamodule, seed) if datamodule is not None else None
    if path.suffix == ".safetensors" or "network" in (content := read_checkpoint(path)):
        network, content = load_file(path)
        inputs = batch if batch is not None else example_of(content)
        inputs = _needed(inputs, path)
        module = _around(network, inputs, sections)
        name, arguments = content["network"], content["network_args"]
    else:
        module = _restore(path, content, sections)
        inputs = _needed(batch, path)
        name, arguments = network_source(module)
    return Run(path, module.eval(), datamodule, inputs, name, arguments, seed)


def read_config(path: Path, config: str | Path | None = None) -> dict[str, Any]:
    """The configuration of the run that wrote ``path``; an empty one where none is found.

    Raises:
        FileNotFoundError: ``config`` is given but not there.
        ValueError: it is no YAML mapping.
    """
    beside = [folder / "config.yaml" for folder in list(path.absolute().parents)[:2]]
    found = Path(config) if config is not None else next((file for file in beside if file.is_file()), None)
    if found is None:
        return {}
    try:
        sections = yaml.safe_load(found.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{str(found)!r} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(sections, dict):
        raise ValueError(f"{str(found)!r}: expected a configuration with the sections model and data.")
    return sections


def _restore(path: Path, content: dict[str, Any], sections: dict[str, Any]) -> lightning.LightningModule:
    arguments = content.get("hyper_parameters", {})
    if "state_dict" not in content:
        raise ValueError(
            f"{str(path)!r}: expected a Lightning checkpoint or a network written by lightning-fold, found a file with "
            f"the keys {sorted(map(str, content))[:8]}."
        )
    if "_class_path" in arguments:
        own = {name: value for name, value in arguments.items() if name not in ("_class_path", "_instantiator")}
        section = {"class_path": arguments["_class_path"], "init_args": own}
    elif "model" in sections:
        section = sections["model"]
    else:
        raise ValueError(
            f"{str(path)!r} does not name the class of its LightningModule. Give the configuration of the run with "
            "--config, with a section 'model' of class_path and init_args."
        )
    module = _build(lightning.LightningModule, "model", section)
    follow(module, content.get("lightning_fold", {}).get("network", ""))
    module.on_load_checkpoint(content)
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ValueError(
            f"{str(path)!r} is the checkpoint of another network than {section['class_path']} builds: "
            f"{' '.join(lines[1:2])} ({len(lines) - 1} such differences)."
        ) from error
    return module


def _build(base: type, key: Literal["model", "data"], section: dict[str, Any]) -> Any:
    """An object from ``class_path`` and ``init_args``, checked and nested as LightningCLI does it."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, key, fail_untyped=False)
    try:
        return parser.instantiate_classes(parser.parse_object({key: section}))[key]
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"section {key!r} of the configuration: {summarise(str(error))}") from error


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
        raise ValueError(
            f"{type(datamodule).__name__}: expected batches of tensors or (inputs, ...), found {type(batch).__name__}."
        )
    return first[:_EXAMPLES]


def _needed(inputs: Inputs | None, path: Path) -> Inputs:
    if inputs is None:
        raise ValueError(
            f"{str(path)!r}: the network must be run to be read, and there is no configuration beside the file that "
            "says with which data. Give that of the run with --config."
        )
    return inputs


def _around(network: nn.Module, inputs: Inputs, sections: dict[str, Any]) -> lightning.LightningModule:
    """A LightningModule that measures ``network``: the configuration's, or a ``Classifier`` where it says none."""
    if "model" in sections:
        module = _build(lightning.LightningModule, "model", sections["model"])
        if place := follow(module).network:
            module.set_submodule(place, network)
            return module
    logits = network(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    return Classifier(network, num_classes=logits.shape[-1])
