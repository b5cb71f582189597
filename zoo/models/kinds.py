"""What a kind of model must offer to the tasks that train it.

A family's record names its kind, a task names the kinds that it trains: neither knows the other.

- ``image_classifier``: ``(image, *, train) -> logits``; with batch normalisation also ``mask``.
- ``text_classifier``: ``(tokens, lengths, *, train) -> logits``.
- ``causal_lm``: see ``CausalLM``.
- ``encoder_decoder``: ``(source, target, *, source_mask, target_mask, train) -> logits``, and the
  methods ``begin`` and ``step`` for decoding, as ``zoo.models.Transformer``.
- ``denoiser``: ``(image, step, tokens, *, train) -> prediction``.
- ``ctc``: ``(samples, lengths, *, train) -> (logits, frames)``, and the method ``count_frames``,
  which returns the number of frames for a number of samples.
- ``forecaster``: ``(series, phase, *, train) -> quantiles``, whose probabilities are the attribute
  ``quantiles``; the attribute ``horizon`` says how many values are forecast.
- ``speech_to_text``: ``(source, target, *, train) -> logits`` of the features of a sound, and the
  methods ``begin`` and ``step``, as an ``encoder_decoder``. No task trains it yet;
  ``zoo.make_task`` does with a loss.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from jaxtyping import Array, Float, Int


class CausalLM(Protocol):
    """A language model that reads tokens from left to right.

    It may also have the methods ``vectors``, which is ``__call__`` without its last product, and
    ``logits``, which is that product. A batch's logits are then never held all at once if they
    are many.

    Attributes:
        recurrent: whether what it keeps of the text so far has one size, however long the text. It
            then also has the submodule ``embed`` and the method ``decode``, which takes the
            vectors that ``embed`` returns in place of tokens.
    """

    recurrent: ClassVar[bool]

    def __call__(
        self, tokens: Int[Array, "batch time"], cache: Any = None, *, train: bool = False
    ) -> tuple[Float[Array, "batch time vocab"], Any]:
        """Returns the logits of each next token, and the cache with the tokens added."""

    def initial_cache(self, batch_size: int, max_length: int) -> Any:
        """Returns the cache of no tokens, with room for ``max_length`` of them.

        A model that is not recurrent also takes ``dtype``, the type of what is kept, and
        ``padding``: for each row, how many of its first tokens are padding, so that prompts of
        different lengths end at the same place.
        """
