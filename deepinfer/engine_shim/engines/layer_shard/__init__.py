"""Layer-shard: serves stock transformers models in stages of contiguous layers, on CPUs and CUDA devices.

`engine.py` is the way in; `steps.py` is the loop, `schedule.py` decides, `stage.py` computes, `attention.py` and
`kv.py` hold what a sequence remembers, `exact/` makes bf16 fast on CPUs that cannot do it.
torch and transformers are imported in this package only.
"""
