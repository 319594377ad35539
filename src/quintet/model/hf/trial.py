"""A test of a model of the transformers library: the ways of reading texts, such as packed, padded or with a cache,
that give the same logits as each text read alone.

Whether they do depends on the library's code for the model's family, and differs between releases. So each way is tried
on a small copy of the model with large weights (``small_copy``), in which a difference shows clearly. The result is
stored for the next time.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quintet.config.model import HuggingFaceConfig
from quintet.errors import UserError, one_line
from quintet.files import cache_folder, from_json, write_text
from quintet.model.cache import Abilities
from quintet.model.hf.pretrained import PretrainedModel, padding_id
from quintet.model.hf.small_copy import (
    BOUNDARY,
    RESERVED,
    VOCABULARY,
    original_lengths,
    small_copies,
    with_large_weights,
)
from quintet.model.typed import as_list, forked_generator

_RECIPE = 3  # the version of the trial; stored results of another version are not used
_DRAWS = 2  # of weights, because a layer that selects visible tokens may hide a leak with one draw
_TOLERANCE = 1e-3  # relative to the largest logit; a leak changes logits by tenths
_LENGTH = 20  # longest text of the trial, tokens
_ACROSS, _BELOW, _ABOVE = (4, _LENGTH), (4, BOUNDARY), (BOUNDARY + 2, _LENGTH)
_SIZES = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)  # those that often do not fit one another
_WAYS = ("cache", "batch", "static", "reorder", "shared", "filled")
NOTHING = Abilities(**dict.fromkeys(_WAYS, False), documents=False, positions="own")
_known: dict[str, Abilities] = {}  # by digest, for this process

Span = tuple[int, int]


def find_abilities(config: HuggingFaceConfig, causal: Any, context_length: int, *, linear_head: bool) -> Abilities:
    """Return the abilities of ``causal``, a model of the transformers library, for texts of up to ``context_length``
    tokens.

    They are stored results if a model of the same configuration and library was tried on this machine before, otherwise
    those of a trial of a second or two. PyTorch's global generator and settings are not changed.
    """
    digest = _digest(causal, context_length, linear_head)
    if digest in _known:
        return _known[digest]
    name = f"{digest}.json"
    try:
        abilities = Abilities(**from_json((cache_folder("abilities") / name).read_bytes()))
    except (OSError, ValueError, TypeError):
        abilities = try_abilities(config, causal, context_length, linear_head=linear_head)
        with suppress(OSError):  # if they cannot be stored, they are tried again the next time
            write_text(cache_folder("abilities") / name, json.dumps(asdict(abilities), indent=2) + "\n")
    _known[digest] = abilities
    return abilities


def try_abilities(config: HuggingFaceConfig, causal: Any, context_length: int, *, linear_head: bool) -> Abilities:
    """Return the abilities of ``causal`` by a trial, without stored results. If no copy can read a text, only causality
    is assumed."""
    with forked_generator(), torch.device("cpu"), torch.no_grad():
        plain = config.model_copy(update={"lora": None, "documents": False})
        boundary = _boundary(causal, context_length)
        for settings in small_copies(causal, context_length):
            draws: list[Abilities] = []
            try:
                for draw in range(_DRAWS):
                    generator = torch.Generator().manual_seed(_RECIPE * _DRAWS + draw)
                    copy = with_large_weights(causal, settings, generator)
                    model = PretrainedModel(
                        plain, copy, VOCABULARY, _LENGTH, linear_head=linear_head, abilities=Abilities()
                    ).eval()
                    texts = _texts(copy, generator)
                    if not model(texts).isfinite().all():
                        break
                    draws.append(_tried(model, texts, boundary))
            except Exception:  # the numbers of the copy do not fit one another; the next copy is larger
                continue
            if len(draws) == _DRAWS:
                return _of_all(draws)
    return NOTHING


def _of_all(draws: list[Abilities]) -> Abilities:
    """Return the abilities that all draws of the weights show."""
    same = {name: all(getattr(draw, name) for draw in draws) for name in (*_WAYS, "documents", "causal")}
    boundary = next((draw.boundary for draw in draws if draw.boundary is not None), None)
    same_positions = len({draw.positions for draw in draws}) == 1
    return Abilities(**same, boundary=boundary, positions=draws[0].positions if same_positions else "own")


@contextmanager
def reading(config: HuggingFaceConfig, causal: Any) -> Generator[None]:
    """Turn errors of ``causal`` while it reads a text into errors about its configuration.

    Raises UserError for them, except for out-of-memory errors, which are no fault of the configuration.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # matrices that do not fit one another make the library raise many kinds
        key = "config" if config.config or not config.pretrained else "name_or_path"
        settings = causal.config.get_text_config(decoder=True)
        sizes = ", ".join(f"{name}: {getattr(settings, name)}" for name in _SIZES if hasattr(settings, name))
        raise UserError(
            f"model.{key}: {config.name_or_path} cannot read a text, for numbers of its configuration do not fit one "
            f"another ({sizes}; {one_line(error, lines=1)}); correct them in model.config"
        ) from error


