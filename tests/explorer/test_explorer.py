"""The tensor side of the Explorer, held to slow computations on the plain Hugging Face model."""

import json
import math

import numpy as np
import polars as pl
import pytest
import torch

from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.engine.head_masks import load_edits, read_mask
from workbench.explorer import head_sets, opened_model, switches
from workbench.explorer import readings as explorer
from workbench.explorer.opened_model import Opened
from workbench.explorer.sub_blocks import sub_blocks
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target
from workbench.models.loading import load, wrap

REPEATED = [5, 9, 17, 5, 9, 30, 17, 5, 9]


@pytest.fixture(scope="module")
def tiny():
    """A random llama with grouped queries and a gpt2 with layer norms and biases, tokens as plain ids."""
    return {name: Opened(wrap(build(name), None, name=name)) for name in ("llama", "gpt2")}


@pytest.fixture(scope="module")
def story(tiny_llama):
    return Opened(load(str(tiny_llama)))


@torch.no_grad()
def eager(opened, ids, change=None):
    """(logits [T, V], attentions [L, H, T, T], hidden states [L + 1, T, width]) of the plain model with eager
    attention, float64."""
    import copy

    hf = copy.deepcopy(opened.model.hf).double()
    hf.set_attn_implementation("eager")
    handles = change(hf) if change else []
    out = hf(input_ids=torch.tensor([ids]), output_attentions=True, output_hidden_states=True, use_cache=False)
    for handle in handles:
        handle.remove()
    return out.logits[0], torch.stack(out.attentions)[:, 0], out.hidden_states


def o_proj(hf, layer):
    return hf.model.layers[layer].self_attn.o_proj if hasattr(hf, "model") else hf.transformer.h[layer].attn.c_proj


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scores_are_the_averages_over_the_tokens_to_which_they_apply(tiny, name):
    opened = tiny[name]
    found = explorer.head_scores(opened, [REPEATED])
    _, weights, _ = eager(opened, REPEATED)
    T = len(REPEATED)
    sums = {"induction": [], "duplicate_token": [], "previous_token": [], "first_token": [], "entropy": []}
    for layer, head in opened.model.heads():
        A = weights[layer, head]
        induction, duplicate = 0.0, 0.0
        n_induction, n_duplicate = 0, 0
        for i in range(T):
            after = [j + 1 for j in range(i) if REPEATED[j] == REPEATED[i] and j + 1 < i]
            before = [j for j in range(i) if REPEATED[j] == REPEATED[i]]
            induction += sum(float(A[i, j]) for j in after)
            duplicate += sum(float(A[i, j]) for j in before)
            n_induction += bool(after)
            n_duplicate += bool(before)
        sums["induction"].append(induction / n_induction)
        sums["duplicate_token"].append(duplicate / n_duplicate)
        sums["previous_token"].append(sum(float(A[i, i - 1]) for i in range(1, T)) / (T - 1))
        sums["first_token"].append(sum(float(A[i, 0]) for i in range(1, T)) / (T - 1))
        sums["entropy"].append(
            sum(-sum(float(p) * math.log(float(p)) for p in A[i] if p > 0) for i in range(1, T)) / (T - 1)
        )
    for column, expected in sums.items():
        np.testing.assert_allclose(found[column].to_numpy(), expected, atol=2e-6, err_msg=column)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_copying_is_the_attention_weighted_slope_of_the_logits_by_what_the_head_writes(tiny, name):
    opened = tiny[name]
    found = explorer.head_scores(opened, [REPEATED])["copying"].to_numpy()
    model = opened.model
    _, weights, _ = eager(opened, REPEATED)
    T = len(REPEATED)
    for layer, head in [(0, 1), (model.n_layers - 1, model.n_heads - 1)]:
        seen = {}

        def note(hf, layer=layer, seen=seen):
            def z(_module, args):
                seen["z"] = args[0][0]

            def final(_module, args):
                seen["final"] = args[0][0]

            norm = hf.model.norm if hasattr(hf, "model") else hf.transformer.ln_f
            seen["norm"], seen["unembed"], seen["o"] = norm, hf.lm_head.weight, o_proj(hf, layer).weight
            return [o_proj(hf, layer).register_forward_pre_hook(z), norm.register_forward_pre_hook(final)]

        eager(opened, REPEATED, note)
        W = seen["o"].T if hasattr(opened.model.hf, "model") else seen["o"]  # [H·d, width]
        span = slice(head * model.d_head, (head + 1) * model.d_head)
        with torch.no_grad():
            wrote = seen["z"][:, span] @ W[span]
            step = 3e-3  # the norm of Llama computes in float32 whatever it is given
            slope = (
                (seen["norm"](seen["final"] + step * wrote) - seen["norm"](seen["final"] - step * wrote))
                / (2 * step)
                @ seen["unembed"].T
            )
        slope = slope - slope.mean(-1, keepdim=True)
        expected = np.mean(
            [
                sum(float(weights[layer, head, i, j]) * float(slope[i, REPEATED[j]]) for j in range(T))
                for i in range(1, T)
            ]
        )
        assert found[layer * model.n_heads + head] == pytest.approx(expected, abs=1e-4)


