"""The rows that are measured on one card: each is ours against what a script in plain PyTorch and Hugging Face does on
the same card, with a gate that both agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from probes.concept_depth import linear_probe
from probes.representation_geometry import spectra
from tests.benchmarks import capture as capture_benchmark
from tests.benchmarks.card import Card
from tests.benchmarks.generation import TOP_P, generate
from tests.benchmarks.patching import one_pass_per_head
from workbench.engine.capture import logits
from workbench.engine.evaluation import token_losses
from workbench.engine.generate import greedy, sample
from workbench.engine.hf import stream
from workbench.engine.layer_windows import Window
from workbench.engine.patching import direct_effects, total_effects
from workbench.engine.sampling import Rule
from workbench.engine.window_effects import window_effects
from workbench.models.attention import observe
from workbench.models.sites import Site, sites
from workbench.sae.autoencoder import Sae

# nats: plain scores in bfloat16 of 16 and more are an eighth apart, and a reference is made of two
ROUNDED = 0.25


@dataclass(eq=False)
class Case:
    """One row. `work` is what both sides do in one call, in `unit` per second (the reference may do a `part` of it);
    `agree` raises AssertionError where the two differ, and says how far they are apart."""

    name: str
    unit: str
    work: float
    against: str
    agree: Callable[[], str]
    reference: Callable[[], object]
    ours: Callable[[], object]
    part: float = 1.0
    operations: float = 0.0  # of one call of ours, for the share of the matmul peak
    bytes: float = 0.0  # that one call of ours has to read, for the share of the bandwidth
    steps: int = 1  # by which launches and waits are divided
    per: str = "pass"
    details: dict = field(default_factory=dict)


def within(what: str, worst: float, limit: float) -> str:
    """How far apart, in words; AssertionError where that is too far or no number."""
    if not worst <= limit:
        raise AssertionError(f"{what} differ by {worst:.2g} (at most {limit:.2g} allowed): no speed is reported")
    return f"{what} within {worst:.0e}"


def captures(card: Card) -> list[Case]:
    model, ids = card.model, card.prompts(card.shape.prompts, card.shape.length)
    inputs, tokens = torch.tensor(ids, device=card.device), len(ids) * len(ids[0])

    def plain() -> None:
        with torch.no_grad():
            card.plain.model(inputs, use_cache=False)

    def ours(wanted, positions) -> None:
        for _ in stream(model, ids, wanted, positions=positions, max_tokens=tokens):
            pass

    last = [f"resid_post.{model.n_layers - 1}"], "all"
    every = sites("resid_post", range(model.n_layers)), "last"
    return [
        Case(
            f"capture: {name}",
            "tokens/s",
            tokens,
            "plain forward, nothing kept",
            lambda w=wanted, p=positions: capture_benchmark.agree(model, inputs, ids, w, p),
            plain,
            lambda w=wanted, p=positions: ours(w, p),
            operations=2 * card.weights * tokens,
        )
        for name, (wanted, positions) in {
            "one residual site, every token": last,
            "all residual sites, last token": every,
        }.items()
    ]


def decoding(card: Card) -> list[Case]:
    model, s = card.model, card.shape
    prompt = card.prompts(1, s.prompt)[0]
    tolerance, rule = 1e-3 if card.exact else 5e-2, Rule(top_p=TOP_P)
    inputs = torch.tensor([prompt] * s.rows, device=card.device)
    kept = 2 * s.layers * s.groups * (s.width // s.heads) * (s.prompt + s.new / 2) * s.rows
    read = (card.weights + s.width * s.vocabulary + kept) * torch.finfo(s.dtype).bits / 8 * s.new

    def teacher_forced(text: list[int]) -> torch.Tensor:
        with torch.no_grad():
            scores = card.plain(torch.tensor([prompt + text], device=card.device)).logits[0, len(prompt) - 1 : -1]
        return scores.float().cpu()

    def sampled():
        return sample(model, [prompt], samples=s.rows, max_new_tokens=s.new, rule=rule, eos=False)

    def statistics() -> str:
        found = sampled()
        text = found.tokens(0, 0)
        log_p = teacher_forced(text).double().log_softmax(-1)
        apart = (-(log_p.exp() * log_p).sum(-1) - found.statistic("entropy_full")[0, 0].double()).abs().median()
        return within("entropies (median, against one pass in float64)", float(apart), tolerance)

    def plainly(**options) -> torch.Tensor:
        with torch.no_grad():
            more = {"max_new_tokens": s.new, "pad_token_id": 0} | options
            return card.plain.generate(inputs, attention_mask=torch.ones_like(inputs), **more)

    def drawn() -> torch.Tensor:
        return plainly(do_sample=True, temperature=1.0, top_p=TOP_P, top_k=0)

    def read_out() -> list[list[int]]:
        with observe(model, lambda _layer, rows: rows.argmax(-1)):
            return greedy(model, [prompt] * s.rows, max_new_tokens=s.new, eos=False)

    def likeliest() -> str:
        text = read_out()[0]
        scores = teacher_forced(text)
        short = (scores.amax(-1) - scores.gather(1, torch.tensor(text)[:, None])[:, 0]).max()
        return within("scores of the tokens and the likeliest ones", float(short), 1e-3 if card.exact else 0.5)

    shared = {"operations": 2 * card.weights * s.rows * (s.new + s.prompt), "bytes": read}
    shared |= {"steps": s.new, "per": "step"}
    return [
        Case(
            f"decoding with statistics, {s.rows} rows",
            "tokens/s",
            s.rows * s.new,
            "plain generate, sampled, no statistics",
            statistics,
            drawn,
            sampled,
            **shared,
        ),
        Case(
            "decoding with statistics, against generate that keeps its scores",
            "tokens/s",
            s.rows * s.new,
            "generate(output_scores=True), statistics afterwards",
            statistics,
            lambda: generate(card.plain, prompt, s.rows, s.new),
            sampled,
            **shared,
        ),
        Case(
            f"greedy with attention readers, {s.rows} rows",
            "tokens/s",
            s.rows * s.new,
            "plain generate, greedy, attention not read",
            likeliest,
            lambda: plainly(do_sample=False),
            read_out,
            **shared,
        ),
    ]


def solver(card: Card) -> list[Case]:
    """Linear probes of all layers at once, against L-BFGS of PyTorch layer after layer."""
    s, draw = card.shape, torch.Generator().manual_seed(0)
    y = torch.arange(s.solved_rows) % 2
    x = [
        (torch.randn(s.solved_rows, s.solved_width, generator=draw) + 0.3 * y[:, None] * torch.randn(1, generator=draw))
        .to(card.device)
        .contiguous()
        for _ in range(s.solved)
    ]
    sign = (2.0 * y - 1).to(card.device)

    def loss(w: torch.Tensor, b: torch.Tensor, layer: int) -> torch.Tensor:
        return torch.nn.functional.softplus(-sign * (x[layer] @ w + b)).sum() + w @ w / 2

    def one_by_one(layers=range(s.solved)) -> list[float]:
        found = []
        for layer in layers:
            w = torch.zeros(s.solved_width, device=card.device, requires_grad=True)
            b = torch.zeros((), device=card.device, requires_grad=True)
            steps = torch.optim.LBFGS([w, b], max_iter=100, line_search_fn="strong_wolfe")

            def closure(w=w, b=b, layer=layer, steps=steps) -> torch.Tensor:
                steps.zero_grad()
                value = loss(w, b, layer)
                value.backward()
                return value

            steps.step(closure)
            found.append(float(loss(w.detach(), b.detach(), layer)))
        return found

    def ours() -> linear_probe.LinearProbes:
        return linear_probe.fit(x, y.numpy())

    def agree() -> str:
        found, (reference,) = ours(), one_by_one([0])
        mine = float(loss(found.coef[0].float().to(card.device), found.intercept[0].float().to(card.device), 0))
        return within("losses, as a share (ours above the reference)", max(0.0, mine / reference - 1), 1e-3)

    return [
        Case(
            "concept depth: solver",
            "layers/s",
            s.solved,
            "L-BFGS of PyTorch (float32, 100 iterations), layer by layer",
            agree,
            one_by_one,
            ours,
            per="run",
        )
    ]


def patching(card: Card) -> list[Case]:
    s, model = card.shape, card.model
    ids, donors = (card.prompts(s.patched, s.patched_length, seed) for seed in (1, 2))
    tokens, heads = card.prompts(s.patched, 2, 3), model.heads()
    some = heads[:: max(1, len(heads) // s.timed)]
    out = []
    for name, fast, frozen in (("direct", direct_effects, True), ("total", total_effects, False)):

        def slow(frozen=frozen) -> torch.Tensor:
            return one_pass_per_head(model, ids, donors, tokens, some, frozen=frozen, together=True)

        def agree(name=name, fast=fast, slow=slow) -> str:
            mine = fast(model, ids, donors, tokens).change()[:, [heads.index(h) for h in some]]
            return within(f"{name} effects (nats)", float((mine - slow()).abs().max()), 1e-4 if card.exact else ROUNDED)

        out.append(
            Case(
                f"patching: {name} effects of all heads",
                "heads/s",
                len(heads) * len(ids),
                f"one pass per head, all prompts in a batch, {len(some)} of {len(heads)} heads",
                agree,
                slow,
                lambda fast=fast: fast(model, ids, donors, tokens),
                part=len(some) / len(heads),
                per="run",
            )
        )
    return [*out, windows(card, ids, tokens)]


def windows(card: Card, ids: list[list[int]], tokens: list[list[int]]) -> Case:
    """Windows of layers switched off at the last position (information flow of knowledge conflict)."""
    model, size = card.model, max(1, card.shape.layers // 8)
    every = [Window(at, size, what) for what in ("attn_out", "mlp_out") for at in range(model.n_layers - size + 1)]
    some = every[:: max(1, len(every) // card.shape.timed)]
    wanted = torch.tensor(tokens)

    def slow() -> torch.Tensor:
        found = [logits(model, ids, edits=window.edits(model)).log_softmax(-1).gather(1, wanted) for window in some]
        return torch.stack(found, 1)

    def ours():
        return window_effects(model, ids, tokens, every)

    def agree() -> str:
        found = ours()
        mine = (found.patched_logits - found.patched_normaliser[..., None])[:, [every.index(w) for w in some]]
        return within("log-probabilities (nats)", float((mine - slow()).abs().max()), 1e-4 if card.exact else ROUNDED)

    return Case(
        "patching: windows of layers switched off",
        "windows/s",
        len(every) * len(ids),
        f"one pass per window, {len(some)} of {len(every)} windows",
        agree,
        slow,
        ours,
        part=len(some) / len(every),
        per="run",
    )


def encoding(card: Card) -> list[Case]:
    """Data selection's autoencoder: sparse rows, against its dense `encode`."""
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    s = card.shape
    torch.manual_seed(0)
    inner = TopKSAE(TopKSAEConfig(d_in=s.width, d_sae=s.features, k=s.active, device="cpu")).to(card.device)
    ours, x = Sae(inner, Site("resid_post", 0), "random"), torch.randn(s.encoded, s.width).to(card.device)

    def dense() -> torch.Tensor:
        with torch.no_grad():
            return inner.encode(x)

    def agree() -> str:
        apart = float((ours.encode(x[:32]).dense().cpu() - dense()[:32].cpu()).abs().max())
        return within("feature activations", apart, 1e-3)

    return [
        Case(
            "data selection: features of an autoencoder",
            "tokens/s",
            s.encoded,
            "SAE.encode of sae-lens, dense",
            agree,
            dense,
            lambda: ours.encode(x),
            operations=2 * s.width * s.features * s.encoded,
        )
    ]


