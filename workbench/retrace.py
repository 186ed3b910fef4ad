"""The way of one image of a recorded group: drawn again from the same seeds by whatever policy is wanted."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workbench.config import RunConfig
from workbench.contracts import FlowMap, Generator
from workbench.flow import seed_stream, seeded_noise
from workbench.planning import kernel_stds, plan_rollout
from workbench.rollout import Rollout, sample_rollout
from workbench.samplers.ode import deterministic_step


@dataclass(frozen=True)
class Trace:
    """One image from noise to data."""

    times: tuple[float, ...]  # [K], of the states
    states: Tensor  # [K, 3, H, W], each decoded as it stands
    predictions: Tensor  # [K, 3, H, W], what the map takes each state for
    stochastic: dict[int, tuple[float, float]]  # by the place of the state before it: std, log-probability of what was drawn


@torch.no_grad()
def retrace(generator: Generator, config: RunConfig, recorded: Mapping[str, Any], sample: int) -> Trace:
    """Draw a recorded rollout's prompt again with the same seeds, and follow one of its samples.

    With the policy that drew it this is what was seen then; with a later one it is what the same noise leads to now.

    Args:
        config: the settings of that iteration.
        recorded: the fields of its GroupsScored.
        sample: index among its samples.
    """
    size, groups = recorded["group_size"], len(recorded["prompts"])
    stds = kernel_stds(config.sampler, config.model.kind, config.times)
    iteration, steps = recorded["iteration"] - 1, tuple(recorded["steps"])
    plan = replace(plan_rollout(config, iteration, stds, [1.0] * len(stds)), steps=steps)
    distinct = groups // (len(steps) if plan.structure == "branch" else 1)  # where several steps branch, one group for each
    group, place = divmod(sample, size)
    turn, prompt = divmod(group, distinct)
    rollout = sample_rollout(
        generator,
        config.sampler,
        [recorded["prompts"][group]],
        plan,
        key=(config.seed, iteration),
        first_prompt=prompt,
    )
    own = turn * size + place
    seed = rollout.seeds[own if plan.structure == "chain" and not plan.shared_noise else 0]  # of its initial noise
    start = seeded_noise([seed_stream(seed, -1)], generator.latent_shape, generator.device)
    return _follow(generator, rollout, start, own, jumps=plan.structure != "chain" and plan.completion == "jump")


def _follow(generator: Generator, rollout: Rollout, start: Tensor, sample: int, *, jumps: bool) -> Trace:
    """The states that lead from `start` [1, ...] to a sample of a rollout of one prompt."""
    flow_map = generator.bind(rollout.embeddings[:1])
    drawn = {transition.step: transition for transition in rollout.transitions if bool((transition.leaves == sample).any())}
    last_split = max(drawn, default=-1)
    times, states, stochastic = [1.0], [start], {}
    for step, (t, s) in enumerate(zip(rollout.times[:-1], rollout.times[1:], strict=True)):
        if jumps and step > last_split >= 0:
            s = 0.0
        if step in drawn:
            transition = drawn[step]
            state, child, _ = (int(index) for index in (transition.leaves == sample).nonzero()[0])
            stochastic[len(states) - 1] = (transition.std, float(transition.log_probs[state, child]))
            states.append(transition.children[state, child][None])
        else:
            states.append(deterministic_step(flow_map, states[-1], t, s))
        times.append(s)
        if s == 0.0:
            break
    latents = torch.cat(states)
    ends = [predict_data(flow_map, x, t) for x, t in zip(states, times, strict=True)]
    return Trace(tuple(times), generator.decode(latents).cpu(), generator.decode(torch.cat(ends)).cpu(), stochastic)


def predict_data(flow_map: FlowMap, x: Tensor, t: float) -> Tensor:
    """What the map takes the state x [N, ...] at time t for."""
    if t == 0.0:
        return x
    return x - t * flow_map.velocity(x, t) if flow_map.kind == "velocity" else flow_map(x, t, 0.0)
