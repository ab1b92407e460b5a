"""Sampling with the statistics of every step, against Hugging Face `generate(output_scores=True)` with statistics
computed afterwards."""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys

import torch

from tests.benchmarks.timing import interleaved, row

NAME = "sampling with entropies"
# layers, width, query heads, key/value heads, MLP, vocabulary; samples and tokens of one prompt; prompts, samples,
# tokens of the batch
SCALES = {
    "small": ((4, 256, 8, 4, 512, 32000), (50, 128), (24, 4, 32)),
    "8b": ((32, 4096, 32, 8, 14336, 128256), (50, 128), (16, 8, 64)),
}
TOP_P = 0.9
# Bytes per second of memory, from the makers' data sheets: the floor of a decoding step is reading the weights once.
# Longer names first.
BANDWIDTH = {
    "H200": 4.8e12,
    "H100 PCIe": 2.0e12,
    "H100 NVL": 3.9e12,
    "H100": 3.35e12,
    "A100-SXM4-80GB": 2.04e12,
    "A100 80GB PCIe": 1.94e12,
    "A100": 1.56e12,
    "L40S": 0.864e12,
    "RTX 4090": 1.01e12,
}


def bandwidth(name: str) -> float | None:
    """Memory bandwidth of the card of this name; None for one that is not listed."""
    return next((value for card, value in BANDWIDTH.items() if card in name), None)


