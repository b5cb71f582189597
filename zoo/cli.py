"""The ``zoo`` command."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo import commands
from zoo.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line ``zoo COMMAND …`` and ends the program."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands.run_to_exit(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> None:
    others, overrides = commands.split_overrides(arguments)
    options = _parser().parse_args(others)
    if overrides and options.command != "evaluate":
        raise UserError(f"zoo {options.command} takes no {overrides[0]}")
    commands_by_name: dict[str, Callable[[], None]] = {
        "list": lambda: _list(options.pattern, names_only=options.names),
        "evaluate": lambda: _evaluate(options, overrides),
        "export": lambda: _export(options),
        "generate": lambda: _generate(options),
        "predict": lambda: _predict(options),
        "transcribe": lambda: _transcribe(options),
        "sample": lambda: _sample(options),
        "report": lambda: _report(options),
        "prepare": lambda: _prepare(options),
    }
    commands_by_name[options.command]()


def _list(pattern: str, *, names_only: bool) -> None:
    from zoo.models import list_models

    if names_only:
        for name in list_models(pattern):
            print(name)
        return
    from rich.console import Console
    from rich.table import Table

    from zoo.inference import describe_models

    table = Table()
    for title in ("model", "parameters", "GFLOP forward", "input", "verified against"):
        table.add_column(title, justify="left" if title in ("model", "input") else "right")
    for row in describe_models(pattern):
        table.add_row(
            row["name"], f"{row['parameters']:,}", f"{row['gflop']:.3g}", row["input"],
            row["verified"],
        )  # fmt: skip
    Console(soft_wrap=True).print(table)


def _evaluate(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from zoo import building, inference

    config = commands.override(building.read_config(Path(options.workdir)), overrides)
    result = inference.evaluate(
        options.workdir, config, split=options.split, checkpoint=options.checkpoint
    )
    if options.json:
        print(json.dumps({name: value for name, value in result.items() if name != "text"}))
        return
    print(f"{config.data.name} {result['split']}, {options.checkpoint} checkpoint, ", end="")
    print(f"step {result['step']}")
    for name, value in result["metrics"].items():
        print(f"{name} {value:.4f}")
    print(result.get("text", ""))


def _export(options: argparse.Namespace) -> None:
    from zoo import inference

    print(inference.export(options.workdir, options.out, checkpoint=options.checkpoint))


def _generate(options: argparse.Namespace) -> None:
    from zoo import inference

    loaded = inference.load(options.workdir, checkpoint=options.checkpoint)
    _say_unknown(loaded, options.prompt)
    symbols = inference.generate(
        loaded,
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        num_beams=options.num_beams,
    )
    print(options.prompt, end="", flush=True)
    for symbol in symbols:
        print(symbol, end="", flush=True)
    print()


def _predict(options: argparse.Namespace) -> None:
    plot = _png(options.plot, "--plot") if options.plot else None
    from zoo import inference

    loaded = inference.load(options.workdir, checkpoint=options.checkpoint)
    task, inputs = loaded.config.task.name, options.inputs
    likeliest: dict[str, Callable[[], list[list[tuple[str, float]]]]] = {
        "classification": lambda: inference.predict_classes(loaded, inputs),
        "text_classification": lambda: inference.predict_labels(loaded, inputs),
        "language_modelling": lambda: [inference.next_words(loaded, text) for text in inputs],
    }
    if task in likeliest:
        for text in inputs if task != "classification" else ():
            _say_unknown(loaded, text)
        for given, found in zip(inputs, likeliest[task](), strict=True):
            shown = ", ".join(f"{name} {100 * share:.1f}%" for name, share in found)
            _print_pair(given, dict(found), shown, as_json=options.json)
    elif task == "forecasting":
        for file in inputs:
            _forecast(inference.forecast(loaded, file), file, plot, as_json=options.json)
    elif task == "transcription":
        for file, text in zip(inputs, inference.transcribe(loaded, inputs), strict=True):
            _print_pair(file, text, text, as_json=options.json)
    else:
        made = inference.predict_targets(loaded, inputs, num_beams=options.num_beams)
        for source, target in zip(inputs, made, strict=True):
            _print_pair(source, target, " ".join(target), as_json=options.json)


def _say_unknown(loaded: Any, text: str) -> None:
    from zoo import inference

    if unknown := inference.unknown_words(loaded, text):
        print(f"not in the vocabulary, read as unknown: {', '.join(unknown)}", file=sys.stderr)


def _print_pair(given: str, output: Any, shown: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"input": given, "output": output}, ensure_ascii=False))
    else:
        print(f"{given}\t{shown}")


def _forecast(made: Any, file: str, plot: Path | None, *, as_json: bool) -> None:
    names = [f"quantile_{probability:g}" for probability in made.probabilities]
    rows = [
        {"date": day.isoformat(), **dict(zip(names, map(float, values), strict=True))}
        for day, values in zip(made.dates, made.quantiles, strict=True)
    ]
    if made.filled:
        print(f"{file}: {made.filled} missing values are filled in", file=sys.stderr)
    if plot:
        from zoo.reports.plots import plot_bands

        plot_bands(plot, [{"series": made.series, "quantiles": made.quantiles}])
        print(f"plot in {plot}", file=sys.stderr)
    if as_json:
        print(json.dumps({"input": file, "output": rows}))
        return
    print(",".join(["date", *names]))
    for row in rows:
        print(",".join([row["date"], *(f"{row[name]:.6g}" for name in names)]))


def _transcribe(options: argparse.Namespace) -> None:
    from zoo import inference

    loaded = inference.load(options.workdir, checkpoint=options.checkpoint)
    for file, text in zip(options.files, inference.transcribe(loaded, options.files), strict=True):
        _print_pair(file, text, text, as_json=options.json)


def _sample(options: argparse.Namespace) -> None:
    out = _png(options.out)
    from zoo import inference
    from zoo.reports.plots import image_grid, write_picture

    images = inference.draw(
        inference.load(options.workdir, checkpoint=options.checkpoint),
        options.prompt,
        num=options.num,
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
    )
    write_picture(out, image_grid(images))
    print(f"{len(images)} images in {out}")


def _report(options: argparse.Namespace) -> None:
    out = Path(options.out)
    if out.suffix.lower() != ".html":
        raise UserError(f"--out={out} must end in .html")
    from rich.console import Console

    from zoo.reports import comparison
    from zoo.reports.page import write_page

    folders = [Path(folder) for folder in options.workdirs]
    reports = comparison.read_reports(folders)
    Console(soft_wrap=True).print(comparison.comparison_table(reports))
    curves = out.with_suffix(".png")
    comparison.plot_comparison(curves, folders, reports)
    write_page(
        out,
        dict(zip(reports, folders, strict=True)),
        comparison=comparison.compared(reports),
        figures=[("Side by side", curves)],
    )
    print(f"page in {out}, curves in {curves}")


def _png(given: str, flag: str = "--out") -> Path:
    out = Path(given)
    if out.suffix.lower() != ".png":
        raise UserError(f"{flag}={out} must end in .png")
    return out


def _prepare(options: argparse.Namespace) -> None:
    from zoo.data.prepare import prepare

    prepare(options.name, options.data_dir)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zoo", description="A functional model zoo for JAX.")
    subparsers = parser.add_subparsers(dest="command", required=True)

    lister = subparsers.add_parser("list", help="the names of the models")
    lister.add_argument("pattern", nargs="?", default="*", help="such as 'resnet*'")
    lister.add_argument("--names", action="store_true", help="the names alone, one a line")

    evaluate = subparsers.add_parser(
        "evaluate",
        help="evaluate a run's checkpoint",
        description="Evaluates a run's checkpoint on a split of its data, or of other data given "
        "with --config.data.name=NAME --config.data.data_dir=DIR.",
    )
    evaluate.add_argument("--workdir", required=True, help="the run's folder")
    evaluate.add_argument("--split", default="test", help="train, validation or test")
    evaluate.add_argument("--checkpoint", choices=("latest", "best"), default="latest")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")

    export = _of_run(subparsers, "export", "write a run's weights under its reference's names")
    export.add_argument("--out", default=None, help="the folder; default: export in the run's own")
    export.add_argument("--format", choices=("safetensors",), default="safetensors")

    generate = _of_run(subparsers, "generate", "continue a text with a language model")
    generate.add_argument("--prompt", required=True, help="the beginning of the text")
    _numbers(
        generate,
        {
            "max-new-tokens": (200, "characters or words to add"),
            "temperature": (1.0, "0: always the likeliest; below 1: likelier ones more often"),
            "top-k": (0, "draw among this many likeliest; 0: all"),
            "top-p": (1.0, "draw among the likeliest that have this probability together"),
            "num-beams": (1, "above 1: beam search of this width, without chance"),
            "seed": (0, "the same seed gives the same text"),
        },
    )

    predict = _of_run(subparsers, "predict", "the outputs for inputs, such as images' classes")
    predict.add_argument(
        "inputs",
        nargs="+",
        help="files of images; words to pronounce; messages to classify; the beginnings of "
        "sentences, for the next words; CSV files, for what comes next; WAV files",
    )
    predict.add_argument("--plot", default=None, help="of a forecast: the PNG file to draw it in")
    predict.add_argument("--num-beams", type=int, default=None, help="default: the run's own")
    predict.add_argument("--json", action="store_true", help="print one JSON object a line")

    transcribe = _of_run(subparsers, "transcribe", "write down what is said in WAV files")
    transcribe.add_argument("files", nargs="+", help="the WAV files")
    transcribe.add_argument("--json", action="store_true", help="print one JSON object a line")

    sample = _of_run(subparsers, "sample", "draw images for a caption")
    sample.add_argument("--prompt", required=True, help="the caption")
    sample.add_argument("--out", required=True, help="the PNG file to write")
    _numbers(
        sample,
        {
            "num": (16, "number of images"),
            "steps": (50, "number of sampling steps"),
            "guidance": (3.0, "1: as the caption says; above: more so"),
            "seed": (0, "the same seed draws the same images"),
        },
    )

    report = subparsers.add_parser(
        "report",
        help="finished runs side by side",
        description="Prints the results of finished runs side by side and draws their curves; of "
        "recurrent models also how the gradient falls with the distance in time.",
    )
    report.add_argument("workdirs", nargs="+", help="the runs' folders")
    report.add_argument("--out", default="runs/report.html", help="the HTML file to write")

    prepare = subparsers.add_parser(
        "prepare", help="download a data set and write it as a TFDS folder"
    )
    prepare.add_argument("name", help="name of the data set, such as mnist")
    prepare.add_argument("--data_dir", default=None, help="where to; default: TFDS's own folder")
    return parser


def _of_run(subparsers: Any, name: str, purpose: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=purpose)
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--checkpoint", choices=("latest", "best"), default="latest")
    return parser


def _numbers(parser: argparse.ArgumentParser, numbers: Mapping[str, tuple[float, str]]) -> None:
    for name, (default, meaning) in numbers.items():
        parser.add_argument(
            f"--{name}", type=type(default), default=default, help=f"{meaning}; default {default}"
        )


if __name__ == "__main__":
    main()
