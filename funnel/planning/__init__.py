"""From measured plans to the one that meets a budget: calibration, certificates, costs, the planner."""
