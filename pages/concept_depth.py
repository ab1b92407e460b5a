"""The screen of the probe concept-depth."""

from pages.parts import frame
from pages.parts.probe_screen import screen

frame.through_app()
screen("concept-depth")
