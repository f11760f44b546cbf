"""bf16 on CPUs, faster than torch has it, and with bits of a row that do not depend on the rows beside it.

`*_kernel.py` write LLVM IR with the vocabulary of `ir.py`; `compiled.py` compiles it at load, so that no compiler is
needed on the machine. `machine.py` knows which of two kinds serves here: exact kernels have torch's bits, packed ones
their own. `replacement.py` puts them into a model. Where a kernel may be used is never decided by versions or names of
classes but by asking, at load: an exact one must agree with torch to the bit, on numbers whose sums depend strongly on
the order of addition, a packed one closely, and with itself to the bit. What does not agree stays torch's.
"""
