"""Multi-query associative recall with causal softmax attention.

python -m research.train --config=configs/recall.py --workdir=runs/recall
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config."""
    config = base.get_config()
    return config