def test_the_copy_circuit_is_told_by_its_scores(_circuits):
    opened = Opened(load("circuit-copy-gqa"))
    found = explorer.head_scores(opened, explorer.repeated_tokens(opened))
    truth = json.loads((opened.model.folder / "truth.json").read_text())
    assert truth  # the circuit says which head does what; its head 1.1 copies what followed earlier occurrences
    assert head_sets.top_heads(found, "induction", 1) == [(1, 1)] and head_sets.top_heads(found, "copying", 1) == [
        (1, 1)
    ]
    assert found["previous_token"].max() == pytest.approx(1.0, abs=1e-3)


def test_a_score_without_a_token_to_apply_to_is_null_and_bos_repeats_nothing(story):
    ids = opened_model.encode(story, "Once upon")
    assert ids[0] == story.model.bos_id
    found = explorer.head_scores(story, [ids])
    assert found["induction"].null_count() == found.height and found["duplicate_token"].null_count() == found.height
    twice = explorer.head_scores(story, [[ids[0], *ids]])  # BOS said twice, as some tokenizers do
    assert twice["duplicate_token"].null_count() == found.height


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_zero_and_patched_heads_give_the_logits_of_the_model_so_changed_by_hand(tiny, name):
    opened = tiny[name]
    model = opened.model
    donor = [7, 3, 17, 5, 9, 30]
    heads = ((0, 1), (1, 0))
    kept = {}

    def grab(hf):
        return [
            o_proj(hf, layer).register_forward_pre_hook(
                lambda _m, a, layer=layer: kept.__setitem__(layer, a[0].clone())
            )
            for layer, _ in heads
        ]

    eager(opened, donor, grab)

    def zero(hf):
        def off(_m, args, head):
            x = args[0].clone()
            x[..., head * model.d_head : (head + 1) * model.d_head] = 0
            return (x,)

        return [
            o_proj(hf, layer).register_forward_pre_hook(lambda m, a, head=head: off(m, a, head))
            for layer, head in heads
        ]

    def patch(hf):
        def put(_m, args, layer, head):
            x, k = args[0].clone(), len(donor)
            span = slice(head * model.d_head, (head + 1) * model.d_head)
            x[:, -k:, span] = kept[layer][:, :, span]  # the shorter donor stands at the end
            return (x,)

        return [
            o_proj(hf, layer).register_forward_pre_hook(lambda m, a, layer=layer, head=head: put(m, a, layer, head))
            for layer, head in heads
        ]

    for off, change in ((Switches(heads, "zero"), zero), (Switches(heads, "patch", tuple(donor)), patch)):
        expected = eager(opened, REPEATED, change)[0][-1]
        found = explorer.read(opened, REPEATED, off)
        np.testing.assert_allclose(found.logits.numpy(), expected.numpy(), atol=2e-5)
        assert not np.allclose(found.logits.numpy(), explorer.read(opened, REPEATED).logits.numpy(), atol=1e-4)
    plain = explorer.read(opened, REPEATED)
    np.testing.assert_allclose(plain.logits.numpy(), eager(opened, REPEATED)[0][-1].numpy(), atol=2e-5)


def test_a_reading_holds_the_stream_of_the_plain_model(tiny):
    opened = tiny["llama"]
    found = explorer.read(opened, REPEATED)
    _, _, hidden = eager(opened, REPEATED)
    for layer in range(opened.model.n_layers):  # Hugging Face norms its last hidden state
        np.testing.assert_allclose(found.stream[layer].numpy(), hidden[layer][0].numpy(), atol=2e-5)
    lengths = explorer.norms(found)
    assert lengths.filter((pl.col("layer") == 0) & (pl.col("position") == 3))["norm"].item() == pytest.approx(
        float(hidden[1][0, 3].norm()), abs=1e-4
    )


