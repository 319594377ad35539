"""A run that is tuned on other data takes the tokenizer of the run that it begins with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quintet.config.tokenizer import CharTokenizerConfig, SavedTokenizerConfig, TokenizerConfig
from quintet.errors import UserError
from quintet.piano.midi import write_midi
from quintet.piano.notes import notes
from quintet.tokenize import load_tokenizer
from quintet.tokenize.registry import build_tokenizer
from quintet.train.trained import load_trained

MERGED = {"kind": "note_bpe", "vocab_size": 1300}
MODEL = {"layers": 1, "width": 32, "attention": {"heads": 2}, "position": {"kind": "rope"}}
TASKS = {"kind": "tasks", "notes_per_record": 12, "tasks": ["high_notes_masking-x4"]}


@pytest.fixture(scope="module")
def pieces(train_music) -> str:
    return train_music("merged", 1, tokenizer=MERGED, model=MODEL)


@pytest.fixture
def other_music(tmp_path: Path) -> dict:
    """A source of scales, of which other pairs of tokens are frequent than of the pieces."""
    start = np.arange(40) * 0.25
    write_midi(notes(40 + np.arange(40), np.full(40, 64), start, start + 0.25), tmp_path / "scale.mid")
    return {"sources": [{"kind": "midi", "path": str(tmp_path)}], "validation_sources": [], "packing": TASKS}


def test_a_run_tuned_on_other_music_keeps_the_merges(train_music, pieces: str, other_music: dict) -> None:
    model = {**MODEL, "init": {"kind": "pretrained", "path": pieces}}
    with pytest.raises(UserError, match=r"^tokenizer: .* its own is tokenizer=\{kind: saved, path: .*merged\}$"):
        train_music("anew", 1, other_music, tokenizer=MERGED, model=model)
    few = {"model": model, "optimizer": {"lr": 1e-12}}
    kept = load_trained(train_music("keeping", 1, other_music, tokenizer={"kind": "saved", "path": pieces}, **few))
    first = load_trained(pieces)
    assert kept.tokenizer.fingerprint == first.tokenizer.fingerprint
    rows = [run.model.state_dict()["embedding.weight"] for run in (kept, first)]
    assert np.allclose(rows[0], rows[1], atol=1e-6)


def test_a_run_that_took_its_tokenizer_writes_without_the_first_one(
    train_music, pieces: str, other_music: dict
) -> None:
    moved = Path(pieces).with_name("moved")
    run = train_music("lonely", 1, other_music, tokenizer={"kind": "saved", "path": pieces}, model=MODEL)
    Path(pieces).rename(moved)
    try:
        assert load_trained(run).tokenizer.fingerprint == load_tokenizer(moved / "tokenizer").fingerprint
    finally:
        moved.rename(pieces)


def test_a_name_under_runs_a_run_folder_and_a_bare_folder_name_one_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = build(CharTokenizerConfig(kind="char"), "abcd")
    folder = tmp_path / "runs/first"
    first.save(folder / "tokenizer")
    (folder / "run.yaml").write_text("{}")
    for path in ("first", "runs/first", str(folder), str(folder / "tokenizer")):
        taken = build(SavedTokenizerConfig(kind="saved", path=path), "the characters of another corpus")
        assert taken.encode("dcba") == first.encode("dcba") == [3, 2, 1, 0]
        assert taken.fingerprint == first.fingerprint


def test_a_path_to_no_tokenizer_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^tokenizer\.path: .*nowhere is no run .*name the run that"):
        build(SavedTokenizerConfig(kind="saved", path=str(tmp_path / "nowhere")), "")
    (tmp_path / "run.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"quintet\.json: does not exist"):
        build(SavedTokenizerConfig(kind="saved", path=str(tmp_path)), "")


def build(config: TokenizerConfig, text: str):
    return build_tokenizer(config, lambda: [text], "a corpus", Path("cache"))
