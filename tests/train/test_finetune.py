"""Runs that train a model of the transformers library, from start to end."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.checkpoints import tiny_llama
from tests.helpers import PEAK, WORDS, Command, records, run_values, write_corpus
from tests.processes import quintet_apart
from torch.distributed.checkpoint import FileSystemReader

from quintet.config.generation import GenerationSettings
from quintet.config.schema import RunConfig
from quintet.errors import UserError
from quintet.model.dropout import set_dropout
from quintet.model.generate import generate
from quintet.plan import make_plan
from quintet.track.console import Reporter
from quintet.train.loop import train
from quintet.train.loss import build_objective
from quintet.train.model import build_run_model
from quintet.train.optimizer import build_optimizer
from quintet.train.setup import set_up
from quintet.train.trained import load_trained

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

LORA = {"lora": {"rank": 4, "dropout": 0.1}}
WAYS: list[dict[str, Any]] = [{"dropout": 0.1}, LORA, {"freeze": "core", "dropout": 0.1}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with tied embeddings and a tokenizer of words beside it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("base")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 9, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    tiny_llama(320, **shape, num_key_value_heads=2, tie_word_embeddings=True).save_pretrained(folder)
    return folder


@pytest.fixture
def values(tmp_path: Path, checkpoint: Path) -> dict[str, Any]:
    """A run file of 8 steps whose rate does not depend on how many there are."""
    write_corpus(tmp_path / "corpus", files=12, words=120)
    values = run_values(
        tmp_path,
        name="tuned",
        data={"sequence_length": 24},
        model={"kind": "huggingface", "name_or_path": str(checkpoint), "documents": True},
        optimizer={"lr": 3e-3},
        schedule={"kind": "constant"},
        train={"steps": 8, "micro_batch_size": 2, "log_every": 2},
        evaluate={"every": 4, "samples": 8},
        sample={"prompts": ["the "], "max_tokens": 4},
        checkpoint={"every": 4},
    )
    del values["tokenizer"]  # the one beside the checkpoint
    return values


@pytest.fixture
def make(values: dict[str, Any]) -> Callable[..., RunConfig]:
    def call(name: str = "tuned", steps: int = 8, **model: Any) -> RunConfig:
        changed = values | {"name": name, "model": values["model"] | model, "train": values["train"] | {"steps": steps}}
        return RunConfig.model_validate(changed)

    return call


def test_the_tokenizer_is_the_model_s_own(make) -> None:
    config = make()
    assert config.tokenizer.kind == "huggingface"
    run = set_up(config, Reporter(), peak_flops=PEAK)
    run.checkpointer.close()
    assert run.tokenizer.vocab_size == run.model.vocab_size < 320
    batch = run.batch(1)
    loss = run.objective.loss(run.model.eval(), torch.as_tensor(batch.inputs), torch.as_tensor(batch.targets))
    assert loss.item() / batch.valid == pytest.approx(math.log(run.tokenizer.vocab_size), rel=0.05)


@pytest.mark.parametrize("model", WAYS[:2], ids=["whole", "lora"])
def test_a_run_that_is_continued_is_the_run_that_never_stopped(make, model: dict[str, Any]) -> None:
    whole = train(make("whole", **model), Reporter(), peak_flops=PEAK)
    train(make("halves", steps=4, **model), Reporter(), peak_flops=PEAK)
    again = train(make("halves", **model), Reporter(), peak_flops=PEAK)
    assert again.run.progress.step == 8
    assert records(again.run.folder) == records(whole.run.folder)
    for name, value in whole.run.model.state_dict().items():
        assert torch.equal(value, again.run.model.state_dict()[name]), name
    losses = [row["train/loss"] for row in records(whole.run.folder) if "train/loss" in row]
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize("model", WAYS, ids=["whole", "lora", "core"])
def test_a_run_folder_holds_what_was_trained_and_nothing_else(make, model: dict[str, Any]) -> None:
    config = make(**model)
    run = train(config, Reporter(), peak_flops=PEAK).run
    plan = make_plan(config)
    base = build_run_model(config, run.tokenizer)
    trainable = {name for name, p in base.named_parameters() if p.requires_grad}
    before, after = dict(base.named_parameters()), dict(run.model.named_parameters())
    assert {name for name in after if not torch.equal(before[name], after[name])} == trainable
    count = sum(after[name].numel() for name in trainable)
    assert (plan.parameters.total, plan.parameters.trainable) == (sum(p.numel() for p in after.values()), count)
    assert plan.checkpoint_bytes == 12 * count
    stored = FileSystemReader(run.folder / "checkpoints/step-000008").read_metadata().state_dict_metadata
    assert {name for name in stored if name.startswith("model.")} == {f"model.{name}" for name in trainable}

    trained = load_trained(str(run.folder))
    assert not trained.model.training
    for name, value in trained.model.named_parameters():
        assert torch.equal(value, after[name])
    ids = torch.arange(20)[None]
    merged = trained.model.merged()(ids).logits[..., : run.tokenizer.vocab_size]
    torch.testing.assert_close(merged, trained.model(ids), atol=1e-5, rtol=1e-4)
    settings = GenerationSettings(max_tokens=3, temperature=0)
    texts = [list(generate(m, [run.tokenizer.encode("the cat")], settings)) for m in (trained.model, run.model)]
    assert texts[0] == texts[1]


def test_the_optimizer_leaves_frozen_weights_alone(make) -> None:
    config = make(**LORA)
    run = set_up(config, Reporter(), peak_flops=PEAK)
    run.checkpointer.close()
    held = {id(p) for group in build_optimizer(config.optimizer, run.model).param_groups for p in group["params"]}
    assert held == {id(p) for p in run.model.parameters() if p.requires_grad}
    assert len(held) == 2 * 2 * 7


def test_what_is_trained_is_said_when_it_is_not_all(make, capsys: pytest.CaptureFixture[str]) -> None:
    for name, model in (("some", LORA), ("all", {})):
        set_up(make(name, **model), Reporter(), peak_flops=PEAK).checkpointer.close()
        shown = " ".join(capsys.readouterr().out.split())
        assert ("M of them trained" in shown) == (name == "some")


def test_a_schedule_of_dropout_holds_for_the_library_s_models(make, monkeypatch: pytest.MonkeyPatch) -> None:
    values = make(**LORA).model_dump(mode="json")
    schedule = {"kind": "linear", "start": 0.0, "end": 0.4, "first_step": 0}
    config = RunConfig.model_validate(values | {"dropout_schedule": schedule})
    seen: list[set[float]] = []

    def spy(model: Any, rate: float) -> None:
        set_dropout(model, rate)
        attention = {m.attention_dropout for m in model.modules() if hasattr(m, "attention_dropout")}
        seen.append(attention | {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)})

    monkeypatch.setattr("quintet.train.run.set_dropout", spy)
    train(config, Reporter(), peak_flops=PEAK)
    assert [len(rates) for rates in seen] == [1] * 8
    assert [max(rates) for rates in seen] == pytest.approx([0.05 * step for step in range(1, 9)])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_is_the_same_however_it_is_computed(make, precision: str) -> None:
    """Packed documents, gradient checkpointing and the loss's chunks, in both precisions."""
    found = []
    for index, model in enumerate(({}, {"gradient_checkpointing": True})):
        config = make(f"run{index}", steps=2, **model)
        changed = config.train.model_copy(update={"precision": precision})
        chunk = config.loss.model_copy(update={"chunk": 7 if index else None})
        run = train(config.model_copy(update={"train": changed, "loss": chunk}), Reporter(), peak_flops=PEAK).run
        found.append([row["train/loss"] for row in records(run.folder) if "train/loss" in row])
    assert found[0] == pytest.approx(found[1], rel=1e-5 if precision == "fp32" else 2e-3)


