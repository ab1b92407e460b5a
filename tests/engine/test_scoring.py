"""One step's numbers equal the obvious float64 computation over the whole vocabulary; draws follow the distribution
they claim."""

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.support.architectures import build
from workbench.core.errors import InputError, RunFailed
from workbench.engine.draws import row_keys, step_keys
from workbench.engine.sampling import FIELDS, Rule, check_steps, likeliest, likeliest_unchecked, step
from workbench.engine.scoring import score
from workbench.models.loading import load, wrap

RULES = [
    Rule(),
    Rule(temperature=0),
    Rule(temperature=0.7),
    Rule(top_p=0.9),
    Rule(temperature=1.7, top_p=0.95),
    Rule(top_k=7),
    Rule(top_k=300),
    Rule(min_p=0.05),
    Rule(temperature=0.5, top_k=100, top_p=0.8, min_p=0.01),
    Rule(top_p=1e-9),
    Rule(top_p=0.9999),
]


def slow(scores, token, rule):
    """One row, float64, one token after another, as the definitions say."""
    logits = scores.astype(np.float64)
    full = np.exp(logits - logits.max())
    full /= full.sum()
    order = sorted(range(len(full)), key=lambda i: (-logits[i], i))
    if rule.temperature == 0:
        q = {order[0]: 1.0}
    else:
        p = np.exp((logits - logits.max()) / rule.temperature)
        p /= p.sum()
        kept = order[: rule.top_k] if rule.top_k else order
        mass = p[kept].sum()
        nucleus, reached = [], 0.0
        for i in kept:
            nucleus.append(i)
            reached += p[i] / mass
            if rule.top_p < 1 and reached >= rule.top_p - 1e-6:
                break
        nucleus = [i for i in nucleus if p[i] >= rule.min_p * p[order[0]]]
        total = p[nucleus].sum()
        q = {i: p[i] / total for i in nucleus}
    entropy = lambda d: -sum(x * np.log(x) for x in d if x > 0)  # noqa: E731
    tempered = np.exp((logits - logits.max()) / (rule.temperature or 1))
    with np.errstate(divide="ignore"):
        return {
            "entropy": entropy(q.values()),
            "logprob": np.log(q.get(token, 0.0)),
            "entropy_full": entropy(full),
            "logprob_full": np.log(full[token]),
            "support": len(q),
            "top1": full.max(),
            "top_mass": np.sort(tempered)[-50:].sum() / tempered.sum(),
        }


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_every_statistic_equals_the_float64_computation_over_the_whole_vocabulary(rule, spread):
    scores = torch.randn(4, 1500, generator=torch.Generator().manual_seed(1)) * spread
    scores[2, ::3] = -torch.inf
    scores[3, ::2] = -300.0  # a probability of 0 in float32, not in float64
    ids, found = step(scores, rule, keys=row_keys(0, range(4), [0] * 4))
    for row in range(4):
        truth = slow(scores[row].numpy(), int(ids[row]), rule)
        for name, value in truth.items():
            assert float(found[row, FIELDS.index(name)]) == pytest.approx(value, abs=2e-5, rel=2e-5), (row, name)
        assert truth["logprob"] > -np.inf
    other = (ids + 1) % 1500
    given, again = step(scores, rule, chosen=other)
    assert torch.equal(given, other)
    for row in range(4):
        truth = slow(scores[row].numpy(), int(other[row]), rule)
        assert float(again[row, FIELDS.index("logprob")]) == pytest.approx(truth["logprob"], abs=2e-5, rel=1e-6)
        assert float(again[row, FIELDS.index("logprob_full")]) == pytest.approx(
            truth["logprob_full"], abs=2e-5, rel=1e-6
        )


@pytest.mark.parametrize("rule", [r for r in RULES if r.temperature > 0 and r.top_p != 0.9999], ids=str)
def test_the_tokens_kept_are_those_that_hugging_face_keeps(rule):
    scores = torch.randn(8, 500, generator=torch.Generator().manual_seed(2)) * 2
    warpers = [TemperatureLogitsWarper(rule.temperature)]
    warpers += [TopKLogitsWarper(rule.top_k)] if rule.top_k else []
    warpers += [TopPLogitsWarper(rule.top_p)] if rule.top_p < 1 else []
    warpers += [MinPLogitsWarper(rule.min_p)] if rule.min_p else []
    theirs = scores.double()
    for warper in warpers:
        theirs = warper(None, theirs)
    theirs = theirs.log_softmax(-1)
    for token in range(0, 500, 7):
        _, found = step(scores, rule, chosen=torch.full((8,), token))
        torch.testing.assert_close(found[:, FIELDS.index("logprob")].double(), theirs[:, token], atol=2e-5, rtol=1e-5)
    assert found[:, FIELDS.index("support")].tolist() == theirs.isfinite().sum(-1).tolist()


