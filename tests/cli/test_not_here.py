"""A run file is judged also where its data, tokenizer and model are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.helpers import REPOSITORY

import quintet
from quintet.cli import main
from quintet.config.names import in_hub_cache, is_path, is_placeholder

STLM = REPOSITORY / "examples/stlm/base.yaml"
RUN = """\
data:
  sources:
  - {kind: text, path: nowhere/texts}
  - {kind: huggingface, path: some/dataset}
  sequence_length: 16
tokenizer: {kind: huggingface, path: <tokenizer>}
model: {kind: huggingface, name_or_path: some/model}
optimizer: {kind: adamw, lr: 1e-3}
train: {steps: 2, batch_size: 2}
"""
KEYS = ("data.sources[0].path", "data.sources[1].path", "tokenizer.path", "model.name_or_path")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    Path("run.yaml").write_text(RUN, encoding="utf-8")
    return Path("run.yaml")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as leaving:
        main(words)
    out, err = capsys.readouterr()
    return leaving.value.code, out, err


def test_what_is_not_here_is_listed_and_strictly_a_mistake(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", str(file))
    absent = [line for line in out.splitlines() if line.startswith("not on this machine: ")]
    assert code == 0
    assert len(absent) == len(KEYS)
    assert all(any(f" {key}: " in line for line in absent) for key in KEYS)
    assert any("run.yaml:6: tokenizer.path: <tokenizer> is a placeholder" in line for line in absent)
    assert "is a placeholder" not in run(capsys, "check", str(file), "tokenizer.path=a/b")[1]
    code, out, err = run(capsys, "check", str(file), "--strict")
    assert (code, out, err.count("error: ")) == (2, "", len(KEYS))
    found = json.loads(run(capsys, "check", str(file), "--json")[1])
    assert (found["ok"], len(found["not_here"])) == (True, len(KEYS))


def test_a_mistake_is_told_beside_what_is_not_here(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    code, _, err = run(capsys, "check", str(file), "data.sources.0.path=empty", "model.config.model_type=nosuch")
    assert code == 2
    for told in ("data.sources[0].path: ", "model.config.model_type", "tokenizer.path: <tokenizer>"):
        assert told in err


def test_plan_tells_all_that_does_not_follow_from_the_tokenizer(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ("model={kind: transformer, layers: 2, width: 64}", "train.steps=10")
    code, out, err = run(capsys, "plan", str(file), *own)
    assert (code, err) == (0, "")
    assert "steps        10 of 32 tokens" in out
    assert "parameters   not known, vocabulary not known" in out
    assert "tokenizer.path: <tokenizer> is a placeholder" in out
    assert "model.vocab_size: is not set; it gives the vocabulary" in out
    with pytest.raises(quintet.UserError, match="<tokenizer> is a placeholder"):
        _ = quintet.plan(quintet.load_config(file, list(own))).parameters
    found = json.loads(run(capsys, "plan", str(file), *own, "model.vocab_size=100", "--json")[1])
    assert (found["vocab_size"], found["steps"]) == (100, 10)
    assert found["parameters"]["total"] > 100 * 64


def test_a_dataset_that_may_be_a_folder_elsewhere_is_not_here(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("trainer.dataset=elsewhere", "trainer.eval.text_modeling_eval=false")
    code, out, _ = run(capsys, "check", str(STLM), *changes)
    told = [line for line in out.splitlines() if line.startswith("not on this machine: ")]
    assert code == 0
    assert [line.count("trainer.dataset: 'elsewhere' is none of STLM's datasets") for line in told].count(1) == 1
    code, _, err = run(capsys, "translate", str(STLM), *changes)
    assert (code, "not on this machine: " in err) == (0, True)
    for verb in ("train", "prepare"):
        code, _, err = run(capsys, verb, str(STLM), *changes)
        assert (code, "trainer.dataset: 'elsewhere' is none of STLM's datasets" in err) == (2, True)
    code, _, err = run(capsys, "check", str(STLM), *changes, "+trainer.foo=1")
    mistake, absent = [line for line in err.splitlines() if line.startswith(("error: ", "not on this machine: "))]
    assert (code, mistake.startswith("error: command line: trainer.foo: unknown key")) == (2, True)
    assert absent.startswith("not on this machine: command line: trainer.dataset: 'elsewhere' is none of STLM's")


def test_what_is_not_here_is_listed_after_errors_of_loading(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ("seed=-1", "optimizer.lr=fast", "nosuch=1")
    code, out, err = run(capsys, "check", str(file), *wrong)
    lines = err.splitlines()
    assert (code, out, len(lines)) == (2, "", len(wrong) + len(KEYS))
    assert all(line.startswith("error: command line: ") for line in lines[: len(wrong)])
    for key in KEYS:
        assert any(line.startswith("not on this machine: run.yaml:") and f" {key}: " in line for line in lines)
    found = json.loads(run(capsys, "check", str(file), *wrong, "--json")[1])
    assert (found["ok"], len(found["problems"]), len(found["not_here"])) == (False, len(wrong), len(KEYS))


@pytest.mark.parametrize(
    ("change", "told"),
    [("train=null", 4), ("train.steps=null", 4), ("tokenizer=7", 3), ("data.sources=[]", 2), ("model.kind=x", 3)],
)
def test_what_stands_in_the_place_of_a_mistake_is_not_listed(
    file: Path, capsys: pytest.CaptureFixture[str], change: str, told: int
) -> None:
    code, _, err = run(capsys, "check", str(file), change)
    absent = [line for line in err.splitlines() if line.startswith("not on this machine: ")]
    assert (code, len(absent), "error: " in err) == (2, told, True)
    assert f" {change.partition('=')[0].removesuffix('.kind')}." not in "".join(absent)


@pytest.mark.parametrize("missing", ["trainer.max_iters", "model.context_window", "trainer.dataset"])
def test_it_is_listed_after_errors_of_a_dialects_file(
    file: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    changes = ("trainer.dataset=elsewhere", "~model.tokenizer_dataset_name", f"~{missing}", "+trainer.foo=1")
    code, _, err = run(capsys, "check", str(STLM), *changes, "+quintet.tokenizer={kind: saved, path: gone.json}")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    absent = [line for line in err.splitlines() if line.startswith("not on this machine: ")]
    assert (code, len(errors)) == (2, 2)
    assert any("trainer.foo: unknown key" in line for line in errors)
    assert any(f"{missing}: is missing" in line for line in errors)
    assert any("gone.json" in line for line in absent)
    assert any("trainer.dataset" in line for line in absent) == (missing != "trainer.dataset")


@pytest.mark.parametrize("verb", ["train", "prepare"])
def test_all_that_is_missing_is_refused_at_once(file: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    changes = ("trainer.dataset=elsewhere", "trainer.eval.text_modeling_eval=false")
    texts = ("+quintet.evaluate.text_modeling.path=nowhere.txt", "+quintet.tokenizer={kind: saved, path: gone.json}")
    code, _, err = run(capsys, verb, str(STLM), *changes, *texts)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(lines)) == (2, 3), err
    for told in ("trainer.dataset: 'elsewhere'", "nowhere.txt", "gone.json"):
        assert any(told in line for line in lines)
    # What can be fetched from the hub is not missing.
    err = run(capsys, verb, str(STLM), *changes, "+quintet.tokenizer={kind: huggingface, path: some/tokenizer}")[2]
    assert "some/tokenizer" not in err


def test_python_has_the_list_or_raises(file: Path) -> None:
    config = quintet.load_config(file)
    assert len(quintet.check(config).not_here) == len(KEYS)
    with pytest.raises(quintet.UserError) as refused:
        quintet.check(config, strict=True)
    assert len(refused.value.problems) == len(KEYS)


def test_translate_needs_nothing_of_it_and_prepare_refuses(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "translate", str(file))[0] == 0
    code, _, err = run(capsys, "prepare", str(file))
    assert code == 2
    assert "nowhere/texts" in err


def test_the_cache_of_the_hub_counts(file: Path) -> None:
    assert not in_hub_cache("some/model", "model")
    Path("hf/hub/models--some--model/snapshots/1").mkdir(parents=True)
    Path("hf/datasets/some___dataset/default").mkdir(parents=True)
    assert in_hub_cache("some/model", "model")
    assert in_hub_cache("some/dataset", "dataset")
    absent = quintet.check(quintet.load_config(file)).not_here
    assert len(absent) == 2


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("<name>", True),
        ("data/<corpus>/x", True),
        ("/path/to/model", True),
        ("your/train/ds", True),
        ("a/paths/b", False),
    ],
)
def test_placeholders_are_known(text: str, *, holds: bool) -> None:
    assert is_placeholder(text) is holds


@pytest.mark.parametrize("text", ["a" * 300, "a/" * 3000, "a\0b", "~nouser/x", f"x=[{'a' * 300}]"])
def test_a_text_that_no_file_can_have_as_its_name_is_no_file(text: str) -> None:
    assert not is_path(text)


@pytest.mark.parametrize("text", ["a" * 300, "a/" * 3000, "~nouser/x", "/", f"{'a/' * 3000}=1"])
def test_every_verb_refuses_a_text_that_is_no_file(file: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    for verb in ("check", "plan", "translate", "prepare", "train"):
        code, _, err = run(capsys, verb, str(file), text)
        assert code == 2
        assert err.startswith("error: ")
