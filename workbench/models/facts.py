"""What holds of a model's forward pass: found when it is loaded, asked for by whatever needs it.

A fact that does not hold takes away what rests on it, and nothing else: a model whose residual stream is not a sum
still gives logits, activations and head ablations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Layers = dict[int | None, str]  # layer (None: the whole model) -> why the fact does not hold there; empty: it holds


@dataclass
class ModelFacts:
    """One entry per fact: where it does not hold, and why."""

    stream_adds_up: Layers = field(default_factory=dict)  # a block adds its attention's and its MLP's output, no more
    heads_apart: Layers = field(default_factory=dict)  # the output projection reads what each head said, head by head
    heads_add_up: Layers = field(default_factory=dict)  # the output projection is a sum over heads
    neurons_whole: Layers = field(default_factory=dict)  # this process holds all of them
    blocks_run_once: Layers = field(default_factory=dict)  # in every pass, with a key/value cache or without
    attention_rows: Layers = field(default_factory=dict)  # rows sum to 1 over the past and mix what is put out
    attention_edits: Layers = field(default_factory=dict)  # attention goes through our function
    final_norm_known: Layers = field(default_factory=dict)  # one of its calls is the last thing before the unembedding
    final_norm_ends_stream: Layers = field(default_factory=dict)  # it reads what the last block leaves
    logits_unembedded: Layers = field(default_factory=dict)  # scores are the unembedding of the final norm

    def why_not(self, fact: str, layers: Iterable[int] | None = None) -> str | None:
        """Why a fact does not hold, in the first of the layers (None: in any); None where it does."""
        found: Layers = getattr(self, fact)
        wanted = found if layers is None else (None, *layers)
        return next((found[layer] for layer in wanted if layer in found), None)
