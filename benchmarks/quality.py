"""Trains the configs with several seeds and writes what they reach.

    python -m benchmarks.quality --seeds 3 [--only cnn] [--data_dir DIR]

Runs go to ``runs/quality/<config>[-variant]-seed<N>`` and are resumed there, by ``train.py``
itself: the same command goes on where it was stopped. Writes ``docs/results.json``, the table in
``docs/results.md`` and the README's table of configs. To train anew, remove the folder. With
``--config.x.y=z`` it is a trial: nothing is written down. ``--tables`` trains nothing and writes
the tables anew.
"""

import argparse
import dataclasses
import json
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import adherence, baselines, machine, tables

RESULTS = machine.ROOT / "docs" / "results.json"
DOCS = machine.ROOT / "docs" / "results.md"
README = machine.ROOT / "README.md"
# Follows a time that was taken while other work ran on the same cores.
OTHER_WORK = "*"
RUNS = "runs/quality"

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Quality:
    """What is asked of a config.

    Attributes:
        config: its name, as in ``configs/<name>.py``.
        metrics: those of the table.
        data: the data of its own test split, for the table.
        others: other TFDS data sets on whose test split the checkpoint is evaluated, where their
            folder is there; or what else ``judge`` measures on.
        split: of its own data, on which the checkpoint is evaluated.
        most_seeds: 1 where a run takes much longer than five minutes on two cores.
        variant: of the config.
        prepared: whether it trains on a prepared TFDS data set, from ``--data_dir``.
        judge: measures a run's folder, by test set, in place of the report's own metrics.
        about: what is trained on what, for the README; without it the config is not there.
        reaches: what is reached, with the metrics of the config's own data in braces.
    """

    config: str
    metrics: tuple[str, ...]
    data: str
    others: tuple[str, ...] = ()
    split: str = "test"
    most_seeds: int = 3
    variant: str = ""
    prepared: bool = False
    judge: Callable[[str], dict[str, dict[str, float]]] | None = None
    about: str = ""
    reaches: str = ""

    @property
    def name(self) -> str:
        """As ``--only``, and in the names of folders: ``lstm-gru``."""
        return f"{self.config}-{self.variant}" if self.variant else self.config

    @property
    def command(self) -> str:
        """What ``--config`` takes."""
        file = f"configs/{self.config}.py"
        return f"{file}:{self.variant}" if self.variant else file

    @property
    def own(self) -> str:
        """The config's own data in the table."""
        return self.data if self.split == "test" else f"{self.data} {self.split}"


CONFIGS = (
    Quality(
        "cnn",
        metrics=("accuracy",),
        data="mnist_subset",
        others=("mnist",),
        about="a convolutional network on handwritten digits; `:full` takes all of MNIST",
        reaches="{accuracy:.1%} accuracy",
    ),
    Quality(
        "resnet",
        metrics=("accuracy",),
        data="mnist_subset",
        most_seeds=1,
        about="ResNet-18 for small images on the digits; `:cifar10` takes CIFAR-10",
        reaches="{accuracy:.1%} accuracy",
    ),
    Quality(
        "resnet",
        variant="cifar10_30min",
        metrics=("accuracy",),
        data="cifar10",
        most_seeds=1,
        prepared=True,
    ),
    Quality(
        "vit",
        metrics=("accuracy",),
        data="mnist_subset",
        most_seeds=1,
        about="a small vision transformer on the digits",
        reaches="{accuracy:.1%} accuracy",
    ),
    Quality(
        "lstm",
        metrics=("loss",),
        data="tiny_shakespeare",
        split="validation",
        most_seeds=1,
        about="an LSTM language model of the characters of Shakespeare; also `:gru`, `:rnn`",
        reaches="{loss:.2f} nats a character",
    ),
    *(
        Quality(
            "lstm",
            variant=cell,
            metrics=("loss",),
            data="tiny_shakespeare",
            split="validation",
            most_seeds=1,
        )
        for cell in ("gru", "rnn")
    ),
    Quality(
        "gpt",
        metrics=("loss",),
        data="tiny_shakespeare",
        split="validation+test",
        about="a small GPT on the same text; `:nanogpt` is nanoGPT's recipe for a CPU",
        reaches="{loss:.2f} nats a character",
    ),
    Quality(
        "gpt",
        variant="nanogpt",
        metrics=("loss",),
        data="tiny_shakespeare",
        split="validation+test",
    ),
    Quality(
        "transformer",
        metrics=("sequence_error", "token_error"),
        data="cmudict",
        most_seeds=1,
        about="the original transformer, from English spelling to pronunciation",
        reaches="{sequence_error:.1%} of words wrong",
    ),
    Quality(
        "translate",
        metrics=("bleu",),
        data="tatoeba_german_english",
        most_seeds=1,
        about="the same model, from German sentences to English ones",
        reaches="BLEU {bleu:.1f}",
    ),
    Quality(
        "word_lm",
        metrics=("perplexity",),
        data="tatoeba_german",
        others=(baselines.NGRAM,),
        most_seeds=1,
        judge=baselines.next_words,
        about="an LSTM language model of German words",
        reaches="perplexity {perplexity:.1f}",
    ),
    Quality(
        "speech",
        metrics=("token_error", "sequence_error"),
        data="test",
        others=("held_out",),
        most_seeds=1,
        judge=lambda workdir: {split: evaluate(workdir, split) for split in ("test", "held_out")},
        about="a bidirectional LSTM with CTC, from spoken digits to text",
        reaches="{token_error:.1%} of digits wrong",
    ),
    Quality(
        "forecast",
        metrics=tuple(
            f"{name}_{horizon}" for horizon in (4, 13, 52) for name in ("mase", "coverage")
        ),
        data="co2_weekly",
        about="a GRU that forecasts weekly CO2 at Mauna Loa, with a band",
        reaches="{mase_52:.2f} of the naive forecast's error, a year ahead",
    ),
    Quality(
        "classify_text",
        metrics=("f1",),
        data="sms_spam",
        others=(baselines.TFIDF,),
        judge=baselines.messages,
        about="a bidirectional LSTM that finds spam among text messages",
        reaches="F1 {f1:.2f}",
    ),
    Quality(
        "diffusion",
        metrics=("adherence",),
        data="test",
        others=("held_out",),
        most_seeds=1,
        judge=adherence.measure,
        about="a diffusion model that draws captioned scenes of one digit",
        reaches="{adherence:.2f} of the judge's score on real scenes",
    ),
)


