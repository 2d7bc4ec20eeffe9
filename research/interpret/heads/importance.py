"""Measures which heads a trained model needs, by ablating single heads and by pruning.

Michel et al. 2019, "Are Sixteen Heads Really Better than One?": sections 3.2 (single heads) and 4.2
(pruning), with a paired bootstrap over examples and Holm's correction over heads.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from research.interpret.heads.head_ablation import (
    ablation_differences,
    head_importance,
    head_mask,
    prune_greedily,
)
from research.interpret.heads.head_masking import attention_layers, common_num_heads, mask_heads
from research.interpret.trained import (
    Findings,
    Trained,
    batches,
    example_metric,
    model_outputs,
)
from research.tasks.task import FRACTION, Batch, Range

METRICS: Mapping[str, bool | None] = {
    "significant_heads": None,
    "harmful_heads": None,
    "removable_heads": None,
    "importance_of_self": None,
}
"""Metrics of every model; None, as needing more or fewer heads is neither better nor worse."""
RANGES: Mapping[str, Range] = dict.fromkeys(
    ("significant_heads", "harmful_heads", "removable_heads"), FRACTION
)
"""{metric: lowest and highest possible value} of the metrics that have either."""
DROP = 0.01
"""Largest relative drop in quality that counts a head as removable."""
SIGNIFICANT = 0.05


def head_importance_findings(trained: Trained) -> Findings:
    """Returns how many heads matter, how much they matter, and how many can be pruned.

    Metrics: "significant_heads", the fraction of heads whose removal changes the loss (two-sided,
    Holm-corrected p < 0.05); "harmful_heads", the fraction whose removal lowers it significantly;
    "removable_heads", the fraction that can be pruned, greedily by the loss, before the metric that
    chooses checkpoints is more than 1 % worse; "importance_of_self" and, for models with
    cross-attention, "importance_of_cross", the mean rise of the loss (nats) without a head, and
    their difference "cross_minus_self". Slices: "importance_by_head" and "quality_by_heads_gone".

    Raises UserError if layers have different numbers of heads, or none.
    """
    found = attention_layers(trained.model, trained.params)
    layers, heads = len(found), common_num_heads(found)
    of_mask = _by_mask(trained)

    def loss(mask: Float[Array, "L H"]) -> Float[np.ndarray, " N"]:
        return of_mask(mask)[0]

    importance = head_importance(ablation_differences(loss, layers, heads))
    pruning = prune_greedily(loss, layers, heads)
    masks = [head_mask(pruning.order[:gone], layers, heads) for gone in range(layers * heads + 1)]
    quality = [float(of_mask(mask)[1].mean()) for mask in masks]
    significant = importance.adjusted < SIGNIFICANT
    metrics = {
        "significant_heads": float(significant.mean()),
        "harmful_heads": float((significant & (importance.mean < 0)).mean()),
        "removable_heads": num_prunable(quality, trained.task.select_higher) / (layers * heads),
    }
    kinds = np.array([attention.kind for attention in found])
    for kind in sorted(set(kinds)):
        metrics[f"importance_of_{kind}"] = float(importance.mean[kinds == kind].mean())
    if len(set(kinds)) > 1:
        of_cross, of_self = metrics["importance_of_cross"], metrics["importance_of_self"]
        metrics["cross_minus_self"] = of_cross - of_self
    names = [f"{attention.name}.{head}" for attention in found for head in range(heads)]
    return Findings(
        metrics,
        {
            "importance_by_head": importance.mean.ravel().tolist(),
            "quality_by_heads_gone": quality,
        },
        {
            "importance_by_head": names,
            "quality_by_heads_gone": [str(gone) for gone in range(len(quality))],
        },
    )


def num_prunable(quality: Sequence[float], higher: bool, drop: float = DROP) -> int:
    """Returns how many heads can be pruned before quality drops by more than `drop`.

    Args:
      quality: quality with 0, 1, 2, ... heads pruned.
      higher: whether higher quality values are better.
      drop: largest permitted drop, relative to the quality with all heads.
    """
    least = quality[0] - drop * abs(quality[0]) if higher else quality[0] + drop * abs(quality[0])
    good = [(q >= least if higher else q <= least) for q in quality]
    return good.index(False) - 1 if False in good else len(good) - 1


def _by_mask(trained: Trained) -> Callable[[Float[Array, "L H"]], Any]:
    """Returns a function from a head mask to the loss and quality of every example, (N,) each.

    Rows that only fill up a batch are left out.
    """
    task, model = trained.task, trained.model
    examples = list(batches(task, trained.split, trained.examples))

    @jax.jit
    def forward(params: PyTree, mask: Array, batch: Batch) -> Any:
        outputs = model_outputs(model, mask_heads(model, params, mask), batch)
        return [example_metric(task, outputs, batch, name) for name in ("loss", task.select)]

    def of_mask(mask: Float[Array, "L H"]) -> list[Float[np.ndarray, " N"]]:
        found = [forward(trained.params, mask, batch) for batch in examples]
        each = []
        for metric in zip(*found, strict=True):
            total, count = (np.concatenate([np.asarray(m[i]) for m in metric]) for i in (0, 1))
            each.append(total[count > 0] / count[count > 0])
        return each

    return of_mask
