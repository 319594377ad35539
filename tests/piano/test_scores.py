"""Scores of the corpus of music21, against its own MIDI writer and against what is known of a chorale."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from tests.musicxml import agrees

from quintet.errors import UserError
from quintet.piano import scores as module
from quintet.piano.midi import read_midi
from quintet.piano.scores import VELOCITY, CorpusScore, read_score, scores

pytest.importorskip("music21")


def named(name: str) -> CorpusScore:
    (score,) = scores((name,))
    return score


def test_the_list_is_what_two_hands_play_each_work_once() -> None:
    found = scores()
    names = [score.name for score in found]
    assert names == sorted(names)
    assert len(names) == len(set(names)) > 400
    assert {"bach/bwv66.6", "bach/bwv277", "joplin/maple_leaf_rag"} <= set(names)
    assert "bach/bwv112.5-sc" not in names  # another edition of bwv112.5
    assert not any("riemenschneider" in name for name in names)  # analyses, without notes
    assert named("bach/bwv277").path.suffix == ".mxl"  # it is there as .krn, too
    assert {score.composer for score in found} >= {"Johann Sebastian Bach", "Scott Joplin"}
    assert scores() is found
    with pytest.raises(UserError, match="no score of its corpus matches nobody"):
        scores(("nobody/*",))


def test_a_chorale_as_it_is_printed() -> None:
    """BWV 66.6 begins with an upbeat of quavers; 36 quarter notes at 96 a minute."""
    table = read_score(named("bach/bwv66.6"))
    assert len(table) == 154  # 165 note heads, some of them tied on or shared by two voices
    assert table.seconds == pytest.approx(36 * 60 / 96)
    assert table.pitch[:3].tolist() == [57, 64, 73]  # tenor and bass in unison
    assert table.end[0] - table.start[0] == pytest.approx(0.5 * 60 / 96)
    assert set(table.velocity.tolist()) == {VELOCITY}


@pytest.mark.parametrize("name", ["bach/bwv66.6", "schumann_clara/polonaise_op1n1", "mozart/k545/*"])
def test_as_the_midi_that_music21_writes(name: str, tmp_path: Path) -> None:
    """The same pitches at the same times, through its own writer of MIDI; the polonaise changes its tempo."""
    import music21

    score = named(name)
    piece = music21.converter.parse(score.path, forceSource=True)
    for repeat in list(piece.recurse().getElementsByClass("RepeatMark")):
        piece.remove(repeat, recurse=True)
    piece.write("midi", tmp_path / "a.mid")
    ours, theirs = read_score(score), read_midi(tmp_path / "a.mid", "all")
    assert np.array_equal(ours.pitch, theirs.pitch)
    np.testing.assert_allclose(ours.start, theirs.start, atol=2e-3)
    np.testing.assert_allclose(ours.end, theirs.end, atol=2e-3)


SOME = ["bach/bwv66.6", "bach/bwv248.9-1", "bach/bwv846", "schoenberg/opus19/movement6", "schumann_clara/*n3"]


@pytest.mark.parametrize("name", SOME)
def test_as_a_plain_reading_of_the_xml(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chords of which some notes are tied are in all of these but the first."""
    monkeypatch.setattr(module, "_tempos", lambda _: (np.zeros(1), np.ones(1)))
    score = named(name)
    assert agrees(read_score(score), score.path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_list_as_a_plain_reading_of_the_xml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_tempos", lambda _: (np.zeros(1), np.ones(1)))
    read = [score for score in scores() if score.path.suffix != ".krn"]
    wrong = [score.name for score in read if not agrees(read_score(score), score.path)]
    assert len(read) > 400
    assert not wrong


def test_ties_tempo_marks_chords_and_grace_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    import music21

    part = music21.stream.Part()
    part.append(music21.tempo.MetronomeMark(number=60))
    tied = [music21.note.Note("C4", quarterLength=1), music21.note.Note("C4", quarterLength=2)]
    tied[0].tie, tied[1].tie = music21.tie.Tie("start"), music21.tie.Tie("stop")
    for element in (
        *tied,
        music21.tempo.MetronomeMark(number=120),
        music21.chord.Chord(["E4", "G4"], quarterLength=Fraction(1, 3)),
        music21.note.Note("A4").getGrace(),
        music21.harmony.ChordSymbol("Am"),
        music21.note.Rest(quarterLength=Fraction(2, 3)),
        music21.note.Note("B4", quarterLength=1),
    ):
        part.append(element)
    piece = music21.stream.Score([part])
    monkeypatch.setattr(music21.converter, "parse", lambda *_, **__: piece)
    table = read_score(CorpusScore("x", Path("x"), ""))
    assert table.pitch.tolist() == [60, 64, 67, 71]
    np.testing.assert_allclose(table.start, [0, 3, 3, 3.5])
    np.testing.assert_allclose(table.end, [3, 3 + 1 / 6, 3 + 1 / 6, 4])


def test_a_cached_score_is_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = named("bach/bwv66.6")
    first = read_score(score, tmp_path)
    monkeypatch.setattr(module, "_read", lambda _: pytest.fail("parsed again"))
    again = read_score(score, tmp_path)
    for name in ("pitch", "velocity", "start", "end"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert getattr(first, name).dtype == getattr(again, name).dtype
    assert [file.name for file in tmp_path.rglob("*.npy")] == ["bach+bwv66.6.npy"]


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "music21", None)
    with pytest.raises(UserError, match=r"pip install 'quintet\[piano\]'"):
        scores(("bach/bwv1*",))
