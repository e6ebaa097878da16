"""Flax modules as models: outputs, gradients and statistics against flax's own, and the laws."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen as nn
from flax import nnx

import jcl
from jcl import losses, methods, taps, trees
from jcl.method import Call
from jcl.models import Model, flax

KEY = jax.random.key(0)
BATCH = {
    "x": jax.random.normal(jax.random.key(1), (6, 6, 6, 2)),
    "y": jnp.arange(6) % 3,
    "weight": jnp.array([1.0, 2.0, 1.0, 0.5, 0.0, 0.0]),
    "task": jnp.zeros(6, jnp.int32),
}
REAL = {k: v[:4] for k, v in BATCH.items()}
OTHER = {**BATCH, "x": BATCH["x"].at[4:].set(1e3)}
"""The same rows with something else as padding."""


class Block(nn.Module):
    """A residual block of ResNet's form."""

    width: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def norm() -> nn.Module:
            return nn.BatchNorm(use_running_average=not train, momentum=0.8)

        h = nn.relu(norm()(nn.Conv(self.width, (3, 3), self.strides, use_bias=False)(x)))
        h = norm()(nn.Conv(self.width, (3, 3), use_bias=False)(h))
        if h.shape != x.shape:
            x = norm()(nn.Conv(self.width, (1, 1), self.strides, use_bias=False)(x))
        return nn.relu(h + x)


