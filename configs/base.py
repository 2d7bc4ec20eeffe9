"""Every key of a run at its default. The other configs are this one plus a delta.

These are defaults, not a recipe: see configs/recall.py and configs/text.py. docs/config.md lists
all keys, what they mean and who reads them. Any key can be overridden on the command line:
--config.model.num_heads=8, --config.task.num_pairs="(1, 2)".
"""

from ml_collections import ConfigDict

from research.training import schema


def get_config() -> ConfigDict:
    """Returns the base config."""
    return schema.defaults()
