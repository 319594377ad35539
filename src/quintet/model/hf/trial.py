"""Trial of a model of the transformers library: which ways of reading give what plain reading gives.

Nothing is assumed: how a cache, padding, packed texts and exchanged rows change a model's logits is up to the library's
code for its family and differs from release to release. It is tried on a small copy with large weights
(``small_copy``), in which every leak shows, and the result is kept for the next time.
"""

from __future__ import annotations

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

_RECIPE = 3  # another trial asks anew
_DRAWS = 2  # of weights: a layer that picks what it sees by a few of them may see the same with one draw
_TOLERANCE = 1e-3  # of the largest logit; what leaks changes them by tenths
_LENGTH = 20  # longest text of the trial, tokens
_ACROSS, _BELOW, _ABOVE = (4, _LENGTH), (4, BOUNDARY), (BOUNDARY + 2, _LENGTH)
_SIZES = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")  # those that are often at odds
_WAYS = ("cache", "batch", "static", "reorder", "shared", "filled")
NOTHING = Abilities(**dict.fromkeys(_WAYS, False), documents=False, positions="own")
_known: dict[str, Abilities] = {}  # of models that this process has tried or looked up

Span = tuple[int, int]


def find_abilities(config: HuggingFaceConfig, causal: Any, context_length: int, *, linear_head: bool) -> Abilities:
    """The abilities of ``causal``, a model of the transformers library, with texts of up to ``context_length`` tokens.

    They are looked up where a model of the same configuration and library was tried before on this machine, otherwise
    tried in a second or two. PyTorch's global generator and settings stay as they are.
    """
    digest = _digest(causal, context_length, linear_head)
    if digest in _known:
        return _known[digest]
    name = f"{digest}.json"
    try:
        found = Abilities(**from_json((cache_folder("abilities") / name).read_bytes()))
    except (OSError, ValueError, TypeError):
        found = try_abilities(config, causal, context_length, linear_head=linear_head)
        with suppress(OSError):  # what cannot be kept is tried again the next time
            write_text(cache_folder("abilities") / name, json.dumps(asdict(found), indent=2) + "\n")
    _known[digest] = found
    return found


def try_abilities(config: HuggingFaceConfig, causal: Any, context_length: int, *, linear_head: bool) -> Abilities:
    """The same, tried in any case. Where no copy can read a text, nothing is assumed but that later tokens do not
    change earlier ones."""
    with forked_generator(), torch.device("cpu"), torch.no_grad():
        plain = config.model_copy(update={"lora": None, "documents": False})
        boundary = _boundary(causal, context_length)
        for settings in small_copies(causal, context_length):
            found: list[Abilities] = []
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
                    found.append(_tried(model, texts, boundary))
            except Exception:  # a copy whose numbers do not fit one another; the next one is larger
                continue
            if len(found) == _DRAWS:
                return _of_all(found)
    return NOTHING


def _of_all(found: list[Abilities]) -> Abilities:
    """The abilities that each of several draws of the weights shows."""
    same = {name: all(getattr(one, name) for one in found) for name in (*_WAYS, "documents", "causal")}
    boundary = next((one.boundary for one in found if one.boundary is not None), None)
    alike = len({one.positions for one in found}) == 1
    return Abilities(**same, boundary=boundary, positions=found[0].positions if alike else "own")


