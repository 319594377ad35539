"""Packing: how documents become samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key


class StreamPackingConfig(ConfigSection):
    """All documents of a source one after the other, cut every `sequence_length` tokens."""

    kind: Literal["stream"] = key("stream", "one stream of tokens, cut where a sample is full")
    predict_next: bool = key(
        True,
        "the last position of a sample predicts the first token of the next sample; false leaves it without a loss",
    )


class _Packing(ConfigSection):
    add_bos_eos: bool = key(
        False,
        "each sample begins with the tokenizer's first id, or its end id if it has none, and ends with its end id",
    )
    keep_ends: bool | None = key(
        None, "the end id stands after each document inside a sample; not with add_bos_eos when not given"
    )

    @property
    def ends_kept(self) -> bool:
        """True if the end id stands after each document."""
        return not self.add_bos_eos if self.keep_ends is None else self.keep_ends


class ChunkPackingConfig(_Packing):
    """Documents cut into chunks, before a token that begins a word, or a character where no word begins near."""

    kind: Literal["chunks"] = key(..., "chunks of at most sequence_length + 1 tokens")
    join: bool = key(True, "cut the documents one after the other; false cuts each by itself")
    overlap: int = key(0, "tokens that a chunk repeats of the one before", unit="tokens", ge=0)


class DocumentPackingConfig(_Packing):
    """One document, one sample; what a longer document has more is left out."""

    kind: Literal["document"] = key(..., "a document a sample, truncated")


class BestFitPackingConfig(_Packing):
    """Whole documents, each in the fullest sample that has room for it, the longest first (Ding et al. 2024)."""

    kind: Literal["best_fit"] = key(..., "whole documents, fitted together")


class _Music(ConfigSection):
    speeds: tuple[Annotated[float, Field(gt=0)], ...] = key(
        (), "each sample is also trained on so many times as fast, for instance 0.95 and 1.05", unit="times"
    )
    max_pitch_shift: int = key(
        0, "each sample is also trained on up to so much lower and higher, within the keys", unit="semitones", ge=0
    )


class PiecePackingConfig(_Music):
    """Piano music: a sample begins with data set and composer of a piece, and with any of its notes, and goes on until
    it is full or the piece ends. Every note is the beginning of a sample, so an epoch has each token several times."""

    kind: Literal["pieces"] = key(..., "stretches of pieces of music")


class TaskPackingConfig(_Music):
    """Piano music: a record of notes split into a prompt and an answer, by each of the tasks. Answers are never cut:
    where prompt and answer do not fit a sample, the record is shorter. Everything after `<GENAI>` has a loss, and
    with `data.learn_prompts` all of it."""

    kind: Literal["tasks"] = key(..., "prompts and answers from pieces of music")
    notes_per_record: int = key(128, "notes of prompt and answer together", unit="notes", ge=2)
    min_notes_per_record: int | None = key(
        None,
        "records have from so many notes up to notes_per_record, drawn for each; all have as many when not given",
        unit="notes",
        ge=2,
    )
    min_task_notes: int | None = key(
        None,
        "a task splits a part of the record, of so many notes or more, drawn for each; what stands before and after "
        "it is in the prompt. The whole record when not given; tasks that alter notes always alter all",
        unit="notes",
        ge=1,
    )
    tasks: tuple[str, ...] = key(
        (), "names of tasks such as top_line_masking-x2; the twelve of piano-gpt when empty (see the guide)"
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for each least number of notes that is above the most."""
        for name in ("min_notes_per_record", "min_task_notes"):
            least = getattr(self, name)
            if least is not None and least > self.notes_per_record:
                yield config_error(name, f"{least} are more than notes_per_record = {self.notes_per_record}")


MusicPackingConfig = PiecePackingConfig | TaskPackingConfig
"""How pieces of music become samples."""

TablePackingConfig = ChunkPackingConfig | DocumentPackingConfig | BestFitPackingConfig
"""The ways of packing that need a table."""

PackingConfig = Annotated[
    StreamPackingConfig
    | ChunkPackingConfig
    | DocumentPackingConfig
    | BestFitPackingConfig
    | PiecePackingConfig
    | TaskPackingConfig,
    Field(discriminator="kind"),
]
