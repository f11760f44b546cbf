"""`python -m deepinfer.engine_shim LAUNCH.json`"""

if __name__ == "__main__":  # else an engine's own process, spawned by multiprocessing, imports this anew
    from deepinfer.engine_shim.main import main

    main()
