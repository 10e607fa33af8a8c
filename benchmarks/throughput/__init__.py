"""What steps, iterations and sweeps cost in time and memory."""
