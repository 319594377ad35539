"""Files on disk: trained tokenizers in the cache, and the files that tiktoken reads."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiktoken_ext import openai_public

from quintet.config.tokenizer import BPETokenizerConfig, CharTokenizerConfig
from quintet.errors import UserError
from quintet.tokenize import build_tokenizer, load_tokenizer
from quintet.tokenize.openai import FILES

TEXTS = ["low lower lowest newer newest wider widest " * 30, "one two three, one two three\n" * 10]
TRAIN = """
import sys
from pathlib import Path
from quintet.config.tokenizer import BPETokenizerConfig
from quintet.tokenize import build_tokenizer
words = "low new wide old slow fast".split()
texts = [f"{word} {word}er {word * 2}, {index}\\n" * 9 for index, word in enumerate(words)]
print(build_tokenizer(BPETokenizerConfig(vocab_size=330), lambda: texts, "", Path(sys.argv[1])).fingerprint)
"""


def test_other_processes_hashes_and_cores_train_the_same(tmp_path: Path) -> None:
    found = set()
    for index, seed in enumerate(["0", "1", "2"]):
        environment = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": str(index + 1)}
        command = [sys.executable, "-c", TRAIN, str(tmp_path / seed)]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.add(answer.stdout.strip())
    assert len(found) == 1
    assert re.fullmatch("[0-9a-f]{16}", found.pop())


def test_two_that_train_the_same_at_once_leave_one_folder(tmp_path: Path) -> None:
    config = BPETokenizerConfig(vocab_size=280)

    def texts() -> list[str]:
        """While the first process reads its texts, a second one starts and finishes."""
        build_tokenizer(config, lambda: TEXTS, "corpus", tmp_path)
        return TEXTS

    tokenizer = build_tokenizer(config, texts, "corpus", tmp_path)
    folders = list((tmp_path / "tokenizers").iterdir())
    assert len(folders) == 1
    assert load_tokenizer(folders[0]).fingerprint == tokenizer.fingerprint


def test_config_and_corpus_decide_which_tokenizer_is_found(tmp_path: Path) -> None:
    asked = [
        (BPETokenizerConfig(vocab_size=270), "corpus"),
        (BPETokenizerConfig(vocab_size=271), "corpus"),
        (BPETokenizerConfig(vocab_size=270, simplify=True), "corpus"),
        (BPETokenizerConfig(vocab_size=270), "another corpus"),
        (CharTokenizerConfig(kind="char"), "corpus"),
    ]
    for config, corpus in asked * 2:
        build_tokenizer(config, lambda: TEXTS, corpus, tmp_path)
    assert len(list((tmp_path / "tokenizers").iterdir())) == len(asked)


def test_a_failed_training_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a surrogate"):
        build_tokenizer(BPETokenizerConfig(), lambda: ["abc", "a\udc00"], "corpus", tmp_path)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", FILES)
def test_file_names_and_hashes_are_those_that_tiktoken_pins(name: str) -> None:
    source = inspect.getsource(openai_public.ENCODING_CONSTRUCTORS[name])
    addresses = re.findall(r'"(https://[^"]+)"', source)
    names = {hashlib.sha1(address.encode()).hexdigest() for address in addresses}
    assert FILES[name].keys() == names
    assert set(FILES[name].values()) == set(re.findall(r'hash="([0-9a-f]{64})"', source))


@pytest.mark.parametrize(
    "content",
    [
        '{"format": 1, "kind": "song", "fingerprint": "0"}',
        '{"format": 2}',
        "[]",
        "{",
        '{"format": 1, "fingerprint": "0"}',
    ],
)
def test_a_description_that_makes_no_sense_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "quintet.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"quintet\.json: is damaged"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("old", "new"), [('"abc"', '"acb"'), ('"abc"', '"abd"'), ('"abc"', '""'), ('"abc"', "3")])
def test_changed_characters_are_noticed(tmp_path: Path, old: str, new: str) -> None:
    build_tokenizer(CharTokenizerConfig(kind="char"), lambda: ["cab"], "", tmp_path / "cache").save(tmp_path)
    file = tmp_path / "quintet.json"
    assert old in file.read_text(encoding="utf-8")
    file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=r"quintet\.json: is damaged"):
        load_tokenizer(tmp_path)