def train(
    quality: Quality, seed: int, data_dir: Path | None, overrides: Sequence[str]
) -> tuple[Result, str, Result | None]:
    """Trains one seed, or goes on with it; returns its report, its folder and the command's time.

    The time is None where the run was begun by an earlier command.

    Raises:
        SystemExit: it failed.
    """
    workdir = f"{RUNS}{'-trial' if overrides else ''}/{quality.name}-seed{seed}"
    begins = not (machine.ROOT / workdir).exists()
    _, seconds = machine.run(
        [
            "train.py",
            f"--config={quality.command}",
            f"--config.seed={seed}",
            f"--workdir={workdir}",
            *((f"--config.data.data_dir={data_dir}",) if quality.prepared else ()),
            *overrides,
        ]
    )
    print(f"{workdir}: {seconds:.0f} s", flush=True)
    report = (machine.ROOT / workdir / "report.json").read_text(encoding="utf-8")
    command = {
        "seconds": round(seconds, 1),
        "date": machine.today(),
        "commit": machine.commit(),
    }
    return json.loads(report), workdir, command if begins else None


def evaluate(workdir: str, split: str, *overrides: str) -> dict[str, float]:
    """Returns the metrics of a run's latest checkpoint on a split, of other data if overridden."""
    command = ("-m", "zoo.cli", "evaluate", f"--workdir={workdir}", f"--split={split}", "--json")
    return machine.run_for_json([*command, *overrides])["metrics"]


def measure(quality: Quality, seed: int, data_dir: Path | None, overrides: Sequence[str]) -> Result:
    """Trains and evaluates one seed of a config."""
    report, workdir, command = train(quality, seed, data_dir, overrides)
    if quality.judge:
        metrics = quality.judge(workdir)
    elif quality.split != "test":
        metrics = {quality.own: evaluate(workdir, quality.split)}
    else:
        metrics = {quality.own: report["metrics"]["test"]}
    for name in () if quality.judge else quality.others:
        if data_dir and (data_dir / name).is_dir():
            metrics[name] = evaluate(
                workdir,
                "test",
                f"--config.data.name={name}",
                f"--config.data.data_dir={data_dir}",
            )
        else:
            print(f"no evaluation on {name}: it is not in --data_dir={data_dir}")
    return {
        "config": quality.name,
        "seed": seed,
        "metrics": metrics,
        "steps": report["steps"],
        "seconds": round(report["train_seconds"] + report["compile_seconds"], 1),
        "parameters": report["parameters"],
        "machine": machine.describe(),
        "versions": machine.versions(),
        "date": machine.today(),
        "commit": machine.commit(),
    } | ({"command": command} if command else {})


