"""The benchmark as an instrument: protocol, resumable sweeps, results, reports. ``dxmi-rl compare`` runs it."""
