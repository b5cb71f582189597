"""What a kind of model must offer to the tasks that train it.

A family's record names its kind, a task names the kinds that it trains: neither knows the other.

- ``image_classifier``: ``(image, *, train) -> logits``; with batch normalisation also ``mask``.
- ``text_classifier``: ``(tokens, lengths, *, train) -> logits``.
- ``text_encoder``: ``(tokens, mask, *, train) -> (vectors, pooled)``: a vector for each token, and
  one for each text or None; some also take ``token_types``.
- ``masked_lm``: ``(tokens, mask, token_types, *, train) -> logits`` of each token, and the method
  ``logits``, which makes them of the vectors that the method ``vectors`` returns.
- ``token_classifier``: ``(tokens, mask, token_types, *, train) -> logits`` of the classes of each
  token.
- ``question_answering``: ``(tokens, mask, token_types, *, train) -> logits [batch, time, 2]`` of
  each token as the answer's first, and as its last.
- ``causal_lm``: see ``CausalLM``.
- ``encoder_decoder``: ``(source, target, *, source_mask, target_mask, train) -> logits``, and the
  methods ``begin`` and ``step`` for decoding, as ``zoo.models.Transformer``.
- ``denoiser``: ``(image, step, tokens, *, train) -> prediction``.
- ``ctc``: ``(samples, lengths, *, train) -> (logits, frames)``, and the method ``count_frames``,
  which returns the number of frames for a number of samples.
- ``image_encoder``: ``(image, *, train) -> (vectors, pooled)``, of each patch and of each image.
- ``image_text``: ``(image, tokens, mask, *, train) -> (image, text, logits)``, the vectors of
  images and of texts, and how well each image goes with each text.
- ``forecaster``: ``(series, phase, *, train) -> quantiles``, whose probabilities are the attribute
  ``quantiles``; the attribute ``horizon`` says how many values are forecast.
- ``speech_to_text``: ``(source, target, *, train) -> logits`` of the features of a sound, and the
  methods ``begin`` and ``step``, as an ``encoder_decoder``.

In an encoder's ``mask``, which may be None, padding is False. ``token_types``, which may be None,
say which of several texts each token is from. No task trains ``text_encoder``, ``image_encoder``,
``image_text``, ``masked_lm``, ``token_classifier``, ``question_answering`` and ``speech_to_text``
yet; ``zoo.make_task`` does with a loss.
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
