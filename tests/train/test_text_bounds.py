"""Where texts begin and end: from files or data to prompts, measures, benchmarks and an export."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import Train, write_jsonl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from quintet.config.generation import GenerationSettings
from quintet.data.batch import held_out_documents
from quintet.data.prepare import prepare
from quintet.evaluate.continuation import prompt_ids, write_continuations
from quintet.evaluate.language_model import LanguageModel
from quintet.tokenize import load_tokenizer
from quintet.tokenize.bounds import text_bounds
from quintet.train.trained import load_trained, load_writer

transformers = pytest.importorskip("transformers")

GREEDY = GenerationSettings(max_tokens=8, temperature=0.0)


def byte_level(special: list[str], *, begins: bool = False) -> Tokenizer:
    """A tokenizer of bytes with ``special`` as its first ids; with ``begins`` a text begins with the first of them."""
    vocabulary = {
        token: number for number, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    library = Tokenizer(models.BPE(vocabulary, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(special)
    if begins:
        first = [(special[0], 0)]
        library.post_processor = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=first)
    return library


def save_chain(folder: Path, follows: dict[str, str], **generation: Any) -> Path:
    """A Llama that writes after each token the one that ``follows`` says, whatever stands before."""
    folder.mkdir()
    library = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8"
    )
    size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False}
    ids = {"vocab_size": library.get_vocab_size(), "bos_token_id": None, "eos_token_id": 0}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, **heads, **ids))
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        embedding = torch.randn(ids["vocab_size"], 64)
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.zero_()
        for one, following in follows.items():
            model.lm_head.weight[library.token_to_id(following)] += embedding[library.token_to_id(one)]
    model.save_pretrained(folder)
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def written(folder: Path, prompt: str, *stops: str) -> tuple[str, str]:
    trained = load_writer(str(folder))
    ids = prompt_ids(trained.tokenizer, trained.bounds, prompt)
    [found] = write_continuations(
        trained.model, trained.tokenizer, trained.compute, [ids], GREEDY, trained.bounds, stops=stops
    )
    return found.text, found.ended


def written_by_the_harness(folder: Path, prompt: str, *stops: str) -> str:
    from lm_eval.api.instance import Instance

    from quintet.evaluate.harness.model import HarnessModel
    from quintet.evaluate.harness.scoring import Limit

    arguments = (prompt, {"until": list(stops), "max_gen_toks": 8})
    request = Instance(request_type="generate_until", doc={}, arguments=arguments, idx=0, metadata=("task", 0, 1))
    [text] = HarnessModel(load_writer(str(folder)), Limit(300, 128)).generate_until([request])
    return text


CHAIN = {":": "5", "5": "<|im_end|>", "<|im_end|>": "9", "9": "9"}


def test_a_stop_string_that_is_a_special_token_ends_a_text(tmp_path: Path) -> None:
    folder = save_chain(tmp_path / "model", CHAIN)
    assert written(folder, "Q:") == ("59999999"[:7], "length")  # the special token writes nothing
    assert written(folder, "Q:", "<|im_end|>") == ("5", "stop")
    assert written(folder, "Q:", "5<|im_end|>") == ("", "stop")
    assert written(folder, "Q:", "59") == ("", "stop")  # as a reader sees the text
    pytest.importorskip("lm_eval")
    assert written_by_the_harness(folder, "Q:", "Question:", "</s>", "<|im_end|>") == "5"


def test_ids_that_the_generation_config_names_end_a_text(tmp_path: Path) -> None:
    folder = save_chain(tmp_path / "model", CHAIN, eos_token_id=[0, 2])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = theirs.generate(**tokenizer("Q:", return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "Q:5"
    assert written(folder, "Q:") == ("5", "end")
    pytest.importorskip("lm_eval")
    assert written_by_the_harness(folder, "Q:", "Question:") == "5"


def test_stop_strings_of_the_generation_config_end_a_text(tmp_path: Path) -> None:
    folder = save_chain(tmp_path / "model", {":": "5", "5": "6", "6": "7", "7": "5"}, stop_strings=["75"])
    assert written(folder, "Q:") == ("56", "stop")


def test_sampling_settings_of_a_checkpoint_are_defaults(tmp_path: Path, command) -> None:
    pytest.importorskip("lm_eval")
    settings = {"do_sample": True, "temperature": 0.25, "top_k": 0, "top_p": 0.5}  # a top_k of 0 is none
    folder = save_chain(tmp_path / "model", CHAIN, **settings, eos_token_id=[0, 2])
    code, out, err = command("generate", str(folder), "--prompt", "Q:", "--json")
    assert (code, json.loads(out)["text"]) == (0, "5")
    assert "generation_config.json of the checkpoint says: temperature 0.25, top_p 0.5" in err
    code, out, err = command("generate", str(folder), "--prompt", "Q:", "--json", "--temperature", "0", "--top-p", "1")
    assert (code, err) == (0, "")


@pytest.fixture
def tales(tmp_path: Path) -> dict[str, Any]:
    """Short texts of few words, and a tokenizer with <s> and </s> that puts neither around a text by itself."""
    draw = np.random.default_rng(4)
    numbers = ["one", "two", "three", "four", "five", "six"]
    lines = [{"text": f"A cat with {draw.choice(numbers)} kits."} for _ in range(120)]
    write_jsonl(tmp_path / "tales.jsonl", lines)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    byte_level(["<s>", "</s>"]).save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return {
        "tokenizer": {"kind": "huggingface", "path": str(folder)},
        "data": {
            "sources": [{"kind": "jsonl", "path": str(tmp_path / "tales.jsonl")}],
            "validation": 0.1,
            "deduplicate_validation": False,
            "sequence_length": 48,
            "cache_dir": "cache",
        },
        "model": {"layers": 1, "width": 32, "attention": {"heads": 2}},
        "optimizer": {"lr": 1e-2},
        "train": {"steps": 60, "batch_size": 16, "precision": "fp32", "device": "cpu"},
    }


def bits_after(folder: Path, run: LanguageModel, documents: list[np.ndarray], before: int) -> float:
    """Bits a byte of ``documents`` after the id ``before``, by transformers from the export in ``folder``."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    nats = size = 0.0
    for ids in documents:
        whole = [before, *ids.tolist()]
        with torch.no_grad():
            found = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        nats -= sum(float(found[place, token]) for place, token in enumerate(ids.tolist()))
        size += len(ids)
    return nats / math.log(2) / size


