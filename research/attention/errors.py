"""The exception of the attention package; invalid options raise `research.options.OptionError`."""


class Unsupported(ValueError):
    """Raised if an implementation or mixer lacks a feature; the message names one that has it."""
