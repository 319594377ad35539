"""A model of Quintet as lm-evaluation-harness knows models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

from quintet.config.generation import GenerationSettings
from quintet.evaluate.harness.items import NotReachable
from quintet.evaluate.harness.library import LM
from quintet.evaluate.harness.scoring import Limit, Score, Scorer, Unscored
from quintet.evaluate.harness.texts import Encoder, GeneratedText, Text
from quintet.evaluate.model_and_tokenizer import ModelAndTokenizer
from quintet.model.generate import generate, tokens_ahead
from quintet.model.sampling import generation_settings
from quintet.randomness import key

_GENERATED = 256  # tokens, as in the harness's own class, if a task names no length
_SIDE_BY_SIDE = 8  # texts that are generated together

Answer = TypeVar("Answer")


def _noting_failures(
    method: Callable[[HarnessModel, list[Any]], Answer],
) -> Callable[[HarnessModel, list[Any]], Answer]:
    """Return ``method`` such that an error in it is kept as ``failure``: it is an error of the model, not of a task."""

    @wraps(method)
    def answer(model: HarnessModel, requests: list[Any]) -> Answer:
        try:
            return method(model, requests)
        except Exception as error:
            model.failure = error
            raise

    return answer


class HarnessModel(LM):
    """``language_model`` with the three methods by which the harness asks a model.

    ``limit`` bounds a forward pass. Each of several processes must get the same requests: the batches are dealt out
    among them, and each gets all answers. ``cut`` holds the numbers of the items, by task, that lost their beginning
    because the context has no room for it, and ``unscored`` those with a continuation that has nothing to score, by
    task and by problem.
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

    @_noting_failures
    def loglikelihood(self, requests: list[Any]) -> list[Score]:
        """Return for each request the summed log-probability, in nats, of its continuation after its context, and
        whether each token is the likeliest in its place; an `Unscored` for a continuation with nothing to score."""
        texts = self.encoder.pairs([(request.args[0], request.args[1]) for request in requests])
        for request, text in zip(requests, texts, strict=True):
            self._note_cut(request, text.cut)
            if text.problem is not None:
                of_task = self.unscored.setdefault(request.task_name or "", {})
                of_task.setdefault(text.problem, set()).add(request.doc_id or 0)
        numbers = [number for number, text in enumerate(texts) if text.problem is None]
        owners = [(requests[number].task_name, requests[number].doc_id) for number in numbers]
        scores = dict(zip(numbers, self._scorer.score([texts[number] for number in numbers], owners), strict=True))
        return [scores.get(number) or Unscored(text.problem or "") for number, text in enumerate(texts)]

    @_noting_failures
    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Return the summed log-probability, in nats, of each whole text, read in windows as long as the context."""
        windows: list[Text] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            of_text = self.encoder.rolling(request.args[0])
            windows += of_text
            owners += [number] * len(of_text)
        sums = [0.0] * len(requests)
        scores = self._scorer.score(windows, list(range(len(windows))))
        for owner, (logprob, _) in zip(owners, scores, strict=True):
            sums[owner] += logprob
        return sums

    @_noting_failures
    def generate_until(self, requests: list[Any]) -> list[str]:
        """Return the text that the model writes after each context, up to a stop string, the end of the document or
        the number of tokens that the task sets.

        Each process writes all texts: how long that takes depends on the texts, and a model that is spread over the
        processes needs all of them at each token.
        """
        numbers_by_options: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            options = json.dumps(request.args[1], sort_keys=True, default=str)
            numbers_by_options.setdefault(options, []).append(number)
        answers = [""] * len(requests)
        for numbers in numbers_by_options.values():
            options = _GenerationOptions.of(requests[numbers[0]].args[1])
            contexts = self.encoder.encode([requests[number].args[0] for number in numbers])
            numbers.sort(key=lambda number: len(contexts[requests[number].args[0]]))
            for first in range(0, len(numbers), _SIDE_BY_SIDE):
                part = numbers[first : first + _SIDE_BY_SIDE]
                prompts = [self._prompt(requests[number], contexts, options) for number in part]
                for number, text in zip(part, self._generate(prompts, options, part[0]), strict=True):
                    answers[number] = text
        return answers

    def _prompt(self, request: Any, contexts: Mapping[str, list[int]], options: _GenerationOptions) -> list[int]:
        """Return the end of a context that leaves room for the answer; half the model's context if the answer may be
        as long as that."""
        ids, limit = contexts[request.args[0]], self._language_model.model.context_length
        room = limit - options.settings.max_tokens if options.settings.max_tokens < limit else max(1, limit // 2)
        self._note_cut(request, len(ids) - room)
        return ids[-room:] or self.encoder.prefix

    def _note_cut(self, request: Any, cut: int) -> None:
        if cut > 0:
            self.cut.setdefault(request.task_name or "", set()).add(request.doc_id or 0)

    def _generate(self, prompts: Sequence[list[int]], options: _GenerationOptions, number: int) -> list[str]:
        tokenizer, bounds = self._language_model.tokenizer, self._language_model.bounds
        settings = options.settings.model_copy(update={"seed": key(0, "harness", number)})
        steps = generate(
            self._language_model.model,
            prompts,
            settings,
            bounds.stop_ids,
            allowed_ids=tokenizer.vocab_size,
            preceding=[bounds.preceding * bounds.starts(ids) for ids in prompts],
            ahead=tokens_ahead(self._language_model.compute.device),
        )
        texts = [GeneratedText(tokenizer, options.stops) for _ in prompts]
        with self._language_model.compute.autocast():
            for step in steps:
                for text, token in zip(texts, step, strict=True):
                    if token is not None and not text.stopped:
                        text.push(token)
                if all(token is None or text.stopped for text, token in zip(texts, step, strict=True)):
                    break
        return [text.finish() for text in texts]


class TrialModel(HarnessModel):
    """Encodes the requests and answers nothing, to find items that the tokenizer cannot encode."""

    def __init__(self, language_model: ModelAndTokenizer, limit: Limit) -> None:
        super().__init__(language_model, limit)
        self._scorer = _NoScorer(language_model, limit)

    def _generate(self, prompts: Sequence[list[int]], options: _GenerationOptions, number: int) -> list[str]:
        return [""] * len(prompts)


class _NoScorer(Scorer):
    def score(self, texts: Sequence[Any], owners: Sequence[Any]) -> list[Score]:
        return [(0.0, False)] * len(texts)


_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given counts
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty")
_IGNORED = {"num_beams": 1, "num_return_sequences": 1}  # settings that are accepted only with these values


@dataclass(frozen=True)
class _GenerationOptions:
    """How a task's answers are generated; without ``do_sample`` or a temperature the likeliest token is taken."""

    settings: GenerationSettings
    stops: tuple[str, ...]

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> _GenerationOptions:
        """Return the options in a task's ``generation_kwargs``. Raises NotReachable for a setting that is not
        supported."""
        given = {name: value for name, value in arguments.items() if value is not None}
        until = given.get("until", ())
        stops = (until,) if isinstance(until, str) else tuple(until)
        sampled = given.get("do_sample")
        temperature = 0.0 if sampled is False else float(given.get("temperature", 1.0 if sampled else 0.0))
        tokens = next((given[name] for name in _LENGTHS if name in given), _GENERATED)
        known = {"until", "do_sample", "temperature", *_LENGTHS, *_SAMPLING}
        other = [name for name, value in given.items() if name not in known and _IGNORED.get(name) != value]
        if other:
            raise NotReachable(f"it asks for text with {other[0]}: {given[other[0]]}, which is not done here")
        sampling = {name: given[name] for name in _SAMPLING if given.get(name)}
        settings = generation_settings(max_tokens=int(tokens), temperature=temperature, **sampling)
        return cls(settings, tuple(filter(None, stops)))
