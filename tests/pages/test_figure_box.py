"""How wide a figure must be: by the panels that stand beside each other in it."""

import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from pages.widgets import figure_box


@pytest.mark.parametrize("rows, columns", [(1, 1), (3, 1), (1, 2), (2, 2), (4, 3), (1, 4), (1, 7)])
def test_panels_below_each_other_need_no_more_room_and_beside_each_other_they_do(rows, columns):
    fig = make_subplots(rows=rows, cols=columns)
    assert figure_box.in_a_row(fig) == min(columns, 4)
    assert f"wide{min(columns, 4)}-" in figure_box.CSS or columns == 1


def test_a_table_of_words_has_room_for_its_columns_and_a_plain_figure_needs_none():
    table = go.Figure().update_layout(meta={"words": [["a"]], "columns": ["x"]})
    assert figure_box.in_a_row(table) == figure_box.TABLE and figure_box.in_a_row(go.Figure()) == 1
