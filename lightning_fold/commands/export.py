"""export: writes a trained network for other programs."""

from rich.console import Console

from lightning_fold.commands.runs import read_run
from lightning_fold.storage.export import Format, export


def export_network(checkpoint: str, output: str, format: Format | None = None, config: str | None = None) -> None:
    """Write a network for other programs: ONNX, a torch.export program or safetensors, for batches of any size.

    Before the file is put in place, it is read back, run on two batch sizes and compared with the network.

    Args:
        checkpoint: network written by lightning-fold, or Lightning checkpoint of a run.
        output: file to write, with the suffix of its format: ".onnx", ".pt2" or ".safetensors".
        format: onnx, pt2 or safetensors; by default taken from the suffix of the output.
        config: configuration of the run; by default the config.yaml beside the checkpoint or above its folder. Not
            needed for a network written by lightning-fold.
    """
    run = read_run(checkpoint, config, data=False)
    report = export(run.network, run.inputs, output, format=format, network=run.name, network_args=run.arguments)
    Console().print(str(report), soft_wrap=True)
