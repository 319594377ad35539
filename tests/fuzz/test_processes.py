"""Runs of two processes, DDP and PyTorch's fully_shard, against the same run in one process, to rounding.

The two processes stay alive from one input to the next: this file is also their program (``serve``), for which an
input is a line of JSON with the run files to train one after the other.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch.distributed.tensor import DTensor

from quintet.config.load import load_run_config
from quintet.errors import UserError
from quintet.processes import is_rank_zero
from quintet.track.console import Reporter
from quintet.train.loop import train
from quintet.train.parallel.group import process_group

Values = dict[str, Any]
FLAG = st.booleans()
RATE = st.sampled_from([0.0, 0.0, 0.1, 0.4])
WAYS = st.sampled_from(
    [
        {"kind": "auto"},
        {"kind": "ddp"},
        {"kind": "ddp", "bucket_mb": 0.001},
        {"kind": "fsdp"},
        {"kind": "fsdp", "shard": "grad_op"},
        {"kind": "fsdp", "offload": True},
        {"kind": "hsdp", "shard_size": 1},
        {"kind": "hsdp", "shard_size": 2, "shard": "grad_op"},
    ]
)
# With a large eps a step follows the gradient, not the sign of what rounding leaves of one that is 0.
OPTIMIZERS = st.sampled_from(
    [
        {"kind": "adamw", "lr": 1e-2, "eps": 1e-3},
        {"kind": "adamw", "lr": 1e-2, "eps": 1e-3, "decay": "all", "weight_decay": 0.5},
        {"kind": "torch", "name": "SGD", "lr": 0.1, "arguments": {"momentum": 0.9}},
        {
            "kind": "torch",
            "name": "SGD",
            "lr": 0.1,
            "weight_decay": 0.3,
            "arguments": {"nesterov": True, "momentum": 0.5},
        },
        {"kind": "torch", "name": "Adam", "lr": 1e-2, "weight_decay": 0.1, "arguments": {"eps": 1e-3, "amsgrad": True}},
        {"kind": "torch", "name": "NAdam", "lr": 1e-2, "arguments": {"eps": 1e-3}},
        {"kind": "torch", "name": "RMSprop", "lr": 1e-2, "arguments": {"eps": 1e-3, "centered": True}},
        {"kind": "torch", "name": "Adagrad", "lr": 1e-2, "arguments": {"eps": 1e-3}},
        {"kind": "torch", "name": "Adadelta", "lr": 1e-1, "arguments": {"eps": 1e-3}},
        {"kind": "torch", "name": "Adafactor", "lr": 1e-2},
    ]
)
# A document is its prompt and its answer; an empty answer leaves it without a target but for its end.
TEXTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), min_size=12, max_size=30)
PACKINGS = st.sampled_from(
    [
        {"kind": "stream"},
        {"kind": "stream", "predict_next": False},
        {"kind": "document"},
        {"kind": "best_fit", "add_bos_eos": True},
        {"kind": "chunks", "join": False},
        {"kind": "chunks", "overlap": 3},
    ]
)
_ATTENTION = {
    "kv_heads": st.sampled_from([1, 2]),
    "bias": FLAG,
    "qk_norm": st.sampled_from(["head", "projection"]),
    "input_dropout": RATE,
    "dropout": RATE,
}
CAUSAL = st.fixed_dictionaries(
    {"heads": st.just(4)},
    optional=_ATTENTION | {"mask": st.sampled_from(["causal", "causal_document", "prefix"]), "restart_positions": FLAG},
)
BIDIRECTIONAL = st.fixed_dictionaries(
    {"kind": st.just("bidirectional"), "heads": st.just(4)},
    optional=_ATTENTION | {"mask": st.just("document"), "window": st.just(5)},
)
MODELS = st.fixed_dictionaries(
    {"layers": st.integers(1, 3), "width": st.sampled_from([16, 24]), "attention": CAUSAL | CAUSAL | BIDIRECTIONAL},
    optional={
        "block": st.sampled_from(["pre_norm", "post_norm", "output_norm", "sandwich_norm", "parallel"]),
        "norm": st.sampled_from([{"kind": "layer"}, {"kind": "rms", "gain": False}]),
        "feedforward": st.builds(
            lambda kind, rate: {"kind": kind, "dropout": rate, "width": 20}, st.sampled_from(["plain", "gated"]), RATE
        ),
        "position": st.sampled_from([{"kind": "learned"}, {"kind": "sinusoidal"}, {"kind": "none"}]),
        "init": st.sampled_from([{"kind": "normal", "std": 0.2}, {"kind": "kaiming"}, {"kind": "none"}]),
        "head": st.builds(lambda bias, rate: {"bias": bias, "dropout": rate}, FLAG, RATE),
        "pad_vocab_size_multiple": st.sampled_from([7, 64]),
        "embedding_scale": st.just(3.0),
        "embedding_dropout": RATE,
        "residual_dropout": RATE,
        "tie_embeddings": FLAG,
        "tie_feedforward": FLAG,
        "tie_attention_output": FLAG,
    },
)
LIBRARY: dict[str, Values] = {
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1},
    "gpt2": {"n_embd": 16, "n_head": 2, "n_inner": 24, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    "mixtral": {"hidden_size": 16, "intermediate_size": 24, "num_local_experts": 3}
    | {"num_attention_heads": 2, "num_key_value_heads": 2},
}
FOREIGN = st.builds(
    lambda name, tied, more: {
        "kind": "huggingface",
        "pretrained": False,
        "name_or_path": name,
        "config": LIBRARY[name] | {"num_hidden_layers": 2, "tie_word_embeddings": tied, "vocab_size": 300},
        **more,
    },
    st.sampled_from(sorted(LIBRARY)),
    FLAG,
    st.sampled_from([{}, {"lora": {"rank": 2}}, {"lora": {"rank": 2, "dropout": 0.3}}, {"freeze": "core"}]),
)
LOSSES = st.fixed_dictionaries(
    {},
    optional={
        "label_smoothing": st.sampled_from([0.1, 0.5]),
        "z_loss": st.just(0.01),
        "ignore_token_ids": st.sampled_from([[101], [97, 98, 99, 100]]),
        "chunk": st.sampled_from([5, 64]),
    },
)
SCHEDULES = st.sampled_from(
    [
        {"kind": "constant"},
        {"kind": "constant", "warmup_steps": 2},
        {"kind": "plateau", "patience": 0, "threshold": 0.5},
    ]
)
DROPOUTS = st.sampled_from([{"kind": "none"}] * 3 + [{"kind": "linear", "start": 0.5, "end": 0.1, "last_step": 3}])
TRAIN = st.fixed_dictionaries(
    {"steps": st.integers(2, 4)},
    optional={
        "clip_norm": st.sampled_from([None, 0.05, 100.0]),
        "activation_checkpointing": st.sampled_from(["selective", 1, 2]),
    },
)
EVALUATE = st.fixed_dictionaries(
    {"every": st.sampled_from([1, 2]), "at_start": FLAG},
    optional={"batch_size": st.integers(1, 5), "samples": st.integers(1, 5), "samples_each": FLAG},
)


@dataclass(frozen=True)
class Input:
    """A run file without its paths, the lengths of prompts and answers of each source, how two processes take the run,
    and where it is cut to go on in the other number of processes."""

    values: Values
    texts: list[list[tuple[int, int]]]
    way: Values
    cut: str | None


@st.composite
def inputs(draw: st.DrawFn) -> Input:
    """Inputs of every kind; where two processes need smaller passes, without dropout that is drawn by the pass."""
    each, batch = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from(["batch_size", "batch_size_per_device"]))
    size = each if batch == "batch_size_per_device" else 2 * each
    micro = draw(st.sampled_from([one for one in range(1, size + 1) if size % one == 0]))
    model = draw(st.one_of(MODELS, MODELS, MODELS, MODELS, FOREIGN))
    loss, dropouts = draw(LOSSES), draw(DROPOUTS)
    if draw(st.integers(0, 4)) == 4:
        loss = loss | {"kind": "masked", "fraction": 0.4} | ({"mask_id": 1} if model.get("kind") else {})
    if each % micro:
        model, dropouts = _without_drawn_by_pass(model), {"kind": "none"}
    texts, cut = draw(st.lists(TEXTS, min_size=1, max_size=2)), draw(st.sampled_from([None, None, "two", "one"]))
    document = {"kind": draw(st.sampled_from(["text", "answer", "conditional"]))}
    if document["kind"] == "conditional":
        document["separator"] = ":"
    values = {
        "data": {
            "sources": [{"kind": "jsonl", "document": document, "label": f"s{index}"} for index in range(len(texts))],
            "validation": 0.2,
            "sequence_length": 24,
            "packing": draw(PACKINGS),
            "processes": 1,
        },
        "tokenizer": {"kind": "byte"},
        "model": model,
        "loss": loss,
        "optimizer": draw(OPTIMIZERS),
        "schedule": draw(SCHEDULES),
        "dropout_schedule": dropouts,
        "train": {"precision": "fp32", "device": "cpu", "log_every": 1, "micro_batch_size": micro}
        | {batch: each if batch == "batch_size_per_device" else 2 * each}
        | draw(TRAIN),
        "evaluate": draw(EVALUATE),
        "checkpoint": {"every": None, "at_end": True},
        "sample": {"prompts": []},
    }
    way = draw(WAYS)
    if way["kind"] in ("fsdp", "hsdp") and values["optimizer"].get("name") == "Adafactor":
        values["optimizer"] = {"kind": "adamw", "lr": 1e-2, "eps": 1e-3}  # which PyTorch can step in shards
    if values["schedule"].get("kind") == "plateau":
        cut = None  # the validation where it ended first would count
    return Input(values, texts, way, cut)


def _without_drawn_by_pass(model: Values) -> Values:
    if "lora" in model:
        return model | {"lora": {"rank": 2}}
    attention = {name: value for name, value in model.get("attention", {}).items() if name != "dropout"}
    return model | ({"attention": attention} if attention else {})


def _letters(number: int, size: int) -> str:
    return "".join(chr(97 + (7 * number + n * n) % 26) for n in range(size))


def write_run_file(given: Input, folder: Path) -> Path:
    """The run file of ``given``, with its sources beside it: documents of other letters each."""
    values = given.values
    for index, (source, texts) in enumerate(zip(values["data"]["sources"], given.texts, strict=True)):
        rows = []
        for number, sizes in enumerate(texts):
            one, other = (_letters(number, size) for size in sizes)
            answer = source["document"]["kind"] == "answer"
            rows.append(json.dumps({"prompt": one, "answer": other} if answer else {"text": f"{one}:{other}"}))
        (folder / f"{index}.jsonl").write_text("\n".join(rows) + "\n")
    sources = [source | {"path": str(folder / f"{n}.jsonl")} for n, source in enumerate(values["data"]["sources"])]
    placed = values | {"data": values["data"] | {"sources": sources, "cache_dir": str(folder / "cache")}}
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(placed | {"runs_dir": str(folder / "runs")}))
    return file


def run(file: Path, *overrides: str) -> Values | str:
    """Train the run of ``file``: losses, gradient norms and the last weights, or why it was refused."""
    try:
        config = load_run_config([file], overrides).config
        outcome = train(config, Reporter(Console(quiet=True)), peak_flops=1e12)
    except UserError as error:
        return str(error)
    state = outcome.run.engine.state()["model"]
    weights = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}
    if not is_rank_zero():
        return {}
    rows = [json.loads(line) for line in (outcome.run.folder / "metrics.jsonl").read_text().splitlines()]
    keys = ("train/loss", "train/grad_norm", "train/learning_rate", "train/skipped_steps", "validation/")
    found = {f"{row['step']} {key}": row[key] for row in rows for key in row if key.startswith(keys)}
    return {"figures": found, "weights": {name: value.detach().clone() for name, value in weights.items()}}


class Pair:
    """Two processes of one group, which train what they are told; begun anew after one has failed."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []

    def run(self, file: Path, *overrides: str) -> Values | str:
        """``run`` in both. Raises AssertionError with what a process that failed has written."""
        if not self.processes:
            self._begin()
        answer = file.with_suffix(".pt")
        asked = json.dumps([str(file), list(overrides), str(answer)])
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(asked + "\n")
            process.stdin.flush()
        said = [process.stdout.readline() for process in self.processes if process.stdout is not None]
        if said != ["done\n", "done\n"]:
            raise AssertionError("\n".join(self.end()))
        return torch.load(answer, weights_only=True)

    def _begin(self) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = str(one.getsockname()[1])
        shared = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        for number in ("0", "1"):
            environment = shared | {"MASTER_PORT": port, "RANK": number, "LOCAL_RANK": number, "OMP_NUM_THREADS": "1"}
            line = [sys.executable, __file__]
            pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            self.processes.append(subprocess.Popen(line, env=environment, text=True, **pipes))

    def end(self) -> list[str]:
        """End both; the last that each wrote to standard error."""
        for process in self.processes:
            process.kill()
        written = [process.communicate()[1][-3000:] for process in self.processes]
        self.processes = []
        return written