def models(scale: str, device: str):
    """(our model, the same weights in plain Hugging Face). Scores are spread so that a nucleus holds tens of tokens, as
    a trained model's do."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from workbench.models.loading import wrap

    layers, width, heads, groups, mlp, vocabulary = SCALES[scale][0]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=mlp,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.device(device):
        plain = LlamaForCausalLM(config).to(torch.bfloat16 if device.startswith("cuda") else torch.float32).eval()
    plain.generation_config.eos_token_id = None  # every sample has the same length on both sides
    with torch.no_grad():
        ids = torch.randint(3, vocabulary, (4, 32), device=device)
        plain.lm_head.weight.mul_(4.5 / plain(ids).logits.float().std())
    return wrap(copy.deepcopy(plain), name=f"random llama {scale}"), plain


def prompts(n: int, vocabulary: int, length: int = 24) -> list[list[int]]:
    return torch.randint(3, vocabulary, (n, length), generator=torch.Generator().manual_seed(1)).tolist()


def generate(hf, ids: list[int], samples: int, tokens: int):
    """Plain Hugging Face: sampled ids [M, N], and entropy and log-probability of every step [M, N] from the scores it
    kept."""
    device = next(hf.parameters()).device
    with torch.no_grad():
        out = hf.generate(
            torch.tensor([ids], device=device),
            do_sample=True,
            temperature=1.0,
            top_p=TOP_P,
            top_k=0,
            num_return_sequences=samples,
            max_new_tokens=tokens,
            output_scores=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        new = out.sequences[:, len(ids) :]
        entropies, logprobs = [], []
        for t, scores in enumerate(out.scores):
            log_p = scores.float().log_softmax(-1)
            p = log_p.exp()
            entropies.append(-(p * log_p.masked_fill(p == 0, 0)).sum(-1))
            logprobs.append(log_p.gather(1, new[:, t : t + 1])[:, 0])
    return new.cpu(), torch.stack(entropies, 1).cpu(), torch.stack(logprobs, 1).cpu()


def gate(model, plain, ids: list[int], tokens: int, tolerance: float) -> str:
    """Our numbers on Hugging Face's samples equal its own, and ours on our samples equal a float64 pass over the full
    vocabulary."""
    from tests.engine.test_scoring import slow
    from workbench.engine.generate import sample
    from workbench.engine.sampling import FIELDS, Rule, step
    from workbench.engine.scoring import score

    rule = Rule(top_p=TOP_P)
    new, entropy, logprob = generate(plain, ids, 4, tokens)
    scored = torch.stack(score(model, [ids] * 4, new.tolist(), rule=rule))
    # Hugging Face has no margin at the edge of the nucleus: there it may keep one token more or less
    edge = ((scored[..., FIELDS.index("entropy")] - entropy).abs() > tolerance).float().mean()
    typical = float((scored[..., FIELDS.index("entropy")] - entropy).abs().median())
    found = sample(model, [ids], samples=3, max_new_tokens=tokens, rule=rule, eos=False)
    device, worst, apart = next(plain.parameters()).device, 0.0, []
    on_cpu = device.type == "cpu"
    exact = copy.deepcopy(plain).double() if on_cpu else plain
    for m in range(3):
        text = found.tokens(0, m)
        with torch.no_grad():
            scores = exact(torch.tensor([ids + text], device=device)).logits[0, len(ids) - 1 : -1]
        # on a GPU there is no float64 model to compare with: the same bfloat16 scores are reduced by our step and in
        # float64
        ours = found.steps[0, m] if on_cpu else step(scores, rule, chosen=torch.tensor(text, device=device))[1].cpu()
        for t in range(0, len(text), 4):
            truth = slow(scores[t].double().cpu().numpy(), text[t], rule)
            for name in ("entropy", "entropy_full"):
                worst = max(worst, abs(truth[name] - float(ours[t, FIELDS.index(name)])))
                apart.append(abs(truth[name] - float(found.statistic(name)[0, m, t])))
    drift = statistics.median(apart)
    if typical > tolerance or edge > 0.02 or worst > 1e-3 or drift > tolerance:
        raise AssertionError(
            f"entropies differ (typical {typical:.2g}, at edges {float(edge):.1%}, worst against float64 "
            f"{worst:.2g}, decoding against one pass "
            f"{drift:.2g}): no speed is reported"
        )
    if on_cpu:
        return f"entropies within {worst:.1g} nats of a float64 pass over the vocabulary"
    return (
        f"entropies within {worst:.1g} nats of float64 on the same scores; decoding within {drift:.1g} (median) "
        f"of one pass over the text"
    )


def measure(device: str = "cpu", scale: str = "small", rounds: int = 3) -> list[dict]:
    """Tokens per second, sampling and statistics together: M samples of one prompt, and many prompts against one prompt
    at a time."""
    from workbench.engine.generate import sample
    from workbench.engine.sampling import FIELDS, Rule

    model, plain = models(scale, device)
    (samples, tokens), (many, few, short) = SCALES[scale][1:]
    ids = prompts(many, model.vocab_size)
    rule = Rule(top_p=TOP_P)
    agreement = gate(model, plain, ids[0], 32, 1e-3 if device == "cpu" else 5e-2)
    last = {}

    def ours() -> None:
        last["one"] = sample(model, ids[:1], samples=samples, max_new_tokens=tokens, rule=rule, eos=False)

    def batch() -> None:
        last["many"] = sample(model, ids, samples=few, max_new_tokens=short, rule=rule, eos=False)

    one = interleaved(
        {"reference": lambda: generate(plain, ids[0], samples, tokens), "ours": ours}, rounds=rounds, device=device
    )
    all_of_them = interleaved(
        {"reference": lambda: [generate(plain, p, few, short) for p in ids], "ours": batch},
        rounds=rounds,
        device=device,
    )
    found = last["one"]
    details = {
        "samples": samples,
        "tokens": tokens,
        "vocabulary": model.vocab_size,
        "kept_per_token": f"{len(FIELDS)} float32 and the id",
        "mean_support": float(found.statistic("support").mean()),
        "bf": float(found.statistic("entropy").mean().exp()),
    }
    if device == "cpu":
        details["peak_memory_growth_MiB"] = memory_growth(scale)
    else:
        weights = sum(p.numel() * p.element_size() for p in model.hf.parameters())
        step, card = statistics.median(one["ours"]) / tokens, torch.cuda.get_device_name(device)
        if bandwidth(card) is not None:
            details["share_of_weight_bandwidth"] = weights / bandwidth(card) / step
        details |= {
            "card": card,
            "ms_per_step": step * 1e3,
            "peak_memory_GiB": torch.cuda.max_memory_allocated() / 2**30,
        }
    first = row(
        f"{NAME}, {samples} samples × {tokens} tokens",
        "tokens/s",
        one,
        samples * tokens,
        agreement,
        reference="generate(output_scores=True, num_return_sequences)",
        **details,
    )
    second = row(
        f"{NAME}, {many} prompts × {few} samples",
        "tokens/s",
        all_of_them,
        many * few * short,
        agreement,
        reference="generate, one prompt at a time",
        prompts=many,
        samples=few,
        tokens=short,
        vocabulary=model.vocab_size,
    )
    return [first, second]


def memory_growth(scale: str) -> dict[str, float]:
    """Peak memory above the loaded model, in MiB, at two lengths. Raises AssertionError when ours grows by more than a
    quarter of what keeping the scores of every step would (samples × steps × vocabulary), or when the reference, which
    keeps them, does not."""
    out = {}
    for side in ("ours", "reference"):
        for tokens in (32, 128):
            call = (
                "generate(plain, ids, 50, n)"
                if side == "reference"
                else "sample(model, [ids], samples=50, max_new_tokens=n, rule=Rule(top_p=TOP_P), eos=False)"
            )
            code = (
                "import torch; torch.set_num_threads(1)\n"
                "from tests.benchmarks.generation import *; from workbench.engine.generate import sample; "
                "from workbench.engine.scoring import Rule\n"
                f"model, plain = models('{scale}', 'cpu'); ids = prompts(1, model.vocab_size)[0]; n = {tokens}\n"
                "high = lambda: int(next(x for x in open('/proc/self/status') if x.startswith('VmHWM')).split()[1])\n"
                "open('/proc/self/clear_refs', 'w').write('5')\n"  # forget the peak that building the model left
                f"a = high(); {call}; print((high() - a) / 1024)\n"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            out[f"{side}, {tokens} tokens"] = round(float(done.stdout.strip().splitlines()[-1]), 1)
    check_growth(out, 50 * (128 - 32) * SCALES[scale][0][-1] * 4 / 2**20)
    return out


def check_growth(peaks: dict[str, float], scores: float) -> None:
    """`peaks` of `memory_growth` against the MiB that the `scores` of the steps between the two lengths take."""
    ours, theirs = (peaks[f"{side}, 128 tokens"] - peaks[f"{side}, 32 tokens"] for side in ("ours", "reference"))
    if ours > scores / 4 or theirs < scores / 2:
        raise AssertionError(
            f"From 32 to 128 tokens our peak grows by {ours:.0f} MiB and the reference's by {theirs:.0f} MiB; "
            f"the scores are {scores:.0f} MiB."
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(), indent=1))
