"""Questions as files hold them, what counts as an answer, and where the first hop ends."""

import json

import pytest

from probes.hopping import english_questions, world_questions
from probes.hopping.answers import describes, says, usable
from probes.hopping.asking import ask, describing
from probes.hopping.config import Config
from probes.hopping.questions import check_aliases, phrase_end, read_questions
from workbench.core import config as configs
from workbench.core import registry
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.tables import read_table
from workbench.models.loading import load
from workbench.runs import execution


def file_of(tmp_path, rows, name="questions.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


TEMPLATES = {
    "e1": "Imagine",
    "e2": "John Lennon",
    "e3": "Yoko Ono",
    "r1_template": "the performer of {}",
    "r2_template": "the spouse of {}",
}


def test_templates_make_the_prompts_of_the_paper(tmp_path):
    (question,) = read_questions(Config(), file_of(tmp_path, [TEMPLATES]))
    assert question.prompts == {
        "hop1": "The performer of Imagine is",
        "hop2": "The spouse of John Lennon is",
        "two_hop": "The spouse of the performer of Imagine is",
        "entity_shortcut": "The spouse of Imagine is",
        "relation_shortcut": "The spouse of the performer is",
    }
    assert question.prompt[: phrase_end(question)] == "The spouse of the performer of Imagine"
    assert question.cluster == "john lennon"


def test_the_papers_own_file_is_read_under_its_column_names(tmp_path):
    row = {f"{name}_label": TEMPLATES[name] for name in ("e1", "e2", "e3")}
    row |= {
        "e2_aliases": "['Lennon', 'J']",
        "e3_aliases": "['Ono']",
        "source_prompt": "the spouse of the performer of ",
    }
    row["source_prompt"] += "Imagine is"
    row |= {name: TEMPLATES[name] for name in ("r1_template", "r2_template")}
    said: list[str] = []
    (question,) = read_questions(Config(), file_of(tmp_path, [row]), said.append)
    assert question.bridge == ("John Lennon", "Lennon") and question.answer == ("Yoko Ono", "Ono")
    assert question.prompt == "the spouse of the performer of Imagine is"  # as the file has it
    assert "e1_label is read as e1" in said[0]


def test_prompts_of_a_file_are_taken_as_they_are_and_shortcuts_follow_from_them(tmp_path):
    row = {"e1": "Pizza", "e2": "Italy|Italia", "e3": "Rome", "prompt": "The capital city of the country where Pizza "}
    row["prompt"] += "originates is "
    row |= {"hop1": "The country where Pizza originates is", "hop2": "The capital city of Italy is"}
    (question,) = read_questions(Config(), file_of(tmp_path, [row]))
    assert question.bridge == ("Italy", "Italia") and not question.prompt.endswith(" ")
    assert question.phrase == "The country where Pizza originates"  # of the first hop, without its end
    assert question.prompt[: phrase_end(question)].endswith("where Pizza originates")
    assert question.entity_shortcut == "The capital city of Pizza is"
    assert question.relation_shortcut == "The capital city of the country where originates is"


@pytest.mark.parametrize(
    "change,said",
    [
        ({"r1_template": "the performer"}, r"row 1: r1_template needs \{\} once"),
        ({"e2": None}, "row 1: the field 'e2' is empty"),
        ({"e1": " "}, "row 1: the field 'e1' is empty"),
        ({"phrase": "the singer of Imagine"}, "the phrase 'the singer of Imagine' does not stand in the prompt"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named_in_one_sentence(tmp_path, change, said):
    with pytest.raises(InputError, match=said) as caught:
        read_questions(Config(), file_of(tmp_path, [TEMPLATES | change]))
    assert "\n" not in str(caught.value)


def test_a_file_without_a_bridge_says_what_it_needs(tmp_path):
    with pytest.raises(InputError, match="has no column 'e2'.*e1, r1_template and r2_template"):
        read_questions(Config(), file_of(tmp_path, [{"prompt": "a", "e3": "b"}]))


def test_names_are_found_in_any_case_and_those_of_one_character_only_alone():
    assert usable("8", ["eight", "8", "V"]) == ("8", "eight")
    assert says("it is ROME, of course", ("Rome",)) and says("Romeo", ("Rome",))  # the paper's rule
    assert not says("Romeo", ("Rome",), "words") and says("to Rome.", ("Rome",), "words")
    assert says("an 8.", ("8",)) and not says("in 1848", ("8",))
    assert not says("", ("Rome",))


def test_a_description_names_an_entity_as_the_describing_prompt_does():
    for text in (": Rome is", ": ROME, the", ": rome.", ": Rome: a", "Rome: Rome", "x Rome: y"):
        assert describes(text, ("Rome",)), text
    for text in ("Rome is", ": Romeo is", ": Rome", "Rome,"):
        assert not describes(text, ("Rome",)), text


def test_answers_that_a_bridge_names_are_counted(tmp_path):
    rows = [TEMPLATES, TEMPLATES | {"e2": "Mexico City", "e3": "Mexico"}]
    assert check_aliases(read_questions(Config(), file_of(tmp_path, rows))) == 1


def test_the_files_that_ship_are_what_the_facts_say():
    for module, rows in (
        (english_questions, english_questions.english_questions()),
        (world_questions, world_questions.world_questions()),
    ):
        held = [json.loads(line) for line in module.FILE.read_text(encoding="utf-8").splitlines()]
        assert sorted(map(json.dumps, held)) == sorted(map(json.dumps, rows))
        assert len({json.dumps(row) for row in held}) == len(held)


def test_the_english_questions_have_many_bridges_and_the_first_of_them_all_differ():
    questions = read_questions(Config(), english_questions.FILE)
    bridges = [question.cluster for question in questions]
    assert len(questions) >= 150 and check_aliases(questions) == 0 and len(set(bridges)) >= 50
    assert len(set(bridges[:50])) == 50
    assert all(len(question.prompts) == 5 and question.phrase for question in questions)
    for question in questions:  # the answer stands in nothing that is asked
        asked = " ".join(question.prompts.values())
        assert not says(asked, question.answer, "words"), question


def test_no_english_answer_stands_in_the_name_of_another_country_or_people():
    near = "Ukraine Romania Roman Jerusalem Belarus Niger Nigeria Guinea Europe European thousand".casefold().split()
    for question in read_questions(Config(), english_questions.FILE):
        for name in question.answer:
            assert not [word for word in near if name.casefold() in word], name


def test_the_questions_about_the_world_are_its_facts_composed():
    from workbench.organism_training.world import facts

    table = {(fact.subject, fact.object) for fact in facts().values()}
    rows = read_table(world_questions.FILE, what="questions").to_dicts()
    assert len(rows) == 568
    for row in rows:
        assert (row["e1"], row["e2"]) in table and (row["e2"], row["e3"]) in table


def test_the_first_hop_ends_where_its_words_end_in_raw_text_and_in_chat(tmp_path):
    model = load("organism-chat")
    path = file_of(tmp_path, [row for row in world_questions.world_questions()][:3])
    for template in ("raw", "chat"):
        context = Context(data=path)
        for one in ask(model, Config(template=template), context):
            assert one.t2 == len(one.prompt) - 1
            assert model.decode(one.prompt[: one.t1 + 1]).endswith(one.question.phrase)
            assert (one.t1 == one.t2 - 1) == (template == "raw")


def test_a_describing_prompt_ends_with_its_word_as_one_token(tmp_path):
    model = load("organism")
    assert model.token_strings(describing(model, "Velgrad: Velgrad is a city, x"))[-1] == "x"
    with pytest.raises(InputError, match="must end with the word x as one token"):
        describing(model, "a city, xx")
    for bad in ({"describe_prompt": "Velgrad: Velgrad is a city"}, {"describe_layers": ()}, {"positions": ("t3",)}):
        with pytest.raises(InputError):
            configs.build(Config, bad)
    with pytest.raises(InputError, match="decoding"):
        configs.build(Config, {"decoding": "heat=1"})
    with pytest.raises(InputError, match="describe_layers names layer 6, and organism has layers 0–5"):
        execution.execute("hopping", model, config={"describe_layers": (6,), "limit": 2}, out=tmp_path / "run")


def test_organisms_read_their_world_and_other_models_the_english_that_ships():
    for name in ("organism", "organism-chat", "organism@step-1"):
        assert execution.prepare("hopping", model=name).data_name == "probes.hopping:material/world.jsonl"
    assert execution.prepare("hopping", model="gpt2").data_name == "probes.hopping:material/questions.jsonl"
    material = registry.get("hopping").material
    assert material(Config(), "gpt2") != material(Config(), "organism")
    assert material(Config(describe="off"), "gpt2") == {}


@pytest.mark.shared_data
def test_published_two_hop_questions_load_by_the_names_of_their_columns(shared):
    names = "prompt:prompt_two_hop,hop1:prompt_hop1,hop2:prompt_hop2"
    config = configs.build(Config, {"columns": names})
    questions = read_questions(config, shared("multihop/two_hop_dev.jsonl"))
    assert len(questions) == 119 and all(len(question.prompts) == 5 for question in questions)
    assert all(phrase_end(question) < len(question.prompt) for question in questions)


@pytest.mark.shared_data
def test_published_questions_without_their_hops_are_asked_as_they_are(shared):
    config = configs.build(Config, {"columns": "e2:intermediates,e3:target"})
    questions = read_questions(config, shared("multihop/lens-eval-multihop.json"))
    assert len(questions) > 50 and {tuple(question.prompts) for question in questions} == {("two_hop",)}
    assert all(phrase_end(question) is None for question in questions)


def test_what_tokenizer_and_context_say_against_a_run_is_said_before_the_weights_are_read(tiny_llama, tmp_path):
    from workbench.models.unloaded_model import open_unloaded

    model = str(tiny_llama)
    probe = registry.get("hopping")
    about = open_unloaded(model).about
    assert execution.check_unloaded(execution.prepare(probe, probe.example(about), model=model), model) is None
    long = file_of(tmp_path, [TEMPLATES | {"e1": "imagine " * 600}])
    for config, data, said in (
        ({"describe_layers": (5,)}, None, "describe_layers names layer 5, and .* has layers 0–4"),
        ({"describe_prompt": "a stone, " * 300 + "x"}, None, "The describing prompt has [0-9,]+ tokens"),
        ({}, long, "no question fits the context"),
    ):
        with pytest.raises(InputError, match=said):
            execution.execute("hopping", model, config=config, data=data)


def test_a_phrase_is_found_as_whole_words_where_it_stands_last(tmp_path):
    rows = [
        {"prompt": "The art of the artist of art is", "e2": "a b", "e3": "c d", "phrase": "art"},
        {"prompt": "İs the singer of X is", "e2": "a b", "e3": "c d", "phrase": "the singer of X"},
    ]
    first, second = read_questions(Config(), file_of(tmp_path, rows))
    assert first.prompt[: phrase_end(first)] == "The art of the artist of art"
    assert second.prompt[: phrase_end(second)] == "İs the singer of X"


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "file,columns,placed",
    [
        ("two_hop_dev.jsonl", "prompt:prompt_two_hop,hop1:prompt_hop1,hop2:prompt_hop2", True),
        ("lens-eval-multihop.json", "e2:intermediates,e3:target", False),
    ],
)
def test_published_questions_run_on_a_tiny_trained_model(shared, stories260k, tmp_path, file, columns, placed):
    config = {"columns": columns, "limit": 4, "keep": "all", "items": 2, "describe_layers": "same", "shuffles": 2}
    data = shared(f"multihop/{file}")
    run = execution.execute("hopping", str(stories260k), config=config, data=data, out=tmp_path / "run")
    assert run.table("items").height == 4 and run.table("backpatch").height
    assert (run.table("inputs")["t1"].null_count() == 0) == placed
    assert ("knockout" in set(run.table("layers")["stage"])) == placed
    assert set(run.table("backpatch")["position"]) == ({"t1", "t2"} if placed else {"t2"})
    said = " ".join(run.info["warnings"])
    assert ("it is not known where the first hop ends" in said) == ("count as known" in said) == (not placed)
