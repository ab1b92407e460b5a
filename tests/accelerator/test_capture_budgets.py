"""What captures, edits, patches, autoencoders and data selection cost on a device, counted on the virtual accelerator;
and that their numbers are those of the CPU."""

import linecache

import numpy as np
import pytest
import torch

from probes.data_selection import Config, run
from tests import virtual_accelerator as va
from tests.support.architectures import build
from tests.support.selection_pool import sentence, write
from workbench.core.context import Context
from workbench.engine import patching
from workbench.engine.capture import capture, shards
from workbench.engine.edits import HeadAblation, HeadScale, Patch, ProjectOut
from workbench.engine.evaluation import token_losses
from workbench.engine.head_gates import gate_slopes
from workbench.engine.mean_head_outputs import mean_head_outputs
from workbench.engine.steering import Steer
from workbench.models.devices import free_caches
from workbench.models.loading import load, wrap
from workbench.models.sites import Site, sites
from workbench.sae import load as sae
from workbench.sae import train as training
from workbench.sae.sparse_rows import sum_tokens
from workbench.store.activation_store import Store

IDS = [[1, 5 + i, 9, 2, 40 + i, *range(60, 60 + i)] for i in range(6)]
SAME = [[1, 5 + i, 9, 2, 40 + i, 7] for i in range(6)]
BATCHES = 3  # of two rows each
WAITS = ("wait", "to_device", "to_host")


@pytest.fixture(scope="module")
def models(tiny_llama):
    """The same model on the CPU and on a virtual device."""
    with va.present():
        both = load(str(tiny_llama)), load(str(tiny_llama), device="virtual")
        capture(both[1], IDS[:2], ["logits"])  # what is made once is made
        yield both


@pytest.fixture(scope="module")
def plain(models):
    """What a capture without an edit costs."""
    return counted(models[1], lambda model: capture(model, IDS, ["final_norm"], max_rows=2, max_tokens=1000))[1]


def counted(model, function):
    """(what `function(model)` gives, what it cost)."""
    with va.counting() as counts:
        return function(model), counts


def plain_waits(model, lengths, rows=2) -> int:
    """The waits of Hugging Face's own passes over batches of these prompts, token ids sent as one does."""
    with va.counting() as counts, torch.no_grad():
        for start in range(0, len(lengths), rows):
            width = max(lengths[start : start + rows])
            model.hf.model(torch.ones(rows, width, dtype=torch.long).to("virtual"), use_cache=False)
    return counts.waits


@pytest.mark.parametrize("positions", ["all", "last", "mean", [0, -1], "beside_sinks:mean"], ids=str)
def test_a_capture_leaves_the_device_once_a_batch_and_waits_for_nothing_else(models, positions):
    cpu, device = models
    wanted = [*sites("resid_post", range(5)), "head_out.2.3"]

    def captured(model):
        return capture(model, IDS, wanted, positions=positions, max_rows=2, max_tokens=1000)

    found, counts = counted(device, captured)
    assert counts.waits <= plain_waits(device, [len(row) for row in IDS]), counts.of(*WAITS)
    assert counts.to_host_async == counts.event_wait == BATCHES
    assert counts.to_device_async <= 2 * BATCHES  # the batch, and where its tokens are
    expected = captured(cpu)
    for site in wanted:
        assert found[site].device.type == "cpu" and torch.equal(found[site], expected[site])


def test_the_next_batch_is_launched_before_the_last_one_is_waited_for(models, monkeypatch):
    begun, looked, forward, wait = [], [], type(models[1]).forward, va.Event.synchronize

    def noted(*args, **options):
        begun.append(0)
        return forward(*args, **options)

    monkeypatch.setattr(type(models[1]), "forward", noted)
    monkeypatch.setattr(va.Event, "synchronize", lambda event: looked.append(len(begun)) or wait(event))
    capture(models[1], IDS, ["resid_post.1"], max_rows=2)
    assert looked == [2, 3, 3]


