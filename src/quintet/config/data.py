"""The section `data`: the documents that a run reads, how they are stored and how they become samples."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from quintet.config.cleaning import CleaningConfig
from quintet.config.keypath import is_mapping, is_sequence
from quintet.config.packing import ChunkPackingConfig, MusicPackingConfig, PackingConfig, StreamPackingConfig
from quintet.config.section import ConfigErrors, ConfigSection, config_error, key
from quintet.config.sources import SOURCES, Source, SourceConfig


def are_music(sources: Any) -> bool:
    """True if the first of ``sources``, as written in a file or validated, holds music."""
    first = sources[0] if is_sequence(sources) and sources else None
    if isinstance(first, Source):
        return first.content == "notes"
    if not is_mapping(first):
        return False
    kind, document = first.get("kind"), first.get("document")
    holds_notes = isinstance(kind, str) and kind in SOURCES and SOURCES[kind].holds == "notes"
    return holds_notes or (is_mapping(document) and document.get("kind") == "notes")


class StageConfig(ConfigSection):
    """A part of the run with its own weights of the sources."""

    until: int | float | None = key(
        None,
        "end of the stage: a whole number is a step, a number with a point is a fraction of the run's steps. The last "
        "stage has none",
        unit="steps or fraction",
        gt=0,
    )
    weights: dict[str, Annotated[float, Field(ge=0)]] = key(
        ...,
        "share of the samples of each source in this stage, by its `label`; a source that is 0 or missing is not used. "
        "Sources with the same label share its weight in proportion to their sizes",
        min_length=1,
    )

    def errors(self) -> ConfigErrors:
        """Yield errors for an end outside the run, and for a stage without samples."""
        if isinstance(self.until, float) and self.until > 1:
            yield config_error("until", f"{self.until:g} is not a fraction; write a number of steps without a point")
        if not any(self.weights.values()):
            yield config_error("weights", "all are 0: give one source a share")


class DataConfig(ConfigSection):
    """The documents that a run reads, and how they become samples."""

    sources: tuple[SourceConfig, ...] = key(..., "what to train on, one entry per source", min_length=1)
    validation: float = key(
        0.01,
        "held out from each source: below 1 a fraction of its tokens, from 1 on a number of tokens. Whole documents "
        "are held out in random order, the last one cut to fit. 0 holds nothing out",
        unit="fraction or tokens",
        ge=0,
    )
    validation_sources: tuple[SourceConfig, ...] = key(
        (), "sources to validate on instead of a held-out part; `validation` must then be 0 or absent"
    )
    sequence_length: int = key(1024, "tokens that the model sees at once", unit="tokens", ge=2)
    packing: PackingConfig = key(StreamPackingConfig(), "how documents become samples")
    shuffle: bool = key(True, "use the samples of an epoch in random order instead of their order in the sources")
    mixing: Literal["random", "sequential"] = key(
        "random",
        "random draws from all sources at once; sequential takes one source after the other, in each epoch",
    )
    stages: tuple[StageConfig, ...] = key((), "weights that change over the run, instead of one `weight` per source")
    fixed_batch: bool = key(
        False,
        "use the batch of the first step at each step, to check that the model can overfit it. The run reports how low "
        "the loss on it can get, and at the end how low it got",
    )
    learn_prompts: bool = key(
        False, "let all tokens count in the loss: also prompts, separators and tokens whose label is `ignore_index`"
    )
    deduplicate_validation: bool = key(
        True, "do not train on documents that are equal to a validation document, whichever source they are in"
    )
    cleaning: CleaningConfig = key(CleaningConfig(), "documents that are dropped from each source")
    cache_dir: str = key(
        "~/.cache/quintet",
        "folder of token stores and trained tokenizers, which are found by their fingerprints",
        min_length=1,
    )
    processes: int | None = key(None, "processes that tokenize; one per core when not given", unit="processes", ge=1)

    @property
    def holds_out(self) -> bool:
        """True if there is something to validate on."""
        return bool(self.validation or self.validation_sources)

    def batch_index(self, step: int) -> int:
        """Return the index of the batch for ``step``, both counted from 0: always 0 with `fixed_batch`."""
        return 0 if self.fixed_batch else step

    @model_validator(mode="before")
    @classmethod
    def _default_validation(cls, values: Any) -> Any:
        """Set the default of `validation` to 0 if there are `validation_sources`."""
        if is_mapping(values) and values.get("validation_sources") and "validation" not in values:
            return {**values, "validation": 0}
        return values

    @model_validator(mode="before")
    @classmethod
    def _default_packing(cls, values: Any) -> Any:
        """Set the default of `packing` to `pieces` for music, which cannot be packed as a stream of tokens."""
        if not is_mapping(values) or "packing" in values or not are_music(values.get("sources")):
            return values
        return {**values, "packing": {"kind": "pieces"}}

    def errors(self) -> ConfigErrors:
        """Yield each contradiction between sources, packing, mixing and stages."""
        yield from self._packing_errors()
        yield from self._mixing_errors()
        yield from self._stage_errors()

    def _packing_errors(self) -> ConfigErrors:
        """Yield errors for music that is not packed as music, and for chunks that only repeat the chunk before."""
        notes = [source.content == "notes" for source in (*self.sources, *self.validation_sources)]
        if any(notes) and not all(notes):
            yield config_error("sources", "some hold music and some text; use sources of one of the two")
        elif any(notes) != isinstance(self.packing, MusicPackingConfig):
            fitting = "pieces or tasks" if any(notes) else "stream, chunks, document or best_fit"
            yield config_error("packing.kind", f"{self.packing.kind} does not fit these sources; set {fitting}")
        packing = self.packing
        if isinstance(packing, ChunkPackingConfig):
            room = self.sequence_length + 1 - (2 if packing.add_bos_eos else 0)
            if packing.overlap >= room:
                yield config_error(
                    "packing.overlap", f"{packing.overlap} tokens leave no room for new ones among {room}; lower it"
                )

    def _mixing_errors(self) -> ConfigErrors:
        """Yield errors for sources with several of weights, repeats and stages, and for weights with sequential
        mixing."""
        for name in ("sources", "validation_sources"):
            weighted = [source.weight is not None for source in getattr(self, name)]
            if any(weighted) and not all(weighted):
                yield config_error(name, f"source {weighted.index(False)} has no weight; give all sources one, or none")
        if self.validation_sources and self.validation:
            yield config_error("validation", "cannot be set with `validation_sources`; remove one of the two")
        for index, source in enumerate(self.sources):
            path = f"sources[{index}]"
            if self.stages and (source.weight is not None or source.repeat is not None):
                name = "weight" if source.weight is not None else "repeat"
                yield config_error(
                    f"{path}.{name}", "cannot be set with `data.stages`, which gives the weights; remove it"
                )
            if source.repeat is not None and any(other.weight is not None for other in self.sources):
                yield config_error(
                    f"{path}.repeat", "give weights or repeats, not both; with weights there are no epochs"
                )
        for index, source in enumerate(self.validation_sources):
            for name in ("weight", "repeat"):
                if getattr(source, name) is not None:
                    path = f"validation_sources[{index}].{name}"
                    yield config_error(
                        path,
                        "applies to training only: validation uses each source in proportion to its size; remove it",
                    )
        if self.mixing == "sequential" and (self.stages or self.sources[0].weight is not None):
            weights = "`data.stages`" if self.stages else "weights"
            yield config_error(
                "mixing", f"sequential cannot be combined with {weights}; `repeat` makes a source longer"
            )

    def _stage_errors(self) -> ConfigErrors:
        """Yield errors for stages that do not follow one another, or that name other labels than the sources have."""
        last = len(self.stages) - 1
        for index, stage in enumerate(self.stages):
            path, before = f"stages[{index}].until", self.stages[index - 1].until if index else None
            if index == last and stage.until is not None:
                yield config_error(path, "must be absent: the last stage ends with the run")
            if index < last and stage.until is None:
                yield config_error(path, "is missing: only the last stage ends with the run")
            if stage.until is None or before is None:
                continue
            if isinstance(stage.until, int) != isinstance(before, int):
                yield config_error(path, f"{stage.until:g} after {before:g}; give all in steps, or all as fractions")
            elif stage.until <= before:
                yield config_error(path, f"{stage.until:g} must be above the {before:g} of the stage before")
        if self.stages:
            yield from self._label_errors()

    def _label_errors(self) -> ConfigErrors:
        labels = [source.label for source in self.sources]
        if None in labels:
            yield config_error(f"sources[{labels.index(None)}].label", "is missing: `data.stages` names sources by it")
            return
        known = ", ".join(dict.fromkeys(filter(None, labels)))
        for index, stage in enumerate(self.stages):
            unknown = [label for label in stage.weights if label not in labels]
            if unknown:
                yield config_error(
                    f"stages[{index}].weights", f"no source has the label {unknown[0]!r}; there are {known}"
                )
        for index, label in enumerate(labels):
            if not any(stage.weights.get(label or "") for stage in self.stages):
                yield config_error(f"sources[{index}].label", f"no stage uses {label!r}; give it a weight in one")
