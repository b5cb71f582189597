"""Whisper's rules against the logits processors and the segments of transformers."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from zoo.decoding import greedy
from zoo.decoding.timestamps import Rules, Segment, allowed, nothing_written, ruled, segments

END, FIRST, VOCAB = 20, 26, 45
RULES = Rules(END, never=(3, 22), not_first=(4, END), first_timestamp=FIRST, most_first=5)


@pytest.mark.parametrize("most_first", [5, None])
@pytest.mark.parametrize("timestamps", [True, False])
def test_the_same_tokens_are_allowed(timestamps, most_first):
    torch = peers.torch()
    peers.transformers()
    from transformers.generation.logits_process import (
        SuppressTokensAtBeginLogitsProcessor,
        SuppressTokensLogitsProcessor,
        WhisperTimeStampLogitsProcessor,
    )

    config = SimpleNamespace(
        no_timestamps_token_id=FIRST - 1, eos_token_id=END, bos_token_id=END,
        max_initial_timestamp_index=most_first,
    )  # fmt: skip
    processors = [
        SuppressTokensAtBeginLogitsProcessor([4, END], begin_index=3),
        SuppressTokensLogitsProcessor([3, 22]),
    ]
    if timestamps:
        processors.append(WhisperTimeStampLogitsProcessor(config, begin_index=3))
    rules = Rules(END, (3, 22), (4, END), FIRST if timestamps else None, most_first)
    generator = np.random.default_rng(0)
    prompt = np.full((40, 3), 21)
    run = jax.jit(lambda logits, written: allowed(logits, written, rules))
    forbidden = set()
    for length in range(6):
        # Half of the tokens are timestamps, so that every history of three kinds is met.
        text = generator.integers(0, END, (40, length))
        times = generator.integers(FIRST, VOCAB, (40, length))
        history = np.where(generator.random((40, length)) < 0.5, text, times)
        logits = (3 * generator.normal(size=(40, VOCAB))).astype(np.float32)
        written = nothing_written(40).extended(jnp.asarray(prompt[:, -1]), rules)
        for token in history.T:
            written = written.extended(jnp.asarray(token), rules)
        found = np.asarray(run(logits, written))
        scores = torch.from_numpy(logits)
        for processor in processors:
            scores = processor(torch.from_numpy(np.concatenate([prompt, history], 1)), scores)
        np.testing.assert_array_equal(found, scores.numpy())
        forbidden |= {tuple(row) for row in np.isinf(found)}
    assert len(forbidden) > (40 if timestamps else 1)


def test_greedy_obeys_rules_with_rows_and_beams_of_their_own():
    # A model whose logits depend on the last token of each row alone.
    table = jnp.asarray(np.random.default_rng(0).normal(size=(VOCAB, VOCAB)), jnp.float32)

    def step(tokens, cache):
        return table[tokens], cache

    def written(rows):
        made = jax.jit(
            lambda prompt: greedy(
                ruled(step, RULES),
                (jnp.zeros(len(rows)), nothing_written(len(rows))),
                prompt,
                max_new_tokens=12,
                end=END,
                padding=END,
            )
        )(jnp.asarray(rows))
        return np.asarray(made)

    rows = [[21, token] for token in range(6)]
    together = written(rows)
    for row, alone in zip(rows, together, strict=True):
        np.testing.assert_array_equal(written([row])[0], alone)
        assert FIRST <= alone[0] <= FIRST + 5
        times = [token for token in alone if token >= FIRST]
        assert times == sorted(times)
        assert not {3, 22, FIRST - 1} & set(alone.tolist())
    assert len({tuple(row) for row in together.tolist()}) > 1


def random_text(generator):
    """A text as the rules allow it: timestamps in pairs, none earlier than the one before."""
    at, tokens = int(generator.integers(0, 3)), []
    for _ in range(generator.integers(1, 5)):
        tokens += [FIRST + at, *generator.integers(0, END, generator.integers(1, 4)).tolist()]
        at += int(generator.integers(1, 5))
        tokens.append(FIRST + at)
    # The end may come anywhere.
    return tokens[: generator.integers(1, len(tokens) + 1)]


def test_segments_are_those_of_transformers():
    torch = peers.torch()
    peers.transformers()
    from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        # Lengths of which the reference, whose float32 rounds down, keeps the last step.
        tokens, length = random_text(generator), int(generator.choice([20, 24, 28]))
        assert int(torch.tensor(2 * length) * 0.01 / 0.02) == length
        theirs, offset = WhisperGenerationMixin._retrieve_segment(
            seek_sequence=torch.tensor(tokens), seek_outputs=[None],
            time_offset=torch.zeros(1, dtype=torch.float64), timestamp_begin=FIRST,
            seek_num_frames=torch.tensor([2 * length]), time_precision=0.02,
            time_precision_features=0.01, input_stride=2, prev_idx=0, idx=0,
            return_token_timestamps=False, decoder_input_ids=torch.zeros(1, 3),
        )  # fmt: skip
        found, ahead = segments(tokens, FIRST, length)
        assert 2 * ahead == int(offset)
        expected = [
            Segment(
                round(float(part["start"]) / 0.02),
                round(float(part["end"]) / 0.02),
                tuple(token for token in part["tokens"].tolist() if token < FIRST),
            )
            for part in theirs
        ]
        assert found == expected, tokens
        seen.add((len(found), ahead == length))
    assert len(seen) > 5


def test_segments_of_nothing_and_of_text_alone():
    assert segments([], FIRST, 50) == ([Segment(0, 50, ())], 50)
    assert segments([1, 2], FIRST, 50) == ([Segment(0, 50, (1, 2))], 50)
    assert segments([FIRST, 1, 2], FIRST, 50) == ([Segment(0, 50, (1, 2))], 50)


def test_a_text_without_timestamps_needs_no_rule_about_them():
    rules = Rules(END)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, VOCAB)))
    written = nothing_written(2).extended(jnp.array([1, 2]), rules)
    run = functools.partial(allowed, rules=rules)
    np.testing.assert_array_equal(run(logits, written), logits)
