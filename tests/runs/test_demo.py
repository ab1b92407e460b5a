"""The short run that the Demo button asks for: on any model it completes, or the reason why there is none is known
before the model is loaded."""

from __future__ import annotations

import pytest

from tests.support.odd_models import save
from tests.support.short_runs import LESS, PROBES
from workbench.core import config as configs
from workbench.core import registry
from workbench.core.errors import InputError
from workbench.models import loading
from workbench.runs import demo, execution, queue


def named(name: str):
    return registry.get(name)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The folder of a model of this architecture and context."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def folder(name: str, context: int, tokenizer: bool = True) -> str:
        key = f"{name}-{context}-{tokenizer}"
        if key not in made:
            made[key] = str(save(root / key, name, context=context, tokenizer=tokenizer))
        return made[key]

    return folder


@pytest.fixture
def neutral(tmp_path) -> str:
    """A text for the perplexity of pruned models that is read in no time."""
    (tmp_path / "neutral.txt").write_text("The road goes down to the sea.\nNobody had seen the boat.\n")
    return str(tmp_path / "neutral.txt")


def completes(probe: str, model: str, **less) -> execution.Run:
    config = demo.settings(named(probe), model) | LESS[probe] | less
    run = execution.execute(probe, model, config=config)
    assert run.status == "complete" and run.summary
    return run


@pytest.mark.shared_data
@pytest.mark.parametrize("probe", ["retrieval-heads", "knowledge-conflict"])
def test_the_short_run_completes_on_a_tiny_trained_model(probe, stories260k, neutral):
    assert demo.problem(named(probe), str(stories260k)) is None
    run = completes(
        probe,
        str(stories260k),
        **({"neutral": neutral, "max_new_tokens": 2} if probe == "knowledge-conflict" else {}),
    )
    # it knows neither facts nor needles
    assert any(said.startswith(("The model answered none", "The model knows none")) for said in run.info["warnings"])


TOO_SHORT = {
    "retrieval-heads": 128,
    "token-filter": 128,
}  # the longest context tried that holds no needle of this tokenizer


@pytest.mark.parametrize("name,context", [("gpt2", 64), ("llama", 128)])
@pytest.mark.parametrize("probe", PROBES)
def test_the_short_run_completes_in_a_short_context_or_there_is_a_reason(probe, name, context, short, neutral):
    model, problem = short(name, context), demo.problem(named(probe), short(name, context))
    if context <= TOO_SHORT.get(probe, 0):
        assert f"The context of {model} ({context} tokens) cannot hold" in str(problem) and "--data" in str(problem)
    else:
        assert problem is None
        less = probe == "knowledge-conflict" and name == "llama"  # the shortest context reads the essays that ship
        completes(probe, model, **({"neutral": neutral} if less else {}))


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("context", [8, 16, 32, 64, 200, 512, 4096])
def test_no_setting_goes_beyond_the_context(probe, context, short):
    """Said before the model is loaded, and in one sentence."""
    model = short("llama", context)
    try:
        values = demo.settings(named(probe), model)
    except InputError as error:
        assert context < 200 and model in str(error) and str(error).count(". ") == 0
        return
    config = configs.build(named(probe).config, values)
    if probe in ("retrieval-heads", "token-filter"):
        assert max(config.lengths) + config.max_new_tokens <= context
    if probe in ("concept-depth", "knowledge-conflict", "branching-factor"):
        assert (config.long == "skip") == (context < 200)


@pytest.mark.parametrize("probe", PROBES)
def test_a_model_that_lacks_what_every_probe_needs_is_refused_before_it_is_loaded(probe, short, monkeypatch):
    def no_loading(*_args, **_more):
        raise AssertionError("the model is loaded")

    lacking = {
        short("llama", 512, False): "has no tokenizer",
        short("mamba", 512): "has no attention",
        short("t5", 512): "no causal language model",
    }
    monkeypatch.setattr(loading, "load", no_loading)
    for model, reason in lacking.items():
        assert reason in str(demo.problem(named(probe), model))
        for start in (execution.execute, queue.submit, lambda name, model: execution.prepare(name, model=model)):
            with pytest.raises(InputError, match=reason) as said:
                start(probe, model)
            assert str(said.value).startswith(f"{probe} cannot run on this model: ")


@pytest.mark.parametrize(
    "architecture,refusing",
    [
        (
            "gpt_oss",
            dict.fromkeys(
                ("retrieval-heads", "talking-heads", "token-filter"), "the attention rows of layer 0 do not sum to 1"
            ),
        ),
        (
            "bitnet",
            dict.fromkeys(("knowledge-conflict", "talking-heads"), "heads are mixed before the output projection"),
        ),
        (
            "modernbert-decoder",
            {
                "knowledge-conflict": "variant=auto cannot be measured",
                "latent-language": "its logits are not the unembedding of its final norm",
            },
        ),
    ],
)
def test_an_architecture_is_refused_by_the_probes_that_it_does_not_fit_and_by_no_other(architecture, refusing, short):
    said = {probe: demo.problem(named(probe), short(architecture, 512)) for probe in PROBES}
    assert {probe for probe, problem in said.items() if problem is not None} == set(refusing)
    assert all(reason in said[probe] for probe, reason in refusing.items())


def test_where_one_way_of_measuring_is_closed_the_short_run_takes_another(short):
    assert demo.settings(named("knowledge-conflict"), short("granite", 512))["variant"] == "total"
    assert demo.settings(named("retrieval-heads"), short("gptj", 512))["ablation"] == "zero"
    assert "variant" not in demo.settings(named("knowledge-conflict"), short("llama", 512))
    execution.prepare("knowledge-conflict", model=short("granite", 512))  # variant=auto measures what can be
    with pytest.raises(InputError, match="variant=direct cannot be measured.*Use variant=total"):
        execution.prepare("knowledge-conflict", config={"variant": "direct"}, model=short("granite", 512))
    with pytest.raises(InputError, match="use ablation=zero"):
        execution.prepare("retrieval-heads", model=short("gptj", 512))


@pytest.mark.parametrize("lengths", [(512,), (64, 500)])
def test_lengths_beyond_the_context_are_refused_before_the_model_is_loaded(lengths, short):
    with pytest.raises(InputError, match="and an answer of 50 go beyond the context of 512"):
        execution.prepare("retrieval-heads", {"lengths": lengths}, model=short("llama", 512))
    assert execution.prepare("retrieval-heads", {"lengths": (462,)}, model=short("llama", 512))


@pytest.mark.parametrize("model", ["no-such-model", "./no/such/folder", " "])
def test_a_model_that_is_not_there_has_no_short_run(model):
    assert demo.problem(named("branching-factor"), model)


def test_a_probe_says_of_its_own_what_model_it_takes(monkeypatch, short):
    import dataclasses

    def example(about):
        if about.layers > 2:
            raise InputError(f"{about.name} has {about.layers} layers, too many.")
        return {"samples": 1}

    probe = dataclasses.replace(named("branching-factor"), example=example, needs=("heads_apart",))
    assert demo.problem(probe, short("llama", 512)).endswith("has 3 layers, too many.")
    assert demo.settings(probe, "circuit-copy") == {"samples": 1}
    assert "heads are mixed" in demo.problem(dataclasses.replace(probe, example=lambda _: {}), short("bitnet", 512))
    assert "has no example" in demo.problem(dataclasses.replace(probe, example=None), "circuit-copy")
