"""A trained model with its tokenizer, which writes, is measured, plays music and is exported."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack, overload

import torch
from torch import Tensor

from quintet.config.evaluate import TextModelingConfig
from quintet.config.generation import GenerationOptions, GenerationSettings, TextGenerationConfig
from quintet.data.batch import ValidationData
from quintet.errors import UserError
from quintet.evaluate.continuation import (
    Continuation,
    prompt_ids,
    search_continuation,
    stream_continuation,
    write_continuations,
)
from quintet.evaluate.harness.items import check_data_dir
from quintet.evaluate.harness.names import check_tasks
from quintet.evaluate.harness.run import Benchmarks, EvalOptions, run_benchmarks
from quintet.evaluate.model_and_tokenizer import Computing, check_likelihood, check_text_model
from quintet.evaluate.music import Answer, answer_piece
from quintet.evaluate.text_generation import WrittenTexts, write_and_measure
from quintet.evaluate.text_modeling import TextModeling, TextResult, model_text, text_document
from quintet.evaluate.topics import text_topics
from quintet.export.huggingface import Exported
from quintet.model import Model
from quintet.model.dropout import evaluation_mode
from quintet.model.sampling import generation_settings
from quintet.piano.notes import Notes
from quintet.tokenize import Tokenizer
from quintet.tokenize.bounds import TextBounds
from quintet.track.console import Reporter

TEMPERATURE = 0.8
"""The temperature of texts and music if neither the caller nor the checkpoint sets one."""


class Writing(GenerationOptions, total=False):
    """The options of `LanguageModel.generate`."""

    stop: str | Sequence[str]
    beams: int
    batch_size: int
    static_cache: bool


@dataclass(frozen=True, repr=False)
class LanguageModel:
    """A model in evaluation mode with its tokenizer; `quintet.load` makes one.

    ``name`` is the user's name for it. ``bounds`` says where its texts begin and end. ``sampling`` holds the generation
    settings that came with the weights, by the names of transformers.
    """

    name: str
    tokenizer: Tokenizer
    model: Model
    compute: Computing
    bounds: TextBounds
    sampling: Mapping[str, Any] = field(default_factory=dict[str, Any], kw_only=True)

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"LanguageModel({self}: {parameters / 1e6:.2f} M parameters, {self.tokenizer.vocab_size:,} ids, "
            f"{self.compute.precision} on {self.compute.device})"
        )

    def __str__(self) -> str:
        return self.name

    @overload
    def generate(self, prompt: str = "", /, **options: Unpack[Writing]) -> str: ...
    @overload
    def generate(self, prompt: Sequence[str], /, **options: Unpack[Writing]) -> list[str]: ...
    def generate(
        self,
        prompt: str | Sequence[str] = "",
        /,
        *,
        stop: str | Sequence[str] = (),
        beams: int = 1,
        batch_size: int = 16,
        static_cache: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> str | list[str]:
        """Return the text that the model writes after ``prompt``, or after each of several prompts.

        An empty prompt starts a new document. ``options`` are fields of `GenerationSettings`; one that is None or
        missing is the checkpoint's own, or its default. The same ``seed`` gives the same text as `quintet generate`. A
        text ends with its document, before one of the texts ``stop``, or after ``max_tokens``. More than one of
        ``beams`` search for a likely text instead of sampling. ``batch_size`` prompts are continued side by side;
        ``static_cache`` compiles the step of one token.

        Raises UserError for a prompt that the tokenizer cannot encode and for options outside their range.

        >>> model = getfixture("model")  # quintet.load("runs/tiny")
        >>> len(model.generate(["the cat", "a dog"], max_tokens=4, temperature=0))
        2
        """
        settings = self.settings(**options, search=beams > 1)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        texts: list[str] = []
        for first in range(0, len(prompts), batch_size):
            continuations = self.continuations(
                prompts[first : first + batch_size],
                settings,
                stop=stop,
                beams=beams,
                first_row=first,
                static_cache=static_cache,
            )
            texts += [continuation.text for continuation in continuations]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(
        self,
        prompt: str = "",
        settings: GenerationSettings | None = None,
        /,
        *,
        stop: str | Sequence[str] = (),
        static_cache: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[str]:
        """Yield the pieces of the text that `generate` returns for ``prompt``, each as soon as it is certain.

        ``settings`` replace the ``options``, which are those of `generate`.

        >>> model = getfixture("model")
        >>> "".join(model.stream("the cat", max_tokens=4)) == model.generate("the cat", max_tokens=4)
        True
        """
        self.check_writes()
        ids = prompt_ids(self.tokenizer, self.bounds, prompt)
        return stream_continuation(
            self.model,
            self.tokenizer,
            self.compute,
            ids,
            settings or self.settings(**options),
            self.bounds,
            stops=_texts(stop),
            static=static_cache,
            compile=static_cache and self.can_compile,
        )

    def continuations(
        self,
        prompts: str | Sequence[str],
        settings: GenerationSettings,
        *,
        stop: str | Sequence[str] = (),
        beams: int = 1,
        first_row: int = 0,
        static_cache: bool = False,
    ) -> list[Continuation]:
        """Continue ``prompts`` side by side; each result has the text, the number of its tokens and why it ended.

        The first prompt draws from the random generator of number ``first_row``.
        """
        self.check_writes()
        ids = [prompt_ids(self.tokenizer, self.bounds, prompt) for prompt in _texts(prompts)]
        if beams > 1:
            length, stops = settings.max_tokens, _texts(stop)
            return [
                search_continuation(self.model, self.tokenizer, self.compute, prompt, self.bounds, beams, length, stops)
                for prompt in ids
            ]
        return write_continuations(
            self.model,
            self.tokenizer,
            self.compute,
            ids,
            settings,
            self.bounds,
            stops=_texts(stop),
            first_row=first_row,
            static=static_cache,
            compile=static_cache and self.can_compile,
        )

    @property
    def can_compile(self) -> bool:
        """True if the step of one token can be compiled here; on a CPU this needs a C++ compiler."""
        return self.compute.device.type == "cuda" or any(map(shutil.which, ("g++", "clang++", "c++")))

    def settings(
        self,
        *,
        default_temperature: float = TEMPERATURE,
        search: bool = False,
        say: Callable[[str], object] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> GenerationSettings:
        """Return the settings in ``options``, completed by the checkpoint's `generation_config.json`, then by the
        defaults and ``default_temperature``; ``say`` receives a line about what that file sets.

        As in transformers, that file sets no sampling unless it has `do_sample: true`. A ``search`` with beams ignores
        the file. Raises UserError as `generation_settings` does.
        """
        given = {name: value for name, value in options.items() if value is not None}
        checkpoint: Mapping[str, Any] = {} if search else self.sampling
        samples = checkpoint.get("do_sample")
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty") if samples else ("repetition_penalty",)
        of_checkpoint: dict[str, Any] = {
            name: checkpoint[name] for name in names if checkpoint.get(name) is not None and name not in given
        }
        if of_checkpoint.get("top_k") == 0:  # in transformers 0 turns it off
            del of_checkpoint["top_k"]
        if samples and "temperature" not in given:
            of_checkpoint.setdefault("temperature", 1.0)
        if of_checkpoint and say is not None:
            listed = ", ".join(f"{name} {value}" for name, value in of_checkpoint.items())
            say(f"[as generation_config.json of the checkpoint says: {listed}]")
        values: dict[str, Any] = {"temperature": default_temperature, **of_checkpoint, **given}
        return generation_settings(**values)

    def check_writes(self) -> None:
        """Raise UserError for a model that fills in hidden tokens and cannot continue a text."""

    def loss(self, texts: str | Sequence[str] | None = None) -> float:
        """Return the mean loss of ``texts`` in nats per token, as `quintet evaluate --text` measures it.

        Each text is a document of its own. Without ``texts`` a run is measured on its held-out data, as by
        `quintet evaluate`. Raises UserError if there is nothing to measure.

        >>> model = getfixture("model")
        >>> model.loss("the cat sat") < 20
        True
        """
        result = self.text_result(texts)
        return result.nats / result.tokens

    def bits_per_byte(self, texts: str | Sequence[str] | None = None) -> float:
        """Return the bits that the model spends on a byte of ``texts``, or of the held-out data of its run."""
        return self.text_result(texts).bits_per_byte

    def text_result(self, texts: str | Sequence[str] | None) -> TextResult:
        """Return all figures of text modelling over ``texts``, each of which is a document.

        Raises UserError if there is no text, or no token in them.
        """
        if texts is None:
            raise UserError(f"{self.name}: is no run and holds nothing out; give the texts to measure it on")
        documents = [text_document(self.tokenizer, text) for text in _texts(texts)]
        result = model_text(self, {"texts": documents}).whole
        if not result.tokens:
            raise UserError("texts: hold no token; give at least one text that is not empty")
        return result

    def text_modeling(
        self,
        path: str | Path | None = None,
        *,
        topic_field: str | None = None,
        where: str = "path",
        reporter: Reporter | None = None,
    ) -> TextModeling:
        """Measure text modelling on the texts at ``path``, by topic; without a path, on the held-out text of its run.

        ``path`` is a file or folder of .txt and .jsonl. Each file, or each value of ``topic_field``, is a topic. Other
        settings are those of `evaluate.text_modeling` in the run file. ``where`` is the name of ``path`` in errors, and
        ``reporter`` prints what is passed over. Raises UserError if there is no text.
        """
        if path is None:
            raise UserError(f"{where}: {self.name} is no run and holds nothing out; name a file or folder of text")
        return self._model_topics(TextModelingConfig(), path, None, topic_field, where, reporter)

    def _model_topics(
        self,
        section: TextModelingConfig,
        path: str | Path | None,
        held_out: ValidationData | None,
        topic_field: str | None,
        where: str,
        reporter: Reporter | None,
    ) -> TextModeling:
        changes: dict[str, str | None] = {"path": None if path is None else str(path)}
        section = section.model_copy(update=changes | ({"topic_field": topic_field} if topic_field else {}))
        topics = text_topics(section, self.tokenizer, held_out, where, reporter.say if reporter else _say_nothing)
        return model_text(self, topics, section.stride)

    def text_generation(self, prompts: str | Sequence[str] | None = None, *, where: str = "prompts") -> WrittenTexts:
        """Measure the texts that the model writes after two or more ``prompts``; without them, after those of its run.

        The settings are those of `evaluate.text_generation` in the run file, or their defaults. ``where`` is the name
        of the prompts in errors. Raises UserError for fewer than two prompts, for an empty one, and for a model that
        writes no text.
        """
        self.check_writes()
        check_text_model(self, where)
        section, seed = self._writing
        if prompts is not None:
            prompts = _texts(prompts)
            if len(prompts) < 2 or not all(prompts):
                raise UserError(f"{where}: must be two or more beginnings of texts, none of them empty")
            section = section.model_copy(update={"prompts": tuple(prompts)})
        return write_and_measure(self, section, seed, where)

    @property
    def _writing(self) -> tuple[TextGenerationConfig, int]:
        """The settings for texts that are measured, and the seed of the run."""
        return TextGenerationConfig(), 0

    def benchmarks(
        self,
        tasks: str | Sequence[str],
        *,
        samples: int | None = None,
        shots: int | None = None,
        data_dir: str | Path | None = None,
        batch_size: int = 16,
    ) -> Benchmarks:
        """Measure benchmarks of lm-evaluation-harness, by name, over ``samples`` items of each (None: all).

        ``shots`` examples precede each item (None: as many as its task says). The items come from the .jsonl files in
        ``data_dir``, or from the Hugging Face hub. Raises UserError for names that do not exist, and for a model that
        gives texts no likelihood. A benchmark that cannot be measured is in the result, with the reason.
        """
        names = tuple(_texts(tasks))
        check_tasks(names, "tasks")
        if data_dir is not None:
            check_data_dir(str(data_dir), "data_dir")
        self.check_writes()
        check_likelihood(self)
        directory = None if data_dir is None else str(data_dir)
        return run_benchmarks(self, EvalOptions(names, samples, shots, directory, batch_size))

    @torch.no_grad()
    def logits(self, text: str | Sequence[int] | Tensor) -> Tensor:
        """Return the logits after each token of ``text``: fp32 [tokens, vocabulary], or [batch, tokens, vocabulary].

        A text is encoded as a prompt is. Ids, int [tokens] or int [batch, tokens], are read as they are. Raises
        UserError for more tokens than the model's context has.

        >>> getfixture("model").logits([5, 6, 7]).shape[0]
        3
        """
        if isinstance(text, str):
            text = prompt_ids(self.tokenizer, self.bounds, text)
        encoded = torch.as_tensor(text, dtype=torch.long, device=self.compute.device)
        ids = encoded if encoded.ndim == 2 else encoded[None]
        if ids.shape[1] > self.model.context_length:
            raise UserError(f"logits: {ids.shape[1]} tokens are more than the context of {self.model.context_length}")
        with evaluation_mode(self.model), self.compute.autocast():
            logits = self.model(ids).float()
        return logits if encoded.ndim == 2 else logits[0]

    def midi(
        self,
        piece: str | Path | Notes,
        *,
        task: str | None = None,
        composer: str | None = None,
        dataset: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Return what a model of music writes after ``piece``, a MIDI file or notes, or its answer to ``task``.

        Without a ``composer`` the one in the file's name is used. Raises UserError for a file without notes, for a
        composer, data set or task that no model knows, and for a model of text.
        """
        self.check_writes()
        return answer_piece(self, piece, self.settings(**options), task, composer, dataset)

    def export(self, folder: str | Path, dtype: str = "fp32") -> Exported:
        """Write the model and tokenizer of a run to ``folder`` so that transformers loads them.

        ``dtype``, of the weights, is fp32, bf16 or fp16. Raises UserError if the folder is not empty, and for a model
        that does not come from a run.
        """
        raise UserError(f"{self.name}: is no run; a checkpoint of Hugging Face's form needs no export")


def _texts(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


def _say_nothing(line: str) -> None:
    pass
