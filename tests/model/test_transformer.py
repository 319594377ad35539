"""Properties of the whole model, whatever its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quintet.config.model import TransformerConfig
from quintet.model import Transformer, build_model
from quintet.model.cache import KVCache

VOCAB, CONTEXT = 50, 40
SHAPES: dict[str, dict[str, Any]] = {
    "default": {},
    "grouped": {"attention": {"heads": 4, "kv_heads": 2, "bias": True}},
    "wide heads": {"attention": {"heads": 2, "kv_heads": 1, "head_dim": 10}},
    "learned": {"position": {"kind": "learned"}, "norm": {"kind": "layer"}, "feedforward": {"kind": "plain"}},
    "sinusoidal": {"position": {"kind": "sinusoidal"}, "norm": {"kind": "layer", "bias": False}},
    "no position": {"position": {"kind": "none"}, "tie_embeddings": False, "head_bias": True},
    "no norm": {"norm": {"kind": "none"}, "position": {"kind": "none"}, "head_bias": True},
}


def model_of(shape: dict[str, Any], seed: int = 0) -> Transformer:
    config = TransformerConfig.model_validate(
        {"layers": 2, "width": 32, "attention": {"heads": 4}, "init": {"kind": "normal", "std": 0.1}, **shape}
    )
    return build_model(config, VOCAB, CONTEXT, seed).eval()


def random_ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.fixture(params=list(SHAPES))
def model(request: pytest.FixtureRequest) -> Transformer:
    return model_of(SHAPES[request.param])


@torch.no_grad()
def test_a_later_token_changes_no_earlier_logits_and_all_later_ones(model: Transformer) -> None:
    ids = random_ids(2, CONTEXT)
    changed = ids.clone()
    changed[:, 20] = (ids[:, 20] + 1) % VOCAB
    before, after = model(ids), model(changed)
    torch.testing.assert_close(after[:, :20], before[:, :20], rtol=0, atol=1e-6)
    assert ((after - before)[:, 20:].abs().amax(-1) > 1e-6).all()


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[1], [7, 1, 1], [1, 13, 20], [40]])
def test_pieces_through_a_cache_give_the_logits_of_the_whole(model: Transformer, cuts: list[int]) -> None:
    ids = random_ids(3, sum(cuts))
    cache = KVCache(len(model.blocks), sum(cuts))
    pieces = [model.logits(model.hidden(piece, cache)) for piece in ids.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=1e-5, atol=1e-5)
    assert cache.length == sum(cuts)


@torch.no_grad()
def test_a_cache_follows_the_rows_that_are_selected(model: Transformer) -> None:
    ids, rows = random_ids(3, 12), [2, 0, 0, 1]
    cache = KVCache(len(model.blocks), 12)
    model.hidden(ids[:, :11], cache)
    cache.select(rows)
    expected = model.hidden(ids)[:, -1:]
    found = model.hidden(ids[rows, 11:], cache)
    torch.testing.assert_close(found, expected[rows], rtol=1e-5, atol=1e-5)


def test_bf16_autocast_is_close_to_fp32_in_value_and_gradient(model: Transformer) -> None:
    ids = random_ids(2, CONTEXT)
    results = {}
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        results[enabled] = loss, torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(results[True][0], results[False][0], rtol=1e-2, atol=0)
    for narrow, exact, (name, _) in zip(results[True][1], results[False][1], model.named_parameters(), strict=True):
        assert narrow.dtype == torch.float32
        assert (narrow - exact).norm() < 0.05 * exact.norm() + 1e-6, name


def test_under_autocast_the_residual_stream_stays_fp32_and_the_features_for_the_head_are_narrow() -> None:
    model = model_of({})
    streams = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: streams.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert model.hidden(random_ids(1, 8)).dtype == torch.bfloat16
    assert streams == [torch.float32, torch.float32]


def test_a_tied_head_is_the_embedding_itself_and_another_is_not() -> None:
    tied, untied = model_of({}), model_of({"tie_embeddings": False, "head_bias": True})
    assert tied.head_weight is tied.embedding.weight
    assert "head.weight" not in tied.state_dict()
    assert untied.head_weight is untied.state_dict(keep_vars=True)["head.weight"]
    assert untied.head_weight.shape == (VOCAB, 32)
    assert untied.head_bias is not None
    assert untied.head_bias.shape == (VOCAB,)


def test_the_head_bias_shifts_the_logits() -> None:
    model = model_of({"head_bias": True})
    ids, shift = random_ids(1, 5), torch.linspace(-1, 1, VOCAB)
    before = model(ids)
    assert model.head_bias is not None
    with torch.no_grad():
        model.head_bias.copy_(shift)
    torch.testing.assert_close(model(ids), before + shift)


def test_names_of_parameters_are_those_that_are_documented() -> None:
    shape = {
        "layers": 1,
        "tie_embeddings": False,
        "position": {"kind": "learned"},
        "attention": {"heads": 2, "bias": True},
    }
    assert list(model_of(shape).state_dict()) == [
        "embedding.weight",
        "position.weight",
        "blocks.0.attention_norm.weight",
        "blocks.0.attention.qkv.weight",
        "blocks.0.attention.qkv.bias",
        "blocks.0.attention.output.weight",
        "blocks.0.attention.output.bias",
        "blocks.0.feedforward_norm.weight",
        "blocks.0.feedforward.gate.weight",
        "blocks.0.feedforward.up.weight",
        "blocks.0.feedforward.down.weight",
        "norm.weight",
        "head.weight",
    ]


@pytest.mark.parametrize("kind", ["rope", "sinusoidal"])
def test_tables_of_positions_are_no_part_of_a_checkpoint(kind: str) -> None:
    model = model_of({"position": {"kind": kind}})
    assert list(model.buffers())
    assert not [name for name in model.state_dict() if "position" in name or "rope" in name]


DROPOUTS = {
    "model": {"dropout": 0.5},
    "attention": {"attention": {"heads": 4, "dropout": 0.5}},
    "gated": {"feedforward": {"kind": "gated", "dropout": 0.5}},
    "plain": {"feedforward": {"kind": "plain", "dropout": 0.5}},
}


@torch.no_grad()
@pytest.mark.parametrize("place", list(DROPOUTS))
def test_dropout_acts_in_training_alone_and_follows_the_seed(place: str) -> None:
    model, ids = model_of(DROPOUTS[place]), random_ids(2, 16)

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(ids)

    assert torch.equal(logits(0), logits(1))
    model.train()
    assert torch.equal(logits(0), logits(0))
    assert not torch.allclose(logits(0), logits(1), atol=1e-3)


def test_more_positions_than_the_model_is_built_for_are_refused() -> None:
    with pytest.raises(AssertionError, match="41 positions; built for 40"):
        model_of({})(random_ids(1, CONTEXT + 1))


def test_importing_the_counts_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, quintet.model.count; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
