"""Piano music: MIDI files, rows of notes and scores become documents of numbers (see `quintet.piano.numbers`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quintet.config.documents import Music, NotesField
from quintet.config.sources import MidiSource, ScoresSource
from quintet.data.sources.document import Document, Report, TokenIds
from quintet.data.sources.files import File
from quintet.data.sources.problems import BadRow, Unwanted
from quintet.data.sources.spans import open_file
from quintet.errors import UserError
from quintet.piano.context import COMPOSERS, DATASETS, composer_token, dataset_token, words_in
from quintet.piano.notes import HIGHEST, LOWEST, Notes, notes
from quintet.piano.numbers import LONGEST, to_numbers
from quintet.piano.pauses import split_at_pauses
from quintet.piano.scores import CorpusScore

_UNIT_BYTES = 1 << 20  # of MIDI: to read it takes as long as some 30 MB of text
_UNIT_SCORES = 16
_FEWEST = 2  # notes of a document
_COLUMNS = ("pitch", "velocity", "start", "end")


@dataclass(frozen=True)
class MidiUnit:
    """Some MIDI files of a source. ``size`` in bytes."""

    source: MidiSource
    files: tuple[File, ...]
    size: int

    @property
    def place(self) -> str:
        """Where this unit is, for messages."""
        return self.files[0].path


@dataclass(frozen=True)
class ScoresUnit:
    """Some scores of the music21 library. ``size`` in bytes of their files."""

    source: ScoresSource
    scores: tuple[CorpusScore, ...]
    size: int

    @property
    def place(self) -> str:
        """Where this unit is, for messages."""
        return f"music21 {self.scores[0].name}"


def midi_units(source: MidiSource, files: list[File]) -> list[MidiUnit]:
    """Work units of about a megabyte."""
    units: list[MidiUnit] = []
    held: list[File] = []
    for file in files:
        held.append(file)
        if sum(one.size for one in held) >= _UNIT_BYTES:
            units.append(MidiUnit(source, tuple(held), sum(one.size for one in held)))
            held = []
    return [*units, *([MidiUnit(source, tuple(held), sum(one.size for one in held))] if held else [])]


def midi_documents(unit: MidiUnit, report: Report) -> Iterator[Document]:
    """The parts of each file. Raises UserError for a file that cannot be read, or counts and names it in ``report``."""
    from quintet.piano.midi import MissingTrack, read_midi

    source = unit.source
    for file in unit.files:
        about = {"dataset": source.dataset, "composer": source.composer or words_in(file.name)}
        try:
            with open_file(file.path) as opened:
                data = opened.read()
            piece = read_midi(data, source.tracks, source.sustain, report.dropped, file.path)
            yield from parts_of(piece, about, source, file.path, report)
        except Unwanted as reason:
            report.dropped[str(reason)] += 1
        except UserError as error:
            if source.on_error == "stop":
                raise
            report.dropped["missing_track" if isinstance(error, MissingTrack) else "no_midi"] += 1
            report.left_out.append(file.name)


def scores_units(source: ScoresSource) -> list[ScoresUnit]:
    """A work unit for every sixteen scores."""
    from quintet.piano.scores import scores

    found = scores()
    groups = [found[start : start + _UNIT_SCORES] for start in range(0, len(found), _UNIT_SCORES)]
    return [ScoresUnit(source, group, sum(score.path.stat().st_size for score in group)) for group in groups]


def scores_documents(unit: ScoresUnit, report: Report) -> Iterator[Document]:
    """The parts of each score."""
    from quintet.piano.scores import read_score

    for score in unit.scores:
        try:
            yield from parts_of(read_score(score), {"composer": score.composer}, unit.source, score.name, report)
        except Unwanted as reason:
            report.dropped[str(reason)] += 1


def parts_of(
    piece: Notes, about: Mapping[str, Any], music: Music, place: str, report: Report | None = None
) -> tuple[Document, ...]:
    """The documents of a piece: whole, or cut at pauses, each from time 0 on.

    Raises Unwanted for a piece of a composer that is not asked for, for one with too few notes, and for one that lasts
    for more than 119 hours.
    """
    composer = composer_token(about)
    wanted = {composer_token({"composer": name}) for name in music.only_by}
    if wanted and composer not in wanted:
        raise Unwanted("another_composer")
    inside = (piece.pitch >= LOWEST) & (piece.pitch <= HIGHEST)
    if report is not None and not inside.all():
        report.dropped["notes_beyond_the_keys"] += int((~inside).sum())
    piece = piece[inside]
    parts = [piece] if music.pauses is None else split_at_pauses(piece, music.pauses)
    parts = [part.moved(-float(part.start[0])) for part in parts if len(part) >= _FEWEST]
    if not parts:
        raise Unwanted("too_few_notes")
    numbers = (DATASETS.index(dataset_token(about)), COMPOSERS.index(composer))
    if max(part.seconds for part in parts) > LONGEST:
        raise Unwanted("too_long")
    return tuple(TokenIds(to_numbers(part, *numbers), place) for part in parts)


def notes_of(row: Mapping[str, object], document: NotesField) -> Notes:
    """The notes of a row. Raises BadRow."""
    table = row.get(document.notes)
    if not isinstance(table, Mapping):
        raise BadRow("no_notes", f"field {document.notes!r} holds no lists of pitch, velocity, start and end")
    try:
        columns = [np.asarray(table[name], dtype=np.float64) for name in _COLUMNS]
    except (KeyError, TypeError, ValueError):
        raise BadRow("no_notes", f"field {document.notes!r} lacks numbers for pitch, velocity, start or end") from None
    if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
        raise BadRow("no_notes", f"the lists in field {document.notes!r} are not of one length")
    pitch, velocity, start, end = columns
    good = (start <= end) & np.isfinite(end - start)
    for column in (pitch, velocity):
        good &= (column >= 0) & (column <= 127) & (column % 1 == 0)
    if not good.all():
        note = ", ".join(f"{name} {column[~good][0]:g}" for name, column in zip(_COLUMNS, columns, strict=True))
        raise BadRow(
            "bad_notes",
            f"a note in field {document.notes!r} has {note}; pitch and velocity are whole numbers from 0 to 127, and "
            "no note ends before it starts",
        )
    return notes(*columns)


def metadata_of(row: Mapping[str, object], document: NotesField) -> Mapping[str, Any]:
    """What is known of the piece of a row; nothing where the row does not say. Raises BadRow."""
    text = row.get(document.source)
    if isinstance(text, Mapping):
        return text
    if not text:
        return {}
    try:
        found = json.loads(str(text))
    except ValueError:
        raise BadRow("bad_source", f"field {document.source!r} holds no JSON") from None
    return found if isinstance(found, Mapping) else {}
