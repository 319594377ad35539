"""STLM: each key of the data and the tokenizer changes what its document says; and the text of each dataset's rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from tests.dialects.conftest import Make, changes
from tests.dialects.stlm_runs import EXPERIMENT, WORDS, own, refused, shapes
from tests.dialects.stlm_runs import base as base  # a fixture
from tests.dialects.stlm_runs import place as place  # a fixture

from quintet.config.data import SourceConfig
from quintet.config.dialects.stlm.values import MIXES, REGISTRY, UNREADABLE, dataset_sources, names_of
from quintet.data.prepare import build_tokenizer_of
from quintet.data.sources import reader_of
from quintet.data.sources.base import Report

DIALECT = "stlm"
Row = dict[str, Any]
SOURCE: TypeAdapter[Any] = TypeAdapter(SourceConfig)

# A row of each dataset, and the text that STLM's code makes of it (trainers/data_utils.py of its branch `rewrite`, and
# trainers/utils.py of `main`).
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


def test_every_dataset_of_several_columns_is_tested() -> None:
    assert {name for name, (*_, text) in REGISTRY.items() if "{" in text} <= TEXTS.keys()


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_of_a_row_is_that_of_stlm(name: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    row, text = TEXTS[name]
    datasets.Dataset.from_list([row, row]).save_to_disk(tmp_path / "set")
    [source] = dataset_sources(name)
    local = {key: value for key, value in source.items() if key != "name"} | {"path": str(tmp_path / "set")}
    units, skipped = reader_of(SOURCE.validate_python(local)).index("data.sources[0]").units()
    documents = [document for unit in units for document in unit.documents(Report(), None)]
    assert documents == [text(row)] * 2
    assert not skipped


def test_a_dataset_keeps_its_name_in_both_directions() -> None:
    for name in [*REGISTRY, *MIXES, "debug", "./a/texts.jsonl", "some/folder/of/texts.txt", "owner/name"]:
        assert names_of([SOURCE.validate_python(source) for source in dataset_sources(name)]) == [name]
    for name in UNREADABLE:
        with pytest.raises(ValueError, match=f"'{name}' "):
            dataset_sources(name)
    wiki, stories = dataset_sources("simple_en_wiki"), dataset_sources("tinystories")
    listed = [SOURCE.validate_python(source) for source in wiki + stories]
    assert names_of(listed) == ["simple_en_wiki", "tinystories"]


def test_a_mix_is_its_parts_and_debug_is_the_start_of_one_dataset() -> None:
    paths = [source["path"] for source in dataset_sources("stlm")]
    assert paths == [
        "wikimedia/wikipedia",
        "jtatman/python-code-dataset-500k",
        "teknium/OpenHermes-2.5",
        "roneneldan/TinyStories",
    ]
    # All documents of each, without weights.
    assert not any("weight" in source for name in MIXES for source in dataset_sources(name))
    [first] = dataset_sources("debug")
    assert (first["path"], first["split"]) == ("wikimedia/wikipedia", "train[:2048]")


@changes("trainer.dataset")
def test_dataset(make: Make, place: Path) -> None:
    several = make({"trainer.dataset": [str(place / "texts.jsonl"), str(place / "other.jsonl")]})
    assert several.run.data.epoch_samples > 1.3 * make().run.data.epoch_samples
    hub = make({"trainer.dataset": "simple_en_wiki"}).config.data.sources[0]
    assert (hub.kind, hub.path, hub.name) == ("huggingface", "wikimedia/wikipedia", "20231101.simple")  # pyright: ignore
    assert "did you mean 'simple_en_wiki'" in refused(make, {"trainer.dataset": "simple_en_wik"})


@changes("model.tokenizer_type")
def test_tokenizer_type(make: Make) -> None:
    shared = Path(os.environ.get("QUINTET_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    if not (shared / "tokenizers/tiktoken").is_dir():
        pytest.skip("no tokenizer files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tokenizers/tiktoken"))
        _tokenizers_of_openai(make)
    for name, hub, local, hello in (
        ("llama_32k", "chavinlo/alpaca-native", "llama2", 15043),
        ("opt_50k", "facebook/opt-1.3b", "opt", 31414),
        ("mistral_32k", "mistralai/Mistral-7B-v0.1", "mistral-v1", 22557),
    ):
        changes = {"model.tokenizer_type": name, "model.vocab_size": 50300}
        assert make(changes).config.tokenizer.path == hub  # pyright: ignore
        here = make(changes | {"quintet.tokenizer.path": str(shared / "tokenizers/hf" / local)})
        assert hello in build_tokenizer_of(here.config).encode("Hello")[:2]


def _tokenizers_of_openai(make: Make) -> None:
    ids = {"GPT-2": (50257, 15496), "p50k_base": (50281, 15496), "cl100k_base": (100277, 9906)}
    for name, (size, hello) in (ids | {"o200k_base": (200019, 13225)}).items():
        made = make({"model.tokenizer_type": name, "model.vocab_size": size})
        assert build_tokenizer_of(made.config).encode("Hello")[0] == hello
    same = make({"model.tokenizer_type": "p50k", "model.vocab_size": 50281})
    assert (
        same.config.tokenizer == make({"model.tokenizer_type": "p50k_base", "model.vocab_size": 50281}).config.tokenizer
    )
    assert "fewer than" in refused(make, {"model.tokenizer_type": "gpt2", "model.vocab_size": 300})


@changes("model.tokenizer_dataset_name")
def test_tokenizer_dataset(make: Make, place: Path) -> None:
    texts, other = str(place / "texts.jsonl"), str(place / "other.jsonl")
    zebra, here, same = (
        build_tokenizer_of(make({"model.tokenizer_dataset_name": name}).config) for name in (other, None, texts)
    )
    assert len(zebra.encode("zebra")) < len(here.encode("zebra"))
    assert len(zebra.encode(" ".join(WORDS))) > len(here.encode(" ".join(WORDS)))
    assert same.fingerprint == here.fingerprint


@changes("model.tokenizer_simplify")
def test_simplify(make: Make) -> None:
    simple, whole = (build_tokenizer_of(make({"model.tokenizer_simplify": flag}).config) for flag in (True, False))
    assert simple.decode(simple.encode("naïve ñandú 漢字")) == "naive nandu "
    assert whole.decode(whole.encode("naïve ñandú")) == "naïve ñandú"
    assert len(simple.encode("1986")) == 4
    again = build_tokenizer_of(make({"model.tokenizer_type": "bpe-retrain"}).config)  # GPT-2's own, on other texts
    assert again.fingerprint == whole.fingerprint


@changes("model.vocab_size")
def test_vocab_size(make: Make) -> None:
    larger = make({"model.vocab_size": 310})
    assert shapes(larger)["embedding.weight"] == (310, 16)
    assert larger.run.tokenizer.vocab_size == 310


@changes("model.tokenizer_num_reserved_tokens")
def test_tokenizer_num_reserved_tokens(make: Make) -> None:
    assert [
        (shapes(made)["embedding.weight"][0], made.run.tokenizer.vocab_size)
        for made in (make({"model.tokenizer_num_reserved_tokens": 20}), make({"model.vocab_size": 280}))
    ] == [(300, 280), (280, 280)]


@changes("model.context_window")
def test_context_window(make: Make) -> None:
    assert make({"model.context_window": 32}).batch().inputs.shape == (4, 32)


@changes("trainer.batch_size")
def test_batch_size(make: Make) -> None:
    assert make({"trainer.batch_size": 6}).batch().inputs.shape == (6, 16)


@changes("trainer.gradient_accumulation_steps")
def test_gradient_accumulation_steps(make: Make) -> None:
    assert make({"trainer.gradient_accumulation_steps": 3}).batch().inputs.shape == (12, 16)


@changes("trainer.loss_fn.name")
def test_loss_fn(make: Make) -> None:
    masked, mask = make({"trainer.loss_fn": "next_token_mlm"}), 300
    assert shapes(masked)["embedding.weight"] == (301, 16)
    assert own(masked)(torch.tensor([[mask, 5]])).shape[-1] == 300
    batch, plain = masked.batch(), make().batch()
    hidden = batch.inputs == mask
    assert hidden.any()
    assert (batch.targets[:, :-1][hidden[:, 1:]] == plain.inputs[:, 1:][hidden[:, 1:]]).all()
    assert batch.valid < plain.valid / 3


@changes("trainer.dataloader.name")
def test_dataloader(make: Make) -> None:
    """mlm: the cross-entropy of hidden tokens, each at its own position."""
    assert EXPERIMENT in refused(make, {"trainer.dataloader": "byte_patch"})
    masked, mask = make({"trainer.dataloader": "mlm"}), 300
    assert shapes(masked)["embedding.weight"] == (301, 16)
    batch, plain = masked.batch(), make().batch()
    hidden, lossy = batch.inputs == mask, batch.targets >= 0
    assert hidden.any()
    assert (lossy | ~hidden).all()
    assert (batch.targets[lossy] == plain.inputs[lossy]).all()
    assert batch.valid < plain.valid / 3
    assert "mlm goes with loss_fn: cross_entropy" in refused(
        make, {"trainer.dataloader": "mlm", "trainer.loss_fn": "next_token_mlm"}
    )


@changes("general.paths.data_dir")
def test_data_dir(make: Make) -> None:
    made = make({"general.paths.data_dir": "tokens"}, without=["quintet.data"])
    assert made.run.data.epoch_samples
    assert (made.file.parent / "tokens/stores").is_dir()


@changes("general.max_num_cores")
def test_max_num_cores(make: Make) -> None:
    assert make({"general.max_num_cores": 3}).config.data.processes == 3


@changes("trainer.datasampling.name")
def test_datasampling(make: Make) -> None:
    assert "must be one of standard" in refused(make, {"trainer.datasampling": "sorted"})
