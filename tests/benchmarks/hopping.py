"""Back-patching of all pairs of layers: one hooked generation per pair against patches that share what does not change.

The reference is what a script would do: for every pair of layers the state after the later block is put after the
earlier one by a hook while `generate` reads the prompt, one prompt at a time, or all prompts of a pair in one batch (as
the official code does). All tokens have to be the same in float32; on a GPU the weights are then rounded to bfloat16,
in which both are timed.
"""

from __future__ import annotations

import torch

from tests.benchmarks.patching import random_llama
from tests.benchmarks.timing import interleaved, row
from workbench.engine.patched_streams import StreamPatches, patched_texts

NAME = "hopping"
NEW = 10  # tokens of an answer
# prompts and their tokens, pairs that the reference is timed on (scaled to all)
SCALES = {"small": (4, 16, 56), "8b": (4, 24, 40)}


def case(scale: str, device: str):
    """(model, prompts, positions of a state in each, pairs)."""
    prompts, length, timed = SCALES[scale]
    model, ids, *_ = random_llama(scale, device)
    ids = [row[:length] for row in ids[:prompts]]
    pairs = [(s, t) for t in range(model.n_layers) for s in range(t + 1, model.n_layers)]
    return model, ids, (length - 4, length - 1), pairs, timed


@torch.no_grad()
def states_of(model, ids) -> torch.Tensor:
    """Outputs of all blocks [prompts, tokens, layers, width]."""
    seen: list[torch.Tensor] = []
    keep = [
        block.register_forward_hook(lambda _m, _a, out: seen.append(out if torch.is_tensor(out) else out[0]))
        for block in model.hf.model.layers
    ]
    model.hf(torch.tensor(ids, device=model.device), use_cache=False, logits_to_keep=1)
    for handle in keep:
        handle.remove()
    return torch.stack(seen, 2)


@torch.no_grad()
def one_generation_per_pair(model, ids, states, cells, *, together: bool) -> list[list[int]]:
    """The tokens after every cell (position, source, target) of every prompt, cell by cell."""
    found: list[list[int]] = []
    for position, source, target in cells:
        for rows in [list(range(len(ids)))] if together else [[i] for i in range(len(ids))]:

            def put(_m, _a, output, rows=rows, position=position, source=source):
                hidden = output if torch.is_tensor(output) else output[0]
                if hidden.shape[1] > 1:  # what is decoded is read unpatched
                    hidden[:, position] = states[rows, position, source]
                return output

            handle = model.hf.model.layers[target].register_forward_hook(put)
            prompt = torch.tensor([ids[i] for i in rows], device=model.device)
            out = model.hf.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=NEW,
                pad_token_id=0,
            )
            handle.remove()
            found += [_ended(row[len(ids[0]) :], model.eos_ids) for row in out.tolist()]
    return found


def _ended(text: list[int], ends: tuple[int, ...]) -> list[int]:
    """A text up to the token that ended it."""
    stop = next((i for i, token in enumerate(text) if token in ends), len(text))
    return text[: stop + 1]


def patched(model, ids, states, cells) -> list[list[int]]:
    """The same, all cells at once."""
    every = [(i, *cell) for cell in cells for i in range(len(ids))]
    length, layers = states.shape[1:3]
    patches = StreamPatches(
        states.flatten(0, 2),
        [i for i, *_ in every],
        [target for *_, target in every],
        [position for _, position, _, _ in every],
        [(i * length + position) * layers + source for i, position, source, _ in every],
    )
    return [text for (text,) in patched_texts(model, ids, patches, max_new_tokens=NEW)]


def agreement(found: list[list[int]], expected: list[list[int]], plain: list[list[int]]) -> str:
    """How many texts are the same; AssertionError where one is not, or where no patch changes anything."""
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    changed = sum(text not in plain for text in expected)
    if same < len(expected) or changed < len(expected) / 10:
        raise AssertionError(
            f"{same} of {len(expected)} patched texts are those of one generation per pair, {changed} differ from the "
            f"unpatched ones: no speed is reported"
        )
    return f"{same} of {len(expected)} texts identical"


def measure(device: str = "cpu", scale: str = "small", rounds: int = 5) -> list[dict]:
    """Patched texts per second over all pairs, both positions and all prompts."""
    from workbench.engine.generate import greedy

    model, ids, positions, pairs, timed = case(scale, device)
    cells = [(position, *pair) for position in positions for pair in pairs]
    some = cells[:: max(1, len(cells) // timed)]
    states = states_of(model, ids)
    plain = greedy(model, ids, max_new_tokens=NEW)
    exact = one_generation_per_pair(model, ids, states, some, together=False)
    agreed = agreement(patched(model, ids, states, some), exact, plain)
    if device != "cpu":
        for parameter in model.hf.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        states = states.to(torch.bfloat16)
    out = []
    for against, together in (
        ("one hooked generation per pair and prompt", False),
        ("one hooked generation per pair, all prompts in a batch", True),
    ):
        seconds = interleaved(
            {
                "reference": lambda t=together: one_generation_per_pair(model, ids, states, some, together=t),
                "ours": lambda: patched(model, ids, states, cells),
            },
            rounds=rounds,
            device=device,
        )
        seconds["reference"] = [s * len(cells) / len(some) for s in seconds["reference"]]
        note = (
            {}
            if len(some) == len(cells)
            else {"reference timed on": f"{len(some)} of {len(cells)} cells, scaled to all"}
        )
        label = "hopping: back-patching of all pairs" + (", batched reference" if together else "")
        out.append(row(label, "texts/s", seconds, len(cells) * len(ids), agreed, reference=against, **note))
    return out
