"""Blocks that share matrices, against blocks that have the summed matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import PEAK, check_continuation, measured, run_config, write_corpus
from torch import Tensor
from torch._inductor.compile_fx import compile_fx

import quintet
from quintet.config.model import TransformerConfig
from quintet.config.optimizer import AdamWConfig
from quintet.config.schema import RunConfig
from quintet.model import Transformer, build_model
from quintet.model.count import count_parameters
from quintet.model.dropout import set_dropout_keys
from quintet.plan import make_plan
from quintet.track.console import Reporter
from quintet.train.loop import train
from quintet.train.optimizer import build_optimizer

VOCAB, CONTEXT = 50, 12
INTERIOR: dict[str, Any] = {"first_blocks": 2, "last_blocks": 1, "rank": 3, "alpha": 6.0}


def built(layers: int = 5, **values: Any) -> Transformer:
    shape = {"layers": layers, "width": 16, "attention": {"heads": 2}, "feedforward": {"width": 24}, **values}
    model = build_model(TransformerConfig.model_validate(shape), VOCAB, CONTEXT, seed=3)
    assert isinstance(model, Transformer)
    return model.eval()


def trained(model: Transformer) -> Transformer:
    """``model`` with random values in all parameters, also in those that start as zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return model


def written_out(state: dict[str, Tensor], layers: range) -> dict[str, Tensor]:
    """The weights of a model in which each of ``layers`` has its own sum of the shared matrix and its difference."""
    found = {
        name: value for name, value in state.items() if not name.startswith("shared.") and "difference" not in name
    }
    parts = {"attention_qkv": "attention.qkv", "attention_output": "attention.output"}
    for name, value in state.items():
        if not name.startswith("shared."):
            continue
        part, _, rest = name.removeprefix("shared.").partition(".")
        for layer in layers:
            if part == "feedforward":
                ours, before = f"feedforward.{rest}", f"blocks.{layer}.feedforward_differences.{rest.split('.')[0]}"
            else:
                ours = f"{parts[part]}.{rest}"
                before = f"blocks.{layer}.{parts[part]}_difference"
            own = 6.0 / 3 * state[f"{before}.up"] @ state[f"{before}.down"] if f"{before}.up" in state else 0
            found[f"blocks.{layer}.{ours}"] = value + own
    return found


