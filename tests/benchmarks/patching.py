"""Patching every head: one forward pass of the plain model per head and prompt against the closed form and the
last-position batch.

The reference is what a script would do: for each prompt and head one forward pass with hooks that put the donor's
output in (and, for direct effects, put every other head's and every MLP's own output back). A second reference runs all
prompts as one batch per head. The numbers have to agree in float32; on a GPU the weights are then rounded to bfloat16,
in which both are timed.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.benchmarks.timing import interleaved, row
from workbench.engine.patching import direct_effects, total_effects
from workbench.models.loading import wrap

NAME = "patching"
# layers, width, heads, key/value heads, MLP width, vocabulary, prompts, tokens, heads that the reference is timed on
# (scaled to all)
SCALES = {"small": (8, 128, 8, 4, 384, 1024, 8, 48, 64), "8b": (32, 4096, 32, 8, 14336, 128256, 4, 512, 64)}


def random_llama(scale: str, device: str):
    layers, width, heads, groups, mlp, vocabulary, n, length, timed = SCALES[scale]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=mlp,
        vocab_size=vocabulary,
        initializer_range=0.05 if scale == "small" else 0.02,
    )
    with torch.device(device):
        hf = LlamaForCausalLM(config)
    draw = torch.Generator().manual_seed(1)
    ids, donors = (torch.randint(3, vocabulary, (n, length), generator=draw).tolist() for _ in range(2))
    tokens = torch.randint(3, vocabulary, (n, 2), generator=draw).tolist()
    return wrap(hf, name=f"random llama {scale}"), ids, donors, tokens, timed


@torch.no_grad()
def one_pass_per_head(model, ids, donors, tokens, heads, *, frozen: bool, together: bool) -> torch.Tensor:
    """Δ log p of the tokens [n, heads, k], from plain forward passes with hooks; `together`: all prompts in one pass
    per head."""
    layers, d = model.hf.model.layers, model.d_head
    projections, mlps = [layer.self_attn.o_proj for layer in layers], [layer.mlp for layer in layers]
    changes = []
    for rows in [range(len(ids))] if together else [[i] for i in range(len(ids))]:
        inputs, others = (torch.tensor([source[i] for i in rows], device=model.device) for source in (ids, donors))
        wanted = torch.tensor([tokens[i] for i in rows], device=model.device)

        def scores(inputs=inputs, wanted=wanted):
            logits = model.hf(inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()
            return logits.log_softmax(-1).gather(1, wanted)

        def watched(inputs):
            z, m = {}, {}
            hooks = [
                p.register_forward_pre_hook(lambda _m, a, i=i: z.__setitem__(i, a[0][:, -1].clone()))
                for i, p in enumerate(projections)
            ]
            hooks += [
                p.register_forward_hook(lambda _m, _a, y, i=i: m.__setitem__(i, y[:, -1].clone()))
                for i, p in enumerate(mlps)
            ]
            value = scores(inputs)
            for hook in hooks:
                hook.remove()
            return z, m, value

        z, m, before = watched(inputs)
        donor_z, _, _ = watched(others)
        change = []
        for layer, head in heads:

            def heads_in(_m, args, at, layer=layer, head=head, z=z, donor_z=donor_z):
                x = args[0].clone()
                if frozen:
                    x[:, -1] = z[at]
                if at == layer:
                    x[:, -1, head * d : (head + 1) * d] = donor_z[at][:, head * d : (head + 1) * d]
                return (x,)

            def mlp_out(_m, _a, y, at, m=m):
                y = y.clone()
                y[:, -1] = m[at]
                return y

            touched = range(len(layers)) if frozen else [layer]
            hooks = [projections[i].register_forward_pre_hook(lambda mod, a, i=i: heads_in(mod, a, i)) for i in touched]
            hooks += [
                mlps[i].register_forward_hook(lambda mod, a, y, i=i: mlp_out(mod, a, y, i)) for i in touched if frozen
            ]
            change.append(scores() - before)
            for hook in hooks:
                hook.remove()
        changes.append(torch.stack(change, 1))
    return torch.cat(changes).cpu()


CLOSE = 1e-4  # largest difference in float32 (nats)
SHARE = 0.05  # … and as a share of the largest effect: numbers that say nothing agree with nothing


def agreement(name: str, found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference from one pass per head; AssertionError when it is not small, also against the effects
    themselves."""
    worst, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not worst <= min(CLOSE, SHARE * largest):
        raise AssertionError(
            f"{name} differ from one pass per head by {worst:.2g} (effects up to {largest:.2g}): no speed is reported"
        )
    return worst


def rounding(name: str, ours: torch.Tensor, reference: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error of our bfloat16 effects, which may be at most twice what one pass per head makes of the same
    weights."""
    error, theirs = float((ours - exact).abs().max()), float((reference - exact).abs().max())
    if not error <= 2 * theirs:
        raise AssertionError(
            f"{name} in bfloat16 are off by {error:.2g}, one pass per head by {theirs:.2g}: no speed is reported"
        )
    return error


def measure(
    device: str = "cpu", scale: str = "small", rounds: int = 5, timed_in: torch.dtype | None = None
) -> list[dict]:
    """Heads per second (all heads of all prompts); every variant agrees with the reference before anything is timed.

    `timed_in`: precision of the timed passes; by default bfloat16 on a GPU and float32 elsewhere."""
    timed_in = timed_in or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    model, ids, donors, tokens, timed = random_llama(scale, device)
    everything = model.heads()
    heads = everything[:: max(1, len(everything) // timed)]
    index = [everything.index(h) for h in heads]
    variants = (("direct effects", direct_effects, True), ("total effects", total_effects, False))
    exact, agreed = {}, {}
    for name, fast, frozen in variants:
        exact[name] = one_pass_per_head(model, ids, donors, tokens, heads, frozen=frozen, together=False)
        worst = agreement(name, fast(model, ids, donors, tokens).change()[:, index], exact[name])
        agreed[name] = f"max difference {worst:.0e} of effects up to {float(exact[name].abs().max()):.1g}"
    if timed_in != torch.float32:
        for parameter in model.hf.parameters():  # and not the rotary frequencies
            parameter.data = parameter.data.to(timed_in)
    out = []
    for name, fast, frozen in variants:
        if timed_in != torch.float32:
            reference = one_pass_per_head(model, ids, donors, tokens, heads, frozen=frozen, together=False)
            error = rounding(name, fast(model, ids, donors, tokens).change()[:, index], reference, exact[name])
            agreed[name] += f" in float32; bfloat16 off by {error:.0e}"
        for against, together in (
            ("one pass per head and prompt", False),
            ("one pass per head, all prompts in a batch", True),
        ):
            seconds = interleaved(
                {
                    "reference": lambda f=frozen, t=together: one_pass_per_head(
                        model, ids, donors, tokens, heads, frozen=f, together=t
                    ),
                    "ours": lambda f=fast: f(model, ids, donors, tokens),
                },
                rounds=rounds,
                device=device,
            )
            seconds["reference"] = [s * len(everything) / len(heads) for s in seconds["reference"]]
            note = (
                {}
                if len(heads) == len(everything)
                else {"reference timed on": f"{len(heads)} of {len(everything)} heads, scaled to all"}
            )
            label = f"patching: {name} of all heads" + (", batched reference" if together else "")
            out.append(
                row(label, "heads/s", seconds, len(everything) * len(ids), agreed[name], reference=against, **note)
            )
    return out
