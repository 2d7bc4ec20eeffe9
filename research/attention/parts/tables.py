"""Tables of all parts of softmax attention, by the option that names them."""

from research.attention.parts.additive_scores import ADDITIVE_SCORES
from research.attention.parts.bigbird import BigbirdMask
from research.attention.parts.block_selection import SELECTIONS
from research.attention.parts.contextual_positions import CONTEXTUAL_POSITIONS
from research.attention.parts.location_scores import LOCATION_SCORES
from research.attention.parts.masks import MASKS as CONTIGUOUS_MASKS
from research.attention.parts.normalizers import NORMALIZERS as UNORDERED_NORMALIZERS
from research.attention.parts.part_options import MechanismPart
from research.attention.parts.positions import MODEL_POSITIONS, ROTARY_POSITIONS
from research.attention.parts.relative_biases import BIAS_POSITIONS
from research.attention.parts.relative_scores import SCORE_POSITIONS
from research.attention.parts.scores import DOT_SCORES
from research.attention.parts.sparse_masks import SPARSE_MASKS
from research.attention.parts.stick_breaking import ORDERED_NORMALIZERS

SCORES: dict[str, type[MechanismPart]] = {**DOT_SCORES, **ADDITIVE_SCORES, **LOCATION_SCORES}

MASKS: dict[str, type[MechanismPart]] = {
    **CONTIGUOUS_MASKS,
    **SPARSE_MASKS,
    "bigbird": BigbirdMask,
    **SELECTIONS,
}

NORMALIZERS: dict[str, type[MechanismPart]] = {**UNORDERED_NORMALIZERS, **ORDERED_NORMALIZERS}

POSITIONS: dict[str, type[MechanismPart]] = {
    **MODEL_POSITIONS,
    **ROTARY_POSITIONS,
    **BIAS_POSITIONS,
    **SCORE_POSITIONS,
    **CONTEXTUAL_POSITIONS,
}

TABLES: dict[str, dict[str, type[MechanismPart]]] = {
    "score": SCORES,
    "mask": MASKS,
    "normalizer": NORMALIZERS,
    "position": POSITIONS,
}
"""{option: the table that it chooses from}."""
