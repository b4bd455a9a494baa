"""Networks as people have them: wrapped, compiled, masked, with computed weights, in low precision, not yet loaded."""

import socket
from collections.abc import Callable, Iterator
from copy import deepcopy

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.data import DataLoader, TensorDataset

import lightning_fold as lf
from tests.zoo import ZOO, build, error_of, run

INPUTS = ZOO["residual"].inputs()


@pytest.fixture
def process_group() -> Iterator[None]:
    """One process of gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def _compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="eager")  # pyright: ignore[reportReturnType]


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "data_parallel": nn.DataParallel,
    "ddp": lambda network: DistributedDataParallel(network, bucket_cap_mb=3, find_unused_parameters=True),
    "compiled": _compiled,
    "compiled_ddp": lambda network: _compiled(DistributedDataParallel(network)),
}
REWRITES: dict[str, Callable] = {
    "minimize": lf.minimize,
    "prune": lf.prune,
    "fold": lf.fold,
    "factorize": lf.factorize,
    "sparsify": lambda model, inputs, optimizers=(): lf.sparsify(
        model, 0.5, criterion="connected", example_inputs=inputs, optimizers=optimizers
    ),
    "release": lambda model, inputs, optimizers=(): lf.release(model, batches=[inputs], optimizers=optimizers),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_network_is_minimized_like_the_network_alone_and_trains(wrapper: str, process_group: None) -> None:
    alone, network = build("residual", "rows"), build("residual", "rows")
    expected = run(alone, INPUTS)
    wrapped = WRAPPERS[wrapper](network)
    assert error_of(run(wrapped, INPUTS), expected) == 0  # compiled once for the old shapes
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    reports = [lf.minimize(alone, INPUTS), lf.minimize(wrapped, INPUTS, optimizers=[optimizer])]
    assert reports[0].changes == reports[1].changes and reports[1].factor > 1.1
    assert error_of(run(wrapped, INPUTS), expected) <= 1e-12
    _step_moves_all_parameters(wrapped, optimizer)


@pytest.mark.parametrize("rewrite", REWRITES)
def test_every_rewrite_takes_ddp(rewrite: str, process_group: None) -> None:
    alone, network = build("residual", "rows"), build("residual", "rows")
    wrapped = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for model, optimizers in ((alone, []), (wrapped, [optimizer])):
        torch.manual_seed(0)
        REWRITES[rewrite](model, INPUTS, optimizers=optimizers)
    assert error_of(run(wrapped, INPUTS), run(alone, INPUTS)) == 0
    _step_moves_all_parameters(wrapped, optimizer)


def _step_moves_all_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model.train()
    model(*INPUTS).square().mean().backward()
    optimizer.step()
    assert all(bool((p != old).any()) for p, old in zip(model.parameters(), before, strict=True))


def test_ddp_keeps_its_settings_and_its_communication_hook(process_group: None) -> None:
    calls = []

    def hook(state: str, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        calls.append(state)
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    wrapped = DistributedDataParallel(build("residual", "rows"), bucket_cap_mb=3, gradient_as_bucket_view=True).eval()
    wrapped.register_comm_hook("mine", hook)
    lf.minimize(wrapped, INPUTS)
    assert wrapped.bucket_bytes_cap == 3 * 2**20 and wrapped.gradient_as_bucket_view and not wrapped.training
    wrapped.train()(*INPUTS).sum().backward()
    assert set(calls) == {"mine"}


def test_part_that_is_compiled() -> None:
    model = nn.Sequential(_compiled(build("residual", "rows")), nn.Linear(4, 2).double()).eval()
    expected = model(*INPUTS)
    assert lf.minimize(model, INPUTS).factor > 1.1
    assert error_of(model(*INPUTS).detach(), expected.detach()) <= 1e-12


def test_submodule_alone() -> None:
    whole = build("residual", "rows")
    expected, others = run(whole, INPUTS), [id(p) for p in whole[3].parameters()]
    part = nn.Sequential(*list(whole)[:3])
    report = lf.minimize(part, INPUTS)
    assert report.factor > 1.05 and [id(p) for p in whole[3].parameters()] == others
    assert error_of(run(whole, INPUTS), expected) <= 1e-12


class _Masked(nn.Module):
    """A parametrization of one's own: some rows are zero."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, weight: Tensor) -> Tensor:
        return weight.index_fill(0, torch.tensor(self.rows), 0.0)


COMPUTED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "own": lambda layer: parametrize.register_parametrization(layer, "weight", _Masked([0, 3])),
    "two": lambda layer: [
        parametrize.register_parametrization(layer, name, _Masked([1])) for name in ("weight", "bias")
    ],
    "old_weight_norm": nn.utils.weight_norm,
    "old_spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("fails", [False, True])
