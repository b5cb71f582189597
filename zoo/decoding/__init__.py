"""From a language model's logits to text: greedy, sampled and beam decoding, with a cache.

A model is a function ``step(tokens, cache) -> (logits, cache)``. ``tokens: Int[Array, "batch
time"]`` follow the tokens that the cache has seen, and ``logits: Float[Array, "batch time vocab"]``
predict the token after each. An array of the cache has the batch as its first axis, or is a scalar.
Everything else that belongs to a row, such as an encoder's output for its source, also travels in
the cache, so that beam search can repeat it for each beam.

``sample``, ``greedy`` and ``beam_search`` are parts of a compiled program, ``generate`` and
``stream`` compile such programs themselves and yield tokens as they come. ``TextStream`` makes text
of them.
"""

from zoo.decoding.beam import beam_search
from zoo.decoding.generation import generate
from zoo.decoding.prompts import bucket, pad_left, piece_lengths
from zoo.decoding.sampling import (
    check_filters,
    choose,
    filter_logits,
    greedy,
    penalize,
    sample,
    stream,
)
from zoo.decoding.speculative import speculate
from zoo.decoding.texts import TextStream

__all__ = [
    "TextStream",
    "beam_search",
    "bucket",
    "check_filters",
    "choose",
    "filter_logits",
    "generate",
    "greedy",
    "pad_left",
    "penalize",
    "piece_lengths",
    "sample",
    "speculate",
    "stream",
]
