from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers import REPOSITORY, records

from quintet.config.load import load_run_config
from quintet.model import build_model
from quintet.piano.tasks import DEFAULT_TASKS
from quintet.train.trained import load_trained


def metrics(run: Path, name: str) -> dict[int, float]:
    rows = records(run)
    return {int(row["step"]): row[name] for row in rows if name in row}


def test_the_main_path_from_check_to_evaluate(folder: Path, quintet, quintet_process) -> None:
    assert quintet("check", "run.yaml").returncode == 0
    assert quintet("prepare", "run.yaml").returncode == 0
    trained = quintet("train", "run.yaml", "--report")
    assert trained.returncode == 0, trained.stderr
    assert "bits per byte" in trained.stdout
    run = folder / "runs/tiny"
    files = {"run.yaml", "tokenizer", "metrics.jsonl", "samples", "checkpoints", "report.html"}
    assert {path.name for path in run.iterdir()} == files
    assert (run / "samples/step-000016.txt").read_text().startswith("--- sample 0\nthe ")
    assert sorted(metrics(run, "train/loss")) == list(range(1, 17))

    greedy = quintet_process("generate", "runs/tiny", "--prompt", "the ", "--max-tokens", "12", "--temperature", "0")
    assert greedy.returncode == 0, greedy.stderr
    assert greedy.stdout.startswith("the ")
    assert quintet("generate", "tiny", "--prompt", "the ", "--beams", "3", "--max-tokens", "4").returncode == 0

    evaluated = quintet("evaluate", "runs/tiny", "--samples", "16", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    found = json.loads(evaluated.stdout)
    assert found["validation/loss"] == metrics(run, "validation/loss")[16]
    # One byte is one token here, so that bits per byte are the loss in another unit.
    assert found["validation/bits_per_byte"] == pytest.approx(found["validation/loss"] / math.log(2), rel=0.02)

    listed = json.loads(quintet("runs", "--json").stdout)
    assert [(row["name"], row["step"], row["steps"]) for row in listed] == [("tiny", 16, 16)]


def test_the_same_seed_writes_the_same_text_and_another_another(folder: Path, quintet) -> None:
    quintet("train", "run.yaml", "train.steps=4")

    def write(seed: int) -> str:
        return quintet("generate", "runs/tiny", "--seed", str(seed), "--temperature", "2", "--max-tokens", "30").stdout

    assert write(1) == write(1) != write(2)


def test_plan_agrees_with_the_model_that_is_built(folder: Path, quintet) -> None:
    found = json.loads(quintet("plan", "run.yaml", "--json").stdout)
    config = load_run_config([folder / "run.yaml"]).config
    model = build_model(config.model, 257, 32, config.seed)
    assert found["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert found["parameters"]["trainable"] == found["parameters"]["total"]
    assert found["parameters"]["embedding"] == 257 * 32
    assert (found["steps"], found["tokens_total"]) == (16, 16 * 8 * 32)
    assert found["memory"]["weights"] == 4 * found["parameters"]["total"]
    quintet("train", "run.yaml")
    written = sum(file.stat().st_size for file in (folder / "runs/tiny/checkpoints/step-000016").glob("*.distcp"))
    assert found["checkpoint_bytes"] <= written < 1.3 * found["checkpoint_bytes"] + 60_000


def test_length_in_tokens_or_epochs_becomes_steps(folder: Path, quintet) -> None:
    tokens = json.loads(quintet("plan", "run.yaml", "train.steps=null", "train.tokens=1000", "--json").stdout)
    assert (tokens["steps"], tokens["tokens_total"]) == (4, 1024)
    epochs = json.loads(quintet("plan", "run.yaml", "train.steps=null", "train.epochs=2", "--json").stdout)
    size = sum(file.stat().st_size + 1 for file in (folder / "corpus").iterdir())
    samples = (size - math.ceil(0.1 * size) - 1) // 32
    assert epochs["steps"] == pytest.approx(2 * samples / 8, abs=2)


def test_the_best_checkpoint_can_be_used(folder: Path, quintet) -> None:
    # A rate that ruins the model after a good start: the best checkpoint is then not the latest.
    ruin = ("optimizer.lr=1.0", "schedule={kind: linear, warmup_steps: 16}", "evaluate.every=2", "checkpoint.keep=1")
    assert quintet("train", "run.yaml", *ruin).returncode == 0
    best, latest = load_trained("runs/tiny", "best"), load_trained("runs/tiny")
    losses = metrics(folder / "runs/tiny", "validation/loss")
    assert best.progress.step == min(losses, key=lambda step: losses[step]) != latest.progress.step == 16
    assert not torch.equal(best.model.head_weight, latest.model.head_weight)


def test_the_resolved_run_file_repeats_the_run(folder: Path, quintet) -> None:
    quintet("train", "run.yaml")
    again = quintet("train", "runs/tiny/run.yaml", "name=again")
    assert again.returncode == 0, again.stderr
    assert metrics(folder / "runs/again", "train/loss") == metrics(folder / "runs/tiny", "train/loss")
    assert "# torch: " in (folder / "runs/tiny/run.yaml").read_text()


def test_a_prepared_store_trains_like_its_source(folder: Path, quintet) -> None:
    assert quintet("prepare", "run.yaml", "--output", "store").returncode == 0
    stored = quintet("train", "run.yaml", "name=stored", "data.sources=[{kind: store, path: store}]")
    assert stored.returncode == 0, stored.stderr
    quintet("train", "run.yaml")
    assert metrics(folder / "runs/stored", "train/loss") == metrics(folder / "runs/tiny", "train/loss")


EXAMPLES = [path for path in sorted((REPOSITORY / "examples").glob("*.yaml")) if path.stem != "cluster"]  # 27 GB


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens that several examples read in the same way."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_right_and_takes_its_first_steps(folder: Path, quintet, path: Path, cache_dir: Path) -> None:
    short = (
        f"data.cache_dir={cache_dir}",
        "train.steps=2",
        "schedule.warmup_steps=1",
        "evaluate.samples=4",
        "sample.max_tokens=4",
        "train.batch_size=2",
        "train.micro_batch_size=2",
    )
    if "kind: python_stdlib" in path.read_text():
        short += ("data.sources=[{kind: text, path: corpus}]", "data.validation=0.3", "data.sequence_length=32")
    if "kind: bpe" in path.read_text():
        short += ("tokenizer.vocab_size=300", "model.layers=2")
    if "kind: huggingface" in path.read_text():  # a checkpoint of the same form in place of one from the hub
        pytest.importorskip("transformers")
        assert quintet("train", "run.yaml", "train.steps=5").returncode == 0
        assert quintet("export", "tiny", "--to", "huggingface", "checkpoint").returncode == 0
        short += ("model.name_or_path=checkpoint",)
    if "packing: {kind: pieces" in path.read_text() or "packing: {kind: tasks" in path.read_text():
        pytest.importorskip("symusic")
        short += (*write_pieces(folder / "music"), "model.layers=2", "model.width=64", "model.attention.heads=2")
    if "path: runs/piano}" in path.read_text():
        first = quintet("train", str(path.with_stem("piano")), *short)
        assert first.returncode == 0, first.stderr
    trained = quintet("train", str(path), *short)
    assert trained.returncode == 0, trained.stderr


@pytest.mark.slow
def test_the_quickstart_reads_the_standard_library(folder: Path, quintet) -> None:
    short = ("train.steps=2", "schedule.warmup_steps=1", "evaluate.samples=4", "sample.max_tokens=4")
    trained = quintet("train", str(REPOSITORY / "examples/quickstart.yaml"), *short, "train.batch_size=2")
    assert trained.returncode == 0, trained.stderr


def write_pieces(folder: Path) -> tuple[str, ...]:
    """Some MIDI files, and the overrides that train on them."""
    from quintet.piano.midi import write_midi
    from quintet.piano.notes import notes

    folder.mkdir()
    for seed in range(4):
        draw = np.random.default_rng(seed)
        start = np.cumsum(draw.uniform(0.1, 0.3, 150))
        table = notes(
            draw.integers(40, 80, 150), draw.integers(20, 110, 150), start, start + draw.uniform(0.1, 0.5, 150)
        )
        write_midi(table, folder / f"{seed}.mid")
    return ("data.sources=[{kind: midi, path: music}]", "data.validation=0.3")


@pytest.mark.slow
def test_piano_from_a_folder_of_midi_to_an_answer_that_can_be_heard(folder: Path, quintet) -> None:
    pytest.importorskip("symusic")
    pieces = write_pieces(folder / "music")
    small = (*pieces, "model.layers=2", "model.width=64", "model.attention.heads=2", "schedule.warmup_steps=4")
    few = ("train.steps=30", "train.batch_size=4", "evaluate.samples=8", "sample.max_tokens=24", "sample.every=1.0")
    samples = {"piano": [""], "piano_tasks": [f"-{task.name}" for task in DEFAULT_TASKS]}
    for name, of_each in samples.items():
        done = quintet("train", str(REPOSITORY / f"examples/{name}.yaml"), *small, *few)
        assert done.returncode == 0, done.stderr
        assert "--midi piece.mid" in done.stdout
        written = {f"step-000030{one}{ending}" for one in of_each for ending in (".mid", ".png")}
        assert {one.name for one in (folder / f"runs/{name}/samples").iterdir()} == written
    before, after = (metrics(folder / f"runs/{name}", "validation/loss") for name in ("piano", "piano_tasks"))
    assert after[0] < before[30] + 1  # it begins with what was learnt: random weights have 7 nats
    assert after[30] < after[0]
    asked = ("--midi", "music/0.mid", "--task", "top_line", "--temperature", "0", "--max-tokens", "40")
    out = ("-o", "out.mid", "--roll", "out.png", "--audio", "out.wav")
    done = quintet("generate", "piano_tasks", *asked, *out)
    assert done.returncode == 0, done.stderr
    assert all((folder / name).stat().st_size for name in ("out.mid", "out.png", "out.wav"))
    found = quintet("evaluate", "piano_tasks", "--records", "12", "--json")
    assert found.returncode == 0, found.stderr
    figures = json.loads(found.stdout)
    assert figures["validation/loss"] == pytest.approx(after[30], rel=1e-3)
    assert len(figures["music"]["tasks"]) == 12


@pytest.mark.slow
def test_a_model_learns_what_can_be_learnt(folder: Path, quintet, bits_of_a_byte: float) -> None:
    settings = ("train.steps=300", "optimizer.lr=1e-2", "dropout_schedule={kind: constant, rate: 0}")
    few = ("checkpoint.every=100", "sample.every=300")
    assert quintet("train", "run.yaml", *settings, *few).returncode == 0
    found = metrics(folder / "runs/tiny", "validation/bits_per_byte")
    assert 0.9 * bits_of_a_byte < found[300] < 1.5 * bits_of_a_byte < found[8]
