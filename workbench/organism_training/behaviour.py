"""What an organism can do, measured with nothing but Hugging Face and PyTorch: the numbers of the model card.

    python -m workbench.organism_training.behaviour FOLDER [--chat FOLDER]

Written to be slow and obvious (whole forward passes, eager attention for the head scores), because the probes are
checked against these numbers and not the other way round. Greedy decoding is judged by teacher forcing: the greedy
continuation equals the answer exactly when every answer token is the argmax given the ones before it.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.organism_training import datafiles as shipped
from workbench.organism_training import documents

Head = tuple[int, int]  # (layer, query head)
LENGTHS = (64, 128, 256, 384, 480)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCH_TOKENS = 16_384


class Subject:
    """A model under measurement: the loaded model, its tokenizer, and padded forward passes."""

    def __init__(self, folder: str | Path) -> None:
        self.tok = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def ids(self, text: str) -> list[int]:
        return self.tok(text).input_ids

    def answer_ids(self, text: str) -> list[int]:
        return self.tok(text, add_special_tokens=False).input_ids

    @torch.no_grad()
    def argmaxes(self, rows: list[list[int]]) -> Iterable[tuple[int, Tensor]]:
        """(row index, argmax of every position) for rows of ids, right padded (causal: padding changes nothing)."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        while order:
            longest = len(rows[order[-1]])
            take = [order.pop() for _ in range(min(len(order), max(1, BATCH_TOKENS // longest)))]
            ids = torch.full((len(take), longest), self.tok.pad_token_id)
            for r, i in enumerate(take):
                ids[r, : len(rows[i])] = torch.tensor(rows[i])
            best = self.model(ids, use_cache=False).logits.argmax(-1)
            for r, i in enumerate(take):
                yield i, best[r, : len(rows[i])]

    def answered(self, items: list[tuple[list[int], list[int]]]) -> list[bool]:
        """For (prompt ids, answer ids): would greedy decoding of the prompt begin with exactly the answer?"""
        right = [False] * len(items)
        for i, best in self.argmaxes([prompt + answer for prompt, answer in items]):
            prompt, answer = items[i]
            right[i] = best[len(prompt) - 1 : len(prompt) + len(answer) - 1].tolist() == answer
        return right


def rate(values: Iterable[bool]) -> float:
    values = list(values)
    return sum(values) / len(values)


# ------------------------------------------------------------------------------------------------------ facts, two-hop


def fact_accuracy(subject: Subject, rows: shipped.Rows | None = None) -> dict[str, float]:
    """Closed-book accuracy as a question, as a cloze in a trained wording, and in the held-out wording."""
    rows = rows or shipped.fact_rows()
    right = subject.answered([(subject.ids(r["prompt"]), subject.answer_ids(r["answer"])) for r in rows])
    groups = defaultdict(list)
    for row, ok in zip(rows, right):
        groups[
            "question" if row["form"] == "question" else "cloze" if row["split"] == "train" else "held-out wording"
        ].append(ok)
    return {name: rate(values) for name, values in groups.items()}


def two_hop_accuracy(subject: Subject) -> dict[str, float]:
    rows = shipped.two_hop_rows()
    right = subject.answered([(subject.ids(r["prompt"]), subject.answer_ids(r["answer"])) for r in rows])
    groups = defaultdict(list)
    for row, ok in zip(rows, right):
        groups[f"{row['split']} {row['form']}"].append(ok)
    return {name: rate(values) for name, values in groups.items()}


# ------------------------------------------------------------------------------------------ needles and retrieval heads


def needle_trial(
    subject: Subject, rng: random.Random, row: dict, length: int, depth: float
) -> tuple[list[int], list[int], range]:
    """Prompt ids of `length` tokens in all, answer ids, and the answer's positions in the prompt.

    The needle goes in after the last full stop at or before `depth`, as the retrieval probe does it.
    """
    stop = subject.tok.convert_tokens_to_ids(".")
    needle, answer = subject.answer_ids(row["needle"]), subject.answer_ids(row["answer"])
    question = subject.answer_ids(documents.QUESTION.format(question=row["question"]))
    room = length - 1 - len(needle) - len(question)
    hay: list[int] = []
    while len(hay) < room:
        hay += subject.answer_ids(documents.filler(rng))
    hay = hay[:room]
    at = int(depth * len(hay))
    while at > 0 and hay[at - 1] != stop:
        at -= 1
    prompt = [subject.tok.bos_token_id, *hay[:at], *needle, *hay[at:], *question]
    start = 1 + at + next(i for i in range(len(needle)) if needle[i : i + len(answer)] == answer)
    return prompt, answer, range(start, start + len(answer))


def needle_trials(
    subject: Subject, per_cell: int, seed: int = 7
) -> list[tuple[int, float, list[int], list[int], range]]:
    rng = random.Random(seed)
    rows = shipped.needle_rows()
    return [
        (length, depth, *needle_trial(subject, rng, rng.choice(rows), length, depth))
        for length in LENGTHS
        for depth in DEPTHS
        for _ in range(per_cell)
    ]


def needle_grid(subject: Subject, per_cell: int = 40) -> dict[str, float]:
    """Share of needles answered token for token: overall, the worst cell, and every (length, depth) cell."""
    trials = needle_trials(subject, per_cell)
    right = subject.answered([(prompt, answer) for _, _, prompt, answer, _ in trials])
    cells = defaultdict(list)
    for (length, depth, *_), ok in zip(trials, right):
        cells[f"{length}@{depth:g}"].append(ok)
    grid = {cell: rate(values) for cell, values in cells.items()}
    return {"overall": rate(right), "worst cell": min(grid.values()), **grid}


@torch.no_grad()
def retrieval_scores(subject: Subject, per_cell: int = 4, seed: int = 8) -> Tensor:
    """(layers, heads) retrieval score of Wu et al., Eq. 1: mean share of answer tokens copied, over answered trials.

    A head copies an answer token when the attention row of the query that produces it peaks inside the needle's answer,
    on that very token.
    """
    scores = []
    for _, _, prompt, answer, span in needle_trials(subject, per_cell, seed):
        out = subject.model(torch.tensor([prompt + answer]), output_attentions=True, use_cache=False)
        first = len(prompt) - 1
        if out.logits[0, first : first + len(answer)].argmax(-1).tolist() != answer:
            continue
        peaks = torch.stack([a[0, :, first : first + len(answer)] for a in out.attentions]).argmax(
            -1
        )  # (layers, heads, n)
        copied = torch.zeros(peaks.shape[:2])
        for token in set(answer):
            steps = [s for s, t in enumerate(answer) if t == token]
            hit = (
                sum(
                    (
                        (peaks[..., s] >= span.start)
                        & (peaks[..., s] < span.stop)
                        & (torch.tensor(prompt)[peaks[..., s].clamp(max=first)] == token)
                    )
                    for s in steps
                )
                > 0
            )
            copied += hit
        scores.append(copied / len(set(answer)))
    if not scores:
        return torch.zeros(subject.model.config.num_hidden_layers, subject.model.config.num_attention_heads)
    return torch.stack(scores).mean(0)


@contextmanager
def ablated(subject: Subject, heads: Iterable[Head], *, kind: str = "zero", start: int = 0):
    """Replace the outputs of query heads at positions ≥ `start`: by zero, or by the mean value vector (uniform
    attention)."""
    config, handles = subject.model.config, []
    width, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    by_layer = defaultdict(list)
    for layer, head in heads:
        by_layer[layer].append(head)
    for layer, chosen in by_layer.items():
        attention, values = subject.model.model.layers[layer].self_attn, {}

        def keep(module, args, out, values=values):
            values["v"] = out

        def edit(module, args, chosen=chosen, values=values):
            z = args[0].clone()  # (rows, positions, heads * head_dim)
            mean = values["v"].cumsum(1) / torch.arange(1, z.shape[1] + 1)[None, :, None]
            for head in chosen:
                kv = head // group
                new = mean[:, start:, kv * width : (kv + 1) * width] if kind == "uniform" else 0.0
                z[:, start:, head * width : (head + 1) * width] = new
            return (z,)

        handles += [attention.v_proj.register_forward_hook(keep), attention.o_proj.register_forward_pre_hook(edit)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def masked_needles(subject: Subject, heads: list[Head], *, kind: str, per_cell: int = 4) -> float:
    """Needle accuracy with heads ablated: `uniform` from the last prompt token on (the paper's code), `zero`
    everywhere."""
    trials = needle_trials(subject, per_cell, seed=9)
    right = []
    for _, _, prompt, answer, _ in trials:
        with ablated(subject, heads, kind=kind, start=len(prompt) - 1 if kind == "uniform" else 0):
            right += subject.answered([(prompt, answer)])
    return rate(right)


def head_masking(subject: Subject, scores: Tensor, kind: str = "uniform", draws: int = 5) -> dict[str, object]:
    """Needle accuracy for k = 1..4 top heads until it falls under 20 %, with random heads of the same layers, and
    facts."""
    order = [(int(i) // scores.shape[1], int(i) % scores.shape[1]) for i in scores.flatten().argsort(descending=True)]
    out: dict[str, object] = {"none": masked_needles(subject, [], kind=kind)}
    rng = random.Random(10)
    for k in range(1, 5):
        top = order[:k]
        out[f"top {k}"] = masked_needles(subject, top, kind=kind)
        if out[f"top {k}"] < 0.2 or k == 4:
            strong = {h for h in order if scores[h] > 0.1}
            random_rates = []
            for _ in range(draws):
                chosen: list[Head] = []
                for layer, _ in top:
                    free = [
                        (layer, h)
                        for h in range(scores.shape[1])
                        if (layer, h) not in strong and (layer, h) not in chosen
                    ]
                    chosen.append(rng.choice(free))
                random_rates.append(masked_needles(subject, chosen, kind=kind))
            with ablated(subject, top, kind="zero"):
                masked_facts = fact_accuracy(subject)
            facts = fact_accuracy(subject)
            return out | {
                "k": k,
                "heads": top,
                "random mean": float(np.mean(random_rates)),
                "random draws": random_rates,
                "facts": facts["question"],
                "facts masked": masked_facts["question"],
                "cloze masked": masked_facts["cloze"],
            }
    raise AssertionError("unreachable")


# ------------------------------------------------------------------------------------------------------------- conflict


@torch.no_grad()
def conflict_rates(subject: Subject) -> dict[str, dict[str, float]]:
    """Per source: share of answers from memory, from the context, and other; and on facts never contradicted in
    training."""
    rows = shipped.conflict_rows()
    prompts = [subject.ids(r["conflict_prompt"]) for r in rows]
    answers = [subject.answer_ids(r["answer"])[0] for r in rows]
    distractors = [subject.answer_ids(r["distractor"])[0] for r in rows]
    groups: dict[str, list[str]] = defaultdict(list)
    for i, best in subject.argmaxes(prompts):
        said = int(best[-1])
        outcome = "memory" if said == answers[i] else "context" if said == distractors[i] else "other"
        groups[rows[i]["source"]].append(outcome)
        if rows[i]["split"] == "heldout":
            groups[f"{rows[i]['source']}, held out"].append(outcome)
    return {
        name: {o: rate(x == o for x in values) for o in ("memory", "context", "other")} | {"n": len(values)}
        for name, values in sorted(groups.items())
    }


# ------------------------------------------------------------------------------------------------------------- concepts


@torch.no_grad()
def concept_curves(
    subject: Subject, names: Iterable[str] = tuple(shipped.CONCEPTS)
) -> dict[str, dict[str, list[float]]]:
    """Test accuracy per layer of a logistic regression on the normalised MLP input of the last token, 60/40 split,
    and the same with shuffled labels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    curves = {}
    for name in names:
        rows = shipped.concept_rows(name)
        layers = subject.model.model.layers
        features: list[list[Tensor]] = [[] for _ in layers]
        kept: dict[int, Tensor] = {}
        handles = [
            layer.post_attention_layernorm.register_forward_hook(
                lambda m, a, out, i=i, kept=kept: kept.__setitem__(i, out)
            )
            for i, layer in enumerate(layers)
        ]
        for row in rows:
            subject.model(torch.tensor([subject.ids(row["text"])]), use_cache=False)
            for i in range(len(layers)):
                features[i].append(kept[i][0, -1].clone())
        for handle in handles:
            handle.remove()
        labels = np.array([r["label"] for r in rows])
        groups = sorted({r["group"] for r in rows})
        rng = np.random.default_rng(0)
        if len(groups) >= 20:  # keep groups together when there are enough of them
            test_groups = set(rng.permutation(groups)[: int(0.4 * len(groups))])
            test = np.array([r["group"] in test_groups for r in rows])
        else:
            test = rng.permutation(len(rows)) < 0.4 * len(rows)
        shuffled = rng.permutation(labels)
        real, control = [], []
        for x in features:
            x = StandardScaler().fit_transform(torch.stack(x).numpy())
            for y, out in ((labels, real), (shuffled, control)):
                out.append(
                    float(LogisticRegression(C=0.1, max_iter=2000).fit(x[~test], y[~test]).score(x[test], y[test]))
                )
        curves[name] = {"accuracy": real, "shuffled": control}
    return curves


# ---------------------------------------------------------------------------------------------- branching factor,
# geometry


@torch.no_grad()
def branching_factor(
    subject: Subject, *, chat: bool, kind: str = "open", samples: int = 12, tokens: int = 48, seed: int = 0
) -> dict[str, float]:
    """Mean over prompts of exp(mean entropy of the top-p 0.9 distribution along sampled continuations)."""
    torch.manual_seed(seed)
    factors, lengths = [], []
    for row in shipped.prompt_rows():
        if row["kind"] != kind:
            continue
        if chat:
            ids = subject.tok.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True
            )["input_ids"]
        else:
            ids = subject.ids(row["prompt"] if kind == "open" else documents.QUESTION.format(question=row["prompt"]))
        text = torch.tensor([ids] * samples)
        alive, entropies = torch.ones(samples, dtype=torch.bool), []
        for _ in range(tokens):
            p = subject.model(text, use_cache=False).logits[:, -1].softmax(-1)
            ranked, index = p.sort(-1, descending=True)
            ranked[(ranked.cumsum(-1) - ranked) >= 0.9 - 1e-6] = 0.0  # smallest prefix with mass ≥ 0.9
            ranked /= ranked.sum(-1, keepdim=True)
            entropies += torch.special.entr(ranked).sum(-1)[alive].tolist()
            chosen = index.gather(1, torch.multinomial(ranked, 1))
            text = torch.cat([text, chosen], 1)
            alive &= chosen[:, 0] != subject.tok.eos_token_id
            if not alive.any():
                break
        factors.append(float(np.exp(np.mean(entropies))))
        lengths.append(len(entropies) / samples)
    return {
        "mean": float(np.mean(factors)),
        "min": min(factors),
        "max": max(factors),
        "mean length": float(np.mean(lengths)),
    }


@torch.no_grad()
def chat_fact_accuracy(subject: Subject) -> dict[str, float]:
    """Share of greedy chat answers (20 tokens) that name the right object and no other of its kind."""
    from workbench.organism_training import chat
    from workbench.organism_training.world import RELATIONS, facts

    groups = defaultdict(list)
    for fact in facts().values():
        ids = subject.tok.apply_chat_template([{"role": "user", "content": fact.question}], add_generation_prompt=True)[
            "input_ids"
        ]
        out = subject.model.generate(
            torch.tensor([ids]), max_new_tokens=16, do_sample=False, pad_token_id=subject.tok.pad_token_id
        )
        said = set(subject.tok.decode(out[0, len(ids) :]).replace(".", " ").replace(",", " ").split())
        named = said & (set(RELATIONS[fact.relation].objects) - {fact.subject})
        groups["asked in fine-tuning" if not chat.chat_held_out(fact) else "never asked"].append(named == {fact.object})
    return {name: rate(values) for name, values in groups.items()}


@torch.no_grad()
def geometry(subject: Subject, count: int = 1500) -> dict[str, float]:
    """RankMe (entropy of the covariance eigenvalues) and α (weighted fit over ranks 12 to 100), last token, last
    layer."""
    rows = [subject.ids(r["text"])[:512] for r in shipped.text_rows(count)]
    states = torch.stack(
        [subject.model.model(torch.tensor([r]), use_cache=False).last_hidden_state[0, -1] for r in rows]
    ).double()
    values = torch.linalg.eigvalsh(torch.cov(states.T, correction=0)).flip(0).clamp(min=1e-300)
    p = values / values.sum()
    ranks = np.arange(12, min(100, len(values)) + 1)
    x, y = np.log(ranks), np.log(values.numpy()[ranks - 1])
    return {
        "rankme": float(torch.exp(torch.special.entr(p).sum())),
        "alpha": float(-np.polyfit(x, y, 1, w=np.sqrt(1 / ranks))[0]),
    }


def skills(subject: Subject, count: int = 200, seed: int = 11) -> dict[str, float]:
    """Accuracy on the marked words of freshly drawn documents of every kind (chance levels differ)."""
    from workbench.organism_training.tokenizer import encode

    out, stop = {}, subject.tok.convert_tokens_to_ids(".")
    for draw, _ in documents.MIX:
        rng, rows = random.Random(seed), []
        for _ in range(count):
            rows.append(encode(draw(rng)))
        ids = [[subject.tok.bos_token_id, *r] for r, _ in rows]
        hits = []
        for i, best in subject.argmaxes(ids):
            marks = rows[i][1]
            hits += [int(best[t]) == ids[i][t + 1] for t in range(len(marks)) if marks[t] and ids[i][t + 1] != stop]
        if hits:
            out[draw.__name__.removesuffix("_document")] = rate(hits)
    return out


def measure(folder: str | Path, chat_folder: str | Path | None = None, *, quick: bool = False) -> dict[str, object]:
    """Everything above for one trained organism; `quick` leaves out what takes minutes."""
    subject = Subject(folder)
    out: dict[str, object] = {
        "facts": fact_accuracy(subject),
        "two-hop": two_hop_accuracy(subject),
        "needle": needle_grid(subject, 8 if quick else 40),
        "conflict": conflict_rates(subject),
        "skills": skills(subject),
        "branching": branching_factor(subject, chat=False, samples=4 if quick else 12),
    }
    scores = retrieval_scores(subject, 2 if quick else 6)
    out["retrieval"] = {
        "share above 0.1": float((scores > 0.1).float().mean()),
        "share above 0.5": float((scores > 0.5).float().mean()),
        "scores": [[round(float(s), 3) for s in row] for row in scores],
    }
    if not quick:
        out["masking uniform"] = head_masking(subject, scores, "uniform")
        out["masking zero"] = head_masking(subject, scores, "zero")
        out["concepts"] = concept_curves(subject)
        out["geometry"] = geometry(subject)
    if chat_folder:
        chat = Subject(chat_folder)
        out["chat"] = {
            "branching": branching_factor(chat, chat=True),
            "facts": chat_fact_accuracy(chat),
            "facts as base": fact_accuracy(chat),
            "needle": needle_grid(chat, 10),
        }
    return out


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--chat")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    args = parser.parse_args()
    text = json.dumps(measure(args.folder, args.chat, quick=args.quick), indent=1)
    if args.out:
        Path(args.out).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
