"""What the attention package raises."""


class Unsupported(ValueError):
    """Asked of an implementation or mixer that lacks it; the message names one that has it."""


class MechanismError(ValueError):
    """An option of a mechanism is wrong.

    Attributes:
        field: the name of the option.
        value: what it was.
    """

    def __init__(self, field: str, value: object, message: str):
        super().__init__(f"{field} = {value!r}: {message}")
        self.field = field
        self.value = value
