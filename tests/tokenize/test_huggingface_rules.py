"""The rules of a `tokenizer.json` that are used, the token that ends a document, and the bytes of each id."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from quintet.config.tokenizer import HuggingFaceTokenizerConfig
from quintet.errors import UserError
from quintet.tokenize import Tokenizer, build_tokenizer, load_tokenizer
from quintet.tokenize.tokenizer_files import BYTE_OF

PUBLISHED = [
    "gpt2",
    "opt",
    "gpt-neox-20b",
    "dolma2",
    "llama2",
    "mistral-v1",
    "mistral-v3",
    "t5-base",
    "bert-base-uncased",
]


def of(path: Path | str) -> Tokenizer:
    return build_tokenizer(HuggingFaceTokenizerConfig(kind="huggingface", path=str(path)), list, "", Path())


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def byte_level(special: list[str], **changes: Any) -> tokenizers.Tokenizer:
    """A byte-level BPE of the 256 bytes and "ab", with something changed."""
    vocabulary = BYTE_OF | {"ab": 256}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, [("a", "b")], dropout=changes.get("dropout")))
    library.pre_tokenizer = changes.get("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False))
    if "normalizer" in changes:
        library.normalizer = changes["normalizer"]
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(special)
    return library


def saved(folder: Path, special: list[str] | None = None, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    byte_level(["</s>"] if special is None else special, **changes).save(str(folder / "tokenizer.json"))
    return folder


def test_our_byte_alphabet_is_the_librarys() -> None:
    assert set(BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    library = byte_level([])
    for character, value in BYTE_OF.items():
        if value < 128:
            assert library.encode(chr(value)).tokens == [character]


@pytest.mark.parametrize("token", ["<b>", {"content": "<b>", "special": True}])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_the_named_end_comes_before_the_usual_names(tmp_path: Path, file: str, token: Any) -> None:
    folder = saved(tmp_path, ["</s>", "<b>"])
    assert of(folder).end_id == 257
    write_json(folder / file, {"eos_token": token})
    assert of(folder).end_id == 258
    assert of(folder / "tokenizer.json").end_id == 258
    assert of(folder).fingerprint != of(saved(tmp_path / "other", ["</s>", "<b>"])).fingerprint


def test_no_end_or_an_unknown_one_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, ["<b>"])
    with pytest.raises(UserError, match=r"tokenizer\.json: no token is known to end a document.*eos_token"):
        of(folder)
    write_json(folder / "tokenizer_config.json", {"eos_token": "<c>"})
    assert of(folder).end_id == 258  # transformers gives it the next id
    write_json(folder / "config.json", {"model_type": "gpt2", "vocab_size": 258})  # for which a model has no row
    with pytest.raises(UserError, match=r"eos_token '<c>' of tokenizer_config\.json is not in the vocabulary"):
        of(folder)


def test_what_makes_ids_depend_on_more_than_the_text_is_left_out(tmp_path: Path) -> None:
    plain = of(saved(tmp_path / "plain"))
    library = byte_level(["</s>"], dropout=0.5)
    library.enable_truncation(2)
    library.enable_padding(length=40)
    (tmp_path / "busy").mkdir()
    library.save(str(tmp_path / "busy/tokenizer.json"))
    busy = of(tmp_path / "busy")
    text = "abababab </s>"
    assert plain.encode(text).count(256) == 4
    assert all(busy.encode(text) == plain.encode(text) for _ in range(20))
    assert busy.encode_batch([text])[0].tolist() == plain.encode(text)


@pytest.mark.parametrize(
    ("changes", "text", "lossless"),
    [
        ({}, "e\u0301  b", True),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "b", False),
        ({"normalizer": normalizers.NFC()}, "e\u0301", False),
        ({"normalizer": normalizers.Lowercase()}, "A", False),
    ],
)
def test_lossless_is_promised_where_it_holds(tmp_path: Path, changes: Any, text: str, lossless: bool) -> None:
    tokenizer = of(saved(tmp_path, **changes))
    assert tokenizer.lossless is lossless
    assert (tokenizer.decode(tokenizer.encode(text)) == text) is lossless


def test_a_text_that_is_removed_between_words_is_not_promised_back(tmp_path: Path) -> None:
    split = pre_tokenizers.Split(" ", "removed")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = of(saved(tmp_path, pre_tokenizer=pre_tokenizers.Sequence([split, level])))
    assert tokenizer.decode(tokenizer.encode("a b")) == "ab"
    assert not tokenizer.lossless


@pytest.mark.parametrize("name", PUBLISHED)
def test_real_texts_decode_as_the_library_decodes_them(shared: Path, shared_tokenizer: Any, name: str) -> None:
    folder = shared / "tokenizers/hf" / name
    ours, library = shared_tokenizer(name), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    with (shared / "data/text/c4_demo.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(100), strict=False)]
    for ids in ours.encode_batch(texts):
        assert ours.decode(ids) == library.decode(ids.tolist())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_text_of_a_special_token_is_never_its_id(shared: Path, shared_tokenizer: Any, name: str) -> None:
    folder = shared / "tokenizers/hf" / name
    ours = shared_tokenizer(name)
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    special = {token["id"]: token["content"] for token in added if token["special"]}
    ids = ours.encode(" x ".join(special.values()))
    assert not {token for token in ids if special.get(token) not in (None, "<unk>", "[UNK]")}
    assert ours.decode(list(special)) == ""
    assert not ours.bytes_per_token()[list(special)].any()


def test_an_added_token_that_is_not_special_writes_its_text(shared_tokenizer: Any) -> None:
    ours = shared_tokenizer("dolma2")
    ids = ours.encode("at |||IP_ADDRESS||| now")
    assert 100263 in ids
    assert ours.bytes_per_token()[100263] == len("|||IP_ADDRESS|||")
    assert ours.decode(ids) == "at |||IP_ADDRESS||| now"


def test_byte_fallbacks_write_bytes_and_what_is_left_of_a_character_is_replaced(shared_tokenizer: Any) -> None:
    ours = shared_tokenizer("llama2")
    ids = ours.encode("😀")
    assert [ours.pieces.of(token) for token in ids[-4:]] == [bytes([byte]) for byte in "😀".encode()]
    assert ours.decode(ids) == "😀"
    assert ours.decode(ids[:-1]) == "\ufffd"


def test_a_saved_tokenizer_is_one_for_transformers_too(shared_tokenizer: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = shared_tokenizer("llama2")
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = " two  spaces 😀\n"
    assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
    assert theirs.eos_token_id == ours.end_id


def test_a_folder_without_tokenizer_json_is_read_by_transformers(
    shared: Path, shared_tokenizer: Any, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "config.json"):
        shutil.copy(shared / "tokenizers/hf/gpt2" / name, tmp_path / name)
    ours, theirs = of(tmp_path), shared_tokenizer("gpt2")
    text = "Zwölf Boxkämpfer  <|endoftext|> 東京"
    assert ours.encode(text) == theirs.encode(text)
    assert (ours.end_id, ours.vocab_size) == (theirs.end_id, theirs.vocab_size)


def test_without_the_extra_its_command_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'quintet\[hf\]'"):
        of(tmp_path)


def test_a_path_that_cannot_be_a_name_on_the_hub_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        of(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"vocab": {"</s>": 0}}, "added_tokens": []}'])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json: is no tokenizer\.json"):
        of(tmp_path)


def test_a_tokenizer_of_speech_is_refused(tmp_path: Path) -> None:
    library = byte_level(["</s>"])
    library.decoder = decoders.CTC()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="CTC"):
        of(tmp_path).decode([0])


def test_other_processes_get_the_same_tokenizer(shared_tokenizer: Any) -> None:
    ours = shared_tokenizer("t5-base")
    theirs = pickle.loads(pickle.dumps(ours))
    text = "a </s> <extra_id_1> b"  # pieces of the model, which only the library's own settings keep from matching
    assert theirs.fingerprint == ours.fingerprint
    assert theirs.encode(text) == ours.encode(text)


def test_a_changed_vocabulary_is_noticed(tmp_path: Path) -> None:
    of(saved(tmp_path / "source")).save(tmp_path / "saved")
    file = tmp_path / "saved/tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"ab":256', '"ab":258'), encoding="utf-8")
    with pytest.raises(UserError, match="saved"):
        load_tokenizer(tmp_path / "saved")
