"""Log-probabilities that a model gives to the ends of texts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from quintet import processes
from quintet.config.model import TransformerConfig
from quintet.evaluate.harness.batches import Group, Limit, deal, plan
from quintet.evaluate.harness.texts import Text
from quintet.evaluate.likelihood import token_fields
from quintet.evaluate.model_and_tokenizer import ModelAndTokenizer
from quintet.model.dropout import evaluation_mode
from quintet.model.kernels import varying_lengths
from quintet.model.mask import documents_after, leading

Score = tuple[float, bool]


class Unscored(tuple[float, bool]):
    """The score of a continuation that has nothing to score: NaN, never likeliest, and the ``problem`` in words."""

    problem: str

    def __new__(cls, problem: str) -> Unscored:
        """``problem`` as it is said of the item."""
        found = super().__new__(cls, (math.nan, False))
        found.problem = problem
        return found


class Scorer:
    """Scores texts on ``language_model`` in passes within ``limit``."""

    def __init__(self, language_model: ModelAndTokenizer, limit: Limit) -> None:
        self._model, self._compute, self._limit = language_model.model, language_model.compute, limit
        config = language_model.model.config
        own = isinstance(config, TransformerConfig)
        self._tells_documents = config.tells_documents
        self._prompts_see_all = own and config.attention.mask == "prefix"
        can = language_model.model.abilities
        # Ends are filled up on the right, where they must not come to be read with other positions.
        self._caches = not self._prompts_see_all and can.shared and can.boundary is None

    def score(self, texts: Sequence[Text], owners: Sequence[Hashable]) -> list[Score]:
        """The summed log-probability, in nats, of the scored ids of each text, and whether each of them is the
        likeliest at its position. Texts of one of ``owners`` may be read together.

        With several processes each reads its share of the batches, and all get all results.
        """
        found: dict[int, Score] = {}
        batches = plan(texts, owners, self._limit, self._alone, self._model.abilities.together)
        with evaluation_mode(self._model), torch.no_grad(), varying_lengths(), self._compute.autocast():
            for some, read in ((batches.whole, self._whole), (batches.split, self._split)):
                for index, counts in deal(len(some), processes.rank(), processes.world_size()):
                    scores = read(texts, some[index])
                    found |= scores if counts else {}
        every = {index: score for part in processes.all_gather(found) for index, score in part.items()}
        return [every[index] for index in range(len(texts))]

    def _alone(self, text: Text) -> bool:
        """True where nothing of ``text`` may be read for another: documents are told apart in what is read at once, and
        a prompt that sees itself backwards depends on its end."""
        return not self._caches or (self._tells_documents and text.preceding > 0)

    def _whole(self, texts: Sequence[Text], batch: list[Group]) -> dict[int, Score]:
        inputs = [texts[group.texts[0]].inputs for group in batch]
        ids = self._tensor(inputs)
        documents = prompts = None
        if self._tells_documents:
            left = torch.tensor([texts[group.texts[0]].preceding for group in batch], device=ids.device)
            documents = documents_after(left, ids.shape[1])
        if self._prompts_see_all:
            known = [len(text.ids) - text.scored for text in (texts[group.texts[0]] for group in batch)]
            prompts = leading(torch.tensor(known, device=ids.device), ids.shape[1])
        hidden = self._model.hidden(ids, documents=documents, prompts=prompts)
        wanted = _Wanted()
        for row, group in enumerate(batch):
            for index in group.texts:
                wanted.add(index, texts[index], row, 0, 0, len(texts[index].inputs))
        return self._collected([(hidden, wanted)])

    def _split(self, texts: Sequence[Text], batch: list[Group]) -> dict[int, Score]:
        shared, rest = max(group.shared for group in batch), max(group.rest for group in batch)
        begins = [texts[group.texts[0]].inputs[: group.shared] for group in batch]
        padding = [shared - group.shared for group in batch]
        cache = self._model.start_cache(len(batch), shared + rest, padding=padding if any(padding) else None)
        first = self._model.hidden(self._tensor(begins, left=True), cache=cache)
        owners = [row for row, group in enumerate(batch) for _ in group.texts]
        cache.select(torch.tensor(owners, device=self._model.device))
        ends = [texts[index].inputs[group.shared :] for group in batch for index in group.texts]
        second = self._model.hidden(self._tensor(ends), cache=cache)
        early, late = _Wanted(), _Wanted()
        row = 0
        for number, group in enumerate(batch):
            for index in group.texts:
                early.add(index, texts[index], number, padding[number], 0, group.shared)
                late.add(index, texts[index], row, -group.shared, group.shared, len(texts[index].inputs))
                row += 1
        return self._collected([(first, early), (second, late)])

    def _tensor(self, rows: Sequence[Sequence[int]], left: bool = False) -> Tensor:
        """Ids, int64 [rows, longest], filled with 0 on the right, or on the ``left``; no other position sees the
        filling."""
        longest = max(1, max(map(len, rows)))
        filled = [
            [*([0] * (longest - len(row))), *row] if left else [*row, *([0] * (longest - len(row)))] for row in rows
        ]
        return torch.tensor(filled, device=self._model.device)

    def _collected(self, passes: list[tuple[Tensor, _Wanted]]) -> dict[int, Score]:
        sums = {index: 0.0 for _, wanted in passes for index in wanted.texts}
        likeliest = dict.fromkeys(sums, True)
        for hidden, wanted in passes:
            for index, logprob, best in zip(wanted.texts, *self._look_up(hidden, wanted), strict=True):
                sums[index] += logprob
                likeliest[index] &= best
        return {
            index: (sums.get(index, 0.0), likeliest.get(index, True)) for _, wanted in passes for index in wanted.asked
        }

    def _look_up(self, hidden: Tensor, wanted: _Wanted) -> tuple[list[float], list[bool]]:
        """Log-probability of each wanted id, and whether none is likelier. Only the wanted positions go through the
        head."""
        targets = torch.tensor(wanted.targets, dtype=torch.long, device=hidden.device)
        nats, guess, _ = token_fields(self._model, hidden[wanted.rows, wanted.columns], targets)
        return (-nats).tolist(), (guess == np.array(wanted.targets)).tolist()


class _Wanted:
    """Positions of a pass, by row and column, the id that is asked for at each, and the text it belongs to."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.texts: list[int] = []
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.targets: list[int] = []

    def add(self, index: int, text: Text, row: int, moved: int, first: int, stop: int) -> None:
        """The scored positions of ``text`` among its inputs ``first`` to ``stop``, which stand ``moved`` further right
        in ``row``."""
        self.asked.append(index)
        length = len(text.inputs)
        for position in range(max(first, length - text.scored), stop):
            self.texts.append(index)
            self.rows.append(row)
            self.columns.append(position + moved)
            self.targets.append(text.ids[position + 1])
