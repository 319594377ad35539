"""Reading and writing MIDI files with the pedal resolved: files, megabytes and notes per second, by library.

    python benchmarks/midi.py PATH...

A path is a file, or a folder with all its *.mid and *.midi. The median of three passes over files in memory counts.
"automatic" is `read_midi`: symusic for files with one voice, mido for the others.
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
    for name, read, items in (
        ("automatic", read_midi, files),
        ("mido only", _with_mido, files),
        ("writing", midi_bytes, tables),
    ):
        seconds = _seconds(read, items)
        print(f"{name:12}{len(files) / seconds:10.1f}{megabytes / seconds:10.2f}{notes / seconds:12,.0f}")


def _with_mido(data: bytes) -> Notes:
    """`read_midi` with mido for all files."""
    chosen, midi._read = midi._read, lambda name, data, simple: midi._any_voices(MidiFile(file=io.BytesIO(data)))
    try:
        return read_midi(data)
    finally:
        midi._read = chosen


def _seconds(read: Callable, items: list) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for item in items:
            read(item)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
