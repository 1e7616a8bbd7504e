"""The bare loops that gbrun is measured against. They stay as they are, so that ratios compare.

    python bench/bare.py walk_stat FOLDER
    python bench/bare.py read_hash_write FOLDER OUT BYTES_PER_REQUEST
    python bench/bare.py collect RESPONSES OUT

`walk_stat` names and stats every file in sorted order: the least that a plan with nothing to do
needs. `read_hash_write` also reads each file, hashes and writes as many bytes as a request has:
the least that a first plan needs. `collect` parses each response line and the JSON in it, and writes
a record: the least that taking in an output needs.
"""

import hashlib
import os
import sys


def walk(folder):
    with os.scandir(folder) as listing:
        entries = sorted((e.name + "/" if e.is_dir() else e.name, e) for e in listing)
    for name, entry in entries:
        if name.endswith("/"):
            yield from walk(entry.path)
        else:
            yield entry


def walk_stat(folder):
    count = 0
    for entry in walk(folder):
        entry.stat()
        count += 1
    return count


def read_hash_write(folder, out, size):
    count = 0
    with open(out, "wb") as file:
        for entry in walk(folder):
            handle = os.open(entry.path, os.O_RDONLY)
            data = os.read(handle, 1 << 16)
            os.close(handle)
            line = (data * (size // max(len(data), 1) + 1))[:size]
            hashlib.sha256(line).digest()
            file.write(line)
            count += 1
    return count


def collect(responses, out):
    import orjson

    count = 0
    with open(responses, "rb") as lines, open(out, "wb") as file:
        for line in lines:
            body = orjson.loads(line)
            text = body["response"]["candidates"][0]["content"]["parts"][0]["text"]
            file.write(orjson.dumps({"_key": body["key"], **orjson.loads(text)}) + b"\n")
            count += 1
    return count


if __name__ == "__main__":
    if sys.argv[1] == "walk_stat":
        print(walk_stat(sys.argv[2]))
    elif sys.argv[1] == "collect":
        print(collect(sys.argv[2], sys.argv[3]))
    else:
        print(read_hash_write(sys.argv[2], sys.argv[3], int(sys.argv[4])))
