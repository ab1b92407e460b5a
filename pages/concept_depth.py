"""The screen of the probe concept-depth."""

from pages.widgets import navigation
from pages.widgets.probe_screen import screen

navigation.through_app()
screen("concept-depth")
