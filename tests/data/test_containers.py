"""The same rows make the same token store in any container."""

from __future__ import annotations

import gzip
import json
import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.data.containers import (
    FORMATS,
    INTEGERS,
    LISTS,
    TEXTS,
    VIEWS,
    Container,
    Row,
    containers,
    datasets,
    expected_store,
    pyarrow,
    store_of,
)
from tests.helpers import write_jsonl

from quintet.config.documents import TemplateFields
from quintet.errors import UserError
from quintet.tokenize.huggingface import HuggingFaceTokenizer
from quintet.tokenize.tokenizer_files import ChatRules

KINDS = ["jsonl", "csv", "parquet", "huggingface"]
few = settings(max_examples=15)


def known(kind: str, types: list[str]) -> list[str]:
    """Return those of ``types`` that the library of ``kind`` can hold."""
    return [one for one in types if kind == "parquet" or one not in VIEWS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lambda: tmp_path_factory.mktemp("rows")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@few
def test_texts(kind: str, folder: Any, data: st.DataObject) -> None:
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
    # CSV has no null: an empty value is an empty text.
    rows = data.draw(
        st.lists(st.fixed_dictionaries({"text": texts if kind == "csv" else texts | st.none()}), min_size=1)
    )
    rows = [{**row, "other": number} for number, row in enumerate(rows)]
    container = data.draw(containers(st.fixed_dictionaries({"text": st.sampled_from(TEXTS)}), kind))
    at = folder()
    written = [row["text"].encode() for row in rows if row["text"]]
    assert store_of({**container.write(rows, at / "in"), "on_error": "skip"}, at / "out") == expected_store(
        [(list(text), [True] * len(text)) for text in written],
        empty=sum(row["text"] == "" for row in rows),
        no_field=sum(row["text"] is None for row in rows),
    )


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@few
def test_prompts_and_answers(kind: str, folder: Any, data: st.DataObject) -> None:
    texts = st.text("ab#é\n\"'", max_size=5)
    # An answer of white space has no loss.
    rows = data.draw(st.lists(st.fixed_dictionaries({"prompt": texts, "answer": texts.filter(str.strip)}), min_size=1))
    types = st.fixed_dictionaries({name: st.sampled_from(TEXTS) for name in ("prompt", "answer")})
    container = data.draw(containers(types, kind))
    at = folder()
    pairs = [((row["prompt"] + "=").encode(), row["answer"].encode()) for row in rows]
    source = {**container.write(rows, at / "in"), "document": {"kind": "answer", "between": "="}}
    assert store_of(source, at / "out") == expected_store(
        [(list(asked + told), [False] * len(asked) + [True] * len(told)) for asked, told in pairs]
    )


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@few
def test_texts_of_several_columns(kind: str, folder: Any, data: st.DataObject) -> None:
    """Null counts as a missing column; CSV has no null, no lists and no objects."""
    texts, flat = st.text("ab<&{}é\n\"'", max_size=5), kind == "csv"
    columns = {"asked": texts, "told": texts if flat else texts | st.none()}
    columns |= {} if flat else {"turns": st.lists(st.fixed_dictionaries({"by": texts}), min_size=1, max_size=3)}
    rows = data.draw(st.lists(st.fixed_dictionaries(columns), min_size=1, max_size=4))
    types = st.fixed_dictionaries({name: st.sampled_from(known(kind, TEXTS)) for name in ("asked", "told")})
    container = data.draw(containers(types, kind))
    template = "Q: {{ asked }}\nA: {{ told | default('-') }}"
    template += "" if flat else "{% for turn in turns %}\n{{ loop.index0 | string }}{{ turn.by }}{% endfor %}"
    at = folder()
    source = {**container.write(rows, at / "in"), "document": {"kind": "template", "text": template}}
    expected = []
    for row in rows:
        told = "-" if row["told"] is None else row["told"]
        said = "".join(f"\n{number}{turn['by']}" for number, turn in enumerate(row.get("turns", ())))
        text = f"Q: {row['asked']}\nA: {told}{said}".encode()
        expected.append((list(text), [True] * len(text)))
    assert store_of(source, at / "out") == expected_store(expected)


@pytest.mark.parametrize(
    ("template", "row", "told", "reason"),
    [
        ("{{ b }}", {}, "'b' is undefined; correct the row", "no_field"),
        ("{{ b }}", {"b": None}, "'b' is undefined", "no_field"),
        ("{{ b[1].c }}", {"b": [{"c": "p"}]}, "list object has no element 1", "no_field"),
        ("{{ b }}", {"b": 1}, "writes a value of type int, which is no text", "no_text"),
        ("{{ b }}", {"b": ["x"]}, "writes a value of type list", "no_text"),
        ("{{ 'x' * (2 // b) }}", {"b": 0}, "integer division or modulo by zero", "no_text"),
        ("{{ b.__class__.__mro__ }}", {"b": "x"}, "access to attribute '__class__'", "no_text"),
        ("{% for i in range(10**9) %}{{ b }}{% endfor %}", {"b": "x"}, "Range too big", "no_text"),
        ("{{ '%c' | format(b) }}", {"b": 0xD800}, "text: character 0 is U+D800", "surrogate"),
    ],
)
def test_a_row_that_a_template_cannot_write_is_refused_or_left_out(
    template: str, row: Row, told: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(f"\n{json.dumps(row)}\n")
    document = {"kind": "template", "text": template}
    source = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "document": document}
    with pytest.raises(
        UserError, match=re.escape(f"rows.jsonl:2: {told if reason == 'surrogate' else f'template: {told}'}")
    ):
        store_of(source, tmp_path / "out")
    assert store_of({**source, "on_error": "skip"}, tmp_path / "skipped") == expected_store([], **{reason: 1})


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{{ a if a == 'never' }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (LOOPS, "takes more than 0.5 s"),
        ("{{ (a | length + 8) ** (9 ** (8 + a | length)) }}", "takes more than 0.5 s"),
        ("{% for i in range(9999) %}{{ 'xy' * 10 }}{% endfor %}", "writes more than 10,000 characters"),
        ("{{ a * 10 ** 11 }}", "takes more than 2 GB of memory"),
    ],
)
def test_a_row_on_which_a_template_does_not_end_is_named_and_the_others_are_written(
    template: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quintet.templates._MOST_SECONDS", 0.5)
    monkeypatch.setattr("quintet.templates._MOST_CHARACTERS", 10_000)
    write_jsonl(tmp_path / "rows.jsonl", [{"a": text} for text in ("b", "c", "x", "d", "x", "e")])
    document = {"kind": "template", "text": f"{{% if a == 'x' %}}{template}{{% endif %}}{{{{ a }}}}"}
    source = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "document": document}
    with pytest.raises(UserError) as raised:
        store_of(source, tmp_path / "out")
    assert re.fullmatch(rf".*rows.jsonl:3: template: {told}.*; correct the row or the template", str(raised.value))
    expected = expected_store([([ord(text)], [True]) for text in "bcde"], no_text=2)
    assert store_of({**source, "on_error": "skip"}, tmp_path / "skipped") == expected


