"""Every way of spreading a run over processes against the same run in one process."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.checkpoints import tiny_llama
from tests.helpers import WORDS, records, write_jsonl
from tests.train.parallel.conftest import train_several, write_run_file

# Many runs in two processes, on a busy machine too; one worker has them all.
pytestmark = pytest.mark.timeout(900)
FSDP, HSDP, DDP = "parallel.kind=fsdp", "parallel.kind=hsdp", "parallel.kind=ddp"
DROPOUT = ["model.residual_dropout=0.2", "model.embedding_dropout=0.1", "model.feedforward={kind: gated, dropout: 0.1}"]
TIED = ["model.tie_embeddings=true", "model.tie_feedforward=true", "model.tie_attention_output=true"]
SHARED = ["model.layers=4", "model.feedforward={kind: gated, dropout: 0.1}"]
SHARED += ["model.sharing={same: [attention_output], low_rank: [feedforward, attention_qkv], rank: 3, first_blocks: 1}"]
BYTES = ["model.embedding={kind: bytes, bytes: 4, width: 16}", "model.tie_embeddings=false"]
BYTES += ["model.head={kind: bytes, bytes: 4, width: 16, layers: 2, reconstruction: 0.5}"]
MASKED = ["loss.kind=masked", "model.attention.kind=bidirectional", "sample.prompts=[]"]
LLAMA = ["model={kind: huggingface, name_or_path: llama}"]
BENCHMARKS = ["evaluate={every: 4, tasks: [arc_easy], data_dir: items, text_modeling: {}, batch_size: 3}"]
BENCHMARKS += ["model.context_length=128"]
BF16 = ["train.precision=bf16"]
PASSES = ["train.micro_batch_size=1"]
KEPT = ["checkpoint={every: 3, keep: null}"]
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
            "kept": [FSDP, *KEPT],
        },
    ),
    "passes": (
        PASSES,
        {
            "ddp": [DDP],
            "each": [FSDP],
            "last": [FSDP, "parallel.reduce_passes=last"],
            "hsdp": [HSDP, "parallel.shard_size=1"],
            "grad_op": [FSDP, "parallel.shard=grad_op"],
        },
    ),
    "dropout": (DROPOUT, {"ddp": [DDP], "fsdp": [FSDP]}),
    "tied": (TIED, {"ddp": [DDP], "fsdp": [FSDP]}),
    "shared": (SHARED, {"ddp": [DDP], "fsdp": [FSDP, "train.activation_checkpointing=1"]}),
    "bytes": (BYTES, {"ddp": [DDP], "fsdp": [FSDP, "train.activation_checkpointing=1"]}),
    "masked": (MASKED, {"fsdp": [FSDP]}),
    "documents": (DOCUMENTS, {"fsdp": [FSDP]}),
    "kaiming": (["model.init.kind=kaiming"], {"fsdp": [FSDP]}),
    "pytorch": (["model.init.kind=none"], {"fsdp": [FSDP]}),
    "sgd": (["optimizer={kind: torch, name: SGD, lr: 0.1, arguments: {momentum: 0.9}}"], {"fsdp": [FSDP]}),
    "llama": (LLAMA, {"ddp": [DDP], "fsdp": [FSDP]}),
    "lora": ([*LLAMA, "model.lora={rank: 2}"], {"ddp": [DDP], "fsdp": [FSDP]}),
    "benchmarks": (BENCHMARKS, {"ddp": [DDP], "fsdp": [FSDP]}),
    "bf16": (
        BF16,
        {
            "gathered": [FSDP],
            "gathered_wide": [FSDP, "parallel.gather=fp32"],
            "reduced": [FSDP, "parallel.reduce=bf16"],
            "layer_norm": [FSDP, "model.norm={kind: layer}"],
            "averages": [FSDP, "train.precision=fp32", "optimizer.state_precision=bf16"],
        },
    ),
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


CASES = {f"{name}-{way}": [*overrides, *more] for name, (overrides, ways) in RUNS.items() for way, more in ways.items()}
# A model whose weights are whole in each process is one kind of run, and every kind of model sharded is another.
SELDOM = {f"{name}-ddp" for name in RUNS if name not in ("plain", "dropout", "llama")}
SELDOM |= {"passes-hsdp", "passes-grad_op", "bf16-layer_norm", "pytorch-fsdp"}
Runs = tuple[Path, list[str]]


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.slow)])
def runs(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A folder with each of RUNS in one process and some or all of CASES in two, and the names of these."""
    folder = tmp_path_factory.mktemp("strategies")
    tiny_llama(300, num_hidden_layers=2, tie_word_embeddings=True).save_pretrained(folder / "llama")
    draw = random.Random(3)
    items = []
    for _ in range(23):
        choices = [" ".join(draw.choices(WORDS, k=draw.randint(1, 3))) for _ in range(4)]
        question = " ".join(draw.choices(WORDS, k=3))
        items.append({"question": question, "choices": {"text": choices, "label": list("ABCD")}, "answerKey": "B"})
    (folder / "items").mkdir()
    write_jsonl(folder / "items" / "arc_easy.jsonl", ({"original": item} for item in items))
    file = write_run_file(
        corpus, folder, checkpoint={"every": None, "at_end": False}, train={"steps": 4}, evaluate={"every": 4}
    )
    cases = [case for case in CASES if request.param == "all" or case not in SELDOM]
    train_several(1, file, {name: overrides for name, (overrides, _) in RUNS.items()})
    train_several(2, file, {case: CASES[case] for case in cases})
    return folder, cases