class _Trial:
    """A ``model`` to try, and its logits for beginnings of ``texts``, int64 [5, _LENGTH], each read by itself."""

    def __init__(self, model: PretrainedModel, texts: Tensor) -> None:
        self.model, self.texts = model, texts
        self._alone: dict[tuple[int, int], Tensor] = {}

    def alone(self, row: int, length: int) -> Tensor:
        """Return fp32 logits [length, vocab] of the first ``length`` ids of text ``row``."""
        if (row, length) not in self._alone:
            self._alone[row, length] = self.model(self.texts[row : row + 1, :length])[0]
        return self._alone[row, length]

    def read(self, ids: Tensor, cache: Any) -> Tensor:
        """Return fp32 logits [batch, length, vocab] of int64 ``ids`` [batch, length] after the tokens in ``cache``."""
        return self.model.logits(self.model.hidden(ids, cache=cache))


def _tried(model: PretrainedModel, texts: Tensor, boundary: int | None) -> Abilities:
    """Return the abilities of ``model`` by its logits for ``texts``, int64 [5, _LENGTH]."""
    model.abilities = Abilities(positions=_positions(model, texts[[0, 2, 3]]))
    trial = _Trial(model, texts)
    abilities = _of_span(trial, _ACROSS)
    if boundary is not None and abilities != Abilities():
        sides = [_of_span(trial, span) for span in (_BELOW, _ABOVE)]
        both = {name: all(getattr(side, name) for side in sides) for name in _WAYS}
        if any(both[name] > getattr(abilities, name) for name in _WAYS):
            abilities = replace(abilities, **both, boundary=boundary)
    return replace(
        abilities,
        positions=model.abilities.positions,
        documents=_holds(_tells_documents, trial),
        causal=_holds(_sees_backwards_only, trial),
    )


def _of_span(trial: _Trial, span: Span) -> Abilities:
    """Return the abilities for texts whose length is within ``span``."""
    padding = min(5, span[1] - span[0] - 2)
    batch = _holds(_grows, trial, span, padding, False)
    cache = batch or _holds(_grows, trial, span, 0, False)
    return Abilities(
        cache=cache,
        batch=batch,
        static=cache and _holds(_grows, trial, span, padding if batch else 0, True),
        reorder=cache and _holds(_reorders, trial, span),
        shared=batch and _holds(_shares, trial, span),
        filled=_holds(_fills, trial, span),
    )


def _holds(way: Callable[..., bool], *arguments: Any) -> bool:
    """Return True if ``way`` gives the logits of each text read alone."""
    try:
        return way(*arguments)
    except Exception:  # the library raises many kinds if a model cannot do this
        return False


def _grows(trial: _Trial, span: Span, padding: int, static: bool) -> bool:
    """Read two texts token by token, of which the first is shorter by ``padding``."""
    begin, end = span
    cache = trial.model.own_cache(_LENGTH, [padding, 0] if padding else None, static=static)
    rows = torch.stack([trial.texts[0].roll(padding), trial.texts[1]])
    first = begin + padding
    for before, length in zip([0, *range(first, end)], range(first, end + 1), strict=True):
        logits = trial.read(rows[:, before:length], cache)[:, -1]
        # A layer that selects visible tokens may select wrong ones at a single length, so each length is compared.
        expected = [trial.alone(0, length - padding)[-1], trial.alone(1, length)[-1]]
        if not alike(logits, torch.stack(expected)):
            return False
    return True


def _reorders(trial: _Trial, span: Span) -> bool:
    """Exchange rows, repeat some and remove some, as a beam search does."""
    begin, end = span
    cache = trial.model.own_cache(_LENGTH)
    trial.read(trial.texts[:2, :begin], cache)
    rows = torch.arange(2)
    for chosen, length in (([1, 0, 1], begin + 1), ([2, 1], begin + 2), ([1, 1], min(begin + 3, end))):
        cache.select(torch.tensor(chosen))
        rows = rows[chosen]
        logits = trial.read(trial.texts[rows, length - 1 : length], cache)[:, -1]
        if not alike(logits, torch.stack([trial.alone(row, length)[-1] for row in as_list(rows)])):
            return False
    return True


