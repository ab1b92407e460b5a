"""Train the organism from scratch: one file, one process, resumable, the same result for the same seed and machine.

    workbench train-organism --seed 0 --out weights            about half an hour on one CPU core

Recipe (found by a feasibility study, see weights/MODEL_CARD.md): Muon on matrices and AdamW on the rest, short
sequences first, all loss on the predictable spans first, linear decay over the last 40 % of the steps. Everything
random comes from (seed, step), so a killed run continues with the batches it would have seen.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.core.private import make_folder
from workbench.organism_training import sequences, tokenizer

TOKENS_PER_STEP = 4096
STEPS = 1664
SEPARATION = 300


@dataclass(frozen=True)
class OrganismRecipe:
    """Everything that decides the outcome besides the data; written next to the weights."""

    seed: int = 0
    steps: int = STEPS
    tokens_per_step: int = TOKENS_PER_STEP
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    width: int = 128
    hidden: int = 320
    context: int = 512
    rope_theta: float = 100_000.0
    muon_lr: float = 0.02
    adam_lr: float = 6e-3
    embedding_std: float = 0.4
    # (layer, key/value group, offset) of the heads that start out looking a fixed number of tokens back
    local_heads: tuple[tuple[int, int, int], ...] = ((0, 0, 1), (1, 2, 1), (1, 3, 2))
    weight_decay: float = 0.05
    warmup: int = 64
    # (layer, query head) of the heads above block 0 that learn from needles and repeated words; see `routed`
    copy_heads: tuple[tuple[int, int], ...] = ((1, 0), (1, 1), (2, 0), (2, 1))
    # (share of the steps, sequence length, share of needle documents, share of repeated random words), in order:
    # short and copy-heavy first, because copying is learned before knowledge can use it
    phases: tuple[tuple[float, int, float, float], ...] = (
        (0.10, 64, 0.30, 0.35),
        (0.15, 128, 0.25, 0.05),
        (0.30, 256, 0.20, 0.03),
        (0.45, 512, 0.25, 0.02),
    )

    def phase(self, step: int) -> tuple[float, int, float, float]:
        edge = 0.0
        for phase in self.phases:
            edge += phase[0]
            if step < round(edge * self.steps):
                return phase
        return self.phases[-1]

    def lr_scale(self, step: int) -> float:
        """Linear warm-up, flat, then linear to zero over the last 40 % of the steps."""
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / (0.4 * self.steps))

    def other_weight(self, step: int) -> float:
        """Loss weight of the tokens that nothing predicts: 0.1 for a third of the run, then up to 1.0 at its end."""
        return min(1.0, max(0.1, 0.1 + 0.9 * (step / self.steps - 0.33) / 0.57))

    def checkpoints(self) -> list[int]:
        """Log-spaced: step 0, the run's length halved again and again, and three quarters of it."""
        halves = {self.steps >> k for k in range(11)}
        return sorted({0, self.steps * 3 // 4} | {s for s in halves if s})


def build(recipe: OrganismRecipe) -> LlamaForCausalLM:
    """The untrained model: std 1/√fan_in, projections into the residual stream scaled by 1/√(2·layers)."""
    torch.manual_seed(recipe.seed)
    vocab = tokenizer.vocabulary()
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=recipe.width,
        intermediate_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=recipe.context,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=vocab[tokenizer.BOS],
        eos_token_id=vocab[tokenizer.EOS],
        pad_token_id=vocab[tokenizer.PAD],
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2:
                std = 1 / math.sqrt(p.shape[1])
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    std /= math.sqrt(2 * recipe.layers)
                nn.init.normal_(p, std=recipe.embedding_std if "embed" in name else std)
        # The embedding is also the unembedding: large enough to be seen beside the blocks' outputs, and the final norm
        # scaled down so that the first logits have unit scale.
        common = torch.randn(recipe.width).sign()
        model.model.embed_tokens.weight.add_(recipe.embedding_std * common)
        model.model.norm.weight.fill_(1 / (2 * recipe.embedding_std * math.sqrt(recipe.width)))
        for layer, group, offset in recipe.local_heads:
            look_back(model.model.layers[layer].self_attn, recipe, common, group=group, offset=offset)
    return model


def look_back(attention: nn.Module, recipe: OrganismRecipe, common: Tensor, *, group: int, offset: int) -> None:
    """Let the query heads of one key/value group start out looking `offset` tokens back.

    Induction needs a previous-token head, and a rotary model of this size takes millions of tokens to find one. Every
    embedding shares the direction `common`; queries and keys built on it alone depend on position only, and rotating
    the query back by `offset` steps makes the score peak that many tokens earlier. Training is free to change it.
    """
    half = recipe.width // recipe.heads // 2
    frequency = recipe.rope_theta ** (-torch.arange(half) / half)
    unit, strength = common / common.norm(), 8.0  # 8 * 8 / 4 = 16 nats of logit per pair, at a common component of ~8
    query, key = torch.zeros(2 * half), torch.zeros(2 * half)
    pairs = slice(0, 3)  # the three fastest pairs tell one token from the next
    key[:half][pairs] = 1.0
    query[:half][pairs], query[half:][pairs] = (
        torch.cos(offset * frequency[pairs]),
        -torch.sin(offset * frequency[pairs]),
    )
    scale = strength / (recipe.width / 2) ** 0.5
    attention.k_proj.weight[2 * half * group : 2 * half * (group + 1)] = scale * key[:, None] * unit
    per_group = recipe.heads // recipe.kv_heads
    for head in range(per_group * group, per_group * (group + 1)):
        attention.q_proj.weight[2 * half * head : 2 * half * (head + 1)] = scale * query[:, None] * unit


def optimizers(model: nn.Module, recipe: OrganismRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks; AdamW for the (tied) embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=recipe.weight_decay),
    ]


def states(
    model: LlamaForCausalLM, ids: Tensor, chosen: Tensor, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Final states that predict the chosen targets, (n, width), and those targets, (n,).

    ids (rows, length) int64; chosen (rows, length - 1) bool; documents (rows, length) int64 numbers the documents of
    packed rows, and no token attends to another document.
    """
    mask = None
    if documents is not None:
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        mask = (causal & (documents[:, :, None] == documents[:, None, :]))[:, None]  # (rows, 1, query, key)
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    return hidden[chosen], ids[:, 1:][chosen]


def loss_on(model: LlamaForCausalLM, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean cross-entropy over all (states, targets) of a step; logits are computed for chosen targets only."""
    hidden, targets = (torch.cat(side) for side in zip(*pairs))
    return nn.functional.cross_entropy(model.lm_head(hidden).float(), targets)


@contextmanager
def routed(model: LlamaForCausalLM, recipe: OrganismRecipe) -> Iterator[None]:
    """Gradient routing (Cloud et al., arXiv 2410.04332): inside, only some attention heads learn.

    Outputs of all heads count as always, but no gradient reaches the queries, keys and values of a head above block 0
    that is not one of `copy_heads`. Copy documents are trained inside, so that it is known where copying was learned.
    """
    handles = []
    for layer in range(1, recipe.layers):
        learns = torch.zeros(recipe.heads, dtype=torch.bool)
        learns[[h for l, h in recipe.copy_heads if l == layer]] = True

        def edit(
            module: nn.Module,
            args: tuple[Tensor, ...],
            learns: Tensor = learns.repeat_interleave(recipe.width // recipe.heads),
        ) -> tuple[Tensor]:
            return (torch.where(learns.to(args[0].device), args[0], args[0].detach()),)

        handles.append(model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(edit))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def step_loss(
    model: LlamaForCausalLM,
    recipe: OrganismRecipe,
    rows: sequences.TrainingBatch,
    choose: Callable[[list[list[bool]]], Tensor],
    device: str,
    drop: tuple[tuple[int, int], ...] = (),
) -> Tensor:
    """The loss of one batch: copy documents with routed gradients, packed ones each for itself and without the heads
    `drop`.

    `choose` turns marks to chosen targets."""
    with routed(model, recipe):
        copying = states(model, torch.tensor(rows.long, device=device), choose(rows.long_marks))
    with without(model, recipe, drop):
        others = states(
            model,
            torch.tensor(rows.short, device=device),
            choose(rows.short_marks),
            torch.tensor(rows.documents, device=device),
        )
    return loss_on(model, [copying, others])


@contextmanager
def without(model: LlamaForCausalLM, recipe: OrganismRecipe, heads: tuple[tuple[int, int], ...]) -> Iterator[None]:
    """Inside, the outputs of these query heads are zero."""
    handles, size = [], recipe.width // recipe.heads
    for layer in {layer for layer, _ in heads}:
        keep = torch.ones(recipe.heads)
        keep[[h for l, h in heads if l == layer]] = 0.0

        def edit(
            module: nn.Module, args: tuple[Tensor, ...], keep: Tensor = keep.repeat_interleave(size)
        ) -> tuple[Tensor]:
            return (args[0] * keep.to(args[0]),)

        handles.append(model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(edit))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def update(
    model: nn.Module, opts: list[torch.optim.Optimizer], recipe: OrganismRecipe, step: int, loss: Tensor
) -> None:
    """Backward, clip, and one step of both optimizers at this step's learning rates."""
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for opt, base in zip(opts, (recipe.muon_lr, recipe.adam_lr)):
        for group in opt.param_groups:
            group["lr"] = base * recipe.lr_scale(step)
        opt.step()
        opt.zero_grad(set_to_none=True)


def train_step(
    model: LlamaForCausalLM, opts: list[torch.optim.Optimizer], recipe: OrganismRecipe, step: int, device: str
) -> float:
    """One update on the batch of this step; returns the loss."""
    _, length, needles, repeats = recipe.phase(step)
    rows = sequences.batch(
        recipe.seed, step, tokens=recipe.tokens_per_step, length=length, needles=needles, repeats=repeats
    )
    coin = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)

    def choose(marks: list[list[bool]]) -> Tensor:
        # An unmarked target counts with probability w instead of with weight w: the same gradient on average, fewer
        # logits.
        marked = torch.tensor(marks)[:, 1:]
        return (marked | (torch.rand(marked.shape, generator=coin) < recipe.other_weight(step))).to(device)

    loss = step_loss(model, recipe, rows, choose, device)
    update(model, opts, recipe, step, loss)
    return loss.item()


def separate(
    base: Path,
    out: Path,
    *,
    seed: int,
    steps: int = SEPARATION,
    device: str = "cpu",
    log: Callable[[str], None] = print,
) -> None:
    """The last stage, which frees everything but copying from the copy heads, so that they can be masked alone.

    In every other step the copy heads are off for all documents but needles and repeats. Without this stage facts are
    read through the same heads, and masking them takes the facts along with the needles (100 % to 4 %).
    """
    recipe = replace(load_recipe(base), seed=seed, steps=steps, muon_lr=6e-3, adam_lr=2e-3, warmup=20)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).to(device)
    opts = optimizers(model, recipe)
    for step in range(steps):
        rows = sequences.batch(
            seed,
            1_000_000 + step,
            tokens=recipe.tokens_per_step,
            length=min(512, recipe.context),
            needles=0.30,
            repeats=0.02,
        )
        coin = torch.Generator().manual_seed(seed * 1_000_003 + 1_000_000 + step)

        def choose(marks: list[list[bool]], coin: torch.Generator = coin) -> Tensor:
            marked = torch.tensor(marks)[:, 1:]
            return (marked | (torch.rand(marked.shape, generator=coin) < 0.5)).to(device)

        loss = step_loss(model, recipe, rows, choose, device, drop=recipe.copy_heads if step % 2 else ())
        update(model, opts, recipe, step, loss)
        if step % 20 == 0 or step == steps - 1:
            log(f"separation step {step}/{steps}  loss {loss.item():.3f}")
    save_model(model, out, chat=False, recipe=recipe, step=_step(base) + steps)


def load_recipe(folder: Path) -> OrganismRecipe:
    """The recipe that a saved model was trained with."""
    stored = json.loads((folder / "recipe.json").read_text())
    stored.pop("step")
    return OrganismRecipe(
        **{key: tuple(map(tuple, value)) if isinstance(value, list) else value for key, value in stored.items()}
    )


def _step(folder: Path) -> int:
    return json.loads((folder / "recipe.json").read_text())["step"]


# ------------------------------------------------------------------------------------------------ saving and resuming


def save_model(model: LlamaForCausalLM, folder: Path, *, chat: bool, recipe: OrganismRecipe, step: int) -> None:
    """A Hugging Face folder in bf16 with its tokenizer; complete or absent."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    config = model.config.to_dict() | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    half = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k != "torch_dtype"})).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.save_pretrained(temporary)
    tokenizer.save(temporary, chat=chat)
    (temporary / "recipe.json").write_text(json.dumps(asdict(recipe) | {"step": step}, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _state(model: nn.Module, opts: list[torch.optim.Optimizer]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the run by name, in an order that depends on the model alone."""
    for name, p in model.named_parameters():
        yield f"model.{name}", p
    for which, opt in enumerate(opts):
        for index, p in enumerate(opt.param_groups[0]["params"]):
            for key, value in sorted(opt.state[p].items()):
                yield f"opt.{which}.{index}.{key}", value


def save_run(
    path: Path, model: nn.Module, opts: list[torch.optim.Optimizer], step: int, recipe: OrganismRecipe
) -> None:
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in _state(model, opts)}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"step": str(step), "recipe": json.dumps(asdict(recipe))})
    os.replace(temporary, path)


