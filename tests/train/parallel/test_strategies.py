"""Every way of spreading a run over processes against the same run in one process."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.checkpoints import tiny_llama
from tests.helpers import WORDS, records
from tests.train.parallel.conftest import Finished, surroundings, torchrun_command

pytestmark = pytest.mark.timeout(900)  # several starts of Python in several processes, on a busy machine too
SCRIPT = Path(__file__).with_name("several_runs.py")
FSDP, HSDP, DDP = "parallel.kind=fsdp", "parallel.kind=hsdp", "parallel.kind=ddp"
DROPOUT = ["model.residual_dropout=0.2", "model.embedding_dropout=0.1", "model.feedforward={kind: gated, dropout: 0.1}"]
TIED = ["model.tie_embeddings=true", "model.tie_feedforward=true", "model.tie_attention_output=true"]
MASKED = ["loss.kind=masked", "model.attention.kind=bidirectional", "sample.prompts=[]"]
DOCUMENTS = ["model.attention.mask=causal_document", "loss.z_loss=0.01"]

# What each run has in any number of processes, and then the ways in which 2 processes take it.
RUNS: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "plain": (
        [],
        {
            "auto": [],
            "ddp": [DDP],
            "fsdp": [FSDP],
            "grad_op": [FSDP, "parallel.shard=grad_op"],
            "offload": [FSDP, "parallel.offload=true"],
            "hsdp": [HSDP, "parallel.shard_size=1"],
            "checkpointing": [FSDP, "train.activation_checkpointing=1"],
            "selective": [FSDP, "train.activation_checkpointing=selective"],
        },
    ),
    "dropout": (DROPOUT, {"ddp": [DDP], "fsdp": [FSDP]}),
    "tied": (TIED, {"ddp": [DDP], "fsdp": [FSDP]}),
    "masked": (MASKED, {"fsdp": [FSDP]}),
    "documents": (DOCUMENTS, {"fsdp": [FSDP]}),
    "kaiming": (["model.init.kind=kaiming"], {"fsdp": [FSDP]}),
    "pytorch": (["model.init.kind=none"], {"fsdp": [FSDP]}),
    "sgd": (["optimizer={kind: torch, name: SGD, lr: 0.1, arguments: {momentum: 0.9}}"], {"fsdp": [FSDP]}),
}


def losses(folder: Path, name: str) -> list[float]:
    """Loss and gradient norm of each step, and the losses of the validations."""
    rows = records(folder / "runs" / name)
    keys = ("train/loss", "train/grad_norm", "validation/loss")
    return [row[key] for row in rows for key in keys if key in row]


def difference(folder: Path, name: str, other: str) -> float:
    """The largest between two runs, in nats or norms."""
    one, another = losses(folder, name), losses(folder, other)
    assert len(one) == len(another) > 6
    return max(abs(a - b) for a, b in zip(one, another, strict=True))


@pytest.fixture
def several(tmp_path: Path) -> Callable[..., Finished]:
    """Train the runs of a file with each of ``cases``, name and overrides, in so many processes."""

    def call(processes: int, file: Path, cases: dict[str, list[str]]) -> Finished:
        python = [sys.executable] if processes == 1 else torchrun_command(processes)
        line = [*python, str(SCRIPT), str(file), json.dumps(cases)]
        done = subprocess.run(line, cwd=tmp_path, env=surroundings(), capture_output=True, text=True, timeout=800)
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    return call


def test_two_processes_train_as_one(several: Callable[..., Finished], run_file: Callable, tmp_path: Path) -> None:
    file = run_file(checkpoint={"every": None, "at_end": False})
    several(1, file, {name: overrides for name, (overrides, _) in RUNS.items()})
    cases = {
        f"{name}-{way}": [*overrides, *more] for name, (overrides, ways) in RUNS.items() for way, more in ways.items()
    }
    several(2, file, cases)
    found = {case: difference(tmp_path, case, case.partition("-")[0]) for case in cases}
    assert max(found.values()) < 2e-5, found


def test_a_model_of_the_transformers_library_is_spread_from_the_first_process(
    several: Callable[..., Finished], run_file: Callable, tmp_path: Path
) -> None:
    """With tied embeddings, and with adapters beside frozen weights; only the first process reads the checkpoint."""
    tiny_llama(300, num_hidden_layers=2, tie_word_embeddings=True).save_pretrained(tmp_path / "llama")
    model = {"kind": "huggingface", "name_or_path": "llama"}
    file = run_file(checkpoint={"every": None, "at_end": False}, model=model)
    ways = {"all": [], "lora": ["model.lora={rank: 2}"]}
    several(1, file, ways)
    several(2, file, {f"{name}-{way[14:]}": [*more, way] for name, more in ways.items() for way in (FSDP, DDP)})
    for name in ways:
        for way in ("fsdp", "ddp"):
            assert difference(tmp_path, f"{name}-{way}", name) < 2e-5, (name, way)


def test_benchmarks_have_the_figures_of_one_process(
    several: Callable[..., Finished], run_file: Callable, tmp_path: Path
) -> None:
    """Also where weights are sharded, and a process has no batch of its own in the last pass."""
    draw = random.Random(3)
    (tmp_path / "items").mkdir()
    with (tmp_path / "items" / "arc_easy.jsonl").open("w") as file:
        for _ in range(23):
            choices = [" ".join(draw.choices(WORDS, k=draw.randint(1, 3))) for _ in range(4)]
            question = " ".join(draw.choices(WORDS, k=3))
            record = {"question": question, "choices": {"text": choices, "label": list("ABCD")}, "answerKey": "B"}
            file.write(json.dumps({"original": record}) + "\n")
    asked = {"tasks": ["arc_easy"], "data_dir": "items", "text_modeling": {}, "batch_size": 3}
    model = {"layers": 2, "width": 32, "attention": {"heads": 2}, "context_length": 128}
    file = run_file(checkpoint={"every": None, "at_end": False}, evaluate=asked, model=model)
    several(1, file, {"one": []})
    several(2, file, {"ddp": [DDP], "fsdp": [FSDP]})
    wanted = figures(tmp_path, "one")
    assert wanted.keys() > {"benchmark/arc_easy/acc", "benchmark/arc_easy/probability", "text/bits_per_byte"}
    for way in ("ddp", "fsdp"):
        assert figures(tmp_path, way) == pytest.approx(wanted, rel=1e-5, abs=1e-6), way


def figures(folder: Path, name: str) -> dict[str, float]:
    """Those of benchmarks and texts."""
    rows = records(folder / "runs" / name)
    return {key: value for row in rows for key, value in row.items() if key.startswith(("benchmark/", "text/"))}


def test_narrow_numbers_stay_near_the_wide_ones(
    several: Callable[..., Finished], run_file: Callable, tmp_path: Path
) -> None:
    file = run_file(checkpoint={"every": None, "at_end": False})
    narrow = ["train.precision=bf16"]
    several(1, file, {"fp32": [], "bf16": narrow})
    cases = {
        "gathered": [FSDP, *narrow],
        "gathered_wide": [FSDP, *narrow, "parallel.gather=fp32"],
        "reduced": [FSDP, *narrow, "parallel.reduce=bf16"],
        "layer_norm": [FSDP, *narrow, "model.norm={kind: layer}"],
        "averages": [FSDP, "optimizer.state_precision=bf16"],
    }
    several(2, file, cases)
    # One process in bf16 is as far from fp32: what the spreading adds is of the size of its rounding.
    allowed = 10 * difference(tmp_path, "bf16", "fp32")
    assert allowed < 0.1
    for case in cases.keys() - {"layer_norm"}:
        assert difference(tmp_path, case, "fp32") < allowed, case
    assert difference(tmp_path, "gathered", "gathered_wide") > 0  # or the setting does nothing
    assert difference(tmp_path, "reduced", "gathered") > 0


def test_four_processes_train_as_one_and_share_a_checkpoint(
    several: Callable[..., Finished], run_file: Callable, tmp_path: Path
) -> None:
    """A run that four processes began under fsdp goes on in one, two and four, and under every strategy."""
    file = run_file(checkpoint={"every": 3, "keep": None})
    several(1, file, {"one": []})
    several(4, file, {"fsdp": [FSDP], "hsdp": [HSDP, "parallel.shard_size=2"]})
    assert difference(tmp_path, "fsdp", "one") < 2e-5
    assert difference(tmp_path, "hsdp", "one") < 2e-5
    ways = {1: {"alone": []}, 2: {"ddp": [DDP], "fsdp": [FSDP]}, 4: {"hsdp": [HSDP, "parallel.shard_size=2"]}}
    for processes, cases in ways.items():
        named = {f"{way}{processes}": overrides for way, overrides in cases.items()}
        for name in named:
            cut_at_three(tmp_path / "runs", "fsdp", name)
        several(processes, file, named)
        for name in named:
            assert difference(tmp_path, name, "one") < 2e-5, name


def cut_at_three(runs: Path, name: str, copy: str) -> None:
    """A copy of a run as it was after step 3."""
    shutil.copytree(runs / name, runs / copy)
    for later in (runs / copy / "checkpoints").glob("step-*"):
        if later.name > "step-000003":
            shutil.rmtree(later)
    text = (runs / copy / "run.yaml").read_text()
    (runs / copy / "run.yaml").write_text(text.replace(f"\nname: {name}\n", f"\nname: {copy}\n"))
