"""A model of Quintet as the harness knows models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

from lm_eval.api.model import LM

from quintet.evaluate.harness.batches import Limit
from quintet.evaluate.harness.items import NotReachable
from quintet.evaluate.harness.scoring import Score, Scorer, Unscored
from quintet.evaluate.harness.texts import Encoder
from quintet.evaluate.model_and_tokenizer import ModelAndTokenizer
from quintet.model.generate import generate, tokens_ahead
from quintet.model.sampling import GenerationSettings
from quintet.randomness import key
from quintet.tokenize import TextStream, Tokenizer
from quintet.tokenize.bounds import special_tokens

_GENERATED = 256  # tokens, as the harness's own class, where a task says nothing
_WRITERS = 8  # texts that are written side by side

Method = TypeVar("Method", bound=Callable[..., Any])


def _noted(method: Method) -> Method:
    """``method``, whose error is kept in ``failure``: it is one of the model and not of a task's own code."""

    @wraps(method)
    def answer(model: HarnessModel, requests: list[Any]) -> Any:
        try:
            return method(model, requests)
        except Exception as error:
            model.failure = error
            raise

    return answer  # pyright: ignore[reportReturnType]


class HarnessModel(LM):
    """``language_model`` as the harness asks a model: three questions.

    ``limit`` bounds a forward pass. With several processes each must be asked the same: the batches are dealt out among
    them, and each gets all answers. ``cut`` has the numbers of the items, by task, whose beginning found no room in the
    context, and ``unscored`` those with a continuation that has nothing to score, by task and by what is wrong.
    """

    def __init__(self, language_model: ModelAndTokenizer, limit: Limit) -> None:
        super().__init__()
        self._language_model = language_model
        self.encoder = Encoder(language_model.tokenizer, language_model.model.context_length, language_model.bounds)
        self._scorer = Scorer(language_model, limit)
        self.cut: dict[str, set[int]] = {}
        self.unscored: dict[str, dict[str, set[int]]] = {}
        self.failure: Exception | None = None

    @property
    def precision(self) -> str:
        """The precision that the model is computed in."""
        return self._language_model.compute.precision

    @_noted
    def loglikelihood(self, requests: list[Any]) -> list[Score]:
        """Summed log-probability, in nats, of each continuation after its context, and whether it is what the
        likeliest token at each position would give; an `Unscored` for one that has nothing to score."""
        texts = self.encoder.pairs([(request.args[0], request.args[1]) for request in requests])
        for request, text in zip(requests, texts, strict=True):
            self._note_cut(request, text.cut)
            if text.problem is not None:
                of_task = self.unscored.setdefault(request.task_name or "", {})
                of_task.setdefault(text.problem, set()).add(request.doc_id or 0)
        asked = [number for number, text in enumerate(texts) if text.problem is None]
        owners = [(requests[number].task_name, requests[number].doc_id) for number in asked]
        scores = dict(zip(asked, self._scorer.score([texts[number] for number in asked], owners), strict=True))
        return [scores.get(number) or Unscored(text.problem or "") for number, text in enumerate(texts)]

    @_noted
    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Summed log-probability, in nats, of each whole text, read in windows as long as the context."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            found = self.encoder.rolling(request.args[0])
            windows += found
            owners += [number] * len(found)
        sums = [0.0] * len(requests)
        scores = self._scorer.score(windows, list(range(len(windows))))
        for owner, (logprob, _) in zip(owners, scores, strict=True):
            sums[owner] += logprob
        return sums

    @_noted
    def generate_until(self, requests: list[Any]) -> list[str]:
        """The text that is written after each context, up to a stop string, the end of the document or so many tokens.

        Each process writes all of them: how long that takes depends on the texts, and a model that is spread over the
        processes needs all of them at each token.
        """
        kinds: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            kinds.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        written = [""] * len(requests)
        for numbers in kinds.values():
            options = _GenerationOptions.of(requests[numbers[0]].args[1])
            contexts = self.encoder.encode([requests[number].args[0] for number in numbers])
            numbers.sort(key=lambda number: len(contexts[requests[number].args[0]]))
            for first in range(0, len(numbers), _WRITERS):
                part = numbers[first : first + _WRITERS]
                prompts = [self._prompt(requests[number], contexts, options) for number in part]
                for number, text in zip(part, self._write(prompts, options, part[0]), strict=True):
                    written[number] = text
        return written

    def _prompt(self, request: Any, contexts: Mapping[str, list[int]], options: _GenerationOptions) -> list[int]:
        """The end of a context, with room for what is to be written; where that is more than the context, half."""
        ids, limit = contexts[request.args[0]], self._language_model.model.context_length
        room = limit - options.tokens if options.tokens < limit else max(1, limit // 2)
        self._note_cut(request, len(ids) - room)
        return ids[-room:] or self.encoder.prefix

    def _note_cut(self, request: Any, cut: int) -> None:
        if cut > 0:
            self.cut.setdefault(request.task_name or "", set()).add(request.doc_id or 0)

    def _write(self, prompts: Sequence[list[int]], options: _GenerationOptions, number: int) -> list[str]:
        tokenizer, bounds = self._language_model.tokenizer, self._language_model.bounds
        settings = GenerationSettings(
            max_tokens=options.tokens,
            seed=key(0, "harness", number),
            temperature=options.temperature,
            **options.sampling,
        )
        steps = generate(
            self._language_model.model,
            prompts,
            settings,
            bounds.stop_ids,
            allowed_ids=tokenizer.vocab_size,
            preceding=[bounds.preceding * bounds.starts(ids) for ids in prompts],
            ahead=tokens_ahead(self._language_model.compute.device),
        )
        texts = [Written(tokenizer, options.stops) for _ in prompts]
        with self._language_model.compute.autocast():
            for step in steps:
                for text, token in zip(texts, step, strict=True):
                    if token is not None and not text.stopped:
                        text.push(token)
                if all(token is None or text.stopped for text, token in zip(texts, step, strict=True)):
                    break
        return [text.finish() for text in texts]


class Written:
    """A text that a task wants written, while its ids arrive; it ends and is cut where the harness's class does so.

    The harness decodes what is written by itself, which drops the space before the first word of sentencepiece. It
    stops at any of ``stops``, or the text of the id that ends a document, in the text with special tokens written out
    (`MultiTokenEOSCriteria`), and cuts the text without them.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._special = {number: text for text, number in special_tokens(tokenizer).items()}
        end = self._special.get(tokenizer.end_id)
        self._stops = tuple(stops) if end is None or end in stops else (*stops, end)
        self._stream = TextStream(tokenizer)
        self._text = self._written = ""
        self.stopped = False

    def push(self, token: int) -> None:
        """Adds the text of an id."""
        piece = self._stream.push(token)
        self._text += piece
        self._written += self._stream.dropped + piece + self._special.get(token, "")
        self.stopped = any(stop in self._written for stop in self._stops)

    def finish(self) -> str:
        """The text up to its stop strings: each in turn ends what the ones before it have left, as in the harness."""
        text = self._text + self._stream.finish()
        for stop in self._stops:
            text = text.split(stop)[0]
        return text


_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given counts
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty")
_PLAIN = {"num_beams": 1, "num_return_sequences": 1}  # settings that are taken where they ask for nothing special


class TrialModel(HarnessModel):
    """Encodes what is asked and answers nothing, to find out whether the tokenizer can write the items."""

    def __init__(self, language_model: ModelAndTokenizer, limit: Limit) -> None:
        super().__init__(language_model, limit)
        self._scorer = _NoScorer(language_model, limit)

    def _write(self, prompts: Sequence[list[int]], options: _GenerationOptions, number: int) -> list[str]:
        return [""] * len(prompts)


class _NoScorer(Scorer):
    def score(self, texts: Sequence[Any], owners: Sequence[Any]) -> list[Score]:
        return [(0.0, False)] * len(texts)


@dataclass(frozen=True)
class _GenerationOptions:
    """The way in which a task wants its text written; without ``do_sample`` or a temperature the likeliest token is
    taken."""

    tokens: int
    temperature: float
    stops: tuple[str, ...]
    sampling: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> _GenerationOptions:
        """From a task's ``generation_kwargs``. Raises NotReachable for a setting that this writing does not have."""
        given = {name: value for name, value in arguments.items() if value is not None}
        until = given.get("until", ())
        stops = (until,) if isinstance(until, str) else tuple(until)
        sampled = given.get("do_sample")
        temperature = float(given.get("temperature", 1.0 if sampled else 0.0))
        tokens = next((given[name] for name in _LENGTHS if name in given), _GENERATED)
        known = {"until", "do_sample", "temperature", *_LENGTHS, *_SAMPLING}
        other = [name for name, value in given.items() if name not in known and _PLAIN.get(name) != value]
        if other:
            raise NotReachable(f"it asks for text with {other[0]}: {given[other[0]]}, which is not done here")
        sampling = {name: given[name] for name in _SAMPLING if given.get(name)}
        return cls(int(tokens), 0.0 if sampled is False else temperature, tuple(filter(None, stops)), sampling)
