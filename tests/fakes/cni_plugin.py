#!/usr/bin/python3 -IS
"""A CNI plugin that does as its configuration says.

    log      file that gets a line of JSON per call: command, parameters and what it read
    ADD, DEL, CHECK, STATUS, VERSION
             what to do: {"run": shell commands in the pod's namespace, "sleep": seconds,
             "print": document, "text": raw output, "stderr": text, "exit": status}

ADD passes the previous result on, unless it is told what to print.
"""

import json
import os
import subprocess
import sys
import time

command = os.environ["CNI_COMMAND"]
config = json.load(sys.stdin)
todo = config.get(command, {})
if "log" in config:
    with open(config["log"], "a") as log:
        parameters = {k: v for k, v in os.environ.items() if k.startswith("CNI_")}
        log.write(json.dumps({"command": command, "env": parameters, "config": config}) + "\n")
if "run" in todo:
    namespace = "--net=" + os.environ["CNI_NETNS"]
    subprocess.run(["nsenter", namespace, "sh", "-ec", todo["run"]], check=True, stdout=2)
time.sleep(todo.get("sleep", 0))
sys.stderr.write(todo.get("stderr", ""))
if "text" in todo:
    sys.stdout.write(todo["text"])
elif "print" in todo:
    json.dump(todo["print"], sys.stdout)
elif command == "ADD":
    json.dump(config.get("prevResult", {"cniVersion": config["cniVersion"]}), sys.stdout)
elif command == "VERSION":
    json.dump({"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}, sys.stdout)
sys.exit(todo.get("exit", 0))
