"""Any tokenizer as files that `transformers.AutoTokenizer` loads."""

import json
import re
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from quintet.errors import UserError
from quintet.files import write_text
from quintet.libraries import require
from quintet.tokenize.base import END_OF_TEXT, Tokenizer
from quintet.tokenize.huggingface import HuggingFaceTokenizer, add_special_tokens
from quintet.tokenize.openai import TiktokenTokenizer
from quintet.tokenize.simple import ByteTokenizer, CharTokenizer, IdTokenizer
from quintet.tokenize.tokenizer_files import CHARACTER_OF

# A possessive counted repetition. In the expressions of `tokenizers` (Oniguruma's) its + would repeat it once more.
_POSSESSIVE = re.compile(r"((?:\\p\{\w+\}|\[(?:\\.|[^\]\\])*\])\{\d+,\d*\})\+")


def write_for_transformers(
    tokenizer: Tokenizer, folder: Path, context_length: int, begin_ids: tuple[int, ...] | None = None
) -> list[str]:
    """Write ``tokenizer`` into ``folder``, and return a line for each way in which it differs there.

    The written tokenizer gives a text the same ids, after ``begin_ids``: those of ``tokenizer`` if None. Raises
    UserError for an encoding of tiktoken if `transformers` is not installed.
    """
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }
    notes: list[str] = []
    match tokenizer:
        case HuggingFaceTokenizer():
            tokenizer.write_for_transformers(folder, tokenizer.begin_ids if begin_ids is None else begin_ids, settings)
            return notes
        case ByteTokenizer():
            library = _bytes()
        case CharTokenizer():
            library = _characters(tokenizer.characters)
            notes.append(
                "tokenizer: transformers leaves out characters that it does not know, where Quintet refuses them"
            )
        case IdTokenizer():
            return ["tokenizer: there is none, as the data are ids (tokenizer.kind: ids); give the model ids"]
        case TiktokenTokenizer():
            library = _merged(tokenizer)
        case _ if hasattr(tokenizer, "encode_notes"):
            return ["tokenizer: there is none, as transformers knows no notes; Quintet makes ids of MIDI files"]
        case _:
            raise UserError(f"tokenizer: {type(tokenizer).__name__} cannot be written for transformers")
    if library.token_to_id(END_OF_TEXT) is None:
        add_special_tokens(library, [END_OF_TEXT])
    assert library.token_to_id(END_OF_TEXT) == tokenizer.end_id
    if begin_ids:  # these kinds have no other special id
        assert begin_ids == (tokenizer.end_id,), begin_ids
        library.post_processor = processors.TemplateProcessing(
            single=[END_OF_TEXT, "$A"],
            pair=[END_OF_TEXT, "$A", "$B"],
            special_tokens=[(END_OF_TEXT, tokenizer.end_id)],
        )
    write_text(folder / "tokenizer.json", library.to_str())
    write_text(folder / "tokenizer_config.json", json.dumps(settings, ensure_ascii=False, indent=1))
    return notes


def _bytes() -> tokenizers.Tokenizer:
    """Return a BPE of the 256 bytes without merges."""
    vocabulary = {CHARACTER_OF[value]: value for value in range(256)}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    return library


def _characters(characters: str) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE({character: rank for rank, character in enumerate(characters)}, []))
    library.decoder = decoders.Fuse()
    return library


def _merged(tokenizer: TiktokenTokenizer) -> tokenizers.Tokenizer:
    """Return the ranks of tiktoken as merges, by the conversion of transformers."""
    require("transformers", "hf", "export")
    from transformers.convert_slow_tokenizer import TikTokenConverter

    pattern = _POSSESSIVE.sub(r"(?>\1)", tokenizer.pattern)
    converter = TikTokenConverter(pattern=pattern, extra_special_tokens=[])
    # tiktoken would read the ranks from a file, and keep a copy of it in the user's cache.
    converter.load_tiktoken_bpe = lambda tiktoken_url: tokenizer.ranks
    library = converter.converted()
    names = {number: token for token, number in tokenizer.special_tokens.items()}
    # The library numbers added tokens one after the other, so unused ids need a name as well.
    first = library.get_vocab_size()
    add_special_tokens(
        library, (names.get(number, f"<|unused_{number}|>") for number in range(first, tokenizer.vocab_size))
    )
    return library
