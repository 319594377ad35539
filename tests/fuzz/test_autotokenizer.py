"""A tokenizer with its special tokens in files beside tokenizer.json, against transformers' AutoTokenizer."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from quintet.errors import UserError
from quintet.tokenize import load_tokenizer
from quintet.tokenize.bounds import text_bounds
from quintet.tokenize.chat import Message, chat_format
from quintet.tokenize.huggingface import HuggingFaceTokenizer, huggingface_tokenizer

transformers = pytest.importorskip("transformers")

END = "<|endoftext|>"
MARKERS = ["<|im_start|>", "<|im_end|>", "<s>", "[INST]", "<tool>"]
FORMS = ["decoder", "additional", "extra", "added_tokens", "map", "own"]
TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
FLAGS = st.fixed_dictionaries({name: st.booleans() for name in ("lstrip", "rstrip", "normalized", "special")})
PIECES = st.lists(st.sampled_from([*MARKERS, END, " ", "  ", "\n", "cat", "the ", "é", "🎹", "<", "|>"]), max_size=9)


def write_folder(folder: Path, tokens: dict[str, tuple[str, dict[str, bool]]], names: dict[str, Any]) -> None:
    """A byte-level tokenizer, with each of ``tokens`` in the file of its form, and ``names`` in tokenizer_config."""
    vocabulary = {token: number for number, token in enumerate([END, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    library = Tokenizer(models.BPE(vocabulary, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([END])
    config: dict[str, Any] = {"eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    added: dict[str, int] = {}
    special_map: dict[str, Any] = {}
    number = len(vocabulary)
    for token, (form, flags) in tokens.items():
        match form:
            case "own":
                library.add_tokens([AddedToken(token, **flags)])
            case "decoder":
                described = {"content": token, "single_word": False, **flags}
                config.setdefault("added_tokens_decoder", {})[str(number)] = described
            case "additional":
                config.setdefault("additional_special_tokens", []).append(token)
            case "extra":
                config.setdefault("extra_special_tokens", []).append(token)
            case "added_tokens":
                added[token] = number
            case "map":
                special_map.setdefault("additional_special_tokens", []).append({"content": token, **flags})
        number += 1
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | names), encoding="utf-8")
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    if special_map:
        (folder / "special_tokens_map.json").write_text(json.dumps(special_map), encoding="utf-8")


PLAIN = {"lstrip": False, "rstrip": False, "normalized": False, "special": True}


@given(
    tokens=st.dictionaries(st.sampled_from(MARKERS), st.tuples(st.sampled_from(FORMS), FLAGS), max_size=4),
    named=st.dictionaries(st.sampled_from(["bos_token", "eos_token", "pad_token"]), st.sampled_from([*MARKERS, END])),
    add_bos=st.sampled_from([None, True, False]),
    texts=st.lists(PIECES.map("".join), min_size=1, max_size=4),
)
@example(tokens={"<|im_end|>": ("decoder", PLAIN)}, named={}, add_bos=None, texts=["cat<|im_end|>the "])
@example(tokens={"<|im_end|>": ("added_tokens", PLAIN)}, named={}, add_bos=None, texts=["cat<|im_end|>the "])
@example(tokens={"<|im_end|>": ("added_tokens", PLAIN)}, named={"eos_token": "<|im_end|>"}, add_bos=None, texts=[""])
@example(tokens={}, named={"eos_token": "<|im_end|>"}, add_bos=None, texts=["cat<|im_end|>"])
@example(tokens={}, named={"bos_token": "<s>"}, add_bos=True, texts=["cat"])
def test_ids_are_those_of_the_library(
    tokens: dict[str, tuple[str, dict[str, bool]]], named: dict[str, str], add_bos: bool | None, texts: list[str]
) -> None:
    names: dict[str, Any] = dict(named) | ({} if add_bos is None else {"add_bos_token": add_bos})
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_folder(folder, tokens, names)
        try:
            theirs = transformers.AutoTokenizer.from_pretrained(folder)
        except Exception:  # what the library refuses
            assume(False)
        try:
            ours = huggingface_tokenizer(str(folder))
        except UserError as error:
            raise AssertionError(f"refused: {error}") from None
        ours.save(folder / "saved")
        again = load_tokenizer(folder / "saved")
        assert isinstance(again, HuggingFaceTokenizer)
        for text in texts:
            expected = theirs(text, add_special_tokens=False).input_ids
            assert ours.encode_template(text) == expected
            assert again.encode_template(text) == expected
            whole = theirs(text).input_ids
            assert [*text_bounds(ours).begin, *expected] == whole
            assert transformers.AutoTokenizer.from_pretrained(folder / "saved")(text).input_ids == whole
        assert ours.end_id == again.end_id == theirs.eos_token_id
        said: list[Message] = [{"role": "user", "content": text} for text in texts]
        rendered = theirs.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
        assert chat_format(ours).encode(said) == chat_format(again).encode(said) == rendered
