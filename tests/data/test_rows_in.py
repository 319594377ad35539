"""Documents from rows: texts, token ids and conversations in each format of rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.sources_read import (
    CHATML,
    ROWS,
    WHERE,
    loss_mask,
    read,
    refused,
    skipped,
    source_of,
    t5_like,
    tokens,
    write_rows,
)

from quintet.config.documents import TokenField
from quintet.data.sources import base, reader_of
from quintet.data.sources.base import Report, TextParts, TokenIds
from quintet.data.sources.rows import ids_of, reading_rules
from quintet.errors import UserError
from quintet.tokenize.huggingface import HuggingFaceTokenizer
from quintet.tokenize.simple import ByteTokenizer
from quintet.tokenize.tokenizer_files import ChatRules

KINDS = ["jsonl", "csv", "parquet", "huggingface"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_rows_gives_the_same_documents(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(kind, tmp_path, ROWS)
    monkeypatch.setattr(base, "UNIT_BYTES", 64)
    assert read(source_of(kind, path)) == [row["text"] for row in ROWS]
    assert read(source_of(kind, path, document={"field": "answer", "prefix": "A: "})) == [
        f"A: {number}" for number in range(7)
    ]
    answers = {"kind": "answer", "prompt": "text", "between": " => "}
    assert read(source_of(kind, path, document=answers)) == [
        TextParts((row["text"] + " => ", row["answer"]), (False, True)) for row in ROWS
    ]
    with pytest.raises(UserError, match=r"no (column|field) 'body'"):
        read(source_of(kind, path, document={"field": "body"}))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "huggingface", "text"])
def test_the_loss_begins_behind_the_separator_which_belongs_to_the_prompt(kind: str, tmp_path: Path) -> None:
    texts = ["q: 1 #a# x #a# y", "no separator", "#a#", ""]
    if kind == "text":
        path = tmp_path / "a.txt"
        path.write_text("|".join(texts) + "|")
    else:
        path = write_rows(kind, tmp_path, [{"text": text, "n": "1"} for text in texts])
    keys = {"separator": "|"} if kind == "text" else {}
    report = Report()
    document = {"kind": "conditional", "separator": "#a#"}
    assert read(source_of(kind, path, document=document, **keys), report=report) == [
        TextParts(("q: 1 #a#", " x #a# y"), (False, True)),
        TextParts(("#a#", ""), (False, False)),
    ]
    assert report.dropped == {"without_separator": 2}
    first = read(source_of(kind, path, document={**document, "prefix": "to do: "}, **keys))[0]
    assert first == TextParts(("to do: q: 1 #a#", " x #a# y"), (False, True))


def test_an_empty_document_stays_empty_behind_a_prefix(tmp_path: Path) -> None:
    path = write_rows("jsonl", tmp_path, [{"text": ""}, {"text": "a"}])
    assert read(source_of("jsonl", path, document={"prefix": "P"})) == ["", "Pa"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "huggingface"])
def test_rows_of_ready_tokens(kind: str, tmp_path: Path) -> None:
    rows = [
        {"input_ids": [1, 2, 3, 0], "labels": [-100, 2, 3, -100], "attention_mask": [1, 1, 1, 0]},
        {"input_ids": [4, 5], "labels": [4, 5], "attention_mask": [1, 1]},
    ]
    found = read(source_of(kind, write_rows(kind, tmp_path, rows), document={"kind": "tokens"}))
    assert tokens(found) == [[1, 2, 3], [4, 5]]
    assert loss_mask(found) == [False, True, True, True, True]
    packed = [{**rows[0], "lengths": [1, 3]}, {**rows[1], "lengths": None}, {**rows[1], "lengths": [1, 1]}]
    document = {"kind": "tokens", "seq_lengths": "lengths"}
    (tmp_path / "packed").mkdir()
    found = read(source_of(kind, write_rows(kind, tmp_path / "packed", packed), document=document))
    assert tokens(found) == [[1], [2, 3], [4, 5], [4], [5]]
    assert loss_mask(found) == [False, True, True, True, True, True, True]
    bare = write_rows(kind, tmp_path, [{"ids": [1, 2]}])
    assert tokens(read(source_of(kind, bare, document={"kind": "tokens", "ids": "ids"}))) == [[1, 2]]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"input_ids": "abc"}, "field 'input_ids' holds text, not a list of ids"),
        ({"input_ids": [1.5]}, "field 'input_ids' holds a list, not a list of ids"),
        ({"input_ids": [[1], [2, 3]]}, "field 'input_ids' holds a list, not a list of ids"),
        ({"input_ids": [1, 2], "labels": [1]}, "there are 1 labels for 2 ids"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, "label 0 is 2 where the id is 1"),
        ({"input_ids": [1, 2], "attention_mask": [1]}, "'attention_mask' has 1 values for 2 ids"),
        ({"input_ids": [1, 2], "seq_lengths": [1, 2]}, "field 'seq_lengths' must hold lengths from 1 on of 2 ids"),
        ({"input_ids": [1, 2], "seq_lengths": [0, 2]}, "field 'seq_lengths' must hold lengths from 1 on of 2 ids"),
        ({"ids": [1]}, "has no field 'input_ids' (it has ids)"),
    ],
)
def test_rows_that_hold_no_tokens_are_refused(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = write_rows("jsonl", tmp_path, [row, {"input_ids": [7]}])
    source = source_of("jsonl", path, document={"kind": "tokens"})
    refused(source, f"{path}:1: {problem}")
    found, dropped = skipped(source)
    assert tokens(found) == [[7]]
    assert sum(dropped.values()) == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())))
def test_labels_and_masks_have_the_length_of_the_ids(pairs: list[tuple[int, bool]]) -> None:
    ids = [one for one, _ in pairs]
    labels = [one if kept else -100 for one, kept in pairs]
    found = ids_of({"input_ids": ids, "labels": labels}, TokenField(kind="tokens"), lambda: "here")
    assert isinstance(found, TokenIds)
    assert found.ids.tolist() == ids
    assert found.loss_mask is not None
    assert found.loss_mask.tolist() == [kept for _, kept in pairs]


# Conversations


@pytest.fixture(scope="module")
def chatty() -> HuggingFaceTokenizer:
    """A tokenizer of bytes with the special tokens and the template of ChatML."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(["some text"], trainer)
    return HuggingFaceTokenizer(library.to_str(), "<|endoftext|>", ChatRules(template=CHATML))


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes"},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "huggingface"])
def test_the_assistant_and_what_the_template_puts_behind_it_is_learnt(
    kind: str, tmp_path: Path, chatty: HuggingFaceTokenizer
) -> None:
    path = write_rows(kind, tmp_path, [{"messages": TALK}])
    asked = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    expected = TextParts(
        (asked, "2<|im_end|>\n", "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n", "Yes<|im_end|>\n"),
        (False, True, False, True),
        template=True,
        ends=frozenset({chatty.end_id, chatty.special_tokens["<|im_end|>"]}),
    )
    source = source_of(kind, path, document={"kind": "chat"})
    assert read(source, chatty) == [expected]
    template = tmp_path / "chat.jinja"
    template.write_text(CHATML)
    named = source_of(kind, path, document={"kind": "chat", "template": str(template)})
    assert read(named, chatty) == [expected]
    units, _ = reader_of(source).index(WHERE).units()
    [bare] = [document for unit in units for document in unit.documents(Report())]
    assert bare == TextParts(tuple(message["content"] for message in TALK), (True,) * 5)


