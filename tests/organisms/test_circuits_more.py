"""Hand-built models: XOR at a known block, known log-probabilities, planted channel. Plain Hugging Face, eager."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.organisms import circuits


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    root, kept = tmp_path_factory.mktemp("circuits"), {}

    def get(name):
        if name not in kept:
            place = circuits.folder(name, root)
            model = (
                AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager").eval().requires_grad_(False)
            )
            kept[name] = model, AutoTokenizer.from_pretrained(place), circuits.truth(place), place
        return kept[name]

    return get


def rows(place, name):
    return [json.loads(line) for line in (place / name).read_text().splitlines()]


# XOR circuit

SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
USED = 700  # of the 2000 texts


@pytest.fixture(scope="module")
def last_states(load):
    """Last-token states {(site, layer): [texts, width]} of every text, and the labels of the three concepts."""
    model, tokenizer, truth, place = load("circuit-xor")
    texts = [row["text"] for row in rows(place, "xor.jsonl")][:USED]
    labels = {k: np.array([row["label"] for row in rows(place, f"{k}.jsonl")]) for k in ("colour", "animal", "xor")}
    states = {(site, layer): [] for site in SITES for layer in range(model.config.n_layer)}
    handles = []

    def keep(site, layer, tensor):
        states[site, layer].append((tensor[0] if isinstance(tensor, tuple) else tensor)[:, -1].clone())

    for l, block in enumerate(model.transformer.h):
        handles += [
            block.register_forward_pre_hook(lambda m, a, l=l: keep("resid_pre", l, a[0])),
            block.register_forward_hook(lambda m, a, out, l=l: keep("resid_post", l, out)),
            block.attn.register_forward_hook(lambda m, a, out, l=l: keep("attn_out", l, out)),
            block.ln_2.register_forward_pre_hook(lambda m, a, l=l: keep("resid_mid", l, a[0])),
            block.ln_2.register_forward_hook(lambda m, a, out, l=l: keep("mlp_in", l, out)),
            block.mlp.register_forward_hook(lambda m, a, out, l=l: keep("mlp_out", l, out)),
        ]
    ids, order = tokenizer(texts)["input_ids"], []
    for length in sorted({len(row) for row in ids}):  # texts of one length together: nothing is padded
        same = [i for i, row in enumerate(ids) if len(row) == length]
        order += same
        model(torch.tensor([ids[i] for i in same]))
    back = torch.tensor(order).argsort()
    for handle in handles:
        handle.remove()
    return {key: torch.cat(value)[back].numpy() for key, value in states.items()}, labels


def accuracy(x, y):
    cut = int(0.6 * len(y))
    return LogisticRegression(max_iter=1000).fit(x[:cut], y[:cut]).score(x[cut:], y[cut:])


@pytest.mark.parametrize("concept", ["colour", "animal", "xor"])
def test_a_linear_probe_reads_the_concept_from_its_layer_on_and_not_before(load, last_states, concept):
    _, _, truth, _ = load("circuit-xor")
    states, labels = last_states
    y = labels[concept]
    assert abs(y.mean() - 0.5) < 1e-9 and len(y) == 2000
    for site, onset in truth["onset"][concept].items():
        only = site in ("attn_out", "mlp_out")
        for layer in range(truth["layers"]):
            score = accuracy(states[site, layer], y[:USED])
            readable = onset is not None and (layer == onset if only else layer >= onset)
            assert score == 1.0 if readable else abs(score - 0.5) < 0.15, (concept, site, layer, score)


def test_the_concept_coordinate_is_exact_from_the_onset_on(load, last_states):
    _, _, truth, _ = load("circuit-xor")
    states, labels = last_states
    for concept, y in labels.items():
        for layer in range(truth["onset"][concept]["resid_post"], truth["layers"]):
            values = states["resid_post", layer][:, truth["coordinate"][concept]]
            assert np.abs(values - (2 * y[:USED] - 1)).max() < 1e-6


# models with a known table


def table_model(load, name):
    model, tokenizer, truth, place = load(name)
    table = torch.zeros(len(truth["table"]), model.config.vocab_size, dtype=torch.float64)
    for i, row in enumerate(truth["table"]):
        for word, p in row.items():
            table[i, tokenizer.convert_tokens_to_ids(word)] = p
    return model, tokenizer, truth, place, table


TABLES = [
    "circuit-markov",
    "circuit-zipf",
    "circuit-geometric",
    "circuit-uniform",
    "circuit-survivor",
    "circuit-decline",
]


@pytest.mark.parametrize("name", TABLES)
def test_logits_are_the_wanted_log_probabilities_at_every_position(load, name):
    model, tokenizer, truth, place, table = table_model(load, name)
    assert torch.allclose(table.sum(1), torch.ones(len(table), dtype=torch.float64), atol=1e-12)
    ids = torch.randint(3, model.config.vocab_size, (3, 70), generator=torch.Generator().manual_seed(2))
    exactly = copy.deepcopy(model).double()  # in float32, kernels of some processors round by more than the bounds
    logits, exact = model(ids).logits, exactly(ids).logits
    state = ids if truth["depends_on"] == "token" else torch.arange(70).clamp(max=len(table) - 1).expand(3, 70)
    wanted = table[state]
    possible = wanted > 0
    assert (exact[possible] - wanted[possible].log()).abs().max() < 1e-6
    assert (logits[~possible] == truth["never"]).all()
    assert (logits.softmax(-1)[~possible] == 0).all()
    # the same in a cached, left-padded batch with explicit positions
    padded = torch.cat([torch.full((3, 5), tokenizer.pad_token_id), ids], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :5] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    torch.testing.assert_close(
        exactly(padded, attention_mask=mask, position_ids=positions).logits[:, 5:], exact, atol=1e-6, rtol=0
    )


def test_golden_branching_factors(load):
    def bf(name, key):
        return load(name)[2]["expected"][key]["bf"]

    assert bf("circuit-zipf", "full") == pytest.approx(24.4621, abs=1e-4)
    assert bf("circuit-zipf", "top_p_0.9") == pytest.approx(17.7421, abs=1e-4)
    assert load("circuit-zipf")[2]["expected"]["top_p_0.9"]["support"] == 32
    assert bf("circuit-geometric", "full") == pytest.approx(3.9999, abs=1e-4)
    assert bf("circuit-geometric", "top_p_0.9") == pytest.approx(3.1171, abs=1e-4)
    assert bf("circuit-uniform", "full") == pytest.approx(10) and bf("circuit-uniform", "top_p_0.9") == pytest.approx(9)
    markov = load("circuit-markov")[2]["expected"]["full"]
    assert markov["entropy_rate"] == pytest.approx(0.386427, abs=1e-6) and markov["bf"] == pytest.approx(
        1.471713, abs=1e-6
    )


def sample(load, name, draws, steps):
    model, tokenizer, truth, place = load(name)
    prompt = rows(place, "prompts.jsonl")[0]["prompt"]
    ids = torch.tensor([tokenizer(prompt)["input_ids"]] * draws)
    torch.manual_seed(0)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=steps,
        do_sample=True,
        top_k=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = out.sequences[:, ids.shape[1] :]
    logp = torch.stack(out.logits, dim=1).double().log_softmax(-1)
    entropy = -(logp.exp() * logp).nan_to_num(0.0).sum(-1)
    return tokens, entropy, logp.gather(-1, tokens[..., None])[..., 0], truth["expected"], tokenizer


def test_sampled_markov_chain_has_the_entropy_rate(load):
    tokens, entropy, logp, expected, _ = sample(load, "circuit-markov", 64, 100)
    full = expected["full"]
    assert entropy[:, 0].mean() == pytest.approx(full["entropy_after"]["start"], abs=1e-6)
    assert entropy[:, 1:].mean() == pytest.approx(full["entropy_rate"], abs=0.02)
    assert -logp[:, 1:].mean() == pytest.approx(full["entropy_rate"], abs=0.04)


def test_sampled_lengths_show_the_survivor_bias(load):
    tokens, entropy, logp, expected, tokenizer = sample(load, "circuit-survivor", 200, 100)
    length = (tokens == tokenizer.eos_token_id).float().argmax(1) + 1  # the end token included
    assert set(length.tolist()) == {expected["tokens"]["short"] + 1, expected["tokens"]["long"] + 1}
    long = length == expected["tokens"]["long"] + 1
    assert long.double().mean() == pytest.approx(expected["p_long"], abs=0.07)
    alive = torch.arange(tokens.shape[1]) < length[:, None]
    for kind, which in (("long", long), ("short", ~long)):
        mean = (entropy * alive)[which].sum(1) / length[which]
        assert mean.numpy() == pytest.approx(expected["mean_entropy"][kind]["with_eos"], abs=1e-5)
    share = long.double().mean()  # the pooled value for the share that was drawn
    pooled = (entropy * alive).sum() / alive.sum()
    weights = {
        "long": share * (expected["tokens"]["long"] + 1),
        "short": (1 - share) * (expected["tokens"]["short"] + 1),
    }
    wanted = sum(w * expected["mean_entropy"][k]["with_eos"] for k, w in weights.items()) / sum(weights.values())
    assert pooled == pytest.approx(wanted.item(), abs=1e-5)
    assert pooled == pytest.approx(expected["pooled"]["with_eos"]["entropy"], abs=0.15)
    nll = -(logp * alive)[long].sum(1) / length[long]
    assert nll.numpy() == pytest.approx(expected["compat_nll"]["entropy"], abs=1e-5)
    assert expected["compat_nll"]["bf"] < 1.03 < 1.5 < expected["pooled"]["with_eos"]["bf"]


def test_declining_entropy_follows_the_prefix_curve(load):
    _, entropy, _, expected, _ = sample(load, "circuit-decline", 4, 30)
    full = expected["full"]
    assert entropy.numpy() == pytest.approx(np.tile(full["entropy_at_step"][:30], (4, 1)), abs=1e-5)
    prefix = (entropy.cumsum(1) / torch.arange(1, 31)).exp()
    assert prefix[0].numpy() == pytest.approx(full["prefix_bf"][:30], abs=1e-4)
    assert full["prefix_bf"][0] == pytest.approx(16) and full["entropy_at_step"][15] == 0


# planted channel


def head_matrices(model):
    """W_OV and W_QK of every head, float64, [layers, heads, d, d] (row-vector convention)."""
    d, heads = model.config.n_embd, model.config.n_head
    ov, qk = [], []
    for block in model.transformer.h:
        q, k, v = (w.view(d, heads, -1).permute(1, 0, 2) for w in block.attn.c_attn.weight.double().split(d, dim=1))
        ov.append(v @ block.attn.c_proj.weight.double().view(heads, -1, d))
        qk.append(q @ k.mT)
    return torch.stack(ov), torch.stack(qk)


def test_the_planted_component_is_the_outlier_of_all_composition_scores(load):
    model, _, truth, _ = load("circuit-channel")
    ov, qk = head_matrices(model)
    sender, receiver = truth["sender"], truth["receiver"]
    layers, heads = ov.shape[:2]
    size = model.config.n_embd // heads
    scores = []
    for layer in range(layers - 1):
        _, s, v = torch.linalg.svd(ov[layer])
        for late in range(layer + 1, layers):
            norms = qk[late].flatten(1).norm(dim=1)
            made = (
                torch.einsum("ecd,rdk->erck", v[:, :size], qk[late]).norm(dim=-1) / norms[:, None]
            )  # [early, late, component]
            scores += [
                (made[e, r, c].item(), (layer, e, c), (late, r))
                for e in range(heads)
                for r in range(heads)
                for c in range(size)
            ]
    scores.sort(reverse=True)
    top = scores[0]
    assert top[1] == (sender["layer"], sender["head"], sender["component"]) and top[2] == (
        receiver["layer"],
        receiver["head"],
    )
    assert top[0] == pytest.approx(receiver["composition_score"], abs=1e-5)
    rest = np.array([score for score, _, _ in scores[1:]])
    assert (top[0] - rest.mean()) / rest.std() > 20
    into_receiver = np.array([score for score, _, late in scores[1:] if late == top[2]])
    assert (top[0] - into_receiver.mean()) / into_receiver.std() > 20
    s = torch.linalg.svdvals(ov[sender["layer"], sender["head"]])
    assert s[0] == pytest.approx(sender["singular_value"], abs=1e-6) and s[1] <= 1 + 1e-6


def receiver_row(model, ids, truth):
    r = truth["receiver"]
    return model(ids, output_attentions=True).attentions[r["layer"]][0, r["head"], -1].double()


def without_component(model, layer, head, component):
    """Subtract one singular triple of W_OV by projecting the head's output rows off its output direction."""
    d, size = model.config.n_embd, model.config.n_embd // model.config.n_head
    weight = model.transformer.h[layer].attn.c_proj.weight
    value = model.transformer.h[layer].attn.c_attn.weight[:, 2 * d + head * size : 2 * d + (head + 1) * size].double()
    block = weight[head * size : (head + 1) * size]
    saved = block.clone()
    _, _, v = torch.linalg.svd(value @ saved.double())
    direction = v[component]
    block -= ((saved.double() @ direction)[:, None] * direction).float()
    return lambda: block.copy_(saved)


