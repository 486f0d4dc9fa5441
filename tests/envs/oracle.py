"""Trajectories of the published suite, translated into our states; the oracle of parity tests.

``python tests/envs/oracle.py [ID ...]`` records small ones (needs the ``jumanji`` package);
``compare`` checks any of them against our environments.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.envs import make

RECORDED = Path(__file__).parent / "recorded"


@dataclasses.dataclass(frozen=True)
class Peer:
    """How to run one environment of the published suite and read its states.

    Args:
        id: name in both registries.
        translate: its state -> ours, as a dictionary of fields (without the key).
        settings: settings of our environment that select its conventions.
        draw: ``(state, action, next_state) -> draw`` for environments with chance in steps.
        tolerance: relative tolerance of floats.
        ignore: fields of states or observations that are not compared.
        make_peer: builds its environment where ``jumanji.make(id)`` does not do.
        lanes, steps: size of the recorded trajectories.
        illegal: share of actions drawn without looking at the mask.
        legal_only: parts that are compared after legal actions only.
        skip_last: do not compare observations and states of last steps.
        check: ``(env, state, action, draw) -> flags``, true where the draw was possible.
    """

    id: str
    translate: Callable[[Any], dict[str, Any]]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    draw: Callable[[Any, Any, Any], Any] | None = None
    tolerance: float = 1e-6
    ignore: tuple[str, ...] = ()
    make_peer: Callable[[], Any] | None = None
    lanes: int = 8
    steps: int = 64
    illegal: float = 0.05
    legal_only: tuple[str, ...] = ()
    skip_last: bool = False
    check: Callable[[Any, Any, Any, Any], Any] | None = None

    def ours(self) -> Any:
        """Our environment with the peer's conventions."""
        return make(self.id, **self.settings)

    def theirs(self) -> Any:
        """The peer's environment."""
        import jumanji

        return self.make_peer() if self.make_peer else jumanji.make(self.id)


def fields(*names: str) -> Callable[[Any], dict[str, Any]]:
    """Fields that have the same name and meaning on both sides."""
    return lambda state: {name: getattr(state, name) for name in names}


def to_dictionary(tree: Any) -> Any:
    """Named tuples and dataclasses as nested dictionaries, keys dropped."""
    if hasattr(tree, "_asdict"):
        tree = tree._asdict()
    elif dataclasses.is_dataclass(tree):
        tree = {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree)}
    if isinstance(tree, dict):
        return {name: to_dictionary(value) for name, value in tree.items() if name != "key"}
    return tree


def random_action(peer: Peer, env: Any, key: jax.Array, observation: Any) -> jax.Array:
    """Mostly legal actions, some drawn without the mask."""
    from trimtab.envs import sample_action

    legal_key, any_key, which_key = jax.random.split(key, 3)
    spec = env.action_spec
    mask = getattr(observation, "action_mask", None)
    anything = sample_action(any_key, spec)
    if mask is None:
        return anything
    legal = sample_action(legal_key, spec, mask)
    return jnp.where(jax.random.uniform(which_key) < peer.illegal, anything, legal)


def trajectories(peer: Peer, lanes: int, steps: int, seed: int = 0) -> dict[str, Any]:
    """Run the peer with automatic resets; every leaf gets a leading axis of transitions."""
    from jumanji.wrappers import AutoResetWrapper

    theirs, ours = peer.theirs(), peer.ours()
    wrapped = AutoResetWrapper(theirs)

    def lane(key: jax.Array) -> Any:
        state, timestep = wrapped.reset(jax.random.key_data(key))

        def advance(carry: Any, step_key: jax.Array) -> Any:
            state, observation = carry
            action = random_action(peer, ours, step_key, observation)
            following, exact = theirs.step(state, action)
            record = {
                "state": to_dictionary(peer.translate(state)),
                "action": action,
                "next_state": to_dictionary(peer.translate(following)),
                "observation": to_dictionary(exact.observation),
                "reward": exact.reward,
                "discount": exact.discount,
                "step_type": exact.step_type,
                "extras": dict(exact.extras),
            }
            if peer.draw is not None:
                record["draw"] = to_dictionary(peer.draw(state, action, following))
            fresh, first = jax.lax.cond(
                exact.step_type == 2,
                lambda: theirs.reset(jax.random.key_data(step_key)),
                lambda: (following, exact),
            )
            return (fresh, first.observation), record

        return jax.lax.scan(advance, (state, timestep.observation), jax.random.split(key, steps))[1]

    records = jax.jit(jax.vmap(lane))(jax.random.split(jax.random.key(seed), lanes))
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), records)


