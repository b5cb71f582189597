"""The models and tasks that a config can name: the zoo's own, and those of a user's modules."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence

from zoo import families, tasks
from zoo.families import Family
from zoo.fields import ConfigError
from zoo.tasks.wing import Wing


@dataclasses.dataclass(frozen=True)
class Catalog:
    """The models and tasks that a config can name.

    Attributes:
        families: the family of each model, by the name of the model.
        wings: the tasks, by name.
    """

    families: Mapping[str, Family]
    wings: Mapping[str, Wing]

    def models_of(self, wing: Wing) -> list[str]:
        """Returns the names of the models that a task trains."""
        return sorted(name for name, family in self.families.items() if family.kind in wing.kinds)


def catalog(extensions: Sequence[str] = ()) -> Catalog:
    """Returns the zoo's models and tasks, and those of a user's modules.

    Args:
        extensions: names of modules, such as ``my_package.autoencoder``. Each has a tuple
            ``FAMILIES`` of ``zoo.families.Family``, a tuple ``WINGS`` of ``zoo.tasks.Wing``, or
            both.

    Raises:
        ConfigError: a module cannot be imported or has neither tuple, or a name occurs twice.
    """
    all_families, all_wings = [*families.FAMILIES], [*tasks.WINGS]
    for name in extensions:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"extensions: there is no module {error.name!r} (for {name!r}): start Python where "
                "it can be imported, for example with PYTHONPATH=."
            ) from error
        found = {
            "FAMILIES": tuple(getattr(module, "FAMILIES", ())),
            "WINGS": tuple(getattr(module, "WINGS", ())),
        }
        if not any(found.values()):
            raise ConfigError(f"extensions: the module {name!r} has no FAMILIES and no WINGS")
        all_families += found["FAMILIES"]
        all_wings += found["WINGS"]
    models = families.by_name(all_families)
    wings = {wing.name: wing for wing in all_wings}
    if len(wings) < len(all_wings):
        raise ConfigError(f"extensions={tuple(extensions)}: two tasks have the same name")
    return Catalog(models, wings)
