"""One file per screen of the app."""