def add_result(path: Path, result: Result) -> list[Result]:
    """Adds a result to the file, in place of one of the same config and seed; returns all."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def key(one: Result) -> tuple[str, int]:
        return one["config"], one["seed"]

    results = sorted([*(one for one in old if key(one) != key(result)), result], key=key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def write_tables(results: Sequence[Result], is_older: Callable[[str | None], bool]) -> None:
    """Writes both tables; ``is_older`` says whether a time is older than its code."""
    tables.write_between(DOCS, "results", as_markdown(results, is_older))
    tables.write_between(README, "configs", summary(results, is_older))


def as_markdown(results: Sequence[Result], is_older: Callable[[str | None], bool]) -> str:
    """Lays out one row for each config and test set, with the mean over its seeds."""
    header = (
        "config", "test set", "metric", "mean", "each seed", "steps", "time", "time measured",
        "metrics measured", "machine",
    )  # fmt: skip
    rows = []
    for quality in CONFIGS:
        seeds = [result for result in results if result["config"] == quality.name]
        for name in (quality.own, *quality.others):
            found = [one for one in seeds if name in one["metrics"]]
            if not found:
                continue
            machines = {
                f"{one['machine']['processor']}, {one['machine']['cores']} cores" for one in found
            }
            seconds, mark, timed = time_of(found, is_older)
            for metric in quality.metrics:
                values = [
                    one["metrics"][name][metric] for one in found if metric in one["metrics"][name]
                ]
                if not values:
                    continue
                rows.append(
                    (
                        f"`{quality.command}`",
                        f"`{name}`",
                        metric,
                        f"{statistics.mean(values):.4f}",
                        ", ".join(f"{value:.4f}" for value in values),
                        ", ".join(sorted({str(one["steps"]) for one in found})),
                        f"{seconds:.0f} s{mark}",
                        timed,
                        _when(found),
                        "; ".join(sorted(machines)),
                    )
                )
    return tables.markdown(header, rows)


def summary(results: Sequence[Result], is_older: Callable[[str | None], bool]) -> str:
    """Lays out one row for each config that has something to say for itself in the README."""
    rows = []
    for quality in CONFIGS:
        found = [
            one
            for one in results
            if one["config"] == quality.name and quality.own in one["metrics"]
        ]
        if not quality.about or not found:
            continue
        means = {
            metric: statistics.mean(one["metrics"][quality.own][metric] for one in found)
            for metric in quality.metrics
        }
        seconds, mark, _ = time_of(found, is_older)
        rows.append(
            (
                f"`{quality.command}`",
                quality.about,
                quality.reaches.format(**means),
                f"{minutes(seconds)} min{mark}",
            )
        )
    return tables.markdown(("config", "trains", "reaches", "time"), rows)


def minutes(seconds: float) -> int:
    """Returns whole minutes, at least one."""
    return max(1, round(seconds / 60))


def time_of(
    found: Sequence[Result], is_older: Callable[[str | None], bool]
) -> tuple[float, str, str]:
    """Returns the seconds of a config's runs, marks, and when they were measured.

    The whole command where it was measured, else training and compilation.
    """
    commands = [one["command"] for one in found if "command" in one]
    measured = commands or found
    other_work = not commands and any(one.get("other_work") for one in found)
    older = any(is_older(one.get("commit")) for one in measured)
    return (
        statistics.median(one["seconds"] for one in measured),
        (OTHER_WORK if other_work else "") + (tables.OLDER if older else ""),
        _when(measured),
    )


def _when(measured: Sequence[Result]) -> str:
    """Returns the dates of measurements, with the commits whose code was measured."""
    keys = ("date", "commit")
    return "; ".join(
        sorted({", ".join(one[key] for key in keys if one.get(key)) for one in measured})
    )


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    parser.add_argument("--only", choices=[quality.name for quality in CONFIGS])
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=os.environ.get("TFDS_DATA_DIR"),
        help="folder of prepared TFDS data sets; default: $TFDS_DATA_DIR",
    )
    parser.add_argument("--tables", action="store_true", help="only write the tables anew")
    options, overrides = parser.parse_known_args()
    if options.tables:
        write_tables(json.loads(RESULTS.read_text(encoding="utf-8")), machine.is_older)
        return
    wrong = [override for override in overrides if not override.startswith("--config.")]
    if wrong:
        parser.error(f"unknown argument {wrong[0]}")
    data_dir = options.data_dir.resolve() if options.data_dir else None
    for quality in CONFIGS:
        if options.only not in (None, quality.name):
            continue
        if quality.prepared and not (data_dir and (data_dir / quality.data).is_dir()):
            print(f"{quality.name} left out: {quality.data} is not in --data_dir={data_dir}")
            continue
        for seed in range(min(options.seeds, quality.most_seeds)):
            result = measure(quality, seed, data_dir, overrides)
            print(json.dumps(result["metrics"]), flush=True)
            if overrides:
                continue
            write_tables(add_result(RESULTS, result), machine.is_older)


if __name__ == "__main__":
    main()
