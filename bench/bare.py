"""The bare loops that gbrun is measured against. They stay as they are, so that ratios compare.

    python bench/bare.py walk_stat FOLDER
    python bench/bare.py read_hash_write FOLDER OUT BYTES_PER_REQUEST
    python bench/bare.py collect RESPONSES OUT
    python bench/bare.py collect_and_keep RESPONSES SCHEMA FOLDER

`walk_stat` names and stats every file in sorted order: the least that a plan with nothing to do
needs. `read_hash_write` also reads each file, hashes and writes as many bytes as a request has:
the least that a first plan needs. `collect` parses each response line and the JSON in it, and writes
a record: the least that taking in an output needs. `collect_and_keep` does so too, in as straight a line,
and keeps what a state has of it: the responses packed, an outcome of each request in a file and in a table,
a snapshot of the rows; records are judged by the schema and written in the order of the rows. It holds
everything in memory and looks for nothing that may be wrong. It prints the seconds it took, without the
preparing of the rows; the others print how many there were.
"""

import hashlib
import os
import sqlite3
import sys
import time

ROWS = "rows.sqlite"


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


def collect_and_keep(responses, schema, folder):
    import json

    import jsonschema_rs
    import orjson
    from isal import isal_zlib

    def kept(name, chunks):
        with open(os.path.join(folder, name), "wb") as file:
            for chunk in chunks:
                packer = isal_zlib.compressobj(2, wbits=31)
                file.write(packer.compress(chunk) + packer.flush())
            file.flush()
            os.fsync(file.fileno())

    with open(schema) as file:
        valid = jsonschema_rs.validator_for(json.load(file), validate_formats=True).is_valid
    rows = sqlite3.connect(os.path.join(folder, ROWS))
    records, outcomes = {}, {}

    def members():
        group, size = [], 0
        with open(responses, "rb") as lines:
            for line in lines:
                body = orjson.loads(line)
                response = body["response"]
                candidate = response["candidates"][0]
                found = orjson.loads(candidate["content"]["parts"][0]["text"])
                if candidate["finishReason"] != "STOP" or not valid(found):
                    raise ValueError(body["key"])
                key = body["key"]
                records[key] = orjson.dumps(found)
                outcomes[key] = orjson.dumps(
                    {
                        "id": key,
                        "outcome": "ok",
                        "attempt": "gb1-0123456789abcdef-0123456789abcdef-a1",
                        "jobs": 1,
                        "ref": [1, len(group), size, len(line)],
                        "usage": {"prompt": 900, "output": 300},
                        "model_version": response["modelVersion"],
                        "response_id": response["responseId"],
                        "finish_reason": "STOP",
                    }
                )
                group.append(line)
                size += len(line)
                if size >= 1 << 20:
                    yield b"".join(group)
                    group, size = [], 0
        yield b"".join(group)

    kept("responses.jsonl.gz", members())
    kept("outcomes.jsonl.gz", [b"\n".join(outcomes.values())])
    index = sqlite3.connect(os.path.join(folder, "index.sqlite"), isolation_level=None)
    index.execute("PRAGMA synchronous=OFF")
    index.execute("CREATE TABLE outcome (request_id TEXT PRIMARY KEY, outcome TEXT, line BLOB)")
    index.execute("BEGIN")
    found = ((key, "ok", line) for key, line in outcomes.items())
    index.executemany("INSERT INTO outcome VALUES (?, ?, ?)", found)
    index.execute("COMMIT")
    digest = hashlib.sha256()
    with open(os.path.join(folder, "records.jsonl"), "wb") as file:
        for key, request in rows.execute("SELECT key, request FROM row ORDER BY ordinal"):
            line = b'{"_key":' + orjson.dumps(key) + b"," + records[request][1:] + b"\n"
            digest.update(line)
            file.write(line)
        file.flush()
        os.fsync(file.fileno())
    lines = """SELECT CAST('{"key":' || json_quote(key) || ',"ordinal":' || ordinal || ',"requests":"'
        || request || '","outcome":"ok"}' || char(10) AS BLOB) FROM row ORDER BY key"""
    kept("rows.jsonl.gz", [b"".join(line for (line,) in rows.execute(lines))])
    index.execute("ATTACH ? AS planned", (os.path.join(folder, ROWS),))
    index.execute("CREATE TABLE row (ordinal INTEGER PRIMARY KEY, key TEXT UNIQUE, request TEXT)")
    index.execute("INSERT INTO main.row SELECT * FROM planned.row")
    index.close()
    rows.close()
    return len(records)


def plan_rows(responses, folder):
    """What `collect_and_keep` finds: the rows as a plan leaves them."""
    import orjson

    db = sqlite3.connect(os.path.join(folder, ROWS), isolation_level=None)
    db.execute("PRAGMA synchronous=OFF")
    db.execute("CREATE TABLE row (ordinal INTEGER PRIMARY KEY, key TEXT UNIQUE, request TEXT)")
    db.execute("BEGIN")
    with open(responses, "rb") as lines:
        requests = enumerate(orjson.loads(line)["key"] for line in lines)
        found = ((at, f"data/{at // 1000:04d}/{at:07d}.txt", request) for at, request in requests)
        db.executemany("INSERT INTO row VALUES (?, ?, ?)", found)
    db.execute("COMMIT")
    db.close()


if __name__ == "__main__":
    if sys.argv[1] == "walk_stat":
        print(walk_stat(sys.argv[2]))
    elif sys.argv[1] == "collect":
        print(collect(sys.argv[2], sys.argv[3]))
    elif sys.argv[1] == "collect_and_keep":
        plan_rows(sys.argv[2], sys.argv[4])
        began = time.perf_counter()
        collect_and_keep(*sys.argv[2:5])
        print(time.perf_counter() - began)
    else:
        print(read_hash_write(sys.argv[2], sys.argv[3], int(sys.argv[4])))