class ResNet(nn.Module):
    """A tiny one of CIFAR's form."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.8)(x))
        x = Block(6, 2)(Block(4)(x, train), train)
        return nn.Dense(3)(x.mean((1, 2)))


class NnxNet(nnx.Module):
    """Convolutions, batch norm and two dropouts, some of them in a list."""

    def __init__(self, rngs: nnx.Rngs, rate: float = 0.0) -> None:
        convs = [nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.Conv(4, 4, (3, 3), strides=2, rngs=rngs)]
        self.convs = nnx.List(convs)
        self.norm = nnx.BatchNorm(4, momentum=0.8, rngs=rngs)
        self.drops = nnx.List([nnx.Dropout(rate, rngs=rngs), nnx.Dropout(rate, rngs=rngs)])
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.drops[0](nnx.relu(self.norm(self.convs[0](x))))
        return self.head(self.drops[1](nnx.relu(self.convs[1](x)).mean((1, 2))))


RESNET = flax.linen(ResNet(), BATCH, KEY, head="Dense_0")
NNX = flax.nnx(NnxNet(nnx.Rngs(0)), head="head")
MODELS = {"linen": RESNET, "nnx": NNX}


def own(module: Any, model: Model) -> Any:
    """`(params, collections, x, train) -> (logits, collections)` by flax alone."""
    if module is nn:

        def run(params: Any, kept: Any, x: jax.Array, train: bool) -> Any:
            given = {"params": params, **kept}
            if not train:
                return ResNet().apply(given, x, train=False), kept
            return ResNet().apply(given, x, train=True, mutable=["batch_stats"])

        return run

    def run_nnx(params: Any, kept: Any, x: jax.Array, train: bool) -> Any:
        net = NnxNet(nnx.Rngs(0))
        for kind, tree in ((nnx.Param, params), (nnx.BatchStat, kept["batch_stats"])):
            state = nnx.state(net, kind)
            nnx.update(net, _like(state, tree))
        net.train() if train else net.eval()
        logits = net(x)
        stats = nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))
        return logits, {"batch_stats": stats}

    return run_nnx


def _like(state: Any, tree: Any) -> Any:
    flat = {p: v.copy(_leaf(tree, p)) for p, v in nnx.to_flat_state(state)}
    return nnx.from_flat_state(flat)


def _leaf(tree: Any, path: Any) -> Any:
    for key in path:
        tree = tree[str(key)]
    return tree


def close(found: Any, wanted: Any, atol: float = 1e-5) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, wanted)


@pytest.mark.parametrize("name, module", [("linen", nn), ("nnx", nnx)])
def test_outputs_gradients_and_statistics_are_flaxs_own_without_padding(
    name: str, module: Any
) -> None:
    model, run = MODELS[name], own(module, MODELS[name])
    moved = jax.tree.map(lambda x: x + 0.3, model.collections)  # not what they start as

    @jax.jit
    def ours(params: Any, batch: Any) -> Any:
        def loss(p: Any) -> Any:
            out, kept = model.apply(p, batch, Call(key=KEY, training=True, collections=moved))
            return jnp.sum(out[:4] ** 2), (out[:4], kept)

        predicted = model.apply(params, batch, Call(collections=moved))[:4]
        return jax.grad(loss, has_aux=True)(params), predicted

    @jax.jit
    def theirs(params: Any) -> Any:
        def loss(p: Any) -> Any:
            out, kept = run(p, moved, REAL["x"], True)
            return jnp.sum(out**2), (out, kept)

        return jax.grad(loss, has_aux=True)(params), run(params, moved, REAL["x"], False)[0]

    wanted = theirs(model.params)
    for batch in (REAL, BATCH, OTHER):  # no padding, and padding of two kinds
        found = ours(model.params, batch)
        close(found, wanted, 1e-4)
    _, (_, kept) = found[0]
    old, new = (jax.tree.leaves(t)[0] for t in (moved, kept))
    assert not np.allclose(old, new)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_padding_alone_changes_no_statistic(name: str) -> None:
    model = MODELS[name]
    call = Call(key=KEY, training=True, collections=model.collections)
    nothing = {**OTHER, "weight": jnp.zeros(6)}
    out, kept = jax.jit(lambda p: model.apply(p, nothing, call))(model.params)
    assert np.isfinite(out).all()
    close(kept, model.collections, 0.0)


def test_a_batch_norm_and_a_convolution_are_torchs() -> None:
    """Statistics too, but for the variance, of which torch keeps the unbiased one."""
    conv = torch.nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
    norm = torch.nn.BatchNorm2d(4, momentum=0.2)
    x = BATCH["x"]

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            x = nn.Conv(4, (3, 3), 2, padding=1, use_bias=False)(x)
            return nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)

    model = flax.linen(Two(), BATCH, KEY)
    params = model.params
    params["Conv_0"]["kernel"] = jnp.asarray(conv.weight.detach().permute(2, 3, 1, 0).numpy())
    wanted = norm(conv(torch.tensor(np.asarray(x[:4])).permute(0, 3, 1, 2)))
    call = Call(key=KEY, training=True, collections=model.collections)
    out, kept = model.apply(params, OTHER, call)
    np.testing.assert_allclose(
        out[:4], wanted.detach().permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-5
    )
    found = kept["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], norm.running_mean.numpy(), atol=1e-6)
    count = 4 * 3 * 3
    unbiased = 0.8 + (found["var"] - 0.8) * count / (count - 1)
    np.testing.assert_allclose(unbiased, norm.running_var.numpy(), rtol=1e-4)


@pytest.mark.quick
def test_paths_of_sites_and_collections_are_those_of_the_tree() -> None:
    for model in MODELS.values():
        paths = trees.by_path(model.params)
        kernels = {p.removesuffix("/kernel") for p in paths if p.endswith("/kernel")}
        at = Call(collections=model.collections)

        def apply(p: Any, b: Any, call: Call, model: Model = model, at: Call = at) -> Any:
            return model.apply(p, b, at._replace(tap=call.tap))

        found = taps.dense_sites(apply, model.params, BATCH)
        assert set(found) == kernels
        assert list(found)[-1] == model.apply.structure.head
        assert model.apply.structure.collections == ("batch_stats",)
        for path, width in found.items():
            kernel = paths[f"{path}/kernel"].shape
            assert width == (int(np.prod(kernel[:-1])), kernel[-1])


# Dropout


class Attention(nn.Module):
    """A small Transformer with dropout in its attention and behind it."""

    @nn.compact
    def __call__(self, tokens: jax.Array, *, deterministic: bool) -> jax.Array:
        h = nn.Embed(8, 8)(tokens)
        mask = nn.make_causal_mask(tokens)
        for _ in range(2):
            attend = nn.MultiHeadAttention(num_heads=2, dropout_rate=0.3)
            a = attend(nn.LayerNorm()(h), mask=mask, deterministic=deterministic)
            h = h + nn.Dropout(0.3)(a, deterministic=deterministic)
            h = h + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(h))))
        return nn.Dense(8)(h)


TEXT = {
    "tokens": jax.random.randint(jax.random.key(3), (4, 6), 0, 8),
    "weight": jnp.ones(4),
    "task": jnp.zeros(4, jnp.int32),
}
DROPPING = {
    "linen": (flax.linen(Attention(), TEXT, KEY), TEXT),
    "nnx": (flax.nnx(NnxNet(nnx.Rngs(0), rate=0.5)), BATCH),
}


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_draws_by_the_calls_key_and_without_one_not_at_all(name: str) -> None:
    model, batch = DROPPING[name]

    @jax.jit
    def train(key: jax.Array) -> Any:
        found = model.apply(
            model.params, batch, Call(key=key, training=True, collections=model.collections)
        )
        return found[0] if model.collections else found

    first, same, other = (train(jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0.01
    kept = {"collections": model.collections}
    predicted = model.apply(model.params, batch, Call(**kept))
    keyed = model.apply(model.params, batch, Call(key=KEY, **kept))  # a key, but no training
    np.testing.assert_array_equal(predicted, keyed)
    if not model.collections:  # so that training differs from prediction by dropout alone
        silent = model.apply(model.params, batch, Call(training=True))
        np.testing.assert_array_equal(predicted, silent)
        by_flax = Attention().apply(
            {"params": model.params}, TEXT["tokens"], deterministic=False,
            rngs={"dropout": jax.random.key(1)},
        )  # fmt: skip
        np.testing.assert_allclose(first, by_flax, atol=1e-5)


def test_each_of_a_modules_random_streams_draws_its_own() -> None:
    class Twice(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first, self.second = (nnx.Dropout(0.5, rngs=rngs) for _ in range(2))
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, x: jax.Array) -> Any:
            return self.first(x), self.second(x)

    model = flax.nnx(Twice(nnx.Rngs(0)))
    ones = {"x": jnp.ones((8, 64))}
    first, second = model.apply(model.params, ones, Call(key=KEY, training=True))
    assert set(np.unique(first)) == {0.0, 2.0}
    assert 0.35 < np.mean(np.asarray(first == second)) < 0.65
    for out in model.apply(model.params, ones, Call(training=True)):
        np.testing.assert_array_equal(out, ones["x"])  # without a key nothing is drawn


# Stacked layers


class Layer(nn.Module):
    """A layer of a stack, as `nn.scan` takes it."""

    @nn.compact
    def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        return x + jnp.tanh(nn.remat(nn.Dense)(5, name="dense")(x)), None


class Stack(nn.Module):
    """Three layers in one scan."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return layers(name="blocks")(x, None)[0]