def test_a_template_that_python_cannot_compile_in_time_is_a_mistake_of_the_run_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("quintet.templates._MOST_SECONDS", 0.5)
    with pytest.raises(ValidationError, match=r"takes more than 0\.5 s"):
        TemplateFields(kind="template", text="{{ a }}{{ 9 ** (9 ** 9) }}")  # Jinja computes constants


def test_a_damaged_file_costs_no_row_before_the_damage(tmp_path: Path) -> None:
    """Rows wait for a template together; reading later rows can fail."""
    whole = gzip.compress("".join(f'{{"a": "{number:05}"}}\n' for number in range(40_000)).encode())
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    source = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl.gz"), "on_error": "skip"}
    plain = store_of({**source, "document": {"field": "a"}}, tmp_path / "plain")
    assert store_of({**source, "document": {"kind": "template", "text": "{{ a }}"}}, tmp_path / "out") == plain


def test_values_that_json_has_not_reach_a_template(tmp_path: Path) -> None:
    table = pyarrow.table({"a": [datetime(2024, 7, 26)], "b": [Decimal("1.50")], "c": [b"xy"]})
    source = save_parquet(tmp_path / "rows.parquet", table)
    document = {"kind": "template", "text": "{{ a.year | string }} {{ b | string }} {{ c.decode() }}"}
    text = b"2024 1.50 xy"
    assert store_of({**source, "document": document}, tmp_path / "out") == expected_store([(list(text), [True] * 12)])


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ a", "line 1 is no Jinja: unexpected end of template"),
        ("a\n{% for b in c %}", "line 2 is no Jinja"),
        ("{{ a | nope }}", "line 1 is no Jinja: No filter named 'nope'"),
        ("{{ a | random }}", "No filter named 'random'"),
        ("{{ range(3) | join }}", "names no field"),
        ("all alike", "names no field"),
    ],
)
def test_a_template_that_is_none_is_a_mistake_of_the_run_file(template: str, told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        TemplateFields(kind="template", text=template)


def test_a_column_that_a_table_lacks_is_refused_before_rows_are_read(tmp_path: Path) -> None:
    source = save_parquet(tmp_path / "rows.parquet", pyarrow.table({"a": ["x"]}))
    document = {"kind": "template", "text": "{{ a }}{{ b | default('') }}"}
    with pytest.raises(UserError, match="has no column 'b'; it has a"):
        store_of({**source, "document": document}, tmp_path / "out")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "huggingface"])