def test_attention_rows_and_patterns_are_those_of_eager_attention(tiny):
    opened = tiny["llama"]
    _, weights, _ = eager(opened, REPEATED)
    rows = explorer.attention_rows(opened, REPEATED, 4)
    np.testing.assert_allclose(rows, weights[:, :, 4].numpy(), atol=1e-6)
    np.testing.assert_allclose(explorer.pattern(opened, REPEATED, 1, 2), weights[1, 2].numpy(), atol=1e-6)


def test_what_a_head_writes_is_the_difference_that_its_removal_makes_to_the_final_state(tiny, monkeypatch):
    opened = tiny["llama"]
    model = opened.model
    monkeypatch.setattr(model, "tokenizer", _Names())
    reading = explorer.read(opened, REPEATED)
    layer, head, at = 1, 2, 6
    found = explorer.head_writes(opened, reading, layer, head, at, k=5)
    hf = model.hf
    span = slice(head * model.d_head, (head + 1) * model.d_head)
    with torch.no_grad():
        wrote = (
            reading.z[layer, at].flatten()[span].double()
            @ hf.model.layers[layer].self_attn.o_proj.weight.T[span].double()
        )
        final = reading.stream[-1, at].double()
        norm = hf.model.norm.double()
        gain = (norm(final) - norm(final - wrote)) @ hf.lm_head.weight.T.double()
        hf.model.norm.float()
    gain = (gain - gain.mean()).numpy()
    for token, value in found.select("id", "logit").iter_rows():
        assert value == pytest.approx(gain[token], abs=2e-5)
    assert found.filter(pl.col("side") == "up")["id"].to_list() == np.argsort(-gain, kind="stable")[:5].tolist()
    best = int(reading.logits.argmax())
    pick = (pl.col("layer") == layer) & (pl.col("head") == head)
    against = explorer.direct_effects(opened, reading, Target(best, 3), position=at).filter(pick)
    assert against["direct_effect"].item() == pytest.approx(gain[best] - gain[3], abs=4e-5)


def test_the_strongest_destinations_come_first_and_equal_ones_in_their_order(story):
    ids = opened_model.encode(story, "Once upon a time there was a big dog")
    row = explorer.attention_rows(story, ids, len(ids) - 1)[2, 3]
    found = explorer.strongest(story, ids, row, k=4)
    assert found["position"].to_list() == sorted(range(len(ids)), key=lambda i: -row[i])[:4] != [0, 1, 2, 3]
    assert found["weight"].to_list() == pytest.approx(sorted(row.tolist(), reverse=True)[:4])
    assert found["text"].to_list() == [story.model.token_strings(ids)[i] for i in found["position"]]
    level = np.full(len(ids), 1 / len(ids), np.float32)
    assert explorer.strongest(story, ids, level, k=3)["position"].to_list() == [0, 1, 2]


class _Names:
    """Just enough of a tokenizer for tables: token 7 reads "t7"."""

    all_special_ids = []
    unk_token_id = None

    def convert_ids_to_tokens(self, i):
        return f"t{i}"

    def decode(self, ids, **_):
        return " ".join(f"t{i}" for i in ids)


def test_the_distribution_before_and_after_is_of_the_whole_vocabulary(story):
    ids = opened_model.encode(story, "Once upon a time, there was a little")
    before, after = explorer.read(story, ids), explorer.read(story, ids, Switches(tuple(story.model.heads()), "zero"))
    frame = explorer.next_tokens(story, before, after, k=6)
    p, q = before.logits.double().softmax(-1).numpy(), after.logits.double().softmax(-1).numpy()
    for token, a, b in frame.select("id", "probability", "after").iter_rows():
        assert a == pytest.approx(p[token], abs=1e-6) and b == pytest.approx(q[token], abs=1e-6)
    assert {int(p.argmax()), int(q.argmax())} <= set(frame["id"])
    moved = explorer.shift(before, after)
    assert moved["kl"] == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-6)
    assert moved["total_variation"] == pytest.approx(float(np.abs(p - q).sum() / 2), rel=1e-6)
    assert moved["same_top"] == bool(p.argmax() == q.argmax())
    none = explorer.shift(before, before)
    assert none == {"kl": 0.0, "total_variation": 0.0, "same_top": True}


