"""An importance, a repair, a calibration and a method from outside: one file each, with the power of built-in ones."""

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn

import lightning_fold as lf
from lightning_fold.callbacks import ChannelFolding, ChannelPruning
from lightning_fold.class_paths import resolve
from lightning_fold.commands.methods import METHODS, apply, method_of
from lightning_fold.errors import ArgumentTypeError
from lightning_fold.rewrites.calibration import CALIBRATIONS
from lightning_fold.rewrites.reduction.importances import IMPORTANCES
from lightning_fold.rewrites.reduction.recovery.repairs import REPAIRS

FILES = {
    "importance": """
        from lightning_fold.extending import Importance

        class Mean(Importance):
            '''The mean of a hidden layer's channels on the calibration's inputs.'''

            def __init__(self, sign=1):
                self.sign = sign

            def prepare(self, context):
                calibration = context.calibration.get()
                means = self.sign * calibration.network[:2](*calibration.examples()).mean(0).detach()
                return lambda model, group: means
    """,
    "repair": """
        import torch
        from lightning_fold.extending import Repair

        class Shift(Repair):
            needs_batches = True

            def __init__(self, by=0.0):
                self.by = by

            def finish(self, surgery, recovery):
                def step(network):
                    with torch.no_grad():
                        network[-1].bias += self.by

                recovery.if_better("shift", surgery, step)
    """,
    "calibration": """
        import torch
        from lightning_fold.extending import from_batches

        def ones(model, example_inputs, batches, seed):
            return from_batches(model, example_inputs, [torch.full((4, 6), float(seed)), torch.ones(4, 6)])
    """,
    "method": """
        import lightning_fold as lf

        class Twice:
            def __init__(self, importance="l2"):
                self.importance = importance

            def __call__(self, model, example_inputs, *, keep=0.5, of="parameters"):
                for _ in range(2):
                    report = lf.prune(model, example_inputs, keep=keep**0.5, of=of, importance=self.importance)
                return report
    """,
}


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes the file of one extension to a folder that Python imports from; gives the path of its module."""

    def write(kind: str) -> str:
        name = f"outside_{kind}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(FILES[kind]))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        assert len(list(tmp_path.glob("*.py"))) == 1  # nothing else is touched
        return name

    return write


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()


X = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("sign", [1, -1])
def test_importance_that_asks_for_calibration(outside, sign: int) -> None:
    module, network = outside("importance"), _network()
    means = sign * network[:2](X[:32]).mean(0)  # the last batch is held out
    first = network[0].weight.detach().clone()
    lf.prune(network, X, keep=0.5, of="channels", importance=f"{module}.Mean(sign={sign})", batches=X.split(8))
    assert torch.equal(network[0].weight, first[sorted(means.topk(4).indices.tolist())])


def test_repair_that_helps_is_kept_and_one_that_does_not_is_undone(outside) -> None:
    module, plain = outside("repair"), _network()
    lf.prune(plain, X, keep=0.5, of="channels")
    error = (_network()(X) - plain(X)).mean(0).mean().item()
    for by, undone in ((error, False), (-100.0, True)):
        network = _network()
        report = lf.prune(network, X, keep=0.5, of="channels", repair=f"{module}.Shift(by={by!r})", batches=[X, X])
        assert any("shift was undone" in note for note in report.notes) == undone
        expected = plain[2].bias + (0.0 if undone else by)
        torch.testing.assert_close(network[2].bias, expected)
    with pytest.raises(ValueError, match=r"expected batches=\.\.\., a loader"):
        lf.prune(_network(), X, repair=f"{module}.Shift")
    with pytest.raises(ValueError, match=r"ChannelFolding\(batches=0, repair='outside_repair\.Shift'\)"):
        ChannelFolding(repair=f"{module}.Shift")


def test_calibration_decides_what_an_importance_sees(outside) -> None:
    module, network = outside("calibration"), _network().float()
    energy = network[:2](torch.full((1, 6), 3.0))[0].square() * network[2].weight.square().sum(0)
    first = network[0].weight.detach().clone()
    lf.prune(
        network, X.float(), keep=0.25, of="channels", importance="activation", calibration=f"{module}.ones", seed=3
    )
    assert torch.equal(network[0].weight, first[sorted(energy.topk(2).indices.tolist())])


def test_method_by_its_path(outside) -> None:
    module, by_path, by_hand = outside("method"), _network(), _network()
    apply(f"{module}.Twice(importance='l1')", by_path, X, keep=0.25, of="channels")
    for _ in range(2):
        lf.prune(by_hand, X, keep=0.5, of="channels", importance="l1")
    torch.testing.assert_close(by_path.state_dict(), by_hand.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"takes no skip=\['0'\]"):
        apply(f"{module}.Twice", _network(), X, skip=["0"])


def test_callbacks_read_paths_and_classes_with_arguments_from_yaml(outside) -> None:
    module = outside("importance")
    parser = LightningArgumentParser()
    parser.add_class_arguments(ChannelPruning, "callback")
    for written in (f"{module}.Mean(sign=-1)", {"class_path": f"{module}.Mean", "init_args": {"sign": -1}}):
        found = parser.parse_object({"callback": {"importance": written, "keep": {"0": 0.5}, "of": "channels"}})
        callback = parser.instantiate_classes(found).callback
        by_callback, by_hand = _network(), _network()
        callback.change([X])(by_callback, X, ())
        lf.prune(by_hand, X, keep=0.5, of="channels", importance=f"{module}.Mean(sign=-1)", batches=[X])
        torch.testing.assert_close(by_callback.state_dict(), by_hand.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "names", [IMPORTANCES, REPAIRS, CALIBRATIONS, METHODS], ids=["importance", "repair", "calibration", "method"]
)
def test_every_built_in_name_is_short_for_a_path(names: dict[str, str]) -> None:
    for name, path in names.items():
        assert type(resolve("call", "argument", name, names)) is type(resolve("call", "argument", path, {}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("l3", r"prune\(importance='l3'\): expected one of 'l1', 'l2', .*, or the path of a class or function"),
        ("nowhere.Mean", r"prune\(importance='nowhere\.Mean'\): No module named 'nowhere'; expected the path"),
        ("torch.nn.Meen", r"has no attribute 'Meen'"),
        ("l1(2)", r"expected arguments by name with plain values, such as 'l1\(power=2\)'"),
        ("l1(order=open('x'))", r"expected arguments by name with plain values"),
        ("l1(order=", r"expected arguments by name with plain values"),
    ],
)
def test_wrong_paths_are_named(text: str, message: str) -> None:
    with pytest.raises(lf.ArgumentError, match=message):
        lf.prune(_network(), X, importance=text)


@pytest.mark.parametrize("argument", ["importance", "repair", "calibration"])
def test_objects_of_another_kind_are_refused(argument: str) -> None:
    with pytest.raises(ArgumentTypeError, match=rf"prune\({argument}=3\): expected a name"):
        lf.prune(_network(), X, **{argument: 3})


def test_a_name_with_arguments_of_its_own() -> None:
    by_name, by_hand = _network(), _network()
    method_of("compare", "prune(importance='l1')")(by_name, X, keep=0.5)
    method_of("compare", "prune-l1")(by_hand, X, keep=0.5)
    torch.testing.assert_close(by_name.state_dict(), by_hand.state_dict(), rtol=0, atol=0)
