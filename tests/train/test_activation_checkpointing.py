from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from quintet.config.model import TransformerConfig
from quintet.model import Transformer, build_model
from quintet.train.model import checkpoint_activations

SHAPE: dict[str, Any] = {
    "layers": 4,
    "width": 32,
    "attention": {"heads": 2, "backend": "sdpa"},
    "residual_dropout": 0.2,
}
PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared": {
        "feedforward": {"dropout": 0.2},
        "sharing": {
            "same": ["attention_output"],
            "low_rank": ["feedforward", "attention_qkv"],
            "rank": 3,
            "bias": True,
        },
    },
    "bytes": {
        "tie_embeddings": False,
        "embedding": {"kind": "bytes", "bytes": 4, "width": 16, "heads": 2, "dropout": 0.2},
        "head": {"kind": "bytes", "bytes": 4, "width": 16, "heads": 2, "layers": 2, "dropout": 0.2},
    },
}


def model_of(how: int | str, parts: str = "plain") -> Transformer:
    model = build_model(TransformerConfig.model_validate(SHAPE | PARTS[parts]), 50, 16, seed=3)
    assert isinstance(model, Transformer)
    checkpoint_activations(model.blocks, how)  # pyright: ignore[reportArgumentType]
    return model


def step(how: int | str, parts: str = "plain") -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of a pass with dropout, and the bytes that its forward pass keeps."""
    model, kept = model_of(how, parts), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.arange(64).reshape(4, 16) % 50
    torch.manual_seed(0)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(ids).square().mean()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("how", [1, 2, 3, "selective"])
def test_gradients_are_the_same_bit_for_bit(how: int | str, parts: str) -> None:
    wanted, _ = step("none", parts)
    found, _ = step(how, parts)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient), name


def test_each_block_that_is_computed_again_keeps_less() -> None:
    kept = {how: step(how)[1] for how in ("none", 1, 2, 4)}
    saved = {how: kept["none"] - bytes for how, bytes in kept.items()}
    # Of 4 blocks, all, every second and one; what is shared with the next block is kept in any case.
    assert saved[1] > 0.25 * kept["none"]
    assert [2 * saved[2], 4 * saved[4]] == pytest.approx([saved[1]] * 2, rel=0.01)


def test_the_matrix_products_are_not_computed_again() -> None:
    """Counted in the backward pass: selective makes as many as no checkpointing, recomputing every block makes more."""

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
            return func(*args, **(kwargs or {}))

    counts = {}
    for how in ("none", "selective", 1):
        loss = model_of(how)(torch.arange(64).reshape(4, 16) % 50).square().mean()
        with Products() as products:
            loss.backward()
        counts[how] = products.count
    assert counts["none"] == counts["selective"] < counts[1]


def test_parameters_keep_their_names_and_evaluation_its_figures() -> None:
    plain, other = model_of("none").eval(), model_of(1).eval()
    assert list(plain.state_dict()) == list(other.state_dict())
    ids = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(plain(ids), other(ids))
