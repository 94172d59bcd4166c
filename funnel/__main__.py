"""`python -m funnel` is the command `funnel`."""

from funnel.cli.main import main

main()
