"""The shared train step, and everything that a run needs around it."""

from zoo.training.layout import compiler_options, jit
from zoo.training.state import TrainState, create_state
from zoo.training.step import make_train_step

__all__ = ["TrainState", "compiler_options", "create_state", "jit", "make_train_step"]
