"""The texts of a run: those of the data file that are long enough, as they are fed."""

from __future__ import annotations

from probes.representation_geometry.config import Config, read_texts
from probes.representation_geometry.features import Texts
from probes.representation_geometry.written import cut_to, size_of, written
from workbench.core.cells import label_column
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.long_rows import fitting
from workbench.core.sinks import warn_of_lone_tokens
from workbench.models.text_side import TextSide


def measured_texts(model: TextSide, config: Config, context: Context) -> Texts:
    """The texts that are long enough, cut to `max_length`; at most `limit`. Raises InputError for too few of them, and
    for a `token` beyond one."""
    frame = read_texts(config, context.data, context.read_as)
    length = min(config.max_length, model.context_length or config.max_length)
    encoded, own = written(model, config, frame, context)
    those = range(len(encoded))
    if config.long != "cut":  # what is cut at max_length is what was asked for
        where = f"{context.data}, row"
        those = fitting(
            [len(ids) for ids in encoded],
            length,
            long=config.long,
            context=context,
            where=lambda row: f"{where} {row + 1}: the text",
            what="texts",
        )
    else:
        encoded, own = cut_to(length, encoded, own, where=f"{context.data}, row")
    kept = [row for row in those if size_of(row, encoded, own) >= config.min_length][: config.limit]
    if len(kept) < 2:
        raise InputError(
            f"{context.data}: {len(kept)} texts have at least {config.min_length} tokens; a spectrum needs "
            f"two, and means something with many more."
        )
    context.rows_used = len(kept)
    if config.sinks == "leave_out" or config.token == "last":  # which reads the same with and without sinks
        warn_of_lone_tokens(context, sum(len(encoded[row]) == 1 for row in kept), len(kept), what="texts")
    if isinstance(config.token, int):
        short = next((row for row in kept if not -len(encoded[row]) <= config.token < len(encoded[row])), None)
        if short is not None:
            raise InputError(
                f"{context.data}, row {short + 1}: the text has {len(encoded[short])} tokens, and "
                f"token={config.token} is beyond them; leave short texts out with min_length."
            )
    needed, most = config.fit_range[1], min(len(kept) - 1, model.width)
    if needed > most:
        context.warn(
            f"There is no alpha: the fit needs {needed} eigenvalues and there are at most {most} ({len(kept)} "
            f"texts, width {model.width}); give a shorter fit_range or more texts."
        )
    elif len(kept) <= model.width:
        context.warn(
            f"{len(kept)} texts span at most {len(kept) - 1} dimensions and the width is {model.width}: every rank is "
            f"that of a small sample; read rankme_inf and rankme_null beside it, or give more texts."
        )
    colours = None
    if config.colour:
        named = label_column(frame[config.colour], str(context.data)).fill_null("–")
        colours = [named[row] for row in kept]
    places = None if own is None else [own[row] for row in kept]
    words = [frame["text"][row] for row in kept]
    return Texts([encoded[row] for row in kept], kept, colours, places, words)
