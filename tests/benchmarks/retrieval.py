"""Retrieval heads against the official algorithm: prefill, then step by step with full attention and a loop over heads.

Two rows: detection alone, where both sides must read every prompt, and detection with the masking test, where the
official code reads the prompt again for every set of masked heads."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from dataclasses import replace

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from tests.benchmarks.timing import gemm_rate, interleaved, row
from workbench.core.context import Context

NAME = "retrieval-head detection"
MASKING = "retrieval-head detection and masking"
AGAINST = "official algorithm (batch 1, output_attentions, Python loop)"
# lengths, depths, needles, answer tokens (detection on "small" takes what the probe does by default: 20 lengths, 10
# depths, 12 needles); "8b" is a random model of that shape: speed and memory, not behaviour
SCALES = {"small": ((256, 480), (0, 25, 50, 75, 100), 8, 16), "8b": ((4096, 16384, 32768), (0, 50, 100), 2, 16)}
# needles, masked trials, K list, random draws: the probe's own (half of the trials, K up to half of the heads), 31
# maskings of each trial; and 4
MASKED = {"small": (4, 20, (2, 5, 10, 15, 20), 5), "8b": (1, 2, (20,), 2)}
# dense bfloat16 FLOP/s of the SXM and data-centre cards, by a part of their name
PEAK = {
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10G": 70e12,
}
# logits or weights that differ by less may come out in either order: float32 rounds batches otherwise than single rows
CLOSE = 1e-4


def measure(device: str = "cpu", scale: str = "small", rounds: int = 3) -> list[dict]:
    """Answers per second on the same prompts. Gate: the tokens of every answer and the scores of every head are those
    of the official algorithm, ties of its logits or attention weights (closer than CLOSE) aside; the ties are
    counted."""
    model, hf = models(scale, device)
    return [detection(model, hf, device, scale, rounds), masking(model, hf, device, scale, rounds)]


def detection(model, hf, device: str, scale: str, rounds: int) -> dict:
    from probes.retrieval_heads.detection import measure
    from probes.retrieval_heads.haystack import Haystack, stretches
    from probes.retrieval_heads.head_scores import score

    grid, config, context = case(model, scale, None if scale == "small" else SCALES[scale][2])
    if scale != "small":
        grid = replace(grid, trials=grid.trials[:: max(1, len(grid.trials) // 6)])
    trials, stops = grid.trials, grid.stops

    def ours():
        return measure(model, config, context, grid, Haystack(model, grid.haystack))

    def reference():
        return [official(hf, t, stops, config.max_new_tokens) for t in trials]

    found, expected = ours(), [official(hf, t, stops, config.max_new_tokens, gaps=True) for t in trials]
    agreement = agree(
        found.generated,
        np.stack([score(t, s, "set") for t, s in zip(trials, found.steps)]),
        expected,
        strict=scale == "small",
    )
    seconds = interleaved({"reference": reference, "ours": ours}, rounds=rounds, device=device)
    details = {"trials": len(trials), "lengths": sorted({t.length for t in trials})}
    if device == "cpu":  # of what differs between the prompts, at the speed of one large product
        details["arithmetic_allows"] = statistics.median(seconds["reference"]) / (flops(model, trials) / gemm_rate())
        details["tokens"] = {
            "reference": sum(len(t.ids) for t in trials),
            "ours": max(t.shared for t in trials) + sum(end - start for start, end in stretches(model, trials)),
        }
        details["peak_memory_growth_MiB"] = memory_growth()
    else:
        torch.cuda.reset_peak_memory_stats()
        ours()
        done = flops(model, trials) / statistics.median(seconds["ours"])
        peak = next((value for part, value in PEAK.items() if part in torch.cuda.get_device_name()), None)
        details |= {
            "peak_memory_GiB": torch.cuda.max_memory_allocated() / 2**30,
            "TFLOPs": done / 1e12,
            "share_of_peak": peak and done / peak,
        }
    return row(NAME, "trials/s", seconds, len(trials), agreement, reference=AGAINST, **details)


def masking(model, hf, device: str, scale: str, rounds: int) -> dict:
    """What a run does by default: score every head, then mask the top heads and random ones, with uniform attention
    while decoding."""
    from probes.retrieval_heads.detection import measure
    from probes.retrieval_heads.haystack import Haystack
    from probes.retrieval_heads.head_scores import score
    from probes.retrieval_heads.masking import mask, mask_plans, spread

    n, tested, ks, draws = MASKED[scale]
    grid, config, context = case(model, scale, n, mask_k=ks, random_draws=draws)
    trials, stops = grid.trials, grid.stops

    def detect():
        haystack = Haystack(model, grid.haystack)
        return haystack, measure(model, config, context, grid, haystack)

    haystack, measured = detect()
    # as many maskings as on a model in which that many heads have a score; which heads they are does not matter to the
    # time
    scores = np.stack([score(t, s, "set") for t, s in zip(trials, measured.steps)]).mean(0)
    scores = scores + 1e-9 * np.random.default_rng(0).random(scores.shape)
    (plan,) = mask_plans(model, [scores], scores, config, context).folds
    chosen = spread(np.arange(len(trials)), np.array([t.needle for t in trials]), tested)

    def ours():
        haystack, _ = detect()
        return mask(model, config, context, grid, haystack, chosen, plan)

    def reference():
        scored = [official(hf, t, stops, config.max_new_tokens) for t in trials]
        return scored, [
            [official_masked(hf, trials[i], heads, stops, config.max_new_tokens) for *_, heads in plan] for i in chosen
        ]

    table = ours()
    _, expected = reference()
    ties = different = 0
    for i, answers in zip(chosen, expected):
        for (k, kind, draw, _heads), (generated, margins) in zip(plan, answers):
            said = table.row(
                by_predicate=(_c("k") == k) & (_c("heads") == kind) & (_c("draw") == draw) & (_c("trial") == i),
                named=True,
            )
            if said["response"] != model.decode(generated).strip():
                ties, different = ties + (min(margins) < CLOSE), different + (min(margins) >= CLOSE)
    total = len(chosen) * len(plan)
    if scale == "small" and (different or ties > 0.02 * total):
        raise AssertionError(
            f"{different} of {total} masked answers differ from the official algorithm's ({ties} more at "
            f"ties): no speed is reported"
        )
    seconds = interleaved({"reference": reference, "ours": ours}, rounds=rounds, device=device)
    agreement = f"{total - different - ties} of {total} masked answers identical" + (
        f", {ties} differ at ties" if ties else ""
    )
    return row(
        MASKING,
        "answers/s",
        seconds,
        len(trials) + total,
        agreement,
        reference=AGAINST.replace("Python loop", "Python loop, prompt read for every masking"),
        trials=len(trials),
        masked_trials=len(chosen),
        maskings=len(plan),
    )


def _c(name: str):
    import polars as pl

    return pl.col(name)


def case(model, scale: str, n: int | None, **more) -> tuple:
    """The grid, config and context of a scale with `n` needles; of the probe's defaults for None."""
    from probes.retrieval_heads import Config
    from probes.retrieval_heads.needle_grid import read_grid
    from workbench.organisms.needles import own_needles

    lengths, depths, _, new_tokens = SCALES[scale]
    options = {"lengths": lengths, "depths": depths, "needles": n, "max_new_tokens": new_tokens} if n else {}
    config = Config(**options | {"keep": "all"} | more)
    context = Context(seed=0, data=own_needles("organism"))
    return read_grid(model, config, context), config, context


