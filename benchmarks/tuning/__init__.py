"""The search for settings of agents."""
