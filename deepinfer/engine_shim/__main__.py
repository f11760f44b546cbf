"""`python -m deepinfer.engine_shim LAUNCH.json`"""

from deepinfer.engine_shim.main import main

main()