WAYS = {
    "around samples": ({"packing": {"kind": "document", "add_bos_eos": True}}, {}),
    "by the tokenizer": ({}, {"begin": True}),
    "both": ({"packing": {"kind": "document", "add_bos_eos": True}}, {"begin": True}),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_documents_begin_with_in_training_they_begin_with_everywhere(
    train: Train, tales: dict[str, Any], tmp_path: Path, way: str
) -> None:
    from quintet.evaluate.likelihood import token_scores
    from quintet.export.huggingface import export_huggingface

    data, tokenizer = WAYS[way]
    sections = {**tales, "data": tales["data"] | data, "tokenizer": tales["tokenizer"] | tokenizer}
    run = load_trained(train(name="tales", **sections))
    prepared = prepare(run.config)
    assert prepared.validation is not None
    samples = [prepared.train.source_samples[0].sample(index).ids.tolist() for index in range(3)]
    if "packing" in data:  # and once only where both put it there
        assert all((ids[0], ids[1] == 0, ids[-1]) == (0, False, 1) for ids in samples)
    assert run.bounds == text_bounds(run.tokenizer, around_samples="packing" in data)
    assert run.bounds.begin == (0,)
    assert prompt_ids(run.tokenizer, run.bounds, "A")[:1] == [0]

    documents = [one.ids for _, one in held_out_documents(prepared.validation, run.tokenizer)]
    assert all(not set(ids.tolist()) & {0, 1} for ids in documents)
    scores = token_scores(run, documents)
    bits = sum(one.nats.sum() for one in scores) / math.log(2) / sum(len(ids) for ids in documents)
    export_huggingface(run, tmp_path / "out")
    assert bits == pytest.approx(bits_after(tmp_path / "out", run, documents, before=0), rel=1e-4)
    assert bits < bits_after(tmp_path / "out", run, documents, before=1)

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("A cat").input_ids == [0, *run.tokenizer.encode("A cat")]
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.bos_token_id, generation.eos_token_id) == (0, 1)
    [text] = write_continuations(
        run.model, run.tokenizer, run.compute, [prompt_ids(run.tokenizer, run.bounds, "")], GREEDY, run.bounds
    )
    assert text.text.startswith("A cat")


