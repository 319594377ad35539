"""What follows a step: the checkpoint first, then what may fail; a figure over nothing is no figure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import PEAK, records, run_values, write_corpus

from quintet.config.schema import RunConfig
from quintet.errors import UserError
from quintet.track.console import Reporter
from quintet.train import evaluation as measure
from quintet.train import loop
from quintet.train.checkpoint_files import checkpoint_path, checkpoint_steps, read_progress
from quintet.train.run import Run
from quintet.train.validation import ValidationResult


class Killed(BaseException):
    """Ends a run as a kill does: nobody catches it."""


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    write_corpus(tmp_path / "corpus", "to be or not to be, that is the question. " * 60)
    return run_values(
        tmp_path,
        name="measure",
        optimizer={"lr": 0.01},
        train={"steps": 6},
        sample={"prompts": ["to be"], "max_tokens": 4},
        # Every validation that is not a fifth better halves the rate.
        schedule={"kind": "plateau", "factor": 0.5, "patience": 0, "threshold": 0.2},
        evaluate={"every": 2, "samples": 4, "text_modeling": {}, "tasks_every": 2},
        checkpoint={"every": 2, "keep": 1},
    )


def train(values: dict[str, Any], **changes: Any) -> Run:
    return loop.train(RunConfig.model_validate(values | changes), Reporter(), peak_flops=PEAK).run


def outcome(run: Run) -> tuple[Any, ...]:
    """All that must not depend on a kill."""
    progress = run.progress
    samples = {file.name: file.read_text() for file in (run.folder / "samples").iterdir()}
    weights = torch.cat([one.detach().flatten() for one in run.model.parameters()]).tolist()
    facts = (progress.best_step, progress.best_loss, progress.validation_loss, progress.plateau, progress.due)
    return facts, samples, weights, records(run.folder), checkpoint_steps(run.folder / "checkpoints")


@pytest.mark.parametrize("step", [2, 6])
@pytest.mark.parametrize("at", ["before the validation", "after the validation", "samples", "text modelling"])
def test_a_run_killed_after_its_checkpoint_measures_what_was_due_and_goes_on_bit_for_bit(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, at: str, step: int
) -> None:
    whole = outcome(train(values, name="whole"))
    validate, kill = measure.validate_run, dict(measure._MEASURES)

    def dying(run: Run) -> Any:
        if run.progress.step == step:
            if at == "after the validation":
                validate(run)
            raise Killed
        return validate(run) if "validation" in at else kill[at](run)

    if at in kill:
        monkeypatch.setitem(measure._MEASURES, at, dying)
    else:
        monkeypatch.setattr(measure, "validate_run", dying)
    with pytest.raises(Killed):
        train(values, name="killed")
    folder = Path(values["runs_dir"]) / "killed"
    assert step in checkpoint_steps(folder / "checkpoints")
    due = read_progress(checkpoint_path(folder / "checkpoints", step)).due
    assert due[0] == (at if at in kill else "validation")
    monkeypatch.undo()
    assert outcome(train(values, name="killed")) == whole
    assert whole[0][-1] == []


def test_the_best_checkpoint_is_the_one_whose_validation_came_after_it(values: dict[str, Any]) -> None:
    run = train(values, evaluate={"every": 2, "samples": 4}, optimizer={"lr": 0.05}, schedule={"kind": "constant"})
    losses = {row["step"]: row["validation/loss"] for row in records(run.folder) if "validation/loss" in row}
    best = min(losses, key=lambda step: losses[step])
    progress = read_progress(checkpoint_path(run.folder / "checkpoints", 6))
    assert (progress.best_step, progress.best_loss) == (best, losses[best])
    assert checkpoint_steps(run.folder / "checkpoints") == sorted({best, 6})


@pytest.mark.parametrize("name", ["samples", "text modelling", "benchmarks"])
def test_what_fails_after_a_step_is_reported_and_counted_and_training_goes_on(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    def fail(run: Run) -> None:
        assert run.progress.step in checkpoint_steps(run.checkpointer.folder) or run.checkpointer._pending
        raise RuntimeError("out of luck")

    asked = values["evaluate"] | {"tasks": ["copa"], "data_dir": values["runs_dir"]}
    Path(values["runs_dir"]).mkdir()
    (Path(values["runs_dir"]) / "copa.jsonl").write_text("{}\n")
    monkeypatch.setitem(measure._MEASURES, name, fail)
    run = train(values, evaluate=asked)
    assert run.progress.step == 6
    assert run.progress.failed[name] == 3
    assert f"step 2: {name} failed: RuntimeError: out of luck" in capsys.readouterr().out
    assert read_progress(checkpoint_path(run.checkpointer.folder, 6)).failed[name] == 3
    with pytest.raises(RuntimeError, match="out of luck"):
        train(values, name="strict", evaluate=asked | {"required": True})
    strict = Path(values["runs_dir"]) / "strict"
    assert checkpoint_steps(strict / "checkpoints") == [2]
    assert name in read_progress(checkpoint_path(strict / "checkpoints", 2)).due


def test_a_benchmark_that_cannot_be_measured_is_counted_and_ends_only_a_run_that_requires_it(
    values: dict[str, Any],
) -> None:
    empty = Path(values["runs_dir"]) / "items"
    empty.mkdir(parents=True)
    (empty / "other.jsonl").write_text("{}\n")
    asked = {"tasks": ["copa"], "data_dir": str(empty), "every": 3}
    run = train(values, evaluate=asked)
    assert run.progress.failed == {"benchmarks": 1}
    with pytest.raises(UserError, match=r"evaluate.tasks: copa: not measured"):
        train(values, name="strict", evaluate=asked | {"required": True})
    assert checkpoint_steps(Path(values["runs_dir"]) / "strict" / "checkpoints")[-1] == 6


@pytest.mark.parametrize("what", ["prompt", "text", "items"])
def test_what_the_tokenizer_cannot_write_is_refused_before_the_first_step(
    values: dict[str, Any], tmp_path: Path, what: str
) -> None:
    (tmp_path / "measured.txt").write_text("to be é", encoding="utf-8")
    (tmp_path / "items").mkdir()
    facts = {"premise": "é is", "choice1": "to be", "choice2": "not", "question": "cause", "idx": 0, "label": 0}
    item = {"original": facts}
    (tmp_path / "items" / "copa.jsonl").write_text(json.dumps(item) + "\n")
    changes, key = {
        "prompt": ({"sample": {"prompts": ["to be", "é"]}}, r"sample.prompts\[1\]"),
        "text": ({"evaluate": {"text_modeling": {"path": str(tmp_path / "measured.txt")}}}, "evaluate.text_modeling"),
        "items": ({"evaluate": {"tasks": ["copa"], "data_dir": str(tmp_path / "items")}}, "evaluate.tasks"),
    }[what]
    with pytest.raises(UserError, match=f"{key}: character"):
        train(values | {"schedule": {"kind": "constant"}}, tokenizer={"kind": "char"}, **changes)
    assert (Path(values["runs_dir"]) / "measure" / "metrics.jsonl").read_text() == ""


def answers(folder: Path, name: str, prompt: int, **keys: Any) -> dict[str, Any]:
    """A source of prompts of ``prompt`` bytes, whose answers alone have a loss."""
    lines = [json.dumps({"q": chr(97 + number) * prompt, "a": "yes"}) for number in range(8)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    document = {"kind": "answer", "prompt": "q", "answer": "a"}
    return {"kind": "jsonl", "path": str(folder / f"{name}.jsonl"), "document": document, **keys}


def test_a_run_without_a_target_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    data = values["data"] | {"sources": [{"kind": "text", "path": str(tmp_path / "corpus")}]}
    with pytest.raises(UserError, match=r"data: none of the targets of the 6 steps has a loss"):
        train(values, data=data, loss={"kind": "next_token", "ignore_token_range": [0, 256]})
    assert checkpoint_steps(Path(values["runs_dir"]) / "measure" / "checkpoints") == []


def test_a_validation_without_a_target_has_no_figure_and_no_best(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = values["data"] | {
        "validation": 0,
        "validation_sources": [answers(tmp_path, "held", prompt=300)],
    }
    # The first windows of a stream of long prompts reach no answer.
    nothing = {"every": 2, "samples": 1}
    constant = {"kind": "constant"}
    run = train(values, data=data, evaluate=nothing, schedule=constant)
    out = capsys.readouterr().out
    assert "evaluate: none of the 1 samples to validate on has a target with a loss" in " ".join(out.split())
    assert "validation: no figure" in out
    assert (run.progress.best_step, run.progress.best_loss, run.progress.validation_loss) == (None, None, None)
    assert not any(name.startswith("validation/") for row in records(run.folder) for name in row)
    with pytest.raises(UserError, match=r"schedule.kind: plateau follows the validation loss, and none of the 1"):
        train(values, name="plateau", data=data, evaluate=nothing)


def test_the_best_by_a_label_is_never_that_of_another(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("whether it is nobler in the mind to suffer. " * 8)
    sources = [
        {"kind": "text", "path": str(tmp_path / "big.txt"), "label": "big"},
        answers(tmp_path, "rare", prompt=300, label="rare"),
    ]
    data = values["data"] | {"validation": 0, "validation_sources": sources}
    asked = {"every": 2, "samples": 2, "best_by": "rare"}
    with pytest.raises(UserError, match=r"evaluate.best_by: of the 2 samples .* none of 'rare' has a target"):
        train(values, data=data, evaluate=asked)
    run = train(values, name="all", data=data, evaluate=asked | {"samples": None})
    losses = {row["step"]: row["validation/rare/loss"] for row in records(run.folder) if "validation/loss" in row}
    assert run.progress.best_loss == min(losses.values())
    whole = ValidationResult(1.0, 5, 5, {"big": ValidationResult(1.0, 5, 5)})
    assert math.isnan(whole.of("rare").loss)
    assert whole.of("rare").tokens == 0
    assert whole.of("big").loss == whole.of(None).loss == 1.0


@pytest.mark.parametrize("first", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_never_the_best(first: float) -> None:
    from quintet.train.checkpoint_files import Progress

    progress = Progress(step=1).validated(first)
    assert (progress.best_loss, progress.best_step) == (None, None)
    # Checkpoints of earlier versions may hold one.
    for old in (progress, Progress(step=1, best_loss=first, best_step=1)):
        later = Progress(**{**vars(old), "step": 2}).validated(3.0)
        assert (later.best_loss, later.best_step) == (3.0, 2)
        assert Progress(**{**vars(later), "step": 3}).validated(first).best_step == 2
