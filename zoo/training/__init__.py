"""The shared train step and what a run needs around it."""

from zoo.training.state import TrainState, create_state
from zoo.training.step import make_train_step

__all__ = ["TrainState", "create_state", "make_train_step"]
