"""The logic of the page, without a page."""

from __future__ import annotations

import io
import shutil
import wave
from collections.abc import Callable
from pathlib import Path

import mido
import numpy as np
import pytest
from tests.helpers import Command

from quintet.config.generation import GenerationSettings
from quintet.errors import UserError
from quintet.evaluate.music import answer
from quintet.piano.context import COMPOSERS, composer_token, surname
from quintet.piano.metrics import compare
from quintet.piano.midi import midi_bytes, read_midi
from quintet.piano.notes import Notes, notes
from quintet.piano.rendering import ANSWER_COLOUR, PROMPT_COLOUR, piano_roll
from quintet.play.player import GO_ON, Player, player, uploaded

SETTINGS = GenerationSettings(max_tokens=100, temperature=1.0, seed=4)


def line(count: int = 12) -> Notes:
    start = np.arange(count) * 0.2
    return notes(60 + np.arange(count) % 7, np.full(count, 64), start, start + 0.15)


def struck(data: bytes) -> list[int]:
    """Pitches in a MIDI file in the order of time, by another library than its writer."""
    file = mido.MidiFile(file=io.BytesIO(data))
    return [one.note for one in file if one.type == "note_on" and one.velocity]


def colours(png: bytes) -> set[tuple[int, int, int]]:
    from matplotlib.image import imread

    pixels = np.rint(imread(io.BytesIO(png))[..., :3] * 255).astype(int)
    return set(map(tuple, pixels.reshape(-1, 3).tolist()))


def has_hue(found: set[tuple[int, int, int]], colour: str) -> bool:
    """Return True if a mixture of ``colour`` and white, at least a third of it, is among ``found``."""
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    mixtures = {tuple(np.rint(255 + share * (wanted - 255)).astype(int)) for share in np.linspace(0.34, 1, 500)}
    return bool(mixtures & found)


@pytest.fixture
def model(music_run: str) -> Player:
    return player(music_run, "latest")


def test_going_on_is_the_prompt_and_what_the_model_writes_behind_it(model: Player) -> None:
    played = model.play("mine", line(), GO_ON, SETTINGS, {"composer": "Bach"})
    by_hand = answer(model.trained, line(), SETTINGS, None, {"composer": "Bach"})
    assert len(by_hand.notes) > 0
    assert struck(played.midi)[: len(line())] == line().pitch.tolist()
    assert sorted(struck(played.midi)) == sorted(read_midi(midi_bytes(by_hand.whole)).pitch.tolist())
    assert sorted(struck(played.answer)) == sorted(read_midi(midi_bytes(by_hand.notes)).pitch.tolist())
    assert played.roll == piano_roll(line(), by_hand.notes)
    assert played.scores is None
    assert played.sentence == f"The model was given {len(line())} notes and wrote {len(by_hand.notes)}."


def test_the_picture_has_both_colours_and_the_sound_lasts_as_long_as_the_music(model: Player) -> None:
    played = model.play("mine", line(), GO_ON, SETTINGS, {})
    found = colours(played.roll)
    assert has_hue(found, PROMPT_COLOUR)
    assert has_hue(found, ANSWER_COLOUR)
    with wave.open(io.BytesIO(played.sound)) as sound:
        assert sound.getnframes() / sound.getframerate() >= read_midi(played.midi).seconds


def test_hidden_notes_are_not_given_and_are_what_the_answer_is_compared_with(model: Player) -> None:
    played = model.play("mine", line(), "high_notes_masking-x5", SETTINGS, {}, hide=True)
    left = np.sort(line().pitch)[:-5]  # the highest five are hidden
    both, answered = struck(played.midi), struck(played.answer)
    for pitch in answered:
        both.remove(pitch)
    assert sorted(both) == left.tolist()
    hidden = line()[np.argsort(-line().pitch, kind="stable")[:5].tolist()]
    target = notes(hidden.pitch, hidden.velocity, hidden.start, hidden.end)
    by_hand = compare(read_midi(played.answer), target)
    assert played.scores is not None
    assert played.scores["note_f1"] == pytest.approx(by_hand["note_f1"])
    assert played.scores["sounding_f1"] == pytest.approx(by_hand["sounding_f1"], abs=0.02)


def test_without_hiding_the_whole_file_is_the_prompt(model: Player) -> None:
    played = model.play("mine", line(), "high_notes_masking-x5", SETTINGS, {})
    assert "given 12 notes" in played.sentence
    assert played.scores is None


