"""What no docstring says of an agent: when to take it, and what it costs beside its rollouts.

An agent without an entry has a page all the same, of what its code says.
"""

from __future__ import annotations

from dataclasses import dataclass

OTHER = "Others"


@dataclass(frozen=True)
class AgentNotes:
    """Sentences in Markdown."""

    family: str = OTHER
    """Heading on the index page."""
    when: str = ""
    """When to take it."""
    cost: str = ""
    """What an iteration costs, per transition of its rollout where nothing else is said; a trajectory has T."""
    task: str = "8gaussians"
    """Task of the snippets."""
    findings: tuple[str, ...] = ()
    """Paragraphs on what its parts bring, with the experiment they come from."""


UNTRAINED, VALUES, GRADIENTS = "Without training", "Soft value iteration", "Policy gradients"
PATHS, BALANCE, LIBRARIES = "Through the energy's gradient", "GFlowNets and log-variance", "Other libraries"
INVERSE = "Inverse RL"
FAMILIES = (UNTRAINED, VALUES, GRADIENTS, PATHS, BALANCE, LIBRARIES, INVERSE, OTHER)
"""Headings in order."""

_ROLLOUT = "One policy draw, one energy evaluation per trajectory, no gradient of the energy"
_SOLVER = "T denoiser calls per sample, the same number as a trained policy's rollout; nothing is trained."
_OFF_POLICY = (
    "One energy evaluation per trajectory; one policy draw in the rollout and those of `gradient_steps` steps on "
    "replayed transitions, about 15 per transition with the defaults. Networks are trained far longer per transition "
    "than elsewhere: compare seconds, too."
)
_FLOWS = (
    "`updates` passes over each batch without new energy evaluations. With `replay`, backward paths from the buffer on "
    "top of the rollouts (policy evaluations, no draws that count as timesteps) and, with local search, "
    "`local_search_steps` gradients of the energy per replayed state."
)

_DXDP = (
    "One setting changed at a time from the tuned ones, 100,000 transitions, three seeds (all scores and the command: "
    "[ablations](../experiments/ablations.md)); `kl_bound_fit` on 8gaussians, 0.353 as it is:",
    "- **What carries it.** Running costs in the value target (5.4 without, and modes are lost); the value's warm-up "
    "(0.71 without); entropy in the value target (0.54) and sampled rather than averaged (0.48); a value per step "
    "(0.46 with one for all); a sigma that depends on the state (0.41 with one per step). The kernel as much: 0.57 "
    "with the Forward and 0.41 with the Brownian one, fitted afterwards all the same.\n"
    "- **What three seeds cannot tell apart.** The sigmoid time cost only adds constants to the values, and yet ends "
    "at 0.326, ahead in 8 of 9 pairs of seeds: differences of that size are noise. Within it are the averaged target "
    "network (0.351), exploration (0.352), no correction (0.348), a tighter gradient clip (0.33), a fixed last sigma "
    "(0.376), one-step targets (0.334), two value networks (0.316 with their mean, 0.324 with their maximum), whole "
    "soft returns (0.389) and no replay (0.392), both on the other side.\n"
    "- **What may pay and is no default:** fresh next states in value targets (`value_resampling`, 0.296), for 30 % "
    "more energy evaluations. The search on gmm9 has it in its space and did not choose it.\n"
    "- **What does not pay here:** the look-ahead value, 0.463 (0.492, 0.440, 0.457; `python "
    'benchmarks/compare/compare.py --preset ablations --tasks 8gaussians --agents "look-ahead value"`, run later, on '
    "an AMD EPYC): the mean of what may follow lies between modes, where the energy is high. It is for images.\n"
    "- **The paper's settings** end at 1.13 (1.11 with its own kernel), but take one value and one policy step per "
    "rollout: one second of training against about a minute.",
    "On manywell32, where 100,000 transitions do not train it (a bound of about 30 nats): without replay 39.8, without "
    "correction 35.4, with whole soft returns 29.1, with Fourier features in the value 81. Of three runs with the "
    "tuned settings one diverged here; the ten of the leaderboard, on another processor, did not.",
)

