"""Data selection against a plain loop: a full forward pass per sample, `SAE.encode` of all tokens, dense NumPy
similarity.

Three rows on a CPU: the organism, whose vocabulary is small; a model of Pythia-14M's shape, where the loop's
unembedding, which selection does not need, is most of the arithmetic, as in any small model with a real vocabulary; and
the same model where every text comes after a system prompt about as long as Llama 2's, as in a chat format. All read
the same texts otherwise. The loop is what the method's description says to do; ours is the probe on files, from reading
them to its tables, without what the loop does not make (baselines, explanations, resampled intervals)."""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch

from tests.benchmarks.timing import gemm_rate, interleaved, row
from workbench.core.context import Context

NAME = "data selection"
# samples, d_sae, k, samples in the reference loop (its rate does not depend on how many)
SCALES = {"small": (2000, 4096, 32, 2000), "8b": (512, 131072, 192, 64), "smoke": (60, 512, 8, 60)}
PYTHIA = "a model of Pythia-14M's shape"
SYSTEM = 110  # tokens of the system prompt: Llama 2's default one has about as many
RATIO = 0.05


def measure(device: str = "cpu", scale: str = "small", rounds: int = 3) -> list[dict]:
    """All rows; at the size of an 8B model one."""
    rows = [selection(NAME, models(scale, device), device, scale, rounds)]
    if scale != "8b":
        small = pythia(device)
        rows += [
            selection(f"{NAME}, {PYTHIA}", small, device, scale, rounds),
            selection(
                f"{NAME}, {PYTHIA}, after a system prompt of {SYSTEM} tokens",
                small,
                device,
                scale,
                rounds,
                system=SYSTEM,
            ),
        ]
    return rows


def selection(title: str, both: tuple, device: str, scale: str, rounds: int, *, system: int = 0) -> dict:
    """Samples per second on the same texts and autoencoder, at the penultimate layer as in the paper. Gate: identical
    selected rows for every target in float32 (a model that runs in bfloat16 is converted for the gate after it was
    timed)."""
    from sae_lens import SAE

    from probes.data_selection import Config, run

    n, d_sae, k, in_loop = SCALES[scale]
    model, hf = both
    layer = model.n_layers - 2
    texts, targets = material(n, scale)
    if system:
        words = model.tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"][:system]
        front = model.tokenizer.decode(words) + " "
        texts, targets = (
            [front + text for text in texts],
            {name: [front + text for text in some] for name, some in targets.items()},
        )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write(place / "pool.jsonl", texts)
        write(place / "first.jsonl", texts[:in_loop])
        for name, examples in targets.items():
            write(place / f"{name}.jsonl", examples)
        autoencoder(place / "sae", model, layer, d_sae, k)
        inner = SAE.load_from_disk(place / "sae", device=device, dtype="float32")
        names = tuple(str(place / f"{name}.jsonl") for name in targets)
        config = Config(
            target=names,
            sae=str(place / "sae"),
            ratio=RATIO,
            ratios=(RATIO,),
            baselines=(),
            features=0,
            passages=0,
            explain=0,
            resamples=0,
            label="none",
            max_tokens=0 if device == "cpu" else 65536,
        )
        found: dict[str, np.ndarray] = {}

        def ours(file: str = "pool.jsonl"):
            found["table"] = run(model, config, Context(seed=0, data=place / file)).tables["scores"]

        def reference():
            found["loop"] = loop(hf, model.tokenizer, inner, texts[:in_loop], list(targets.values()), device)

        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        # the loop's time is scaled to the whole pool; both are linear in the samples
        seconds = interleaved({"reference": reference, "ours": ours}, rounds=rounds, device=device)
        tokens = int(found["table"].filter(target=next(iter(targets)))["length"].sum())
        timed = str(model.dtype).removeprefix("torch.")
        memory = torch.cuda.max_memory_allocated() / 2**30 if device.startswith("cuda") else None
        apart = (
            difference(found["table"], found["loop"], in_loop) if in_loop == n or model.dtype != torch.float32 else 0.0
        )
        if model.dtype != torch.float32:
            hf.float()
            if model.hf is not hf:
                model.hf.float()
            reference()
        ours("first.jsonl")
        table = found["table"]
        size = max(1, round(RATIO * in_loop))
        for t, name in enumerate(targets):
            mine = set(table.filter(pl.col("selected"), target=name)["row"])
            theirs = set(np.argsort(-found["loop"][:, t], kind="stable")[:size].tolist())
            if mine != theirs:
                raise AssertionError(
                    f"for {name} the selected rows differ in float32 ({len(mine ^ theirs) // 2} of {size}; "
                    f"scores by up to "
                    f"{difference(table, found['loop'], in_loop):.2g}): no speed is reported"
                )
        worst = difference(table, found["loop"], in_loop)
    seconds["reference"] = [s * n / in_loop for s in seconds["reference"]]
    details = {
        "samples": n,
        "tokens": tokens,
        "d_sae": d_sae,
        "k": k,
        "layer": f"{layer} of {model.n_layers}",
        "targets": len(targets),
        "in_loop": in_loop,
        "largest_difference_float32": worst,
        "largest_difference_as_timed": apart,
        "dtype": timed,
    }
    if (
        device == "cpu"
    ):  # what nobody can leave out: the layers up to the site and the encoder, for every token, at the speed of one large product  # noqa: E501
        weights = (
            sum(p.numel() for block in model.anatomy.blocks[: layer + 1] for p in block.block.parameters())
            + model.width * d_sae
        )
        details["arithmetic_allows"] = statistics.median(seconds["reference"]) / (
            2 * weights * (tokens - system * (n - 1)) / gemm_rate()
        )
    if memory is not None:
        details["peak_memory_GiB"] = memory
    return row(
        title,
        "samples/s",
        seconds,
        n,
        "identical selected rows in float32",
        reference="plain loop (full forward, SAE.encode, dense NumPy)",
        **details,
    )


