"""The configs of all families, so small that a run takes seconds."""

import pytest

TINY = {
    "cnn": [
        "--config.model.features=(4, 4, 4)", "--config.model.hidden_features=8",
        "--config.data.image_size=8",
    ],
    "resnet": [
        "--config.model.stages=(1,)", "--config.model.features=4", "--config.data.image_size=8",
    ],
    "vit": [
        "--config.model.features=8", "--config.model.num_layers=1", "--config.model.num_heads=2",
        "--config.model.feedforward_features=8", "--config.model.image_size=8",
        "--config.data.image_size=8",
    ],
    "lstm": [
        "--config.model.features=8", "--config.model.embed_features=8",
        "--config.model.num_layers=1", "--config.data.context=16",
        "--config.data.eval_context=4096",
    ],
    "gpt": [
        "--config.model.features=8", "--config.model.num_heads=2", "--config.model.num_layers=1",
        "--config.model.context=512", "--config.data.eval_context=512",
    ],
    "transformer": [
        "--config.model.features=8", "--config.model.num_heads=2",
        "--config.model.num_encoder_layers=1", "--config.model.num_decoder_layers=1",
        "--config.model.feedforward_features=8", "--config.data.test_fraction=0.002",
        "--config.data.validation_fraction=0.002", "--config.task.num_beams=2",
    ],
    "translate": [
        "--config.model.features=8", "--config.model.num_heads=2",
        "--config.model.num_encoder_layers=1", "--config.model.num_decoder_layers=1",
        "--config.model.feedforward_features=8", "--config.data.name=pairs",
        "--config.data.path=examples/translations.tsv", "--config.data.source_column=german",
        "--config.data.target_column=english", "--config.data.vocabulary_size=300",
        "--config.data.max_source_length=30", "--config.data.max_target_length=30",
        "--config.task.num_beams=2",
    ],
    "word_lm": [
        "--config.model.features=8", "--config.model.embed_features=8",
        "--config.data.vocabulary_size=50",
    ],
    "speech": [
        "--config.model.features=8", "--config.model.num_layers=1", "--config.model.num_mels=8",
    ],
    "forecast": ["--config.model.features=8"],
    "classify_text": [
        "--config.model.features=8", "--config.model.embed_features=8",
        "--config.data.vocabulary_size=50",
    ],
    "diffusion": [
        "--config.model.patch_size=8", "--config.model.features=(4,)",
        "--config.model.attention=(False,)", "--config.model.norm_groups=2",
        "--config.model.num_heads=2", "--config.model.text_features=8",
        "--config.model.text_layers=1", "--config.task.sampling_steps=2",
    ],
}  # fmt: skip


def in_one_worker(name):
    """A parameter of tests; what belongs to a family is compiled once if one worker has it all."""
    return pytest.param(name, marks=pytest.mark.xdist_group(name))


EACH = [in_one_worker(name) for name in TINY]
