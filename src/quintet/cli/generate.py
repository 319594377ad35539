"""`quintet generate`: write texts or music with a trained model."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from quintet import api
from quintet.cli.inputs import WRITER, Checkpoint, Weights, WeightsOption, as_options, echo, fail
from quintet.config.keypath import is_mapping
from quintet.errors import named
from quintet.files import from_json, to_json

_PIANO = "Piano"

Prompts = Annotated[
    list[str] | None,
    typer.Option(help="prompt to continue; an empty one starts a new document; may be given several times"),
]
PromptsFile = Annotated[
    Path | None, typer.Option(help='prompts to continue: one per line, or {"prompt": …} per line in a .jsonl file')
]
MaxTokens = Annotated[int, typer.Option(min=1, help="tokens to write")]
Stop = Annotated[
    list[str] | None, typer.Option(help="text to end before; may be given several times", show_default=False)
]
Temperature = Annotated[
    float | None,
    typer.Option(min=0, help="divides the logits; 0 takes the likeliest token; the checkpoint's own, or 0.8"),
]
TopK = Annotated[int | None, typer.Option(min=1, help="draw from this number of likeliest tokens")]
TopP = Annotated[
    float | None, typer.Option(min=0, max=1, help="draw from the fewest likeliest tokens with this total probability")
]
MinP = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="draw only tokens with at least this share of the likeliest one's probability"),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(min=0.01, help="above 1: make tokens of the prompt and the text less likely")
]
Beams = Annotated[int, typer.Option(min=1, help="above 1: search with this number of beams instead of sampling")]
Seed = Annotated[int, typer.Option(help="the same seed gives the same text")]
BatchSize = Annotated[int, typer.Option(min=1, help="prompts to continue side by side")]
StaticCache = Annotated[
    bool, typer.Option("--static-cache", help="compile the step of one token, for long texts and many prompts")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object per prompt")]
Midi = Annotated[
    Path | None, typer.Option(help="piano: the piece to continue, or the prompt of --task", rich_help_panel=_PIANO)
]
TaskName = Annotated[
    str | None, typer.Option(help="what to add to the piece, such as top_line_masking-x1", rich_help_panel=_PIANO)
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="MIDI file to write", rich_help_panel=_PIANO)]
Roll = Annotated[Path | None, typer.Option(help="picture (PNG) to write", rich_help_panel=_PIANO)]
Audio = Annotated[Path | None, typer.Option(help="sound (WAV) to write", rich_help_panel=_PIANO)]
Composer = Annotated[str | None, typer.Option(help="composer whose style to follow", rich_help_panel=_PIANO)]
Dataset = Annotated[str | None, typer.Option(help="data set whose pieces to follow", rich_help_panel=_PIANO)]


def generate(
    run: Annotated[str, typer.Argument(help=WRITER)],
    prompt: Prompts = None,
    prompts_file: PromptsFile = None,
    max_tokens: MaxTokens = 256,
    stop: Stop = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    beams: Beams = 1,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    static_cache: StaticCache = False,
    checkpoint: Checkpoint = "latest",
    weights: WeightsOption = Weights.NARROW,
    as_json: AsJson = False,
    midi: Midi = None,
    task: TaskName = None,
    output: Output = None,
    roll: Roll = None,
    audio: Audio = None,
    composer: Composer = None,
    dataset: Dataset = None,
) -> None:
    """Continue prompts with a trained model; the text of a single prompt is printed as it is written."""
    if beams > 1 and (top_k or top_p or min_p or repetition_penalty is not None or static_cache):
        fail(
            "--beams: a beam search does not sample; leave out --top-k, --top-p, --min-p, --repetition-penalty and "
            "--static-cache"
        )
    given: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    if midi is not None:
        about = {"task": task, "composer": composer, "dataset": dataset, "max_tokens": max_tokens, "seed": seed}
        _write_music(run, checkpoint, weights, midi, about | given, output, roll, audio)
        return
    if any((task, output, roll, audio, composer, dataset)):
        fail("--task, --output, --roll, --audio, --composer and --dataset are for music: name a piece with --midi")
    if prompt and prompts_file is not None:
        fail("--prompts-file: give prompts in the file or with --prompt, not both")
    prompts = read_prompts(prompts_file) if prompts_file is not None else prompt or [""]
    model = api.load(run, checkpoint, precision="auto", weights=weights.value)
    model.check_writes()
    if static_cache and not model.can_compile:
        echo("no C++ compiler (g++) here: the static cache is used without compiling for it", err=True)
    say = partial(echo, err=True)
    settings = model.settings(**given, max_tokens=max_tokens, seed=seed, search=beams > 1, say=say)
    options: dict[str, Any] = {"stop": stop or (), "static_cache": static_cache}
    if len(prompts) == 1 and beams == 1 and not as_json:
        echo(prompts[0], nl=False, exact=True)
        for piece in model.stream(prompts[0], settings, **options):
            echo(piece, nl=False, exact=True)
        echo("")
        return
    for first in range(0, len(prompts), batch_size):
        group = prompts[first : first + batch_size]
        texts = model.continuations(group, settings, beams=beams, first_row=first, **options)
        for index, (one, text) in enumerate(zip(group, texts, strict=True), start=first):
            if as_json:
                found = {"prompt": one, "text": text.text, "tokens": text.tokens, "ended": text.ended}
                echo(to_json(found, ascii=False), exact=True)
            else:
                whole = f"{one}{text.text}"
                echo(whole if len(prompts) == 1 else f"--- prompt {index}\n{whole}", exact=True)


def _write_music(
    run: str,
    checkpoint: str,
    weights: Weights,
    midi: Path,
    options: Mapping[str, Any],
    output: Path | None,
    roll: Path | None,
    audio: Path | None,
) -> None:
    """Continue the piece in ``midi``, or answer a task for it, and write the files that are asked for."""
    from quintet.piano.midi import write_midi
    from quintet.piano.rendering import available

    if not (output or roll or audio):
        fail("--midi: say what to write: --output out.mid, --roll out.png or --audio out.wav")
    for option, file in (("--output", output), ("--roll", roll), ("--audio", audio)):
        if file is not None and not file.parent.is_dir():
            fail(f"{option}: {file} cannot be written, for there is no folder {file.parent}; make it first")
    with as_options("task", "composer", "dataset"):
        found = api.load(run, checkpoint, precision="auto", weights=weights.value).midi(midi, **options)
    if found.passed_over:
        echo(f"{midi}: passed over {found.passed_over}", err=True)
    if output is not None:
        write_midi(found.whole, output)
    if roll is not None:
        roll.write_bytes(found.roll())
    if audio is not None:
        audio.write_bytes(found.sound())
        echo(f"sound: {available()}", err=True)
    written = ", ".join(str(file) for file in (output, roll, audio) if file is not None)
    where = "after" if options["task"] is None else "for"  # an answer is placed among the notes
    heard = len(found.heard)
    echo(f"{len(found.notes)} notes {where} {heard} of the {found.asked} in {midi}: wrote {written}")
    if heard < found.asked:
        echo(
            f"the model's context has room for no more than the last {heard} notes beside --max-tokens "
            f"{options['max_tokens']}; lower that, or give a shorter piece",
            err=True,
        )


def read_prompts(file: Path) -> list[str]:
    """Return the prompts in ``file``: its lines, or the field `prompt` of each line of a .jsonl file.

    Raises UserError if it cannot be read, is empty, or has a line without a prompt.
    """
    if not file.is_file():
        fail(f"--prompts-file: {file} does not exist; name a file with one prompt a line")
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        fail(f"--prompts-file: {file} is no text in UTF-8 ({error}); save it as UTF-8")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        fail(f"--prompts-file: {file} is empty; write one prompt a line")
    if file.suffix != ".jsonl":
        return lines
    return [_prompt_of(line, f"{file}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _prompt_of(line: str, where: str) -> str:
    from quintet.tokenize.base import check_text

    try:
        found = from_json(line)
    except ValueError as error:
        fail(f"{where}: is no JSON ({error}); write one object a line")
    if not is_mapping(found) or not isinstance(found.get("prompt"), str):
        fail(f'{where}: has no text under "prompt"; write {{"prompt": "…"}}')
    with named(where):
        check_text(found["prompt"])
    return found["prompt"]