def difference(table: pl.DataFrame, scores: np.ndarray, n: int) -> float:
    """Largest difference of the scores of the first n rows."""
    names = table["target"].unique(maintain_order=True).to_list()
    own = np.stack([table.filter(target=name).sort("row")["score"].to_numpy()[:n] for name in names], axis=1)
    return float(np.abs(own - scores).max())


def loop(hf, tokenizer, sae, pool: list[str], targets: list[list[str]], device: str) -> np.ndarray:
    """Scores [samples, targets], one sample at a time."""
    layer = int(sae.cfg.metadata.hook_name.split(".")[1])

    def embed(text):
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            states = hf(torch.tensor([ids], device=device), output_hidden_states=True).hidden_states
            return sae.encode(states[layer + 1][0, 1:].float()).mean(0).cpu().numpy()

    prototypes = [np.mean([embed(text) for text in target], axis=0) for target in targets]
    scores = np.empty((len(pool), len(prototypes)))
    for i, text in enumerate(pool):
        z = embed(text)
        scores[i] = [np.minimum(z, p).sum() / np.maximum(z, p).sum() for p in prototypes]
    return scores


def models(scale: str, device: str):
    """(our model, the same weights in plain Hugging Face)."""
    from transformers import AutoModelForCausalLM

    from workbench.models.files import load_tokenizer
    from workbench.models.loading import load
    from workbench.organisms import folder

    if scale != "8b":
        model = load("organism", device=device)
        return model, AutoModelForCausalLM.from_pretrained(folder("organism"), dtype=torch.float32).eval().to(device)
    from tests.benchmarks.capture import random_llama

    model, _ = random_llama(scale, device)
    model.tokenizer, model.prepends_bos = load_tokenizer(folder("organism")), True
    return model, model.hf


def pythia(device: str) -> tuple:
    """(our model, the same weights in plain Hugging Face): random weights in the shape of EleutherAI/pythia-14m, the
    organism's tokenizer."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from workbench.models.files import load_tokenizer
    from workbench.models.loading import wrap
    from workbench.organisms import folder

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=512,
        vocab_size=50304,
        max_position_embeddings=2048,
    )
    hf = GPTNeoXForCausalLM(config).eval().to(device)
    return wrap(copy.deepcopy(hf), load_tokenizer(folder("organism")), name=PYTHIA), hf


def material(n: int, scale: str) -> tuple[list[str], dict[str, list[str]]]:
    """Texts of a pool and of three targets: of the organism's world, or its words at random in an instruction set's
    lengths."""
    from workbench.organisms import data

    if scale == "8b":
        from workbench.organism_training.documents import every_word

        rng, words = np.random.default_rng(0), np.array(every_word())
        lengths = np.clip(rng.lognormal(5.6, 0.7, n).astype(int), 32, 2000)

        def some(lengths):
            return [" ".join(rng.choice(words, length)) for length in lengths]

        return some(lengths), {name: some(lengths[:8]) for name in ("a", "b", "c")}

    def read(name):
        return [json.loads(line) for line in data(name).read_text(encoding="utf-8").splitlines()]

    texts = [f"{r['prompt']} {r['response']}" for r in read("pool")] + [r["text"] for r in read("texts")]
    targets = {
        name: [f"{r['prompt']} {r['response']}" for r in read(f"targets/{name}")] for name in ("sea", "music", "facts")
    }
    return list(dict.fromkeys(texts))[:n], targets


def write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def autoencoder(folder: Path, model, layer: int, d_sae: int, k: int) -> None:
    """A TopK autoencoder with random weights: the work is that of a trained one."""
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    torch.manual_seed(0)
    TopKSAE(
        TopKSAEConfig(
            d_in=model.width, d_sae=d_sae, k=k, metadata=SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post")
        )
    ).save_model(folder)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
