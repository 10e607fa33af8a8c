"""Train the small digits classifier whose features score generated digits, and write its weights.

    python benchmarks/train_digits_classifier.py

The weights that ship with the package came from this command, about 10 seconds on one CPU core. The same seed gives the
same weights on one machine and torch version; keep the file fixed, or distances of different tables do not compare.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from dxmi_rl.networks.features import DIGITS_CLASSIFIER, DigitsFeatures
from dxmi_rl.targets.digits import load_digits_split
from dxmi_rl.utils.storage import save_tensors

EPOCHS = 100
BATCH = 64


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image ``[n, 1, 8, 8]`` by -1, 0 or 1 pixels either way, and add noise of standard deviation 0.1."""
    padded = nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)  # [n, 1, 3, 3, 8, 8]
    down, right = torch.randint(3, (2, len(images)), generator=generator)
    shifted = windows[torch.arange(len(images)), :, down, right]
    return shifted + 0.1 * torch.randn(images.shape, generator=generator)


def train(seed: int) -> DigitsFeatures:
    """Adam with a cosine learning rate on the training split."""
    images, labels, _, _ = load_digits_split()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = DigitsFeatures()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(model.logits(augment(images[batch], generator)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    return model.eval()


@torch.no_grad()
def test_accuracy(model: DigitsFeatures) -> float:
    """Fraction of the 360 test digits that are classified correctly."""
    _, _, images, labels = load_digits_split()
    return float((model.logits(images).argmax(1) == labels).double().mean())


def main() -> None:
    """Parse the command line, train, write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of initialisation, order and augmentation")
    parser.add_argument("--output", type=Path, default=DIGITS_CLASSIFIER, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the order of float sums depends on the number of threads
    torch.use_deterministic_algorithms(True)
    start = time.perf_counter()
    model = train(arguments.seed)
    accuracy = test_accuracy(model)
    metadata = {
        "script": "benchmarks/train_digits_classifier.py",
        "seed": arguments.seed,
        "test_accuracy": round(accuracy, 4),
        "torch": torch.__version__.split("+")[0],
    }
    save_tensors(arguments.output, model.state_dict(), metadata)
    seconds = time.perf_counter() - start
    print(f"test accuracy {accuracy:.4f} on 360 digits, {seconds:.0f} s, wrote {arguments.output}")


if __name__ == "__main__":
    main()
