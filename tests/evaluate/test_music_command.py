"""What `quintet generate --midi` tells a model of a piece."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import quintet
from quintet.evaluate import music


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("bach_fugue.mid", [], "<PIANO_FOR_AI> <BACH>"),
        ("a.mid", ["--composer", "Bach", "--dataset", "maestro"], "<MAESTRO> <BACH>"),
        ("b.mid", [], "<PIANO_FOR_AI> <UNKNOWN_COMPOSER>"),
        ("Bach.mid", ["--composer", "unknown composer"], "<PIANO_FOR_AI> <UNKNOWN_COMPOSER>"),
    ],
)
def test_the_composer_in_a_files_name_is_taken_as_for_training(
    continuing: str,
    folder: Path,
    tmp_path: Path,
    command,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: list[str],
    expected: str,
) -> None:
    given, write = [], music.write

    def listening(trained, tokenizer, prompts, settings):
        given.append(tokenizer.decode(prompts[0][:2]))
        return write(trained, tokenizer, prompts, settings)

    monkeypatch.setattr(music, "write", listening)
    shutil.copy(folder / "music/Nobody 2.mid", tmp_path / name)
    output = ["--max-tokens", "4", "-o", str(tmp_path / "out.mid")]
    code, _, err = command("generate", continuing, "--midi", str(tmp_path / name), *options, *output)
    assert code == 0, err
    assert given == [expected]


def test_what_is_passed_over_in_a_file_is_said(continuing: str, folder: Path, tmp_path: Path, command) -> None:
    (tmp_path / "cut.mid").write_bytes((folder / "music/Bach 0.mid").read_bytes()[:-4])
    output = ["--max-tokens", "4", "-o", str(tmp_path / "out.mid")]
    code, _, err = command("generate", continuing, "--midi", str(tmp_path / "cut.mid"), *output)
    assert code == 0, err
    assert "cut.mid: passed over 1 × tracks without the event that ends them; 1 × tracks that are shorter" in err


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--composer", "Bahc", "--composer: no model knows Bahc; choose one of"),
        ("--composer", "Bach and Liszt", "--composer: no model knows Bach and Liszt"),
        ("--dataset", "maestr", "--dataset: no model knows maestr; choose one of MAESTRO, PIJAMA"),
    ],
)
def test_a_name_that_no_model_knows_is_refused(
    continuing: str, folder: Path, tmp_path: Path, command, option: str, value: str, expected: str
) -> None:
    midi, output = str(folder / "music/Bach 0.mid"), tmp_path / "o.mid"
    code, _, err = command("generate", continuing, "--midi", midi, option, value, "-o", str(output))
    assert code != 0
    assert len(err.splitlines()) == 1
    assert expected in err
    assert not output.exists()


def test_python_plays_what_the_command_plays(continuing: str, folder: Path, tmp_path: Path, command) -> None:
    piece = folder / "music/Bach 0.mid"
    output = [
        "--max-tokens",
        "24",
        "--seed",
        "3",
        "-o",
        str(tmp_path / "theirs.mid"),
        "--roll",
        str(tmp_path / "a.png"),
    ]
    code, out, err = command("generate", continuing, "--midi", str(piece), *output)
    assert code == 0, err
    answer = quintet.load(continuing).midi(piece, max_tokens=24, seed=3)
    assert answer.save(tmp_path / "ours.mid").read_bytes() == (tmp_path / "theirs.mid").read_bytes()
    assert answer._repr_png_() == (tmp_path / "a.png").read_bytes()
    assert f"{len(answer.notes)} notes after {len(answer.heard)} of the {answer.asked} in " in out
    assert answer.save(tmp_path / "ours.wav").read_bytes()[:4] == b"RIFF"
    with pytest.raises(quintet.UserError, match="composer: no model knows Bahc"):
        quintet.load(continuing).midi(piece, composer="Bahc")
