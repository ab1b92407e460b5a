"""The map of activations as a screen."""

import polars as pl
import pytest

from tests.support.app_screens import open_page, words
from workbench import organisms, probe
from workbench.engine.capture import capture
from workbench.models.loading import load
from workbench.store.activation_store import Store


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    pl.read_ndjson(organisms.data("pool")).head(40).write_ndjson(path)
    return path


@pytest.fixture
def selection(pool):
    return probe(
        "data-selection", data=pool, target=("sea", "music"), baselines=(), features=0, explain=0, resamples=0
    ).run("organism")


def chart(at):
    import json

    return json.loads(at.get("plotly_chart")[0].proto.spec)


def test_the_screen_opens_on_what_ships_where_there_is_no_run():
    at = open_page("activations")
    assert at.selectbox(key="source").value == "texts texts" and "Trustworthiness of the PCA" in words(at)
    at.selectbox(key="source").set_value("a file").run()
    assert "Type the path of a file" in words(at)
    assert not at.exception


def test_a_run_opens_on_its_pool_coloured_by_its_scores_and_a_link_restores_all_of_it(selection):
    label = f"run {selection.id}"
    at = open_page("activations")
    assert at.selectbox(key="source").value == label  # the latest run comes first
    assert at.selectbox(key="part").value == "pool" and at.selectbox(key="token").value == "mean"
    assert at.query_params["source"] == label and at.selectbox(key="colour of points").value == "label"
    assert {"score · sea", "score · music", "cluster"} <= set(at.selectbox(key="colour of points").options)
    at = open_page(
        "activations",
        source=label,
        part="pool",
        method="UMAP",
        layer="layer 1",
        token="last",
        rows="3,5,99999",
        **{"colour of points": "score · sea", "neighbours": "5"},
    )
    fig = chart(at)
    assert at.select_slider(key="layer").value == "layer 1" and at.number_input(key="neighbours").value == 5
    assert "Trustworthiness of the UMAP" in words(at) and "2 chosen texts" in words(at)
    assert sorted(fig["data"][0]["customdata"][i] for i in fig["data"][0]["selectedpoints"]) == [3, 5]
    hover = fig["data"][0]["text"]
    first = pl.read_ndjson(organisms.data("pool")).row(0, named=True)["prompt"]
    assert any(f"row 0<br>{first[:20]}" in text for text in hover)
    code = next(item.value for item in at.code if "activation_map(" in item.value)
    assert f"activation_map('organism', '{selection.id}', layer=1, method='umap', token='last'" in code
    at.button[[button.label for button in at.button].index("All texts")].click().run()
    assert "All 40 texts" in words(at) and "rows" not in at.query_params
    assert not at.exception


@pytest.mark.parametrize(
    "params",
    [
        {"source": "run ../../etc"},
        {"layer": "layer 99"},
        {"method": "bogus"},
        {"token": "<script>"},
        {"colour of points": "x"},
        {"rows": "²,-1,x"},
        {"neighbours": "1000000"},
        {"source": "a file", "map file": "/etc/passwd"},
    ],
)
def test_a_link_with_nonsense_in_it_gives_a_map_and_opens_no_file(params):
    at = open_page("activations", **{"source": "texts texts", "points": "1000"} | params)
    assert not at.exception
    assert "passwd" not in words(at)


def test_a_stored_capture_is_a_source_with_its_texts():
    model = load("organism")
    ids = model.encode_all([f"{name} lives in the city" for name in ("Novis", "Mata", "Lovis", "Bruta") for _ in "abc"])
    capture(model, ids, ["resid_post.2", "resid_post.4"], positions="mean", store=Store())
    key = Store().ls()["key"].item()
    at = open_page("activations")
    label = f"stored capture {key[:12]}, 12 texts, mean"
    at.selectbox(key="source").set_value(label).run()
    assert not at.exception and at.select_slider(key="layer").options == ["layer 2", "layer 4"]
    assert any("Novis lives" in text for trace in chart(at)["data"] for text in trace["text"])
    assert "6 clusters need more than 6 texts" in words(at)  # the map is there all the same
    at.segmented_control(key="method").set_value("UMAP").run()
    assert "UMAP needs at least 15 texts, and there are 12" in words(at) and not at.exception


def test_a_run_of_weights_that_have_changed_says_so_and_draws_nothing(selection):
    from workbench.core.files import write_json

    info = selection.info | {"model": selection.info["model"] | {"fingerprint": "0" * 64}}
    write_json(selection.folder / "run.json", {k: v for k, v in info.items() if k not in ("checksum", "files")})
    at = open_page("activations", source=f"run {selection.id}")
    assert "made on other weights" in words(at) and not at.get("plotly_chart")


def test_the_example_of_a_selection_opens_on_its_map_with_texts_and_leads_to_the_layers(pool):
    from workbench.core import registry
    from workbench.runs import demo, execution

    item = registry.get("data-selection")
    config = demo.settings(item, "organism") | {"features": 0, "baselines": (), "explain": 0, "resamples": 0}
    run = execution.execute(item, "organism", config=config, data=pool)
    at = open_page("data_selection")
    assert at.segmented_control(key="part").value == "Figures"  # nobody has called it an example
    demo.mark(run)
    at = open_page("data_selection")
    assert at.segmented_control(key="part").value == "Map" and "Trustworthiness of the PCA" in words(at)
    fig = chart(at)
    first = pl.read_ndjson(organisms.data("pool")).row(0, named=True)["prompt"]
    assert any(f"row 0<br>{first[:20]}" in text for trace in fig["data"] for text in trace.get("text") or ())
    assert "Map of activations" in [button.label for button in at.button]
    at = open_page("activations")
    assert at.selectbox(key="source").value == f"run {run.id}"
