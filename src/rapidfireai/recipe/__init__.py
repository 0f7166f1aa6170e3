"""An experiment written in a YAML file, with the keys of TRL's own command line.

Knows keys and where they go; what a value means is known by `automl`, `training` and TRL.
"""

from rapidfireai.recipe.recipe import Recipe, read

__all__ = ["Recipe", "read"]
