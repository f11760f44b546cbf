"""bf16 on CPUs without bf16 instructions: torch's bits, in a fraction of torch's time.

`*_kernel.py` write LLVM IR with the vocabulary of `ir.py`; `kernels.py` compiles it at load, so that no compiler is
needed on the machine. `linear.py`, `norm.py` and `decode_attention.py` decide where a kernel may be used: never by
versions or CPU names, always by comparing its bits with torch's on this machine, on numbers whose sums depend strongly
on the order of addition. What does not agree stays torch's.
"""
