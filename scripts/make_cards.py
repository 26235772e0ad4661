"""Write the model cards and the page of the shipped model from model_cards/: facts and results of `hivg evaluate`.

python scripts/make_cards.py            write what is out of date
python scripts/make_cards.py --check    change nothing; exit status 1 where something is out of date
"""

import sys
from pathlib import Path

from hivg_hf.evaluation.model_card import make_cards

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    check = arguments == ["--check"]
    if arguments and not check:
        print(__doc__)
        return 2
    stale = make_cards(ROOT, write=not check)
    for path in stale:
        print(f"{'out of date' if check else 'wrote'}: {path}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
