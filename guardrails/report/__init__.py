"""The state report: what exists here, how healthy it is and what to do, as one document with many faces."""
