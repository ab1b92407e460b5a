"""The screen of the probe data-selection."""

from pages.widgets import navigation
from pages.widgets.probe_screen import screen

navigation.through_app()
screen("data-selection")
