"""`python -m hivg_hf` is `hivg`."""

from hivg_hf.cli import main

if __name__ == "__main__":
    main()