NOTES: dict[str, AgentNotes] = {
    "base": AgentNotes(
        UNTRAINED,
        "The zero of every table: the few-step sampler that policies start from, with a density.",
        "Nothing is trained. T denoiser calls per sample.",
    ),
    "ddpm": AgentNotes(UNTRAINED, "The stochastic baseline of the denoiser, without noise at the last step.", _SOLVER),
    "ddim": AgentNotes(UNTRAINED, "The first-order deterministic baseline.", _SOLVER),
    "edm-heun": AgentNotes(
        UNTRAINED, "A second-order baseline; with few steps half of its calls go into correcting.", _SOLVER
    ),
    "dpm-solver": AgentNotes(
        UNTRAINED, "The second-order baseline to beat at few steps: one call per step all the same.", _SOLVER
    ),
    "dxdp": AgentNotes(
        VALUES,
        "The paper's agent, when the energy has gradients and is cheap: on the mixtures of the leaderboard it is ahead "
        "of PPO at equal transitions, for 20 times the energy evaluations. Gradients go through one denoising step "
        "at any T, so memory does not grow with it.",
        "`policy_steps` further policy draws; per trajectory `policy_steps` + `replay` energy evaluations, "
        "`policy_steps` of them with gradients.",
        findings=_DXDP,
    ),
    "ppo": AgentNotes(
        GRADIENTS,
        "The strong default without gradients of the energy, also for rewards that have none. With the network, "
        "rates and entropy bonus of Stable-Baselines3's PPO it learns as that does: `python "
        "benchmarks/compare/ppo_parity.py` (8gaussians, Forward kernel, 256,000 transitions, seeds 0 to 9) ends at a "
        "`kl_bound` of 2.503 [2.490, 2.516] beside 2.516 [2.503, 2.529], and the intervals overlap at all eight "
        "points of the curves. With the entropies sampled, as here, in place of the bonus (`--sampled`) it is "
        "ahead at every point, at the end with 2.467 [2.455, 2.479].",
        f"{_ROLLOUT}; `epochs` passes over it.",
    ),
    "reinforce": AgentNotes(
        GRADIENTS,
        "The plainest estimator, to see what a critic and reuse of data add.",
        f"{_ROLLOUT}; one policy step.",
    ),
    "a2c": AgentNotes(
        GRADIENTS, "PPO without reuse of data: a critic, one policy step.", f"{_ROLLOUT}; one policy step."
    ),
    "grpo": AgentNotes(
        GRADIENTS,
        "When no critic is wanted and many trajectories per start are cheap.",
        f"{_ROLLOUT}; `epochs` passes over it, no value network.",
    ),
    "dpok": AgentNotes(
        GRADIENTS,
        "When the pretrained sampler is the prior to stay near, rather than a start to leave: its optimum is another "
        "than the task's, and so are its scores.",
        f"{_ROLLOUT}; `epochs` passes over it, and the base sampler's density.",
    ),
    "sft-pg": AgentNotes(
        GRADIENTS,
        'Inside DxMI, `DxMI(task, agent="sft-pg")`, whose energy moves. On a given energy it has no entropy term: it '
        "ends in a mode, and tables show it as that.",
        f"{_ROLLOUT}; `minibatches` policy steps.",
    ),
    "path-wise": AgentNotes(
        PATHS,
        "When the energy is differentiable and cheap: the gradient with the least variance. Memory grows with T unless "
        "`checkpointing`.",
        "One policy draw; per trajectory one energy evaluation with gradient, and T more where the network is given "
        "grad E.",
    ),
    "adjoint-matching": AgentNotes(
        PATHS,
        "Reward fine-tuning of a pretrained sampler without moving its noise. Its optimum is tilted from the base "
        "sampler, as DPOK's: read the scores with that in mind.",
        "One policy draw and two denoiser calls, one of them differentiated; per trajectory one energy evaluation with "
        "gradient.",
    ),
    "trajectory-balance": AgentNotes(
        BALANCE, "Off-policy: wide exploration and replay find modes that on-policy agents never see.", _FLOWS
    ),
    "vargrad": AgentNotes(
        BALANCE, "Trajectory balance when a learned log Z is not wanted; the batch's own is used.", _FLOWS
    ),
    "detailed-balance": AgentNotes(
        BALANCE, "Credit step by step, as in DxDP, but by matching flows: no gradient of the energy is needed.", _FLOWS
    ),
    "path-wise-vargrad": AgentNotes(
        BALANCE,
        "Where only an energy with gradients is given and its modes lie apart: gmm25 on the sample track, with rates "
        "chosen on it, ends at an ELBO of -0.098 [-0.101, -0.095] in ten steps and -0.165 [-0.170, -0.159] in five, 25 "
        "of 25 modes, after 110 seconds on one core (five seeds; `python benchmarks/compare/compare.py --preset "
        "samplers --agents 'path-wise-vargrad at larger rates, T = 10' 'path-wise-vargrad at larger rates, T = 5' "
        "--jobs 2`). On manywell32 in ten steps, with `coordinate_width` in policy and kernel, it ends at 163.75 "
        "[163.60, 163.91] of 164.70 with every well's share within 0.02 (`--agents 'path-wise-vargrad, coordinate by "
        "coordinate'`).",
        f"In its first phase as `path-wise`, then as `vargrad`. {_FLOWS}",
    ),
    "sb3-ppo": AgentNotes(LIBRARIES, "What users of Stable-Baselines3 get on this environment.", f"{_ROLLOUT}."),
    "sb3-a2c": AgentNotes(LIBRARIES, "What users of Stable-Baselines3 get on this environment.", f"{_ROLLOUT}."),
    "sb3-sac": AgentNotes(LIBRARIES, "What users of Stable-Baselines3 get on this environment.", _OFF_POLICY),
    "sb3-td3": AgentNotes(
        LIBRARIES,
        "As a warning: a deterministic policy maximises the reward and has no density; sample metrics only.",
        _OFF_POLICY,
    ),
    "torchrl-ppo": AgentNotes(LIBRARIES, "What users of TorchRL get on this environment.", f"{_ROLLOUT}."),
    "torchrl-sac": AgentNotes(LIBRARIES, "What users of TorchRL get on this environment.", _OFF_POLICY),
    "dxmi": AgentNotes(
        INVERSE,
        "When there is data and no energy: energy and sampler are trained together, with any agent above inside.",
        "The inner agent's costs, and `energy_steps` steps of the energy per rollout on as many data as samples.",
        "8gaussians-data",
    ),
}