def test_a_model_may_start_from_random_weights_and_other_tokens(make, values: dict[str, Any]) -> None:
    changed = values | {"tokenizer": {"kind": "byte"}, "model": values["model"] | {"pretrained": False}}
    run = train(RunConfig.model_validate(changed), Reporter(), peak_flops=PEAK).run
    assert run.model.vocab_size == 257
    trained = load_trained(str(run.folder))
    assert all(torch.equal(p, dict(run.model.named_parameters())[n]) for n, p in trained.model.named_parameters())


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(make, values: dict[str, Any]) -> None:
    small = values["model"] | {"pretrained": False, "config": {"vocab_size": 256}}
    config = RunConfig.model_validate(values | {"model": small, "tokenizer": {"kind": "byte"}})
    for refuse in (lambda: set_up(config, Reporter(), peak_flops=PEAK), lambda: make_plan(config)):
        with pytest.raises(UserError, match="tokenizer: its 257 ids are more than the 256 rows"):
            refuse()


def test_a_mask_needs_an_id_that_the_model_has(make, values: dict[str, Any]) -> None:
    masked = {"kind": "masked", "mask_id": 5}
    config = RunConfig.model_validate(values | {"loss": masked, "sample": {"prompts": []}})
    run = train(config, Reporter(), peak_flops=PEAK).run
    assert run.progress.step == 8
    with pytest.raises(UserError, match=r"loss\.mask_id: the model has \d+ ids and none of number 5000"):
        build_objective(RunConfig.model_validate(values | {"loss": masked | {"mask_id": 5000}}), run.tokenizer)


