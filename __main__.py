"""`python -m heirloom`: the command line."""

from heirloom.cli.main import main

main()
