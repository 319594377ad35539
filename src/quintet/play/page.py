"""The page: a script that Streamlit runs from the top after each change of a widget.

Its arguments are the run and the checkpoint. Start it with `quintet play RUN`.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from quintet.config.generation import GenerationSettings
from quintet.errors import UserError
from quintet.piano.context import UNKNOWN_COMPOSER, surname
from quintet.piano.rendering import available, piano_roll
from quintet.play.player import COMPOSER_NAMES, DATASET_NAMES, GO_ON, MusicPiece, Played, Player, player, uploaded

_OF_THE_PIECE = "as the piece says"
_UPLOAD = "my own MIDI file"
_PART = 30.0  # seconds of a piece, by default
_KEPT = "played"  # the key of the last answer in the session's state
_SCORES = {"note_f1": "note F1", "note_offset_velocity_f1": "with end and velocity", "sounding_f1": "sounding F1"}


def page(model: Player) -> None:
    """Show the whole page, from the title to the downloads."""
    st.title(_plain(f"Play with {Path(model.trained.name).name}"))
    with st.sidebar:
        settings = _settings()
        composer, dataset = _context()
    piece = _piece(model)
    if piece is None:
        return
    begin, end = _part(piece)
    choice, hide = _task(model)
    about = {**piece.about, **({"composer": composer} if composer else {}), **({"dataset": dataset} if dataset else {})}
    if st.button("Generate", type="primary", key="generate"):
        _generate(model, piece, (begin, end), choice, settings, about, hide)
    played = st.session_state.get(_KEPT)
    if played is None:
        st.image(piano_roll(piece.part(begin, end)), caption=_plain(f"{piece.name}: what the model will be given"))
    else:
        _show(played)


def _settings() -> GenerationSettings:
    st.header("How it writes")
    temperature = st.slider(
        "Temperature", 0.0, 2.0, 0.8, 0.05, key="temperature", help="higher is bolder; 0 takes the likeliest token"
    )
    top_k = st.number_input("Top-k", 0, None, 0, key="top_k", help="choose among so many likeliest tokens; 0: all")
    tokens = st.number_input("Length (tokens)", 1, None, 256, key="length", help="a note takes 2 to 5 tokens")
    seed = st.number_input("Seed", 0, None, 0, key="seed", help="the same seed gives the same music")
    return GenerationSettings(max_tokens=int(tokens), temperature=temperature, top_k=int(top_k) or None, seed=int(seed))


def _context() -> tuple[str | None, str | None]:
    """Return the chosen composer and data set, None for those of the piece."""
    st.header("In whose manner")
    composers = sorted(name for name in COMPOSER_NAMES if name != surname(UNKNOWN_COMPOSER))
    composer = st.selectbox("Composer", [_OF_THE_PIECE, surname(UNKNOWN_COMPOSER), *composers], key="composer")
    dataset = st.selectbox("Data set", [_OF_THE_PIECE, *DATASET_NAMES], key="dataset")
    return tuple(None if choice == _OF_THE_PIECE else choice for choice in (composer, dataset))  # pyright: ignore


def _piece(model: Player) -> MusicPiece | None:
    """Return the chosen piece, or None; problems of an uploaded file are shown on the page."""
    pieces = {piece.name: piece for piece in model.held_out}
    source = _UPLOAD
    if pieces:
        source = st.selectbox("Piece", [_UPLOAD, *pieces], key="piece", on_change=_forget)
    if source != _UPLOAD:
        return pieces[source]
    file = st.file_uploader("MIDI file", ["mid", "midi"], key="midi", on_change=_forget)
    if file is None:
        st.info("Choose a MIDI file" + (", or a piece that the model has not seen." if pieces else "."))
        return None
    try:
        piece = uploaded(file.name, file.getvalue())
    except UserError as error:
        _refuse(error)
        return None
    if piece.passed_over:
        st.caption(f"Passed over in the file: {piece.passed_over}.")
    return piece


def _part(piece: MusicPiece) -> tuple[float, float]:
    """Return start and end of the chosen part of the piece, in seconds."""
    length = round(piece.notes.seconds + 0.05, 1)
    start = (0.0, min(length, _PART))
    return st.slider("Part of the piece (seconds)", 0.0, length, start, 0.1, key=f"part of {piece.name}")


def _task(model: Player) -> tuple[str, bool]:
    """Return the chosen task, and True if its notes are to be removed from the piece first."""
    choice = st.selectbox(
        "What to write",
        model.choices,
        key="task",
        accept_new_options=True,
        help="go on with the piece, or answer a task; other tasks can be typed, such as top_line_masking-x2",
    )
    if choice == GO_ON:
        return choice, False
    if not model.tasks:
        st.caption("This model has not been trained on tasks, so its answers to them are guesses.")
    return choice, st.checkbox("The piece is whole: hide these notes from the model, and compare", True, key="hide")


def _generate(
    model: Player,
    piece: MusicPiece,
    part: tuple[float, float],
    choice: str,
    settings: GenerationSettings,
    about: Mapping[str, Any],
    hide: bool,
) -> None:
    _forget()
    try:
        with st.spinner("Writing …"):
            st.session_state[_KEPT] = model.play(piece.name, piece.part(*part), choice, settings, about, hide)
    except UserError as error:
        _refuse(error)


def _show(played: Played) -> None:
    st.subheader(_plain(played.title))
    st.write(played.sentence)
    st.image(played.roll)
    st.audio(played.sound, format="audio/wav", start_time=played.begin)
    st.caption(f"Sound: {available()}")
    if played.scores is not None:
        for column, (name, label) in zip(st.columns(len(_SCORES)), _SCORES.items(), strict=True):
            column.metric(label, f"{played.scores[name]:.3f}")
    name = played.title.split(" · ")[0].removesuffix(".midi").removesuffix(".mid").replace(":", "")
    for column, (label, data, file) in zip(
        st.columns(3),
        (
            ("Download MIDI", played.midi, f"{name} and answer.mid"),
            ("The answer alone", played.answer, f"{name} answer.mid"),
            ("Picture", played.roll, f"{name}.png"),
        ),
        strict=True,
    ):
        # Without "ignore" a click would run the page again.
        column.download_button(label, data, file, on_click="ignore")


def _forget() -> None:
    st.session_state.pop(_KEPT, None)


def _refuse(error: UserError) -> None:
    for problem in error.problems:
        st.error(_plain(problem))


def _plain(text: str) -> str:
    """Escape ``text`` for Markdown, because names of files contain all kinds of characters."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


if __name__ == "__main__":
    st.set_page_config("Quintet", "🎹", "wide")
    page(player(*sys.argv[1:3]))