@pytest.fixture
def folder(runs: Runs) -> Path:
    """The folder of the runs."""
    return runs[0]


def test_two_processes_train_as_one(runs: Runs) -> None:
    """Models of transformers too, tied or with adapters beside frozen weights: one process reads their checkpoint."""
    folder, cases = runs
    exact = [case for case in cases if not case.startswith("bf16")]
    found = {case: difference(folder, case, case.partition("-")[0]) for case in exact}
    assert max(found.values()) < 2e-5, found


def test_benchmarks_have_the_figures_of_one_process(runs: Runs) -> None:
    """Also where weights are sharded, and a process has no batch of its own in the last pass."""
    folder, cases = runs
    wanted = figures(folder, "benchmarks")
    assert wanted.keys() > {"benchmark/arc_easy/acc", "benchmark/arc_easy/probability", "text/bits_per_byte"}
    for way in {"benchmarks-ddp", "benchmarks-fsdp"}.intersection(cases):
        assert figures(folder, way) == pytest.approx(wanted, rel=1e-5, abs=1e-6), way


def figures(folder: Path, name: str) -> dict[str, float]:
    """Those of benchmarks and texts."""
    rows = records(folder / "runs" / name)
    return {key: value for row in rows for key, value in row.items() if key.startswith(("benchmark/", "text/"))}


def test_narrow_numbers_stay_near_the_wide_ones(folder: Path) -> None:
    # One process in bf16 is as far from fp32: what the spreading adds is of the size of its rounding.
    allowed = 10 * difference(folder, "bf16", "plain")
    assert allowed < 0.1
    for way in ("gathered", "gathered_wide", "reduced", "averages"):
        assert difference(folder, f"bf16-{way}", "plain") < allowed, way
    assert difference(folder, "bf16-gathered", "bf16-gathered_wide") > 0  # or the setting does nothing
    assert difference(folder, "bf16-reduced", "bf16-gathered") > 0


def test_a_run_that_two_processes_began_goes_on_in_one(folder: Path) -> None:
    cut_at_three(folder / "runs", "plain-kept", "alone")
    train_several(1, folder / "tiny.yaml", {"alone": KEPT})
    assert difference(folder, "alone", "plain") < 2e-5


@pytest.mark.slow
def test_four_processes_train_as_one_and_share_a_checkpoint(run_file: Callable[..., Path], tmp_path: Path) -> None:
    """A run that four processes began under fsdp goes on in one, two and four, and under every strategy."""
    file = run_file(checkpoint={"every": 3, "keep": None})
    train_several(1, file, {"one": []})
    train_several(4, file, {"fsdp": [FSDP], "hsdp": [HSDP, "parallel.shard_size=2"]})
    assert difference(tmp_path, "fsdp", "one") < 2e-5
    assert difference(tmp_path, "hsdp", "one") < 2e-5
    ways = {1: {"alone": []}, 2: {"ddp": [DDP], "fsdp": [FSDP]}, 4: {"hsdp": [HSDP, "parallel.shard_size=2"]}}
    for processes, cases in ways.items():
        named = {f"{way}{processes}": overrides for way, overrides in cases.items()}
        for name in named:
            cut_at_three(tmp_path / "runs", "fsdp", name)
        train_several(processes, file, named)
        for name in named:
            assert difference(tmp_path, name, "one") < 2e-5, name


def cut_at_three(runs: Path, name: str, copy: str) -> None:
    """A copy of a run as it was after step 3."""
    shutil.copytree(runs / name, runs / copy)
    for later in (runs / copy / "checkpoints").glob("step-*"):
        if later.name > "step-000003":
            shutil.rmtree(later)
    text = (runs / copy / "run.yaml").read_text()
    (runs / copy / "run.yaml").write_text(re.sub("^name: .*$", f"name: {copy}", text, flags=re.MULTILINE))
