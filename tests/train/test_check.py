from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.helpers import Command

RUN_FILE = """\
data: {sources: [{kind: text, path: corpus}], validation: 0.2, sequence_length: 32, cache_dir: cache}
tokenizer: {kind: byte}
model: {layers: 1, width: 16, attention: {heads: 2}}
train: {steps: 3, batch_size: 2, precision: fp32, device: cpu}
optimizer:
  kind: torch
  name: SGD
  arguments:
    momentum: 0.9
    nesterow: true
schedule:
  kind: deepspeed
  name: WarmupLR
  arguments:
    warmup_steps: 3
"""
FOUND = {
    "optimizer.arguments.nesterow": (10, "did you mean nesterov?"),
    "schedule.arguments.warmup_steps": (15, "did you mean warmup_"),
}


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    Path("corpus/a.txt").write_text("the cat sat on the mat and then the dog chased the cat. " * 60)
    file = Path("bad.yaml")
    file.write_text(RUN_FILE)
    return file


def test_what_a_library_does_not_know_is_said_with_its_line_before_anything_runs(
    run_file: Path, command: Command
) -> None:
    code, out, _ = command("check", "--json", str(run_file))
    problems = json.loads(out)["problems"]
    assert code == 2
    assert {one["key"]: one["line"] for one in problems} == {key: line for key, (line, _) in FOUND.items()}
    for one in problems:
        assert FOUND[one["key"]][1] in one["message"]
    code, _, error = command("train", str(run_file))
    assert code == 2
    for key, (line, hint) in FOUND.items():
        assert f"bad.yaml:{line}: {key}: " in error
        assert hint in error
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_model_whose_numbers_do_not_fit_one_another_is_told_with_its_line(run_file: Path, command: Command) -> None:
    pytest.importorskip("transformers")
    data, tokenizer, _, train, *_ = RUN_FILE.splitlines()
    model = "model: {kind: huggingface, name_or_path: llama, pretrained: false, config: {num_attention_heads: 3}}"
    run_file.write_text("\n".join([data, tokenizer, model, train]))
    code, _, error = command("check", str(run_file))
    assert code == 2
    assert error.startswith("error: bad.yaml:3: model.config: llama cannot be built (")
    run_file.write_text(run_file.read_text().replace("num_attention_heads: 3", "num_attention_heads: 2"))
    code, _, error = command("check", str(run_file))
    assert code == 2
    assert "bad.yaml:3: model.config: llama cannot read a text" in error
    assert "num_attention_heads: 2, num_key_value_heads: 32" in error


@pytest.mark.parametrize(
    ("overrides", "state"),
    [
        (["optimizer={kind: torch, name: SGD}", "schedule={kind: deepspeed, name: WarmupLR}"], 0),
        (["optimizer={kind: torch, name: Adam}", "schedule={kind: torch, name: StepLR, arguments: {step_size: 2}}"], 8),
        (["optimizer={kind: adamw, state_precision: bf16}", "schedule={kind: transformers, name: polynomial}"], 4),
        (["optimizer={kind: adamw}", "schedule={kind: plateau}", "evaluate.every=1"], 8),
    ],
)
def test_a_plan_knows_the_state_of_every_optimizer_and_the_checkpoints_that_are_kept(
    run_file: Path, command: Command, overrides: list[str], state: int
) -> None:
    overrides = ["~optimizer", "~schedule", *overrides]

    def plan(*more: str) -> dict:
        code, out, error = command("plan", "--json", str(run_file), *overrides, *more)
        assert code == 0, error
        return json.loads(out)

    found = plan("checkpoint.keep=null", "checkpoint.every=0.1", "train.steps=25")
    trainable = found["parameters"]["trainable"]
    assert found["memory"]["optimizer"] == state * trainable
    assert found["checkpoint_bytes"] == (4 + state) * trainable
    assert found["checkpoints_kept"] == 9  # every third of 25 steps and the last
    assert plan("checkpoint.keep=4")["checkpoints_kept"] == 5
    code, _, error = command("check", str(run_file), *overrides)
    assert code == 0, error


def test_a_run_that_keeps_no_checkpoint_does_not_point_to_one(run_file: Path, command: Command) -> None:
    nothing = ["checkpoint={every: null, at_end: false, keep_best: false}", "optimizer={kind: adamw}"]
    code, out, error = command("train", str(run_file), "schedule={kind: constant}", *nothing)
    assert code == 0, error
    assert "no checkpoint was kept" in " ".join((out + error).split())
    assert "quintet generate" not in out + error
