"""`python -m funnel` is the command `funnel`."""

from funnel.cli import main

main()
