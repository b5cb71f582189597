"""Tokenizers of published models: texts to numbers and back, and the texts of chats."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.weights.files import read_json

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# The special tokens of models whose files may not name them, as transformers has them.
_USUAL = {
    "gpt2": dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>"),
    "roberta": {
        "bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>",
        "mask": "<mask>",
    },
    "bert": {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Makes numbers of a text, and a text of numbers.

    Attributes:
        backend: the ``tokenizers.Tokenizer``, which also gives pairs of texts, batches, offsets and
            type ids: ``backend.encode(question, context).type_ids``.
        special: the special tokens by their role, such as ``{"eos": "<|endoftext|>"}``; the roles
            are in ``ROLES``.
        chat_template: the Jinja template that makes a text of a chat; None: there is none.
    """

    backend: Any
    special: Mapping[str, str]
    chat_template: str | None = None

    def __len__(self) -> int:
        """Returns the number of tokens, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the numbers of a text.

        Args:
            text: the text.
            add_special_tokens: whether to add the tokens that the model expects around a text, such
                as ``[CLS]`` and ``[SEP]``.
        """
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Returns the text of numbers.

        Args:
            tokens: the numbers.
            skip_special_tokens: whether to leave out special tokens.
        """
        return str(
            self.backend.decode([int(t) for t in tokens], skip_special_tokens=skip_special_tokens)
        )

    def token(self, role: str) -> int | None:
        """Returns the number of the special token of a role, such as ``eos``; None: there is none.

        Raises:
            UserError: the role is unknown.
        """
        if role not in ROLES:
            raise UserError(f"the role {role!r} of a token must be one of {', '.join(ROLES)}")
        return None if role not in self.special else self.backend.token_to_id(self.special[role])

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Returns the text of a chat, as the model was trained to read it.

        The text has its special tokens already: encode it with ``add_special_tokens=False``. The
        template comes with the weights, so it runs in Jinja's sandbox.

        Args:
            messages: what was said, such as ``{"role": "user", "content": "Hello"}``.
            add_generation_prompt: whether the text ends with the beginning of an answer.
            **variables: further variables of the template, such as ``tools``.

        Raises:
            UserError: there is no template, or it refuses the messages.
        """
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if self.chat_template is None:
            raise UserError(
                "the tokenizer has no chat template: the model was not trained on chats, or its "
                "folder lacks chat_template.jinja"
            )

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        # The names that templates on the hub use.
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        environment.filters["tojson"] = _to_json
        named = {f"{role}_token": token for role, token in self.special.items()}
        try:
            text = environment.from_string(self.chat_template).render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                **{"tools": None, "documents": None, **named, **variables},
            )
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses the messages: {error}") from error
        return text


