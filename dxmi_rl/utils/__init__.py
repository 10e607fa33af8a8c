"""Tools that know nothing of diffusion: checks of arguments, registries, files, progress bars, torch helpers."""
