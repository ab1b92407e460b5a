"""The config key `columns`, the same in every probe, and published files through the whole of a run."""

from __future__ import annotations

import json

import pytest

from workbench.core import registry
from workbench.core.config import build
from workbench.core.errors import InputError
from workbench.core.registry import get
from workbench.runs.cost import Facts
from workbench.runs.execution import execute
from workbench.runs.preparation import prepare

CONFLICT = {
    "s": "Peru",
    "a": "Lima",
    "d": "Oslo",
    "clean": "The capital of Peru is",
    "conflict": "The capital of Peru is Oslo. The capital of Peru is",
}
# probe -> a row of the file, the columns as they are called there, other config
CASES = {
    "retrieval-heads": ({"n": "The key is red.", "q": "Which key?", "a": "red"}, "needle:n,question:q,answer:a", {}),
    "branching-factor": ({"task": "Say something.", "input": "not this"}, "prompt:task", {}),
    "representation-geometry": ({"body of it": "Some words.", "content": "not these"}, "text:body of it", {}),
    "layer-redundancy": ({"body of it": "Some words.", "content": "not these"}, "text:body of it", {}),
    "token-filter": ({"n": "The key is red.", "q": "Which key?", "a": "red"}, "needle:n,question:q,answer:a", {}),
    "bigram-subnetwork": ({"body of it": "Some words.", "content": "not these"}, "text:body of it", {}),
    "data-selection": ({"ask": "Why?", "say": "So.", "text": "not this"}, "prompt:ask,response:say", {"sae": "none"}),
    "knowledge-conflict": (
        CONFLICT,
        "subject:s,answer:a,distractor:d,clean_prompt:clean,conflict_prompt:conflict",
        {},
    ),
    "talking-heads": ({"t": "The cat sat on", "w": "cat"}, "prompt:t,target:w", {}),
}


def lines(folder, rows, name="data.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("probe", CASES)
def test_columns_name_what_a_file_calls_otherwise_and_the_nearest_name_is_said(tmp_path, probe):
    row, columns, more = CASES[probe]
    path = lines(tmp_path, [row] * 3)
    ready = prepare(probe, {"columns": columns, **more}, path)
    facts = Facts(None, layers=2, heads=2, width=8, context=64)
    assert get(probe).estimate(ready.config, ready.data, facts).prompts > 0
    last, there = columns.rpartition(":")[0::2]
    with pytest.raises(InputError) as caught:
        prepare(probe, {"columns": f"{last}:{there}x", **more}, path)
    assert f"no column '{there}x'" in str(caught.value) and all(name in str(caught.value) for name in row)
    with pytest.raises(InputError, match="There is no column 'nothing'"):
        prepare(probe, {"columns": "nothing:x", **more}, path)


@pytest.mark.parametrize("probe", CASES)
def test_columns_at_its_default_is_no_part_of_a_run_that_was_there_before(probe):
    field = {field.name: field for field in registry.get(probe).config.__dataclass_fields__.values()}["columns"]
    assert field.metadata["later"] == (probe != "knowledge-conflict")  # which has had the key from the beginning
    assert build(registry.get(probe).config, {}).columns == ()


def test_a_target_without_the_columns_of_the_pool_is_read_as_it_is(tmp_path):
    pool = lines(tmp_path, [{"ask": "Why?", "say": "So."}] * 3)
    target = lines(tmp_path, [{"question": "Why?", "answer": "So."}], "own.jsonl")
    part = lines(tmp_path, [{"ask": "Why?", "answer": "So."}], "part.jsonl")
    values = {"columns": "prompt:ask,response:say", "sae": "none"}
    assert prepare("data-selection", values | {"target": str(target)}, pool).data == pool
    with pytest.raises(InputError, match=r"part\.jsonl has no column 'say'"):
        prepare("data-selection", values | {"target": str(part)}, pool)


def test_a_published_file_gives_the_run_of_the_renamed_one_and_the_run_says_how_it_was_read(tmp_path, tiny_llama):
    texts = ["One small text.", "Another of a few words.", "And a third, to end."]
    values = {"fit_range": "1,2", "draws": 0, "curve": False, "ablate": "none", "loss_rows": 0, "map": "none"}
    plain = lines(tmp_path, [{"text": text} for text in texts])
    other = lines(tmp_path, [{"Story": text} for text in texts], "stories.json")
    runs = [
        execute("representation-geometry", str(tiny_llama), config=values, data=path, out=tmp_path / path.stem)
        for path in (plain, other)
    ]
    assert runs[0].table("layers").equals(runs[1].table("layers"))
    assert runs[1].info["data"]["read_as"] == ["stories.json: a column story: text from Story"]
    assert "read_as" not in runs[0].info["data"]


@pytest.mark.parametrize("template", ["chat", "{prompt} {response}"])
def test_a_talk_goes_into_a_chat_template_turn_by_turn_and_into_others_as_one_prompt(tiny_llama, tmp_path, template):
    from probes.data_selection.samples import tokenize
    from workbench.core.sample_tables import read_samples
    from workbench.models.loading import load
    from workbench.models.prompt_style import PromptStyle

    talk = [("system", "brief"), ("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    path = lines(tmp_path, [{"messages": [{"role": role, "content": said} for role, said in talk]}])
    model = load(str(tiny_llama))
    model.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    found = tokenize(
        model, read_samples(path, what="pool"), what="pool", tokens="response", style=PromptStyle(template)
    )
    whole = "".join(f"<{role}> {said} " for role, said in talk)
    text = whole if template == "chat" else "brief\n\none\n\ntwo\n\nthree four"
    assert found.ids[0].tolist() == model.encode(text, bos=template != "chat")  # a chat has what its template writes
    counted = model.tokenizer.decode(found.ids[0][found.masks[0]])
    assert counted.split() == ["two", "four"]  # every turn of the assistant's
