"""Three pictures of the app for the README; `python -m tests.browser.gallery` takes them again."""
