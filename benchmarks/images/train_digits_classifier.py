"""Train the small digits classifier whose features score generated digits, and write its weights.

    python benchmarks/images/train_digits_classifier.py

The weights that ship with the package came from this command, about 10 seconds on one CPU core. The same seed gives the
same weights on one machine and torch version; keep the file fixed, or distances of different tables do not compare.

Keys of ``--json FILE``:

    command              the command line
    machine, versions    what it ran on
    seed                 seed of initialisation, order and augmentation
    test_accuracy        fraction of the 360 test digits that are classified correctly
    seconds              wall-clock seconds
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import torch
from torch import Tensor, nn

from benchmarks.scripts import command_line, header
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.networks.features import DIGITS_CLASSIFIER, DigitsFeatures
from dxmi_rl.targets.digits import load_digits_split
from dxmi_rl.utils.checks import check_integer, resolve_device
from dxmi_rl.utils.storage import save_tensors, write_json

EPOCHS = 100
BATCH = 64


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    seeds: int = 0
    """The seed (one): of initialisation, order and augmentation."""
    device: str = "cpu"
    """Torch device; the weights that ship with the package are from a CPU."""
    output: Path = DIGITS_CLASSIFIER
    """File of the weights."""
    json: Path | None = None
    """File for the results."""


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image ``[n, 1, 8, 8]`` by -1, 0 or 1 pixels either way, and add noise of standard deviation 0.1."""
    padded = nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)  # [n, 1, 3, 3, 8, 8]
    down, right = torch.randint(3, (2, len(images)), generator=generator)
    shifted = windows[torch.arange(len(images)), :, down, right]
    return shifted + 0.1 * torch.randn(images.shape, generator=generator)


def train(seed: int, device: str) -> DigitsFeatures:
    """Adam with a cosine learning rate on the training split; draws are made on the CPU."""
    images, labels, _, _ = load_digits_split()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = DigitsFeatures().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            x, y = augment(images[batch], generator).to(device), labels[batch].to(device)
            loss = nn.functional.cross_entropy(model.logits(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    return model.eval()


@torch.no_grad()
def test_accuracy(model: DigitsFeatures) -> float:
    """Fraction of the 360 test digits that are classified correctly."""
    _, _, images, labels = load_digits_split()
    device = next(model.parameters()).device
    return float((model.logits(images.to(device)).cpu().argmax(1) == labels).double().mean())


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print, write; 2 for arguments that are not allowed."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        check_integer("seeds", arguments.seeds, minimum=0)
        resolve_device(arguments.device)
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    started, deterministic = time.perf_counter(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    with one_thread():  # the order of float sums depends on the number of threads
        model = train(arguments.seeds, arguments.device)
        accuracy, seconds = test_accuracy(model), time.perf_counter() - started
    torch.use_deterministic_algorithms(deterministic)
    metadata = {
        "script": "benchmarks/images/train_digits_classifier.py",
        "seed": arguments.seeds,
        "test_accuracy": round(accuracy, 4),
        "torch": torch.__version__.split("+")[0],
    }
    save_tensors(arguments.output, model.state_dict(), metadata)
    print(f"test accuracy {accuracy:.4f} on 360 digits, {seconds:.0f} s, wrote {arguments.output}")
    if arguments.json is not None:
        content = header(command_line(__file__, argv), arguments.device) | {"seed": arguments.seeds}
        write_json(arguments.json, content | {"test_accuracy": accuracy, "seconds": seconds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
