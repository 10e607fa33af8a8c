"""What an agent does in an environment: actions for observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dxmi_rl.envs.observations import parse_observation
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Policy, draw


def predicted_action(
    mdp: DenoisingMDP, policy: Policy, observation: Any, generator: torch.Generator | None, coordinates: str
) -> np.ndarray[Any, Any]:
    """The action of a policy in ``coordinates`` for one observation or a batch, with noise from ``generator`` (None:
    with the noise zero), in the shape of the observed states. Raises ValueError for observations of another shape.
    """
    x, t, single = parse_observation(mdp, observation)
    with torch.no_grad():
        noise = torch.zeros_like(x)
        if generator is not None:
            noise.normal_(generator=generator)
        action = mdp.action(x, t, draw(policy, x, t, noise), coordinates)
    result: np.ndarray[Any, Any] = (action if isinstance(observation, dict) else action.flatten(1)).cpu().numpy()
    return result[0] if single else result
