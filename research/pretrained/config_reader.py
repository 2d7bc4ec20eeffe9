"""Reads config.json of a Hugging Face model, and refuses by name what nothing here reads."""

from collections.abc import Collection, Mapping
from typing import Any

from research.errors import UserError

NEUTRAL = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _name_or_path _num_labels
    activation_dropout architectures attention_dropout attention_probs_dropout_prob attn_pdrop
    auto_map bad_words_ids bos_token_id cache_implementation chunk_size_feed_forward
    classif_dropout classifier_dropout decoder_layerdrop decoder_start_token_id dropout
    dropout_rate dtype early_stopping embd_pdrop embedding_dropout encoder_layerdrop eos_token_id
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout
    hidden_dropout_prob id2label init_std initializer_factor initializer_range is_encoder_decoder
    label2id length_penalty max_length min_length model_type n_ctx no_repeat_ngram_size num_beams
    num_labels output_attentions output_hidden_states pad_token_id pretraining_tp problem_type
    resid_pdrop return_dict return_dict_in_generate sep_token_id slow_but_exact
    task_specific_params tokenizer_class torch_dtype torchscript transformers_version use_cache
    use_return_dict vocab_size
    """.split()
)
"""Keys that do not change what the model computes: of training, tokens, search and loading."""


class ConfigReader:
    """Reads the keys of a config.json, and knows which of them nobody read.

    Args:
      config: the parsed config.json.
      ignored: further keys to ignore, because the user says so.
    """

    def __init__(self, config: Mapping[str, Any], ignored: Collection[str] = ()):
        self._config = config
        self._ignored, self._read = frozenset(ignored), set(ignored)

    def __call__(self, key: str, default: Any = None) -> Any:
        """Returns the value of a key; where it is absent or null, the default.

        Raises UserError if there is neither.
        """
        self._read.add(key)
        value = self._config.get(key)
        if value is None:
            value = default
        if value is None:
            raise UserError(f"config.json has no {key!r}, which a {self.family} model needs.")
        return value

    def has(self, key: str) -> bool:
        """Returns whether a key is there and not null; that counts as read."""
        self._read.add(key)
        return self._config.get(key) is not None

    def unless_off(self, key: str, default: Any, off: Any = 0) -> Any:
        """Returns the value of a key; the default where it is absent, and `off` where it is null.

        For keys that null turns off, while models without them have a default.
        """
        return off if key in self._config and not self.has(key) else self(key, default)

    def within(self, key: str) -> "ConfigReader":
        """Returns a reader of the keys of a key, for which the caller has to `check_all_read`."""
        return ConfigReader({**self(key, {}), "model_type": self.family}, self._ignored)

    def choice(self, key: str, table: Mapping[Any, Any], default: Any = None) -> Any:
        """Returns what a table has for the value of a key. Raises UserError if it has nothing."""
        value = self(key, default)
        if value not in table:
            known = ", ".join(repr(name) for name in table)
            raise UserError(
                f"config.json has {key}={value!r}; of a {self.family} model, {known} can be read."
            )
        return table[value]

    def only(self, key: str, value: Any) -> None:
        """Raises UserError if a key has another value than the one that can be read."""
        self.choice(key, {value: value}, value)

    def skip(self, *keys: str) -> None:
        """Counts keys as read that do not matter to this model."""
        self._read.update(keys)

    @property
    def family(self) -> str:
        """The name of the family, "model_type"."""
        return str(self._config.get("model_type"))

    def check_all_read(self) -> None:
        """Raises UserError for the first key that is set, and that nobody read."""
        for key, value in self._config.items():
            if key in self._read or key in NEUTRAL or value in (None, False, 0, [], {}):
                continue
            raise UserError(
                f"config.json has {key}={value!r}, which nothing here reads of a {self.family} "
                f"model. If it does not change what the model computes: --ignore={key}."
            )