def agree(generated, scores: np.ndarray, expected: list, *, strict: bool) -> str:
    """What a row says of the agreement. Raises AssertionError where answers or scores differ for another reason than a
    tie."""
    compared = worst = tied = different = 0
    for tokens, found, (official_scores, official_tokens, margins, gaps) in zip(generated, scores, expected):
        if list(tokens) != official_tokens:
            tied, different = tied + (min(margins) < CLOSE), different + (min(margins) >= CLOSE)
            continue
        clear = gaps > CLOSE  # heads whose maximum is not tied at any step
        compared += int(clear.sum())
        worst = max(worst, float(np.abs(found - official_scores)[clear].max(initial=0)))
    total = scores.size
    if strict and (different or worst > 1e-6 or tied > 0.02 * len(generated) or compared < 0.9 * total):
        raise AssertionError(
            f"no speed is reported: {different} answers differ from the official algorithm's and {tied} at "
            f"ties, scores by up to {worst:.2g}, {compared} of {total} compared"
        )
    if different or worst > 1e-6:
        return f"scores within {worst:.2g}, {different} of {len(generated)} answers differ (bfloat16)"
    return "identical tokens and scores" + (
        f" ({compared / total:.1%} of scores, the rest at ties)" if compared < total else ""
    )


def flops(model, trials) -> float:
    """Of one detection as it is done here: every beginning that prompts share once; attention counts visible keys."""
    from probes.retrieval_heads.haystack import stretches

    weights = sum(p.numel() for name, p in model.hf.named_parameters() if "embed" not in name and "lm_head" not in name)
    run = [(0, max(t.shared for t in trials)), *stretches(model, trials)]
    tokens = sum(end - start for start, end in run)
    pairs = sum(end * (end + 1) - start * (start + 1) for start, end in run) / 2
    return 2 * weights * tokens + 4 * model.n_layers * model.n_heads * model.d_head * pairs


def models(scale: str, device: str):
    """(our model, the same weights in plain eager Hugging Face)."""
    from transformers import AutoModelForCausalLM

    from workbench.models.loading import load

    if scale == "small":
        from workbench.organisms import folder

        place = folder("organism")
        return load("organism", device=device), AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, attn_implementation="eager"
        ).eval().to(device)
    from tests.benchmarks.capture import random_llama
    from workbench.models.files import load_tokenizer
    from workbench.organisms import folder

    model, _ = random_llama(scale, device)
    model.tokenizer = load_tokenizer(folder("organism"))
    model.prepends_bos = True
    return model, model.hf


