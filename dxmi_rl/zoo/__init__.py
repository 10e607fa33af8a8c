"""The zoo: trained agents and detectors to start from, with cards, scores and checksums."""

from dxmi_rl.zoo.check import check_pretrained
from dxmi_rl.zoo.detectors import add_pretrained_detector, load_pretrained_detector
from dxmi_rl.zoo.hub import from_hub, push_to_hub
from dxmi_rl.zoo.pretrained import add_pretrained, list_pretrained, load_pretrained

__all__ = [
    "add_pretrained",
    "add_pretrained_detector",
    "check_pretrained",
    "from_hub",
    "list_pretrained",
    "load_pretrained",
    "load_pretrained_detector",
    "push_to_hub",
]
