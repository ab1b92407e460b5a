"""Training samples on three topics, and what data selection computes of them, the slow way."""

import json

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from workbench.runs import execution as runs

PLACES = {
    "park": ("park", "slide", "swing", "tree"),
    "kitchen": ("kitchen", "cake", "pan", "jam"),
    "sea": ("sea", "boat", "fish", "wave"),
}


def sentence(rng, topic):
    words = PLACES[topic]
    parts = [
        f"{rng.choice(('Tom', 'Lily', 'Ben', 'Anna'))} {rng.choice(('saw', 'liked', 'found'))} the "
        f"{rng.choice(words)} near the {rng.choice(words)}."
        for _ in range(rng.integers(1, 5))
    ]
    return {"prompt": f"Tell me about the {topic}.", "response": " ".join(parts), "topic": topic}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def execute(model, material, out, **config):
    values = {
        "target": (str(material / "sea.jsonl"), str(material / "park.jsonl")),
        "sae": str(material / "sae"),
        "features": 4,
        "explain": 3,
    } | config
    return runs.execute("data-selection", model, data=material / "pool.jsonl", config=values, out=out)


def slow_vectors(tiny_llama, material, rows, part="all", aggregate="mean"):
    """One dense float64 feature vector per sample, from plain Hugging Face and sae-lens, one sample at a time."""
    from sae_lens import SAE
    from transformers import AutoTokenizer

    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    sae, out = SAE.load_from_disk(material / "sae"), []
    for row in rows:
        ids = tokenizer(row["prompt"] + " " + row["response"])["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        with torch.no_grad():
            hidden = hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0]
            z = sae.encode(hidden).double().numpy()
        spans = tokenizer(row["prompt"] + " " + row["response"], return_offsets_mapping=True)["offset_mapping"]
        prompt = next(
            i for i, (_, end) in enumerate(spans) if end > len(row["prompt"]) + 1
        )  # a token that reaches into the response is of it
        z = z[{"all": slice(1, None), "prompt": slice(1, prompt), "response": slice(prompt, None)}[part]]
        out.append({"mean": z.mean(0), "sum": z.sum(0), "last": z[-1]}[aggregate])
    return np.array(out)
