"""Runs in the loops of transformers and Lightning take the very steps of Quintet's own."""

from __future__ import annotations

import dataclasses
import importlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.checkpoints import tiny_llama
from tests.helpers import PEAK, records, run_config, run_values, write_corpus

from quintet.config.documents import IGNORED
from quintet.config.schema import RunConfig
from quintet.data.batch import TrainData
from quintet.errors import UserError
from quintet.track.console import Reporter
from quintet.train import loop
from quintet.train.trained import load_trained

transformers = pytest.importorskip("transformers")
pytest.importorskip("lightning.pytorch")
event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

KINDS = ("transformers", "lightning")
STEPS = 12
Make = Callable[..., RunConfig]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run with accumulation, dropout that changes, warm-up, decay, validation, samples and checkpoints."""
    write_corpus(tmp_path / "corpus", "to be or not to be, that is the question. " * 80)

    def call(kind: str, name: str = "run", arguments: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
        values = run_values(
            tmp_path,
            name=name,
            model={"layers": 2},
            schedule={"kind": "cosine", "warmup_steps": 3, "min_lr": 1e-5},
            dropout_schedule={"kind": "linear", "start": 0.4, "end": 0.1},
            train={"steps": STEPS, "batch_size": 6, "accumulation": 3, "log_every": 5} | sections.pop("train", {}),
            evaluate={"every": 4, "samples": 8},
            checkpoint={"every": 4, "keep": 9},
            trainer={"kind": kind} | ({"arguments": arguments} if arguments else {}),
        )
        return RunConfig.model_validate(values | sections)

    return call


def trained(config: RunConfig) -> loop.Outcome:
    return loop.train(config, Reporter(), peak_flops=PEAK)


def same_run(one: Path, other: Path) -> None:
    """Same measurements, and the same weights at the end, to the last bit."""
    assert records(one) == records(other)
    weights = [load_trained(str(folder)).model.state_dict() for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_are_those_of_the_own_loop(make: Make, kind: str, precision: str) -> None:
    own, other = (trained(make(k, name=k, train={"precision": precision})).run for k in ("quintet", kind))
    measured = records(other.folder)
    assert sorted({row["step"] for row in measured if "train/grad_norm" in row}) == [*range(1, STEPS + 1)]
    assert [row["step"] for row in measured if "validation/loss" in row] == [4, 8, 12]
    assert measured[2]["train/lr"] == 1e-3  # the end of the warm-up
    same_run(own.folder, other.folder)
    assert torch.are_deterministic_algorithms_enabled()
    left = {path.name for path in other.folder.iterdir()}
    assert left == {path.name for path in own.folder.iterdir()}  # nothing of the other library
    steps = [path.name for path in sorted((other.folder / "checkpoints").iterdir())]
    assert steps == ["step-000004", "step-000008", "step-000012"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_valid_targets_and_a_gradient_beyond_fp16_are_left_out(
    make: Make, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss scale starts so high that the first gradients overflow, and no target of step 6 is valid."""
    scaler, batch_of = torch.amp.GradScaler, TrainData.batch

    def batch(data: TrainData, step: int, *part: int) -> Any:
        found = batch_of(data, step, *part)
        if step != 5:
            return found
        return dataclasses.replace(found, targets=np.full_like(found.targets, IGNORED), valid=0)

    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=2.0**127))
    monkeypatch.setattr(TrainData, "batch", batch)
    own, other = (trained(make(k, name=k, loss={"z_loss": 1.0})).run for k in ("quintet", kind))
    assert own.progress.skipped_steps > 1
    assert own.progress.skipped_steps == other.progress.skipped_steps < STEPS
    assert {6} == {*range(1, STEPS + 1)} - {row["step"] for row in records(other.folder) if "train/loss" in row}
    assert own.progress.scaler == other.progress.scaler
    same_run(own.folder, other.folder)


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(("transformers", "transformers"), marks=pytest.mark.slow),
        pytest.param(("lightning", "lightning"), marks=pytest.mark.slow),
        ("quintet", "transformers", "lightning", "quintet"),
    ],
    ids="-".join,
)
def test_sigterm_in_the_middle_of_a_step_ends_it_with_a_checkpoint_from_which_any_trainer_continues(
    make: Make, kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(make("quintet", name="whole")).run
    from quintet.train import engine as engine_module
    from quintet.train.integrations import trainers

    stops, share_of_loss = {3: 1, 6: 0, 9: 2}, engine_module.share_of_loss

    def share(loss_module: Any, part: Any, *rest: Any) -> Any:
        if stops.get(part.step) == part.index and len(asked) < len(kinds) - 1:
            del stops[part.step]
            asked.append(part.step)
            signal.raise_signal(signal.SIGTERM)
        return share_of_loss(loss_module, part, *rest)

    asked: list[int] = []
    for module in (engine_module, trainers):
        monkeypatch.setattr(module, "share_of_loss", share)
    for kind in kinds[:-1]:
        outcome = trained(make(kind, name="cut"))
        assert (outcome.signal, outcome.run.progress.step) == (signal.SIGTERM, asked[-1])
    outcome = trained(make(kinds[-1], name="cut"))
    assert (outcome.signal, outcome.run.progress.step, len(asked)) == (None, STEPS, len(kinds) - 1)
    same_run(whole.folder, outcome.run.folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.1}], ids=["whole", "lora"])
