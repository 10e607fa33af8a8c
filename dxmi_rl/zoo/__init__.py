"""The zoo: trained agents to start from, with cards, scores and checksums."""

from dxmi_rl.zoo.hub import from_hub, push_to_hub
from dxmi_rl.zoo.pretrained import add_pretrained, check_pretrained, list_pretrained, load_pretrained

__all__ = ["add_pretrained", "check_pretrained", "from_hub", "list_pretrained", "load_pretrained", "push_to_hub"]
