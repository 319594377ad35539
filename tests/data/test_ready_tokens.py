"""Documents of token ids, as other frameworks write them: labels, windows, splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.helpers import MakeConfig

from quintet.config.documents import IGNORED, TokenField
from quintet.data.prepare import Prepared, prepare
from quintet.data.sources.rows import ids_of
from quintet.errors import UserError

SIZE = 60_000
IDS = {"kind": "ids", "vocab_size": SIZE}


def write(path: Path, count: int, seed: int = 0) -> np.ndarray:
    """``count`` ids from 2 on, in an array on disk."""
    ids = np.random.default_rng(seed).integers(2, SIZE, count).astype(np.uint16)
    np.save(path, ids)
    return ids


def samples_of(data: Any) -> list[np.ndarray]:
    """The ids of all samples of the first source."""
    return [data.source_samples[0].sample(index).ids for index in range(data.source_samples[0].count)]


# Labels


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())), st.integers(-200, 9))
def test_labels_of_the_value_that_is_named_have_no_loss(pairs: list[tuple[int, bool]], ignored: int) -> None:
    labels = [one if kept else ignored for one, kept in pairs]
    document = TokenField(kind="tokens", ignore_index=ignored)
    found = ids_of({"input_ids": [one for one, _ in pairs], "labels": labels}, document, lambda: "here")
    assert found.loss_mask is not None
    # An id equal to the value never has a loss: labels cannot express one.
    assert found.loss_mask.tolist() == [kept and one != ignored for one, kept in pairs]


@pytest.mark.parametrize("kind", ["npy", "rows"])
def test_labels_can_be_other_than_minus_100(kind: str, tmp_path: Path, make_config: MakeConfig) -> None:
    ids = np.arange(1, 25)
    labels = np.where(ids % 3 == 0, -1, ids)
    if kind == "npy":
        np.save(tmp_path / "a.npy", ids)
        np.save(tmp_path / "a_labels.npy", labels)
        source = {"kind": "npy", "path": str(tmp_path / "a.npy")}
        named, where = source | {"ignore_index": -1}, "a_labels.npy, from token 0 on"
    else:
        (tmp_path / "a.jsonl").write_text(json.dumps({"input_ids": ids.tolist(), "labels": labels.tolist()}))
        source = {"kind": "jsonl", "path": str(tmp_path / "a.jsonl"), "document": {"kind": "tokens"}}
        named, where = source | {"document": {"kind": "tokens", "ignore_index": -1}}, "a.jsonl:1"
    batch = prepare(make_config(named, tokenizer=IDS, batch=1, sequence_length=23, validation=0)).train.batch(0)
    assert np.array_equal(batch.inputs[0], ids[:-1])
    assert np.array_equal(batch.targets[0], np.where(ids[1:] % 3 == 0, IGNORED, ids[1:]))
    with pytest.raises(UserError, match=f"{where}.*label 2 is -1 where the id is 3.*or -100"):
        prepare(make_config(source, tokenizer=IDS, batch=1, sequence_length=23, validation=0))


# Windows


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(20, 90), length=st.integers(2, 9), masked=st.booleans())
def test_the_last_position_of_a_sample_can_be_without_a_loss(
    count: int, length: int, masked: bool, tmp_path: Path, make_config: MakeConfig
) -> None:
    ids = write(tmp_path / "a.npy", count)
    (tmp_path / "a_labels.npy").unlink(missing_ok=True)
    if masked:
        np.save(tmp_path / "a_labels.npy", np.where(ids % 2, ids.astype(np.int32), -100))
    found = []
    for predict_next in (True, False):
        packing = {"kind": "stream", "predict_next": predict_next}
        config = make_config(
            {"kind": "npy", "path": str(tmp_path / "a.npy")},
            tokenizer=IDS,
            batch=(count - 1) // length,
            sequence_length=length,
            packing=packing,
            validation=0,
            shuffle=False,
        )
        found.append(prepare(config).train.batch(0))
    across, within = found
    rows = (count - 1) // length
    assert np.array_equal(within.inputs, ids[: rows * length].reshape(rows, length))
    assert np.array_equal(across.inputs, within.inputs)
    # A model that shifts the labels of a window itself has length - 1 targets in it.
    shifted = np.where(within.inputs % 2, within.inputs, IGNORED)[:, 1:] if masked else within.inputs[:, 1:]
    assert np.array_equal(within.targets, np.pad(shifted, ((0, 0), (0, 1)), constant_values=IGNORED))
    assert np.array_equal(across.targets[:, :-1], shifted)
    following = ids[length : rows * length + 1 : length].astype(np.int64)
    assert np.array_equal(across.targets[:, -1], np.where(following % 2, following, IGNORED) if masked else following)
    assert within.valid == (within.targets != IGNORED).sum()


# Splits


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(300, 700), fraction=st.sampled_from([0.1, 0.07, 0.29, 1 / 3]))
def test_a_prefix_can_be_validated_on_and_the_rest_trained(
    count: int, fraction: float, tmp_path: Path, make_config: MakeConfig
) -> None:
    """PhyAGI's split: of each file the first int(fraction · tokens)."""
    source = {"kind": "npy", "path": str(tmp_path / "a.npy")}
    ids = write(tmp_path / "a.npy", count)
    config = make_config(
        source | {"start": fraction},
        validation_sources=[source | {"stop": fraction}],
        tokenizer=IDS,
        shuffle=False,
    )
    prepared = prepare(config)
    place = int(fraction * count)
    assert prepared.validation is not None
    assert (prepared.train.tokens, prepared.validation.tokens) == (count - place, place)
    for data, part in ((prepared.train, ids[place:]), (prepared.validation, ids[:place])):
        read = np.concatenate([sample[:-1] for sample in samples_of(data)])
        assert read.size == (part.size - 1) // 8 * 8
        assert np.array_equal(read, part[: read.size])


