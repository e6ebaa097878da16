"""COPR: a stage is fitted to its optimal policy, and earlier stages' policies are constraints."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcl import losses, memory
from jcl.mechanisms import preference
from jcl.method import Aux, Batch, Call, Ctx, Info, LossFn, Method, Params, check

_ODDS, _NEW, _STAGE = "copr/odds", "copr/new", "copr/stage"  # columns of a batch
_MOST = 7.0  # the largest ln λ, which would rise for ever if a bound can't be kept


class CoprState(NamedTuple):
    """The state of `copr`."""

    buffer: memory.Buffer
    """Pairs of earlier stages, with `copr/odds`, log P*(preferred) / P*(rejected), and
    `copr/stage`."""
    log_multiplier: jax.Array
    """float32 [stages]: ln λ_i."""
    bound: jax.Array
    """float32 [stages]: d_i, how far π_{t-1} itself was from stage i's optimum."""


def apart(odds: jax.Array, target: jax.Array) -> jax.Array:
    """½ Σ_y [log P(y) - log P*(y)]² over a pair's two answers, float32 [B].

    `odds` and `target` are log P(preferred) / P(rejected), of P and of P*, float32 [B] each.
    """
    signs = jnp.array([[1.0], [-1.0]])
    gap = jax.nn.log_sigmoid(signs * odds) - jax.nn.log_sigmoid(signs * target)
    return 0.5 * jnp.sum(gap**2, axis=0)


def length(answer: jax.Array) -> jax.Array:
    """How many tokens each answer has, at least 1, float32 [B], from `answer` [B, L - 1]."""
    return jnp.maximum(jnp.sum(answer, axis=-1), 1)