def test_models_of_the_transformers_library_and_adapters(
    make: Make, kind: str, lora: dict[str, Any] | None, tmp_path: Path
) -> None:
    tiny_llama(260, max_position_embeddings=32, tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    model = {"kind": "huggingface", "name_or_path": str(tmp_path / "base"), "lora": lora}
    own, other = (trained(make(k, name=k, model=model, train={"steps": 4})).run for k in ("quintet", kind))
    same_run(own.folder, other.folder)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_other_library_writes_when_asked(make: Make, kind: str) -> None:
    """The arguments in the second line of each only repeat what the run file says, so they change nothing."""
    asked: dict[str, dict[str, Any]] = {
        "transformers": {"save_strategy": "steps", "save_steps": 8, "logging_steps": 1}
        | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "learning_rate": 1e-3},
        "lightning": {"enable_checkpointing": True, "logger": True, "log_every_n_steps": 1}
        | {"gradient_clip_val": 1.0, "accumulate_grad_batches": 3},
    }
    run = trained(make(kind, arguments=asked[kind])).run
    same_run(trained(make("quintet", name="own")).run.folder, run.folder)
    folder = run.folder / kind
    measured, validated = (
        [row for row in records(run.folder) if name in row] for name in ("train/loss", "validation/loss")
    )
    if kind == "transformers":
        state = json.loads((folder / "checkpoint-8/trainer_state.json").read_text())
        for logged, row in zip(state["log_history"], measured[:8], strict=True):
            assert logged["step"] == row["step"]
            assert logged["loss"] == pytest.approx(row["train/loss"], rel=1e-4)
            assert logged["learning_rate"] == pytest.approx(row["train/lr"])
        return
    assert list(folder.rglob("*.ckpt"))
    [events] = {path.parent for path in folder.rglob("events.*")}
    found = event_accumulator.EventAccumulator(str(events)).Reload()
    shown = [row for row in measured if row["step"] % run.config.train.log_every == 0]  # as every tracker gets them
    for name, rows_with in (("train/loss", shown), ("validation/loss", validated)):
        logged = {point.step: point.value for point in found.Scalars(name)}
        assert logged == pytest.approx({row["step"]: row[name] for row in rows_with})


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_folder_is_used_as_any_other(train: Any, command: Any, tmp_path: Path, kind: str) -> None:
    run = train(model={}, tokenizer={"kind": "byte"}, sample={"prompts": []}, trainer={"kind": kind})
    code, out, err = command("generate", run, "--prompt", "the cat", "--max-tokens", "3")
    assert (code, out.startswith("the cat")) == (0, True), err
    code, out, err = command("evaluate", run)
    assert code == 0, err
    last = [row for row in records(tmp_path / "runs" / run) if "validation/loss" in row][-1]
    assert f"{last['validation/loss']:.4f}" in out
    code, out, err = command("export", run, "out", "--to", "huggingface")
    assert code == 0, err
    assert list(tmp_path.joinpath("out").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("transformers", {"save_step": 5}, ["trainer.arguments.save_step", "did you mean save_steps?"]),
        ("transformers", {"xyzzy": 5}, ["trainer.arguments.xyzzy", "has no such argument"]),
        ("transformers", {"learning_rate": 0.1}, ["trainer.arguments.learning_rate", "set optimizer.lr instead"]),
        ("transformers", {"max_steps": 7}, ["trainer.arguments.max_steps", "set train.steps instead"]),
        ("transformers", {"seed": 7}, ["trainer.arguments.seed", "set seed instead"]),
        ("transformers", {"gradient_accumulation_steps": 7}, ["set train.accumulation instead"]),
        ("transformers", {"per_device_train_batch_size": 9}, ["set train.micro_batch_size instead"]),
        ("transformers", {"save_strategy": "sometimes"}, ["trainer.arguments", "sometimes"]),
        ("lightning", {"enable_progress_bars": True}, ["did you mean enable_progress_bar?"]),
        ("lightning", {"precision": "16-mixed"}, ["trainer.arguments.precision", "set train.precision instead"]),
        ("lightning", {"gradient_clip_val": 0.5}, ["set train.clip_norm instead"]),
        ("lightning", {"max_steps": 7}, ["set train.steps instead"]),
        ("lightning", {"callbacks": "x"}, ["trainer.arguments.callbacks", "remove it"]),
        ("lightning", {"profiler": "no such"}, ["trainer.arguments", "profiler"]),
    ],
)
def test_arguments_that_are_unknown_or_contradict_the_run_file_are_refused(
    make: Make, command: Any, tmp_path: Path, kind: str, arguments: dict[str, Any], words: list[str]
) -> None:
    values = make(kind).model_dump(mode="json", exclude_unset=True)
    values["trainer"]["arguments"] = arguments
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    code, _, err = command("train", str(tmp_path / "run.yaml"))
    assert code == 2
    for word in words:
        assert word in " ".join(err.split())


@given(lr=st.floats(1e-6, 1), given_lr=st.floats(1e-6, 1))
def test_an_argument_may_repeat_what_the_run_file_says_and_nothing_else(lr: float, given_lr: float) -> None:
    def accepted(value: float) -> bool:
        trainer = {"kind": "transformers", "arguments": {"learning_rate": value}}
        try:
            run_config(optimizer={"lr": lr}, trainer=trainer)
        except ValidationError:
            return False
        return True

    assert accepted(lr)
    assert accepted(given_lr) == (given_lr == lr)


@pytest.mark.parametrize(("kind", "extra"), [("transformers", "hf"), ("lightning", "lightning")])
def test_a_library_that_is_missing_is_named_before_anything_is_built(
    make: Make, kind: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_module = importlib.import_module

    def absent(name: str) -> Any:
        if name.partition(".")[0] == "quintet":
            return import_module(name)
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    config = make(kind)
    with pytest.raises(UserError, match=rf"pip install 'quintet\[{extra}\]'"):
        trained(config)
    assert not Path(config.runs_dir).exists()
