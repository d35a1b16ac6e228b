"""One run on several processes: rank 0 does all that a run alone does, and the others compute what it gives them.

So each decision is rank 0's by construction: it plans, reads the data, evaluates, saves, stops and tries again, and the
other ranks hear of it through a line of messages (wire.py), which also shows within seconds that a process is gone.
The engine (torch.distributed, mlx.distributed) sums gradients, gathers weights that are spread, and does nothing else.
"""
