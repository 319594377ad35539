"""The trial of models of the transformers library, against the library's own plain reading of one text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import REPOSITORY, load_script
from torch import Tensor

from quintet.config.generation import GenerationSettings
from quintet.config.model import HuggingFaceConfig
from quintet.errors import UserError
from quintet.evaluate.harness.scoring import Limit, Scorer
from quintet.evaluate.harness.texts import Text
from quintet.model import build_model
from quintet.model.cache import Abilities
from quintet.model.generate import beam_search, generate
from quintet.model.hf import trial
from quintet.model.hf.pretrained import PretrainedModel
from quintet.model.hf.small_copy import VOCABULARY, small_copies, with_large_weights

transformers = pytest.importorskip("transformers")
from tests.model.architectures import ARCHITECTURES, ROWS, library_model  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402

CONTEXT = 48
Build = Callable[..., PretrainedModel]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def bench() -> Any:
    return load_script("benchmarks/architectures.py")


@pytest.fixture
def build(folder: Path) -> Build:
    def call(name: str, **keys: Any) -> PretrainedModel:
        if not (folder / name).is_dir():
            library_model(name).save_pretrained(folder / name)
        config = HuggingFaceConfig(kind="huggingface", name_or_path=str(folder / name), **keys)
        model = build_model(config, ROWS, CONTEXT, seed=0)
        assert isinstance(model, PretrainedModel)
        return model.eval()

    return call


def text(model: PretrainedModel, length: int, seed: int = 0) -> list[int]:
    return torch.randint(model.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def plain(model: PretrainedModel, ids: list[int]) -> Tensor:
    """The library's logits [length, vocab] of one whole text, without a cache."""
    return model.causal(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :, : model.vocab_size]


