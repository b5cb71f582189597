"""A finished run's model with its weights, ready for use."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
from ml_collections import ConfigDict

from zoo.data.vocabulary import Vocabulary
from zoo.errors import UserError
from zoo.tasks.task import Task

if TYPE_CHECKING:
    from zoo.tasks.wing import Wing


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A run's model with its weights.

    Attributes:
        module: the linen module.
        variables: the module's variables, for ``module.apply(variables, ...)``. They hold the
            average of the parameters if the run kept one.
        vocabularies: the meaning of the data's numbers, by name.
        config: the run's config.
        task: the module joined with its loss and metrics.
        step: the number of updates.
        wing: the wing of the run's task.
    """

    module: nn.Module
    variables: dict[str, Any]
    vocabularies: Mapping[str, Vocabulary]
    config: ConfigDict
    task: Task
    step: int
    wing: "Wing"
    _compiled: dict[str, Callable] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def params(self) -> Any:
        """The parameters."""
        return self.variables["params"]

    @property
    def model_state(self) -> dict[str, Any]:
        """The model's other collections, such as running statistics."""
        return {name: values for name, values in self.variables.items() if name != "params"}

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of a classifier's classes, in the order of its logits.

        Raises:
            UserError: the run is not a classifier.
        """
        if "classes" not in self.vocabularies:
            raise UserError(f"a run with task.name={self.wing.name!r} has no classes")
        return self.vocabularies["classes"].symbols

    def need(self, task: str, what: str) -> None:
        """Raises UserError unless the run is of a task.

        Args:
            task: the name of the task.
            what: what needs the task, for the message.
        """
        if self.wing.name != task:
            verbs = " or ".join(f"`zoo {verb}`" for verb in self.wing.verbs)
            raise UserError(
                f"{what} needs a run with task.name={task!r}; this one has {self.wing.name!r}: "
                f"ask it with {verbs}"
            )

    def preprocess(self, given: Any) -> Any:
        """Prepares one input as the run's evaluation does.

        Args:
            given: the input: an image as UInt8[height, width, channels] or its file, a text, or
                the file of a recording or a series.

        Returns:
            The model's input: an array, or arrays by name if the model reads several.

        Raises:
            UserError: the input cannot be read, or runs of this kind take no input.
        """
        example = self.wing.encode(self, given)
        return next(iter(example.values())) if len(example) == 1 else example

    def compiled(self, name: str, make: Callable[[], Callable]) -> Callable:
        """Returns a function that is made only once: later calls neither trace nor compile.

        Args:
            name: the name of the function among those of this run.
            make: makes the function.
        """
        if name not in self._compiled:
            self._compiled[name] = make()
        return self._compiled[name]
