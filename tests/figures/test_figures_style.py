"""The house style keeps what it promises: hues that stay apart, scales that read in grey, one colour per item."""

import json

import numpy as np
import pytest

from probes.retrieval_heads import figures as retrieval_heads
from tests.support import figure_runs
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures.layout import dressed, sheet, ticks

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
VISION = {
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def oklab(colours, vision="normal") -> np.ndarray:
    """OKLab coordinates [n, 3] of '#RRGGBB' as seen with a kind of vision."""
    rgb = np.array([theme.rgb(c) for c in colours]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ lms.T) @ lab.T


@pytest.mark.parametrize(
    "palette,paper,contrast", [(theme.PALETTE, theme.PAPER, 2.75), (theme.PALETTE_DARK, theme.PAPER_DARK, 3.4)]
)
def test_the_seven_hues_stay_apart_for_every_kind_of_colour_vision_and_stand_out_from_the_paper(
    palette, paper, contrast
):
    assert len(set(palette)) == 7
    for vision in VISION:
        seen = oklab(palette, vision)
        distance = np.sqrt(((seen[:, None] - seen[None]) ** 2).sum(-1))[np.triu_indices(7, 1)]
        # Okabe and Ito's palette, made for this purpose, comes to 0.076 with these matrices
        assert distance.min() >= 0.099, vision
    assert min(theme.contrast(c, paper) for c in palette) >= contrast


@pytest.mark.parametrize("scale,rises", [(theme.SEQUENTIAL, False), (theme.SEQUENTIAL_DARK, True)])
def test_sequential_scales_change_lightness_in_even_steps(scale, rises):
    seen = oklab(scale)
    steps = np.diff(seen[:, 0]) * (1 if rises else -1)
    assert (steps > 0.05).all()
    distance = np.sqrt((np.diff(seen, axis=0) ** 2).sum(1))
    assert distance.max() / distance.min() < 1.4
    assert theme.contrast(scale[-1], theme.PAPER if not rises else theme.PAPER_DARK) > 7


@pytest.mark.parametrize("scale,paper", [(theme.DIVERGING, theme.PAPER), (theme.DIVERGING_DARK, theme.PAPER_DARK)])
def test_diverging_scales_are_symmetric_about_the_paper(scale, paper):
    light = oklab(scale)[:, 0]
    np.testing.assert_allclose(light, light[::-1], atol=0.05)
    assert theme.contrast(scale[4], paper) < 1.3


def test_every_light_colour_has_one_dark_form():
    light, dark = zip(*theme._PAIRS)
    assert len(set(light)) == len(light)
    nested = {
        "a": [theme.BLUE, {"b": theme.alpha(theme.RED, 0.18)}],
        "c": np.array([theme.INK, "x"], dtype=object),
        "d": 3,
        "e": "#123456",
    }
    found = theme.in_mode(nested, "dark")
    assert found["a"][0] == theme.PALETTE_DARK[0]
    assert found["a"][1]["b"] == theme.alpha(theme.PALETTE_DARK[1], 0.18)
    assert found["c"] == [theme.INK_DARK, "x"] and found["d"] == 3 and found["e"] == "#123456"
    assert theme.in_mode(nested, "light") is nested


def test_an_item_has_the_same_colour_in_every_company_and_under_every_path():
    names = [f"model-{i}" for i in range(30)]
    alone = {n: theme.styles([n])[n].colour for n in names}
    assert {n: s.colour for n, s in theme.styles(names).items()} == alone
    assert (
        theme.colour("org/model-3")
        == theme.colour("/data/models/model-3/")
        == theme.colour("model-3@step-20")
        == alone["model-3"]
    )
    assert theme.colour("organism") != theme.colour("organism-chat")


def test_beyond_seven_items_dash_and_marker_tell_them_apart():
    names = [f"set {i}" for i in range(30)]
    for looks in (theme.sequence(names), theme.styles(names)):
        assert len({(s.colour, s.dash, s.symbol) for s in looks.values()}) == 30
        assert {s.colour for s in looks.values()} <= set(theme.PALETTE)
    assert len({s.colour for s in theme.sequence(names[:7]).values()}) == 7


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)


