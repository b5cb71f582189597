"""``zoo transcribe --model FOLDER``: what is said in recordings, by a published Whisper."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HELP = """write down what is said in recordings

FOLDER has a Whisper as it is published. A recording is any file that libsndfile reads: WAV, FLAC,
Ogg, MP3 and others, of any sample rate. It is decoded greedily in windows of 30 seconds. Without
--timestamps windows follow each other without a gap, and one may end in the middle of a word. With
--timestamps the next window begins where the last whole segment ends, as in the original decoding.
Windows without speech are not skipped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--model", required=True, help="folder of the model", metavar="FOLDER")
    parser.add_argument("inputs", nargs="+", help="recordings", metavar="FILE")
    parser.add_argument(
        "--language", default="", help="such as en; default: it is detected in each file"
    )
    parser.add_argument(
        "--task",
        choices=("transcribe", "translate"),
        default="transcribe",
        help="translate: to English",
    )
    parser.add_argument(
        "--timestamps", action="store_true", help="print when each part begins and ends"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Prints the text of each recording as soon as it is there."""
    import zoo
    from zoo import transcribing
    from zoo.data.speech import read_wav
    from zoo.errors import UserError

    zoo.use_kernels()
    transcriber = transcribing.load(options.model)
    broken = []
    for given in options.inputs:
        try:
            samples = read_wav(Path(given), transcriber.sound.rate)
        except UserError as error:
            # The others are worth having: what is broken is said at the end.
            broken.append(str(error))
            continue
        made = transcribing.transcribe(
            transcriber,
            samples,
            language=options.language,
            task=options.task,
            timestamps=options.timestamps,
        )
        if options.json:
            shown = _json(given, made, options.timestamps)
        elif options.timestamps:
            shown = "\n".join(
                [given, *(f"{_time(p.begin)} - {_time(p.end)}\t{p.text}" for p in made.segments)]
            )
        else:
            shown = f"{given}\t{made.text}"
        print(shown, flush=True)
    if broken:
        sys.stdout.flush()
        raise UserError("\n".join(broken))


def _json(given: str, made: Any, timestamps: bool) -> str:
    shown: dict[str, Any] = {"input": given, "output": made.text, "language": made.language}
    if timestamps:
        shown["segments"] = [
            {"begin": round(p.begin, 2), "end": round(p.end, 2), "text": p.text}
            for p in made.segments
        ]
    return json.dumps(shown, ensure_ascii=False)


def _time(seconds: float) -> str:
    """Returns a time as ``1:02:03.45``; hours only where there are some."""
    minutes, rest = divmod(round(seconds * 100), 6000)
    hours, minutes = divmod(minutes, 60)
    before = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{before}:{rest // 100:02}.{rest % 100:02}"
