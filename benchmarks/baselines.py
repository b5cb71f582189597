"""What older methods reach on the very same split, and what a run reaches beside them.

    python -m benchmarks.baselines --workdir runs/word_lm
    python -m benchmarks.baselines --workdir runs/classify_text

Of a model of words: the perplexity on unseen sentences, and that of an interpolated 3-gram model of
the same vocabulary. Of a classifier of texts: F1 of the rarest class, and that of TF-IDF with
logistic regression.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from zoo import building, inference
from zoo.data import Dataset
from zoo.data.messages import Texts
from zoo.data.sentences import END, Sentences
from zoo.errors import UserError

NGRAM, TFIDF = "interpolated 3-gram", "TF-IDF + logistic regression"

Metrics = dict[str, dict[str, float]]
Tokens = Sequence[int]


class KneserNey:
    """An interpolated n-gram model (Kneser and Ney 1995; Chen and Goodman 1999, section 3).

    Each order takes a discount ``D = n1 / (n1 + 2 n2)`` from its counts, by how many n-grams occur
    once and twice, and gives it to the order below, whose counts are those of different words
    before. Below the lowest every word is as likely as another.
    """

    def __init__(self, sentences: Iterable[Tokens], vocab_size: int, order: int = 3) -> None:
        """Counts; sentences have no end, which is ``END`` here, also before their beginning."""
        self.order, self.vocab_size = order, vocab_size
        counts = [Counter[tuple[int, ...]]() for _ in range(order)]
        for sentence in sentences:
            padded = (*[END] * (order - 1), *sentence, END)
            counts[-1].update(padded[i - order + 1 : i + 1] for i in range(order - 1, len(padded)))
        for n in range(order - 1, 0, -1):
            for gram, count in counts[n].items():
                # Before the beginning of a sentence there are no different words.
                begins = n > 1 and gram[1] == END
                counts[n - 1][gram[1:]] += count if begins else 1
        self._counts = counts
        self._discounts = [_discount(of_order) for of_order in counts]
        self._totals = [Counter[tuple[int, ...]]() for _ in range(order)]
        self._followers = [Counter[tuple[int, ...]]() for _ in range(order)]
        for n, of_order in enumerate(counts):
            for gram, count in of_order.items():
                self._totals[n][gram[:-1]] += count
                self._followers[n][gram[:-1]] += 1

    def probability(self, history: Tokens, word: int) -> float:
        """Returns the probability of a word after the last words of a history."""
        probability = 1 / self.vocab_size
        for n in range(self.order):
            before = tuple(history[len(history) - n :])
            if total := self._totals[n][before]:
                kept = max(self._counts[n][(*before, word)] - self._discounts[n], 0)
                freed = self._discounts[n] * self._followers[n][before]
                probability = (kept + freed * probability) / total
        return probability

    def perplexity(self, sentences: Iterable[Tokens]) -> float:
        """Returns the perplexity of each next word, the ends of sentences among them."""
        logarithms = []
        for sentence in sentences:
            padded = (*[END] * (self.order - 1), *sentence, END)
            logarithms += [
                math.log(self.probability(padded[i - self.order + 1 : i], padded[i]))
                for i in range(self.order - 1, len(padded))
            ]
        return math.exp(-math.fsum(logarithms) / len(logarithms))


def _discount(counts: Counter[tuple[int, ...]]) -> float:
    once, twice = (sum(count == n for count in counts.values()) for n in (1, 2))
    return once / (once + 2 * twice) if once else 0.5


def next_words(workdir: str | Path) -> Metrics:
    """Measures a run of ``configs/word_lm.py`` and the 3-gram model on its test sentences."""
    dataset = _data(workdir, "words")
    train, test = dataset.open("train"), dataset.open("test")
    assert isinstance(train, Sentences)
    assert isinstance(test, Sentences)
    model = KneserNey(train.encoded, len(dataset.vocabularies["words"]))
    ours = inference.evaluate(workdir, building.read_config(Path(workdir)))["metrics"]
    return {
        dataset.name: {**ours, "perplexity": math.exp(ours["loss"])},
        NGRAM: {"perplexity": model.perplexity(test.encoded)},
    }


def messages(workdir: str | Path) -> Metrics:
    """Measures a run of ``configs/classify_text.py`` and TF-IDF on its test texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline

    dataset = _data(workdir, "classes")
    train, test = dataset.open("train"), dataset.open("test")
    assert isinstance(train, Texts)
    assert isinstance(test, Texts)
    labels = Counter(label for _, label in train.messages)
    rarest = min(labels, key=lambda label: labels[label])
    classifier = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    classifier.fit(*zip(*train.messages, strict=True))
    texts, right = zip(*test.messages, strict=True)
    score = f1_score(right, classifier.predict(texts), pos_label=rarest)
    found = inference.evaluate(workdir, building.read_config(Path(workdir)))
    report = found["classification_report"]
    return {
        dataset.name: {**found["metrics"], "f1": report[rarest]["f1-score"]},
        TFIDF: {"f1": float(score)},
    }


def _data(workdir: str | Path, vocabulary: str) -> Dataset:
    config, dataset = building.with_data(building.read_config(Path(workdir)))
    if vocabulary not in dataset.vocabularies:
        raise UserError(f"{workdir} is a run of task.name={config.task.name!r}: no baseline for it")
    return dataset


def main() -> None:
    """Measures one run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", required=True)
    workdir = parser.parse_args().workdir
    task = building.read_config(Path(workdir)).task.name
    print(json.dumps(next_words(workdir) if task == "language_modelling" else messages(workdir)))


if __name__ == "__main__":
    main()
