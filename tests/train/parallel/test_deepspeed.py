"""DeepSpeed's engine against the same run in one process, its settings, and checkpoints that every engine reads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import measured

from quintet.config.load import load_run_config
from quintet.config.schema import BatchShape, RunConfig
from quintet.errors import UserError
from quintet.train.compute import Compute
from quintet.train.integrations import deepspeed
from quintet.train.integrations.deepspeed import (
    BuildLock,
    check_deepspeed,
    offloads_optimizer,
    settings_of,
    wants_cpu_adam,
)
from quintet.train.integrations.deepspeed_engine import LossScale

from .conftest import train_several
from .test_parallelize import cut_at_three, difference

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.timeout(900)
# Tests have a home of their own; what DeepSpeed compiles once must not be compiled for each of them.
COMPILED = os.environ.get("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache/torch_extensions/quintet"))
FSDP, DDP = "parallel.kind=fsdp", "parallel.kind=ddp"
CPU = {"device": "cpu"}
TIED = ["model.tie_embeddings=true", "model.tie_feedforward=true"]
SGD = ["optimizer={kind: torch, name: SGD, lr: 0.1, arguments: {momentum: 0.9}}"]
BF16 = ["train.precision=bf16"]


def zero(stage: int, settings: dict[str, Any] | None = None, **more: Any) -> str:
    """`parallel` with DeepSpeed at this stage; ``more`` are keys of zero_optimization."""
    config = {"zero_optimization": {"stage": stage, **more}, **(settings or {})}
    return f"parallel={json.dumps({'kind': 'deepspeed', 'config': config})}"


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", COMPILED)


def whole(folder: Path, name: str, step: int = 6) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by its path in it."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    file = folder / f"{name}.pt"
    dcp_to_torch_save(folder / f"runs/{name}/checkpoints/step-{step:06d}", file)

    def tensors(values: dict[str, Any], path: str) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for key, value in values.items():
            inner = {f"{path}/{key}": value} if isinstance(value, torch.Tensor) else {}
            found |= tensors(value, f"{path}/{key}") if isinstance(value, dict) else inner
        return found

    return tensors(torch.load(file, weights_only=False), "")


def apart(folder: Path, name: str, other: str) -> float:
    """The largest difference between the checkpoints of two runs, which must have the same tensors."""
    one, another = whole(folder, name), whole(folder, other)
    assert {path: (t.shape, t.dtype) for path, t in one.items()} == {
        path: (t.shape, t.dtype) for path, t in another.items()
    }
    assert sum("exp_avg_sq" in path for path in one) > 5
    return max(float((value.double() - another[path].double()).abs().max()) for path, value in one.items())


OFFLOADED = [zero(3, offload_optimizer=CPU, offload_param=CPU)]
BEGUN = {**{f"zero{stage}": [zero(stage)] for stage in range(4)}, "offloaded": OFFLOADED, "ddp": [DDP], "fsdp": [FSDP]}
CHANGED = {
    "ddp-zero3": ("ddp", [zero(3)]),
    "zero3-fsdp": ("zero3", [FSDP]),
    "fsdp-zero1": ("fsdp", [zero(1)]),
    "zero1-zero2": ("zero1", [zero(2)]),
    "zero2-zero0": ("zero2", [zero(0)]),
}
ALONE = {"zero3-one": ("zero3", []), "zero1-zero3-one": ("zero1", [zero(3)])}


def test_stage_3_trains_as_one_process_goes_on_and_leaves_a_checkpoint_for_any_engine(
    run_file: Callable[..., Path], tmp_path: Path
) -> None:
    kept = {"checkpoint": {"every": 3, "keep": None}, "schedule": {"kind": "constant"}}
    file = run_file(**kept, train={"micro_batch_size": 2})
    train_several(1, file, {"one": []})
    stage = [zero(3)]
    runs = {"zero3": stage, "begun": [*stage, "name=again", "train.steps=3"], "again": stage}
    train_several(2, file, runs, gloo=True)
    assert difference(tmp_path, "zero3", "one") < 1e-5
    assert apart(tmp_path, "zero3", "one") < 1e-6
    assert measured(tmp_path / "runs/again") == measured(tmp_path / "runs/zero3")
    assert apart(tmp_path, "again", "zero3") == 0
    cut_at_three(tmp_path / "runs", "zero3", "alone")
    train_several(1, file, {"alone": []})
    assert difference(tmp_path, "alone", "one") < 1e-5


@pytest.mark.parametrize(
    ("names", "changes", "alone"),
    [
        pytest.param(("zero1", "zero3", "ddp"), ("ddp-zero3", "zero3-fsdp"), ("zero3-one",), id="two stages"),
        pytest.param(tuple(BEGUN), tuple(CHANGED), tuple(ALONE), id="all"),
    ],
)
@pytest.mark.slow
def test_stages_train_as_one_process_and_all_engines_share_checkpoints(
    names: tuple[str, ...],
    changes: tuple[str, ...],
    alone: tuple[str, ...],
    run_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    file = run_file(checkpoint={"every": 3, "keep": None}, train={"micro_batch_size": 2})
    train_several(1, file, {"one": []})
    printed = train_several(2, file, {name: BEGUN[name] for name in names})
    assert "all_gather_into_tensor" not in printed  # of which torch warns at every call
    for name in names:
        assert difference(tmp_path, name, "one") < 1e-5, name
        assert apart(tmp_path, name, "one") < 1e-6, name
    again = {f"{name}-again": (name, BEGUN[name]) for name in names if name not in ("ddp", "fsdp")}
    changed = {name: CHANGED[name] for name in changes}
    single = {name: ALONE[name] for name in alone}
    for name, (begin, _) in {**again, **changed, **single}.items():
        cut_at_three(tmp_path / "runs", begin, name)
    train_several(2, file, {name: overrides for name, (_, overrides) in {**again, **changed}.items()})
    if single:
        train_several(1, file, {name: overrides for name, (_, overrides) in single.items()}, apart=True)
    for name, (begin, _) in again.items():
        assert difference(tmp_path, name, begin) == 0, name
        assert apart(tmp_path, name, begin) == 0, name
    for name in [*changed, *single]:
        assert difference(tmp_path, name, "one") < 1e-5, name


@pytest.mark.slow
def test_other_models_optimizers_and_numbers(run_file: Callable[..., Path], tmp_path: Path) -> None:
    file = run_file(checkpoint={"every": None, "at_end": False}, train={"micro_batch_size": 2})
    runs = {"tied": TIED, "sgd": SGD, "dropout": ["model.residual_dropout=0.2"], "bf16": BF16, "fp32": []}
    train_several(1, file, runs)
    narrow = {"bf16": {"enabled": True}}
    exact = {
        "tied-3": [*TIED, zero(3)],
        "sgd-1": [*SGD, zero(1)],
        "dropout-3": [*runs["dropout"], zero(3)],
        "fp32-checkpointing": [zero(3), "train.activation_checkpointing=selective"],
    }
    rounded = {f"bf16-{stage}": [*BF16, zero(stage, narrow)] for stage in (0, 1, 3)} | {"bf16-wide": [*BF16, zero(3)]}
    train_several(2, file, exact | rounded)
    found = {name: difference(tmp_path, name, name.partition("-")[0]) for name in exact | rounded}
    assert max(found[name] for name in exact) < 1e-5, found
    # Weights in fp32 and products in bf16, as without DeepSpeed; then weights in bf16 beside a copy in fp32.
    assert found["bf16-wide"] < 1e-3, found
    assert 1e-4 < max(found[f"bf16-{stage}"] for stage in (0, 1, 3)) < 2e-2, found


# Settings


def read(run_file: Callable[..., Path], config: dict[str, Any], *overrides: str, **sections: Any) -> RunConfig:
    file = run_file(parallel={"kind": "deepspeed", "config": config}, **sections)
    return load_run_config([file], overrides).config


ADAM = {"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01}}
WARMUP = {"type": "WarmupLR", "params": {"warmup_max_lr": 3e-4, "warmup_num_steps": 3}}


@pytest.mark.parametrize(
    ("config", "override", "keys"),
    [
        ({"train_batch_size": 16}, "train.batch_size=8", ("train_batch_size", "train.batch_size")),
        (
            {"train_micro_batch_size_per_gpu": 4},
            "train.micro_batch_size=2",
            ("train_micro_batch_size_per_gpu", "train.micro_batch_size"),
        ),
        ({"gradient_clipping": 0.5}, "train.clip_norm=1.0", ("gradient_clipping", "train.clip_norm")),
        ({"bf16": {"enabled": True}}, "train.precision=fp32", ("bf16.enabled", "train.precision")),
        ({"fp16": {"enabled": False}}, "train.precision=fp16", ("fp16.enabled", "train.precision")),
        ({"optimizer": ADAM}, "optimizer.lr=0.1", ("optimizer.params.lr", "optimizer.lr")),
        ({"optimizer": ADAM}, "optimizer.betas=[0.5,0.5]", ("optimizer.params.betas", "optimizer.betas")),
        ({"optimizer": ADAM}, "optimizer={kind: torch, name: SGD}", ("optimizer.type", "optimizer")),
        ({"scheduler": WARMUP}, "schedule.kind=cosine", ("scheduler.type", "schedule")),
        (
            {"scheduler": WARMUP},
            "schedule={kind: deepspeed, name: WarmupLR, arguments: {warmup_max_lr: 3e-4, warmup_num_steps: 9}}",
            ("scheduler.params.warmup_num_steps", "schedule.arguments.warmup_num_steps"),
        ),
    ],
)
def test_a_contradiction_names_both_keys(
    run_file: Callable[..., Path], config: dict[str, Any], override: str, keys: tuple[str, str]
) -> None:
    theirs, ours = keys
    with pytest.raises(UserError) as error:
        read(run_file, config, override)
    assert len(error.value.problems) == 1
    assert f"parallel.config.{theirs}: " in error.value.problems[0]
    assert ours in error.value.problems[0]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"zero_optimisation": {"stage": 1}}, "did you mean zero_optimization"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "set one of them"),
        ({"optimizer": {"type": "OneBitAdam"}}, "not supported"),
        ({"activation_checkpointing": {}}, "is set by train.activation_checkpointing"),
        ({"gradient_allreduce_op": "sum"}, "always the mean"),
        ({"torch_autocast": {"enabled": True}}, "train.precision: bf16"),
    ],
)
def test_what_is_not_passed_on_is_refused(run_file: Callable[..., Path], config: dict[str, Any], told: str) -> None:
    values: dict[str, Any] = {"train": {"precision": "auto"}} if "fp16" in config else {}
    with pytest.raises(UserError, match=told):
        read(run_file, config, **values)


def test_what_the_ds_config_says_need_not_be_said_again(run_file: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    run_file("file")
    values = file.read_text().replace("  batch_size: 8\n", "").replace("  precision: fp32\n", "")
    ds = {"train_batch_size": 12, "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": 0, "optimizer": ADAM}
    ds |= {"scheduler": WARMUP, "bf16": {"enabled": True}}
    file.write_text(values + f"parallel: {json.dumps({'kind': 'deepspeed', 'config': ds})}\n")
    config = load_run_config([file], []).config
    assert (config.batch.samples, config.train.clip_norm, config.train.precision) == (12, None, "bf16")
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.decay) == (3e-4, 0.01, "all")
    assert config.schedule.name == "WarmupLR"
    assert config.schedule.arguments == {"warmup_max_lr": 3e-4, "warmup_num_steps": 3}


SHAPE = BatchShape(samples=8, micro_batch_size=2, accumulation=4, sequence_length=32)
FP32 = Compute(torch.device("cpu"), "fp32", False, "")


def test_auto_and_missing_settings_are_filled_in(run_file: Callable[..., Path]) -> None:
    autos = dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto")
    ds = {**autos, "gradient_clipping": "auto", "fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}
    ds |= {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "overlap_comm": False}}
    config = read(run_file, ds, "train.clip_norm=0.25", "train.precision=auto")
    found = settings_of(config, SHAPE, FP32, 1000)
    assert {name: found[name] for name in autos} == dict(zip(autos, (8, 2, 4), strict=True))
    assert (found["gradient_clipping"], found["fp16"], found["bf16"]) == (0.25, {"enabled": False}, {"enabled": False})
    assert found["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": False}
    narrow = settings_of(config, SHAPE, Compute(torch.device("cpu"), "bf16", False, ""), 1000)
    assert narrow["bf16"]["enabled"] is True
    plain = settings_of(read(run_file, {}), SHAPE, FP32, 1000)
    assert (plain["train_batch_size"], plain["gradient_clipping"]) == (8, 1.0)


def test_settings_of_adamw_that_ask_for_nothing_are_accepted(run_file: Callable[..., Path]) -> None:
    params = {**ADAM["params"], "amsgrad": False, "bias_correction": True}
    assert read(run_file, {"optimizer": {**ADAM, "params": params}}).optimizer.lr == 3e-4
    for name, value in (("amsgrad", True), ("bias_correction", False), ("amsgrad", None)):
        with pytest.raises(UserError, match=rf"optimizer.params.{name}: is not a key of the section optimizer for Ad"):
            read(run_file, {"optimizer": {**ADAM, "params": {**ADAM["params"], name: value}}})


def test_what_depends_on_the_processes_is_checked_when_they_are_known(run_file: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"gradient_accumulation_steps: is 3, and by train.batch_size .* 4 passes"):
        settings_of(read(run_file, {"gradient_accumulation_steps": 3}), SHAPE, FP32, 1000)
    adafactor = "optimizer={kind: torch, name: Adafactor}"
    with pytest.raises(UserError, match=r"optimizer.name: Adafactor needs whole matrices"):
        settings_of(read(run_file, {"zero_optimization": {"stage": 1}}, adafactor), SHAPE, FP32, 1000)
    assert settings_of(read(run_file, {}, adafactor), SHAPE, FP32, 1000)["zero_allow_untested_optimizer"]


def test_adam_for_the_host_is_deepspeeds_where_it_is_named(run_file: Callable[..., Path]) -> None:
    for named, offloaded in [(True, True), (True, False), (False, True)]:
        ds: dict[str, Any] = {"optimizer": ADAM} if named else {}
        ds["zero_optimization"] = {"stage": 2, **({"offload_optimizer": CPU} if offloaded else {})}
        config = read(run_file, ds)
        settings = settings_of(config, SHAPE, FP32, 1000)
        assert offloads_optimizer(settings) is offloaded
        assert wants_cpu_adam(config, settings) is (named and offloaded)


def test_what_zero_3_or_another_loop_cannot_do_is_said_at_once(run_file: Callable[..., Path]) -> None:
    three = {"zero_optimization": {"stage": 3}}
    with pytest.raises(UserError, match=r"train.compile: ZeRO 3"):
        check_deepspeed(read(run_file, three, "train.compile=true"))
    with pytest.raises(UserError, match=r"trainer.kind: lightning"):
        check_deepspeed(read(run_file, three, "trainer.kind=lightning"))
    with pytest.raises(UserError, match=r"optimizer.name: Lion is of pytorch_optimizer, and parallel.kind: deepspeed"):
        check_deepspeed(read(run_file, three, "optimizer={kind: torch, name: Lion}"))


def test_deepspeeds_own_objection_is_one_line(
    run_file: Callable[..., Path], command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import deepspeed as library

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(library.ops.__compatible_ops__, "deepspeed_shm_comm", False)  # compiling it takes a minute
    file = run_file(parallel={"kind": "deepspeed", "config": {"zero_optimization": {"stage": 1, "overlap": True}}})
    code, _, err = command("train", str(file))
    assert code == 2
    assert "parallel.config: DeepSpeed refuses it" in err
    assert "overlap" in err
    assert "Traceback" not in err


def test_the_scale_of_the_loss_continues_and_is_known_to_torch() -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    def scaler() -> Any:
        found = DynamicLossScaler(2.0**10, 2, 1.0, 1, False)
        for _ in range(3):
            found.update_scale(False)
        return found

    first, second = scaler(), DynamicLossScaler(2.0**10, 2, 1.0, 1, False)
    state = json.loads(json.dumps(LossScale(torch.device("cpu"), first).state_dict()))
    LossScale(torch.device("cpu"), second).load_state_dict(state)
    following = [(one.update_scale(False), one.cur_scale)[1] for one in (first, second) for _ in range(5)]
    assert following[:5] == following[5:]
    assert len(set(following[:5])) > 1
    torchs = torch.amp.GradScaler("cpu")
    torchs.load_state_dict(LossScale(torch.device("cpu"), first).state_dict())
    assert torchs.get_scale() == first.cur_scale
    LossScale(torch.device("cpu"), second).load_state_dict(torch.amp.GradScaler("cpu", init_scale=64.0).state_dict())
    assert second.cur_scale == 64.0
    assert not LossScale(torch.device("cpu"), None).is_enabled()


# The lock on what DeepSpeed compiles.

HERE, LIVING = socket.gethostname(), str(os.getpid())


def dead_process() -> str:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return str(process.pid)


@pytest.mark.parametrize("left", ["nobody", "killed"])
def test_a_lock_that_a_killed_build_left_is_taken_over(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deepspeed, "QUIET_SECONDS", 0.2)
    lock = tmp_path / "lock"
    lock.write_text("" if left == "nobody" else f"{HERE} {dead_process()}")
    baton = BuildLock(str(lock), 60)
    assert baton.try_acquire()
    assert lock.read_text() == f"{HERE} {LIVING}"
    assert f"{lock}: is left from a killed build; the extension is built again" in capsys.readouterr().err
    baton.release()
    assert not lock.exists()


@pytest.mark.parametrize("holder", ["another host", "nobody knows"])
def test_a_wait_for_a_build_has_an_end_that_names_the_file(holder: str, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text(f"elsewhere {LIVING}" if holder == "another host" else "")
    with pytest.raises(UserError, match=f"deepspeed waited 0 s for another process .* remove {lock}"):
        BuildLock(str(lock), 0.3).try_acquire()
    assert lock.exists()


@pytest.mark.parametrize("plain", [True, False], ids=["PyTorch's own", "ours"])
def test_a_build_that_goes_on_is_waited_for(
    plain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch.utils.file_baton import FileBaton

    monkeypatch.setattr(deepspeed, "QUIET_SECONDS", 0.0)
    lock = tmp_path / "lock"
    builder = FileBaton(str(lock)) if plain else BuildLock(str(lock), 60)
    assert builder.try_acquire()
    finished = threading.Timer(1.0, builder.release)
    finished.start()
    baton = BuildLock(str(lock), 0.1)  # a process that builds on this machine has longer
    assert baton.try_acquire()
    baton.release()
    finished.join()
    assert "another process builds there; waiting for it" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_builds_again_what_a_killed_run_left(
    run_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    left = tmp_path / "extensions/deepspeed_shm_comm/lock"
    left.parent.mkdir(parents=True)
    left.write_text(f"{HERE} {dead_process()}")
    said = train_several(1, run_file(), {"locked": [zero(1)]}, apart=True)
    assert f"{left}: is left from a killed build" in said
    assert not left.exists()
