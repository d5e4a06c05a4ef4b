"""The scripts in tools/tpu: their commands, errors, and how a worker restarts a run."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

WHERE = ("--name=emu", "--zone=us-east5-a", "--project=lab")
TRAIN = ("--workdir=gs://b/run", "--", "--config=configs/pretrain_14b.py", "--config.tokenizer=a b.model")


@pytest.fixture
def script(root: Path):
    def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
        return subprocess.run(
            ["bash", str(root / "tools" / "tpu" / name), *words], capture_output=True, text=True, env=environ
        )

    return run


def commands(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    assert done.returncode == 0, done.stderr
    return [shlex.split(line, comments=True) for line in done.stdout.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--type=v5p-128"], ["--node-id=emu", "--runtime-version=v2-alpha-tpuv5"]),
        (["--type=v5litepod-256", "--spot"], ["--spot", "--runtime-version=v2-alpha-tpuv5-lite"]),
        (["--type=v6e-256", "--reservation=r"], ["--reserved", "--reservation=r", "--runtime-version=v2-alpha-tpuv6e"]),
        (
            ["--type=v4-256", "--slices=3"],
            ["--node-count=3", "--node-prefix=emu", "--runtime-version=tpu-ubuntu2204-base"],
        ),
        (["--type=v5p-8", "--runtime=mine"], ["--runtime-version=mine"]),
    ],
)
def test_create_passes_the_options_to_gcloud(script, options, words):
    (line,) = commands(script("pod.sh", "create", *WHERE, *options, "--dry-run"))
    assert line[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "emu"]
    assert {"--zone=us-east5-a", "--project=lab", *words} <= set(line)


def test_resume_requests_prepares_and_starts(script):
    lines = commands(script("pod.sh", "resume", *WHERE, "--type=v5p-128", "--dry-run", *TRAIN))
    verbs = [line[4] if line[0] == "gcloud" else line[3] for line in lines]
    assert verbs == ["delete", "create", "describe", "archive", "scp", "ssh", "ssh"]
    assert {"--node=all", "--worker=all"} <= set(lines[-1])
    start = next(word for word in lines[-1] if word.startswith("--command=")).removeprefix("--command=")
    assert shlex.split(start)[2:] == [
        "start", "--config=configs/pretrain_14b.py", "--config.tokenizer=a b.model", "--workdir=gs://b/run"
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["wait", "setup", "doctor", "watch", "status", "stop", "delete"])
def test_every_command_has_a_dry_run(script, command):
    assert commands(script("pod.sh", command, *WHERE, "--dry-run"))


def test_a_dry_run_of_setup_names_what_is_not_committed(root, tmp_path):
    """`setup` copies the commit HEAD: changed and new files are named, and stay behind."""
    copy = tmp_path / "checkout"
    shutil.copytree(root / "tools" / "tpu", copy / "tools" / "tpu")
    git = ("git", "-C", str(copy), "-c", "user.name=a", "-c", "user.email=a@b")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    setup = ["bash", str(copy / "tools" / "tpu" / "pod.sh"), "setup", *WHERE, "--dry-run"]
    clean = subprocess.run(setup, capture_output=True, text=True, check=True)
    assert "not committed" not in clean.stdout + clean.stderr
    (copy / "new.py").write_text("")
    with (copy / "tools" / "tpu" / "worker.sh").open("a") as file:
        file.write("\n")
    done = subprocess.run(setup, capture_output=True, text=True, check=True)
    printed = done.stdout + done.stderr
    assert "not committed" in printed
    assert "new.py" in printed
    assert "tools/tpu/worker.sh" in printed.split("git")[0]


def test_a_dry_run_of_keep_starts_and_resumes_once(script):
    lines = commands(script("pod.sh", "keep", *WHERE, "--type=v5p-128", "--dry-run", *TRAIN))
    assert sum("start" in " ".join(line) for line in lines) == 2


GCLOUD = """#!/usr/bin/env bash
# Replacement for gcloud: record the verb, and answer queries with the lines of `answers`.
echo "$4" >> verbs
case "$*" in
  *describe*|*"cat emu_jax/train.state"*) head -n 1 answers; sed -i 1d answers ;;
