"""Tokenizers of published folders against ``transformers.AutoTokenizer`` on the same folder."""

import json

import peers
import pytest

from zoo.errors import UserError
from zoo.tokenizers import characters, read_tokenizer

TEXT = ["The ships sail; the crew's song is old.", "Naïve cafés: 10 ships!", "sail, sail & rest"]
ASKED = [*TEXT, "", "  two  spaces\n", "Ünseen 漢字 <|end|> rest", "it's a [MASK] <mask>, isn't it?"]
CHAT = """{%- for message in messages %}
{%- if message.role not in ("user", "assistant") %}{{ raise_exception("roles") }}{% endif %}
<|{{ message.role }}|>{{ message.content | tojson }}{{ eos_token }}
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""


def byte_pairs(special):
    """A tokenizer of bytes in pairs, trained on a few words."""
    tokenizers = peers.peer("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    made.train_from_iterator(TEXT, trainer)
    return made


def written(folder, tokenizer_config, **files):
    for name, content in {"tokenizer_config": tokenizer_config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def gpt2_of_today(folder):
    byte_pairs(["<|endoftext|>"]).save(str(folder / "tokenizer.json"))
    end = "<|endoftext|>"
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": end, "eos_token": end}
    written(folder, config, config={"model_type": "gpt2"})


def older_gpt2(folder):
    byte_pairs(["<|endoftext|>"]).model.save(str(folder))
    written(folder, {}, config={"model_type": "gpt2"})


def older_roberta(folder):
    byte_pairs(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]).model.save(str(folder))
    mask = {"content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False,
            "normalized": False, "__type": "AddedToken"}  # fmt: skip
    written(
        folder,
        {"tokenizer_class": "RobertaTokenizer", "mask_token": mask},
        config={"model_type": "roberta"},
        special_tokens_map={"sep_token": "</s>", "mask_token": mask},
    )


def older_bert(folder):
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the ship ##s sail crew ' s , . is na ##ive it old"
    (folder / "vocab.txt").write_text("\n".join(words.split()) + "\n")
    written(folder, {"do_lower_case": True}, config={"model_type": "bert"})


def cased_bert(folder):
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] The the ship ##s Na ##ïve 漢 字"
    (folder / "vocab.txt").write_text("\n".join(words.split()))
    config = {"do_lower_case": False, "strip_accents": False, "tokenize_chinese_chars": True}
    written(folder, config, config={"model_type": "bert"})


def with_chat(folder):
    """A chat, a token that ``tokenizer_config.json`` adds, and an entry of it without meaning."""
    byte_pairs(["<|begin|>", "<|end|>"]).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>",
        "eos_token": {"content": "<|end|>", "__type": "AddedToken"}, "pad_token": "<|pad|>",
        "add_bos_token": True, "chat_template": CHAT,
    }  # fmt: skip
    written(folder, config)


def gpt2_with_begin(folder):
    older_gpt2(folder)
    written(folder, {"add_bos_token": True, "add_prefix_space": True})


FOLDERS = [
    gpt2_of_today, older_gpt2, gpt2_with_begin, older_roberta, older_bert, cased_bert,
    with_chat,
]  # fmt: skip


@pytest.mark.parametrize("make", FOLDERS, ids=lambda make: make.__name__)
def test_numbers_and_texts_are_those_of_transformers(make, tmp_path):
    make(tmp_path)
    ours = read_tokenizer(tmp_path)
    theirs = peers.transformers().AutoTokenizer.from_pretrained(tmp_path)
    assert len(ours) == len(theirs)
    for text in ASKED:
        for special in (True, False):
            found = ours.encode(text, add_special_tokens=special)
            assert found == theirs.encode(text, add_special_tokens=special), text
            for skip in (True, False):
                assert ours.decode(found, skip_special_tokens=skip) == theirs.decode(
                    found, skip_special_tokens=skip
                )
    pair = ours.backend.encode(*TEXT[:2])
    expected = theirs(*TEXT[:2], return_token_type_ids=True)
    assert pair.ids == expected["input_ids"]
    assert pair.type_ids == expected["token_type_ids"]
    for role in ("bos", "eos", "pad", "sep", "cls", "unk", "mask"):
        assert ours.token(role) == getattr(theirs, f"{role}_token_id"), role


def test_a_chat_is_the_text_that_transformers_makes(tmp_path):
    with_chat(tmp_path)
    ours = read_tokenizer(tmp_path)
    theirs = peers.transformers().AutoTokenizer.from_pretrained(tmp_path)
    said = [{"role": "user", "content": "<Ship's> bell"}, {"role": "assistant", "content": "é"}]
    for begins in (True, False):
        expected = theirs.apply_chat_template(said, tokenize=False, add_generation_prompt=begins)
        assert ours.chat(said, add_generation_prompt=begins) == expected
    with pytest.raises(UserError, match="refuses the messages: roles"):
        ours.chat([{"role": "ship", "content": ""}])
    # A file of its own comes before the entry of the config.
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert read_tokenizer(tmp_path).chat(said) == "<Ship's> bell"


def test_a_template_cannot_leave_its_sandbox(tmp_path):
    with_chat(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    with pytest.raises(UserError, match="unsafe"):
        read_tokenizer(tmp_path).chat([])


def test_a_limit_in_the_file_does_not_cut_texts(tmp_path):
    made = byte_pairs(["<|endoftext|>"])
    made.enable_truncation(3)
    made.enable_padding(length=50)
    made.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path).decode(read_tokenizer(tmp_path).encode(TEXT[0])) == TEXT[0]


def test_characters_of_a_run_are_a_tokenizer_that_transformers_opens(tmp_path):
    symbols = ("\n", " ", "a", "b", "é", "漢")
    for name, content in characters(symbols).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    theirs = peers.transformers().AutoTokenizer.from_pretrained(tmp_path)
    ours = read_tokenizer(tmp_path)
    text = "ab \n  é漢e\u0301"
    expected = [2, 3, 1, 0, 1, 1, 4, 5, 4]
    assert ours.encode(text) == theirs.encode(text) == expected
    assert ours.decode(expected) == theirs.decode(expected) == "ab \n  é漢é"
    with pytest.raises(Exception, match="WordLevel"):
        ours.encode("x")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no tokenizer.json"),
        ({"spiece.model": ""}, "spiece.model is not read"),
        ({"tokenizer.json": "{}"}, "is not the file of a tokenizer"),
        ({"vocab.json": "{}", "merges.txt": ""}, "are for 'an unnamed model'"),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "a b c", "config.json":
             '{"model_type": "gpt2"}'}, "merges.txt cannot be read",
        ),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "[]"}, "is not a JSON object"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        read_tokenizer(tmp_path)


def test_without_a_template_a_chat_is_refused(tmp_path):
    older_gpt2(tmp_path)
    tokenizer = read_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no chat template"):
        tokenizer.chat([])
    with pytest.raises(UserError, match="'end' of a token must be one of bos"):
        tokenizer.token("end")
