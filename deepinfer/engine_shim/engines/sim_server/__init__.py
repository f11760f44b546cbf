"""The simulated engine behind vLLM's command line and HTTP surface, to try images and fleets without a GPU."""
