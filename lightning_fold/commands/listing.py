"""Lists the commands with a line about each, and reports mistakes; kept fast to import."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import NoReturn

# The commands of LightningCLI.
TRAINING = {
    "fit": "Train a network, compress it with the callbacks of a configuration, and measure dense against compressed.",
    "validate": "Measure a checkpoint on the validation data.",
    "test": "Measure a checkpoint on the test data.",
    "predict": "Compute a checkpoint's predictions on the data.",
}
# The commands that need no Trainer. Their options are the arguments of these functions. The text is the first line of
# the function's docstring, repeated here so that the function need not be imported.
COMMANDS = {
    "compress": (
        "lightning_fold.commands.compress:compress",
        "Rewrite a trained network into a smaller one, without training, and write it as one file.",
    ),
    "compare": (
        "lightning_fold.commands.compare:compare",
        "Measure every method at several sizes on trained networks, without training: a table, a CSV file and a plot.",
    ),
    "export": (
        "lightning_fold.commands.export:export_network",
        "Write a network for other programs: ONNX, a torch.export program or safetensors, for batches of any size.",
    ),
}
ABOUT = "Train networks with PyTorch Lightning and make them much smaller."
HINT_FOR_KEYS = (
    "'lightning-fold --help' lists the commands, 'lightning-fold fit --help' the keys, 'lightning-fold fit "
    "--model.help CLASS_PATH' (or --data.help, --trainer.callbacks.help) those of a class"
)


def function_of(name: str) -> Callable[..., None]:
    """The function behind one of ``COMMANDS``."""
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(import_module(module), function)


def hint_for(name: str) -> str | None:
    """Where the options of one of ``COMMANDS`` are listed."""
    return f"'lightning-fold {name} --help' lists the options" if name in COMMANDS else None


def fail(message: str, hint: str) -> NoReturn:
    """Report a mistake in one line, with a hint, and exit with code 2."""
    sys.stderr.write(f"error: {message}\nhint: {hint}\n")
    sys.exit(2)
