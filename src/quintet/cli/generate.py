"""`quintet generate`: let a trained model write."""

from __future__ import annotations

from typing import Annotated

import typer

from quintet.cli.inputs import fail


def generate(
    run: Annotated[str, typer.Argument(help="run folder, or name of a run under runs/")],
    prompt: Annotated[str, typer.Option(help="beginning to continue; empty starts a new document")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="tokens to write")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="divides the logits; 0 takes the likeliest token")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="choose among so many likeliest tokens")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="choose among the likeliest with this total")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="leave out tokens below this share of the likeliest one's probability"),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(min=0.01, help="above 1: make what stands there less likely")
    ] = 1.0,
    beams: Annotated[int, typer.Option(min=1, help="above 1: search with so many beams instead of sampling")] = 1,
    seed: Annotated[int, typer.Option(help="the same seed gives the same text")] = 0,
    checkpoint: Annotated[str, typer.Option(help="latest, best, or a step")] = "latest",
) -> None:
    """Continue a prompt with a trained model; the text appears as it is written."""
    if beams > 1 and (top_k or top_p or min_p or repetition_penalty != 1.0):
        fail("--beams: a beam search does not sample; leave out --top-k, --top-p, --min-p and --repetition-penalty")
    from quintet.model.generate import GenerationSettings, beam_search
    from quintet.model.generate import generate as generate_ids
    from quintet.tokenize import TextStream
    from quintet.train.trained import load_trained

    trained = load_trained(run, checkpoint)
    tokenizer = trained.tokenizer
    ids = tokenizer.encode(prompt) or [tokenizer.end_id]
    stream = TextStream(tokenizer, continues=bool(prompt))
    typer.echo(prompt, nl=False)
    with trained.compute.autocast():
        if beams > 1:
            found = beam_search(
                trained.model, ids, beams, max_tokens, tokenizer.end_id, allowed_ids=tokenizer.vocab_size
            )
            typer.echo("".join(map(stream.push, found)) + stream.finish())
            return
        settings = GenerationSettings(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        for token in generate_ids(trained.model, ids, settings, tokenizer.end_id, allowed_ids=tokenizer.vocab_size):
            typer.echo(stream.push(token), nl=False)
        typer.echo(stream.finish())
