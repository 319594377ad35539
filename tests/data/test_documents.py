"""The documents of a batch are those of its source, for any ids in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import MakeConfig, run_config, run_values, write_jsonl

from quintet.config.documents import IGNORED
from quintet.config.model import CausalAttentionConfig
from quintet.data.batch import PADDING, Batch
from quintet.data.prepare import Prepared, prepare
from quintet.data.split import TokenRanges, TokenStream
from quintet.model.mask import lay_out
from quintet.tokenize.chat import chat_format
from quintet.tokenize.huggingface import huggingface_tokenizer

END = 0
IDS = {"kind": "ids", "vocab_size": 5000, "end_id": END}
# Ends of turns inside the documents, at their beginning and twice in a row.
ROWS = [[1, 2, END, 3, 4, END], [END, 5, END], [6], [7, END, END, 8, 9, 10, END, 11, 12, 13, END], [14, 15, 16, 17, 18]]
PACKINGS: list[dict[str, Any]] = [
    {"kind": "stream"},
    {"kind": "chunks"},
    {"kind": "chunks", "overlap": 2},
    {"kind": "chunks", "join": False},
    {"kind": "document"},
    {"kind": "best_fit"},
    {"kind": "best_fit", "add_bos_eos": True, "keep_ends": True},
]


def write_rows(folder: Path, rows: list[list[int]], kind: str) -> dict[str, Any]:
    """A source of ``kind`` whose documents are ``rows``."""
    document, folder = {"kind": "tokens"}, folder / "source"
    folder.mkdir()
    if kind == "jsonl":
        lines = [json.dumps({"input_ids": row}) for row in rows]
        (folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return {"kind": kind, "path": str(folder / "rows.jsonl"), "document": document}
    if kind in ("parquet", "huggingface"):
        datasets = pytest.importorskip("datasets")
        found = datasets.Dataset.from_dict({"input_ids": rows})
        if kind == "huggingface":
            found.save_to_disk(folder / "saved")
            return {"kind": kind, "path": str(folder / "saved"), "document": document}
        found.to_parquet(folder / "rows.parquet")
        return {"kind": kind, "path": str(folder / "rows.parquet"), "document": document}
    for number, row in enumerate(rows):
        array = np.array(row, dtype=np.uint16)
        np.save(folder / f"{number:03}.npy", array) if kind == "npy" else array.tofile(folder / f"{number:03}.bin")
    return {"kind": kind, "path": str(folder), "document": "file"}


def all_batches(prepared: Prepared) -> list[Batch]:
    steps = -(-prepared.train.epoch_samples // prepared.train.batch_size)
    return [prepared.train.batch(step) for step in range(steps)]


def with_ends(rows: list[list[int]]) -> list[list[int]]:
    """Return the documents of the store: each ends with the end id."""
    return [row if row[-1] == END else [*row, END] for row in rows]


def runs_of(ids: np.ndarray, documents: np.ndarray) -> list[list[int]]:
    """The ids of each document of a sample."""
    size = int((documents != PADDING).sum())
    return [part.tolist() for part in np.split(ids[:size], np.flatnonzero(np.diff(documents[:size])) + 1)]


def is_part(part: list[int], row: list[int]) -> bool:
    return any(row[at : at + len(part)] == part for at in range(len(row)))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "huggingface", "npy", "bin"])
def test_a_stream_numbers_the_documents_of_every_kind_of_source(
    tmp_path: Path, make_config: MakeConfig, kind: str
) -> None:
    source = write_rows(tmp_path, ROWS, kind)
    prepared = prepare(make_config(source, tokenizer=IDS, validation=0, shuffle=False, sequence_length=5))
    rows = with_ends(ROWS)
    ids, owners = np.concatenate(rows), np.repeat(np.arange(len(rows)), list(map(len, rows)))
    sample = 0
    for batch in all_batches(prepared):
        assert batch.documents is not None
        for inputs, documents in zip(batch.inputs, batch.documents, strict=True):
            part = slice(5 * (sample % prepared.train.epoch_samples), 5 * (sample % prepared.train.epoch_samples) + 5)
            assert inputs.tolist() == ids[part].tolist()
            assert documents.tolist() == (owners[part] - owners[part][0]).tolist()
            sample += 1


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_each_document_of_a_sample_is_a_part_of_one_of_the_source(
    tmp_path: Path, make_config: MakeConfig, packing: dict[str, Any]
) -> None:
    source = write_rows(tmp_path, ROWS, "jsonl")
    prepared = prepare(make_config(source, tokenizer=IDS, validation=0, packing=packing, sequence_length=9))
    rows = with_ends(ROWS)
    if packing.get("add_bos_eos"):
        rows = [[END, *row, END] for row in rows]
    found = [
        part
        for batch in all_batches(prepared)
        for inputs, documents in zip(batch.inputs, batch.documents, strict=True)  # type: ignore[arg-type]
        for part in runs_of(inputs, documents)
    ]
    assert all(any(is_part(part, row) for row in rows) for part in found)
    beginnings = [row for row in rows if any(part == row[: len(part)] and len(part) > 1 for part in found)]
    assert len(beginnings) >= 3
    if packing == {"kind": "best_fit"}:  # the last id of a sample is no input
        assert all(row in found or row[:-1] in found for row in rows if len(row) < 9)


def test_validation_numbers_documents_as_training_does(tmp_path: Path, make_config: MakeConfig) -> None:
    rows = [[10 * number + 1, END, 10 * number + 2, END, 10 * number + 3, END] for number in range(40)]
    prepared = prepare(make_config(write_rows(tmp_path, rows, "jsonl"), tokenizer=IDS, validation=60))
    assert prepared.validation is not None
    seen = 0
    for batch in prepared.validation.batches(4, None):
        assert batch.documents is not None
        for inputs, documents in zip(batch.inputs, batch.documents, strict=True):
            owner = inputs // 10
            known = inputs != END
            # Two tokens of one sample are of one document if they are of one row.
            same = documents[known][:, None] == documents[known]
            assert np.array_equal(same, owner[known][:, None] == owner[known])
            seen += known.sum()
    assert seen > 20


@pytest.mark.parametrize("kind", ["npy", "bin"])
def test_only_a_bare_file_of_ids_is_cut_at_its_end_ids(tmp_path: Path, make_config: MakeConfig, kind: str) -> None:
    ids = [1, 2, END, 3, END, END, 4, 5, 6]
    write_rows(tmp_path, [ids], kind)

    def documents(document: str | None, **tokenizer: Any) -> list[int]:
        source = {"kind": kind, "path": str(tmp_path / "source"), "document": document}
        found = prepare(make_config(source, tokenizer={**IDS, **tokenizer}, validation=0, sequence_length=4)).stores[0]
        return found.document_ends(0, found.document_count).tolist()

    assert documents(None) == documents("end_id") == [3, 5, 6, 10]
    assert documents("file") == [10]
    assert documents(None, end_id=None) == [9]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    data=st.data(),
)
def test_a_stream_with_holes_numbers_documents_as_they_come(sizes: list[int], cuts: list[int], data) -> None:
    owners = np.repeat(np.arange(len(sizes)), sizes)

    class Store:
        def documents(self, start: int, stop: int) -> np.ndarray:
            return owners[start:stop]

    bounds = sorted({min(cut, owners.size) for cut in cuts} | {0, owners.size})
    pairs = list(zip(bounds[::2], bounds[1::2], strict=False))
    stream = TokenStream(Store(), TokenRanges(*(np.array(side, np.int64) for side in zip(*pairs, strict=True))))  # type: ignore[arg-type]
    kept = np.concatenate([owners[start:stop] for start, stop in pairs])
    start = data.draw(st.integers(0, kept.size - 1))
    stop = data.draw(st.integers(start + 1, kept.size))
    expected, number = [0], 0
    for before, after in zip(kept[start : stop - 1], kept[start + 1 : stop], strict=True):
        number += int(before != after)
        expected.append(number)
    assert stream.documents(start, stop - start).tolist() == expected


def test_a_store_knows_the_document_of_each_token(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "texts").mkdir()
    texts = ["a", "bcd", "ef\n", "g" * 9]
    for number, text in enumerate(texts):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    store = prepare(make_config({"kind": "text", "path": str(tmp_path / "texts")}, validation=0)).stores[0]
    owners = np.repeat(np.arange(len(texts)), [len(text) + 1 for text in texts])
    for start in range(store.token_count + 1):
        for stop in range(start, store.token_count + 1):
            assert store.documents(start, stop).tolist() == owners[start:stop].tolist()


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def chatml(tmp_path: Path) -> Path:
    """A tokenizer whose end id ends a turn, not a conversation."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    library = Tokenizer(models.BPE({letter: at for at, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    folder = tmp_path / "chatml"
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_chat_is_one_document_although_the_end_id_ends_its_turns(tmp_path: Path, chatml: Path, command) -> None:
    chats = [
        [{"role": role, "content": f"{number} {turn}"} for turn in range(2) for role in ("user", "assistant")]
        for number in range(9)
    ]
    write_jsonl(tmp_path / "chats.jsonl", ({"messages": chat} for chat in chats))
    source = {"kind": "jsonl", "path": str(tmp_path / "chats.jsonl"), "document": {"kind": "chat"}}
    run = run_values(
        tmp_path,
        name="chat",
        data={"sources": [source], "sequence_length": 256, "validation": 0, "shuffle": False},
        tokenizer={"kind": "huggingface", "path": str(chatml)},
        model={"attention": {"heads": 2, "mask": "causal_document"}},
        train={"batch_size": 1},
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    code, out, err = command("show-batch", str(tmp_path / "run.yaml"), "--json")
    assert code == 0, err
    shown = json.loads(out)
    found = runs_of(np.array(shown["inputs"][0]), np.array(shown["documents"][0]))
    chat = chat_format(tokenizer := huggingface_tokenizer(str(chatml)))
    rendered = [tokenizer.encode_template(chat.render(messages, answer_next=False)) for messages in chats]  # type: ignore[arg-type]
    assert len(found) > 3
    assert found[:-1] == rendered[: len(found) - 1], "no end id stands after a template that has ended"


def test_an_end_id_is_added_only_where_a_document_has_not_ended(tmp_path: Path, chatml: Path, make_config) -> None:
    """Rows of ids and templates that end a turn, with white space after it or not, end by themselves."""
    tokenizer = huggingface_tokenizer(str(chatml))
    end, other = tokenizer.end_id, tokenizer.special_tokens["<|im_start|>"]
    text, white = tokenizer.encode("hi"), tokenizer.encode(" \n")
    rows = [
        [*text, end, *white],
        [*text, end],
        text,
        [*text, *white],
        [*text, other, *white],
        [*text, end, *text],
        white,
    ]
    ended = [True, True, False, False, False, False, False]
    source = write_rows(tmp_path, rows, "jsonl")
    config = {"kind": "huggingface", "path": str(chatml)}
    packing = {"kind": "document", "keep_ends": False}
    prepared = prepare(make_config(source, tokenizer=config, validation=0, shuffle=False, packing=packing, batch=7))
    store = prepared.stores[0]
    starts, stops = store.document_bounds(np.arange(len(rows)))
    found = [store.tokens(start, stop).tolist() for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
    assert found == [row if has else [*row, end] for row, has in zip(rows, ended, strict=True)]
    # Packing without ends drops only an end id.
    samples = [prepared.train.source_samples[0].sample(number).ids.tolist() for number in range(7)]
    assert samples == [row[:-1] if row[-1] == end else row for row in rows]


def test_an_answer_without_text_teaches_nothing(tmp_path: Path, chatml: Path, make_config) -> None:
    said = ["hi", "", "hm", " ", "so", "yes"]
    chat = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    source = {"kind": "jsonl", "path": str(tmp_path / "chats.jsonl"), "document": {"kind": "chat"}}
    config = {"kind": "huggingface", "path": str(chatml)}
    prepared = prepare(make_config(source, tokenizer=config, validation=0))
    store = prepared.stores[0]
    ids, loss_mask = store.tokens(0, store.token_count), store.loss_mask(0, store.token_count)
    assert loss_mask is not None
    assert ids[loss_mask].tolist() == huggingface_tokenizer(str(chatml)).encode_template("yes<|im_end|>\n")


ASKED = [("ab", "cd"), ("e", "fghij"), ("klmnopq", "r"), ("", "stu"), ("vw", "")]  # the last has no loss


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize("length", [3, 5, 9, 27])
def test_each_document_of_a_sample_has_its_own_prompt(
    tmp_path: Path, make_config: MakeConfig, packing: dict[str, Any], length: int
) -> None:
    """The mask of a batch against one that is made from the documents, also where a sample begins within one."""
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in ASKED]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    source = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "document": {"kind": "answer"}}
    prepared = prepare(make_config(source, validation=0, packing=packing, sequence_length=length))
    # Each letter occurs in one document, so that a letter tells its document and if it is in the prompt.
    owner = {ord(letter): number for number, row in enumerate(ASKED) for letter in "".join(row)}
    asked = {ord(letter) for prompt, answer in ASKED for letter in prompt}
    config = CausalAttentionConfig(mask="prefix")
    samples = 0
    for batch in all_batches(prepared):
        prompts = np.zeros_like(batch.inputs, dtype=bool) if batch.prompts is None else batch.prompts
        layout = lay_out(config, *(torch.from_numpy(one) for one in (batch.inputs, batch.documents, prompts)))  # type: ignore[arg-type]
        seen = layout.ranges.dense(torch.device("cpu"))[:, 0].expand(-1, length, length).numpy()
        for inputs, mask in zip(batch.inputs.tolist(), seen, strict=True):
            letters = [place for place, token in enumerate(inputs) if token in owner]
            for query in letters:
                for key in letters:
                    one, other = inputs[query], inputs[key]
                    visible = owner[one] == owner[other] and (key <= query or {one, other} <= asked)
                    assert mask[query, key] == visible, (inputs, query, key)
            samples += any(token in asked for token in inputs)
            assert all(mask[place, place] for place in range(length))
    assert samples >= 1


