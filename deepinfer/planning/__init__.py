"""A model over unlike devices: its sizes, the cut into stages, a prediction. Arithmetic that all processes share."""
