"""The screen of the probe retrieval-heads."""

from pages.widgets import navigation
from pages.widgets.probe_screen import screen

navigation.through_app()
screen("retrieval-heads")
