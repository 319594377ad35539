"""A plain reading of MusicXML 4.0 (https://www.w3.org/2021/06/musicxml40), to compare scores with."""

from __future__ import annotations

import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from quintet.piano.notes import Notes

Row = tuple[int, Fraction, Fraction]
"""Pitch, and start and end in quarter notes."""
_SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def sounding(path: Path) -> list[Row]:
    """What a score's notes sound like: ties joined, unisons as one, no grace notes, each pitch once at a time."""
    ends: dict[tuple[int, Fraction], Fraction] = {}
    for part in _root(path).iter("part"):
        for pitch, start, end in _joined(list(_notes(part))):
            ends[pitch, start] = max(end, ends.get((pitch, start), end))
    starts = defaultdict(list)
    for pitch, start in ends:
        starts[pitch].append(start)
    return sorted(
        (pitch, start, min([end, *(later for later in starts[pitch] if later > start)]))
        for (pitch, start), end in ends.items()
    )


def agrees(table: Notes, path: Path) -> bool:
    """Whether notes, whose seconds are quarter notes, are those of a score.

    Times may differ by 0.002 quarter notes, as music21 rounds those that are no simple fraction.
    """
    ours = np.array(sorted(zip(table.pitch, table.start, table.end, strict=True)), dtype=np.float64)
    theirs = np.array(sounding(path), dtype=np.float64)
    return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=0, atol=2e-3)


def ties_are_clear(path: Path) -> bool:
    """Whether each tie is between two notes: of equal ones that begin or end together, MusicXML does not say which."""
    sides = Counter(
        (number, *side)
        for number, part in enumerate(_root(path).iter("part"))
        for pitch, start, end, ties in _notes(part)
        for side in ((tie, pitch, start if tie == "stop" else end) for tie in ties)
    )
    return all(count == 1 for count in sides.values())


def _root(path: Path) -> ElementTree.Element:
    if path.suffix != ".mxl":
        return ElementTree.parse(path).getroot()
    with zipfile.ZipFile(path) as packed:
        container = ElementTree.fromstring(packed.read("META-INF/container.xml"))
        first = next(element for element in container.iter() if element.tag.endswith("rootfile"))
        return ElementTree.fromstring(packed.read(first.attrib["full-path"]))


def _notes(part: ElementTree.Element) -> Iterator[tuple[int, Fraction, Fraction, set[str]]]:
    """Pitch, start, end and ties of each note; a measure begins where the longest voice of the one before ends."""
    measure, quarter, transposed = Fraction(), Fraction(1), 0
    for elements in part.iter("measure"):
        here = last = longest = measure
        for element in elements:
            length = Fraction(element.findtext("duration") or 0) / quarter
            if element.tag == "attributes":
                quarter = Fraction(element.findtext("divisions") or quarter)
                if (transpose := element.find("transpose")) is not None:
                    octaves = int(transpose.findtext("octave-change") or 0)
                    transposed = int(transpose.findtext("chromatic") or 0) + 12 * octaves
            elif element.tag in ("backup", "forward"):
                here += length if element.tag == "forward" else -length
            elif element.tag == "note":
                if element.find("chord") is None:
                    last, here = here, here + length
                pitch = element.find("pitch")
                if pitch is not None and length:
                    number = _SEMITONES[pitch.findtext("step") or ""] + int(float(pitch.findtext("alter") or 0))
                    number += 12 * (int(pitch.findtext("octave") or 0) + 1) + transposed
                    yield number, last, last + length, {tie.attrib["type"] for tie in element.iter("tie")}
            longest = max(longest, here)
        measure = longest


def _joined(notes: list[tuple[int, Fraction, Fraction, set[str]]]) -> list[Row]:
    """Notes with the ends of those that they are tied to, where both sides of the tie are written."""
    rows, tied = [], defaultdict(list)
    for pitch, start, end, ties in sorted(notes, key=lambda note: (note[1], note[0])):
        if "stop" in ties and tied[pitch, start]:
            row = tied[pitch, start].pop()
            row[2] = end
        else:
            row = [pitch, start, end]
            rows.append(row)
        if "start" in ties:
            tied[pitch, end].append(row)
    return [(pitch, start, end) for pitch, start, end in rows]
