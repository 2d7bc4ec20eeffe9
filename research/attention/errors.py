"""What the attention package raises, beside `research.options.OptionError` for wrong options."""


class Unsupported(ValueError):
    """Asked of an implementation or mixer that lacks it; the message names one that has it."""