@given(data=st.data())
@few
def test_ready_tokens(kind: str, folder: Any, data: st.DataObject) -> None:
    def row(pairs: list[tuple[int, bool]], labelled: bool) -> Row:
        labels = [one if kept else -100 for one, kept in pairs]
        return {"input_ids": [one for one, _ in pairs], "labels": labels if labelled else None}

    pairs = st.lists(st.tuples(st.integers(0, 127), st.booleans()), min_size=1, max_size=6)
    rows = data.draw(st.lists(st.builds(row, pairs, st.booleans()), min_size=1, max_size=6))
    lists = st.sampled_from(known(kind, LISTS))
    types = st.fixed_dictionaries(
        {
            "input_ids": st.tuples(lists, st.sampled_from(INTEGERS)),
            "labels": st.tuples(lists, st.sampled_from([one for one in INTEGERS if one[0] == "i"])),
        }
    )
    container = data.draw(containers(types, kind))
    at = folder()
    source = {**container.write(rows, at / "in"), "document": {"kind": "tokens"}}
    assert store_of(source, at / "out") == expected_store(
        [(row["input_ids"], [one != -100 for one in row["labels"] or row["input_ids"]]) for row in rows]
    )


TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if 'name' in m %}({{ m.name }}){% endif %}"
    "{% if m.extra is defined %}[{{ m.extra.a }}]{% endif %};{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def rendered(messages: list[Row]) -> str:
    """Return what the template writes, in Python."""
    return "".join(
        f"{one['role']}: {one['content']}"
        + (f"({one['name']})" if one.get("name") is not None else "")
        + (f"[{one['extra'].get('a') or ''}]" if one.get("extra") is not None else "")
        + ";"
        for one in messages
    )


