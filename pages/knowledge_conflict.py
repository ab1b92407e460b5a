"""The screen of the probe knowledge-conflict."""

from pages.widgets import navigation
from pages.widgets.probe_screen import screen

navigation.through_app()
screen("knowledge-conflict")