def prepared(folder: Path, learn_prompts: bool, packing: dict[str, Any]) -> Prepared:
    rows = [{"prompt": f"{'very ' * (row % 5)}long {row}", "answer": f"A{row}"} for row in range(20)]
    write_jsonl(folder / "rows.jsonl", rows)
    source = {"kind": "jsonl", "path": str(folder / "rows.jsonl"), "document": {"kind": "answer"}}
    data = {"sources": [source], "sequence_length": 12, "packing": packing, "validation": 0}
    return prepare(run_config(folder, data=data | {"learn_prompts": learn_prompts}))


def test_a_stream_that_learns_prompts_has_the_same_tokens_and_a_loss_on_each(tmp_path: Path) -> None:
    some, all_of_it = (prepared(tmp_path, value, {"kind": "stream"}) for value in (False, True))
    assert some.fingerprint != all_of_it.fingerprint
    one, other = some.train.batch(0), all_of_it.train.batch(0)
    assert np.array_equal(one.inputs, other.inputs)
    assert 0 < one.valid < other.valid == other.targets.size
    where = one.targets != IGNORED
    assert np.array_equal(one.targets[where], other.targets[where])


def test_samples_without_an_answer_are_left_out_only_where_prompts_have_no_loss(tmp_path: Path) -> None:
    """The longest prompts fill a sample of 12 tokens; each has a table of its own."""
    counts = [prepared(tmp_path, value, {"kind": "document"}).train.epoch_samples for value in (False, True, False)]
    assert counts[1] == 20
    assert counts[0] == counts[2] < 20


def test_padding_has_no_loss_where_prompts_have_one(tmp_path: Path) -> None:
    batch = prepared(tmp_path, True, {"kind": "document"}).train.batch(0)
    assert batch.documents is not None
    assert np.array_equal(batch.targets == IGNORED, batch.documents < 0)
