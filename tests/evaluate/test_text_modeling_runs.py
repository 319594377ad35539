"""Text modeling of a run: during training, and by the command afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import Command, records, run_values

from quintet.config.evaluate import TextModelingConfig
from quintet.evaluate.text_modeling import (
    TextModeling,
    TextResult,
)
from quintet.evaluate.topics import read_topics

# ---- in a run


def test_a_run_measures_what_it_holds_out_by_label(train: Callable[..., str], tmp_path: Path) -> None:
    """When it is due and behind the last step, over every byte of the held-out documents; the validation loss is over
    the same tokens but for the few that no whole sample reaches."""
    Path("more").mkdir()
    Path("more/a.txt").write_text("another topic with other words " * 200)
    sources = [{"kind": "text", "path": "corpus", "label": "words"}, {"kind": "text", "path": "more", "label": "other"}]
    data = {"sources": sources, "validation": 0.2, "sequence_length": 32, "cache_dir": "cache"}
    evaluate = {"every": 1, "samples": None, "tasks_every": 2, "text_modeling": {"max_bytes": 1_000_000}}
    name = train(model={}, data=data, evaluate=evaluate, tokenizer={"kind": "byte"}, track=[{"kind": "tensorboard"}])
    lines = records(f"runs/{name}")
    measured = [line for line in lines if "text/words/bits_per_byte" in line]
    assert [line["step"] for line in measured] == [2, 3]
    last = next(line for line in reversed(lines) if "validation/words/bits_per_byte" in line)
    for label in ("words", "other"):
        assert measured[-1][f"text/{label}/bits_per_byte"] == pytest.approx(
            last[f"validation/{label}/bits_per_byte"], rel=0.02
        )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(f"runs/{name}/tensorboard")
    events.Reload()
    shown = events.Scalars("text/other/calibration_error")
    assert [one.value for one in shown] == pytest.approx([line["text/other/calibration_error"] for line in measured])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"loss": {"kind": "masked"}}, "must be null: the model learns to fill in hidden tokens"),
        (
            {"tokenizer": {"kind": "ids", "vocab_size": 9}, "data": {"sources": [{"kind": "npy", "path": "ids.npy"}]}},
            "must be null: the model learns from ids",
        ),
        ({"data": {"sources": [{"kind": "text", "path": "corpus"}], "validation": 0}}, "needs held-out text"),
    ],
)
def test_a_run_that_has_no_text_to_model_is_refused_before_it_starts(
    tmp_path: Path, command: Command, sections: dict[str, Any], message: str
) -> None:
    values = run_values(evaluate={"text_modeling": {}})
    (tmp_path / "a.yaml").write_text(json.dumps(values | sections))
    code, _, error = command("check", str(tmp_path / "a.yaml"))
    assert code == 2
    assert f"evaluate.text_modeling: {message}" in error


def test_the_command_measures_a_run_afterwards_too(train: Callable[..., str], command: Command) -> None:
    name = train(model={}, evaluate={"text_modeling": {}}, tokenizer={"kind": "byte"})
    lines = records(f"runs/{name}")
    code, out, error = command("evaluate", name, "--text", "held-out", "--json")
    assert code == 0, error
    found = json.loads(out)["all"]
    for figure in ("bits_per_byte", "accuracy", "brier"):
        recorded = next(line[f"text/{figure}"] for line in lines if f"text/{figure}" in line)
        assert found[figure] == pytest.approx(recorded, rel=1e-5)
    Path("topics.jsonl").write_text('{"text": "the cat", "about": "cats"}\n{"text": "a dog", "about": "dogs"}\n')
    code, out, error = command("evaluate", name, "--text", "topics.jsonl", "--topic-field", "about")
    assert code == 0, error
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["cats", "dogs", "all"]
    assert out.splitlines()[2].split()[-1] == "7"
    for options, message in (
        (("--text", "nowhere"), "--text: nowhere does not exist; name a file or folder of .txt and .jsonl"),
        (("--topic-field", "about"), "--topic-field: goes with --text"),
        (("--text", "topics.jsonl", "--samples", "3"), "--samples: is for the held-out data of the run"),
        (("--text", "topics.jsonl", "--tasks", "copa"), "--text: is measured by itself"),
        (("--data-dir", "items"), "--data-dir: goes with --tasks"),
        (("--few-shot", "0"), "--few-shot: goes with --tasks"),
        (("--tasks", "copa", "--temperature", "0"), "--temperature: is for the held-out data of the run"),
    ):
        code, _, error = command("evaluate", name, *options)
        assert code == 2
        assert error.startswith(f"error: {message}")


def test_topics_of_two_files_stay_two_and_one_may_be_called_all(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "a.jsonl").write_text('{"text": "two"}')
    (tmp_path / "all.txt").write_text("three")
    found = read_topics(TextModelingConfig(path=str(tmp_path)), "--text").topics
    assert found == {"a.jsonl": ["two"], "a.txt": ["one"], "all": ["three"]}
    table = TextModeling({name: TextResult(tokens=1, bytes=1) for name in found}).lines()
    assert [line.split()[0] for line in table] == ["topic", "a.jsonl", "a.txt", "all", "all"]
