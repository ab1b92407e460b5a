"""How a condition is made from texts, sampled and measured: what all studies share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from probes.branching_factor.branching_samples import Condition, Continuations
from probes.branching_factor.config import Config, talk_of
from probes.branching_factor.estimators import Profile, log_bf
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.long_rows import fitting
from workbench.engine.generate import Samples, sample
from workbench.engine.passes import Pass
from workbench.engine.sampling import FIELDS, TOP, Rule
from workbench.engine.vllm import VllmWriter, with_statistics
from workbench.models.model import Model
from workbench.models.prompt_style import (
    PromptStyle,
    WrittenPrompt,
    check_style,
    style_of,
    way_of,
    write_messages,
    write_prompt,
)

# Samples of a resumable part: a kill loses one part at most, which is a SHARE_LOST of the run unless so few samples
# were asked for that they would be decoded one by one.
LEAST_ROWS, MOST_ROWS, SHARE_LOST = 16, 1024, 0.04
FILL = {"ids": -1, "steps": np.nan}  # after the end of a sample
NEARLY_ALL = 0.99  # without a nucleus, compat is warned about where its 50 tokens hold less


@dataclass(eq=False)
class MeasuredCondition(Continuations):
    """The samples of one condition, and what the estimators start from."""

    def profile(self) -> Profile:
        return Profile(self.lengths, *(self.statistic(n) for n in ("entropy", "logprob", "entropy_top", "logprob_top")))


# measured conditions, the pairs of them to compare (a over b), and the study's own tables
Studied = tuple[list[MeasuredCondition], list[tuple[str, str]], dict[str, pl.DataFrame]]


@dataclass(eq=False)
class Lab:
    """What the studies share: how a condition is made from texts and how it is measured."""

    model: Model
    config: Config
    context: Context
    table: pl.DataFrame
    other: Model | None = None
    numbers: list[int] = field(default_factory=list)
    clusters: list[int] = field(default_factory=list)  # as `numbers`, one number for prompts with the same words
    writers: dict[int, VllmWriter] = field(default_factory=dict)  # with vLLM, by id() of their models
    expected: int = 0  # prompts that the study is likely to sample, over all of its conditions
    measured: int = 0  # of these, those that were

    def __post_init__(self) -> None:
        self.models = [m for m in (self.model, self.other) if m is not None]
        written = [way_of(m, style_of(self.config)) for m in self.models]
        for m, how in zip(self.models, written):
            if how == "raw" and self.config.template == "auto":
                self.context.warn(
                    f"{m.name} has no chat template, so its prompts are given as raw text; template=raw says "
                    f"that this is meant."
                )
            if how == "raw" and self.config.system and "chat" in written:
                self.context.warn(f"{m.name} has no chat template, so it is not given the system message.")
        for name, asked in (
            ("thinking=on", self.config.thinking == "on"),
            ("template_args", self.config.template_args),
        ):
            if asked and "chat" not in written:
                raise InputError(f"{self.model.name} has no chat template, so {name} can change nothing; leave it out.")
        if self.config.system and "chat" not in written:
            names = " and ".join(m.name for m in self.models)
            raise InputError(
                f"A system message needs a chat template, and {names} has none; leave out system, or write it "
                f"into the prompts."
            )

        self._leave_out_long_prompts()
        first: dict[str, int] = {}
        asked = zip(self.table["prompt"], self.numbers, self.table.to_dicts())
        self.clusters = [first.setdefault(repr((words, talk_of(row))), number) for words, number, row in asked]

    def _leave_out_long_prompts(self) -> None:
        """Keep of the table what every model of the study can read; `numbers`: which rows of the file these are."""
        self.numbers = list(range(self.table.height))
        for m in self.models if self.config.long == "skip" else ():
            lengths = [len(written.ids) for written in self.written(m)]
            kept = fitting(lengths, m.context_length, long="skip", context=self.context, where=str, what="prompts")
            self.table, self.numbers = self.table[kept], [self.numbers[i] for i in kept]

    def style(self, model: Model) -> PromptStyle:
        """How the prompts of a model are written: raw ones without what belongs to chats."""
        style = style_of(self.config)
        return style if way_of(model, style) == "chat" else PromptStyle(style.template)

    def written(self, model: Model, texts: Sequence[str] | None = None) -> list[WrittenPrompt]:
        """The rows of the data file (or `texts` in their place) as the model is given them."""
        style, out = self.style(model), []
        check_style(model, style)
        rows = self.table.to_dicts() if texts is None else [{"prompt": text} for text in texts]
        for number, row in zip(self.numbers, rows):
            if not (turns := talk_of(row)):
                out.append(write_prompt(model, {"prompt": row["prompt"]}, style=style))
                continue
            try:
                out.append(write_messages(model, turns, style=style, answer=True))
            except InputError as error:
                raise InputError(f"{self.context.data}, row {number + 1}: {error}") from error
        return out

    def close(self) -> None:
        """Give back what vLLM holds."""
        while self.writers:
            self.writers.popitem()[1].close()

    def condition(
        self, name: str, model: Model | None = None, *, texts: Sequence[str] | None = None, rule=None, **more
    ) -> Condition:
        """The prompts of the data file (or `texts` in their place), written for the model."""
        model, config = model or self.model, self.config
        written = self.written(model, texts)
        texts = list(self.table["prompt"] if texts is None else texts)
        ids, how, thinks = [w.ids for w in written], way_of(model, self.style(model)), any(w.thinks for w in written)
        for row, tokens in enumerate(ids):
            if not tokens:
                raise InputError(
                    f"Prompt {row + 1} is empty and the tokenizer of {model.name} has no BOS token to begin with."
                )
        answers = self.table["answer"].to_list() if "answer" in self.table.columns else None
        rule = rule or Rule(config.temperature, config.top_p, config.top_k, config.min_p)
        about = {"prompt": self.numbers, "cluster": self.clusters, "answers": answers, "template": how}
        return Condition(name, model, texts, ids, rule, thinks=thinks, **(about | more))

    def label(self, model: Model) -> str:
        """What conditions of a model are called."""
        name = Path(model.name).name
        return name + " (2)" if model is self.other and name == Path(self.model.name).name else name

    def measure(self, condition: Condition) -> MeasuredCondition:
        """Sample the condition, part by part; parts that an interrupted run has done are read."""
        rows = len(condition.ids)
        whole = max(1, self.expected, self.measured + rows)
        with self.context.stretch(self.measured / whole, (self.measured + rows) / whole, condition.name):
            if self.config.sampler == "vllm":  # all texts first: vLLM and the models take turns on the device
                self._write(condition)
            parts = [self._row_of_parts(condition, some) for some in self._parts(condition)]
        self.measured += rows
        longest = max(part["ids"].shape[2] for part in parts)

        def join(name: str, fill) -> np.ndarray:
            return np.concatenate([widened(part[name], longest, fill) for part in parts])

        lengths, finish = (np.concatenate([part[name] for part in parts]) for name in ("lengths", "finish"))
        ids, steps = (join(name, fill) for name, fill in FILL.items())
        found = MeasuredCondition(condition, ids, lengths, finish, steps, [])
        P, M = found.lengths.shape
        _put_back(found, self.context)
        found.texts = [[condition.model.decode(found.tokens(p, m)) for m in range(M)] for p in range(P)]
        _warn(found, self.config, self.context)
        return found

    @property
    def parts(self) -> int:
        """How many resumable parts the study is likely to have."""
        rows = self.expected * self.config.samples
        return -(-rows // min(MOST_ROWS, max(LEAST_ROWS, int(SHARE_LOST * rows))))

    def _parts(self, condition: Condition) -> list[list[tuple[range, range]]]:
        """What is sampled together: prompts and samples of a part, those of the same prompts in one list."""
        P, M = len(condition.ids), self.config.samples
        most = min(MOST_ROWS, max(LEAST_ROWS, int(SHARE_LOST * max(self.expected, P) * M)))
        whole = self.config.sampler == "vllm" or condition.rule.temperature == 0 or most >= M
        prompts = max(1, most // M) if whole else 1
        starts = [range(start, min(start + prompts, P)) for start in range(0, P, prompts)]
        pieces = [range(M)] if whole else [range(m, min(m + most, M)) for m in range(0, M, most)]
        return [[(rows, piece) for piece in pieces] for rows in starts]

    def _row_of_parts(self, condition: Condition, some: list[tuple[range, range]]) -> dict[str, np.ndarray]:
        """Some prompts with all of their samples, of parts that hold some of these each."""
        found = []
        for rows, piece in some:
            name = f"{condition.name}/{rows.start}" + (f".{piece.start}" if len(some) > 1 else "")
            found.append(self.context.part(name, partial(self._sample, condition, rows, piece)))
        longest = max(part["ids"].shape[2] for part in found)
        wide = {name: [widened(part[name], longest, FILL[name]) for part in found] for name in ("ids", "steps")}
        wide |= {name: [part[name] for part in found] for name in ("lengths", "finish")}
        return {name: np.concatenate(each, axis=1) for name, each in wide.items()}

    def _sample(self, condition: Condition, rows: range, piece: range) -> dict[str, np.ndarray]:
        context, config, model = self.context, self.config, condition.model
        M = config.samples
        total, before = len(condition.ids) * M, rows.start * M + piece.start
        ids = [condition.ids[i] for i in rows]

        def progress(done: int, _total: int, label: str) -> None:
            context.progress(before + done, total)

        run = Pass(edits=context.edits if model is self.model else (), check=context.check, progress=progress)
        if config.sampler == "vllm":
            found = with_statistics(model, ids, self._texts(condition, rows), rule=condition.rule, run=run)
        else:
            options = self._options(condition, rows, len(piece))
            found = sample(model, ids, run=run, max_rows=config.max_rows, first=piece.start, **options)
        context.count(
            prompts=len(rows) if piece.start == 0 else 0,
            tokens=int(found.lengths.sum()) + sum(map(len, ids)),
            forwards=found.ids.shape[2],
        )
        arrays = {name: getattr(found, name).numpy() for name in ("ids", "lengths", "finish", "steps")}
        return arrays | {"ids": arrays["ids"].astype(np.int32)}

    def _options(self, condition: Condition, rows: range, samples: int) -> dict[str, Any]:
        """How the samples of some prompts are drawn, whoever draws them."""
        return {
            "samples": samples,
            "max_new_tokens": self.config.max_new_tokens,
            "rule": condition.rule,
            "stop_strings": self.config.stop,
            "seed": self.context.torch_seed(condition.stream),
            "prompt_keys": list(rows),
        }

    def _write(self, condition: Condition) -> None:
        """Have the texts of every part written by vLLM, whose engine is opened once for the whole run."""
        for ((rows, _),) in self._parts(condition):
            self._texts(condition, rows)
        if id(condition.model) in self.writers:
            self.writers[id(condition.model)].rest()

    def _texts(self, condition: Condition, rows: range) -> Samples:
        """The texts of some prompts from vLLM, a part of their own."""
        model, config = condition.model, self.config

        def compute() -> dict[str, np.ndarray]:
            if id(model) not in self.writers:
                share = {"memory": config.gpu_memory_utilization, "gpus": config.tensor_parallel_size}
                self.writers[id(model)] = VllmWriter(model, aside=self.models, **share)
            found = self.writers[id(model)].write(
                [condition.ids[i] for i in rows],
                longest=max(map(len, condition.ids)),
                check=self.context.check,
                edits=self.context.edits if model is self.model else (),
                **self._options(condition, rows, config.samples),
            )
            return {name: getattr(found, name).numpy() for name in ("ids", "lengths", "finish", "steps")}

        part = self.context.part(f"{condition.name}/{rows.start}/texts", compute)
        return Samples(**{name: torch.from_numpy(np.array(values)) for name, values in part.items()})


def widened(values: np.ndarray, longest: int, fill: float) -> np.ndarray:
    """Samples [P, M, N, …] with room for `longest` steps."""
    out = np.full((*values.shape[:2], longest, *values.shape[3:]), fill, values.dtype)
    out[:, :, : values.shape[2]] = values
    return out


def _put_back(found: MeasuredCondition, context: Context) -> None:
    """Tokens drawn elsewhere (vLLM) from outside the nucleus as recomputed here: as the official code does, each is put
    back into the nucleus of its step (of the 50 likeliest tokens), and its log-probability is what it has there."""
    own = found.steps[..., FIELDS.index("logprob")]
    cut = np.isneginf(own) & (found.ids >= 0)
    if cut.any():
        again = found.steps[..., FIELDS.index("logprob_top")][cut]
        # at temperature 0 another token than the likeliest is a tie
        own[cut] = np.where(np.isfinite(again), again, 0.0)
        context.warn(
            f"{found.condition.name}: {int(cut.sum())} of {int((found.ids >= 0).sum())} sampled tokens lie outside the "
            f"nucleus as recomputed here; their log-probability is that of the nucleus with the token put back."
        )


def beyond_top(found: MeasuredCondition) -> np.ndarray:
    """Steps [P, M, N] at which the 50 likeliest tokens, all that compat sees, are not what the rule keeps."""
    top_p = found.condition.rule.top_p
    return (found.statistic("support") > TOP) & (found.statistic("top_mass") < (top_p if top_p < 1 else NEARLY_ALL))


def _warn(found: MeasuredCondition, config: Config, context: Context) -> None:
    name, alive = found.condition.name, found.ids >= 0
    if not found.condition.model.eos_ids:
        context.warn(f"{found.condition.model.name} has no end-of-text token: every sample runs to its length limit.")
    if (found.finish == 3).any():
        context.warn(
            f"{name}: {int((found.finish == 3).sum())} of {found.finish.size} samples ended at the model's "
            f"context limit."
        )
    if (found.statistic("support")[alive] == 1).all():
        context.warn(
            f"{name}: the decoding rule leaves one token at every step, so BF is 1 by construction; "
            f"exp_entropy_untruncated is of what the model itself would do."
        )
    short = float(beyond_top(found)[alive].mean())
    if short > 0.05 and config.estimator == "compat":
        context.warn(
            f"{name}: at {short:.0%} of the steps the rule keeps more than the 50 likeliest tokens; compat "
            f"cannot see beyond them."
        )
    if config.samples == 1:
        context.warn("With one sample per prompt there are no intervals over samples; take at least 10.")


def bf_of(found: MeasuredCondition, config: Config, estimator: str | None = None) -> np.ndarray:
    """BF of every prompt [P]: the one of the config, or another estimator's as the paper has it."""
    bias = config.bias if estimator is None else "plain"
    return np.exp(log_bf(found.profile(), estimator or config.estimator, pool=config.pool, bias=bias)[:, 0])