@pytest.fixture
def other_base(checkpoint: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the checkpoint, and what changes a part of it afterwards."""
    base = tmp_path / "base"
    shutil.copytree(checkpoint, base)

    def change(part: str) -> Path:
        if part == "weights":
            model = transformers.AutoModelForCausalLM.from_pretrained(base)
            torch.nn.init.normal_(model.model.norm.weight)
            model.save_pretrained(base)
        elif part == "settings":
            file = base / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.5}))
        return base

    return change


@pytest.mark.parametrize("part", ["weights", "settings"])
def test_a_base_that_changed_under_its_adapters_is_refused(make, other_base, part: str, tmp_path: Path) -> None:
    base = other_base("nothing")
    run = train(make(steps=4, **LORA, name_or_path=str(base)), Reporter(), peak_flops=PEAK).run.folder
    assert re.search(r"^# model.name_or_path: sha256 [0-9a-f]{64}$", (run / "run.yaml").read_text(), re.MULTILINE)
    load_trained(str(run))
    other_base(part)
    message = rf"model.name_or_path: {base} is not the checkpoint that {run} began with .* model.other_base: true in"
    longer = make(steps=8, **LORA, name_or_path=str(base))
    for refuse in (lambda: load_trained(str(run)), lambda: set_up(longer, Reporter(), peak_flops=PEAK)):
        with pytest.raises(UserError, match=message):
            refuse()
    all_the_same = make(steps=8, **LORA, name_or_path=str(base), other_base=True)
    assert train(all_the_same, Reporter(), peak_flops=PEAK).run.progress.step == 8
    load_trained(str(run))


def test_a_base_that_only_moved_is_the_same(make, other_base, tmp_path: Path) -> None:
    base = other_base("nothing")
    run = train(make(steps=4, **LORA, name_or_path=str(base)), Reporter(), peak_flops=PEAK).run.folder
    base.rename(tmp_path / "elsewhere")
    file = run / "run.yaml"
    file.write_text(file.read_text().replace(str(base), str(tmp_path / "elsewhere")))
    load_trained(str(run))


def test_a_killed_run_continues_bit_for_bit_and_writes(
    values: dict[str, Any], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changed = values | {"name": "killed", "model": values["model"] | LORA, "evaluate": {"every": 20, "samples": 4}}
    changed["train"] = values["train"] | {"steps": 40}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(changed))
    killed = tmp_path / "runs/killed"
    with quintet_apart(tmp_path, "train", "run.yaml") as process:
        while not (killed / "checkpoints/step-000004/state.json").exists():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.002)
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        code, said, error = command("train", "run.yaml")
        assert code == 0, error
        assert "continuing from step" in said
        whole = train(RunConfig.model_validate(changed | {"name": "whole"}), Reporter(), peak_flops=PEAK).run.folder
    finally:
        torch.set_num_threads(threads)
    assert len(records(killed)) == 40 + 2
    assert records(killed) == records(whole)
    code, said, error = command("generate", "killed", "--prompt", "the cat", "--max-tokens", "8")
    assert code == 0, error
    assert said.startswith("the cat")
