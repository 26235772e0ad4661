#!/usr/bin/env bash
# What a newcomer does, from nothing: a fresh virtual environment, the built wheel, and every command of README.md and
# docs/fine-tune.md on 60 rendered pictures. Ends with the accuracy of the model that they train, and with a table of
# what each step took.
#
#   scripts/walk_as_newcomer.sh [WHEEL]       the wheel is built (make build) unless it is given
#
# Everything happens in a temporary folder, named at the end: look at the pictures in it.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
wheel=${1:-}
[ -n "$wheel" ] || { make -C "$repository" build >/dev/null; wheel=$(ls -t "$repository"/dist/*.whl | head -1); }
wheel=$(realpath "$wheel")
place=$(mktemp -d)
cd "$place"

started=$SECONDS
table=()
step() { # NAME: end a step; its seconds and the size of the folder so far become a row
    table+=("| $1 | $((SECONDS - started)) s | $(du -sh "$place" | cut -f1) |")
    started=$SECONDS
}

"${BASE_PYTHON:-python3}" -m venv venv
step "virtual environment"
venv/bin/python -m pip install --quiet -c "$repository/constraints.txt" "$wheel"
step "pip install"
export PATH="$place/venv/bin:$PATH" TOKENIZERS_PARALLELISM=false

mkdir walk && cd walk
python - <<'PYTHON'
import csv
from pathlib import Path

from hivg_hf.data.refshapes import refshapes_dataset

rows = refshapes_dataset("val", seed=5, size=60, masks=False)
for folder in ("photos", "scenes"):
    Path(folder).mkdir()
with open("my.csv", "w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    table.writerow(["image", "expression", "x1", "y1", "x2", "y2"])
    for number, row in enumerate(rows):
        row["image"].save(f"photos/{number}.png")
        table.writerow([f"{number}.png", row["expression"], *row["boxes"][0]])
rows[0]["image"].save("scene.png")
rows[1]["image"].save("scenes/other.png")
lines = ["file_name,caption", f"scene.png,{rows[0]['expression']}", f"scenes/other.png,{rows[1]['expression']}"]
Path("pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
PYTHON
step "60 pictures and a table"
hivg ground scene.png "the leftmost object" --out first.png
step "the first box"

export PYTHONPATH="$repository/tests"
python -m helpers.pages "$repository/README.md"
step "README.md"
# A folder of its own: both pages call their run runs/mine.
mkdir ../fine-tune && cp -r scene.png scenes ../fine-tune
(cd ../fine-tune && python -m helpers.pages "$repository/docs/fine-tune.md")
step "docs/fine-tune.md"

python - <<'PYTHON'
import json

results = json.load(open("held-out/results.json"))
low, high = results["intervals"]["acc@0.5"]
rows = results["counts"]["rows"]
print(f"\nThe model of my.csv: {100 * results['figures']['acc@0.5']:.1f} % ({100 * low:.1f} to {100 * high:.1f}) of {rows} rows")
PYTHON
printf '\n| step | time | size so far |\n| --- | ---: | ---: |\n'
printf '%s\n' "${table[@]}"
printf '\nLook at: %s\n' "$(find "$place/walk" "$place/fine-tune" \( -name '*.png' -o -name '*.jpg' \) -not -path '*/photos/*' -not -path '*/pictures/*' | sort | tr '\n' ' ')"
