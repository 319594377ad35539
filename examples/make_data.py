"""Create the small datasets of the examples from Python's standard library and music21, without downloads.

    python examples/make_data.py [FOLDER]        # the default is `data`, as in the examples

Texts are docstrings of the standard library, questions ask what a function does, and music comes from music21's corpus.
Needs the extras `hf` and `piano`. Existing files are overwritten.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import random
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

EXAMPLES = Path(__file__).parent
CHARACTERS = (
    "\n abcdefghijklmnopqrstuvwxyz0123456789.,:;'\"()[]{}=+-*/<>_`#"  # with </s> and ?, the 64 ids of PhyAGI's example
)
PIECES = 12  # reading a score takes a second


def docstrings() -> list[tuple[str, str]]:
    """Return functions and classes of the standard library with their docstrings, shuffled with a fixed seed."""
    documented = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        named = [(f"{file.stem}.{node.name}", ast.get_docstring(node) or "") for node in nodes]
        documented += [(name, text) for name, text in named if len(text) > 40]
    random.Random(0).shuffle(documented)
    return documented


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring on one line."""
    return " ".join(text.split("\n\n")[0].split()).partition(". ")[0]


def write_texts(folder: Path, documents: list[tuple[str, str]]) -> None:
    """Write a folder of text files, the same texts as JSON lines, and questions with answers."""
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    for start in range(0, len(documents), 100):
        chapter = "\n\n".join(text for _, text in documents[start : start + 100])
        (folder / f"texts/{start:05}.txt").write_text(chapter + "\n", encoding="utf-8")
    write_rows(folder / "texts.jsonl", ({"text": text} for _, text in documents[:600]))
    questions = ({"question": f"What is {name}?", "answer": first_sentence(text)} for name, text in documents)
    short = (row for row in questions if len(row["question"] + row["answer"]) < 120)
    write_rows(folder / "questions.jsonl", short)


def write_rows(file: Path, rows: Iterator[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tokens(folder: Path, documents: list[tuple[str, str]]) -> None:
    """Write PhyAGI's token arrays, with one id per character of texts and code, and a pickled tokenizer."""
    from transformers import PreTrainedTokenizerFast

    ids = {"</s>": 0, "?": 1} | {character: 2 + index for index, character in enumerate(CHARACTERS)}
    library = Tokenizer(models.WordLevel(ids, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    library.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, eos_token="</s>", unk_token="?")
    for name in ("stories", "code"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "stories/tokenizer.pkl").write_bytes(pickle.dumps(tokenizer))

    def encode(texts: list[str]) -> np.ndarray:
        return np.array([id for text in texts for id in [*library.encode(text.lower()).ids, 0]], dtype=np.uint16)

    texts = [text for _, text in documents]
    np.save(folder / "stories/train.npy", encode(texts[:300]))
    np.save(folder / "stories/validation.npy", encode(texts[300:330]))
    np.save(folder / "code/train.npy", encode([Path(ast.__file__).read_text(encoding="utf-8")[:50_000]]))


def train_bpe(texts: list[str], size: int, special: list[str]) -> Tokenizer:
    """Train a byte-level BPE with `size` ids on `texts`; the first ids are those of `special`."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(texts, trainer)
    return library


def write_tatm(folder: Path, documents: list[tuple[str, str]]) -> None:
    """Write a dataset in tatm's format: one stream of ids, with id 1 after each document."""
    texts = [text for _, text in documents[:400]]
    library = train_bpe(texts, 1024, ["<pad>", "</s>"])
    folder.mkdir(exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    stream = [id for text in texts for id in [*library.encode(text).ids, 1]]
    np.array(stream, dtype=np.uint16).tofile(folder / "tok_0.bin")
    info = {"tokenizer": "t5-base", "file_prefix": str(folder / "tok"), "dtype": "uint16"}
    (folder / "metadata.json").write_text(json.dumps({"name": "algebraic-stack", "tokenized_info": info}))


def write_llama(folder: Path, documents: list[tuple[str, str]]) -> None:
    """Write a Llama of one layer with its tokenizer, and the documents that VectorLM's examples preprocess."""
    import torch
    from datasets import Dataset, DatasetDict, disable_progress_bars
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    disable_progress_bars()
    texts = [f"{name} Excerpt: {first_sentence(text)}" for name, text in documents[:400]]
    library = train_bpe(texts, 512, ["<unk>", "<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=library, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=256
    )
    tokenizer.save_pretrained(folder / "tiny-llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "tiny-llama")
    splits = {"train": texts[:350], "validation": texts[350:]}
    DatasetDict({name: Dataset.from_dict({"text": rows}) for name, rows in splits.items()}).save_to_disk(folder / "raw")


def preprocess(folder: Path) -> None:
    """Write the processed datasets of VectorLM's first example with the commands in its file."""
    command = [sys.executable, "-m", "quintet", "prepare", str(EXAMPLES / "vectorlm/config.yaml")]
    validation = ["dataset_preprocess.split=validation", f"dataset_preprocess.save_path={folder / 'processed-eval'}"]
    for overrides in ([], validation):
        subprocess.run([*command, *overrides], env=os.environ | {"DATA_ROOT": str(folder)}, check=True)


def write_music(folder: Path) -> None:
    """Write MIDI files of pieces from music21's corpus, and a dataset of notes for piano-gpt."""
    from datasets import Dataset, DatasetDict

    from quintet.piano.midi import write_midi
    from quintet.piano.scores import read_score, scores

    (folder / "midi").mkdir(exist_ok=True)
    rows = []
    for score in scores()[:PIECES]:
        notes = read_score(score)
        write_midi(notes, folder / f"midi/{score.name.replace('/', '-')}.mid")
        columns = {name: getattr(notes, name).tolist() for name in ("pitch", "velocity", "start", "end")}
        rows.append({"notes": columns, "source": json.dumps({"composer": score.composer, "dataset": "music21"})})
    held_out = PIECES // 4
    splits = {"train": rows[held_out:], "validation": rows[:held_out]}
    DatasetDict({name: Dataset.from_list(split) for name, split in splits.items()}).save_to_disk(folder / "notes")


def main(folder: Path) -> None:
    documents = docstrings()
    write_texts(folder, documents)
    write_tokens(folder, documents)
    write_tatm(folder / "algebraic-stack", documents)
    write_llama(folder, documents)
    preprocess(folder)
    write_music(folder)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