def test_the_nucleus_edge_is_decided_by_the_rule_and_not_by_rounding():
    uniform = torch.zeros(1, 10)
    _, found = step(uniform, Rule(top_p=0.9), chosen=torch.tensor([0]))
    assert found[0, FIELDS.index("support")] == 9
    tied = torch.zeros(1, 200)
    for token in (0, 179, 180, 199):  # ties are kept in the order of their ids
        _, found = step(tied, Rule(top_p=0.9), chosen=torch.tensor([token]))
        assert (found[0, FIELDS.index("logprob")] > -torch.inf) == (token < 180)


def test_the_official_entropy_sees_fifty_tokens_and_puts_the_sampled_one_back():
    scores = torch.zeros(1, 60)
    _, found = step(scores, Rule(top_p=0.9), chosen=torch.tensor([3]))
    assert float(found[0, FIELDS.index("entropy_top")]) == pytest.approx(np.log(50), abs=1e-5)
    assert float(found[0, FIELDS.index("entropy")]) == pytest.approx(np.log(54), abs=1e-5)
    _, found = step(scores, Rule(top_p=0.9), chosen=torch.tensor([53]))
    assert float(found[0, FIELDS.index("entropy_top")]) == pytest.approx(np.log(51), abs=1e-5)
    assert float(found[0, FIELDS.index("logprob_top")]) == pytest.approx(-np.log(51), abs=1e-5)


def official(scores, token, rule):
    """The methods page's account of the official code, one row, float64: entropy and log-probability of the token. The
    50 likeliest tokens and the sampled one, likeliest first, until top_p is reached; the sampled one put back if it was
    cut; renormalised. Of a rule's other cuts, which the official code does not have, top_k ends the list earlier and
    min_p leaves out what is too unlikely."""
    p = np.exp((scores.astype(np.float64) - scores.max()) / rule.temperature)
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    seen = order[:50] if rule.top_k == 0 else order[: min(50, rule.top_k)]
    mass = p[order[: rule.top_k]].sum() if 0 < rule.top_k <= 50 else 1.0
    kept, reached = [], 0.0
    for i in seen:
        if p[i] < 1e-12 or p[i] < rule.min_p * p[order[0]]:
            continue
        kept.append(i)
        reached += p[i] / mass
        if rule.top_p < 1 and reached >= rule.top_p - 1e-6:
            break
    if token not in kept:
        kept.append(token)
    q = p[kept] / p[kept].sum()
    return -(q * np.log(q)).sum(), np.log(q[kept.index(token)])


