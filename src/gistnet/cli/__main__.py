"""`python -m gistnet.cli`, as launchers of several processes call it."""

from gistnet.cli import main

main()
