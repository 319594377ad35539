"""The kinds of `data.packing`: how documents become samples."""

from typing import Annotated, Literal

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key


class StreamPackingConfig(ConfigSection):
    """All documents of a source, concatenated and cut every `sequence_length` tokens."""

    kind: Literal["stream"] = key("stream", "one stream of tokens, cut when a sample is full")
    predict_next: bool = key(
        True,
        "the last position of a sample predicts the first token of the next; false: it has no loss",
    )


class _Packing(ConfigSection):
    add_bos_eos: bool = key(
        False,
        "each sample starts with the tokenizer's begin id, or its end id if it has none, and ends with its end id",
    )
    keep_ends: bool | None = key(
        None, "put the end id after each document of a sample; when not given, unless add_bos_eos is set"
    )

    @property
    def ends_kept(self) -> bool:
        """True if the end id follows each document."""
        return not self.add_bos_eos if self.keep_ends is None else self.keep_ends


class ChunkPackingConfig(_Packing):
    """Documents cut into chunks at the start of a word, or of a character if no word starts near."""

    kind: Literal["chunks"] = key(..., "chunks of at most sequence_length + 1 tokens")
    join: bool = key(True, "cut the concatenated documents; false cuts each document by itself")
    overlap: int = key(0, "tokens at the start of a chunk that repeat the end of the chunk before", unit="tokens", ge=0)


class DocumentPackingConfig(_Packing):
    """Each document is a sample; the end of a longer document is dropped."""

    kind: Literal["document"] = key(..., "one document per sample, truncated")


class BestFitPackingConfig(_Packing):
    """Whole documents, each in the fullest sample that has room for it, the longest first (Ding et al. 2024)."""

    kind: Literal["best_fit"] = key(..., "whole documents, several per sample")


class _Music(ConfigSection):
    speeds: tuple[Annotated[float, Field(gt=0)], ...] = key(
        (), "also train on each sample at these speeds, for instance 0.95 and 1.05", unit="times"
    )
    max_pitch_shift: int = key(
        0,
        "also train on each sample transposed by up to this much, up and down, within the keyboard",
        unit="semitones",
        ge=0,
    )


class PiecePackingConfig(_Music):
    """Piano music: a sample has data set and composer of a piece, and its notes from any of them on until the sample is
    full or the piece ends. Each note starts a sample, so that an epoch has each token several times."""

    kind: Literal["pieces"] = key(..., "excerpts of pieces of music")


class TaskPackingConfig(_Music):
    """Piano music: each of the tasks splits a record of notes into a prompt and an answer. Answers are never cut: if
    prompt and answer do not fit a sample, the record is shortened. Only tokens after `<GENAI>` count in the loss;
    with `data.learn_prompts` all tokens do."""

    kind: Literal["tasks"] = key(..., "prompts and answers from pieces of music")
    notes_per_record: int = key(128, "notes of prompt and answer together", unit="notes", ge=2)
    min_notes_per_record: int | None = key(
        None,
        "fewest notes of a record; the number is drawn for each record, up to notes_per_record, and is "
        "notes_per_record when this is not given",
        unit="notes",
        ge=2,
    )
    min_task_notes: int | None = key(
        None,
        "fewest notes of the part of a record that a task splits, which is drawn for each record; the notes before and "
        "after it are in the prompt. The whole record when not given; tasks that alter notes always alter all",
        unit="notes",
        ge=1,
    )
    tasks: tuple[str, ...] = key(
        (), "names of tasks such as top_line_masking-x2; piano-gpt's twelve when empty (see docs/guide/piano.md)"
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for each minimum above notes_per_record."""
        for name in ("min_notes_per_record", "min_task_notes"):
            least = getattr(self, name)
            if least is not None and least > self.notes_per_record:
                yield config_error(name, f"{least} is more than notes_per_record = {self.notes_per_record}")


MusicPackingConfig = PiecePackingConfig | TaskPackingConfig
"""The packings of music."""

TablePackingConfig = ChunkPackingConfig | DocumentPackingConfig | BestFitPackingConfig
"""The packings for which `quintet.data.packing` makes a table."""

PackingConfig = Annotated[
    StreamPackingConfig
    | ChunkPackingConfig
    | DocumentPackingConfig
    | BestFitPackingConfig
    | PiecePackingConfig
    | TaskPackingConfig,
    Field(discriminator="kind"),
]
