"""vLLM behind the shim: its AsyncLLM in this process, its own ASGI application without a socket; nothing is forked.

Everything here runs in the engine's own Python environment; only these modules import vllm, when they are called.
"""
