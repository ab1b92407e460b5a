"""The conformance battery passes a good probe, and names what is wrong with each bad one."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from workbench.core import registry
from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.runs.checks import CHECKS, CheckFailed, check_probe

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402

MODEL = tiny_probes.fake_model()


def test_a_good_probe_passes_every_check():
    assert check_probe("parts", MODEL) == list(CHECKS)


def test_a_good_probe_on_a_real_model_passes_every_check(tiny_llama, tmp_path):
    (tmp_path / "t.csv").write_text("text\nOnce upon a time there was a dog\nThe big\nLily\nOne day\n")
    assert check_probe("next-token-entropy", str(tiny_llama), data=tmp_path / "t.csv", config={"most": 4}) == list(
        CHECKS
    )


def test_a_check_can_be_left_out_by_name_and_an_unknown_name_is_refused():
    assert check_probe("parts", MODEL, skip=("cancel", "threads")) == [
        name for name in CHECKS if name not in ("cancel", "threads")
    ]
    with pytest.raises(InputError, match="no check 'cancl'"):
        check_probe("parts", MODEL, skip=("cancl",))


def table(values) -> Result:
    frame = pl.DataFrame({"part": range(len(values)), "draw": [0] * len(values), "x": [float(v) for v in values]})
    return Result({"rows": frame}, summary={"n": len(values)})


def unseeded(model, config, context):
    context.progress(1, 1)
    return table([np.random.default_rng().normal()])


def global_generator(model, config, context):
    context.progress(1, 1)
    return table([np.random.normal()])


def shared_generator(model, config, context):
    """One generator over all parts: what a resumed run draws depends on which parts were loaded."""
    rng = context.rng("all")
    values = []
    for number in range(4):
        values.append(float(context.part(str(number), lambda: {"x": rng.normal(size=1)})["x"][0]))
        context.progress(number + 1, 4)
    return table(values)


def deaf(model, config, context):
    context.on_progress and context.on_progress(1, 2, "")
    for _ in range(3):
        context.cancelled and context.cancelled()
    return table([1])


def silent(model, config, context):
    return table([1])


def missing_column(model, config, context):
    context.progress(1, 1)
    return Result({"rows": pl.DataFrame({"part": [1]})}, summary={"n": 1})


def litter(model, config, context):
    context.progress(1, 1)
    np.save(context.out / "notes.npy", np.zeros(1))
    return table([1])


def beyond(model, config, context):
    context.progress(3, 2)
    return table([1])


def no_summary(model, config, context):
    context.progress(1, 1)
    return dataclasses.replace(table([1]), summary={})


@pytest.mark.parametrize(
    ("run", "check", "words"),
    [
        (unseeded, "determinism", "rows.x"),
        (global_generator, "determinism", "rows.x"),
        (shared_generator, "cancel", "resumed, the tables differ"),
        (deaf, "cancel", "went on to the end"),
        (silent, "run", "no progress"),
        (missing_column, "run", "lacks the column"),
        (litter, "run", "notes.npy"),
        (beyond, "run", "beyond its total"),
        (no_summary, "run", "summary is empty"),
    ],
)
def test_a_bad_probe_is_failed_by_the_check_that_is_about_it(run, check, words):
    bad = dataclasses.replace(registry.get("parts"), run=run)
    with pytest.raises(CheckFailed, match=f"fails the check '{check}': .*{words}"):
        check_probe(bad, MODEL)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"summary": ""}, "summary is empty"),
        ({"bibtex": "Wu et al."}, "BibTeX"),
        ({"tables": {}}, "no tables"),
        ({"example": lambda model: {"partz": 1}}, "no key 'partz'"),
        ({"keys": {"rows": ("nothing",)}}, "keys of 'rows'"),
        ({"figures": "somewhere"}, "module:function"),
        ({"figures": "no_such_module_anywhere:figures"}, "figures: .* cannot be imported"),
        ({"figures_of_several": "json:no_such_function"}, "figures_of_several: .* has no function"),
        ({"estimate": lambda config, data, model: 3}, "estimate gives int"),
        ({"leaves": {"*.json": "notes"}}, "also means run.json"),
        ({"leaves": {"sub/x.csv": "rows"}}, "not the name of a file"),
        ({"head_scores": {"rows": ("x",)}, "shares": ("y",)}, "shares"),
    ],
)
def test_a_bad_declaration_is_named(changes, words):
    with pytest.raises(CheckFailed, match=f"'declaration': .*{words}"):
        check_probe(dataclasses.replace(registry.get("parts"), **changes), MODEL)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_scores": {"rows": ("x",)}}, "head_scores of 'rows': there is no column layer, head"),
        ({"layer_curves": {"rows": ("x",)}}, "layer_curves of 'rows': there is no column layer"),
        ({"keys": {"more": ("nothing",)}, "run": "more"}, "keys of 'more': there is no column nothing"),
        ({"head_scores": {"more": ("part",)}, "run": "more"}, "several rows of one head"),
    ],
)
def test_declared_columns_that_the_tables_do_not_have_are_named(changes, words):
    if changes.get("run") == "more":
        changes = {**changes, "run": more_tables}
    with pytest.raises(CheckFailed, match=f"'run': .*{words}"):
        check_probe(dataclasses.replace(registry.get("parts"), **changes), MODEL)


def more_tables(model, config, context):
    context.progress(1, 1)
    found = table([1, 2])
    return dataclasses.replace(
        found, tables={**found.tables, "more": pl.DataFrame({"layer": [0, 0], "head": [1, 1], "part": [0, 1]})}
    )


def test_files_that_a_probe_declares_may_lie_in_its_folder_and_no_others():
    def leaves_a_note(model, config, context):
        (context.out / "note-1.txt").write_text("x")
        context.progress(1, 1)
        return table([1])

    bad = dataclasses.replace(registry.get("parts"), run=leaves_a_note)
    with pytest.raises(CheckFailed, match="'run': .*also holds note-1.txt"):
        check_probe(bad, MODEL)
    checked = check_probe(dataclasses.replace(bad, leaves={"note-*.txt": "a note"}), MODEL, skip=("cancel",))
    assert "run" in checked


def test_a_probe_that_does_not_look_at_its_data_first_is_failed():
    late = dataclasses.replace(registry.get("next-token-entropy"), validate=lambda config, data: None)
    with pytest.raises(CheckFailed, match="'bad-data'"):
        check_probe(late, MODEL)


class TestOnARealModel:
    """Faults that only a model can show."""

    def entropy_like(self, run) -> registry.Probe:
        return dataclasses.replace(registry.get("parts"), run=run)

    @pytest.fixture(scope="class")
    def model(self, tiny_llama):
        from workbench import load

        return load(str(tiny_llama))

    def test_a_hook_that_is_left_on_the_model_is_found(self, model):
        handles = []

        def leaky(model, config, context: Context):
            handles.append(model.hf.get_input_embeddings().register_forward_hook(lambda *_: None))
            context.progress(1, 1)
            return table([1])

        with pytest.raises(CheckFailed, match="'run': hooks were left on .*embed_tokens"):
            check_probe(self.entropy_like(leaky), model)
        handles[0].remove()

    def test_a_model_that_was_changed_is_found(self, model):
        weight = model.hf.get_input_embeddings().weight

        def vandal(model, config, context: Context):
            weight.data[0, 0] += 1
            context.progress(1, 1)
            return table([1])

        with pytest.raises(CheckFailed, match="'run': the model was changed"):
            check_probe(self.entropy_like(vandal), model)
        weight.data[0, 0] -= 1

    def test_a_result_that_depends_on_the_batch_is_found(self, model):
        def padded(model, config, context: Context):
            """Reads the row beside its own."""
            from workbench.models.batching import batches

            context.progress(1, 1)
            return table([len(batch) for batch in batches([3, 4, 4]) for _ in batch])

        with pytest.raises(CheckFailed, match="'batching': one prompt at a time"):
            check_probe(self.entropy_like(padded), model)

    def test_a_probe_whose_batches_cannot_be_taken_apart_is_failed(self, model):
        """It would be compared with itself."""

        def own_batches(model, config, context: Context):
            context.progress(1, 1)
            return table([len(batch) for batch in ([0, 1], [2])])

        def of_one(model, config, context: Context):
            from workbench.models.batching import batches

            context.progress(1, 1)
            return table([len(batch) for batch in batches([3])])

        for run in (own_batches, of_one):
            with pytest.raises(CheckFailed, match="'batching': no batch of more than one prompt"):
                check_probe(self.entropy_like(run), model)
