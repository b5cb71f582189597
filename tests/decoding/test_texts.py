"""Text as it comes: whole characters, strings that end it, and prompts of all lengths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.decoding import TextStream, bucket, generate, pad_left, piece_lengths
from zoo.errors import UserError


def bytes_to_text(tokens):
    """Every token is a byte, as the least of a byte-level tokenizer."""
    return bytes(tokens).decode("utf-8", errors="replace")


def streamed(stream, tokens):
    return [*(stream.add(token) for token in tokens), stream.finish()]


@pytest.mark.parametrize("text", ["plain", "Grüße, 日本語 👩‍👩‍👧 ok", "é", "\ufffd!", "👍"])
def test_pieces_are_whole_characters_and_add_up_to_the_text(text):
    pieces = streamed(TextStream(bytes_to_text), text.encode())
    assert "".join(pieces) == text
    assert all(piece in text for piece in pieces)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    # Every piece comes with the last byte of a character, not later.
    for place, byte in enumerate(text.encode()[1:], 1):
        if byte & 0xC0 != 0x80 and "\ufffd" not in text:
            assert len("".join(pieces[:place]).encode()) == place


def test_an_unfinished_character_comes_at_the_end():
    tokens = "ab👍".encode()[:-1]
    stream = TextStream(bytes_to_text)
    *pieces, last = streamed(stream, tokens)
    assert "".join(pieces) == "ab"
    assert last == "\ufffd"
    assert stream.ended
    assert stream.add(97) == stream.finish() == ""


def test_the_space_before_a_word_depends_on_the_prompt():
    words = ["▁the", "▁cat", "s"]

    def decode(tokens):  # as the tokenizers of SentencePiece, which leave out the first space
        return "".join(words[token] for token in tokens).replace("▁", " ").removeprefix(" ")

    assert "".join(streamed(TextStream(decode, after=[0]), [1, 2, 1])) == " cats cat"
    assert "".join(streamed(TextStream(decode), [1, 2, 1])) == "cats cat"


@pytest.mark.parametrize(
    ("stops", "said"),
    [
        (["\n\n"], "one\ntwo"),
        (["two", "\n\n"], "one\n"),
        (["\ntwo", "one\ntwo\n"], "one"),
        (["\ntwo\n", "e\ntwo\n", "o\n\n"], "on"),
        (["four", "threes"], "one\ntwo\n\nthree"),
        (["e\n", "wo"], "on"),
    ],
)
def test_a_stop_string_ends_a_text_however_it_is_cut(stops, said):
    text = "one\ntwo\n\nthree"
    cuts = [1, 2, 3, 5, len(text)]
    for size in cuts:
        parts = [text[i : i + size] for i in range(0, len(text), size)]
        stream = TextStream(
            lambda tokens, parts=parts: "".join(parts[t] for t in tokens), stops=stops
        )
        shown = ""
        for token in range(len(parts)):
            shown += stream.add(token)
            assert said.startswith(shown), "nothing is shown that a stop string takes back"
        assert shown + stream.finish() == said


def test_several_tokens_end_a_text_and_show_what_was_held_back():
    stream = TextStream(bytes_to_text, ends=[0, 1], stops=["abc"])
    assert stream.add(ord("a")) == stream.add(ord("b")) == ""
    assert stream.add(1) == "ab"
    assert stream.ended
    with pytest.raises(UserError, match="empty stop string"):
        TextStream(bytes_to_text, stops=["a", ""])


@pytest.mark.parametrize("length", range(1, 70))
def test_lengths(length):
    assert bucket(length) >= max(length, 16)
    assert bucket(length) < 2 * max(length, 9)
    assert bucket(length) & (bucket(length) - 1) == 0
    parts = piece_lengths(length)
    assert sum(parts) == length
    assert all(part & (part - 1) == 0 for part in parts)
    assert parts == sorted(set(parts), reverse=True)


def test_prompts_end_at_the_same_place():
    tokens, padding = pad_left([[5], [6, 7, 8]], 4, token=9)
    assert tokens.tolist() == [[9, 9, 9, 5], [9, 6, 7, 8]]
    assert padding.tolist() == [3, 1]
    for wrong, words in (([], "no prompt"), ([[1], []], "empty"), ([[1] * 5], "5 tokens")):
        with pytest.raises(UserError, match=words):
            pad_left(wrong, 4)


VOCAB = 7
TABLE = np.random.default_rng(0).normal(size=(VOCAB, VOCAB)).astype(np.float32)


class Counted:
    """A model whose next token depends on all tokens that are no padding; counts its traces."""

    def __init__(self):
        self.shapes = []

    def initial_cache(self, batch, room, padding=None):
        hidden = jnp.zeros(batch, jnp.int32) if padding is None else jnp.array(padding)
        return {"sum": jnp.zeros((batch, VOCAB)), "hidden": hidden, "length": jnp.zeros((), int),
                "room": jnp.zeros((batch, room))}  # fmt: skip

    def step(self, tokens, cache):
        self.shapes.append((tokens.shape, cache["room"].shape))
        places = cache["length"] + jnp.arange(tokens.shape[1])
        counts = (places >= cache["hidden"][:, None])[..., None]
        sums = cache["sum"][:, None] + jnp.cumsum(
            jnp.where(counts, jnp.asarray(TABLE)[tokens], 0), axis=1
        )
        length = cache["length"] + tokens.shape[1]
        return jnp.sin(37 * sums), cache | {"sum": sums[:, -1], "length": length}


def test_few_programs_serve_fifty_lengths():
    model, context, new = Counted(), 64, 6
    for length in range(1, 51):
        prompt = (np.arange(length) * length % VOCAB).tolist()
        made = list(
            generate(
                model.step, model.initial_cache, [prompt], jax.random.key(0),
                max_new_tokens=new, context=context, temperature=0,
            )
        )  # fmt: skip
        # The same without padding and pieces.
        total, expected = TABLE[prompt].sum(axis=0), []
        for _ in range(new):
            expected.append(int(np.argmax(np.sin(37 * total))))
            total = total + TABLE[expected[-1]]
        assert np.concatenate(made).tolist() == expected
    # A width and one token for each room, and powers of two where a width leaves no room.
    assert len(set(model.shapes)) <= 10, set(model.shapes)
    assert len(model.shapes) == len(set(model.shapes)), "a program was compiled twice"


def test_a_recurrent_model_reads_its_prompt_in_pieces_without_padding():
    read = []

    def step(tokens, cache):
        read.append(tokens.shape[1])
        return jax.nn.one_hot((tokens + 1) % 50, 50), cache

    def made(prompts):
        return list(
            generate(
                step, lambda batch, room: jnp.zeros((batch, 1)), prompts, jax.random.key(0),
                max_new_tokens=3, context=None, temperature=0,
            )
        )  # fmt: skip

    assert np.concatenate(made([list(range(13))])).tolist() == [13, 14, 15]
    assert set(read) == {8, 4, 1}
    assert np.stack(made([[1, 2], [3, 4]])).tolist() == [[3, 5], [4, 6], [5, 7]]
    with pytest.raises(UserError, match="one length at a time"):
        made([[1], [2, 3]])


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([[1] * 9], {}, "9 tokens, more than the model's context of 8"),
        ([[]], {}, "the prompt is empty"),
        ([], {}, "no prompt"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[1]], {"temperature": -0.5}, r"temperature=-0\.5 must be at least 0"),
        ([[1]], {"top_p": 1.5}, r"top_p=1\.5"),
        ([[1]], {"min_p": -0.1}, r"min_p=-0\.1"),
        ([[1]], {"repetition_penalty": 0.0}, r"repetition_penalty=0\.0"),
        ([[1] * 6], {"num_beams": 2}, "beam search over 9 tokens"),
        ([[1]], {"num_beams": 0}, "num_beams=0"),
    ],
)
def test_what_cannot_be_decoded_says_why(prompts, options, words):
    model = Counted()
    given = {"max_new_tokens": 3, "context": 8} | options
    with pytest.raises(UserError, match=words):
        list(generate(model.step, model.initial_cache, prompts, jax.random.key(0), **given))


def test_rows_end_by_themselves_and_all_end_the_text():
    def step(tokens, cache):
        return jax.nn.one_hot(tokens + 1, 50), cache

    columns = generate(
        step, lambda batch, room, padding: 0, [[1], [9]], jax.random.key(0),
        max_new_tokens=30, context=64, end=(5, 12), temperature=0,
    )  # fmt: skip
    rows = np.stack(list(columns)).T
    assert [list(itertools.takewhile(lambda t: t not in (5, 12), row)) for row in rows] == [
        [2, 3, 4], [10, 11]
    ]  # fmt: skip
    assert rows.shape == (2, 4)
