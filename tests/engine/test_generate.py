"""Decoding in batches gives what Hugging Face gives for each prompt alone; edits act in their phase only; samples are
the same whatever the batch, and their statistics are those of a plain float64 pass over the finished text."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.architectures import NAMES, build
from workbench.core.errors import InputError
from workbench.engine import generate, one_by_one, recorded_steps
from workbench.engine.context_aware import context_aware
from workbench.engine.edits import HeadAblation, KnockOut, Patch, apply
from workbench.engine.generate import FINISH, greedy, sample
from workbench.engine.sampling import Rule, step
from workbench.engine.scoring import score
from workbench.models.batching import pad
from workbench.models.loading import load, wrap
from workbench.models.prompt_templates import prompt_ids
from workbench.models.sites import Site

PROMPTS = ["Once upon a time", "The dog", "Lily and Tom went to the park and", "One day, a little girl named"]


def slow_greedy(model, prompt, steps, edits=()):
    """One full forward per step, no cache."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad(), apply(model, edits):
            scores = model.forward(pad([ids], pad_id=0)).logits[0, -1]
        ids.append(int(scores.argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def stories(tiny_llama):
    return load(str(tiny_llama))


def test_greedy_equals_hugging_face_generate_one_prompt_at_a_time(stories):
    prompts = [stories.encode(p) for p in PROMPTS]
    found = greedy(stories, prompts, max_new_tokens=40)
    for prompt, ids in zip(prompts, found):
        with torch.no_grad():
            plain = stories.hf.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, pad_token_id=0)
        assert ids == plain[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_batched_greedy_equals_the_uncached_loop_on_every_architecture(name):
    model = wrap(build(name), name=name)
    prompts = [[5, 9, 11, 3, 40, 22, 8, 17, 30], [7], [33, 12, 60, 21]]
    found = greedy(model, prompts, max_new_tokens=12, eos=False)
    assert found == [slow_greedy(model, p, 12) for p in prompts]


@pytest.mark.parametrize("how", ["zero", "uniform"])
def test_edits_in_the_decode_phase_leave_the_reading_of_the_prompt_alone(how):
    model = wrap(build("llama"), name="llama")
    prompts, heads = [[5, 9, 11, 3, 40, 22], [7], [33, 12, 60, 21]], tuple(model.heads()[:8])
    edit = HeadAblation(heads, how)
    found = greedy(model, prompts, max_new_tokens=10, edits=(edit,), edit_phase="decode", eos=False)
    # the same thing without a cache: zero ablation at the positions from the last prompt token on
    if how == "zero":
        for prompt, ids in zip(prompts, found):
            text = list(prompt)
            for _ in range(10):
                late = HeadAblation(heads, how, positions=tuple(range(len(prompt) - 1, len(text))))
                text.append(slow_greedy(model, text, 1, (late,))[0])
            assert ids == text[len(prompt) :]
    everywhere = greedy(model, prompts, max_new_tokens=10, edits=(edit,), eos=False)
    assert everywhere != found
    assert everywhere == [slow_greedy(model, p, 10, (edit,)) for p in prompts]
    assert found == [
        greedy(model, [p], max_new_tokens=10, edits=(edit,), edit_phase="decode", eos=False)[0] for p in prompts
    ]


def test_edits_with_one_entry_per_prompt_follow_their_prompts_through_batches_and_endings():
    model = wrap(build("qwen2"), name="qwen2")
    prompts = [[5, 9, 11, 3, 40, 22], [7, 8, 50], [33, 12, 60, 21]]
    value = torch.randn(3, 1, model.width, generator=torch.Generator().manual_seed(0)) * 5
    patch = Patch(Site.parse("resid_post.1"), value, positions=(1,))
    found = greedy(model, prompts, max_new_tokens=8, edits=(patch,), edit_phase="prefill", max_rows=2, eos=False)
    alone = [
        greedy(
            model, [p], max_new_tokens=8, edits=(Patch(patch.site, value[i], (1,)),), edit_phase="prefill", eos=False
        )[0]
        for i, p in enumerate(prompts)
    ]
    assert found == alone
    cut = KnockOut(layers=(0, 1, 2), sources=((0, 1), (0,), (2,)), queries="all")
    stops = [int(alone[0][2])]
    together = greedy(model, prompts, max_new_tokens=8, edits=(cut,), stop_ids=stops, eos=False)
    assert together == [
        greedy(
            model,
            [p],
            max_new_tokens=8,
            edits=(KnockOut((0, 1, 2), (cut.sources[i],), "all"),),
            stop_ids=stops,
            eos=False,
        )[0]
        for i, p in enumerate(prompts)
    ]


def test_rows_end_at_stop_strings_stop_ids_and_the_end_of_the_context(stories):
    prompts = [stories.encode(p) for p in PROMPTS]
    free = greedy(stories, prompts, max_new_tokens=60)
    for ids, whole in zip(greedy(stories, prompts, max_new_tokens=60, stop_strings=["m"]), free):
        assert ids == whole[: len(ids)]
        text = stories.decode(ids)
        assert len(ids) < len(whole) and text.count("m") == 1 and "m" not in stories.decode(ids[:-1])
    stop = free[0][5]
    stopped = greedy(stories, prompts, max_new_tokens=60, stop_ids=[stop])
    assert stopped[0] == free[0][: free[0].index(stop) + 1]
    full = stories.context_length
    long = (prompts[0] * full)[: full - 3]
    assert len(greedy(stories, [long], max_new_tokens=50, eos=False)[0]) == 4
    assert len(greedy(stories, [(prompts[0] * full)[:full]], max_new_tokens=50, eos=False)[0]) == 1


@pytest.mark.parametrize("every", [3, 100])
def test_texts_do_not_depend_on_how_often_the_host_looks_at_them(stories, monkeypatch, every):
    """Stop ids and strings, the end of the context and edits included: what follows an end is dropped."""
    prompts = [stories.encode(p) for p in PROMPTS]
    long = (prompts[2] + [i for p in prompts[:2] for i in p] * stories.context_length)[: stories.context_length - 5]
    edits = (Patch(Site.parse("resid_post.1"), torch.randn(5, 1, stories.width), positions=(1,)),)
    stops = {"stop_strings": ["m"], "stop_ids": [greedy(stories, prompts[:1], max_new_tokens=6)[0][5]]}
    texts = [*prompts, long]

    def both():
        written = greedy(stories, texts, max_new_tokens=30, edits=edits, **stops)
        drawn = sample(stories, texts, samples=3, max_new_tokens=30, rule=RULE, seed=3, **stops)
        return written, drawn

    expected, drawn = both()
    assert len({len(ids) for ids in expected}) > 2 and len(set(drawn.finish.flatten().tolist())) > 1
    monkeypatch.setattr(one_by_one, "steps_between_looks", lambda _device: every)
    found, again = both()
    assert found == expected
    assert torch.equal(again.ids, drawn.ids) and torch.equal(again.finish, drawn.finish)
    torch.testing.assert_close(again.steps, drawn.steps, atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma2", "gemma3_text", "opt"])
def test_steps_on_fixed_memory_write_what_the_others_write(monkeypatch, name):
    """Without a graph, which a CPU has not: windows fill up and slide, rows leave, one at the end of the context and
    computed on for a while, and memory runs full."""
    prompts = [[5, 9, 11, 3, 40, 22, 8, 17, 30], [7], [33, 12, 60, 21], list(range(4, 62))]
    model = wrap(build(name), name=name)
    options = {"max_new_tokens": 30, "stop_ids": [3, 4, 5, 6, 7], "eos": False}
    drawing = options | {"samples": 4, "rule": Rule(temperature=3.0), "seed": 2}
    expected, drawn = greedy(model, prompts, **options), sample(model, prompts, **drawing)
    pairs = prompts[:3], [[8, 17], [7, 44, 3], [60]]
    weighed = context_aware(model, *pairs, weight=0.5, max_new_tokens=25)
    made = []

    def as_they_are(steps):
        made.append(steps.room)
        steps.replay = steps.run

    monkeypatch.setattr(recorded_steps, "graphs", lambda _device: (object, object))
    monkeypatch.setattr(recorded_steps.RecordedSteps, "record", as_they_are)
    monkeypatch.setattr(recorded_steps, "SHORTEST", 1)
    monkeypatch.setattr(recorded_steps, "SEGMENT", 11)
    assert greedy(model, prompts, **options) == expected
    assert made and max(made) <= 11
    assert context_aware(model, *pairs, weight=0.5, max_new_tokens=25) == weighed
    again = sample(model, prompts, **drawing)
    assert torch.equal(again.ids, drawn.ids) and torch.equal(again.finish, drawn.finish)
    torch.testing.assert_close(again.steps, drawn.steps, atol=2e-4, rtol=2e-4, equal_nan=True)


def test_bad_input_is_refused_with_a_sentence(stories):
    with pytest.raises(InputError, match="more than the model's context"):
        greedy(stories, [[1] * (stories.context_length + 1)], max_new_tokens=1)
    with pytest.raises(InputError, match="stop string is empty"):
        greedy(stories, [[1, 5]], max_new_tokens=1, stop_strings=[""])
    with pytest.raises(InputError, match="phase"):
        greedy(stories, [[1, 5]], max_new_tokens=1, edit_phase="later")
    with pytest.raises(InputError, match="at least one token"):
        greedy(stories, [[1, 5]], max_new_tokens=0)


RULE = Rule(top_p=0.9)


def test_samples_are_the_same_whatever_the_batch_size_and_the_company(stories):
    prompts = [stories.encode(p) for p in PROMPTS]
    whole = sample(stories, prompts, samples=6, max_new_tokens=40, rule=RULE, seed=7)
    for rows in (1, 5):
        small = sample(stories, prompts, samples=6, max_new_tokens=40, rule=RULE, seed=7, max_rows=rows)
        assert (
            torch.equal(small.ids, whole.ids)
            and torch.equal(small.lengths, whole.lengths)
            and torch.equal(small.finish, whole.finish)
        )
        torch.testing.assert_close(small.steps, whole.steps, atol=1e-4, rtol=1e-4, equal_nan=True)
    fewer = sample(stories, prompts[2:3], samples=3, max_new_tokens=40, rule=RULE, seed=7, prompt_keys=[2])
    n = fewer.ids.shape[-1]
    assert torch.equal(fewer.ids[0], whole.ids[2, :3, :n])
    assert not torch.equal(sample(stories, prompts, samples=6, max_new_tokens=40, rule=RULE, seed=8).ids, whole.ids)
    assert len({tuple(whole.tokens(0, m)) for m in range(6)}) == 6


@pytest.mark.parametrize("rule", [RULE, Rule(), Rule(temperature=0.7, top_k=20), Rule(temperature=0)], ids=str)
def test_the_statistics_of_samples_equal_a_plain_float64_pass_over_the_finished_texts(stories, tiny_llama, rule):
    from tests.engine.test_scoring import slow

    exact = load(str(tiny_llama), dtype="float64").hf
    prompts = [stories.encode(p) for p in PROMPTS[:2]]
    found = sample(stories, prompts, samples=3, max_new_tokens=30, rule=rule, seed=1)
    for p, prompt in enumerate(prompts):
        for m in range(3):
            text = found.tokens(p, m)
            with torch.no_grad():
                plain = exact(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1].numpy()
            for t, token in enumerate(text):
                truth = slow(plain[t], token, rule)
                for name in ("entropy", "logprob", "entropy_full", "logprob_full"):
                    assert float(found.statistic(name)[p, m, t]) == pytest.approx(truth[name], abs=1e-3)
            scored = score(stories, [prompt], [text], rule=rule)[0]
            torch.testing.assert_close(scored[:, :4], found.steps[p, m, : len(text), :4], atol=1e-4, rtol=1e-4)
            assert found.steps[p, m, len(text) :].isnan().all() and (found.ids[p, m, len(text) :] == -1).all()


@pytest.mark.parametrize("name", NAMES)
def test_samples_survive_rows_leaving_the_batch_on_every_architecture(name):
    model = wrap(build(name), name=name)
    prompts = [[5, 9, 11, 3, 40, 22, 8, 17, 30], [7], [33, 12, 60, 21]]
    whole = sample(model, prompts, samples=4, max_new_tokens=14, rule=Rule(temperature=3.0), stop_ids=list(range(20)))
    assert whole.lengths.min() < whole.lengths.max()
    for p in range(3):
        for m in range(4):
            text = whole.tokens(p, m)
            assert all(i >= 20 and i not in model.eos_ids for i in text[:-1])
            scored = score(model, prompts[p : p + 1], [text], rule=Rule(temperature=3.0))[0]
            torch.testing.assert_close(scored[:, :4], whole.steps[p, m, : len(text), :4], atol=2e-4, rtol=2e-4)


def test_temperature_zero_is_greedy_decoding_with_no_entropy(stories):
    prompts = [stories.encode(p) for p in PROMPTS]
    found = sample(stories, prompts, samples=2, max_new_tokens=25, rule=Rule(temperature=0))
    for m in range(2):  # one text is decoded, every sample is a copy of it
        assert [found.tokens(p, m) for p in range(4)] == greedy(stories, prompts, max_new_tokens=25)
    torch.testing.assert_close(found.steps[:, 0], found.steps[:, 1], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.finish[:, 0], found.finish[:, 1]) and torch.equal(found.lengths[:, 0], found.lengths[:, 1])
    assert float(found.statistic("entropy").nan_to_num().abs().max()) == 0
    assert float(found.statistic("entropy_full").nan_to_num().max()) > 0.5


def test_samples_say_why_they_ended(stories):
    prompts = [stories.encode(p) for p in PROMPTS]
    long = (prompts[2] + [i for p in prompts[:2] for i in p] * stories.context_length)[: stories.context_length - 20]
    ended = [prompts[0], long]
    eos = sample(stories, ended, samples=4, max_new_tokens=stories.context_length, rule=Rule(temperature=1.5))
    names = [[FINISH[i] for i in row] for row in eos.finish.tolist()]
    assert "context" in names[1]
    for p, prompt in enumerate(ended):
        for m in range(4):
            text = eos.tokens(p, m)
            assert (text[-1] in stories.eos_ids) == (names[p][m] == "eos")
            assert names[p][m] in ("eos", "context")
            if names[p][m] == "context":
                assert len(prompt) + len(text) == stories.context_length + 1
    stopped = sample(stories, prompts, samples=4, max_new_tokens=60, rule=RULE, stop_strings=["."])
    for p in range(4):
        for m in range(4):
            assert ("." in stories.decode(stopped.tokens(p, m))) == (FINISH[stopped.finish[p, m]] == "stop")
    assert set(sample(stories, prompts, samples=2, max_new_tokens=2, rule=RULE).finish.flatten().tolist()) == {0}


def test_prompts_are_written_raw_or_in_the_chat_template_and_never_silently_without_one(stories, tiny_llama):
    assert prompt_ids(stories, "Once") == stories.encode("Once")
    assert prompt_ids(stories, "Once", template="raw") == stories.encode("Once")
    assert prompt_ids(stories, "", template="raw") == [stories.bos_id]
    with pytest.raises(InputError, match="no chat template"):
        prompt_ids(stories, "Once", template="chat")
    with pytest.raises(InputError, match="system message needs a chat template"):
        prompt_ids(stories, "Once", system="Be kind.")
    with pytest.raises(InputError, match="choose auto"):
        prompt_ids(stories, "Once", template="yes")
    chat = load(str(tiny_llama))
    chat.tokenizer.chat_template = (
        "{% for m in messages %}{{ bos_token }}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if "
        "add_generation_prompt %}assistant:{% endif %}"
    )
    ids = prompt_ids(chat, "Once", system="Be kind.")
    assert ids == prompt_ids(chat, "Once", system="Be kind.", template="chat")
    assert chat.tokenizer.decode(ids).count("Once") == 1 and ids.count(chat.bos_id) == 2
    assert prompt_ids(chat, "Once", template="raw") == chat.encode("Once")


class Held(TorchDispatchMode):
    """Which storages with a dimension of the vocabulary are alive, whoever made them and whatever view of them is
    kept."""

    def __init__(self, model):
        super().__init__()
        self.vocabulary, self.found = model.vocab_size, {}
        self.weights = {p.untyped_storage().data_ptr() for p in model.hf.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and self.vocabulary in tensor.shape:
                storage = tensor.untyped_storage()
                if storage.data_ptr() in self.weights:
                    continue
                self.found[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def alive(self):
        self.found = {where: (ref, size) for where, (ref, size) in self.found.items() if not ref.expired()}
        return sum(size for _, size in self.found.values())


def held_while_sampling(stories, steps):
    """The most bytes of vocabulary-sized tensors alive between two steps."""
    most = [0]
    with Held(stories) as held:
        sample(
            stories,
            [stories.encode("Once")],
            samples=5,
            max_new_tokens=steps,
            rule=RULE,
            eos=False,
            check=lambda: most.append(held.alive()),
        )
    return max(most)


def test_the_scores_of_all_steps_are_never_held(stories, monkeypatch):
    """Between two steps no more than one step's scores is alive, whatever the length; a decoder that kept them would be
    seen."""
    one = 5 * stories.vocab_size * 4
    few, many = held_while_sampling(stories, 8), held_while_sampling(stories, 32)
    assert few == many <= 4 * one
    kept = []
    monkeypatch.setattr(
        generate, "step", lambda scores, rule, **more: (kept.append(scores), step(scores, rule, **more))[1]
    )
    assert held_while_sampling(stories, 32) > many + 20 * one


def test_edits_act_on_samples_too_and_progress_never_goes_back(stories):
    prompts, edit = [stories.encode(p) for p in PROMPTS], HeadAblation(((0, 0), (2, 3)), "zero")
    seen = []
    found = sample(
        stories,
        prompts,
        samples=2,
        max_new_tokens=12,
        rule=Rule(temperature=0),
        edits=(edit,),
        max_rows=3,
        progress=lambda done, total, _label: seen.append((done, total)),
    )
    assert [found.tokens(p, 0) for p in range(4)] == greedy(stories, prompts, max_new_tokens=12, edits=(edit,))
    assert [found.tokens(p, 0) for p in range(4)] != greedy(stories, prompts, max_new_tokens=12)
    assert seen == sorted(seen) and seen[-1] == (8, 8) and len(seen) > 12


def test_the_benchmark_refuses_a_peak_that_grows_with_the_steps_and_knows_its_card():
    from tests.benchmarks.generation import bandwidth, check_growth

    peaks = {
        "ours, 32 tokens": 80.0,
        "ours, 128 tokens": 90.0,
        "reference, 32 tokens": 300.0,
        "reference, 128 tokens": 900.0,
    }
    check_growth(peaks, 586.0)
    for worse in ({"ours, 128 tokens": 300.0}, {"reference, 128 tokens": 310.0}):
        with pytest.raises(AssertionError, match="our peak grows"):
            check_growth(peaks | worse, 586.0)
    assert (
        bandwidth("NVIDIA H100 80GB HBM3") == 3.35e12
        and bandwidth("NVIDIA H200") == 4.8e12
        and bandwidth("Tesla T4") is None
    )