def geometry(card: Card) -> list[Case]:
    width = min(card.shape.width, 2048)  # a singular value decomposition in float64 takes a card seconds
    n = 2 * width
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(0)) * torch.arange(1, width + 1) ** -0.5
    x = x.to(card.device)

    def by_svd() -> float:
        values = torch.linalg.svdvals((x - x.mean(0)).double()) ** 2
        return float(spectra.rankme(values.cpu().numpy()))

    def ours() -> float:
        moments = spectra.Moments.like(x[:256])
        for part in x.split(max(1, n // 8)):
            moments.add(part)
        return float(spectra.rankme(np.asarray(torch.linalg.eigvalsh(moments.covariance()).clamp(min=0).cpu())))

    return [
        Case(
            "representation geometry: spectrum alone",
            "spectra/s",
            1,
            "torch.linalg.svdvals of all features, float64",
            lambda: within("RankMe, as a share", abs(ours() / by_svd() - 1), 1e-6),
            by_svd,
            ours,
            per="spectrum",
        )
    ]


def losses(card: Card) -> list[Case]:
    """Losses over the whole vocabulary, against scores of every token held at once."""
    ids = card.prompts(card.shape.prompts, card.shape.length // 2)
    tokens = len(ids) * (len(ids[0]) - 1)

    def plain() -> list[torch.Tensor]:
        found = []
        with torch.no_grad():
            for row in ids:
                scores = card.plain(torch.tensor([row], device=card.device), use_cache=False).logits[0, :-1].float()
                target = torch.tensor(row[1:], device=card.device)
                found.append(torch.nn.functional.cross_entropy(scores, target, reduction="none").cpu())
        return found

    def ours() -> list[np.ndarray]:
        return token_losses(card.model, ids)

    def agree() -> str:
        apart = max(float(np.abs(mine - theirs.numpy()).mean()) for mine, theirs in zip(ours(), plain()))
        return within("losses (mean, nats)", apart, 1e-4 if card.exact else 5e-2)

    return [
        Case(
            "losses over the whole vocabulary",
            "tokens/s",
            tokens,
            "one text per forward, cross-entropy of its scores",
            agree,
            plain,
            ours,
            operations=2 * (card.weights + card.shape.width * card.shape.vocabulary) * tokens,
            per="run",
        )
    ]


GROUPS = (captures, decoding, solver, patching, encoding, geometry, losses)
ROWS = 12  # that they make, among which the time is shared out
