"""Checks whether the parts of a config go together, before anything is trained or written.

Each part checks its own options when it is read. What depends on several parts is checked here: the
model and the task, decoding, streaming and analyses at the end, and the lengths of evaluation.
"""

from typing import Any

import jax
from ml_collections import ConfigDict

from research.attention.mixers.mixer_options import AUTO
from research.attention.parts.positions import SCALINGS_OF_LENGTH
from research.decoding.search import check_model, read_search
from research.decoding.streaming import streaming
from research.errors import UserError
from research.interpret import analyses
from research.models.decoder import DecoderOptions
from research.models.layers import LACK_SEGMENTS, SLOW_TO_TRACE, with_substitute
from research.models.mixer_layer import LOSSES, SCORES
from research.models.model import parameter_shapes
from research.models.registry import read_model
from research.options import declarations
from research.parallel.xla_flags import check_profile_in_use
from research.training.optimizer import Optimizer
from research.training.program import Program, cached_task, make_program, model_of, task_id
from research.training.schema import resolve
from research.training.step import batch_shapes
from research.training.update_rules import OPTIMIZERS

WITHOUT_TOKENS = ("classifier", "speech")
"""Models whose outputs are not, or not only, logits of the batch's targets."""


def check_config(config: ConfigDict, members: int = 1) -> Program:
    """Checks the whole config of a population, and returns its program.

    Args:
      config: the whole config.
      members: P, number of members of the population; the layout depends on it.

    Raises UserError for the first mistake, in one line that names the key and what would be right.
    """
    config = resolve(config)
    check_profile_in_use(config.parallel.xla_flags)
    if "decoding" in config:
        read_search(config)  # before the data are read, which may take long
    _check_training(config)
    program = make_program(config, members)
    if config.interpret.final:
        shapes = batch_shapes(program.task, 1)
        analyses.check_model(config.interpret.final, program.model, shapes)
    if program.task.decoded:
        _check_search(config, program)
    _check_eval_lengths(config, program)
    if stream := program.task.stream:
        decoder: Any = program.model
        for sinks in stream.sinks:
            streaming(decoder, stream.window, sinks)
    if program.task.streamed and program.layout.how == "pmap":
        raise UserError(
            "parallel.how='pmap' copies all data to every device; task.data='streamed' needs 'jit'."
        )
    _check_causal(config, program)
    _check_reports(config, program)
    return program


def _check_training(config: ConfigDict) -> None:
    """Raises UserError if steps cannot be divided, or the model cannot learn the task."""
    if config.task.batch_size % config.optimizer.accumulate:
        raise UserError(
            f"optimizer.accumulate={config.optimizer.accumulate} must divide "
            f"task.batch_size={config.task.batch_size}."
        )
    base, rule = config.model.get("base_width", 0), OPTIMIZERS[config.optimizer.name]
    if base and not rule.carries_over:
        able = ", ".join(name for name, part in OPTIMIZERS.items() if part.carries_over)
        raise UserError(
            f"model.base_width={base}: muP has no rule here for optimizer.name="
            f"{config.optimizer.name!r}; it has for {able}. Use 0."
        )
    if config.optimizer.z_loss and config.model.name in WITHOUT_TOKENS:
        raise UserError(
            f"optimizer.z_loss={config.optimizer.z_loss}: model.name={config.model.name!r} has "
            "other outputs than logits of tokens; use 0."
        )
    able = cached_task(task_id(config)).models
    if config.model.name not in able:
        raise UserError(
            f"model.name={config.model.name!r} cannot learn the task {config.task.name!r}; "
            f"{', '.join(able)} can."
        )
    _check_packed(config)


def _check_packed(config: ConfigDict) -> None:
    """Raises UserError if documents are packed and a layer cannot keep them apart.

    Or if positions restart with each document, but not those that a layer counts itself.
    """
    task, model = cached_task(task_id(config)), read_model(config.model)
    if not task.packed or not isinstance(model, DecoderOptions):
        return
    for spec in model.specs(task.length):
        if spec.options.implementation == AUTO:
            spec = with_substitute(spec, LACK_SEGMENTS)
        if why := spec.refusal_of_segments():
            raise UserError(f"task.documents='packed': {why}.")
        absolute = [name for name, part in spec.parts().items() if part.absolute]
        if absolute and config.task.restart_positions:
            raise UserError(
                f"task.restart_positions=True: {absolute[0]} counts positions from the start of "
                "the window; only those restart that the model adds to its input, and relative "
                "ones need not."
            )


