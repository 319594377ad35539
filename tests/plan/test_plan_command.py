"""`quintet plan` as its user meets it, for devices that are not here."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from tests.helpers import PEAK, Command

from quintet.config.load import load_run_config
from quintet.config.model import TransformerConfig
from quintet.config.schema import RunConfig
from quintet.data.prepare import prepare
from quintet.model import build_model
from quintet.model.count import flops_per_token
from quintet.plan.cost import Plan, make_plan, size

CLUSTER = Path(__file__).resolve().parents[2] / "examples/cluster.yaml"
RUN = """
name: small
data: {sources: [{kind: python_stdlib}], sequence_length: 64}
tokenizer: {kind: byte}
model: {layers: 2, width: 32, attention: {heads: 2}}
train: {steps: 100, batch_size: 64, device: cpu, precision: fp32}
"""


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (1536, "1.54 KB"),
        (999_400, "999 KB"),
        (999_600, "1 MB"),
        (3_140_000, "3.14 MB"),
        (7_250_000_000, "7.25 GB"),
        (81_000_000_000_000, "81 TB"),
        (1_234_000_000_000_000_000, "1,234 PB"),
    ],
)
def test_bytes_have_the_unit_in_which_they_are_shortest(count: int, shown: str) -> None:
    assert size(count) == shown


@pytest.fixture
def run(tmp_path: Path) -> str:
    file = tmp_path / "run.yaml"
    file.write_text(RUN)
    return str(file)


def test_the_cluster_example_is_planned_for_a_thousand_devices(command: Command) -> None:
    code, out, err = command("plan", str(CLUSTER), "--devices", "1024", "--device-memory", "80GiB", "--json")
    assert code == 0, err
    found = json.loads(out)["simulation"]
    weights = 6_738_415_616
    own = -(-weights // 8)
    assert found["parallel"]["kind"] == "hsdp"
    assert found["fits"]
    assert found["memory"]["gradients"] == 4 * own
    assert found["memory"]["optimizer"] == pytest.approx(8 * own, rel=1e-5)
    across = [entry for entry in found["traffic"] if entry["across"] and entry["bytes"] > 1000]
    assert [(entry["collective"], entry["processes"], entry["bytes"]) for entry in across] == [
        ("all-reduce", 128, 4 * own)
    ]
    assert found["step_seconds"]["least"] <= found["step_seconds"]["most"]


def test_one_device_here_is_planned_without_being_named(command: Command, run: str) -> None:
    code, out, err = command("plan", run)
    assert code == 0, err
    assert all(word in out for word in ("activations  ", "peak  ", "step  ", "none (there is one process)"))
    code, out, _ = command("plan", run, "--json")
    found = json.loads(out)["simulation"]
    assert (found["machine"]["devices"], found["machine"]["peak_flops"]) == (1, PEAK)
    assert found["memory"]["peak"] > sum(found["memory"][name] for name in ("parameters", "optimizer", "activations"))


def test_a_device_that_is_not_here_leaves_the_rest_of_the_plan(command: Command, run: str) -> None:
    code, out, _ = command("plan", run, "train.device=mps")
    assert code == 0
    assert "not simulated: train.device: this machine has no mps device" in out
    assert "parameters   " in out


def test_what_is_too_large_says_which_setting_fits(command: Command, run: str) -> None:
    code, out, err = command("plan", run, "--devices", "2", "--device-memory", "2MB")
    assert code == 0, err
    assert "too large    " in out
    assert " fits: " in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "7"], "64 samples cannot be spread evenly over 7 processes"),
        (["--devices", "2", "--device-memory", "many"], "--device-memory: 'many' is no size"),
    ],
)
def test_a_mistake_is_one_line(command: Command, run: str, options: list[str], message: str) -> None:
    code, _, err = command("plan", run, *options)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_what_describes_devices_that_are_not_asked_for_is_refused(command: Command) -> None:
    code, _, err = command("plan", str(CLUSTER), "--peak-flops", "1e12")
    assert (code, err) == (
        2,
        "error: --peak-flops: describes the devices of --devices; give their number, or leave it out\n",
    )


def test_bytes_flops_and_tokens_follow_from_the_model_that_is_built(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(RUN)
    config = load_run_config([file], ["train.accumulation=4", "train.micro_batch_size=16"]).config
    assert isinstance(config.model, TransformerConfig)
    model = build_model(config.model, 257, 64, seed=0)
    weights = sum(parameter.numel() for parameter in model.parameters())
    found = make_plan(config)
    assert found.parameters is not None
    assert found.memory is not None
    assert found.tokens_total is not None
    assert (found.vocab_size, found.parameters.total, found.parameters.trainable) == (257, weights, weights)
    memory = found.memory
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * weights, 4 * weights, 8 * weights)
    assert found.checkpoint_bytes == 12 * weights  # what training goes on from: weights and both averages
    assert (found.micro_batch_size, found.accumulation) == (16, 4)
    assert (found.steps, found.tokens_per_step, found.tokens_total) == (100, 64 * 64, 100 * 64 * 64)
    assert found.flops_per_token is not None
    assert found.flops_per_token == flops_per_token(config.model, 257, 64).total
    assert found.flops_total == found.flops_per_token * found.tokens_total
    assert found.checkpoints_kept == 3  # two, and the best
    assert (found.left_out_documents, found.stages) == (None, None)
    lines = found.lines()
    assert "not known before `quintet prepare`" in lines[-1]
    assert "steps        100 of 4,096 tokens (4 × 16 samples)" in lines
    assert f"tokens       409,600 in all, {409_600 / weights:.1f} a parameter" in lines
    assert f"disk         {size(12 * weights)} a checkpoint, 3 kept at most" in lines


def test_averages_in_bf16_take_half_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(RUN)
    found = make_plan(load_run_config([file], ["optimizer.state_precision=bf16"]).config)
    assert found.memory is not None
    assert found.parameters is not None
    assert found.memory.optimizer == 4 * found.parameters.trainable


def test_what_is_prepared_says_how_long_epochs_are_and_which_documents_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    for number in range(40):
        (tmp_path / f"corpus/{number}.txt").write_text(f"{number % 20:03} " * 65)  # each text twice
    file = tmp_path / "run.yaml"
    sources = "{sources: [{kind: text, path: corpus}], sequence_length: 64, cache_dir: cache, validation: 0.1}"
    file.write_text(RUN.replace("{sources: [{kind: python_stdlib}], sequence_length: 64}", sources))

    def planned(*overrides: str) -> tuple[RunConfig, Plan]:
        config = load_run_config([file], ["train.batch_size=4", *overrides]).config
        return config, make_plan(config)

    _, found = planned("train.steps=70", "checkpoint.keep=null", "checkpoint.every=20")
    assert (found.checkpoints_kept, found.left_out_documents) == (4, None)  # nothing had to be prepared
    config, found = planned("train.steps=70", "checkpoint={keep: null, every: null, every_epochs: 0.5}")
    prepared = prepare(config)
    assert found.left_out_documents == prepared.left_out > 0
    half = int(prepared.train.epoch_samples / 2 / 4)
    assert found.checkpoints_kept == len({*range(half, 71, half), 70})
    config, found = planned("train={steps: null, epochs: 2.5}", "tokenizer={kind: char}")
    assert found.vocab_size == 10 + 1 + 1  # digits, the space, the end of a document
    assert found.steps == math.ceil(2.5 * prepare(config).train.epoch_samples / 4)
    assert f"left out     {found.left_out_documents} documents that are also validated on" in found.lines()


def test_a_note_on_the_flops_stands_below_them(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    plan = make_plan(load_run_config([tmp_path / "run.yaml"]).config)
    noted = replace(plan, flops_note="without its filters")
    without, lines = replace(plan, flops_note=None).lines(), noted.lines()
    place = lines.index(f"{'':13}without its filters")
    assert lines[place - 1].startswith("FLOPs ")
    assert lines[:place] + lines[place + 1 :] == without


def test_a_vocabulary_that_the_run_file_gives_needs_no_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(RUN)
    for overrides, size_ in ((["model.vocab_size=300"], 300), (["tokenizer={kind: bpe, vocab_size: 777}"], 777)):
        assert make_plan(load_run_config([file], overrides).config).vocab_size == size_
