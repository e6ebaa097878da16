"""What a configuration says and nobody reads is refused; what isn't one is said in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jcl import models
from jcl.cli import main
from jcl.models.settings import Settings, configuration

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.quick

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def settings(**changes: Any) -> Settings:
    return Settings(configuration(LLAMA | changes, "here"))


def test_what_is_read_is_not_refused_and_what_is_not_is_named() -> None:
    one = settings(rms_norm_eps=0.5)
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
        getattr(one, key)
    assert (one.num_attention_heads, one.num_key_value_heads, one.head_dim) == (4, 4, 8)
    with pytest.raises(ValueError, match=r"rms_norm_eps is 0\.5 in here, but must be 1e-06: "):
        one.refuse_unread("here")
    assert one.rms_norm_eps == 0.5
    one.refuse_unread("here")


def test_harmless_keys_are_left_alone_and_undeclared_ones_that_matter_are_not() -> None:
    def read(**changes: Any) -> None:
        found = settings(**changes)
        models.pretrained.FAMILIES["llama"].config(found)
        found.refuse_unread("here")

    read(attention_dropout=0.5, initializer_range=0.5, use_cache=False, pad_token_id=3)
    read(use_mrope=False, sliding_window=3, hidden_activation="relu")  # transformers reads none
    with pytest.raises(ValueError, match="is_causal is False"):
        read(is_causal=False)


def test_a_key_that_its_class_does_not_declare_is_not_there() -> None:
    one = settings(sliding_window=3)
    assert getattr(one, "sliding_window", None) is None
    given = configuration(LLAMA | {"sliding_window": 3}, "here")
    assert Settings(given, frozenset({"sliding_window"})).sliding_window == 3


def test_a_key_may_have_two_names() -> None:
    one = Settings(transformers.GPT2Config(n_embd=8, n_head=2))
    assert one.hidden_size == one.n_embd == 8
    one.n_head  # noqa: B018
    one.refuse_unread("here")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([1, 2], "holds a list, but must hold an object"),
        ("llama", "holds a str, but must hold an object"),
        ({}, "model_type is None"),
        ({"model_type": ["llama"]}, "model_type is"),
        ({**LLAMA, "num_attention_heads": 0}, "num_attention_heads"),
        ({**LLAMA, "num_hidden_layers": 0}, "layers is 0"),
        ({**LLAMA, "hidden_size": "wide"}, "hidden_size"),
        ({**LLAMA, "rope_parameters": {"rope_type": "spiral"}}, "spiral"),
        ({"model_type": "clip", "vision_config": [3]}, "vision_config"),
    ],
    ids=str,
)
def test_what_is_no_configuration_is_said_in_a_sentence(
    said: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError) as error:
        models.shapes(tmp_path)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert main(["shardings", "--model", str(tmp_path), "--mesh", "fsdp=2"]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
