"""Which of an optimizer's attributes the program may change while it runs."""

from __future__ import annotations


class VariableAttributes:
    """The attributes that aren't compiled in as constants.

    :param variable_attributes: those that are variable to begin with.
    :param allowed_attributes: all that the optimizer has; any other name is an AssertionError.
    """

    def __init__(self, variable_attributes: list[str], allowed_attributes: list[str]) -> None:
        self._variable_attributes = set(variable_attributes)
        self._allowed_attributes = list(allowed_attributes)

    def _check(self, attr: str) -> None:
        assert attr in self._allowed_attributes, (
            f"Unknown attribute {attr}, allowed values: {self._allowed_attributes}"
        )

    def isConstant(self, attr: str) -> bool:
        """Whether the value is fixed when the model is compiled."""
        return attr not in self._variable_attributes

    def markAsConstant(self, attr: str) -> None:
        """Fix the value when the model is compiled."""
        self._check(attr)
        self._variable_attributes.discard(attr)

    def markAsVariable(self, attr: str) -> None:
        """Let `setOptimizer` change the value later."""
        self._check(attr)
        self._variable_attributes.add(attr)
