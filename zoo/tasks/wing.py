"""Wings. A wing holds everything special to one task, for use by the rest of the project."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from zoo.data.datasets import Dataset
from zoo.data.vocabulary import Vocabulary
from zoo.errors import UserError
from zoo.families import Family
from zoo.fields import Fields
from zoo.reports.sections import Section, Table
from zoo.tasks.loaded import Loaded
from zoo.tasks.task import Task

Best = Literal["highest", "lowest"]
Report = Mapping[str, Any]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer of a run to one input.

    Attributes:
        given: the input, as it was typed.
        output: the JSON-able output; None stands for the text that is shown.
        shown: the text for a terminal, in pieces as they come.
    """

    given: str
    output: Any
    shown: Iterable[str]


@dataclasses.dataclass(frozen=True)
class Verb:
    """A command that uses a finished run, such as ``zoo predict``.

    Attributes:
        purpose: what the command does, for ``--help``.
        add_arguments: adds the arguments that the command takes besides ``--workdir``,
            ``--checkpoint`` and ``--json``.
        answer: answers the inputs. Its last argument is a function that tells the user something
            besides the answers.
    """

    purpose: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    answer: Callable[[Loaded, argparse.Namespace, Say], Iterator[Answer]]


@dataclasses.dataclass(frozen=True)
class Wing:
    """A task, its data, its commands and its report page.

    Attributes:
        name: the name of the task.
        kinds: the kinds of models that the task trains; see ``zoo.models.kinds``.
        fields: the fields of the config's section ``task``, except for its name.
        data_fields: the fields of the section ``data``, which ``load`` takes.
        metrics: the metrics of the evaluation, and which value of each is the best. The first
            metric chooses the best state, unless ``checkpoint.metric`` names another.
        load: describes the data.
        make: joins a model with the task. It takes the model, the data's vocabularies, and the
            sections ``task`` and ``data``.
        encode: turns one input of a finished run into the model's input, by the batch's names.
        verbs: the commands that use a finished run.
        check: raises ConfigError for fields that cannot work together.
        select: leaves out the examples from which the model cannot learn, and notes their number.
            It takes the model and the data.
        draw: draws a report's figures as PNG files in the run's folder. It takes the report, the
            folder, the vocabularies and the data.
        sections: returns what the report page shows of a report and of the files in its folder.
    """

    name: str
    kinds: tuple[str, ...]
    fields: Fields
    data_fields: Fields
    metrics: Mapping[str, Best]
    load: Callable[..., Dataset]
    make: Callable[
        [nn.Module, Mapping[str, Vocabulary], Mapping[str, Any], Mapping[str, Any]], Task
    ]
    encode: Callable[[Loaded, Any], dict[str, np.ndarray]]
    verbs: Mapping[str, Verb]
    check: Callable[[ConfigDict, Family], None] = lambda config, family: None
    select: Callable[[nn.Module, Dataset], Dataset] = lambda model, dataset: dataset
    draw: Callable[[Report, Path, Mapping[str, Vocabulary], Dataset], None] = (
        lambda report, folder, vocabularies, dataset: None
    )
    sections: Callable[[Report, Path], Sequence[Section]] = lambda report, folder: ()


def add_inputs(help_text: str) -> Callable[[argparse.ArgumentParser], None]:
    """Returns a function that adds one or more inputs to a command."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("inputs", nargs="+", help=help_text)

    return add


def add_numbers(parser: argparse.ArgumentParser, numbers: Mapping[str, tuple[float, str]]) -> None:
    """Adds numeric options. Each has a default, which also gives its type, and a meaning."""
    for name, (default, meaning) in numbers.items():
        parser.add_argument(
            f"--{name}", type=type(default), default=default, help=f"{meaning}; default {default}"
        )


def png(flag: str) -> Callable[[str], Path]:
    """Returns the parser of an option for a PNG file to write; UserError for other files."""

    def read(given: str) -> Path:
        if not given.lower().endswith(".png"):
            raise UserError(f"{flag}={given} must end in .png")
        return Path(given)

    return read


def read_each(files: Iterable[Any], read: Callable[[Any], Any]) -> list[Any]:
    """Reads files; one error names all files that cannot be read.

    Raises:
        UserError: some files cannot be read.
    """
    made, broken = [], []
    for file in files:
        try:
            made.append(read(file))
        except UserError as error:
            broken.append(str(error))
    if broken:
        raise UserError("\n".join(broken))
    return made


def say_unknown(words: Sequence[str], say: Say) -> None:
    """Tells the user which words of an input a run reads as the unknown word, if there are any."""
    if words:
        say(f"not in the vocabulary, read as unknown: {', '.join(words)}")


Likeliest = list[tuple[str, float]]


def likeliest(
    classes: Sequence[str], probabilities: Iterable[np.ndarray], most: int
) -> list[Likeliest]:
    """Returns the likeliest classes of each row of probabilities, the likeliest first."""
    return [
        [(classes[index], float(row[index])) for index in np.argsort(-row)[:most]]
        for row in probabilities
    ]


def show_likeliest(inputs: Sequence[str], found: Iterable[Likeliest]) -> Iterator[Answer]:
    """Answers with names and their shares, one line for each input."""
    for given, row in zip(inputs, found, strict=True):
        shown = ", ".join(f"{name} {100 * share:.1f}%" for name, share in row)
        yield Answer(given, dict(row), (f"{given}\t{shown}",))


def example_sections(report: Report) -> list[Section]:
    """Returns a table of texts, all with the same columns."""
    examples = report.get("examples")
    if not examples:
        return []
    columns = tuple(examples[0])
    rows = tuple(tuple(map(str, example.values())) for example in examples)
    return [Table("Examples", columns, rows, prose=columns)]
