from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import MakeConfig

from quintet.data import build, contamination
from quintet.data import prepare as prepare_module
from quintet.data.contamination import HashSet, copies, hashes_of, shared_documents
from quintet.data.prepare import find_prepared, prepare
from quintet.data.split import hold_out, training_stream
from quintet.errors import UserError
from quintet.plan import make_plan


@dataclass(frozen=True)
class Documents:
    """Documents of ``content`` % 7 + 1 tokens, each of which is the content; the hash is the content too."""

    contents: tuple[int, ...]

    @property
    def _lengths(self) -> np.ndarray:
        return np.array(self.contents) % 7 + 1

    @property
    def token_count(self) -> int:
        return int(self._lengths.sum())

    @property
    def document_count(self) -> int:
        return len(self.contents)

    def document_bounds(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ends = np.cumsum(self._lengths)
        return (ends - self._lengths)[documents], ends[documents]

    def tokens(self, start: int, stop: int) -> np.ndarray:
        return np.repeat(self.contents, self._lengths)[start:stop].astype(np.uint32)

    def loss_mask(self, start: int, stop: int) -> None:
        return None

    def hashes(self, start: int, stop: int) -> np.ndarray:
        return np.array(self.contents[start:stop], dtype=np.uint64)


CONTENTS = st.lists(st.integers(0, 25), min_size=1, max_size=40).map(tuple)


@given(
    contents=st.lists(CONTENTS, min_size=1, max_size=3),
    held_out=st.one_of(st.floats(0, 0.9), st.integers(1, 60).map(float)),
    seed=st.integers(0, 50),
    chunk=st.integers(1, 50),
)
@settings(max_examples=200)
def test_what_is_validated_on_is_nowhere_trained_on_and_all_else_is(
    contents: list[tuple[int, ...]], held_out: float, seed: int, chunk: int
) -> None:
    stores = list(map(Documents, contents))
    held = [hold_out(store, held_out, seed) for store in stores]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contamination, "_CHUNK", chunk)
        left_out = copies(stores, held)
    whole = {store.contents[one] for store, part in zip(stores, held, strict=True) for one in part.documents}
    cut = {store.contents[part.cut] for store, part in zip(stores, held, strict=True) if part.cut is not None}
    sure = {
        store.contents[one]
        for store, part in zip(stores, held, strict=True)
        for one in part.documents
        if one != part.cut
    }
    for store, part, copied in zip(stores, held, left_out, strict=True):
        stream = training_stream(store, part, copied)
        found = stream.read(0, stream.length).tolist()
        assert not sure.intersection(found)
        held_here = set(part.documents.tolist())
        expected = [
            content
            for document, content in enumerate(store.contents)
            if document not in held_here and content not in whole | cut
            for _ in range(content % 7 + 1)
        ]
        # The head of the document that is cut stays, unless it is a copy of one that is held out whole.
        if part.cut is not None and store.contents[part.cut] not in sure:
            content = store.contents[part.cut]
            others = sum(store.contents[one] % 7 + 1 for one in held_here - {part.cut})
            expected += [content] * (content % 7 + 1 - (part.ranges.size - others))
        assert sorted(found) == sorted(expected)
        wanted = {one for one, content in enumerate(store.contents) if content in whole} - held_here
        if part.cut is not None and store.contents[part.cut] in sure:
            wanted.add(part.cut)
        assert copied.tolist() == sorted(wanted)


@dataclass(frozen=True)
class Many:
    """Ten million documents, of which the last thousand repeat a thousand in the middle."""

    document_count: int = 10_000_000

    def hashes(self, start: int, stop: int) -> np.ndarray:
        documents = np.arange(start, stop, dtype=np.uint64)
        documents[documents >= self.document_count - 1000] -= np.uint64(self.document_count // 2)
        return documents * np.uint64(0x9E3779B97F4A7C15)


def test_ten_million_documents_are_searched_with_little_work_in_little_memory(
    python_calls: Callable[[Callable[[], Any]], int],
) -> None:
    store, held = Many(), np.arange(4_950_000, 5_050_000)
    tracemalloc.start()
    found = shared_documents(store, HashSet.of(hashes_of(store, held)), held)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.tolist() == list(range(9_999_000, 10_000_000))
    assert peak < 80 * len(held) + 50_000_000  # the set, and one million hashes at a time
    assert python_calls(lambda: shared_documents(store, HashSet.of(hashes_of(store, held)), held)) < 10_000


def text(path: Path, **keys: Any) -> dict[str, Any]:
    return {"kind": "text", "path": str(path), **keys}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Thirty files, each twice, and ten files once."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index in range(40):
        content = f"[{index:02d}] " + "some words of text, " * 10
        (folder / f"{index:02d}.txt").write_text(content)
        if index < 30:
            (folder / f"{index:02d}-again.txt").write_text(content)
    return folder


def marks(stream: Any, decode: Callable[..., str]) -> list[str]:
    """Return the numbers of the documents that begin in a stream."""
    return [part[:2] for part in decode(stream.stream.read(0, stream.tokens)).split("[")[1:]]


def test_copies_of_what_is_validated_on_are_not_trained_on(make_config: MakeConfig, corpus: Path) -> None:
    prepared = prepare(make_config(text(corpus), validation=0.2))
    assert prepared.validation is not None
    decode = prepared.tokenizer.decode
    train, held = (marks(data.source_samples[0], decode) for data in (prepared.train, prepared.validation))
    assert not set(train) & set(held)
    assert prepared.left_out == 70 - len(train) - len(held) > 0
    leaking = prepare(make_config(text(corpus), validation=0.2, deduplicate_validation=False))
    assert leaking.left_out == 0
    assert set(marks(leaking.train.source_samples[0], decode)) & set(held)


def test_documents_of_the_validation_sources_are_not_trained_on(
    make_config: MakeConfig, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "held").mkdir()
    for name in ("03", "35"):
        (tmp_path / "held" / f"{name}.txt").write_text((corpus / f"{name}.txt").read_text())
    prepared = prepare(make_config(text(corpus), validation_sources=[text(tmp_path / "held")]))
    train = marks(prepared.train.source_samples[0], prepared.tokenizer.decode)
    assert prepared.left_out == 3
    assert sorted({f"{index:02d}" for index in range(40)} - set(train)) == ["03", "35"]


def test_a_source_that_is_validated_on_as_a_whole_says_why_nothing_is_left(
    make_config: MakeConfig, corpus: Path
) -> None:
    with pytest.raises(UserError, match=r"70 documents are left out .*data\.deduplicate_validation"):
        prepare(make_config(text(corpus), validation_sources=[text(corpus)]))


def test_a_plan_counts_what_is_left_out_and_tokenises_nothing_for_it(
    make_config: MakeConfig, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(text(corpus), validation=0.2, tokenizer={"kind": "bpe", "vocab_size": 300})
    assert find_prepared(config) is None
    assert make_plan(config).left_out_documents is None
    assert not list(Path(config.data.cache_dir).glob("*/*"))
    prepared = prepare(config)
    for module, name in ((prepare_module, "_training_documents"), (build, "write_shard")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("the sources are read"))
    plan = make_plan(config)
    assert plan.left_out_documents == prepared.left_out > 0
    assert f"left out     {prepared.left_out} documents that are also validated on" in plan.lines()


def test_a_plan_needs_no_sources(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(text(tmp_path / "nowhere"), tokenizer={"kind": "bpe", "vocab_size": 300})
    assert make_plan(config).left_out_documents is None
