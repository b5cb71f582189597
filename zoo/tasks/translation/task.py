"""Translation: a sentence in one language from a sentence in another."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from zoo.data.vocabulary import Subwords
from zoo.layers.attention import WEIGHTS
from zoo.tasks.sequence_to_sequence.task import BEGIN, PAD, SequenceToSequence, until_end
from zoo.tasks.task import Batch

# The translations that a report shows.
EXAMPLES = 20


@dataclasses.dataclass(frozen=True)
class Translation(SequenceToSequence):
    """``SequenceToSequence`` of subwords, with BLEU as its score.

    Attributes:
        subwords: the subwords of both languages; None for a task whose outputs are not scored.
    """

    subwords: Subwords | None = None

    def predict(
        self, params: Any, model_state: Any, batch: Batch, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns ``beam``, ``Int[Array, "batch target_time"]``, and the ``attention`` of each."""
        length = batch["references"].shape[-1]
        tokens = self.decode(params, batch["source"], length, num_beams=self.num_beams)
        return {"beam": tokens, "attention": self.attention(params, batch["source"], tokens)}

    def attention(
        self,
        params: Any,
        source: Int[Array, "batch source_time"],
        target: Int[Array, "batch time"],
    ) -> Float[Array, "batch time source_time"]:
        """Returns how much each target token looks at each source token.

        It is the mean over the layers and heads of the attention to the encoder's output, with
        which the model chose the token.
        """
        begin = jnp.full((source.shape[0], 1), BEGIN, jnp.int32)
        given = jnp.concatenate([begin, target[:, :-1]], axis=1)
        _, kept = self.model.apply(
            {"params": params}, source, given, source_mask=source != PAD, mutable=[WEIGHTS]
        )
        leaves = jax.tree_util.tree_leaves_with_path(kept)
        weights = [x.mean(axis=1) for path, x in leaves if "cross_attention" in str(path)]
        return jnp.stack(weights).mean(axis=0)

    def score(
        self, outputs: dict[str, np.ndarray], references: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns BLEU (Papineni et al. 2002) as sacreBLEU computes it, and some translations.

        BLEU compares a translation with all of its references. Case counts, and sacreBLEU's own
        tokenizer divides the texts, so that the number can be compared with published ones.
        """
        import sacrebleu

        translations = [self._text(row) for row in outputs["beam"]]
        right = [[self._text(row) for row in rows if row[0]] for rows in references["references"]]
        most = max(map(len, right))
        # sacreBLEU leaves out the references that are None.
        streams: Any = [
            [texts[i] if i < len(texts) else None for texts in right] for i in range(most)
        ]
        metric = sacrebleu.metrics.BLEU()
        bleu = metric.corpus_score(translations, streams)
        sources = references["source"]
        chosen = np.linspace(0, len(translations) - 1, min(EXAMPLES, len(translations)), dtype=int)
        return {
            "metrics": {"bleu": bleu.score},
            "text": f"{bleu.format(score_only=False)} ({metric.get_signature()})",
            "examples": [
                {
                    "source": self._text(sources[i]),
                    "translation": translations[i],
                    "reference": " | ".join(right[i]),
                }
                for i in chosen
            ],
            "attention": [
                self._map(sources[i], outputs["beam"][i], outputs["attention"][i]) for i in chosen
            ],
        }

    def _map(self, source: np.ndarray, target: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
        rows, columns = len(until_end(target)), len(until_end(source))
        return {
            "source": self._pieces(source),
            "target": self._pieces(target),
            "weights": [[round(float(x), 3) for x in row[:columns]] for row in weights[:rows]],
        }

    def _text(self, tokens: np.ndarray) -> str:
        kept = until_end(tokens)
        return self.subwords.decode_text(kept) if self.subwords else " ".join(map(str, kept))

    def _pieces(self, tokens: np.ndarray) -> list[str]:
        return [self._text(np.array([token])) for token in until_end(tokens)]
