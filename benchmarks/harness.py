"""The lm-evaluation-harness adapter against the harness's own class for Hugging Face models: equal figures, and the
time of both.

Transformers builds a GPT-2 and a Llama with random weights. Both classes load the saved models and answer the same
requests, item by item, with the same limit on texts per forward pass:

    python benchmarks/harness.py ../shared/data/mcq --items 40 --rows 16

For each benchmark it prints the largest difference between log-likelihoods of the two, the largest difference of each
from that class in fp64 (a sum of hundreds of nats in fp32 is itself rounded by 1e-4), how often the chosen answer
differs, and seconds. The two alternate, and the best of ``--turns`` counts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from quintet.evaluate.harness.model import HarnessModel
from quintet.evaluate.harness.scoring import Limit
from quintet.evaluate.harness.tasks import CheckedTask, TaskOptions, load
from quintet.train.trained import load_writer

TASKS = (
    *("winogrande", "hellaswag", "arc_easy", "arc_challenge", "mmlu", "blimp", "truthful_qa", "piqa", "race_middle"),
    *("race_high", "boolq", "openbook_qa_closed", "copa", "commonsense_qa", "sciq", "social_iqa"),
)
CONTEXT = 512


def tokenizer(folder: Path, texts: list[str], begins: bool) -> int:
    """Write a byte-level BPE of ``texts`` into ``folder``; ``begins``: it puts <s> in front, as Llama's does."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    made = tokenizers.ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<s>"]
    made.train_from_iterator(texts, vocab_size=4000, special_tokens=special, show_progress=False)
    inner = made._tokenizer
    if begins:
        inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    first = "<s>" if begins else "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>", bos_token=first).save_pretrained(folder)
    return made.get_vocab_size()


def checkpoint(family: str, folder: Path, texts: list[str]) -> None:
    """Save a small model of ``family`` with random weights and its tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    rows = tokenizer(folder, texts, begins=family == "llama")
    ids = {"vocab_size": rows, "eos_token_id": 0, "bos_token_id": int(family == "llama")}
    if family == "gpt2":
        config = GPT2Config(n_positions=CONTEXT, n_embd=192, n_layer=4, n_head=6, **ids)
        model: Any = GPT2LMHeadModel(config)
    else:
        sizes = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4}
        heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=CONTEXT, **sizes, **heads, **ids))
    model.save_pretrained(folder)


def requests(name: str, data: Path, items: int) -> list[Any]:
    """The requests of ``items`` items of a benchmark, as the harness makes them."""
    found: list[Any] = []
    for task in load(name, TaskOptions(items, 0, data)):
        if isinstance(task, CheckedTask):
            task.build_all_requests()
            found += task.instances
    return found


def choices(asked: list[Any], scores: list[tuple[float, bool]]) -> dict[Any, int]:
    """The likeliest choice of each item."""
    best: dict[Any, tuple[float, int]] = {}
    for request, (logprob, _) in zip(asked, scores, strict=True):
        item = (request.task_name, request.doc_id)
        best[item] = max(best.get(item, (-float("inf"), -1)), (logprob, request.idx))
    return {item: choice for item, (_, choice) in best.items()}


def far(some: list[tuple[float, bool]], others: list[tuple[float, bool]]) -> float:
    """The largest difference of two log-likelihoods, in nats."""
    return max(abs(a - b) for (a, _), (b, _) in zip(some, others, strict=True))


def compare(ours: HarnessModel, theirs: Any, exact: Any, asked: list[Any], turns: int) -> dict[str, float]:
    """Both sides on the same requests, one after the other, ``turns`` times, and ``exact`` once."""
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    scores: dict[str, Any] = {}
    for model in (ours, theirs):  # what is set up with the first pass is not the second's advantage
        with contextlib.redirect_stderr(io.StringIO()):
            model.loglikelihood(asked[:8])
    for _ in range(turns):
        for side, model in (("ours", ours), ("theirs", theirs)):
            begin = time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()):
                scores[side] = model.loglikelihood(asked)
            times[side].append(time.perf_counter() - begin)
    with contextlib.redirect_stderr(io.StringIO()):
        scores["exact"] = exact.loglikelihood(asked)
    pairs = list(zip(scores["ours"], scores["theirs"], strict=True))
    chosen = [choices(asked, scores[side]) for side in ("ours", "theirs")]
    return {
        "difference": far(scores["ours"], scores["theirs"]),
        "our error": far(scores["ours"], scores["exact"]),
        "their error": far(scores["theirs"], scores["exact"]),
        "other choice": sum(chosen[0][item] != chosen[1][item] for item in chosen[0]),
        "other greedy": sum(a != b for (_, a), (_, b) in pairs),
        "ours": min(times["ours"]),
        "theirs": min(times["theirs"]),
    }


def measure(family: str, data: Path, items: int, rows: int, turns: int, names: list[str]) -> None:
    """Print a line for each benchmark, and one for all."""
    from lm_eval.models.huggingface import HFLM

    texts = [json.loads(line)["question"] for file in sorted(data.glob("*.jsonl")) for line in file.open()]
    with tempfile.TemporaryDirectory() as made, contextlib.redirect_stderr(io.StringIO()):
        checkpoint(family, Path(made), texts)
        read = load_writer(made)
        subject = replace(read, compute=replace(read.compute, precision="fp32"))
        theirs, exact = (
            HFLM(pretrained=made, device=str(read.compute.device), dtype=dtype, batch_size=rows)
            for dtype in ("float32", "float64")
        )
    ours = HarnessModel(subject, Limit(rows * CONTEXT, CONTEXT, rows))
    total = {"ours": 0.0, "theirs": 0.0}
    for name in names:
        with contextlib.redirect_stderr(io.StringIO()):
            asked = requests(name, data, items)
        found = compare(ours, theirs, exact, asked, turns)
        total = {side: total[side] + found[side] for side in total}
        print(
            f"{family:6} {name:20} {len(asked):5} requests: difference {found['difference']:.1e} (from fp64 ours "
            f"{found['our error']:.1e}, theirs {found['their error']:.1e}), other choice "
            f"{found['other choice']:.0f}, other greedy {found['other greedy']:.0f}; {found['ours']:.2f} s against "
            f"{found['theirs']:.2f} s: {found['theirs'] / found['ours']:.1f}×",
            flush=True,
        )
    print(
        f"{family:6} all: {total['ours']:.1f} s against {total['theirs']:.1f} s: {total['theirs'] / total['ours']:.2f}×"
    )


def main() -> None:
    """Read the command line and measure both families."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--tasks", default=",".join(TASKS))
    arguments = parser.parse_args()
    for family in ("gpt2", "llama"):
        measure(family, arguments.data, arguments.items, arguments.rows, arguments.turns, arguments.tasks.split(","))


if __name__ == "__main__":
    main()
