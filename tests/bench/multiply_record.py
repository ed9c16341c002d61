#!/usr/bin/python3
"""Makes a large record of a small one: every segment of a finished run COPIES times, each a file of its own.

usage: multiply_record.py RUN OUT COPIES

What reduce reads of OUT is valid: its documents are those of RUN, its tokens COPIES times as many. Needs no packages.
"""
import json, pathlib, shutil, sys


def main():
    run, out, copies = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
    (out / "segments").mkdir(parents=True)
    shutil.copy(run / "run.json", out)
    entries = [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]
    lines = []
    for entry in entries:  # a corpus' segments stay together, as in every run
        for _ in range(copies):
            name = f"segments/segment-{len(lines):06d}.h5"
            shutil.copyfile(run / entry["file"], out / name)
            lines.append(json.dumps({**entry, "file": name}))
    (out / "manifest.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
