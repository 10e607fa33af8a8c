"""What the parts of documentation pages that come from the code are made of."""
