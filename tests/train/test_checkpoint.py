"""Checkpoints: training goes on bit for bit, and a damaged or half-written one is never taken for whole."""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.helpers import Command, run_config
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from quintet.config.model import TransformerConfig
from quintet.config.optimizer import AdamWConfig
from quintet.config.train import CheckpointConfig
from quintet.errors import UserError
from quintet.model import Model, build_model
from quintet.train import checkpoint
from quintet.train.build import load_training
from quintet.train.checkpoint import Checkpointer, load_weights
from quintet.train.checkpoint_files import Progress, checkpoint_path, checkpoint_steps, last_checkpoint, read_progress
from quintet.train.compute import Compute
from quintet.train.engine import TorchEngine
from quintet.train.optimizer import build_optimizer


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    torch.manual_seed(step)
    loss = model(torch.randn(4, 5)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def trained(steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = tiny()
    optimizer = build_optimizer(AdamWConfig(), model)
    for step in range(steps):
        advance(model, optimizer, step)
    return model, optimizer


def engine_of(model: Any, optimizer: torch.optim.Optimizer) -> TorchEngine:
    config = run_config()
    scaler, compute = torch.amp.GradScaler("cpu", enabled=False), Compute(torch.device("cpu"), "fp32", False, "test")
    return TorchEngine(model, model, optimizer, scaler, config, config.batch, compute)


def save(folder: Path, steps: list[int], config: CheckpointConfig | None = None, **facts) -> Checkpointer:
    checkpointer = Checkpointer(folder, config or CheckpointConfig(keep=10))
    model, optimizer = trained()
    for step in steps:
        checkpointer.save(Progress(step=step, **facts), engine_of(model, optimizer).state())
    checkpointer.wait()
    return checkpointer


def test_training_goes_on_bit_for_bit_after_loading(tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    checkpointer.save(Progress(step=3), engine_of(model, optimizer).state())
    # The state is copied at the call: what is trained meanwhile must not leak into the file.
    uninterrupted = [advance(model, optimizer, step) for step in range(3, 8)]
    checkpointer.close()
    other = tiny(seed=99)
    optimizer = build_optimizer(AdamWConfig(), other)
    load_training(checkpoint_path(tmp_path, 3), engine_of(other, optimizer))
    assert [advance(other, optimizer, step) for step in range(3, 8)] == uninterrupted


TIES = ["tie_embeddings", "tie_feedforward", "tie_attention_output"]


@pytest.mark.parametrize("tied", [[], *[[name] for name in TIES], TIES], ids=lambda tied: " ".join(tied) or "none")
def test_tied_weights_are_stored_once_and_go_on_bit_for_bit(tmp_path: Path, tied: list[str]) -> None:
    config = TransformerConfig.model_validate(
        {"layers": 3, "width": 16, "attention": {"heads": 2}, **{name: name in tied for name in TIES}}
    )

    def start(seed: int) -> tuple[Model, torch.optim.Optimizer]:
        model = build_model(config, 20, 8, seed)
        return model, build_optimizer(AdamWConfig(lr=0.1), model)

    def step(model: Model, optimizer: torch.optim.Optimizer, index: int) -> float:
        ids = torch.randint(20, (2, 8), generator=torch.Generator().manual_seed(index))
        loss = model(ids).log_softmax(-1)[..., 0].sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    model, optimizer = start(0)
    for index in range(3):
        step(model, optimizer, index)
    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    checkpointer.save(Progress(step=3), engine_of(model, optimizer).state())
    checkpointer.close()
    other, other_optimizer = start(1)
    load_training(checkpoint_path(tmp_path, 3), engine_of(other, other_optimizer))
    assert [step(other, other_optimizer, i) for i in range(3, 7)] == [step(model, optimizer, i) for i in range(3, 7)]
    stored = set(FileSystemReader(checkpoint_path(tmp_path, 3)).read_metadata().state_dict_metadata)
    weights = {name for name in stored if name.startswith("model.")}
    assert len(weights) == len(list(model.parameters()))
    averages = {name for name in stored if name.endswith("exp_avg")}
    assert len(averages) == len(weights)


def test_weights_alone_can_be_read(tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    checkpointer.save(Progress(step=3), engine_of(model, optimizer).state())
    checkpointer.close()
    other = tiny(seed=99)
    load_weights(checkpoint_path(tmp_path, 3), other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_facts_survive(tmp_path: Path) -> None:
    facts = Progress(
        step=7, skipped_steps=2, tokens=99, seconds=1.5, tokenizer="abc", corpus="def", scaler={"scale": 2.0}
    )
    facts = facts.validated(3.25)
    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    checkpointer.save(facts, engine_of(*trained()).state())
    checkpointer.close()
    assert read_progress(checkpoint_path(tmp_path, 7)) == facts


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, CheckpointConfig(keep=2))
    model, optimizer = trained()
    progress = Progress()
    for step, loss in enumerate([5.0, 3.0, 4.0, 6.0, 7.0], start=1):
        progress = replace(progress, step=step).validated(loss)
        checkpointer.save(progress, engine_of(model, optimizer).state())
    checkpointer.close()
    assert checkpoint_steps(tmp_path) == [2, 4, 5]
    assert (progress.best_step, progress.best_loss) == (2, 3.0)


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "facts"])
def test_a_damaged_checkpoint_is_named_and_refused(tmp_path: Path, harm: str) -> None:
    save(tmp_path, [4, 8])
    path = checkpoint_path(tmp_path, 8)
    file = next(path.glob("*.distcp"))
    content = file.read_bytes()
    if harm == "truncate":
        file.write_bytes(content[:-10])
    elif harm == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "remove":
        file.unlink()
    else:
        (path / "state.json").write_text((path / "state.json").read_text()[:40])
    with pytest.raises(UserError, match=r"step-000008.*damaged.*move it away to use step 4"):
        read_progress(path)


def test_a_half_written_checkpoint_is_never_taken_for_whole(tmp_path: Path) -> None:
    save(tmp_path, [4])
    half = tmp_path / ".step-000009"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"x")
    (tmp_path / ".step-000010").write_bytes(b"x")
    amended = tmp_path / "step-000004/.state.json.0123456789abcdef"  # killed when it got its facts
    amended.write_bytes(b"{")
    assert checkpoint_steps(tmp_path) == [4]
    Checkpointer(tmp_path, CheckpointConfig()).close()
    assert [file.name for file in tmp_path.iterdir()] == ["step-000004"]
    assert not amended.exists()


def test_what_a_checkpoint_follows_from_is_made_durable_before_it_is_there(tmp_path: Path) -> None:
    there: list[list[int]] = []
    checkpointer = Checkpointer(
        tmp_path, CheckpointConfig(), sync=lambda: there.append([*checkpoint_steps(tmp_path), *_best_steps(tmp_path)])
    )
    checkpointer.save(Progress(step=4), engine_of(*trained()).state())
    checkpointer.wait()
    checkpointer.amend(Progress(step=4, best_step=3))
    checkpointer.close()
    assert there == [[], [4]]
    assert _best_steps(tmp_path) == [3]


def _best_steps(folder: Path) -> list[int]:
    found = (read_progress(checkpoint_path(folder, step)).best_step for step in checkpoint_steps(folder))
    return [step for step in found if step is not None]


def test_a_file_where_the_checkpoints_belong_is_said(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match="is a file where the checkpoints belong"):
        Checkpointer(tmp_path / "checkpoints", CheckpointConfig())


def test_a_full_disk_is_one_clear_line_and_the_earlier_checkpoint_stays(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    save(tmp_path, [4])
    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        checkpointer.save(Progress(step=5), engine_of(*trained()).state())
        with pytest.raises(UserError, match=r"no space left.*last whole one is step 4"):
            checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint_steps(tmp_path) == [4]
    assert read_progress(checkpoint_path(tmp_path, 4)).step == 4
    assert not list(tmp_path.glob(".step-*"))


def test_writing_asks_no_gpu_whichever_the_process_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our thread begins on the first GPU; each process whose writer waited for it would take memory of it."""
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: asked.append("stream"))
    save(tmp_path, [1]).close()
    assert checkpoint_steps(tmp_path) == [1]
    assert not asked


def test_the_best_is_the_lowest_finite_loss_and_the_earlier_of_two_that_are_equal() -> None:
    progress, bests = Progress(), []
    assert (progress.step, progress.skipped_steps, progress.tokens, progress.seconds) == (0, 0, 0, 0.0)
    for step, loss in enumerate([math.nan, math.inf, 5.0, 5.0, 4.0, math.nan, 4.5, 3.0], start=1):
        progress = replace(progress, step=step).validated(loss)
        assert str(progress.validation_loss) == str(loss)
        bests.append(progress.best_step)
    assert bests == [None, None, 3, 3, 5, 5, 5, 8]
    assert Progress(step=9, best_loss=math.nan, best_step=2).validated(7.0).best_step == 9


@pytest.mark.parametrize(
    ("settings", "best", "kept"),
    [
        ({"keep": None}, 1, [1, 2, 3, 4]),
        ({"keep": 1, "keep_best": False}, 1, [4]),
        ({"keep": 2, "keep_best": False}, 1, [3, 4]),
        ({"keep": 1, "keep_best": True}, 1, [1, 4]),
        ({"keep": 1, "keep_best": True}, None, [4]),
    ],
)
def test_as_many_are_kept_as_the_run_says(
    tmp_path: Path, settings: dict[str, bool | None], best: int | None, kept: list[int]
) -> None:
    assert last_checkpoint(tmp_path) is None
    save(tmp_path, [1, 2, 3, 4], CheckpointConfig.model_validate(settings), best_step=best).close()
    assert checkpoint_steps(tmp_path) == kept
    assert {path.name for path in tmp_path.iterdir()} == {f"step-{step:06d}" for step in kept}
    assert last_checkpoint(tmp_path) == tmp_path.resolve() / "step-000004"


def test_facts_that_come_later_are_put_into_the_checkpoint_of_their_step(tmp_path: Path) -> None:
    checkpointer = save(tmp_path, [4, 8], CheckpointConfig(keep=1))
    before = (checkpoint_path(tmp_path, 8) / ".metadata").stat().st_mtime_ns
    checkpointer.save(Progress(step=8, tokens=5), {})  # is there already
    checkpointer.amend(Progress(step=8, tokens=7))
    checkpointer.amend(Progress(step=9, tokens=7))  # is not there
    checkpointer.close()
    assert checkpoint_steps(tmp_path) == [8]
    assert read_progress(checkpoint_path(tmp_path, 8)) == Progress(step=8, tokens=7)
    assert (checkpoint_path(tmp_path, 8) / ".metadata").stat().st_mtime_ns == before
    again = Checkpointer(tmp_path, CheckpointConfig(keep=1))
    again.amend(Progress(step=8, tokens=9))
    again.close()
    assert read_progress(checkpoint_path(tmp_path, 8)).tokens == 9


def test_frozen_weights_are_not_stored_and_stay_as_they_are(tmp_path: Path) -> None:
    def partly_frozen(seed: int) -> nn.Module:
        model = tiny(seed)
        model.register_buffer("counted", torch.full((2,), float(seed)))
        model.get_submodule("0").requires_grad_(False)
        return model

    model, other = partly_frozen(1), partly_frozen(2)
    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    checkpointer.save(Progress(step=3), engine_of(model, build_optimizer(AdamWConfig(), model)).state())
    checkpointer.close()
    stored = FileSystemReader(checkpoint_path(tmp_path, 3)).read_metadata().state_dict_metadata
    names = {name.removeprefix("model.") for name in stored if name.startswith("model.")}
    assert names == {"1.weight", "1.bias", "2.weight", "2.bias", "counted"}
    load_weights(checkpoint_path(tmp_path, 3), other)
    for name, value in other.state_dict().items():
        came_from = partly_frozen(2) if name.startswith("0.") else model
        assert torch.equal(value, came_from.state_dict()[name]), name


def test_a_refusal_of_the_system_is_said_and_another_error_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [OSError(errno.EROFS, "Read-only file system"), OSError(errno.ENOSPC, "full"), OSError("of Python's own")]
    messages = ["cannot be written (Read-only file system)", "no space left to write a checkpoint", "of Python's own"]
    for error, message in zip(errors, messages, strict=True):

        def refuse(*_: object, error: OSError = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(checkpoint.state_dict_saver, "save", refuse)
        checkpointer = Checkpointer(tmp_path, CheckpointConfig())
        checkpointer.save(Progress(step=5), {})
        with pytest.raises((UserError, OSError)) as caught:
            checkpointer.close()
        assert message in str(caught.value)
        assert isinstance(caught.value, UserError) == (error.errno is not None)
        assert error.errno is None or "the last whole one is none yet" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_only_checkpoint_that_is_damaged_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    save(tmp_path, [8]).close()
    next(checkpoint_path(tmp_path, 8).glob("*.distcp")).unlink()
    with pytest.raises(UserError, match=r"distcp is missing; there is no other; move the run's folder away"):
        read_progress(checkpoint_path(tmp_path, 8))


def test_a_tokenizer_that_was_edited_in_the_runs_folder_is_refused(
    train: Callable[..., str], tmp_path: Path, command: Command
) -> None:
    train()
    run = tmp_path / "runs/tiny"
    head = (run / "run.yaml").read_text()
    assert re.search(r"^# tokenizer: sha256 [0-9a-f]{64}$", head, re.MULTILINE)
    template = run / "tokenizer/chat_template.jinja"
    template.write_text("{{ messages }}")
    asked = ("generate", str(run), "--max-tokens", "1", "--prompt", "the cat")
    for arguments in (asked, ("train", "tiny.yaml", "train.steps=5")):
        code, _, error = command(*arguments)
        assert code == 2, error
        said = " ".join(error.split())
        assert "/tokenizer does not hold the files that" in said
        assert "set other_inputs: true in" in said
    (run / "run.yaml").write_text(head.replace("other_inputs: false", "other_inputs: true"))
    code, _, error = command(*asked)
    assert code == 0, error
    (run / "run.yaml").write_text(head)
    template.unlink()
    code, _, error = command(*asked)
    assert code == 0, error


def test_a_chat_template_that_was_edited_is_named_when_the_run_continues(
    train: Callable[..., str], tmp_path: Path, command: Command
) -> None:
    said = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "sat on the mat " * 8}]
    (tmp_path / "chats.jsonl").write_text(f"{json.dumps({'messages': said})}\n" * 30)
    template = tmp_path / "chat.jinja"
    text = "{% for m in messages %}{% if m.role == 'user' %}USER {{ m.content }}{% else %}"
    template.write_text(text + "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}")
    document = {"kind": "chat", "template": "chat.jinja"}
    source = {"kind": "jsonl", "path": "chats.jsonl", "document": document}
    data = {"sources": [source], "validation": 0, "sequence_length": 16, "cache_dir": "cache"}
    train(data=data, tokenizer={"kind": "bpe", "vocab_size": 280}, evaluate={"every": None, "at_end": False})
    assert "# data.sources[0].document.template: sha256 " in (tmp_path / "runs/tiny/run.yaml").read_text()
    template.write_text(template.read_text().replace("USER", "HUMAN"))
    code, _, error = command("train", "tiny.yaml", "train.steps=5")
    assert code == 2
    assert "data.sources[0].document.template: the file is not the one that" in " ".join(error.split())
    code, _, error = command("generate", "runs/tiny", "--max-tokens", "1", "--prompt", "the cat")
    assert code == 0, error  # which reads no data


def test_a_copy_of_what_is_spread_over_processes_stays_on_the_host_and_as_it_was(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    try:
        mesh = init_device_mesh("cpu", (1,))
        spread, plain = distribute_tensor(torch.ones(4), mesh, [Shard(0)]), torch.ones(2)
        # A tensor that is spread over GPUs has their kind of device; here it is one on which no number is kept.
        spread.device_mesh._device_type = "meta"
        copies = []
        for value in (1.0, 5.0):  # the second time into the memory of the first
            spread.to_local().fill_(value)
            plain.fill_(value)
            found = checkpointer._stager.stage({"several": [spread, plain, 3]})
            assert isinstance(found, dict)
            found = found["several"]
            spread.to_local().zero_()
            plain.zero_()
            assert (found[0].to_local().tolist(), found[1].tolist(), found[2]) == ([value] * 4, [value] * 2, 3)
            assert found[0].to_local().device.type == "cpu"
            assert found[0].placements == spread.placements
            copies.append(found[0].to_local().data_ptr())
        assert copies[0] == copies[1]
    finally:
        checkpointer.close()
        dist.destroy_process_group()
