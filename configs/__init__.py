"""Packaged recipes: one YAML file is one experiment, found by name from any working folder."""
