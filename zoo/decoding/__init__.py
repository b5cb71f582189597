"""From a language model's logits to text: greedy, sampled and beam decoding, with a cache.

A model is a function ``step(tokens, cache) -> (logits, cache)``. ``tokens: Int[Array, "batch
time"]`` follow the tokens that the cache has seen, and ``logits: Float[Array, "batch time vocab"]``
predict the token after each. An array of the cache has the batch as its first axis, or is a scalar.
Everything else that belongs to a row, such as an encoder's output for its source, also travels in
the cache, so that beam search can repeat it for each beam.
"""

from zoo.decoding.beam import beam_search
from zoo.decoding.sampling import choose, filter_logits, greedy, sample, stream

__all__ = ["beam_search", "choose", "filter_logits", "greedy", "sample", "stream"]