@pytest.mark.parametrize("kind", ["gated", "plain"])
@torch.no_grad()
def test_logits_are_those_of_the_matrices_written_out(kind: str) -> None:
    ffn = {"kind": kind, "width": 24}
    sharing = INTERIOR | {"same": ["attention_output"], "low_rank": ["feedforward", "attention_qkv"]}
    shared = trained(built(feedforward=ffn, sharing=sharing))
    free = built(feedforward=ffn)
    free.load_state_dict(written_out(shared.state_dict(), range(2, 4)))
    ids = torch.randint(VOCAB, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(shared(ids), free(ids), rtol=1e-5, atol=1e-5)


def test_each_parameter_is_optimised_once_and_the_biases_of_differences_do_not_decay() -> None:
    model = built(sharing=INTERIOR | {"low_rank": ["feedforward", "attention_qkv"], "bias": True})
    decaying, free = build_optimizer(AdamWConfig(weight_decay=0.1), model).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    placed = [names[id(parameter)] for group in (decaying, free) for parameter in group["params"]]
    assert sorted(placed) == sorted(names.values())
    assert all(name.endswith(("_bias", "norm.weight")) for name in placed[len(decaying["params"]) :])
    assert not any("norm" in name or "bias" in name for name in placed[: len(decaying["params"])])


def gradients(model: Transformer, compile: str | None) -> tuple[dict[str, Tensor], int]:
    """The gradients of one pass, with dropout, and the graphs that the backend got."""
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph if compile == "count" else compile_fx(graph, inputs)

    torch._dynamo.reset()
    set_dropout_keys(model, 1, 0, 2, torch.device("cpu"))
    if compile is not None:
        for block in model.blocks:
            block.compile(backend=backend)
    ids = torch.randint(VOCAB, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
    model.train()(ids).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, len(graphs)


@pytest.mark.slow
@pytest.mark.parametrize("compile", ["count", "inductor"])
def test_a_compiled_model_has_the_gradients_of_an_eager_one_with_a_graph_for_each_of_two_kinds_of_blocks(
    compile: str,
) -> None:
    sharing = INTERIOR | {"same": ["attention_output"], "low_rank": ["feedforward", "attention_qkv"], "bias": True}
    shape = {"layers": 7, "sharing": sharing, "feedforward": {"width": 24, "dropout": 0.3}}
    wanted, _ = gradients(trained(built(**shape)), None)
    found, graphs = gradients(trained(built(**shape)), compile)
    assert graphs == 2
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_a_run_continues_to_the_bit_and_a_run_starts_from_it(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    sharing = {"low_rank": ["feedforward", "attention_qkv"], "rank": 2, "first_blocks": 1, "bias": True}
    shape = {"layers": 4, "feedforward": {"dropout": 0.1}, "sharing": sharing}

    def config(name: str, steps: int, **more: Any) -> RunConfig:
        return run_config(
            tmp_path,
            name=name,
            model={"kind": "transformer", "width": 16, "attention": {"heads": 2}, **shape, **more},
            schedule={"kind": "constant"},
            train={"steps": steps, "log_every": 1},
            evaluate={"every": 3, "at_start": bool(more)},
        )

    whole = check_continuation(config)
    planned = make_plan(config("whole", 6)).parameters
    assert planned is not None
    assert planned.total == sum(p.numel() for p in whole.model.parameters())
    origin = {"kind": "pretrained", "path": str(whole.folder)}
    more = train(config("more", 1, init=origin), Reporter(), peak_flops=PEAK).run
    assert measured(more.folder, "validation/loss")[0] == measured(whole.folder, "validation/loss")[-1]


@torch.no_grad()
def test_a_difference_starts_as_zero_whatever_the_other_weights_start_with() -> None:
    for kind in ("normal", "xavier", "kaiming", "none"):
        model = built(init={"kind": kind}, sharing=INTERIOR | {"low_rank": ["feedforward"], "bias": True})
        differences = {n: p for n, p in model.named_parameters() if "_differences" in n}
        assert len(differences) == 2 * 3 * 4
        for name, value in differences.items():
            assert (value.abs().max() > 0) == name.endswith(".down"), name
        for name in ("gate", "up"):  # 16 inputs
            assert differences[f"blocks.2.feedforward_differences.{name}.down"].abs().max() <= 1 / 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sharing": {"low_rank": ["feedforward"], "first_blocks": 4}}, "fewer than two share"),
        ({"sharing": {"same": ["feedforward"]}, "tie_feedforward": True}, "feedforward is also in sharing"),
        ({"sharing": {"same": ["feedforward"], "low_rank": ["feedforward"]}}, "remove it from one of the two"),
        ({"sharing": {"rank": 4}}, "no part is shared"),
    ],
)
def test_sharing_that_shares_nothing_or_twice_is_refused(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    run = {
        "name": "x",
        "data": {"sources": [{"kind": "text", "path": "x.txt"}]},
        "tokenizer": {"kind": "bytes"},
        "model": {"layers": 5, **values},
        "train": {"steps": 1, "batch_size": 1},
    }
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(run))
    with pytest.raises(quintet.UserError, match=words):
        quintet.load_config(file)


# The parameters that SuperTinyLanguageModels counts when its own code, at the revision named, builds these sizes with
# embedding, tied head and last norm.
HEADS16: dict[str, Any] = {"attention": {"heads": 16, "kv_heads": 4}}
ALPHA: dict[str, Any] = {"same": ["attention_output"], "low_rank": ["feedforward"], "alpha": 1.0}
UPSTREAM: dict[str, tuple[dict[str, Any], int, int]] = {
    "c53cb25 ffn_lora_sharing": (
        {"layers": 6, "width": 416, "feedforward": {"width": 1072}}
        | {"sharing": {**ALPHA, "rank": 64, "first_blocks": 2, "last_blocks": 1}},
        4000,
        10_127_648,
    ),
    "c53cb25 ffn_lora_sharing, 18 blocks": (
        {"layers": 18, "width": 640, "feedforward": {"width": 1650}}
        | {"sharing": {**ALPHA, "rank": 96, "first_blocks": 3, "last_blocks": 2}},
        10000,
        47_522_240,
    ),
    "5b8f8ad weight_sharing": (
        {"layers": 12, "width": 512, "feedforward": {"width": 1440}}
        | {"sharing": {"low_rank": ["feedforward"], "rank": 64, "bias": True, "first_blocks": 3, "last_blocks": 2}},
        50257,
        49_528_320,
    ),
    "5b8f8ad weight_sharing, no rank": (
        {"layers": 12, "width": 544, "feedforward": {"width": 1440}}
        | {"sharing": {"same": ["feedforward"], "first_blocks": 3, "last_blocks": 2}},
        50257,
        50_331_968,
    ),
    "d9766f9 generic_cproj_shared": (
        {"layers": 10, "width": 512, "feedforward": {"width": 1320}, "tie_attention_output": True},
        50257,
        50_211_840,
    ),
    "d9766f9 generic_ffn_sharing": (
        {"layers": 10, "width": 512, "feedforward": {"width": 1536}, "tie_feedforward": True},
        50257,
        34_655_232,
    ),
}


@pytest.mark.parametrize("name", UPSTREAM)
def test_parameters_are_as_many_as_the_original_has(name: str) -> None:
    values, rows, count = UPSTREAM[name]
    assert count_parameters(TransformerConfig.model_validate({**HEADS16, **values}), rows, 512).total == count