@contextmanager
def reading(config: HuggingFaceConfig, causal: Any) -> Generator[None]:
    """Within, where ``causal`` reads a text, raise a UserError about its configuration for whatever it raises.

    Memory that runs out is no fault of the configuration and passes.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever matrices that do not fit one another make of a text
        key = "config" if config.config or not config.pretrained else "name_or_path"
        settings = causal.config.get_text_config(decoder=True)
        sizes = ", ".join(f"{name}: {getattr(settings, name)}" for name in _SIZES if hasattr(settings, name))
        raise UserError(
            f"model.{key}: {config.name_or_path} cannot read a text, for numbers of its configuration do not fit one "
            f"another ({sizes}; {one_line(error, lines=1)}); correct them in model.config"
        ) from error


class _Trial:
    """A ``model`` to try, and its logits for the beginnings of ``texts``, int64 [5, _LENGTH], each read alone."""

    def __init__(self, model: PretrainedModel, texts: Tensor) -> None:
        self.model, self.texts = model, texts
        self._alone: dict[tuple[int, int], Tensor] = {}

    def alone(self, row: int, length: int) -> Tensor:
        """fp32 logits [length, vocab] of the first ``length`` ids of text ``row``."""
        if (row, length) not in self._alone:
            self._alone[row, length] = self.model(self.texts[row : row + 1, :length])[0]
        return self._alone[row, length]

    def read(self, ids: Tensor, cache: Any) -> Tensor:
        """fp32 logits [batch, length, vocab] of int64 ``ids`` [batch, length] after what ``cache`` holds."""
        return self.model.logits(self.model.hidden(ids, cache=cache))


def _tried(model: PretrainedModel, texts: Tensor, boundary: int | None) -> Abilities:
    """The abilities of ``model`` by its logits for ``texts``, int64 [5, _LENGTH]."""
    model.abilities = Abilities(positions=_positions(model, texts[[0, 2, 3]]))
    trial = _Trial(model, texts)
    found = _of_span(trial, _ACROSS)
    if boundary is not None and found != Abilities():
        sides = [_of_span(trial, span) for span in (_BELOW, _ABOVE)]
        both = {name: all(getattr(side, name) for side in sides) for name in _WAYS}
        if any(both[name] > getattr(found, name) for name in _WAYS):
            found = replace(found, **both, boundary=boundary)
    return replace(
        found,
        positions=model.abilities.positions,
        documents=_holds(_tells_documents, trial),
        causal=_holds(_sees_backwards_only, trial),
    )


def _of_span(trial: _Trial, span: Span) -> Abilities:
    """The abilities with texts of a length within ``span``."""
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
    """True where ``way`` gives what plain reading gives."""
    try:
        return way(*arguments)
    except Exception:  # the library raises whatever it likes where a model cannot do this
        return False


def _grows(trial: _Trial, span: Span, padding: int, static: bool) -> bool:
    """Let two texts grow by a token at a time, of which the first is shorter by ``padding``."""
    begin, end = span
    cache = trial.model.own_cache(_LENGTH, [padding, 0] if padding else None, static=static)
    rows = torch.stack([trial.texts[0].roll(padding), trial.texts[1]])
    first = begin + padding
    for before, length in zip([0, *range(first, end)], range(first, end + 1), strict=True):
        found = trial.read(rows[:, before:length], cache)[:, -1]
        # At each length, for a layer that picks the few tokens that it sees may pick others at one of them alone.
        expected = [trial.alone(0, length - padding)[-1], trial.alone(1, length)[-1]]
        if not _alike(found, torch.stack(expected)):
            return False
    return True


def _reorders(trial: _Trial, span: Span) -> bool:
    """Exchange rows, add some and take some away, as a beam search does."""
    begin, end = span
    cache = trial.model.own_cache(_LENGTH)
    trial.read(trial.texts[:2, :begin], cache)
    rows = torch.arange(2)
    for chosen, length in (([1, 0, 1], begin + 1), ([2, 1], begin + 2), ([1, 1], min(begin + 3, end))):
        cache.select(torch.tensor(chosen))
        rows = rows[chosen]
        found = trial.read(trial.texts[rows, length - 1 : length], cache)[:, -1]
        if not _alike(found, torch.stack([trial.alone(row, length)[-1] for row in as_list(rows)])):
            return False
    return True


def _shares(trial: _Trial, span: Span) -> bool:
    """Read two beginnings once, one with padding, and three ends of several tokens after them."""
    begin, end = span
    rest = min(8, end - begin - 1)
    texts, cache = trial.texts, trial.model.own_cache(_LENGTH + 1, [1, 0])
    early = trial.read(torch.stack([texts[0, : begin + 1].roll(1), texts[1, : begin + 1]]), cache)
    cache.select(torch.tensor([0, 0, 1]))
    ends = texts[2:5, :rest].clone()
    ends[0, rest - 2 :] = 0  # filled up on the right
    late = trial.read(ends, cache)
    counts = [(0, begin, rest - 2), (0, begin, rest), (1, begin + 1, rest)]
    for row, (of, shared, count) in enumerate(counts):
        whole = trial.model(torch.cat([texts[of, :shared], ends[row, :count]])[None])[0]
        if not _alike(early[of, -shared:], whole[:shared]) or not _alike(late[row, :count], whole[shared:]):
            return False
    return True


def _fills(trial: _Trial, span: Span) -> bool:
    """Read whole texts of each length beside a longer one, with filling on their right."""
    begin, end = span
    for count in range(begin, end):
        rows = trial.texts[[0, 1, 1], :end].clone()
        rows[:2, count:] = 0
        found = trial.model(rows)
        if not all(_alike(found[row, :count], trial.alone(row, count)) for row in (0, 1)):
            return False
        if count == end - 1 and not _alike(found[2], trial.alone(1, end)):
            return False
    return True


def _tells_documents(trial: _Trial) -> bool:
    """Read rows packed with texts of several lengths."""
    cuts = [[1, 8, 11], [12, 3, 5]]
    documents = torch.stack([torch.repeat_interleave(torch.arange(3), torch.tensor(one)) for one in cuts])
    packed = trial.model(trial.texts[:2], documents=documents)
    for row, lengths in enumerate(cuts):
        texts, logits = torch.split(trial.texts[row], lengths), torch.split(packed[row], lengths)
        for part, found in zip(texts, logits, strict=True):
            if not _alike(found, trial.model(part[None])[0]):
                return False
    return True


def _sees_backwards_only(trial: _Trial) -> bool:
    """Change the last token of a text whose ids all differ, where the vocabulary has as many."""
    rows = trial.model.causal.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(RESERVED, RESERVED + _LENGTH + 1) % rows)[None]
    text, other = ids[:, :-1], torch.cat([ids[:, :-2], ids[:, -1:]], dim=1)
    return _alike(trial.model(text)[0, :-1], trial.model(other)[0, :-1])


def _positions(model: PretrainedModel, texts: Tensor) -> Any:
    """The rule by which the model counts positions of ``texts``, int64 [batch, length], where it is not told any."""
    expected, one = model(texts), torch.zeros_like(texts)
    for rule in ("from zero", "after padding id"):
        model.abilities = Abilities(positions=rule)
        if rule == "from zero" or padding_id(model.causal) is not None:
            told = model.hidden(texts, documents=one)
            if _alike(model.logits(told), expected):
                return rule
    return "own"


def _texts(copy: Any, generator: torch.Generator) -> Tensor:
    """Random int64 ids [5, _LENGTH], the padding id among them.

    The second and the last text repeat a few ids, as models often do: a layer that picks the few tokens that it sees
    finds equal ones there, and which it takes may depend on the empty places of a cache.
    """
    count = VOCABULARY - 1 - RESERVED
    found = RESERVED + torch.stack([torch.randperm(count, generator=generator)[:_LENGTH] for _ in range(5)])
    for row in (1, 4):
        found[row] = found[row, torch.randint(3, (_LENGTH,), generator=generator)]
    found %= copy.get_input_embeddings().weight.shape[0]
    padding = padding_id(copy)
    if padding is not None:
        found[:, 2] = found[:, 11] = padding
    return found


def _boundary(causal: Any, context_length: int) -> int | None:
    """The length for which the model was first built by its configuration, where texts exceed it."""
    return next((one for one in original_lengths(causal.config.to_dict()) if one < context_length), None)


def _alike(one: Tensor, other: Tensor) -> bool:
    """True for two fp32 tensors of one shape that differ little beside the largest number of ``other``."""
    return one.shape == other.shape and bool((one - other).abs().max() <= _TOLERANCE * other.abs().max())


def _digest(causal: Any, context_length: int, linear_head: bool) -> str:
    import transformers

    settings = causal.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype", "architectures"):
        settings.pop(name, None)
    kind = causal.__class__
    source = Path(inspect.getfile(kind)).read_bytes()
    told = [_RECIPE, transformers.__version__, torch.__version__, kind.__qualname__, context_length, linear_head]
    told += [settings, causal.config._attn_implementation, hashlib.sha256(source).hexdigest()]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]
