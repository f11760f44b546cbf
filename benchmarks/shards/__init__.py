"""Layer-shard pipelines as processes on this machine: what a hop costs, what cutting costs, and what links cost.

head_process.py     one of our sides: the whole model, or the head of a pipeline, told on stdin what to answer
stage_process.py    another stage of it
delaying_proxy.py   the links between them, with time added
parts.py            what is measured, side by side
demo.py             the product itself, cut over three workers
"""
