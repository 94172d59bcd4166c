"""How a plan is run: one opened generation, its searcher, the cascade of stages."""
