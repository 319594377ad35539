"""Notes of the scores that come with music21: music without a download.

All notes of a score have the same velocity, and time follows its tempo marks.
"""

import os
from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from quintet.errors import UserError
from quintet.libraries import require
from quintet.piano.notes import Notes, notes, seconds_at, separated

VELOCITY = 80
_RECIPE = "2"  # raise it when the same scores give different notes
_BPM = 120  # quarter notes per minute, the default
KEYBOARD = (
    "bach/bwv*",
    "chopin/*",
    "cpebach/*",
    "joplin/*",
    "mozart/k545/*",
    "schoenberg/opus19/*",
    "schumann_clara/polonaise*",
)
"""Works that two hands can play: Bach's chorales in four parts, and the few works for keyboard."""
_COMPOSERS = {
    "bach": "Johann Sebastian Bach",
    "chopin": "Frédéric Chopin",
    "cpebach": "Carl Philipp Emanuel Bach",
    "joplin": "Scott Joplin",
    "mozart": "Wolfgang Amadeus Mozart",
    "schoenberg": "Arnold Schoenberg",
    "schumann_clara": "Clara Schumann",
}
_SCORES = (".mxl", ".xml", ".musicxml", ".krn")


@dataclass(frozen=True)
class CorpusScore:
    """A piece of the corpus: its name (``bach/bwv66.6``), its file, and its composer."""

    name: str
    path: Path
    composer: str


@cache
def scores(patterns: tuple[str, ...] = KEYBOARD) -> tuple[CorpusScore, ...]:
    """Return the scores whose names match one of the patterns (`*` matches `/` too), in the order of their names.

    Of several editions of a work (``bwv112.5-sc`` and ``bwv112.5``; Humdrum and MusicXML) only one is included. Raises
    UserError if no name matches.
    """
    root = Path(_music21().__file__).parent / "corpus"
    files = [path for path in root.rglob("*") if path.suffix in _SCORES]
    by_work: dict[str, CorpusScore] = {}
    for path in sorted(files, key=lambda path: (len(path.stem), _SCORES.index(path.suffix), path)):
        name = path.relative_to(root).with_suffix("").as_posix()
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            folder = name.split("/")[0]
            by_work.setdefault(
                name.split("-")[0], CorpusScore(name, path, _COMPOSERS.get(folder, folder.replace("_", " ")))
            )
    if not by_work:
        raise UserError(f"music21: no score of its corpus matches {', '.join(patterns)}; try 'bach/*'")
    return tuple(sorted(by_work.values(), key=lambda score: score.name))


def read_score(score: CorpusScore, cache_dir: str | os.PathLike[str] | None = None) -> Notes:
    """Return the notes of a score: tied notes joined, instruments at sounding pitch, repeats played once, no grace
    notes.

    With ``cache_dir``, they are stored there by version of music21 and recipe, and read from there the next time.
    """
    if cache_dir is None:
        return _read(score)
    file = Path(cache_dir) / f"music21-{_music21().__version__}-{_RECIPE}" / f"{score.name.replace('/', '+')}.npy"
    if not file.exists():
        table = _read(score)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.stem}.{os.getpid()}.part.npy")
        np.save(part, np.stack([table.pitch, table.velocity, table.start, table.end]))
        part.replace(file)
    return notes(*np.load(file))


def _music21() -> Any:
    return require("music21", "piano", "the corpus of scores")


def _read(score: CorpusScore) -> Notes:
    music21 = _music21()
    piece = music21.converter.parse(score.path, forceSource=True)
    piece.toSoundingPitch(inPlace=True)
    staves: dict[str, list[Any]] = defaultdict(list)
    for part in piece.parts:  # music21 makes a part of each staff, such as P1-Staff1
        staves[str(part.id).split("-Staff")[0]].append(part)
    rows = [row for parts in staves.values() for row in _joined(parts)]
    pitch, velocity, start, end = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    changes, lengths = _tempos(piece)
    return separated(notes(pitch, velocity, seconds_at(start, changes, lengths), seconds_at(end, changes, lengths)))


def _joined(staves: list[Any]) -> list[list[float]]:
    """Return pitch, velocity, start and end in quarter notes of each note of a part's staves, with tied notes joined.

    music21's stripTies joins a chord only with a chord of the same notes, and only on the same staff.
    """
    rows: list[list[float]] = []
    tied: dict[tuple[int, float], list[list[float]]] = defaultdict(list)  # by pitch and the position where the tie ends
    elements = [(float(element.offset), element) for staff in staves for element in staff.flatten().notes]
    for offset, element in sorted(elements, key=lambda pair: pair[0]):
        start, end = round(offset, 6), round(offset + float(element.quarterLength), 6)
        if "Harmony" in element.classes or end == start:  # a chord symbol or a grace note
            continue
        heads = element.notes if element.isChord else [element]
        for pitch, tie in [(pitch.midi, head.tie.type if head.tie else "") for head in heads for pitch in head.pitches]:
            before = tied[pitch, start] if tie in ("stop", "continue") else []
            if before:
                row = before.pop()
                row[3] = end
            else:
                rows.append(row := [pitch, VELOCITY, start, end])
            if tie in ("start", "continue"):
                tied[pitch, end].append(row)
    return rows


def _tempos(piece: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of tempo changes, in quarter notes, and the seconds per quarter after each: float64
    [changes]."""
    marks = [(float(begin), 60 / (mark.getQuarterBPM() or _BPM)) for begin, _, mark in piece.metronomeMarkBoundaries()]
    changes, lengths = np.array([(0.0, 60 / _BPM), *marks]).T
    return changes, lengths
