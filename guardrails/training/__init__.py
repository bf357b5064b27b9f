"""The training engine: one process trains one data file into one adapter, and can be stopped or killed at any time."""
