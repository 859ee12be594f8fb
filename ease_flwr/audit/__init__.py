"""What is left? Judges the models of a run; never trains the global model."""
