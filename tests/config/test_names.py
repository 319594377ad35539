"""Names that files and folders can have, and those that they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from quintet.cli import VERBS, app, command_name
from quintet.config.load import Reading, load_run_config
from quintet.config.names import is_path, local_path, name_problem, usable_name
from quintet.errors import UserError
from quintet.train.check import check_training

RUN_FILE = "data: {sources: [{kind: text, path: texts}]}\ntrain: {steps: 1}\n"


@pytest.mark.parametrize(
    "name", ["a", "exp-2", "a.b_c-d", "über_3", ".hidden", "console", "nul1", "x" * 200, "-1", "实验"]
)
def test_names_that_a_run_can_have(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        *(
            ".",
            "..",
            "a/b",
            "a\\b",
            "a:b",
            "what?",
            "a*",
            'a"b',
            "a<b",
            "a|b",
            "exp #2",
            "c+",
            "[red]x[/]",
            r"$\frac$",
            "\x1b[2J",
            "a\u202eb",
            "a\u2028b",
            "",
            "a\nb",
            "a\x7f",
            "a ",
            " a",
            "a.",
            "...",
        ),
        *("nul", "NUL.txt", "com1", "LPT9.x", "Aux .y", "x" * 201, "ü" * 101),
    ],
)
def test_names_that_no_run_can_have(name: str) -> None:
    assert name_problem(name)


def test_a_name_is_checked_and_an_old_run_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    for name in ("..", ".", "a:b", "NUL"):
        config = load_run_config([tmp_path / "run.yaml"], [f"name='{name}'", f"runs_dir={tmp_path / 'runs'}"]).config
        with pytest.raises(UserError, match="name: "):
            check_training(config)
        if "." in name:
            continue
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "run.yaml").write_text(RUN_FILE)
        check_training(config)


@given(st.text(max_size=300))
def test_every_text_is_near_a_name_that_a_run_can_have(text: str) -> None:
    name = usable_name(text)
    assert name_problem(name) is None
    assert usable_name(name) == name
    assert name_problem(text) is not None or name == text


def test_a_run_is_named_after_its_file_and_an_existing_run_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my run (2).yaml"
    file.write_text(RUN_FILE)
    assert load_run_config([file]).config.name == "my-run-2"
    folder = tmp_path / "runs" / "my run (2)"
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(RUN_FILE)
    assert load_run_config([file]).config.name == "my run (2)"


def test_a_name_of_a_frameworks_run_becomes_one_of_a_folder_with_a_note(tmp_path: Path) -> None:
    values = yaml.safe_load((Path(__file__).parents[2] / "examples/stlm/base.yaml").read_text())
    values["general"]["logging"]["wandb_run_name"] = "a/b: [red]$\\frac$ \u202e\n2"
    (file := tmp_path / "theirs.yaml").write_text(yaml.safe_dump(values))
    loaded = load_run_config([file], [], Reading(dialect="stlm"))
    assert loaded.config.name == "a-b-red-frac-2"
    assert any(
        note.startswith("general.logging.wandb_run_name: the folder of the run is 'a-b-red") for note in loaded.notes
    )


@given(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=90))
def test_a_name_without_a_problem_makes_a_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    if name_problem(name) is None:
        folder = tmp_path_factory.mktemp("runs") / name
        folder.mkdir()
        assert [found.name for found in folder.parent.iterdir()] == [name]


IMPOSSIBLE = ("x" * 300, "x" * 300 + "/y", "~nobody-of-this-name/x", "a\0b", "a/\ud800")


@pytest.mark.parametrize("text", IMPOSSIBLE)
def test_what_no_file_can_be_called_is_no_file(text: str) -> None:
    assert not is_path(text)
    with pytest.raises(UserError):
        local_path(text)


@pytest.mark.parametrize("verb", [command_name(verb) for verb in VERBS if verb.__name__ not in ("schema", "play")])
@pytest.mark.parametrize("text", [*IMPOSSIBLE, "trainer.eval=[" + "a," * 200 + "b]"])
def test_every_verb_takes_a_text_that_no_file_can_be_called(verb: str, text: str) -> None:
    result = CliRunner().invoke(app, [verb, text])
    assert result.exception is None or isinstance(result.exception, UserError | SystemExit), result.exception


@pytest.mark.parametrize("text", IMPOSSIBLE)
@pytest.mark.parametrize(
    "key", ["data.sources[0].path", "runs_dir", "data.cache_dir", "checkpoint.dir", "tokenizer.path"]
)
def test_a_path_that_no_file_can_have_is_refused_at_its_key(tmp_path: Path, key: str, text: str) -> None:
    (tmp_path / "run.yaml").write_text(RUN_FILE + "tokenizer: {kind: huggingface, path: here}\n")
    quoted = text.replace("\0", "\\0").replace("\ud800", "\\ud800")
    with pytest.raises(UserError) as refused:
        load_run_config([tmp_path / "run.yaml"], [f'{key}="{quoted}"'])
    assert refused.value.problems[0].startswith(f"command line: {key}: ")
