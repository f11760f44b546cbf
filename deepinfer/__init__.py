"""deepinfer: LLM engines on a fleet of machines behind one OpenAI endpoint."""

import os

# Our processes start programs while gRPC's threads run, and never go on as a fork of themselves. gRPC's handlers for
# that case run in every child that libuv forks and, now and then, crash it before it becomes the program
# (https://github.com/grpc/grpc/issues/43055). gRPC reads this once, when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
