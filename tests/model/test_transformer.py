"""Properties of the whole model, whatever its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quintet.config.model import TransformerConfig
from quintet.config.position import RopeConfig
from quintet.model import Transformer, build_model
from quintet.model.cache import KVCache
from quintet.model.mask import leading
from quintet.model.position import LearnedPosition

VOCAB, CONTEXT = 50, 40
SHAPES: dict[str, dict[str, Any]] = {
    "default": {},
    "grouped": {"attention": {"heads": 4, "kv_heads": 2, "bias": True}},
    "wide heads": {"attention": {"heads": 2, "kv_heads": 1, "head_dim": 10}},
    "learned": {"position": {"kind": "learned"}, "norm": {"kind": "layer"}, "feedforward": {"kind": "plain"}},
    "sinusoidal": {"position": {"kind": "sinusoidal"}, "norm": {"kind": "layer", "bias": False}},
    "no position": {"position": {"kind": "none"}, "tie_embeddings": False, "head": {"bias": True}},
    "parallel": {"block": "parallel", "norm": {"kind": "layer"}, "feedforward": {"kind": "plain", "factor": 2.5}},
    "post norm": {"block": "post_norm", "norm": {"kind": "layer"}},
    "output norm": {"block": "output_norm", "attention": {"heads": 4, "qk_norm": "projection"}},
    "sandwich norm": {"block": "sandwich_norm", "attention": {"heads": 4, "kv_heads": 1, "qk_norm": "head"}},
    "norms of their own": {
        "attention": {"heads": 4, "norm": {"kind": "layer"}},
        "feedforward": {"kind": "gated", "norm": {"kind": "none"}},
        "head": {"norm": {"kind": "rms", "gain": False}},
    },
    "rotary and learned": {"position": {"kind": "rope", "learned": True}},
    "partial rotary": {"position": {"kind": "rope", "fraction": 0.5, "pairs": "interleaved"}},
    "yarn": {"position": {"kind": "rope", "scaling": {"kind": "yarn", "factor": 4, "original_context": 10}}},
    "window": {"attention": {"heads": 4, "window": 13}},
    "documents": {"attention": {"heads": 4, "mask": "causal_document", "restart_positions": True}},
    "prefix": {"attention": {"heads": 4, "mask": "prefix"}},
    "tied": {"tie_feedforward": True, "tie_attention_output": True, "attention": {"heads": 4, "output_bias": True}},
    "low rank": {
        "layers": 5,
        "feedforward": {"kind": "plain", "bias": True},
        "sharing": {
            "first_blocks": 1,
            "last_blocks": 1,
            "same": ["attention_output"],
            "low_rank": ["feedforward", "attention_qkv"],
            "rank": 3,
            "alpha": 2.0,
        },
    },
    "padded": {"pad_vocab_size_multiple": 64, "head": {"bias": True}, "tie_embeddings": False},
    "scaled": {"embedding_scale": 5.6, "attention": {"heads": 4, "scale": 0.1}},
    "byte-level": {
        "embedding": {"kind": "bytes", "width": 8, "heads": 2, "layers": 2},
        "head": {"kind": "bytes", "width": 8, "heads": 2, "layers": 1},
        "tie_embeddings": False,
    },
    "no norm": {"norm": {"kind": "none"}, "position": {"kind": "none"}, "head": {"bias": True}},
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


def sees_all_before(model: Transformer) -> bool:
    return model.config.attention.window is None


@torch.no_grad()
def test_a_later_token_changes_no_earlier_logits_and_all_later_ones(model: Transformer) -> None:
    ids = random_ids(2, CONTEXT)
    changed = ids.clone()
    changed[:, 20] = (ids[:, 20] + 1) % VOCAB
    before, after = model(ids), model(changed)
    torch.testing.assert_close(after[:, :20], before[:, :20], rtol=0, atol=1e-6)
    reached = 20 + (
        CONTEXT if sees_all_before(model) else model.config.layers * (model.config.attention.window - 1) + 1
    )
    assert ((after - before)[:, 20:reached].abs().amax(-1) > 1e-6).all()
    torch.testing.assert_close(after[:, reached:], before[:, reached:], rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[1], [7, 1, 1], [1, 13, 20], [40]])
def test_pieces_through_a_cache_give_the_logits_of_the_whole(model: Transformer, cuts: list[int]) -> None:
    ids = random_ids(3, sum(cuts))
    cache = KVCache(len(model.blocks), sum(cuts))
    pieces = [model.logits(model.hidden(piece, cache=cache)) for piece in ids.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=1e-5, atol=1e-5)
    assert cache.length == sum(cuts)


@torch.no_grad()
def test_a_cache_follows_the_rows_that_are_selected(model: Transformer) -> None:
    ids, rows = random_ids(3, 12), [2, 0, 0, 1]
    cache = KVCache(len(model.blocks), 12)
    model.hidden(ids[:, :11], cache=cache)
    cache.select(rows)
    expected = model.hidden(ids)[:, -1:]
    found = model.hidden(ids[rows, 11:], cache=cache)
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
    tied, untied = model_of({}), model_of({"tie_embeddings": False, "head": {"bias": True}})
    assert tied.head_weight is tied.embedding.weight
    assert "head.weight" not in tied.state_dict()
    assert untied.head_weight is untied.state_dict(keep_vars=True)["head.weight"]
    assert untied.head_weight.shape == (VOCAB, 32)
    assert untied.head_bias is not None
    assert untied.head_bias.shape == (VOCAB,)


def test_rows_that_pad_the_vocabulary_are_never_predicted() -> None:
    model, padded = model_of({}), model_of({"pad_vocab_size_multiple": 32})
    assert padded.embedding.weight.shape == padded.head_weight.shape == (64, 32)
    with torch.no_grad():
        padded.embedding.weight[:VOCAB] = model.embedding.weight
        padded.embedding.weight[VOCAB:] = 100.0
    ids = random_ids(2, 9)
    assert torch.equal(padded(ids), model(ids))


@torch.no_grad()
def test_a_tied_model_computes_what_one_with_equal_blocks_does() -> None:
    shape = {"attention": {"heads": 4, "bias": True}, "feedforward": {"kind": "plain", "bias": True}, "layers": 3}
    tied, free = model_of({**shape, "tie_feedforward": True, "tie_attention_output": True}), model_of(shape)
    weights = tied.state_dict()
    for name in free.state_dict():
        _, _, leaf = name.partition(".attention.output.")
        if leaf:
            weights[name] = weights[f"shared.attention_output.{leaf}"]
        _, _, leaf = name.partition(".feedforward.")
        if leaf:
            weights[name] = weights[f"shared.feedforward.{leaf}"]
    free.load_state_dict({name: value for name, value in weights.items() if not name.startswith("shared")})
    ids = random_ids(2, CONTEXT)
    assert torch.equal(tied(ids), free(ids))
    saved = {name for name, _ in tied.named_parameters()}
    assert saved == set(tied.state_dict())  # each tensor once


def test_the_head_bias_shifts_the_logits() -> None:
    model = model_of({"head": {"bias": True}})
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


@torch.no_grad()
def test_a_prompt_sees_itself_in_both_directions_and_the_rest_only_what_came_before() -> None:
    model = model_of({"attention": {"heads": 4, "mask": "prefix"}})
    ids, prompts = random_ids(2, CONTEXT), leading(torch.tensor([12, 1]), CONTEXT)
    before = model(ids, prompts=prompts)
    for place in (11, 20):
        changed = ids.clone()
        changed[:, place] = (ids[:, place] + 1) % VOCAB
        moved = (model(changed, prompts=prompts) - before).abs().amax(-1) > 1e-6
        assert moved[:, place:].all()
        assert moved[0, :place].all() == (place < 12)
        assert not moved[1, :place].any()
    torch.testing.assert_close(before[1], model(ids[1:])[0])  # a prompt of one token is plain causal attention


@torch.no_grad()
def test_a_prompt_through_a_cache_sees_itself_in_both_directions() -> None:
    model = model_of({"attention": {"heads": 4, "mask": "prefix"}})
    ids, prompts = random_ids(2, 20), leading(torch.tensor([12, 12]), 20)
    cache = model.start_cache(2, 20)
    pieces = [model.hidden(ids[:, :12], prompts=prompts[:, :12], cache=cache)]
    pieces += [model.hidden(ids[:, at : at + 1], cache=cache) for at in range(12, 20)]
    expected = model.hidden(ids, prompts=prompts)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mask", ["causal_document", "document", "prefix"])
@pytest.mark.parametrize("position", ["rope", "rope, learned", "learned", "sinusoidal"])
def test_packed_documents_have_the_logits_and_gradients_of_the_same_documents_alone(
    position: str, mask: str, precision: str
) -> None:
    kind = "bidirectional" if mask == "document" else "causal"
    attention = {"kind": kind, "mask": mask, "heads": 4, "kv_heads": 2, "restart_positions": True}
    chosen = {"kind": "rope", "learned": True} if position == "rope, learned" else {"kind": position}
    model = model_of({"attention": attention, "position": chosen})
    lengths = [5, 1, 22, 12]
    ids = random_ids(1, sum(lengths))
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    prompts = torch.cat([torch.arange(length) < asked for length, asked in zip(lengths, (3, 1, 9, 0), strict=True)])[
        None
    ]
    weight = torch.randn(1, sum(lengths), VOCAB, generator=torch.Generator().manual_seed(1))

    def result(packed: bool) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            if packed:
                logits = model(ids, documents=documents, prompts=prompts)
            else:
                parts = zip(ids.split(lengths, dim=1), prompts.split(lengths, dim=1), strict=True)
                logits = torch.cat([model(part, prompts=asked) for part, asked in parts], dim=1)
        return [logits, *torch.autograd.grad((logits.float() * weight).sum(), list(model.parameters()))]

    tolerance = 1e-4 if precision == "fp32" else 3e-2
    for packed, alone in zip(result(True), result(False), strict=True):
        torch.testing.assert_close(packed, alone, rtol=tolerance, atol=tolerance * alone.abs().max().item())


@torch.no_grad()
def test_learned_positions_beside_rotary_ones_are_a_row_for_each_id_and_position() -> None:
    """A rotary model with an id for each pair of id and position, whose rows are the sums, computes the same."""
    both = model_of({"position": {"kind": "rope", "learned": True}})
    assert isinstance(both.position, LearnedPosition)
    pairs = Transformer(both.config.model_copy(update={"position": RopeConfig()}), VOCAB * CONTEXT, CONTEXT).eval()
    weights = {name: value for name, value in both.state_dict().items() if not name.startswith("position")}
    rows = both.embedding.weight[None] + both.position.weight[:, None]
    pairs.load_state_dict(weights | {"embedding.weight": rows.flatten(0, 1)})
    ids = random_ids(2, CONTEXT)
    expected = pairs.hidden(ids + VOCAB * torch.arange(CONTEXT))
    torch.testing.assert_close(both.eval().hidden(ids), expected, rtol=1e-5, atol=1e-5)
    assert (both.position.weight.std() - 0.1).abs() < 0.02, "drawn as the embedding is"


@torch.no_grad()
def test_documents_go_on_through_a_cache() -> None:
    model = model_of(SHAPES["documents"])
    ids, documents = random_ids(1, 30), torch.repeat_interleave(torch.arange(3), torch.tensor([8, 13, 9]))[None]
    cache, pieces, start = model.start_cache(1, 30), [], 0
    for length in (5, 1, 1, 1, 1, 10, 11):
        rows = slice(start, start + length)
        pieces.append(model.hidden(ids[:, rows], documents=documents[:, rows], cache=cache))
        start += length
    expected = model.hidden(ids, documents=documents)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
def test_padding_on_the_left_changes_nothing(model: Transformer, static: bool) -> None:
    long, short = random_ids(1, 15), random_ids(1, 9)
    padded = torch.cat([long, torch.cat([torch.zeros(1, 6, dtype=torch.long), short], dim=1)])
    cache = model.start_cache(2, 18, padding=[0, 6], static=static)
    first, then = model.hidden(padded, cache=cache), model.hidden(padded[:, :3], cache=cache)
    alone = model.hidden(torch.cat([short, padded[1:, :3]], dim=1))
    torch.testing.assert_close(torch.cat([first, then], dim=1)[1:, 6:], alone, rtol=1e-5, atol=1e-5)
    assert cache.length == 18


@torch.no_grad()
def test_a_static_cache_holds_what_a_growing_one_does(model: Transformer) -> None:
    ids = random_ids(3, 20)
    cache = model.start_cache(3, CONTEXT, static=True)
    pieces = [model.hidden(piece, cache=cache) for piece in ids.split([7, 1, 1, 11], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model.hidden(ids), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("block", ["pre_norm", "post_norm", "output_norm", "sandwich_norm", "parallel"])
def test_blocks_follow_their_formula(block: str) -> None:
    model = model_of({"layers": 1, "block": block, "position": {"kind": "none"}, "norm": {"kind": "layer"}})
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.copy_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    (layer,), x = model.blocks, torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    ids = random_ids(2, 6)
    seen: list[tuple[torch.Tensor, ...]] = []
    layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    model.hidden(ids)
    around = seen[0][1]

    def attention(x: torch.Tensor) -> torch.Tensor:
        return layer.attention(x, around, None)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        gain, bias = layer.state_dict()[f"{name}.weight"], layer.state_dict()[f"{name}.bias"]
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() * gain + bias

    feedforward = layer.feedforward
    if block == "parallel":
        expected = x + attention(norm("attention_norm", x)) + feedforward(norm("attention_norm", x))
    elif block == "pre_norm":
        y = x + attention(norm("attention_norm", x))
        expected = y + feedforward(norm("feedforward_norm", y))
    elif block == "post_norm":
        y = norm("attention_norm", x + attention(x))
        expected = norm("feedforward_norm", y + feedforward(y))
    elif block == "output_norm":
        y = x + norm("attention_norm", attention(x))
        expected = y + norm("feedforward_norm", feedforward(y))
    else:
        y = x + norm("attention_output_norm", attention(norm("attention_norm", x)))
        expected = y + norm("feedforward_output_norm", feedforward(norm("feedforward_norm", y)))
    torch.testing.assert_close(layer(x, around), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("over", ["head", "projection"])
def test_queries_and_keys_are_normed_before_they_meet(over: str) -> None:
    model = model_of({"layers": 1, "attention": {"heads": 4, "kv_heads": 2, "qk_norm": over}})
    attention, x = model.blocks[0].attention, torch.randn(2, 6, 32)
    qkv = attention.qkv(x)
    queries, keys, values = attention._split(qkv, None)
    widths = [32, 16]
    for found, raw in zip((queries, keys), qkv[..., :48].split(widths, dim=-1), strict=True):
        grouped = raw.unflatten(-1, (-1, 8)) if over == "head" else raw
        normed = grouped / (grouped.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(found.transpose(1, 2).flatten(2), normed.reshape(raw.shape))
    torch.testing.assert_close(values.transpose(1, 2).flatten(2), qkv[..., 48:])


DROPOUTS = {
    "residual": {"residual_dropout": 0.5},
    "embedding": {"embedding_dropout": 0.5},
    "attention": {"attention": {"heads": 4, "dropout": 0.5}},
    "gated": {"feedforward": {"kind": "gated", "dropout": 0.5}},
    "plain": {"feedforward": {"kind": "plain", "dropout": 0.5}},
    "into attention": {"attention": {"heads": 4, "input_dropout": 0.5}},
    "into gated": {"feedforward": {"kind": "gated", "input_dropout": 0.5}},
    "into plain": {"feedforward": {"kind": "plain", "input_dropout": 0.5}},
    "into the head": {"head": {"dropout": 0.5}},
    "parallel": {"block": "parallel", "residual_dropout": 0.5},
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


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["documents", "window", "sandwich norm", "parallel", "tied"])
def test_compiled_blocks_compute_what_eager_ones_do(shape: str) -> None:
    model, compiled = model_of(SHAPES[shape]), model_of(SHAPES[shape])
    for block in compiled.blocks:
        block.compile()
    ids, documents = random_ids(2, CONTEXT), torch.arange(CONTEXT).expand(2, -1) // 9
    results = []
    for one in (model, compiled):
        logits = one(ids, documents=documents)
        results.append([logits, *torch.autograd.grad(logits.square().mean(), list(one.parameters()))])
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-3, atol=1e-5)
