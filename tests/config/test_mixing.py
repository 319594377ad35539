from __future__ import annotations

from pathlib import Path

import pytest

from quintet.config.load import load_run_config
from quintet.errors import UserError

RUN_FILE = """
data:
  sources:
    - {kind: text, path: web, label: web}
    - {kind: text, path: books, label: books}
  stages:
    - {until: 0.8, weights: {web: 9, books: 1}}
    - {weights: {books: 1}}
train: {steps: 100}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    return tmp_path / "run.yaml"


def test_stages_are_read_as_they_are_written(run_file: Path) -> None:
    first, last = load_run_config([run_file]).config.data.stages
    assert (first.until, first.weights) == (0.8, {"web": 9, "books": 1})
    assert (last.until, last.weights) == (None, {"books": 1})
    (steps, _) = load_run_config([run_file], ["data.stages[0].until=80"]).config.data.stages
    assert (steps.until, type(steps.until)) == (80, int)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.stages[0].weights={web: 1, boks: 1}", "data.stages[0].weights: no source has the label 'boks'"),
        ("data.stages[0].weights={web: 0, books: 0.0}", "data.stages[0].weights: all are 0"),
        ("~data.stages[0].weights.web", "data.sources[0].label: no stage uses 'web'"),
        ("data.stages[0].weights={web: -1}", "data.stages[0].weights"),
        ("data.stages[0].until=80.0", "data.stages[0].until: 80 is not a fraction"),
        ("data.stages[0].until=0", "data.stages[0].until"),
        ("data.stages[0].until=null", "data.stages[0].until: is missing"),
        ("data.stages[1].until=0.9", "data.stages[1].until: must be absent"),
        ("data.stages=[{until: 9, weights: {web: 1}}, {until: 9, weights: {books: 1}}, {weights: {web: 1}}]",
         "data.stages[1].until: 9 must be above the 9"),
        ("data.stages=[{until: 9, weights: {web: 1}}, {until: 0.5, weights: {books: 1}}, {weights: {web: 1}}]",
         "data.stages[1].until: 0.5 after 9; give all in steps"),
        ("data.sources[0].label=null", "data.sources[0].label: is missing"),
        ("data.sources=[{kind: text, path: a, label: web, weight: 1}]", "data.sources[0].weight: cannot be set"),
        ("data.sources[1].repeat=2", "data.sources[1].repeat: cannot be set with `data.stages`"),
        ("data.mixing=sequential", "data.mixing: sequential cannot be combined with `data.stages`"),
        ("data.mixing=alternating", "data.mixing"),
    ],
)  # fmt: skip
def test_stages_that_make_no_sense_are_refused_at_their_keys(run_file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        load_run_config([run_file], [override])
    assert any(message in problem for problem in refused.value.problems), refused.value.problems


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("[{kind: text, path: a, weight: 1}, {kind: text, path: b, weight: 1, repeat: 2}]", "data.sources[1].repeat"),
        ("[{kind: text, path: a, repeat: 0}]", "data.sources[0].repeat"),
        ("[{kind: text, path: a, repeat: true}]", "data.sources[0].repeat"),
    ],
)
def test_repeats_that_make_no_sense_are_refused_at_their_keys(tmp_path: Path, sources: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(f"data: {{sources: {sources}}}\ntrain: {{steps: 1}}\n")
    with pytest.raises(UserError) as refused:
        load_run_config([tmp_path / "run.yaml"])
    assert any(message in problem for problem in refused.value.problems), refused.value.problems


def test_weights_and_sequential_sources_exclude_one_another(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "data: {mixing: sequential, sources: [{kind: text, path: a, weight: 1}]}\ntrain: {steps: 1}\n"
    )
    with pytest.raises(UserError, match=r"data\.mixing: sequential cannot be combined with weights"):
        load_run_config([tmp_path / "run.yaml"])
    (tmp_path / "run.yaml").write_text(
        "data: {mixing: sequential, sources: [{kind: text, path: a, repeat: 1.5}]}\ntrain: {steps: 1}\n"
    )
    assert load_run_config([tmp_path / "run.yaml"]).config.data.sources[0].repeat == 1.5


@pytest.mark.parametrize("name", ["weight", "repeat"])
def test_what_is_validated_on_is_not_weighted(tmp_path: Path, name: str) -> None:
    held = f"[{{kind: text, path: b, {name}: 2}}]"
    (tmp_path / "run.yaml").write_text(
        f"data: {{sources: [{{kind: text, path: a}}], validation_sources: {held}}}\ntrain: {{steps: 1}}\n"
    )
    with pytest.raises(UserError, match=rf"data\.validation_sources\[0\]\.{name}: applies to training only"):
        load_run_config([tmp_path / "run.yaml"])
