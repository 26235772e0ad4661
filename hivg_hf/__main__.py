"""`python -m hivg_hf` is `hivg`."""

from .cli import main

if __name__ == "__main__":
    main()
