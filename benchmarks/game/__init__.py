"""The game of DxMI in the plane."""
