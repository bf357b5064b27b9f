"""Messages about what changed for the worse, to people who look at no report."""
