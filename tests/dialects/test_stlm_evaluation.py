"""STLM: each key of the validations and benchmarks changes what its document says, in the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.dialects.conftest import Make, changes
from tests.dialects.stlm_runs import base as base  # a fixture
from tests.dialects.stlm_runs import place as place  # a fixture

DIALECT = "stlm"


@changes("trainer.eval_interval")
def test_evaluations(make: Make) -> None:
    assert list(make({"trainer.eval_interval": 3}).metrics("validation/loss")) == [0, 3]


@changes("trainer.run_eval")
def test_no_evaluations(make: Make) -> None:
    assert list(make({"trainer.run_eval": False}).metrics("validation/loss")) == []


def benchmark_files(place: Path) -> dict[str, Any]:
    """Write items of COPA, and return the keys with which the run finds them and validates every second step."""
    folder = place / "items"
    folder.mkdir(exist_ok=True)
    item = {"premise": "The cat saw.", "choice1": "A dog.", "choice2": "A mat.", "question": "cause", "label": 1}
    lines = (json.dumps({"original": {**item, "idx": index}}) + "\n" for index in range(5))
    (folder / "copa.jsonl").write_text("".join(lines))
    return {"quintet.evaluate.data_dir": str(folder), "trainer.eval_interval": 2}


@changes("trainer.eval.mcq_benchmarks")
def test_benchmarks(make: Make, place: Path) -> None:
    made = make({"trainer.eval.mcq_benchmarks": ["copa"], **benchmark_files(place)})
    assert list(made.metrics("benchmark/copa/acc")) == [2, 4]
    assert "benchmark/copa/margin" in (made.trained / "metrics.jsonl").read_text()
    assert not make({}).config.evaluate.tasks
    older = make({"trainer.eval.mcq_benchmarks": "winograd", "trainer.eval.benchmarks": ["ArcEasy-STLMSubset"]})
    assert older.config.evaluate.tasks == ("winogrande", "stlm_eval_arc_easy")


@changes("trainer.eval.benchmarks")
def test_newer_benchmarks(make: Make) -> None:
    made = make({"trainer.eval.benchmarks": ["RACEMiddle", "TruthfulQA-M2"], "trainer.eval_interval": 3})
    assert made.config.evaluate.tasks == ("race_middle", "truthfulqa_mc2")
    assert made.config.evaluate.tasks_every == 3


@changes(
    "trainer.eval.evaluator",
    *(f"trainer.eval.evaluators[].{name}" for name in ("evaluator", "benchmarks", "num_samples", "max_eval_samples")),
)
def test_evaluators(make: Make) -> None:
    several = [
        {"evaluator": "mcq", "num_samples": 10, "benchmarks": ["winograd", "ArcEasy-Subset"]},
        {"evaluator": "ft_qa", "benchmarks": ["arc"], "max_train_samples": 9, "max_eval_samples": 5},
        {"evaluator": "prog"},
        {"evaluator": "glue", "max_eval_samples": 7},
    ]
    for change in ({"trainer.eval.evaluators": several}, {"trainer.eval": several}):
        made = make(change)
        tasks = ("winogrande:10", "arc_easy:100", "arc_easy", "tinystories_progress", "glue:7")
        assert made.config.evaluate.tasks == tasks
        assert any("ft_qa fits a classifier" in note for note in made.loaded.notes)
    alone = make({"trainer.eval.evaluator": "glue", "trainer.eval.benchmarks": ["glue"]})
    assert alone.config.evaluate.tasks == ("glue",)


@changes("trainer.eval.val_loss_iters")
def test_val_loss_iters(make: Make) -> None:
    alone = make({"trainer.eval.val_loss_iters": 3}, without=["trainer.eval.dataset_loss_eval_iters"])
    assert alone.config.evaluate.samples == 3 * alone.config.batch.micro_batch_size
    both = make(
        {"trainer.eval.val_loss_iters": 3, "trainer.eval_iters": 2}, without=["trainer.eval.dataset_loss_eval_iters"]
    )
    assert both.config.evaluate.samples == 2 * both.config.batch.micro_batch_size
    assert any("a validation reads the 2 micro-batches of eval_iters" in note for note in both.loaded.notes)


@changes("trainer.eval.text_generation_eval")
def test_text_generation(make: Make) -> None:
    assert make({"trainer.eval.text_generation_eval": False}).config.evaluate.text_generation is None
    made = make({"trainer.eval.text_generation_eval": True, "trainer.eval_interval": 2})
    assert any("errors_per_100_words" in note for note in made.loaded.notes)
    assert list(made.metrics("generation/distinct_1")) == [2, 4]
    newer = make({"trainer.eval.benchmarks": ["Text-Generation (full)"], "trainer.eval_interval": 2})
    assert newer.config.evaluate == made.config.evaluate


@changes("trainer.eval.num_samples")
def test_num_samples(make: Make, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for samples, ending in ((3, " of 3"), (1000, " of 5")):
        capfd.readouterr()
        changes = {"trainer.eval.mcq_benchmarks": ["copa"], "trainer.eval.num_samples": samples}
        assert make(changes | benchmark_files(place)).trained
        lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("  copa  acc ")]
        assert lines
        assert all(line.endswith(ending) for line in lines)


@changes("trainer.eval.text_modeling_eval")
def test_text_modeling(make: Make) -> None:
    assert make({"trainer.eval.text_modeling_eval": False}).metrics("text/bits_per_byte") == {}
    made = make({"trainer.eval.text_modeling_eval": True})
    assert max(made.metrics("text/bits_per_byte")) == 4
    assert made.config == make({}, without=["trainer.eval.text_modeling_eval"]).config


@changes("trainer.eval.dataset_loss_eval_iters")
def test_samples(make: Make) -> None:
    assert make().config.evaluate.samples == 8
    made = make({"trainer.eval.dataset_loss_eval_iters": 3})
    assert made.config.evaluate.samples == 12
    other = make({"trainer.eval.dataset_loss_eval_iters": 1})
    assert made.metrics("validation/loss") != other.metrics("validation/loss")
