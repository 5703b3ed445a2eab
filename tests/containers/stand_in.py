#!/usr/bin/env python3.11
"""Stands in for the command `mmbert` in an image: says how it was called, and makes up what a component leaves.

A root that ends in `/fails-TASK` or `/leaves-nothing-TASK` makes that task do so, `/is-killed-TASK` take too much
memory. Where the first task fails, the last one does too.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

words = sys.argv[1:]
said = {name: words[i + 1] for i, name in enumerate(words) if name.startswith("--") and i + 1 < len(words)}
WATCHED = (
    "OMP_NUM_THREADS", "AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD", "HOME",
)  # fmt: skip
seen = {name: os.environ.get(name) for name in WATCHED}
print("CALLED " + json.dumps({"words": words, "environment": seen}), flush=True)
root = said["--root"]
if words[0] == "kfp":
    sys.exit("error: the last step failed, too" if "/fails-" in root else 0)
task = said["--task"]
if root.endswith(f"/fails-{task}"):
    for n in range(2000):
        print(f"line {n}")
    sys.stdout.flush()
    print("error: what was wrong, in one line", file=sys.stderr, flush=True)
    sys.exit(2)
if root.endswith(f"/is-killed-{task}"):
    # What the kernel does; not every machine lets containers have a limit.
    os.kill(os.getpid(), signal.SIGKILL)
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
if each := said.get("--each"):
    made["uri"] = json.dumps([f"{made['uri']}-{n}" for n, _ in enumerate(json.loads(said[f"--{each}"]), 1)])
made |= {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "--expect"}
for name, file in (*files.items(), ("result", said["--result-file"])):
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(made.get(name, "{}"))