def greedy(model: PretrainedModel, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(plain(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


def best_of_beams(model: PretrainedModel, prompt: list[int], beams: int, count: int) -> list[int]:
    """A beam search without an end, on plain reading."""
    kept: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(count):
        grown = [
            (score + value, [*ids, token])
            for score, ids in kept
            for token, value in enumerate(plain(model, prompt + ids)[-1].log_softmax(-1).tolist())
        ]
        kept = sorted(grown, key=lambda one: -one[0])[:beams]
    return kept[0][1]


class Measured:
    """A model as the harness uses it, in fp32."""

    def __init__(self, model: PretrainedModel) -> None:
        self.model, self.compute, self.tokenizer = model, self, None
        self.device = torch.device("cpu")

    def autocast(self) -> Any:
        return torch.autocast("cpu", enabled=False)


def assert_reads_as_plainly(model: PretrainedModel) -> None:
    """Texts side by side, beams, and the answers of a benchmark are those of plain reading."""
    prompts = [text(model, length, seed=length) for length in (3, 9, 14)]
    settings = GenerationSettings(max_tokens=9, temperature=0)
    expected = [greedy(model, prompt, 9) for prompt in prompts]
    for static in (False, True):
        assert [list(row) for row in zip(*generate(model, prompts, settings, static=static), strict=True)] == expected
    assert beam_search(model, prompts[1], 3, 6) == best_of_beams(model, prompts[1], 3, 6)
    # Answers after one question, and after another that is longer.
    texts = [
        Text(tuple(text(model, size, seed=1) + text(model, rest, seed=rest)), rest)
        for size in (7, 12)
        for rest in (2, 5, 7)
    ]
    found = Scorer(Measured(model), Limit(200, CONTEXT)).score(texts, [len(one.ids) - one.scored for one in texts])
    for one, (nats, _) in zip(texts, found, strict=True):
        ids = list(one.ids)
        logs = plain(model, ids[:-1]).double().log_softmax(-1)[-one.scored :]
        expected = float(logs[range(one.scored), ids[-one.scored :]].sum())
        assert nats == pytest.approx(expected, abs=2e-3, rel=5e-4)  # large weights enlarge rounding


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_however_a_model_reads_it_gives_what_plain_reading_gives(build: Build, name: str) -> None:
    assert_reads_as_plainly(build(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_architecture_of_the_library_is_read_as_plainly(bench: Any, tmp_path: Path, name: str) -> None:
    try:
        whole = bench.default_model(name)
    except Exception as error:
        pytest.skip(f"its defaults build no model: {error}")
    for settings in small_copies(whole, 1 << 30):
        try:
            weights = with_large_weights(whole, settings, torch.Generator().manual_seed(7)).state_dict()
            settings.save_pretrained(tmp_path)
            config = HuggingFaceConfig(kind="huggingface", name_or_path=str(tmp_path), pretrained=False)
            model = build_model(config, VOCABULARY, CONTEXT, seed=0)
            break
        except Exception:
            continue
    else:
        pytest.skip("no small copy of it can be read")
    assert isinstance(model, PretrainedModel)
    model.inner.load_state_dict(weights)
    model.eval()
    if not torch.equal(plain(model, text(model, 9)), plain(model, text(model, 9))):
        pytest.skip("it draws what it sees, and reads one text in different ways")
    assert_reads_as_plainly(model)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("llama", set()),
        ("gpt2", set()),
        ("gemma2", set()),
        ("mixtral", set()),
        # A cache holds what one set of positions made of a text, and packed texts are read with the set of the longest.
        ("phi3", {"documents"}),
        # Packed texts are told apart by their positions, which are not used for the mask.
        ("roberta", {"documents"}),
        ("bert", {"documents"}),
        ("bart", {"batch", "shared", "documents"}),
        # A convolution reads what stands before, whatever its position.
        ("lfm2", {"documents"}),
    ],
)
def test_what_a_model_can_do_is_found(build: Build, name: str, missing: set[str]) -> None:
    can = build(name).abilities
    ways = ("cache", "batch", "reorder", "shared", "filled", "documents", "causal")
    assert {way for way in ways if not getattr(can, way)} == missing
    assert can.boundary == (16 if name == "phi3" else None)
    assert can.positions == ("after padding id" if name == "roberta" else "from zero")


@pytest.mark.parametrize("rows", [2, 16, 27])
def test_a_model_of_few_ids_is_tried_as_any_other(rows: int) -> None:
    numbers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    values = {**numbers, "num_key_value_heads": 2, "vocab_size": rows}
    config = HuggingFaceConfig(kind="huggingface", name_or_path="llama", pretrained=False, config=values)
    model = build_model(config, rows, CONTEXT, seed=0)
    assert isinstance(model, PretrainedModel)
    assert model.abilities == Abilities()


def test_within_its_first_positions_a_model_is_as_any_other(folder: Path, build: Build) -> None:
    build("phi3")
    config = HuggingFaceConfig(kind="huggingface", name_or_path=str(folder / "phi3"), documents=True)
    model = build_model(config, ROWS, 16, seed=0)
    assert isinstance(model, PretrainedModel)
    assert model.abilities == Abilities()
    assert not model.notes


@pytest.mark.parametrize("name", ["lfm2", "falcon_h1", "jamba", "phi3"])
def test_documents_that_leak_are_refused_before_the_weights_show_it(tmp_path: Path, name: str) -> None:
    transformers.AutoConfig.for_model(name, **ARCHITECTURES[name]).save_pretrained(tmp_path)
    config = HuggingFaceConfig(kind="huggingface", name_or_path=str(tmp_path), pretrained=False, documents=True)
    with pytest.raises(UserError, match=r"^model.documents: \w+ForCausalLM has no way to keep packed documents apart"):
        build_model(config, ROWS, CONTEXT, seed=0)


def test_what_is_slower_is_said_in_one_line(build: Build) -> None:
    assert build("llama").notes == []
    (line,) = build("phi3").notes
    assert line.startswith("Phi3ForCausalLM has other positions for texts of more than 16 tokens, so that")


@torch.no_grad()
def test_texts_that_grow_beyond_a_boundary_are_read_anew_there_and_nowhere_else(build: Build) -> None:
    model, lengths = build("phi3"), []
    model.causal.base_model.register_forward_pre_hook(
        lambda module, args, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    list(generate(model, [text(model, 10)], GenerationSettings(max_tokens=12, temperature=0)))
    assert lengths == [10, *[1] * 6, 17, *[1] * 4]


def test_the_state_of_a_run_is_left_as_it_was(build: Build, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("llama")
    monkeypatch.setattr(trial, "_known", {})
    monkeypatch.setenv("HOME", str(folder / "nobody"))
    torch.manual_seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    asked: list[str] = []
    real = trial.try_abilities
    monkeypatch.setattr(trial, "try_abilities", lambda *args, **named: asked.append("") or real(*args, **named))
    build("llama")
    assert asked
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_device() == torch.device("cpu")
    assert torch.is_grad_enabled()


def test_a_trial_is_made_once_and_again_for_another_model(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    real = trial.try_abilities
    monkeypatch.setattr(trial, "try_abilities", lambda *args, **named: asked.append(args) or real(*args, **named))

    def anew(**keys: Any) -> int:
        """The number of trials of a new process."""
        monkeypatch.setattr(trial, "_known", {})
        asked.clear()
        assert build("gemma2", **keys).abilities == Abilities()
        return len(asked)

    assert [anew(), anew(), anew(config={"sliding_window": 5}), anew()] == [1, 0, 1, 0]
    monkeypatch.setattr(trial, "_RECIPE", 0)
    assert anew() == 1
    kept = sorted(Path("~/.cache/quintet/abilities").expanduser().iterdir())
    assert all(json.loads(file.read_text()) for file in kept)
    for file in kept:
        file.write_text("{")  # as a kill or another version may leave it
    assert anew() == 1


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_small_copy_has_each_kind_of_layer(name: str) -> None:
    whole = library_model(name)
    settings = next(small_copies(whole, CONTEXT))
    copy = with_large_weights(whole, settings, torch.Generator().manual_seed(0))
    parts = [{type(part) for part in model.modules()} for model in (whole, copy)]
    assert parts[0] == parts[1]
    assert sum(p.numel() for p in copy.parameters()) <= sum(p.numel() for p in whole.parameters())


@pytest.mark.slow
def test_the_page_says_what_is_found(bench: Any) -> None:
    page = (REPOSITORY / "docs/reference/architectures.md").read_text("utf-8")
    if f"for transformers {transformers.__version__}." not in " ".join(page.split()):
        pytest.skip("the page is of another release of transformers")
    for name in ("llama", "phi3", "roberta", "lfm2", "mamba", "bart"):
        assert bench.row(name, bench.abilities(name)) in page.splitlines()