def test_mean_ablation_puts_the_mean_over_the_reference_in_place(story):
    ids = opened_model.encode(story, "Once upon a time")
    z = [explorer.read(story, row).z for row in switches.reference(story)]
    mean = torch.cat(list(z), dim=1)[2, :, 3].mean(0)  # head 3 of layer 2 over every token
    found = explorer.read(story, ids, Switches(((2, 3),), "mean"))
    np.testing.assert_allclose(
        found.z[2, :, 3].numpy(), np.broadcast_to(mean.numpy(), (len(ids), len(mean))), atol=1e-5
    )


def test_tokens_are_those_fed_and_bad_prompts_are_refused_with_a_sentence(story):
    ids = opened_model.encode(story, "Once upon")
    frame = opened_model.tokens(story, ids)
    assert (
        frame["id"].to_list() == list(ids) and frame["special"].to_list()[0] and not any(frame["special"].to_list()[1:])
    )
    with pytest.raises(InputError, match="empty"):
        opened_model.encode(story, "")
    with pytest.raises(InputError, match="tokens"):
        opened_model.encode(story, "a b " * 2000)
    with pytest.raises(InputError, match="does not exist"):
        explorer.read(story, ids, Switches(((9, 9),), "zero"))
    with pytest.raises(InputError, match="second prompt"):
        explorer.read(story, ids, Switches(((0, 0),), "patch"))


@pytest.mark.parametrize("how", ["zero", "mean", "patch"])
def test_a_switched_mlp_adds_nothing_its_mean_or_what_it_adds_on_the_second_prompt(story, how):
    ids = opened_model.encode(story, "Once upon a time, there was a dog")
    donor = opened_model.encode(story, "Once upon a time, a cat sat")
    off, layer = Switches(((1, 2),), how, donor if how == "patch" else (), (2,)), 2
    kept = []
    block = story.model.hf.model.layers[layer].mlp

    def plain(rows):
        handle = block.register_forward_hook(lambda _m, _a, out: kept.append(out[0].double()))
        with torch.no_grad():
            story.model.hf(input_ids=torch.tensor([rows]), use_cache=False)
        handle.remove()
        return kept.pop()

    if how == "zero":
        expected = torch.zeros(len(ids), story.model.width)
    elif how == "mean":
        expected = torch.cat([plain(row) for row in switches.reference(story)]).mean(0).expand(len(ids), -1)
    else:
        expected = plain(list(donor))[-len(ids) :]
    found = sub_blocks(story, ids, None, off).mlp[layer]
    tail = min(len(ids), len(donor)) if how == "patch" else len(ids)
    torch.testing.assert_close(found[-tail:].double(), expected[-tail:].double(), atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="Only heads can attend uniformly"):
        explorer.read(story, ids, Switches((), "uniform", (), (2,)))
    with pytest.raises(InputError, match="no MLP of layer 99"):
        explorer.read(story, ids, Switches(mlps=(99,)))


def test_no_hook_is_left_behind_by_any_of_it(story):
    ids = opened_model.encode(story, "Once upon a time")
    before = explorer.read(story, ids).logits
    explorer.head_scores(story, [ids])
    explorer.attention_rows(story, ids, 2, Switches(((0, 0),), "uniform"))
    with pytest.raises(InputError):
        explorer.read(story, ids, Switches(((0, 99),), "zero"))
    assert torch.equal(explorer.read(story, ids).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in story.model.hf.modules())


def test_masks_are_files_that_edit_reads_and_names_stay_in_their_folder(story):
    switches = Switches(((0, 1), (2, 3)), "zero")
    path = head_sets.save_mask("my heads", switches, model=story.model)
    assert (
        read_mask(path).model["fingerprint"] == story.model.fingerprint
        and read_mask(path).mismatch_warning(story.model) is None
    )
    masks = head_sets.saved_masks()
    assert masks == {"my heads": path} and head_sets.load_mask("my heads", masks) == switches
    assert load_edits(path)[0].heads == switches.heads
    for name in ("../x", "a/b", "", ".hidden", "x" * 80):
        with pytest.raises(InputError):
            head_sets.save_mask(name, switches)
        with pytest.raises(InputError):
            head_sets.load_mask(name, masks)
    with pytest.raises(InputError, match="nothing to save"):
        head_sets.save_mask("none", Switches())


