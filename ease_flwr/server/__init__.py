"""The server's half of a run: who takes part, the phases, and what is said about the models at the end."""
