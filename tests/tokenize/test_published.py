"""tiktoken's and Hugging Face's tokenizers, compared with their libraries."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from quintet.config.tokenizer import HuggingFaceTokenizerConfig, TiktokenTokenizerConfig
from quintet.errors import UserError
from quintet.tokenize import build_tokenizer

TEXTS = ["Hello world", " two  spaces\n\nand lines", "Zwölf 😀 東京 <|endoftext|>", "x = [i**2 for i in range(10)]", ""]
SIZES = {"gpt2": 50257, "p50k_base": 50281, "cl100k_base": 100277, "o200k_base": 200019}
HELLO_WORLD = {
    "gpt2": [15496, 995],
    "p50k_base": [15496, 995],
    "cl100k_base": [9906, 1917],
    "o200k_base": [13225, 2375],
}


def build(config):
    return build_tokenizer(config, list, "", Path())


@pytest.mark.parametrize("name", SIZES)
def test_ids_are_tiktokens(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shutil.copytree(shared / "tokenizers/tiktoken", tmp_path / "cache")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    ours, theirs = build(TiktokenTokenizerConfig(kind="tiktoken", name=name)), tiktoken.get_encoding(name)
    assert ours.vocab_size == SIZES[name]
    assert ours.end_id == theirs.eot_token
    assert ours.encode("Hello world") == HELLO_WORLD[name]
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode_ordinary(text)


def test_without_cache_and_network_the_mend_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> bytes:
        raise OSError("no network")

    monkeypatch.setattr("tiktoken.load.read_file", no_network)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(UserError, match="set TIKTOKEN_CACHE_DIR to a folder that holds"):
        build(TiktokenTokenizerConfig(kind="tiktoken", name="gpt2"))


def test_a_damaged_cache_is_refused_and_not_deleted(shared: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(shared / "tokenizers/tiktoken", tmp_path / "cache")
    file = tmp_path / "cache/9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
    file.chmod(0o644)
    file.write_bytes(b"broken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=file.name):
        build(TiktokenTokenizerConfig(kind="tiktoken", name="cl100k_base"))
    assert file.read_bytes() == b"broken"


@pytest.mark.parametrize(
    "name", ["gpt2", "opt", "llama2", "mistral-v3", "t5-base", "gpt-neox-20b", "bert-base-uncased"]
)
def test_ids_are_those_of_transformers(shared: Path, shared_tokenizer: Any, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = shared / "tokenizers/hf" / name
    ours = shared_tokenizer(name)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ["Hello world", " two  spaces\n\nand lines", "Zwölf 😀 東京", "x = [i**2 for i in range(10)]"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        if ours.lossless:
            assert ours.decode(ids) == text
        # Apart from a missing or added space, the bytes of the ids are those of the decoded text.
        assert abs(int(ours.bytes_per_token()[ids].sum()) - len(ours.decode(ids).encode())) <= 1


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        build(HuggingFaceTokenizerConfig(kind="huggingface", path=str(tmp_path)))