@given(st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=6))
def test_the_parts_of_a_conversation_are_what_the_template_writes(
    chatty: HuggingFaceTokenizer, roles: list[str]
) -> None:
    from quintet.data.sources.templates import Conversations
    from quintet.tokenize.chat import chat_format

    said: Any = [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles)]
    found = Conversations(None, chatty).document(said)
    assert "".join(found.texts) == chat_format(chatty).render(said, answer_next=False)
    told = "".join(text for text, is_learnt in zip(found.texts, found.loss_mask, strict=True) if is_learnt)
    assert told == "".join(f"{one['content']}<|im_end|>\n" for one in said if one["role"] == "assistant")


def test_conversations_that_cannot_be_written_are_refused(tmp_path: Path, chatty: HuggingFaceTokenizer) -> None:
    template = tmp_path / "chat.jinja"
    rows = [{"messages": "hello"}, {"messages": [{"role": "pirate", "content": "arr"}]}, {"messages": TALK}]
    path = write_rows("jsonl", tmp_path, rows)
    source = source_of("jsonl", path, document={"kind": "chat"})
    refused(source, f"{path}:1: chat: there must be a list of messages", chatty)
    refused(source, "chat: the tokenizer must know special tokens", ByteTokenizer())
    refused(source, "chat: the tokenizer has no chat template; name a Jinja file", t5_like())
    report = Report()
    assert len(read(source.model_copy(update={"on_error": "skip"}), chatty, report)) == 1
    assert report.dropped == {"bad_chat": 2}
    write_rows("jsonl", tmp_path, rows[2:])
    source = source_of("jsonl", path, document={"kind": "chat", "template": str(template)})
    refused(source, "data.sources[0].document.template: ", chatty)
    for text, problem in [
        ("{{ messages | length }}{{ messages[0].content }}", "its text for the first 2 messages is not the beginning"),
        ("{{ raise_exception('no system') }}", "chat template: no system; correct the row or the template"),
    ]:
        template.write_text(text)
        refused(source, f"{path}:1: chat template: {problem}".replace("template: chat template", "template"), chatty)


def test_a_conversation_is_stored_with_its_mask(tmp_path: Path, make_config: Callable[..., Any]) -> None:
    from quintet.data.prepare import prepare

    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
                        "{% if add_generation_prompt %}assistant: {% endif %}")  # fmt: skip
    path = write_rows("jsonl", tmp_path, [{"messages": TALK}])
    source = {"kind": "jsonl", "path": str(path), "document": {"kind": "chat", "template": str(template)}}
    found = prepare(make_config(source, tokenizer={"kind": "bpe", "vocab_size": 300}, validation=0))
    [store] = found.stores
    ids, mask = store.tokens(0, store.token_count), store.loss_mask(0, store.token_count)
    assert mask is not None
    assert found.tokenizer.decode(ids) == ("system: Be brief.\nuser: 1+1?\nassistant: 2\nuser: Sure?\nassistant: Yes\n")
    assert found.tokenizer.decode(ids[mask]) == "2\nYes\n"
    assert ids[-1] == found.tokenizer.end_id
    assert mask[-1]


def test_the_template_is_part_of_what_a_source_is(tmp_path: Path, chatty: HuggingFaceTokenizer) -> None:
    path, template = write_rows("jsonl", tmp_path, [{"messages": TALK}]), tmp_path / "chat.jinja"
    template.write_text("one")
    source = source_of("jsonl", path, document={"kind": "chat", "template": str(template)})
    before = reader_of(source).index(WHERE).fingerprint
    template.write_text("two")
    assert reader_of(source).index(WHERE).fingerprint != before
    own, other = source_of("jsonl", path, document={"kind": "chat"}), copy.copy(chatty)
    other.chat = replace(chatty.chat, template=CHATML + " ")
    assert reading_rules(source, chatty) == reading_rules(source, other)
    assert reading_rules(own, chatty) != reading_rules(own, other)
    assert reading_rules(source_of("jsonl", path), chatty) == ""
