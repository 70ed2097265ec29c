"""One package per architecture: its network, the detection of its checkpoints, its static deployment form."""