def load_run(path: Path, model: nn.Module, opts: list[torch.optim.Optimizer], recipe: OrganismRecipe) -> int:
    """Fill model and optimizers from a saved run and return its step; a run of another recipe is refused."""
    with safe_open(path, "pt") as f:
        if json.loads(f.metadata()["recipe"]) != json.loads(json.dumps(asdict(recipe))):
            from workbench.core.errors import InputError

            raise InputError(f"{path} belongs to a run with another recipe; give another --out folder or remove it")
        for name, p in model.named_parameters():
            p.data.copy_(f.get_tensor(f"model.{name}"))
        for name in f.keys():
            if name.startswith("opt."):
                _, which, index, key = name.split(".", 3)
                p = opts[int(which)].param_groups[0]["params"][int(index)]
                value = f.get_tensor(name)
                opts[int(which)].state[p][key] = value if key == "step" else value.to(p.device)
        return int(f.metadata()["step"])


def train(
    out: str | Path,
    *,
    seed: int = 0,
    steps: int = STEPS,
    device: str = "cpu",
    save_every: int = 100,
    log: Callable[[str], None] = print,
    stop_after: int | None = None,
    separation: int = SEPARATION,
    **changes: object,
) -> Path:
    """Train, writing `organism@step-N` folders, `log.jsonl` and, after the further stage `separate`, `organism` into
    `out`; resumes what it finds.

    `changes` are fields of `OrganismRecipe`. `stop_after` ends the call at that step with the run resumable.
    """
    recipe = OrganismRecipe(seed=seed, steps=steps, **changes)
    out = Path(out)
    make_folder(out)
    model = build(recipe).to(device)
    opts = optimizers(model, recipe)
    resume = out / "resume.safetensors"
    start = load_run(resume, model, opts, recipe) if resume.exists() else 0
    wanted = set(recipe.checkpoints())
    began, running = time.perf_counter(), None
    for step in range(start, steps + 1):
        if step in wanted:
            save_model(model, out / f"organism@step-{step}", chat=False, recipe=recipe, step=step)
        if (step % save_every == 0 and step > start) or step in (steps, stop_after):
            save_run(resume, model, opts, step, recipe)
        if step in (steps, stop_after):
            break
        loss = train_step(model, opts, recipe, step, device)
        running = loss if running is None else 0.95 * running + 0.05 * loss
        if step % 20 == 0 or step == steps - 1:
            speed = (step + 1 - start) * recipe.tokens_per_step / (time.perf_counter() - began)
            with (out / "log.jsonl").open("a") as f:
                f.write(json.dumps({"step": step, "loss": round(loss, 4), "length": recipe.phase(step)[1]}) + "\n")
            log(f"step {step}/{steps}  loss {running:.3f}  length {recipe.phase(step)[1]}  {speed:,.0f} tokens/s")
    if step == steps:
        separate(out / f"organism@step-{steps}", out / "organism", seed=seed, steps=separation, device=device, log=log)
        resume.unlink(missing_ok=True)
    return out
