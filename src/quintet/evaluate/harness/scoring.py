"""Log-probabilities that a model gives to the ends of texts, which are read in batches and share what they can."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quintet import processes
from quintet.config.model import TransformerConfig
from quintet.evaluate.harness.texts import Text
from quintet.evaluate.likelihood import deal, token_fields
from quintet.evaluate.model_and_tokenizer import ModelAndTokenizer
from quintet.model.dropout import evaluation_mode
from quintet.model.kernels import varying_lengths
from quintet.model.mask import documents_after, leading

_WORTH = 0.25  # share of the positions that a shared beginning has to save, because it costs a second pass

Score = tuple[float, bool]


class Unscored(tuple[float, bool]):
    """The score of a continuation with nothing to score: NaN, never the likeliest, and the ``problem`` in words."""

    problem: str

    def __new__(cls, problem: str) -> Unscored:
        """Return a score that carries ``problem``."""
        score = super().__new__(cls, (math.nan, False))
        score.problem = problem
        return score


@dataclass(frozen=True)
class Limit:
    """The most that one forward pass may hold: ``tokens`` positions, ``rows`` texts if given, and ``length`` positions
    a row. A text longer than ``tokens`` is read by itself."""

    tokens: int
    length: int
    rows: int | None = None

    def holds(self, rows: int, width: int) -> bool:
        """Return True if ``rows`` texts of ``width`` positions may be read together."""
        return width <= self.length and (rows == 1 or (rows * width <= self.tokens and rows <= (self.rows or rows)))


@dataclass(frozen=True)
class Group:
    """Numbers of ``texts`` whose inputs begin with the same ``shared`` ids; the longest has ``rest`` more."""

    texts: tuple[int, ...]
    shared: int
    rest: int

    @property
    def rows(self) -> int:
        """Rows of the widest pass: one if the texts have equal inputs."""
        return len(self.texts) if self.rest else 1


@dataclass(frozen=True)
class BatchPlan:
    """Batches of groups: ``whole`` are read in one pass, ``split`` in two, first what each group shares."""

    whole: list[list[Group]]
    split: list[list[Group]]


def plan_batches(
    texts: Sequence[Text],
    owners: Sequence[Hashable],
    limit: Limit,
    alone: Callable[[Text], bool] = lambda text: False,
    side_by_side: Callable[[int], Hashable] = lambda length: None,
) -> BatchPlan:
    """Return batches for ``texts``. Texts of the same owner, as the choices of a question, may share a beginning.

    The beginning that all of them share is read once if that saves a quarter of the positions or more; texts with the
    same inputs are always read once. A text for which ``alone`` is true shares nothing. Whole texts are in one batch
    only if ``side_by_side`` gives the same for their lengths.
    """
    together: dict[Hashable, list[int]] = {}
    for index, (text, owner) in enumerate(zip(texts, owners, strict=True)):
        together.setdefault(("alone", index) if alone(text) else ("owner", owner), []).append(index)
    groups = [group for indexes in together.values() for group in _groups(texts, indexes, limit)]
    whole, split = ([group for group in groups if bool(group.rest) == rest] for rest in (False, True))
    return BatchPlan(_batches(whole, limit, side_by_side), _batches(split, limit, lambda length: None))


def _groups(texts: Sequence[Text], indexes: list[int], limit: Limit) -> Iterator[Group]:
    inputs = [texts[index].inputs for index in indexes]
    shared = _shared(inputs)
    total = sum(map(len, inputs))
    if len(set(inputs)) > 1 and shared * (len(indexes) - 1) >= _WORTH * total:
        yield from _parts(texts, Group(tuple(indexes), shared, max(map(len, inputs)) - shared), limit)
        return
    equal: dict[tuple[int, ...], list[int]] = {}
    for index, ids in zip(indexes, inputs, strict=True):
        equal.setdefault(ids, []).append(index)
    for ids, same in equal.items():
        yield Group(tuple(same), len(ids), 0)


def _shared(inputs: Sequence[tuple[int, ...]]) -> int:
    """Return how many ids all of ``inputs`` begin with."""
    # What the first and the last in sorted order share, all between them share.
    first, last = min(inputs), max(inputs)
    different = (index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(different, min(len(first), len(last)))


def _parts(texts: Sequence[Text], group: Group, limit: Limit) -> Iterator[Group]:
    """Yield ``group`` in parts that one pass may hold; each part reads the shared beginning again."""
    size = len(group.texts)
    while size > 1 and not limit.holds(size, group.shared + group.rest):
        size -= 1
    for first in range(0, len(group.texts), size):
        part = group.texts[first : first + size]
        longest = max(len(texts[index].inputs) for index in part)
        shared = group.shared if len(part) > 1 else longest
        yield Group(part, shared, longest - shared)


def _batches(groups: Iterable[Group], limit: Limit, side_by_side: Callable[[int], Hashable]) -> list[list[Group]]:
    """Return ``groups`` in batches of similar lengths, the longest first, so that memory runs out at the start."""
    batches: list[list[Group]] = []
    rows = shared = rest = 0
    for group in sorted(groups, key=lambda group: (-group.shared - group.rest, -group.shared, group.texts)):
        width = max(shared, group.shared) + max(rest, group.rest)
        apart = bool(batches) and side_by_side(batches[-1][0].shared) != side_by_side(group.shared)
        if not batches or apart or not limit.holds(rows + group.rows, width):
            batches.append([])
            rows = shared = rest = 0
        batches[-1].append(group)
        rows, shared, rest = rows + group.rows, max(shared, group.shared), max(rest, group.rest)
    return batches


class Scorer:
    """Scores texts on ``language_model`` in passes within ``limit``."""

    def __init__(self, language_model: ModelAndTokenizer, limit: Limit) -> None:
        self._model, self._compute, self._limit = language_model.model, language_model.compute, limit
        config = language_model.model.config
        abilities = language_model.model.abilities
        self._tells_documents = config.tells_documents
        self._prompts_see_all = isinstance(config, TransformerConfig) and config.attention.mask == "prefix"
        # Ends are padded on the right, which must not change the positions that other texts are read with.
        self._caches = not self._prompts_see_all and abilities.shared and abilities.boundary is None

    def score(self, texts: Sequence[Text], owners: Sequence[Hashable]) -> list[Score]:
        """Return for each text the summed log-probability, in nats, of its scored ids, and whether each of them is the
        likeliest at its position. Texts of the same owner may be read together.

        Each of several processes reads its share of the batches, and all get all results.
        """
        own: dict[int, Score] = {}
        batches = plan_batches(texts, owners, self._limit, self._is_alone, self._model.abilities.together)
        with evaluation_mode(self._model), torch.no_grad(), varying_lengths(), self._compute.autocast():
            for group_batches, read in ((batches.whole, self._read_whole), (batches.split, self._read_split)):
                for index, counts in deal(len(group_batches), processes.rank(), processes.world_size()):
                    scores = read(texts, group_batches[index])
                    own |= scores if counts else {}
        scores = {index: score for part in processes.all_gather(own) for index, score in part.items()}
        return [scores[index] for index in range(len(texts))]

    def _is_alone(self, text: Text) -> bool:
        """Return True if ``text`` shares nothing: documents are told apart only in what is read at once, and a prompt
        that sees itself in both directions depends on its end."""
        return not self._caches or (self._tells_documents and text.preceding > 0)

    def _read_whole(self, texts: Sequence[Text], batch: list[Group]) -> dict[int, Score]:
        rows = [texts[group.texts[0]] for group in batch]
        ids = self._padded([text.inputs for text in rows])
        documents = prompts = None
        if self._tells_documents:
            preceding = torch.tensor([text.preceding for text in rows], device=ids.device)
            documents = documents_after(preceding, ids.shape[1])
        if self._prompts_see_all:
            known = [len(text.ids) - text.scored for text in rows]
            prompts = leading(torch.tensor(known, device=ids.device), ids.shape[1])
        hidden = self._model.hidden(ids, documents=documents, prompts=prompts)
        targets = _Targets()
        for row, group in enumerate(batch):
            for index in group.texts:
                targets.add(index, texts[index], row, 0, 0, len(texts[index].inputs))
        return self._sum([(hidden, targets)])

    def _read_split(self, texts: Sequence[Text], batch: list[Group]) -> dict[int, Score]:
        shared, rest = max(group.shared for group in batch), max(group.rest for group in batch)
        beginnings = [texts[group.texts[0]].inputs[: group.shared] for group in batch]
        padding = [shared - group.shared for group in batch]
        cache = self._model.start_cache(len(batch), shared + rest, padding=padding if any(padding) else None)
        first = self._model.hidden(self._padded(beginnings, left=True), cache=cache)
        owners = [row for row, group in enumerate(batch) for _ in group.texts]
        cache.select(torch.tensor(owners, device=self._model.device))
        ends = [texts[index].inputs[group.shared :] for group in batch for index in group.texts]
        second = self._model.hidden(self._padded(ends), cache=cache)
        early, late = _Targets(), _Targets()
        row = 0
        for number, group in enumerate(batch):
            for index in group.texts:
                early.add(index, texts[index], number, padding[number], 0, group.shared)
                late.add(index, texts[index], row, -group.shared, group.shared, len(texts[index].inputs))
                row += 1
        return self._sum([(first, early), (second, late)])

    def _padded(self, rows: Sequence[Sequence[int]], left: bool = False) -> Tensor:
        """Return ids, int64 [rows, longest], padded with 0 on the right, or on the ``left``; no other position sees the
        padding."""
        longest = max(1, max(map(len, rows)))
        padding = [[0] * (longest - len(row)) for row in rows]
        padded = [[*zeros, *row] if left else [*row, *zeros] for row, zeros in zip(rows, padding, strict=True)]
        return torch.tensor(padded, device=self._model.device)

    def _sum(self, passes: list[tuple[Tensor, _Targets]]) -> dict[int, Score]:
        """Return the score of each text from the hidden states, [rows, positions, width], of one pass or two."""
        sums = {index: 0.0 for _, targets in passes for index in targets.texts}
        likeliest = dict.fromkeys(sums, True)
        for hidden, targets in passes:
            for index, logprob, best in zip(targets.texts, *self._look_up(hidden, targets), strict=True):
                sums[index] += logprob
                likeliest[index] &= best
        return {
            index: (sums.get(index, 0.0), likeliest.get(index, True)) for _, targets in passes for index in targets.read
        }

    def _look_up(self, hidden: Tensor, targets: _Targets) -> tuple[list[float], list[bool]]:
        """Return the log-probability of each target, and whether no id is likelier. Only the positions of targets go
        through the head."""
        ids = torch.tensor(targets.ids, dtype=torch.long, device=hidden.device)
        nats, guess, _ = token_fields(self._model, hidden[targets.rows, targets.columns], ids)
        return (-nats).tolist(), (guess == np.array(targets.ids)).tolist()


class _Targets:
    """The scored ids of a pass: each id with the row and column that predict it and the number of its text. ``read``
    are the numbers of all texts in the pass."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.texts: list[int] = []
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.ids: list[int] = []

    def add(self, index: int, text: Text, row: int, offset: int, first: int, stop: int) -> None:
        """Add the scored positions among the inputs ``first`` to ``stop`` of ``text``, which are ``offset`` further
        right in ``row``."""
        self.read.append(index)
        length = len(text.inputs)
        for position in range(max(first, length - text.scored), stop):
            self.texts.append(index)
            self.rows.append(row)
            self.columns.append(position + offset)
            self.ids.append(text.ids[position + 1])


def confidence(logprobs: Sequence[float], lengths: Sequence[int], right: Sequence[int]) -> dict[str, float]:
    """Return how certain a model is about the ``right`` choices of an item, which are given by their numbers.

    ``logprobs`` are the summed log-probabilities of the choices in nats, ``lengths`` their characters.
    ``probability`` is that of the right choices under a softmax over ``logprobs``; ``margin`` is the probability of the
    likeliest right choice minus that of the likeliest wrong one. Figures with ``_norm`` use log-probabilities per
    character; ``acc_norm`` is 1 if a right choice is the likeliest by these.
    """
    figures: dict[str, float] = {}
    sums = np.asarray(logprobs, dtype=np.float64)
    for suffix, scores in (("", sums), ("_norm", sums / np.maximum(lengths, 1))):
        chances = np.exp(scores - scores.max())
        chances /= chances.sum()
        wrong = np.delete(chances, list(right))
        figures[f"probability{suffix}"] = float(chances[list(right)].sum())
        figures[f"margin{suffix}"] = float(chances[list(right)].max() - wrong.max(initial=0.0))
    figures["acc_norm"] = float(int(np.argmax(sums / np.maximum(lengths, 1))) in right)
    return figures
