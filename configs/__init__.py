"""Recipes: one file each, whose docstring gives the command, the time it takes and the result to expect."""
