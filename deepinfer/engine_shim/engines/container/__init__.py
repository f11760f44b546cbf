"""A sidecar's engine: an OpenAI server (vLLM's) in a container of this node, which takes the calls itself.

The shim computes nothing here and relays nothing. It looks at the server over HTTP and speaks for it: when it is ready,
what it is, its load, its KV contents, when it is idle, and when it has failed. Starting and ending the container is the
agent's.
"""
