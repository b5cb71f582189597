"""From a language model's logits to text: greedy, sampled and beam decoding, with a cache.

A model comes in as a function ``step(tokens, cache) -> (logits, cache)``: ``tokens: Int[Array,
"batch time"]`` follow what the cache has seen, ``logits: Float[Array, "batch time vocab"]`` are of
each next token. An array of the cache has the batch as its first axis, or is a scalar. What else
belongs to a row, such as what an encoder made of its source, travels in the cache too, so that beam
search can repeat it for each beam.
"""

from zoo.decoding.beam import beam_search
from zoo.decoding.sampling import choose, filter_logits, greedy, sample, stream

__all__ = ["beam_search", "choose", "filter_logits", "greedy", "sample", "stream"]