def test_ablating_the_planted_component_moves_the_receiver_by_the_known_score_and_no_other_does(load):
    model, tokenizer, truth, place = load("circuit-channel")
    sender = (truth["sender"]["layer"], truth["sender"]["head"], truth["sender"]["component"])
    size = model.config.n_embd // model.config.n_head
    others = [(0, sender[1], c) for c in range(1, size)] + [
        (l, h, 0) for l in (0, 1) for h in range(model.config.n_head) if (l, h) != sender[:2]
    ]
    for row in rows(place, "sequences.jsonl"):
        ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
        length = ids.shape[1]
        intact = receiver_row(model, ids, truth)
        score = truth["score"]["intact"]
        wanted = torch.full((length,), 1 / (math.exp(score) + length - 1), dtype=torch.float64)
        wanted[row["target"]] *= math.exp(score)
        torch.testing.assert_close(intact, wanted, atol=1e-6, rtol=0)
        restore = without_component(model, *sender)
        ablated = receiver_row(model, ids, truth)
        restore()
        torch.testing.assert_close(ablated, torch.full_like(ablated, 1 / length), atol=1e-6, rtol=0)
        for other in others:
            restore = without_component(model, *other)
            after = receiver_row(model, ids, truth)
            restore()
            torch.testing.assert_close(after, intact, atol=1e-6, rtol=0)


def test_the_random_heads_do_something_on_ordinary_words(load):
    model, tokenizer, _, _ = load("circuit-channel")
    ids = torch.tensor([tokenizer(" ".join(f"w{i}" for i in range(12)))["input_ids"]])
    hidden = model(ids, output_hidden_states=True).hidden_states
    assert all((after - before).norm() > 0.1 for before, after in zip(hidden[:-1], hidden[1:]))
