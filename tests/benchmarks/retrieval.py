"""Retrieval-head detection against the official algorithm: prefill, then step by step with full attention and a loop over heads."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import torch

from tests.benchmarks.timing import interleaved, row
from workbench.context import Context

NAME = "retrieval-head detection"
# lengths, depths, needles, answer tokens; "8b" is a random model of that shape: speed and memory, not behaviour
SCALES = {"small": ((256, 480), (0, 25, 50, 75, 100), 8, 16), "8b": ((4096, 16384, 32768), (0, 50, 100), 2, 16)}


def measure(device: str = "cpu", scale: str = "small", rounds: int = 3) -> dict:
    """Trials per second on the same prompts. Gate: identical emitted tokens and identical scores of every head."""
    from probes.retrieval_heads import Config, _grid, _measure, _score

    lengths, depths, n, new_tokens = SCALES[scale]
    model, hf = models(scale, device)
    config = Config(lengths=lengths, depths=depths, needles=n, max_new_tokens=new_tokens, keep="all")
    from workbench.organisms.material import material

    context = Context(seed=0, data=material("organism")["needles"])
    _, shared, trials, stops = _grid(model, config, context)
    subset = trials if scale == "small" else trials[:: max(1, len(trials) // 6)]

    def ours():
        return _measure(model, config, context, shared, subset, stops)

    def reference():
        return [official(hf, t, stops, new_tokens, device) for t in subset]

    found, expected = ours(), reference()
    same_tokens = [list(g) for g in found.generated] == [generated for _, generated in expected]
    scores = np.stack([_score(t, s, "set") for t, s in zip(subset, found.steps)])
    worst = float(np.abs(scores - np.stack([s for s, _ in expected])).max())
    if scale == "small" and not (same_tokens and worst < 1e-6):
        raise AssertionError(f"scores differ from the official algorithm (tokens equal: {same_tokens}, {worst}): no speed is reported")
    agreement = "identical tokens and scores" if same_tokens and worst < 1e-6 else f"scores within {worst:.2g} (bfloat16)"
    seconds = interleaved({"reference": reference, "ours": ours}, rounds=rounds, device=device)
    details = {"trials": len(subset), "lengths": list(lengths)}
    if device == "cpu":
        details["peak_memory_growth_MiB"] = memory_growth()
    else:
        torch.cuda.reset_peak_memory_stats()
        ours()
        details["peak_memory_GiB"] = torch.cuda.max_memory_allocated() / 2**30
        tokens = sum(len(t.ids) for t in subset)
        weights = sum(p.numel() for p in model.hf.parameters())
        details["prefill_TFLOPs_without_sharing"] = 2 * weights * tokens / (sum(seconds["ours"]) / len(seconds["ours"])) / 1e12
    return row(NAME, "trials/s", seconds, len(subset), agreement, reference="official algorithm (batch 1, output_attentions, Python loop)", **details)


def models(scale: str, device: str):
    """(our model, the same weights in plain eager Hugging Face)."""
    from transformers import AutoModelForCausalLM

    from workbench.models import load

    if scale == "small":
        from workbench.organisms import folder

        place = folder("organism")
        return load("organism", device=device), AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, attn_implementation="eager").eval().to(device)
    from tests.benchmarks.capture import random_llama
    from workbench.models import load_tokenizer
    from workbench.organisms import folder

    model, _ = random_llama(scale, device)
    model.tokenizer = load_tokenizer(folder("organism"))
    model.prepends_bos = True
    return model, model.hf


def official(hf, trial, stops, new_tokens: int, device: str) -> tuple[np.ndarray, list[int]]:
    """The published algorithm on one trial: scores [layers, heads] and the emitted ids."""
    ids, (start, end) = list(trial.ids), trial.span
    answer = set(ids[start:end])
    layers, heads = hf.config.num_hidden_layers, hf.config.num_attention_heads
    copied = [[set() for _ in range(heads)] for _ in range(layers)]
    implementation = hf.config._attn_implementation
    with torch.no_grad():
        if device.startswith("cuda"):
            hf.set_attn_implementation("sdpa")  # the official code fills the cache with flash attention and steps eagerly
        past = hf(torch.tensor([ids[:-1]], device=device), use_cache=True, logits_to_keep=1).past_key_values
        hf.set_attn_implementation("eager")
        token, generated = ids[-1], []
        for _ in range(new_tokens):
            out = hf(torch.tensor([[token]], device=device), past_key_values=past, use_cache=True, output_attentions=True)
            token = int(out.logits[0, -1].argmax())
            generated.append(token)
            for layer in range(layers):
                for head in range(heads):
                    top = int(out.attentions[layer][0, head, -1].topk(1).indices[0])
                    if start <= top < end and ids[top] == token:
                        copied[layer][head].add(token)
            if stops(token):
                break
        hf.set_attn_implementation(implementation)
    return np.array([[len(c) / len(answer) for c in row] for row in copied]), generated


def memory_growth() -> dict[str, float]:
    """Peak memory above the loaded model, in MiB, at two prompt lengths: it must not grow with layers × heads × S²."""
    out = {}
    for length in (128, 480):
        code = (
            "import resource, torch; torch.set_num_threads(1)\n"
            "from tests.benchmarks.retrieval import models; from probes.retrieval_heads import Config, _grid, _measure\n"
            "from workbench.context import Context\n"
            "m, _ = models('small', 'cpu'); from workbench.organisms.material import material\n"
            f"c = Config(lengths=({length},), depths=(0, 50, 100), needles=8, max_new_tokens=16, keep='all')\n"
            "_, s, t, st = _grid(m, c, Context(data=material('organism')['needles'])); a = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "_measure(m, c, Context(), s, t, st); print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - a) / 1024)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        out[str(length)] = float(done.stdout.strip().splitlines()[-1])
    return out


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
