"""Mistakes in keys and values are reported together, each at its line, with what was probably meant."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from quintet.config.describe import KeyInfo, Section, run_file
from quintet.config.load import load_run_config
from quintet.config.provenance import RunFileError


def problems(tmp_path: Path, values: str | dict[str, Any], *overrides: str) -> list[str]:
    """Return the problems of a run file, each as 'LINE: key: message'."""
    file = tmp_path / "run.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(RunFileError) as caught:
        load_run_config([file], overrides)
    assert list(map(str, caught.value.details)) == list(caught.value.problems)
    return [problem.removeprefix(f"{file}:").strip() for problem in caught.value.problems]


MINIMAL = "data: {sources: [{kind: python_stdlib}]}\ntrain: {steps: 100}\n"
KINDS = "python_stdlib, text, jsonl, csv, parquet, huggingface, npy, bin, tatm, megatron, store, midi, music21"


def test_all_mistakes_come_at_once_sorted_by_line(tmp_path: Path) -> None:
    text = """\
train: {steps: 0, tokens: 3.5, clip_norm: true, precision: bf61, compile: x}
data:
  sources:
    - kind: text
    - kind: txt
    - {}
    - 3
schedule: {kind: constant, min_lr: 1}
model: {atention: {heads: 4}, attention: {kind: x}}
evaluate: 7
optimizer: {betas: [1, 2, 3], lr: .nan}
tokenizer: {vocab_size: a}
track: {kind: tensorboard}
sample:
parallel: {kind: [auto]}
"""
    assert problems(tmp_path, text, "seed=-1", "runs_dir=5", "optimiser.lr=3", "lr=2") == [
        "1: train.clip_norm: must be a number or null, found true",
        "1: train.compile: must be auto, true or false, found 'x'",
        "1: train.precision: must be auto, fp32, tf32, bf16 or fp16, found 'bf61'; did you mean bf16?",
        "1: train.steps: must be at least 1 steps, found 0",
        "1: train.tokens: must be a whole number of tokens or null, found 3.5",
        "4: data.sources[0].path: is missing, and kind 'text' needs it: files, globs (`**` enters "
        "folders) or folders, on this disk or as fsspec addresses such as s3://, gs://, https://",
        f"5: data.sources[1].kind: unknown kind 'txt'; did you mean 'text'? the kinds are {KINDS}",
        f"6: data.sources[2].kind: is missing; the kinds are {KINDS}",
        "7: data.sources[3]: must be a section of keys and values, found 3",
        "8: schedule.min_lr: 'min_lr' is not an option of kind 'constant' (it is one of cosine, linear, wsd, plateau)",
        "9: model.atention: unknown key 'atention'; did you mean 'attention'?",
        "9: model.attention.kind: unknown kind 'x'; the kinds are causal, bidirectional",
        "10: evaluate: must be a section of keys and values, found 7",
        "11: optimizer.betas: must be a list of 2 numbers, found [1, 2, 3]",
        "11: optimizer.lr: must be finite, found nan",
        "12: tokenizer.vocab_size: must be a whole number of ids, found 'a'",
        "13: track: must be a list of sections, found a section; put it in [ ]",
        "14: sample: is empty; give it keys, or remove it to get its defaults",
        "15: parallel.kind: unknown kind ['auto']; did you mean 'auto'? "
        "the kinds are auto, none, ddp, fsdp, hsdp, deepspeed",
        "command line: lr: unknown key 'lr'; it exists as optimizer.lr",
        "command line: optimiser: unknown key 'optimiser'; did you mean 'optimizer'?",
        "command line: runs_dir: must be text, found 5; put it in quotes",
        "command line: seed: must be at least 0, found -1",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "train: {steps: 1}",
            "1: data: is missing, and a run file needs it: documents to read, and how they become samples",
        ),
        (
            "train: {steps: 1}\ndata: {shuffle: true}",
            "2: data.sources: is missing, and section 'data' needs it: what to train on, one entry per source",
        ),
        (
            "train: {steps: 1}\ndata: {sorces: [{kind: python_stdlib}]}",
            "2: data.sorces: unknown key 'sorces'; did you mean 'sources'?",
        ),
        ("train: {steps: 1}\ndata: {sources: []}", "2: data.sources: must not be empty"),
        (
            "train: {steps: 1}\ndata: {sources: [{kind: store, path: [a, b]}]}",
            "2: data.sources[0].path: must be text, found ['a', 'b']",
        ),
        (
            "train: {steps: 1}\ndata: {sources: [{kind: text, path: [a, 3]}]}",
            "2: data.sources[0].path: must be text or a list of texts, found ['a', 3]",
        ),
        (MINIMAL + "track: [{}]", "3: track[0].kind: is missing; the kinds are tensorboard, wandb, mlflow"),
        (MINIMAL + "optimizer: {betas: [0.3, 1]}", "3: optimizer.betas[1]: must be below 1, found 1"),
        (MINIMAL + "optimizer: {betas: [0.3, a]}", "3: optimizer.betas[1]: must be a number, found 'a'"),
        (MINIMAL + f"seed: {'1' * 5001}", "3: seed: has 5,001 digits, more than any number can have"),
        (MINIMAL + "optimizer: {lr: -1}", "3: optimizer.lr: must be at least 0, found -1"),
        (
            MINIMAL + "sample: {top_p: 2, prompts: x}",
            "3: sample.prompts: must be a list of texts, found 'x'; put it in [ ]",
        ),
        (MINIMAL + "name: a/b", "3: name: must be text that is not empty and without / and \\, found 'a/b'"),
        (
            MINIMAL + "model: {width: 100, attention: {heads: 7}}",
            "3: model.attention.heads: 7 heads do not divide model.width = 100; set model.attention.head_dim as well",
        ),
        (
            MINIMAL + "model: {width: 20, attention: {heads: 4}}",
            "3: model.attention.heads: rotary positions need an even head size, not 5, which is model.width = 20 over "
            "4 heads",
        ),
        (MINIMAL + "schedule: {warmup_steps: 200}", "3: schedule.warmup_steps: is more than train.steps = 100"),
        (MINIMAL + "model: null", "3: model: is empty; give it keys, or remove it to get its defaults"),
        (MINIMAL + "atention: {}", "3: atention: unknown key 'atention'; did you mean model.attention?"),
        (
            MINIMAL + "zzz: 1",
            "3: zzz: unknown key 'zzz'; a run file has name, seed, runs_dir, other_inputs, data, tokenizer, model, "
            "loss, optimizer, schedule, dropout_schedule, train, trainer, parallel, evaluate, sample, checkpoint, "
            "track",
        ),
        (
            MINIMAL + "optimizer.lr: 3",
            "3: optimizer.lr: unknown key 'optimizer.lr'; in a file sections are nested: optimizer: {lr: …}",
        ),
        (MINIMAL + "runs_dir: ''", "3: runs_dir: must not be empty"),
        (MINIMAL + "checkpoint: {keep_best: maybe}", "3: checkpoint.keep_best: must be true or false, found 'maybe'"),
        (
            MINIMAL + "schedule: {steps: 3}",
            "3: schedule.steps: unknown key 'steps'; did you mean 'decay_steps'? "
            "(it exists as dropout_schedule.steps or train.steps)",
        ),
    ],
)
def test_a_mistake_is_reported_in_words(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems(tmp_path, text)


def test_held_out_data_and_validation_sources_exclude_each_other(tmp_path: Path) -> None:
    sources = "[{kind: python_stdlib}]"
    text = f"data: {{sources: {sources}, validation_sources: {sources}, validation: 0.1}}\ntrain: {{steps: 1}}"
    [found] = problems(tmp_path, text)
    assert found.startswith("1: data.validation: ")
    file = tmp_path / "run.yaml"
    file.write_text(text.replace(", validation: 0.1", ""))
    assert load_run_config([file]).config.data.validation == 0


def test_an_unknown_key_of_an_override_is_reported_at_the_command_line(tmp_path: Path) -> None:
    [found] = problems(tmp_path, MINIMAL, "data.sources[0].path=x")
    assert found == (
        "command line: data.sources[0].path: 'path' is not an option of kind 'python_stdlib' (it is one "
        "of text, jsonl, csv, parquet, huggingface, npy, bin, tatm, "
        "megatron, store, midi)"
    )


def every_section() -> Iterator[tuple[list[str | int], Section, KeyInfo | None]]:
    """Yield each section of each kind, with its path and the key that holds it."""

    def visit(section: Section, path: list[str | int], holder: KeyInfo | None) -> Iterator[Any]:
        yield path, section, holder
        for key in section.keys:
            for inner in key.kinds.values():
                yield from visit(inner, [*path, key.name, *([0] if key.repeated else [])], key)

    yield from visit(run_file(), [], None)


def typos(word: str, rng: random.Random) -> Iterator[str]:
    """Return typing errors: two letters swapped, one doubled, one missing, and a key next to the right one."""
    at = rng.randrange(len(word) - 1)
    yield word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    at = rng.randrange(len(word))
    yield word[:at] + word[at] * 2 + word[at + 1 :]
    if len(word) > 3:
        yield word[:at] + word[at + 1 :]
        yield word[:at] + rng.choice("qwzx") + word[at + 1 :]


# A section that several keys can hold, such as a source, is tried at one of them.
SECTIONS = {
    (section.kind, *(key.name for key in section.keys)): (path, section) for path, section, _ in every_section()
}
NAMES = [".".join(map(str, (*path, section.kind))) for path, section in SECTIONS.values()]


@pytest.mark.parametrize(("path", "section"), SECTIONS.values(), ids=NAMES)
def test_a_typo_in_any_key_is_refused_with_the_key_that_was_meant(
    tmp_path: Path, path: list[str | int], section: Section
) -> None:
    siblings = {key.name for key in section.keys}
    values: dict[str, Any] = {"data": {"sources": [{"kind": "python_stdlib"}]}, "train": {"steps": 3}}
    here: Any = values
    kinds = dict(section.within)
    for position, step in enumerate(path):
        if isinstance(step, str):
            here[step] = here.get(step) or ([{}] if path[position + 1 :][:1] == [0] else {})
        here = here[step]
        at = ".".join(map(str, path[: position + 1])).replace(".0", "[]")
        if isinstance(here, dict) and at in kinds:
            here["kind"] = kinds[at]
    if section.kind:
        here.clear()
        here["kind"] = section.kind

    rng = random.Random(f"{path}")
    meant = {typo: name for name in sorted(siblings) for typo in typos(name, rng) if typo not in siblings}
    here.update(dict.fromkeys(meant, 1))
    said = "\n".join(problems(tmp_path, values))
    assert [typo for typo, name in meant.items() if f"unknown key {typo!r}; did you mean {name!r}?" not in said] == []


def test_aliases_that_expand_to_too_much_are_refused_before_they_are_expanded(tmp_path: Path) -> None:
    """Each line expands to ten times as many values as the line before, the last to 10^15."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 15)]
    (line,) = problems(tmp_path, "\n".join(lines))
    assert line == "5: its aliases (*name) stand for more than 20,000 values"


@pytest.mark.parametrize("brackets", [("[", "]"), ("{a: ", "}")])
@pytest.mark.parametrize("depth", [61, 3000])
def test_too_deep_nesting_is_refused(tmp_path: Path, brackets: tuple[str, str], depth: int) -> None:
    (line,) = problems(tmp_path, f"a: {brackets[0] * depth}1{brackets[1] * depth}")
    assert line.endswith("nests more than 60 levels")
    told = problems(tmp_path, MINIMAL, f"model={brackets[0] * depth}1{brackets[1] * depth}")
    assert len(told) == 1
