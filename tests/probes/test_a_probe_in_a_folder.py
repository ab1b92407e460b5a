"""A folder in a place of one's own is a whole probe: with only WORKBENCH_PROBES pointing there it is found on the
command line, in the app and by the conformance battery, with no other file touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NAME, MODEL = "last-token", "circuit-copy"

PROBE = '''
"""Where every head looks from the last token of a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from probes.last_token.estimate import estimate
from workbench.core.context import Context, Result
from workbench.core.registry import HEAD_MASK, DataSpec, option, probe
from workbench.core.tables import read_table

TEXTS = Path(__file__).parent / "material" / "texts.jsonl"


@dataclass(frozen=True)
class Config:
    most: int = option(8, "how many texts to read", low=1)


def read(data: Path, most: int) -> list[str]:
    return read_table(data, required=("text",), what="texts")["text"].to_list()[:most]


@probe(
    "last-token",
    title="The last token",
    summary="How much every head attends from the last token to the first one.",
    tables={
        "look": ("layer", "head", "to_first", "ci_low", "ci_high", "n"),
        "course": ("layer", "kind", "mean", "ci_low", "ci_high"),
        "inputs": ("row", "ids"),
    },
    bibtex="@misc{last, title={The last token}}",
    data=DataSpec(required=("text",), what="texts", default="probes.last_token:material/texts.jsonl"),
    material=lambda config, model: {"note": TEXTS.with_name("note.txt")},
    validate=lambda config, data: read(data, config.most) and None,
    figures="probes.last_token.figures:figures",
    figures_of_several="probes.last_token.figures:of_several",
    estimate=estimate,
    example=lambda model: {"most": 3 if model.name == "circuit-copy" else 2},
    leaves={"off-*.json": HEAD_MASK},
    head_scores={"look": ("to_first",)},
    shares=("to_first",),
    layer_curves={"course": ("mean",)},
    keys={"look": ("layer", "head"), "course": ("layer", "kind"), "inputs": ("row",)},
)
def run(model, config: Config, context: Context) -> Result:
    from workbench.engine.head_masks import save_heads
    from workbench.models import attention
    from workbench.models.batching import batches, pad

    ids = [model.encode(text) for text in read(context.data, config.most)]
    seen = np.zeros((len(ids), model.n_layers, model.n_heads))
    for done, batch in enumerate(batches([len(row) for row in ids], max_rows=4)):
        for i in batch:
            with attention.observe(model, lambda _, w: w[0, :, -1, 0].cpu(), rows="all") as found:
                model.forward(pad([ids[i]], pad_id=model.pad_id, device=model.device))
            seen[i] = np.stack([found[layer].numpy() for layer in range(model.n_layers)])
        context.progress(done + 1, len(ids), "texts")
    context.count(prompts=len(ids), tokens=sum(map(len, ids)), forwards=len(ids))
    mean, low, high = seen.mean(0), seen.min(0), seen.max(0)
    layer, head = np.indices(mean.shape)
    look = {"layer": layer.ravel(), "head": head.ravel(), "to_first": mean.ravel()}
    look |= {"ci_low": low.ravel(), "ci_high": high.ravel(), "n": [len(ids)] * mean.size}
    course = {"layer": range(model.n_layers), "kind": ["to the first"] * model.n_layers, "mean": mean.mean(1)}
    course |= {"ci_low": low.mean(1), "ci_high": high.mean(1)}
    if context.out is not None:
        save_heads(context.out / "off-best.json", [divmod(int(mean.argmax()), model.n_heads)], model=model)
    return Result(
        tables={
            "look": pl.DataFrame(look),
            "course": pl.DataFrame(course),
            "inputs": pl.DataFrame({"row": range(len(ids)), "ids": ids}),
        },
        summary={"most": float(mean.max())},
    )
