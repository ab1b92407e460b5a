"""Representation geometry of texts in a chat template or with a text around them, against the template applied by hand
and plain Hugging Face states."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from probes import representation_geometry
from probes.representation_geometry import Config
from tests.support.chat_templates import PLAIN, R1, with_template
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.capture import capture
from workbench.models.loading import load
from workbench.models.sinks import SpanMeans
from workbench.runs import execution as runs
from workbench.store.activation_store import Store

PROBE = "representation-geometry"


@pytest.fixture(scope="module")
def plain(tiny_llama):
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def chat(plain):
    return with_template(plain, PLAIN)


@pytest.fixture(scope="module")
def hf(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager", dtype=torch.float64)


def text_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rng = np.random.default_rng(0)
    words = "Tom Lily dog cat park tree ball happy sad big small ran saw and the a went to play with was".split()
    rows = [{"text": " ".join(rng.choice(words, rng.integers(3, 12)))} for _ in range(24)]
    return text_file(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


def texts_of(path):
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def probe(model, data, store=None, **config):
    options = {"fit_range": (2, 8), "draws": 0, "loss_rows": 0, "ablate": (), "map": (), "curve": False} | config
    return representation_geometry.run(model, Config(**options), Context(data=data, store=store)).tables


def by_hand(model, text):
    """Ids of the chat as Hugging Face makes them, and [start, end) of the tokens that hold the text."""
    turns = [{"role": "user", "content": text}]
    written = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    found = model.tokenizer(written, add_special_tokens=False, return_offsets_mapping=True)
    start = written.index(text)
    inside = [k for k, (a, b) in enumerate(found["offset_mapping"]) if a < b and a < start + len(text) and start < b]
    return found["input_ids"], inside[0], inside[-1] + 1


def rankme(samples):
    states = np.array(samples)
    p = np.linalg.svd(states - states.mean(0), compute_uv=False) ** 2
    p = p[p > 0] / p.sum()
    return np.exp(-(p * np.log(p)).sum())


def last_states(hf, ids):
    with torch.no_grad():
        return hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].numpy()


@pytest.mark.parametrize("token", ["last", "mean", "text", 12, -2])
@pytest.mark.parametrize("stored", [False, True])
def test_a_chats_sample_is_read_where_the_token_says(chat, hf, texts, tmp_path, token, stored):
    store = Store(tmp_path / "store") if stored else None
    tables = probe(chat, texts, template="chat", token=token, store=store)
    samples = []
    for text, ids in zip(texts_of(texts), tables["inputs"]["ids"].to_list()):
        expected, start, end = by_hand(chat, text)
        assert ids == expected
        states = last_states(hf, ids)
        read = {"last": states[-1], "mean": states[start:end].mean(0), "text": states[end - 1]}
        samples.append(read[token] if isinstance(token, str) else states[token])
    assert tables["layers"]["rankme"][-1] == pytest.approx(rankme(samples), rel=1e-4)


def test_losses_count_the_texts_own_tokens_only(chat, hf, texts):
    loss = probe(chat, texts, template="chat", loss_rows=10, ablate=(2,), random_draws=1)["ablation"]
    means = []
    for text in texts_of(texts)[:10]:
        ids, start, end = by_hand(chat, text)
        with torch.no_grad():
            scores = hf(torch.tensor([ids])).logits[0]
        means.append(float(cross_entropy(scores[start - 1 : end - 1], torch.tensor(ids[start:end]))))
    assert loss["loss"][0] == pytest.approx(np.mean(means), rel=1e-5)
    assert loss.height > 1 and loss["loss"].is_finite().all()


def test_n_grams_are_compared_over_the_texts_own_tokens(chat, texts):
    found = probe(chat, texts, template="chat", loss_rows=10, ngram=str(texts))["checkpoints"]
    assert np.isfinite(found["memorisation"][0])


@pytest.mark.parametrize("token", ["last", "mean", "text"])
def test_a_text_around_the_text_is_raw_and_no_part_of_its_mean(plain, hf, texts, token):
    tables = probe(plain, texts, template="Story: {prompt} The end.", token=token)
    samples = []
    for text, ids in zip(texts_of(texts), tables["inputs"]["ids"].to_list()):
        assert ids == plain.encode(f"Story: {text} The end.")
        _, offsets = plain.encode_with_offsets(f"Story: {text} The end.")
        own = [k for k, (a, b) in enumerate(offsets) if a < b and a < 7 + len(text) and b > 7]
        states = last_states(hf, ids)
        samples.append({"last": states[-1], "mean": states[own].mean(0), "text": states[own[-1]]}[token])
    assert tables["layers"]["rankme"][-1] == pytest.approx(rankme(samples), rel=1e-4)


def test_raw_is_what_it_was_and_auto_is_a_chat_where_there_is_a_template(plain, chat, texts):
    raw = probe(plain, texts, loss_rows=5)
    assert raw["inputs"]["ids"].to_list() == plain.encode_all(texts_of(texts))
    for other in (probe(chat, texts, loss_rows=5), probe(plain, texts, template="auto", loss_rows=5)):
        assert all(other[name].equals(raw[name]) for name in ("inputs", "layers", "ablation"))
    assert probe(plain, texts, token="text")["layers"].equals(raw["layers"])
    assert probe(chat, texts, template="auto")["inputs"]["ids"].to_list() == [
        by_hand(chat, text)[0] for text in texts_of(texts)
    ]


def test_what_is_cut_is_the_text_and_the_template_stays_whole(chat, texts):
    whole = probe(chat, texts, template="chat")["inputs"]["ids"].to_list()
    length = min(map(len, whole)) + 2
    cut = probe(chat, texts, template="chat", max_length=length)["inputs"]["ids"].to_list()
    for text, ids, short in zip(texts_of(texts), whole, cut):
        _, _, end = by_hand(chat, text)
        kept = end - max(0, len(ids) - length)
        assert short == ids[:kept] + ids[end:] and len(short) <= length
    assert any(len(a) < len(b) for a, b in zip(cut, whole))
    with pytest.raises(InputError, match="row 1: what is written around the text has .* max_length"):
        probe(chat, texts, template="chat", max_length=5)


def test_long_counts_the_written_prompt(chat, texts):
    lengths = [len(by_hand(chat, text)[0]) for text in texts_of(texts)]
    most = sorted(lengths)[12]
    kept = probe(chat, texts, template="chat", max_length=most, long="skip")["inputs"]["row"].to_list()
    assert kept == [row for row, length in enumerate(lengths) if length <= most]
    with pytest.raises(InputError, match="long=skip"):
        probe(chat, texts, template="chat", max_length=most, long="refuse")


def test_a_short_text_stays_short_in_a_template(chat, texts):
    own = [end - start for _, start, end in (by_hand(chat, text) for text in texts_of(texts))]
    enough = sorted(own)[12]
    kept = probe(chat, texts, template="chat", min_length=enough)["inputs"]["row"].to_list()
    assert kept == [row for row, size in enumerate(own) if size >= enough] and 2 <= len(kept) < len(own)


def test_a_conversation_is_written_whole_and_its_last_turn_is_the_text(chat, hf, tmp_path):
    talks = [
        [{"role": "user", "content": f"Who is {name}?"}, {"role": "assistant", "content": f"{name} has a {pet}."}]
        for name, pet in (("Tom", "dog"), ("Lily", "cat"), ("Ben", "big ball"), ("Sam", "tree"))
    ]
    talks[3] = talks[3][:1]  # ends with the user's: ready for the answer
    data = text_file(tmp_path / "talks.jsonl", [{"text": "a talk", "messages": talk} for talk in talks])
    tables = probe(chat, data, template="chat", token="text", fit_range=(1, 3))
    samples = []
    for talk, ids in zip(talks, tables["inputs"]["ids"].to_list()):
        written = chat.tokenizer.apply_chat_template(
            talk, tokenize=False, add_generation_prompt=talk[-1]["role"] == "user"
        )
        found = chat.tokenizer(written, add_special_tokens=False, return_offsets_mapping=True)
        assert ids == found["input_ids"]
        end = written.rindex(talk[-1]["content"]) + len(talk[-1]["content"])
        at = max(k for k, (a, b) in enumerate(found["offset_mapping"]) if a < b and a < end)
        samples.append(last_states(hf, ids)[at])
    assert tables["layers"]["rankme"][-1] == pytest.approx(rankme(samples), rel=1e-4)
    text_file(data, [{"text": "a talk", "messages": talk} for talk in [*talks, [{"role": "king", "content": "x"}]]])
    with pytest.raises(InputError, match="row 5: the field 'messages' has the role 'king'"):
        probe(chat, data, template="chat")


def test_a_mean_over_spans_is_the_mean_of_all_tokens_captured_alone_whatever_the_padding(plain):
    ids = [plain.encode(text) for text in ("Tom has a dog and a ball", "Lily ran", "A big tree was sad")]
    spans = ((1, 3), (0, 2), (2, len(ids[2])))
    everything = capture(plain, ids, ["resid_post.1"], positions="all")
    for side in ("right", "left"):
        found = capture(plain, ids, ["resid_post.1"], positions=SpanMeans(spans), side=side)["resid_post.1"]
        for n, (start, end) in enumerate(spans):
            expected = everything.rows("resid_post.1", n)[start:end].double().mean(0)
            torch.testing.assert_close(found[n].double(), expected, rtol=1e-5, atol=1e-6)
    for wrong in ((2, 2), (0, 99)):
        with pytest.raises(InputError, match="are not among the"):
            capture(plain, ids, ["resid_post.1"], positions=SpanMeans((wrong, *spans[1:])))


def test_other_spans_are_another_entry_of_the_store(plain, tmp_path):
    ids, store = [plain.encode("Tom has a dog"), plain.encode("Lily has a cat")], Store(tmp_path / "store")
    both = [
        capture(plain, ids, ["resid_post.1"], positions=SpanMeans(spans), store=store)["resid_post.1"]
        for spans in (((0, 2), (0, 2)), ((1, 3), (1, 3)))
    ]
    assert not torch.allclose(*both)


def test_thinking_off_closes_the_block_before_the_sample(plain, texts):
    model = with_template(plain, R1)
    ids = probe(model, texts, template="chat", thinking="off")["inputs"]["ids"][0].to_list()
    assert model.tokenizer.decode(ids).endswith("</think>\n\n") and ids.count(model.bos_id) == 1


@pytest.mark.parametrize(
    "config, message",
    [
        ({"template": "chat:no slot"}, "prompt"),
        ({"system": "Be short."}, "system message needs a chat template"),
        ({"template_args": "a:1"}, "template_args are for a chat template"),
    ],
)
def test_keys_that_cannot_go_together_are_refused_before_a_model_is_loaded(texts, config, message):
    with pytest.raises(InputError, match=message):
        runs.prepare(PROBE, config, texts)


def test_a_chat_without_a_template_and_a_template_that_drops_the_text_are_one_sentence(plain, texts):
    with pytest.raises(InputError, match="has no chat template"):
        probe(plain, texts, template="chat")
    with pytest.raises(InputError, match="leaves out the user's text"):
        probe(with_template(plain, "{{ bos_token }}Hello{{ messages | length }}"), texts, template="chat")
