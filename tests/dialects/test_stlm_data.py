"""STLM's datasets: the text of each, made of the columns that it has on the hub, mixes of several, and their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from quintet.config.data import SourceConfig
from quintet.config.dialects.stlm.names import MIXES, REGISTRY, UNREADABLE, dataset_sources, names_of
from quintet.data.sources import reader_of
from quintet.data.sources.base import Report

Row = dict[str, Any]
SOURCE: TypeAdapter[Any] = TypeAdapter(SourceConfig)

# A row as each set has it, and the text that STLM's code (trainers/data_utils.py of its branch `rewrite`, and
# trainers/utils.py of `main`) makes of it.
ASKED = {"prompt": "Why?", "response": "So."}
TEXTS: dict[str, tuple[Row, Callable[[Row], str]]] = {
    "simple_en_wiki": ({"title": "A", "text": "A is {{ b }}."}, lambda row: row["text"]),
    "tiny_lessons": ({"textbook": "One.", "idx": 3}, lambda row: row["textbook"]),
    "openhermes-2.5": (
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I.\n"}]},
        lambda row: f"Question: {row['conversations'][0]['value']}\nAnswers: {row['conversations'][1]['value']}",
    ),
    "competition_math": (
        {"problem": "1+1", "solution": "$2$", "level": "Level 1"},
        lambda row: f"Problem: {row['problem']}\nSolution: {row['solution']}",
    ),
    "MATH": (
        {"problem": "1 < 2\n", "solution": "yes & so\n"},
        lambda row: f"{row['problem']}\n{row['solution']}",
    ),
    "super_natural_instructions": (ASKED, lambda row: f"Question: {row['prompt']}\nAnswer: {row['response']}"),
    "tiny_codes": (ASKED, lambda row: f"Question: {row['prompt']}\nAnswer: {row['response']}"),
    "tiny_orca_textbooks": (
        {"textbook": "A book.", "question": "What?", "response": "That."},
        lambda row: f"{row['textbook']}\n Question: {row['question']}\nAnswer: {row['response']}",
    ),
    "mini_cot": (
        {"source": "q", "rationale": "r", "target": "t"},
        lambda row: f"Question: {row['source']}\nAnswer: {row['rationale']} - {row['target']}",
    ),
    "mini_ultrachat": (
        {"data": ["a", "b", "c"]},
        lambda row: "".join(
            f"Question: {turn}" if not at % 2 else f"Answer: {turn}" for at, turn in enumerate(row["data"])
        ),
    ),
    "natural_instructions": (
        {"definition": "d", "inputs": "i", "targets": "t"},
        lambda row: f"Task: Definition: {row['definition']}\nQuestion: {row['inputs']}\nAnswer: {row['targets']}",
    ),
    "python-code-500k": (
        {"instruction": "i", "output": "print('<a>')"},
        lambda row: f"Instruction: {row['instruction']}\nOutput: {row['output']}",
    ),
}


def test_every_set_of_several_columns_is_tried() -> None:
    assert {name for name, (*_, text) in REGISTRY.items() if "{" in text} <= TEXTS.keys()


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_of_a_row_is_the_one_that_stlm_makes_of_it(name: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    row, text = TEXTS[name]
    datasets.Dataset.from_list([row, row]).save_to_disk(tmp_path / "set")
    [source] = dataset_sources(name)
    there = {key: value for key, value in source.items() if key != "name"} | {"path": str(tmp_path / "set")}
    units, left_out = reader_of(SOURCE.validate_python(there)).index("data.sources[0]").units()
    documents = [document for unit in units for document in unit.documents(Report(), None)]
    assert documents == [text(row)] * 2
    assert not left_out


def test_a_dataset_keeps_its_name_both_ways() -> None:
    for name in [*REGISTRY, *MIXES, "debug", "./a/texts.jsonl", "some/folder/of/texts.txt", "owner/name"]:
        assert names_of([SOURCE.validate_python(source) for source in dataset_sources(name)]) == [name]
    for name in UNREADABLE:
        with pytest.raises(ValueError, match=f"'{name}' "):
            dataset_sources(name)
    wiki, stories = dataset_sources("simple_en_wiki"), dataset_sources("tinystories")
    listed = [SOURCE.validate_python(source) for source in wiki + stories]
    assert names_of(listed) == ["simple_en_wiki", "tinystories"]


def test_a_mix_is_its_parts_and_the_set_for_debugging_the_beginning_of_one() -> None:
    paths = [source["path"] for source in dataset_sources("stlm")]
    assert paths == [
        "wikimedia/wikipedia",
        "jtatman/python-code-dataset-500k",
        "teknium/OpenHermes-2.5",
        "roneneldan/TinyStories",
    ]
    # As many of each as there are.
    assert not any("weight" in source for name in MIXES for source in dataset_sources(name))
    [first] = dataset_sources("debug")
    assert (first["path"], first["split"]) == ("wikimedia/wikipedia", "train[:2048]")
