"""What the toolkit costs, each figure beside the limit that it is held to."""