@pytest.mark.parametrize("name", ["head_map", "needle_map", "masking"])
def test_a_dark_figure_has_no_light_colour_left_and_its_original_is_untouched(name):
    only_light = {light for light, _ in theme._PAIRS} - {dark for _, dark in theme._PAIRS}
    for key, fig in {name: retrieval_heads.FIGURES[name](figure_runs.retrieval())}.items():
        before = json.loads(fig.to_json())
        dark = json.loads(dressed(fig, mode="dark").to_json())
        assert json.loads(fig.to_json()) == before, key
        assert not only_light & set(strings(dark)), key
        assert dark["layout"]["template"]["layout"]["paper_bgcolor"] == theme.PAPER_DARK


@pytest.mark.parametrize("preset,width", [("single", 3.25 * 96), ("double", 6.75 * 96), ("slide", 1280)])
def test_presets_have_the_printed_width_and_type_that_can_be_read(preset, width):
    made = dressed(retrieval_heads.head_map(figure_runs.retrieval()), preset=preset)
    assert made.layout.width == pytest.approx(width, abs=1)
    size = made.layout.template.layout
    points = [size.font.size * 0.75, size.xaxis.tickfont.size * 0.75, size.coloraxis.colorbar.tickfont.size * 0.75]
    assert min(points) >= (14 if preset == "slide" else 7)
    assert bool(made.layout.title.text) == (preset == "slide")  # papers have captions


@pytest.mark.parametrize("preset", list(theme.PRESETS))
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("share", [True, False])
def test_panels_lie_inside_the_figure_and_apart_from_each_other(preset, count, share):
    fig = sheet(
        [f"panel {i}" for i in range(count)],
        title="a title " * 12,
        x="a long name of an axis",
        y="another",
        share_x=share,
        share_y=share,
    )
    for i in range(count):
        suffix = "" if i == 0 else str(i + 1)
        fig.add_scatter(x=[0, 1], y=[0, 1], name=f"curve {i}", xaxis=f"x{suffix}", yaxis=f"y{suffix}")
    made = dressed(fig, preset=preset)
    boxes = []
    for i in range(count):
        suffix = "" if i == 0 else str(i + 1)
        boxes.append((*made.layout[f"xaxis{suffix}"].domain, *made.layout[f"yaxis{suffix}"].domain))
    margin = made.layout.margin
    width = (made.layout.width or theme.PRESETS[preset].width) - margin.l - margin.r
    assert (
        width > 0.5 * theme.PRESETS[preset].width
        and made.layout.height - margin.t - margin.b > 0.3 * made.layout.height
    )
    for x0, x1, y0, y1 in boxes:
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
        size = theme.PRESETS[preset]
        assert made.layout.height <= size.page  # where panels of the usual size would be taller, they are smaller
        assert (x1 - x0) * width >= min(0.9 * size.panel if count < 5 else 7.5 * size.tick, width)
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]


def test_names_are_written_in_full_where_the_panel_can_grow_and_thinned_where_it_cannot():
    names = [f"a name {i}" for i in range(40)]
    fig = sheet(y_ticks=ticks(range(40), names, keep=True), x_ticks=ticks(range(200)))
    fig.add_scatter(x=[0, 1], y=[0, 1])
    grown = dressed(fig, preset="single")
    assert list(grown.layout.yaxis.ticktext) == names
    assert grown.layout.height > 40 * 10
    fixed = dressed(fig, preset="slide")
    assert 5 < len(fixed.layout.yaxis.ticktext) < 40
    steps = np.diff([int(t) for t in grown.layout.xaxis.ticktext])
    assert len(set(steps)) == 1 and steps[0] in (16, 20, 32, 50)


def test_an_unknown_size_or_mode_is_refused_in_a_sentence():
    fig = sheet()
    with pytest.raises(InputError, match="single, double, slide, screen"):
        dressed(fig, preset="poster")
    with pytest.raises(InputError, match="light or dark"):
        dressed(fig, mode="sepia")
    with pytest.raises(InputError, match="already"):
        dressed(dressed(fig, mode="dark"), mode="dark")


def test_templates_are_registered_under_their_names():
    import plotly.io as pio

    theme.register()
    assert pio.templates["workbench-dark"].layout.paper_bgcolor == theme.PAPER_DARK
    assert pio.templates["workbench-light"].layout.colorway == theme.PALETTE
