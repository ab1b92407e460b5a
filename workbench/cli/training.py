"""The command that trains sparse autoencoders."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.app import Json, Quiet, app, path_of
from workbench.cli.show import print_json, progress, say
from workbench.core.signals import stop_signals
from workbench.models.load_options import AUTOMATIC


@app.command("train-sae")
def train_sae(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Organism, local folder in Hugging Face format, or hub id.")
    ],
    site: Annotated[str, typer.Option(help="Where the activations are read, for example resid_post.3.")],
    data: Annotated[
        Path,
        typer.Option(
            parser=path_of("texts file"),
            metavar="PATH",
            help="Texts: column text, or prompt and response (csv, tsv, jsonl, parquet), or a txt file.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            parser=path_of("--out folder"),
            metavar="PATH",
            help="Folder for the autoencoder and its report; a training found there is resumed.",
        ),
    ],
    width: Annotated[
        str, typer.Option(help="Number of features (2048), or a multiple of the site's width (16x).")
    ] = "16x",
    k: Annotated[int, typer.Option(min=1, help="Active features per token (topk, batchtopk).")] = 32,
    architecture: Annotated[str, typer.Option(help="topk, batchtopk, jumprelu, standard or gated.")] = "topk",
    tokens: Annotated[
        str, typer.Option(help="Tokens to train on: 500000, 2M, 1B; the texts are repeated as often as it takes.")
    ] = "1M",
    batch: Annotated[int, typer.Option(min=1, help="Tokens in one step.")] = 2048,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    sparsity: Annotated[float, typer.Option(help="Weight of the sparsity loss (jumprelu, standard, gated).")] = 1.0,
    context: Annotated[int, typer.Option(min=2, help="Longer texts are cut into windows of this many tokens.")] = 512,
    sinks: Annotated[
        str, typer.Option(help="Tokens of massive activation, as the first of a text: leave_out or keep.")
    ] = "leave_out",
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, order and held-out texts.")] = 0,
    revision: Annotated[str | None, typer.Option(help="Revision of the model on the hub.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, auto; a GPU where there is one.")] = None,
    dtype: Annotated[
        str, typer.Option(help="Precision of the model: float32, bfloat16, float16, auto or automatic.")
    ] = (AUTOMATIC),
    store_dtype: Annotated[str, typer.Option(help="Precision of the weights that are written.")] = "float32",
    store: Annotated[
        bool, typer.Option("--store", help="Keep the activations in the store: computed once, read in every epoch.")
    ] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the code that comes with the model.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a sparse autoencoder on a model's activations, and report how faithful it is."""
    from workbench.core.sample_tables import read_samples, texts
    from workbench.core.sinks import SINKS

    found = texts(read_samples(data, what="text"))
    amount = count(tokens)
    if sinks not in SINKS:
        raise typer.BadParameter(f"sinks is '{sinks}'; choose {' or '.join(SINKS)}.")
    from workbench.models.loading import load
    from workbench.models.model import DTYPES
    from workbench.sae.train import SaeRecipe, train, windows

    if store_dtype not in DTYPES:
        raise typer.BadParameter(f"'{store_dtype}' is not a precision; choose float32, bfloat16 or float16.")
    loaded = load(model, revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    recipe = SaeRecipe(
        site=site,
        width=width,
        k=k,
        architecture=architecture,
        tokens=amount,
        batch=batch,
        lr=lr,
        sparsity=sparsity,
        context=context,
        seed=seed,
        sinks=sinks,
    )
    kept = None
    if store:
        from workbench.store.activation_store import Store

        kept = Store()
    with progress(quiet=quiet) as report, contextlib.redirect_stdout(sys.stderr), stopping(out) as check:
        result = train(
            loaded,
            windows(loaded, found, context),
            out,
            recipe,
            store=kept,
            dtype=store_dtype,
            progress=report,
            check=check,
        )
    if json:
        print_json(result)
    else:
        say(
            f"Autoencoder in {out}: {result['width']} features at {result['site']}, {result['l0']:.1f} active "
            f"per token."
        )
        recovered = (
            "not measurable (the loss hardly needs this site)"
            if result["loss_recovered"] is None
            else f"{result['loss_recovered']:.3f}"
        )
        say(
            f"Explained variance {result['explained_variance']:.3f}, loss recovered {recovered}, features "
            f"that never fire {result['dead_fraction']:.1%}"
        )
        say(f"({result['tokens']:,} tokens of {result['texts']} held-out windows of text).")
        if result["sinks_left_out"]:
            say(
                f"Left out as sinks (massive activations): {result['sinks_left_out']:,} tokens of "
                f"{result['texts_with_sinks']} of these windows, {result['sinks_left_out_training']:,} of the training."
            )
        if result["k"] is None and architecture == "batchtopk" and not k / 1.5 <= result["l0"] <= k * 1.5:
            say(
                f"The threshold of the batchtopk autoencoder has not settled: {result['l0']:.1f} features are "
                f"active where k is {k}; train on more tokens."
            )


@contextlib.contextmanager
def stopping(out: Path) -> Iterator[Callable[[], None]]:
    """Ctrl-C, SIGTERM and SIGHUP end the training after the step in progress, so that what is kept is the state between
    two steps; a second one ends it at once. Yields the check that raises Cancelled."""
    from workbench.core.errors import Cancelled

    asked: list[int] = []
    before: dict[int, Any] = {}

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    def check() -> None:
        if asked:
            raise Cancelled(f"Cancelled; the same command goes on with the training in {out}.")

    try:
        if threading.current_thread() is threading.main_thread():
            before.update({number: signal.signal(number, ask) for number in stop_signals()})
        yield check
    except KeyboardInterrupt:
        raise Cancelled(
            f"Cancelled; the same command goes on with what was last saved of the training in {out}."
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def count(text: str) -> int:
    """``2M`` → 2,000,000. Raises InputError for what is no number."""
    import re

    from workbench.core.errors import InputError

    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMbB]?)\s*", text)
    if match is None or float(match[1]) == 0:
        raise InputError(f"'{text}' is not a number of tokens; write 500000, 2M or 1B.")
    return round(float(match[1]) * 1000 ** " kmb".index(match[2].lower() or " "))