class NnxStack(nnx.Module):
    """The same in nnx."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=3)
        @nnx.vmap(axis_size=3)
        def make(rngs: nnx.Rngs) -> nnx.Linear:
            return nnx.Linear(5, 5, rngs=rngs)

        self.blocks = make(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x: jax.Array, layer: nnx.Linear) -> jax.Array:
            return x + jnp.tanh(layer(x))

        return run(x, self.blocks)


ROWS = {"x": jax.random.normal(jax.random.key(4), (4, 5)), "weight": jnp.array([1.0, 2, 1, 0])}
STACKS = {
    "linen": (flax.linen(Stack(), ROWS, KEY, stacks={"blocks": 1}), "blocks/dense"),
    "nnx": (flax.nnx(NnxStack(nnx.Rngs(0)), stacks={"blocks": 1}), "blocks"),
}


@pytest.mark.parametrize("name", STACKS)
def test_layers_in_a_scan_are_told_apart(name: str) -> None:
    model, path = STACKS[name]
    site = f"{path}:in"
    layers = trees.by_path(model.params)
    assert layers[f"{path}/kernel"].shape == (3, 5, 5)
    wanted, h = [], ROWS["x"]
    for i in range(3):
        wanted.append(jnp.einsum("b,bi,bj->ij", ROWS["weight"], h, h))
        h = h + jnp.tanh(h @ layers[f"{path}/kernel"][i] + layers[f"{path}/bias"][i])
    np.testing.assert_allclose(model.apply(model.params, ROWS), h, atol=1e-5)
    found = taps.moments(model.apply, model.params, ROWS, {site: (3, taps.second)})
    np.testing.assert_allclose(found[site], jnp.stack(wanted), atol=1e-4)


def test_a_scan_over_time_shows_its_layers_as_traced() -> None:
    """So nobody takes what an RNN's cell sees for one example's only place."""
    seen = []

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(2)(nn.RNN(nn.SimpleCell(3))(x)[:, -1])

    batch = {"x": jnp.ones((2, 4, 5))}
    model = flax.linen(Net(), batch, KEY)
    model.apply(model.params, batch, Call(lambda site, layer, h: seen.append((site, layer)) or h))
    assert all(isinstance(layer, int) == site.startswith("Dense_0") for site, layer in seen)
    assert any(site == "SimpleCell_0/i:in" for site, layer in seen)


# How it is called


@pytest.mark.quick
def test_what_a_module_is_not_told_is_one_sentence() -> None:
    class Silent(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, mode: bool = False) -> jax.Array:
            return nn.BatchNorm(use_running_average=not mode)(x)

    class Both(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool, deterministic: bool) -> jax.Array:
            return nn.Dense(2)(x)

    rows = {"x": jnp.ones((2, 3))}
    for module, training, sentence in (
        (Silent(), None, "training is None, but must be the name of the module's argument"),
        (Silent(), "train", r"training is 'train', but must be one of .*\['x', 'mode'\]"),
        (Both(), None, r"training is None, but must be given, for each of \['train', 'determin"),
    ):
        with pytest.raises(ValueError, match=sentence):
            flax.linen(module, rows, KEY, training=training)
    model = flax.linen(Silent(), rows, KEY, training="mode")
    told = flax.linen(Silent(), rows, KEY, training=lambda trains: {"mode": trains})
    call = Call(key=KEY, training=True, collections=model.collections)
    close(told.apply(told.params, rows, call), model.apply(model.params, rows, call))
    with pytest.raises(ValueError, match=r"collections has \[\], but must have \['batch_stats'\]"):
        model.apply(model.params, rows)
    with pytest.raises(ValueError, match="head is 'Dense_7', but must be None or one of"):
        flax.linen(ResNet(), BATCH, KEY, head="Dense_7")
    with pytest.raises(ValueError, match=r"stacks is {'blocks': 1}, but must be by the start"):
        flax.nnx(NnxNet(nnx.Rngs(0)), stacks={"blocks": 1})
    with pytest.raises(ValueError, match="key is None, but must be given if variables isn't"):
        flax.linen(ResNet(), BATCH)
    with pytest.raises(ValueError, match=r"the batch has .*, but must have x or tokens"):
        flax.linen(ResNet(), {"image": BATCH["x"]}, KEY)
    with pytest.raises(
        ValueError, match=r"inputs is .*, but must be a function that gives a tuple"
    ):
        flax.linen(ResNet(), BATCH, KEY, inputs=lambda batch: batch["x"])


def test_variables_may_be_given_and_inputs_chosen() -> None:
    class Gated(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, gate: jax.Array | None = None) -> jax.Array:
            return nn.Dense(2)(inputs=x)

    rows = {"image": jnp.ones((2, 3))}
    variables = Gated().init(KEY, rows["image"])
    model = flax.linen(Gated(), rows, variables=variables, inputs=lambda b: (b["image"],))
    close(model.params, variables["params"], 0.0)
    drawn = flax.linen(Gated(), rows, KEY, inputs=lambda b: (b["image"],))
    close(drawn.params, model.params, 0.0)
    wanted = Gated().apply(variables, rows["image"])
    np.testing.assert_array_equal(model.apply(model.params, rows), wanted)
    assert model.collections == {} and model.apply.structure.collections == ()


# In a program


def test_a_resnet_is_trained_and_its_statistics_are_not_by_gradients() -> None:
    method = methods.er(capacity=12, rows=3) + methods.ewc(strength=1.0)
    program = jcl.make(method, RESNET.apply, losses.cross_entropy(), optax.adam(1e-2))
    stage = jax.tree.map(lambda x: x[None], OTHER)
    state = program.init(RESNET.params, BATCH, KEY, RESNET.collections)
    state, aux = jax.jit(program.step)(state, OTHER)
    assert np.isfinite(aux["loss"])
    state = jax.jit(program.consolidate)(state, stage)
    assert set(trees.by_path(state.collections)) == set(trees.by_path(RESNET.collections))
    assert max(np.abs(x).max() for x in jax.tree.leaves(state.collections)) < 10  # no padding
    wanted = own(nn, RESNET)(state.params, state.collections, BATCH["x"], False)[0]
    np.testing.assert_allclose(program.predict(state, BATCH), wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_adapters_beside_flaxs_kernels_do_what_folded_ones_do(name: str) -> None:
    every = r".*"
    make = {
        "lora": methods.lora(rank=2, alpha=4.0, targets=every),
        "ia3": methods.ia3(outputs=every, inputs=every),
    }
    program = jcl.make(make[name], RESNET.apply, losses.cross_entropy(), optax.sgd(0.1))
    state = program.init(RESNET.params, BATCH, KEY, RESNET.collections)
    before = program.predict(state, REAL)
    state, _ = jax.jit(program.step)(state, BATCH)
    state, _ = jax.jit(program.step)(state, BATCH)
    after = program.predict(state, REAL)
    assert np.abs(after - before).max() > 1e-4
    folded = jcl.adapters.merge(state.params, 2.0)  # alpha / rank
    assert set(trees.by_path(folded)) == set(trees.by_path(RESNET.params))
    wanted = own(nn, RESNET)(folded, state.collections, REAL["x"], False)[0]
    np.testing.assert_allclose(after, wanted, atol=1e-4)