def rebuild(template: Any, values: Any, count: int) -> Any:
    """Named tuples filled from nested dictionaries; keys become arbitrary typed keys."""
    if hasattr(template, "_fields"):
        built = {
            name: (
                jax.random.split(jax.random.key(7), count)
                if name == "key"
                else rebuild(getattr(template, name), values[name], count)
            )
            for name in template._fields
        }
        return type(template)(**built)
    return jnp.asarray(values, template.dtype)


def differences(peer: Peer, records: dict[str, Any]) -> list[str]:
    """What differs between the peer's transitions and ours, a line each; empty when all agree."""
    env = peer.ours()
    count = records["reward"].shape[0]
    draw = None
    shapes = jax.eval_shape(env.reset, jax.random.key(0))
    state = rebuild(shapes[0], records["state"], count)
    action = jnp.asarray(records["action"], env.action_spec.dtype)
    if "draw" in records:
        draw = records["draw"]
        if isinstance(draw, dict):
            kind = env.step_with.__annotations__["draw"]
            module = sys.modules[type(env).__module__]
            kind = getattr(module, kind) if isinstance(kind, str) else kind
            draw = kind(**{name: jnp.asarray(value) for name, value in draw.items()})
        following, timestep = jax.jit(jax.vmap(env.step_with))(state, action, draw)
    else:
        following, timestep = jax.jit(jax.vmap(env.step))(state, action)
    ours = {
        "next_state": to_dictionary(following),
        "observation": to_dictionary(timestep.observation),
        "reward": timestep.reward,
        "discount": timestep.discount,
        "step_type": timestep.step_type,
        "extras": dict(timestep.extras),
    }
    theirs = {name: records[name] for name in ours}
    compared = np.ones(count, bool)
    parts = peer.legal_only
    if peer.legal_only:
        compared = _legal(env, state, action)
    if peer.skip_last:
        compared, parts = records["step_type"] != 2, ("next_state", "observation")
    for part in parts:
        ours[part], theirs[part] = jax.tree.map(
            lambda leaf: np.asarray(leaf)[compared], (ours[part], theirs[part])
        )
    problems = list(_compare(peer, ours, theirs, ""))
    if peer.check is not None and not peer.check(env, state, action, draw).all():
        problems.append("a draw of the peer was impossible for us")
    return problems


def _legal(env: Any, state: Any, action: Any) -> np.ndarray:
    """Which actions were legal, from the mask that belongs to the state before."""
    if hasattr(state, "action_mask"):
        mask = state.action_mask
    elif hasattr(env, "_observe"):
        mask = jax.vmap(env._observe)(state).action_mask
    else:
        mask = ~state.visited_mask
    return np.asarray(jax.vmap(lambda flags, act: flags[tuple(jnp.atleast_1d(act))])(mask, action))


def _compare(peer: Peer, ours: Any, theirs: Any, path: str) -> Any:
    if isinstance(theirs, dict):
        for name, value in theirs.items():
            if name in peer.ignore or f"{path}/{name}".lstrip("/") in peer.ignore:
                continue
            if name not in ours:
                yield f"{path}/{name} is missing"
                continue
            yield from _compare(peer, ours[name], value, f"{path}/{name}")
        return
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        yield f"{path}: shape {ours.shape}, expected {theirs.shape}"
        return
    if theirs.dtype.kind == "f":
        close = np.isclose(ours, theirs, rtol=peer.tolerance, atol=peer.tolerance, equal_nan=True)
    else:
        close = ours == theirs
    wrong = ~close.reshape(close.shape[0], -1).all(axis=1)
    if wrong.any():
        yield f"{path}: {wrong.sum()} of {wrong.size} transitions differ, first {wrong.argmax()}"


def save(path: Path, records: dict[str, Any]) -> None:
    """Write transitions as a compressed npz whose names are ``/``-joined paths."""
    flat = {
        jax.tree_util.keystr(where, simple=True, separator="/"): _small(leaf)
        for where, leaf in jax.tree_util.tree_leaves_with_path(records)
    }
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **flat)


def _small(leaf: np.ndarray) -> np.ndarray:
    if leaf.dtype.kind in "iu" and leaf.size and leaf.min() >= -128 and leaf.max() <= 127:
        return leaf.astype(np.int8)
    return leaf


def load(path: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote."""
    records: dict[str, Any] = {"extras": {}}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            *parents, leaf = name.split("/")
            place = records
            for parent in parents:
                place = place.setdefault(parent, {})
            place[leaf] = archive[name]
    return records


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from peers import PEERS

    for peer in PEERS:
        if len(sys.argv) == 1 or peer.id in sys.argv[1:]:
            records = trajectories(peer, peer.lanes, peer.steps)
            print(peer.id, differences(peer, records) or "agrees", flush=True)
            save(RECORDED / f"{peer.id}.npz", records)
