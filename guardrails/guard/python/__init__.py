"""Python code, followed without running it: values, conditions, calls, and the effects that they would have."""
