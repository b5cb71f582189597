"""``zoo generate`` and ``zoo chat`` against transformers with the same folder."""

import io
import json
import sys
import tarfile
from pathlib import Path

import peers
import pytest

from zoo import cli

ARCHIVE = Path(__file__).parents[1] / "runs_of_0_1_0.tar.gz"
CONTEXT = 160
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 with random weights and a byte-level tokenizer, as transformers saves both."""
    torch, transformers, tokenizers = peers.torch(), peers.transformers(), peers.peer("tokenizers")
    path = tmp_path_factory.mktemp("published")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary), n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2,
        initializer_range=0.6, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    # Letters, so that what is said can be read; two tokens end a text.
    model.generation_config.eos_token_id = [0, vocabulary["e"]]
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def theirs(folder):
    transformers = peers.transformers()
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def continued(theirs, text, new, **options):
    """What transformers adds to a text."""
    torch, (model, tokenizer) = peers.torch(), theirs
    tokens = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
    made = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, do_sample=False,
        pad_token_id=0, **options,
    )[0, tokens.shape[1] :].tolist()  # fmt: skip
    if made[-1] in model.generation_config.eos_token_id:
        made.pop()
    return tokenizer.decode(made, skip_special_tokens=True)


def run(capsys, *arguments):
    cli.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_published_model_says_what_transformers_says(folder, theirs, capsys, tmp_path):
    prompts = ["Once upon", "a", "Grüße, 日本"]
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(prompts) + "\n")
    greedy = ["generate", "--model", folder, "--temperature=0", "--max-new-tokens=30"]
    expected = [prompt + continued(theirs, prompt, 30, num_beams=1) for prompt in prompts]
    assert run(capsys, *greedy, "--prompt", prompts[0]) == expected[0] + "\n"
    out = run(capsys, *greedy, "--prompts", file, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows == [
        {"input": given, "output": text} for given, text in zip(prompts, expected, strict=True)
    ]
    made = run(
        capsys, *greedy, "--prompt", prompts[2], "--num-beams=4", "--length-penalty=0.5",
        "--repetition-penalty=1.3",
    )  # fmt: skip
    assert made == prompts[2] + continued(
        theirs, prompts[2], 30, num_beams=4, length_penalty=0.5, repetition_penalty=1.3
    ) + "\n"  # fmt: skip


def test_draws_repeat_with_their_seed_and_stop_where_asked(folder, capsys):
    draw = [
        "generate", "--model", folder, "--prompt=Once", "--max-new-tokens=40", "--top-k=50",
        "--top-p=0.95", "--min-p=0.05", "--repetition-penalty=1.1", "--temperature=3",
    ]  # fmt: skip
    first = run(capsys, *draw, "--seed=1")
    assert first == run(capsys, *draw, "--seed=1")
    assert first != run(capsys, *draw, "--seed=2")
    text = first.removeprefix("Once").removesuffix("\n")
    assert len(text) > 12, "long enough to stop in it"
    stop = text[6:9]
    stopped = run(capsys, *draw, "--seed=1", "--stop", stop, "--stop=not there")
    assert stopped == "Once" + text[: text.index(stop)] + "\n"


def test_a_chat_keeps_its_history(folder, theirs, capsys, monkeypatch):
    questions, chat, expected = ["Who?", "And you?"], [{"role": "system", "content": "Be."}], []
    for question in questions:
        chat.append({"role": "user", "content": question})
        text = theirs[1].apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        answer = continued(theirs, text, 12, num_beams=1)
        chat.append({"role": "assistant", "content": answer})
        expected.append(answer)
    # What is said after /new is said as at first.
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who?\n\nAnd you?\n/new\nWho?"))
    out = run(
        capsys, "chat", "--model", folder, "--system=Be.", "--temperature=0", "--max-new-tokens=12"
    )
    assert out == "\n".join([*expected, expected[0]]) + "\n"


def test_a_chat_that_is_too_long_forgets_its_beginning_and_says_so(folder, capsys, monkeypatch):
    lines = ["x" * 90, "y" * 90, "z" * CONTEXT]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    with pytest.raises(SystemExit):
        cli.main(["chat", "--model", str(folder), "--max-new-tokens=5", "--system=Be."])
    said = capsys.readouterr()
    assert "the oldest 1 questions and answers are left out" in said.err
    assert said.out.count("\n") >= 2
    assert "leaves no room for an answer: shorten it" in said.err


def test_without_a_template_there_is_no_chat(folder, capsys, tmp_path):
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    said = refused(capsys, "chat", "--model", tmp_path)
    assert "no chat template" in said
    assert f"zoo generate --model={tmp_path}" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt="], "the prompt is empty"),
        (["--prompt=a", "--prompts=b"], "either --prompt TEXT or --prompts FILE"),
        ([], "either --prompt TEXT or --prompts FILE"),
        (["--prompts=/nowhere.txt"], "no such file"),
        (["--prompt=a", "--temperature=-1"], "temperature=-1.0 must be at least 0"),
        (["--prompt=a", "--top-p=1.5"], "top_p=1.5 must be above 0 and at most 1"),
        (["--prompt=a", "--min-p=2"], "min_p=2.0 must be"),
        (["--prompt=a", "--workdir=runs/gpt"], "either --workdir (a run) or --model"),
        (["--prompt=a", "--stop="], "empty stop string"),
        (["--prompt", "x" * (CONTEXT + 1)], f"{CONTEXT + 1} tokens, more than the model's context"),
    ],
)
def test_what_cannot_be_continued_says_why(folder, capsys, arguments, words):
    assert words in refused(capsys, "generate", "--model", folder, *arguments)


def test_commands_say_what_they_need(capsys):
    said = refused(capsys, "generate", "--prompt=a")
    assert "--workdir is missing: give the run's folder, or --model" in said
    assert "--model is missing" in refused(capsys, "chat")
    cli.main(["generate", "--help"])
    out = capsys.readouterr().out
    assert "--workdir" in out
    assert "--model" in out
    cli.main(["--help"])
    assert "chat" in capsys.readouterr().out


def test_a_recurrent_run_is_asked_in_the_same_way(capsys, tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    file = tmp_path / "prompts.txt"
    file.write_text("ROMEO:\nO\n")
    lstm = ["generate", "--workdir", tmp_path / "lstm", "--max-new-tokens=9", "--seed=3"]
    first, second = run(capsys, *lstm, "--prompts", file, "--json").splitlines()
    assert json.loads(first)["output"] + "\n" == run(capsys, *lstm, "--prompt=ROMEO:")
    assert len(json.loads(second)["output"]) == 10
    assert "'ä'" in refused(capsys, *lstm, "--prompt=Hallä")
    assert "needs published weights" in refused(capsys, "chat", "--workdir", tmp_path / "lstm")
