"""The screen of the probe branching-factor."""

from pages.widgets import navigation
from pages.widgets.probe_screen import screen

navigation.through_app()
screen("branching-factor")