def held_out_of(prepared: Prepared, files: list[np.ndarray], count: int) -> None:
    """``count`` tokens are held out, and each file gives all of itself, nothing, or one of them its tail."""
    assert prepared.validation is not None
    assert prepared.validation.tokens == count
    assert prepared.train.tokens == sum(one.size for one in files) - count
    stream = prepared.validation.source_samples[0].stream  # pyright: ignore[reportAttributeAccessIssue]
    read, place, cut = stream.read(0, count), 0, 0
    for one in files:
        tails = (size for size in range(1, one.size + 1) if np.array_equal(read[place : place + size], one[-size:]))
        taken = max(tails, default=0)
        cut += 0 < taken < one.size
        place += taken
    assert place == count, "what is held out is no tails of the files"
    assert cut <= 1


@pytest.mark.parametrize("count", [8 + 1, 150, 400, 650, 1000])
def test_a_number_of_tokens_is_held_out_of_few_long_documents(
    count: int, tmp_path: Path, make_config: MakeConfig
) -> None:
    files = [write(tmp_path / f"{index}.npy", 400 + index, seed=index) for index in range(3)]
    config = make_config({"kind": "npy", "path": str(tmp_path / "*.npy")}, tokenizer=IDS, validation=count)
    held_out_of(prepare(config), files, count)


@pytest.mark.parametrize("count", [9, 500])
def test_a_number_of_tokens_is_held_out_of_tatm(count: int, tmp_path: Path, make_config: MakeConfig) -> None:
    """Tokenised with T5, whose documents end with 1; the ids are used as they are, with 1 as the end id."""
    files = [np.append(np.random.default_rng(seed).integers(2, 99, 350), 1) for seed in range(2)]
    for index, ids in enumerate(files):
        (tmp_path / f"tok_{index}.bin").write_bytes(ids.astype(np.uint16).tobytes())
    facts = {"tokenized_info": {"file_prefix": "tok", "tokenizer": "t5-base", "dtype": "uint16"}}
    (tmp_path / "metadata.json").write_text(json.dumps(facts))
    source = {"kind": "tatm", "path": str(tmp_path)}
    held_out_of(prepare(make_config(source, tokenizer=IDS | {"end_id": 1}, validation=count)), files, count)
    for end_id, what in ((None, "do not end"), (2, "with 2")):
        with pytest.raises(UserError, match=f"end with id 1, those of the run's tokenizer {what}; .* kind ids"):
            prepare(make_config(source, tokenizer=IDS | {"end_id": end_id}, validation=count))
