"""`python -m deepinfer.agent`."""

import sys

from deepinfer.agent.main import main

sys.exit(main())