def test_the_same_seed_plays_the_same_and_another_does_not(model: Player) -> None:
    first, again = (model.play("a", line(), GO_ON, SETTINGS, {}) for _ in range(2))
    assert first.midi == again.midi
    other = model.play("a", line(), GO_ON, GenerationSettings(max_tokens=100, temperature=1.0, seed=5), {})
    assert other.midi != first.midi


def test_of_a_long_piece_the_end_is_heard_and_nothing_is_compared(model: Player) -> None:
    played = model.play("mine", line(200), "high_notes_masking-x5", SETTINGS, {}, hide=True)
    assert played.scores is None
    assert "of 195 notes" in played.sentence
    assert "shorter part" in played.sentence
    assert played.begin > 0


@pytest.mark.parametrize(
    ("count", "choice", "message"),
    [
        (0, GO_ON, "no note starts"),
        (5, "high_notes_masking-x5", "takes all notes"),
        (12, "chord_masking-x3", "no such notes"),
        (12, "high_nots_masking", "high_notes_masking"),
    ],
)
def test_what_cannot_be_played_is_said(model: Player, count: int, choice: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.play("mine", line(count), choice, SETTINGS, {}, hide=True)


def test_an_uploaded_file_is_read_with_the_composer_in_its_name() -> None:
    piece = uploaded("Chopin_-_Waltz.mid", midi_bytes(line().moved(5.0)))
    assert composer_token(piece.about) == "<CHOPIN>"
    assert piece.notes.pitch.tolist() == line().pitch.tolist()
    assert piece.notes.start[0] == 0
    assert piece.part(0.35, 1.05).pitch.tolist() == [62, 63, 64, 65]
    assert piece.part(0.35, 1.05).start[0] == 0


def test_what_is_passed_over_in_an_uploaded_file_is_said() -> None:
    assert uploaded("mine.mid", midi_bytes(line())).passed_over == ""
    cut = uploaded("mine.mid", midi_bytes(line())[:60])
    assert cut.notes.pitch.tolist() == line().pitch.tolist()[:2]
    assert cut.passed_over.startswith(
        "1 × tracks that are shorter or longer than they say, as where a file is cut; 1 × "
    )


@pytest.mark.parametrize("data", [b"", b"MThd no more", midi_bytes(line())[:14]])
def test_a_broken_file_is_refused_by_its_name(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^mine\.mid: is no MIDI file"):
        uploaded("mine.mid", data)


def test_a_file_without_notes_is_refused() -> None:
    with pytest.raises(UserError, match=r"^mine\.mid: has no notes"):
        uploaded("mine.mid", midi_bytes(line(0)))


def test_held_out_pieces_are_those_of_the_files_that_are_not_trained_on(model: Player, music_run: str) -> None:
    files = sorted(Path(music_run).parents[1].glob("midi/*.mid"))
    original = {file.stem: read_midi(file).pitch.tolist() for file in files}
    assert 2 <= len(model.held_out) <= 3  # a quarter of eight pieces of a size, one of them perhaps cut
    for piece in model.held_out:
        found = [
            name
            for name, pitches in original.items()
            if any(
                pitches[first : first + len(piece.notes)] == piece.notes.pitch.tolist()
                for first in range(len(pitches) - len(piece.notes) + 1)
            )
        ]
        assert [name.split()[0] for name in found] == [piece.about["composer"]]
        assert piece.about["dataset"] == "MAESTRO"


def test_without_the_data_there_is_nothing_held_out(music_run: str, tmp_path: Path) -> None:
    moved = shutil.copytree(music_run, tmp_path / "moved")
    text = (moved / "run.yaml").read_text("utf-8")
    cache = str(Path(music_run).parents[1] / "cache")
    assert cache in text
    (moved / "run.yaml").write_text(text.replace(cache, str(tmp_path / "nowhere")), "utf-8")
    found = player(str(moved), "latest")
    assert found.held_out == ()
    assert not (tmp_path / "nowhere/stores").exists()
    assert found.choices == [GO_ON, "high_notes_masking-x5", "top_line_masking-x1"]


def test_a_composer_is_found_by_the_name_that_is_shown() -> None:
    assert [composer_token({"composer": surname(token)}) for token in COMPOSERS] == list(COMPOSERS)


def test_a_model_of_text_cannot_play(train: Callable[..., str], command: Command) -> None:
    name = train(model={})
    code, _, error = command("play", name, "--no-browser")
    assert code == 2
    assert error.startswith(f"error: {name}: writes text and no music")
