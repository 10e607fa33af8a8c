"""What no docstring says of a target: how to score it, and the literature's figures with their sources.

A target without an entry has a page all the same, of what its code says.
"""

from __future__ import annotations

from dataclasses import dataclass

SENDERA = "Sendera et al. 2024, arXiv 2402.05098"
GFN = f"run by us with the gfn-diffusion code of {SENDERA}; one thread, T = 10, learned variance"
DXMI = "Yoon et al. 2024, arXiv 2407.00626"


@dataclass(frozen=True)
class Notes:
    """Sentences in Markdown, one bullet each."""

    scoring: tuple[str, ...] = ()
    """What to mind when scores are read."""
    values: tuple[str, ...] = ()
    """Published figures and figures measured elsewhere, each with its source."""


_PLANAR = (
    "There is no training set to memorise: every batch is drawn afresh, and so are the samples to score against.",
    "No density is given, so a learned energy is scored by `auc` only: data against uniform noise over the plotting "
    "range.",
)
_PARTICLES = (
    "Centre of mass: scores are in the coordinates of the zero-mean subspace; figures of the literature that are "
    "log-densities on all positions cannot be compared.",
    "The energy is invariant under rotations, reflections and permutations. Compare with samples of your own from long "
    "Markov chains by what is invariant, too: interparticle distances and energies, as in the picture.",
)
_MODES = (
    "`modes` counts the modes that get a fair share of the samples, `mode_tv` is the total variation between the "
    "modes' shares and their weights. ELBO, log Z and ESS do not see lost modes."
)

NOTES: dict[str, Notes] = {
    "8gaussians": Notes(
        scoring=(_MODES,),
        values=(
            "Agents of this package: the tables of the [README](../../README.md#results), each with its command.",
            f"AUC of the exact energy, data against uniform noise on [-4, 4]^2: 0.906 ({DXMI}); 0.90 measured here.",
            "The authors' DxMI trainer, run by us: sliced W2 0.077 ± 0.003 (exact samples 0.045), AUC 0.880 ± 0.003.",
        ),
    ),
    "gmm9": Notes(
        scoring=(_MODES,),
        values=(
            f"Log Z estimated from the energy alone in 50 seconds (truth 0): VarGrad -0.16, TB -0.21, PIS -0.58 "
            f"({GFN}).",
        ),
    ),
    "gmm25": Notes(
        scoring=(_MODES,),
        values=(
            f"Log Z estimated from the energy alone at T = 10 (truth 0): -1.67 with fixed, -0.62 with learned variance "
            f"({SENDERA}).",
            f"At T = 100, error of log Z: PIS 1.77, TB 1.18, VarGrad with exploration 0.62, TB with exploration and "
            f"local search 0.17 ({SENDERA}).",
            f"In 110 seconds: PIS -1.65, TB -1.20, VarGrad -1.19 (9 modes each), TB with exploration -0.73 (20 modes) "
            f"({GFN}).",
            "Exact W2 between two sets of 2,000 exact samples, the floor: 1.03 to 1.20 (measured here).",
        ),
    ),
    "gmm40": Notes(
        scoring=(
            _MODES,
            "The modes lie in a square 80 wide and are 1.3 narrow: distances measure the modes' shares, hardly their "
            "shapes.",
        ),
    ),
    "mos10": Notes(
        scoring=(
            "Samples far out are part of the target, also of the picture's, and clipping them changes it. "
            "`quantile_error` looks at the 1 % to 99 % quantiles, so it does not judge the tails beyond.",
        ),
    ),
    "funnel10": Notes(
        scoring=(
            "Heavy tails: W2 and moments of finite sets rank nothing. The floor of exact W2 with 2,000 points is 23 to "
            "33 (measured here), where the best values of the literature lie. Compare bounds and `mmd`.",
            "The lowest energies lie at the tip of the neck, where there is hardly any mass: a low mean energy is no "
            "merit.",
            "Versions with x0 ~ N(0, 1) are another target.",
        ),
    ),
    "manywell32": Notes(
        scoring=(
            "Bounds hide lost wells: a perfect sampler of the right wells alone has a KL of 16 log(1 / 0.84431) = 2.7 "
            "nats and misses all modes but one of 65,536. `well_error` is how far the share of x1 > 0 is from "
            "0.84431 in the pair where it is furthest.",
        ),
        values=(
            f"From the energy alone in 120 seconds: ELBO 161.45 (PIS) and 161.39 (VarGrad), both in one mode; "
            f"TB diverged ({GFN}).",
            f"At T = 100, error of the ELBO: PIS 3.85 (the lowest), TB 4.01; importance-weighted, down to 0.02 "
            f"({SENDERA}).",
            "Exact W2 between two sets of 2,000 exact samples, the floor: 5.41 to 5.44 (measured here).",
        ),
    ),
    "dw4": Notes(scoring=_PARTICLES),
    "lj13": Notes(
        scoring=(
            *_PARTICLES,
            "Compare energies of one convention only: here every pair counts twice, and there is a trap.",
        ),
        values=(
            "The lowest energy of the plain Lennard-Jones cluster of 13 particles, pairs counted once and no trap, is "
            "-44.3268 (the icosahedron; Wales and Doye 1997, arXiv cond-mat/9803344).",
        ),
    ),
    "lgcp40": Notes(
        scoring=("The noise ladder from scratch is centred at 0, the prior at 3.88: a policy has to learn the mean.",),
        values=("Log Z: about 501.8 and about 512.6 are both published; compare ELBOs of one code.",),
    ),
    "checkerboard": Notes(scoring=_PLANAR),
    "2spirals": Notes(scoring=_PLANAR),
    "rings": Notes(scoring=_PLANAR),
    "moons": Notes(scoring=_PLANAR),
    "digits": Notes(
        scoring=(
            "`fd` is the Frechet distance on the features of a small classifier that ships with the package "
            "(`benchmarks/images/train_digits_classifier.py`); `kd` (the kernel distance), `precision`, `recall`, "
            "`density` and `coverage` are those of the same features. These distances compare with each other only, "
            "not with FID and KID.",
            "1,437 images to train on, 360 to score against: the floor, training against test images, is far from 0.",
        ),
        values=("Samplers and agents: the table of the [README](../../README.md#results), with its command.",),
    ),
}