def official(hf, trial, stops, new_tokens: int, *, gaps: bool = False) -> tuple:
    """The published algorithm on one trial, with the loop over heads of its code: scores [layers, heads], the emitted
    ids, and, with `gaps`, the distances between the two largest logits of each step and the smallest between the two
    largest weights of each head [layers, heads]."""
    ids, (start, end) = list(trial.ids), trial.span
    answer = set(ids[start:end])
    layers, heads = hf.config.num_hidden_layers, hf.config.num_attention_heads
    copied = [[set() for _ in range(heads)] for _ in range(layers)]
    margins, nearest = [], np.full((layers, heads), np.inf)
    with attending(hf, "eager"):
        past, prompt = prefill(hf, ids[:-1]), torch.tensor(ids)
        token, generated = ids[-1], []
        for _ in range(new_tokens):
            out = hf(
                torch.tensor([[token]], device=hf.device), past_key_values=past, use_cache=True, output_attentions=True
            )
            token = int(out.logits[0, -1].argmax())
            generated.append(token)
            for layer in range(layers):
                for head in range(heads):
                    _, tops = out.attentions[layer][0][head][-1].topk(1)
                    for top in tops:
                        if start <= top < end and prompt[top].item() == token:
                            copied[layer][head].add(token)
            if gaps:
                margins.append(margin(out.logits[0, -1]))
                two = torch.stack([a[0, :, -1].float().topk(2).values for a in out.attentions])
                nearest = np.minimum(nearest, (two[..., 0] - two[..., 1]).cpu().numpy())
            if stops(generated):
                break
    scores = np.array([[len(c) / len(answer) for c in row] for row in copied])
    return (scores, generated, margins, nearest) if gaps else (scores, generated)


def official_masked(hf, trial, heads, stops, new_tokens: int) -> tuple[list[int], list[float]]:
    """The official masking: the prompt is read unmasked, from its last token on the scores of `heads` are 0. Emitted
    ids and margins."""
    BLOCKED.clear()
    for layer, head in heads:
        BLOCKED.setdefault(layer, []).append(head)
    generated, margins = [], []
    with attending(hf, "official_masking"):
        past = prefill(hf, trial.ids[:-1])
        token = trial.ids[-1]
        for _ in range(new_tokens):
            logits = hf(torch.tensor([[token]], device=hf.device), past_key_values=past, use_cache=True).logits[0, -1]
            token = int(logits.argmax())
            generated.append(token)
            margins.append(margin(logits))
            if stops(generated):
                break
    return generated, margins


def prefill(hf, ids):
    """Keys and values of a prompt, by a forward pass with fast attention, as in the official code (flash attention);
    what follows is eager."""
    with attending(hf, "sdpa"):
        return hf(torch.tensor([ids], device=hf.device), use_cache=True).past_key_values


@contextlib.contextmanager
def attending(hf, how: str):
    """No gradients, and attention computed by the implementation `how`; as before afterwards."""
    before, hf.config._attn_implementation = hf.config._attn_implementation, how
    try:
        with torch.no_grad():
            yield
    finally:
        hf.config._attn_implementation = before


def margin(logits: torch.Tensor) -> float:
    """Distance between the two largest."""
    two = logits.float().topk(2).values
    return float(two[0] - two[1])


BLOCKED: dict[int, list[int]] = {}  # layer -> heads


def masked_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """Attention of one query with the scores of the blocked heads set to 0: they attend evenly to all keys."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    if blocked := BLOCKED.get(module.layer_idx):
        scores[:, blocked] = 0
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("official_masking", masked_attention)
AttentionMaskInterface.register("official_masking", eager_mask)


def memory_growth() -> dict[str, float]:
    """Peak memory above the loaded model, in MiB, at two prompt lengths: it must not grow with layers × heads × S².
    Linux only."""
    out = {}
    for length in (128, 480):
        code = (
            "import re, torch; from pathlib import Path; torch.set_num_threads(1)\n"
            "from tests.benchmarks.retrieval import models; from probes.retrieval_heads import Config\n"
            "from probes.retrieval_heads.detection import measure\n"
            "from probes.retrieval_heads.haystack import Haystack\n"
            "from probes.retrieval_heads.needle_grid import read_grid\n"
            "from workbench.organisms.needles import own_needles\n"
            "from workbench.core.context import Context\n"
            "memory = lambda field: int(re.search(field + r':\\s+(\\d+)', "
            "Path('/proc/self/status').read_text())[1]) / 1024\n"
            "m, _ = models('small', 'cpu')\n"
            f"c = Config(lengths=({length},), depths=(0, 50, 100), needles=8, max_new_tokens=16, keep='all')\n"
            "g = read_grid(m, c, Context(data=own_needles('organism')))\n"
            # the peak counts from here, not from the loading
            "Path('/proc/self/clear_refs').write_text('5'); a = memory('VmRSS')\n"
            "measure(m, c, Context(), g, Haystack(m, g.haystack)); print(memory('VmHWM') - a)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        out[str(length)] = float(done.stdout.strip().splitlines()[-1])
    return out


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