def _shares(trial: _Trial, span: Span) -> bool:
    """Read two prefixes once, one with padding, and three continuations of several tokens after them."""
    begin, end = span
    rest = min(8, end - begin - 1)
    texts, cache = trial.texts, trial.model.own_cache(_LENGTH + 1, [1, 0])
    early = trial.read(torch.stack([texts[0, : begin + 1].roll(1), texts[1, : begin + 1]]), cache)
    cache.select(torch.tensor([0, 0, 1]))
    ends = texts[2:5, :rest].clone()
    ends[0, rest - 2 :] = 0  # padding on the right
    late = trial.read(ends, cache)
    counts = [(0, begin, rest - 2), (0, begin, rest), (1, begin + 1, rest)]
    for row, (of, shared, count) in enumerate(counts):
        whole = trial.model(torch.cat([texts[of, :shared], ends[row, :count]])[None])[0]
        if not alike(early[of, -shared:], whole[:shared]) or not alike(late[row, :count], whole[shared:]):
            return False
    return True


def _fills(trial: _Trial, span: Span) -> bool:
    """Read whole texts of each length beside a longer one, with padding on their right."""
    begin, end = span
    for count in range(begin, end):
        rows = trial.texts[[0, 1, 1], :end].clone()
        rows[:2, count:] = 0
        logits = trial.model(rows)
        if not all(alike(logits[row, :count], trial.alone(row, count)) for row in (0, 1)):
            return False
        if count == end - 1 and not alike(logits[2], trial.alone(1, end)):
            return False
    return True


def _tells_documents(trial: _Trial) -> bool:
    """Read rows packed with texts of several lengths."""
    cuts = [[1, 8, 11], [12, 3, 5]]
    documents = torch.stack([torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)) for lengths in cuts])
    packed = trial.model(trial.texts[:2], documents=documents)
    for row, lengths in enumerate(cuts):
        texts, logits = torch.split(trial.texts[row], lengths), torch.split(packed[row], lengths)
        for text, part in zip(texts, logits, strict=True):
            if not alike(part, trial.model(text[None])[0]):
                return False
    return True


def _sees_backwards_only(trial: _Trial) -> bool:
    """Change the last token of a text whose ids all differ, if the vocabulary is large enough."""
    rows = trial.model.causal.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(RESERVED, RESERVED + _LENGTH + 1) % rows)[None]
    text, other = ids[:, :-1], torch.cat([ids[:, :-2], ids[:, -1:]], dim=1)
    return alike(trial.model(text)[0, :-1], trial.model(other)[0, :-1])


def _positions(model: PretrainedModel, texts: Tensor) -> Any:
    """Return the rule by which the model counts positions of ``texts``, int64 [batch, length], without given ones."""
    expected, document = model(texts), torch.zeros_like(texts)
    for rule in ("from zero", "after padding id"):
        model.abilities = Abilities(positions=rule)
        if rule == "from zero" or padding_id(model.causal) is not None:
            features = model.hidden(texts, documents=document)
            if alike(model.logits(features), expected):
                return rule
    return "own"


def _texts(copy: Any, generator: torch.Generator) -> Tensor:
    """Return random int64 ids [5, _LENGTH], the padding id among them.

    The second and the last text repeat a few ids, as models often do. A layer that selects visible tokens finds equal
    ones there, and its selection may depend on unused positions of a cache.
    """
    count = VOCABULARY - 1 - RESERVED
    ids = RESERVED + torch.stack([torch.randperm(count, generator=generator)[:_LENGTH] for _ in range(5)])
    for row in (1, 4):
        ids[row] = ids[row, torch.randint(3, (_LENGTH,), generator=generator)]
    ids %= copy.get_input_embeddings().weight.shape[0]
    padding = padding_id(copy)
    if padding is not None:
        ids[:, 2] = ids[:, 11] = padding
    return ids


def _boundary(causal: Any, context_length: int) -> int | None:
    """Return the length for which the model was first built by its configuration, if texts can exceed it."""
    return next((length for length in original_lengths(causal.config.to_dict()) if length < context_length), None)


def alike(one: Tensor, other: Tensor) -> bool:
    """Return True if fp32 tensors [...] have one shape and differ little relative to the largest value of ``other``."""
    return one.shape == other.shape and bool((one - other).abs().max() <= _TOLERANCE * other.abs().max())


def _digest(causal: Any, context_length: int, linear_head: bool) -> str:
    import transformers

    settings = causal.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype", "architectures"):
        settings.pop(name, None)
    kind = causal.__class__
    source = Path(inspect.getfile(kind)).read_bytes()
    facts = [_RECIPE, transformers.__version__, torch.__version__, kind.__qualname__, context_length, linear_head]
    facts += [settings, causal.config._attn_implementation, hashlib.sha256(source).hexdigest()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
