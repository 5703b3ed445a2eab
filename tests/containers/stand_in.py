#!/usr/bin/env python3.11
"""Stands in for the command `mmbert` in an image: says how it was called, and makes up what a component leaves.

A root that ends in `/fails-TASK` or `/leaves-nothing-TASK` makes that task do so.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

words = sys.argv[1:]
said = {name: words[i + 1] for i, name in enumerate(words) if name.startswith("--") and i + 1 < len(words)}
seen = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY", "HOME")}
print("CALLED " + json.dumps({"words": words, "environment": seen}), flush=True)
if words[0] == "kfp":
    sys.exit()
root, task = said["--root"], said["--task"]
if root.endswith(f"/fails-{task}"):
    print("a line before")
    print("error: what was wrong, in one line", flush=True)
    sys.exit(2)
if root.endswith(f"/leaves-nothing-{task}"):
    sys.exit()
files = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "--output"}
given = [word for word in words if word not in files.values() and word != said["--result-file"]]
made = {
    "uri": f"{root}/{words[1]}/{hashlib.sha256(json.dumps(given).encode()).hexdigest()[:12]}",
    "models": json.dumps([f"{root}/model/first", f"{root}/model/second"]),
    "documents": json.dumps([f"{root}/documents/one"]),
    "alerts": "[]",
}
made |= {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "--expect"}
for name, file in (*files.items(), ("result", said["--result-file"])):
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(made.get(name, "{}"))
