"""Processes on machines: the SuperLink of a simulation, the files of a deployment, and the end of what was started."""
