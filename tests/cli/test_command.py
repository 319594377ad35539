"""The command as its user meets it: exit codes, one line a problem, no traceback, a quick answer."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import quintet
from quintet import cli
from quintet.cli import VERBS, command_name, main
from quintet.config.load import load_run_config

MINIMAL = "data: {sources: [{kind: python_stdlib}]}\ntrain: {steps: 100}\n"
HEAVY = ("torch", "transformers", "datasets", "tokenizers", "tiktoken", "numpy")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    code = left.value.code
    assert isinstance(code, int)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (MINIMAL + "atention: {}", "", "3: atention: unknown key 'atention'; did you mean model.attention?"),
        (MINIMAL + "seed: many", "", "3: seed: must be a whole number, found 'many'"),
        ("data: {sources: [{kind: python_stdlib}]}\ntrain: {steps: 0}", "", "2: train.steps: must be at least 1 steps"),
        ("data: {sources: [{kind: txt}]}\ntrain: {steps: 1}", "", "1: data.sources[0].kind: unknown kind 'txt'"),
        ("seed: [1", "", "1: expected ',' or ']'"),
        ("seed: 1\nseed: 2", "", "2: seed: is given twice"),
        ("", "", " the file is empty"),
        (MINIMAL + "runs_dir: ${nowhere}", "", "3: runs_dir: ${nowhere}: 'nowhere' is no key here"),
        (MINIMAL, "trian.steps=3", "command line: trian: unknown key 'trian'; did you mean 'train'?"),
        (MINIMAL, "train.steps=[", "command line: train.steps: '[' is no YAML value"),
    ],
)
@pytest.mark.parametrize("verb", ["check", "train", "plan", "prepare"])
def test_a_users_mistake_is_one_line_and_exit_code_2(
    file: Path, capsys: pytest.CaptureFixture[str], verb: str, text: str, override: str, message: str
) -> None:
    file.write_text(text, encoding="utf-8")
    code, out, err = run(capsys, verb, str(file), *([override] if override else []))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert all(line.startswith("error: ") for line in err.splitlines())


def test_files_that_are_not_there_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "no.yaml"
    assert run(capsys, "check", str(missing)) == (2, "", f"error: {missing}: no such file\n")
    assert run(capsys, "check", str(tmp_path))[0] == 2
    assert run(capsys, "check", "seed=1")[2].startswith("error: no run file given")


@pytest.mark.parametrize("arguments", [["chek"], ["check"], ["runs", "--nosuch"], ["generate"], ["schema", "extra"]])
def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "Usage" in err


def test_an_unknown_option_among_files_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "check", str(file), "--nosuch") == (2, "", "error: --nosuch: no such option\n")


def test_check_says_in_a_line_what_would_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "check", str(file), "train.steps=2_000", "name=small")
    assert (code, err) == (0, "")
    assert out.startswith("OK small: transformer of 6 layers, width 384; bpe tokenizer; python_stdlib; 2,000 steps")
    assert out.count("\n") == 1


def test_check_gives_machines_file_line_key_and_message(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"ok": True, "problems": [], "notes": [], "not_here": []}
    assert json.loads(run(capsys, "check", str(file), "--json")[1]) == expected
    file.write_text(MINIMAL + "sed: 1\nmodel: {width: 0}\n", encoding="utf-8")
    code, out, err = run(capsys, "check", "--json", str(file), "lr=1")
    assert (code, err) == (2, "")
    found = json.loads(out)
    assert found["ok"] is False
    assert [(one["file"], one["line"], one["key"]) for one in found["problems"]] == [
        (str(file), 3, "sed"),
        (str(file), 4, "model.width"),
        (None, None, "lr"),
    ]
    assert found["problems"][0]["message"] == "unknown key 'sed'; did you mean 'seed'?"
    code, out, _ = run(capsys, "check", "--json", str(file.with_name("none.yaml")))
    assert (code, json.loads(out)["problems"][0]["message"]) == (2, "no such file")


def test_check_says_which_sources_are_missing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("train: {steps: 1}\ndata:\n  sources:\n  - kind: text\n    path: /nowhere/at/all\n")
    code, out, _ = run(capsys, "check", "--json", "--strict", str(file))
    assert code == 2
    [problem] = json.loads(out)["problems"]
    assert "/nowhere/at/all" in problem.pop("message")
    assert problem == {"file": str(file), "line": 5, "key": "data.sources[0].path"}
    code, out, err = run(capsys, "check", str(file), "--strict", "data.sources[0].path=/not/here/either")
    assert (code, out) == (2, "")
    assert err.startswith("error: command line: data.sources[0].path: ")


def test_schema_is_json_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "schema")
    assert code == 0
    Draft202012Validator.check_schema(json.loads(out))
    target = tmp_path / "schema.json"
    assert run(capsys, "schema", "--output", str(target))[0] == 0
    assert json.loads(target.read_text(encoding="utf-8")) == json.loads(out)


def test_explain_says_type_unit_bounds_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", "lr")
    assert code == 0
    assert out.splitlines() == [
        "optimizer.lr  (kind adamw, torch)",
        "  highest learning rate; the schedule scales it",
        "  type:    number, at least 0",
        "  unit:    per step",
        "  default: 0.001",
    ]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train", ["train\n", "steps ", "give steps, `tokens` or `epochs`", "default: none, it must be given"]),
        ("schedule", ["kind cosine:", "kind wsd:", "decay_fraction", "default: cosine"]),
        ("schedule.wsd", ["schedule, kind wsd:", "decay_fraction"]),
        ("model.attention", ["kind causal:", "kv_heads"]),
        ("data.sources.text.path", ["data.sources[].path  (kind text)", "it must be given"]),
        ("name", ["default: the name of the run file"]),
    ],
)
def test_explain_knows_sections_and_kinds(capsys: pytest.CaptureFixture[str], key: str, expected: list[str]) -> None:
    code, out, _ = run(capsys, "explain", key)
    assert code == 0
    assert all(words in out for words in expected)


def test_explain_without_a_key_shows_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    from quintet.config.describe import walk

    code, out, _ = run(capsys, "explain")
    assert code == 0
    assert all(f"── {key.name}  " in out for key in walk() if key.name != "kind")


def test_explain_answers_what_is_no_key_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "explain", "lrr") == (
        2,
        "",
        "error: 'lrr' is no key of the run file; did you mean optimizer.lr?\n",
    )


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left", "/a/b"), 2, "error: the disk is full (/a/b); make room"),
        (OSError(errno.EDQUOT, "Quota"), 2, "error: the disk quota is used up; make room"),
        (OSError(errno.EACCES, "Permission denied", "/a/b"), 2, "error: /a/b: permission denied; change"),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), 2, "error: /a/b: its file system is read-only"),
        (OSError(errno.EIO, "Input/output error", "/a/b"), 2, "error: /a/b: the disk reports an error"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_faults_of_the_machine_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fault(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("quintet.config.json_schema.run_file_schema", fault)
    found, _, err = run(capsys, "schema")
    assert found == code
    assert err.startswith(message)
    assert err.count("\n") <= 1


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "broken")])
def test_a_bug_is_a_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fault() -> None:
        raise error

    monkeypatch.setattr("quintet.config.json_schema.run_file_schema", fault)
    with pytest.raises(type(error)):
        main(["schema"])


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(cli.__file__).parents[2])
    paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


def test_help_names_every_verb_and_version_is_the_packages() -> None:
    shown = process("-m", "quintet", "--help")
    assert shown.returncode == 0
    assert all(f" {command_name(verb)} " in shown.stdout for verb in VERBS)
    assert process("-m", "quintet", "--version").stdout == f"quintet {quintet.__version__}\n"


@pytest.mark.parametrize(
    "statement",
    [
        "import quintet.cli",
        "import quintet.config.load",
        "from quintet.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from quintet.cli import main\ntry: main(['explain', 'lr'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement: str) -> None:
    found = process("-c", f"{statement}\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules])")
    assert found.stdout.endswith("[]\n"), found.stdout + found.stderr


def test_check_answers_without_pytorch(file: Path) -> None:
    program = f"""
import sys
from quintet.cli import main
try: main(["check", {str(file)!r}])
except SystemExit as left: assert left.code == 0
sys.exit("torch" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("OK ")


def test_help_imports_few_modules() -> None:
    """Starting costs as much as importing does: typer and rich are 200 modules, pydantic is 100, torch 1,500."""
    show = (
        "import contextlib, io, sys\nwith contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): "
    )
    found = process("-c", f"from quintet.cli import main\n{show}main(['--help'])\nprint(len(sys.modules))")
    assert int(found.stdout) < 450


def test_loading_a_run_file_is_little_work(file: Path, python_calls: Callable[[Callable[[], Any]], int]) -> None:
    """Reading, resolving and checking, once the validators are built."""
    load_run_config([file])
    assert python_calls(lambda: load_run_config([file])) < 80_000
