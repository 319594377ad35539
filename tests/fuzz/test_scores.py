"""Scores as MusicXML against a plain reading of their XML."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tests.musicxml import agrees, ties_are_clear

from quintet.piano import scores as module
from quintet.piano.scores import CorpusScore, read_score

pytest.importorskip("music21")

PITCHES = [("C", 0, 4), ("C", 1, 4), ("D", -1, 4), ("E", 0, 4), ("A", 0, 4), ("B", 0, 3), ("C", -1, 4)]
Head = tuple[int, bool, bool]
"""A pitch by its place in `PITCHES`, and whether a tie comes to it and goes from it."""


@st.composite
def voices(draw: st.DrawFn, measures: int, beats: int, divisions: int) -> list[str]:
    """The notes of one voice, measure by measure; ties are most often written at both of their sides."""
    found, before = [], set()
    for _ in range(measures):
        left, text = beats * divisions, ""
        while left:
            length = draw(st.integers(1, left))
            pitches = draw(st.lists(st.integers(0, len(PITCHES) - 1), max_size=3, unique=True))
            after = draw(st.sets(st.sampled_from(pitches))) if pitches else set()
            odd = draw(st.integers(0, 9)) == 0
            heads = [(pitch, pitch in before or odd, pitch in after) for pitch in pitches]
            if draw(st.integers(0, 9)) == 0:
                text += note([(0, False, False)], 0)
            text += note(heads, length)
            before, left = after, left - length
        found.append(text)
    return found


def note(heads: list[Head], length: int) -> str:
    """A rest, note or chord; of no length, a grace note."""
    duration = f"<duration>{length}</duration>" if length else ""
    if not heads:
        return f"<note><rest/>{duration}VOICE</note>"
    text = ""
    for index, (pitch, stop, start) in enumerate(heads):
        step, alter, octave = PITCHES[pitch]
        ties = '<tie type="stop"/>' * stop + '<tie type="start"/>' * start
        text += (
            f"<note>{'' if length else '<grace/>'}{'<chord/>' if index else ''}<pitch><step>{step}</step>"
            f"<alter>{alter}</alter><octave>{octave}</octave></pitch>{duration}{ties}VOICE</note>"
        )
    return text


@st.composite
def musicxml(draw: st.DrawFn) -> str:
    """Parts of one or two voices on one or two staves, of which some transpose."""
    measures, beats = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    names, parts = "", ""
    for number in range(1, draw(st.integers(1, 2)) + 1):
        divisions, staves = draw(st.sampled_from([1, 2, 3, 4, 6])), draw(st.integers(1, 2))
        found = [draw(voices(measures, beats, divisions)) for _ in range(draw(st.integers(1, 2)))]
        transpose = draw(st.sampled_from(["", "<transpose><chromatic>-2</chromatic></transpose>"]))
        names += f'<score-part id="P{number}"><part-name>P{number}</part-name></score-part>'
        parts += f'<part id="P{number}">'
        for measure in range(measures):
            parts += f'<measure number="{measure + 1}">'
            if measure == 0:
                parts += (
                    f"<attributes><divisions>{divisions}</divisions><time><beats>{beats}</beats><beat-type>4</beat-type>"
                    f"</time><staves>{staves}</staves>{transpose}</attributes>"
                )
            for index, voice in enumerate(found):
                back = f"<backup><duration>{beats * divisions}</duration></backup>" if index else ""
                staff = draw(st.integers(1, staves)) if staves > 1 else 1
                parts += back + voice[measure].replace(
                    "VOICE", f"<voice>{index + 1}</voice>{f'<staff>{staff}</staff>' if staves > 1 else ''}"
                )
            parts += "</measure>"
        parts += "</part>"
    return f'<score-partwise version="4.0"><part-list>{names}</part-list>{parts}</score-partwise>'


def one_part(*measures: str, divisions: int = 1, beats: int = 2) -> str:
    time = f"<time><beats>{beats}</beats><beat-type>4</beat-type></time>"
    text = "".join(
        f'<measure number="{number}">'
        f"{'' if number > 1 else f'<attributes><divisions>{divisions}</divisions>{time}</attributes>'}"
        f"{measure.replace('VOICE', '<voice>1</voice>')}</measure>"
        for number, measure in enumerate(measures, start=1)
    )
    parts = '<part-list><score-part id="P1"><part-name>P1</part-name></score-part></part-list>'
    return f'<score-partwise version="4.0">{parts}<part id="P1">{text}</part></score-partwise>'


def on_two_staves(text: str) -> str:
    """The first measure on the lower staff, the others on the upper."""
    first, *others = text.replace("</divisions>", "</divisions><staves>2</staves>").split("</measure>")
    staves = [first.replace("</voice>", "</voice><staff>2</staff>")]
    staves += [other.replace("</voice>", "</voice><staff>1</staff>") for other in others]
    return "</measure>".join(staves)


@given(musicxml())
@example(one_part(note([(3, False, True)], 2), note([(3, True, False), (4, False, False)], 2)))
@example(
    one_part(note([(3, False, True), (4, False, True)], 2), note([(3, True, True)], 1) + note([(3, True, False)], 1))
)
@example(on_two_staves(one_part(note([(3, False, True)], 2), note([(3, True, False), (4, False, False)], 2))))
def test_scores_are_read_as_they_are_written(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_tempos", lambda _: (np.zeros(1), np.ones(1)))
        path = Path(folder) / "a.musicxml"
        path.write_text(text)
        assume(ties_are_clear(path))
        assert agrees(read_score(CorpusScore("a", path, "")), path)