@pytest.mark.parametrize(
    "rule",
    [
        Rule(top_p=0.9),
        Rule(),
        Rule(temperature=0.6, top_p=0.9),
        Rule(temperature=1.7, top_p=0.95),
        Rule(top_k=2),
        Rule(top_k=7, top_p=0.8),
        Rule(top_k=300, top_p=0.9),
        Rule(min_p=0.05),
        Rule(temperature=0.5, top_k=20, top_p=0.8, min_p=0.02),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [60, 1500])
def test_the_official_entropy_equals_a_slow_transcription_also_of_tokens_that_were_cut(rule, size):
    scores = torch.randn(5, size, generator=torch.Generator().manual_seed(4)) * torch.tensor(
        [[0.3], [1.0], [2.0], [4.0], [9.0]]
    )
    drawn, found = step(scores, rule, keys=row_keys(0, range(5), [0] * 5))
    rare = scores.topk(55).indices[:, 52]  # outside the 50, so cut by every rule here
    put_back = step(scores, rule, chosen=rare)[1]
    for row in range(5):
        for token, seen in ((int(drawn[row]), found[row]), (int(rare[row]), put_back[row])):
            entropy, logprob = official(scores[row].numpy(), token, rule)
            assert float(seen[FIELDS.index("entropy_top")]) == pytest.approx(entropy, abs=2e-5)
            assert float(seen[FIELDS.index("logprob_top")]) == pytest.approx(logprob, abs=2e-5, rel=1e-5)
    if rule.top_k and rule.top_k <= 50:
        assert found[:, FIELDS.index("entropy_top")].exp().max() <= rule.top_k + 1e-4


@pytest.mark.parametrize("rule", [Rule(), Rule(top_p=0.9), Rule(temperature=0.5)], ids=str)
def test_draws_follow_the_distribution(rule):
    scores = torch.tensor([3.0, 2.0, 2.0, 1.0, 0.0, -1.0, -torch.inf]).log_softmax(-1)
    n = 40000
    ids, _ = step(scores.expand(n, -1), rule, keys=step_keys(row_keys(3, [0] * n, range(n)), 5))
    seen = torch.bincount(ids, minlength=7) / n
    for token in range(7):
        _, found = step(scores[None], rule, chosen=torch.tensor([token]))
        p = float(found[0, FIELDS.index("logprob")].exp())
        assert abs(float(seen[token]) - p) <= 4.5 * np.sqrt(p * (1 - p) / n) + 1e-12


def test_draws_of_different_rows_steps_and_seeds_are_independent():
    n = 20000
    scores = torch.zeros(n, 2)

    def draw(seed, prompts, samples, t):
        return step(scores, Rule(), keys=step_keys(row_keys(seed, prompts, samples), t))[0].double()  # noqa: E731

    base = draw(0, [0] * n, range(n), 0)
    for other in (
        draw(1, [0] * n, range(n), 0),
        draw(0, [1] * n, range(n), 0),
        draw(0, [0] * n, range(n), 1),
        draw(0, range(n), [0] * n, 0),
    ):
        assert abs(float(torch.corrcoef(torch.stack([base, other]))[0, 1])) < 4.5 / np.sqrt(n)
    assert torch.equal(base, draw(0, [0] * n, range(n), 0))


def test_teacher_forced_scores_equal_plain_hugging_face_in_float64(tiny_llama):
    model = load(str(tiny_llama))
    exact = load(str(tiny_llama), dtype="float64").hf
    prompts = [model.encode("Once upon a time"), model.encode("The"), [model.bos_id]]
    texts = [
        model.encode(" there was a little dog who ran", bos=False),
        model.encode(" big red ball.", bos=False),
        model.encode("Tom", bos=False),
    ]
    rule = Rule(temperature=0.8, top_p=0.9)
    for found in (score(model, prompts, texts, rule=rule), score(model, prompts, texts, rule=rule, max_rows=1)):
        for prompt, text, rows in zip(prompts, texts, found):
            with torch.no_grad():
                plain = exact(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1].numpy()
            for t, token in enumerate(text):
                truth = slow(plain[t], token, rule)
                assert float(rows[t, FIELDS.index("entropy")]) == pytest.approx(truth["entropy"], abs=1e-3)
                assert float(rows[t, FIELDS.index("entropy_full")]) == pytest.approx(truth["entropy_full"], abs=1e-3)
                assert float(rows[t, FIELDS.index("logprob_full")]) == pytest.approx(truth["logprob_full"], abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_faults_of_greedy_steps_add_up_to_what_is_refused_at_the_end(dtype, bad):
    scores = torch.randn(5, 3, 40, generator=torch.Generator().manual_seed(6)).to(dtype)
    scores[..., 7] = -torch.inf
    found = [likeliest_unchecked(step_scores) for step_scores in scores]
    assert torch.equal(torch.stack([token for token, _ in found]), scores.argmax(-1))
    check_steps(sum(fault for _, fault in found), "a model")
    scores[2, 1, 9] = bad
    with pytest.raises(RunFailed, match="NaN"):
        check_steps(sum(fault for _, fault in map(likeliest_unchecked, scores)), "a model")
    with pytest.raises(RunFailed, match="NaN"):
        likeliest(scores[2], "a model")


def test_rules_and_texts_that_make_no_sense_are_refused():
    for bad in (
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"temperature": float("nan")},
    ):
        with pytest.raises(InputError, match=next(iter(bad))):
            Rule(**bad)
    model = wrap(build("llama"), name="llama")
    with pytest.raises(InputError, match="Continuation 0 has no tokens"):
        score(model, [[1, 2]], [[]])
    with pytest.raises(InputError, match="at least one token"):
        score(model, [[]], [[3]])
    with pytest.raises(InputError, match="outside the model's vocabulary"):
        score(model, [[3]], [[999]])
    model.hf.model.norm.weight.data[0] = torch.nan
    with pytest.raises(RunFailed, match="NaN"):
        score(model, [[1, 2]], [[3]])


def test_a_rule_reads_itself_from_text():
    assert Rule.parse("temperature=0.6 top_p=0.9 top_k=40 min_p=0.1") == Rule(0.6, 0.9, 40, 0.1)
    assert Rule.parse("temperature=0") == Rule(temperature=0) and Rule.parse("") == Rule()
    for bad in ("top=0.9", "top_p", "top_k=1.5", "top_p=high"):
        with pytest.raises(InputError, match=bad):
            Rule.parse(bad)