def copr(
    stages: int,
    beta: float = 0.8,
    reward: float | None = None,
    sft: float = 1.0,
    capacity: int = 64,
    rows: int = 4,
    rate: float = 1e-4,
    per: Literal["token", "answer"] = "token",
) -> Method:
    """COPR: L = Λ⁻¹ [J_fit + γ J_sft + Σ_{i<t} λ_i (J_i - d_i)], Λ = 1 + Σ λ_i.

    J_fit fits P, a pair's probabilities renormalised over its two answers, to those of the policy
    that is optimal for a moderate reward, P* ∝ π_{t-1}(y | x) exp(r(x, y) / β): the mean over pairs
    of ½ Σ_y [log P(y) - log P*(y)]², where log π(y | x) is a mean over y's tokens. The reward of
    the preferred answer is r_x, of the other -r_x, with r_x ~ Beta(1, 2) drawn anew for each pair
    of a step. J_i is the same over pairs of stage i from memory with the P* of their time, filled
    at boundaries; d_i is its value at π_{t-1}; and ln λ_i += ρ λ_i (J_i - d_i) after every step,
    from rows drawn for it, which costs a forward pass. J_sft is -log π(preferred), a mean over the
    answer's tokens. So stage i's rows are replayed, and together weigh λ_i times as much as the
    fresh ones.

    This loss replaces the objective, so `copr` comes before other methods that change the loss; it
    has a memory of its own.

    Source: Zhang et al., COPR, Findings of ACL 2025 (arXiv 2402.14228), for |Y_x| = 2 answers, the
    multipliers as its equations 18 to 20, after two published summaries that agree; and the
    authors' code (openi.pcl.ac.cn/Hanlard/Offline_alignment_methods_based_on_trlx, read as it
    stands in amgadelgamal/AIF-Gen, `benchmarks/COPR/trlx/trainer/accelerate_copr_trainer.py`). As
    there, log π is a mean over tokens, J_fit has the ½, J_sft weighs as much as J_fit, β is 0.8,
    and ρ and the rule of λ are the same. Unlike there, and as in the paper, P is over a pair's
    answers (there over all of a batch), P* is that of π_{t-1} (there of the present policy), J_i is
    the distance from P*_i (there the square of log π / π_{t-1}, λ / (λ + 1e-4) times), with a bound
    d_i of its own (there 0.1), and Λ divides; J_sft is of fresh pairs (there of replayed ones too).
    The paper draws r_x once for each prompt; the code has ±0.8, or sorted normal draws.

    Args:
      stages: how many stages there will be; later ones share the last one's multiplier.
      beta: β; may be traced.
      reward: r_x of every pair, in place of draws, whose mean is 1/3; None draws.
      sft: γ; may be traced.
      capacity: how many slots the memory has.
      rows: how many rows are drawn for each step.
      rate: ρ, the rate at which the multipliers rise, to e⁷ at most; may be traced. 0 keeps them
        at 1.
      per: whether log π(y | x) in P and P* is the mean over y's tokens, as in the authors' code, or
        that of the whole `answer`, as in the paper's equations; there β had better be smaller.

    Raises:
      ValueError: if an argument is out of range; at `init`, if the rows are no pairs.
    """
    check(stages >= 1, "stages", stages, "at least 1")
    check(beta > 0, "beta", beta, "above 0")
    check(reward is None or reward >= 0, "reward", reward, "at least 0, or None")
    check(sft >= 0, "sft", sft, "at least 0")
    check(rows >= 1, "rows", rows, "at least 1")
    check(rate >= 0, "rate", rate, "at least 0")
    check(per in ("token", "answer"), "per", per, "'token' or 'answer'")
    keep = memory.policy("reservoir", capacity)

    def of(stage: jax.Array) -> jax.Array:
        """Which stage each row is of, as one-hot columns, float32 [stages, n]."""
        return jax.nn.one_hot(jnp.minimum(stage, stages - 1), stages, axis=0)

    def init(ctx: Ctx, params: Params) -> tuple[Params, CoprState]:
        preference.check_pairs(ctx.batch)
        pairs = ctx.batch["weight"].shape
        more = {_ODDS: jnp.zeros(pairs), _STAGE: jnp.zeros(pairs, jnp.int32)}
        buffer = keep.empty({**ctx.batch, **more})
        return params, CoprState(buffer, jnp.zeros(stages), jnp.zeros(stages))

    def log_probs(
        ctx: Ctx, params: Params, pairs: Batch, call: Call = Call()
    ) -> preference.Rewards:
        outputs = ctx.apply(params, preference.pair_rows(pairs), call)
        return preference.pair_log_probs(outputs, pairs)

    def odds(found: preference.Rewards, pairs: Batch) -> jax.Array:
        """log P(preferred) / P(rejected) of each pair from its log-probabilities, float32 [B]."""
        if per == "answer":
            return found.margin
        rejected = found.rejected / length(pairs["rejected_answer"])
        return found.preferred / length(pairs["answer"]) - rejected

    def optimum(ctx: Ctx, key: jax.Array, pairs: Batch) -> jax.Array:
        """log P*_t(preferred) / P*_t(rejected) of each pair, float32 [B]."""
        drawn = 1 - jnp.sqrt(jax.random.uniform(key, pairs["weight"].shape))  # Beta(1, 2)
        moderate = drawn if reward is None else reward
        # π_{t-1}, with which the stage began
        old = ctx.recall(ctx.references["previous"], preference.pair_rows(pairs))
        return odds(preference.pair_log_probs(old, pairs), pairs) + 2 * moderate / beta

    def batch(state: CoprState, ctx: Ctx, fresh: Batch) -> Batch:
        draw, own = jax.random.split(ctx.key)
        target, new = optimum(ctx, draw, fresh), jnp.ones(fresh["weight"].shape)
        old = memory.sample(state.buffer, own, rows)
        member = of(old[_STAGE]) * (old["weight"] > 0)
        count = jnp.sum(member, axis=1, keepdims=True)
        share = jnp.exp(state.log_multiplier)[:, None] * member / jnp.maximum(count, 1)
        old["weight"] = jnp.sum(fresh["weight"]) * jnp.sum(share, axis=0)
        return memory.append({**fresh, _ODDS: target, _NEW: new}, old)

    def loss(state: CoprState, ctx: Ctx, loss_fn: LossFn) -> LossFn:
        def loss_with_policy(
            params: Params, pairs: Batch, call: Call = ctx.call
        ) -> tuple[jax.Array, Aux]:
            found = log_probs(ctx, params, pairs, call)
            cost = apart(odds(found, pairs), pairs[_ODDS])
            cost = cost - sft * pairs[_NEW] * found.preferred / length(pairs["answer"])
            return losses.weighted_mean(cost, pairs["weight"]), Aux(found, ctx.collections)

        return loss_with_policy

    def errors(cost: jax.Array, pairs: Batch) -> tuple[jax.Array, jax.Array]:
        """J_i from the rows' costs float32 [n], and over how many rows, float32 [stages] each."""
        member = of(pairs[_STAGE]) * (pairs["weight"] > 0)
        count = jnp.sum(member, axis=1)
        return member @ cost / jnp.maximum(count, 1), count

    def observe(state: CoprState, ctx: Ctx, info: Info) -> CoprState:
        old = memory.sample(state.buffer, ctx.key, rows)
        cost = apart(odds(log_probs(ctx, info.params, old), old), old[_ODDS])
        error, count = errors(cost, old)
        excess = jnp.where(count > 0, error - state.bound, 0)
        ascent = rate * jnp.exp(state.log_multiplier) * excess
        log_multiplier = jnp.minimum(state.log_multiplier + ascent, _MOST)
        return state._replace(log_multiplier=log_multiplier)

    def consolidate(
        state: CoprState, ctx: Ctx, params: Params, batches: Batch
    ) -> tuple[Params, CoprState]:
        keys = jax.random.split(ctx.key, batches["weight"].shape[0])
        target = lax.map(lambda xs: optimum(ctx, *xs), (keys, batches))
        stage = jnp.full(batches["weight"].shape, ctx.stage, jnp.int32)
        stored = {**batches, _ODDS: target, _STAGE: stage}
        buffer = memory.insert_batches(keep, state.buffer, ctx, params, stored)

        def cost(row: Batch) -> jax.Array:
            pair = jax.tree.map(lambda x: x[None], row)
            return apart(odds(log_probs(ctx, params, pair), pair), pair[_ODDS])[0]

        bound, _ = errors(lax.map(cost, buffer.rows, batch_size=rows), buffer.rows)
        return params, CoprState(buffer, state.log_multiplier, bound)

    def report(state: CoprState, info: Info) -> dict[str, jax.Array]:
        return {"multiplier": jnp.exp(state.log_multiplier).mean()}

    return Method(
        "copr",
        init=init,
        batch=batch,
        loss=loss,
        observe=observe,
        consolidate=consolidate,
        report=report,
        reads=("parameters", "samples", "logits"),
        recalls=("previous",),
        replaces=True,
    )
