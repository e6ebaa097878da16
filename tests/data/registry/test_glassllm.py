"""GlassLM's layout against a forward pass of our own in NumPy, and Llama in torch."""

import json

import numpy as np
import pytest

from jcl.data.registry import glassllm

CONFIG = {
    "vocab_size": 19, "d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_len": 12,
    "rope_base": 100.0, "eps": 1e-6, "init_std": 0.02,
}  # fmt: skip
WORDS = {
    "alphabet": ["\n", ",", "a", "b", "c", "é", "▁"],
    "merges": [["▁", "a"], ["b", "c"], ["▁a", "bc"], ["▁", "▁"], ["a", "b"], ["ab", "c"],
               [",", "\n"], ["c", "a"]],
}  # fmt: skip


def arrays():
    rng = np.random.default_rng(0)
    d, k, hidden = 16, 4, int(8 * 16 / 3)
    kernels = {
        "attn.W_Q": (d, 4 * k), "attn.W_K": (d, 2 * k), "attn.W_V": (d, 2 * k),
        "attn.W_O": (4 * k, d), "ffn.W1": (d, hidden), "ffn.W3": (d, hidden),
        "ffn.W2": (hidden, d), "norm1.gamma": (d,), "norm2.gamma": (d,),
    }  # fmt: skip
    made = {"E": rng.normal(size=(19, d)), "norm_f.gamma": rng.normal(size=d)}
    for i in range(2):
        made |= {f"blocks.{i}.{n}": rng.normal(size=s) / 3 for n, s in kernels.items()}
    return {name: a.astype(np.float16) for name, a in made.items()}


def norm(x, gamma):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + CONFIG["eps"]) * gamma


def rotated(x):
    """[n, heads, k]: neighbours turned by position · base^(-2i/k), as complex numbers."""
    n, _, k = x.shape
    angle = np.arange(n)[:, None] * CONFIG["rope_base"] ** (-np.arange(0, k, 2) / k)
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def forward(w, ids):
    w = {name: a.astype(np.float64) for name, a in w.items()}
    x, n = w["E"][ids], len(ids)
    for i in range(2):
        b = {name.split(f"blocks.{i}.")[-1]: a for name, a in w.items()}
        h = norm(x, b["norm1.gamma"])
        q = rotated((h @ b["attn.W_Q"]).reshape(n, 4, 4))
        key = rotated((h @ b["attn.W_K"]).reshape(n, 2, 4)).repeat(2, axis=1)
        value = (h @ b["attn.W_V"]).reshape(n, 2, 4).repeat(2, axis=1)
        scores = np.einsum("qhk,phk->hqp", q, key) / 2
        scores = np.exp(np.where(np.tri(n, dtype=bool), scores, -np.inf))
        mixed = np.einsum("hqp,phk->qhk", scores / scores.sum(-1, keepdims=True), value)
        x = x + mixed.reshape(n, 16) @ b["attn.W_O"]
        h = norm(x, b["norm2.gamma"])
        gate = h @ b["ffn.W1"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ b["ffn.W3"])) @ b["ffn.W2"]
    return norm(x, w["norm_f.gamma"]) @ w["E"].T


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glass")
    np.savez_compressed(folder / "en.npz", __config__=np.array(json.dumps(CONFIG)), **arrays())
    (folder / "en.tokenizer.json").write_text(json.dumps(WORDS))
    glassllm.convert(folder)
    return folder


def test_llama_in_torch_gives_the_same_logits(converted):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(converted)
    ids = np.random.default_rng(1).integers(0, 19, 12)
    with torch.no_grad():
        logits = model(torch.tensor(ids[None])).logits[0].numpy()
    expected = forward(arrays(), ids)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.quick
def test_the_folder_is_llamas_and_nothing_else(converted):
    assert {p.name for p in converted.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a bc abc", ["a", "▁", "bc", "▁abc"]),
        ("abc", ["a", "bc"]),  # b c comes before a b
        (" a  bc", ["▁a", "▁▁", "bc"]),
        ("a,\nca", ["a", ",", "\n", "ca"]),  # nothing is merged across a line's end
        ("e\u0301x", ["é", "<unk>"]),
        ("", []),
    ],
)
def test_the_tokenizer_merges_by_rank_within_chunks(converted, text, pieces):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(converted)
    ids = tokenizer(text)["input_ids"]
    vocabulary = ["<pad>", "<unk>", "<bos>", "<eos>", *WORDS["alphabet"]]
    vocabulary += [a + b for a, b in WORDS["merges"]]
    assert ids == [vocabulary.index(piece) for piece in pieces]
    if "<unk>" not in pieces:
        assert tokenizer.decode(ids) == text
