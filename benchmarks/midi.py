"""From MIDI files to notes, pedal resolved: files, megabytes and notes per second, by either reader.

    python benchmarks/midi.py PATH...

A path is a file, or a folder with all its *.mid and *.midi. The median of three passes counts, without
the disk. "automatic" is what `read_midi` does: symusic for files of one voice, mido for others.
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mido import MidiFile

from quintet.piano import midi
from quintet.piano.midi import midi_bytes, read_midi
from quintet.piano.notes import Notes


def main() -> None:
    """Print the table."""
    paths = [Path(name) for name in sys.argv[1:]]
    found = [path for name in paths for path in (name.rglob("*.mid*") if name.is_dir() else [name])]
    files = [path.read_bytes() for path in sorted(found)]
    if not files:
        sys.exit("usage: python benchmarks/midi.py PATH..., files or folders of MIDI")
    tables = [read_midi(data) for data in files]
    notes, megabytes = sum(map(len, tables)), sum(map(len, files)) / 1e6
    print(f"{len(files)} files, {megabytes:.2f} MB, {notes:,} notes")
    print(f"{'':12}{'files/s':>10}{'MB/s':>10}{'notes/s':>12}")
    for name, read, what in (
        ("automatic", read_midi, files),
        ("mido alone", _slowly, files),
        ("writing", midi_bytes, tables),
    ):
        seconds = _seconds(read, what)
        print(f"{name:12}{len(files) / seconds:10.1f}{megabytes / seconds:10.2f}{notes / seconds:12,.0f}")


def _slowly(data: bytes) -> Notes:
    """`read_midi` as if symusic could read no file."""
    chosen, midi._read = midi._read, lambda name, data, simple: midi._any_voices(MidiFile(file=io.BytesIO(data)))
    try:
        return read_midi(data)
    finally:
        midi._read = chosen


def _seconds(read: Callable, what: list) -> float:
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        for one in what:
            read(one)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


if __name__ == "__main__":
    main()
