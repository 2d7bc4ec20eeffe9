"""What devices will send each other, from the layout alone."""

from ml_collections import ConfigDict

from research.cloud.collectives import Collective, merge
from research.parallel.layout import Layout


def expected_collectives(
    config: ConfigDict, layout: Layout, parameters: int, members: int
) -> list[Collective]:
    """Returns the collectives of one step, as a textbook would have them.

    fsdp: the parameters are gathered once forwards and once backwards (twice with remat), their
    gradients are summed and scattered, for every part of an accumulated batch (Rajbhandari 2020,
    section 7.2). data without fsdp: gradients are summed. model: activations are summed twice per
    layer in either direction (Shoeybi 2019, section 3). context: keys and values go around.

    Args:
      config: the whole config.
      layout: which devices do what.
      parameters: of one member.
      members: P.
    """
    model, parts = config.model, config.optimizer.accumulate
    item = 2 if model.dtype == "bfloat16" else 4
    here = members // layout.member
    weights = parameters * here / layout.model
    batch = config.task.batch_size // parts // layout.data
    hidden = here * batch * config.task.length // layout.context * model.width * item
    forward = 2 if model.remat else 1
    found = []
    if layout.data > 1 and layout.fsdp:
        gathers = parts * (forward + 1)
        found.append(Collective("all-gather", item * weights, layout.data, gathers))
        found.append(Collective("reduce-scatter", item * weights, layout.data, parts))
    elif layout.data > 1:
        found.append(Collective("all-reduce", 4 * weights, layout.data, 1))
    if layout.model > 1:
        times = 2 * model.num_layers * (forward + 1) * parts
        found.append(Collective("all-reduce", hidden, layout.model, times))
    if layout.context > 1:
        heads = (model.num_kv_heads or model.num_heads) / max(model.num_heads, 1)
        # Keys and values once around forwards; backwards their gradients too.
        times = model.num_layers * parts * (layout.context - 1) * (forward + 2)
        found.append(Collective("collective-permute", 2 * heads * hidden, 2, times))
    return merge(found)
