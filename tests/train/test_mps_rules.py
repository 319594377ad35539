"""Training, validation and generation of the native parts on a device with the limits of MPS (`mps_rules.py`)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import records

_SPEC = importlib.util.spec_from_file_location("mps_rules", Path(__file__).with_name("mps_rules.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
rules = importlib.util.module_from_spec(_SPEC)
sys.modules["mps_rules"] = rules
_SPEC.loader.exec_module(rules)


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with rules.playing_mps(monkeypatch) as operations:
        yield operations


REFUSED: dict[str, Callable[[torch.Tensor], Any]] = {
    "no torch.float64": lambda a: a.double(),
    "no torch.complex64": lambda a: torch.view_as_complex(a.view(2, 2, 2)),
    "of the CPU and of MPS": lambda a: a + torch.ones(2, 4),
    "no array": lambda a: a.numpy(),
    "no pinned memory": lambda a: a.cpu().pin_memory(),
    "no _linalg_eigh": lambda a: torch.linalg.eigh(a @ a.T),
    "no mode": lambda a: a.mode(),
    "no frexp": lambda a: torch.frexp(a),
}


def test_tensors_are_where_they_were_put(mps: Any) -> None:
    numbers = torch.arange(8, device="mps").view(2, 4)
    assert [one.device.type for one in (numbers, numbers + 1, numbers.cpu(), numbers.to("cpu", copy=True))] == [
        "mps",
        "mps",
        "cpu",
        "cpu",
    ]
    assert torch.zeros(2).to(numbers.device).device == numbers.device
    assert torch.zeros_like(numbers).device.type == "mps"
    assert (numbers.tolist()[1], numbers.sum().item()) == ([4, 5, 6, 7], 28)
    layer = torch.nn.Linear(4, 4).to("mps")
    layer(numbers.float()).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.device.type == "mps"


@pytest.mark.parametrize("words", REFUSED)
def test_mps_refuses(mps: Any, words: str) -> None:
    with pytest.raises(rules.Refused, match=words):
        REFUSED[words](torch.ones(2, 4, device="mps"))


MODELS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "document masks, dropout everywhere": {
        "attention": {"heads": 2, "mask": "causal_document", "dropout": 0.1},
        "embedding_dropout": 0.1,
        "residual_dropout": 0.1,
    },
    "window, fewer key heads, normed queries": {
        "attention": {"heads": 4, "kv_heads": 2, "window": 8, "qk_norm": "head"}
    },
    "prefix, interleaved pairs, yarn": {
        "attention": {"heads": 2, "mask": "prefix"},
        "position": {
            "kind": "rope",
            "pairs": "interleaved",
            "scaling": {"kind": "yarn", "factor": 2, "original_context": 16},
        },
    },
    "llama3, flash asked for": {
        "attention": {"heads": 2, "backend": "flash"},
        "position": {"kind": "rope", "scaling": {"kind": "llama3", "factor": 2, "original_context": 16}},
    },
    "learned positions, layer norm, plain, parallel": {
        "position": {"kind": "learned"},
        "norm": {"kind": "layer"},
        "feedforward": {"kind": "plain", "activation": "gelu_tanh"},
        "block": "parallel",
    },
    "sinusoidal positions, no gain, tied parts, sandwich": {
        "position": {"kind": "sinusoidal"},
        "norm": {"kind": "rms", "gain": False},
        "block": "sandwich_norm",
        "tie_feedforward": True,
        "tie_attention_output": True,
        "head": {"bias": True, "dropout": 0.1},
    },
}


@pytest.mark.parametrize(
    "name", [name if name == "as it is" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_a_model_trains_is_measured_and_writes(mps: Any, train: Any, command: Any, name: str, tmp_path: Path) -> None:
    _try(mps, train, command, tmp_path, model=MODELS[name])


WAYS: dict[str, dict[str, Any]] = {
    "smoothed loss": {
        "loss": {"label_smoothing": 0.1, "z_loss": 1e-4},
        "optimizer": {"kind": "adamw", "weight_decay": 0.1},
    },
    "narrow state": {"optimizer": {"kind": "adamw", "state_precision": "bf16"}},
    "SGD": {"optimizer": {"kind": "torch", "name": "SGD", "lr": 0.01, "arguments": {"momentum": 0.9}}},
    "Adagrad": {"optimizer": {"kind": "torch", "name": "Adagrad", "lr": 0.01}},
    "a padded vocabulary": {"model": {"pad_vocab_size_multiple": 64, "tie_embeddings": False}},
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.slow
def test_a_way_of_the_training(mps: Any, train: Any, command: Any, name: str, tmp_path: Path) -> None:
    _try(mps, train, command, tmp_path, **({"model": {}} | WAYS[name]))


def _try(mps: Any, train: Any, command: Any, folder: Path, **sections: Any) -> None:
    """Train two steps with a validation, a sample and a checkpoint each; go on; write in each way; measure a text."""
    settings = {"batch_size": 4, "micro_batch_size": 2, "precision": "fp32", "device": "mps"}
    sections |= {"evaluate": {"every": 1, "samples": 4}, "sample": {"prompts": ["the "], "max_tokens": 4}}
    for steps in (2, 3):
        run = train(train=settings | {"steps": steps}, **sections)
    assert {"mm", "_softmax"} & mps.used
    rows = records(folder / "runs" / run)
    assert [row["step"] for row in rows if "validation/loss" in row] == [1, 2, 3]
    (folder / "text.txt").write_text("the cat saw the dog. " * 8)
    for call in (
        ("generate", run, "--prompt", "the ", "--max-tokens", "4", "--temperature", "0"),
        ("generate", run, "--prompt", "the ", "--max-tokens", "4", "--top-k", "5", "--top-p", "0.9", "--min-p", "0.01"),
        ("generate", run, "--prompt", "the ", "--max-tokens", "4", "--beams", "2"),
        ("evaluate", run),
        ("evaluate", run, "--text", "text.txt"),
    ):
        before = len(mps.used)
        mps.used.clear()
        code, _, said = command(*call)
        assert code == 0, (call, said)
        assert mps.used, f"{call} computed nothing on the device; {before} operations before"
