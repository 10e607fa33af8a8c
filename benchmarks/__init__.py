"""Studies of this project: one package per study. How to run them: README.md in this folder."""
