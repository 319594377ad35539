"""Optimizers of pytorch_optimizer against the package's own classes, driven by hand on the same gradients."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.helpers import run_values
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from quintet.config.optimizer import TorchOptimizerConfig
from quintet.config.schedule import TorchScheduleConfig
from quintet.config.schema import RunConfig
from quintet.config.train import CheckpointConfig
from quintet.errors import NotHere, UserError
from quintet.plan.fake_world import fake_tokenizer
from quintet.plan.machine import Machine
from quintet.plan.simulation import simulate
from quintet.train import library_optimizers
from quintet.train.build import load_training
from quintet.train.check import check_training
from quintet.train.checkpoint import Checkpointer
from quintet.train.checkpoint_files import Progress, checkpoint_path
from quintet.train.compute import Compute
from quintet.train.dry_run import dry_run
from quintet.train.engine import TorchEngine
from quintet.train.library_optimizers import check_optimizer, check_sharded
from quintet.train.library_schedules import check_torch_schedule
from quintet.train.model import build_run_model
from quintet.train.optimizer import build_optimizer, optimizer_bytes, set_learning_rate, state_bytes

REASONS = library_optimizers._NOT_FOR_A_RUN["pytorch_optimizer"]
RATES = (0.0, 0.02, 0.01, 0.03)
# What classes need, or what makes a property of theirs show in a few steps.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "SOAP": {"precondition_frequency": 2},
    "Lion": {"betas": [0.8, 0.9]},
    "Shampoo": {"momentum": 0.9},
}


def optimizers_of(library: ModuleType) -> list[str]:
    """The names of its classes that torch.optim does not have in any case of letters."""
    ours = {name.lower() for name in vars(torch.optim)}
    found = {name for name, one in vars(library).items() if inspect.isclass(one)}
    return sorted(
        name for name in found if issubclass(getattr(library, name), torch.optim.Optimizer) and name.lower() not in ours
    )


@pytest.fixture(scope="module")
def library() -> ModuleType:
    return pytest.importorskip("pytorch_optimizer", reason="the extra optimizers is not installed")


FEW = ("AdaBelief", "DAdaptLion", "Lion", "Prodigy", "SOAP", "Shampoo", "StableAdamW")


@pytest.fixture(scope="module", params=["few", pytest.param("all", marks=pytest.mark.slow)])
def fit(library: ModuleType, request: pytest.FixtureRequest) -> list[str]:
    """The names of classes that a run can have."""
    every = [name for name in optimizers_of(library) if name not in REASONS]
    assert set(FEW) <= set(every)
    return every if request.param == "all" else list(FEW)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.blocks = nn.ModuleList()
        self.embedding = nn.Embedding(12, 8)
        self.up, self.norm, self.down = nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw)

    def forward(self, ids: Tensor) -> Tensor:
        """(N,) int64 to (N, 4) fp32."""
        return self.down(self.norm(self.up(self.embedding(ids))))


def draw_gradients(model: nn.Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw)


def named(name: str, library: ModuleType | None = None, **settings: Any) -> TorchOptimizerConfig:
    decays = library is not None and "weight_decay" in inspect.signature(getattr(library, name)).parameters
    values = {"kind": "torch", "name": name, "lr": 0.02, "weight_decay": 0.1 if decays else 0.0}
    return TorchOptimizerConfig.model_validate(values | {"arguments": ARGUMENTS.get(name, {})} | settings)


def engine_of(config: TorchOptimizerConfig) -> TorchEngine:
    model, values = Small(), run_values(train={"clip_norm": 1.0})
    optimizer, scaler = build_optimizer(config, model), torch.amp.GradScaler("cpu", enabled=False)
    run = RunConfig.model_validate(values)
    compute = Compute(torch.device("cpu"), "fp32", compile=False, reason="")
    return TorchEngine(model, model, optimizer, scaler, run, None, compute)  # pyright: ignore[reportArgumentType]


def advance(engine: TorchEngine, first: int, last: int) -> None:
    for step in range(first, last):
        draw_gradients(engine.model, step)
        torch.manual_seed(step)  # some draw numbers; the loop seeds them by the step, too
        engine.update(RATES[step % len(RATES)], step)


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_each_class_steps_as_it_does_by_itself_with_clipped_gradients_and_groups(
    library: ModuleType, fit: list[str]
) -> None:
    for name in fit:
        config, other = named(name, library), Small()
        engine = engine_of(config)
        both = ([p for p in other.parameters() if (p.dim() > 1) == matrices] for matrices in (True, False))
        groups: list[dict[str, Any]] = [{"params": parameters} for parameters in both]
        if config.weight_decay:
            groups[0]["weight_decay"], groups[1]["weight_decay"] = 0.1, 0.0
        arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in config.arguments.items()}
        reference = getattr(library, name)(groups, lr=0.02, **arguments)
        for step in range(9):
            draw_gradients(other, step)
            nn.utils.clip_grad_norm_(other.parameters(), 1.0)
            set_learning_rate(reference, RATES[step % len(RATES)])
            torch.manual_seed(step)
            reference.step()
        advance(engine, 0, 9)
        assert equal(engine.model, other), name
        assert not equal(other, Small()), name
        assert all(p.isfinite().all() for p in other.parameters()), name


def test_a_run_with_each_class_continues_bit_for_bit_from_checkpoints_that_were_written_meanwhile(
    library: ModuleType, fit: list[str], tmp_path: Path
) -> None:
    for name in fit:
        whole, folder = engine_of(named(name, library)), tmp_path / name
        checkpointer = Checkpointer(folder, CheckpointConfig(keep=None))
        for first, last in ((0, 3), (3, 7)):
            advance(whole, first, last)
            checkpointer.save(Progress(step=last), whole.state())
        advance(whole, 7, 16)
        checkpointer.close()
        for step in (3, 7):
            continued = engine_of(named(name, library))
            load_training(checkpoint_path(folder, step), continued)
            advance(continued, step, 16)
            assert equal(whole.model, continued.model), (name, step)


def is_plain(state: Any) -> bool:
    """True if it can be copied by value: tensors, numbers and words, in lists and by name."""
    if isinstance(state, dict):
        return all(map(is_plain, state.values()))
    if isinstance(state, list | tuple):
        return all(map(is_plain, state))
    return state is None or isinstance(state, Tensor | int | float | str | torch.dtype)


def test_the_state_of_each_class_can_be_copied_by_value(library: ModuleType, fit: list[str]) -> None:
    for name in fit:
        engine = engine_of(named(name, library))
        advance(engine, 0, 3)
        assert is_plain(engine.state()), name


def test_a_dry_run_leaves_no_trace_in_weights_state_or_count(library: ModuleType, fit: list[str]) -> None:
    for name in fit:
        config = named(name, library, decay="all")
        fresh, tried = engine_of(config), engine_of(config)
        run_dry(tried)
        assert equal(fresh.model, tried.model), name
        advance(fresh, 0, 6)
        advance(tried, 0, 6)
        assert equal(fresh.model, tried.model), name


def run_dry(engine: TorchEngine) -> None:
    """Take a dry run with ``engine``, whose model has no objective of its own and nothing to validate on."""
    engine.loss_module, engine.shape = Loss(engine.model), engine.config.batch
    objective: Any = SimpleNamespace(vocab_size=12)
    dry_run(engine, objective, held_out=0)


class Loss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, *_: Any) -> Tensor:
        return self.model(ids).square().mean()


@pytest.mark.parametrize("name", ["Lion", "StableAdamW", "AdaBelief"])
def test_a_decay_that_is_not_times_the_rate_leaves_no_trace_of_a_dry_run_either(name: str, library: ModuleType) -> None:
    config = named(name, library, arguments={"fixed_decay": True} if name != "StableAdamW" else {})
    engine = engine_of(config)
    run_dry(engine)
    assert equal(engine.model, Small())
    assert {group["weight_decay"] for group in engine.optimizer.param_groups} == {0.1, 0.0}


def test_every_class_that_is_refused_exists_and_says_why(library: ModuleType) -> None:
    assert set(REASONS) <= set(optimizers_of(library))
    for name, reason in REASONS.items():
        with pytest.raises(UserError) as error:
            check_optimizer(named(name))
        assert str(error.value) == (
            f"optimizer.name: pytorch_optimizer has no {name!r} for a run: {reason}; take another one"
        )


@pytest.mark.parametrize("name", sorted(name for name, reason in REASONS.items() if "rate of 0" in reason))
def test_what_is_refused_for_its_steps_at_a_rate_of_0_takes_them(name: str, library: ModuleType) -> None:
    model = Small()
    optimizer = getattr(library, name)(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
    except ZeroDivisionError:
        return
    assert not equal(model, Small())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lion", {}, r"^optimizer.name: .* did you mean Lion\?$"),
        ("Lion", {"arguments": {"beta": 1}}, r"^optimizer.arguments.beta: Lion has no such argument; did you mean bet"),
        ("Lion", {"arguments": {"kwargs": 1}}, r"^optimizer.arguments.kwargs: Lion has no such argument"),
        ("Lion", {"arguments": {"lr": 1}}, r"^optimizer.arguments.lr: is optimizer.lr"),
        ("Lion", {"arguments": {"betas": [2, 0]}}, r"^optimizer.arguments: Lion refuses them: .*beta"),
        ("Shampoo", {"arguments": {"preconditioning_compute_steps": 0}}, r"^optimizer.arguments: Shampoo refuses them"),
        ("SM3", {"weight_decay": 0.1}, r"^optimizer.weight_decay: SM3 has none"),
    ],
)
def test_what_a_class_does_not_know_is_refused_by_name(
    name: str, settings: dict[str, Any], message: str, library: ModuleType
) -> None:
    with pytest.raises(UserError, match=message):
        build_optimizer(named(name, **settings), Small())


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pytorch_optimizer", None)
    with pytest.raises(NotHere) as error:
        check_training(RunConfig.model_validate(run_values(optimizer={"kind": "torch", "name": "SOAP"})))
    assert str(error.value) == (
        "optimizer.name: SOAP, which torch.optim lacks, needs pytorch_optimizer, which is not installed; "
        "pip install 'quintet[optimizers]', or take one of torch.optim"
    )


def test_the_bytes_of_a_state_are_those_of_its_shapes(library: ModuleType) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(48, 16), nn.Linear(16, 48, bias=False))
    weights, biases = 2 * 48 * 16, 16
    assert optimizer_bytes(named("Lion"), model) == 4 * (weights + biases)
    # Two averages, and two square matrices for each side of a matrix (Vyas et al. 2024, algorithm 3).
    sides = 2 * (48**2 + 16**2)
    assert optimizer_bytes(named("SOAP"), model) == 8 * (weights + biases) + 2 * 4 * sides
    narrow = named("SOAP", arguments={"max_precondition_dim": 20})
    assert optimizer_bytes(narrow, model) == 8 * (weights + biases) + 2 * 4 * 2 * 16**2
    # A square matrix and its root for each side (Gupta et al. 2018, algorithm 1), and the last step.
    assert optimizer_bytes(named("Shampoo"), model) == 4 * (weights + biases) + 2 * 4 * (sides + 16**2)
    # Its step reads the distance that it has gone; so it is that of a small one.
    assert optimizer_bytes(named("Prodigy"), model) == state_bytes(named("Prodigy")) * (weights + biases)


def test_a_simulation_counts_what_a_state_holds_in_lists(library: ModuleType) -> None:
    run = RunConfig.model_validate(run_values(optimizer={"kind": "torch", "name": "SOAP"}))
    found = simulate(run, 256, Machine(1, 1, 2**36, 1e12, 0.5, 1e11, 1e10, 1e9, accelerator=False), "fp32")
    model = build_run_model(run, fake_tokenizer(256), meta=True)
    assert found.memory.optimizer == optimizer_bytes(named("SOAP", arguments={}), model)


def test_a_schedule_cycles_the_momentum_of_a_class_that_has_one(library: ModuleType) -> None:
    cycle = TorchScheduleConfig.model_validate({"kind": "torch", "name": "OneCycleLR", "arguments": {"max_lr": 1.0}})
    for name in ("Lion", "Shampoo"):
        check_torch_schedule(cycle, named(name))
    with pytest.raises(UserError, match=r"cycle_momentum: OneCycleLR cycles the momentum .* Fromage has none"):
        check_torch_schedule(cycle, named("Fromage"))


@pytest.fixture
def one_device() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_each_class_steps_sharded_weights_as_whole_ones_or_is_refused(
    library: ModuleType, fit: list[str], one_device: DeviceMesh
) -> None:
    taken = []
    for name in fit:
        config = named(name, library)
        try:
            check_sharded(config)
        except UserError as error:
            if "cannot step weights that are spread over devices" not in str(error):
                raise
            continue
        whole, spread = Small(), Small()
        fully_shard(spread, mesh=one_device)
        for model in (whole, spread):
            optimizer = build_optimizer(config, model)
            for step in range(3):
                torch.manual_seed(step)
                model(torch.arange(12)).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        for one, other in zip(whole.parameters(), spread.parameters(), strict=True):
            assert torch.equal(one, other.full_tensor()), name  # pyright: ignore[reportAttributeAccessIssue]
        taken.append(name)
    assert {"Lion", "AdaBelief"} <= set(taken)
    assert taken == [name for name in fit if name in library_optimizers._ELEMENTWISE.split()]


def test_what_may_be_sharded_treats_each_number_by_itself(library: ModuleType) -> None:
    for name in library_optimizers._ELEMENTWISE.split():
        draw = torch.Generator().manual_seed(0)
        whole = nn.Parameter(torch.randn(8, 6, generator=draw))
        halves = [nn.Parameter(half.flatten()) for half in whole.detach().clone().chunk(2)]
        optimizers = [getattr(library, name)(parameters, lr=0.01) for parameters in ([whole], halves)]
        for _ in range(40):
            whole.grad = torch.randn(8, 6, generator=draw)
            for half, part in zip(halves, whole.grad.clone().chunk(2), strict=True):
                half.grad = part.flatten()
            for optimizer in optimizers:
                optimizer.step()
        assert torch.equal(whole.flatten(), torch.cat(list(halves))), name


def test_a_step_that_reads_values_is_told_from_one_that_does_not(library: ModuleType) -> None:
    with FakeTensorMode():
        library_optimizers.state_after_step(named("SOAP"), torch.Size([8, 8]))
        with pytest.raises(Exception, match="local_scalar"):
            library_optimizers.state_after_step(named("Prodigy"), torch.Size([8, 8]))
