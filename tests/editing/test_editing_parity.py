"""ROME and MEMIT from end to end beside torch, on transformers' model with the same weights.

The torch side is written after the authors' code (kmeng01/rome: `compute_u.py`, `compute_v.py`;
kmeng01/memit: `compute_z.py`, `compute_ks.py`, `memit_main.py`), with hooks for their nethook.
"""

import jax
import numpy as np
import pytest
import tiny_model as tiny
import torch
from transformers import AutoModelForCausalLM

from jcl import models
from jcl.editing.editors.memit import memit
from jcl.editing.editors.rome import rome

STEPS, RATE, DECAY, KL = 6, 0.5, 0.5, 3.0


@pytest.fixture
def model(tmp_path):
    folder = models.save(models.of(tiny.CONFIG, tiny.PARAMS), tiny.PARAMS, tmp_path / "model")
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def tensor(x):
    return torch.tensor(np.asarray(x)).long() if x.dtype == np.int32 else torch.tensor(np.array(x))


def changed(module, change):
    """A hook by which `change` sees and returns what a module gives, a tensor or a tuple of one."""

    def hook(_, inputs, output):
        first = output[0] if isinstance(output, tuple) else output
        new = change(first)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return module.register_forward_hook(hook)


def search(model, fact, module, clamp):
    """δ and the value it is added to."""
    tokens = torch.cat([tensor(fact["tokens"]), tensor(fact["essence"])[None]])
    seen = torch.cat([tensor(fact["segments"]), tensor(fact["essence_segments"])[None]])
    places = [*fact["subject"].tolist(), int(fact["essence_subject"])]
    mask = tensor(fact["mask"])
    delta = torch.zeros(tiny.WIDTH, requires_grad=True)
    start, held = None, None

    def add(out):
        nonlocal start
        if start is None:
            start = out[0, places[0]].detach().clone()
        out = out.clone()
        for row, place in enumerate(places):
            out[row, place] = out[row, place] + delta
        return out

    optimizer = torch.optim.Adam([delta], lr=RATE)
    handle = changed(module, add)
    for step in range(STEPS):
        optimizer.zero_grad()
        logits = model(input_ids=tokens, attention_mask=seen).logits
        essence = torch.log_softmax(logits[-1:, places[-1]], dim=1)
        held = essence.detach().clone() if held is None else held
        scores = torch.log_softmax(logits[:-1, :-1], dim=2)
        chosen = torch.gather(scores, 2, tokens[:-1, 1:].unsqueeze(2)).squeeze(2)
        nll = (-(chosen * mask).sum(1) / mask.sum(1)).mean()
        kl = torch.nn.functional.kl_div(held, essence, log_target=True, reduction="batchmean")
        decay = torch.norm(delta) / torch.norm(start) ** 2
        loss = nll + KL * kl + DECAY * decay
        if loss < 5e-2 or step == STEPS - 1:
            break
        loss.backward()
        optimizer.step()
        most = clamp * start.norm()
        if delta.norm() > most:
            with torch.no_grad():
                delta[...] = delta * most / delta.norm()
    handle.remove()
    return delta.detach(), start


@torch.no_grad()
def at_subjects(model, fact, module, of_input):
    """A module's input or output at the subject, [P, d]."""
    found = []
    handle = module.register_forward_hook(
        lambda _, inputs, output: found.append(inputs[0] if of_input else output)
    )
    model(input_ids=tensor(fact["tokens"]), attention_mask=tensor(fact["segments"]))
    handle.remove()
    out = found[0][0] if isinstance(found[0], tuple) else found[0]
    return out[torch.arange(len(out)), tensor(fact["subject"])]


def one(place):
    return jax.tree.map(lambda x: np.asarray(x[place]), tiny.FACTS)


def test_rome(model):
    layer, fact = 1, one(0)
    mlp = model.model.layers[layer].mlp
    delta, start = search(model, fact, mlp, clamp=4.0)
    assert delta.norm() > 0.1
    keys = at_subjects(model, fact, mlp.down_proj, True)
    left = torch.inverse(tensor(tiny.MOMENTS[layer]).double()).float() @ keys.mean(0)
    left = left / left.norm()
    right = (start + delta - at_subjects(model, fact, mlp, False)[0]) / torch.dot(keys[0], left)
    wanted = left.unsqueeze(1) @ right.unsqueeze(0)

    made = rome(
        tiny.APPLY, tiny.MOMENTS[1:2], layer, steps=STEPS, rate=RATE, decay=DECAY, kl=KL, clamp=4.0
    )
    facts = tiny.some(0)
    params, _ = jax.jit(made.write)(tiny.PARAMS, made.init(tiny.PARAMS, facts), facts)
    change = (tiny.kernel(params) - tiny.kernel(tiny.PARAMS))[layer]
    np.testing.assert_allclose(change, wanted, atol=3e-3 * float(wanted.abs().max()))


def test_memit(model):
    layers, strength = (0, 1), 2.0
    blocks, facts = model.model.layers, [one(i) for i in range(4)]
    found = [search(model, fact, blocks[1], clamp=0.75) for fact in facts]
    aims = torch.stack([delta + start for delta, start in found], dim=1)
    wanted = []
    for i, layer in enumerate(layers):
        down = blocks[layer].mlp.down_proj
        ks = [at_subjects(model, fact, down, True) for fact in facts]
        ks = torch.stack([torch.stack([k[0], k[1:].mean(0)]).mean(0) for k in ks], dim=1).double()
        now = torch.stack([at_subjects(model, f, blocks[1], False)[0] for f in facts], dim=1)
        cov = tensor(tiny.MOMENTS[layer]).double()
        adjusted = torch.linalg.solve(strength * cov + ks @ ks.T, ks)
        update = ((aims - now).double() / (len(layers) - i)) @ adjusted.T
        with torch.no_grad():
            down.weight += update.float()
        wanted.append(update.T.numpy())

    made = memit(
        tiny.APPLY, tiny.MOMENTS[:2], layers, strength, steps=STEPS, rate=RATE, decay=DECAY, kl=KL,
        clamp=0.75,
    )  # fmt: skip
    params, _ = jax.jit(made.write)(tiny.PARAMS, made.init(tiny.PARAMS, tiny.FACTS), tiny.FACTS)
    change = (tiny.kernel(params) - tiny.kernel(tiny.PARAMS))[: len(layers)]
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(change, wanted, atol=3e-3 * np.abs(wanted).max())
