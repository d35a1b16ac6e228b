"""`train`: a run begun or gone on with, in a process of its own, segment after segment."""
