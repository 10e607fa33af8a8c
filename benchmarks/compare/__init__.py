"""Agents beside agents: the comparison, its leaderboard, races, PPO beside another library, coverage of intervals."""
