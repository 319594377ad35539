"""The page without a browser: Streamlit runs its script and reports its content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("streamlit")

from streamlit.testing.v1 import AppTest

from quintet.config.generation import GenerationSettings
from quintet.piano.midi import midi_bytes
from quintet.piano.notes import notes
from quintet.play import player as player_module
from quintet.play.player import GO_ON, player, uploaded

START = np.arange(12) * 0.2
PIECE = midi_bytes(notes(60 + np.arange(12) % 7, np.full(12, 64), START, START + 0.15))
NAME = "Chopin *2* $x$.mid"


@pytest.fixture
def page(music_run: str, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setattr("sys.argv", ["page.py", music_run, "latest"])
    script = Path(player_module.__file__).with_name("page.py")
    return AppTest.from_file(str(script), default_timeout=60).run()


def upload(page: AppTest, name: str, data: bytes) -> AppTest:
    return page.file_uploader(key="midi").set_value((name, data, "audio/midi")).run()


def downloads(page: AppTest) -> list[str]:
    return [one.proto.label for one in page.get("download_button")]


def test_at_first_a_file_is_asked_for(page: AppTest) -> None:
    assert not page.exception
    assert "MIDI file" in page.info[0].value
    assert not page.button


def test_what_is_chosen_is_what_the_model_is_asked(page: AppTest, music_run: str) -> None:
    upload(page, NAME, PIECE)
    page.slider(key="temperature").set_value(1.2)
    page.number_input(key="top_k").set_value(7)
    page.number_input(key="length").set_value(90)
    page.number_input(key="seed").set_value(5)
    page.selectbox(key="composer").set_value("Bach")
    page.selectbox(key="task").set_value("high_notes_masking-x5").run()
    page.checkbox(key="hide").uncheck()
    page.button(key="generate").click().run()
    assert not page.exception
    model, piece = player(music_run, "latest"), uploaded(NAME, PIECE)
    settings = GenerationSettings(max_tokens=90, temperature=1.2, top_k=7, seed=5)
    by_hand = model.play(NAME, piece.notes, "high_notes_masking-x5", settings, {"composer": "Bach"})
    assert page.session_state["played"].midi == by_hand.midi
    for change in ({"composer": "Chopin"}, {"composer": "Bach", "dataset": "MAESTRO"}):  # so the tokens do count
        assert model.play(NAME, piece.notes, "high_notes_masking-x5", settings, change).midi != by_hand.midi


def test_the_answer_is_seen_heard_and_downloaded(page: AppTest) -> None:
    upload(page, NAME, PIECE)
    assert len(page.get("image")) == 1
    assert not downloads(page)
    page.button(key="generate").click().run()
    assert not page.exception
    assert len(page.get("image")) == 1
    assert len(page.get("audio")) == 1
    assert downloads(page) == ["Download MIDI", "The answer alone", "Picture"]


def test_a_held_out_piece_needs_no_file_and_is_compared_with(page: AppTest, music_run: str) -> None:
    piece = player(music_run, "latest").held_out[0]
    page.selectbox(key="piece").set_value(piece.name).run()
    page.slider(key=f"part of {piece.name}").set_value((0.0, 3.0))
    page.selectbox(key="task").set_value("high_notes_masking-x5").run()
    page.button(key="generate").click().run()
    assert not page.exception
    assert [one.label for one in page.metric] == ["note F1", "with end and velocity", "sounding F1"]


def test_a_part_is_all_that_the_model_is_given(page: AppTest) -> None:
    upload(page, NAME, PIECE)
    page.slider(key=f"part of {NAME}").set_value((0.5, 1.5)).run()
    page.button(key="generate").click().run()
    assert any("given 5 notes" in one.value for one in page.markdown)


def test_what_is_passed_over_in_a_file_is_said_on_the_page(page: AppTest) -> None:
    upload(page, NAME, PIECE[:-4])
    assert any("Passed over in the file: 1 × tracks without" in caption.value for caption in page.caption)


def test_a_broken_file_is_a_sentence_on_the_page(page: AppTest) -> None:
    upload(page, "mine.mid", b"MThd no more")
    assert not page.exception
    assert len(page.error) == 1
    assert "no MIDI file" in page.error[0].value.replace("\\", "")
    assert not page.button


def test_what_the_model_cannot_be_asked_is_a_sentence_and_the_old_answer_goes(page: AppTest) -> None:
    upload(page, NAME, PIECE)
    page.button(key="generate").click().run()
    assert downloads(page)
    page.slider(key=f"part of {NAME}").set_value((0.0, 0.9))
    page.selectbox(key="task").set_value("high_notes_masking-x5").run()
    page.button(key="generate").click().run()
    assert not page.exception
    assert "takes all notes" in page.error[0].value
    assert not downloads(page)
    page.selectbox(key="task").set_value(GO_ON).run()
    page.button(key="generate").click().run()
    assert not page.error
    assert downloads(page)
