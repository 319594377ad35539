"""A task, and every kind of task by its name: its tokens, its parameters and its edit of the notes.

Names and tokens are those of piano_dataset; from `above_median_prediction` on those of older versions of piano-gpt.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from quintet.piano.notes import Notes, joined
from quintet.piano.tasks import edits

Mask = Callable[[Notes, str, int, np.random.Generator], np.ndarray]
Alter = Callable[[Notes, np.random.Generator], Notes]


@dataclass(frozen=True)
class TaskKind:
    """A kind of task, with either a ``mask`` of the target's notes or a function ``alter`` that makes the prompt.

    ``units`` are the names and defaults of its parameters, of which a task has one; the first is the default. With
    ``tells`` the model reads the parameter as `<PARAMETER_n>`.
    """

    tokens: tuple[str, ...]
    mask: Mask | None = None
    alter: Alter | None = None
    units: dict[str, int] = field(default_factory=dict[str, int])
    tells: bool = False


def _line(highest: bool) -> Mask:
    return lambda notes, unit, value, random: edits.line(notes, value, highest)


def _extreme(values: Callable[[Notes], np.ndarray]) -> Mask:
    def mask(notes: Notes, unit: str, value: int, random: np.random.Generator) -> np.ndarray:
        count = edits.count_share(value, len(notes)) if unit == "mask_percentage" else value
        return edits.largest(values(notes), count)

    return mask


def _random(where: Callable[[Notes, np.random.Generator], np.ndarray]) -> Mask:
    return lambda notes, unit, value, random: edits.random_share(where(notes, random), value, random)


def _lengths(notes: Notes) -> np.ndarray:
    return notes.end - notes.start


def _between(
    source: str, target: str, values: str, low: float | None, high: float | None, inside: bool = True
) -> TaskKind:
    def mask(notes: Notes, unit: str, value: int, random: np.random.Generator) -> np.ndarray:
        return edits.between(getattr(notes, values), low, high) == inside

    return TaskKind((source, target), mask)


_COUNTS = {"n_notes": 5, "mask_percentage": 50}
_PERCENTAGE = {"mask_percentage": 50}

KINDS: dict[str, TaskKind] = {
    "top_line_masking": TaskKind(("<PARAMETRIC_TOP_LINE>",), _line(True), units={"n_repetitions": 1}, tells=True),
    "bottom_line_masking": TaskKind(
        ("<PARAMETRIC_BOTTOM_LINE>",), _line(False), units={"n_repetitions": 1}, tells=True
    ),
    "high_notes_masking": TaskKind(
        ("<PARAMETRIC_HIGH_NOTES>",), _extreme(lambda notes: notes.pitch), units=_COUNTS, tells=True
    ),
    "low_notes_masking": TaskKind(
        ("<PARAMETRIC_LOW_NOTES>",), _extreme(lambda notes: -notes.pitch), units=_COUNTS, tells=True
    ),
    "short_notes_masking": TaskKind(
        ("<PARAMETRIC_SHORT_NOTES>",), _extreme(lambda notes: -_lengths(notes)), units=_COUNTS, tells=True
    ),
    "long_notes_masking": TaskKind(("<PARAMETRIC_LONG_NOTES>",), _extreme(_lengths), units=_COUNTS, tells=True),
    "stride_notes_masking": TaskKind(
        ("<PARAMETRIC_STRIDE_MASK>",),
        lambda notes, unit, value, random: edits.stride(notes, value),
        units={"stride": 2},
        tells=True,
    ),
    "chord_masking": TaskKind(
        ("<CHORD_MASK>",),
        lambda notes, unit, value, random: edits.chords(notes, value),
        units={"n_notes_threshold": 3},
    ),
    "random_masking": TaskKind(("<RANDOM_MASK>",), _random(edits.all_notes), units=_PERCENTAGE),
    "linear_random_masking": TaskKind(("<LINEAR_RANDOM_MASK>",), _random(edits.near_line), units=_PERCENTAGE),
    "band_random_masking": TaskKind(("<BAND_RANDOM_MASK>",), _random(edits.in_band), units=_PERCENTAGE),
    "above_median_prediction": _between("<LOW_FROM_MEDIAN>", "<HIGH_FROM_MEDIAN>", "pitch", 0.5, None),
    "below_median_prediction": _between("<HIGH_FROM_MEDIAN>", "<LOW_FROM_MEDIAN>", "pitch", None, 0.5),
    "above_low_quartile_prediction": _between("<BELOW_LOW_QUARTILE>", "<ABOVE_LOW_QUARTILE>", "pitch", 0.25, None),
    "below_low_quartile_prediction": _between("<ABOVE_LOW_QUARTILE>", "<BELOW_LOW_QUARTILE>", "pitch", None, 0.25),
    "above_high_quartile_prediction": _between("<BELOW_HIGH_QUARTILE>", "<ABOVE_HIGH_QUARTILE>", "pitch", 0.75, None),
    "below_high_quartile_prediction": _between("<ABOVE_HIGH_QUARTILE>", "<BELOW_HIGH_QUARTILE>", "pitch", None, 0.75),
    "middle_quartiles_prediction": _between("<EXTREME_QUARTILES>", "<MIDDLE_QUARTILES>", "pitch", 0.25, 0.75),
    "extreme_quartiles_prediction": _between("<MIDDLE_QUARTILES>", "<EXTREME_QUARTILES>", "pitch", 0.25, 0.75, False),
    "loud_prediction": _between("<SOFT>", "<LOUD>", "velocity", 0.5, None),
    "soft_prediction": _between("<LOUD>", "<SOFT>", "velocity", None, 0.5),
    "very_soft_prediction": _between("<ABOVE_VERY_SOFT>", "<VERY_SOFT>", "velocity", None, 0.25),
    "very_loud_prediction": _between("<BELOW_VERY_LOUD>", "<VERY_LOUD>", "velocity", 0.75, None),
    "moderate_velocity_prediction": _between("<EXTREME_VOLUME>", "<MODERATE_VOLUME>", "velocity", 0.25, 0.75),
    "extreme_velocity_prediction": _between("<MODERATE_VOLUME>", "<EXTREME_VOLUME>", "velocity", 0.25, 0.75, False),
    "fast_notes_prediction": TaskKind(
        ("<SLOW_NOTES>", "<FAST_NOTES>"), lambda notes, unit, value, random: _lengths(notes) < 0.2
    ),
    "top_line_prediction": TaskKind(
        ("<BELOW_TOP_LINE>", "<TOP_LINE>"), lambda notes, unit, value, random: edits.line(notes, 1, True)
    ),
    "low_line_prediction": TaskKind(
        ("<ABOVE_LOW_LINE>", "<LOW_LINE>"), lambda notes, unit, value, random: edits.line(notes, 1, False)
    ),
    "velocity_denoising": TaskKind(("<NOISY_VOLUME>", "<CLEAN_VOLUME>"), alter=edits.noisy_velocities),
    "pitch_denoising": TaskKind(("<NOISY_PITCH>", "<CLEAN_PITCH>"), alter=edits.noisy_pitches),
    "start_time_denoising": TaskKind(("<NOISY_START_TIME>", "<CLEAN_TIME>"), alter=edits.noisy_starts),
    "time_denoising": TaskKind(("<NOISY_TIME>", "<CLEAN_TIME>"), alter=edits.noisy_times),
    "comprehensive_denoising": TaskKind(("<NOISY>", "<CLEAN_EVERYTHING>"), alter=edits.noisy_notes),
    "performance_task": TaskKind(("<SCORES>", "<PERFORMANCE>"), alter=edits.plain_pitches),
}


@dataclass(frozen=True)
class Task:
    """A kind of task with its parameter, such as the two top lines; `task_named` makes one.

    ``unit`` and ``value`` are the name and the value of the parameter, "" and 0 for a kind without parameters.
    """

    kind: str
    unit: str = ""
    value: int = 0

    @property
    def name(self) -> str:
        """The name for `task_named`: ``top_line_masking-x2``, with a % sign if the kind takes counts too."""
        if not self.unit:
            return self.kind
        sign = "%" if self.unit == "mask_percentage" and len(KINDS[self.kind].units) > 1 else ""
        return f"{self.kind}-x{self.value}{sign}"

    @property
    def tokens(self) -> tuple[str, ...]:
        """The special tokens before the prompt, which name the task for a model."""
        kind = KINDS[self.kind]
        return (*kind.tokens, parameter_token(self.value)) if kind.tells else kind.tokens

    @property
    def replaces(self) -> bool:
        """True if the answer is the whole piece; otherwise prompt and answer together are."""
        return KINDS[self.kind].alter is not None

    def split(self, notes: Notes, random: np.random.Generator) -> tuple[Notes, Notes]:
        """Return prompt and target of ``notes``, which depend only on ``notes`` and the state of ``random``.

        Each note is in exactly one of the two, either of which may be empty. If the task ``replaces``, the prompt has
        all notes, altered, and the target is ``notes``.
        """
        kind = KINDS[self.kind]
        if len(notes) == 0:
            return notes, notes
        if kind.alter is not None:
            return kind.alter(notes, random), notes
        assert kind.mask is not None
        target = kind.mask(notes, self.unit, self.value, random)
        return notes[~target], notes[target]

    def whole(self, prompt: Notes, answer: Notes) -> Notes:
        """Return the piece that ``prompt`` and ``answer`` make."""
        return answer if self.replaces else joined(prompt, answer)


def parameter_token(value: int) -> str:
    """The token of a parameter, which all kinds of task share."""
    return f"<PARAMETER_{value}>"