@pytest.fixture(scope="module")
def chatty() -> HuggingFaceTokenizer:
    """A tokenizer of bytes that knows the template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=257, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    library.train_from_iterator([], trainer)
    return HuggingFaceTokenizer(library.to_str(), "<end>", ChatRules(template=TEMPLATE))


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"content": st.text("ab é", min_size=1, max_size=4)},
        optional={
            "name": st.sampled_from(["N", None]),
            "extra": st.sampled_from([None, {"a": "x"}, {"a": "x", "b": None}, {"a": None, "b": ["y", "z"]}]),
        },
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "huggingface"])
@given(data=st.data())
@few
def test_keys_of_messages_that_hold_null_are_not_there(
    kind: str, folder: Any, chatty: HuggingFaceTokenizer, data: st.DataObject
) -> None:
    talks = data.draw(st.lists(MESSAGES, min_size=1, max_size=4))
    rows = [
        {"messages": [{"role": ("user", "assistant")[index % 2], **one} for index, one in enumerate(talk)]}
        for talk in talks
    ]
    container = data.draw(containers(st.just({}), kind))
    at = folder()
    source = {**container.write(rows, at / "in"), "document": {"kind": "chat"}, "on_error": "stop"}
    found = store_of(source, at / "out", chatty)
    starts = [0, *found.ends[:-1]]
    written = [chatty.decode(found.ids[start:end]) for start, end in zip(starts, found.ends, strict=True)]
    assert [text.removesuffix("<end>") for text in written] == [rendered(row["messages"]) for row in rows]
    plain = Container("jsonl", {"ending": "", "ascii_only": True, "line_end": "\n", "nulls": False}, {})
    same = {**plain.write(rows, at / "plain"), "document": {"kind": "chat"}}
    assert store_of(same, at / "plain_out", chatty) == found


@pytest.mark.parametrize("shape", FORMATS)
@pytest.mark.parametrize("columns", [None, ["input_ids"], ["labels"]])
def test_a_saved_format_changes_nothing(shape: str | None, columns: list[str] | None, tmp_path: Path) -> None:
    rows = {"input_ids": [[5, 6, 7], [11, 12]], "labels": [[-100, 6, 7], [-100, 12]]}
    datasets.Dataset.from_dict(rows).with_format(shape, columns=columns).save_to_disk(tmp_path / "rows")
    source = {"kind": "huggingface", "path": str(tmp_path / "rows"), "document": {"kind": "tokens"}}
    assert store_of(source, tmp_path / "out") == expected_store(
        [([5, 6, 7], [False, True, True]), ([11, 12], [False, True])]
    )


def save_parquet(path: Path, table: Any) -> Row:
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, path)
    return {"kind": "parquet", "path": str(path)}


def test_messages_of_a_struct_of_lists_of_a_map_and_of_json(tmp_path: Path, chatty: HuggingFaceTokenizer) -> None:
    """`datasets` keeps a Sequence of objects as an object of lists, and mixed objects as JSON."""
    talk = [{"role": "user", "content": "a", "extra": {"a": "x"}}, {"role": "assistant", "content": "b"}]
    strings = pyarrow.string()
    as_map = pyarrow.struct({"role": strings, "content": strings, "extra": pyarrow.map_(strings, strings)})
    tables = {
        "lists": pyarrow.array([{name: [one.get(name) for one in talk] for name in ("role", "content", "extra")}]),
        "map": pyarrow.array([[{**one, "extra": one.get("extra") and list(one["extra"].items())} for one in talk]],
                             pyarrow.list_(as_map)),
        "json": pyarrow.array([json.dumps(talk)]).cast(pyarrow.json_()),
        "jsons": pyarrow.ListArray.from_arrays([0, 2], pyarrow.array(map(json.dumps, talk)).cast(pyarrow.json_())),
    }  # fmt: skip
    for name, column in tables.items():
        table = pyarrow.table({"messages": column})
        sources = [save_parquet(tmp_path / f"{name}.parquet", table)]
        if name != "map":  # which `datasets` does not know
            datasets.Dataset(table).save_to_disk(tmp_path / name)
            sources.append({"kind": "huggingface", "path": str(tmp_path / name)})
        for source in sources:
            out = tmp_path / f"{name}_{source['kind']}"
            found = store_of({**source, "document": {"kind": "chat"}}, out, chatty)
            assert chatty.decode(found.ids).removesuffix("<end>") == rendered(talk) == "user: a[x];assistant: b;", name


@pytest.mark.parametrize(
    ("values", "kind", "told"),
    [
        ([5], "int64", "a number"),
        ([True], "bool_", "true or false"),
        ([Decimal(1)], None, "a decimal number"),
        ([b"a"], "binary", "bytes"),
        ([["a"]], None, "a list"),
        ([{"a": "b"}], None, "an object"),
    ],
)
def test_what_is_no_text_is_refused_in_every_container(
    values: list[Any], kind: str | None, told: str, tmp_path: Path
) -> None:
    array = pyarrow.array(values, None if kind is None else getattr(pyarrow, kind)())
    table = pyarrow.table({"text": array})
    datasets.Dataset(table).save_to_disk(tmp_path / "rows")
    sources = [save_parquet(tmp_path / "rows.parquet", table), {"kind": "huggingface", "path": str(tmp_path / "rows")}]
    for source in sources:
        with pytest.raises(UserError, match=r"column 'text' holds .*, not text; name another"):
            store_of(source, tmp_path / "out")
        found = store_of({**source, "on_error": "skip"}, tmp_path / f"out_{source['kind']}")
        assert found == expected_store([], no_text=1)
    if told not in ("a decimal number", "bytes"):
        (tmp_path / "rows.jsonl").write_text(json.dumps({"text": values[0]}))
        with pytest.raises(UserError, match=f"field 'text' holds {told}, not text"):
            store_of({"kind": "jsonl", "path": str(tmp_path / "rows.jsonl")}, tmp_path / "out_jsonl")


@pytest.mark.parametrize("value", [0, "", {}, False, "12", 1.5, [1.5], [None], [True], ["1"], [[1]], [1, None]])
def test_what_is_no_list_of_ids_is_refused(value: Any, tmp_path: Path) -> None:
    """An empty text or a zero is no empty list."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"input_ids": value}))
    source = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "document": {"kind": "tokens"}}
    with pytest.raises(UserError, match=r"field 'input_ids' holds .*, not a list of ids"):
        store_of(source, tmp_path / "out")
