from __future__ import annotations

import sys

from deepinfer.control_plane.main import main

sys.exit(main())
