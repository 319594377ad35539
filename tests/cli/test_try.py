"""`quintet check --try` goes through all of a run, tells every failure in one list, and leaves nothing where it ran."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.helpers import Command, measured, records, run_values, write_jsonl

from quintet import trial
from quintet.config.schedule import CosineConfig
from quintet.errors import UserError
from quintet.evaluate.harness.run import Benchmarks
from quintet.export import huggingface
from quintet.train import checkpoint, evaluation
from quintet.train.schedule import learning_rate


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a run file of 1,000 steps, with sections changed, and the corpus it reads; returns its name."""
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("bad cab fed a deaf hag\n" * 200)

    def call(**sections: Any) -> str:
        values = run_values(
            name="tried",
            data={"sources": [{"kind": "text", "path": "corpus.txt"}], "validation": 0.2},
            optimizer={"lr": 0.01},
            schedule={"kind": "cosine", "warmup_steps": 100},
            train={"steps": 1000},
            sample={"prompts": [""], "max_tokens": 4},
        )
        values |= sections
        Path("run.yaml").write_text(yaml.safe_dump(values))
        return "run.yaml"

    return call


def left() -> set[str]:
    """What lies in the working directory beside what was written to begin with; the token store is the run's own."""
    return {file.name for file in Path().iterdir()} - {"corpus.txt", "run.yaml", "cache"}


def tried(command: Command, *arguments: str) -> dict[str, Any]:
    code, out, err = command("check", *arguments, "--try", "--json")
    found = json.loads(out)
    assert code == (0 if found["ok"] else 2), err
    return found


def in_one_process(found: dict[str, Any]) -> list[str]:
    """What is said of a run of several processes that is tried in one."""
    return [note for note in found["notes"] if "in one process" in note]


def failed(found: dict[str, Any]) -> list[str]:
    return [f"{one['stage']}: {one['key']}: {one['message']}" for one in found["problems"]]


def test_a_run_is_gone_through_with_the_rates_of_the_whole_run(write: Callable[..., str], command: Command) -> None:
    """The warm-up is longer than the two steps; the rates are those of the closed form over 1,000 steps."""
    found = tried(command, write(evaluate={"text_modeling": {}}), "optimizer.lr=0.02", "--keep")
    assert found["ok"]
    assert [one["name"] for one in found["stages"]] == ["data", "training", "resume", "report", "export"]
    assert in_one_process(found) == []
    folder = Path(found["folder"])
    rows = records(folder / "tried")
    rates = {one["step"]: one["train/lr"] for one in rows if "train/lr" in one}
    schedule = CosineConfig(warmup_steps=100)
    assert rates == {step: pytest.approx(learning_rate(schedule, 0.02, step, 1000)) for step in (1, 2)}
    for name in ("validation/loss", "text/bits_per_byte"):
        assert [one["step"] for one in rows if name in one] == [1, 2]
    assert (folder / "tried/report.html").is_file()
    assert (folder / "export/config.json").is_file()
    assert left() == {folder.name}


def test_the_steps_are_those_that_the_run_takes(write: Callable[..., str], command: Command) -> None:
    """The losses of the trial, whose second step follows a resume, are those of a run that is trained."""
    file = write(dropout_schedule={"kind": "linear", "start": 0.5, "end": 0.0}, parallel={"kind": "none"})
    shorter = ("train.steps=12", "schedule.warmup_steps=3")
    found = tried(command, file, *shorter, "--keep")
    assert in_one_process(found) == []
    folder = Path(found["folder"])
    assert command("train", file, *shorter)[0] == 0

    def losses(place: Path) -> list[float]:
        return measured(place)[:2]

    assert len(losses(folder / "tried")) == 2
    assert losses(folder / "tried") == losses(Path("runs/tried"))


def test_what_is_tried_leaves_nothing_and_says_a_line_for_each_stage(
    write: Callable[..., str], command: Command
) -> None:
    code, out, err = command("check", write(), "--try")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["data", "training", "resume", "report", "export", "OK,"]
    assert "tokens made" in lines[0]
    assert "step 1 of 1,000 at learning rate 0.0001" in lines[1]
    assert "checkpoint; validation; samples" in lines[1]
    assert not left()
    assert "tokens found" in command("check", "run.yaml", "--try")[1]


