"""Each kind of a part that a run file can name has an entry in that part's table, and no table has any other entry."""

from __future__ import annotations

from pkgutil import resolve_name

import pytest

from quintet.config.describe import walk

TABLES = {
    "data.sources[]": "quintet.data.sources:READERS",
    "data.packing": "quintet.data.divide:PACKINGS",
    "data.cleaning.deduplicate": "quintet.data.cleaning:DEDUPLICATIONS",
    "tokenizer": "quintet.tokenize.registry:TOKENIZERS",
    "model.feedforward": "quintet.model.transformer:FEEDFORWARDS",
    "model.norm": "quintet.model.norm:NORMS",
    "model.position": "quintet.model.position:POSITIONS",
    "model.position.scaling": "quintet.model.position:SCALINGS",
    "model.embedding": "quintet.model.embedding_and_head:EMBEDDINGS",
    "model.head": "quintet.model.embedding_and_head:HEADS",
    "loss": "quintet.train.loss:LOSSES",
    "optimizer": "quintet.train.optimizer:OPTIMIZERS",
    "schedule": "quintet.train.schedule:SCHEDULES",
    "dropout_schedule": "quintet.train.schedule:DROPOUT_SCHEDULES",
    "trainer": "quintet.train.integrations.trainers:TRAINERS",
    "parallel": "quintet.train.build:STRATEGIES",
    "track[]": "quintet.track.composite:TRACKERS",
}
"""The table of each part, by the part's key in a run file."""

OTHER_PLACES = {
    "data.validation_sources[]": TABLES["data.sources[]"],
    "tokenizer.sources[]": TABLES["data.sources[]"],
    "tokenizer.base": TABLES["tokenizer"],
    "model.attention.norm": TABLES["model.norm"],
    "model.feedforward.norm": TABLES["model.norm"],
    "model.head.norm": TABLES["model.norm"],
}
"""The table of each key that takes some of another part's kinds."""

RESOLVED = {"parallel": {"auto"}} | {key: {"model"} for key in OTHER_PLACES if key.endswith(".norm")}
"""Kinds that are replaced by another kind before anything is built."""

WITHOUT_TABLE = {
    "data.sources[].document": "quintet.data.sources.rows:document_maker",  # a match, which pyright proves complete
    "data.validation_sources[].document": "quintet.data.sources.rows:document_maker",
    "tokenizer.sources[].document": "quintet.data.sources.rows:document_maker",
    "model": "quintet.model.build:build_model",  # one of the two is another library's, and takes other arguments
    "model.attention": "quintet.model.mask:lay_out",  # one module with two masks
    "model.init": "quintet.model.init:first_values",  # two of the kinds draw no values
}
"""The function that tells the kinds apart, for each part whose kinds differ by less than a builder each."""


def kinds() -> dict[str, set[str]]:
    """Return the kinds of each part of a run file, by its key; sections that have no kinds are not among them."""
    found: dict[str, set[str]] = {}
    for key in walk():
        if names := set(key.kinds) - {""}:
            found.setdefault(key.path, set()).update(names)
    return found


@pytest.mark.parametrize("key", kinds())
def test_every_kind_of_a_part_has_an_entry_in_its_table(key: str) -> None:
    if key in WITHOUT_TABLE:
        assert callable(resolve_name(WITHOUT_TABLE[key]))
        return
    entries = resolve_name((TABLES | OTHER_PLACES)[key])
    built = kinds()[key] - RESOLVED.get(key, set())
    assert built <= entries.keys() if key in OTHER_PLACES else built == entries.keys()


@pytest.mark.parametrize("name", TABLES.values())
def test_every_entry_that_is_a_name_can_be_imported(name: str) -> None:
    for entry in resolve_name(name).values():
        assert resolve_name(entry) if isinstance(entry, str) else entry