esac
"""


@pytest.mark.parametrize(
    ("answers", "code", "resumed"),
    [
        (["ACTIVE", "running", "SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "ended"], 0, 1),
        (["FAILED", "ACTIVE", "ACTIVE", "failed"], 2, 1),
        (["ACTIVE", "stopped"], 2, 0),
    ],
)
def test_keep_resumes_after_preemptions_until_the_end(root, tmp_path, answers, code, resumed):
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "answers").write_text("\n".join(answers) + "\n")
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WATCH_SECONDS": "0.01"}
    words = ["bash", str(root / "tools" / "tpu" / "pod.sh"), "keep", *WHERE, "--type=v5p-128", *TRAIN]
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    verbs = (tmp_path / "verbs").read_text().split()
    assert verbs.count("create") == verbs.count("delete") == verbs.count("scp") == resumed
    assert (tmp_path / "answers").read_text() == ""


def test_gke_commands_call_xpk(script):
    where = ("--cluster=c", "--zone=us-east5-a", "--project=lab", "--dry-run")
    (cluster,) = commands(script("gke.sh", "cluster", *where, "--type=v5p-128", "--slices=2", "--spot"))
    assert cluster[:3] == ["xpk", "cluster", "create"]
    assert {"--cluster=c", "--tpu-type=v5p-128", "--num-slices=2", "--spot"} <= set(cluster)
    (start,) = commands(script("gke.sh", "start", *where, "--type=v5p-128", "--name=r", "--image=i", *TRAIN))
    assert start[:3] == ["xpk", "workload", "create"]
    assert {"--workload=r", "--docker-image=i", "--max-restarts=50"} <= set(start)
    command = next(word for word in start if word.startswith("--command=")).removeprefix("--command=")
    assert shlex.split(command)[:5] == ["exec", "python", "-m", "emu_jax", "train"]
    assert "--config.tokenizer=a b.model" in shlex.split(command)
    for words in (["status"], ["watch", "--name=r"], ["stop", "--name=r"], ["delete"], ["image", "--image=i"]):
        assert commands(script("gke.sh", *words, *where))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pod.sh", "create", *WHERE], "--type is missing, as in --type=v5p-128"),
        (["pod.sh", "create", "--name=emu"], "--zone is missing"),
        (["pod.sh", "craete", *WHERE], "there is no command 'craete'"),
        (["pod.sh", "create", *WHERE, "--typ=v5p-128"], "unknown option '--typ=v5p-128'"),
        (["pod.sh", "start", *WHERE, "--workdir=gs://b/r"], "the options of train are missing"),
        (["gke.sh", "start", "--cluster=c", "--zone=z", "--project=p", "--type=v5p-8"], "--name is missing"),
    ],
)
def test_invalid_options_are_one_line(script, words, message):
    done = script(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_help_names_every_command(script):
    for name in ("pod.sh", "gke.sh"):
        out = script(name, "--help").stdout
        assert "--dry-run" in out
        assert "#" not in out


PYTHON = """#!/usr/bin/env bash
# Replacement for `python -u -m emu_jax train`: each attempt does what the next line of the file `attempts` says.
attempt=$(head -n 1 attempts); sed -i 1d attempts
case $attempt in
  finish) echo "finished step 8" ;;
  stop) echo "stopped at step 3" ;;
  wait) trap 'echo "stopped at step 5"; exit 0' TERM; touch waiting; while true; do sleep 0.05; done ;;
  *) exit "$attempt" ;;
esac
"""


@pytest.fixture
def worker(root, tmp_path):
    """The home directory of a worker with a replaced Python; `worker(*attempts)` starts the loop."""
    shutil.copytree(root / "tools", tmp_path / "emu_jax" / "tools")
    home = tmp_path / "emu_jax"
    (home / ".venv" / "bin").mkdir(parents=True)
    (home / ".venv" / "bin" / "python").write_text(PYTHON)
    (home / ".venv" / "bin" / "python").chmod(0o755)

    def start(*attempts: str) -> tuple[Path, subprocess.Popen]:
        (home / "attempts").write_text("\n".join(attempts) + "\n")
        log = (home / "train.log").open("w")
        process = subprocess.Popen(
            ["bash", "tools/tpu/worker.sh", "loop", "--config=c"],
            cwd=home, stdout=log, stderr=log, env=os.environ | {"RETRY_SECONDS": "0.01"},
        )  # fmt: skip
        return home, process

    return start


def test_a_worker_restarts_the_run_until_it_has_ended(worker):
    home, process = worker("1", "stop", "134", "finish", "finish")
    assert process.wait(timeout=60) == 0
    assert (home / "train.state").read_text() == "ended\n"
    assert (home / "attempts").read_text() == "finish\n"
    assert "train ended with code 134; restarting" in (home / "train.log").read_text()


def test_a_worker_does_not_restart_after_exit_code_2(worker):
    home, process = worker("2", "finish")
    assert process.wait(timeout=60) == 2
    assert (home / "train.state").read_text() == "failed\n"


def test_a_worker_lets_the_run_save_before_it_stops(worker):
    home, process = worker("wait", "finish")
    deadline = time.monotonic() + 60
    while not (home / "waiting").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert (home / "train.state").read_text() == "stopped\n"
    assert "stopped at step 5" in (home / "train.log").read_text()
