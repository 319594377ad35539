"""Piano music as documents of numbers (see `quintet.piano.notes`): MIDI files, rows of notes, and scores."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from quintet.config.documents import Music, NotesField
from quintet.config.keypath import is_mapping
from quintet.config.sources import MidiSource, ScoresSource
from quintet.data.sources.base import BadRow, Document, Reader, Report, SourceIndex, TokenIds, Unwanted, WorkUnit
from quintet.data.sources.files import File
from quintet.data.sources.reading import open_file
from quintet.errors import UserError
from quintet.files import from_json
from quintet.piano.context import COMPOSERS, DATASETS, composer_token, dataset_token, words_in
from quintet.piano.notes import HIGHEST, LONGEST, LOWEST, Notes, notes, split_at_pauses, to_numbers
from quintet.piano.scores import CorpusScore, read_score, scores
from quintet.tokenize.base import Tokenizer

_UNIT_BYTES = 1 << 20  # reading 1 MB of MIDI takes as long as 30 MB of text
_UNIT_SCORES = 16
_FEWEST = 2  # notes of a document
_COLUMNS = ("pitch", "velocity", "start", "end")


class MidiReader(Reader[MidiSource, tuple[File, ...]]):
    """MIDI files, one piece per file."""

    suffixes = (".mid", ".midi")
    needs = ("symusic", "piano")
    read_by = ("mido", "symusic")

    def units(self, index: SourceIndex, length: int) -> tuple[list[WorkUnit[tuple[File, ...]]], list[str]]:
        """Return work units of about a megabyte."""
        groups: list[list[File]] = [[]]
        for file in index.files:
            groups[-1].append(file)
            if sum(file.size for file in groups[-1]) >= _UNIT_BYTES:
                groups.append([])
        parts = [tuple(group) for group in groups if group]
        return [WorkUnit(self, part, part[0].path, sum(file.size for file in part)) for part in parts], []

    def documents(self, part: tuple[File, ...], report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
        """Yield the documents of each file. A file that cannot be read raises UserError, or with ``on_error: skip`` is
        counted and named in ``report``."""
        from quintet.piano.midi import MissingTrack, read_midi

        source = self.source
        for file in part:
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


class ScoresReader(Reader[ScoresSource, tuple[CorpusScore, ...]]):
    """Keyboard scores from the corpus of music21."""

    needs = ("music21", "piano")
    read_by = ("music21",)

    def index(self, where: str) -> SourceIndex:
        corpus = scores()
        return self.indexed(where, [score.name for score in corpus], _size(corpus))

    def units(self, index: SourceIndex, length: int) -> tuple[list[WorkUnit[tuple[CorpusScore, ...]]], list[str]]:
        """Return a work unit for every sixteen scores."""
        corpus = scores()
        groups = [corpus[start : start + _UNIT_SCORES] for start in range(0, len(corpus), _UNIT_SCORES)]
        return [WorkUnit(self, part, f"music21 {part[0].name}", _size(part)) for part in groups], []

    def documents(
        self, part: tuple[CorpusScore, ...], report: Report, tokenizer: Tokenizer | None
    ) -> Iterator[Document]:
        """Yield the documents of each score."""
        for score in part:
            try:
                yield from parts_of(read_score(score), {"composer": score.composer}, self.source, score.name, report)
            except Unwanted as reason:
                report.dropped[str(reason)] += 1


def _size(corpus: Iterable[CorpusScore]) -> int:
    return sum(score.path.stat().st_size for score in corpus)


def parts_of(
    piece: Notes, about: Mapping[str, Any], music: Music, location: str, report: Report | None = None
) -> tuple[Document, ...]:
    """Return the documents of a piece, as a whole or cut at pauses, each from time 0 on.

    Raises Unwanted for a piece that is by another composer than those asked for, has too few notes, or lasts for more
    than 119 hours.
    """
    composer = composer_token(about)
    composers = {composer_token({"composer": name}) for name in music.only_by}
    if composers and composer not in composers:
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
    return tuple(TokenIds(to_numbers(part, *numbers), location) for part in parts)


def notes_of(row: Mapping[str, object], document: NotesField) -> Notes:
    """Return the notes of a row. Raises BadRow."""
    table = row.get(document.notes)
    if not is_mapping(table):
        raise BadRow("no_notes", f"field {document.notes!r} holds no lists of pitch, velocity, start and end")
    try:
        columns = [np.asarray(table[name], dtype=np.float64) for name in _COLUMNS]
    except (KeyError, TypeError, ValueError):
        raise BadRow("no_notes", f"field {document.notes!r} lacks numbers for pitch, velocity, start or end") from None
    if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
        raise BadRow("no_notes", f"the lists in field {document.notes!r} are not of one length")
    pitch, velocity, start, end = columns
    valid = (start <= end) & np.isfinite(end - start)
    for column in (pitch, velocity):
        valid &= (column >= 0) & (column <= 127) & (column % 1 == 0)
    if not valid.all():
        note = ", ".join(f"{name} {column[~valid][0]:g}" for name, column in zip(_COLUMNS, columns, strict=True))
        raise BadRow(
            "bad_notes",
            f"a note in field {document.notes!r} has {note}; pitch and velocity are whole numbers from 0 to 127, and "
            "no note ends before it starts",
        )
    return notes(*columns)


def metadata_of(row: Mapping[str, object], document: NotesField) -> Mapping[str, Any]:
    """Return the metadata of the piece of a row, {} if the row has none. Raises BadRow."""
    source = row.get(document.source)
    if is_mapping(source):
        return source
    if not source:
        return {}
    try:
        metadata = from_json(str(source))
    except ValueError:
        raise BadRow("bad_source", f"field {document.source!r} holds no JSON") from None
    return metadata if is_mapping(metadata) else {}
