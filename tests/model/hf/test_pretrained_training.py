"""What of a model of the transformers library is trained, and how: frozen parts, adapters, checkpointing, dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.hf.small_models import EVERY, FAMILIES, LENGTH, VOCAB, gradients, texts
from tests.model.hf.small_models import _few_trials as _few_trials  # a fixture
from tests.model.hf.small_models import build as build  # a fixture
from tests.model.hf.small_models import checkpoints as checkpoints  # a fixture
from torch.utils.flop_counter import FlopCounterMode

from quintet.config.generation import GenerationSettings
from quintet.model import build_model
from quintet.model.dropout import set_dropout
from quintet.model.generate import generate
from quintet.model.hf import loading
from quintet.train.checkpoint import trained_weights
from quintet.train.cross_entropy import cross_entropy

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")


def test_frozen_core_trains_embedding_and_head_alone(build) -> None:
    tied, apart = build("gpt2", freeze="core"), build("llama", freeze="core")
    names = {n for n, p in apart.named_parameters() if p.requires_grad}
    assert names == {"inner.model.embed_tokens.weight", "inner.lm_head.weight"}
    assert {n for n, p in tied.named_parameters() if p.requires_grad} == {"inner.transformer.wte.weight"}
    # Tied or not, a checkpoint has each matrix once.
    assert set(trained_weights(apart)) == names
    assert set(trained_weights(tied)) == {"inner.transformer.wte.weight"}


@pytest.mark.parametrize("name", EVERY)
def test_adapters_alone_are_trained_and_can_be_folded_in(build, name: str) -> None:
    model, ids = build(name, lora={"rank": 3, "alpha": 5.0}), texts()
    plain = build(name)
    before = {n: p.clone() for n, p in model.named_parameters()}
    torch.testing.assert_close(model.eval()(ids), plain.eval()(ids))  # new adapters change nothing
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        cross_entropy(model(ids[:, :-1]), ids[:, 1:]).backward()
        optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if "lora_" in n} == set(trained_weights(model))
    if name != "mixtral":  # peft gives each expert a rank of its own
        assert all(before[n].shape[0 if "lora_A" in n else 1] == 3 for n in changed)
    adapted = model(ids)
    assert not torch.allclose(adapted, plain(ids), atol=1e-2)
    merged = model.merged()
    assert type(merged) is type(plain.inner)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    torch.testing.assert_close(merged(ids).logits[..., :VOCAB], adapted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(ids), adapted)  # the model itself stays as it was


def test_an_adapter_is_scaled_by_alpha_over_its_rank(build) -> None:
    model = build("llama", lora={"rank": 3, "alpha": 5.0, "dropout": 0.5})
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    changed = dict(model.merged().named_parameters())
    adapters = trained_weights(model)
    for name, before in build("llama").inner.named_parameters():
        place = f"inner.base_model.model.{name.removesuffix('.weight')}.lora_"
        update = torch.zeros(())
        if f"{place}A.default.weight" in adapters:
            update = 5 / 3 * adapters[f"{place}B.default.weight"] @ adapters[f"{place}A.default.weight"]
        torch.testing.assert_close(changed[name], before + update)
    ids = texts()
    assert not torch.equal(model(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))


def test_adapters_go_where_they_are_told_and_start_as_the_seed_says(build, checkpoints: Path) -> None:
    model = build("llama", lora={"targets": ["q_proj", "layers.1.mlp.up_proj"]})
    places = {n.partition(".lora_")[0].partition("model.layers.")[2] for n in trained_weights(model)}
    assert places == {"0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj"}
    again = build("llama", lora={"targets": ["q_proj", "layers.1.mlp.up_proj"]})
    for name, value in trained_weights(model).items():
        assert torch.equal(value, trained_weights(again)[name])
    other = build_model(model.config, VOCAB, LENGTH, seed=4)
    drawn = [n for n in trained_weights(model) if "lora_A" in n]
    assert not any(torch.equal(trained_weights(model)[n], trained_weights(other)[n]) for n in drawn)


def test_an_adapter_in_the_head_is_part_of_the_logits(build) -> None:
    model, ids = build("llama", lora={"targets": ["lm_head"]}), texts()
    assert model.head_weight is None
    with torch.no_grad():
        model.inner.get_parameter("base_model.model.lm_head.lora_B.default.weight").normal_()
    torch.testing.assert_close(model.eval()(ids), model.merged()(ids).logits[..., :VOCAB], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("keys", [{}, {"lora": {}}, {"freeze": "core"}])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_gives_the_same_gradients(build, name: str, keys: dict[str, Any]) -> None:
    found = []
    for checkpointing in (False, True):
        model = build(name, gradient_checkpointing=checkpointing, dropout=0.1, **keys)
        with FlopCounterMode(display=False) as counter:
            torch.manual_seed(2)
            cross_entropy(model(texts()), texts(seed=1)).backward()
        found.append((gradients(model), counter.get_total_flops()))
    (kept, fewer), (recomputed, more) = found
    assert more > fewer  # it did compute again
    assert kept.keys() == recomputed.keys()
    for parameter, gradient in kept.items():
        assert torch.equal(gradient, recomputed[parameter])


@pytest.mark.parametrize("name", FAMILIES)
def test_random_weights_follow_from_the_seed_and_leave_the_global_generator_alone(build, name: str) -> None:
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    one, two = build(name, pretrained=False), build(name, pretrained=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    third = build_model(one.config, VOCAB, LENGTH, seed=4)
    weights = [dict(m.named_parameters()) for m in (one, two, third)]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert any(not torch.equal(weights[0][n], weights[2][n]) for n in weights[0])
    assert not torch.equal(*(next(m.parameters()) for m in (one, build(name))))


def test_layers_can_be_compiled_one_by_one(build) -> None:
    model, ids = build("llama", documents=True, gradient_checkpointing=True), texts()
    documents = (torch.arange(LENGTH) >= 9).long().expand(2, -1)
    expected = model(ids, documents=documents)
    compiled: list[object] = []

    def backend(graph: Any, inputs: object) -> Any:
        compiled.append(graph)
        return graph.forward

    for block in model.blocks:
        block.compile(backend=backend)
    found = model(ids, documents=documents)
    found.sum().backward()
    assert compiled
    torch.testing.assert_close(found, expected)
    assert len(list(generate(model, [[1, 2]], GenerationSettings(max_tokens=3, temperature=0)))) == 3


def test_a_rate_of_dropout_holds_for_all_of_them(build) -> None:
    gpt2, llama, ids = build("gpt2", dropout=0.5), build("llama", dropout=0.5), texts()
    assert {m.p for m in gpt2.modules() if isinstance(m, torch.nn.Dropout)} == {0.5}
    assert (gpt2.causal.config.attn_pdrop, llama.causal.config.attention_dropout) == (0.5, 0.5)
    for model in (gpt2, llama):
        assert not torch.equal(model(ids), model(ids))
        set_dropout(model, 0.0)
        assert torch.equal(model(ids), model(ids))


def test_a_rate_holds_also_for_dropouts_that_the_configuration_does_not_name(build, monkeypatch) -> None:
    monkeypatch.setattr(loading, "_set_rates", lambda settings, rate: None)
    assert {m.p for m in build("gpt2", dropout=0.5).modules() if isinstance(m, torch.nn.Dropout)} == {0.5}


def test_rates_are_told_from_other_numbers() -> None:
    layer = torch.nn.Module()
    numbers = {"dropout": 0.1, "hidden_dropout": 0, "resid_pdrop": 0.3, "layerdrop": 0.2, "use_dropout": True}
    vars(layer).update(numbers)
    set_dropout(torch.nn.ModuleList([layer, torch.nn.Dropout(0.1)]), 0.5)
    found = {name: getattr(layer, name) for name in numbers}
    assert found == numbers | {"dropout": 0.5, "hidden_dropout": 0.5, "resid_pdrop": 0.5}