def serve() -> None:
    """Train what comes on standard input, a line each, and say when it is done."""
    talk, sys.stdout = sys.stdout, sys.stderr
    lines = map(json.loads, sys.stdin)
    file, overrides, answer = next(lines)
    # A run that waits for the other process for a minute has lost it.
    group = load_run_config([Path(file)], ["parallel={kind: auto, timeout_seconds: 60}"]).config
    with process_group(group):
        while True:
            found = run(Path(file), *overrides)
            if is_rank_zero():
                torch.save(found, answer)
            print("done", file=talk, flush=True)
            file, overrides, answer = next(lines)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    one = Pair()
    yield one
    one.end()


@pytest.mark.fuzz(round=10)
@given(inputs())
def test_two_processes_train_as_one(pair: Pair, given: Input) -> None:
    folder = Path(tempfile.mkdtemp()).resolve()
    try:
        file = write_run_file(given, folder)
        # What two processes take as samples of each, one takes as the batch of both.
        whole = [] if "batch_size" in given.values["train"] else ["train.batch_devices=2"]
        way = f"parallel={json.dumps(given.way)}"
        in_one, in_two = partial(run, file, "name=two", *whole), partial(pair.run, file, "name=two", way)
        first, rest = {None: (None, in_two), "two": (in_two, in_one), "one": (in_one, in_two)}[given.cut]
        if first is not None:
            first("train.steps=1")
        compare(run(file, "name=one", *whole), rest())
    finally:
        shutil.rmtree(folder)


def compare(one: Values | str, two: Values | str) -> None:
    """``two`` is ``one`` to rounding, or refused for the same reason."""
    if isinstance(one, str) or isinstance(two, str):
        refused = [found if isinstance(found, str) else "trained" for found in (one, two)]
        assert refused[0] == refused[1]
        return
    assert one["figures"].keys() <= two["figures"].keys()  # one that is continued also validates where it ended first
    found = {name: two["figures"][name] for name in one["figures"]}
    assert found == pytest.approx(one["figures"], rel=2e-5, abs=2e-5)
    assert one["weights"].keys() == two["weights"].keys()
    for name, value in one["weights"].items():
        torch.testing.assert_close(
            two["weights"][name], value, rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


if __name__ == "__main__":
    serve()
