"""All that is measured, by name."""

from benchmarks.families.cnn import CNNStep
from benchmarks.families.gpt import Decoding, Generation, GPTStep
from benchmarks.families.inference import Forward
from benchmarks.families.loops import TORCH, Data, Loop
from benchmarks.families.recurrent import RecurrentStep
from benchmarks.families.resnet import ResNetStep
from benchmarks.families.sides import Work
from benchmarks.families.unet import Sampling, UNetStep

WORKS: dict[str, Work] = {
    "cnn": CNNStep(),
    "resnet": ResNetStep(),
    **{
        f"{model}-inference-{rows}": Forward(model, rows)
        for model in ("cnn", "resnet50")
        for rows in (1, 64)
    },
    **{
        f"{cell}-{width}": RecurrentStep(cell, width)
        for cell in ("lstm", "gru", "rnn")
        for width in (256, 512)
    },
    "gpt": GPTStep(),
    "decoding-1": Decoding(1),
    "decoding-16": Decoding(16),
    **{
        f"{part}-{size}-{rows}": Generation(size, rows, reads=part == "prompt")
        for size in ("10m", "124m")
        for part in ("prompt", "generation")
        for rows in (1, 16)
    },
    "unet": UNetStep(),
    "sampling": Sampling(),
    **{f"loop-{config}": Loop(config) for config in (*TORCH, "lstm:gru", "lstm:rnn")},
    **{f"data-{config}": Data(config) for config in (*TORCH, "diffusion")},
}
