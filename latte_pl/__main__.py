"""`python -m latte_pl` is the command `latte`."""

from latte_pl.cli import main

main()
