"""Training samples of piano music, each computed from the notes of a store as a function of its number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quintet.config.packing import MusicPackingConfig, PackingConfig, PiecePackingConfig, TaskPackingConfig
from quintet.data.samples import LeftOut, Sample
from quintet.data.split import TokenStream
from quintet.data.store import TokenStore
from quintet.piano.context import ANSWER, COMPOSERS, DATASETS, END_OF_ANSWER
from quintet.piano.notes import HEADER, HIGHEST, LOWEST, PER_NOTE, Notes, from_numbers, joined
from quintet.piano.tasks import DEFAULT_TASKS, Task, tasks_from
from quintet.piano.tokenizers.base import NoteTokenizer
from quintet.randomness import key

_TOKENS_PER_NOTE = 8  # more than most notes take, so that the last samples of a piece reach its end
_FEWEST = 2  # notes of a record


def tasks_of(packing: PackingConfig) -> tuple[Task, ...]:
    """Return the tasks that ``packing`` makes samples of: those that it names, or else piano-gpt's twelve; none for
    pieces and for text. Raises UserError for an unknown name."""
    return (tasks_from(packing.tasks) or DEFAULT_TASKS) if isinstance(packing, TaskPackingConfig) else ()


@dataclass(frozen=True)
class MusicPieces:
    """The pieces in a part of a store.

    ``begins``, ``firsts`` and ``counts`` are int64 [pieces]: the position of the piece's first number, its first note
    in the part, and the number of its notes there. ``short`` counts pieces that are excluded because they have fewer
    than 2 notes.
    """

    store: TokenStore
    begins: np.ndarray
    firsts: np.ndarray
    counts: np.ndarray
    short: int = 0

    @classmethod
    def of(cls, stream: TokenStream) -> MusicPieces:
        """Return the pieces in ``stream``. Of a piece that is cut, the complete notes are in it."""
        store, spans = stream.store, stream.ranges
        begins, ends = store.document_bounds(np.arange(store.document_count))
        inside = np.searchsorted(spans.stops, begins, side="right")
        before_end = inside < spans.stops.size
        begins, ends, inside = begins[before_end], ends[before_end], inside[before_end]
        low = np.maximum(begins, spans.starts[inside]) - begins - HEADER
        high = np.minimum(ends, spans.stops[inside]) - begins - HEADER
        firsts = -(-np.maximum(low, 0) // PER_NOTE)
        counts = high // PER_NOTE - firsts
        kept = counts >= _FEWEST
        short = int(((counts < _FEWEST) & (high > np.maximum(low, 0))).sum())  # others have no notes in this part
        return cls(store, begins[kept], firsts[kept], counts[kept], short)

    @property
    def notes(self) -> int:
        """Notes of all pieces."""
        return int(self.counts.sum())

    def read(self, piece: int, first: int, count: int) -> Notes:
        """Return at most ``count`` notes of ``piece`` from its note ``first`` on, which is moved to time 0."""
        count = min(count, int(self.counts[piece]) - first)
        begin = int(self.begins[piece]) + HEADER + PER_NOTE * (int(self.firsts[piece]) + first)
        notes = from_numbers(self.store.tokens(begin, begin + PER_NOTE * count))
        return notes.moved(-float(notes.start[0]))

    def context(self, piece: int) -> tuple[str, str]:
        """Return the tokens of the data set and of the composer of ``piece``."""
        begin = int(self.begins[piece])
        numbers: list[int] = self.store.tokens(begin, begin + HEADER).tolist()
        dataset, composer = numbers
        return DATASETS[dataset], COMPOSERS[composer]


@dataclass(frozen=True)
class NoteSamples:
    """Samples of ``pieces`` as ``packing`` says, of at most ``sequence_length`` + 1 ids.

    Sample i begins with note i // (variants · tasks) of all notes with which a sample can begin; the remainder gives
    its variant of speed and pitch, and its task. ``seed`` keys the random numbers of tasks.
    """

    pieces: MusicPieces
    tokenizer: NoteTokenizer
    packing: MusicPackingConfig
    sequence_length: int
    seed: int
    augmented: bool
    learn_prompts: bool

    @property
    def tokens(self) -> int:
        """Notes that the samples are cut from."""
        return self.pieces.notes

    @property
    def count(self) -> int:
        return int(self._ends[-1]) * self.variants * max(1, len(self.tasks)) if self._ends.size else 0

    @property
    def left_out(self) -> LeftOut:
        return LeftOut(short=self.pieces.short)

    @property
    def variants(self) -> int:
        """The number of speeds and pitches of each beginning."""
        if not self.augmented:
            return 1
        return (1 + 2 * self.packing.max_pitch_shift) * (1 + len(self.packing.speeds))

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks; none if samples are stretches of pieces."""
        return tasks_of(self.packing)

    @cached_property
    def _ends(self) -> np.ndarray:
        """The cumulative numbers of beginnings, int64 [pieces]. The last notes of a piece are none, because they would
        leave a sample half empty."""
        packing = self.packing
        room = (
            self.sequence_length // _TOKENS_PER_NOTE
            if isinstance(packing, PiecePackingConfig)
            else packing.notes_per_record
        )
        return np.cumsum(np.maximum(1, self.pieces.counts - room + 1))

    def sample(self, index: int) -> Sample:
        beginning, task = divmod(index, max(1, len(self.tasks)))
        beginning, variant = divmod(beginning, self.variants)
        piece = int(np.searchsorted(self._ends, beginning, side="right"))
        first = beginning - (int(self._ends[piece - 1]) if piece else 0)
        if isinstance(self.packing, PiecePackingConfig):
            return self._stretch(piece, first, variant)
        return self._record(piece, first, variant, self.tasks[task], index)

    def _stretch(self, piece: int, first: int, variant: int) -> Sample:
        size = self.sequence_length + 1
        # The on of a note has at least two tokens, so that the notes that are not read begin after the sample's end.
        enough = size // 2 + 2
        notes = self._varied(self.pieces.read(piece, first, enough), variant)
        ids = np.concatenate([self._specials(*self.pieces.context(piece)), self.tokenizer.encode_notes(notes)])
        if first + len(notes) == self.pieces.counts[piece]:
            ids = np.append(ids, self.tokenizer.end_id)
        return Sample(ids[:size].astype(np.int64))

    def _record(self, piece: int, first: int, variant: int, task: Task, index: int) -> Sample:
        assert isinstance(self.packing, TaskPackingConfig)
        size, context = self.sequence_length + 1, self.pieces.context(piece)
        notes = self._varied(self.pieces.read(piece, first, self._notes_of(index)), variant)
        while True:
            random = np.random.default_rng(key(self.seed, "task", index))
            asked, answer = self._split(task, notes, random)
            before = [*context, *task.tokens]
            prompt = np.concatenate(
                [self._specials(*before), self.tokenizer.encode_notes(asked), self._specials(ANSWER)]
            )
            ids = np.concatenate([prompt, self.tokenizer.encode_notes(answer), self._specials(END_OF_ANSWER)])
            if ids.size <= size or len(notes) <= _FEWEST:
                break
            notes = notes[: max(_FEWEST, min(len(notes) - 1, len(notes) * size // ids.size))]
        loss_mask = np.arange(ids.size) >= (0 if self.learn_prompts else prompt.size)
        return Sample(ids[:size].astype(np.int64), loss_mask[:size], prompts=~loss_mask[:size])

    def _notes_of(self, index: int) -> int:
        """Return the number of notes in the record of sample ``index``."""
        assert isinstance(self.packing, TaskPackingConfig)
        least, most = self.packing.min_notes_per_record, self.packing.notes_per_record
        if least is None:
            return most
        return int(np.random.default_rng(key(self.seed, "record", index)).integers(least, most, endpoint=True))

    def _split(self, task: Task, notes: Notes, random: np.random.Generator) -> tuple[Notes, Notes]:
        """Return prompt and answer of a task on all or a part of ``notes``."""
        assert isinstance(self.packing, TaskPackingConfig)
        least = self.packing.min_task_notes
        if least is None or task.replaces or len(notes) <= least:
            return task.split(notes, random)
        size = int(random.integers(least, len(notes), endpoint=True))
        begin = int(random.integers(len(notes) - size, endpoint=True))
        asked, answer = task.split(notes[begin : begin + size], random)
        return joined(notes[:begin], asked, notes[begin + size :]), answer

    def _varied(self, notes: Notes, variant: int) -> Notes:
        """Return ``notes`` at the speed and pitch of ``variant``; 0 is unchanged. Shifts beyond the keys wrap
        around."""
        if not variant:
            return notes
        speeds = (1.0, *self.packing.speeds)
        shift, speed = divmod(variant, len(speeds))
        low = max(-self.packing.max_pitch_shift, LOWEST - int(notes.pitch.min()))
        high = min(self.packing.max_pitch_shift, HIGHEST - int(notes.pitch.max()))
        shifts = [0, *(step for step in range(low, high + 1) if step)]
        return notes.transposed(shifts[shift % len(shifts)]).faster(speeds[speed])

    def _specials(self, *names: str) -> np.ndarray:
        return np.array([self.tokenizer.special(name) for name in names], dtype=np.int64)