def read_tokenizer(folder: str | Path) -> Tokenizer:
    """Reads the tokenizer of a folder of published weights.

    ``tokenizer.json`` is read if there is one. The older files are ``vocab.json`` with
    ``merges.txt`` (bytes, joined into pairs: GPT-2, RoBERTa) and ``vocab.txt`` (pieces of words:
    BERT). The result is that of ``transformers.AutoTokenizer`` for the same folder.

    Args:
        folder: the folder.

    Raises:
        UserError: the folder has none of these files, or one of them cannot be read.
    """
    folder = Path(folder)
    config = _object(folder / "tokenizer_config.json")
    described = _special(config)
    if "added_tokens_decoder" not in config:  # the files of older versions
        described |= _special(_object(folder / "special_tokens_map.json"))
    # The older files do not say for which model they are made, but the model's config.json does.
    made_for = str(
        config.get("tokenizer_class") or _object(folder / "config.json").get("model_type") or ""
    )
    kind = made_for.lower().removesuffix("fast").removesuffix("tokenizer")
    usual = {role: {"content": token} for role, token in _USUAL.get(kind, {}).items()}
    if kind == "roberta":
        usual["mask"]["lstrip"] = True
    special = usual | described
    if (folder / "tokenizer.json").is_file():
        backend = _whole(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        if kind not in ("gpt2", "roberta"):
            raise UserError(
                f"{folder}: vocab.json and merges.txt are read for GPT-2 and RoBERTa, and these "
                f"are for {made_for or 'an unnamed model'!r}. {_WAY_OUT}"
            )
        backend = _bytes_in_pairs(folder, config, special, kind)
    elif (folder / "vocab.txt").is_file():
        if kind != "bert":
            raise UserError(
                f"{folder}: vocab.txt is read for BERT, and this one is for "
                f"{made_for or 'an unnamed model'!r}. {_WAY_OUT}"
            )
        backend = _pieces_of_words(folder, config, special)
    else:
        others = sorted(path.name for path in folder.glob("*.model"))
        raise UserError(
            f"{folder} has no tokenizer.json, no vocab.json with merges.txt and no vocab.txt"
            + (f"; {others[0]} is not read. {_WAY_OUT}" if others else "")
        )
    # A limit or a filling in the file belongs to the one who wrote it, not to the text.
    backend.no_truncation()
    backend.no_padding()
    _add(backend, config, special)
    texts = {role: token["content"] for role, token in special.items()}
    return Tokenizer(backend, texts, _template(folder, config))


def characters(symbols: Sequence[str]) -> dict[str, str]:
    """Returns the files of a tokenizer whose tokens are characters, by name.

    ``read_tokenizer`` and ``transformers.AutoTokenizer`` read them. A text with another character
    is refused by both.

    Args:
        symbols: the character of each number.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    numbers = {symbol: number for number, symbol in enumerate(symbols)}
    made = Tokenizer(models.WordLevel(numbers, unk_token=""))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {
        "tokenizer.json": made.to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }


_WAY_OUT = (
    "Write tokenizer.json with transformers: AutoTokenizer.from_pretrained(FOLDER)"
    ".save_pretrained(FOLDER)"
)


def _whole(file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises no class of its own
        raise UserError(f"{file} is not the file of a tokenizer: {error}") from error


def _bytes_in_pairs(
    folder: Path, config: Mapping[str, Any], special: Mapping[str, Mapping[str, Any]], kind: str
) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary, merges = read_json(folder / "vocab.json"), folder / "merges.txt"
    try:
        lines = merges.read_text(encoding="utf-8").splitlines()
        pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#v")]
        backend = Tokenizer(
            models.BPE(vocabulary, pairs, continuing_subword_prefix="", end_of_word_suffix="")
        )
    except Exception as error:  # as in _whole
        raise UserError(f"{folder}: vocab.json and merges.txt cannot be read: {error}") from error
    space = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.decoder = decoders.ByteLevel()
    _add(backend, config, special)
    if kind == "roberta":
        sep, cls = ((t, backend.token_to_id(t)) for t in _texts(special, "sep", "cls"))
        backend.post_processor = processors.RobertaProcessing(
            sep, cls, bool(config.get("trim_offsets", True)), space
        )
    elif config.get("add_bos_token") or config.get("add_eos_token"):
        _surround(backend, config, special)
    return backend


def _pieces_of_words(
    folder: Path, config: Mapping[str, Any], special: Mapping[str, Mapping[str, Any]]
) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    (unknown, sep, cls) = _texts(special, "unk", "sep", "cls")
    try:
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'vocab.txt'} cannot be read: {error}") from error
    if lines and not lines[-1]:
        lines.pop()
    backend = Tokenizer(
        models.WordPiece({line: i for i, line in enumerate(lines)}, unk_token=unknown)
    )
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    _add(backend, config, special)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls, sep)],
    )
    return backend


def _add(
    backend: Any, config: Mapping[str, Any], special: Mapping[str, Mapping[str, Any]]
) -> None:
    """Adds the tokens that only ``tokenizer_config.json`` names, in the order of their numbers."""
    from tokenizers import AddedToken

    listed = config.get("added_tokens_decoder") or {}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    wanted = [listed[number] for number in sorted(listed, key=int)]
    wanted += [{"special": True, "normalized": False, **token} for token in special.values()]
    for token in wanted:
        if token["content"] not in known:
            known.add(token["content"])
            names = ("single_word", "lstrip", "rstrip", "normalized", "special")
            options = {name: bool(token[name]) for name in names if name in token}
            backend.add_tokens([AddedToken(token["content"], **options)])


def _surround(
    backend: Any, config: Mapping[str, Any], special: Mapping[str, Mapping[str, Any]]
) -> None:
    """Has texts begin and end with the tokens that ``tokenizer_config.json`` asks for."""
    from tokenizers import processors

    roles = {role: f"add_{role}_token" for role in ("bos", "eos")}
    used = {
        role: special[role]["content"]
        for role, key in roles.items()
        if config.get(key) and role in special
    }
    begin = f"{used['bos']}:0 " if "bos" in used else ""
    end = f" {used['eos']}:0" if "eos" in used else ""
    second = f" {begin}$B:1{end}".replace(":0", ":1")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin}$A:0{end}",
        pair=f"{begin}$A:0{end}{second}",
        special_tokens=[(token, backend.token_to_id(token)) for token in set(used.values())],
    )


def _object(file: Path) -> dict[str, Any]:
    """Reads a JSON object; empty if there is no such file."""
    if not file.is_file():
        return {}
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object")
    return content


def _special(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the special tokens that a file names, by role, with how they are cut out of texts."""
    found = {role: config.get(f"{role}_token") for role in ROLES}
    return {
        role: {"content": token} if isinstance(token, str) else dict(token)
        for role, token in found.items()
        if token
    }


def _texts(special: Mapping[str, Mapping[str, Any]], *roles: str) -> list[str]:
    return [special[role]["content"] for role in roles]


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    given = config.get("chat_template")
    if isinstance(given, list):  # several by name
        given = {one.get("name"): one.get("template") for one in given}.get("default")
    return given if isinstance(given, str) else None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter writes ``<`` and ``'`` for HTML, which no model was trained on."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