def test_every_failure_of_the_way_is_told_in_one_list(
    write: Callable[..., str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    Path("items").mkdir()
    Path("items/arc_easy.jsonl").write_text("")
    Path("answers.txt").write_text("h" * 400)
    corpus = {"sources": [{"kind": "text", "path": "corpus.txt"}], "sequence_length": 16, "cache_dir": "cache"}
    file = write(
        tokenizer={"kind": "char"},
        data=corpus | {"validation_sources": [{"kind": "text", "path": "answers.txt"}]},
        # The letter h is the last of ten characters, after which the end of a text is the last id.
        loss={"ignore_token_ids": [9, 10]},
        sample={"prompts": ["bad", "Ü", "ß", "cab"], "max_tokens": 4},
        evaluate={"tasks": ["arc_easy"], "data_dir": "items"},
    )

    def refuse(*_: Any, **__: Any) -> Any:
        raise UserError("tokenizer: cannot be written")

    monkeypatch.setattr(huggingface, "write_for_transformers", refuse)
    found = tried(command, file)
    told = failed(found)
    assert len(told) == 5, told
    for stage, word in {
        "validation: evaluate": "has a target with a loss",
        "samples: sample.prompts[1]": "Ü",
        "samples: sample.prompts[2]": "ß",
        "benchmarks: evaluate.tasks": "arc_easy",
        "export: tokenizer": "cannot be written",
    }.items():
        assert sum(one.startswith(stage) and word in one for one in told) == 1, (stage, told)
    assert [one["name"] for one in found["stages"]] == ["data", "training", "resume", "report"]
    assert "samples" in found["stages"][1]["did"]  # of the prompts that can be written
    code, _, err = command("check", file, "--try")
    assert code == 2
    assert len(err.splitlines()) == 5
    assert all(line.startswith("error: ") for line in err.splitlines())


def test_a_checkpoint_that_cannot_be_written_does_not_hide_what_else_fails(
    write: Callable[..., str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "x")

    def broken(_: Any) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(checkpoint.state_dict_saver, "save", refused)
    monkeypatch.setitem(evaluation._MEASURES, evaluation.SAMPLES, broken)
    found = tried(command, write())
    assert [one["stage"] for one in found["problems"]] == ["samples", "checkpoint"]
    assert "ValueError: no ink" in found["problems"][0]["message"]
    assert "a checkpoint cannot be written (Permission denied)" in found["problems"][1]["message"]
    assert [one["name"] for one in found["stages"]] == ["data", "report"]
    assert any("there is no checkpoint" in note for note in found["notes"])
    assert not left()


def test_folders_that_cannot_be_made_are_told_and_the_rest_is_tried(
    write: Callable[..., str], command: Command
) -> None:
    found = tried(command, write(runs_dir="corpus.txt/runs", checkpoint={"dir": "corpus.txt/kept"}))
    assert [one["key"] for one in found["problems"]] == ["runs_dir", "checkpoint.dir"]
    assert [one["name"] for one in found["stages"]] == ["data", "training", "resume", "report", "export"]


def test_mistakes_of_the_file_are_told_with_those_of_the_way(
    write: Callable[..., str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> None:
        raise ValueError("no ink")

    monkeypatch.setitem(evaluation._MEASURES, evaluation.SAMPLES, broken)
    found = tried(command, write(track=[{"kind": "wandb", "arguments": {"projekt": "x"}}]))
    assert [one["stage"] for one in found["problems"]] == ["trackers", "samples"]
    assert found["problems"][0]["line"] is not None


@pytest.mark.slow
def test_nothing_is_sent_to_a_server(write: Callable[..., str], command: Command) -> None:
    pytest.importorskip("mlflow")
    found = tried(command, write(track=[{"kind": "mlflow", "tracking_uri": "http://127.0.0.1:1"}]))
    assert found["ok"], found
    assert any("track[0]: mlflow writes a file here" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("parallel", "devices", "told"),
    [
        ({"kind": "ddp"}, 1, "parallel.kind: ddp tried in one process"),
        ({"kind": "fsdp"}, 1, "parallel.kind: fsdp tried in one process"),
        ({"kind": "hsdp", "shard_size": 2}, 4, "parallel.kind: hsdp tried in one process"),
        ({"kind": "auto"}, 4, "train.batch_devices: 4 devices tried in one process"),
    ],
)
def test_a_run_of_several_processes_is_tried_in_one_and_that_is_said(
    write: Callable[..., str],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    parallel: dict[str, Any],
    devices: int,
    told: str,
) -> None:
    """Without the libraries of the report and the export, which are said to be left out and take half of a trial."""
    monkeypatch.setattr(trial, "is_installed", lambda library: False)
    batch = {"batch_size_per_device": 2, "batch_devices": devices}
    found = tried(
        command, write(parallel=parallel, train={"steps": 1000, "precision": "fp32", "device": "cpu", **batch})
    )
    assert found["ok"], failed(found)
    assert [one["name"] for one in found["stages"]] == ["data", "training", "resume"]
    assert found["notes"][-2:] == [
        "report is not tried: matplotlib is not installed",
        "export is not tried: transformers is not installed",
    ]
    (said,) = in_one_process(found)
    assert said.startswith(told)


def test_a_run_that_cannot_go_on_in_its_folder_is_told(write: Callable[..., str], command: Command) -> None:
    assert command("train", write(), "train.steps=1", "schedule.warmup_steps=0")[0] == 0
    found = tried(command, "run.yaml", "schedule.warmup_steps=0", "optimizer.lr=0.5")
    assert any("holds a run with optimizer.lr: 0.01, not 0.5" in one for one in failed(found))
    assert len(found["stages"]) == 5


def test_keep_means_nothing_without_a_trial(write: Callable[..., str], command: Command) -> None:
    assert command("check", write(), "--keep")[0] == 2


@pytest.mark.slow
def test_a_file_of_a_dialect_is_told_in_its_own_words(
    write: Callable[..., str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    write()
    monkeypatch.setenv("DATA_ROOT", "data")
    Path("data").mkdir()
    write_jsonl(Path("data/texts.jsonl"), ({"text": f"a cab {n} fed " * 20} for n in range(99)))
    example = Path(__file__).resolve().parents[2] / "examples/stlm/base.yaml"
    nothing = Benchmarks("fp32", {}, {"arc_easy": "there is no network"})
    monkeypatch.setattr(evaluation, "run_benchmarks", lambda *_: nothing)
    monkeypatch.setattr(evaluation, "try_benchmarks", lambda *_: None)
    found = tried(command, str(example), "trainer.eval.mcq_benchmarks=[arc_easy]")
    assert [(one["stage"], one["key"]) for one in found["problems"]] == [
        ("benchmarks", "trainer.eval.mcq_benchmarks")
    ], found
    assert [one["name"] for one in found["stages"]] == ["data", "training", "resume", "report", "export"]
    assert left() == {"data", "outputs"}
    assert {file.name for file in Path("outputs").iterdir()} == {"tokens"}
