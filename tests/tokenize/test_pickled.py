"""Pickled tokenizers are read, and nothing else in a pickle."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from quintet.errors import UserError
from quintet.tokenize.huggingface import huggingface_tokenizer
from quintet.tokenize.tokenizer_files import BYTE_OF

transformers = pytest.importorskip("transformers")


class Harmful:
    """A hostile pickle: reading it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self._call


def library() -> tokenizers.Tokenizer:
    found = tokenizers.Tokenizer(models.BPE(BYTE_OF, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(["<|endoftext|>"])
    return found


def test_a_pickled_tokenizer_is_the_one_it_was(tmp_path: Path) -> None:
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=library(), eos_token="<|endoftext|>")
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(fast))
    found = huggingface_tokenizer(str(tmp_path / "tokenizer.pkl"))
    for text in ("some text", "naïve 🎹\n"):
        assert found.encode(text) == fast(text).input_ids
        assert found.decode(found.encode(text)) == text
    assert found.end_id == fast.eos_token_id
    fast.save_pretrained(tmp_path / "folder")
    assert found.fingerprint == huggingface_tokenizer(str(tmp_path / "folder")).fingerprint


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Harmful(os.system, "touch harmed"), "system"),
        (Harmful(eval, "open('harmed', 'w')"), "builtins.eval"),
        (Harmful(transformers.AutoTokenizer.from_pretrained, "gpt2"), "builtins.getattr"),
        (Harmful(transformers.tokenization_utils_base.cached_file, "gpt2", "config.json"), "cached_file"),
        (Path("somewhere"), "pathlib"),
    ],
)
def test_what_is_no_tokenizer_is_refused_before_it_runs(
    content: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tokenizer.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=rf"tokenizer\.pkl: holds no tokenizer that can be read \(it asks for .*{name}"):
        huggingface_tokenizer("tokenizer.pkl")
    assert not Path("harmed").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": 1})])
def test_what_holds_no_tokenizer_is_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.pkl"
    file.write_bytes(content)
    with pytest.raises(UserError) as refused:
        huggingface_tokenizer(str(file))
    assert "tokenizer.pkl: holds " in str(refused.value)
    assert "\n" not in str(refused.value)