@pytest.mark.parametrize("how", switches.HOW)
def test_a_mask_is_saved_as_what_it_is_or_refused(how):
    """The file of heads knows zero and uniform; a mean or a patch must not come back as zero."""
    switches = Switches(((0, 1),), how, donor=(1, 2) if how == "patch" else ())
    if how in head_sets.MASKS:
        assert load_edits(head_sets.save_mask("m", switches))[0].how == how
        assert head_sets.load_mask("m", head_sets.saved_masks()).how == how
    else:
        with pytest.raises(InputError, match=f"cannot hold '{how}'"):
            head_sets.save_mask("m", switches)
        assert head_sets.saved_masks() == {}


def fake_run(folder, identifier, frame=None, *, status="complete", fingerprint="a"):
    from workbench.runs.folder import Run

    (folder / identifier / "tables").mkdir(parents=True)
    if frame is not None:
        frame.write_parquet(folder / identifier / "tables" / "heads.parquet")
    about = {"fingerprint": fingerprint, "layers": 1, "heads": 1}
    return Run(folder / identifier, {"id": identifier, "probe": "p", "status": status, "model": about})


def test_pruned_heads_of_complete_runs_of_the_same_weights_are_masks_too(tmp_path):
    from workbench.engine.head_masks import save_heads

    runs = [
        fake_run(tmp_path, "r-1"),
        fake_run(tmp_path, "r-2", fingerprint="b"),
        fake_run(tmp_path, "r-3", status="failed"),
    ]
    for run in runs:
        for name in ("pruned_heads", "pruned_heads_memory"):
            save_heads(run.folder / f"{name}.json", [(0, 0)], how="zero")
    found = head_sets.saved_masks(runs, fingerprint="a")
    assert list(found) == ["pruned heads · r-1", "pruned heads memory · r-1"]
    assert head_sets.load_mask("pruned heads · r-1", found) == Switches(((0, 0),), "zero")


def test_columns_of_runs_colour_only_the_model_they_were_made_on_and_a_damaged_table_is_left_out(tmp_path):
    frame = pl.DataFrame(
        {
            "layer": [0, 0],
            "head": [0, 1],
            "score": [0.5, 0.7],
            "ci_low": [0.4, 0.4],
            "is_retrieval": [False, True],
            "role": ["x", "x"],
            "kv_group": [0, 0],
        }
    )
    runs = [fake_run(tmp_path, "r-0", frame), fake_run(tmp_path, "r-1", frame)]
    (tmp_path / "r-0" / "tables" / "heads.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match="table 'heads' of the run r-0"):
        runs[0].table("heads")
    assert head_sets.head_tables(runs, fingerprint="b") == []
    tables = head_sets.head_tables(runs, fingerprint="a")
    assert head_sets.run_columns(tables) == {
        "score · r-1": ("r-1", "score"),
        "is_retrieval · r-1": ("r-1", "is_retrieval"),
    }
    assert head_sets.best_head(tables) == (0, 1) and head_sets.best_head([]) is None
    ((run, found),) = tables
    for column, mark, best in (("is_retrieval", [True, False], (0, 0)), ("is_retrieval", [False, False], None)):
        assert head_sets.best_head([(run, found.with_columns(pl.Series(column, mark)))]) == best
    by_role = found.drop("is_retrieval").with_columns(role=pl.Series(["context", "none"]))
    assert head_sets.best_head([(run, by_role)]) == (0, 0)  # 0.1 scores higher, and the run says that it is nothing


def test_the_examples_of_every_organism_are_in_its_own_words():
    from types import SimpleNamespace as Simple

    from transformers import AutoTokenizer

    from workbench import organisms
    from workbench.explorer import example_prompts as examples

    names = [name for name in organisms.names() if "@" not in name]
    assert len(names) >= 12
    for name in names:
        tokenizer = AutoTokenizer.from_pretrained(organisms.folder(name))
        opened = Simple(model=Simple(tokenizer=tokenizer))
        prompts = examples.prompts(name)
        assert prompts and all(opened_model.unknown(opened, tokenizer(text)["input_ids"]) == 0 for text in prompts), (
            name
        )
        strange = tokenizer("qqzzy qqzzy")["input_ids"]
        assert (
            opened_model.unknown(opened, strange)
            == strange.count(tokenizer.unk_token_id)
            >= (2 if name.startswith("circuit") else 0)
        )
    assert examples.prompts("gpt2") == list(examples.ENGLISH)