def test_without_a_begin_token_a_document_follows_the_end_of_another(train: Train, tales: dict[str, Any]) -> None:
    run = load_trained(train(name="plain", **tales | {"train": tales["train"] | {"steps": 1}}))
    assert (run.bounds.begin, run.bounds.before, run.bounds.preceding) == ((), (1,), 1)
    ids = [token for stream in prepare(run.config).train.source_samples for token in stream.sample(0).ids.tolist()]
    assert 0 not in ids


def test_a_checkpoint_that_begins_its_texts_goes_on_doing_so(
    train: Train, tales: dict[str, Any], tmp_path: Path
) -> None:
    """A tokenizer that puts <s> in front: data, tokenizer of the run and of the export, and what it is tuned on."""
    from quintet.export.huggingface import export_huggingface

    folder = Path(tales["tokenizer"]["path"])
    byte_level(["<s>", "</s>"], begins=True).save(str(folder / "tokenizer.json"))
    sections = tales | {"train": tales["train"] | {"steps": 1}, "data": tales["data"] | {"validation": 0}}
    run = load_trained(train(name="begins", **sections))
    assert (run.bounds.begin, run.bounds.preceding) == ((0,), 0)
    stream = prepare(run.config).train.source_samples[0]
    samples = [stream.sample(index).ids.tolist() for index in range(stream.count)]
    assert any(0 in ids for ids in samples)
    assert all(before == 1 for ids in samples for before, token in itertools.pairwise(ids) if token == 0)
    export_huggingface(run, tmp_path / "out")
    for written in (tmp_path / "out", Path("runs/begins/tokenizer"), folder):
        assert transformers.AutoTokenizer.from_pretrained(written)("A").input_ids == [0, *run.tokenizer.encode("A")]
    assert load_tokenizer(Path("runs/begins/tokenizer")).fingerprint == run.tokenizer.fingerprint

    without = load_trained(train(name="without", **sections | {"tokenizer": tales["tokenizer"] | {"begin": False}}))
    assert without.bounds.begin == ()
    assert without.tokenizer.fingerprint != run.tokenizer.fingerprint
    export_huggingface(without, tmp_path / "without")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "without")("A").input_ids == without.tokenizer.encode(
        "A"
    )
    saved = load_trained(
        train(name="saved", **sections | {"tokenizer": {"kind": "saved", "path": "runs/without", "begin": True}})
    )
    assert saved.tokenizer.fingerprint == run.tokenizer.fingerprint


@pytest.mark.parametrize(
    "name",
    ["llama2", "gpt2", "t5-base", "bert-base-uncased"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("mistral-v3", "opt")],
)
def test_a_real_tokenizer_goes_out_as_it_came_in(
    shared: Path, shared_tokenizer: Any, tmp_path: Path, name: str
) -> None:
    source = shared / "tokenizers/hf" / name
    tokenizer = shared_tokenizer(name)
    tokenizer.save(tmp_path / "saved")
    before, after = (transformers.AutoTokenizer.from_pretrained(one) for one in (source, tmp_path / "saved"))
    for text in ("", "a", "It is  1234 o'clock\n", "naïve 日本語 🎹", " </s> <s>"):
        assert after(text).input_ids == before(text).input_ids
    whole, bare = before("a").input_ids, before("a", add_special_tokens=False).input_ids
    front = next(size for size in range(len(whole)) if whole[size : size + len(bare)] == bare)
    assert list(text_bounds(tokenizer).begin) == whole[:front]