def test_computed_weights_are_written_out_or_left_as_they_were(kind: str, fails: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    with torch.no_grad():
        model[4].weight[:, [2, 5]] = 0
    COMPUTED[kind](model[2])
    x = torch.randn(4, 5, dtype=torch.float64)
    model.eval()
    expected, keys, kind_of = model(x).detach(), list(model.state_dict()), type(model[2])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    model.train()
    if fails:
        model[4].register_forward_pre_hook(_seven_channels)
        with pytest.raises(lf.RewriteError):
            lf.minimize(model, x, optimizers=[optimizer])
        assert list(model.state_dict()) == keys and type(model[2]) is kind_of
        assert all(p is q for p, q in zip(optimizer.param_groups[0]["params"], held, strict=True))
        assert error_of(model.eval()(x).detach(), expected) == 0
        return
    report = lf.minimize(model, x, optimizers=[optimizer])
    assert type(model[2]) is nn.Linear and not parametrize.is_parametrized(model) and not model[2]._forward_pre_hooks
    assert set(model.state_dict()) == {f"{i}.{leaf}" for i in (0, 2, 4) for leaf in ("weight", "bias")}
    assert report.factor > 1.1 and model[2].out_features <= 5
    assert error_of(model.eval()(x).detach(), expected) <= 1e-12
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    model.load_state_dict(deepcopy(model.state_dict()))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("trained", [False, True])
def test_computed_weights_are_trained_as_their_sources(kind: str, trained: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    COMPUTED[kind](model[0])
    model[0].requires_grad_(trained)
    optimizer = torch.optim.Adam(model.parameters())
    lf.minimize(model, torch.randn(4, 5), optimizers=[optimizer])
    assert type(model[0]) is nn.Linear
    assert [p.requires_grad for p in model.parameters()] == [trained, trained, True, True]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


def _seven_channels(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    if args[0].shape[1] != 7:
        raise ValueError("expected 7 channels")


@pytest.mark.parametrize("rewrite", ["prune", "fold", "factorize", "minimize"])
def test_masks_are_written_out_before_every_rewrite(rewrite: str) -> None:
    model, plain = build("residual"), build("residual")
    for network in (model, plain):
        for module in (network[1].conv1, network[2].conv2):
            prune.ln_structured(module, "weight", 0.4, n=2, dim=0)
            prune.remove(module, "weight") if network is plain else None
    for network in (model, plain):
        REWRITES[rewrite](network, INPUTS)
    assert not prune.is_pruned(model) and error_of(run(model, INPUTS), run(plain, INPUTS)) <= 1e-12


class _Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.network(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("permanent", [True, False])
def test_what_lightnings_model_pruning_leaves(permanent: bool) -> None:
    torch.manual_seed(0)
    module, x = _Classifier(), torch.randn(8, 5)
    trainer = lightning.Trainer(
        max_epochs=1,
        callbacks=[
            ModelPruning(
                "ln_structured",
                parameters_to_prune=[(module.network[0], "weight")],
                amount=0.5,
                use_global_unstructured=False,
                pruning_dim=0,
                pruning_norm=2,
                make_pruning_permanent=permanent,
            )
        ],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(x), batch_size=4))
    expected = module.network(x).detach()
    report = lf.minimize(module.network, x)
    assert module.network[0].out_features == 8 and report.factor > 1.9
    assert not prune.is_pruned(module) and error_of(module.network(x).detach(), expected) <= 1e-5


def test_zeros_from_a_file(tmp_path) -> None:
    torch.save(build("residual", "rows").state_dict(), tmp_path / "sparse.pt")
    model = build("residual")
    model.load_state_dict(torch.load(tmp_path / "sparse.pt", weights_only=True))
    expected = run(model, INPUTS)
    assert lf.minimize(model, INPUTS).factor > 1.1
    assert error_of(run(model, INPUTS), expected) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_errs_as_much_as_its_rounding(dtype: torch.dtype) -> None:
    """Against the same weights computed in float64: no worse than the network was before, but for a few roundings."""
    model = build("residual", "rows", dtype=dtype)
    exact = deepcopy(model).double()
    report = lf.minimize(model, INPUTS[0].to(dtype))
    assert report.factor > 1.1 and {p.dtype for p in model.parameters()} == {dtype}
    assert report.max_relative_error is not None and report.max_relative_error <= 16 * torch.finfo(dtype).eps
    assert error_of(run(model.double(), INPUTS), run(exact, INPUTS)) <= 16 * torch.finfo(dtype).eps


def test_weights_in_half_with_outputs_in_float_are_judged_by_the_weights() -> None:
    class Upcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = build("residual", "rows", dtype=torch.bfloat16)

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x).float()

    report = lf.minimize(Upcast(), INPUTS[0].bfloat16())
    assert report.factor > 1.1 and report.max_relative_error is not None and report.max_relative_error > 0


def test_channels_last_inputs_and_weights_stay_channels_last() -> None:
    model = build("residual", "rows").to(memory_format=torch.channels_last)
    x = INPUTS[0].to(memory_format=torch.channels_last)
    expected = run(model, (x,))
    lf.minimize(model, x)
    weights = [p for p in model.parameters() if p.dim() == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert error_of(run(model, (x,)), expected) <= 1e-12


def test_weights_that_are_not_there_are_refused() -> None:
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"minimize\(Sequential\): 0.weight is on the meta device.*load_state_dict"):
        lf.minimize(empty, torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"prune\(Sequential\): 0.weight has no shape yet"):
        lf.prune(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), torch.randn(2, 5))


@pytest.mark.parametrize("rewrite", REWRITES)
def test_modes_of_modules_stay(rewrite: str) -> None:
    model = build("residual", "rows").train()
    model[1].bn1.eval()
    model[2].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    REWRITES[rewrite](model, INPUTS)
    assert {name: module.training for name, module in model.named_modules() if name in modes} == modes
    if rewrite == "factorize":
        added = [name for name, _ in model.named_modules() if name not in modes]
        assert all(model.get_submodule(n).training == model.get_submodule(n.rpartition(".")[0]).training for n in added)


@pytest.mark.parametrize("rewrite", ["minimize", "prune", "fold", "factorize"])
def test_frozen_parameters_stay_frozen(rewrite: str) -> None:
    model = build("residual", "rows")
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    REWRITES[rewrite](model, INPUTS)
    assert not any(parameter.requires_grad for parameter in model[1].parameters())
    assert all(parameter.requires_grad for i in (0, 2, 3) for parameter in model[i].parameters())
