from deepinfer.cli.main import main

main()
