"""The emulator as a child process: dies with its parent, survives kill -9, shares its folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from runner.emulator import process
from runner.errors import BackendError

ROOT = Path(__file__).resolve().parent.parent.parent


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, timeout_s=10):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_job_survives_kill_9_and_is_computed_again(tmp_path, driver_for, line, start):
    rows = [line(f"r{n}", f"Row {n} asks for something.") for n in range(15_000)]
    folder = tmp_path / "emulator"
    first = process.start(folder, None)
    driver = driver_for(first.url)
    file = driver.upload(rows)
    name = driver.client.batches.create(model=driver.model, src=file.name).name
    assert wait_until(lambda: driver.http("GET", name)[1]["metadata"]["state"] == "BATCH_STATE_RUNNING")
    os.kill(first.pid, signal.SIGKILL)
    first.close()
    assert list((folder / "jobs").glob("*.tmp"))
    with process.start(folder, None) as second:
        driver = driver_for(second.url)
        assert driver.client.files.get(name=file.name).name == file.name
        operation = driver.wait(name)
        assert operation["metadata"]["batchStats"]["successfulRequestCount"] == "15000"
        output = driver.output(operation)
    other = start(folder="other")
    assert output == other.output(other.wait(other.create(rows)))


def test_an_upload_goes_on_after_kill_9(tmp_path, line):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def post(url, data, **headers):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        with opener.open(urllib.request.Request(url, data, names, method="POST"), timeout=5) as reply:
            return dict(reply.headers), json.loads(reply.read())

    first = process.start(tmp_path / "emulator", None)
    headers, _ = post(
        f"{first.url}/upload/v1beta/files",
        b"{}",
        X_Goog_Upload_Protocol="resumable",
        X_Goog_Upload_Command="start",
        x_goog_api_key="k",
    )
    url = headers["x-goog-upload-url"]
    post(url, b"abc", X_Goog_Upload_Command="upload", X_Goog_Upload_Offset="0")
    os.kill(first.pid, signal.SIGKILL)
    first.close()
    with process.start(tmp_path / "emulator", None) as second:
        url = url.replace(first.url, second.url)
        _, body = post(url, b"de", X_Goog_Upload_Command="upload, finalize", X_Goog_Upload_Offset="3")
    assert body["file"]["sizeBytes"] == "5"


def test_two_processes_share_one_folder(tmp_path, driver_for, line):
    folder = tmp_path / "emulator"
    with process.start(folder, None) as one, process.start(folder, None) as two:
        drivers = [driver_for(one.url), driver_for(two.url)]
        names: list[str] = []
        failures: list[BaseException] = []

        def work(driver, mark):
            try:
                for n in range(6):
                    name = driver.create([line(f"{mark}{n}-{m}", f"Row {m}.") for m in range(50)])
                    names.append(name)
            except BaseException as error:
                failures.append(error)

        threads = [
            threading.Thread(target=work, args=(driver, mark))
            for mark, driver in zip("ab", drivers, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        # Each process answers for what the other one took in.
        for name in names:
            outputs = {driver.output(driver.wait(name)) for driver in drivers}
            assert len(outputs) == 1
            assert len(outputs.pop().splitlines()) == 50
        assert sorted(job.name for job in drivers[1].client.batches.list()) == sorted(names)
        assert not list((folder / "jobs").glob("*.tmp"))


def test_a_waiting_job_is_taken_over_when_its_process_ends(tmp_path, driver_for, line):
    faults = tmp_path / "faults.json"
    faults.write_text('{"timing": {"pending_s": 0.5}}')
    folder = tmp_path / "emulator"
    with process.start(folder, None) as stays:
        with process.start(folder, faults) as leaves:
            name = driver_for(leaves.url).create([line("a", "x")])
        assert driver_for(stays.url).wait(name)["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"


def test_the_child_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom runner.emulator import process\n"
        f"child = process.start(Path({str(tmp_path / 'emulator')!r}), None)\n"
        "print(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert parent.stdout
    with parent.stdout:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        parent.wait()
        assert wait_until(lambda: not alive(pid))


def test_close_ends_the_child_and_may_be_repeated(tmp_path):
    child = process.start(tmp_path / "emulator", None)
    child.close()
    child.close()
    assert not alive(child.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(tmp_path, number):
    command = [sys.executable, "-m", "runner.emulator", "--dir", str(tmp_path / "emulator")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout
    with child.stdout:
        ready = json.loads(child.stdout.readline())
        assert ready["pid"] == child.pid
        assert set(ready) == {"url", "pid"}
        child.send_signal(number)
        assert child.wait(10) == 0


def test_a_child_that_cannot_start_says_why(tmp_path):
    faults = tmp_path / "faults.yaml"
    faults.write_text("jobs: [{kind: nonsense}]")
    with pytest.raises(BackendError, match=r"did not start: Error: .*faults\.yaml.*jobs\[0\]\.kind"):
        process.start(tmp_path / "emulator", faults)
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match="cannot serve"):
        process.start(tmp_path / "file", None)


def test_the_environment_does_not_change_the_child(tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    (trap / "runner").mkdir(parents=True)
    (trap / "runner" / "__init__.py").write_text("raise SystemExit('the wrong runner')")
    (trap / "orjson.py").write_text("raise SystemExit('the wrong orjson')")
    monkeypatch.setenv("PYTHONPATH", str(trap))
    monkeypatch.setenv("PYTHONHOME", str(trap))
    monkeypatch.chdir(trap)
    with process.start(tmp_path / "emulator", None) as child:
        assert child.url.startswith("http://127.0.0.1:")


def test_importing_the_starter_loads_no_server():
    code = (
        "import sys, runner.emulator.process\n"
        "heavy = {'sqlite3', 'http.server', 'orjson', 'yaml', 'msgspec', 'google.genai'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