def _check_causal(config: ConfigDict, program: Program) -> None:
    """Raises UserError if a model that predicts the next token can look at it."""
    model = read_model(config.model)
    if not program.task.next_token or not isinstance(model, DecoderOptions):
        return
    for mixer in model.specs(program.task.length):
        # `prefix_length == 0` means causal. Testing the property, not the name, also covers masks
        # that are added later.
        if not mixer.options.causal or (mixer.mask is not None and mixer.mask.prefix_length != 0):
            raise UserError(
                f"model.mask={mixer.values['mask']!r} shows the task {config.task.name!r} the "
                "tokens that it has to predict; use 'causal' or 'window'."
            )


def _check_reports(config: ConfigDict, program: Program) -> None:
    """Raises UserError if an option is about what layers report, and none does."""
    weight = config.optimizer.auxiliary_loss
    if weight != declarations(Optimizer)["auxiliary_loss"].default and not _reports(
        program, LOSSES
    ):
        raise UserError(
            f"optimizer.auxiliary_loss={weight}: no part of this model has a loss of its own; "
            "model.index_top has. Leave it 1.0."
        )
    if config.optimizer.qk_clip and not _reports(program, SCORES):
        raise UserError(
            f"optimizer.qk_clip={config.optimizer.qk_clip}: no layer of this model has scores that "
            "it can bound; mixers softmax and latent have, with score dot or scaled_dot and "
            "without qk_norm. Use 0."
        )


def _reports(program: Program, collection: str) -> bool:
    """Returns whether any layer of the model fills a collection."""

    def run(params: Any, batch: Any) -> Any:
        apply = program.model.apply
        return apply({"params": params}, batch, method="forward", mutable=[collection])[1]

    found = jax.eval_shape(run, program.parameters, batch_shapes(program.task, 1))
    return bool(jax.tree.leaves(found))


def _check_search(config: ConfigDict, program: Program) -> None:
    """Raises UserError if the model does not support the search options."""
    search = read_search(config)
    check_model(search, program.model.config, "decoding.")
    if search.coverage_penalty and not cross_attention_heads(program):
        without = "model.attention", config.model.get("attention")
        if config.model.get("ctc_weight") == 1:
            without = "model.ctc_weight", config.model.ctc_weight
        raise UserError(
            f"decoding.coverage_penalty={search.coverage_penalty} needs attention, and there is "
            f"none with {without[0]}={without[1]!r}; use 0."
        )


def _check_eval_lengths(config: ConfigDict, program: Program) -> None:
    """Raises UserError if the model's parameters depend on the length, yet evaluation is longer."""
    task = program.task
    if task.longest == task.length:
        return
    asked = f"task.eval_lengths={tuple(task.eval_lengths)}"
    for layer in read_model(config.model).layers():
        values = layer.spec(task.longest).values
        scaling = values.get("rope_scaling")
        if scaling in SCALINGS_OF_LENGTH and not values["rope_original_length"]:
            raise UserError(
                f"{asked} with model.rope_scaling={scaling!r} needs model.rope_original_length."
            )
    batch = batch_shapes(task, 1)
    longer = model_of(config, task, SLOW_TO_TRACE, task.longest)
    if parameter_shapes(longer, batch) != program.parameters:
        raise UserError(
            f"{asked}: this model has parameters for task.length={task.length} tokens only "
            "(model.position='learned' has, for example), so it cannot be evaluated at more."
        )


def cross_attention_heads(program: Program) -> int:
    """Returns the number of cross-attention heads over all layers."""
    model, batch = program.model, batch_shapes(program.task, 1)

    def weights(params: Any, batch: Any) -> Any:
        return model.apply({"params": params}, batch, method="weights")

    return jax.eval_shape(weights, program.parameters, batch).shape[1]
