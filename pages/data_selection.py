"""The screen of the probe data-selection."""

from pages.parts import frame
from pages.parts.probe_screen import screen

frame.through_app()
screen("data-selection")
