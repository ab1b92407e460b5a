"""What everything else stands on: configs, the registry of probes, errors, files, tables that people bring. Imports
nothing of the project."""