def test_a_stored_capture_of_a_device_is_that_of_the_cpu(models, tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.engine.stored_capture.SHARD_BYTES", 1500)
    kept = [capture(model, IDS, ["resid_post.1"], positions="all", store=Store(tmp_path / name))["resid_post.1"]
            for name, model in zip(("cpu", "device"), models)]  # fmt: skip
    assert torch.equal(*kept) and len(list((tmp_path / "device").rglob("*.safetensors"))) > 2


def test_what_is_computed_when_a_capture_is_stopped_is_given_first(models):
    """On a device a batch is still on its way when the next one is asked for, which may be refused."""
    calls, given = [], []

    def check():
        calls.append(0)
        if len(calls) > 2:
            raise KeyError("stop")

    with pytest.raises(KeyError):
        for rows, _ in shards(models[1], IDS, ["resid_post.1"], max_rows=2, check=check):
            given.append(len(rows))
    assert given == [2, 2]


HEADS = tuple((layer, head) for layer in range(5) for head in (0, 3))
EDITS = {
    "zero": HeadAblation(HEADS),
    "zero at two positions": HeadAblation(HEADS, positions=(0, -1)),
    "mean": HeadAblation(HEADS, "mean", torch.randn(5, 8, 8)),
    "scale": HeadScale(HEADS, 0.5, (1,)),
    "patch": Patch(Site("resid_post", 1), torch.randn(2, 64), (-1, 1)),
    "patch by prompt": Patch(Site("head_out", 2), torch.randn(6, 2, 8, 8), (-2, 0)),
    "steer": Steer(Site("mlp_out", 1), torch.randn(64), 2.0, (-1,)),
    "project": ProjectOut(Site("resid_post", 1), torch.randn(2, 64)),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_costs_no_wait_and_is_sent_once_a_batch(models, plain, name):
    cpu, device = models
    edit = EDITS[name]

    def edited(model):
        return capture(model, IDS, ["final_norm"], edits=[edit], max_rows=2, max_tokens=1000)["final_norm"]

    found, counts = counted(device, edited)
    assert counts.waits == plain.waits, counts.of(*WAITS)
    assert counts.to_device_async - plain.to_device_async <= 2 * BATCHES  # its numbers, and where they belong
    assert torch.equal(found, edited(cpu))


TOKENS = [[5, 6]] * 3
MEASURES = {
    "direct": lambda m: patching.direct_effects(m, SAME[:3], SAME[3:], TOKENS),
    "direct of some heads": lambda m: patching.direct_effects(
        m, SAME[:3], SAME[3:], TOKENS, heads=[(3, 1), (0, 5), (3, 0), (3, 7)]
    ),
    "attribution": lambda m: patching.attribution(m, SAME[:3], SAME[3:], TOKENS),
    "head patching": lambda m: patching.head_patching(m, SAME[:1], SAME[3:4], TOKENS[:1]),
    "activation patching": lambda m: patching.activation_patching(
        m, SAME[:1], SAME[3:4], TOKENS[:1], "head_out", head=2, positions=[-1, 1]
    ),
    "losses": lambda m: np.concatenate(token_losses(m, IDS, max_rows=2)),
    "gates": lambda m: gate_slopes(m, SAME[:3], [5, 6, 7], torch.full((5, 8), 0.5)),
    "mean heads": lambda m: mean_head_outputs(m, IDS, max_rows=2),
}
# passes over the model, and times that their results are waited for
PASSES = {"direct": (2, 2), "direct of some heads": (2, 2), "attribution": (3, 1), "head patching": (8, 1)}
PASSES |= {"activation patching": (8, 1), "losses": (BATCHES, 1), "gates": (1, 2), "mean heads": (BATCHES, 1)}


@pytest.mark.parametrize("name", MEASURES)
def test_what_is_measured_waits_once_a_batch_and_not_in_its_passes(models, name):
    """A pass waits no more than Hugging Face's own; beside that there are only the results."""
    cpu, device = models
    found, counts = counted(device, MEASURES[name])
    passes, results = PASSES[name]
    own = plain_waits(device, [6], 1)
    assert counts.waits + counts.event_wait <= passes * own + results, counts.of(*WAITS, "event_wait")
    expected = MEASURES[name](cpu)
    for mine, theirs in zip(_numbers(found), _numbers(expected), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def _numbers(found) -> list[torch.Tensor]:
    if isinstance(found, patching.Effects):
        return [found.logits, found.normaliser, found.patched_logits, found.patched_normaliser]
    return [torch.as_tensor(found)]


def test_what_does_not_fit_on_a_device_is_halved_and_gives_the_same(models, tiny_llama, monkeypatch):
    """Eight rows at once do not fit into the memory, four do."""
    cpu, device = models
    ids = [[1, *range(5 + i, 90 + i)] for i in range(8)]
    wanted = capture(cpu, ids, ["resid_post.4"], positions="all")["resid_post.4"]
    rows, forward, module = [], type(device).forward, torch.get_device_module("virtual")
    capture(device, ids[:4], ["resid_post.4"], positions="all")
    module.reset_peak_memory_stats()
    capture(device, ids[:4], ["resid_post.4"], positions="all")
    most = module.max_memory_allocated()
    monkeypatch.setattr(
        type(device), "forward", lambda self, batch, **more: rows.append(len(batch.ids)) or forward(self, batch, **more)
    )
    va.set_memory(most + (most - module.memory_allocated()) // 4)
    try:
        found = capture(device, ids, ["resid_post.4"], positions="all", max_tokens=4096)["resid_post.4"]
    finally:
        va.set_memory(16 * 2**30)
        free_caches()
    assert rows == [8, 4, 4]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_encoding_waits_once_and_gives_the_rows_of_the_cpu(models, tmp_path, kind, monkeypatch):
    from tests.sae.test_sae import make

    made = [sae.load(make(tmp_path / "sae", kind), device=device) for device in ("cpu", "virtual")]
    monkeypatch.setitem(sae.PRE_ACTIVATIONS, "accelerator", 256 * 40 if kind == "topk" else 1 << 30)
    x = torch.randn(100, made[0].d_in, generator=torch.Generator().manual_seed(0))
    there = x.to("virtual")
    with va.counting() as counts:
        found = made[1].encode(there)
    expected = made[0].encode(x)
    assert counts.waits == 1, counts.of(*WAITS)
    assert torch.equal(found.dense().cpu(), expected.dense()) and len(found.value) == len(expected.value)
    owner = torch.arange(100) // 10
    with va.counting() as counts:
        summed = sum_tokens(found, owner.to("virtual"), 10)
    assert counts.wait == 1  # how many entries there are
    assert torch.equal(summed.dense().cpu(), sum_tokens(expected, owner, 10).dense())


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A folder with a pool of 60 texts, a target and an autoencoder."""
    from tests.sae.test_sae import make

    place, rng = tmp_path_factory.mktemp("pool"), np.random.default_rng(0)
    for name, n in (("pool", 60), ("sea", 8)):
        topics = ("sea", "park", "kitchen") if name == "pool" else ("sea",)
        write(place / f"{name}.jsonl", [sentence(rng, topics[i % len(topics)]) for i in range(n)])
    make(place / "sae", "topk")
    return place


def test_data_selection_waits_four_times_a_batch_and_selects_what_the_cpu_selects(models, pool):
    """For its sinks, for the number of active features, for that of the samples, and for the results."""

    def selected(model):
        config = Config(
            target=(str(pool / "sea.jsonl"),), sae=str(pool / "sae"), ratio=0.1, baselines=(), label="none",
            max_tokens=200, resamples=0, explain=0, features=4,
        )  # fmt: skip
        context = Context(seed=0, data=pool / "pool.jsonl")
        return run(model, config, context).tables, context.counters["forwards"]

    with va.counting() as counts:
        tables, forwards = selected(models[1])
    expected = selected(models[0])[0]
    passes = ("models/model.py", "models/batching.py", "engine/kv_cache.py")  # budgets of their own
    own = {line: n for line, n in counts.of(*WAITS, "event_wait").items() if not any(file in line for file in passes)}
    assert sum(own.values()) <= 4 * forwards + 80, own  # reading the autoencoder, sums of the whole pool, tables
    for name in ("scores", "selected", "features", "quality"):
        for column, kind in expected[name].schema.items():
            mine, theirs = tables[name][column], expected[name][column]
            if kind.is_float():
                np.testing.assert_allclose(mine.to_numpy(), theirs.to_numpy(), atol=1e-6, err_msg=f"{name}.{column}")
            else:
                assert mine.equals(theirs), f"{name}.{column}"


def test_training_an_autoencoder_looks_at_its_loss_every_few_steps_only(models, tmp_path, monkeypatch):
    """Waits of our own, beside those of sae-lens's step."""
    ids = [[1, *np.random.default_rng(i).integers(5, 500, 40).tolist()] for i in range(60)]
    own = {}
    for name, tokens in (("short", 64 * 20), ("long", 64 * 60)):
        recipe = training.SaeRecipe("resid_post.1", width=64, k=4, tokens=tokens, batch=64, context=41)
        with va.counting() as counts:
            training.train(models[1], ids, tmp_path / name, recipe, progress=lambda *_: None)
        own[name] = sum(n for line, n in counts.of(*WAITS).items() if _in_steps(line))
    assert own["long"] - own["short"] == 2 * 2, own  # two more looks: whether it diverged, and what the loss is


def _in_steps(line: str) -> bool:
    """Whether a counted line is of our loop over steps: not of sae-lens's step, which counts as the line that calls
    it."""
    file, _, number = line.rpartition(" ")[2].rpartition(":")
    return file.endswith("sae/train.py") and "trainer.step(" not in linecache.getline(training.__file__, int(number))


@pytest.mark.usefixtures("models")
def test_scores_of_a_model_in_bfloat16_are_those_of_float64_from_the_same_states():
    """On a device as well: states and weights have 16 bits; the norm, the scores and their sums do not."""
    model, ids = wrap(build("llama").to(torch.bfloat16), name="llama"), [[1, 5, 9, 2, 40], [3, 4, 5, 6, 7]]
    model.hf.to("virtual")
    last = f"resid_post.{model.n_layers - 1}"
    found = capture(model, ids, ["logits", last], positions="all")
    norm, x = model.hf.model.norm, found[last].double()
    normed = x / (x.square().mean(1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.cpu().double()
    scores = normed @ model.hf.lm_head.weight.cpu().double().T
    torch.testing.assert_close(found["logits"].double(), scores, atol=1e-5, rtol=1e-5)
    after = scores.view(2, 5, -1)[:, :-1].log_softmax(-1)
    expected = -after.gather(2, torch.tensor(ids)[:, 1:, None])[..., 0]
    np.testing.assert_allclose(np.stack(token_losses(model, ids)), expected.numpy(), atol=1e-5)