'''
ESTIMATE = """
from workbench.core.tables import read_table
from workbench.runs.cost import Facts, Plan


def estimate(config, data, model: Facts) -> Plan:
    texts = read_table(data, required=("text",), what="texts")["text"].to_list()[: config.most]
    return Plan(len(texts), model.tokens(texts))
"""
FIGURES = """
from workbench.figures.choices import Choice
from workbench.figures.heads import against, head_map
from workbench.figures.layout import dressed, sheet
from workbench.figures.run_tables import drawn, need
from workbench.figures import style, traces


def where(run):
    return head_map(need(run, "look"), value="to_first", label="to the first", title="Where heads look")


def profile(run, *, layer=None):
    frame = need(run, "look")
    layer = 0 if layer is None else layer
    frame = frame.filter(frame["layer"] == layer)
    fig = sheet(title=f"Layer {layer} of the heads", x="head", y="to the first")
    look = {"name": "heads", "style": style.Style(style.BLUE)}
    traces.add_curve(fig, 0, frame["head"].to_numpy(), frame["to_first"].to_numpy(), **look)
    return dressed(fig)


def layers_of(run, chosen):
    layers = {"as it is": None} | {str(i): i for i in need(run, "look")["layer"].unique(maintain_order=True)}
    return [Choice("layer", "Layer", layers, "Whose heads are drawn.")]


FIGURES = {"where": where, "profile": profile}
CHOICES = {"profile": layers_of}


def figures(run):
    return drawn(run, FIGURES)


def of_several(runs):
    one, two = (need(run, "look") for run in runs[:2])
    return against(one, two, value="to_first", names=("one", "two"), title=f"{len(runs)} runs")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A place with the one folder in it."""
    place = tmp_path_factory.mktemp("my_probes")
    folder = place / "last_token"
    (folder / "material").mkdir(parents=True)
    (folder / "__init__.py").write_text(PROBE)
    (folder / "estimate.py").write_text(ESTIMATE)
    (folder / "figures.py").write_text(FIGURES)
    (folder / "material" / "note.txt").write_text("what the numbers depend on")
    texts = ["lantern velvet harbor", "velvet lantern", "harbor velvet lantern quartz", "quartz"]
    (folder / "material" / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return place


def python(place: Path, *words: str, cwd: Path) -> str:
    """What a Python of its own prints that knows of the place through the environment only."""
    environment = {**os.environ, "WORKBENCH_PROBES": str(place)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


COMMANDS = """
import contextlib, io, json, sys
from workbench.cli.main import run

name, model = sys.argv[1:]


def workbench(*words):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run(list(words)) == 0, words
    return said.getvalue()


out = {"list": workbench("probes").splitlines(), "probe": json.loads(workbench("probes", name, "--json"))[0]}
runs = [
    json.loads(workbench("run", name, "--model", model, "--set", f"most={most}", "--quiet", "--json"))
    for most in (3, 4)
]
folders = [run["folder"] for run in runs]
files = json.loads(workbench("figures", folders[0], "--format", "csv", "--out", "one", "--json"))
out |= {"runs": runs, "files": files}
workbench("figures", *folders, "--format", "csv", "--out", "both")
out |= {"compared": json.loads(workbench("compare", *folders, "--json"))["tables"]}
print(json.dumps(out))
"""


def test_on_the_command_line_it_is_listed_run_drawn_and_compared(place, tmp_path):
    out = json.loads(python(place, "-c", COMMANDS, NAME, MODEL, cwd=tmp_path).splitlines()[-1])
    found, done = out["probe"], out["runs"]
    assert found["title"] == "The last token" and found["demo"] == {"most": 2}
    assert found["leaves"] == {"off-*.json": "head mask"} and found["module"] == "probes.last_token"
    assert out["list"][13].startswith(NAME)  # after those of the project

    assert [run["status"] for run in done] == ["complete"] * 2 and done[0]["material"]["note"]["file"] == "note.txt"
    assert done[0]["data"]["name"].endswith("material/texts.jsonl") and done[0]["counters"]["prompts"] == 3
    assert (Path(done[0]["folder"]) / "off-best.json").is_file()

    written = {Path(path).name for path in out["files"]}
    assert written >= {"where.csv", "profile.csv", "where.bib", "where.caption.txt"}
    assert pl.read_csv(tmp_path / "both" / "compare.csv").height > 0

    seen = out["compared"]
    assert seen["look"]["keys"] == ["layer", "head"] and seen["course"]["keys"] == ["layer", "kind"]
    assert seen["look"]["only_first"] == seen["look"]["only_second"] == 0 and "to_first" in seen["look"]["columns"]
    assert seen["inputs"]["only_second"] == 1


def test_the_battery_passes_on_it(place, tmp_path):
    code = "import sys; from workbench.runs.checks import check_probe; print(*check_probe(*sys.argv[1:]))"
    passed = python(place, "-c", code, NAME, MODEL, cwd=tmp_path).split()
    from workbench.runs.checks import CHECKS

    assert passed == list(CHECKS)


APP = """
import json, sys
from streamlit.testing.v1 import AppTest
from workbench.runs import execution as runs

name, model, root = sys.argv[1:]
done = [runs.execute(name, model, config={"most": most}) for most in (3, 4)]
said = {"run": done[0].id}


def seen(at):
    assert not at.exception, at.exception
    return [json.loads(chart.proto.spec) for chart in at.get("plotly_chart")]


def titles(at):  # of figures, which stand above them
    return " ".join(str(item.proto) for item in at.get("html"))


def navigation():
    from pages.widgets import navigation
    import streamlit as st

    for page in navigation.pages(lambda name: None)["Probes"]:
        st.text(page.url_path + " " + page.title)


def screen(name):
    import streamlit as st
    from pages.probe import screen

    st.session_state["framed"] = True
    screen(name)


said["navigation"] = [item.value for item in AppTest.from_function(navigation, default_timeout=100).run().text]
at = AppTest.from_function(screen, default_timeout=100, kwargs={"name": name})
at.query_params["run"] = done[0].id
at.query_params["last-token.model"] = model
at.run()
said["charts"] = len(seen(at))
said["title"], said["figures"] = at.title[0].value, at.get("button_group")[1].proto.options[0].content
said["form"] = at.number_input(key="last-token.most").value
at.button[[b.label for b in at.button].index("Demo")].click().run()
said["example"] = at.number_input(key="last-token.most").value
said["estimate"] = next(c.value for c in at.caption if "prompts" in c.value).replace(chr(92), "")
at.query_params["figure"] = "profile"
at = AppTest.from_function(screen, default_timeout=100, kwargs={"name": name})
at.query_params["run"], at.query_params["figure"] = done[0].id, "profile"
at.run()
assert len(seen(at)) == 1
before = titles(at)
said["choices"] = at.selectbox(key="layer").options
at.selectbox(key="layer").set_value("1").run()
assert len(seen(at)) == 1
said["changed"] = "Layer 0 of" in before and "Layer 1 of" in titles(at)

at = AppTest.from_file(root + "/pages/compare.py", default_timeout=100)
at.session_state["framed"] = True
at.query_params["a"], at.query_params["b"] = done[0].id, done[1].id
at.run()
said["views"] = [at.segmented_control(key="view").options, at.segmented_control(key="view").value, len(seen(at))]
at.segmented_control(key="view").set_value("In one figure").run()
said["in one"] = len(seen(at)) == 1 and "2 runs" in titles(at)

at = AppTest.from_file(root + "/pages/explorer.py", default_timeout=100)
at.session_state["framed"] = True
at.query_params["model"] = model
at.query_params["card"] = "Layer"
at.run()
seen(at)
said["colours"] = [option for option in at.selectbox(key="colour").options if done[0].id in option]
said["masks"] = [option for option in at.selectbox(key="mask").options if done[0].id in option]
said["layer"] = any("to the first" in str(item.proto) for item in at.get("html"))
print(json.dumps(said))
"""


def test_in_the_app_it_has_its_place_screen_form_figures_estimate_and_example(place, tmp_path):
    script = tmp_path / "screens.py"
    script.write_text(APP)
    said = json.loads(python(place, str(script), NAME, MODEL, str(ROOT), cwd=tmp_path).splitlines()[-1])
    assert said["navigation"][12] == "last_token Last token" and said["title"] == "The last token"
    assert said["charts"] == 1 and said["form"] == 8 and said["example"] == 3
    assert said["estimate"].startswith("About 3 prompts, ")
    assert said["choices"][0] == "as it is" and len(said["choices"]) == 3 and said["changed"]
    options, view, charts = said["views"]
    assert options == ["Figures side by side", "In one figure", "Heads", "Tables"] and view == "Heads" and charts == 4
    assert said["in one"]
    assert len(said["colours"]) == 1 and said["colours"][0].startswith("to_first · seed 0 · ")
    assert said["colours"][0].endswith(f" · {said['run']}") and said["masks"] == [f"off-best · {said['run']}"]
    assert said["layer"]
